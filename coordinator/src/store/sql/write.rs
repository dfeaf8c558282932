//! A [`Batch`] as statements of one transaction.

use std::collections::BTreeMap;

use longshore_protocol::Epoch;
use sqlx::query_builder::Separated;
use sqlx::{Connection as _, QueryBuilder};

use super::super::{BEGIN, Db};
use super::{Connection, SqlStore};
use crate::core::entry::Entry;
use crate::store::batch::{Batch, ChunkRow, RowContent};
use crate::store::{StoreError, sql, to_json};

/// Rows in one statement. SQLite takes 32,766 bound values in one and Postgres 65,535; the widest row has 8.
const ROWS: usize = 500;

/// Statements of so many rows are kept prepared: what one event leads to. Nine kinds of eight are fewer than the hundred
/// that a connection keeps.
const ROWS_PREPARED: usize = 8;

impl SqlStore {
    pub(super) async fn commit(&self, epoch: Epoch, batch: &Batch) -> Result<(), StoreError> {
        let mut connection = self.writer.acquire().await?;
        let written = transaction(batch, epoch, &mut connection).await;
        if written.is_err() {
            // On a full disk SQLite rolls back by itself, and sqlx counts the transaction as open for
            // ever: this connection would refuse every later one.
            connection.close_on_drop();
        }
        written
    }
}

async fn transaction(batch: &Batch, epoch: Epoch, connection: &mut Connection) -> Result<(), StoreError> {
    let mut transaction = connection.begin_with(BEGIN).await?;
    super::epoch::touch(&mut transaction, epoch).await?;
    write(batch, epoch, &mut transaction).await?;
    // A run of ten thousand steps takes a while to write: whoever stands by and waited for the lock
    // must not find an epoch that looks lapsed.
    if batch.entries.len() + batch.steps.len() + batch.log_rows.len() > ROWS {
        super::epoch::touch(&mut transaction, epoch).await?;
    }
    transaction.commit().await?;
    Ok(())
}

async fn write(batch: &Batch, epoch: Epoch, to: &mut Connection) -> Result<(), StoreError> {
    insert(
        to,
        "INSERT INTO journal (seq, run, worker, at_ms, entry, epoch) ",
        "",
        &batch.entries,
        |mut values, row| {
            let heard_of = match &row.entry {
                Entry::Heard { worker, .. } => Some(worker.to_string()),
                _ => None,
            };
            let run = row.entry.run().map(|run| run.to_string());
            values.push_bind(sql(row.seq)).push_bind(run).push_bind(heard_of);
            values.push_bind(sql(row.at_ms)).push_bind(to_json(&row.entry)).push_bind(sql(epoch.0));
        },
    )
    .await?;
    forget_heard(batch, to).await?;
    insert(
        to,
        "INSERT INTO runs (run, submitted_at_ms, tenant, pipeline_hash, done, change, summary) ",
        " ON CONFLICT (run) DO UPDATE SET done = excluded.done, change = excluded.change, summary = excluded.summary",
        &batch.runs,
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
        &batch.steps,
        |mut values, row| {
            values.push_bind(row.run.to_string()).push_bind(sql(row.index as u64));
            values.push_bind(row.view.step.as_str()).push_bind(row.view.execution.to_string());
            values.push_bind(sql(row.change)).push_bind(to_json(&row.view));
        },
    )
    .await?;
    insert(to, "INSERT INTO outbox (id, about, exchange, routing_key, body) ", "", &batch.outbox, |mut values, row| {
        values.push_bind(row.id).push_bind(to_json(&row.about)).push_bind(row.to.exchange.clone());
        values.push_bind(row.to.routing_key.clone()).push_bind(row.body.clone());
    })
    .await?;
    for ids in batch.outbox_done.chunks(ROWS) {
        let mut query = QueryBuilder::<Db>::new("DELETE FROM outbox WHERE id IN (");
        let mut list = query.separated(", ");
        for id in ids {
            list.push_bind(*id);
        }
        list.push_unseparated(")");
        query.build().persistent(ids.len() <= ROWS_PREPARED).execute(&mut *to).await?;
    }
    write_logs(batch, to).await
}

/// How far a worker was heard replaces what was said of that before: a fleet says so with every batch. Of what an
/// older version left a part goes with each.
async fn forget_heard(batch: &Batch, to: &mut Connection) -> Result<(), StoreError> {
    let mut newest = BTreeMap::new();
    for row in &batch.entries {
        if let Entry::Heard { worker, .. } = &row.entry {
            newest.insert(worker, row.seq);
        }
    }
    for (worker, seq) in newest {
        let query = "DELETE FROM journal WHERE seq IN \
                     (SELECT seq FROM journal WHERE worker = $1 AND seq < $2 ORDER BY seq LIMIT 1000)";
        sqlx::query(query).bind(worker.to_string()).bind(sql(seq)).execute(&mut *to).await?;
    }
    Ok(())
}

async fn write_logs(batch: &Batch, to: &mut Connection) -> Result<(), StoreError> {
    insert(
        to,
        "INSERT INTO logs (execution, attempt, run, step, stdout, stderr, lines, closed) ",
        " ON CONFLICT (execution, attempt) DO NOTHING",
        &batch.logs,
        |mut values, log| {
            values.push_bind(log.claim.execution.to_string()).push_bind(i64::from(log.claim.attempt.0));
            values.push_bind(log.claim.run.to_string()).push_bind(log.step.as_str());
            values.push("0, 0, 0, FALSE");
        },
    )
    .await?;
    insert(
        to,
        "INSERT INTO log_rows (change, run, execution, attempt, first_line, lines, data, gap) ",
        "",
        &batch.log_rows,
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
    for end in &batch.log_ends {
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
    for chunk in &batch.chunks {
        write_chunk(to, chunk).await?;
    }
    Ok(())
}

/// Many rows in one statement: each statement is a round trip to the database's thread, which for a
/// run of ten thousand steps was most of its seven seconds.
async fn insert<T>(
    to: &mut Connection,
    head: &'static str,
    tail: &'static str,
    rows: &[T],
    mut values: impl FnMut(Separated<'_, Db, &'static str>, &T),
) -> Result<(), StoreError> {
    for rows in rows.chunks(ROWS) {
        let mut query = QueryBuilder::<Db>::new(head);
        query.push_values(rows, &mut values);
        query.push(tail);
        // The statement of a few rows comes again, and is worth keeping prepared.
        query.build().persistent(rows.len() <= ROWS_PREPARED).execute(&mut *to).await?;
    }
    Ok(())
}

/// The chunk's index row comes and the rows' bytes go in one transaction: a reader sees either.
async fn write_chunk(to: &mut Connection, chunk: &ChunkRow) -> Result<(), StoreError> {
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
