//! Events: numbered, published in order on one channel, sent again in order until they are confirmed (P9).
//!
//! One task does all of it. What must survive is on disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use longshore_protocol::broker::{Broker, Outgoing, PublishError};
use longshore_protocol::event::{Event, EventMessage};
use longshore_protocol::{Shard, wire};
use tokio::sync::{mpsc, oneshot};

use crate::context::Context;
use crate::disk::records::Records;
use crate::engine::Engine;

/// Batches grow with the broker's latency, up to this many: a batch of large `records` still stays below some MiB.
const BATCH_MAX: usize = 32;

/// How long a `started` waits for company. A short command has ended by then, and both are one publish, one confirm and
/// one transaction; behind a `started` that is being confirmed, `finished` would wait, and the next step with it.
const LINGER: Duration = Duration::from_millis(10);

/// The broker's own backoff paces reconnection; this only keeps a failing publish from spinning.
const RESEND_WAIT_FIRST: Duration = Duration::from_millis(50);
const RESEND_WAIT_MAX: Duration = Duration::from_secs(3);

enum News {
    Event(Box<Event>),
    /// All records as they are when the number is given: so they show whatever has a smaller one (P9).
    Records,
}

struct Report {
    news: News,
    confirmed: oneshot::Sender<()>,
}

impl Report {
    /// Nothing follows from a `started`: it is shown.
    fn can_linger(&self) -> bool {
        matches!(&self.news, News::Event(event) if matches!(**event, Event::Started(_)))
    }
}

/// Hands events to the task that sends them.
#[derive(Clone, Debug)]
pub(crate) struct Reporter {
    reports: mpsc::Sender<Report>,
    shared: Arc<Shared>,
}

/// The other end.
pub(crate) struct Reports {
    receiver: mpsc::Receiver<Report>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The number of the last event that was handed to the broker.
    sent: AtomicU64,
    /// Records are queued and have no number yet: they answer every sync until then.
    records_queued: AtomicBool,
}

/// Becomes ready when the event was confirmed, or will never be because the worker ended.
pub(crate) type Confirmation = oneshot::Receiver<()>;

/// A queue for a worker with so many slots, which has taken over these attempts.
pub(crate) fn queue(slots: u32, left: &Records) -> (Reporter, Reports) {
    // INVARIANT: nobody waits for room, or a worker whose broker takes nothing could not even be stopped. `hello`,
    // what it resends, and records once; and of each slot, and of each adopted attempt that found none: `started` and
    // `finished` of an attempt, and of the next one its `accepted` and, if the worker is stopped meanwhile, its end.
    // More does not come of a slot: when the next one's `accepted` is confirmed, all before it have left.
    let at_once = slots as usize + left.open().count();
    let (sender, receiver) = mpsc::channel(1 + left.over().count() + 1 + 4 * at_once);
    let shared = Arc::default();
    (Reporter { reports: sender, shared: Arc::clone(&shared) }, Reports { receiver, shared })
}

impl Reporter {
    /// Queues an event behind the ones before it.
    pub(crate) async fn send(&self, event: Event) -> Confirmation {
        self.queue(News::Event(Box::new(event))).await
    }

    /// Queues the answer to a sync, unless one is queued already.
    pub(crate) async fn records(&self) {
        if !self.shared.records_queued.swap(true, Ordering::AcqRel) {
            drop(self.queue(News::Records).await);
        }
    }

    async fn queue(&self, news: News) -> Confirmation {
        let (confirmed, confirmation) = oneshot::channel();
        // It fails when the worker has ended: then the confirmation says so.
        let _ = self.reports.send(Report { news, confirmed }).await;
        confirmation
    }

    /// The number of the last event that was handed to the broker (P7).
    pub(crate) fn last_sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Acquire)
    }
}

/// Sends until the worker drains, and then what is left.
pub(crate) async fn run<B: Broker, E: Engine>(context: Arc<Context<B, E>>, reports: Reports) {
    let Reports { mut receiver, shared } = reports;
    let mut batch = Vec::with_capacity(BATCH_MAX);
    loop {
        tokio::select! {
            biased;
            count = receiver.recv_many(&mut batch, BATCH_MAX) => {
                if count == 0 {
                    return;
                }
            }
            () = context.phases.draining.cancelled(), if !receiver.is_closed() => {
                receiver.close();
                continue;
            }
        }
        if batch.iter().all(Report::can_linger) {
            let mut lingered = std::pin::pin!(tokio::time::sleep(LINGER));
            while batch.len() < BATCH_MAX && batch.iter().all(Report::can_linger) {
                let room = BATCH_MAX - batch.len();
                tokio::select! {
                    biased;
                    count = receiver.recv_many(&mut batch, room) => if count == 0 { break },
                    () = context.phases.draining.cancelled() => break,
                    () = &mut lingered => break,
                }
            }
        }
        let mut messages = Vec::new();
        for Report { news, .. } in &batch {
            let number = shared.sent.load(Ordering::Relaxed) + 1;
            if matches!(news, News::Records) {
                // Before they are looked at: a sync from now on is answered by the next ones.
                shared.records_queued.store(false, Ordering::Release);
            }
            // P9: in one body they keep their order as well.
            message(&context, number, news).join(&mut messages);
            shared.sent.store(number, Ordering::Release);
        }
        if !until_confirmed(&context, messages, "events").await {
            return;
        }
        for Report { confirmed, .. } in batch.drain(..) {
            // Most do not wait for it.
            let _ = confirmed.send(());
        }
    }
}

fn message<B: Broker, E: Engine>(context: &Context<B, E>, number: u64, news: &News) -> Outgoing {
    let event = match news {
        News::Event(event) => (**event).clone(),
        News::Records => Event::Records { records: context.attempts.records() },
    };
    let shard = shard_of(&event);
    let message = EventMessage { worker: context.id.clone(), incarnation: context.incarnation, number, event };
    Outgoing::new(context.topology.events(shard).address(), wire::encode(&message))
}

/// What concerns the whole worker goes to the one shard that there is; a second shard asks for numbers of its own.
fn shard_of(event: &Event) -> Shard {
    const { assert!(Shard::COUNT == 1) };
    match event {
        Event::Accepted(claim) => claim.shard(),
        Event::Started(started) => started.claim.shard(),
        Event::Finished(finished) => finished.claim.shard(),
        Event::Hello(_) | Event::Records { .. } => Shard(0),
    }
}

/// Publishes a batch again and again, in order, until all of it is confirmed. `false` if the worker ended before.
pub(crate) async fn until_confirmed<B: Broker, E: Engine>(
    context: &Context<B, E>,
    messages: Vec<Outgoing>,
    what: &'static str,
) -> bool {
    let mut wait = RESEND_WAIT_FIRST;
    loop {
        let published = tokio::select! {
            biased;
            published = context.broker.publish(messages.clone()) => published,
            () = context.phases.stopped.cancelled() => return false,
        };
        let Err(error) = published else { return true };
        tracing::info!(%error, what, "not confirmed, sent again");
        if matches!(error, PublishError::Returned { .. }) {
            // Somebody deleted the queue. Whatever is declared again here fails at the next try, if it does.
            let queues = context.topology.of_worker(&context.id, &context.config.pool);
            if let Err(error) = context.broker.declare(&queues).await {
                tracing::warn!(%error, "the queues could not be declared again");
            }
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep(wait) => {}
            () = context.phases.stopped.cancelled() => return false,
        }
        wait = (wait * 2).min(RESEND_WAIT_MAX);
    }
}
