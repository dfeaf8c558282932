//! One attempt on one screen: prepare → exec → snapshot → report.

use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_protocol::broker::Broker;
use longshore_protocol::event::{Event, Finished, Phases};
use longshore_protocol::job::Job;
use longshore_protocol::output::Offsets;
use longshore_protocol::{Fence, InfraStage, Outcome, SnapshotId};
use tokio::sync::OwnedSemaphorePermit;

use crate::attempts::{Handle, StopReason};
use crate::clock::since_ms;
use crate::context::Context;
use crate::engine::{ContainerName, Engine, EngineError};
use crate::metrics::{PHASE_SECONDS, STEPS};
use crate::output::Spool;
use crate::prepare::Prepared;
use crate::{exec, prepare, snapshot};

/// How long an attempt whose Engine went away waits for it, so that nothing of it runs any more when it is reported
/// (P11): a restart of dockerd takes some seconds. Beyond that another host is worth more; the fence makes whatever
/// comes back harmless, and the sweep removes it.
const ENGINE_RETURN_MAX: Duration = Duration::from_secs(10);

/// An attempt that is being carried out.
pub(crate) struct Task {
    pub(crate) job: Job,
    pub(crate) attempt: Handle,
    pub(crate) fence: Fence,
    pub(crate) container: ContainerName,
    pub(crate) spool: Spool,
    pub(crate) phases: Phases,
    pub(crate) delivered: Instant,
}

/// How it ended, and what is left of it.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) outcome: Outcome,
    pub(crate) cached: bool,
    pub(crate) snapshot: Option<SnapshotId>,
    /// Whether anything of it may still run.
    pub(crate) may_run: bool,
}

impl End {
    /// Nothing runs, nothing is kept.
    pub(crate) fn of(outcome: Outcome) -> Self {
        Self { outcome, cached: false, snapshot: None, may_run: false }
    }

    /// The fleet's fault.
    pub(crate) fn infra(stage: InfraStage, reason: impl Into<String>) -> Self {
        Self::of(Outcome::infra(stage, reason))
    }

    /// Stopped from outside.
    pub(crate) fn stopped(reason: StopReason, stage: InfraStage) -> Self {
        match reason {
            StopReason::Cancelled(by) => Self::of(Outcome::Cancelled { by }),
            StopReason::Shutdown => Self::infra(stage, "the worker was stopped"),
            StopReason::Abandoned => Self::infra(stage, "abandoned"), // never reported
        }
    }
}

/// Carries out an attempt that was claimed. The slot is free again when its container is gone.
pub(crate) async fn carry_out<B: Broker, E: Engine>(
    context: Arc<Context<B, E>>,
    job: Job,
    attempt: Handle,
    delivered: Instant,
    slot: OwnedSemaphorePermit,
) {
    let fence = context.fence(&attempt.claim);
    let container = ContainerName::of(&fence);
    let spool = Spool::create(&attempt.spool, attempt.spooled.clone(), context.config.spool_bytes_max).await;
    match spool {
        Ok(spool) => {
            let phases = Phases::default();
            let mut task = Task { job, attempt, fence, container, spool, phases, delivered };
            let end = match prepare::prepare(&context, &mut task).await {
                Ok(Prepared::Container) => {
                    let end = exec::exec(&context, &mut task).await;
                    snapshot::snapshot(&context, &mut task, end).await
                }
                Ok(Prepared::Cached(id)) => End { cached: true, snapshot: Some(id), ..End::of(Outcome::Passed) },
                Err(end) => end,
            };
            report(&context, task, end).await;
        }
        Err(error) => {
            let outcome = Outcome::infra(InfraStage::Prepare, format!("the worker's disk: {error}"));
            let finished = finished(&attempt, End::of(outcome), Phases::default(), Offsets::default());
            tell(&context, &attempt, finished).await;
        }
    }
    drop(slot);
}

