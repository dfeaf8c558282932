//! A worker that may crash.

use std::net::SocketAddr;

use longshore_protocol::broker::Broker as _;
use longshore_protocol::{Incarnation, WorkerId};
use longshore_worker::engine::fake::FakeEngine;
use longshore_worker::{Config, Worker, WorkerError};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::fleet::PATIENCE;
use crate::tap::Tap;

/// A worker on threads of its own, so that a crash ends all of it.
pub(crate) struct Process {
    pub(crate) id: WorkerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) listens_on: Option<SocketAddr>,
    pub(crate) tap: Tap,
    engine: FakeEngine,
    shutdown: CancellationToken,
    hurry: CancellationToken,
    kill: CancellationToken,
    ended: JoinHandle<Result<(), WorkerError>>,
    // Last, and given away before it would be dropped: a runtime must not end inside another.
    runtime: Option<Runtime>,
}

impl Process {
    pub(crate) async fn start(config: Config, tap: Tap, engine: FakeEngine) -> Result<Self, WorkerError> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        let shutdown = CancellationToken::new();
        let (opened, told) = tokio::sync::oneshot::channel();
        let engine = engine.another();
        let (token, broker, its_engine) = (shutdown.clone(), tap.clone(), engine.clone());
        let ended = runtime.spawn(async move {
            match Worker::open(config, broker, its_engine).await {
                Ok(worker) => {
                    let tokens = (worker.hurry(), worker.kill());
                    let names = (worker.id().clone(), worker.incarnation(), worker.listens_on());
                    let _ = opened.send(Ok((names, tokens)));
                    worker.run(token).await
                }
                Err(error) => {
                    let _ = opened.send(Err(error));
                    Ok(())
                }
            }
        });
        match told.await.unwrap() {
            Ok(((id, incarnation, listens_on), (hurry, kill))) => {
                let runtime = Some(runtime);
                Ok(Self { id, incarnation, listens_on, tap, engine, shutdown, hurry, kill, ended, runtime })
            }
            Err(error) => {
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    /// As service managers do it.
    pub(crate) async fn stop(mut self) {
        self.told_to_end();
        self.ended().await.unwrap();
    }

    /// The first signal.
    pub(crate) fn told_to_end(&self) {
        self.shutdown.cancel();
    }

    /// The second signal.
    pub(crate) fn told_to_hurry(&self) {
        self.hurry.cancel();
    }

    /// Nothing is given its grace any more.
    pub(crate) fn told_to_kill(&self) {
        self.kill.cancel();
    }

    /// Waits until it ends by itself.
    pub(crate) async fn ended(&mut self) -> Result<(), WorkerError> {
        tokio::time::timeout(PATIENCE, &mut self.ended).await.expect("it did not end").unwrap()
    }

    /// As kill -9 does it: nothing is said or written any more, and its connection is gone.
    pub(crate) async fn crash(mut self) {
        self.engine.cut();
        let runtime = self.runtime.take().unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE)).await.unwrap();
        self.tap.inner.close().await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
