//! The supervised way: the first process of a container is our own, and commands are started through it.
//!
//! 1. [`place`] has its binary and a directory for each container;
//! 2. [`probe`] finds out once whether that works here;
//! 3. [`open`] makes a container and waits for its supervisor, whose connection is a [`task`] behind a [`link`]:
//!    [`connection`], [`greeting`], [`command`], [`away`];
//! 4. [`run`], [`inject`], [`clean`], [`fit`] and [`adopt`] are the Engine's methods by it.

mod adopt;
mod away;
mod clean;
mod command;
mod connection;
mod fit;
mod greeting;
mod inject;
mod link;
mod open;
mod place;
mod probe;
mod run;
mod task;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bollard::models::ImageConfig;
use longshore_protocol::job::Resources;
use longshore_protocol::process::watch;

use super::super::{ContainerName, Duty, EngineError, Way};
use super::{DockerEngine, errors};
use longshore_protocol::process::blocking;

pub(super) use adopt::{adopt, resume};
pub(super) use clean::clean;
pub(super) use fit::fit;
pub(super) use inject::inject;
pub(super) use open::{create, open};
pub(super) use run::{extend, runs, start, stop};

use link::Link;
use place::Place;

/// Where a container sees its directory. Under `/dev`, which is the container's own tmpfs: a mount point there is in no
/// commit.
const MOUNTED_AT: &str = "/dev/longshore";

/// A supervisor that is told to end does so at once; on a host that swaps, soon. It can also be killed.
const END: Duration = Duration::from_secs(2);

/// What a Docker Engine knows of its supervisors.
pub(super) struct Supervised {
    begun: OnceLock<Begun>,
    /// `None` while it is being found out.
    way: watch::Sender<Option<Way>>,
    /// Whether containers can be given an OOM score below 0. An Engine that lacks `CAP_SYS_RESOURCE` itself (rootless, or
    /// in a container) cannot, and says nothing but that the start failed.
    protects: AtomicBool,
    /// By container. Whoever removes a container has it forgotten.
    held: Mutex<HashMap<String, Held>>,
}

struct Begun {
    duty: Duty,
    place: Arc<Place>,
}

/// A container whose supervisor this process speaks to.
#[derive(Clone)]
struct Held {
    link: Link,
    image: Arc<ImageFacts>,
    /// Where the container's own layer lies on the Engine's disk, if it says so.
    upper: Option<PathBuf>,
    /// As they were set last.
    resources: Resources,
}

/// What a container's image says about commands.
#[derive(Debug, Default, PartialEq, Eq)]
struct ImageFacts {
    env: Vec<(String, String)>,
    workdir: Option<String>,
    user: Option<String>,
    volumes: Vec<String>,
}

impl ImageFacts {
    fn of(config: Option<&ImageConfig>) -> Self {
        let Some(config) = config else { return Self::default() };
        let stated = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        let env = config.env.iter().flatten().filter_map(|entry| {
            // A name alone means "not set".
            entry.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
        });
        Self {
            env: env.collect(),
            workdir: stated(&config.working_dir),
            user: stated(&config.user),
            volumes: volumes(Some(config)),
        }
    }
}

/// The VOLUMEs that an image declares, in order.
pub(super) fn volumes(config: Option<&ImageConfig>) -> Vec<String> {
    let mut volumes: Vec<_> = config.and_then(|config| config.volumes.clone()).into_iter().flatten().collect();
    volumes.sort_unstable();
    volumes
}

impl Default for Supervised {
    fn default() -> Self {
        let because = "no worker has begun".to_owned();
        let (way, _) = watch::channel(Some(Way::Direct { because }));
        Self { begun: OnceLock::new(), way, protects: AtomicBool::new(true), held: Mutex::default() }
    }
}

impl Supervised {
    fn begun(&self) -> Result<&Begun, EngineError> {
        let not_begun = || EngineError::Refused {
            operation: "supervise",
            status: 400,
            reason: "there is no supervisor here: no worker has begun, or it does without".to_owned(),
        };
        self.begun.get().ok_or_else(not_begun)
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, container: &str) -> Option<Held> {
        self.held().get(container).cloned()
    }

    /// Whose work is done, since `begin`.
    pub(super) fn duty(&self) -> Option<&Duty> {
        self.begun.get().map(|begun| &begun.duty)
    }
}

