//! A broker that loses or holds what a worker publishes, when the test says so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use longshore_protocol::broker::memory::MemoryBroker;
use longshore_protocol::broker::{Broker, BrokerError, Consumer, Outgoing, PublishError};
use longshore_protocol::topology::Queue;
use tokio::sync::watch;

use crate::fleet::PATIENCE;

/// What becomes of the messages for one exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Pass,
    /// They arrive, and the worker does not hear of it: so many times, then they pass.
    LoseConfirms(u32),
    /// They wait until the mode is another one.
    Hold,
}

#[derive(Clone)]
pub(crate) struct Tap {
    pub(crate) inner: MemoryBroker,
    modes: watch::Sender<BTreeMap<&'static str, Mode>>,
    /// Bodies that were held.
    held: watch::Sender<Vec<String>>,
    /// How often a confirm was lost.
    lost: Arc<Mutex<u32>>,
    /// When each message was handed over, by exchange, in order.
    published: Arc<Mutex<BTreeMap<String, Vec<Instant>>>>,
}

impl Tap {
    pub(crate) fn new(inner: MemoryBroker) -> Self {
        Self {
            inner,
            modes: watch::Sender::default(),
            held: watch::Sender::default(),
            lost: Arc::default(),
            published: Arc::default(),
        }
    }

    /// For the exchange whose name ends so.
    pub(crate) fn set(&self, exchange: &'static str, mode: Mode) {
        self.modes.send_modify(|modes| {
            modes.insert(exchange, mode);
        });
    }

    pub(crate) fn confirms_lost(&self) -> u32 {
        *self.lost.lock().unwrap()
    }

    /// Waits until a message with this text in it is held.
    pub(crate) async fn holds(&self, text: &str) {
        let mut held = self.held.subscribe();
        let holds = held.wait_for(|held| held.iter().any(|body| body.contains(text)));
        tokio::time::timeout(PATIENCE, holds).await.expect("it is never said").unwrap();
    }

    /// When the n-th message for the exchange whose name ends so was handed over.
    pub(crate) fn published(&self, exchange: &str, number: usize) -> Instant {
        let published = self.published.lock().unwrap();
        published.iter().find(|(name, _)| name.ends_with(exchange)).unwrap().1[number - 1]
    }

    fn mode(modes: &BTreeMap<&'static str, Mode>, exchange: &str) -> Mode {
        modes.iter().find(|(suffix, _)| exchange.ends_with(*suffix)).map_or(Mode::Pass, |(_, mode)| *mode)
    }
}

impl Broker for Tap {
    async fn declare(&self, queues: &[Queue]) -> Result<(), BrokerError> {
        self.inner.declare(queues).await
    }

    async fn publish(&self, messages: Vec<Outgoing>) -> Result<(), PublishError> {
        let exchange = messages[0].to.exchange.clone();
        let now = std::iter::repeat_n(Instant::now(), messages.len());
        self.published.lock().unwrap().entry(exchange.clone()).or_default().extend(now);
        let mut modes = self.modes.subscribe();
        let mode = Self::mode(&modes.borrow_and_update(), &exchange);
        if mode == Mode::Hold {
            let bodies = messages.iter().map(|message| String::from_utf8_lossy(&message.body).into_owned());
            self.held.send_modify(|held| held.extend(bodies));
            let _ = modes.wait_for(|modes| Self::mode(modes, &exchange) != Mode::Hold).await;
        }
        self.inner.publish(messages).await?;
        let mut lose = false;
        self.modes.send_modify(|modes| {
            for (suffix, mode) in modes.iter_mut() {
                if let Mode::LoseConfirms(times) = mode
                    && exchange.ends_with(suffix)
                {
                    lose = *times > 0;
                    *times = times.saturating_sub(1);
                }
            }
        });
        if lose {
            *self.lost.lock().unwrap() += 1;
            return Err(PublishError::Broker(BrokerError::Lost { reason: "by the test".to_owned() }));
        }
        Ok(())
    }

    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Consumer, BrokerError> {
        self.inner.consume(queue, prefetch).await
    }

    async fn waiting(&self, queue: &Queue) -> Result<u32, BrokerError> {
        self.inner.waiting(queue).await
    }

    async fn delete(&self, queue: &Queue) -> Result<(), BrokerError> {
        self.inner.delete(queue).await
    }

    fn connected(&self) -> bool {
        self.inner.connected()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
