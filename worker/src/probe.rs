//! Whether the Engine answers, and what it has: looked at apart from everything that waits for it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use longshore_protocol::broker::Broker;
use longshore_protocol::process::watch;
use tokio::time::timeout;

use crate::context::Context;
use crate::engine::{Engine, EngineError, EngineInfo};
use crate::error::WorkerError;
use crate::metrics::ENGINE_REACHABLE;
use crate::sweep;
use longshore_protocol::process::blocking;

/// An Engine that is away is asked again after this, doubling up to the cap that everything here reconnects with.
const WAIT_FIRST: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(3);

/// An idle Engine answers in milliseconds; a loaded one gets more than the worst that was seen.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How often leftovers are looked for while nothing went wrong: a removal that failed is rare, and costs a container's
/// disk until then.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// Watches the Engine until the worker has stopped.
pub(crate) async fn run<B: Broker, E: Engine>(context: Arc<Context<B, E>>, disk_free: watch::Sender<Option<u64>>) {
    let stopped = context.phases.stopped.clone();
    let _ = stopped.run_until_cancelled(watch_engine(&context, disk_free)).await;
}

async fn watch_engine<B: Broker, E: Engine>(context: &Context<B, E>, disk_free: watch::Sender<Option<u64>>) {
    let mut lost = context.reachable.subscribe();
    let mut wait = WAIT_FIRST;
    let mut swept = tokio::time::Instant::now();
    loop {
        match probe(context).await {
            Ok(info) if info.id != context.engine_id => {
                // P10: the id is bound to its Engine.
                let (bound, found) = (context.engine_id.clone(), info.id);
                return context.fail(WorkerError::OtherEngine { dir: context.disk.dir().to_owned(), bound, found });
            }
            Ok(info) => {
                wait = WAIT_FIRST;
                disk_free.send_replace(free_bytes(info.data_root).await);
                list_snapshots(context).await;
                let returned = !context.reachable.send_replace(true);
                metrics::gauge!(ENGINE_REACHABLE).set(1.0);
                if returned {
                    tracing::info!("the Engine answers again");
                }
                if returned || swept.elapsed() >= SWEEP_EVERY {
                    sweep::sweep(context).await;
                    swept = tokio::time::Instant::now();
                }
                lost.mark_unchanged();
                if *lost.borrow() {
                    // Sooner if somebody's call finds that it is away.
                    let _ = timeout(context.config.heartbeat, lost.wait_for(|reachable| !*reachable)).await;
                }
            }
            Err(error) => {
                if context.reachable.send_replace(false) {
                    tracing::warn!(%error, "the Engine does not answer; no jobs are claimed until it does");
                }
                metrics::gauge!(ENGINE_REACHABLE).set(0.0);
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(WAIT_MAX);
            }
        }
    }
}

async fn probe<B: Broker, E: Engine>(context: &Context<B, E>) -> Result<EngineInfo, EngineError> {
    let slow = EngineError::Slow { operation: "info", limit: ANSWER_MAX };
    timeout(ANSWER_MAX, context.engine.info()).await.unwrap_or(Err(slow))
}

/// For the heartbeats. On an error the last list stands.
pub(crate) async fn list_snapshots<B: Broker, E: Engine>(context: &Context<B, E>) {
    context.snapshots.listing();
    match context.engine.snapshots().await {
        Ok(found) => context.snapshots.listed(found),
        Err(error) => tracing::debug!(%error, "the snapshots could not be listed"),
    }
}

/// Where the Engine keeps its data, if that is a path here.
async fn free_bytes(data_root: String) -> Option<u64> {
    let path = PathBuf::from(data_root);
    blocking(move || rustix::fs::statvfs(&path).ok().map(|stat| stat.f_bavail * stat.f_frsize)).await
}
