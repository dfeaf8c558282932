//! The tables: what SQL's statements say, in maps.

use std::collections::BTreeMap;

use longshore_coordinator::core::entry::{Entry, LogGap};
use longshore_coordinator::core::input::Millis;
use longshore_coordinator::core::view::{RunSummary, RunView, StepView};
use longshore_coordinator::store::StoreError;
use longshore_coordinator::store::batch::{Batch, OutboxRow, RowContent};
use longshore_coordinator::store::log_rows::{RowPlace, Selection, StoredContent, StoredRow};
use longshore_coordinator::store::packed::unpack;
use longshore_coordinator::store::recover::{Counters, JournalRow, OpenLog};
use longshore_coordinator::store::runs::{Changed, RunState};
use longshore_protocol::event::Claim;
use longshore_protocol::output::Offsets;
use longshore_protocol::{Attempt, Epoch, ExecutionId, RunId, StepName, WorkerId};
use tokio::time::Instant;

/// A journal entry, and who wrote it when whose epoch it was.
#[derive(Debug)]
pub struct Committed {
    pub at_ms: Millis,
    pub entry: Entry,
    pub by: Epoch,
    pub epoch: Epoch,
}

#[derive(Debug)]
pub struct RunLine {
    pub summary: RunSummary,
    pub pipeline_hash: String,
    pub done: bool,
    change: u64,
}

#[derive(Debug)]
struct LogLine {
    run: RunId,
    step: StepName,
    stored: Offsets,
    lines: u64,
    closed: bool,
}

#[derive(Debug)]
struct RowLine {
    run: RunId,
    execution: ExecutionId,
    attempt: Attempt,
    first_line: u64,
    lines: u64,
    data: Option<Vec<u8>>,
    gap: Option<LogGap>,
}

type LogKey = (ExecutionId, Attempt);

/// Everything that is committed.
#[derive(Debug, Default)]
pub struct Tables {
    epoch: u64,
    /// By the store's own clock; before it began for one that was released.
    renewed: Option<Instant>,
    holder: String,
    pub journal: BTreeMap<u64, Committed>,
    /// Of each worker, the one entry of how far it was heard.
    heard: BTreeMap<WorkerId, u64>,
    pub runs: BTreeMap<RunId, RunLine>,
    steps: BTreeMap<(RunId, usize), (u64, StepView)>,
    pub outbox: BTreeMap<i64, OutboxRow>,
    logs: BTreeMap<LogKey, LogLine>,
    rows: BTreeMap<u64, RowLine>,
    chunks: BTreeMap<LogKey, BTreeMap<u64, u64>>,
}

impl Tables {
    /// Who leads, as the one said who took the epoch.
    pub fn holder(&self, lapse_ms: u64) -> Option<String> {
        let leads = self.renewed.is_some_and(|renewed| renewed.elapsed().as_millis() < u128::from(lapse_ms));
        leads.then(|| self.holder.clone())
    }

    pub fn take_epoch(&mut self, holder: &str, lapse_ms: u64) -> Option<Epoch> {
        if self.holder(lapse_ms).is_some() {
            return None;
        }
        holder.clone_into(&mut self.holder);
        self.epoch += 1;
        self.renewed = Some(Instant::now());
        Some(Epoch(self.epoch))
    }

    /// P21: who writes says whose epoch it is, or writes nothing.
    pub fn touch(&mut self, epoch: Epoch) -> Result<(), StoreError> {
        if epoch.0 != self.epoch {
            return Err(StoreError::Deposed(epoch));
        }
        self.renewed = Some(Instant::now());
        Ok(())
    }

    pub fn release(&mut self, epoch: Epoch) {
        if epoch.0 == self.epoch {
            self.renewed = None;
        }
    }

    pub fn write(&mut self, by: Epoch, batch: &Batch) -> Result<(), StoreError> {
        let epoch = Epoch(self.epoch);
        let taken = batch.entries.iter().find(|row| self.journal.contains_key(&row.seq));
        if let Some(row) = taken.filter(|_| by == epoch) {
            return Err(StoreError::Failed(format!("the journal has {} already", row.seq).into()));
        }
        if let Some(row) = batch.outbox.iter().find(|row| self.outbox.contains_key(&row.id)).filter(|_| by == epoch) {
            return Err(StoreError::Failed(format!("the outbox has {} already", row.id).into()));
        }
        for row in &batch.entries {
            if let Entry::Heard { worker, .. } = &row.entry
                && let Some(before) = self.heard.insert(worker.clone(), row.seq)
            {
                self.journal.remove(&before);
            }
            self.journal.insert(row.seq, Committed { at_ms: row.at_ms, entry: row.entry.clone(), by, epoch });
        }
        for row in &batch.runs {
            let before = self.runs.get(&row.summary.run);
            let pipeline_hash = before.map_or(&row.pipeline_hash, |before| &before.pipeline_hash).clone();
            let line = RunLine { summary: row.summary.clone(), pipeline_hash, done: row.done, change: row.change };
            self.runs.insert(row.summary.run, line);
        }
        for row in &batch.steps {
            self.steps.insert((row.run, row.index), (row.change, row.view.clone()));
        }
        for row in &batch.outbox {
            self.outbox.insert(row.id, row.clone());
        }
        for id in &batch.outbox_done {
            self.outbox.remove(id);
        }
        self.write_logs(batch);
        Ok(())
    }

