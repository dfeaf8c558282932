//! What becomes of what a step left: lost, made again (P20), let go of.
//!
//! A step's files may stand in a parked container only, which one child takes for good (P19), or on an Engine whose
//! workers are gone. A child that needs them then waits for a *remake*: a hidden step behind the run's own, with an
//! execution, attempts, fleet's retries and a log of its own. What it leaves takes the place of what was lost; nothing
//! else of the step that settled changes. It is placed as any other, so that it may need a remake itself, and so on
//! up to the image.

use longshore_protocol::control::Control;
use longshore_protocol::event::{Claim, Phases};
use longshore_protocol::outcome::{InfraStage, LINEAGE, Outcome, SNAPSHOT_LOST};
use longshore_protocol::output::Offsets;
use longshore_protocol::{ExecutionId, RunId, StepName};

use super::decide::{Core, Step};
use super::entry::{End, Entry, Origin};
use super::hear::Speech;
use super::input::Millis;
use super::state::{Key, Run, Stage, Try};

impl Try {
    /// Whether it ended because its parent's files were not where it was sent. What a worker adds behind the word is
    /// for people.
    pub(super) fn missed_its_base(&self) -> bool {
        let sent_after = matches!(self.base, Some(Origin::Parent { .. } | Origin::Snapshot { .. }));
        match &self.end {
            Some(End::Finished { outcome: Outcome::Infra { stage: InfraStage::Prepare, reason }, .. }) => {
                sent_after && says(reason, SNAPSHOT_LOST)
            }
            _ => false,
        }
    }
}

/// The end of a step whose parent's files could not be made again: no try would find them.
pub(super) fn is_broken_lineage(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Infra { stage: InfraStage::Prepare, reason } if says(reason, LINEAGE))
}

/// Whether a reason is this word. What stands behind it is for people.
fn says(reason: &str, word: &str) -> bool {
    let rest = reason.strip_prefix(word);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}

/// The steps that wait for nothing but what another left.
pub(super) fn waiting_for(run: &Run, step: usize) -> impl Iterator<Item = usize> {
    let ready = |child: &usize| {
        let child = &run.steps[*child];
        child.waits == 0 && matches!(child.stage, Stage::Waiting { .. })
    };
    run.children_of(step).filter(ready)
}

/// Of a step that was settled: the remake that was to serve it, if nobody waits for that any more.
pub(super) fn unwanted_remake(run: &Run, step: usize) -> Option<usize> {
    let parent = run.parent(step)?;
    if run.steps[parent].children > 0 { None } else { run.remake_under_way(parent) }
}

impl Core {
    /// P20: a child cannot begin, because what its parent left is not there: it is made again, unless that is under
    /// way, or hopeless. `lost` says in words why what the state still counts on is not there.
    pub(super) fn make_again(&mut self, id: RunId, child: usize, lost: Option<String>, now: Millis, out: &mut Step) {
        let run = &self.state.runs[&id];
        let Some(parent) = run.parent(child) else { unreachable!("only a parent's files can be lost") };
        if let Some(reason) = lost {
            self.lose(id, parent, reason, now, out);
        }
        let run = &self.state.runs[&id];
        let step = &run.steps[parent];
        if run.remake_under_way(parent).is_some() {
            return; // the child is looked at again when that is settled
        }
        if run.planned(parent).spec.exclusive {
            // P18: it is never made again.
            let (name, lost) = (&run.planned(parent).name, step.lost.as_deref().unwrap_or("it is lost"));
            let reason = format!("{LINEAGE}: {name} is exclusive, so what it left is not made again: {lost}");
            self.end_before_begin(id, child, reason, now, out);
            return;
        }
        if step.broken || step.remakes.len() - step.remakes_before >= self.config.remakes_max as usize {
            self.end_before_begin(id, child, LINEAGE.to_owned(), now, out);
            return;
        }
        let n = u32::try_from(step.remakes.len() + 1).expect("it is below a bound of 32 bits");
        let remake = ExecutionId::of_remake(step.execution, n);
        self.commit(Entry::RemakeBegun { run: id, execution: step.execution, remake }, now, out);
    }

    /// A worker said that what a child was sent after is not there. It may have been made again meanwhile.
    pub(super) fn base_is_lost(&mut self, child: Key, now: Millis, out: &mut Step) {
        let run = &self.state.runs[&child.run];
        let Some(parent) = run.parent(child.step) else { return };
        let base = self.state.attempt(child).base.as_ref();
        if run.kept(parent).is_some_and(|left| left.is_base(base)) {
            let reason = format!("{} did not find it", run.log_name(child.step));
            self.lose(child.run, parent, reason, now, out);
        }
    }

