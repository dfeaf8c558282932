//! Ends what runs in a container, and removes containers.

use std::collections::HashMap;
use std::time::Duration;

use bollard::query_parameters::{
    KillContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
    WaitContainerOptionsBuilder,
};
use futures_util::stream::StreamExt;

use super::super::{ContainerName, EngineError};
use super::{DockerEngine, QUESTION, errors, snapshot, supervised};

/// From KILL to gone. A process in the kernel's hands (a stuck disk or network mount) cannot be killed; then the
/// host is ill, and the caller shall learn of it.
const KILLED: Duration = Duration::from_secs(30);

/// Removing a big layer is a slow `rm -r` on the Engine's disk.
const REMOVE: Duration = Duration::from_mins(2);

/// How long to leave a removal that is under way already before asking again: about one such removal.
const REMOVAL_PAUSE: Duration = Duration::from_millis(50);

/// TERM, `grace`, KILL. Not the API's own stop: that sends the image's STOPSIGNAL.
pub(super) async fn stop(engine: &DockerEngine, container: &ContainerName, grace: Duration) -> Result<(), EngineError> {
    if !grace.is_zero() {
        if !signal(engine, container, "SIGTERM").await? {
            return Ok(());
        }
        match tokio::time::timeout(grace, ended(engine, container)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => tracing::debug!(%container, %error, "could not wait for its end: killing it"),
            Err(_) => {} // it had its chance
        }
    }
    if !signal(engine, container, "SIGKILL").await? {
        return Ok(());
    }
    match tokio::time::timeout(KILLED, ended(engine, container)).await {
        Ok(answer) => answer,
        Err(_) => Err(EngineError::Slow { operation: "kill", limit: KILLED }),
    }
}

/// Whether it was running until now.
async fn signal(engine: &DockerEngine, container: &ContainerName, signal: &str) -> Result<bool, EngineError> {
    let options = KillContainerOptionsBuilder::new().signal(signal).build();
    let call = engine.client().kill_container(container.as_str(), Some(options));
    match engine.limited("kill", QUESTION, call).await {
        Ok(()) => Ok(true),
        // 404: there is none. 409: it does not run.
        Err(EngineError::Refused { status: 404 | 409, .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Comes back when it does not run any more; how it ended is [`super::run`]'s affair.
async fn ended(engine: &DockerEngine, container: &ContainerName) -> Result<(), EngineError> {
    use bollard::errors::Error as ClientError;
    let options = WaitContainerOptionsBuilder::new().condition("not-running").build();
    match engine.client().wait_container(container.as_str(), Some(options)).next().await {
        Some(
            Ok(_)
            | Err(
                ClientError::DockerContainerWaitError { .. }
                | ClientError::DockerResponseServerError { status_code: 404, .. },
            ),
        ) => Ok(()),
        Some(Err(error)) => Err(errors::from_client(&engine.shared.address, "wait", error)),
        None => Err(EngineError::Unreachable {
            address: engine.shared.address.clone(),
            reason: "the Engine broke off while a container's end was waited for".to_owned(),
        }),
    }
}

pub(super) async fn destroy(engine: &DockerEngine, container: &ContainerName) -> Result<(), EngineError> {
    // A container whose first process has ended by itself is removed in a sixth of the time; what it shared with its
    // namespace's holder is as it was only if it was cleaned first.
    let in_order = supervised::leave(engine, container).await;
    remove(engine, container.as_str()).await?;
    supervised::forget(engine, container.as_str()).await;
    engine.shared.namespaces.give_back(container, in_order).await;
    // A snapshot that was removed while this container used it goes now. The container itself is gone, which is
    // what was asked for: a failure here is only logged.
    if let Err(error) = snapshot::remove_leftovers(engine).await {
        tracing::warn!(%container, %error, "a removed snapshot is still here");
    }
    Ok(())
}

/// Any container of ours, by name.
pub(super) async fn remove(engine: &DockerEngine, container: &str) -> Result<(), EngineError> {
    let until = tokio::time::Instant::now() + REMOVE;
    loop {
        let options = RemoveContainerOptionsBuilder::new().v(true).force(true).build();
        let call = engine.client().remove_container(container, Some(options));
        match engine.limited("remove", REMOVE, call).await {
            Ok(()) | Err(EngineError::Refused { status: 404, .. }) => return Ok(()),
            // Somebody else removes it: come back when it is gone, not when it is going.
            Err(EngineError::Refused { status: 409, .. }) if tokio::time::Instant::now() < until => {
                tokio::time::sleep(REMOVAL_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

pub(super) async fn list(engine: &DockerEngine) -> Result<Vec<ContainerName>, EngineError> {
    let filters = HashMap::from([("name", vec!["longshore."])]);
    let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    let found = engine.limited("list containers", QUESTION, engine.client().list_containers(Some(options))).await?;
    // The filter is a pattern that fits others' names as well: parsing decides.
    let names = found.into_iter().flat_map(|container| container.names.unwrap_or_default());
    Ok(names.filter_map(|name| ContainerName::parse(&name)).collect())
}
