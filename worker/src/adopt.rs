//! P10: what the last incarnation left, and what becomes of it (`docs/decisions/adoption.md`).
//!
//! Every attempt that is not over and every parked container is looked for on the Engine before `hello` lists them.

use std::sync::Arc;

use futures_util::future::join_all;
use longshore_protocol::broker::Broker;
use longshore_protocol::event::{Event, Finished, Phase};
use longshore_protocol::outcome::HANDED_BACK;
use longshore_protocol::output::Offsets;

use crate::attempts::{Handle, Spooled, StopReason};
use crate::context::Context;
use crate::disk::records::{AttemptKey, Entry, Open, Parked, Records};
use crate::disk::spool::{self, Place};
use crate::engine::{Adopted, ContainerName, Engine, EngineError};
use crate::job::{Entrance, carry_out};
use crate::metrics::{ADOPTED, SPOOL_BYTES};
use crate::{parked, pump, tidy};
use longshore_protocol::process::blocking;
use tokio::time::Instant;

/// What was taken over, before anybody is told.
pub(crate) struct Left {
    finished: Vec<(Finished, Handle)>,
    open: Vec<(Open, Handle, Entrance, Place)>,
}

/// Takes everything over: it is in the tables when this returns, and nothing of it goes on yet.
pub(crate) async fn take_over<B: Broker, E: Engine>(context: &Arc<Context<B, E>>, records: &Records) -> Left {
    let mut left = Left { finished: Vec::new(), open: Vec::new() };
    for finished in records.over() {
        let (found, spooled) = recover(context, AttemptKey::of(&finished.claim)).await;
        if finished.output != found.offsets {
            tracing::warn!(?found, expected = ?finished.output, "a spool is shorter than its output was");
        }
        left.finished.push((finished.clone(), context.attempts.adopt_finished(finished, spooled)));
    }
    let parking = records.parked().map(|parked| park(context, parked));
    let opening = records.open().map(|open| enter(context, open));
    let (_, open) = tokio::join!(join_all(parking), join_all(opening));
    left.open = open;
    left
}

/// Goes on with all of it, behind `hello`.
pub(crate) async fn go_on<B: Broker, E: Engine>(context: &Arc<Context<B, E>>, left: Left) {
    for (finished, attempt) in left.finished {
        // Under this incarnation's numbers.
        drop(context.reporter.send(Event::Finished(finished)).await);
        context.pumps.spawn(pump::run(Arc::clone(context), attempt));
    }
    for (open, attempt, entrance, found) in left.open {
        // Fewer slots than before are no reason to give up what runs.
        let slot = Arc::clone(&context.slots).try_acquire_owned().ok();
        if let Some(by) = open.cancelled {
            let _ = context.attempts.stop(attempt.key, StopReason::Cancelled(by));
        }
        context.pumps.spawn(pump::run(Arc::clone(context), attempt.clone()));
        context.jobs.spawn(carry_out(
            Arc::clone(context),
            open.job,
            attempt,
            entrance,
            Some(found),
            Instant::now(),
            slot,
        ));
    }
}

