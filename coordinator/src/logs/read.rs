//! Reading logs: from a line on, the last ones, and on from wherever a reader was.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use longshore_protocol::output::{Line, Run};
use longshore_protocol::{Attempt, ExecutionId, StepName};

use super::seal::{ChunkError, ChunkFiles};
use crate::api::types::{LogEvent, LogLine, Missing};
use crate::core::entry::LogGap;
use crate::store::log_rows::{RowPlace, Selection, StoredContent, StoredRow};
use crate::store::{Store, StoreError};

/// Rows of a page: with 256 KiB each, some MiB in memory for each reader.
const PAGE_ROWS: u32 = 16;

/// Lines of a page, about: of empty lines a row holds some hundred thousand, each a hundred bytes as an event.
const PAGE_LINES: usize = 8 * 1024;

/// Rows without their bytes, looked through for the last lines.
const PLACE_ROWS: u32 = 256;

/// Unpacked chunks kept by one reader: several logs of a run alternate in the order of storing.
/// Beyond it a chunk is unpacked again, some milliseconds.
const CHUNKS_KEPT: usize = 8;

/// A place in the order of storing, which is one order across all logs of a run: the id of an SSE
/// event. Everything up to and including it was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Which row.
    pub change: u64,
    /// How many of its lines.
    pub taken: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.change, self.taken)
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('-').and_then(|(change, taken)| Some((change.parse().ok()?, taken.parse().ok()?)));
        parts.map(|(change, taken)| Self { change, taken }).ok_or_else(|| format!("{text:?} is no place in a log"))
    }
}

/// Reads the selected logs in the order of storing.
#[derive(Debug)]
pub struct LogReader {
    store: Arc<dyn Store>,
    files: ChunkFiles,
    selection: Selection,
    place: Place,
    chunks: VecDeque<(ChunkKey, Arc<Counted>)>,
}

/// Whose chunk, and the number of its first line.
type ChunkKey = (ExecutionId, Attempt, u64);

impl LogReader {
    /// From the beginning.
    pub fn new(store: Arc<dyn Store>, files: ChunkFiles, selection: Selection) -> Self {
        Self { store, files, selection, place: Place::default(), chunks: VecDeque::new() }
    }

    /// From behind a place.
    #[must_use]
    pub fn behind(mut self, place: Place) -> Self {
        self.place = place;
        self
    }

    /// From a line of one log on, counted from 1. Behind its end: what comes next.
    pub async fn from_line(mut self, execution: ExecutionId, attempt: Attempt, n: u64) -> Result<Self, StoreError> {
        if let Some(row) = self.store.row_of_line(execution, attempt, n).await? {
            let taken = (n - row.first_line).min(row.lines.max(1));
            self.place = Place { change: row.change, taken };
        }
        Ok(self)
    }

    /// The last so many lines that are there now, and what comes next.
    pub async fn tail(mut self, lines: u64) -> Result<Self, StoreError> {
        let mut found = 0;
        let mut before = i64::MAX as u64;
        // Rows that come in between are newer: they are read as what comes next.
        loop {
            let rows = self.store.rows_before(&self.selection, before, PLACE_ROWS).await?;
            for row in &rows {
                if found >= lines {
                    // A gap counts as one thing that was taken.
                    self.place = Place { change: row.change, taken: row.lines.max(1) };
                    return Ok(self);
                }
                found += row.lines;
                if found > lines {
                    self.place = Place { change: row.change, taken: found - lines };
                    return Ok(self);
                }
            }
            match rows.last() {
                Some(last) if rows.len() == PLACE_ROWS as usize => before = last.change,
                _ => return Ok(self),
            }
        }
    }

    /// What comes next, each with its place. Nothing, if nothing more is there now.
    pub async fn next_page(&mut self) -> Result<Vec<(Place, LogEvent)>, ChunkError> {
        let rows = self.store.log_rows(&self.selection, self.place.change, PAGE_ROWS).await?;
        let mut page = Vec::new();
        for row in rows {
            // Whatever of it is too much comes with the next page.
            if page.len() >= PAGE_LINES {
                break;
            }
            let skip = if row.change == self.place.change { self.place.taken } else { 0 };
            self.read_row(row, skip, &mut page).await?;
        }
        if let Some((place, _)) = page.last() {
            self.place = *place;
        }
        Ok(page)
    }

    async fn read_row(
        &mut self,
        row: StoredRow,
        skip: u64,
        page: &mut Vec<(Place, LogEvent)>,
    ) -> Result<(), ChunkError> {
        if skip >= row.lines.max(1) {
            return Ok(());
        }
        let at = RowPlace { change: row.change, first_line: row.first_line, lines: row.lines };
        let of = (&row.step, row.attempt);
        match row.content {
            StoredContent::Gap(gap) => {
                let place = Place { change: row.change, taken: 1 };
                page.extend(missing(gap).map(|missing| (place, gap_event(of, missing))));
            }
            StoredContent::Open(runs) => push_lines(at, of, &Counted::new(runs), 0, skip, page),
            StoredContent::Sealed { chunk } => {
                let lines = self.chunk(row.execution, row.attempt, chunk).await?;
                let before = row.first_line - chunk;
                if lines.count < before + row.lines {
                    if lines.count > 0 {
                        tracing::error!(run = %self.selection.run, step = %row.step, line = row.first_line, "lines are lost");
                    }
                    push_lost(at, of, skip, page);
                } else {
                    push_lines(at, of, &lines, before, skip, page);
                }
            }
        }
        Ok(())
    }

