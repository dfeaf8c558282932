//! One attempt on one screen: prepare → exec → snapshot → report.

use std::sync::Arc;
use std::time::Duration;

use longshore_protocol::broker::Broker;
use longshore_protocol::event::{Event, Finished, Phases, Usage};
use longshore_protocol::job::Job;
use longshore_protocol::outcome::HANDED_BACK;
use longshore_protocol::output::Offsets;
use longshore_protocol::{Fence, InfraStage, Outcome, SnapshotId};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::attempts::{Handle, StopReason};
use crate::checkpoint::Chain;
use crate::clock::{now_ms, since_ms};
use crate::context::Context;
use crate::disk::records::{Ended, Parked};
use crate::disk::spool::Place;
use crate::engine::{Cleaned, CommandSpec, ContainerName, Engine, Running};
use crate::metrics::{PHASE_SECONDS, STEPS};
use crate::output::{Bounds, Spool};
use crate::prepare::{self, Prepared};
use crate::{exclusive, exec, parked, snapshot, tidy};

/// How long an attempt whose Engine went away waits for it, so that nothing of it runs any more when it is reported
/// (P11): a restart of dockerd takes some seconds. Beyond that another host is worth more; the fence makes whatever
/// comes back harmless, and the sweep removes it.
const ENGINE_RETURN_MAX: Duration = Duration::from_secs(10);

/// P17: what a supervisor leaves a command beyond its time and its grace. Its worker, if it lives, is first.
const LIMIT_SLACK: Duration = Duration::from_secs(10);

/// An attempt that is being carried out.
pub(crate) struct Task {
    pub(crate) job: Job,
    pub(crate) attempt: Handle,
    pub(crate) fence: Fence,
    /// Where its command runs: its own container, or the one that it took (P19).
    pub(crate) container: ContainerName,
    /// What was done in that container.
    pub(crate) chain: Chain,
    /// Whether a supervisor runs its command.
    pub(crate) supervised: bool,
    /// A commit of it may be under way that nobody waits for (P19).
    pub(crate) in_doubt: bool,
    /// It was cleaned behind its command, and so it is.
    pub(crate) cleaned: Option<Cleaned>,
    pub(crate) spool: Spool,
    pub(crate) phases: Phases,
    pub(crate) delivered: Instant,
}

/// Where an attempt begins.
#[derive(Debug)]
pub(crate) enum Entrance {
    /// At its beginning.
    Prepare,
    /// P10: in the container that it took before the worker's restart; nothing was started there.
    Taken(Box<Parked>),
    /// P10: its command was started before the worker's restart.
    Running {
        /// The container that it took, if it did not make its own.
        taken: Option<Box<Parked>>,
        /// Since its start.
        ran: Duration,
        running: Running,
    },
    /// P10: its command had ended, and its container was about to be committed.
    Ended {
        /// The container that it took, if it did not make its own.
        taken: Option<Box<Parked>>,
        ended: Ended,
    },
    /// P10: its container did not outlive the worker's restart.
    Lost {
        /// The container that it took, if it did not make its own.
        taken: Option<Box<Parked>>,
        reason: String,
    },
}

/// How it ended, and what is left of it.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) outcome: Outcome,
    pub(crate) cached: bool,
    pub(crate) snapshot: Option<SnapshotId>,
    /// Its container is to be parked.
    pub(crate) park: bool,
    pub(crate) usage: Option<Usage>,
    /// Whether anything of it may still run.
    pub(crate) may_run: bool,
}

impl End {
    /// Nothing runs, nothing is kept.
    pub(crate) fn of(outcome: Outcome) -> Self {
        Self { outcome, cached: false, snapshot: None, park: false, usage: None, may_run: false }
    }

    /// The fleet's fault.
    pub(crate) fn infra(stage: InfraStage, reason: impl Into<String>) -> Self {
        Self::of(Outcome::infra(stage, reason))
    }

    /// Stopped from outside.
    pub(crate) fn stopped(reason: StopReason, stage: InfraStage) -> Self {
        match reason {
            StopReason::Cancelled(by) => Self::of(Outcome::Cancelled { by }),
            StopReason::Shutdown => Self::infra(stage, HANDED_BACK),
            StopReason::Abandoned => Self::infra(stage, "abandoned"), // never reported
        }
    }
}

