//! What a new leader reads.

use longshore_protocol::event::Claim;
use longshore_protocol::output::Offsets;
use longshore_protocol::topology::Address;
use longshore_protocol::{Attempt, RunId};
use sqlx::{FromRow, Row as _};

use super::{Connection, Row, SqlStore};
use crate::core::entry::Entry;
use crate::core::input::Millis;
use crate::store::batch::OutboxRow;
use crate::store::packed::unpack;
use crate::store::recover::{Counters, JournalRow, OpenLog};
use crate::store::runs::RunState;
use crate::store::{StoreError, count, from_json, from_text, sql};

impl SqlStore {
    /// The entries of every run that is not done, and of the workers, in order. Of a worker's
    /// `heard` only the newest is worth reading: each replaces the one before it.
    pub(super) async fn entries_to_replay(&self) -> Result<Vec<(Millis, Entry)>, StoreError> {
        // Two questions, each with an index of its own: by one with OR, Postgres looks through the whole journal.
        let rows: Vec<(i64, String)> = sqlx::query_as(
            "SELECT at_ms, entry FROM \
             (SELECT seq, at_ms, entry FROM journal j WHERE run IS NULL AND (worker IS NULL OR NOT EXISTS \
               (SELECT 1 FROM journal newer WHERE newer.worker = j.worker AND newer.seq > j.seq)) \
              UNION ALL \
              SELECT seq, at_ms, entry FROM journal WHERE run IN (SELECT run FROM runs WHERE NOT done)) AS wanted \
             ORDER BY seq",
        )
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|(at_ms, entry)| Ok((count(*at_ms), from_json("a journal entry", entry)?))).collect()
    }

    /// What a run that is done is taken back from.
    pub(super) async fn entries_to_recall(&self, run: RunId) -> Result<Vec<(Millis, Entry)>, StoreError> {
        let mut reading = self.reading().await?;
        let rows = recalled(&mut reading, run).await?;
        reading.commit().await?;
        Ok(rows.into_iter().map(|row| (row.at_ms, row.entry)).collect())
    }

    /// What the journal says of the workers, in order.
    pub(super) async fn journal_of_workers(&self) -> Result<Vec<JournalRow>, StoreError> {
        let rows: Vec<(i64, i64, String)> =
            sqlx::query_as("SELECT seq, at_ms, entry FROM journal WHERE run IS NULL ORDER BY seq")
                .fetch_all(&self.readers)
                .await?;
        rows.into_iter().map(journal_row).collect()
    }

    /// What a run would be recalled from, and what is shown of it.
    pub(super) async fn journal_and_view(&self, run: RunId) -> Result<Option<(Vec<JournalRow>, RunState)>, StoreError> {
        let mut reading = self.reading().await?;
        let Some(shown) = Self::run_in(&mut reading, run).await? else { return Ok(None) };
        let rows = recalled(&mut reading, run).await?;
        reading.commit().await?;
        Ok(Some((rows, shown)))
    }

    /// The whole journal of one run, for tests and for people.
    pub(super) async fn entries_of(&self, run: RunId) -> Result<Vec<Entry>, StoreError> {
        let rows: Vec<(String,)> = sqlx::query_as("SELECT entry FROM journal WHERE run = $1 ORDER BY seq")
            .bind(run.to_string())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(|(entry,)| from_json("a journal entry", entry)).collect()
    }

    /// Where to go on counting.
    pub(super) async fn counters(&self) -> Result<Counters, StoreError> {
        let (seq, change, outbox): (i64, i64, i64) = sqlx::query_as(
            "SELECT (SELECT COALESCE(MAX(seq), 0) FROM journal), \
             (SELECT MAX(change) FROM (SELECT COALESCE(MAX(change), 0) AS change FROM runs UNION ALL \
              SELECT COALESCE(MAX(change), 0) FROM steps UNION ALL \
              SELECT COALESCE(MAX(change), 0) FROM log_rows) AS changes), \
             (SELECT COALESCE(MAX(id), 0) FROM outbox)",
        )
        .fetch_one(&self.readers)
        .await?;
        Ok(Counters { seq: count(seq), change: count(change), outbox })
    }

    /// Messages after this one, in order, at most so many.
    pub(super) async fn outbox_after(&self, id: i64, limit: u32) -> Result<Vec<OutboxRow>, StoreError> {
        let rows: Vec<(i64, String, String, String, Vec<u8>)> = sqlx::query_as(
            "SELECT id, about, exchange, routing_key, body FROM outbox WHERE id > $1 ORDER BY id LIMIT $2",
        )
        .bind(id)
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        let row = |(id, about, exchange, routing_key, body): (i64, String, String, String, Vec<u8>)| {
            let about = from_json("an outbox row", &about)?;
            Ok(OutboxRow { id, about, to: Address { exchange, routing_key }, body })
        };
        rows.into_iter().map(row).collect()
    }

    /// How many messages are in the outbox.
    pub(super) async fn outbox_rows(&self) -> Result<u64, StoreError> {
        let (rows,): (i64,) = sqlx::query_as("SELECT COUNT(*) FROM outbox").fetch_one(&self.readers).await?;
        Ok(count(rows))
    }

    /// The logs of the runs that are not done which may still grow.
    pub(super) async fn open_logs(&self) -> Result<Vec<OpenLog>, StoreError> {
        let logs: Vec<OpenLogRow> = sqlx::query_as(
            "SELECT execution, attempt, run, stdout, stderr, lines FROM logs \
             WHERE NOT closed AND run IN (SELECT run FROM runs WHERE NOT done)",
        )
        .fetch_all(&self.readers)
        .await?;
        let mut open = Vec::with_capacity(logs.len());
        for log in logs {
            // Of ten thousand steps that wait in a queue, none has said anything yet.
            if log.2 == 0 {
                let (stored, open_before) = (log.1, log.1);
                open.push(OpenLog { claim: log.0, stored, lines: 0, open_from: 1, open_before, open_bytes: 0 });
                continue;
            }
            open.push(self.open_log(log.0, log.1, log.2).await?);
        }
        Ok(open)
    }

    async fn open_log(&self, claim: Claim, stored: Offsets, lines: u64) -> Result<OpenLog, StoreError> {
        let chunk: Option<(i64, i64)> = sqlx::query_as(
            "SELECT first_line, lines FROM log_chunks WHERE execution = $1 AND attempt = $2 \
             ORDER BY first_line DESC LIMIT 1",
        )
        .bind(claim.execution.to_string())
        .bind(i64::from(claim.attempt.0))
        .fetch_optional(&self.readers)
        .await?;
        let open_from = chunk.map_or(1, |(first, lines)| count(first + lines));
        let rows = self.open_rows(&claim, open_from, u64::MAX).await?;
        let (mut open_before, mut open_bytes) = (stored, 0);
        for data in &rows {
            for run in unpack(data)? {
                let start = open_before.of_mut(run.stream);
                *start = (*start).min(run.offset);
                open_bytes += run.weight() as u64;
            }
        }
        Ok(OpenLog { claim, stored, lines, open_from, open_before, open_bytes })
    }

    /// The lines in no chunk from one on and before another, row by row, [packed](super::packed::pack).
    pub(super) async fn open_rows(&self, claim: &Claim, from: u64, before: u64) -> Result<Vec<Vec<u8>>, StoreError> {
        let rows: Vec<(Vec<u8>,)> = sqlx::query_as(
            "SELECT data FROM log_rows WHERE execution = $1 AND attempt = $2 AND first_line >= $3 \
             AND first_line < $4 AND data IS NOT NULL ORDER BY first_line",
        )
        .bind(claim.execution.to_string())
        .bind(i64::from(claim.attempt.0))
        .bind(sql(from))
        .bind(sql(before))
        .fetch_all(&self.readers)
        .await?;
        Ok(rows.into_iter().map(|(data,)| data).collect())
    }
}

