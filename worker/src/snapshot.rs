//! Keeps the files of a step that passed: in its container, as a snapshot, or both.

use std::sync::atomic::{AtomicU32, Ordering};

use longshore_protocol::broker::Broker;
use longshore_protocol::job::Keep;
use longshore_protocol::{InfraStage, SnapshotId};
use tokio::time::Instant;

use crate::attempts::StopReason;
use crate::checkpoint::{self, Cause, Facts, Plan};
use crate::context::Context;
use crate::disk::records::Ended;
use crate::engine::{Cleaned, ContainerName, Engine, EngineError};
use crate::job::{End, Task, phase_ended};
use crate::metrics::{COMMIT_SECONDS, COMMITS};

/// What the outcome says when the Engine's disk is full; the log has the Engine's words.
pub const DISK: &str = "disk";

/// A commit that was made.
pub(crate) struct Kept {
    pub(crate) bytes: Option<u64>,
    /// An earlier try was not answered, and may be under way still: nobody may go on in the container.
    pub(crate) in_doubt: bool,
}

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
        may_park: task.supervised && !task.in_doubt && context.config.parked_max() > 0,
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
    let unfit = matches!(task.cleaned, Some(Cleaned::Unfit { .. }));
    let park = park && !too_heavy && !unfit && !task.in_doubt && !end.may_run && end.outcome.is_passed();
    End { park, ..end }
}

async fn committed<B: Broker, E: Engine>(context: &Context<B, E>, task: &mut Task, end: End, cause: Cause) -> End {
    let id = match &task.job.keep {
        Keep::Cached { id } => id.clone(),
        _ => SnapshotId::ephemeral(&task.fence),
    };
    let began = Instant::now();
    let committed = match make_committable(context, task, &end).await {
        Ok(()) => commit(context, &task.container, &id, cause).await,
        Err(error) => Err(EngineError::DiskFull { reason: format!("the worker's own disk: {error}") }),
    };
    task.phases.snapshot_ms = phase_ended(began, "snapshot");
    match committed {
        Ok(committed) => {
            task.chain.committed(committed.bytes);
            task.in_doubt |= committed.in_doubt;
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

/// Cleans the container before its commit. An Engine's commit passes over a socket as if nothing stood there, so where a
/// step put one in place of an earlier file, that file would be in the snapshot again. What is cleaned has neither,
/// parked or restored.
async fn make_committable<B: Broker, E: Engine>(
    context: &Context<B, E>,
    task: &mut Task,
    end: &End,
) -> std::io::Result<()> {
    // P16: what a clean makes the supervisor forget is on the disk before: all of the output, and the end.
    task.spool.close().await?;
    let ended = Ended { outcome: end.outcome.clone(), exec_ms: task.phases.exec_ms, usage: end.usage };
    context.attempts.ended(&task.attempt.claim, ended).await?;
    if !task.supervised {
        return Ok(());
    }
    let cleaned = context.engine.clean(&task.container).await.unwrap_or_else(|error| {
        context.noticed(&error);
        Cleaned::Unfit { because: error.to_string() }
    });
    if let Cleaned::Unfit { because } = &cleaned {
        // What can be committed is committed all the same.
        tracing::info!(container = %task.container, because, "nobody can go on in a container");
    }
    task.cleaned = Some(cleaned);
    Ok(())
}

/// Commits a container in which no command runs (promise 6).
pub(crate) async fn commit<B: Broker, E: Engine>(
    context: &Context<B, E>,
    container: &ContainerName,
    id: &SnapshotId,
    cause: Cause,
) -> Result<Kept, EngineError> {
    let tries = AtomicU32::new(0);
    let call = || async {
        tries.fetch_add(1, Ordering::Relaxed);
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
    Ok(Kept { bytes: committed.bytes, in_doubt: tries.load(Ordering::Relaxed) > 1 })
}

/// Removes a snapshot that nobody needs. One that cannot be removed stays in the heartbeats.
pub(crate) async fn remove<B: Broker, E: Engine>(context: &Context<B, E>, id: &SnapshotId) {
    match context.retrying("remove_snapshot", || context.engine.remove_snapshot(id)).await {
        Ok(()) => context.snapshots.remove(id),
        Err(error) => tracing::warn!(snapshot = %id, %error, "a snapshot could not be removed"),
    }
}