    fn write_logs(&mut self, batch: &Batch) {
        for log in &batch.logs {
            self.logs.entry(key(&log.claim)).or_insert_with(|| LogLine {
                run: log.claim.run,
                step: log.step.clone(),
                stored: Offsets::default(),
                lines: 0,
                closed: false,
            });
        }
        for row in &batch.log_rows {
            let (lines, data, gap) = match &row.content {
                RowContent::Lines { lines, data } => (*lines, Some(data.clone()), None),
                RowContent::Gap(gap) => (0, None, Some(*gap)),
            };
            let Claim { run, execution, attempt } = row.claim;
            let line = RowLine { run, execution, attempt, first_line: row.first_line, lines, data, gap };
            self.rows.insert(row.change, line);
        }
        for end in &batch.log_ends {
            if let Some(log) = self.logs.get_mut(&key(&end.claim)) {
                (log.stored, log.lines, log.closed) = (end.stored, end.lines, end.closed);
            }
        }
        for chunk in &batch.chunks {
            let of = key(&chunk.claim);
            self.chunks.entry(of).or_default().insert(chunk.first_line, chunk.lines);
            let end = chunk.first_line + chunk.lines;
            let sealed = self.rows.values_mut().filter(|row| (row.execution, row.attempt) == of);
            for row in sealed.filter(|row| (chunk.first_line..end).contains(&row.first_line)) {
                row.data = None;
            }
        }
    }

    pub fn entries_to_replay(&self) -> Result<Vec<(Millis, Entry)>, StoreError> {
        let open = |run: RunId| self.runs.get(&run).is_some_and(|run| !run.done);
        let rows = self.journal.values().filter(|row| row.entry.run().is_none_or(open));
        Ok(rows.map(|row| (row.at_ms, row.entry.clone())).collect())
    }

    pub fn recalled(&self, run: RunId) -> Vec<JournalRow> {
        let mut rows = self.journal_where(|entry| match entry {
            Entry::Heard { .. } => false,
            entry => entry.run().is_none_or(|of| of == run),
        });
        // Of the workers', those before the run's last one.
        let last = rows.iter().rposition(|row| row.entry.run().is_some());
        rows.truncate(last.map_or(0, |last| last + 1));
        rows
    }

