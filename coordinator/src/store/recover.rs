//! What a new leader reads.

use longshore_protocol::event::Claim;
use longshore_protocol::output::Offsets;

use crate::core::entry::Entry;
use crate::core::input::Millis;

/// Where the one writer goes on counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// The last journal entry's number.
    pub seq: u64,
    /// The last change's.
    pub change: u64,
    /// The last message's that is still in the outbox.
    pub outbox: i64,
}

/// A line of the journal.
#[derive(Clone, Debug, PartialEq)]
pub struct JournalRow {
    /// Its number.
    pub seq: u64,
    /// When it was journalled.
    pub at_ms: Millis,
    /// What became true.
    pub entry: Entry,
}

/// An open log.
#[derive(Debug)]
pub struct OpenLog {
    /// Whose.
    pub claim: Claim,
    /// Stored, contiguous from 0.
    pub stored: Offsets,
    /// How many lines that is.
    pub lines: u64,
    /// The first line that is in no chunk.
    pub open_from: u64,
    /// Offsets before that line.
    pub open_before: Offsets,
    /// Bytes of the rows that are in no chunk.
    pub open_bytes: u64,
}
