//! Single steps of a run: cancel, and why one is as it is.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use longshore_protocol::{RunId, StepName};

use super::auth::Asker;
use super::types::StepList;
use super::{ApiError, ApiState};
use crate::core::view::StepView;
use crate::driver::inputs::Command;
use crate::pipeline::meant;
use crate::why::Why;

/// 202: it is asked for; a claimed attempt ends when its owner says so (P11). A settled step stays as it is.
pub(super) async fn cancel(
    State(state): State<Arc<ApiState>>,
    Extension(asker): Extension<Asker>,
    path: Result<Path<(RunId, String)>, PathRejection>,
) -> Result<(StatusCode, Json<StepList>), ApiError> {
    let Path((run, wanted)) = path?;
    state.run_of(&asker, run).await?;
    let steps = steps_meant(&state, run, &wanted).await?.iter().map(|step| step.execution).collect();
    state.command(|reply| Command::CancelSteps { run, steps, reply }).await?;
    Ok((StatusCode::ACCEPTED, Json(StepList { steps: steps_meant(&state, run, &wanted).await? })))
}

/// From the journal, and from the core where this process leads; of a step by its very name.
pub(super) async fn why(
    State(state): State<Arc<ApiState>>,
    Extension(asker): Extension<Asker>,
    path: Result<Path<(RunId, StepName)>, PathRejection>,
) -> Result<Json<Why>, ApiError> {
    let Path((run, step)) = path?;
    state.run_of(&asker, run).await?;
    let view = state.store.step(run, &step).await?.ok_or(ApiError::NotFound("step"))?;
    // Asked before the journal is read: what it says may be older than that, and never newer.
    let leads = state.live.as_ref().is_some_and(|live| *live.leading.borrow());
    let present = if leads && view.outcome.is_none() {
        let execution = view.execution;
        state.command(|reply| Command::Present { run, execution, reply }).await?
    } else {
        None
    };
    let entries = state.store.entries_to_recall(run).await?;
    let why = crate::why::why(run, &step, &entries, present.as_ref()).ok_or(ApiError::NotFound("step"))?;
    Ok(Json(why))
}

/// The steps that a name, a matrix step's name or a pattern stands for, as they are now; at least one.
async fn steps_meant(state: &ApiState, run: RunId, wanted: &str) -> Result<Vec<StepView>, ApiError> {
    let view = state.store.run(run).await?.ok_or(ApiError::NotFound("run"))?.view;
    let meant: Vec<bool> = meant(wanted, view.steps.iter().map(|step| step.step.as_str()));
    let steps: Vec<StepView> =
        view.steps.into_iter().zip(meant).filter_map(|(step, meant)| meant.then_some(step)).collect();
    if steps.is_empty() { Err(ApiError::NotFound("step")) } else { Ok(steps) }
}
