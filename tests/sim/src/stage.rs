//! The machines of a schedule, what runs on them, and what befalls them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use longshore_coordinator::core::CoreConfig;
use longshore_coordinator::{Coordinator, StateLocation};
use longshore_protocol::process::simulated::{Process, outside};
use longshore_worker::engine::EngineError;
use longshore_worker::engine::fake::FakeEngine;
use longshore_worker::{BlobSource, Worker};
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::broker::SimBroker;
use crate::plan::{Fault, Plan};
use crate::store::SimDatabase;
use crate::world::{World, lock};

/// Ticks of silence that end a lease: so few that leases end within a schedule, and more than a restart of the broker.
/// As few as `exclusive` asks for.
pub const LEASE_TICKS: u32 = 15;

/// A sixth of the lease (P7).
const HEARTBEAT: Duration = Duration::from_millis(2_500);

/// What a supervisor grants a worker that is gone (P17): longer than any host is down here.
const ORPHAN: Duration = Duration::from_mins(1);

/// When the schedule begins by every clock on a wall.
const WALL_MS: u64 = 1_800_000_000_000;

/// How long each call of an Engine takes, in ms, as on the reference machine.
const CALLS_MS: [(&str, u64); 6] =
    [("create", 30), ("start", 70), ("commit", 60), ("destroy", 20), ("clean", 2), ("ensure_image", 5)];

/// Calls that may fail.
const CALLS: [&str; 11] = [
    "create",
    "start",
    "commit",
    "destroy",
    "clean",
    "ensure_image",
    "exit",
    "stop",
    "snapshot_exists",
    "containers",
    "remove_snapshot",
];

/// Queues that somebody may empty or delete. What was in them must come again.
const KINDS: [&str; 6] = ["jobs", "events", "events", "output", "output", "control"];

/// All of it.
#[derive(Clone)]
pub struct Stage(Arc<Inner>);

struct Inner {
    world: World,
    broker: SimBroker,
    database: SimDatabase,
    dir: PathBuf,
    hosts: Vec<Host>,
    coordinators: Vec<Place<Router>>,
    /// Faults have ended: what is down comes up at once.
    healed: Mutex<bool>,
    /// A process was killed at a point.
    died: Notify,
}

/// One machine beside an Engine.
struct Host {
    engine: FakeEngine,
    slots: u32,
    place: Place<FakeEngine>,
}

/// Where a process runs, or will again.
struct Place<T> {
    now: Mutex<Option<Running<T>>>,
    clock_ms: Mutex<i64>,
    starts: Mutex<u64>,
}

impl<T> Default for Place<T> {
    fn default() -> Self {
        Self { now: Mutex::default(), clock_ms: Mutex::default(), starts: Mutex::default() }
    }
}

#[derive(Clone)]
struct Running<T> {
    process: Process,
    client: u64,
    shutdown: CancellationToken,
    handle: Option<T>,
}

impl Stage {
    pub fn new(plan: &Plan, world: World, broker: SimBroker, database: SimDatabase, dir: PathBuf) -> Self {
        let hosts = plan.workers.iter().enumerate().map(|(which, slots)| {
            let engine = FakeEngine::new(format!("engine-{which}"));
            usual_speed(&engine);
            engine.add_image("sim:latest", &[("/host", &format!("w{which}\n"))], &[]);
            Host { engine, slots: *slots, place: Place::default() }
        });
        let coordinators = (0..plan.coordinators).map(|_| Place::default());
        let (hosts, coordinators) = (hosts.collect(), coordinators.collect());
        let (healed, died) = (Mutex::default(), Notify::new());
        Self(Arc::new(Inner { world, broker, database, dir, hosts, coordinators, healed, died }))
    }

    /// Starts everything, and whatever dies by itself again.
    pub fn begin(&self) {
        let seed = self.0.world.dice().draw();
        outside(Some(Process::new("outside", WALL_MS, seed, Arc::new(|_| ()))));
        for which in 0..self.0.coordinators.len() {
            self.start_coordinator(which);
        }
        for which in 0..self.0.hosts.len() {
            self.start_worker(which);
        }
        let stage = self.clone();
        tokio::spawn(async move {
            loop {
                stage.0.died.notified().await;
                stage.bury();
            }
        });
    }