/// Where an attempt goes on.
async fn enter<B: Broker, E: Engine>(context: &Context<B, E>, open: &Open) -> (Open, Handle, Entrance, Place) {
    let record = open.record();
    let key = AttemptKey::of(&record.claim);
    let (found, spooled) = recover(context, key).await;
    let fence = context.fence(&record.claim);
    let own = ContainerName::of(&fence);
    let container = open.consumed.as_ref().map_or(&own, |taken| &taken.container);
    context.tidying.uses(container);
    let answer = context.retrying("adopt", || context.engine.adopt(container, found.read())).await;
    let taken = open.consumed.clone().map(Box::new);
    let (what, entrance) = match (answer, taken, open.ended.clone()) {
        // How it ended is known, whatever became of its container since: that shows when it is committed.
        (_, taken, Some(ended)) => ("ended", Entrance::Ended { taken, ended }),
        (_, taken, None) if open.handed_back => {
            // P11: before that is told.
            tidy::remove(context, container).await;
            ("handed_back", Entrance::Lost { taken, reason: HANDED_BACK.to_owned() })
        }
        (Ok(Adopted::Command { attempt, ran, running }), taken, None) if attempt == fence.to_string() => {
            ("followed", Entrance::Running { taken, ran, running })
        }
        (Ok(Adopted::Idle), Some(taken), None) if !open.running => ("taken", Entrance::Taken(taken)),
        // Nothing was started in it, and it is nobody else's: made anew, whatever was in it.
        (Ok(Adopted::Idle) | Err(_), None, None) if !open.running => {
            if tidy::remove(context, container).await || !open.job.spec.exclusive {
                ("prepared_again", Entrance::Prepare)
            } else {
                // P18: the crash may have come between its command's start and the record of that.
                let reason = "what it had begun before the worker's restart could not be removed".to_owned();
                ("lost", Entrance::Lost { taken: None, reason })
            }
        }
        (answer, taken, _) => {
            let reason = match answer {
                Err(EngineError::Gone { .. }) => "its container did not outlive the worker's restart".to_owned(),
                Err(error) => format!("its container could not be taken up again: {error}"),
                Ok(found) => format!("its container does something else: {found:?}"),
            };
            tracing::warn!(attempt = %fence, reason, "lost over a restart");
            // P11: before that is told.
            tidy::remove(context, container).await;
            ("lost", Entrance::Lost { taken, reason })
        }
    };
    metrics::counter!(ADOPTED, "what" => what).increment(1);
    tracing::info!(attempt = %fence, what, "adopted");
    let attempt = context.attempts.adopt(open, spooled);
    if matches!(entrance, Entrance::Running { .. }) {
        // Also if the crash came before that was written.
        context.attempts.enter(key, Phase::Running);
    }
    (open.clone(), attempt, entrance, found)
}

/// Takes up a parked container, if a child can still go on in it. What there is to do for that is done behind `hello`;
/// a child waits for it.
async fn park<B: Broker, E: Engine>(context: &Arc<Context<B, E>>, parked: &Parked) {
    let container = &parked.container;
    context.tidying.uses(container);
    let own = context.fence(&parked.claim).to_string();
    let answer = context.retrying("adopt", || context.engine.adopt(container, Offsets::default())).await;
    let what = match answer {
        Ok(Adopted::Idle | Adopted::Command { .. }) if parked.committing => {
            let (leaving, place) = (Arc::clone(context), context.parked.park(parked.clone()));
            context.tidying.at_once(async move { parked::leave_in_doubt(&leaving, place).await });
            "parked"
        }
        Ok(Adopted::Idle) => {
            drop(context.parked.park(parked.clone()));
            "parked"
        }
        // The crash came before it was cleaned.
        Ok(Adopted::Command { attempt, .. }) if attempt == own => {
            let (readying, place) = (Arc::clone(context), context.parked.park(parked.clone()));
            context.tidying.at_once(async move { parked::make_ready(&readying, place).await });
            "parked"
        }
        answer => {
            tracing::info!(%container, ?answer, "a parked container is lost");
            context.parked.note(Entry::Unparked { claim: parked.claim.clone() }).await;
            tidy::remove(context, container).await;
            "parked_lost"
        }
    };
    metrics::counter!(ADOPTED, "what" => what).increment(1);
}

/// Answers where the spool ends.
async fn recover<B: Broker, E: Engine>(context: &Context<B, E>, key: AttemptKey) -> (Place, Spooled) {
    let path = context.disk.spool_path(key);
    let recovered = blocking(move || spool::recover(&path)).await;
    let [start, end] = recovered.unwrap_or_else(|error| {
        tracing::error!(%error, "a spool cannot be read; its output is lost");
        [Place::default(); 2]
    });
    // What was given back is stored (P15).
    let spooled = Spooled { bytes: end.position, freed: start.position, stored: start.offsets, ..Spooled::default() };
    metrics::gauge!(SPOOL_BYTES).increment(spooled.held() as f64);
    (end, spooled)
}
