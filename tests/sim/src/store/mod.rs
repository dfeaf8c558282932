//! A store that a seed steers: transactions take time, fail, or are written and their answer is lost. What was not
//! committed is nowhere. It passes the suite that SQLite passes (`tests/contracts.rs`).
//!
//! Several processes may have it; its clock is its own (P21).

mod tables;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use longshore_coordinator::core::entry::Entry;
use longshore_coordinator::core::input::Millis;
use longshore_coordinator::core::view::{RunSummary, StepView};
use longshore_coordinator::store::batch::{Batch, OutboxAbout, OutboxRow};
use longshore_coordinator::store::epoch::LAPSE_MS;
use longshore_coordinator::store::log_rows::{RowPlace, Selection, StoredRow};
use longshore_coordinator::store::recover::{Counters, JournalRow, OpenLog};
use longshore_coordinator::store::runs::{Changed, RunState, Submitted};
use longshore_coordinator::store::{Answer, Store, StoreError};
use longshore_protocol::breach::{self, Breach};
use longshore_protocol::event::Claim;
use longshore_protocol::process::simulated::Process;
use longshore_protocol::{Attempt, Epoch, ExecutionId, RunId, StepName};
use tokio::time::sleep;

pub use self::tables::{Committed, Tables};
use crate::stage::LEASE_TICKS;
use crate::world::{World, elsewhere, lock};

/// A transaction takes less than this, in ms.
const COMMIT_MS: u64 = 5;

/// One on a disk that stalls: long enough that the epoch may lapse under it.
const SLOW_MS: u64 = 4_000;

/// The machine that it is on.
#[derive(Clone, Debug)]
pub struct SimDatabase {
    tables: Arc<Mutex<Tables>>,
    down: Arc<Mutex<bool>>,
    world: World,
}

/// One process's connection to it.
#[derive(Debug)]
pub struct SimStore {
    database: SimDatabase,
    process: Option<Process>,
    closed: Mutex<bool>,
}

impl SimDatabase {
    /// An empty one.
    pub fn new(world: World) -> Self {
        Self { tables: Arc::new(Mutex::new(Tables::default())), down: Arc::default(), world }
    }

    /// A process's; of nobody's that can be killed without one.
    pub fn connect(&self, process: Option<Process>) -> SimStore {
        SimStore { database: self.clone(), process, closed: Mutex::default() }
    }

    /// Nothing is read or written, or it is again.
    pub fn down(&self, down: bool) {
        *lock(&self.down) = down;
    }

    /// What is in it.
    pub fn look<T>(&self, look: impl FnOnce(&Tables) -> T) -> T {
        look(&lock(&self.tables))
    }
}

fn failed(reason: &str) -> StoreError {
    StoreError::Failed(reason.into())
}

impl SimStore {
    async fn point(&self) {
        if let Some(process) = &self.process {
            process.point().await;
        }
    }

    fn open(&self) -> Result<(), StoreError> {
        if *lock(&self.closed) {
            return Err(failed("it was closed"));
        }
        if *lock(&self.database.down) { Err(failed("nobody answers")) } else { Ok(()) }
    }

    /// What writes: it takes time, may fail, and may be done without an answer.
    async fn write<T>(&self, act: impl FnOnce(&mut Tables) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.open()?;
        self.point().await;
        let world = &self.database.world;
        let mut ms = world.dice().below(COMMIT_MS + 1);
        if world.strikes("slow disk under the store", |noise| noise.commit_slow) {
            ms = world.dice().below(SLOW_MS);
        }
        if ms > 0 {
            sleep(Duration::from_millis(ms)).await;
        }
        self.open()?;
        if world.strikes("transaction failed", |noise| noise.commit_failed) {
            return Err(failed("the disk is full"));
        }
        let written = elsewhere(self.process.as_ref(), || act(&mut lock(&self.database.tables)))?;
        self.point().await;
        if world.strikes("transaction without an answer", |noise| noise.commit_unanswered) {
            return Err(failed("the connection was lost"));
        }
        Ok(written)
    }

    fn read<'a, T: Send + 'a>(
        &'a self,
        look: impl FnOnce(&Tables) -> Result<T, StoreError> + Send + 'a,
    ) -> Answer<'a, T> {
        async move {
            self.open()?;
            self.point().await;
            elsewhere(self.process.as_ref(), || look(&lock(&self.database.tables)))
        }
        .boxed()
    }
}

impl Store for SimStore {
    fn take_epoch<'a>(&'a self, holder: &'a str) -> Answer<'a, Option<Epoch>> {
        let who = self.process.as_ref().map_or("", |process| process.name());
        self.write(move |tables| {
            let taken = tables.take_epoch(holder, LAPSE_MS);
            if let Some(epoch) = taken {
                self.database.world.note("epoch", epoch.0, || format!("{who} takes epoch {epoch}"));
            }
            Ok(taken)
        })
        .boxed()
    }

