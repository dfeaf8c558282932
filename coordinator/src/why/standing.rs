//! How a run's steps and remakes stand, beside the one that is asked about.

use std::collections::{BTreeMap, BTreeSet};

use longshore_protocol::{ExecutionId, Outcome, StepName};

use crate::core::entry::Entry;
use crate::core::view::StepPhase;

/// The fold of a run's entries, as far as they say how far each step is. An entry costs no more where the one step waits
/// for ten thousand.
#[derive(Debug)]
pub(super) struct Steps<'a> {
    /// All but those that nothing has happened to.
    standings: BTreeMap<ExecutionId, Standing<'a>>,
    /// Of remakes: which step's files each makes again, and as which one of them.
    remakes: BTreeMap<ExecutionId, (ExecutionId, u32)>,
    /// What the step waits for, in its order.
    order: Vec<ExecutionId>,
    names: BTreeMap<ExecutionId, &'a StepName>,
    /// Of these, what has not passed.
    missing: BTreeSet<ExecutionId>,
}

/// How a step or remake stands.
#[derive(Clone, Debug)]
pub(super) struct Standing<'a> {
    pub(super) phase: StepPhase,
    pub(super) outcome: Option<&'a Outcome>,
}

impl<'a> Steps<'a> {
    /// Of a run of which nothing is known, for a step that waits for these.
    pub(super) fn before(waits_for: impl IntoIterator<Item = (ExecutionId, &'a StepName)>) -> Self {
        let before: Vec<_> = waits_for.into_iter().collect();
        let order: Vec<_> = before.iter().map(|(execution, _)| *execution).collect();
        let missing = order.iter().copied().collect();
        let names = before.into_iter().collect();
        Self { standings: BTreeMap::new(), remakes: BTreeMap::new(), order, names, missing }
    }

    /// Keeps up.
    pub(super) fn note(&mut self, entry: &'a Entry) {
        let (execution, phase) = match entry {
            Entry::Dispatched { execution, .. } => (execution, StepPhase::Queued),
            Entry::Accepted { execution, .. } => (execution, StepPhase::Preparing),
            Entry::Started { execution, .. } => (execution, StepPhase::Running),
            Entry::Ended { execution, .. } => (execution, StepPhase::Waiting),
            Entry::Settled { execution, outcome, .. } => {
                let standing = Standing { phase: StepPhase::Settled, outcome: Some(outcome) };
                self.standings.insert(*execution, standing);
                if outcome.is_passed() {
                    self.missing.remove(execution);
                }
                return;
            }
            Entry::RetryAsked { steps, .. } => {
                for step in steps {
                    self.standings.remove(step);
                }
                return;
            }
            Entry::RemakeBegun { execution, remake, .. } => {
                let nth = u32::try_from(self.remakes_of(*execution).count() + 1).unwrap_or(u32::MAX);
                self.remakes.insert(*remake, (*execution, nth));
                return;
            }
            _ => return,
        };
        self.standings.entry(*execution).or_insert_with(Standing::waits).phase = phase;
    }

    pub(super) fn standing(&self, execution: ExecutionId) -> Standing<'a> {
        self.standings.get(&execution).cloned().unwrap_or_else(Standing::waits)
    }

    pub(super) fn is_settled(&self, execution: ExecutionId) -> bool {
        self.standing(execution).phase == StepPhase::Settled
    }

    /// Of what the step waits for, what has not passed.
    pub(super) fn missing(&self) -> impl Iterator<Item = (&'a StepName, Standing<'a>)> {
        let missing = self.order.iter().filter(|execution| self.missing.contains(*execution));
        missing.map(|execution| (self.names[execution], self.standing(*execution)))
    }

    /// Whether all that it waits for has passed.
    pub(super) fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// The name of one that the step waits for.
    pub(super) fn name_before(&self, execution: ExecutionId) -> Option<&'a StepName> {
        self.names.get(&execution).copied()
    }

    /// Whose files a remake makes again, and as which one.
    pub(super) fn remake(&self, execution: ExecutionId) -> Option<(ExecutionId, u32)> {
        self.remakes.get(&execution).copied()
    }

    pub(super) fn remakes_of(&self, execution: ExecutionId) -> impl Iterator<Item = ExecutionId> {
        self.remakes.iter().filter(move |(_, (of, _))| *of == execution).map(|(remake, _)| *remake)
    }
}

impl Standing<'_> {
    fn waits() -> Self {
        Self { phase: StepPhase::Waiting, outcome: None }
    }
}
