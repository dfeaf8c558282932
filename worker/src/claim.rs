//! Takes jobs from the broker, one a free slot (P4).
//!
//! A permit is taken before anything is consumed and moves into the attempt's task. Nothing stays unacknowledged for
//! the length of a step, so the broker's delivery timeout never matters.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::select_all;
use longshore_protocol::broker::{Broker, BrokerError, Consumer, Delivery, dead_letter};
use longshore_protocol::event::{Claim, Event};
use longshore_protocol::job::Job;
use longshore_protocol::topology::Queue;
use longshore_protocol::{Shard, wire};
use tokio::sync::OwnedSemaphorePermit;

use crate::attempts::Handle;
use crate::context::Context;
use crate::engine::Engine;
use crate::metrics::CLAIMS;
use crate::{job, pump};

/// P4: a second one would wait behind the first for as long as that is being claimed.
const PREFETCH: u16 = 1;

/// A job that cannot be claimed is given back; without a pause its deliveries would be used up in a second.
const AFTER_FAILURE: Duration = Duration::from_secs(3);

/// Claims until the worker stops.
pub(crate) async fn run<B: Broker, E: Engine>(context: Arc<Context<B, E>>) {
    let stopping = context.phases.stopping.clone();
    while let Some(slot) = stopping.run_until_cancelled(free_slot(&context)).await {
        if let Err(error) = consume(&context, slot).await {
            match error {
                BrokerError::Refused { .. } => return context.fail(error.into()),
                BrokerError::Closed => return,
                BrokerError::Lost { .. } => tracing::info!(%error, "the queues of jobs are consumed again"),
            }
        }
    }
}

/// A slot to fill, on an Engine that answers.
async fn free_slot<B: Broker, E: Engine>(context: &Context<B, E>) -> OwnedSemaphorePermit {
    context.engine_back().await;
    let slot = Arc::clone(&context.slots).acquire_owned().await;
    slot.expect("INVARIANT: the slots are never closed")
}

/// Consumes while a slot is free.
async fn consume<B: Broker, E: Engine>(
    context: &Arc<Context<B, E>>,
    mut slot: OwnedSemaphorePermit,
) -> Result<(), BrokerError> {
    let mut consumers = Vec::new();
    for queue in queues(context) {
        consumers.push(context.broker.consume(&queue, PREFETCH).await?);
    }
    let mut lost = context.reachable.subscribe();
    loop {
        let delivery = tokio::select! {
            biased;
            () = context.phases.stopping.cancelled() => None,
            _ = lost.wait_for(|reachable| !*reachable) => None,
            delivery = next(&mut consumers) => match delivery {
                Some(delivery) => Some(delivery),
                None => return Err(BrokerError::Closed),
            },
        };
        let Some(delivery) = delivery else {
            cancel(consumers).await;
            return Ok(());
        };
        // P4: for the last slot the consumers are cancelled before anything is acked, which would fetch the next
        // job; a surplus delivery goes back with them.
        let Ok(another) = Arc::clone(&context.slots).try_acquire_owned() else {
            cancel(consumers).await;
            take(context, delivery, slot).await;
            return Ok(());
        };
        take(context, delivery, slot).await;
        slot = another;
    }
}

/// The worker's own queue first: what waits there can go nowhere else.
fn queues<B: Broker, E: Engine>(context: &Context<B, E>) -> Vec<Queue> {
    let shards = || (0..Shard::COUNT).map(Shard);
    let own = shards().map(|shard| context.topology.worker_jobs(shard, &context.id));
    own.chain(shards().map(|shard| context.topology.pool_jobs(shard, &context.config.pool))).collect()
}

/// The next delivery of any, the earlier consumers first. `None` after the broker was closed.
async fn next(consumers: &mut [Consumer]) -> Option<Delivery> {
    select_all(consumers.iter_mut().map(|consumer| Box::pin(consumer.next()))).await.0
}

async fn cancel(consumers: Vec<Consumer>) {
    for consumer in consumers {
        consumer.cancel().await;
    }
}

/// Record on disk → `accepted` confirmed → ack → work (P4).
async fn take<B: Broker, E: Engine>(context: &Arc<Context<B, E>>, delivery: Delivery, slot: OwnedSemaphorePermit) {
    let delivered = Instant::now();
    let job: Job = match wire::decode(&delivery.body) {
        Ok(job) => job,
        Err(reason) => {
            // P1
            count("unreadable");
            if let Err(error) = dead_letter(&context.broker, &context.topology, delivery, &reason).await {
                tracing::warn!(%error, "an unreadable job could not be moved to the dead letters; it comes again");
            }
            return;
        }
    };
    let claim = Claim { run: job.run, execution: job.execution, attempt: job.attempt };
    let attempt = match context.attempts.claim(&claim).await {
        Ok(Some(attempt)) => attempt,
        Ok(None) => {
            count("duplicate");
            return acked(delivery.ack().await);
        }
        Err(error) => return give_back(context, delivery, &error).await,
    };
    let accepted = context.reporter.send(Event::Accepted(claim)).await;
    tokio::select! {
        confirmed = accepted => if confirmed.is_ok() {
            count("accepted");
            // Where it fails, the job comes to somebody else too, who is told to abandon it (P5).
            acked(delivery.ack().await);
        },
        // The coordinator may believe that it was accepted: so its end is told as well, and the job goes back.
        () = context.phases.stopping.cancelled() => {}
    }
    begin(context, job, attempt, delivered, slot);
}

fn begin<B: Broker, E: Engine>(
    context: &Arc<Context<B, E>>,
    job: Job,
    attempt: Handle,
    delivered: Instant,
    slot: OwnedSemaphorePermit,
) {
    tracing::info!(step = %job.step, attempt = %context.fence(&attempt.claim), "claimed");
    context.pumps.spawn(pump::run(Arc::clone(context), attempt.clone()));
    context.jobs.spawn(job::carry_out(Arc::clone(context), job, attempt, delivered, slot));
}

async fn give_back<B: Broker, E: Engine>(context: &Context<B, E>, delivery: Delivery, error: &io::Error) {
    count("failed");
    tracing::error!(%error, "a job was given back: its record could not be written");
    acked(delivery.give_back().await);
    let _ = context.phases.stopping.run_until_cancelled(tokio::time::sleep(AFTER_FAILURE)).await;
}

fn acked(answer: Result<(), BrokerError>) {
    if let Err(error) = answer {
        tracing::info!(%error, "the broker did not hear of a delivery's end; it comes again");
    }
}

fn count(result: &'static str) {
    metrics::counter!(CLAIMS, "result" => result).increment(1);
}
