//! The one way to write: everything that follows from some inputs, in one transaction (P3).

use longshore_protocol::event::Claim;
use longshore_protocol::output::Offsets;
use longshore_protocol::topology::Address;
use longshore_protocol::{Epoch, RunId, StepName};
use serde::{Deserialize, Serialize};
use sqlx::query_builder::Separated;
use sqlx::{Connection, QueryBuilder, Sqlite, SqliteConnection};

use super::{Store, StoreError, sql, to_json};
use crate::core::effect::JobQueue;
use crate::core::entry::{Entry, LogGap};
use crate::core::input::Millis;
use crate::core::view::{RunSummary, StepView};

/// Rows in one statement. SQLite takes 32,766 bound values in one and Postgres 65,535; the widest row has 8.
const ROWS: usize = 500;

/// Statements of so many rows are kept prepared: what one event leads to. Nine kinds of eight are fewer than the hundred
/// that a connection keeps.
const ROWS_PREPARED: usize = 8;

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

impl Store {
    /// Writes all of it or nothing. [`StoreError::Deposed`] if another epoch leads (P21).
    pub async fn commit(&self, epoch: Epoch, batch: &Batch) -> Result<(), StoreError> {
        let mut connection = self.writer.acquire().await?;
        let written = batch.transaction(epoch, &mut connection).await;
        if written.is_err() {
            // On a full disk SQLite rolls back by itself, and sqlx counts the transaction as open for
            // ever: this connection would refuse every later one.
            connection.close_on_drop();
        }
        written
    }
}

