//! Blobs: is it there, fetch it, put it.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use longshore_protocol::BlobHash;
use tokio_util::io::ReaderStream;

use super::{ApiError, ApiState};

/// One read of a blob: each is a hop to a thread that may wait for the disk, and costs more than the bytes of a small one.
const PIECE_BYTES: usize = 256 * 1024;

/// HEAD is answered by this as well: axum leaves the body away.
pub(super) async fn get(
    State(state): State<Arc<ApiState>>,
    hash: Result<Path<BlobHash>, PathRejection>,
) -> Result<Response, ApiError> {
    let Path(hash) = hash?;
    let (file, bytes) = state.blobs.read(&hash).await?.ok_or(ApiError::NotFound("blob"))?;
    let headers = [(CONTENT_TYPE, "application/octet-stream".to_owned()), (CONTENT_LENGTH, bytes.to_string())];
    Ok((headers, Body::from_stream(ReaderStream::with_capacity(file, PIECE_BYTES))).into_response())
}

/// 201 when it is on disk and is what its name says, 200 if it was there, 422 if it is something else.
pub(super) async fn put(
    State(state): State<Arc<ApiState>>,
    hash: Result<Path<BlobHash>, PathRejection>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let Path(hash) = hash?;
    if state.live.is_none() {
        return Err(ApiError::ReadOnly);
    }
    let new = state.blobs.put(&hash, body.into_data_stream()).await?;
    Ok(if new { StatusCode::CREATED } else { StatusCode::OK })
}
