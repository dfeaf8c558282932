//! Runs and workers: list, show, cancel.

use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use longshore_protocol::RunId;
use longshore_protocol::outcome::CancelledBy;
use serde::Deserialize;

use super::auth::Asker;
use super::types::{RunList, WorkerList};
use super::{ApiError, ApiState};
use crate::core::view::{RunSummary, RunView};
use crate::driver::inputs::Command;

/// Runs on a page where nothing is said: more than a screen.
const PAGE: u32 = 50;

/// Most runs on a page: half a MiB of JSON.
const PAGE_MAX: u32 = 1_000;

#[derive(Debug, Deserialize)]
pub(super) struct Page {
    limit: Option<u32>,
    before: Option<RunId>,
}

/// Newest first; the asker's own.
pub(super) async fn list(
    State(state): State<Arc<ApiState>>,
    Extension(asker): Extension<Asker>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<RunList>, ApiError> {
    let Query(Page { limit, before }) = page?;
    let limit = limit.unwrap_or(PAGE).clamp(1, PAGE_MAX);
    let mut runs = state.store.list_runs(asker.only(), before, limit + 1).await?;
    let more = runs.len() > limit as usize;
    runs.truncate(limit as usize);
    let next = if more { runs.last().map(|run| run.run) } else { None };
    Ok(Json(RunList { runs, next }))
}

/// With every step.
pub(super) async fn show(
    State(state): State<Arc<ApiState>>,
    Extension(asker): Extension<Asker>,
    run: Result<Path<RunId>, PathRejection>,
) -> Result<Json<RunView>, ApiError> {
    let Path(run) = run?;
    state.run_of(&asker, run).await?;
    let found = state.store.run(run).await?.ok_or(ApiError::NotFound("run"))?;
    Ok(Json(found.view))
}

/// 202: it is asked for; claimed attempts end when their owners say so (P11). A settled run stays as it is.
pub(super) async fn cancel(
    State(state): State<Arc<ApiState>>,
    Extension(asker): Extension<Asker>,
    run: Result<Path<RunId>, PathRejection>,
) -> Result<(StatusCode, Json<RunSummary>), ApiError> {
    let Path(run) = run?;
    state.run_of(&asker, run).await?;
    state.command(|reply| Command::Cancel { run, by: CancelledBy::User, reply }).await?;
    let (summary, _) = state.run_of(&asker, run).await?;
    Ok((StatusCode::ACCEPTED, Json(summary)))
}

/// As this coordinator sees them; one that stands by, or a past run's file, sees none.
pub(super) async fn workers(State(state): State<Arc<ApiState>>) -> Json<WorkerList> {
    let workers = state.live.as_ref().map(|live| live.workers.borrow().clone()).unwrap_or_default();
    Json(WorkerList { workers })
}