/// A run's entries and those of the workers before its last one, but for how far each was heard.
async fn recalled(reading: &mut Connection, run: RunId) -> Result<Vec<JournalRow>, StoreError> {
    let rows: Vec<(i64, i64, String)> = sqlx::query_as(
        "SELECT seq, at_ms, entry FROM \
         (SELECT seq, at_ms, entry FROM journal WHERE run = $1 \
          UNION ALL \
          SELECT seq, at_ms, entry FROM journal WHERE run IS NULL AND worker IS NULL \
           AND seq < (SELECT MAX(seq) FROM journal WHERE run = $1)) AS wanted \
         ORDER BY seq",
    )
    .bind(run.to_string())
    .fetch_all(reading)
    .await?;
    rows.into_iter().map(journal_row).collect()
}

fn journal_row((seq, at_ms, entry): (i64, i64, String)) -> Result<JournalRow, StoreError> {
    Ok(JournalRow { seq: count(seq), at_ms: count(at_ms), entry: from_json("a journal entry", &entry)? })
}

struct OpenLogRow(Claim, Offsets, u64);

impl<'r> FromRow<'r, Row> for OpenLogRow {
    fn from_row(row: &'r Row) -> Result<Self, sqlx::Error> {
        let bad = |error: StoreError| sqlx::Error::Decode(error.into());
        let attempt: i64 = row.try_get("attempt")?;
        let claim = Claim {
            run: from_text("a run's id", row.try_get("run")?).map_err(bad)?,
            execution: from_text("an execution's id", row.try_get("execution")?).map_err(bad)?,
            attempt: Attempt(u32::try_from(attempt).unwrap_or(u32::MAX)),
        };
        let stored = Offsets { stdout: count(row.try_get("stdout")?), stderr: count(row.try_get("stderr")?) };
        Ok(Self(claim, stored, count(row.try_get("lines")?)))
    }
}
