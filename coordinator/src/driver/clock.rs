//! The lease clock (P8): a tick a second through the heartbeat queue, at most one under way.
//!
//! Silence is counted in ticks that came back, so whatever holds up the queue stops the clock.

use std::time::Duration;

use longshore_protocol::Epoch;
use longshore_protocol::broker::{Broker, Outgoing};
use longshore_protocol::heartbeat::HeartbeatMessage;
use longshore_protocol::process::watch;
use longshore_protocol::topology::Address;
use longshore_protocol::wire;
use tokio::time::{Instant, MissedTickBehavior};

/// Sends ticks until it is dropped. `back` holds the highest number that came back.
pub(super) async fn tick<B: Broker>(
    broker: B,
    to: Address,
    epoch: Epoch,
    every: Duration,
    lease: Duration,
    mut back: watch::Receiver<u64>,
) {
    let mut interval = tokio::time::interval(every);
    // After a stall the clock goes on from now: ticks are not made up for.
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut number = 0;
    loop {
        interval.tick().await;
        number += 1;
        let body = wire::encode(&HeartbeatMessage::Tick { epoch, number });
        // Published again it keeps its number, so that of two that arrive one counts.
        while let Err(error) = broker.publish(vec![Outgoing::new(to.clone(), body.clone())]).await {
            tracing::debug!(%error, number, "a tick was not confirmed");
            interval.tick().await;
        }
        // One that is under way for a lease has expired in its queue and will not come back.
        drop(tokio::time::timeout(lease, back.wait_for(|back| *back >= number)).await);
        // However long it was under way: the next one comes back a whole second later, so that silence is never counted
        // faster than time.
        interval.reset();
    }
}

/// Those that came back.
#[derive(Debug)]
pub(super) struct Ticks {
    last: u64,
    at: Instant,
}

impl Ticks {
    /// None yet: the first one is under way from now on.
    pub(super) fn new() -> Self {
        Self { last: 0, at: Instant::now() }
    }

    /// One is back: whether it counts. `None` if it was back before.
    ///
    /// What is in its queue for a lease is dropped there. A tick that was under way for half of one at most proves that
    /// every heartbeat of the half before it was heard; one that took longer says that this coordinator is behind, and
    /// nothing of whoever was not heard. It was sent after the one before it was back.
    pub(super) fn came_back(&mut self, number: u64, lease: Duration) -> Option<bool> {
        if number <= self.last {
            return None;
        }
        let took = self.at.elapsed();
        *self = Self { last: number, at: Instant::now() };
        let in_time = took <= lease / 2;
        if !in_time {
            tracing::warn!(seconds = took.as_secs(), "heartbeats are heard late: no lease ends meanwhile");
        }
        Some(in_time)
    }
}
