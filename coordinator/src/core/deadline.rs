//! Timeouts that are the coordinator's own: of a whole run, and of the time that a step waits for a worker. A command's
//! own is its worker's.
//!
//! Both are functions of the journal: a run's counts from its submission, or from when it was opened again, a step's from when it could be dispatched.

use longshore_protocol::RunId;
use longshore_protocol::outcome::CancelledBy;

use super::decide::{Core, Step};
use super::entry::{End, Entry};
use super::input::Millis;
use super::refill::candidate;
use super::state::{Key, Run, Stage};
use crate::pipeline::duration_text;

impl Run {
    /// Until when a step must have been claimed, if it could be dispatched.
    fn queue_deadline(&self, index: usize) -> Option<Millis> {
        let step = &self.steps[index];
        // While its parent's files are made again it waits for those, and for a worker only then.
        let parent = self.parent(index);
        let remaking = parent.is_some_and(|parent| self.remake_under_way(parent).is_some());
        let remade =
            parent.and_then(|parent| self.steps[*self.steps[parent].remakes.last()?].attempts.last()?.ended_at);
        let waits = step.waits == 0 && step.remake_of.is_none() && !remaking;
        Some(step.ready_at.max(remade.unwrap_or(0)) + self.planned(index).queue_timeout_ms.filter(|_| waits)?)
    }
}

impl Core {
    /// Sets the timers that follow from an entry.
    pub(super) fn keep_deadlines(&mut self, entry: &Entry) {
        let Some(id) = entry.run() else { return };
        let Some(run) = self.state.runs.get(&id) else { return };
        let mut timers = Vec::new();
        let mut expect = |step: usize| timers.extend(run.queue_deadline(step).map(|at| (at, id, step)));
        match entry {
            Entry::Submitted { .. } => {
                (0..run.steps.len()).for_each(expect);
                self.deadlines.extend(run.deadline().map(|at| (at, id)));
            }
            Entry::RetryAsked { steps, .. } => {
                steps.iter().map(|step| run.index(step)).for_each(expect);
                self.deadlines.extend(run.deadline().map(|at| (at, id)));
            }
            Entry::Settled { execution, outcome, .. } if outcome.is_passed() => {
                let step = run.original(run.index(execution));
                run.graph.dependents[step].iter().copied().for_each(expect);
            }
            Entry::Retried { execution, .. } => expect(run.index(execution)),
            Entry::RunSettled { .. } => {
                let deadline = run.deadline();
                deadline.map(|at| self.deadlines.remove(&(at, id)));
            }
            _ => {}
        }
        self.timers.extend(timers);
    }

    /// Runs that have taken longer than they may.
    pub(super) fn call_off_late_runs(&mut self, now: Millis, out: &mut Step) {
        while let Some(&(at, run)) = self.deadlines.first() {
            if at > now {
                break;
            }
            self.deadlines.pop_first();
            self.cancel(run, &CancelledBy::RunTimeout, now, out);
        }
    }

    /// Ends a step that has waited longer for a worker than it may. `false` if it has not, or somebody claimed it.
    pub(super) fn expire(&mut self, id: RunId, index: usize, now: Millis, out: &mut Step) -> bool {
        let run = &self.state.runs[&id];
        let step = &run.steps[index];
        if run.queue_deadline(index).is_none_or(|at| now < at) {
            return false;
        }
        let attempt = match step.stage {
            Stage::Waiting { .. } => step.last().next(),
            Stage::Current if step.attempts.last().is_some_and(|attempt| attempt.owner.is_none()) => step.last(),
            _ => return false,
        };
        let (execution, reason) = (step.execution, self.why_expired(id, index));
        let end = End::Expired { reason };
        if step.stage == Stage::Current {
            self.end(Key { run: id, step: index, attempt }, end, now, out);
        } else {
            self.commit(Entry::Ended { run: id, execution, attempt, end }, now, out);
        }
        true
    }

    /// For people, with the mend.
    fn why_expired(&self, id: RunId, index: usize) -> String {
        let run = &self.state.runs[&id];
        let planned = run.planned(index);
        let pool = &planned.spec.pool;
        let slots = self.room.of_pool(pool);
        let (because, mend) = match candidate(run, id, index) {
            Some((name, _)) if !self.groups.holds(&name, (id, index)) => {
                (format!("concurrency group {} was held by others", name.1), "raise the group's `max` or the timeout")
            }
            _ if slots.workers == 0 => {
                (format!("pool {pool} has no live worker"), "start one with `--pool`, or name another pool")
            }
            _ => (
                format!("all {} slots of pool {pool} were busy or its workers take no steps", slots.slots),
                "add workers, or raise the step's priority or the timeout",
            ),
        };
        let waited = duration_text(planned.queue_timeout_ms.unwrap_or_default());
        format!("nobody claimed it within its queue_timeout of {waited}: {because}; {mend}")
    }
}

impl Run {
    fn deadline(&self) -> Option<Millis> {
        Some(self.retried_at.unwrap_or(self.submitted_at) + self.pipeline.timeout_ms?)
    }
}
