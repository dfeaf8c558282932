//! Steps that do nothing: what the queue itself costs. Workers beside an Engine without Docker, in a process of their
//! own; everything else is real.

use std::process::Stdio;
use std::time::Duration;

use longshore_coordinator::api::types::RunList;
use longshore_protocol::broker::Broker as _;
use longshore_protocol::broker::amqp::AmqpBroker;
use longshore_tests::Fleet;
use longshore_worker::engine::fake::FakeEngine;
use longshore_worker::{BlobSource, Config, Worker};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::celery::{self, Celery};
use crate::drive;
use crate::failure::{Failure, Result};
use crate::figure::{Figure, Goal};
use crate::measure::Row;
use crate::stand::{Stand, text};

/// Some seconds of work for either side.
const STEPS: usize = 3_000;
const TASKS: usize = 1_500;

/// For finding the best number of Celery's processes.
const TASKS_TRIED: usize = 500;

/// Messages that a Celery process holds beyond the one it carries out: enough that it never waits for one.
const PREFETCH: u32 = 64;

/// A claim is confirmed before the next one (P4), so one worker alone waits for the broker's disk most of the time.
const WORKERS: usize = 4;
const SLOTS: u32 = 64;

/// Until a run of nothing must have ended.
const PATIENCE: Duration = Duration::from_mins(2);

/// How often somebody looks whether it has: the time itself is the coordinator's.
const LOOK: Duration = Duration::from_millis(20);

pub(crate) struct Noop {
    fleet: Fleet,
    workers: Child,
    celery: Celery,
    /// Tasks a second with each number of processes, as tried.
    tried: Vec<f64>,
}

impl Row for Noop {
    const FIGURES: &'static [Figure] = &[Figure {
        name: "noop",
        says: "no-op steps per second over RabbitMQ, with an Engine that does nothing",
        unit: "steps/s",
        baseline: "Celery, tasks that do nothing",
        goal: Goal::RatioAtLeast(4.0),
        limit: Some(
            "Each step is claimed, accepted, started and finished by messages of its own, all confirmed by a quorum queue \
                 and journalled with synchronous=FULL before the next decision: the broker's and the store's writes \
                 and the two cores that they share with both sides",
        ),
    }];

    async fn set_up(stand: &Stand) -> Result<Self> {
        let mut tried = Vec::new();
        for processes in 1..=4 {
            let celery = Celery::start(stand, processes, PREFETCH).await?;
            // The first round makes the table and fills the caches.
            celery.rate("noop", TASKS_TRIED / 5).await?;
            tried.push(celery.rate("noop", TASKS_TRIED).await?);
            celery.stop().await?;
        }
        let best = (0..tried.len()).max_by(|a, b| tried[*a].total_cmp(&tried[*b])).unwrap_or(0);
        let celery = Celery::start(stand, u32::try_from(best + 1)?, PREFETCH).await?;
        let fleet = stand.coordinator().await;
        let workers = start_workers(stand, &fleet).await?;
        fleet.until_workers("every worker", |seen| seen.iter().filter(|w| w.alive).count() == WORKERS).await;
        Ok(Self { fleet, workers, celery, tried })
    }

    async fn ours(&mut self) -> Result<Vec<f64>> {
        let numbers: Vec<String> = (1..=STEPS).map(|n| n.to_string()).collect();
        let pipeline = format!(
            "name: noop\nsteps:\n  - {{name: s, image: nothing, matrix: {{n: [{}]}}, command: [\"true\"]}}\n",
            numbers.join(", ")
        );
        let (packed, http) = (drive::pack(&pipeline)?, drive::http()?);
        let began_ms = drive::now_ms();
        let run = packed.send(&self.fleet).await?;
        let url = self.fleet.url("/v1/runs?limit=1");
        let settled_ms = drive::until("a run of nothing ends", LOOK, PATIENCE, async || {
            let list: RunList = http.get(&url).send().await?.json().await?;
            Ok(list.runs.first().filter(|summary| summary.run == run).and_then(|summary| summary.settled_at_ms))
        });
        Ok(vec![STEPS as f64 * 1e3 / (settled_ms.await? as f64 - began_ms)])
    }

    async fn baseline(&mut self) -> Result<Vec<f64>> {
        Ok(vec![self.celery.rate("noop", TASKS).await?])
    }

    fn settings(&self) -> String {
        let tried: Vec<String> = self.tried.iter().map(|rate| format!("{rate:.0}")).collect();
        format!(
            "the best of 1…4 processes ({} a second), prefetch {PREFETCH} a process, {}; ours: {WORKERS} workers with \
             {SLOTS} slots in one process, quorum queues",
            tried.join(", "),
            celery::SETTINGS
        )
    }

    async fn finish(mut self) -> Result<()> {
        // Their input's end is what ends them.
        drop(self.workers.stdin.take());
        self.workers.wait().await?;
        self.celery.stop().await?;
        self.fleet.kill_coordinator().await;
        Ok(())
    }
}

async fn start_workers(stand: &Stand, fleet: &Fleet) -> Result<Child> {
    let dir = stand.work("noop")?;
    let mut child = Command::new(std::env::current_exe()?)
        .args([WORKERS_COMMAND, fleet.amqp(), fleet.prefix(), &fleet.url(""), text(&dir)?])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdout = child.stdout.take().ok_or_else(|| Failure::new("the workers' output is piped"))?;
    let ready = BufReader::new(stdout).lines().next_line().await?;
    if ready.as_deref() == Some("ready") { Ok(child) } else { Err(Failure::new("the workers did not start")) }
}

/// The hidden command that this program is started with a second time.
pub(crate) const WORKERS_COMMAND: &str = "workers-of-nothing";

/// Workers beside Engines that do nothing, until the input ends: AMQP PREFIX COORDINATOR DIR.
pub(crate) async fn workers(args: &[String]) -> Result<()> {
    let [amqp, prefix, coordinator, dir] = args else {
        return Err(Failure::new("AMQP PREFIX COORDINATOR DIR"));
    };
    let shutdown = CancellationToken::new();
    let mut running = Vec::new();
    for n in 0..WORKERS {
        let blobs = BlobSource::Http { coordinator: coordinator.clone(), token: None };
        let dir = std::path::Path::new(dir).join(n.to_string());
        let config = Config { slots: SLOTS, ..Config::new(prefix.clone(), dir, blobs) };
        let broker = AmqpBroker::new(amqp, "longshore bench").map_err(|error| Failure::new(error.reason()))?;
        let worker = Worker::open(config, broker.clone(), FakeEngine::new(format!("nothing-{n}"))).await?;
        let mut ready = worker.ready();
        let task = tokio::spawn(worker.run(shutdown.clone()));
        ready.wait_for(|ready| *ready).await?;
        running.push((task, broker));
    }
    println!("ready");
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
    shutdown.cancel();
    for (task, broker) in running {
        task.await??;
        broker.close().await;
    }
    Ok(())
}
