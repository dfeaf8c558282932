//! The store in SQL: the same statements for every database.
//!
//! This folder is compiled once for each database, which its parent names: `Db`, how a transaction that writes begins
//! (`BEGIN`) and one that only reads (`BEGIN_READING`), the database's own clock (`now_ms!`), how it says that a row is
//! locked (`LOCKED`), and how long it is waited for (`WRITE_MAX`, `READ_MAX`). Everything else is the same text for all: `$1` (or built by sqlx, with each database's own), `ON CONFLICT` and 64-bit numbers only. Generic
//! code would say the same with a page of bounds on each function (`docs/decisions/store.md`).

mod epoch;
mod log_rows;
mod recover;
mod runs;
mod write;

use std::time::Duration;

use longshore_protocol::event::Claim;
use longshore_protocol::{Attempt, Epoch, ExecutionId, RunId, StepName};
use sqlx::{Database, Pool, Transaction};

use super::{BEGIN_READING, Db, READ_MAX, WRITE_MAX};
use crate::core::entry::Entry;
use crate::core::input::Millis;
use crate::core::view::{RunSummary, StepView};
use crate::store::batch::{Batch, OutboxRow};
use crate::store::log_rows::{RowPlace, Selection, StoredRow};
use crate::store::recover::{Counters, JournalRow, OpenLog};
use crate::store::runs::{Changed, RunState, Submitted};
use crate::store::{Answer, Store, StoreError};

type Connection = <Db as Database>::Connection;
type Row = <Db as Database>::Row;

/// A database. Cloned freely: the connections are shared.
#[derive(Clone, Debug)]
pub struct SqlStore {
    /// The one writer's.
    pub(super) writer: Pool<Db>,
    /// Everybody else's.
    pub(super) readers: Pool<Db>,
}

impl SqlStore {
    /// All that is read by it is as of one moment.
    async fn reading(&self) -> Result<Transaction<'static, Db>, StoreError> {
        Ok(self.readers.begin_with(BEGIN_READING).await?)
    }
}

/// The future's answer, if it comes in time. One that is dropped on its way has written all or nothing.
fn within<'a, T: 'a>(
    limit: Option<Duration>,
    asked: impl Future<Output = Result<T, StoreError>> + Send + 'a,
) -> Answer<'a, T> {
    let Some(limit) = limit else { return Box::pin(asked) };
    Box::pin(async move { tokio::time::timeout(limit, asked).await.unwrap_or(Err(StoreError::Silent(limit))) })
}

/// One file per concern says how; this is the list.
impl Store for SqlStore {
    fn take_epoch<'a>(&'a self, holder: &'a str) -> Answer<'a, Option<Epoch>> {
        within(WRITE_MAX, self.take_epoch(holder))
    }

    fn renew_epoch(&self, epoch: Epoch) -> Answer<'_, ()> {
        within(WRITE_MAX, self.renew_epoch(epoch))
    }

    fn release_epoch(&self, epoch: Epoch) -> Answer<'_, ()> {
        within(WRITE_MAX, self.release_epoch(epoch))
    }

    fn commit<'a>(&'a self, epoch: Epoch, batch: &'a Batch) -> Answer<'a, ()> {
        within(WRITE_MAX, self.commit(epoch, batch))
    }

    fn is_known(&self, run: RunId) -> Answer<'_, bool> {
        within(WRITE_MAX, self.is_known(run))
    }

    fn entries_to_replay(&self) -> Answer<'_, Vec<(Millis, Entry)>> {
        within(READ_MAX, self.entries_to_replay())
    }

    fn entries_to_recall(&self, run: RunId) -> Answer<'_, Vec<(Millis, Entry)>> {
        within(READ_MAX, self.entries_to_recall(run))
    }

    fn journal_of_workers(&self) -> Answer<'_, Vec<JournalRow>> {
        within(READ_MAX, self.journal_of_workers())
    }

    fn journal_and_view(&self, run: RunId) -> Answer<'_, Option<(Vec<JournalRow>, RunState)>> {
        within(READ_MAX, self.journal_and_view(run))
    }

    fn counters(&self) -> Answer<'_, Counters> {
        within(READ_MAX, self.counters())
    }

    fn outbox_after(&self, id: i64, limit: u32) -> Answer<'_, Vec<OutboxRow>> {
        within(READ_MAX, self.outbox_after(id, limit))
    }

    fn open_logs(&self) -> Answer<'_, Vec<OpenLog>> {
        within(READ_MAX, self.open_logs())
    }

    fn open_rows<'a>(&'a self, claim: &'a Claim, from: u64, before: u64) -> Answer<'a, Vec<Vec<u8>>> {
        within(READ_MAX, self.open_rows(claim, from, before))
    }

    fn list_runs<'a>(
        &'a self,
        tenant: Option<&'a str>,
        before: Option<RunId>,
        limit: u32,
    ) -> Answer<'a, Vec<RunSummary>> {
        within(READ_MAX, self.list_runs(tenant, before, limit))
    }

    fn run(&self, run: RunId) -> Answer<'_, Option<RunState>> {
        within(READ_MAX, self.run(run))
    }

    fn submitted(&self, run: RunId) -> Answer<'_, Option<Submitted>> {
        within(READ_MAX, self.submitted(run))
    }

    fn summary(&self, run: RunId) -> Answer<'_, Option<(RunSummary, bool)>> {
        within(READ_MAX, self.summary(run))
    }

    fn step<'a>(&'a self, run: RunId, step: &'a StepName) -> Answer<'a, Option<StepView>> {
        within(READ_MAX, self.step(run, step))
    }

    fn changes_after(&self, run: RunId, change: u64) -> Answer<'_, (Vec<(u64, Changed)>, bool)> {
        within(READ_MAX, self.changes_after(run, change))
    }

    fn log_rows<'a>(&'a self, of: &'a Selection, from: u64, limit: u32) -> Answer<'a, Vec<StoredRow>> {
        within(READ_MAX, self.log_rows(of, from, limit))
    }

    fn row_of_line(&self, execution: ExecutionId, attempt: Attempt, line: u64) -> Answer<'_, Option<RowPlace>> {
        within(READ_MAX, self.row_of_line(execution, attempt, line))
    }

    fn rows_before<'a>(&'a self, of: &'a Selection, before: u64, limit: u32) -> Answer<'a, Vec<RowPlace>> {
        within(READ_MAX, self.rows_before(of, before, limit))
    }

    fn chunks(&self, execution: ExecutionId, attempt: Attempt) -> Answer<'_, Vec<(u64, u64)>> {
        within(READ_MAX, self.chunks(execution, attempt))
    }

    fn entries_of(&self, run: RunId) -> Answer<'_, Vec<Entry>> {
        within(READ_MAX, self.entries_of(run))
    }

    fn outbox_rows(&self) -> Answer<'_, u64> {
        within(READ_MAX, self.outbox_rows())
    }

    fn answers(&self) -> Answer<'_, Option<String>> {
        within(WRITE_MAX, self.answers())
    }

    fn close(&self) -> futures_util::future::BoxFuture<'_, ()> {
        Box::pin(async {
            self.readers.close().await;
            self.writer.close().await;
        })
    }
}
