//! The one way to write: everything that follows from some inputs, in one transaction (P3).

use longshore_protocol::event::Claim;
use longshore_protocol::output::Offsets;
use longshore_protocol::topology::Address;
use longshore_protocol::{RunId, StepName};
use serde::{Deserialize, Serialize};

use crate::core::effect::JobQueue;
use crate::core::entry::{Entry, LogGap};
use crate::core::input::Millis;
use crate::core::view::{RunSummary, StepView};

/// What one transaction writes. Numbers (`seq`, `change`, `id`) are given by the one writer.
#[derive(Debug, Default)]
pub struct Batch {
    /// Journal entries, in order.
    pub entries: Vec<EntryRow>,
    /// Runs that changed.
    pub runs: Vec<RunRow>,
    /// Steps that changed.
    pub steps: Vec<StepRow>,
    /// Messages to publish.
    pub outbox: Vec<OutboxRow>,
    /// Messages whose publish was confirmed, or that nobody can receive.
    pub outbox_done: Vec<i64>,
    /// Logs that begin.
    pub logs: Vec<NewLog>,
    /// Lines, and gaps.
    pub log_rows: Vec<LogRow>,
    /// How far each log is that got lines or was closed: the last word of each log counts.
    pub log_ends: Vec<LogEnd>,
    /// Chunks whose file is on disk.
    pub chunks: Vec<ChunkRow>,
}

/// A journal entry.
#[derive(Debug)]
pub struct EntryRow {
    /// Its number.
    pub seq: u64,
    /// When it was journalled.
    pub at_ms: Millis,
    /// What became true.
    pub entry: Entry,
}

/// A run as the read table holds it.
#[derive(Debug)]
pub struct RunRow {
    /// Its place among all changes.
    pub change: u64,
    /// What it shows.
    pub summary: RunSummary,
    /// Of the submitted pipeline: tells a repeated submit from another one. Only the first row's counts.
    pub pipeline_hash: String,
    /// Settled, and every log closed.
    pub done: bool,
}

/// A step as the read table holds it.
#[derive(Debug)]
pub struct StepRow {
    /// Its place among all changes.
    pub change: u64,
    /// Of which run.
    pub run: RunId,
    /// In the pipeline's order, from 0.
    pub index: usize,
    /// What it shows.
    pub view: StepView,
}

/// A message to be published.
#[derive(Clone, Debug, PartialEq)]
pub struct OutboxRow {
    /// Its place in the order.
    pub id: i64,
    /// What to do when it is returned.
    pub about: OutboxAbout,
    /// Where to.
    pub to: Address,
    /// As encoded.
    pub body: Vec<u8>,
}

/// What a message in the outbox is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum OutboxAbout {
    /// A job: where it is returned, its attempt is gone.
    Job {
        /// Which queue it is for; a pool's is declared first.
        queue: JobQueue,
        /// Which attempt.
        claim: Claim,
    },
    /// A control message: where it is returned, its worker is gone for good.
    Control,
}

/// An attempt's log begins.
#[derive(Debug)]
pub struct NewLog {
    /// Whose.
    pub claim: Claim,
    /// Its step's name.
    pub step: StepName,
}

/// Some lines of one log, or the gap at its end.
#[derive(Debug)]
pub struct LogRow {
    /// Its place among all changes.
    pub change: u64,
    /// Whose log.
    pub claim: Claim,
    /// The number of its first line, from 1.
    pub first_line: u64,
    /// What it holds.
    pub content: RowContent,
}

/// What a row of a log holds.
#[derive(Debug)]
pub enum RowContent {
    /// Lines as they came.
    Lines {
        /// How many.
        lines: u64,
        /// [Packed](super::packed::pack).
        data: Vec<u8>,
    },
    /// Bytes that never arrived.
    Gap(LogGap),
}

/// How far a log is.
#[derive(Debug)]
pub struct LogEnd {
    /// Whose.
    pub claim: Claim,
    /// Stored, contiguous from 0.
    pub stored: Offsets,
    /// How many lines that is.
    pub lines: u64,
    /// Whether it will not grow any more.
    pub closed: bool,
}

/// A chunk whose file is on disk.
#[derive(Debug)]
pub struct ChunkRow {
    /// Whose lines.
    pub claim: Claim,
    /// The number of its first line.
    pub first_line: u64,
    /// How many it holds.
    pub lines: u64,
    /// Offsets of the streams before its first line.
    pub before: Offsets,
    /// Of the file.
    pub bytes: u64,
}
