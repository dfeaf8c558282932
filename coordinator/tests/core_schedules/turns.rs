//! Whose turn it is, told by the journal alone: how many jobs the queues hold, how many of a group are under way, and
//! what nobody claimed in time.

use std::collections::{BTreeMap, BTreeSet};

use longshore_coordinator::core::effect::JobQueue;
use longshore_coordinator::core::entry::{End, Entry};
use longshore_coordinator::pipeline::{Concurrency, Pipeline};
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::{ExecutionId, RunId, WorkerId};

use crate::worker::Name;

/// Two tenants, so that runs share slots as well as turns.
pub(crate) fn tenant(run: RunId) -> String {
    format!("t{}", run.0.as_u128() % 2)
}

type Group = (String, String);

#[derive(Default)]
pub(crate) struct Turns {
    /// Slots of each worker with a lease.
    slots: BTreeMap<WorkerId, usize>,
    joined: BTreeMap<WorkerId, usize>,
    owned: BTreeMap<Name, WorkerId>,
    unclaimed: BTreeMap<Name, JobQueue>,
    members: BTreeMap<ExecutionId, (Group, u32)>,
    holders: BTreeMap<Group, BTreeSet<Name>>,
    /// Runs past their timeout.
    pub(crate) late: BTreeSet<RunId>,
    /// How often a step waited too long for a worker.
    pub(crate) expired: u64,
}

impl Turns {
    pub(crate) fn new(runs: &[(RunId, Pipeline)]) -> Self {
        let mut turns = Self::default();
        for (run, step) in runs.iter().flat_map(|(run, pipeline)| pipeline.steps.iter().map(move |step| (run, step))) {
            if let Some(Concurrency { group, max }) = &step.concurrency {
                let execution = ExecutionId::of_step(*run, &step.name);
                turns.members.insert(execution, ((tenant(*run), group.clone()), *max));
            }
        }
        turns
    }

    pub(crate) fn entry(&mut self, entry: &Entry) {
        match entry {
            Entry::Joined { worker, hello, .. } => {
                self.joined.insert(worker.clone(), hello.slots as usize);
                self.slots.insert(worker.clone(), hello.slots as usize);
            }
            Entry::Back { worker } => {
                self.slots.insert(worker.clone(), self.joined[worker]);
            }
            Entry::LeaseEnded { worker } => {
                self.slots.remove(worker);
            }
            Entry::Dispatched { execution, attempt, queue, .. } => {
                self.has_room(queue);
                self.unclaimed.insert((*execution, *attempt), queue.clone());
                self.hold((*execution, *attempt));
            }
            Entry::Accepted { execution, attempt, worker, .. } => {
                self.unclaimed.remove(&(*execution, *attempt));
                self.owned.insert((*execution, *attempt), worker.clone());
            }
            Entry::Ended { execution, attempt, end, .. } => {
                let of = (*execution, *attempt);
                if let End::Expired { .. } = end {
                    assert!(!self.owned.contains_key(&of), "it was claimed");
                    self.expired += 1;
                }
                self.unclaimed.remove(&of);
                self.owned.remove(&of);
                for holders in self.holders.values_mut() {
                    holders.remove(&of);
                }
            }
            Entry::RemakeBegun { execution, remake, .. } => {
                if let Some(member) = self.members.get(execution).cloned() {
                    self.members.insert(*remake, member);
                }
            }
            Entry::CancelAsked { run, by: CancelledBy::RunTimeout } => {
                self.late.insert(*run);
            }
            _ => {}
        }
    }

    /// Before a job is put on a queue: a slot is free for it, or all queues hold fewer jobs than there are slots.
    fn has_room(&self, queue: &JobQueue) {
        let count = |worker: &WorkerId| {
            let owned = self.owned.values().filter(|owner| *owner == worker).count();
            let queued = self.unclaimed.values().filter(|queue| **queue == JobQueue::Worker(worker.clone())).count();
            (owned, queued)
        };
        let slots: usize = self.slots.values().sum();
        let in_pool = self.unclaimed.values().filter(|queue| matches!(queue, JobQueue::Pool(_))).count();
        let alive: Vec<_> = self.slots.iter().map(|(worker, slots)| (*slots, count(worker))).collect();
        let own: usize = alive.iter().map(|(_, (_, queued))| queued).sum();
        let ahead = in_pool + own + 1 < slots;
        let free = match queue {
            JobQueue::Pool(_) => {
                let spare = |(slots, (owned, queued)): &(usize, (usize, usize))| slots.saturating_sub(owned + queued);
                in_pool < alive.iter().map(spare).sum()
            }
            JobQueue::Worker(worker) => {
                let slots = *self.slots.get(worker).expect("nobody with a lease reads this queue");
                let (owned, queued) = count(worker);
                assert!(queued < slots, "its queue holds as many jobs as it has slots");
                owned + queued < slots
            }
        };
        assert!(
            ahead || free,
            "{in_pool} jobs in the pool's queue and {own} in its workers', {slots} slots: {queue:?}"
        );
    }

    fn hold(&mut self, of: Name) {
        let Some((group, max)) = self.members.get(&of.0) else { return };
        let holders = self.holders.entry(group.clone()).or_default();
        assert!(holders.len() < *max as usize, "{group:?} is held by {holders:?}, and may be by {max}");
        holders.insert(of);
    }
}
