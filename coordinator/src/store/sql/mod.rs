//! The store in SQL: the same statements for every database.
//!
//! This folder is compiled once for each database, which its parent names: `Db`, how a transaction that writes begins
//! (`BEGIN`) and one that only reads (`BEGIN_READING`), and the database's own clock (`now_ms!`). Everything else is the
//! same text for all: `$1` (or built by sqlx, with each database's own), `ON CONFLICT` and 64-bit numbers only. Generic
//! code would say the same with a page of bounds on each function (`docs/decisions/store.md`).

mod epoch;
mod log_rows;
mod recover;
mod runs;
mod write;

use longshore_protocol::event::Claim;
use longshore_protocol::{Attempt, Epoch, ExecutionId, RunId, StepName};
use sqlx::{Database, Pool, Transaction};

use super::{BEGIN_READING, Db};
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

/// One file per concern says how; this is the list.
impl Store for SqlStore {
    fn take_epoch<'a>(&'a self, holder: &'a str) -> Answer<'a, Option<Epoch>> {
        Box::pin(self.take_epoch(holder))
    }

    fn renew_epoch(&self, epoch: Epoch) -> Answer<'_, ()> {
        Box::pin(self.renew_epoch(epoch))
    }

    fn release_epoch(&self, epoch: Epoch) -> Answer<'_, ()> {
        Box::pin(self.release_epoch(epoch))
    }

    fn commit<'a>(&'a self, epoch: Epoch, batch: &'a Batch) -> Answer<'a, ()> {
        Box::pin(self.commit(epoch, batch))
    }

    fn is_known(&self, run: RunId) -> Answer<'_, bool> {
        Box::pin(self.is_known(run))
    }

    fn entries_to_replay(&self) -> Answer<'_, Vec<(Millis, Entry)>> {
        Box::pin(self.entries_to_replay())
    }

    fn entries_to_recall(&self, run: RunId) -> Answer<'_, Vec<(Millis, Entry)>> {
        Box::pin(self.entries_to_recall(run))
    }

    fn journal_of_workers(&self) -> Answer<'_, Vec<JournalRow>> {
        Box::pin(self.journal_of_workers())
    }

    fn journal_and_view(&self, run: RunId) -> Answer<'_, Option<(Vec<JournalRow>, RunState)>> {
        Box::pin(self.journal_and_view(run))
    }

    fn counters(&self) -> Answer<'_, Counters> {
        Box::pin(self.counters())
    }

    fn outbox_after(&self, id: i64, limit: u32) -> Answer<'_, Vec<OutboxRow>> {
        Box::pin(self.outbox_after(id, limit))
    }

    fn open_logs(&self) -> Answer<'_, Vec<OpenLog>> {
        Box::pin(self.open_logs())
    }

    fn open_rows<'a>(&'a self, claim: &'a Claim, from: u64, before: u64) -> Answer<'a, Vec<Vec<u8>>> {
        Box::pin(self.open_rows(claim, from, before))
    }

    fn list_runs<'a>(
        &'a self,
        tenant: Option<&'a str>,
        before: Option<RunId>,
        limit: u32,
    ) -> Answer<'a, Vec<RunSummary>> {
        Box::pin(self.list_runs(tenant, before, limit))
    }

    fn run(&self, run: RunId) -> Answer<'_, Option<RunState>> {
        Box::pin(self.run(run))
    }

    fn submitted(&self, run: RunId) -> Answer<'_, Option<Submitted>> {
        Box::pin(self.submitted(run))
    }

    fn summary(&self, run: RunId) -> Answer<'_, Option<(RunSummary, bool)>> {
        Box::pin(self.summary(run))
    }

    fn step<'a>(&'a self, run: RunId, step: &'a StepName) -> Answer<'a, Option<StepView>> {
        Box::pin(self.step(run, step))
    }

    fn changes_after(&self, run: RunId, change: u64) -> Answer<'_, (Vec<(u64, Changed)>, bool)> {
        Box::pin(self.changes_after(run, change))
    }

    fn log_rows<'a>(&'a self, of: &'a Selection, from: u64, limit: u32) -> Answer<'a, Vec<StoredRow>> {
        Box::pin(self.log_rows(of, from, limit))
    }

    fn row_of_line(&self, execution: ExecutionId, attempt: Attempt, line: u64) -> Answer<'_, Option<RowPlace>> {
        Box::pin(self.row_of_line(execution, attempt, line))
    }

    fn rows_before<'a>(&'a self, of: &'a Selection, before: u64, limit: u32) -> Answer<'a, Vec<RowPlace>> {
        Box::pin(self.rows_before(of, before, limit))
    }

    fn chunks(&self, execution: ExecutionId, attempt: Attempt) -> Answer<'_, Vec<(u64, u64)>> {
        Box::pin(self.chunks(execution, attempt))
    }

    fn entries_of(&self, run: RunId) -> Answer<'_, Vec<Entry>> {
        Box::pin(self.entries_of(run))
    }

    fn outbox_rows(&self) -> Answer<'_, u64> {
        Box::pin(self.outbox_rows())
    }

    fn answers(&self) -> Answer<'_, ()> {
        Box::pin(async {
            sqlx::query_as::<_, (i64,)>("SELECT epoch FROM epoch WHERE id = 1").fetch_one(&self.readers).await?;
            Ok(())
        })
    }

    fn close(&self) -> futures_util::future::BoxFuture<'_, ()> {
        Box::pin(async {
            self.readers.close().await;
            self.writer.close().await;
        })
    }
}
