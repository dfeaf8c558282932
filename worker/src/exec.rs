//! Runs the command: started, spooled, ended in time.

use std::time::Duration;

use longshore_protocol::broker::Broker;
use longshore_protocol::event::{Event, Started};
use longshore_protocol::process::watch;
use longshore_protocol::{InfraStage, Outcome};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::attempts::{Spooled, StopReason};
use crate::clock::{now_ms, since_ms};
use crate::context::Context;
use crate::engine::{CommandSpec, ContainerName, Engine, EngineError, Exit, ExitStatus, Running};
use crate::exclusive;
use crate::job::{End, Task};
use crate::metrics::{PHASE_SECONDS, QUEUE_TO_START_SECONDS};

/// When a stopped command is down, its exit and the end of its streams follow at once, behind what is still on its way
/// to the disk; this bounds a connection on which nothing comes any more, not the command.
const AFTER_STOP_MAX: Duration = Duration::from_secs(10);

/// What a stopping worker leaves a step between TERM and KILL: service managers kill the worker itself after 90 s,
/// and an orchestrator after 30.
const SHUTDOWN_GRACE_MAX: Duration = Duration::from_secs(10);

enum Ended {
    /// By itself.
    Exited(Result<Exit, EngineError>),
    /// By us, unless it had ended before: then this says how.
    TimedOut(Option<Exit>),
    /// By somebody's wish.
    Stopped(StopReason),
}

/// Starts the command in its container, and follows it to its end. Passed means that exit status 0 was reported.
pub(crate) async fn exec<B: Broker, E: Engine>(context: &Context<B, E>, task: &mut Task) -> End {
    if let Some(reason) = task.attempt.stop.reason() {
        return End::stopped(reason, InfraStage::Exec);
    }
    let lease = match exclusive::cleared(context, task).await {
        Ok(lease) => lease,
        Err(end) => return end,
    };
    let command = CommandSpec { lease, ..task.command() };
    // Not tried again: it may have started although no answer came.
    let started = if task.supervised {
        // Under 1 ms, and the Engine has nothing to do with it.
        context.engine.start(&task.container, &command).await
    } else {
        let gate = context.gates.start.enter().await;
        let started = context.engine.start(&task.container, &command).await;
        gate.done(&started);
        started
    };
    match started {
        Ok(running) => follow(context, task, running, Duration::ZERO).await,
        Err(EngineError::CannotStart { reason, exit: Some(exit) }) => {
            // What a shell would say of it: the user's failure, and the log says why.
            task.note(&format!("the command cannot be started: {reason}")).await;
            End::of(Outcome::Failed { exit })
        }
        Err(error) => {
            context.noticed(&error);
            task.note(&error.to_string()).await;
            End { may_run: true, ..End::infra(InfraStage::Exec, error.to_string()) }
        }
    }
}

