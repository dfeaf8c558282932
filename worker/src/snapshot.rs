//! Keeps the files of a step that passed: in its container, as a snapshot, or both.

use std::time::Instant;

use longshore_protocol::broker::Broker;
use longshore_protocol::event::Phase;
use longshore_protocol::job::Keep;
use longshore_protocol::{InfraStage, SnapshotId};

use crate::attempts::StopReason;
use crate::checkpoint::{self, Cause, Facts, Plan};
use crate::context::Context;
use crate::engine::{Committed, ContainerName, Engine, EngineError};
use crate::job::{End, Task, phase_ended};
use crate::metrics::{COMMIT_SECONDS, COMMITS};

/// What the outcome says when the Engine's disk is full; the log has the Engine's words.
pub const DISK: &str = "disk";

/// Does what the job and the [rule](checkpoint) ask for with the container of a command that ended so.
pub(crate) async fn snapshot<B: Broker, E: Engine>(context: &Context<B, E>, task: &mut Task, end: End) -> End {
    // Something may still write into it, or it would be thrown away.
    let stopped = matches!(task.attempt.stop.reason(), Some(StopReason::Cancelled(_) | StopReason::Abandoned));
    if end.may_run || stopped {
        return end;
    }
    let facts = Facts {
        keep: &task.job.keep,
        outcome: &end.outcome,
        may_park: task.supervised && context.config.parked_max() > 0,
        supervised: task.supervised,
        chain: task.chain,
        average: context.commit_average(),
    };
    let Plan { commit, park } = checkpoint::plan(&facts);
    let end = match commit {
        Some(cause) => committed(context, task, end, cause).await,
        None => end,
    };
    // Whoever commits each step is better off without a heavy layer; who does not will rarely write it again.
    let too_heavy = task.chain.is_heavy() && !matches!(task.job.keep, Keep::Live);
    let park = park && !too_heavy && !end.may_run && end.outcome.is_passed();
    End { park, ..end }
}

async fn committed<B: Broker, E: Engine>(context: &Context<B, E>, task: &mut Task, end: End, cause: Cause) -> End {
    let id = match &task.job.keep {
        Keep::Cached { id } => id.clone(),
        _ => SnapshotId::ephemeral(&task.fence),
    };
    context.attempts.enter(task.attempt.key, Phase::Snapshotting);
    let began = Instant::now();
    let committed = commit(context, &task.container, &id, cause).await;
    task.phases.snapshot_ms = phase_ended(began, "snapshot");
    match committed {
        Ok(committed) => {
            task.chain.committed(committed.bytes);
            End { snapshot: Some(id), ..end }
        }
        // Nobody asked for it: the container itself is still there.
        Err(EngineError::DiskFull { reason }) if cause == Cause::Checkpoint => {
            tracing::warn!(container = %task.container, reason, "no checkpoint: the Engine's disk is full");
            end
        }
        Err(error) => {
            task.note(&format!("the files of the step could not be kept: {error}")).await;
            let reason = match error {
                EngineError::DiskFull { .. } => DISK.to_owned(),
                error => error.to_string(),
            };
            // The user's failure stays what it was: nothing goes on from it.
            let usage = end.usage;
            let end = if end.outcome.is_passed() { End::infra(InfraStage::Snapshot, reason) } else { end };
            // A commit that was not heard of may go on: the container goes before anybody is told.
            End { may_run: true, usage, ..end }
        }
    }
}

/// Commits a container in which no command runs (promise 6).
pub(crate) async fn commit<B: Broker, E: Engine>(
    context: &Context<B, E>,
    container: &ContainerName,
    id: &SnapshotId,
    cause: Cause,
) -> Result<Committed, EngineError> {
    let call = || async {
        let gate = context.gates.commit.enter().await;
        let began = Instant::now();
        let committed = context.engine.commit(container, id).await;
        let took = began.elapsed();
        // Many bytes take longer on any Engine.
        let bytes = committed.as_ref().ok().and_then(|committed| committed.bytes);
        gate.done_work(&committed, checkpoint::work(bytes));
        if committed.is_ok() {
            metrics::histogram!(COMMIT_SECONDS).record(took);
            context.commit_took(took);
        }
        committed
    };
    let committed = context.retrying("commit", call).await?;
    metrics::counter!(COMMITS, "cause" => cause.word()).increment(1);
    tracing::debug!(snapshot = %id, bytes = committed.bytes, cause = cause.word(), "committed");
    context.snapshots.add(id);
    Ok(committed)
}

/// Removes a snapshot that nobody needs. One that cannot be removed stays in the heartbeats.
pub(crate) async fn remove<B: Broker, E: Engine>(context: &Context<B, E>, id: &SnapshotId) {
    match context.retrying("remove_snapshot", || context.engine.remove_snapshot(id)).await {
        Ok(()) => context.snapshots.remove(id),
        Err(error) => tracing::warn!(snapshot = %id, %error, "a snapshot could not be removed"),
    }
}
