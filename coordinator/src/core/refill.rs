//! What goes next, and when: whatever changed room, shares or groups leads to the lanes that it concerns, and only
//! those are looked at.

use std::sync::Arc;

use longshore_protocol::{PoolName, RunId, WorkerId};

use super::decide::{Core, Step};
use super::effect::JobQueue;
use super::entry::Entry;
use super::groups::{Candidate, GroupName};
use super::input::Millis;
use super::ready::{Lane, ReadyStep};
use super::room::WorkerSlots;
use super::share::is_behind;
use super::state::Run;

impl Core {
    /// A step could begin: it waits for its place in its group, then for room.
    pub(super) fn make_ready(&mut self, id: RunId, index: usize, now: Millis, out: &mut Step) {
        if self.ready.lane_of(id, index).is_some() {
            return;
        }
        let Some(lane) = self.lane(id, index, now, out) else { return self.leave_group(id, index) };
        let run = &self.state.runs[&id];
        if let Some((name, candidate)) = candidate(run, id, index)
            && !self.groups.holds(&name, (id, index))
        {
            return self.groups.wait(name, &candidate); // looked at again when it is its turn
        }
        let step = ready_step(run, id, index);
        let weight = self.config.weight(&run.tenant);
        self.shares.waits(lane.pool(), &step.tenant, weight, id);
        self.ready.put(lane, &step);
    }

    /// Puts on the queues what they have room for, whose turn it is first. `false` once nothing is left to do.
    pub(super) fn refill(&mut self, now: Millis, out: &mut Step) -> bool {
        let admitted = self.groups.admit();
        if !admitted.is_empty() {
            self.dirty.extend(admitted);
            return true;
        }
        self.shares.go_by(now);
        let Some(lane) = self.ready.next_touched() else { return false };
        let mut went = false;
        while self.dirty.is_empty()
            && self.has_room(&lane)
            && let Some(step) = self.ready.first(&lane, &self.shares)
        {
            if self.yields(&lane, &step) {
                // Where no slot is free, the lane is looked at when one is.
                if self.has_free_slot(&lane) {
                    self.yielding.entry(lane.pool().clone()).or_default().insert(lane.clone());
                }
                break;
            }
            went = true;
            self.dispatch(step.run, step.step, now, out);
        }
        if !self.dirty.is_empty() {
            self.ready.touch(lane.clone());
        }
        if matches!(lane, Lane::Pool(_)) && (went || self.ready.waiting_in(&lane) == 0) {
            self.yield_no_more(lane.pool());
        }
        true
    }

    /// What let others of the pool go first may not have to any longer.
    fn yield_no_more(&mut self, pool: &PoolName) {
        for own in self.yielding.remove(pool).unwrap_or_default() {
            self.ready.touch(own);
        }
    }

    /// Whether a step that can only go to some worker's own queue lets others go first, who can go to any: a worker
    /// takes what is in its own queue before what is in the pool's. Both kinds wait for the same slots.
    fn yields(&mut self, lane: &Lane, step: &ReadyStep) -> bool {
        if matches!(lane, Lane::Pool(_)) {
            return false;
        }
        let pool = lane.pool();
        let for_all = Lane::Pool(pool.clone());
        if let Some(first) = self.ready.first(&for_all, &self.shares)
            && self.shares.of_tenant(pool, &first.tenant) < self.shares.of_tenant(pool, &step.tenant)
        {
            return true;
        }
        if let Some(first) = self.ready.first_of(&for_all, &step.tenant, &self.shares) {
            let received = self.shares.of_runs(pool, &step.tenant);
            let behind = first.priority == step.priority && is_behind(received(first.run), received(step.run));
            if first.priority > step.priority || behind {
                return true;
            }
        }
        self.shares.less_is_queued(pool, &step.tenant, step.run)
    }

    fn has_free_slot(&self, lane: &Lane) -> bool {
        let free = |worker: &WorkerId| self.room.of_worker(worker).is_some_and(|slots| slots.free() > slots.queued);
        match lane {
            Lane::Pool(pool) => self.room.of_pool(pool).spare > 0,
            Lane::Engine(_, engine) => self.room.beside(engine).any(free),
            Lane::Worker(_, worker) => free(worker),
        }
    }

    fn has_room(&self, lane: &Lane) -> bool {
        match lane {
            Lane::Pool(pool) => self.pool_takes(pool),
            Lane::Engine(pool, engine) => self.room.beside(engine).any(|worker| self.worker_takes(pool, worker)),
            Lane::Worker(pool, worker) => self.worker_takes(pool, worker),
        }
    }

    pub(super) fn pool_takes(&self, pool: &PoolName) -> bool {
        let queued = self.fleet.queues.waiting_in(&JobQueue::Pool(pool.clone()));
        self.room.of_pool(pool).takes(queued)
    }

    pub(super) fn worker_takes(&self, pool: &PoolName, worker: &WorkerId) -> bool {
        let Some(slots) = self.room.of_worker(worker).filter(|slots| slots.pool == *pool) else { return false };
        slots.takes(self.room.of_pool(pool), self.fleet.queues.waiting_in(&JobQueue::Pool(pool.clone())))
    }