/// Follows a command that was started so long ago (P10: perhaps by an earlier incarnation).
pub(crate) async fn follow<B: Broker, E: Engine>(
    context: &Context<B, E>,
    task: &mut Task,
    running: Running,
    ran: Duration,
) -> End {
    let now = Instant::now();
    let began = now.checked_sub(ran).unwrap_or(now);
    let started = started(task, ran);
    let limit = Duration::from_millis(task.job.spec.timeout_ms);
    let Running { output, exit, spooled: read } = running;
    let enough = CancellationToken::new();
    // P15: nothing of it runs any more, so it need not be kept from writing. Also when no more comes.
    let over = enough.child_token();
    let claim = task.attempt.claim.clone();

    let told = async {
        drop(context.reporter.send(Event::Started(started)).await);
        context.attempts.runs(&claim).await;
    };
    // All that the watching needs of the task, whose spool takes the output meanwhile.
    let watching = Watching {
        container: task.container.clone(),
        attempt: task.attempt.clone(),
        grace: Duration::from_millis(task.job.spec.grace_ms),
        until: began + limit,
    };
    let watched = async {
        let ((), watched) = tokio::join!(told, watch(context, watching, exit, &enough, &over));
        Ok(watched)
    };
    let (container, leased) = (task.container.clone(), task.attempt.leased.subscribe());
    let extended = async {
        if task.job.spec.exclusive {
            exclusive::extend(context, &container, leased).await;
        }
        std::future::pending().await
    };
    // The output is taken for as long as the command runs, also while it is being stopped. A spool that fails ends
    // it: what it goes on to write would be lost.
    let waits = task.supervised.then_some(&over);
    let spooled = task.spool.drain(output, &read, waits, enough.clone());
    let both = tokio::select! {
        biased;
        both = async { tokio::try_join!(watched, spooled) } => both,
        never = extended => never,
    };
    let took = began.elapsed();
    let (ended, may_run) = match both {
        Ok((watched, ())) => watched,
        Err(error) => {
            tracing::error!(%error, "the output cannot be spooled");
            return End { may_run: true, ..End::infra(InfraStage::Exec, format!("the worker's disk: {error}")) };
        }
    };
    let (exit, ran) = match &ended {
        Ended::Exited(Ok(exit)) | Ended::TimedOut(Some(exit)) => (Some(*exit), exit.ran.unwrap_or(took)),
        _ => (None, took),
    };
    task.ran(ran);
    metrics::histogram!(PHASE_SECONDS, "phase" => "exec").record(ran);
    let end = match ended {
        Ended::Exited(Ok(exit)) => End::of(outcome(exit, limit)),
        // How late its output was read, and how late it was stopped, is not the command's fault.
        Ended::TimedOut(Some(exit)) if exit.ran.is_some() => End::of(outcome(exit, limit)),
        Ended::TimedOut(_) => End::of(Outcome::TimedOut),
        Ended::Exited(Err(error)) => {
            context.noticed(&error);
            End::infra(InfraStage::Exec, error.to_string())
        }
        Ended::Stopped(reason) => End::stopped(reason, InfraStage::Exec),
    };
    if let Outcome::Infra { reason, .. } = &end.outcome {
        task.note(reason).await;
    }
    End { may_run, usage: exit.and_then(|exit| exit.usage), ..end }
}

struct Watching {
    container: ContainerName,
    attempt: crate::attempts::Handle,
    grace: Duration,
    until: Instant,
}

/// Waits for the end, or makes it. Answers how it ended, and whether anything of it may still run.
async fn watch<B: Broker, E: Engine>(
    context: &Context<B, E>,
    watching: Watching,
    mut exit: oneshot::Receiver<Result<Exit, EngineError>>,
    enough: &CancellationToken,
    over: &CancellationToken,
) -> (Ended, bool) {
    let Watching { container, attempt, grace, until } = watching;
    let mut stop = attempt.stop.clone();
    let ended = tokio::select! {
        biased;
        ended = &mut exit => Ended::Exited(answer(ended)),
        reason = stop.requested() => Ended::Stopped(reason),
        () = tokio::time::sleep_until(until) => Ended::TimedOut(None),
    };
    let grace = match &ended {
        Ended::Exited(exit) => {
            // Without an exit code nobody knows whether it still runs, or whether more of its output comes.
            let broke = exit.is_err();
            if broke {
                enough.cancel();
            }
            return (ended, broke);
        }
        Ended::Stopped(StopReason::Shutdown) => {
            // A crash from here on must not make the signal that it gets the user's (promise 2).
            context.attempts.handed_back(&attempt.claim).await;
            grace.min(SHUTDOWN_GRACE_MAX)
        }
        // Nobody reads what it would still say.
        Ended::Stopped(StopReason::Abandoned) => Duration::ZERO,
        Ended::Stopped(StopReason::Cancelled(by)) => {
            context.attempts.cancelled(&attempt.claim, by).await;
            grace
        }
        Ended::TimedOut(_) => grace,
    };
    let stopped = end(context, &container, grace).await;
    if let Err(error) = &stopped {
        tracing::warn!(%container, %error, "a command could not be stopped");
        enough.cancel();
        return (ended, true);
    }
    over.cancel();
    // What it wrote until then belongs to the log.
    let last = last_words(&mut exit, &attempt.spooled).await;
    if last.is_none() {
        enough.cancel();
    }
    match (ended, last) {
        (Ended::TimedOut(_), Some(Ok(exit))) => (Ended::TimedOut(Some(exit)), false),
        (ended, _) => (ended, false),
    }
}