    fn process<T>(&self, place: &Place<T>, name: &str, worker: Option<usize>) -> Process {
        let start = {
            let mut starts = lock(&place.starts);
            *starts += 1;
            *starts
        };
        let clock = lock(&place.clock_ms).saturating_add(i64::try_from(self.0.world.at().as_millis()).unwrap_or(0));
        let wall_ms = WALL_MS.saturating_add_signed(clock);
        let seed = self.0.world.dice().draw();
        let stage = Arc::downgrade(&self.0);
        let points = move |process: &Process| {
            let Some(stage) = stage.upgrade() else { return };
            if let Some(which) = worker {
                let obeyed = process.obeyed();
                if obeyed > 0 {
                    stage.world.obeys(which, obeyed);
                }
            }
            stage.world.point(process);
            if process.is_dead() {
                stage.died.notify_one();
            }
        };
        Process::new(format!("{name}.{start}"), wall_ms, seed, Arc::new(points))
    }

    fn start_coordinator(&self, which: usize) {
        let place = &self.0.coordinators[which];
        let process = self.process(place, &format!("coordinator-{which}"), None);
        let client = self.0.broker.client(Some(process.clone()));
        let shutdown = CancellationToken::new();
        let running =
            Running { process: process.clone(), client: client.id(), shutdown: shutdown.clone(), handle: None };
        *lock(&place.now) = Some(running);
        let store = Arc::new(self.0.database.connect(Some(process.clone())));
        let core = CoreConfig {
            lease_ticks: LEASE_TICKS,
            accept_deadline_ticks: LEASE_TICKS,
            resend_ticks: 4,
            infra_backoff_max_ms: 4_000,
            ..CoreConfig::default()
        };
        let mut config =
            longshore_coordinator::Config::new("sim", StateLocation::Open(store), self.0.dir.join("blobs"));
        config.core = core;
        let stage = self.clone();
        self.0.world.note("started", which as u64, || format!("{} starts", process.name()));
        process.clone().spawn(async move {
            let ended = async {
                let coordinator = Coordinator::open(config, client).await?;
                if let Some(running) = &mut *lock(&stage.0.coordinators[which].now) {
                    running.handle = Some(coordinator.router());
                }
                coordinator.run(shutdown).await
            };
            let ended = ended.await;
            let name = process.name();
            stage.0.world.note("ended", which as u64, || format!("{name} ended: {ended:?}"));
            if let Err(error) = &ended {
                stage.0.world.violated(format!("{name} gave up: {error}"));
            }
            stage.down(Which::Coordinator(which), 100);
        });
    }

    fn start_worker(&self, which: usize) {
        let host = &self.0.hosts[which];
        let process = self.process(&host.place, &format!("worker-{which}"), Some(which));
        let client = self.0.broker.client(Some(process.clone()));
        let engine = host.engine.another();
        let shutdown = CancellationToken::new();
        let (id, handle) = (client.id(), Some(engine.clone()));
        let running = Running { process: process.clone(), client: id, shutdown: shutdown.clone(), handle };
        *lock(&host.place.now) = Some(running);
        let config = self.worker_config(which);
        let stage = self.clone();
        self.0.world.note("started", which as u64, || format!("{} starts", process.name()));
        process.clone().spawn(async move {
            let ended = async { Worker::open(config, client, engine).await?.run(shutdown).await };
            let ended = ended.await;
            stage.0.world.note("ended", which as u64, || format!("{} ended: {ended:?}", process.name()));
            stage.down(Which::Worker(which), 500);
        });
    }

    fn worker_config(&self, which: usize) -> longshore_worker::Config {
        let blobs = BlobSource::Dir(self.0.dir.join("blobs"));
        let mut config = longshore_worker::Config::new("sim", self.0.dir.join(format!("worker-{which}")), blobs);
        config.slots = self.0.hosts[which].slots;
        config.worker_id = format!("w{which}").parse().ok();
        config.heartbeat = HEARTBEAT;
        config.lease = Duration::from_secs(u64::from(LEASE_TICKS));
        config.orphan = ORPHAN;
        config.drain = Duration::from_secs(5);
        config
    }