impl Batch {
    async fn transaction(&self, epoch: Epoch, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        // It holds the write lock from its start: an upgrade from reading gets BUSY whatever the timeout.
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        super::epoch::touch(&mut transaction, epoch).await?;
        self.write(&mut transaction).await?;
        // A run of ten thousand steps takes a while to write: whoever stands by and waited for the lock
        // must not find an epoch that looks lapsed.
        if self.entries.len() + self.steps.len() + self.log_rows.len() > ROWS {
            super::epoch::touch(&mut transaction, epoch).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    async fn write(&self, to: &mut SqliteConnection) -> Result<(), StoreError> {
        insert(to, "INSERT INTO journal (seq, run, worker, at_ms, entry) ", "", &self.entries, |mut values, row| {
            let heard_of = match &row.entry {
                Entry::Heard { worker, .. } => Some(worker.to_string()),
                _ => None,
            };
            let run = row.entry.run().map(|run| run.to_string());
            values.push_bind(sql(row.seq)).push_bind(run).push_bind(heard_of);
            values.push_bind(sql(row.at_ms)).push_bind(to_json(&row.entry));
        })
        .await?;
        insert(
            to,
            "INSERT INTO runs (run, submitted_at_ms, tenant, pipeline_hash, done, change, summary) ",
            " ON CONFLICT (run) DO UPDATE SET done = excluded.done, change = excluded.change, summary = excluded.summary",
            &self.runs,
            |mut values, row| {
                let summary = &row.summary;
                values.push_bind(summary.run.to_string()).push_bind(sql(summary.submitted_at_ms));
                values.push_bind(summary.tenant.clone()).push_bind(row.pipeline_hash.clone());
                values.push_bind(row.done).push_bind(sql(row.change)).push_bind(to_json(summary));
            },
        )
        .await?;
        insert(
            to,
            "INSERT INTO steps (run, idx, step, execution, change, view) ",
            " ON CONFLICT (run, idx) DO UPDATE SET change = excluded.change, view = excluded.view",
            &self.steps,
            |mut values, row| {
                values.push_bind(row.run.to_string()).push_bind(sql(row.index as u64));
                values.push_bind(row.view.step.0.clone()).push_bind(row.view.execution.to_string());
                values.push_bind(sql(row.change)).push_bind(to_json(&row.view));
            },
        )
        .await?;
        insert(
            to,
            "INSERT INTO outbox (id, about, exchange, routing_key, body) ",
            "",
            &self.outbox,
            |mut values, row| {
                values.push_bind(row.id).push_bind(to_json(&row.about)).push_bind(row.to.exchange.clone());
                values.push_bind(row.to.routing_key.clone()).push_bind(row.body.clone());
            },
        )
        .await?;
        for ids in self.outbox_done.chunks(ROWS) {
            let mut query = QueryBuilder::<Sqlite>::new("DELETE FROM outbox WHERE id IN (");
            let mut list = query.separated(", ");
            for id in ids {
                list.push_bind(*id);
            }
            list.push_unseparated(")");
            query.build().persistent(ids.len() <= ROWS_PREPARED).execute(&mut *to).await?;
        }
        self.write_logs(to).await
    }

    async fn write_logs(&self, to: &mut SqliteConnection) -> Result<(), StoreError> {
        insert(
            to,
            "INSERT INTO logs (execution, attempt, run, step, stdout, stderr, lines, closed) ",
            " ON CONFLICT (execution, attempt) DO NOTHING",
            &self.logs,
            |mut values, log| {
                values.push_bind(log.claim.execution.to_string()).push_bind(i64::from(log.claim.attempt.0));
                values.push_bind(log.claim.run.to_string()).push_bind(log.step.0.clone());
                values.push("0, 0, 0, FALSE");
            },
        )
        .await?;
        insert(
            to,
            "INSERT INTO log_rows (change, run, execution, attempt, first_line, lines, data, gap) ",
            "",
            &self.log_rows,
            |mut values, row| {
                let (lines, data, gap) = match &row.content {
                    RowContent::Lines { lines, data } => (*lines, Some(data.clone()), None),
                    RowContent::Gap(gap) => (0, None, Some(to_json(gap))),
                };
                values.push_bind(sql(row.change)).push_bind(row.claim.run.to_string());
                values.push_bind(row.claim.execution.to_string()).push_bind(i64::from(row.claim.attempt.0));
                values.push_bind(sql(row.first_line)).push_bind(sql(lines)).push_bind(data).push_bind(gap);
            },
        )
        .await?;
        for end in &self.log_ends {
            sqlx::query(
                "UPDATE logs SET stdout = $3, stderr = $4, lines = $5, closed = $6 \
                 WHERE execution = $1 AND attempt = $2",
            )
            .bind(end.claim.execution.to_string())
            .bind(i64::from(end.claim.attempt.0))
            .bind(sql(end.stored.stdout))
            .bind(sql(end.stored.stderr))
            .bind(sql(end.lines))
            .bind(end.closed)
            .execute(&mut *to)
            .await?;
        }
        for chunk in &self.chunks {
            write_chunk(to, chunk).await?;
        }
        Ok(())
    }
}

/// Many rows in one statement: each statement is a round trip to the database's thread, which for a
/// run of ten thousand steps was most of its seven seconds.
async fn insert<T>(
    to: &mut SqliteConnection,
    head: &'static str,
    tail: &'static str,
    rows: &[T],
    mut values: impl FnMut(Separated<'_, Sqlite, &'static str>, &T),
) -> Result<(), StoreError> {
    for rows in rows.chunks(ROWS) {
        let mut query = QueryBuilder::<Sqlite>::new(head);
        query.push_values(rows, &mut values);
        query.push(tail);
        // The statement of a few rows comes again, and is worth keeping prepared.
        query.build().persistent(rows.len() <= ROWS_PREPARED).execute(&mut *to).await?;
    }
    Ok(())
}

/// The chunk's index row comes and the rows' bytes go in one transaction: a reader sees either.
async fn write_chunk(to: &mut SqliteConnection, chunk: &ChunkRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO log_chunks (execution, attempt, first_line, lines, stdout, stderr, bytes) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (execution, attempt, first_line) DO NOTHING",
    )
    .bind(chunk.claim.execution.to_string())
    .bind(i64::from(chunk.claim.attempt.0))
    .bind(sql(chunk.first_line))
    .bind(sql(chunk.lines))
    .bind(sql(chunk.before.stdout))
    .bind(sql(chunk.before.stderr))
    .bind(sql(chunk.bytes))
    .execute(&mut *to)
    .await?;
    sqlx::query(
        "UPDATE log_rows SET data = NULL \
         WHERE execution = $1 AND attempt = $2 AND first_line >= $3 AND first_line < $4",
    )
    .bind(chunk.claim.execution.to_string())
    .bind(i64::from(chunk.claim.attempt.0))
    .bind(sql(chunk.first_line))
    .bind(sql(chunk.first_line + chunk.lines))
    .execute(to)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a test's helper that fails has failed its test

    use super::*;

    fn large(id: i64) -> OutboxRow {
        let to = Address { exchange: "control".to_owned(), routing_key: "w1".to_owned() };
        OutboxRow { id, about: OutboxAbout::Control, to, body: vec![7; 1024 * 1024] }
    }

    /// SQLite's own bound stands for the disk's: what it answers, and how it rolls back, are the same.
    #[tokio::test]
    async fn p3_a_full_disk_writes_nothing_and_is_no_longer_full_when_there_is_room() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = Store::open(&dir.path().join("state.db")).await.unwrap();
        let epoch = store.take_epoch("t").await.unwrap().unwrap();
        sqlx::query("PRAGMA max_page_count = 100").execute(&store.writer).await.unwrap();
        let refused = store.commit(epoch, &Batch { outbox: vec![large(1)], ..Batch::default() }).await.unwrap_err();
        assert!(refused.to_string().contains("full"), "{refused}");
        assert_eq!(store.outbox_rows().await.unwrap(), 0);
        // The bound was of that connection: now there is room.
        store.commit(epoch, &Batch { outbox: vec![large(1)], ..Batch::default() }).await.unwrap();
        assert_eq!(store.outbox_rows().await.unwrap(), 1);
    }
}