/// Ends it, after its grace or as soon as nobody waits for that any more.
async fn end<B: Broker, E: Engine>(
    context: &Context<B, E>,
    container: &ContainerName,
    grace: Duration,
) -> Result<(), EngineError> {
    tokio::select! {
        biased;
        () = context.killing.cancelled() => {}
        stopped = context.retrying("stop", || context.engine.stop(container, grace)) => return stopped,
    }
    context.retrying("stop", || context.engine.stop(container, Duration::ZERO)).await
}

/// The exit of a command that was stopped, for as long as its output still comes, or goes.
async fn last_words(
    exit: &mut oneshot::Receiver<Result<Exit, EngineError>>,
    spooled: &watch::Sender<Spooled>,
) -> Option<Result<Exit, EngineError>> {
    let mut spooled = spooled.subscribe();
    loop {
        let news = async {
            tokio::select! {
                biased;
                ended = &mut *exit => Some(answer(ended)),
                _ = spooled.changed() => None,
            }
        };
        match timeout(AFTER_STOP_MAX, news).await {
            Ok(Some(answer)) => return Some(answer),
            Ok(None) => {}
            Err(_) => return None,
        }
    }
}

fn started(task: &Task, ran: Duration) -> Started {
    let ran_ms = u64::try_from(ran.as_millis()).unwrap_or(u64::MAX);
    let queue_to_start_ms = now_ms().saturating_sub(task.job.dispatched_at_ms).saturating_sub(ran_ms);
    if ran.is_zero() {
        // One that was adopted was counted when it started.
        metrics::histogram!(QUEUE_TO_START_SECONDS).record(Duration::from_millis(queue_to_start_ms));
    }
    Started {
        claim: task.attempt.claim.clone(),
        prepare_ms: since_ms(task.delivered),
        queue_to_start_ms,
        container: task.container.to_string(),
    }
}

/// Promise 2: an exit code is one that the kernel reported; whatever else is the fleet's fault. What ran past its time
/// was timed out, whoever ended it: this worker, or its supervisor while the worker was away (P17).
fn outcome(exit: Exit, limit: Duration) -> Outcome {
    if exit.out_of_lease {
        return exclusive::out_of_lease(); // P18
    }
    if exit.ran.is_some_and(|ran| ran >= limit) {
        return Outcome::TimedOut;
    }
    match exit {
        Exit { status: ExitStatus::Code(0), .. } => Outcome::Passed,
        Exit { oom_killed: true, .. } => Outcome::OomKilled,
        Exit { status: ExitStatus::Code(exit), .. } => Outcome::Failed { exit },
        Exit { status: ExitStatus::Signal(signal), .. } => Outcome::Signaled { signal },
    }
}

fn answer(received: Result<Result<Exit, EngineError>, oneshot::error::RecvError>) -> Result<Exit, EngineError> {
    let missing = || EngineError::Refused { operation: "wait", status: 0, reason: "no exit code came".to_owned() };
    received.unwrap_or_else(|_| Err(missing()))
}

#[cfg(test)]
mod tests {
    use ExitStatus::{Code, Signal};

    use super::*;

    #[test]
    fn an_outcome_is_what_the_kernel_said_and_how_long_it_took() {
        let limit = Duration::from_secs(10);
        let of = |status, oom_killed, ran: Option<u64>| {
            outcome(
                Exit { status, oom_killed, ran: ran.map(Duration::from_secs), usage: None, out_of_lease: false },
                limit,
            )
        };
        assert_eq!(of(Code(0), false, Some(9)), Outcome::Passed);
        assert_eq!(of(Code(0), true, None), Outcome::Passed, "a child of it was killed, and it coped");
        assert_eq!(of(Code(137), true, Some(1)), Outcome::OomKilled);
        assert_eq!(of(Code(137), false, Some(1)), Outcome::Failed { exit: 137 });
        assert_eq!(of(Signal(9), false, Some(1)), Outcome::Signaled { signal: 9 });
        assert_eq!(of(Signal(9), true, Some(1)), Outcome::OomKilled);
        assert_eq!(of(Signal(9), false, Some(10)), Outcome::TimedOut);
    }
}
