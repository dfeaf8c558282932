//! What follows from what changed: settle, retry, skip, dispatch, until nothing follows.

use std::collections::BTreeSet;

use longshore_protocol::breach::{self, Breach};
use longshore_protocol::control::Control;
use longshore_protocol::outcome::{CancelledBy, InfraStage, Outcome, POISON};
use longshore_protocol::{RunId, WorkerId};

use super::config::users_backoff;
use super::decide::{Core, Step};
use super::entry::{End, Entry, RetryCause};
use super::input::Millis;
use super::lineage::is_broken_lineage;
use super::state::{Key, Stage};

impl Core {
    /// Looks at every step of which something changed, then at whose turn it is.
    pub(super) fn follow(&mut self, now: Millis, out: &mut Step) {
        loop {
            while let Some((run, step)) = self.dirty.pop_first() {
                self.follow_step(run, step, now, out);
            }
            if !self.refill(now, out) && self.dirty.is_empty() {
                return;
            }
        }
    }

    fn follow_step(&mut self, id: RunId, index: usize, now: Millis, out: &mut Step) {
        let Some(run) = self.state.runs.get(&id) else { return };
        if index >= run.steps.len() {
            return;
        }
        let cancelled_by = run.cancelled_by(index);
        if cancelled_by.is_none() && self.expire(id, index, now, out) {
            return;
        }
        let step = self.state.step(id, index);
        match (step.stage, cancelled_by) {
            (Stage::Settled, _) | (Stage::Current, None) => {}
            (Stage::Current, Some(by)) => {
                self.call_off(Key { run: id, step: index, attempt: step.last() }, by, now, out);
            }
            (Stage::Over, cancelled_by) => self.after_end(id, index, cancelled_by, now, out),
            (Stage::Waiting { .. }, Some(by)) => self.settle(id, index, Outcome::Cancelled { by }, now, out),
            (Stage::Waiting { not_before }, None) => {
                if step.waits == 0 && not_before <= now {
                    self.make_ready(id, index, now, out);
                }
            }
        }
    }

    /// P11: a job that nobody claimed is withdrawn at once; an attempt that has an owner is over by its owner's
    /// word, or by the end of its lease.
    fn call_off(&mut self, key: Key, by: CancelledBy, now: Millis, out: &mut Step) {
        let owner: Option<WorkerId> = self.state.attempt(key).owner.clone();
        match owner {
            Some(_) if breach::is(Breach::CancelledGoesOn) => {}
            Some(owner) => {
                let claim = self.state.claim(key);
                self.tell_worker(&owner, Control::Cancel { claim, by }, out);
            }
            None => self.end(key, End::Withdrawn, now, out),
        }
    }

    /// An attempt is over: the step is settled by it, or tried again (promise 5).
    fn after_end(&mut self, id: RunId, index: usize, cancelled: Option<CancelledBy>, now: Millis, out: &mut Step) {
        let step = self.state.step(id, index);
        let attempt = step.attempts.last().expect("a step that is over had an attempt");
        let charged = step.charged;
        let rule = self.state.runs[&id].users_rule(index);
        let outcome = attempt.outcome();
        let (cause, again) = match &outcome {
            None => (RetryCause::Gone, true),
            Some(_) if attempt.missed_its_base() => (RetryCause::Lineage, true),
            Some(outcome) if outcome.is_handed_back() => (RetryCause::HandedBack, true),
            Some(outcome) if outcome.is_go_void() => (RetryCause::GoVoid, true), // P18
            Some(outcome) if is_broken_lineage(outcome) => (RetryCause::Infra, false),
            // Another try would wait as long.
            Some(Outcome::Infra { stage: InfraStage::Queue, .. }) => (RetryCause::Infra, false),
            Some(outcome) if outcome.is_infra() => {
                let poison = charged.lost >= self.config.lost_max;
                (RetryCause::Infra, charged.infra < self.config.infra_retries && !poison)
            }
            Some(outcome) => {
                (RetryCause::User, rule.is_some_and(|rule| rule.covers(outcome) && charged.user < rule.max))
            }
        };
        match (again, cancelled, outcome) {
            (true, None, _) => {
                let (execution, attempt) = (step.execution, step.last());
                let wait = match cause {
                    RetryCause::Infra => self.config.backoff(execution, attempt, charged.infra + 1),
                    // Not at once: a queue that does not exist would return the next job as fast; and where a `go` takes
                    // too long, so does everything else.
                    RetryCause::Gone | RetryCause::GoVoid => self.config.backoff(execution, attempt, charged.gone + 1),
                    RetryCause::User => {
                        let first = rule.map_or(0, |rule| rule.backoff_ms);
                        users_backoff(first, execution, attempt, charged.user + 1)
                    }
                    // A remake, or what was made again meanwhile; or whoever else has a free slot: there is nothing to
                    // wait for.
                    RetryCause::Lineage | RetryCause::HandedBack => 0,
                };
                let retried = Entry::Retried { run: id, execution, because: cause, not_before_ms: now + wait };
                self.commit(retried, now, out);
            }
            // P13: a run that is called off tries nothing again.
            (true, Some(by), _) | (false, Some(by), None) => {
                self.settle(id, index, Outcome::Cancelled { by }, now, out);
            }
            (false, _, Some(outcome)) => {
                let poison = outcome.is_infra() && charged.lost >= self.config.lost_max;
                let outcome = if poison { self.poison(id, index) } else { outcome };
                self.settle(id, index, outcome, now, out);
            }
            (false, None, None) => unreachable!("a job that reached nobody is dispatched anew without a limit"),
        }
    }

