//! Finds out whether supervisors work here: whether the Engine's containers see the worker's files, may execute them,
//! and are processes that the worker can tell apart. A container tries all of it, the first that is kept for its
//! network namespace.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::super::{EngineError, ErrorClass, Way};
use super::super::{DockerEngine, QUESTION};
use crate::blocking::blocking;

/// An Engine that is away is asked again after this, doubling up to the cap: everything here reconnects so.
const WAIT_FIRST: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(3);

/// A start that fails may do so once because of something else on the host, not three times in a row.
const TRIES: u32 = 3;

/// Answers [`way`](super::way), and keeps network namespaces from then on. Runs until the Engine's handle goes.
pub(super) async fn run(engine: DockerEngine) {
    let Some(begun) = engine.shared.supervised.begun.get() else { return };
    let place = Arc::clone(&begun.place);
    let listed = blocking(move || place.listed()).await;

    let way = find(&engine, &begun.duty.dir).await;
    let is_supervised = way == Way::Supervised;
    if let Way::Direct { because } = &way {
        tracing::info!(because, "supervisors do not work here: commands are run as their containers' first processes");
    }
    engine.shared.supervised.way.send_replace(Some(way));

    // Directories that a crash left behind. Listed before anything was made: a new one is not among them.
    if let (Ok(listed), Ok(containers)) = (listed, names(&engine).await) {
        let place = Arc::clone(&begun.place);
        blocking(move || place.keep(&listed, &containers)).await;
    }
    if is_supervised {
        Box::pin(engine.shared.namespaces.fill(&engine)).await; // boxed for the same reason
    }
}

async fn find(engine: &DockerEngine, dir: &Path) -> Way {
    let mut wait = WAIT_FIRST;
    let mut tries = 0;
    loop {
        // Boxed: it is large, and once in a process.
        let Err(error) = Box::pin(engine.shared.namespaces.first(engine)).await else { return Way::Supervised };
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
            return Way::Direct { because: words(&error, dir) };
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
