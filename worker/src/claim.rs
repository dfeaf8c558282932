//! Takes jobs from the broker, one a free slot (P4).
//!
//! A permit is taken before anything is consumed and moves into the attempt's task. Nothing stays unacknowledged for
//! the length of a step, so the broker's delivery timeout never matters.
//!
//! Each claim is a task of its own: record on disk, `accepted` confirmed, ack, work. A consumer has one job at a time
//! (prefetch 1), and gets the next one when that is acked: some 3 ms later, of which the fsync takes a tenth and the
//! broker's confirm the rest. So what bounds the claims is the number of consumers, and the pool's queue has as many
//! of them as slots are free, up to [`POOL_CONSUMERS_MAX`].

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _, join_all, select_all, try_join_all};
use longshore_protocol::breach::{self, Breach};
use longshore_protocol::broker::{Broker, BrokerError, Consumer, Delivery, dead_letter};
use longshore_protocol::event::Event;
use longshore_protocol::job::Job;
use longshore_protocol::topology::Queue;
use longshore_protocol::{Shard, wire};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::attempts::{Handle, StopReason};
use crate::clock::Boot;
use crate::context::Context;
use crate::disk::records::{AttemptKey, claim_of};
use crate::engine::{ContainerName, Engine};
use crate::job::{Entrance, carry_out};
use crate::metrics::CLAIMS;
use crate::pump;

/// P4: a second one would wait behind the first for as long as that is being claimed.
const PREFETCH: u16 = 1;

/// How many jobs of the pool are claimed at once: with 3 ms each, or 10 on a busy machine, more than any Engine starts.
/// Those claimed at once share a write of the records and a body of events. Each costs the broker a channel.
const POOL_CONSUMERS_MAX: usize = 16;

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
    let mut consumers = Consumers::open(context).await?;
    let mut lost = context.reachable.subscribe();
    loop {
        let delivery = tokio::select! {
            biased;
            () = context.phases.stopping.cancelled() => None,
            _ = lost.wait_for(|reachable| !*reachable) => None,
            delivery = consumers.next() => match delivery? {
                Some(delivery) => Some(delivery),
                None => return Err(BrokerError::Closed),
            },
        };
        let Some((delivery, from)) = delivery else {
            consumers.cancel().await;
            return Ok(());
        };
        // P4: for the last slot the consumers are cancelled before anything is acked, which would fetch the next
        // job; a surplus delivery goes back with them.
        let Ok(another) = Arc::clone(&context.slots).try_acquire_owned() else {
            context.jobs.spawn(take(Arc::clone(context), delivery, slot, consumers.cancel()));
            return Ok(());
        };
        let free = context.slots.available_permits() + 1;
        let surplus = consumers.fit(context, from, free);
        let cancelled = async {
            if let Some(consumer) = surplus {
                consumer.cancel().await;
            }
        };
        context.jobs.spawn(take(Arc::clone(context), delivery, slot, cancelled));
        slot = another;
    }
}

/// The worker's own queues, and the pool's, which may have several consumers each.
struct Consumers {
    /// Looked at in this order: what waits in the worker's own queue can go nowhere else.
    own: Vec<Consumer>,
    pool: Vec<Consumer>,
    /// One more for the pool is on its way.
    opening: Option<BoxFuture<'static, Result<Consumer, BrokerError>>>,
}

/// Which consumer a delivery came by.
#[derive(Clone, Copy, Debug)]
enum From {
    Own,
    Pool(usize),
}

impl Consumers {
    async fn open<B: Broker, E: Engine>(context: &Arc<Context<B, E>>) -> Result<Self, BrokerError> {
        let shards = || (0..Shard::COUNT).map(Shard);
        let own: Vec<Queue> = shards().map(|shard| context.topology.worker_jobs(shard, &context.id)).collect();
        let free = context.slots.available_permits() + 1;
        let pool: Vec<Queue> = (0..free.min(POOL_CONSUMERS_MAX)).map(|n| pool_queue(context, n)).collect();
        let all = async |queues: &[Queue]| {
            try_join_all(queues.iter().map(|queue| context.broker.consume(queue, PREFETCH))).await
        };
        let (own, pool) = tokio::try_join!(all(&own), all(&pool))?;
        Ok(Self { own, pool, opening: None })
    }

    /// The next delivery of any, the earlier consumers first. `None` after the broker was closed.
    async fn next(&mut self) -> Result<Option<(Delivery, From)>, BrokerError> {
        loop {
            let Self { own, pool, opening } = self;
            let of_own = own.iter_mut().map(|consumer| (consumer, From::Own));
            let of_pool = pool.iter_mut().enumerate().map(|(n, consumer)| (consumer, From::Pool(n)));
            let next = of_own
                .chain(of_pool)
                .map(|(consumer, from)| async move { consumer.next().await.map(|delivery| (delivery, from)) }.boxed());
            let opened = async {
                match opening {
                    Some(opening) => opening.await,
                    None => std::future::pending().await,
                }
            };
            let consumer = tokio::select! {
                biased;
                (delivery, ..) = select_all(next) => return Ok(delivery),
                consumer = opened => consumer,
            };
            self.opening = None;
            self.pool.push(consumer?);
        }
    }

