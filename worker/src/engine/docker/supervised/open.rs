//! Makes containers whose first process is a supervisor.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bollard::models::{ContainerCreateBody, HostConfig, ImageInspect, Mount, MountType};
use longshore_protocol::job::{Network, Resources};
use tokio::net::UnixListener;
use tokio::sync::oneshot;

use super::super::super::{ContainerName, ContainerSpec, Created, EngineError};
use super::super::{DockerEngine, create, stop};
use super::away::Identity;
use super::link::{Link, Opening};
use super::place::Place;
use super::task::Task;
use super::{Begun, Held, ImageFacts, MOUNTED_AT, broken, disk, forget};
use longshore_protocol::process::blocking;

/// A start is 0.1 to 0.3 s; on a host that swaps, seconds.
const START: Duration = Duration::from_mins(2);

/// The kernel's OOM killer ends what the step started before it ends the supervisor. The supervisor puts it back to 0
/// for whatever it starts. Where that cannot be had, a supervisor of 1 MB is still the last that the OOM killer takes in a
/// container whose memory something else has filled.
pub(super) const OOM_SCORE_ADJ: i64 = -999;

/// Makes a step's container.
pub(in super::super) async fn create(
    engine: &DockerEngine,
    spec: &ContainerSpec,
    image: &ImageInspect,
) -> Result<Created, EngineError> {
    let facts = ImageFacts::of(image.config.as_ref());
    let volumes = facts.volumes.clone();
    let joined = match spec.network {
        Network::None => engine.shared.namespaces.take(&spec.tenant, &spec.name).await,
        Network::Bridge => None,
    };
    let body = create::supervised_body(spec, image.config.as_ref(), joined);
    match make(engine, spec.name.as_str(), body, facts, spec.resources).await {
        Ok(()) => Ok(Created { volumes }),
        Err(error) => {
            // Nothing ever ran in it.
            engine.shared.namespaces.give_back(&spec.name, true).await;
            Err(create::refused(error, spec))
        }
    }
}

/// Makes a container of Longshore's own, with the image and host configuration of `body`. On an error none of that
/// name is left, unless it was there before ([`EngineError::Refused`] with 409).
pub(in super::super) async fn open(
    engine: &DockerEngine,
    name: &str,
    body: ContainerCreateBody,
) -> Result<(), EngineError> {
    make(engine, name, body, ImageFacts::default(), Resources::default()).await
}

async fn make(
    engine: &DockerEngine,
    name: &str,
    mut body: ContainerCreateBody,
    image: ImageFacts,
    resources: Resources,
) -> Result<(), EngineError> {
    let begun = engine.shared.supervised.begun()?;
    let (place, of_name) = (Arc::clone(&begun.place), name.to_owned());
    // The Engine does not create a container whose mount's source is not there.
    blocking(move || place.make(&of_name)).await.map_err(|error| disk(name, &error))?;
    let protects = engine.shared.supervised.protects.load(Ordering::Relaxed);
    dress(&mut body, &image, protects, begun.place.dir(name).display().to_string(), begun.duty.orphan);
    create::send(engine, name, body).await?;

    match start(engine, begun, name).await {
        Ok((link, upper)) => {
            let held = Held { link, image: Arc::new(image), upper, resources };
            engine.shared.supervised.held().insert(name.to_owned(), held);
            Ok(())
        }
        Err(error) => {
            if let Err(error) = stop::remove(engine, name).await {
                tracing::warn!(container = name, %error, "a container without a supervisor is still here");
            }
            forget(engine, name).await;
            Err(error)
        }
    }
}

/// Makes the supervisor the first process of a container to be.
fn dress(body: &mut ContainerCreateBody, image: &ImageFacts, protects: bool, dir: String, orphan: Duration) {
    let mut argv = ["supervisor", "sock"].map(|file| format!("{MOUNTED_AT}/{file}")).to_vec();
    // P17: also if this worker is killed before its supervisor has heard a word of it.
    argv.push(orphan.as_millis().to_string());
    body.entrypoint = Some(argv);
    // Only where there is another one to be replaced: what stands here would be inherited by every snapshot.
    body.user = image.user.as_deref().filter(|user| !matches!(*user, "0" | "root")).map(|_| "0".to_owned());
    body.working_dir = image.workdir.as_deref().filter(|dir| *dir != "/").map(|_| "/".to_owned());
    let host = body.host_config.get_or_insert_with(HostConfig::default);
    host.oom_score_adj = protects.then_some(OOM_SCORE_ADJ);
    host.mounts.get_or_insert_default().push(Mount {
        typ: Some(MountType::BIND),
        source: Some(dir),
        target: Some(MOUNTED_AT.to_owned()),
        read_only: Some(true),
        ..Default::default()
    });
}