    pub fn journal_where(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<JournalRow> {
        let rows = self.journal.iter().filter(|(_, row)| wanted(&row.entry));
        rows.map(|(seq, row)| JournalRow { seq: *seq, at_ms: row.at_ms, entry: row.entry.clone() }).collect()
    }

    pub fn counters(&self) -> Counters {
        let runs = self.runs.values().map(|run| run.change);
        let steps = self.steps.values().map(|(change, _)| *change);
        let rows = self.rows.keys().copied();
        Counters {
            seq: self.journal.keys().next_back().copied().unwrap_or(0),
            change: runs.chain(steps).chain(rows).max().unwrap_or(0),
            outbox: self.outbox.keys().next_back().copied().unwrap_or(0),
        }
    }

    pub fn open_logs(&self) -> Result<Vec<OpenLog>, StoreError> {
        let grows = |log: &LogLine| !log.closed && self.runs.get(&log.run).is_some_and(|run| !run.done);
        let mut open = Vec::new();
        for ((execution, attempt), log) in self.logs.iter().filter(|(_, log)| grows(log)) {
            let claim = Claim { run: log.run, execution: *execution, attempt: *attempt };
            let chunks = self.chunks.get(&(*execution, *attempt));
            let open_from = chunks.and_then(|chunks| chunks.last_key_value()).map_or(1, |(first, lines)| first + lines);
            let (mut open_before, mut open_bytes) = (log.stored, 0);
            for data in self.open_rows(&claim, open_from, u64::MAX) {
                for run in unpack(&data)? {
                    let start = open_before.of_mut(run.stream);
                    *start = (*start).min(run.offset);
                    open_bytes += run.weight() as u64;
                }
            }
            open.push(OpenLog { claim, stored: log.stored, lines: log.lines, open_from, open_before, open_bytes });
        }
        Ok(open)
    }

    pub fn open_rows(&self, claim: &Claim, from: u64, before: u64) -> Vec<Vec<u8>> {
        let its = self.rows.values().filter(|row| (row.execution, row.attempt) == key(claim));
        its.filter(|row| (from..before).contains(&row.first_line)).filter_map(|row| row.data.clone()).collect()
    }

    pub fn list_runs(&self, tenant: Option<&str>, before: Option<RunId>, limit: u32) -> Vec<RunSummary> {
        let place = |summary: &RunSummary| (summary.submitted_at_ms, summary.run);
        let before = before.map(|run| self.runs.get(&run).map(|row| place(&row.summary)));
        let behind = |summary: &RunSummary| match before {
            None => true,
            Some(before) => before.is_some_and(|before| place(summary) < before),
        };
        let of_tenant = |summary: &RunSummary| tenant.is_none_or(|tenant| summary.tenant == tenant);
        let all = self.runs.values().map(|row| &row.summary);
        let mut runs: Vec<RunSummary> = all.filter(|run| of_tenant(run) && behind(run)).cloned().collect();
        runs.sort_by_key(|run| std::cmp::Reverse(place(run)));
        runs.truncate(limit as usize);
        runs
    }

    pub fn run(&self, run: RunId) -> Option<RunState> {
        let row = self.runs.get(&run)?;
        let steps: Vec<_> = self.steps_of(run).collect();
        let change = steps.iter().map(|(_, change, _)| *change).fold(row.change, u64::max);
        let steps = steps.into_iter().map(|(_, _, view)| view.clone()).collect();
        Some(RunState { view: RunView { summary: row.summary.clone(), steps }, change, done: row.done })
    }

    fn steps_of(&self, run: RunId) -> impl Iterator<Item = (usize, u64, &StepView)> {
        let range = (run, 0)..=(run, usize::MAX);
        self.steps.range(range).map(|((_, index), (change, view))| (*index, *change, view))
    }

    pub fn step(&self, run: RunId, step: &StepName) -> Option<StepView> {
        self.steps_of(run).map(|(_, _, view)| view).find(|view| view.step == *step).cloned()
    }

    pub fn changes_after(&self, run: RunId, after: u64) -> (Vec<(u64, Changed)>, bool) {
        let Some(row) = self.runs.get(&run) else { return (Vec::new(), false) };
        let steps = self.steps_of(run).filter(|(_, change, _)| *change > after);
        let mut changed: Vec<_> = steps.map(|(_, change, view)| (change, Changed::Step(view.clone()))).collect();
        if row.change > after {
            changed.push((row.change, Changed::Run(row.summary.clone())));
        }
        changed.sort_by_key(|(change, _)| *change);
        (changed, row.done)
    }

    fn selected<'a>(&'a self, of: &'a Selection) -> impl DoubleEndedIterator<Item = (&'a u64, &'a RowLine)> {
        self.rows.iter().filter(move |(_, row)| match (of.execution, of.attempt) {
            (None, _) => row.run == of.run,
            (Some(execution), None) => row.execution == execution,
            (Some(execution), Some(attempt)) => row.execution == execution && row.attempt == attempt,
        })
    }

    pub fn log_rows(&self, of: &Selection, from: u64, limit: u32) -> Result<Vec<StoredRow>, StoreError> {
        let rows = self.selected(of).filter(|(change, _)| **change >= from).take(limit as usize);
        rows.map(|(change, row)| self.stored(*change, row)).collect()
    }

    fn stored(&self, change: u64, row: &RowLine) -> Result<StoredRow, StoreError> {
        let RowLine { execution, attempt, first_line, lines, .. } = *row;
        let of = (execution, attempt);
        let bad = |why: &str| StoreError::Unreadable { what: "a log row", why: why.to_owned() };
        let content = match (&row.data, &row.gap) {
            (Some(data), _) => StoredContent::Open(unpack(data)?),
            (None, Some(gap)) => StoredContent::Gap(*gap),
            (None, None) => {
                let chunk = self.chunks.get(&of).and_then(|chunks| chunks.range(..=first_line).next_back());
                let (chunk, _) = chunk.ok_or_else(|| bad("neither bytes nor a chunk"))?;
                StoredContent::Sealed { chunk: *chunk }
            }
        };
        let step = self.logs.get(&of).ok_or_else(|| bad("no log"))?.step.clone();
        Ok(StoredRow { change, step, execution, attempt, first_line, lines, content })
    }

    pub fn row_of_line(&self, execution: ExecutionId, attempt: Attempt, line: u64) -> Option<RowPlace> {
        let its = self.rows.iter().filter(|(_, row)| (row.execution, row.attempt) == (execution, attempt));
        its.filter(|(_, row)| row.first_line <= line)
            .max_by_key(|(change, row)| (row.first_line, **change))
            .map(|(change, row)| place(*change, row))
    }

    pub fn rows_before(&self, of: &Selection, before: u64, limit: u32) -> Vec<RowPlace> {
        let rows = self.selected(of).rev().filter(|(change, _)| **change < before);
        rows.take(limit as usize).map(|(change, row)| place(*change, row)).collect()
    }

    pub fn chunks_of(&self, execution: ExecutionId, attempt: Attempt) -> Vec<(u64, u64)> {
        let chunks = self.chunks.get(&(execution, attempt));
        chunks.into_iter().flatten().map(|(first, lines)| (*first, *lines)).collect()
    }
}

fn place(change: u64, row: &RowLine) -> RowPlace {
    RowPlace { change, first_line: row.first_line, lines: row.lines }
}

fn key(claim: &Claim) -> LogKey {
    (claim.execution, claim.attempt)
}
