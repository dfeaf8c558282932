//! How many jobs the queues of a pool may hold: fewer than it has slots.
//!
//! What is in a queue goes before whatever is chosen later, so little is put there: a job for each slot that is free,
//! at once; and while all are busy so many that all queues together, the pool's and its workers' own, hold one fewer
//! than there are slots. A slot that becomes free then finds a job without a round trip, and whoever comes next begins
//! within one step's length.

use std::collections::{BTreeMap, BTreeSet};

use longshore_protocol::{EngineId, PoolName, WorkerId};

/// The slots of every pool and worker that takes jobs.
#[derive(Debug, Default)]
pub(super) struct Room {
    workers: BTreeMap<WorkerId, WorkerSlots>,
    pools: BTreeMap<PoolName, PoolSlots>,
    /// Workers with a lease, by the Engine they are beside.
    beside: BTreeMap<EngineId, BTreeSet<WorkerId>>,
}

/// One worker with a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WorkerSlots {
    pub(super) pool: PoolName,
    pub(super) engine: EngineId,
    /// How many it has; 0 while it takes no jobs.
    pub(super) slots: usize,
    /// Attempts that it owns.
    pub(super) owned: usize,
    /// Jobs in its own queue.
    pub(super) queued: usize,
}

/// A pool's live workers together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PoolSlots {
    pub(super) workers: usize,
    pub(super) slots: usize,
    /// Slots that neither an attempt nor a job of a worker's own queue will take.
    pub(super) spare: usize,
    /// Jobs in the workers' own queues.
    pub(super) own_queued: usize,
}

impl WorkerSlots {
    pub(super) fn free(&self) -> usize {
        self.slots.saturating_sub(self.owned)
    }

    fn spare(&self) -> usize {
        self.slots.saturating_sub(self.owned + self.queued)
    }

    /// Whether its own queue takes one more job; so many are in the pool's.
    pub(super) fn takes(&self, pool: PoolSlots, pool_queued: usize) -> bool {
        self.queued < self.free() || (self.queued < self.slots && pool.has_room_ahead(pool_queued))
    }
}

impl PoolSlots {
    /// Whether the pool's queue takes one more job; so many are in it.
    pub(super) fn takes(self, queued: usize) -> bool {
        queued < self.spare || self.has_room_ahead(queued)
    }

    fn has_room_ahead(self, queued: usize) -> bool {
        queued + self.own_queued + 1 < self.slots
    }
}

impl Room {
    /// What is known of a worker now; `None`: its lease has ended. Answers what was known before.
    pub(super) fn set(&mut self, worker: &WorkerId, now: Option<WorkerSlots>) -> Option<WorkerSlots> {
        let before = self.workers.get(worker).cloned();
        if before == now {
            return before;
        }
        if let Some(before) = &before {
            let pool = self.pools.entry(before.pool.clone()).or_default();
            pool.workers -= 1;
            pool.slots -= before.slots;
            pool.spare -= before.spare();
            pool.own_queued -= before.queued;
            if let Some(beside) = self.beside.get_mut(&before.engine) {
                beside.remove(worker);
            }
            self.workers.remove(worker);
        }
        if let Some(now) = now {
            let pool = self.pools.entry(now.pool.clone()).or_default();
            pool.workers += 1;
            pool.slots += now.slots;
            pool.spare += now.spare();
            pool.own_queued += now.queued;
            self.beside.entry(now.engine.clone()).or_default().insert(worker.clone());
            self.workers.insert(worker.clone(), now);
        }
        before
    }

    pub(super) fn of_worker(&self, worker: &WorkerId) -> Option<&WorkerSlots> {
        self.workers.get(worker)
    }

    pub(super) fn of_pool(&self, pool: &PoolName) -> PoolSlots {
        self.pools.get(pool).copied().unwrap_or_default()
    }

    /// Every pool that has or had a worker.
    pub(super) fn pools(&self) -> impl Iterator<Item = &PoolName> {
        self.pools.keys()
    }

    /// The workers with a lease beside an Engine.
    pub(super) fn beside(&self, engine: &EngineId) -> impl Iterator<Item = &WorkerId> {
        self.beside.get(engine).into_iter().flatten()
    }
}