    /// Promise 5: workers were lost on it, one after the other. Who, and what to do about it.
    fn poison(&self, id: RunId, index: usize) -> Outcome {
        let step = self.state.step(id, index);
        // Those of before it was asked for again were forgiven.
        let lost = step.attempts.iter().rev().filter(|attempt| matches!(attempt.end, Some(End::Lost { .. })));
        let mut workers: Vec<String> = lost
            .take(step.charged.lost as usize)
            .filter_map(|attempt| attempt.owner.as_ref().map(ToString::to_string))
            .collect();
        workers.reverse();
        let workers = workers.join(", ");
        let reason = format!(
            "{POISON}: {} workers were lost while they carried it out, one after the other: {workers}; find out what it \
             does to its host (memory, disk, the Engine), then have it tried again with `longshore retry --only infra`",
            step.charged.lost
        );
        Outcome::infra(InfraStage::Lease, reason)
    }

    /// Fixes a step's outcome, and what follows for the others: those that wait for it are skipped, the rest of
    /// its run is called off.
    pub(super) fn settle(&mut self, id: RunId, index: usize, outcome: Outcome, now: Millis, out: &mut Step) {
        let execution = self.state.step(id, index).execution;
        let passed = outcome.is_passed();
        let failed = outcome.is_users_failure() || outcome.is_infra();
        let remake_of = self.state.step(id, index).remake_of;
        self.commit_settled(id, index, Entry::Settled { run: id, execution, outcome }, now, out);
        // P20: a remaking is no step of the run's; what waits for it is looked at by itself.
        if let (Some(of), true, false) = (remake_of, breach::is(Breach::RemakeChangesOutcome), passed) {
            let execution = self.state.step(id, of).execution;
            let outcome = Outcome::Skipped { because: "a remaking".to_owned() };
            self.commit_settled(id, of, Entry::Settled { run: id, execution, outcome }, now, out);
        }
        if remake_of.is_none() {
            if !passed {
                self.skip_dependents(id, index, now, out);
            }
            if failed {
                self.fail_fast(id, index, now, out);
            }
        }
        self.settle_run(id, now, out);
    }

    /// What waits for a step that did not pass will never begin. Steps that are called off settle as that.
    fn skip_dependents(&mut self, id: RunId, index: usize, now: Millis, out: &mut Step) {
        let run = &self.state.runs[&id];
        let because = run.planned(index).name.to_string();
        let mut reached: BTreeSet<usize> = BTreeSet::new();
        let mut ahead: BTreeSet<usize> = run.graph.dependents[index].iter().copied().collect();
        while let Some(next) = ahead.pop_first() {
            let run = &self.state.runs[&id];
            if run.steps[next].stage == Stage::Settled || run.cancelled_by(next).is_some() || !reached.insert(next) {
                continue;
            }
            ahead.extend(&run.graph.dependents[next]);
            let execution = run.steps[next].execution;
            let outcome = Outcome::Skipped { because: because.clone() };
            self.commit_settled(id, next, Entry::Settled { run: id, execution, outcome }, now, out);
        }
    }

    /// A failure ends the rest of its run, unless the step that failed, or the other, keeps going.
    fn fail_fast(&mut self, id: RunId, index: usize, now: Millis, out: &mut Step) {
        let run = &self.state.runs[&id];
        let planned = run.planned(index);
        if planned.keep_going || run.cancelled || run.timed_out || run.failed_first.is_some() {
            return;
        }
        let mut others = run.steps.iter().zip(&run.pipeline.steps);
        if others.any(|(step, planned)| step.stage != Stage::Settled && !planned.keep_going) {
            let by = CancelledBy::Sibling(planned.name.to_string());
            self.commit(Entry::CancelAsked { run: id, by }, now, out);
        }
    }

    /// Writes a run's verdict once every step is settled.
    pub(super) fn settle_run(&mut self, id: RunId, now: Millis, out: &mut Step) {
        let run = &self.state.runs[&id];
        if run.outcome.is_none() && run.all_settled() {
            let outcome = run.verdict();
            self.commit(Entry::RunSettled { run: id, outcome }, now, out);
        }
    }
}
