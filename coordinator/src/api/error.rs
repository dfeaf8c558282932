//! What an answer that is not 2xx says.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::http::StatusCode;
use axum::http::header::{HeaderValue, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use longshore_protocol::{BlobHash, RunId};

use super::types::{ErrorBody, ErrorDetail};
use crate::blobs::BlobError;
use crate::logs::seal::ChunkError;
use crate::store::StoreError;

/// How many blobs are named that are missing: enough to see what is wrong.
const MISSING_NAMED: usize = 20;

/// What went wrong with a request.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// `bad_request` (400): what was sent cannot be read.
    #[error("{0}")]
    BadRequest(String),
    /// `unauthorized` (401).
    #[error("a bearer token is needed, and this is none that is known here")]
    Unauthorized,
    /// `foreign_host` (403): no token is set, and the request names another machine than this one.
    #[error("no token is set here, so only requests to an address or to `localhost` are answered")]
    ForeignHost,
    /// `not_found` (404).
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// `run_exists` (409): the id is another pipeline's.
    #[error("run {0} exists and is another pipeline's")]
    RunExists(RunId),
    /// `run_open` (409): it is not settled.
    #[error("the run is still going")]
    RunOpen,
    /// `nothing_to_retry` (409).
    #[error("there is nothing to try again: {0}")]
    NothingToRetry(&'static str),
    /// `blobs_missing` (409): upload them and submit again.
    #[error("{} of the pipeline's blobs are not here: {}", .0.len(), named(.0))]
    BlobsMissing(Vec<BlobHash>),
    /// `too_large` (413).
    #[error("{0}")]
    TooLarge(String),
    /// `invalid_pipeline` (422).
    #[error("the pipeline cannot be carried out: {0}")]
    InvalidPipeline(String),
    /// `hash_mismatch` (422).
    #[error("{0}")]
    HashMismatch(String),
    /// `read_only` (405): a past run's file.
    #[error("this is a past run's file: it can only be read")]
    ReadOnly,
    /// `not_leading` (503): another coordinator leads, or this one has just lost the lead.
    #[error("this coordinator does not lead at the moment")]
    NotLeading,
    /// `internal` (500). It was logged.
    #[error("{0}")]
    Internal(String),
}

fn named(hashes: &[BlobHash]) -> String {
    let names: Vec<&str> = hashes.iter().take(MISSING_NAMED).map(BlobHash::as_str).collect();
    let more = if hashes.len() > MISSING_NAMED { ", …" } else { "" };
    names.join(", ") + more
}

impl ApiError {
    fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::ForeignHost => StatusCode::FORBIDDEN,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::ReadOnly => StatusCode::METHOD_NOT_ALLOWED,
            Self::RunExists(_) | Self::BlobsMissing(_) | Self::RunOpen | Self::NothingToRetry(_) => {
                StatusCode::CONFLICT
            }
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::InvalidPipeline(_) | Self::HashMismatch(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::NotLeading => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// For programs: these words do not change.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad_request",
            Self::Unauthorized => "unauthorized",
            Self::ForeignHost => "foreign_host",
            Self::NotFound(_) => "not_found",
            Self::RunExists(_) => "run_exists",
            Self::RunOpen => "run_open",
            Self::NothingToRetry(_) => "nothing_to_retry",
            Self::BlobsMissing(_) => "blobs_missing",
            Self::TooLarge(_) => "too_large",
            Self::InvalidPipeline(_) => "invalid_pipeline",
            Self::HashMismatch(_) => "hash_mismatch",
            Self::ReadOnly => "read_only",
            Self::NotLeading => "not_leading",
            Self::Internal(_) => "internal",
        }
    }

    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Unauthorized => Some("send the header `Authorization: Bearer TOKEN`"),
            Self::ForeignHost => Some("use http://127.0.0.1:PORT, or start the coordinator with a token"),
            Self::RunExists(_) => Some("choose a new id; a repeated submit sends the same pipeline"),
            Self::RunOpen => Some("wait until it is settled, or cancel it, then try again what did not pass"),
            Self::NothingToRetry(_) => Some("`longshore show` tells how each step ended; ask without --only for all"),
            Self::BlobsMissing(_) => Some("PUT each to /v1/blobs/HASH, then submit again with the same id"),
            Self::HashMismatch(_) => Some("the source changed while it was sent: pack it again"),
            Self::ReadOnly => Some("ask a running coordinator"),
            Self::NotLeading => Some("try again in a moment; a repeated submit with the same id is safe"),
            _ => None,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if let Self::Internal(message) = &self {
            tracing::error!(message, "a request failed");
        }
        let detail = ErrorDetail {
            code: self.code().to_owned(),
            message: self.to_string(),
            hint: self.hint().map(str::to_owned),
        };
        let mut response = (self.status(), Json(ErrorBody { error: detail })).into_response();
        if matches!(self, Self::Unauthorized) {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<ChunkError> for ApiError {
    fn from(error: ChunkError) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<BlobError> for ApiError {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::Mismatch { .. } => Self::HashMismatch(error.to_string()),
            BlobError::TooLarge { .. } => Self::TooLarge(error.to_string()),
            BlobError::CutOff(_) => Self::BadRequest(error.to_string()),
            BlobError::Io(_) => Self::Internal(error.to_string()),
        }
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            return Self::TooLarge(rejection.body_text());
        }
        Self::BadRequest(rejection.body_text())
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self::BadRequest(rejection.body_text())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::BadRequest(rejection.body_text())
    }
}
