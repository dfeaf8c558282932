//! What the API reads of runs.

use crate::core::view::{RunSummary, RunView, StepView};

/// A run with the place from which its changes go on.
#[derive(Debug)]
pub struct RunState {
    /// The run with its steps.
    pub view: RunView,
    /// The newest change in it.
    pub change: u64,
    /// Settled, and every log closed.
    pub done: bool,
}

/// What was changed.
#[derive(Debug)]
pub enum Changed {
    /// The run itself.
    Run(RunSummary),
    /// One of its steps.
    Step(StepView),
}

/// Of a run that is known: what tells a repeated submit from another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submitted {
    /// Of its pipeline.
    pub pipeline_hash: String,
    /// Whom it is charged to.
    pub tenant: String,
}