    fn lose(&mut self, id: RunId, index: usize, reason: String, now: Millis, out: &mut Step) {
        let run = &self.state.runs[&id];
        let Some(left) = run.kept(index).cloned() else { return };
        let (execution, ephemeral) = (run.steps[index].execution, run.leaves_ephemeral(index));
        self.commit(Entry::LeftLost { run: id, execution, reason }, now, out);
        // Its owner may return with it. Where it is there all the same, others may have been sent after it.
        let owner_away = self.state.workers.get(&left.worker).is_some_and(|worker| !worker.alive);
        if owner_away && ephemeral {
            let claim = Claim { run: id, execution: left.execution, attempt: left.attempt };
            self.tell_worker(&left.worker, Control::Release { claim }, out);
        }
    }

    /// An attempt that is over before anybody was asked: the fleet cannot carry it out.
    pub(super) fn end_before_begin(&mut self, id: RunId, index: usize, reason: String, now: Millis, out: &mut Step) {
        let step = self.state.step(id, index);
        let (execution, attempt) = (step.execution, step.last().next());
        let end = End::Finished {
            outcome: Outcome::infra(InfraStage::Prepare, reason),
            cached: false,
            output: Offsets::default(),
            snapshot: None,
            parked: false,
            phases: Phases::default(),
            usage: None,
        };
        self.commit(Entry::Ended { run: id, execution, attempt, end }, now, out);
    }

    /// Writes that a step is settled, and lets go of what nobody needs any more since.
    pub(super) fn commit_settled(&mut self, id: RunId, index: usize, entry: Entry, now: Millis, out: &mut Step) {
        let run = &self.state.runs[&id];
        let step = &run.steps[index];
        let committed = run.kept(index).is_some_and(|left| left.snapshot.is_some());
        if step.remake_of.is_none() && step.holds > 0 && !committed {
            // In the middle of a chain: its parent's files are still wanted, as its own are.
            return self.commit(entry, now, out);
        }
        // What it lets go of may let go of its own parent, and so on, as far as steps hold one another now.
        let mut freed = vec![run.original(index)];
        let mut at = run.parent(index);
        while let Some(step) = at {
            freed.push(step);
            at = run.parent(step).filter(|_| run.holds_parent(step));
        }
        self.commit(entry, now, out);
        for step in freed {
            self.drop_left(id, step, now, out);
        }
    }

    /// Lets go of what a step left if no step behind it can need it: a parked container always, what was committed
    /// unless it is cached or kept for people.
    fn drop_left(&mut self, id: RunId, index: usize, now: Millis, out: &mut Step) {
        let run = &self.state.runs[&id];
        let step = &run.steps[index];
        let Some(left) = run.kept(index).filter(|_| step.stage == Stage::Settled && step.holds == 0) else { return };
        let (left, execution, ephemeral) = (left.clone(), step.execution, run.leaves_ephemeral(index));
        if left.parked.is_some() {
            // A child that took it without our hearing of it has it for good: then this finds nothing (P19).
            self.commit(Entry::Released { run: id, execution }, now, out);
            let claim = Claim { run: id, execution: left.execution, attempt: left.attempt };
            self.tell_worker(&left.worker, Control::Release { claim }, out);
        }
        if let Some(snapshot) = left.snapshot.filter(|_| ephemeral) {
            // Any worker beside the Engine will do; if none is there, its owner finds the message when it is back.
            let worker = self.room.beside(&left.engine).next().unwrap_or(&left.worker).clone();
            self.commit(Entry::SnapshotDropped { run: id, execution, snapshot: snapshot.clone() }, now, out);
            self.tell_worker(&worker, Control::RemoveSnapshot { snapshot }, out);
        }
    }

    /// Of the containers that a worker reports as parked, those that nobody will go on in: the order to remove one
    /// may have been lost with an incarnation, or its run be forgotten.
    pub(super) fn release_unneeded(&self, speech: Speech, parked: &[Claim], out: &mut Step) {
        for claim in parked {
            if !self.is_needed(speech, claim) {
                let control = Control::Release { claim: claim.clone() };
                Self::tell(speech.worker, speech.incarnation, control, out);
            }
        }
    }

    fn is_needed(&self, speech: Speech, claim: &Claim) -> bool {
        let Some(key) = self.state.key(claim) else { return false };
        let attempt = self.state.attempt(key);
        if attempt.end.is_none() {
            // Its `finished` is still to come; unless that is another's to say.
            return attempt.owner.as_ref().is_none_or(|owner| owner == speech.worker);
        }
        let run = &self.state.runs[&key.run];
        // Also where a child has taken it since: a heartbeat may be older than that, and to release it would remove
        // what was committed besides.
        run.kept(run.original(key.step)).is_some_and(|left| {
            (left.execution, left.attempt) == (claim.execution, claim.attempt) && left.worker == *speech.worker
        })
    }

    /// By which name people ask for an attempt's log: its step's; of a remake, that with `~` and a number.
    pub fn log_name(&self, claim: &Claim) -> Option<StepName> {
        let run = self.state.runs.get(&claim.run)?;
        Some(run.log_name(run.find(&claim.execution)?))
    }
}