    /// Of one that is lost, no lines: to ask again would not bring them back.
    async fn chunk(&mut self, execution: ExecutionId, attempt: Attempt, at: u64) -> Result<Arc<Counted>, ChunkError> {
        let key = (execution, attempt, at);
        if let Some((_, lines)) = self.chunks.iter().find(|(kept, _)| *kept == key) {
            return Ok(Arc::clone(lines));
        }
        let runs = match self.files.open(self.selection.run, execution, attempt, at).await {
            Err(error @ ChunkError::Lost { .. }) => {
                tracing::error!(%error, "a log cannot be shown whole");
                Vec::new()
            }
            opened => opened?,
        };
        let lines = Arc::new(Counted::new(runs));
        if self.chunks.len() == CHUNKS_KEPT {
            self.chunks.pop_front();
        }
        self.chunks.push_back((key, Arc::clone(&lines)));
        Ok(lines)
    }
}

/// Runs whose lines are counted, so that any line is found without counting again.
#[derive(Debug)]
struct Counted {
    /// Each with the number of lines before it.
    runs: Vec<(u64, Run)>,
    count: u64,
}

impl Counted {
    fn new(runs: Vec<Run>) -> Self {
        let mut count = 0;
        let counted = runs.into_iter().map(|run| {
            let before = count;
            count += run.count();
            (before, run)
        });
        Self { runs: counted.collect(), count }
    }

    /// The lines behind the first `skip`.
    fn behind(&self, skip: u64) -> impl Iterator<Item = Line> {
        let at = self.runs.partition_point(|(before, _)| *before <= skip).saturating_sub(1);
        let within = skip - self.runs.get(at).map_or(skip, |(before, _)| *before);
        let lines = self.runs.iter().skip(at).flat_map(|(_, run)| run.lines());
        lines.skip(usize::try_from(within).unwrap_or(usize::MAX))
    }
}

/// Puts a row's lines behind its first `skip` ones into the page. `lines` has `before` ones of other rows in front.
fn push_lines(
    row: RowPlace,
    (step, attempt): (&StepName, Attempt),
    lines: &Counted,
    before: u64,
    skip: u64,
    page: &mut Vec<(Place, LogEvent)>,
) {
    let room = PAGE_LINES - page.len().min(PAGE_LINES);
    let wanted = usize::try_from(row.lines - skip).unwrap_or(usize::MAX).min(room);
    for (index, line) in (skip..).zip(lines.behind(before + skip).take(wanted)) {
        let place = Place { change: row.change, taken: index + 1 };
        let line = LogLine {
            n: row.first_line + index,
            step: step.clone(),
            attempt,
            stream: line.stream,
            at_ms: line.at_ms,
            ending: line.ending,
            data: line.data,
        };
        page.push((place, LogEvent::Line(line)));
    }
}

/// Puts a row's lines behind its first `skip` ones into the page as lost, together with those before it.
fn push_lost(row: RowPlace, of: (&StepName, Attempt), skip: u64, page: &mut Vec<(Place, LogEvent)>) {
    let (mut first, mut count) = (row.first_line + skip, row.lines - skip);
    if let Some((_, LogEvent::Gap { step, attempt, gap: Missing::Lines { first: from, count: before }, .. })) =
        page.last()
        && (step, *attempt) == of
        && from + before == first
    {
        (first, count) = (*from, before + count);
        page.pop();
    }
    let place = Place { change: row.change, taken: row.lines };
    page.push((place, gap_event(of, Missing::Lines { first, count })));
}

fn gap_event((step, attempt): (&StepName, Attempt), gap: Missing) -> LogEvent {
    LogEvent::Gap { step: step.clone(), attempt, gap, text: gap_text(gap) }
}

/// What a log's end in the journal says.
pub(crate) fn missing(gap: LogGap) -> Option<Missing> {
    match gap {
        LogGap::None => None,
        LogGap::Bytes { missing } => Some(Missing::Bytes { missing }),
        LogGap::EndUnknown => Some(Missing::EndUnknown),
    }
}

/// What is missing, in words, as it stands in the log.
pub(crate) fn gap_text(gap: Missing) -> String {
    match gap {
        Missing::EndUnknown => "… the worker was lost: how much is missing here is not known".to_owned(),
        Missing::Bytes { missing } => {
            let named = [(missing.stdout, "stdout"), (missing.stderr, "stderr")];
            let parts: Vec<String> = named
                .iter()
                .filter(|(bytes, _)| *bytes > 0)
                .map(|(bytes, stream)| format!("{bytes} bytes of {stream}"))
                .collect();
            format!("… {} missing here", parts.join(" and "))
        }
        Missing::Lines { first, count: 1 } => format!("… line {first} is lost: its file is gone or damaged"),
        Missing::Lines { first, count } => {
            format!("… lines {first} to {} are lost: their file is gone or damaged", first + count - 1)
        }
    }
}
