//! The HTTP API: JSON, errors as [`types::ErrorBody`], streams as server-sent events.
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/runs` | [`submit`]: takes a run; 201, or 200 if it is known |
//! | `GET /v1/runs`, `GET /v1/runs/{run}`, `POST …/cancel` | [`runs`] |
//! | `POST /v1/runs/{run}/retry` | [`retry`]: 202, or 409 if there is nothing to try again |
//! | `POST /v1/runs/{run}/steps/{step}/cancel`, `GET …/why` | [`steps`] |
//! | `GET /v1/runs/{run}/events` | [`events`]: what changes, as SSE with `Last-Event-ID` |
//! | `GET /v1/runs/{run}/logs` | [`logs`]: raw bytes, or SSE with `Last-Event-ID` |
//! | `GET /v1/workers` | [`runs::workers`] |
//! | `HEAD`, `GET`, `PUT /v1/blobs/{hash}` | [`blobs`] |
//! | `GET /healthz`, `/readyz`, `/metrics` | [`health`] |
//!
//! A token sees its tenant's runs: another's is `not_found`. What the fleet shares is for every token:
//! its workers, its metrics, and blobs, which workers of no tenant fetch and whose name, the hash of
//! the content, only who has the content knows.
//!
//! Reads are answered from the store, by whoever leads or stands by; writes by the leader's driver, to which one that
//! stands by passes them on ([`forward`]).

mod auth;
mod blobs;
mod error;
mod events;
mod forward;
mod health;
mod logs;
mod retry;
mod runs;
mod steps;
mod submit;
pub mod types;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use longshore_protocol::process::watch;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use error::ApiError;
pub(crate) use forward::Passing;

use crate::blobs::Blobs;
use crate::core::view::WorkerView;
use crate::driver::Tokens;
use crate::driver::feed::Feed;
use crate::driver::inputs::Command;
use crate::logs::seal::ChunkFiles;
use crate::store::Store;

/// Of a JSON body. A pipeline's texts have at most 32 MiB, and JSON may double them.
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What the handlers need.
#[derive(Clone)]
pub(crate) struct ApiState {
    store: Arc<dyn Store>,
    blobs: Blobs,
    chunks: ChunkFiles,
    tokens: Arc<Tokens>,
    metrics: Option<PrometheusHandle>,
    /// `None`: a past run's file, which nobody writes.
    live: Option<Live>,
}

/// What there is only beside a driver.
#[derive(Clone)]
pub(crate) struct Live {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) feed: Arc<Feed>,
    pub(crate) workers: watch::Receiver<Vec<WorkerView>>,
    pub(crate) leading: watch::Receiver<bool>,
    pub(crate) broker_connected: Arc<dyn Fn() -> bool + Send + Sync>,
    /// `None`: what only the leader can do is refused while another leads.
    pub(crate) passing: Option<Passing>,
    /// Cancelled when the process ends: streams end, so that the server can.
    pub(crate) closing: CancellationToken,
}

impl ApiState {
    pub(crate) fn new(store: Arc<dyn Store>, blobs: Blobs, chunks: ChunkFiles) -> Self {
        Self { store, blobs, chunks, tokens: Arc::default(), metrics: None, live: None }
    }

    pub(crate) fn with_live(mut self, live: Live) -> Self {
        self.live = Some(live);
        self
    }

    pub(crate) fn with_tokens(mut self, tokens: Tokens) -> Self {
        self.tokens = Arc::new(tokens);
        self
    }

    pub(crate) fn with_metrics(mut self, metrics: Option<PrometheusHandle>) -> Self {
        self.metrics = metrics;
        self
    }

    pub(crate) fn metrics(&self) -> Option<PrometheusHandle> {
        self.metrics.clone()
    }

    /// Where another coordinator is that leads, if we know it.
    async fn leader_elsewhere(&self) -> Option<(Passing, String)> {
        let live = self.live.as_ref()?;
        if *live.leading.borrow() {
            return None;
        }
        let passing = live.passing.clone()?;
        let leader = self.store.answers().await.ok()??;
        (leader.starts_with("http://") && !passing.is_own(&leader)).then_some((passing, leader))
    }

    /// Hands a command to the leader's driver and waits until it is committed.
    async fn command<T>(
        &self,
        command: impl FnOnce(tokio::sync::oneshot::Sender<T>) -> Command + Send,
    ) -> Result<T, ApiError> {
        let live = self.live.as_ref().ok_or(ApiError::ReadOnly)?;
        let mut leading = live.leading.clone();
        // Taking over takes milliseconds when nobody else leads: that is worth waiting for, a stand-by is not.
        let led = async { leading.wait_for(|leading| *leading).await.is_ok() };
        if !tokio::time::timeout(LEADER_WAIT, led).await.unwrap_or(false) {
            return Err(ApiError::NotLeading);
        }
        let (reply, answer) = tokio::sync::oneshot::channel();
        let answered = async {
            live.commands.send(command(reply)).await.ok()?;
            answer.await.ok()
        };
        // One that was not taken before the reign ended would wait for the next one, or for ever.
        tokio::select! {
            biased;
            answer = answered => answer.ok_or(ApiError::NotLeading),
            _ = leading.wait_for(|leading| !*leading) => Err(ApiError::NotLeading),
        }
    }
}

/// How long a write waits for this process to lead.
const LEADER_WAIT: std::time::Duration = std::time::Duration::from_secs(5);

/// Every route.
pub(crate) fn router(state: ApiState) -> Router {
    // Each request clones it once a layer and handler.
    let state = Arc::new(state);
    let guarded = Router::new()
        .route("/v1/runs", post(submit::submit).get(runs::list))
        .route("/v1/runs/{run}", get(runs::show))
        .route("/v1/runs/{run}/cancel", post(runs::cancel))
        .route("/v1/runs/{run}/retry", post(retry::retry))
        .route("/v1/runs/{run}/steps/{step}/cancel", post(steps::cancel))
        .route("/v1/runs/{run}/steps/{step}/why", get(steps::why))
        .route("/v1/runs/{run}/events", get(events::follow))
        .route("/v1/runs/{run}/logs", get(logs::logs))
        .route("/v1/workers", get(runs::workers))
        // A blob is streamed to disk and has a bound of its own.
        .route("/v1/blobs/{hash}", get(blobs::get).put(blobs::put).layer(DefaultBodyLimit::disable()))
        .route("/metrics", get(health::metrics))
        .layer(axum::middleware::from_fn_with_state(state.clone(), forward::pass_on))
        .layer(axum::middleware::from_fn_with_state(state.clone(), auth::check))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX));
    let open = Router::new().route("/healthz", get(health::healthz)).route("/readyz", get(health::readyz));
    guarded.merge(open).fallback(async || ApiError::NotFound("page")).with_state(state)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a test's helper that fails has failed its test

    use longshore_protocol::RunId;
    use longshore_protocol::outcome::CancelledBy;

    use super::*;
    use crate::store::sqlite::SqliteStore;

    /// It would hold its client, and the end of the process, for ever.
    #[tokio::test]
    async fn a_command_that_no_reign_takes_is_answered_when_the_reign_ends() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = SqliteStore::open(&dir.path().join("state.db")).await.unwrap();
        let blobs = Blobs::open(dir.path(), 0).await.unwrap();
        let (commands, taken) = mpsc::channel(1);
        let (leading, leading_in) = watch::channel(true);
        let live = Live {
            commands,
            feed: Arc::default(),
            workers: watch::channel(Vec::new()).1,
            leading: leading_in,
            broker_connected: Arc::new(|| true),
            passing: None,
            closing: CancellationToken::new(),
        };
        let state = ApiState::new(Arc::new(store), blobs, ChunkFiles::in_blobs(dir.path())).with_live(live);
        // The first one fills the line, the second one waits to get into it.
        let ask = async || {
            let (run, by) = (RunId::new(), CancelledBy::User);
            state.command(|reply| Command::Cancel { run, by, reply }).await
        };
        let end = async {
            while taken.is_empty() {
                tokio::task::yield_now().await;
            }
            leading.send_replace(false);
        };
        let (first, second, ()) = tokio::join!(ask(), ask(), end);
        assert!(matches!((first, second), (Err(ApiError::NotLeading), Err(ApiError::NotLeading))));
    }
}
