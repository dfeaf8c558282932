//! What the API reads of logs: rows in the order in which they were stored, across the logs of a run.

use longshore_protocol::output::Run;
use longshore_protocol::{Attempt, ExecutionId, RunId, StepName};

use crate::core::entry::LogGap;

/// Which logs are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Of this run.
    pub run: RunId,
    /// Of one step only.
    pub execution: Option<ExecutionId>,
    /// Of one try of that step only.
    pub attempt: Option<Attempt>,
}

/// A row of a log: some lines, or the gap at its end.
#[derive(Debug)]
pub struct StoredRow {
    /// Its place among all changes.
    pub change: u64,
    /// Whose.
    pub step: StepName,
    /// Whose.
    pub execution: ExecutionId,
    /// Which try of it.
    pub attempt: Attempt,
    /// The number of its first line, from 1.
    pub first_line: u64,
    /// How many; 0 for a gap.
    pub lines: u64,
    /// What it holds.
    pub content: StoredContent,
}

/// What a row holds.
#[derive(Debug)]
pub enum StoredContent {
    /// Its lines.
    Open(Vec<Run>),
    /// Its lines are in the chunk that begins with this line.
    Sealed {
        /// The number of the chunk's first line.
        chunk: u64,
    },
    /// Bytes that never arrived.
    Gap(LogGap),
}

/// A row without its bytes: to find a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowPlace {
    /// Its place among all changes.
    pub change: u64,
    /// The number of its first line.
    pub first_line: u64,
    /// How many; 0 for a gap.
    pub lines: u64,
}
