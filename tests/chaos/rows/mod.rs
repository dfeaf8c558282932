//! The faults, one row each.

mod broker;
mod coordinator;
mod disk;
mod engine;
mod leave;
mod network;
mod standby;
mod worker;

use futures_util::future::BoxFuture;

use crate::stand::Stand;
use crate::table::Told;

/// One fault.
pub(crate) struct Row {
    /// By which it is asked for.
    pub(crate) name: &'static str,
    /// What is done, for the table's reader.
    pub(crate) fault: &'static str,
    /// Whether it is part of `make test`: it needs no cables, and takes no service away from other tests.
    pub(crate) quick: bool,
    pub(crate) again: Again,
    /// Seconds to recover that are promised.
    pub(crate) limit_secs: Option<f64>,
    pub(crate) act: fn(Stand) -> BoxFuture<'static, Told>,
}

/// Whether something has to be carried out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// Nothing that had been claimed was lost.
    Never,
    /// What the victim held.
    Once,
    /// It depends on the moment.
    Perhaps,
}

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// A dead worker is missed when its lease has ended.
const AFTER_THE_LEASE: Option<f64> = Some(crate::scene::LEASE_SECS as f64 + 2.0);
/// Reconnecting has a backoff of at most 3 s (P8).
const AFTER_THE_BROKER: Option<f64> = Some(5.0);

/// The leader's epoch lapses after 3 s (P21).
const AFTER_THE_LEADER: Option<f64> = Some(5.0);

/// What a frozen leader holds comes back when the broker has missed two to three of AMQP's heartbeats, which are 3 s
/// (P21).
const AFTER_A_FROZEN_LEADER: Option<f64> = Some(10.0);

/// A queue without a leader is made anew after two waits of 16 s, or of 30 where RabbitMQ answers first
/// (`docs/decisions/leaderless-queues.md`).
const AFTER_A_LEADER: Option<f64> = Some(60.0);

/// All of them, in the table's order.
pub(crate) const ROWS: &[Row] = &[
    row("kill-worker", "kill -9 of a worker, which does not come back", Again::Once, |stand| {
        Box::pin(worker::kill(stand))
    })
    .within(AFTER_THE_LEASE),
    row("restart-worker", "kill -9 of a worker, started again at once", Again::Never, |stand| {
        Box::pin(worker::restart(stand))
    })
    .quick(),
    row("stop-worker-short", "SIGSTOP of a worker for half of its lease", Again::Never, |stand| {
        Box::pin(worker::stop_short(stand))
    }),
    row("stop-worker-long", "SIGSTOP of a worker until its lease has ended, then SIGCONT", Again::Once, |stand| {
        Box::pin(worker::stop_long(stand))
    })
    .quick(),
    row("kill-coordinator", "kill -9 of the coordinator, started again", Again::Never, |stand| {
        Box::pin(coordinator::kill(stand))
    }),
    row("stop-coordinator", "SIGSTOP of the coordinator for longer than the lease", Again::Never, |stand| {
        Box::pin(coordinator::stop(stand))
    })
    .quick(),
    row("kill-leader", "kill -9 of the one of two coordinators that leads", Again::Never, |stand| {
        Box::pin(standby::kill(stand))
    })
    .within(AFTER_THE_LEADER),
    row(
        "stop-leader",
        "SIGSTOP of the one of two coordinators that leads, woken behind its successor",
        Again::Never,
        |stand| Box::pin(standby::stop(stand)),
    )
    .within(AFTER_A_FROZEN_LEADER),
    row("stop-app-broker", "rabbitmqctl stop_app and start_app", Again::Never, |stand| {
        Box::pin(broker::stop_app(stand))
    })
    .within(AFTER_THE_BROKER),
    row("restart-broker", "RabbitMQ ended in order and started again", Again::Never, |stand| {
        Box::pin(broker::restart(stand))
    })
    .within(AFTER_THE_BROKER),
    row("kill-broker", "kill -9 of RabbitMQ, started again", Again::Never, |stand| Box::pin(broker::kill(stand)))
        .within(AFTER_THE_BROKER),
    row(
        "kill-young-broker",
        "kill -9 of RabbitMQ within a moment of its queues' making, started again",
        Again::Never,
        |stand| Box::pin(broker::kill_young(stand)),
    )
    .within(AFTER_A_LEADER),
    row("alarm-broker", "RabbitMQ in memory alarm for longer than the lease", Again::Never, |stand| {
        Box::pin(broker::alarm(stand))
    }),
    row("delivery-timeout", "a step that outlasts RabbitMQ's delivery timeout by two minutes", Again::Never, |stand| {
        Box::pin(broker::delivery_timeout(stand))
    }),
    row(
        "cut-worker",
        "all packets between a worker and the broker dropped for longer than the lease",
        Again::Once,
        |stand| Box::pin(network::worker_both(stand)),
    ),
    row("cut-worker-out", "a worker's packets to the broker dropped for longer than the lease", Again::Once, |stand| {
        Box::pin(network::worker_to_broker(stand))
    }),
    row("cut-worker-in", "the broker's packets to a worker dropped for longer than the lease", Again::Once, |stand| {
        Box::pin(network::worker_from_broker(stand))
    }),
    row(
        "cut-worker-short",
        "all packets between a worker and the broker dropped for half of the lease",
        Again::Never,
        |stand| Box::pin(network::worker_short(stand)),
    ),
    row(
        "cut-coordinator",
        "all packets between coordinator and broker dropped for longer than the lease",
        Again::Never,
        |stand| Box::pin(network::coordinator_both(stand)),
    ),
    row(
        "cut-coordinator-out",
        "the coordinator's packets to the broker dropped for longer than the lease",
        Again::Never,
        |stand| Box::pin(network::coordinator_to_broker(stand)),
    ),
    row(
        "cut-coordinator-in",
        "the broker's packets to the coordinator dropped for longer than the lease",
        Again::Never,
        |stand| Box::pin(network::coordinator_from_broker(stand)),
    ),
    row("kill-docker", "kill -9 of a Docker daemon, started again", Again::Once, |stand| Box::pin(engine::kill(stand))),
    row("stop-docker", "SIGSTOP of a Docker daemon for longer than the lease", Again::Never, |stand| {
        Box::pin(engine::stop(stand))
    }),
    row("full-worker-disk", "the disk of a worker's state filled, and freed", Again::Perhaps, |stand| {
        Box::pin(disk::worker(stand))
    }),
    row("full-engine-disk", "the disk of a Docker daemon filled, and freed", Again::Perhaps, |stand| {
        Box::pin(disk::engine(stand))
    }),
    row("full-coordinator-disk", "the coordinator's disk filled, and freed", Again::Never, |stand| {
        Box::pin(disk::coordinator(stand))
    }),
    row(
        "drain-worker",
        "SIGTERM of a worker whose steps take longer than it waits, and a second one",
        Again::Once,
        |stand| Box::pin(leave::drain(stand)),
    )
    .quick(),
    row(
        "rolling-restart",
        "every worker ended in order and started again, one after another",
        Again::Perhaps,
        |stand| Box::pin(leave::rolling(stand)),
    ),
];

const fn row(name: &'static str, fault: &'static str, again: Again, act: fn(Stand) -> BoxFuture<'static, Told>) -> Row {
    Row { name, fault, quick: false, again, limit_secs: None, act }
}

impl Row {
    const fn quick(mut self) -> Self {
        self.quick = true;
        self
    }

    const fn within(mut self, limit_secs: Option<f64>) -> Self {
        self.limit_secs = limit_secs;
        self
    }
}