impl Task {
    /// What is to be started in its container.
    pub(crate) fn command(&self) -> CommandSpec {
        let spec = &self.job.spec;
        CommandSpec {
            attempt: self.fence.to_string(),
            argv: spec.command.argv(),
            env: prepare::environment(&self.job),
            workdir: spec.workdir.clone(),
            user: spec.user.clone(),
            limit: Duration::from_millis(spec.timeout_ms.saturating_add(spec.grace_ms)) + LIMIT_SLACK,
            lease: None,
        }
    }

    /// Its command ran for so long.
    pub(crate) fn ran(&mut self, ran: Duration) {
        self.phases.exec_ms = u64::try_from(ran.as_millis()).unwrap_or(u64::MAX);
        self.chain.ran(self.phases.exec_ms);
    }

    /// It goes on in a container that it took.
    pub(crate) fn go_on_in(&mut self, taken: &Parked) {
        self.container = taken.container.clone();
        self.chain = taken.chain;
    }

    /// Puts a line of our own into its log. A disk that fails here shows when the spool is finished.
    pub(crate) async fn note(&mut self, text: &str) {
        let _ = self.spool.note(text).await;
    }
}

/// Carries out an attempt that was claimed, or goes on with one: then `found` is what is spooled of it. The slot is free
/// again when its `finished` is on its way: what is left of it is tidied up behind it.
pub(crate) async fn carry_out<B: Broker, E: Engine>(
    context: Arc<Context<B, E>>,
    job: Job,
    attempt: Handle,
    entrance: Entrance,
    found: Option<Place>,
    delivered: Instant,
    slot: Option<OwnedSemaphorePermit>,
) {
    let taken = job.spec.output_max.unwrap_or(context.config.output_bytes_max);
    let bounds = Bounds { held: context.config.spool_bytes_max, taken };
    let spool = match found {
        None => Spool::create(&attempt.spool, attempt.spooled.clone(), Arc::clone(&attempt.share), bounds).await,
        // The coordinator may have some of it, whatever it was.
        Some(found) => {
            Spool::resume(&attempt.spool, found, attempt.spooled.clone(), Arc::clone(&attempt.share), bounds).await
        }
    };
    let fence = context.fence(&attempt.claim);
    let container = ContainerName::of(&fence);
    match spool {
        Ok(spool) => {
            let (chain, phases) = (Chain::default(), Phases::default());
            // What was adopted has a supervisor; the others wait until it is known here.
            let supervised = !matches!(entrance, Entrance::Prepare) || context.supervised().await;
            let in_doubt = matches!(entrance, Entrance::Ended { .. });
            let cleaned = None;
            let mut task =
                Task { job, attempt, fence, container, chain, supervised, in_doubt, cleaned, spool, phases, delivered };
            let end = run(&context, &mut task, entrance).await;
            report(&context, task, end).await;
        }
        Err(error) => {
            let outcome = Outcome::infra(InfraStage::Prepare, format!("the worker's disk: {error}"));
            // P10: an adopted one may have a container.
            exclusive::remove(&context, &job, &container_of(&entrance).unwrap_or(container)).await;
            let finished = finished(&attempt, End::of(outcome), Phases::default(), Offsets::default());
            tell(&context, &attempt, finished, None).await;
        }
    }
    drop(slot);
}

async fn run<B: Broker, E: Engine>(context: &Context<B, E>, task: &mut Task, entrance: Entrance) -> End {
    let end = match entrance {
        Entrance::Prepare => match prepare::prepare(context, task).await {
            Ok(Prepared::Container) => exec::exec(context, task).await,
            Ok(Prepared::Cached(id)) => {
                return End { cached: true, snapshot: Some(id), ..End::of(Outcome::Passed) };
            }
            Err(end) => return end,
        },
        Entrance::Taken(taken) => {
            task.go_on_in(&taken);
            match prepare::prepare_taken(context, task).await {
                Ok(()) => exec::exec(context, task).await,
                Err(end) => return end,
            }
        }
        Entrance::Running { taken, ran, running, .. } => {
            if let Some(taken) = &taken {
                task.go_on_in(taken);
            }
            exec::follow(context, task, running, ran).await
        }
        Entrance::Ended { taken, ended } => {
            if let Some(taken) = &taken {
                task.go_on_in(taken);
            }
            let Ended { outcome, exec_ms, usage } = ended;
            task.ran(Duration::from_millis(exec_ms));
            End { usage, ..End::of(outcome) }
        }
        Entrance::Lost { taken, reason } => {
            if let Some(taken) = &taken {
                task.go_on_in(taken);
            }
            task.note(&reason).await;
            // It was removed, if the Engine answered.
            return End { may_run: task.job.spec.exclusive, ..End::infra(InfraStage::Exec, reason) };
        }
    };
    snapshot::snapshot(context, task, end).await
}

