//! The queues. Declared by whoever needs them, the same way.

use std::time::Duration;

use crate::ids::{PoolName, Shard, WorkerId};

/// How often the broker may return one job before it is dead-lettered: 3.10 counts every return as
/// a delivery, a lost connection included.
pub const JOB_DELIVERY_LIMIT: u32 = 100;

/// The names of one fleet's queues. Fleets share a broker by their prefixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    prefix: String,
    /// How long the coordinator believes a worker that it has not heard from: the TTL of heartbeats.
    lease: Duration,
}

/// What a queue must promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueKind {
    /// Durable, a quorum queue; at most so many deliveries of one message, then the dead letters. `None`: no limit.
    Quorum {
        /// See [`JOB_DELIVERY_LIMIT`].
        delivery_limit: Option<u32>,
    },
    /// May be classic; messages expire, and are not dead-lettered.
    Expiring {
        /// After which they are of no use.
        ttl: Duration,
    },
}

/// One queue, and the exchange through which it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// What it promises.
    pub kind: QueueKind,
    /// A direct exchange that it is bound to.
    pub exchange: String,
    /// The key of that binding. It holds the shard.
    pub routing_key: String,
    /// Where messages go that were returned too often: the name of the dead-letter queue.
    pub dead_letters: Option<String>,
}

/// Where to publish.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// A direct exchange.
    pub exchange: String,
    /// The key of a binding.
    pub routing_key: String,
}

impl Queue {
    /// Where to publish so that it arrives here.
    pub fn address(&self) -> Address {
        Address { exchange: self.exchange.clone(), routing_key: self.routing_key.clone() }
    }
}

impl Topology {
    /// The queues of the fleet of that prefix. `lease` must be the coordinator's.
    pub fn new(prefix: impl Into<String>, lease: Duration) -> Self {
        Self { prefix: prefix.into(), lease }
    }

    /// Jobs for whoever of a pool is free.
    pub fn pool_jobs(&self, shard: Shard, pool: &PoolName) -> Queue {
        let kind = QueueKind::Quorum { delivery_limit: Some(JOB_DELIVERY_LIMIT) };
        self.queue("jobs", format!("{shard}.pool.{pool}"), kind)
    }

    /// Jobs that want one worker's host.
    pub fn worker_jobs(&self, shard: Shard, worker: &WorkerId) -> Queue {
        let kind = QueueKind::Quorum { delivery_limit: Some(JOB_DELIVERY_LIMIT) };
        self.queue("jobs", format!("{shard}.worker.{worker}"), kind)
    }

    /// Events of all workers. No delivery limit: a result is never dead-lettered by a restart.
    pub fn events(&self, shard: Shard) -> Queue {
        self.queue("events", shard.to_string(), QueueKind::Quorum { delivery_limit: None })
    }

    /// Heartbeats of all workers, and the coordinator's tick.
    pub fn heartbeats(&self, shard: Shard) -> Queue {
        self.queue("heartbeats", shard.to_string(), QueueKind::Expiring { ttl: self.lease })
    }

    /// Output of all attempts. No delivery limit.
    pub fn output(&self, shard: Shard) -> Queue {
        self.queue("output", shard.to_string(), QueueKind::Quorum { delivery_limit: None })
    }

    /// What one worker is told.
    pub fn control(&self, worker: &WorkerId) -> Queue {
        self.queue("control", worker.to_string(), QueueKind::Quorum { delivery_limit: None })
    }

    /// What could not be read or was returned too often.
    pub fn dead_letters(&self) -> Queue {
        self.queue("dead", "letters".to_owned(), QueueKind::Quorum { delivery_limit: None })
    }

    /// What a queue of that name is for, one of [`PURPOSES`](Self::PURPOSES): a metric's label,
    /// where names would be as many as workers.
    pub fn purpose(&self, queue: &str) -> &'static str {
        let rest = queue.strip_prefix(&self.prefix).and_then(|rest| rest.strip_prefix('.')).unwrap_or_default();
        let word = rest.split('.').next().unwrap_or_default();
        Self::PURPOSES.into_iter().find(|purpose| *purpose == word).unwrap_or("other")
    }

    /// Every word that [`purpose`](Self::purpose) can answer.
    pub const PURPOSES: [&'static str; 7] = ["jobs", "events", "heartbeats", "output", "control", "dead", "other"];

    /// What the coordinator of a shard needs.
    pub fn of_coordinator(&self, shard: Shard) -> Vec<Queue> {
        vec![self.dead_letters(), self.events(shard), self.heartbeats(shard), self.output(shard)]
    }

    /// What a worker needs: what it reads and what it writes, so that either may start first.
    pub fn of_worker(&self, worker: &WorkerId, pool: &PoolName) -> Vec<Queue> {
        let mut queues = vec![self.dead_letters(), self.control(worker)];
        for shard in (0..Shard::COUNT).map(Shard) {
            queues.extend([self.events(shard), self.heartbeats(shard), self.output(shard)]);
            queues.extend([self.pool_jobs(shard, pool), self.worker_jobs(shard, worker)]);
        }
        queues
    }

    fn queue(&self, what: &str, routing_key: String, kind: QueueKind) -> Queue {
        let exchange = format!("{}.{what}", self.prefix);
        // The dead letters' own messages stay; an expired heartbeat is of no use to anybody (P8).
        let limited = matches!(kind, QueueKind::Quorum { delivery_limit: Some(_) });
        let dead_letters = limited.then(|| format!("{}.dead.letters", self.prefix));
        Queue { name: format!("{exchange}.{routing_key}"), kind, exchange, routing_key, dead_letters }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_never_dead_lettered_and_jobs_are_limited() {
        let topology = Topology::new("longshore", Duration::from_secs(30));
        let shard = Shard(0);
        for queue in [topology.events(shard), topology.output(shard)] {
            assert_eq!(queue.kind, QueueKind::Quorum { delivery_limit: None });
            assert_eq!(queue.dead_letters, None);
        }
        let jobs = topology.pool_jobs(shard, &PoolName::default());
        assert_eq!(jobs.name, "longshore.jobs.0.pool.default");
        assert_eq!(jobs.dead_letters.as_deref(), Some("longshore.dead.letters"));
        assert_eq!(topology.heartbeats(shard).dead_letters, None);
    }

    #[test]
    fn every_queue_has_a_purpose() {
        let topology = Topology::new("a.fleet", Duration::from_secs(30));
        let worker = "jobs".parse().unwrap();
        let queues = topology.of_worker(&worker, &PoolName::default());
        let purposes: Vec<&str> = queues.iter().map(|queue| topology.purpose(&queue.name)).collect();
        assert_eq!(purposes, ["dead", "control", "events", "heartbeats", "output", "jobs", "jobs"]);
        assert_eq!(topology.purpose("another.fleet.jobs.0"), "other");
    }
}
