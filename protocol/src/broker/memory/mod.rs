//! The broker of one process: `longshore run` needs nothing else.
//!
//! The promises of RabbitMQ as far as [`Broker`] makes them, and its habits as far as anybody could
//! come to rely on them; `protocol/tests/broker_contract.rs` holds both to the same.
//! `queue` is one queue, `server` all of them behind one lock.

mod queue;
mod server;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Acker, Broker, BrokerError, Consumer, ConsumerKind, Delivery, Outgoing, PublishError};
use crate::topology::Queue;
use server::{ConsumerId, Given, ROOM_TIMEOUT, Server, Taken};

/// How many bytes a queue holds before whoever publishes waits. Eight steps on one machine, each
/// with the 8 MiB that P15 allows it beyond what is stored: only output ever comes near.
pub const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// All queues of one process. A clone shares the connection, [`another`](MemoryBroker::another) only the queues.
#[derive(Clone, Debug)]
pub struct MemoryBroker {
    connection: Arc<Connection>,
}

/// Ends with its last handle, as a connection does.
#[derive(Debug)]
struct Connection {
    server: Arc<Server>,
    number: u64,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.server.close(self.number);
    }
}

impl MemoryBroker {
    /// Without any queue.
    pub fn new() -> Self {
        Self::connect(Arc::new(Server::new(ROOM_TIMEOUT)))
    }

    /// Another connection to the same queues: closing one leaves the other.
    #[must_use]
    pub fn another(&self) -> Self {
        Self::connect(Arc::clone(&self.connection.server))
    }

    fn connect(server: Arc<Server>) -> Self {
        let number = server.connect();
        Self { connection: Arc::new(Connection { server, number }) }
    }
}

impl Default for MemoryBroker {
    fn default() -> Self {
        Self::new()
    }
}

impl Broker for MemoryBroker {
    async fn declare(&self, queues: &[Queue]) -> Result<(), BrokerError> {
        let Connection { server, number } = &*self.connection;
        queues.iter().try_for_each(|queue| server.declare(*number, queue))
    }

    async fn publish(&self, messages: Vec<Outgoing>) -> Result<(), PublishError> {
        let Connection { server, number } = &*self.connection;
        let mut returned = None;
        for (index, message) in messages.into_iter().enumerate() {
            match server.publish(*number, message).await? {
                Taken::Routed => {}
                // The rest still goes out: it was under way when RabbitMQ returned this one.
                Taken::Returned(address) => returned = returned.or(Some(PublishError::Returned { index, address })),
                Taken::Rejected => return Err(PublishError::Rejected { index }),
            }
        }
        returned.map_or(Ok(()), Err)
    }

    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Consumer, BrokerError> {
        let Connection { server, number } = &*self.connection;
        server.declare(*number, queue)?;
        let id = server.consume(*number, &queue.name, prefetch.max(1).into())?;
        let attachment = Arc::new(Attachment { id, connection: Arc::clone(&self.connection) });
        Ok(Consumer(ConsumerKind::Memory(MemoryConsumer { queue: queue.name.as_str().into(), attachment })))
    }

    async fn waiting(&self, queue: &Queue) -> Result<u32, BrokerError> {
        let Connection { server, number } = &*self.connection;
        server.waiting(*number, &queue.name)
    }

    async fn delete(&self, queue: &Queue) -> Result<(), BrokerError> {
        let Connection { server, number } = &*self.connection;
        server.delete(*number, &queue.name)
    }

    fn connected(&self) -> bool {
        self.connection.server.is_open(self.connection.number)
    }

    async fn close(&self) {
        self.connection.server.close(self.connection.number);
    }
}

/// What keeps a consumer's unacknowledged messages its own: the consumer itself and everything that
/// it delivered and that is still held. When the last of them goes, the rest goes back.
#[derive(Debug)]
struct Attachment {
    id: ConsumerId,
    connection: Arc<Connection>,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.connection.server.detach(self.id);
    }
}

/// One consumer of one queue.
#[derive(Debug)]
pub struct MemoryConsumer {
    queue: Arc<str>,
    attachment: Arc<Attachment>,
}