/// Starts a created container, and waits until its supervisor has shown itself.
async fn start(engine: &DockerEngine, begun: &Begun, name: &str) -> Result<(Link, Option<PathBuf>), EngineError> {
    let listener = listen(&begun.place, name, Place::fill).await?;
    engine.limited("start", START, engine.client().start_container(name, None)).await.map_err(|error| match error {
        // Whatever the Engine has against it is not the step's fault, whose command is not part of this.
        EngineError::Refused { operation, status, reason } => {
            EngineError::Refused { operation, status: status.max(500), reason }
        }
        error => error,
    })?;
    let (answer, opened) = oneshot::channel();
    let (link, upper) = speak(engine, begun, name, listener, Opening::New(answer)).await?;
    link.answer(opened).await?;
    Ok((link, upper))
}

/// Listens in a container's directory.
pub(super) async fn listen(
    place: &Arc<Place>,
    name: &str,
    how: fn(&Place, &str) -> std::io::Result<std::os::unix::net::UnixListener>,
) -> Result<UnixListener, EngineError> {
    let (place, of_name) = (Arc::clone(place), name.to_owned());
    let listener = blocking(move || how(&place, &of_name)).await;
    listener.and_then(UnixListener::from_std).map_err(|error| disk(name, &error))
}

/// Begins to speak to the supervisor of a running container; how it answers is told to `opening`. Also where the
/// container's own layer lies.
pub(super) async fn speak(
    engine: &DockerEngine,
    begun: &Begun,
    name: &str,
    listener: UnixListener,
    opening: Opening,
) -> Result<(Link, Option<PathBuf>), EngineError> {
    let inspected = engine.inspect_name(name).await?;
    let state = inspected.state.unwrap_or_default();
    // Read after the start: nobody but the container's first process can have this number as long as it runs.
    let pid = state.pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0);
    let Some(pid) = pid.filter(|_| state.running == Some(true)) else {
        let code = state.exit_code.unwrap_or_default();
        return Err(broken(name, &format!("its supervisor ended at once, with {code}")));
    };
    let upper = inspected.graph_driver.and_then(|mut driver| driver.data.remove("UpperDir")).map(PathBuf::from);
    let (link, asks, lost) = Link::new();
    let identity =
        Identity { container: name.to_owned(), pid, client: engine.client().clone(), orphan: begun.duty.orphan };
    let task = Task::new(identity, listener, asks, opening);
    let life = engine.shared.life.clone();
    tokio::spawn(task.run(life, lost));
    Ok((link, upper))
}

/// Whether a container that the Engine described is one of ours: its mount says so.
pub(super) fn is_ours(begun: &Begun, name: &ContainerName, mounts: &[bollard::models::MountPoint]) -> bool {
    let dir = begun.place.dir(name.as_str()).display().to_string();
    let is_mount = |mount: &bollard::models::MountPoint| {
        mount.destination.as_deref() == Some(MOUNTED_AT) && mount.source.as_deref() == Some(dir.as_str())
    };
    mounts.iter().any(is_mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dressed(user: Option<&str>, workdir: Option<&str>) -> ContainerCreateBody {
        let image =
            ImageFacts { user: user.map(str::to_owned), workdir: workdir.map(str::to_owned), ..Default::default() };
        let mut body = ContainerCreateBody::default();
        dress(&mut body, &image, true, "/state/c/x".to_owned(), Duration::from_secs(3));
        body
    }

    #[test]
    fn only_what_the_image_sets_is_replaced() {
        for (user, workdir) in [(None, None), (Some("root"), Some("/")), (Some("0"), None)] {
            let body = dressed(user, workdir);
            assert_eq!((body.user, body.working_dir), (None, None));
        }
        let body = dressed(Some("me"), Some("/home/me"));
        assert_eq!((body.user.as_deref(), body.working_dir.as_deref()), (Some("0"), Some("/")));
        let argv = ["/dev/longshore/supervisor", "/dev/longshore/sock", "3000"];
        assert_eq!(body.entrypoint.unwrap(), argv);
        let mounts = body.host_config.unwrap().mounts.unwrap();
        assert_eq!(
            (mounts.len(), mounts[0].read_only, mounts[0].source.as_deref()),
            (1, Some(true), Some("/state/c/x"))
        );
    }
}
