//! What should be (P22): the coordinator's answers, each harmless when it comes twice.

use std::sync::Arc;

use futures_util::future::join_all;
use longshore_protocol::breach::{self, Breach};
use longshore_protocol::broker::{Broker, BrokerError, dead_letter};
use longshore_protocol::control::{Control, ControlMessage};
use longshore_protocol::event::Claim;
use longshore_protocol::process::{self, blocking};
use longshore_protocol::{Epoch, SnapshotId, wire};
use tokio::sync::mpsc;

use crate::attempts::StopReason;
use crate::clock::Boot;
use crate::context::Context;
use crate::disk::records::AttemptKey;
use crate::engine::Engine;
use crate::error::WorkerError;
use crate::exclusive::Leased;
use crate::metrics::FENCED;
use crate::{parked, snapshot};

/// Messages are carried out one after the other; the rest of these only saves round trips.
const PREFETCH: u16 = 16;

/// Removals that wait for the Engine, some tens of bytes each. What does not fit is not removed now and stays in the
/// heartbeats, where the coordinator sees it: a dead Engine must not hold up an `abandon`.
const REMOVALS_MAX: usize = 1024;

/// What waits to be removed.
enum Unwanted {
    Snapshot(SnapshotId),
    /// What an attempt left.
    Left(Claim),
}

/// Obeys until the worker has stopped.
pub(crate) async fn run<B: Broker, E: Engine>(context: Arc<Context<B, E>>, mut highest: Epoch) {
    let stopped = context.phases.stopped.clone();
    let queue = context.topology.control(&context.id);
    let mut consumer = loop {
        match stopped.run_until_cancelled(context.broker.consume(&queue, PREFETCH)).await {
            Some(Ok(consumer)) => break consumer,
            Some(Err(BrokerError::Lost { .. })) => tokio::task::yield_now().await,
            Some(Err(error)) => return context.fail(error.into()),
            None => return,
        }
    };
    let (removals, wanted) = mpsc::channel(REMOVALS_MAX);
    let removing = remove_all(&context, wanted);
    let obeying = async {
        while let Some(Some(delivery)) = stopped.run_until_cancelled(consumer.next()).await {
            let (messages, unreadable) = wire::decode_some::<ControlMessage>(&delivery.body);
            let mut settled = Vec::new();
            for message in messages {
                if let Err(error) = obey(&context, &mut highest, &removals, &mut settled, message).await {
                    return context.fail(error);
                }
            }
            // Together: their records are one write.
            join_all(settled.into_iter().map(|key| context.attempts.forget(key))).await;
            if let Some(reason) = unreadable {
                // P1
                if let Err(error) = dead_letter(&context.broker, &context.topology, delivery, &reason).await {
                    tracing::warn!(%error, "an unreadable control message comes again");
                }
            } else if let Err(error) = delivery.ack().await {
                tracing::debug!(%error, "a control message comes again");
            }
        }
        consumer.cancel().await;
    };
    tokio::select! {
        biased;
        () = obeying => {}
        () = removing => {}
    }
}

async fn obey<B: Broker, E: Engine>(
    context: &Arc<Context<B, E>>,
    highest: &mut Epoch,
    removals: &mpsc::Sender<Unwanted>,
    settled: &mut Vec<AttemptKey>,
    message: ControlMessage,
) -> Result<(), WorkerError> {
    let ControlMessage { epoch, worker, incarnation, control } = message;
    // P22
    let stale = if worker != context.id {
        Some("worker")
    } else if incarnation != context.incarnation {
        Some("incarnation")
    } else if epoch < *highest && !breach::is(Breach::OldEpochObeyed) {
        Some("epoch")
    } else {
        None
    };
    if let Some(kind) = stale {
        metrics::counter!(FENCED, "kind" => kind).increment(1);
        tracing::debug!(kind, ?control, "a stale control message is ignored");
        return Ok(());
    }
    if epoch > *highest {
        let disk = Arc::clone(&context.disk);
        blocking(move || disk.set_epoch(epoch)).await?;
        *highest = epoch;
    }
    process::obeys(epoch);
    match control {
        Control::Abandon { claim } => abandon(context, removals, &claim).await,
        Control::Go { claim } => {
            let lease = context.config.lease;
            context.attempts.leased(AttemptKey::of(&claim), |leased| leased.go(Boot::now(), lease));
        }
        Control::Heard { stamp_ms, claims } => {
            for claim in claims {
                let heard = |leased: &mut Leased| leased.heard(Boot(stamp_ms), Boot::now());
                context.attempts.leased(AttemptKey::of(&claim), heard);
            }
        }
        Control::Cancel { claim, by } => {
            // One that is over is left as it is, one that is not here was never accepted or is settled.
            let _ = context.attempts.stop(AttemptKey::of(&claim), StopReason::Cancelled(by));
        }
        Control::Settled { claim } => {
            let key = AttemptKey::of(&claim);
            if context.attempts.is_finished(key) {
                settled.push(key);
            }
        }
        Control::Sync => context.reporter.records().await,
        Control::Resend { claim, stored } => context.attempts.resend(AttemptKey::of(&claim), stored),
        Control::Stored { claim, stored } => context.attempts.stored(AttemptKey::of(&claim), stored),
        Control::Release { claim } => queue(removals, Unwanted::Left(claim)),
        Control::RemoveSnapshot { snapshot } => remove_snapshot(removals, snapshot),
        Control::Refused { reason } => return Err(WorkerError::Refused { reason }),
    }
    Ok(())
}

/// P5, P12: kills it, drops its record, its spool and what it left, and reports nothing.
async fn abandon<B: Broker, E: Engine>(context: &Context<B, E>, removals: &mpsc::Sender<Unwanted>, claim: &Claim) {
    let key = AttemptKey::of(claim);
    // What is still carried out is dropped by its own task, behind its container.
    if let Some(finished) = context.attempts.stop(key, StopReason::Abandoned) {
        context.attempts.forget(key).await;
        // What is under a key may be somebody else's too.
        let own = SnapshotId::ephemeral(&context.fence(claim));
        if finished.parked || finished.snapshot.as_ref() == Some(&own) {
            queue(removals, Unwanted::Left(claim.clone()));
        }
    }
}

/// Never anything but a snapshot of Longshore's: the reference comes from outside.
fn remove_snapshot(removals: &mpsc::Sender<Unwanted>, snapshot: SnapshotId) {
    if snapshot.as_str().starts_with("longshore/") {
        queue(removals, Unwanted::Snapshot(snapshot));
    } else {
        tracing::warn!(%snapshot, "not a snapshot of Longshore's: not removed");
    }
}

fn queue(removals: &mpsc::Sender<Unwanted>, unwanted: Unwanted) {
    if let Err(error) = removals.try_send(unwanted) {
        tracing::warn!(%error, "too much waits to be removed");
    }
}

async fn remove_all<B: Broker, E: Engine>(context: &Arc<Context<B, E>>, mut wanted: mpsc::Receiver<Unwanted>) {
    while let Some(unwanted) = wanted.recv().await {
        context.engine_back().await;
        match unwanted {
            Unwanted::Snapshot(snapshot) => snapshot::remove(context, &snapshot).await,
            Unwanted::Left(claim) => {
                // Not ended half-way when the worker stops.
                let releasing = Arc::clone(context);
                context.tidying.whole(async move { parked::release(&releasing, &claim).await }).await;
            }
        }
    }
}