impl MemoryConsumer {
    pub(super) async fn next(&self) -> Option<Delivery> {
        let Given { tag, message, redelivered } = self.attachment.connection.server.next(self.attachment.id).await?;
        Some(Delivery {
            body: message.body.clone(),
            headers: BTreeMap::clone(&message.headers),
            redelivered,
            queue: Arc::clone(&self.queue),
            acker: Acker::Memory(MemoryAcker { tag, attachment: Arc::clone(&self.attachment) }),
        })
    }

    /// There is nobody to wait for: its drop does it at once.
    pub(super) fn cancel(self) {
        drop(self);
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        self.attachment.connection.server.cancel(self.attachment.id);
    }
}

/// Acks to the consumer's connection.
#[derive(Debug)]
pub struct MemoryAcker {
    tag: u64,
    attachment: Arc<Attachment>,
}

impl MemoryAcker {
    pub(super) fn ack(&self) -> Result<(), BrokerError> {
        self.attachment.connection.server.ack(self.attachment.id, self.tag)
    }

    pub(super) fn give_back(&self) -> Result<(), BrokerError> {
        self.attachment.connection.server.give_back(self.attachment.id, self.tag)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;
    use crate::ids::Shard;
    use crate::topology::Topology;

    /// A broker whose output queue holds as much as it may, in two messages.
    async fn full(room_timeout: Duration) -> (MemoryBroker, Topology) {
        let broker = MemoryBroker::connect(Arc::new(Server::new(room_timeout)));
        let topology = Topology::new("t", Duration::from_secs(30));
        broker.declare(&topology.of_coordinator(Shard(0))).await.unwrap();
        broker.publish(vec![half(&topology), half(&topology)]).await.unwrap();
        (broker, topology)
    }

    fn half(topology: &Topology) -> Outgoing {
        Outgoing::new(topology.output(Shard(0)).address(), vec![0; QUEUE_BYTES_MAX / 2])
    }

    #[tokio::test]
    async fn whoever_publishes_into_a_full_queue_waits_until_something_is_acked() {
        let (broker, topology) = full(Duration::MAX).await;
        let mut consumer = broker.consume(&topology.output(Shard(0)), 1).await.unwrap();
        let delivery = consumer.next().await.unwrap();
        let mut publishing = std::pin::pin!(broker.publish(vec![half(&topology)]));
        assert!(publishing.as_mut().now_or_never().is_none(), "what is delivered still counts");
        // Other queues have their own room.
        broker.publish(vec![Outgoing::new(topology.events(Shard(0)).address(), vec![0])]).await.unwrap();
        delivery.ack().await.unwrap();
        publishing.await.unwrap();
    }

    #[tokio::test]
    async fn whoever_waits_for_room_in_vain_is_rejected_rather_than_stuck() {
        let (broker, topology) = full(Duration::from_millis(10)).await;
        let answer = broker.publish(vec![half(&topology)]).await;
        assert!(matches!(answer, Err(PublishError::Rejected { index: 0 })), "{answer:?}");
    }

    #[tokio::test]
    async fn whoever_waits_for_room_hears_of_the_close() {
        let (broker, topology) = full(Duration::MAX).await;
        let mut publishing = std::pin::pin!(broker.publish(vec![half(&topology)]));
        assert!(publishing.as_mut().now_or_never().is_none());
        broker.close().await;
        assert!(matches!(publishing.await, Err(PublishError::Broker(BrokerError::Closed))));
    }

    #[tokio::test]
    async fn the_oldest_dead_letter_makes_room_for_the_newest() {
        let broker = MemoryBroker::new();
        let topology = Topology::new("t", Duration::from_secs(30));
        let letters = topology.dead_letters();
        let mut jobs = topology.pool_jobs(Shard(0), &"p".parse().unwrap());
        jobs.kind = crate::topology::QueueKind::Quorum { delivery_limit: Some(0) };
        broker.declare(&[letters.clone(), jobs.clone()]).await.unwrap();
        let mut consumer = broker.consume(&jobs, 1).await.unwrap();
        for _ in 0..3 {
            broker.publish(vec![Outgoing::new(jobs.address(), vec![0; QUEUE_BYTES_MAX / 2])]).await.unwrap();
            consumer.next().await.unwrap().give_back().await.unwrap();
        }
        assert_eq!(broker.waiting(&letters).await.unwrap(), 2);
    }
}