    /// Whose process was killed at a point: its connections end, and it is started again.
    fn bury(&self) {
        for which in 0..self.0.coordinators.len() {
            let dead = lock(&self.0.coordinators[which].now).as_ref().is_some_and(|now| now.process.is_dead());
            if dead {
                let ms = self.0.world.dice().between(100, 4_000);
                self.down(Which::Coordinator(which), ms);
            }
        }
        for which in 0..self.0.hosts.len() {
            let dead = lock(&self.0.hosts[which].place.now).as_ref().is_some_and(|now| now.process.is_dead());
            if dead {
                let ms = self.0.world.dice().between(100, 4_000);
                self.down(Which::Worker(which), ms);
            }
        }
    }

    /// It is gone, and comes back after so many ms.
    fn down(&self, which: Which, ms: u64) {
        let client = match which {
            Which::Coordinator(which) => lock(&self.0.coordinators[which].now).take().map(|now| {
                now.process.kill();
                now.client
            }),
            Which::Worker(which) => lock(&self.0.hosts[which].place.now).take().map(|now| {
                now.process.kill();
                if let Some(engine) = now.handle {
                    engine.cut();
                }
                now.client
            }),
        };
        let Some(client) = client else { return };
        self.0.broker.gone(client);
        let stage = self.clone();
        tokio::spawn(async move {
            // A killed process's files and locks are let go of within this time.
            sleep(Duration::from_millis(10)).await;
            for _ in 0..ms / 100 {
                if *lock(&stage.0.healed) {
                    break;
                }
                sleep(Duration::from_millis(100)).await;
            }
            match which {
                Which::Coordinator(which) => stage.start_coordinator(which),
                Which::Worker(which) => stage.start_worker(which),
            }
        });
    }

    /// A fault, from its beginning to its end.
    pub async fn befall(&self, fault: Fault) {
        self.0.world.note("fault", 0, || format!("fault: {fault:?}"));
        let world = &self.0.world;
        let struck = match fault {
            Fault::KillCoordinator { which, ms } => self.kill(Which::Coordinator(which), ms),
            Fault::KillWorker { which, ms } => self.kill(Which::Worker(which), ms),
            Fault::CrashHost { which, ms } => {
                self.0.hosts[which].engine.crash();
                self.kill(Which::Worker(which), ms);
                true
            }
            Fault::FreezeCoordinator { which, ms } => {
                let now = self.coordinator(which);
                self.frozen(now, ms).await
            }
            Fault::FreezeWorker { which, ms } => {
                let now = self.worker(which);
                self.frozen(now, ms).await
            }
            Fault::PartitionCoordinator { which, hears, speaks, ms } => {
                let now = self.coordinator(which);
                self.parted(now, hears, speaks, ms).await
            }
            Fault::PartitionWorker { which, hears, speaks, ms } => {
                let now = self.worker(which);
                self.parted(now, hears, speaks, ms).await
            }
            Fault::ClockOfCoordinator { which, by_ms } => {
                *lock(&self.0.coordinators[which].clock_ms) += by_ms;
                self.coordinator(which).map(|(process, _)| process.set_clock_by(by_ms)).is_some()
            }
            Fault::ClockOfWorker { which, by_ms } => {
                *lock(&self.0.hosts[which].place.clock_ms) += by_ms;
                self.worker(which).map(|(process, _)| process.set_clock_by(by_ms)).is_some()
            }
            Fault::RestartBroker { ms } => {
                self.0.broker.stop();
                self.pass(ms).await;
                self.0.broker.start();
                true
            }
            Fault::MemoryAlarm { ms } => {
                self.0.broker.alarm(true);
                self.pass(ms).await;
                self.0.broker.alarm(false);
                true
            }
            Fault::StoreDown { ms } => {
                self.0.database.down(true);
                self.pass(ms).await;
                self.0.database.down(false);
                true
            }
            Fault::Purge { kind } => {
                self.0.broker.purge(KINDS[kind % KINDS.len()]);
                true
            }
            Fault::Delete { kind } => {
                self.0.broker.delete_all(KINDS[kind % KINDS.len()]);
                true
            }
            Fault::RestartEngine { which } => {
                self.0.hosts[which].engine.crash();
                true
            }
            Fault::SlowHost { which, ms } => {
                let engine = &self.0.hosts[which].engine;
                for (call, usual) in CALLS_MS {
                    engine.takes(call, Duration::from_millis(usual * 30 + 500));
                }
                self.pass(ms).await;
                usual_speed(engine);
                true
            }
            Fault::EngineError { which, call } => {
                let error = if call % 2 == 0 {
                    EngineError::Unreachable { address: "sim".to_owned(), reason: "it was reset".to_owned() }
                } else {
                    EngineError::Refused { operation: "sim", status: 500, reason: "no".to_owned() }
                };
                self.0.hosts[which].engine.fail_next(CALLS[call / 2 % CALLS.len()], error);
                true
            }
            Fault::Drain { which, .. } => {
                let now = lock(&self.0.hosts[which].place.now).as_ref().map(|now| now.shutdown.clone());
                now.map(|shutdown| shutdown.cancel()).is_some()
            }
        };
        if struck {
            world.count(fault.kind());
        }
    }

