//! Why a step is not with a worker yet: what the scheduler waits for, as it is now. Asked, never journalled.

use longshore_protocol::{Outcome, PoolName, RunId, StepName, WorkerId};

use super::decide::Core;
use super::effect::JobQueue;
use super::entry::Entry;
use super::input::Millis;
use super::ready::Lane;
use super::refill::candidate;
use super::state::Stage;

/// The one thing that a step waits for before anything else can happen with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitsFor {
    /// Steps that have not passed yet.
    Steps(Vec<StepName>),
    /// The backoff of its retry.
    Backoff {
        /// Until when, milliseconds since the Unix epoch.
        until_ms: Millis,
    },
    /// What its parent left is lost, and being made again (P20).
    Remake {
        /// Its parent.
        of: StepName,
    },
    /// Whoever has, or could make again, what its parent left is away.
    Files {
        /// Its parent.
        of: StepName,
        /// Who had it last.
        worker: WorkerId,
    },
    /// Its place in its concurrency group.
    Group {
        /// The group's name.
        group: String,
        /// How many of it may be under way with this step.
        max: u32,
        /// Who holds it: until their owners say that they are over, or their leases end (P11).
        held_by: Vec<(RunId, StepName)>,
        /// How many stand before it in line.
        before: usize,
    },
    /// A worker of its pool: none is alive.
    Worker {
        /// Which pool.
        pool: PoolName,
    },
    /// Its turn: every queue that it could be put on holds as much as it may.
    Turn {
        /// Which pool.
        pool: PoolName,
        /// How many slots its live workers have; 0 where none of them takes steps.
        slots: usize,
        /// How many jobs nobody has claimed yet, in the queue that it waits for.
        queued: usize,
        /// How many steps wait for the same, this one included.
        waiting: usize,
        /// Its own: within its tenant the highest goes first.
        priority: i32,
    },
    /// A worker that claims it: its job is on this queue.
    Claim(JobQueue),
}

/// How long an attempt waited, as an entry tells.
pub(crate) enum Waited {
    /// To be dispatched, ms.
    Ready(Millis),
    /// To be claimed, ms.
    Queued(Millis),
}

impl Core {
    /// What a step waits for. `None` if it does not wait: it is with a worker, or settled.
    pub fn waits_for(&self, id: RunId, index: usize) -> Option<WaitsFor> {
        let run = self.state.runs.get(&id)?;
        let step = run.steps.get(index)?;
        let last = step.attempts.last();
        let not_before = match step.stage {
            Stage::Settled | Stage::Over => return None,
            Stage::Current => {
                let queue = last.filter(|attempt| attempt.owner.is_none())?.queue.clone()?;
                return Some(WaitsFor::Claim(queue));
            }
            Stage::Waiting { not_before } => not_before,
        };
        if step.waits > 0 {
            // Whatever it waits for stands before it.
            let waits = |before: &usize| {
                let passed = run.steps[*before].outcome.as_ref().is_some_and(Outcome::is_passed);
                !passed && run.graph.dependents[*before].contains(&index)
            };
            let before = (0..index).filter(waits).map(|before| run.planned(before).name.clone());
            return Some(WaitsFor::Steps(before.collect()));
        }
        if let Some(waits) = self.waits_in_lane(id, index) {
            return Some(waits);
        }
        if let Some(parent) = run.parent(index) {
            let of = run.planned(parent).name.clone();
            if run.remake_under_way(parent).is_some() {
                return Some(WaitsFor::Remake { of });
            }
            if self.stranded.contains(&(id, index))
                && let Some(left) = &run.steps[parent].left
            {
                return Some(WaitsFor::Files { of, worker: left.worker.clone() });
            }
        }
        Some(WaitsFor::Backoff { until_ms: not_before })
    }

    /// It could begin, and its turn has not come.
    fn waits_in_lane(&self, id: RunId, index: usize) -> Option<WaitsFor> {
        let run = &self.state.runs[&id];
        let planned = run.planned(index);
        if let Some((name, candidate)) = candidate(run, id, index)
            && let Some(before) = self.groups.before(&name, &candidate)
        {
            let held_by = self
                .groups
                .holders(&name)
                .filter_map(|(run, step)| Some((run, self.state.runs.get(&run).map(|of| of.log_name(step))?)));
            return Some(WaitsFor::Group {
                group: name.1.clone(),
                max: candidate.max,
                held_by: held_by.collect(),
                before,
            });
        }
        let lane = self.ready.lane_of(id, index)?;
        let pool = lane.pool().clone();
        let slots = self.room.of_pool(&pool);
        if slots.workers == 0 {
            return Some(WaitsFor::Worker { pool });
        }
        let queued = match &**lane {
            Lane::Pool(pool) => self.fleet.queues.waiting_in(&JobQueue::Pool(pool.clone())),
            Lane::Engine(_, engine) => {
                let queues = self.room.beside(engine).map(|worker| JobQueue::Worker(worker.clone()));
                queues.map(|queue| self.fleet.queues.waiting_in(&queue)).sum()
            }
            Lane::Worker(_, worker) => self.fleet.queues.waiting_in(&JobQueue::Worker(worker.clone())),
        };
        let (waiting, priority) = (self.ready.waiting_in(lane), planned.priority);
        Some(WaitsFor::Turn { pool, slots: slots.slots, queued, waiting, priority })
    }

    /// How many steps could be dispatched and are not, by pool, of the pools that have or had a worker; the others
    /// together under `None`. Names in pipeline files are anybody's.
    pub fn ready_by_pool(&self) -> Vec<(Option<PoolName>, usize)> {
        let waiting = self.ready.by_pool();
        let mut known: Vec<_> =
            (self.room.pools()).map(|pool| (Some(pool.clone()), waiting.get(pool).copied().unwrap_or(0))).collect();
        let all: usize = waiting.values().sum();
        known.push((None, all - known.iter().map(|(_, count)| count).sum::<usize>()));
        known
    }

    /// How long the attempt that an entry is about waited for what the entry tells. For entries just written.
    pub(crate) fn waited(&self, entry: &Entry, at: Millis) -> Option<Waited> {
        let (Entry::Dispatched { run, execution, attempt, .. } | Entry::Accepted { run, execution, attempt, .. }) =
            entry
        else {
            return None;
        };
        let run = self.state.runs.get(run)?;
        let step = &run.steps[run.find(execution)?];
        Some(match entry {
            Entry::Accepted { .. } => Waited::Queued(at.saturating_sub(step.attempt(*attempt)?.dispatched_at)),
            _ => Waited::Ready(at.saturating_sub(step.ready_at)),
        })
    }
}
