//! Every output line (P12, P14): taken from the current owner, contiguous per stream, stored as it was.
//!
//! * here: what the one writer knows of each open log, and which lines it takes;
//! * [`seal`] the open end becomes chunks of about 1 MiB, so that any line of a million opens at once;
//! * [`read`] lines by number, the last ones, and following.

pub mod read;
pub mod seal;

use std::collections::{BTreeMap, BTreeSet};

use longshore_protocol::breach::{self, Breach};
use longshore_protocol::event::Claim;
use longshore_protocol::output::{Offsets, Run};
use longshore_protocol::{Attempt, ExecutionId, RunId};

use crate::core::entry::LogGap;
use crate::store::batch::{Batch, ChunkRow, LogEnd, LogRow, RowContent};
use crate::store::packed::pack;
use crate::store::recover::OpenLog;
use seal::SealOrder;

/// A row holds about so much at most: a page of rows is read at once, and a chunk is cut between rows.
const ROW_BYTES: usize = 256 * 1024;

type Key = (RunId, ExecutionId, Attempt);

fn key(claim: &Claim) -> Key {
    (claim.run, claim.execution, claim.attempt)
}

fn claim((run, execution, attempt): Key) -> Claim {
    Claim { run, execution, attempt }
}

/// What the one writer knows of the logs that may still grow.
#[derive(Debug, Default)]
pub struct LogDesk {
    open: BTreeMap<Key, OpenEnd>,
    /// Closed, but what is in rows is still long enough for a chunk.
    closed: BTreeMap<Key, OpenEnd>,
    /// Logs with lines that are in no batch yet.
    pending: BTreeSet<Key>,
    /// Logs long enough for a chunk, each once until [`LogDesk::to_seal`] takes it.
    due: BTreeSet<Key>,
}

#[derive(Debug)]
struct OpenEnd {
    /// INVARIANT: contiguous from 0, and never behind what the store holds.
    stored: Offsets,
    lines: u64,
    pending: Vec<Run>,
    /// How many lines that is.
    pending_lines: u64,
    /// The first line that is in no chunk, the offsets before it, and how much the rows from it on hold.
    open_from: u64,
    open_before: Offsets,
    open_bytes: u64,
    sealing: bool,
}

/// What became of some output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Stored now, contiguous from 0.
    pub stored: Offsets,
    /// How many bytes of each stream were new.
    pub new: Offsets,
    /// Whether something before one of the runs is missing (P14).
    pub gap: bool,
}

impl LogDesk {
    /// Goes on with the logs that were open when the last reign ended.
    pub fn recovered(logs: Vec<OpenLog>) -> Self {
        let ends = logs.into_iter().map(|log| {
            let end = OpenEnd {
                stored: log.stored,
                lines: log.lines,
                pending: Vec::new(),
                pending_lines: 0,
                open_from: log.open_from,
                open_before: log.open_before,
                open_bytes: log.open_bytes,
                sealing: false,
            };
            (key(&log.claim), end)
        });
        Self { open: ends.collect(), ..Self::default() }
    }

    /// An attempt was dispatched: its log begins.
    pub fn begin(&mut self, claim: &Claim) {
        self.open.entry(key(claim)).or_insert_with(|| OpenEnd {
            stored: Offsets::default(),
            lines: 0,
            pending: Vec::new(),
            pending_lines: 0,
            open_from: 1,
            open_before: Offsets::default(),
            open_bytes: 0,
            sealing: false,
        });
    }

    /// What is stored of a log; `None` if it cannot grow.
    pub fn stored(&self, claim: &Claim) -> Option<Offsets> {
        self.open.get(&key(claim)).map(|end| end.stored)
    }

    /// Takes what goes on where the log ends, cuts what it has already, and leaves what
    /// comes too early (P14). `None` if the log cannot grow. The caller has checked the fence (P12).
    pub fn take(&mut self, claim: &Claim, runs: Vec<Run>) -> Option<Taken> {
        let end = self.open.get_mut(&key(claim))?;
        let before = end.stored;
        let mut gap = false;
        for mut run in runs {
            let stored = end.stored.of_mut(run.stream);
            if breach::is(Breach::OffsetsIgnored) {
                run.offset = *stored;
            }
            if run.offset > *stored {
                gap = true;
                continue;
            }
            if let Some(run) = run.behind(*stored) {
                *stored = run.end();
                end.lines += run.count();
                end.pending_lines += run.count();
                end.pending.push(run);
            }
        }
        if !end.pending.is_empty() {
            self.pending.insert(key(claim));
        }
        let new = Offsets { stdout: end.stored.stdout - before.stdout, stderr: end.stored.stderr - before.stderr };
        Some(Taken { stored: end.stored, new, gap })
    }