    fn kill(&self, which: Which, ms: u64) -> bool {
        let there = match which {
            Which::Coordinator(which) => self.coordinator(which).is_some(),
            Which::Worker(which) => self.worker(which).is_some(),
        };
        self.down(which, ms);
        there
    }

    fn coordinator(&self, which: usize) -> Option<(Process, u64)> {
        lock(&self.0.coordinators[which].now).as_ref().map(|now| (now.process.clone(), now.client))
    }

    fn worker(&self, which: usize) -> Option<(Process, u64)> {
        lock(&self.0.hosts[which].place.now).as_ref().map(|now| (now.process.clone(), now.client))
    }

    async fn frozen(&self, now: Option<(Process, u64)>, ms: u64) -> bool {
        let Some((process, client)) = now else { return false };
        process.freeze();
        self.0.broker.absent(client, true);
        self.pass(ms).await;
        process.thaw();
        self.0.broker.absent(client, false);
        true
    }

    async fn parted(&self, now: Option<(Process, u64)>, hears: bool, speaks: bool, ms: u64) -> bool {
        let Some((_, client)) = now else { return false };
        self.0.broker.partition(client, hears, speaks);
        self.pass(ms).await;
        self.0.broker.partition(client, true, true);
        true
    }

    /// So much time passes, or less if the world heals.
    async fn pass(&self, ms: u64) {
        for _ in 0..ms.div_ceil(100) {
            if *lock(&self.0.healed) {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// No fault any more, and whatever is down, stopped or cut off comes back.
    pub fn heal(&self) {
        *lock(&self.0.healed) = true;
        self.0.world.calm();
        for host in &self.0.hosts {
            host.engine.heal();
            usual_speed(&host.engine);
        }
        self.0.world.note("healed", 0, || "the world heals".to_owned());
    }

    /// A coordinator that can be asked, and its process.
    pub fn ask(&self, nth: usize) -> Option<(Process, Router)> {
        let place = &self.0.coordinators[nth % self.0.coordinators.len()];
        let now = lock(&place.now);
        let now = now.as_ref()?;
        Some((now.process.clone(), now.handle.clone()?))
    }

    /// Every Engine, with the worker beside it.
    pub fn engines(&self) -> impl Iterator<Item = (String, &FakeEngine)> {
        self.0.hosts.iter().enumerate().map(|(which, host)| (format!("w{which}"), &host.engine))
    }

    /// Where it happens.
    pub fn world(&self) -> &World {
        &self.0.world
    }

    /// What is in the store.
    pub fn database(&self) -> &SimDatabase {
        &self.0.database
    }
}

#[derive(Clone, Copy)]
enum Which {
    Coordinator(usize),
    Worker(usize),
}

fn usual_speed(engine: &FakeEngine) {
    for (call, ms) in CALLS_MS {
        engine.takes(call, Duration::from_millis(ms));
    }
}