/// Tells how it ended, when nothing of it runs any more (P11), and removes the container.
async fn report<B: Broker, E: Engine>(context: &Context<B, E>, mut task: Task, mut end: End) {
    let output = match task.spool.finish().await {
        Ok(output) => output,
        Err(error) => {
            // The verdict needs a log whose length is known; the fleet tries again.
            end.outcome = Outcome::infra(InfraStage::Exec, format!("the worker's disk: {error}"));
            task.spool.written()
        }
    };
    let stop = task.attempt.stop.reason();
    let unwanted = match &stop {
        Some(StopReason::Abandoned) => true,
        Some(StopReason::Cancelled(by)) => {
            // Whatever it was about to become.
            end.outcome = Outcome::Cancelled { by: by.clone() };
            true
        }
        Some(StopReason::Shutdown) | None => false,
    };
    if unwanted {
        discard(context, &task.fence, end.snapshot.take()).await;
    }
    if end.may_run || stop == Some(StopReason::Abandoned) {
        if end.may_run {
            let _ = tokio::time::timeout(ENGINE_RETURN_MAX, context.engine_back()).await;
        }
        remove(context, &task.container).await;
    }
    if stop == Some(StopReason::Abandoned) {
        context.attempts.forget(task.attempt.key).await;
        return;
    }
    let (removed, kept) = (end.may_run, end.snapshot.clone());
    let finished = finished(&task.attempt, end, task.phases, output);
    // Children start on `finished`: the removal is not on their way (P11).
    let gone = async {
        if !removed {
            remove(context, &task.container).await;
        }
    };
    let ((), told) = tokio::join!(gone, tell(context, &task.attempt, finished));
    if !told {
        discard(context, &task.fence, kept).await;
    }
}

fn finished(attempt: &Handle, end: End, phases: Phases, output: Offsets) -> Finished {
    let End { outcome, cached, snapshot, .. } = end;
    Finished { claim: attempt.claim.clone(), outcome, cached, output, snapshot, phases }
}

/// On disk, then on its way (P9). `false` if it was abandoned at the last moment, and is forgotten now.
async fn tell<B: Broker, E: Engine>(context: &Context<B, E>, attempt: &Handle, finished: Finished) -> bool {
    if !context.attempts.finish(attempt.key, &finished).await {
        context.attempts.forget(attempt.key).await;
        return false;
    }
    tracing::info!(attempt = %context.fence(&attempt.claim), outcome = %finished.outcome, "finished");
    metrics::counter!(STEPS, "outcome" => finished.outcome.word()).increment(1);
    // Nobody waits for the confirmation: until `settled` the record is what counts.
    drop(context.reporter.send(Event::Finished(finished)).await);
    true
}

/// P12: a stale snapshot is thrown away, if it is the attempt's own; one under a key may be somebody else's too.
async fn discard<B: Broker, E: Engine>(context: &Context<B, E>, fence: &Fence, snapshot: Option<SnapshotId>) {
    if snapshot.as_ref() == Some(&SnapshotId::ephemeral(fence)) {
        snapshot::remove(context, &SnapshotId::ephemeral(fence)).await;
    }
}

/// Removes a container. One that cannot be removed now is left to the sweep.
pub(crate) async fn remove<B: Broker, E: Engine>(context: &Context<B, E>, container: &ContainerName) {
    let began = Instant::now();
    match context.retrying("remove_container", || context.engine.destroy(container)).await {
        Ok(()) | Err(EngineError::Gone { .. }) => {
            metrics::histogram!(PHASE_SECONDS, "phase" => "remove").record(began.elapsed());
        }
        Err(error) => tracing::warn!(%container, %error, "a container could not be removed yet"),
    }
}

/// Ends the time of a phase: for the event, and for the histogram.
pub(crate) fn phase_ended(began: Instant, phase: &'static str) -> u64 {
    metrics::histogram!(PHASE_SECONDS, "phase" => phase).record(began.elapsed());
    since_ms(began)
}
