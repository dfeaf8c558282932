//! What a step left, and who still needs it (P19, P20): the part of the state and of its fold that is about files.

use longshore_protocol::{Attempt, EngineId, ExecutionId, Fence, Outcome, RunId, SnapshotId, WorkerId};

use super::entry::Origin;
use super::fold::{Checked, ensure};
use super::input::Millis;
use super::state::{Run, Stage, State, Step};
use crate::pipeline::SnapshotRule;

/// The files of a step that passed: committed, in a parked container, or both.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Left {
    /// Whose attempt left them: the step's own, or a remaking's.
    pub(super) execution: ExecutionId,
    pub(super) attempt: Attempt,
    pub(super) snapshot: Option<SnapshotId>,
    /// The name of the container in which they stand parked at `worker`'s; while nobody has taken it, as far as
    /// that was heard (P19).
    pub(super) parked: Option<Parked>,
    pub(super) engine: EngineId,
    pub(super) worker: WorkerId,
    pub(super) fate: Fate,
}

/// A parked container: its name, where that was heard.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parked(pub(super) Option<String>);

/// What became of what a step left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Some of it is there, as far as that is known.
    Kept,
    /// Gone or out of reach, though somebody needs it.
    Lost,
    /// Nobody needed it any more.
    Dropped,
}

impl Left {
    /// Whether an attempt was sent after these files, and not after others that its parent left.
    pub(super) fn is_base(&self, base: Option<&Origin>) -> bool {
        match base {
            Some(Origin::Parent { execution, attempt, .. }) => (self.execution, self.attempt) == (*execution, *attempt),
            Some(Origin::Snapshot { id }) => self.snapshot.as_ref() == Some(id),
            Some(Origin::Image { .. }) | None => false,
        }
    }

    /// A child's command runs at the owner's, in this container.
    pub(super) fn gone_on(&mut self, container: &str) {
        let Some(Parked(Some(parked))) = &self.parked else { return };
        if parked == container {
            self.parked = None; // P19: it is the child's for good
        } else if self.snapshot.is_none() {
            // It did not fit, and was restored to another: from what its owner committed for that, under this name.
            let owner = self.worker.clone();
            let fence = Fence { execution: self.execution, attempt: self.attempt, owner };
            self.snapshot = Some(SnapshotId::ephemeral(&fence));
        }
    }
}

impl Run {
    /// Every step that goes on with a step's files, the hidden ones included.
    pub(super) fn children_of(&self, step: usize) -> impl Iterator<Item = usize> {
        let dependents = self.graph.dependents[step].iter().copied();
        let hidden = self.pipeline.steps.len()..self.steps.len();
        dependents.chain(hidden).filter(move |child| self.parent(*child) == Some(step))
    }

    /// A step and those that made its files again.
    pub(super) fn with_remakes(&self, step: usize) -> impl Iterator<Item = usize> {
        std::iter::once(step).chain(self.steps[step].remakes.iter().copied())
    }

    /// Whether a step, or one that made its files again, is among its parent's holds.
    pub(super) fn holds_parent(&self, step: usize) -> bool {
        self.with_remakes(step).any(|one| self.steps[one].holding)
    }

    /// The hidden step that makes a step's files again at this moment.
    pub(super) fn remake_under_way(&self, step: usize) -> Option<usize> {
        let last = *self.steps[step].remakes.last()?;
        (self.steps[last].stage != Stage::Settled).then_some(last)
    }

    /// What a step left, while some of it is there.
    pub(super) fn kept(&self, step: usize) -> Option<&Left> {
        self.steps[step].left.as_deref().filter(|left| left.fate == Fate::Kept)
    }

    /// Whether what a step left is nobody's but its children's: neither cached nor kept for people.
    pub(super) fn leaves_ephemeral(&self, step: usize) -> bool {
        let planned = self.planned(step);
        planned.cache_key.is_none() && planned.snapshot == SnapshotRule::Auto
    }

