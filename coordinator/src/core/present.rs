//! What the live core knows of a step beyond the journal: for whoever asks why it waits.

use longshore_protocol::{EngineId, ExecutionId, RunId, WorkerId};

use super::decide::Core;
use super::input::Millis;
use super::state::Key;
use super::waits::WaitsFor;

/// One step's present. Ticks are seconds that came back (P8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// When it was asked for.
    pub now_ms: Millis,
    /// What the scheduler waits for, while it is with no worker.
    pub waits: Option<WaitsFor>,
    /// Workers of its pool whose leases hold.
    pub workers: u32,
    /// Their free slots, as last reported.
    pub slots_free: u32,
    /// How many jobs were put on its queue before its own, and are not claimed.
    pub queue_before: Option<u64>,
    /// Its job left its queue, and nobody claims it: then it is gone (P6).
    pub gone_in_ticks: Option<u64>,
    /// How long its attempt's owner was not heard of.
    pub owner_silent_ticks: u64,
    /// How long it is believed all the same.
    pub lease_ticks: u64,
    /// P15: its output fills what may stand on its worker's disk.
    pub output_full: bool,
    /// P20: its parent's files are there, and nobody who could go on with them, or make them again.
    pub reach: Option<Reach>,
}

/// Where files stand that nobody can reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// On which Engine.
    pub engine: EngineId,
    /// Who left them there.
    pub worker: WorkerId,
    /// Whether it is alive, though of no use.
    pub alive: bool,
}

impl Core {
    /// What is known of a step at this moment; `None` if it is unknown or its run was forgotten.
    pub fn present(&self, id: RunId, execution: ExecutionId, now: Millis) -> Option<Present> {
        let run = self.state.runs.get(&id)?;
        let index = run.find(&execution)?;
        let (step, pool) = (&run.steps[index], &run.planned(index).spec.pool);
        let serves = self.state.workers.iter().filter(|(_, worker)| worker.alive && worker.hello.pool == *pool);
        let slots_free = |id: &WorkerId| self.fleet.seen.get(id).and_then(|seen| seen.slots_free).unwrap_or(0);
        let (workers, free) = serves.fold((0, 0), |(count, free), (id, _)| (count + 1, free + slots_free(id)));
        let key = Key { run: id, step: index, attempt: step.last() };
        let line = self.fleet.queues.line(key);
        let deadline = u64::from(self.config.accept_deadline_ticks);
        let overdue = |since: u64| (since + deadline).saturating_sub(self.fleet.tick);
        let owner =
            step.attempts.last().filter(|attempt| attempt.end.is_none()).and_then(|attempt| attempt.owner.as_ref());
        let left = run.parent(index).and_then(|parent| run.kept(parent));
        let out_of_reach = left.filter(|_| self.stranded.contains(&(id, index)));
        Some(Present {
            now_ms: now,
            waits: self.waits_for(id, index),
            workers,
            slots_free: free,
            queue_before: line.map(|(before, _)| before),
            gone_in_ticks: line.and_then(|(_, suspect)| suspect).map(overdue),
            owner_silent_ticks: owner.map_or(0, |owner| self.fleet.silence(owner)),
            lease_ticks: u64::from(self.config.lease_ticks),
            output_full: owner.is_some_and(|owner| self.fleet.is_full(owner, &self.state.claim(key))),
            reach: out_of_reach.map(|left| Reach {
                engine: left.engine.clone(),
                worker: left.worker.clone(),
                alive: self.state.workers.get(&left.worker).is_some_and(|worker| worker.alive),
            }),
        })
    }
}