    /// Keeps what is beside the state in step with an entry, live or on replay.
    pub(super) fn keep_share(&mut self, entry: &Entry, at: Millis) {
        match entry {
            Entry::Joined { worker, .. } | Entry::Back { worker } | Entry::LeaseEnded { worker } => {
                self.recount(worker);
            }
            Entry::RunSettled { run, .. } => self.shares.forget(*run),
            Entry::Dispatched { run: id, execution, queue, .. } => {
                let run = &self.state.runs[id];
                let index = run.index(execution);
                let (pool, tenant) = (run.planned(index).spec.pool.clone(), Arc::clone(&run.tenant));
                let weight = self.config.weight(&tenant);
                let held = candidate(run, *id, index);
                self.shares.dispatched((*id, index), queue, &pool, (&tenant, weight), at);
                self.wait_no_more(*id, index);
                if let Some((name, candidate)) = held {
                    self.groups.hold(name, &candidate);
                }
                self.queue_changed(queue);
            }
            Entry::Accepted { run: id, execution, worker, .. } => {
                let index = self.state.runs[id].index(execution);
                self.shares.accepted((*id, index), at);
                self.recount(worker);
                if let Some(queue) = self.queue_of(*id, index) {
                    self.queue_changed(&queue);
                }
            }
            Entry::Ended { run: id, execution, .. } => {
                let index = self.state.runs[id].index(execution);
                self.shares.ended((*id, index), at);
                let run = &self.state.runs[id];
                self.ready.look_again(&run.planned(index).spec.pool, &run.tenant, *id);
                self.wait_no_more(*id, index);
                self.leave_group(*id, index);
                if let Some(queue) = self.queue_of(*id, index) {
                    self.queue_changed(&queue);
                }
                let owner = self.state.step(*id, index).attempts.last().and_then(|attempt| attempt.owner.clone());
                if let Some(owner) = owner {
                    self.recount(&owner);
                }
            }
            Entry::Settled { run: id, execution, .. } => {
                let index = self.state.runs[id].index(execution);
                self.wait_no_more(*id, index);
                self.leave_group(*id, index);
            }
            _ => {}
        }
    }

    fn queue_of(&self, id: RunId, index: usize) -> Option<JobQueue> {
        self.state.step(id, index).attempts.last().and_then(|attempt| attempt.queue.clone())
    }

    fn queue_changed(&mut self, queue: &JobQueue) {
        match queue {
            JobQueue::Pool(pool) => {
                self.ready.touch(Lane::Pool(pool.clone()));
                self.yield_no_more(pool);
            }
            JobQueue::Worker(worker) => self.recount(worker),
        }
    }

    /// It neither waits for room, nor will.
    pub(super) fn wait_no_more(&mut self, id: RunId, index: usize) {
        if self.ready.lane_of(id, index).is_none() {
            return;
        }
        let step = ready_step(&self.state.runs[&id], id, index);
        if let Some(lane) = self.ready.remove(&step) {
            self.shares.waits_no_more(lane.pool(), &step.tenant, id);
        }
    }

    pub(super) fn leave_group(&mut self, id: RunId, index: usize) {
        if let Some((name, candidate)) = candidate(&self.state.runs[&id], id, index) {
            self.groups.leave(&name, &candidate);
        }
    }

    /// What is known of a worker's slots may have changed.
    pub(super) fn recount(&mut self, id: &WorkerId) {
        let Some(worker) = self.state.workers.get(id) else { return };
        let closed = self.fleet.seen.get(id).is_some_and(|seen| seen.closed);
        let now = worker.alive.then(|| WorkerSlots {
            pool: worker.hello.pool.clone(),
            engine: worker.hello.engine.clone(),
            slots: if closed { 0 } else { worker.hello.slots as usize },
            owned: worker.owned.len(),
            queued: self.fleet.queues.waiting_in(&JobQueue::Worker(id.clone())),
        });
        let before = self.room.set(id, now.clone());
        let place = |slots: &WorkerSlots| (slots.pool.clone(), slots.engine.clone());
        let takes = |slots: &Option<WorkerSlots>| slots.as_ref().is_some_and(|slots| slots.slots > 0);
        let closes = takes(&before) && !takes(&now);
        if let Some((pool, engine)) = before.as_ref().map(place)
            && (closes || now.as_ref().map(place) != Some((pool.clone(), engine.clone())))
        {
            // It is not there any more, not where it was, or takes no steps: what waits for it is placed anew.
            for lane in [Lane::Worker(pool.clone(), id.clone()), Lane::Engine(pool, engine)] {
                for (run, step) in self.ready.all_in(&lane) {
                    self.wait_no_more(run, step);
                    self.dirty.insert((run, step));
                }
            }
        }
        if let Some(WorkerSlots { pool, engine, .. }) = now {
            self.ready.touch(Lane::Worker(pool.clone(), id.clone()));
            self.ready.touch(Lane::Engine(pool.clone(), engine));
            self.ready.touch(Lane::Pool(pool));
        }
    }
}

/// As a member of its group, if it has one.
pub(super) fn candidate(run: &Run, id: RunId, index: usize) -> Option<(GroupName, Candidate)> {
    let planned = run.planned(index);
    let concurrency = planned.concurrency.as_ref()?;
    let name = (Arc::clone(&run.tenant), concurrency.group.clone());
    let (priority, since) = (planned.priority, run.steps[index].ready_at);
    Some((name, Candidate { step: (id, index), priority, since, max: concurrency.max }))
}

fn ready_step(run: &Run, id: RunId, index: usize) -> ReadyStep {
    let depth = run.graph.depth[run.original(index)];
    ReadyStep { tenant: Arc::clone(&run.tenant), priority: run.planned(index).priority, run: id, step: index, depth }
}
