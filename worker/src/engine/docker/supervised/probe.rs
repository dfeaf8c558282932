//! Finds out whether supervisors work here: whether the Engine's containers see the worker's files, may execute them,
//! and are processes that the worker can tell apart. A container tries all of it, the first that is kept for its
//! network namespace.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use longshore_protocol::WorkerId;

use super::super::super::{EngineError, ErrorClass, Way};
use super::super::{DockerEngine, QUESTION, flatten};
use longshore_protocol::process::blocking;

/// An Engine that is away is asked again after this, doubling up to the cap: everything here reconnects so.
const WAIT_FIRST: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(3);

/// A start that fails may do so once because of something else on the host, not three times in a row.
const TRIES: u32 = 3;

/// Answers [`way`](super::way), and keeps network namespaces from then on. Runs until the Engine's handle goes. With
/// `refused` it is known why there are no supervisors.
pub(super) async fn run(engine: DockerEngine, worker: WorkerId, refused: Option<String>) {
    // Before anything is created or adopted: a flattening that is under way could not be told from what was left of one.
    if let Err(error) = flatten::sweep(&engine, &worker).await {
        tracing::debug!(%error, "what a flattening may have left behind was not removed");
    }
    let because = match refused {
        Some(because) => because,
        None => match find(&engine).await {
            Ok(()) => return keep(&engine).await,
            Err(because) => because,
        },
    };
    tracing::info!(because, "commands are run as their containers' first processes");
    engine.shared.supervised.way.send_replace(Some(Way::Direct { because }));
}

/// Says that supervisors work, and keeps what they need.
async fn keep(engine: &DockerEngine) {
    let Some(begun) = engine.shared.supervised.begun.get() else { return };
    let place = Arc::clone(&begun.place);
    // Directories that a crash left behind. Listed before steps' are made: a new one is not among them.
    let listed = blocking(move || place.listed()).await;
    engine.shared.supervised.way.send_replace(Some(Way::Supervised));
    if let (Ok(listed), Ok(containers)) = (listed, names(engine).await) {
        let place = Arc::clone(&begun.place);
        blocking(move || place.keep(&listed, &containers)).await;
    }
    Box::pin(engine.shared.namespaces.fill(engine)).await; // boxed: it is large, and once in a process
}

/// Tries it; `Err` says why there is no supervisor.
async fn find(engine: &DockerEngine) -> Result<(), String> {
    let mut wait = WAIT_FIRST;
    let mut tries = 0;
    loop {
        // Boxed for the same reason.
        let Err(error) = Box::pin(engine.shared.namespaces.first(engine)).await else { return Ok(()) };
        if matches!(error, EngineError::Refused { operation: "start", .. })
            && engine.shared.supervised.protects.swap(false, Ordering::Relaxed)
        {
            tracing::debug!(%error, "trying a supervisor without an OOM score");
            continue;
        }
        // The Engine's absence says nothing about supervisors.
        let is_away = matches!(error, EngineError::Unreachable { .. });
        tries += u32::from(!is_away);
        if !is_away && (error.class() != ErrorClass::Retry || tries >= TRIES) {
            let dir = engine.shared.supervised.duty().map_or(Path::new(""), |duty| duty.dir.as_path());
            return Err(words(&error, dir));
        }
        tracing::debug!(%error, "trying a supervisor again");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(WAIT_MAX);
    }
}

/// Every container's name.
async fn names(engine: &DockerEngine) -> Result<Vec<String>, EngineError> {
    let options = bollard::query_parameters::ListContainersOptionsBuilder::new().all(true).build();
    let found = engine.limited("list containers", QUESTION, engine.client().list_containers(Some(options))).await?;
    let names = found.into_iter().flat_map(|container| container.names.unwrap_or_default());
    Ok(names.map(|name| name.trim_start_matches('/').to_owned()).collect())
}

/// What was found, in words that somebody can act on.
fn words(error: &EngineError, dir: &Path) -> String {
    let said = match error {
        // Without the name of a container that is gone.
        EngineError::Refused { operation: "supervise", reason, .. } => {
            reason.split_once(": ").map_or(reason.as_str(), |(_, why)| why).to_owned()
        }
        error => error.to_string(),
    };
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let dir = dir.display();
    if has(&["bind source path does not exist", "no such file or directory"]) {
        format!(
            "the Engine does not see the worker's state directory {dir}: it has other files (another machine, or the \
             worker is in a container). Mount the directory at the same path on both sides. ({said})"
        )
    } else if has(&["permission denied", "operation not permitted", "exec format error"]) {
        format!(
            "the Engine's containers may not execute the supervisor in {dir}: is it on a file system mounted noexec, \
             or of another kind of machine? Choose another state directory. ({said})"
        )
    } else {
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_about_it_is_said() {
        let says = |reason: &str| {
            let error = EngineError::Refused { operation: "start", status: 500, reason: reason.to_owned() };
            words(&error, Path::new("/state"))
        };
        let unseen = says("invalid mount config for type \"bind\": bind source path does not exist: /state/c/net.1");
        assert!(unseen.contains("/state") && unseen.contains("same path"), "{unseen}");
        let noexec = says("exec: \"/dev/longshore/supervisor\": permission denied: unknown");
        assert!(noexec.contains("noexec"), "{noexec}");
        let error = super::super::broken("longshore.w.net.1", "the kernel does not tell: sorry");
        assert_eq!(words(&error, Path::new("/state")), "the kernel does not tell: sorry");
    }
}
