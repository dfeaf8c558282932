//! How messages travel: AMQP for a fleet, memory for one process. Both pass `protocol/tests/broker_contract.rs`.

pub mod amqp;
mod dead_letter;
pub mod memory;
#[cfg(feature = "simulated")]
pub mod simulated;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

pub use dead_letter::{DEAD_LETTERS_METRIC, QUEUE_HEADER, REASON_HEADER, dead_letter};

use crate::topology::{Address, Queue};
use crate::wire;

/// A message on its way out. Always persistent and mandatory (P2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Where to.
    pub to: Address,
    /// As [`wire::encode`](crate::wire::encode) made it.
    pub body: Vec<u8>,
    /// Short strings for whoever looks at the queue: the reason of a dead letter, say.
    pub headers: BTreeMap<String, String>,
}

impl Outgoing {
    /// A message without headers.
    pub fn new(to: Address, body: Vec<u8>) -> Self {
        Self { to, body, headers: BTreeMap::new() }
    }

    /// Puts a message behind others, into the last body that goes to the same place if there is room: for receivers who
    /// [read all](crate::wire::decode_all). The order of what goes to one place stays as it is.
    pub fn join(self, messages: &mut Vec<Self>) {
        let before = messages.iter_mut().rev().find(|before| before.to == self.to);
        if !before.is_some_and(|before| wire::share(&mut before.body, &self.body)) {
            messages.push(self);
        }
    }
}

/// Moves bytes between processes.
///
/// An implementation reconnects by itself, for ever, with a backoff capped at 3 s, and declares
/// again what was declared and consumes again what was consumed. Callers see a lost connection
/// only as a publish that failed or an ack that no longer counts.
pub trait Broker: Clone + Send + Sync + 'static {
    /// Makes queues exist, with their exchanges and bindings. Any number of times, by anyone, at once.
    /// Waits for the connection if there is none yet.
    fn declare(&self, queues: &[Queue]) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// Publishes in order, on one channel, without waiting between. `Ok` means that every one was
    /// confirmed *and not returned* (P2). On an error any of them may have arrived: whoever needs
    /// them there sends all of them again (receivers tell repeats by number, offset or fence).
    /// Waits for the connection if there is none yet; dropped while it waits, it leaves the same doubt as an error.
    fn publish(&self, messages: Vec<Outgoing>) -> impl Future<Output = Result<(), PublishError>> + Send;

    /// Makes the queue exist and receives from it, at most `prefetch` (at least 1) unacknowledged.
    /// Waits for the connection if there is none yet.
    fn consume(&self, queue: &Queue, prefetch: u16) -> impl Future<Output = Result<Consumer, BrokerError>> + Send;

    /// How many messages wait in a queue, those not counted that were delivered and not yet acked (P6).
    /// None in a queue that does not exist.
    fn waiting(&self, queue: &Queue) -> impl Future<Output = Result<u32, BrokerError>> + Send;

    /// Ends a queue and what is in it: a worker that is gone for good. The consumers that this broker
    /// has of it end; others declare it again, because they want it. One that does not exist is no error.
    fn delete(&self, queue: &Queue) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// Whether there is a connection at this moment: for health pages.
    fn connected(&self) -> bool;

    /// Lets go of the connections; what was delivered and not acked is delivered to somebody again.
    fn close(&self) -> impl Future<Output = ()> + Send;
}

/// Deliveries of one queue, in order.
///
/// Dropping it cancels without waiting: what was not taken by [`next`](Self::next) goes back, and
/// what was taken can still be acked.
#[derive(Debug)]
pub struct Consumer(ConsumerKind);

#[derive(Debug)]
enum ConsumerKind {
    Amqp(amqp::AmqpConsumer),
    Memory(memory::MemoryConsumer),
    #[cfg(feature = "simulated")]
    Simulated(Box<dyn simulated::Deliveries>),
}

