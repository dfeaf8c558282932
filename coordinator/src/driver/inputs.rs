//! What the one writer is given, and how it gathers a batch of it.

use futures_util::FutureExt;
use longshore_protocol::broker::{Broker, BrokerError, Consumer, Delivery};
use longshore_protocol::event::Claim;
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::topology::Topology;
use longshore_protocol::{ExecutionId, RunId, Shard};
use tokio::sync::{mpsc, oneshot};

use crate::core::NotRetried;
use crate::core::effect::JobQueue;
use crate::core::present::Present;
use crate::core::retry::Missed;
use crate::logs::seal::{ChunkError, Sealed};
use crate::pipeline::{Pipeline, STEPS_MAX};
use crate::store::batch::{ChunkRow, OutboxAbout};

/// Requests wait in line for the next transaction, some milliseconds; beyond so many, callers wait
/// to get into the line.
pub(crate) const COMMANDS: usize = 64;

/// The tasks around the writer wait for it likewise. A batch of the outbox is reported at once.
pub(super) const INTERNALS: usize = 256;

/// Unacknowledged bodies of events. A worker has one on its way at a time, of 32 events at most: 2,000 events are a
/// transaction of some 300 ms, a tenth of what an epoch lapses after (P21).
const PREFETCH_EVENTS: u16 = 64;

/// Unacknowledged heartbeats: as many as gather while a transaction's fsync takes 100 ms in a fleet of a thousand
/// workers. They are small.
const PREFETCH: u16 = 256;

/// Unacknowledged output messages, of 256 KiB each: 3 MiB. A transaction of so much takes some 30 ms, most of which is
/// its bytes. While it runs they are in memory as runs, as rows and in the database's own hands, and as many again have
/// arrived: with 8 MiB a coordinator on a busy disk came to 88 MiB.
const PREFETCH_OUTPUT: u16 = 12;

/// What a client asks for. The answer comes when it is committed; without one, the reign has ended.
#[derive(Debug)]
pub(crate) enum Command {
    /// Take a run.
    Submit { run: RunId, tenant: String, pipeline: Box<Pipeline>, pipeline_hash: String, reply: oneshot::Sender<Taken> },
    /// End a run.
    Cancel { run: RunId, by: CancelledBy, reply: oneshot::Sender<()> },
    /// Say what is known of a step beyond the journal.
    Present { run: RunId, execution: ExecutionId, reply: oneshot::Sender<Option<Present>> },
    /// Open a settled run again.
    Retry { run: RunId, only: Vec<Missed>, reply: oneshot::Sender<Result<(), NotRetried>> },
    /// End some steps of a run.
    CancelSteps { run: RunId, steps: Vec<ExecutionId>, reply: oneshot::Sender<()> },
}

impl Command {
    /// Whether nobody waits for the answer any more.
    pub(super) fn is_unheard(&self) -> bool {
        match self {
            Self::Submit { reply, .. } => reply.is_closed(),
            Self::Cancel { reply, .. } | Self::CancelSteps { reply, .. } => reply.is_closed(),
            Self::Present { reply, .. } => reply.is_closed(),
            Self::Retry { reply, .. } => reply.is_closed(),
        }
    }

    /// How many steps it brings; at least 1, so that a count of them bounds a batch.
    pub(super) fn steps(&self) -> usize {
        match self {
            Self::Submit { pipeline, .. } => pipeline.steps.len().max(1),
            Self::Cancel { .. } | Self::Present { .. } => 1,
            // It is not known here; and a run may be as large as any.
            Self::Retry { .. } => STEPS_MAX,
            Self::CancelSteps { steps, .. } => steps.len().max(1),
        }
    }
}

/// What became of a submit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is a new run.
    New,
    /// The id was known.
    Known,
}

/// What the tasks around the writer report.
#[derive(Debug)]
pub(super) enum Internal {
    /// A message of the outbox was confirmed.
    Confirmed { id: i64, about: OutboxAbout },
    /// A message of the outbox was returned: nobody has that queue.
    Returned { id: i64, about: OutboxAbout },
    /// A job queue was looked at, when so many jobs had been dispatched to it.
    Waiting { queue: JobQueue, dispatched: u64, messages: u32 },
    /// A log's open end was sealed, or not.
    Sealed { claim: Claim, chunks: Result<Vec<(ChunkRow, Sealed)>, ChunkError> },
}

/// Where a delivery came from: what it should hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Events,
    Heartbeats,
    Output,
}

/// One input.
#[derive(Debug)]
pub(super) enum Arrival {
    Command(Command),
    Internal(Internal),
    Delivery(Source, Delivery),
    /// Time went by.
    Clock,
    /// The epoch's row is to be touched (P21).
    Renew,
}

/// The three queues, once the broker is there.
pub(super) struct Intake {
    arriving: mpsc::Receiver<[Consumer; 3]>,
    consumers: Option<[Consumer; 3]>,
}

impl Intake {
    /// Consumers are handed in when the broker is there: until then runs can be submitted and shown.
    pub(super) fn new(arriving: mpsc::Receiver<[Consumer; 3]>) -> Self {
        Self { arriving, consumers: None }
    }

    /// The next delivery: events before heartbeats before output. May be dropped while it waits.
    pub(super) async fn next(&mut self) -> (Source, Delivery) {
        if self.consumers.is_none() {
            self.consumers = self.arriving.recv().await;
        }
        // Without consumers the reign is ending: its token is what ends the wait.
        let Some([events, heartbeats, output]) = &mut self.consumers else { return std::future::pending().await };
        tokio::select! {
            biased;
            Some(delivery) = events.next() => (Source::Events, delivery),
            Some(delivery) = heartbeats.next() => (Source::Heartbeats, delivery),
            Some(delivery) = output.next() => (Source::Output, delivery),
            // All of them have ended: the broker was closed, and this process is about to end.
            else => std::future::pending().await,
        }
    }

    /// What is there already, of each queue no more than it may have unacknowledged: none starves another.
    pub(super) fn drain(&mut self, into: &mut Vec<Arrival>) {
        let Some([events, heartbeats, output]) = &mut self.consumers else { return };
        for (source, consumer, most) in [
            (Source::Events, events, PREFETCH_EVENTS),
            (Source::Heartbeats, heartbeats, PREFETCH),
            (Source::Output, output, PREFETCH_OUTPUT),
        ] {
            for _ in 0..most {
                let Some(Some(delivery)) = consumer.next().now_or_never() else { break };
                into.push(Arrival::Delivery(source, delivery));
            }
        }
    }
}

/// Declares the coordinator's queues and consumes them, when the broker is there and lets us. What is
/// sent to them before has no exchange yet, which costs the sender its channel.
pub(super) async fn consume<B: Broker>(
    broker: B,
    topology: Topology,
    shard: Shard,
    backoff: std::time::Duration,
    ready: &mpsc::Sender<[Consumer; 3]>,
) {
    loop {
        let consuming = async {
            broker.declare(&topology.of_coordinator(shard)).await?;
            let events = broker.consume(&topology.events(shard), PREFETCH_EVENTS).await?;
            let heartbeats = broker.consume(&topology.heartbeats(shard), PREFETCH).await?;
            let output = broker.consume(&topology.output(shard), PREFETCH_OUTPUT).await?;
            Ok::<_, BrokerError>([events, heartbeats, output])
        };
        match consuming.await {
            Ok(consumers) => return drop(ready.send(consumers).await),
            Err(error) => tracing::error!(%error, "the broker's queues cannot be consumed yet"),
        }
        tokio::time::sleep(backoff).await;
    }
}
