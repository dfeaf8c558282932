//! Starts a command through a container's supervisor, and stops it.

use std::time::Duration;

use longshore_supervisor::wire::{self, Run};
use tokio::time::timeout;

use super::super::super::{CommandSpec, ContainerName, EngineError, Running};
use super::super::{DockerEngine, stop};
use super::link::Ask;
use super::{Held, ImageFacts, broken};
use crate::clock::Boot;

/// It is under a millisecond; a program on a slow disk takes as long as that does.
const START: Duration = Duration::from_mins(2);

/// From KILL to gone, as when the Engine does it.
const KILLED: Duration = Duration::from_secs(30);

/// `None`: the container has no supervisor.
pub(in super::super) async fn start(
    engine: &DockerEngine,
    container: &ContainerName,
    command: &CommandSpec,
) -> Option<Result<Running, EngineError>> {
    let held = engine.shared.supervised.find(container.as_str())?;
    Some(start_in(&held, command).await)
}

async fn start_in(held: &Held, command: &CommandSpec) -> Result<Running, EngineError> {
    if command.argv.is_empty() {
        return Err(EngineError::CannotStart { reason: "an empty command".to_owned(), exit: None });
    }
    let run = run_of(&held.image, command);
    let call = held.link.call(|answer| Ask::Run(run, answer));
    timeout(START, call).await.unwrap_or(Err(EngineError::Slow { operation: "start", limit: START }))
}

/// What the image says, and the step on top of it.
fn run_of(image: &ImageFacts, command: &CommandSpec) -> Run {
    Run {
        id: command.attempt.clone(),
        argv: command.argv.clone(),
        // Of two with one name the last counts.
        env: image.env.iter().chain(&command.env).cloned().collect(),
        workdir: command.workdir.clone().filter(|dir| !dir.is_empty()).or_else(|| image.workdir.clone()),
        user: command.user.clone().filter(|user| !user.is_empty()).or_else(|| image.user.clone()),
        limit_ms: u64::try_from(command.limit.as_millis()).unwrap_or(u64::MAX),
        lease: command.lease.map(|lease| wire::Lease {
            dead_by_ms: lease.dead_by.0,
            grace_ms: u64::try_from(lease.grace.as_millis()).unwrap_or(u64::MAX),
        }),
        volumes: image.volumes.clone(),
    }
}

/// P18: until then it may run. Nobody waits for an answer: there is none.
pub(in super::super) async fn extend(
    engine: &DockerEngine,
    container: &ContainerName,
    dead_by: Boot,
) -> Result<(), EngineError> {
    let held = engine.shared.supervised.find(container.as_str());
    let held = held.ok_or_else(|| broken(container.as_str(), "nobody here speaks to its supervisor"))?;
    held.link.ask(Ask::Extend(dead_by)).await
}

/// Whether a command runs in it. `None`: the container has no supervisor.
pub(in super::super) async fn runs(
    engine: &DockerEngine,
    container: &ContainerName,
) -> Option<Result<bool, EngineError>> {
    let held = engine.shared.supervised.find(container.as_str())?;
    Some(held.link.call(Ask::Runs).await)
}

/// TERM to everything in the container, `grace`, KILL; without a supervisor to do so the container is killed.
pub(in super::super) async fn stop(
    engine: &DockerEngine,
    container: &ContainerName,
    grace: Duration,
) -> Result<(), EngineError> {
    let Some(held) = engine.shared.supervised.find(container.as_str()) else {
        return stop::stop(engine, container, grace).await;
    };
    let call = held.link.call(|answer| Ask::Stop(grace, answer));
    match timeout(grace.saturating_add(KILLED), call).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            tracing::debug!(%container, %error, "its supervisor is lost: the container is killed");
            stop::stop(engine, container, Duration::ZERO).await
        }
        Err(_) => {
            tracing::warn!(%container, "its supervisor does not end the command: the container is killed");
            stop::stop(engine, container, Duration::ZERO).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::super::CommandLease;
    use super::*;

    #[test]
    fn the_step_stands_above_the_image() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let image = ImageFacts {
            env: vec![pair("A", "image")],
            workdir: Some("/image".to_owned()),
            user: Some("image".to_owned()),
            volumes: vec!["/v".to_owned()],
        };
        let mut command = CommandSpec {
            attempt: "f".to_owned(),
            argv: vec!["true".to_owned()],
            env: vec![pair("A", "step")],
            workdir: None,
            user: Some(String::new()),
            limit: Duration::from_millis(1500),
            lease: Some(CommandLease { dead_by: Boot(7_000), grace: Duration::from_secs(5) }),
        };
        let run = run_of(&image, &command);
        assert_eq!(run.env, [pair("A", "image"), pair("A", "step")]);
        assert_eq!((run.workdir.as_deref(), run.user.as_deref()), (Some("/image"), Some("image")));
        assert_eq!((run.limit_ms, run.volumes), (1500, image.volumes.clone()));
        assert_eq!(run.lease, Some(wire::Lease { dead_by_ms: 7_000, grace_ms: 5_000 }));
        command.workdir = Some("/step".to_owned());
        command.user = Some("0".to_owned());
        let run = run_of(&image, &command);
        assert_eq!((run.workdir.as_deref(), run.user.as_deref()), (Some("/step"), Some("0")));
    }
}
