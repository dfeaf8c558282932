//! One holder: a container of an empty image, in which a supervisor waits and nothing ever runs.

use std::collections::HashMap;

use bollard::models::{ContainerCreateBody, ContainerSummary, HostConfig};
use bollard::query_parameters::{CreateImageOptionsBuilder, ListContainersOptionsBuilder};
use bytes::Bytes;
use futures_util::stream::{self, TryStreamExt};
use longshore_protocol::WorkerId;
use longshore_protocol::job::Resources;

use super::super::super::EngineError;
use super::super::{DockerEngine, QUESTION, create, errors, stop, supervised};
use super::tables::{Process, Sockets};
use super::{Holder, Standing};
use longshore_protocol::process::blocking;

/// Not below `longshore/`: that is where snapshots are listed.
const REPOSITORY: &str = "longshore-holder";
/// Grows when the image changes.
const TAG: &str = "1";

/// A tar without entries: two blocks of zeros.
const EMPTY_TAR: [u8; 1024] = [0; 1024];

/// What a supervisor that starts nothing needs at most: it is one process.
const PIDS_MAX: u32 = 8;

/// A holder that an Engine listed.
pub(super) struct Found {
    pub(super) number: u32,
    id: String,
    running: bool,
    /// The container that is in its network.
    user: Option<String>,
}

/// Its container's name.
pub(super) fn name(worker: &WorkerId, number: u32) -> String {
    format!("{}{number}", prefix(worker))
}

fn prefix(worker: &WorkerId) -> String {
    format!("longshore.{worker}.net.")
}

/// Every holder of a worker's, running or not.
pub(super) async fn list(engine: &DockerEngine, worker: &WorkerId) -> Result<Vec<Found>, EngineError> {
    // Unfiltered: who is in a holder's network is told by that container alone.
    let options = ListContainersOptionsBuilder::new().all(true).build();
    let all = engine.limited("list containers", QUESTION, engine.client().list_containers(Some(options))).await?;
    let users: HashMap<String, String> = all.iter().filter_map(joined).collect();
    let found = all.iter().filter_map(|container| {
        let number = name_of(container)?.strip_prefix(&prefix(worker))?.parse().ok()?;
        let id = container.id.clone()?;
        let running = container.state.as_ref().is_some_and(|state| state.to_string() == "running");
        Some(Found { number, user: users.get(&id).cloned(), id, running })
    });
    Ok(found.collect())
}

fn name_of(container: &ContainerSummary) -> Option<&str> {
    let name = container.names.as_ref()?.first()?;
    Some(name.strip_prefix('/').unwrap_or(name))
}

/// Whose network a container is in, and who it is.
fn joined(container: &ContainerSummary) -> Option<(String, String)> {
    let mode = container.host_config.as_ref()?.network_mode.as_ref()?;
    Some((mode.strip_prefix("container:")?.to_owned(), name_of(container)?.to_owned()))
}

/// Makes one, which nobody uses. On an error none of that name is left.
pub(super) async fn make(engine: &DockerEngine, worker: &WorkerId, number: u32) -> Result<Holder, EngineError> {
    ensure_image(engine).await?;
    let name = name(worker, number);
    let limits = Resources { pids: Some(PIDS_MAX), ..Resources::default() };
    let body = ContainerCreateBody {
        image: Some(format!("{REPOSITORY}:{TAG}")),
        host_config: Some(HostConfig {
            network_mode: Some("none".to_owned()),
            // A server's TIME_WAIT would fail the next step's bind.
            sysctls: Some(HashMap::from([("net.ipv4.tcp_max_tw_buckets".to_owned(), "0".to_owned())])),
            cap_add: None, // it waits, and ends
            ..create::host_config(&limits)
        }),
        ..Default::default()
    };
    supervised::open(engine, &name, body).await?;
    match facts(engine, &name).await {
        Ok(facts) => Ok(facts.holder(Standing::Free)),
        Err(error) => {
            if let Err(error) = remove(engine, &name).await {
                tracing::warn!(container = name, %error, "a network namespace that is of no use is still here");
            }
            Err(error)
        }
    }
}

/// Takes up one that an earlier incarnation made. One that is of no use says why.
pub(super) async fn adopt(engine: &DockerEngine, worker: &WorkerId, found: Found) -> Holder {
    let name = name(worker, found.number);
    let nobody = |because| Holder {
        id: found.id.clone(),
        process: Process::NONE,
        own: Sockets::default(),
        tenant: None,
        standing: Standing::Useless(because),
    };
    if !found.running {
        return nobody("dead");
    }
    // It must hear of its worker, also while it is used (P17).
    if let Err(error) = supervised::resume(engine, &name).await {
        tracing::debug!(container = name, %error, "a kept network namespace cannot be taken up");
        return nobody("dead");
    }
    if let Some(user) = found.user {
        // What is in it is the user's as well, and cannot be told apart: so it is not given out again.
        return Holder { standing: Standing::Used(user), ..nobody("unknown") };
    }
    match facts(engine, &name).await {
        Ok(facts) => facts.holder(Standing::Free),
        Err(error) => {
            tracing::debug!(container = name, %error, "a kept network namespace is not empty");
            nobody("sockets")
        }
    }
}

struct Facts {
    id: String,
    process: Process,
    own: Sockets,
}

impl Facts {
    fn holder(self, standing: Standing) -> Holder {
        Holder { id: self.id, process: self.process, own: self.own, tenant: None, standing }
    }
}

/// An unused one's process, and what is in its namespace of its own.
async fn facts(engine: &DockerEngine, name: &str) -> Result<Facts, EngineError> {
    let inspected = engine.inspect_name(name).await?;
    let pid = inspected.state.and_then(|state| state.pid).and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
    let unseen = |error: std::io::Error| {
        let reason = format!("the network of {name}, process {pid}, cannot be looked at: {error}");
        errors::refused("hold", 500, reason)
    };
    let process = blocking(move || Process::of(pid)).await.map_err(unseen)?;
    let own = process.settled(|_| true).await.map_err(unseen)?;
    Ok(Facts { id: inspected.id.unwrap_or_default(), process, own })
}

/// Removes one.
pub(super) async fn remove(engine: &DockerEngine, name: &str) -> Result<(), EngineError> {
    supervised::end(engine, name).await;
    stop::remove(engine, name).await?;
    supervised::forget(engine, name).await;
    Ok(())
}

/// Nothing is pulled for it: its root file system is empty.
async fn ensure_image(engine: &DockerEngine) -> Result<(), EngineError> {
    if engine.inspect_image(&format!("{REPOSITORY}:{TAG}")).await?.is_some() {
        return Ok(());
    }
    let options = CreateImageOptionsBuilder::new().from_src("-").repo(REPOSITORY).tag(TAG).build();
    let tar = stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(&EMPTY_TAR)) });
    let mut progress = engine.client().create_image(Some(options), Some(bollard::body_try_stream(tar)), None);
    let importing = async {
        while progress.try_next().await?.is_some() {}
        Ok(())
    };
    engine.limited("import", QUESTION, importing).await
}
