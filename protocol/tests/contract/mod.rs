//! The contract of [`Broker`], and what its tests need. RabbitMQ, memory and the simulated one keep the same.

pub mod consuming;
pub mod publishing;
pub mod queues;

use std::sync::Mutex;
use std::time::Duration;

use longshore_protocol::broker::{Broker, Consumer, Delivery, Outgoing};
use longshore_protocol::topology::{Queue, Topology};
use longshore_protocol::{PoolName, RunId, Shard};

/// For a whole test. Only a promise that is not kept ever takes as long.
const TEST_TIMEOUT: Duration = Duration::from_mins(2);

/// Long enough that a heartbeat which a test wants to see does not expire under it.
pub const LEASE: Duration = Duration::from_secs(30);

/// A broker of which there can be another connection.
pub trait Site: Broker {
    fn another(&self) -> Self;
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

    /// Waits until so many messages are in it that nobody has. RabbitMQ says 0 where it does not hear from a quorum queue
    /// within 250 ms (`rabbit_quorum_queue:stat`), so that is believed when it is said again after longer than that.
    pub async fn until_waiting(&self, queue: &Queue, count: u32) {
        loop {
            while self.broker.waiting(queue).await.unwrap() != count {
                tokio::task::yield_now().await;
            }
            if count > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
            if self.broker.waiting(queue).await.unwrap() == count {
                return;
            }
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

/// Hands every promise to a macro, which makes tests of them.
macro_rules! every_promise {
    ($make:ident) => {
        $make! {
            publishing:
                p2_what_is_confirmed_is_there,
                p2_what_was_returned_is_not_published,
                p2_an_exchange_that_does_not_exist_is_an_address_at_which_nobody_is,
                p2_batches_at_once_do_not_take_each_others_returns,
                p9_a_batch_keeps_its_order,
                p1_bytes_and_headers_arrive_as_they_were,
                an_empty_batch_is_published;
            consuming:
                p4_prefetch_bounds_what_is_unacknowledged,
                p4_cancel_gives_back_what_nobody_took,
                p4_a_delivery_outlives_its_consumer,
                given_back_comes_again_marked,
                what_was_not_acked_comes_back_when_the_connection_ends,
                what_was_dropped_without_a_word_comes_back_when_the_consumer_ends,
                two_consumers_share,
                next_may_be_dropped_while_it_waits,
                p4_a_consumer_that_was_given_up_while_it_was_made_holds_nothing,
                after_close_everything_says_so;
            queues:
                p1_garbage_is_dead_lettered_and_the_consumer_goes_on,
                p1_garbage_is_dead_lettered_however_much_of_it_there_is,
                p1_garbage_is_dead_lettered_though_somebody_deleted_the_dead_letters,
                a_job_that_was_returned_too_often_is_dead_lettered,
                results_are_returned_without_limit,
                p7_heartbeats_expire_and_are_not_dead_lettered,
                p6_waiting_counts_what_nobody_has,
                declaring_twice_and_at_once_is_declaring_once,
                what_was_declared_otherwise_is_refused_with_the_mend,
                a_deleted_queue_takes_nothing_more,
                a_queue_that_somebody_else_deleted_comes_back;
        }
    };
}
pub(crate) use every_promise;
