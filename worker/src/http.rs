//! `/metrics`, `/healthz` and `/readyz` of a worker.

use std::future::IntoFuture as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use longshore_protocol::broker::Broker;
use tokio::net::TcpListener;

use crate::context::Context;
use crate::engine::Engine;

/// What Prometheus expects of its text format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What an answer under way gets when the worker has stopped. A client that says nothing, or takes nothing, would
/// keep the process for ever.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Serves until the worker has stopped.
pub(crate) async fn serve<B: Broker, E: Engine>(context: Arc<Context<B, E>>, listener: TcpListener) {
    let stopped = context.phases.stopped.clone();
    let router = Router::new()
        .route("/metrics", get(metrics))
        // Alive means that it answers; what is away comes back without a restart.
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(context);
    let server = axum::serve(listener, router).with_graceful_shutdown(stopped.clone().cancelled_owned());
    let late = async {
        stopped.cancelled().await;
        tokio::time::sleep(LAST_ANSWERS).await;
    };
    tokio::select! {
        biased;
        ended = server.into_future() => if let Err(error) = ended {
            tracing::error!(%error, "the health page ended");
        },
        () = late => {}
    }
}

async fn metrics<B: Broker, E: Engine>(State(context): State<Arc<Context<B, E>>>) -> Response {
    match &context.config.metrics_render {
        Some(recorder) => ([(header::CONTENT_TYPE, TEXT_FORMAT)], recorder.render()).into_response(),
        None => (StatusCode::NOT_FOUND, "this process records no metrics\n").into_response(),
    }
}

/// Ready means that a job sent to this worker would be carried out now.
async fn ready<B: Broker, E: Engine>(State(context): State<Arc<Context<B, E>>>) -> Response {
    let mut away = Vec::new();
    if !context.broker.connected() {
        away.push("no connection to the broker");
    }
    if !*context.reachable.borrow() {
        away.push("the Engine does not answer");
    }
    if context.reporter.last_sent() == 0 {
        away.push("hello was not sent yet");
    }
    if away.is_empty() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", away.join("\n"))).into_response()
    }
}
