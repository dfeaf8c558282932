//! The contract of [`Broker`], and what its tests need.

pub mod consuming;
mod outage;
mod proxy;
pub mod publishing;
pub mod queues;

use std::sync::Mutex;
use std::time::Duration;

use longshore_protocol::broker::amqp::AmqpBroker;
use longshore_protocol::broker::memory::MemoryBroker;
use longshore_protocol::broker::{Broker, Consumer, Delivery, Outgoing};
use longshore_protocol::topology::{Queue, Topology};
use longshore_protocol::{PoolName, RunId, Shard};

/// For a whole test. Only a promise that is not kept ever takes as long.
const TEST_TIMEOUT: Duration = Duration::from_mins(1);

/// Long enough that a heartbeat which a test wants to see does not expire under it.
pub const LEASE: Duration = Duration::from_secs(30);

/// A broker of which there can be another connection.
pub trait Site: Broker {
    fn another(&self) -> Self;
}

impl Site for MemoryBroker {
    fn another(&self) -> Self {
        MemoryBroker::another(self)
    }
}

impl Site for AmqpBroker {
    fn another(&self) -> Self {
        amqp_broker()
    }
}

pub fn amqp_uri() -> String {
    crate::services::env("LONGSHORE_TEST_AMQP")
}

pub fn amqp_broker() -> AmqpBroker {
    AmqpBroker::new(&amqp_uri(), "contract").unwrap()
}

/// One test's place: a broker, and queues that are nobody else's.
pub struct Place<B> {
    pub broker: B,
    pub topology: Topology,
    queues: Mutex<Vec<Queue>>,
}

impl<B: Broker> Place<B> {
    pub fn new(broker: B) -> Self {
        let topology = Topology::new(format!("contract-{}", RunId::new()), LEASE);
        Self { broker, topology, queues: Mutex::default() }
    }

    /// Declares it, and remembers to delete it.
    pub async fn declare(&self, queue: Queue) -> Queue {
        self.queues.lock().unwrap().push(queue.clone());
        self.broker.declare(std::slice::from_ref(&queue)).await.unwrap();
        queue
    }

    pub async fn events(&self) -> Queue {
        self.declare(self.topology.events(Shard(0))).await
    }

    pub async fn jobs(&self) -> Queue {
        self.declare(self.topology.pool_jobs(Shard(0), &PoolName::default())).await
    }

    pub async fn dead_letters(&self) -> Queue {
        self.declare(self.topology.dead_letters()).await
    }

    /// One message for each body, published and confirmed.
    pub async fn publish(&self, queue: &Queue, bodies: &[&str]) {
        self.broker.publish(messages(queue, bodies)).await.unwrap();
    }

    /// Waits until so many wait. The broker tells nobody of a change, so it is asked.
    pub async fn until_waiting(&self, queue: &Queue, count: u32) {
        while self.broker.waiting(queue).await.unwrap() != count {
            tokio::task::yield_now().await;
        }
    }

    /// Removes what the test left.
    pub async fn clear(&self) {
        let queues = self.queues.lock().unwrap().split_off(0);
        for queue in queues {
            self.broker.delete(&queue).await.unwrap();
        }
    }
}

/// Runs one test of the contract.
pub async fn run<B: Site, T: AsyncFnOnce(&Place<B>)>(broker: B, test: T) {
    let place = Place::new(broker.another());
    let whole = async {
        test(&place).await;
        // The test may have closed its own.
        let cleaner = Place { broker, topology: place.topology.clone(), queues: Mutex::default() };
        *cleaner.queues.lock().unwrap() = place.queues.lock().unwrap().split_off(0);
        cleaner.clear().await;
        place.broker.close().await;
        cleaner.broker.close().await;
    };
    within(whole).await;
}

/// A test that waits for what does not come fails, and does not hang.
pub async fn within(test: impl Future<Output = ()>) {
    tokio::time::timeout(TEST_TIMEOUT, test).await.expect("the broker owes an event");
}

pub fn messages(queue: &Queue, bodies: &[&str]) -> Vec<Outgoing> {
    bodies.iter().map(|body| Outgoing::new(queue.address(), body.as_bytes().to_vec())).collect()
}

pub fn text(delivery: &Delivery) -> &str {
    std::str::from_utf8(&delivery.body).unwrap()
}

/// The next delivery's body, acked.
pub async fn take(consumer: &mut Consumer) -> String {
    let delivery = consumer.next().await.unwrap();
    let body = text(&delivery).to_owned();
    delivery.ack().await.unwrap();
    body
}