fn container_of(entrance: &Entrance) -> Option<ContainerName> {
    match entrance {
        Entrance::Taken(taken)
        | Entrance::Running { taken: Some(taken), .. }
        | Entrance::Lost { taken: Some(taken), .. }
        | Entrance::Ended { taken: Some(taken), .. } => Some(taken.container.clone()),
        Entrance::Prepare
        | Entrance::Running { taken: None, .. }
        | Entrance::Ended { taken: None, .. }
        | Entrance::Lost { taken: None, .. } => None,
    }
}

/// Tells how it ended, when nothing of it runs any more (P11), and parks or removes the container.
async fn report<B: Broker, E: Engine>(context: &Arc<Context<B, E>>, mut task: Task, mut end: End) {
    let output = match task.spool.finish().await {
        Ok(output) => output,
        Err(error) => {
            // The verdict needs a log whose length is known; the fleet tries again.
            end.outcome = Outcome::infra(InfraStage::Exec, format!("the worker's disk: {error}"));
            end.park = false;
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
        end.park = false;
        discard(context, &task.fence, end.snapshot.take()).await;
    }
    if end.may_run || stop == Some(StopReason::Abandoned) {
        if end.may_run {
            let _ = tokio::time::timeout(ENGINE_RETURN_MAX, context.engine_back()).await;
        }
        exclusive::remove(context, &task.job, &task.container).await;
    }
    if stop == Some(StopReason::Abandoned) {
        context.attempts.forget(task.attempt.key).await;
        return;
    }
    let (removed, kept) = (end.may_run, end.snapshot.clone());
    let parked = end.park.then(|| parked(&task, kept.clone()));
    let (container, cleaned) = (task.container.clone(), task.cleaned.is_some());
    let finished = finished(&task.attempt, end, task.phases, output);
    // Children start on `finished`: what is left is tidied up behind it (P11). A child that is quicker waits.
    let place = parked.clone().map(|parked| context.parked.park(parked));
    let told = tell(context, &task.attempt, finished, parked.as_ref()).await;
    match place {
        Some(place) if told => {
            let readying = Arc::clone(context);
            let ready = async move {
                if cleaned {
                    drop(place);
                } else {
                    parked::make_ready(&readying, place).await;
                }
                parked::make_room(&readying).await;
            };
            context.tidying.later(ready).await;
        }
        Some(place) => {
            drop(place);
            parked::release(context, &task.attempt.claim).await;
        }
        None => {
            // What was cached, or could not be prepared, has none.
            if !removed && context.tidying.is_used(&container) {
                tidy::remove_later(context, container).await;
            }
            if !told {
                discard(context, &task.fence, kept).await;
            }
        }
    }
}

fn parked(task: &Task, committed: Option<SnapshotId>) -> Parked {
    Parked {
        claim: task.attempt.claim.clone(),
        container: task.container.clone(),
        tenant: task.job.tenant.clone(),
        network: task.job.spec.network,
        chain: task.chain,
        committed,
        committing: false,
        since_ms: now_ms(),
    }
}

fn finished(attempt: &Handle, end: End, phases: Phases, output: Offsets) -> Finished {
    let End { outcome, cached, snapshot, park: parked, usage, .. } = end;
    Finished { claim: attempt.claim.clone(), outcome, cached, output, snapshot, parked, phases, usage }
}

/// On disk, then on its way (P9). `false` if it was abandoned at the last moment, and is forgotten now.
async fn tell<B: Broker, E: Engine>(
    context: &Context<B, E>,
    attempt: &Handle,
    finished: Finished,
    parked: Option<&Parked>,
) -> bool {
    if !context.attempts.finish(attempt.key, &finished, parked).await {
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

/// Ends the time of a phase: for the event, and for the histogram.
pub(crate) fn phase_ended(began: Instant, phase: &'static str) -> u64 {
    metrics::histogram!(PHASE_SECONDS, "phase" => phase).record(began.elapsed());
    since_ms(began)
}
