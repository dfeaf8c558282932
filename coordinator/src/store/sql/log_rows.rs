//! What the API reads of logs.

use longshore_protocol::{Attempt, ExecutionId, StepName};

use super::SqlStore;
use crate::store::log_rows::{RowPlace, Selection, StoredContent, StoredRow};
use crate::store::packed::unpack;
use crate::store::{StoreError, count, from_json, from_text, sql};

type RawRow = (i64, String, String, i64, i64, i64, Option<Vec<u8>>, Option<String>, Option<i64>);

/// The columns of a [`RawRow`]. The chunk of a sealed row is the last one that begins before it.
macro_rules! rows_where {
    ($condition:literal) => {
        concat!(
            "SELECT r.change, l.step, r.execution, r.attempt, r.first_line, r.lines, r.data, r.gap, \
             (SELECT MAX(c.first_line) FROM log_chunks c WHERE r.data IS NULL AND c.execution = r.execution \
              AND c.attempt = r.attempt AND c.first_line <= r.first_line) \
             FROM log_rows r JOIN logs l ON l.execution = r.execution AND l.attempt = r.attempt WHERE ",
            $condition,
            " AND r.change >= $2 ORDER BY r.change LIMIT $3"
        )
    };
}

impl SqlStore {
    /// Rows from a place on, in order, at most so many.
    pub(super) async fn log_rows(&self, of: &Selection, from: u64, limit: u32) -> Result<Vec<StoredRow>, StoreError> {
        let query = match (of.execution, of.attempt) {
            (None, _) => sqlx::query_as::<_, RawRow>(rows_where!("r.run = $1")).bind(of.run.to_string()),
            (Some(execution), None) => sqlx::query_as(rows_where!("r.execution = $1")).bind(execution.to_string()),
            (Some(execution), Some(_)) => {
                sqlx::query_as(rows_where!("r.execution = $1 AND r.attempt = $4")).bind(execution.to_string())
            }
        };
        let query = query.bind(sql(from)).bind(i64::from(limit));
        let query = match (of.execution, of.attempt) {
            (Some(_), Some(attempt)) => query.bind(i64::from(attempt.0)),
            _ => query,
        };
        query.fetch_all(&self.readers).await?.into_iter().map(stored_row).collect()
    }

    /// The row that holds a line of one log; the one before it where the log is shorter.
    pub(super) async fn row_of_line(
        &self,
        execution: ExecutionId,
        attempt: Attempt,
        line: u64,
    ) -> Result<Option<RowPlace>, StoreError> {
        let row: Option<(i64, i64, i64)> = sqlx::query_as(
            "SELECT change, first_line, lines FROM log_rows WHERE execution = $1 AND attempt = $2 \
             AND first_line <= $3 ORDER BY first_line DESC, change DESC LIMIT 1",
        )
        .bind(execution.to_string())
        .bind(i64::from(attempt.0))
        .bind(sql(line))
        .fetch_optional(&self.readers)
        .await?;
        Ok(row.map(place))
    }

    /// Rows before a place, newest first, at most so many, without their bytes.
    pub(super) async fn rows_before(
        &self,
        of: &Selection,
        before: u64,
        limit: u32,
    ) -> Result<Vec<RowPlace>, StoreError> {
        // An attempt of -1 stands for any.
        let rows: Vec<(i64, i64, i64)> = match of.execution {
            None => {
                sqlx::query_as(
                    "SELECT change, first_line, lines FROM log_rows WHERE run = $1 AND change < $2 \
                     ORDER BY change DESC LIMIT $3",
                )
                .bind(of.run.to_string())
                .bind(sql(before))
                .bind(i64::from(limit))
                .fetch_all(&self.readers)
                .await?
            }
            Some(execution) => {
                sqlx::query_as(
                    "SELECT change, first_line, lines FROM log_rows WHERE execution = $1 AND change < $2 \
                     AND ($4 = -1 OR attempt = $4) ORDER BY change DESC LIMIT $3",
                )
                .bind(execution.to_string())
                .bind(sql(before))
                .bind(i64::from(limit))
                .bind(of.attempt.map_or(-1, |attempt| i64::from(attempt.0)))
                .fetch_all(&self.readers)
                .await?
            }
        };
        Ok(rows.into_iter().map(place).collect())
    }

    /// The index of one log's chunks: first line and number of lines of each.
    pub(super) async fn chunks(&self, execution: ExecutionId, attempt: Attempt) -> Result<Vec<(u64, u64)>, StoreError> {
        let rows: Vec<(i64, i64)> = sqlx::query_as(
            "SELECT first_line, lines FROM log_chunks WHERE execution = $1 AND attempt = $2 ORDER BY first_line",
        )
        .bind(execution.to_string())
        .bind(i64::from(attempt.0))
        .fetch_all(&self.readers)
        .await?;
        Ok(rows.into_iter().map(|(first, lines)| (count(first), count(lines))).collect())
    }
}

fn place((change, first_line, lines): (i64, i64, i64)) -> RowPlace {
    RowPlace { change: count(change), first_line: count(first_line), lines: count(lines) }
}

fn stored_row(row: RawRow) -> Result<StoredRow, StoreError> {
    let (change, step, execution, attempt, first_line, lines, data, gap, chunk) = row;
    let content = match (data, gap, chunk) {
        (Some(data), _, _) => StoredContent::Open(unpack(&data)?),
        (None, Some(gap), _) => StoredContent::Gap(from_json("a gap", &gap)?),
        (None, None, Some(chunk)) => StoredContent::Sealed { chunk: count(chunk) },
        (None, None, None) => {
            return Err(StoreError::Unreadable { what: "a log row", why: "neither bytes nor a chunk".to_owned() });
        }
    };
    Ok(StoredRow {
        change: count(change),
        step: StepName::from(step),
        execution: from_text("an execution's id", &execution)?,
        attempt: Attempt(u32::try_from(attempt).unwrap_or(u32::MAX)),
        first_line: count(first_line),
        lines: count(lines),
        content,
    })
}
