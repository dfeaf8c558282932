//! A coordinator on an in-memory broker and a real file, and a worker that says what a test tells it to.

#![allow(dead_code, unreachable_pub, missing_docs)] // each test crate uses its part of it

use std::collections::VecDeque;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use futures_util::StreamExt;
use http_body_util::BodyExt;
use longshore_coordinator::core::view::RunView;
use longshore_coordinator::pipeline::{Pipeline, parse};
use longshore_coordinator::store::Store as _;
use longshore_coordinator::store::sqlite::SqliteStore;
use longshore_coordinator::{Config, Coordinator, StateLocation};
use longshore_protocol::broker::memory::MemoryBroker;
use longshore_protocol::broker::{Broker, Consumer, Outgoing};
use longshore_protocol::control::{Control, ControlMessage};
use longshore_protocol::event::{Claim, Event, EventMessage, Finished, Hello, Phases, Started};
use longshore_protocol::job::{Base, Job, Keep};
use longshore_protocol::output::{Ending, Line, LineData, Offsets, OutputMessage, RUN_BYTES_MAX, Run, Stream};
use longshore_protocol::topology::{Queue, Topology};
use longshore_protocol::{
    EngineId, Epoch, Fence, Incarnation, Outcome, PoolName, RunId, Shard, SnapshotId, WorkerId, wire,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

pub const SHARD: Shard = Shard(0);

/// Far beyond what anything here takes: a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_mins(1);

pub async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

pub fn pipeline(yaml: &str) -> Pipeline {
    parse("test.yaml", yaml).unwrap_or_else(|errors| panic!("{errors}"))
}

pub const ONE_STEP: &str = "name: one\nsteps:\n  - {name: build, image: busybox, run: echo}\n";
pub const CHAIN: &str = "name: chain\nsteps:\n  - {name: build, image: busybox, run: echo}\n  \
                         - {name: test, from: build, run: echo}\n";

/// A coordinator that can crash and start again.
pub struct Fleet {
    pub dir: TempDir,
    pub broker: MemoryBroker,
    pub router: Router,
    pub configure: fn(&mut Config),
    running: Option<Running>,
    starts: u64,
}

struct Running {
    task: JoinHandle<()>,
    stop: CancellationToken,
    connection: MemoryBroker,
}

impl Fleet {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(configure: fn(&mut Config)) -> Self {
        let mut fleet = Self::stopped(configure);
        fleet.restart().await;
        fleet
    }

    pub fn stopped(configure: fn(&mut Config)) -> Self {
        let dir = TempDir::new().unwrap();
        let router = Router::new();
        Self { dir, broker: MemoryBroker::new(), router, configure, running: None, starts: 0 }
    }

    pub fn file(&self) -> PathBuf {
        self.dir.path().join("state.db")
    }

    pub fn blob_dir(&self) -> PathBuf {
        self.dir.path().join("blobs")
    }

    pub fn config(&self) -> Config {
        let mut config = Config::new("t", StateLocation::Sqlite(self.file()), self.blob_dir());
        // Ticks come often, so that what waits for some of them is soon over; the lease is as long as ever.
        config.tick = Duration::from_millis(50);
        config.core.lease_ticks = 600;
        (self.configure)(&mut config);
        config
    }

    pub fn topology(&self) -> Topology {
        Topology::new("t", self.config().lease())
    }

    /// Starts it and waits until it leads. What a crash before held is let go of, as after the lapse.
    pub async fn restart(&mut self) {
        assert!(self.running.is_none(), "it still runs");
        if self.starts > 0 {
            let store = SqliteStore::open(&self.file()).await.unwrap();
            store.release_epoch(Epoch(self.starts)).await.unwrap();
            store.close().await;
        }
        let connection = self.broker.another();
        let coordinator = Coordinator::open(self.config(), connection.clone()).await.unwrap();
        self.router = coordinator.router();
        let mut leading = coordinator.leading();
        let stop = CancellationToken::new();
        let run = coordinator.run(stop.clone());
        let task = tokio::spawn(async move { run.await.unwrap() });
        patiently("the lead", leading.wait_for(|leading| *leading)).await.unwrap();
        self.starts += 1;
        self.running = Some(Running { task, stop, connection });
    }

    /// As `kill -9`: wherever it is, it goes no further, and its connection is gone.
    pub async fn crash(&mut self) {
        let Running { task, connection, .. } = self.running.take().expect("it runs");
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        connection.close().await;
    }

    /// The broker is gone for this coordinator, for good.
    pub async fn cut_off(&self) {
        self.running.as_ref().expect("it runs").connection.close().await;
    }

    pub fn is_down(&self) -> bool {
        self.running.is_none()
    }

    pub async fn stop(&mut self) {
        let Running { task, stop, .. } = self.running.take().expect("it runs");
        stop.cancel();
        patiently("the end", task).await.unwrap();
    }

    pub async fn submit(&self, run: RunId, pipeline: &Pipeline) -> (StatusCode, Value) {
        self.post("/v1/runs", &json!({ "run": run, "pipeline": pipeline })).await
    }

    pub async fn submitted(&self, yaml: &str) -> RunId {
        let run = RunId::new();
        let (status, body) = self.submit(run, &pipeline(yaml)).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        run
    }

    pub async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let request = Request::post(path).header("content-type", "application/json");
        json_answer(&self.router, request.body(Body::from(body.to_string())).unwrap()).await
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        json_answer(&self.router, Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub async fn text(&self, path: &str) -> Vec<u8> {
        let response = self.router.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        patiently(path, response.into_body().collect()).await.unwrap().to_bytes().to_vec()
    }

    pub async fn show(&self, run: RunId) -> RunView {
        let (status, body) = self.get(&format!("/v1/runs/{run}")).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        serde_json::from_value(body).unwrap()
    }

    pub async fn events(&self, path: &str, last: Option<&str>) -> Events {
        Events::open(&self.router, path, last).await
    }

    /// Waits until a worker has joined: before, nothing is dispatched to it.
    pub async fn knows(&self, worker: &str) {
        patiently("the worker to join", async {
            while !self.get("/v1/workers").await.1["workers"].to_string().contains(&format!("\"{worker}\"")) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// A worker with so many slots that has joined, and does nothing more: not even take a job.
    pub async fn idler(&self, id: &str, slots: u32) {
        let (broker, topology) = (self.broker.another(), self.topology());
        let (worker, pool): (WorkerId, PoolName) = (id.parse().unwrap(), PoolName::default());
        broker.declare(&topology.of_worker(&worker, &pool)).await.unwrap();
        let (version, host, engine) = ("0".to_owned(), "host".to_owned(), EngineId::from(format!("engine-{id}")));
        let event = Event::Hello(Hello { engine, pool, slots, version, host, records: vec![] });
        let incarnation = Incarnation { start: 1, nonce: 7 };
        let body = wire::encode(&EventMessage { worker, incarnation, number: 1, event });
        broker.publish(vec![Outgoing::new(topology.events(SHARD).address(), body)]).await.unwrap();
        self.knows(id).await;
    }

    /// Waits until the run is settled and its logs are closed.
    pub async fn settled(&self, run: RunId) -> RunView {
        let mut events = self.events(&format!("/v1/runs/{run}/events"), None).await;
        while let Some((_, event)) = events.next().await {
            if event["type"] == "end" {
                return self.show(run).await;
            }
        }
        panic!("the stream of events broke off before the run was settled");
    }
}

pub async fn json_answer(router: &Router, request: Request<Body>) -> (StatusCode, Value) {
    let response = patiently("an answer", router.clone().oneshot(request)).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

/// A stream of server-sent events.
pub struct Events {
    body: axum::body::BodyDataStream,
    buffer: String,
}

impl Events {
    pub async fn open(router: &Router, path: &str, last: Option<&str>) -> Self {
        let mut request = Request::get(path).header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        Self { body: response.into_body().into_data_stream(), buffer: String::new() }
    }

    /// Id and data of the next one; `None` at the stream's end.
    pub async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            while let Some((event, rest)) = self.buffer.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.buffer = rest;
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name).map(str::trim));
                // A comment keeps the connection alive.
                if let Some(data) = field("data:") {
                    let id = field("id:").expect("every event has an id").to_owned();
                    return Some((id, serde_json::from_str(data).unwrap()));
                }
            }
            let chunk = patiently("an event", self.body.next()).await?.unwrap();
            self.buffer.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    pub async fn rest(mut self) -> Vec<(String, Value)> {
        let mut all = Vec::new();
        while let Some(event) = self.next().await {
            all.push(event);
        }
        all
    }
}

/// Speaks as a worker does, by hand.
pub struct ScriptedWorker<B: Broker = MemoryBroker> {
    pub broker: B,
    pub topology: Topology,
    pub id: WorkerId,
    pub incarnation: Incarnation,
    pub number: u64,
    pool: Consumer,
    own: Consumer,
    control: Consumer,
    /// Came in one body with what was read last.
    told: VecDeque<ControlMessage>,
}

impl ScriptedWorker {
    /// Joins the fleet: queues, and `hello`.
    pub async fn join(fleet: &Fleet, id: &str) -> Self {
        Self::join_over(fleet.broker.another(), fleet.topology(), id).await
    }
}

impl<B: Broker> ScriptedWorker<B> {
    /// Joins over any broker.
    pub async fn join_over(broker: B, topology: Topology, id: &str) -> Self {
        let id: WorkerId = id.parse().unwrap();
        let pool_name = PoolName::default();
        broker.declare(&topology.of_worker(&id, &pool_name)).await.unwrap();
        let consume = async |queue: Queue| broker.consume(&queue, 1).await.unwrap();
        let pool = consume(topology.pool_jobs(SHARD, &pool_name)).await;
        let own = consume(topology.worker_jobs(SHARD, &id)).await;
        let control = consume(topology.control(&id)).await;
        let incarnation = Incarnation { start: 1, nonce: 7 };
        let told = VecDeque::new();
        let mut worker = Self { broker, topology, id, incarnation, number: 0, pool, own, control, told };
        let engine = EngineId::from(format!("engine-{}", worker.id));
        let (version, host) = ("0".to_owned(), "host".to_owned());
        worker.event(Event::Hello(Hello { engine, pool: pool_name, slots: 4, version, host, records: vec![] })).await;
        worker
    }

    pub async fn next_job(&mut self) -> Job {
        let delivery = patiently("a job", async {
            tokio::select! {
                delivery = self.pool.next() => delivery,
                delivery = self.own.next() => delivery,
            }
        });
        let delivery = delivery.await.expect("the broker is there");
        let job = wire::decode(&delivery.body).unwrap();
        delivery.ack().await.unwrap();
        job
    }

    pub async fn next_control(&mut self) -> ControlMessage {
        if self.told.is_empty() {
            let delivery = patiently("a control message", self.control.next()).await.expect("the broker is there");
            self.told = wire::decode_all(&delivery.body).unwrap().into();
            delivery.ack().await.unwrap();
        }
        self.told.pop_front().expect("a body holds a message")
    }

    /// Reads on until a control message of this kind comes.
    pub async fn told(&mut self, what: impl Fn(&Control) -> bool) -> ControlMessage {
        loop {
            let message = self.next_control().await;
            if what(&message.control) {
                return message;
            }
        }
    }

    pub async fn raw(&self, queue: &Queue, body: Vec<u8>) {
        self.broker.publish(vec![Outgoing::new(queue.address(), body)]).await.unwrap();
    }

    pub async fn event(&mut self, event: Event) {
        self.number += 1;
        self.event_numbered(self.number, event).await;
    }

    pub async fn event_numbered(&self, number: u64, event: Event) {
        let message = EventMessage { worker: self.id.clone(), incarnation: self.incarnation, number, event };
        self.raw(&self.topology.events(SHARD), wire::encode(&message)).await;
    }

    pub async fn output(&self, claim: &Claim, lines: Vec<Line>) {
        let runs = runs(lines);
        let message =
            OutputMessage { worker: self.id.clone(), incarnation: self.incarnation, claim: claim.clone(), runs };
        self.raw(&self.topology.output(SHARD), wire::encode(&message)).await;
    }

    pub async fn started(&mut self, job: &Job) {
        let claim = claim(job);
        self.event(Event::Accepted(claim.clone())).await;
        let started = Started { claim, prepare_ms: 1, queue_to_start_ms: 1, container: "c".to_owned() };
        self.event(Event::Started(started)).await;
    }

    pub fn result(&self, job: &Job, outcome: Outcome, output: Offsets) -> Finished {
        let fence = Fence { execution: job.execution, attempt: job.attempt, owner: self.id.clone() };
        let kept = outcome.is_passed() && matches!(job.keep, Keep::Snapshot | Keep::Live | Keep::Always);
        let snapshot = kept.then(|| SnapshotId::ephemeral(&fence));
        let phases = Phases { prepare_ms: 1, exec_ms: 2, snapshot_ms: u64::from(kept) };
        Finished { claim: claim(job), outcome, cached: false, output, snapshot, parked: false, phases, usage: None }
    }

    pub async fn finished(&mut self, job: &Job, outcome: Outcome, output: Offsets) {
        let finished = self.result(job, outcome, output);
        self.event(Event::Finished(finished)).await;
    }

    /// Carries a job out: claims it, says one line, passes.
    pub async fn carry_out(&mut self, job: &Job) {
        if let Base::Parent { snapshot: Some(id), .. } = &job.base {
            assert!(id.as_str().contains(&self.id.to_string()), "{id} is not on this worker's Engine");
        }
        self.started(job).await;
        let lines = vec![line(0, &format!("output of {}", job.step))];
        let output = Offsets { stdout: lines[0].end(), stderr: 0 };
        self.output(&claim(job), lines).await;
        self.finished(job, Outcome::Passed, output).await;
    }
}

/// As a worker puts them together: whole lines that were read at one time share a run.
fn runs(lines: Vec<Line>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for run in lines.into_iter().map(Run::from) {
        match runs.last_mut() {
            Some(last)
                if (last.stream, last.end(), last.ending) == (run.stream, run.offset, Ending::Newline)
                    && last.bytes.len() + run.bytes.len() <= RUN_BYTES_MAX =>
            {
                last.bytes.extend(run.bytes);
                last.ending = run.ending;
            }
            _ => runs.push(run),
        }
    }
    runs
}

pub fn claim(job: &Job) -> Claim {
    Claim { run: job.run, execution: job.execution, attempt: job.attempt }
}

pub fn line(offset: u64, text: &str) -> Line {
    bytes(offset, text.as_bytes())
}

pub fn bytes(offset: u64, data: &[u8]) -> Line {
    Line { stream: Stream::Stdout, offset, at_ms: 1, ending: Ending::Newline, data: LineData(data.to_vec()) }
}
