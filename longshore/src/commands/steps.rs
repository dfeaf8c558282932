//! Which step is meant, and what to say where there is none.

use longshore_coordinator::core::view::RunView;

use crate::failure::Failure;

/// A few lines of a terminal.
const STEPS_NAMED: usize = 20;

/// A step's name out of a matrix is easily mistyped: the mend is the names that there are.
pub(crate) fn no_such_step(step: &str, run: &RunView) -> Failure {
    let names: Vec<&str> = run.steps.iter().map(|other| other.step.as_str()).collect();
    let shown = names[..names.len().min(STEPS_NAMED)].join(", ");
    let more = if names.len() > STEPS_NAMED { ", … (`longshore show` has all)" } else { "" };
    Failure::input(format!("the run has no step `{step}`")).mend(format!("its steps are {shown}{more}"))
}