    /// The log will not grow any more. What is missing stands at its end (P14).
    pub fn close(&mut self, claim: &Claim, gap: LogGap, change: &mut u64, batch: &mut Batch) {
        let Some(mut end) = self.open.remove(&key(claim)) else { return };
        self.pending.remove(&key(claim));
        end.write(key(claim), change, batch);
        if gap != LogGap::None {
            *change += 1;
            let content = RowContent::Gap(gap);
            batch.log_rows.push(LogRow { change: *change, claim: claim.clone(), first_line: end.lines + 1, content });
        }
        batch.log_ends.push(end.log_end(key(claim), true));
        if end.open_bytes >= seal::CHUNK_BYTES {
            self.due.extend((!end.sealing).then(|| key(claim)));
            self.closed.insert(key(claim), end);
        }
    }

    /// Puts every line that was taken into the batch.
    pub fn write(&mut self, change: &mut u64, batch: &mut Batch) {
        for key in std::mem::take(&mut self.pending) {
            if let Some(end) = self.open.get_mut(&key) {
                end.write(key, change, batch);
                batch.log_ends.push(end.log_end(key, false));
                if end.open_bytes >= seal::CHUNK_BYTES && !end.sealing {
                    self.due.insert(key);
                }
            }
        }
    }

    /// Logs whose open end is long enough for a chunk, each ordered once at a time. What they name
    /// must be committed before it is sealed.
    pub fn to_seal(&mut self) -> Vec<SealOrder> {
        let mut orders = Vec::new();
        for due in std::mem::take(&mut self.due) {
            if let Some(end) = self.open.get_mut(&due).or(self.closed.get_mut(&due)) {
                end.sealing = true;
                let (first_line, end_line) = (end.open_from, end.lines + 1);
                orders.push(SealOrder { claim: claim(due), first_line, end_line, before: end.open_before });
            }
        }
        orders
    }

    /// A sealing ended, with these chunks on disk: the caller puts them into the batch.
    pub fn sealed(&mut self, claim: &Claim, chunks: &[(ChunkRow, seal::Sealed)]) {
        let key = key(claim);
        let Some(end) = self.open.get_mut(&key).or(self.closed.get_mut(&key)) else { return };
        end.sealing = false;
        for (chunk, sealed) in chunks {
            end.open_from = chunk.first_line + chunk.lines;
            end.open_before = sealed.after;
            end.open_bytes = end.open_bytes.saturating_sub(sealed.raw_bytes);
        }
        // After a failure, which seals nothing, the next line tries again rather than a loop.
        if !chunks.is_empty() && end.open_bytes >= seal::CHUNK_BYTES {
            self.due.insert(key);
        } else {
            self.closed.remove(&key);
        }
    }

    /// A run is done: what may still be open of it, the log of an attempt that nobody claimed, is not looked at again.
    pub fn end_run(&mut self, run: RunId) {
        let first = (run, ExecutionId(uuid::Uuid::nil()), Attempt(0));
        let keys: Vec<Key> = self.open.range(first..).map(|(key, _)| *key).take_while(|key| key.0 == run).collect();
        for key in keys {
            self.open.remove(&key);
        }
    }
}

impl OpenEnd {
    fn write(&mut self, of: Key, change: &mut u64, batch: &mut Batch) {
        let mut first_line = self.lines + 1 - std::mem::take(&mut self.pending_lines);
        let mut row = Vec::new();
        let mut row_bytes = 0;
        for run in std::mem::take(&mut self.pending) {
            row_bytes += run.weight();
            row.push(run);
            if row_bytes >= ROW_BYTES {
                self.write_row(of, &mut first_line, &row, change, batch);
                row.clear();
                row_bytes = 0;
            }
        }
        if !row.is_empty() {
            self.write_row(of, &mut first_line, &row, change, batch);
        }
    }

    fn write_row(&mut self, of: Key, first_line: &mut u64, row: &[Run], change: &mut u64, batch: &mut Batch) {
        *change += 1;
        let lines = row.iter().map(Run::count).sum();
        self.open_bytes += row.iter().map(|run| run.weight() as u64).sum::<u64>();
        let content = RowContent::Lines { lines, data: pack(row) };
        batch.log_rows.push(LogRow { change: *change, claim: claim(of), first_line: *first_line, content });
        *first_line += lines;
    }

    fn log_end(&self, of: Key, closed: bool) -> LogEnd {
        LogEnd { claim: claim(of), stored: self.stored, lines: self.lines, closed }
    }
}
