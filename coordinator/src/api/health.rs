//! Health and metrics.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::{ApiError, ApiState};

/// The process is up.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// 200 if runs can be taken and carried out: the broker is connected, and it leads (which it only does while it can write
/// the store) or knows who does. 503 says what is missing.
pub(super) async fn readyz(State(state): State<Arc<ApiState>>) -> Response {
    let store = state.store.answers().await.is_ok();
    let (leading, broker) =
        state.live.as_ref().map_or((false, false), |live| (*live.leading.borrow(), (live.broker_connected)()));
    let leader = leading || state.leader_elsewhere().await.is_some();
    let ready = leader && broker && store;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let what = json!({ "ready": ready, "leading": leading, "leader": leader, "broker": broker, "store": store });
    (status, Json(what)).into_response()
}

/// For Prometheus.
pub(super) async fn metrics(State(state): State<Arc<ApiState>>) -> Result<Response, ApiError> {
    let metrics = state.metrics.as_ref().ok_or(ApiError::NotFound("metrics page: this process records none"))?;
    // The version of the text format is part of what Prometheus negotiates.
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render()).into_response())
}
