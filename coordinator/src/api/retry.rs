//! A settled run is opened again.

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use longshore_protocol::RunId;

use super::auth::Asker;
use super::types::RetryRequest;
use super::{ApiError, ApiState};
use crate::core::NotRetried;
use crate::core::view::RunSummary;
use crate::driver::inputs::Command;

/// 202: its steps that did not pass are carried out anew. 409 `run_open` or `nothing_to_retry`.
pub(super) async fn retry(
    State(state): State<Arc<ApiState>>,
    Extension(asker): Extension<Asker>,
    run: Result<Path<RunId>, PathRejection>,
    request: Result<Json<RetryRequest>, JsonRejection>,
) -> Result<(StatusCode, Json<RunSummary>), ApiError> {
    let (Path(run), Json(RetryRequest { only })) = (run?, request?);
    state.run_of(&asker, run).await?;
    state.command(|reply| Command::Retry { run, only, reply }).await?.map_err(|refused| match refused {
        NotRetried::Open => ApiError::RunOpen,
        NotRetried::AllPassed => ApiError::NothingToRetry("every step of the run passed"),
        NotRetried::Nothing => ApiError::NothingToRetry(
            "no step missed in that way, or those that did wait for another that would stay as it is",
        ),
        // It is in the store, or it would not have been found: its journal cannot be read. That was logged.
        NotRetried::Unknown => ApiError::Internal("the run's journal cannot be read".to_owned()),
    })?;
    let (summary, _) = state.run_of(&asker, run).await?;
    Ok((StatusCode::ACCEPTED, Json(summary)))
}
