//! Runs the command: started, spooled, ended in time.

use std::time::{Duration, Instant};

use longshore_protocol::broker::Broker;
use longshore_protocol::event::{Event, Phase, Started};
use longshore_protocol::{InfraStage, Outcome};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::attempts::StopReason;
use crate::clock::{now_ms, since_ms};
use crate::context::Context;
use crate::engine::{Engine, EngineError, Exit, Running};
use crate::job::{End, Task, phase_ended};
use crate::metrics::QUEUE_TO_START_SECONDS;

/// When a stopped container is down, its exit and the end of its streams follow at once; this bounds a broken
/// connection, not the command.
const AFTER_STOP_MAX: Duration = Duration::from_secs(10);

/// What a stopping worker leaves a step between TERM and KILL: service managers kill the worker itself after 90 s,
/// and an orchestrator after 30.
const SHUTDOWN_GRACE_MAX: Duration = Duration::from_secs(10);

enum Ended {
    /// By itself.
    Exited(Result<Exit, EngineError>),
    /// By us.
    TimedOut,
    /// By somebody's wish.
    Stopped(StopReason),
}

/// Runs the command in its container. Passed means that exit status 0 was reported.
pub(crate) async fn exec<B: Broker, E: Engine>(context: &Context<B, E>, task: &mut Task) -> End {
    if let Some(reason) = task.attempt.stop.reason() {
        return End::stopped(reason, InfraStage::Exec);
    }
    let started = {
        let _gate = context.gates.start.acquire().await;
        // Not tried again: it may have started although no answer came.
        context.engine.start(&task.container).await
    };
    match started {
        Ok(running) => {
            let began = Instant::now();
            let end = run(context, task, running, began).await;
            task.phases.exec_ms = phase_ended(began, "exec");
            end
        }
        Err(EngineError::CannotStart { reason, exit: Some(exit) }) => {
            // What a shell would say of it: the user's failure, and the log says why.
            note(task, &format!("the command cannot be started: {reason}")).await;
            End::of(Outcome::Failed { exit })
        }
        Err(error) => {
            context.noticed(&error);
            note(task, &error.to_string()).await;
            End { may_run: true, ..End::infra(InfraStage::Exec, error.to_string()) }
        }
    }
}

async fn run<B: Broker, E: Engine>(context: &Context<B, E>, task: &mut Task, running: Running, began: Instant) -> End {
    let Running { output, mut exit } = running;
    let started = started(task);
    let timeout_after = Duration::from_millis(task.job.spec.timeout_ms);
    let grace = Duration::from_millis(task.job.spec.grace_ms);
    let (key, container) = (task.attempt.key, task.container.clone());
    let mut stop = task.attempt.stop.clone();
    let enough = CancellationToken::new();

    let watched = async {
        let told = async {
            context.attempts.enter(key, Phase::Running).await;
            drop(context.reporter.send(Event::Started(started)).await);
        };
        let ended = async {
            tokio::select! {
                biased;
                ended = &mut exit => Ended::Exited(answer(ended)),
                reason = stop.requested() => Ended::Stopped(reason),
                () = tokio::time::sleep(timeout_after.saturating_sub(began.elapsed())) => Ended::TimedOut,
            }
        };
        let ((), ended) = tokio::join!(told, ended);
        let grace = match &ended {
            Ended::Exited(exit) => {
                // Without an exit code nobody knows whether it still runs, or whether more of its output comes.
                let broke = exit.is_err();
                if broke {
                    enough.cancel();
                }
                return (ended, broke);
            }
            Ended::Stopped(StopReason::Shutdown) => grace.min(SHUTDOWN_GRACE_MAX),
            // Nobody reads what it would still say.
            Ended::Stopped(StopReason::Abandoned) => Duration::ZERO,
            Ended::Stopped(StopReason::Cancelled(_)) | Ended::TimedOut => grace,
        };
        let stopped = context.retrying("stop", || context.engine.stop(&container, grace)).await;
        if let Err(error) = &stopped {
            tracing::warn!(%container, %error, "a container could not be stopped");
        }
        // What it wrote until then belongs to the log.
        if stopped.is_err() || timeout(AFTER_STOP_MAX, &mut exit).await.is_err() {
            enough.cancel();
        }
        (ended, stopped.is_err())
    };
    // The output is taken for as long as the command runs, also while it is being stopped. A spool that fails ends
    // it: what it goes on to write would be lost.
    let spooled = task.spool.drain(output, enough.clone());
    let both = tokio::try_join!(async { Ok(watched.await) }, spooled);
    let (ended, may_run) = match both {
        Ok((watched, ())) => watched,
        Err(error) => {
            tracing::error!(%error, "the output cannot be spooled");
            return End { may_run: true, ..End::infra(InfraStage::Exec, format!("the worker's disk: {error}")) };
        }
    };
    let end = match ended {
        Ended::Exited(Ok(exit)) => End::of(outcome(exit)),
        Ended::Exited(Err(error)) => {
            context.noticed(&error);
            End::infra(InfraStage::Exec, error.to_string())
        }
        Ended::TimedOut => End::of(Outcome::TimedOut),
        Ended::Stopped(reason) => End::stopped(reason, InfraStage::Exec),
    };
    if let Outcome::Infra { reason, .. } = &end.outcome {
        note(task, reason).await;
    }
    End { may_run, ..end }
}

fn started(task: &Task) -> Started {
    let queue_to_start_ms = now_ms().saturating_sub(task.job.dispatched_at_ms);
    metrics::histogram!(QUEUE_TO_START_SECONDS).record(Duration::from_millis(queue_to_start_ms));
    Started {
        claim: task.attempt.claim.clone(),
        prepare_ms: since_ms(task.delivered),
        queue_to_start_ms,
        container: task.container.to_string(),
    }
}

/// Promise 2: an exit code is one that the kernel reported; whatever else is the fleet's fault.
fn outcome(exit: Exit) -> Outcome {
    match exit {
        Exit { code: 0, .. } => Outcome::Passed,
        Exit { oom_killed: true, .. } => Outcome::OomKilled,
        Exit { code, .. } => Outcome::Failed { exit: code },
    }
}

fn answer(received: Result<Result<Exit, EngineError>, oneshot::error::RecvError>) -> Result<Exit, EngineError> {
    let missing = || EngineError::Refused { operation: "wait", status: 0, reason: "no exit code came".to_owned() };
    received.unwrap_or_else(|_| Err(missing()))
}

/// A disk that fails here shows when the spool is finished.
async fn note(task: &mut Task, text: &str) {
    let _ = task.spool.note(text).await;
}
