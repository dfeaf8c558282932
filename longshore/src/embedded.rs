//! Coordinator and worker in this process, over the in-memory broker: what `longshore run` needs besides Docker.

use std::num::NonZero;
use std::time::Duration;

use longshore_coordinator::core::CoreConfig;
use longshore_coordinator::core::view::RunView;
use longshore_coordinator::pipeline::{Pipeline, SnapshotRule};
use longshore_coordinator::{Config as CoordinatorConfig, Coordinator, CoordinatorError, Past, StateLocation};
use longshore_protocol::broker::Broker;
use longshore_protocol::broker::memory::MemoryBroker;
use longshore_protocol::{EngineId, ExecutionId, RunId, SnapshotId, WorkerId};
use longshore_worker::engine::docker::DockerEngine;
use longshore_worker::engine::{Engine, EngineError, EngineInfo};
use longshore_worker::{BlobSource, Config as WorkerConfig, Worker, WorkerError};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::failure::Failure;
use crate::state::{Again, Dead, LockNote, RunLock, StateDir, unusable};
use crate::transport::Transport;

/// Nobody else is on this broker.
const PREFIX: &str = "longshore";

/// A fleet of one, for one run.
pub(crate) struct Embedded {
    client: Client,
    engine: DockerEngine,
    owner: WorkerId,
    state: StateDir,
    run: RunId,
    lock: RunLock,
    note: LockNote,
    broker: MemoryBroker,
    coordinator: Part<CoordinatorError>,
    worker: Part<WorkerError>,
    kill: CancellationToken,
    sweep: JoinHandle<()>,
}

/// One process's turn at a run.
pub(crate) struct Sitting {
    lock: RunLock,
    note: LockNote,
    /// Of its worker (P10), in the sittings before.
    starts_before: u64,
}

impl Sitting {
    /// Takes a new run's lock.
    pub(crate) fn first(state: &StateDir, run: RunId, pipeline: &Pipeline, engine: &EngineId) -> Result<Self, Failure> {
        let note = LockNote { engine: engine.clone(), keeps: keeps(run, pipeline, |_| 0) };
        let lock = state.lock(run, &note).map_err(|error| unusable(state.root(), &error))?;
        Ok(Self { lock, note, starts_before: 0 })
    }

    /// Takes the lock of a run that was carried out before. What its last process left behind, if that was killed, is
    /// taken over with it.
    pub(crate) fn again(state: &StateDir, past: &Past, view: &RunView, engine: &EngineId) -> Result<Self, Failure> {
        let run = view.summary.run;
        let remakes = |step: usize| view.steps.get(step).map_or(0, |step| step.remakes.len());
        let note = LockNote { engine: engine.clone(), keeps: keeps(run, &past.pipeline, remakes) };
        let taken = state.lock_again(run, &note).map_err(|error| unusable(state.root(), &error))?;
        match taken {
            Again::Taken(lock) => Ok(Self { lock, note, starts_before: past.last_start }),
            Again::Held => Err(still_going(run)),
            Again::OnAnotherEngine(other) => {
                let left = format!("what run {run} left stands on another Docker Engine ({other})");
                Err(Failure::input(left).mend("name that one with --docker or DOCKER_HOST"))
            }
        }
    }
}

/// What to say of a run that another process is at.
pub(crate) fn still_going(run: RunId) -> Failure {
    Failure::input(format!("run {run} is still going, in another process"))
        .mend("wait for its end, or end it there with Ctrl-C")
}

/// What outlives a run: what its steps with `snapshot: always` leave, or those that make it again (P20), so often as
/// that was done before and may be once more.
fn keeps(run: RunId, pipeline: &Pipeline, remakes: impl Fn(usize) -> usize) -> Vec<ExecutionId> {
    let kept = pipeline.steps.iter().enumerate().filter(|(_, step)| step.snapshot == SnapshotRule::Always);
    kept.flat_map(|(index, step)| {
        let execution = ExecutionId::of_step(run, &step.name);
        let before = u32::try_from(remakes(index)).unwrap_or(u32::MAX);
        let again = 1..=before.saturating_add(CoreConfig::default().remakes_max);
        std::iter::once(execution).chain(again.map(move |n| ExecutionId::of_remake(execution, n)))
    })
    .collect()
}

