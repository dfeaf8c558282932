//! The verb *submit*: takes a run, once per id.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::{Extension, Json};
use longshore_protocol::BlobHash;

use super::auth::Asker;
use super::types::SubmitRequest;
use super::{ApiError, ApiState};
use crate::core::view::RunSummary;
use crate::driver::inputs::{Command, Taken};
use crate::pipeline::{Pipeline, validate};

/// 201 for a new run, 200 for one that is known; 409 if its id is another pipeline's or tenant's.
pub(super) async fn submit(
    State(state): State<Arc<ApiState>>,
    Extension(Asker { tenant, .. }): Extension<Asker>,
    request: Result<Json<SubmitRequest>, JsonRejection>,
) -> Result<(StatusCode, Json<RunSummary>), ApiError> {
    let Json(SubmitRequest { run, pipeline }) = request?;
    let submitted = crate::store::runs::Submitted { pipeline_hash: hash(&pipeline)?, tenant };
    // Not everything that is submitted was made by our own client.
    validate(&pipeline).map_err(ApiError::InvalidPipeline)?;
    // A run that is known needs its blobs no longer: a repeated submit is answered all the same.
    if state.store.submitted(run).await?.is_none() {
        check_blobs(&state, &pipeline).await?;
    }
    let (tenant, pipeline_hash) = (submitted.tenant.clone(), submitted.pipeline_hash.clone());
    let pipeline = Box::new(pipeline);
    let taken = state.command(|reply| Command::Submit { run, tenant, pipeline, pipeline_hash, reply }).await?;
    if state.store.submitted(run).await?.as_ref() != Some(&submitted) {
        return Err(ApiError::RunExists(run));
    }
    let (summary, _) = state.store.summary(run).await?.ok_or(ApiError::NotFound("run"))?;
    let status = if taken == Taken::New { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(summary)))
}

/// Of the pipeline as it was understood: spaces and unknown keys make no other run.
fn hash(pipeline: &Pipeline) -> Result<String, ApiError> {
    let json = serde_json::to_vec(pipeline).map_err(|error| ApiError::BadRequest(error.to_string()))?;
    Ok(BlobHash::of(&json).to_string())
}

/// A source that was never uploaded would fail on a worker, long after the submitter has gone.
async fn check_blobs(state: &ApiState, pipeline: &Pipeline) -> Result<(), ApiError> {
    let mut sizes = BTreeMap::new();
    for step in &pipeline.steps {
        for source in &step.sources {
            let Some((hash, bytes)) = &source.blob else {
                let what = format!("step {}: the source {} was not packed", step.name, source.path);
                return Err(ApiError::InvalidPipeline(what));
            };
            // Each is looked for once, of however many steps it is a source.
            let found = match sizes.get(hash) {
                Some(found) => *found,
                None => *sizes.entry(hash).or_insert(state.blobs.size(hash).await?),
            };
            if let Some(found) = found
                && found != *bytes
            {
                let what = format!("step {}: blob {hash} has {found} bytes, not {bytes}", step.name);
                return Err(ApiError::InvalidPipeline(what));
            }
        }
    }
    let missing: Vec<BlobHash> =
        sizes.into_iter().filter(|(_, found)| found.is_none()).map(|(hash, _)| hash.clone()).collect();
    if missing.is_empty() { Ok(()) } else { Err(ApiError::BlobsMissing(missing)) }
}
