//! While a supervisor is not connected: whether there still is a container.

use std::time::Duration;

use bollard::Docker;
use tokio::time::{Instant, sleep_until, timeout};

use super::super::super::EngineError;
use super::super::QUESTION;
use super::broken;

/// How long a running container's supervisor may be away. It tries again every 500 ms at the latest; the rest is for
/// a host that swaps. A worker that starts again waits as long for those that it adopts.
const AWAY_MAX: Duration = Duration::from_secs(10);

/// A connection that ended may mean that the container has: the Engine is asked so much later, which is what it needs
/// to notice, and again after the same time.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// Who it is whose task this is.
pub(super) struct Identity {
    pub(super) container: String,
    /// Of the container's first process, as this host counts: nobody else's connection is taken.
    pub(super) pid: i32,
    pub(super) client: Docker,
    pub(super) orphan: Duration,
}

/// While there is no connection: the Engine is asked whether there is still a container. `Some` if there is none, or
/// if it was silent for too long.
pub(super) async fn look(identity: &Identity, away_since: Instant) -> Option<EngineError> {
    let away = away_since.elapsed();
    if away >= AWAY_MAX {
        let silent = format!("its supervisor was not heard of for {} s", AWAY_MAX.as_secs());
        return Some(broken(&identity.container, &silent));
    }
    sleep_until(Instant::now() + LOOK_PAUSE).await;
    let asked = timeout(QUESTION, identity.client.inspect_container(&identity.container, None)).await;
    match asked {
        Ok(Ok(found)) => {
            let state = found.state.unwrap_or_default();
            // Started again by somebody, it is another one.
            if state.running == Some(true) && state.pid == Some(identity.pid.into()) {
                return None;
            }
            let code = state.exit_code.unwrap_or_default();
            let oom = if state.oom_killed == Some(true) { ", out of memory" } else { "" };
            let reason = format!("{} has ended, with {code}{oom}", identity.container);
            Some(EngineError::Refused { operation: "supervise", status: 410, reason })
        }
        Ok(Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. })) => {
            Some(EngineError::Gone { name: identity.container.clone() })
        }
        // The Engine is away. With `live-restore` its containers go on meanwhile.
        Ok(Err(_)) | Err(_) => None,
    }
}
