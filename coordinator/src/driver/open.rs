//! How many steps are open, and in which phase: what a gauge shows every second must not cost a look at a million of
//! them.

use std::collections::BTreeMap;

use longshore_protocol::RunId;

use crate::core::view::StepPhase;
use crate::metrics::phase_word;

/// The phase of each step whose run was not forgotten.
#[derive(Debug, Default)]
pub(super) struct OpenSteps {
    runs: BTreeMap<RunId, Phases>,
    by_phase: BTreeMap<&'static str, u32>,
    /// Runs with a step that is open.
    runs_open: u32,
}

#[derive(Debug, Default)]
struct Phases {
    /// A step that was never seen is not open, as one that has settled.
    of_steps: Vec<StepPhase>,
    open: u32,
}

impl OpenSteps {
    pub(super) fn put(&mut self, run: RunId, step: usize, phase: StepPhase) {
        let of_run = self.runs.entry(run).or_default();
        if of_run.of_steps.len() <= step {
            of_run.of_steps.resize(step + 1, StepPhase::Settled);
        }
        let was_open = of_run.open > 0;
        if let Some(word) = phase_word(std::mem::replace(&mut of_run.of_steps[step], phase)) {
            of_run.open -= 1;
            *self.by_phase.entry(word).or_default() -= 1;
        }
        if let Some(word) = phase_word(phase) {
            of_run.open += 1;
            *self.by_phase.entry(word).or_default() += 1;
        }
        match (was_open, of_run.open > 0) {
            (false, true) => self.runs_open += 1,
            (true, false) => self.runs_open -= 1,
            _ => {}
        }
    }

    pub(super) fn forget(&mut self, run: RunId) {
        let Some(of_run) = self.runs.remove(&run) else { return };
        self.runs_open -= u32::from(of_run.open > 0);
        for word in of_run.of_steps.into_iter().filter_map(phase_word) {
            *self.by_phase.entry(word).or_default() -= 1;
        }
    }

    /// Every phase in which a step is open, and how many are; also none.
    pub(super) fn by_phase(&self) -> impl Iterator<Item = (&'static str, u32)> {
        let phases = [StepPhase::Waiting, StepPhase::Queued, StepPhase::Preparing, StepPhase::Running];
        phases.into_iter().filter_map(phase_word).map(|word| (word, self.by_phase.get(word).copied().unwrap_or(0)))
    }

    pub(super) fn runs(&self) -> u32 {
        self.runs_open
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn counts(open: &OpenSteps) -> (Vec<u32>, u32) {
        (open.by_phase().map(|(_, count)| count).collect(), open.runs())
    }

    #[test]
    fn every_step_counts_once_in_the_phase_that_it_was_put_in_last() {
        let (a, b) = (RunId(Uuid::from_u128(1)), RunId(Uuid::from_u128(2)));
        let mut open = OpenSteps::default();
        assert_eq!(counts(&open), (vec![0, 0, 0, 0], 0));
        // The second step is seen before the first one.
        open.put(a, 1, StepPhase::Waiting);
        open.put(a, 0, StepPhase::Queued);
        open.put(b, 0, StepPhase::Running);
        assert_eq!(counts(&open), (vec![1, 1, 0, 1], 2));
        open.put(a, 1, StepPhase::Running);
        open.put(a, 1, StepPhase::Running);
        open.put(b, 0, StepPhase::Settled);
        assert_eq!(counts(&open), (vec![0, 1, 0, 1], 1));
        // Opened again.
        open.put(b, 0, StepPhase::Waiting);
        open.forget(a);
        open.forget(a);
        assert_eq!(counts(&open), (vec![1, 0, 0, 0], 1));
        open.forget(b);
        assert_eq!(counts(&open), (vec![0, 0, 0, 0], 0));
    }
}
