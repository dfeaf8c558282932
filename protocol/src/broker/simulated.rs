//! What a broker from outside this crate hands out: the simulator's, whose code nothing that is shipped has.

use std::collections::BTreeMap;
use std::fmt::Debug;

use futures_util::future::BoxFuture;

use super::{Acker, BrokerError, Consumer, ConsumerKind, Delivery};

/// Behind a [`Consumer`], whose contract it keeps.
pub trait Deliveries: Debug + Send + Sync {
    /// As [`Consumer::next`].
    fn next(&mut self) -> BoxFuture<'_, Option<Delivery>>;

    /// As [`Consumer::cancel`].
    fn cancel(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// Behind a [`Delivery`], whose contract it keeps.
pub trait Answer: Debug + Send + Sync {
    /// As [`Delivery::ack`].
    fn ack(self: Box<Self>) -> BoxFuture<'static, Result<(), BrokerError>>;

    /// As [`Delivery::give_back`].
    fn give_back(self: Box<Self>) -> BoxFuture<'static, Result<(), BrokerError>>;
}

impl Consumer {
    /// Of a broker from outside.
    pub fn simulated(deliveries: Box<dyn Deliveries>) -> Self {
        Self(ConsumerKind::Simulated(deliveries))
    }
}

impl Delivery {
    /// Of a broker from outside.
    pub fn simulated(
        queue: &str,
        body: Vec<u8>,
        headers: BTreeMap<String, String>,
        redelivered: bool,
        answer: Box<dyn Answer>,
    ) -> Self {
        Self { body, headers, redelivered, queue: queue.into(), acker: Acker::Simulated(answer) }
    }
}