impl Consumer {
    /// The next delivery; waits through lost connections, and may be dropped while it waits. `None`
    /// only after the broker was closed, or the queue deleted by this broker.
    pub async fn next(&mut self) -> Option<Delivery> {
        match &mut self.0 {
            ConsumerKind::Amqp(consumer) => consumer.next().await,
            ConsumerKind::Memory(consumer) => consumer.next().await,
            #[cfg(feature = "simulated")]
            ConsumerKind::Simulated(consumer) => consumer.next().await,
        }
    }

    /// Stops deliveries and waits until the broker has said so (`cancel-ok`, P4). What had been
    /// delivered and not been taken by [`next`](Self::next) goes back to the queue; what was taken
    /// can still be acked.
    pub async fn cancel(self) {
        match self.0 {
            ConsumerKind::Amqp(consumer) => consumer.cancel().await,
            ConsumerKind::Memory(consumer) => consumer.cancel(),
            #[cfg(feature = "simulated")]
            ConsumerKind::Simulated(consumer) => consumer.cancel().await,
        }
    }
}

/// One message that arrived. Dropped without a word it stays unacknowledged until the connection
/// ends, or its consumer has ended and nothing else that it delivered is still held.
#[derive(Debug)]
pub struct Delivery {
    /// As it was published.
    pub body: Vec<u8>,
    /// As they were published.
    pub headers: BTreeMap<String, String>,
    /// Whether the broker may have delivered it before.
    pub redelivered: bool,
    /// Out of which queue.
    queue: Arc<str>,
    acker: Acker,
}

#[derive(Debug)]
enum Acker {
    Amqp(amqp::AmqpAcker),
    Memory(memory::MemoryAcker),
    #[cfg(feature = "simulated")]
    Simulated(Box<dyn simulated::Answer>),
}

impl Delivery {
    /// The name of the queue it came out of.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// It is taken care of. On an error the connection it came by is gone: it will be delivered again.
    pub async fn ack(self) -> Result<(), BrokerError> {
        match self.acker {
            Acker::Amqp(acker) => acker.ack().await,
            Acker::Memory(acker) => acker.ack(),
            #[cfg(feature = "simulated")]
            Acker::Simulated(acker) => acker.ack().await,
        }
    }

    /// Gives it back to the queue, for whoever is next. Costs it one of its deliveries: a queue with a
    /// limit of n gives it out n + 1 times and then dead-letters it.
    pub async fn give_back(self) -> Result<(), BrokerError> {
        match self.acker {
            Acker::Amqp(acker) => acker.give_back().await,
            Acker::Memory(acker) => acker.give_back(),
            #[cfg(feature = "simulated")]
            Acker::Simulated(acker) => acker.give_back().await,
        }
    }
}

/// What the broker could not do.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Does not work like this: a wrong address, refused credentials, a queue declared otherwise.
    #[error("the broker refuses: {reason}")]
    Refused {
        /// In the broker's words.
        reason: String,
    },
    /// The connection went away under it. Worth another try.
    #[error("the connection to the broker was lost: {reason}")]
    Lost {
        /// In the client's words.
        reason: String,
    },
    /// [`Broker::close`] was called.
    #[error("the connection to the broker was closed")]
    Closed,
}

impl BrokerError {
    /// Only what went wrong: for whoever says in their own words what does not work.
    pub fn reason(&self) -> &str {
        match self {
            Self::Refused { reason } | Self::Lost { reason } => reason,
            Self::Closed => "it was closed",
        }
    }
}

/// Why a batch does not count as published (P2).
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// No queue is bound where this one was sent: the addressee does not exist.
    #[error("nobody is bound to {address:?}: message {index} of the batch was returned")]
    Returned {
        /// Of the first such message in the batch.
        index: usize,
        /// Where it was sent.
        address: Address,
    },
    /// The broker said no (a full queue, say) to this one.
    #[error("the broker rejected message {index} of the batch")]
    Rejected {
        /// Of the first such message in the batch.
        index: usize,
    },
    /// Not confirmed before the connection went away.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// A queue of that name exists and promises something else.
fn declared_otherwise(queue: &str, how: &str) -> BrokerError {
    BrokerError::Refused {
        reason: format!(
            "queue {queue} exists and was declared otherwise ({how}); \
             delete it when it is empty, or give this fleet another prefix"
        ),
    }
}