    /// A step that is settled needs its parent's files no longer once its own are committed, or nobody wants them. Of
    /// a chain in one container the first commit stays until the next one, so that little is ever made again.
    pub(super) fn let_go_of_parents(&mut self, step: usize) {
        let mut at = Some(step);
        while let Some(step) = at {
            let committed = self.kept(step).is_some_and(|left| left.snapshot.is_some());
            let settled = |one: &usize| self.steps[*one].stage == Stage::Settled;
            if !settled(&step) || (self.steps[step].holds > 0 && !committed) {
                return;
            }
            let holding = |one: &usize| self.steps[*one].holding && settled(one);
            let done: Vec<usize> = self.with_remakes(step).filter(holding).collect();
            at = self.parent(step).filter(|_| !done.is_empty());
            for one in done {
                self.steps[one].holding = false;
                if let Some(parent) = at {
                    self.steps[parent].holds -= 1;
                }
            }
        }
    }
}

impl State {
    pub(super) fn snapshot_dropped(&mut self, run: RunId, execution: ExecutionId) -> Checked {
        let (run, index) = self.of(run, execution)?;
        ensure(run.leaves_ephemeral(index), "it is kept beyond the run")?;
        let left = Self::unneeded(&mut run.steps[index])?;
        ensure(left.snapshot.is_some(), "it was never committed")?;
        left.fate = Fate::Dropped;
        Ok(())
    }

    pub(super) fn released(&mut self, run: RunId, execution: ExecutionId) -> Checked {
        let (run, index) = self.of(run, execution)?;
        let left = Self::unneeded(&mut run.steps[index])?;
        ensure(left.parked.take().is_some(), "its container is not parked")?;
        if left.snapshot.is_none() {
            left.fate = Fate::Dropped;
        }
        Ok(())
    }

    /// What a step left, once no child can need it.
    fn unneeded(step: &mut Step) -> Result<&mut Left, &'static str> {
        ensure(step.holds == 0, "a step behind it may still need it")?;
        let left = step.left.as_mut().ok_or("the step left nothing")?;
        ensure(left.fate == Fate::Kept, "it is gone already")?;
        Ok(left)
    }

    pub(super) fn left_lost(&mut self, run: RunId, execution: ExecutionId, reason: &str) -> Checked {
        let (run, index) = self.of(run, execution)?;
        let step = &mut run.steps[index];
        ensure(step.children > 0, "nobody needs it")?;
        let left = step.left.as_mut().ok_or("the step left nothing")?;
        ensure(left.fate == Fate::Kept, "it is gone already")?;
        left.fate = Fate::Lost;
        left.parked = None;
        step.lost = Some(reason.to_owned());
        // It had let go of its parent's when its own were committed: now they are wanted again.
        if !run.holds_parent(index)
            && let Some(parent) = run.parent(index)
        {
            run.steps[index].holding = true;
            run.steps[parent].holds += 1;
        }
        Ok(())
    }

    /// P20: a hidden step, with an execution of its own.
    pub(super) fn remake_begun(
        &mut self,
        run: RunId,
        execution: ExecutionId,
        remake: ExecutionId,
        at: Millis,
    ) -> Checked {
        let (run, index) = self.of(run, execution)?;
        let step = &run.steps[index];
        ensure(step.remake_of.is_none(), "what is made again is what the step left")?;
        ensure(step.outcome.as_ref().is_some_and(Outcome::is_passed), "the step has not passed")?;
        ensure(step.children > 0, "nobody needs it")?;
        ensure(run.kept(index).is_none(), "what it left is there")?;
        ensure(!step.broken && run.remake_under_way(index).is_none(), "it is being made again, or cannot be")?;
        let n = u32::try_from(step.remakes.len() + 1).map_err(|_| "remakings are counted in 32 bits")?;
        ensure(remake == ExecutionId::of_remake(execution, n), "its execution follows from the step's")?;
        let hidden = run.steps.len();
        let lost = run.steps[index].lost.take();
        run.steps.push(Step { lost, ready_at: at, ..Step::new(remake, 0, 0, Some(index)) });
        run.steps[index].remakes.push(hidden);
        run.executions.insert(remake);
        run.remaking += 1;
        if let Some(parent) = run.parent(hidden) {
            run.steps[parent].children += 1;
            run.steps[parent].holds += 1;
        }
        Ok(())
    }
}