    fn renew_epoch(&self, epoch: Epoch) -> Answer<'_, ()> {
        self.write(move |tables| tables.touch(epoch)).boxed()
    }

    fn release_epoch(&self, epoch: Epoch) -> Answer<'_, ()> {
        self.write(move |tables| {
            tables.release(epoch);
            Ok(())
        })
        .boxed()
    }

    fn commit<'a>(&'a self, epoch: Epoch, batch: &'a Batch) -> Answer<'a, ()> {
        self.write(move |tables| {
            if !breach::is(Breach::EpochNotChecked) {
                tables.touch(epoch)?;
            }
            let done: Vec<_> = batch.outbox_done.iter().filter_map(|id| tables.outbox.get(id)).cloned().collect();
            tables.write(epoch, batch)?;
            for row in &batch.entries {
                // Two ticks of grace: one that was under way, and one that is being counted.
                self.database.world.committed(&row.entry, Duration::from_secs(u64::from(LEASE_TICKS) - 2));
                self.database.world.note("entry", row.seq, || format!("epoch {epoch} #{} {:?}", row.seq, row.entry));
            }
            for row in done {
                if let OutboxAbout::Job { claim, .. } = &row.about {
                    self.database.world.carried_out(claim);
                }
            }
            Ok(())
        })
        .boxed()
    }

    fn is_known(&self, run: RunId) -> Answer<'_, bool> {
        self.read(move |tables| Ok(tables.runs.contains_key(&run)))
    }

    fn entries_to_replay(&self) -> Answer<'_, Vec<(Millis, Entry)>> {
        self.read(Tables::entries_to_replay)
    }

    fn entries_to_recall(&self, run: RunId) -> Answer<'_, Vec<(Millis, Entry)>> {
        self.read(move |tables| Ok(tables.recalled(run).into_iter().map(|row| (row.at_ms, row.entry)).collect()))
    }

    fn journal_of_workers(&self) -> Answer<'_, Vec<JournalRow>> {
        self.read(|tables| Ok(tables.journal_where(|entry| entry.run().is_none())))
    }

    fn journal_and_view(&self, run: RunId) -> Answer<'_, Option<(Vec<JournalRow>, RunState)>> {
        self.read(move |tables| Ok(tables.run(run).map(|shown| (tables.recalled(run), shown))))
    }

    fn counters(&self) -> Answer<'_, Counters> {
        self.read(|tables| Ok(tables.counters()))
    }

    fn outbox_after(&self, id: i64, limit: u32) -> Answer<'_, Vec<OutboxRow>> {
        self.read(move |tables| {
            Ok(tables.outbox.range(id + 1..).take(limit as usize).map(|(_, row)| row.clone()).collect())
        })
    }

    fn open_logs(&self) -> Answer<'_, Vec<OpenLog>> {
        self.read(Tables::open_logs)
    }

    fn open_rows<'a>(&'a self, claim: &'a Claim, from: u64, before: u64) -> Answer<'a, Vec<Vec<u8>>> {
        self.read(move |tables| Ok(tables.open_rows(claim, from, before)))
    }

    fn list_runs<'a>(
        &'a self,
        tenant: Option<&'a str>,
        before: Option<RunId>,
        limit: u32,
    ) -> Answer<'a, Vec<RunSummary>> {
        self.read(move |tables| Ok(tables.list_runs(tenant, before, limit)))
    }

    fn run(&self, run: RunId) -> Answer<'_, Option<RunState>> {
        self.read(move |tables| Ok(tables.run(run)))
    }

    fn submitted(&self, run: RunId) -> Answer<'_, Option<Submitted>> {
        self.read(move |tables| {
            let submitted = tables
                .runs
                .get(&run)
                .map(|row| Submitted { pipeline_hash: row.pipeline_hash.clone(), tenant: row.summary.tenant.clone() });
            Ok(submitted)
        })
    }

    fn summary(&self, run: RunId) -> Answer<'_, Option<(RunSummary, bool)>> {
        self.read(move |tables| Ok(tables.runs.get(&run).map(|row| (row.summary.clone(), row.done))))
    }

    fn step<'a>(&'a self, run: RunId, step: &'a StepName) -> Answer<'a, Option<StepView>> {
        self.read(move |tables| Ok(tables.step(run, step)))
    }

    fn changes_after(&self, run: RunId, change: u64) -> Answer<'_, (Vec<(u64, Changed)>, bool)> {
        self.read(move |tables| Ok(tables.changes_after(run, change)))
    }

    fn log_rows<'a>(&'a self, of: &'a Selection, from: u64, limit: u32) -> Answer<'a, Vec<StoredRow>> {
        self.read(move |tables| tables.log_rows(of, from, limit))
    }

    fn row_of_line(&self, execution: ExecutionId, attempt: Attempt, line: u64) -> Answer<'_, Option<RowPlace>> {
        self.read(move |tables| Ok(tables.row_of_line(execution, attempt, line)))
    }

    fn rows_before<'a>(&'a self, of: &'a Selection, before: u64, limit: u32) -> Answer<'a, Vec<RowPlace>> {
        self.read(move |tables| Ok(tables.rows_before(of, before, limit)))
    }

    fn chunks(&self, execution: ExecutionId, attempt: Attempt) -> Answer<'_, Vec<(u64, u64)>> {
        self.read(move |tables| Ok(tables.chunks_of(execution, attempt)))
    }

    fn entries_of(&self, run: RunId) -> Answer<'_, Vec<Entry>> {
        self.read(move |tables| {
            let of_run = tables.journal.values().filter(|row| row.entry.run() == Some(run));
            Ok(of_run.map(|row| row.entry.clone()).collect())
        })
    }

    fn outbox_rows(&self) -> Answer<'_, u64> {
        self.read(|tables| Ok(tables.outbox.len() as u64))
    }

    fn answers(&self) -> Answer<'_, Option<String>> {
        self.read(|tables| Ok(tables.holder(LAPSE_MS)))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        *lock(&self.closed) = true;
        std::future::ready(()).boxed()
    }
}