/// One of the two, running.
struct Part<E> {
    task: JoinHandle<Result<(), E>>,
    stop: CancellationToken,
}

/// An Engine that answered.
pub(crate) struct Found {
    pub(crate) engine: DockerEngine,
    pub(crate) info: EngineInfo,
}

/// Looks for the Engine. Nothing has been made before.
pub(crate) async fn find_engine(address: Option<&str>) -> Result<Found, Failure> {
    let address = address.filter(|address| !address.is_empty());
    let engine = DockerEngine::connect(address).await.map_err(|error| no_docker(&error))?;
    let info = engine.info().await.map_err(|error| no_docker(&error))?;
    Ok(Found { engine, info })
}

/// One sentence with the mend.
pub(crate) fn no_docker(error: &EngineError) -> Failure {
    match error {
        EngineError::Unreachable { address, reason } => {
            Failure::infra(format!("no Docker Engine answers at {address} ({reason})"))
                .mend("start Docker, or name another Engine with --docker or DOCKER_HOST")
        }
        other => Failure::infra(format!("the Docker Engine cannot be used: {other}"))
            .mend("mend it, or name another Engine with --docker or DOCKER_HOST"),
    }
}

/// The machine's cores.
pub(crate) fn default_slots() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores: NonZero<usize>| u32::try_from(cores.get()).unwrap_or(1))
}

