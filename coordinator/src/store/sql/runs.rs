//! What the API reads of runs.

use longshore_protocol::{RunId, StepName};
use sqlx::QueryBuilder;

use super::super::Db;
use super::{Connection, SqlStore};
use crate::core::view::{RunSummary, RunView, StepView};
use crate::store::runs::{Changed, RunState, Submitted};
use crate::store::{StoreError, count, from_json, sql};

impl SqlStore {
    /// Runs, newest first, from behind `before` on; of one tenant, or of all.
    pub(super) async fn list_runs(
        &self,
        tenant: Option<&str>,
        before: Option<RunId>,
        limit: u32,
    ) -> Result<Vec<RunSummary>, StoreError> {
        let mut query = QueryBuilder::<Db>::new("SELECT summary FROM runs WHERE TRUE");
        if let Some(tenant) = tenant {
            query.push(" AND tenant = ").push_bind(tenant.to_owned());
        }
        if let Some(before) = before {
            query.push(" AND (submitted_at_ms, run) < (SELECT submitted_at_ms, run FROM runs WHERE run = ");
            query.push_bind(before.to_string()).push(")");
        }
        query.push(" ORDER BY submitted_at_ms DESC, run DESC LIMIT ").push_bind(i64::from(limit));
        let rows: Vec<(String,)> = query.build_query_as().fetch_all(&self.readers).await?;
        rows.iter().map(|(summary,)| from_json("a run", summary)).collect()
    }

    /// A run with its steps, as of one moment.
    pub(super) async fn run(&self, run: RunId) -> Result<Option<RunState>, StoreError> {
        // One transaction, so that the steps are those of the summary.
        let mut reading = self.reading().await?;
        let found = Self::run_in(&mut reading, run).await?;
        reading.commit().await?;
        Ok(found)
    }

    /// The same in a transaction that reads more.
    pub(super) async fn run_in(reading: &mut Connection, run: RunId) -> Result<Option<RunState>, StoreError> {
        let row: Option<(String, bool, i64)> = sqlx::query_as("SELECT summary, done, change FROM runs WHERE run = $1")
            .bind(run.to_string())
            .fetch_optional(&mut *reading)
            .await?;
        let Some((summary, done, change)) = row else { return Ok(None) };
        let rows: Vec<(i64, String)> = sqlx::query_as("SELECT change, view FROM steps WHERE run = $1 ORDER BY idx")
            .bind(run.to_string())
            .fetch_all(&mut *reading)
            .await?;
        let change = rows.iter().map(|(change, _)| *change).fold(change, i64::max);
        let steps = rows.iter().map(|(_, view)| from_json("a step", view)).collect::<Result<_, _>>()?;
        let view = RunView { summary: from_json("a run", &summary)?, steps };
        Ok(Some(RunState { view, change: count(change), done }))
    }

    /// Whether a run is known, and what was submitted.
    pub(super) async fn submitted(&self, run: RunId) -> Result<Option<Submitted>, StoreError> {
        let row: Option<(String, String)> = sqlx::query_as("SELECT pipeline_hash, tenant FROM runs WHERE run = $1")
            .bind(run.to_string())
            .fetch_optional(&self.readers)
            .await?;
        Ok(row.map(|(pipeline_hash, tenant)| Submitted { pipeline_hash, tenant }))
    }

    /// Whether a run is known, for the one writer: by its own connection, so that no number of readers
    /// makes it wait.
    pub(super) async fn is_known(&self, run: RunId) -> Result<bool, StoreError> {
        let row: Option<(i64,)> = sqlx::query_as("SELECT CAST(1 AS BIGINT) FROM runs WHERE run = $1")
            .bind(run.to_string())
            .fetch_optional(&self.writer)
            .await?;
        Ok(row.is_some())
    }

    /// One run in the list, and whether it is done.
    pub(super) async fn summary(&self, run: RunId) -> Result<Option<(RunSummary, bool)>, StoreError> {
        let row: Option<(String, bool)> = sqlx::query_as("SELECT summary, done FROM runs WHERE run = $1")
            .bind(run.to_string())
            .fetch_optional(&self.readers)
            .await?;
        row.map(|(summary, done)| Ok((from_json("a run", &summary)?, done))).transpose()
    }

    /// One step of a run by its name.
    pub(super) async fn step(&self, run: RunId, step: &StepName) -> Result<Option<StepView>, StoreError> {
        if step.as_str().contains('\0') {
            return Ok(None); // which Postgres cannot even look for
        }
        let row: Option<(String,)> = sqlx::query_as("SELECT view FROM steps WHERE run = $1 AND step = $2")
            .bind(run.to_string())
            .bind(step.as_str())
            .fetch_optional(&self.readers)
            .await?;
        row.map(|(view,)| from_json("a step", &view)).transpose()
    }

    /// What changed in a run after a place, in order, each with its own; and whether the run is done.
    pub(super) async fn changes_after(
        &self,
        run: RunId,
        change: u64,
    ) -> Result<(Vec<(u64, Changed)>, bool), StoreError> {
        let mut reading = self.reading().await?;
        let row: Option<(i64, String, bool)> = sqlx::query_as("SELECT change, summary, done FROM runs WHERE run = $1")
            .bind(run.to_string())
            .fetch_optional(&mut *reading)
            .await?;
        let steps: Vec<(i64, String)> =
            sqlx::query_as("SELECT change, view FROM steps WHERE run = $1 AND change > $2 ORDER BY change")
                .bind(run.to_string())
                .bind(sql(change))
                .fetch_all(&mut *reading)
                .await?;
        reading.commit().await?;
        let mut changed = Vec::with_capacity(steps.len() + 1);
        for (at, view) in steps {
            changed.push((count(at), Changed::Step(from_json("a step", &view)?)));
        }
        let Some((at, summary, done)) = row else { return Ok((changed, false)) };
        if count(at) > change {
            let place = changed.partition_point(|(other, _)| *other < count(at));
            changed.insert(place, (count(at), Changed::Run(from_json("a run", &summary)?)));
        }
        Ok((changed, done))
    }
}
