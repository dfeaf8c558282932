//! Keeps the files of a step that passed.

use std::time::Instant;

use longshore_protocol::broker::Broker;
use longshore_protocol::event::Phase;
use longshore_protocol::job::Keep;
use longshore_protocol::{InfraStage, Outcome, SnapshotId};

use crate::attempts::StopReason;
use crate::context::Context;
use crate::engine::{Engine, EngineError};
use crate::job::{End, Task, phase_ended};
use crate::metrics::COMMIT_SECONDS;

/// What the outcome says when the Engine's disk is full; the log has the Engine's words.
pub const DISK: &str = "disk";

/// Commits the container of a command that ended so, under the name that the job wants, if it wants one (promise 6).
pub(crate) async fn snapshot<B: Broker, E: Engine>(context: &Context<B, E>, task: &mut Task, end: End) -> End {
    let ephemeral = || SnapshotId::ephemeral(&task.fence);
    let id = match (&task.job.keep, &end.outcome) {
        // Something may still write into it.
        _ if end.may_run => return end,
        (Keep::Snapshot | Keep::Always, Outcome::Passed) => ephemeral(),
        (Keep::Cached { id }, Outcome::Passed) => id.clone(),
        (Keep::Always, outcome) if outcome.is_users_failure() => ephemeral(),
        _ => return end,
    };
    if matches!(task.attempt.stop.reason(), Some(StopReason::Cancelled(_) | StopReason::Abandoned)) {
        return end; // it would be thrown away
    }
    context.attempts.enter(task.attempt.key, Phase::Snapshotting).await;
    let began = Instant::now();
    let committed = {
        let _gate = context.gates.commit.acquire().await;
        let call = || async {
            let began = Instant::now();
            let committed = context.engine.commit(&task.container, &id).await?;
            metrics::histogram!(COMMIT_SECONDS).record(began.elapsed());
            Ok(committed)
        };
        context.retrying("commit", call).await
    };
    task.phases.snapshot_ms = phase_ended(began, "snapshot");
    match committed {
        Ok(committed) => {
            tracing::debug!(snapshot = %id, bytes = committed.bytes, "committed");
            context.snapshots.add(&id);
            End { snapshot: Some(id), ..end }
        }
        Err(error) => {
            // A disk that fails here shows when the spool is finished.
            let _ = task.spool.note(&format!("the files of the step could not be kept: {error}")).await;
            let reason = match error {
                EngineError::DiskFull { .. } => DISK.to_owned(),
                error => error.to_string(),
            };
            // The user's failure stays what it was: nothing goes on from it.
            let end = if end.outcome.is_passed() { End::infra(InfraStage::Snapshot, reason) } else { end };
            // A commit that was not heard of may go on: the container goes before anybody is told.
            End { may_run: true, ..end }
        }
    }
}

/// Removes a snapshot that nobody needs. One that cannot be removed stays in the heartbeats.
pub(crate) async fn remove<B: Broker, E: Engine>(context: &Context<B, E>, id: &SnapshotId) {
    match context.retrying("remove_snapshot", || context.engine.remove_snapshot(id)).await {
        Ok(()) => context.snapshots.remove(id),
        Err(error) => tracing::warn!(snapshot = %id, %error, "a snapshot could not be removed"),
    }
}