    /// Keeps as many for the pool as slots are free: answers the one that just delivered, if it is one too many.
    fn fit<B: Broker, E: Engine>(
        &mut self,
        context: &Arc<Context<B, E>>,
        delivered: From,
        free: usize,
    ) -> Option<Consumer> {
        let wanted = free.min(POOL_CONSUMERS_MAX);
        if self.pool.len() < wanted && self.opening.is_none() {
            let (context, queue) = (Arc::clone(context), pool_queue(context, self.pool.len()));
            self.opening = Some(async move { context.broker.consume(&queue, PREFETCH).await }.boxed());
        }
        match delivered {
            From::Pool(n) if self.pool.len() > wanted => Some(self.pool.remove(n)),
            From::Pool(_) | From::Own => None,
        }
    }

    /// Ends all of them, and waits until the broker has said so.
    async fn cancel(self) {
        let Self { own, pool, opening } = self;
        // Dropped, it gives back what it may have been given.
        drop(opening);
        join_all(own.into_iter().chain(pool).map(Consumer::cancel)).await;
    }
}

/// The queue of the pool's `n`-th consumer: the shards in turn.
fn pool_queue<B: Broker, E: Engine>(context: &Context<B, E>, n: usize) -> Queue {
    let shard = u16::try_from(n % usize::from(Shard::COUNT)).unwrap_or_default();
    context.topology.pool_jobs(Shard(shard), &context.config.pool)
}

/// Claims a job and carries it out. P4: before its delivery is acked, the consumers that have to go are `cancelled`.
async fn take<B: Broker, E: Engine>(
    context: Arc<Context<B, E>>,
    delivery: Delivery,
    slot: OwnedSemaphorePermit,
    cancelled: impl Future<Output = ()> + Send,
) {
    let delivered = Instant::now();
    let (claimed, ()) = tokio::join!(claim(&context, &delivery), cancelled);
    let (job, attempt) = match claimed {
        Claimed::Accepted(job, attempt) => {
            // Where it fails, the job comes to somebody else too, who is told to abandon it (P5).
            acked(delivery.ack().await);
            (job, attempt)
        }
        // Dropped with its connection, the job goes back.
        Claimed::Unheard(job, attempt) => (job, attempt),
        Claimed::Duplicate => return acked(delivery.ack().await),
        Claimed::Unreadable(reason) => {
            if let Err(error) = dead_letter(&context.broker, &context.topology, delivery, &reason).await {
                tracing::warn!(%error, "an unreadable job could not be moved to the dead letters; it comes again");
            }
            return;
        }
        Claimed::Failed => {
            let _ = context.phases.stopping.run_until_cancelled(tokio::time::sleep(AFTER_FAILURE)).await;
            return acked(delivery.give_back().await);
        }
    };
    tracing::info!(step = %job.step, attempt = %context.fence(&attempt.claim), "claimed");
    context.pumps.spawn(pump::run(Arc::clone(&context), attempt.clone()));
    carry_out(context, *job, attempt, Entrance::Prepare, None, delivered, Some(slot)).await;
}

enum Claimed {
    /// Its `accepted` was confirmed.
    Accepted(Box<Job>, Handle),
    /// It was not, and the worker stops. The coordinator may believe that it was, so its end is told as well.
    Unheard(Box<Job>, Handle),
    Duplicate,
    /// P1
    Unreadable(wire::Unreadable),
    Failed,
}

/// Record on disk → `accepted` confirmed (P4).
async fn claim<B: Broker, E: Engine>(context: &Context<B, E>, delivery: &Delivery) -> Claimed {
    let count = |result| metrics::counter!(CLAIMS, "result" => result).increment(1);
    let job: Box<Job> = match wire::decode(&delivery.body) {
        Ok(job) => Box::new(job),
        Err(reason) => {
            count("unreadable");
            return Claimed::Unreadable(reason);
        }
    };
    let claim = claim_of(&job);
    let left = context.parked.has(AttemptKey::of(&claim));
    // What it left may be parked, or a child may run in its container: it was carried out, and is long settled.
    if left || context.tidying.is_used(&ContainerName::of(&context.fence(&claim))) {
        count("duplicate");
        return Claimed::Duplicate;
    }
    let attempt = match context.attempts.claim(&job).await {
        Ok(Some(attempt)) => attempt,
        Ok(None) => {
            count("duplicate");
            return Claimed::Duplicate;
        }
        Err(error) => {
            count("failed");
            tracing::error!(%error, "a job is given back: its record could not be written");
            return Claimed::Failed;
        }
    };
    if context.phases.stopping.is_cancelled() {
        // It came into the table behind those that were told.
        let _ = context.attempts.stop(attempt.key, StopReason::Shutdown);
    }
    attempt.leased.send_modify(|leased| leased.ask(Boot::now())); // P18: before it is sent
    let accepted = context.reporter.send(Event::Accepted(claim_of(&job))).await;
    if breach::is(Breach::AckedBeforeAccepted) {
        return Claimed::Accepted(job, attempt);
    }
    tokio::select! {
        biased;
        Ok(()) = accepted => {
            count("accepted");
            Claimed::Accepted(job, attempt)
        }
        () = context.phases.stopping.cancelled() => Claimed::Unheard(job, attempt),
    }
}

fn acked(answer: Result<(), BrokerError>) {
    if let Err(error) = answer {
        tracing::info!(%error, "the broker did not hear of a delivery's end; it comes again");
    }
}
