//! A settled run is opened again: which of its steps, and what becomes of them.
//!
//! What passed stays. What did not is carried out anew: its attempts go on counting, so that fences stay unique, and
//! whatever was charged before is forgiven. The files of a parent that were let go of are made again (P20).

use std::collections::BTreeSet;

use longshore_protocol::{ExecutionId, Outcome, RunId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::decide::{Core, Step};
use super::entry::Entry;
use super::fold::{Checked, Illegal, ensure};
use super::input::Millis;
use super::state::{Run, Stage, State};

/// How a step missed passing: which of them are to be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// By the user's own fault, a timeout and a lack of memory included.
    Failed,
    /// By the fleet's.
    Infra,
    /// It was skipped or cancelled.
    Missing,
}

impl Missed {
    fn covers(self, outcome: &Outcome) -> bool {
        match self {
            Self::Failed => outcome.is_users_failure(),
            Self::Infra => outcome.is_infra(),
            Self::Missing => matches!(outcome, Outcome::Skipped { .. } | Outcome::Cancelled { .. }),
        }
    }
}

/// Why a run is not opened again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRetried {
    /// There is no such run in memory.
    Unknown,
    /// It is not settled.
    Open,
    /// Every step passed.
    AllPassed,
    /// What was asked for is not there, or waits for a step that did not pass and was not asked for.
    Nothing,
}

impl Core {
    /// The steps that would be carried out anew, in the pipeline's order: those that are asked for, and what waits for
    /// them; none that waits for another which did not pass and stays as it is.
    ///
    /// # Errors
    /// There is none, or the run is not one that can be opened.
    pub fn retryable(&self, run: RunId, only: &[Missed]) -> Result<Vec<ExecutionId>, NotRetried> {
        let run = self.state.runs.get(&run).ok_or(NotRetried::Unknown)?;
        if run.outcome.is_none() {
            return Err(NotRetried::Open);
        }
        let steps = run.pipeline.steps.len();
        let (mut follows, mut blocked) = (vec![false; steps], vec![false; steps]);
        let (mut chosen, mut all_passed) = (Vec::new(), true);
        // What a step waits for stands before it.
        for index in 0..steps {
            let step = &run.steps[index];
            let Some(outcome) = step.outcome.as_ref().filter(|outcome| !outcome.is_passed()) else { continue };
            all_passed = false;
            let wanted = follows[index] || only.is_empty() || only.iter().any(|missed| missed.covers(outcome));
            let opened = wanted && !blocked[index];
            chosen.extend(opened.then_some(step.execution));
            for &dependent in &run.graph.dependents[index] {
                let mark = if opened { &mut follows } else { &mut blocked };
                mark[dependent] = true;
            }
        }
        match (chosen.is_empty(), all_passed) {
            (false, _) => Ok(chosen),
            (true, true) => Err(NotRetried::AllPassed),
            (true, false) => Err(NotRetried::Nothing),
        }
    }

    pub(super) fn retry(&mut self, run: RunId, only: &[Missed], now: Millis, out: &mut Step) {
        if let Ok(steps) = self.retryable(run, only) {
            self.commit(Entry::RetryAsked { run, only: only.to_vec(), steps }, now, out);
        }
    }

    /// Takes a run back that is done and was [forgotten](Self::forget): from its own journal, and the workers' entries
    /// among it, in order. One that is in memory, or not done, stays as it is.
    ///
    /// # Errors
    /// An entry cannot follow those before it. Nothing was changed.
    pub fn recall(&mut self, run: RunId, entries: impl IntoIterator<Item = (Millis, Entry)>) -> Result<(), Illegal> {
        // Not into the state that lives: there its workers may be gone, or have started anew.
        let mut past = State::default();
        for (at, entry) in entries {
            past.apply(&entry, at)?;
        }
        if let Some(recalled) = past.runs.remove(&run).filter(Run::is_done) {
            self.state.runs.entry(run).or_insert(recalled);
        }
        Ok(())
    }
}

impl State {
    pub(super) fn retry_asked(&mut self, run: RunId, steps: &[ExecutionId], at: Millis) -> Checked {
        let run = self.run(run)?;
        ensure(run.outcome.is_some(), "the run is not settled")?;
        ensure(!steps.is_empty(), "no step is asked for")?;
        let mut opened = BTreeSet::new();
        for execution in steps {
            let index = run.find(execution).ok_or("the run has no such execution")?;
            let step = &run.steps[index];
            ensure(step.remake_of.is_none(), "what is made again is no step of the user's")?;
            ensure(step.outcome.as_ref().is_some_and(|outcome| !outcome.is_passed()), "the step passed")?;
            ensure(opened.insert(index), "the step is asked for twice")?;
        }
        for (index, step) in run.steps.iter().enumerate().take(run.pipeline.steps.len()) {
            let stays = !opened.contains(&index) && step.outcome.as_ref().is_some_and(|outcome| !outcome.is_passed());
            let waits = run.graph.dependents[index].iter().any(|dependent| opened.contains(dependent));
            ensure(!(stays && waits), "a step that it waits for has not passed")?;
        }
        run.outcome = None;
        run.settled_at = None;
        run.retried_at = Some(at);
        run.retries += 1;
        run.cancelled = false;
        run.timed_out = false;
        run.failed_first = None;
        for step in &mut run.steps {
            step.broken = false;
            step.remakes_before = step.remakes.len();
        }
        for index in opened {
            run.open_again(index, at);
        }
        Ok(())
    }
}

impl Run {
    /// Whether nothing of it will change, unless it is opened again.
    pub(super) fn is_done(&self) -> bool {
        self.outcome.is_some() && self.logs_open == 0
    }

    /// INVARIANT: of a settled run nothing holds anything, and `waits` counts what has not passed.
    fn open_again(&mut self, index: usize, at: Millis) {
        let step = &mut self.steps[index];
        let Some(outcome) = step.outcome.take() else { return };
        step.stage = Stage::Waiting { not_before: 0 };
        step.ready_at = at;
        step.cancelled = false;
        step.charged = super::state::Charged::default();
        step.holding = true;
        self.tally.settled -= 1;
        self.tally.failed -= u32::from(outcome.is_users_failure());
        self.tally.infra -= u32::from(outcome.is_infra());
        self.tally.cancelled -= u32::from(matches!(outcome, Outcome::Cancelled { .. }));
        let Some(parent) = self.parent(index) else { return };
        self.steps[parent].children += 1;
        self.steps[parent].holds += 1;
        self.hold_lineage(parent);
    }

    /// The other way round than [`Run::let_go_of_parents`]: what is not there itself holds that of which it is made
    /// again, though that may not begin before long.
    fn hold_lineage(&mut self, step: usize) {
        let mut at = Some(step);
        while let Some(step) = at {
            if self.kept(step).is_some_and(|left| left.snapshot.is_some()) || self.holds_parent(step) {
                return;
            }
            self.steps[step].holding = true;
            at = self.parent(step);
            if let Some(parent) = at {
                self.steps[parent].holds += 1;
            }
        }
    }
}