impl Embedded {
    /// Starts both parts, for as long as the run's lock is held.
    pub(crate) async fn start(
        state: StateDir,
        run: RunId,
        sitting: Sitting,
        found: Found,
        slots: u32,
    ) -> Result<Self, Failure> {
        let Found { engine, info } = found;
        let Sitting { lock, note, starts_before } = sitting;
        let dead = state.dead(&info.id).map_err(|error| unusable(state.root(), &error))?;
        let broker = MemoryBroker::new();
        let owner = state.owner(run);
        let coordinator = CoordinatorConfig::new(PREFIX, StateLocation::Sqlite(state.store(run)), state.blobs());
        let worker = WorkerConfig {
            slots,
            starts_before,
            worker_id: Some(owner.clone()),
            // Nobody comes back to what is still parked when the run is over.
            leaving: Duration::ZERO,
            // Whoever ends a run wants its end.
            drain: Duration::ZERO,
            ..WorkerConfig::new(PREFIX, state.worker_dir(run), BlobSource::Dir(state.blobs()))
        };
        // Each has its own connection, as on a fleet: closing one leaves the other's.
        let (coordinator, worker) = tokio::join!(
            Coordinator::open(coordinator, broker.another()),
            Worker::open(worker, broker.another(), engine.clone()),
        );
        let coordinator = coordinator.map_err(|error| Failure::infra(format!("the run cannot be kept: {error}")))?;
        let worker = worker.map_err(|error| Failure::infra(format!("the worker cannot start: {error}")))?;
        let client = Client::new(Transport::Local(coordinator.router()));
        let sweep = tokio::spawn(sweep(state.clone(), engine.clone(), dead));
        let kill = worker.kill();
        let (coordinator_stop, worker_stop) = (CancellationToken::new(), CancellationToken::new());
        Ok(Self {
            client,
            engine,
            owner,
            state,
            run,
            lock,
            note,
            broker,
            coordinator: Part { task: tokio::spawn(coordinator.run(coordinator_stop.clone())), stop: coordinator_stop },
            worker: Part { task: tokio::spawn(worker.run(worker_stop.clone())), stop: worker_stop },
            kill,
            sweep,
        })
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Returns only if one of the parts ends although nobody told it to.
    pub(crate) async fn broken(&mut self) -> Failure {
        tokio::select! {
            end = &mut self.coordinator.task => ended("coordinator", end),
            end = &mut self.worker.task => ended("worker", end),
        }
    }

    /// What is cancelled, now or later, is killed without its grace. By its worker, which knows why: one that was killed
    /// behind its back would have failed.
    pub(crate) fn hurry(&self) {
        self.kill.cancel();
    }

    /// Ends both parts. What they had running is ended and removed first.
    pub(crate) async fn close(self) {
        self.coordinator.stop.cancel();
        self.worker.stop.cancel();
        tokio::join!(end_of("coordinator", self.coordinator.task), end_of("worker", self.worker.task));
        if let Err(error) = self.sweep.await {
            tracing::warn!(%error, "the sweep ended badly");
        }
        self.broker.close().await;
        // The worker has done this, as far as it was told in time. The proof of our end goes only if nothing is left.
        match remove_left(&self.engine, &[(self.owner, self.note)]).await {
            Ok(()) => {
                if let Err(error) = self.state.forget_worker(self.run).and_then(|()| self.lock.remove()) {
                    tracing::warn!(%error, "the lock of this run could not be removed");
                }
            }
            Err(error) => tracing::warn!(%error, "something may be left on the Engine; the next run removes it"),
        }
    }
}

/// Removes what the dead left on this Engine; nobody else's. A proof of death goes only when that worked.
async fn sweep(state: StateDir, engine: DockerEngine, dead: Vec<Dead>) {
    if dead.is_empty() {
        return;
    }
    let owners: Vec<_> = dead.iter().map(|dead| (state.owner(dead.run), dead.note.clone())).collect();
    if let Err(error) = remove_left(&engine, &owners).await {
        tracing::warn!(%error, "what interrupted runs left could not be removed; the next run tries again");
        return;
    }
    for dead in dead {
        let run = dead.run;
        if let Err(error) = state.bury(dead) {
            tracing::warn!(%run, %error, "an interrupted run's lock could not be removed");
        }
    }
}

/// Removes the containers of these owners, and their snapshots but those that outlive their runs.
async fn remove_left(engine: &DockerEngine, owners: &[(WorkerId, LockNote)]) -> Result<(), EngineError> {
    let is_meant = |meant: &WorkerId| owners.iter().any(|(owner, _)| owner == meant);
    for container in engine.containers().await? {
        if is_meant(&container.owner()) {
            engine.destroy(&container).await?;
        }
    }
    for snapshot in engine.snapshots().await? {
        if owners.iter().any(|(owner, note)| is_left(&snapshot, owner, note)) {
            engine.remove_snapshot(&snapshot).await?;
        }
    }
    Ok(())
}

/// Whether it is an ephemeral snapshot of this owner's ([`SnapshotId::ephemeral`]) that nobody asked to keep.
fn is_left(snapshot: &SnapshotId, owner: &WorkerId, note: &LockNote) -> bool {
    let Some((repository, tag)) = snapshot.as_str().split_once(':') else { return false };
    repository == format!("longshore/{owner}") && !note.keeps.iter().any(|kept| tag.starts_with(&kept.to_hex()))
}

type End<E> = Result<Result<(), E>, tokio::task::JoinError>;

fn ended<E: std::fmt::Display>(part: &str, end: End<E>) -> Failure {
    match end {
        Ok(Ok(())) => Failure::infra(format!("the {part} ended before the run")),
        Ok(Err(error)) => Failure::infra(format!("the {part} broke down: {error}")),
        Err(error) => Failure::infra(format!("the {part} broke down: {error}")),
    }
}

async fn end_of<E: std::fmt::Display>(part: &str, task: JoinHandle<Result<(), E>>) {
    // One that broke down was reported by `broken`, and its task must not be awaited again.
    if task.is_finished() {
        return;
    }
    match task.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the {part} ended badly"),
        Err(error) => tracing::warn!(%error, "the {part} ended badly"),
    }
}