/// Takes up a worker's work. What is wrong with its disk is no error here: it is done without supervisors then.
pub(super) async fn begin(engine: &DockerEngine, duty: Duty) {
    let supervised = &engine.shared.supervised;
    let worker = duty.worker.clone();
    let refused = match place(&duty).await {
        Ok(place) => {
            if supervised.begun.set(Begun { duty, place: Arc::new(place) }).is_err() {
                return; // a second call: the first one's work goes on
            }
            None
        }
        Err(because) => Some(because),
    };
    supervised.way.send_replace(None);
    let life = engine.shared.life.clone();
    let background = engine.background();
    tokio::spawn(async move { Box::pin(life.run_until_cancelled(probe::run(background, worker, refused))).await });
}

/// Where supervisors are, or why there are none.
async fn place(duty: &Duty) -> Result<Place, String> {
    if duty.direct {
        return Err("it was asked for".to_owned());
    }
    let dir = duty.dir.clone();
    let place = blocking(move || Place::begin(&dir)).await;
    place.map_err(|error| format!("the supervisor cannot be unpacked in {}: {error}", duty.dir.display()))
}

/// For what only a supervisor can do.
async fn require(engine: &DockerEngine, container: &ContainerName) -> Result<Held, EngineError> {
    if let Some(held) = engine.shared.supervised.find(container.as_str()) {
        return Ok(held);
    }
    engine.inspect(container).await?;
    Err(broken(container.as_str(), "it has no supervisor that is known here"))
}

/// How commands are run here, as soon as that is known.
pub(super) async fn way(engine: &DockerEngine) -> Way {
    let mut way = engine.shared.supervised.way.subscribe();
    let found = way.wait_for(Option::is_some).await.map(|way| way.clone());
    // INVARIANT: the sender lives as long as the Engine, which is borrowed.
    found.ok().flatten().expect("INVARIANT: a way was waited for, and its sender is there")
}

/// Readies a container for its removal. Whether what it shares with others, a kept network namespace and the files that
/// come with it, is as it was: only what is shared is looked after.
pub(super) async fn leave(engine: &DockerEngine, container: &ContainerName) -> bool {
    let shares = engine.shared.namespaces.is_used_by(container);
    if shares && matches!(runs(engine, container).await, Some(Ok(true))) {
        // Its end is told as what it is, not as a container that was cleaned under it.
        if let Err(error) = stop(engine, container, Duration::ZERO).await {
            tracing::debug!(%container, %error, "what runs in a container that is to go could not be ended");
        }
    }
    let in_order = shares && matches!(clean(engine, container).await, Ok(super::super::Cleaned::Ready));
    end(engine, container.as_str()).await;
    in_order
}

/// Has a container's supervisor end itself, and the container with it: it is removed in a sixth of the time then.
/// Without a supervisor, or if that is away, nothing happens.
pub(super) async fn end(engine: &DockerEngine, container: &str) {
    let Some(held) = engine.shared.supervised.find(container) else { return };
    match tokio::time::timeout(END, held.link.call(link::Ask::End)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(container, %error, "its supervisor was not there to end it"),
        Err(_) => tracing::debug!(container, "its supervisor does not end: it will be killed"),
    }
}

/// Forgets a container that was removed.
pub(super) async fn forget(engine: &DockerEngine, container: &str) {
    let supervised = &engine.shared.supervised;
    supervised.held().remove(container);
    let Some(begun) = supervised.begun.get() else { return };
    let (place, name) = (Arc::clone(&begun.place), container.to_owned());
    if let Err(error) = blocking(move || place.forget(&name)).await {
        tracing::warn!(container, %error, "the directory of a container that was removed is still here");
    }
}

/// The supervisor's own trouble, in no way the step's: it may work in a moment, or in another container.
fn broken(container: &str, reason: &str) -> EngineError {
    EngineError::Refused { operation: "supervise", status: 500, reason: format!("{container}: {reason}") }
}

/// The same for the worker's own disk.
fn disk(container: &str, error: &std::io::Error) -> EngineError {
    errors::refused("supervise", 500, format!("the directory of {container}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_name_without_a_value_is_not_set() {
        let config = ImageConfig {
            env: Some(vec!["PATH=/bin".into(), "TOKEN".into(), "A=b=c".into()]),
            user: Some(String::new()),
            working_dir: Some("/w".into()),
            volumes: Some(vec!["/z".into(), "/a".into()]),
            ..Default::default()
        };
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let facts = ImageFacts::of(Some(&config));
        assert_eq!(facts.env, [pair("PATH", "/bin"), pair("A", "b=c")]);
        assert_eq!((facts.workdir.as_deref(), facts.user), (Some("/w"), None));
        assert_eq!(facts.volumes, ["/a", "/z"]);
    }
}
