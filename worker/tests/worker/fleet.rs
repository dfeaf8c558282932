//! The other side: a coordinator that does what the test says.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

use futures_util::FutureExt as _;
use longshore_protocol::broker::memory::MemoryBroker;
use longshore_protocol::broker::{Broker as _, Consumer, Delivery, Outgoing};
use longshore_protocol::control::{Control, ControlMessage};
use longshore_protocol::event::{AttemptRecord, Claim, Event, EventMessage, Finished, Hello};
use longshore_protocol::heartbeat::{Heartbeat, HeartbeatMessage};
use longshore_protocol::job::{Base, Command, Job, Keep, Network, Resources, StepSpec};
use longshore_protocol::output::{Offsets, OutputMessage, Stream};
use longshore_protocol::topology::{Queue, Topology};
use longshore_protocol::{
    Attempt, Epoch, ExecutionId, Fence, Incarnation, PoolName, RunId, Shard, StepName, WorkerId, wire,
};
use longshore_worker::config::PARKED_FOR;
use longshore_worker::engine::fake::FakeEngine;
use longshore_worker::{BlobSource, Config, WorkerError};
use serde::de::DeserializeOwned;

use crate::process::Process;
use crate::tap::Tap;

/// Only a test that fails waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) const LEASE: Duration = Duration::from_secs(30);

pub(crate) struct Fleet {
    pub(crate) broker: MemoryBroker,
    pub(crate) engine: FakeEngine,
    pub(crate) topology: Topology,
    lease: Duration,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) epoch: Epoch,
    pub(crate) slots: u32,
    pub(crate) spool_bytes_max: u64,
    pub(crate) spools_bytes_max: Option<u64>,
    pub(crate) output_bytes_max: u64,
    pub(crate) parked_max: Option<u32>,
    pub(crate) parked_for: Duration,
    pub(crate) direct: bool,
    pub(crate) drain: Duration,
    pub(crate) heartbeat_every: Duration,
    pub(crate) run: RunId,
    /// Where the last command that `started` told of runs.
    pub(crate) container: String,
    /// The last event that was read: who sent it, and its number.
    seen: Option<(Incarnation, u64)>,
    events: Consumer,
    /// Came in one body with the last one.
    unread: VecDeque<EventMessage>,
    heartbeats: Consumer,
    output: Consumer,
}

impl Fleet {
    pub(crate) async fn new() -> Self {
        Self::with_lease(LEASE).await
    }

    pub(crate) async fn with_lease(lease: Duration) -> Self {
        let broker = MemoryBroker::new();
        let topology = Topology::new("test", lease);
        broker.declare(&topology.of_coordinator(Shard(0))).await.unwrap();
        let pool = topology.pool_jobs(Shard(0), &PoolName::default());
        broker.declare(&[pool]).await.unwrap();
        let events = broker.consume(&topology.events(Shard(0)), 1000).await.unwrap();
        let heartbeats = broker.consume(&topology.heartbeats(Shard(0)), 1000).await.unwrap();
        let output = broker.consume(&topology.output(Shard(0)), 1000).await.unwrap();
        Self {
            broker,
            engine: FakeEngine::default(),
            topology,
            lease,
            dir: tempfile::tempdir().unwrap(),
            epoch: Epoch(1),
            slots: 1,
            spool_bytes_max: 1 << 30,
            spools_bytes_max: None,
            output_bytes_max: 1 << 32,
            parked_max: None,
            parked_for: PARKED_FOR,
            direct: false,
            drain: Duration::ZERO,
            heartbeat_every: Duration::from_millis(20),
            run: RunId::new(),
            container: String::new(),
            seen: None,
            events,
            unread: VecDeque::new(),
            heartbeats,
            output,
        }
    }

    pub(crate) fn config(&self) -> Config {
        let blobs = BlobSource::Dir(self.blobs());
        Config {
            slots: self.slots,
            lease: self.lease,
            heartbeat: self.heartbeat_every,
            spool_bytes_max: self.spool_bytes_max,
            spools_bytes_max: self.spools_bytes_max,
            output_bytes_max: self.output_bytes_max,
            parked_max: self.parked_max,
            parked_for: self.parked_for,
            direct: self.direct,
            drain: self.drain,
            ..Config::new("test", self.state(), blobs)
        }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.dir.path().join("blobs")
    }

    /// A worker, before its hello was read.
    pub(crate) async fn start(&self) -> Process {
        self.start_with(self.config()).await.unwrap()
    }

    pub(crate) async fn start_with(&self, config: Config) -> Result<Process, WorkerError> {
        Process::start(config, Tap::new(self.broker.another()), self.engine.clone()).await
    }

    /// A worker that has said hello, and what it said.
    pub(crate) async fn started(&mut self) -> (Process, Hello) {
        let worker = self.start().await;
        let mut message = self.message().await;
        // What a dead one said in its last moment comes first.
        while (&message.worker, message.incarnation) != (&worker.id, worker.incarnation) {
            message = self.message().await;
        }
        match message {
            EventMessage { number: 1, event: Event::Hello(hello), .. } => (worker, hello),
            other => panic!("P10: hello comes first, not {other:?}"),
        }
    }

    pub(crate) fn job(&self, step: &str, script: &str) -> Job {
        let step = StepName::from(step);
        Job {
            run: self.run,
            execution: ExecutionId::of_step(self.run, &step),
            step,
            attempt: Attempt::FIRST,
            shard: Shard(0),
            epoch: self.epoch,
            tenant: "default".to_owned(),
            spec: StepSpec {
                command: Command::Script { script: script.to_owned(), shell: vec!["/bin/sh".into(), "-e".into()] },
                env: [("A".to_owned(), "from the spec".to_owned())].into(),
                workdir: None,
                user: None,
                sources: Vec::new(),
                timeout_ms: 3_600_000,
                grace_ms: 0,
                output_max: None,
                exclusive: false,
                resources: Resources::default(),
                network: Network::None,
                pool: PoolName::default(),
            },
            base: Base::Image { reference: "base".to_owned() },
            keep: Keep::Nothing,
            dispatched_at_ms: 0,
        }
    }

    /// A step that goes on with what another one left.
    pub(crate) fn child(&self, step: &str, script: &str, parent: &Finished) -> Job {
        let Finished { claim, snapshot, .. } = parent.clone();
        let base = Base::Parent { execution: claim.execution, attempt: claim.attempt, snapshot };
        Job { base, ..self.job(step, script) }
    }

    pub(crate) fn pool_queue(&self) -> Queue {
        self.topology.pool_jobs(Shard(0), &PoolName::default())
    }

    pub(crate) async fn dispatch(&self, job: &Job) {
        self.publish(&self.pool_queue(), wire::encode(job)).await;
    }

    pub(crate) async fn publish(&self, queue: &Queue, body: Vec<u8>) {
        self.broker.publish(vec![Outgoing::new(queue.address(), body)]).await.unwrap();
    }

    pub(crate) async fn control(&self, worker: &Process, control: Control) {
        self.control_as(self.epoch, worker.incarnation, worker, control).await;
    }

    pub(crate) async fn control_as(&self, epoch: Epoch, incarnation: Incarnation, worker: &Process, control: Control) {
        let message = ControlMessage { epoch, worker: worker.id.clone(), incarnation, control };
        self.publish(&self.topology.control(&worker.id), wire::encode(&message)).await;
    }

    pub(crate) async fn message(&mut self) -> EventMessage {
        if self.unread.is_empty() {
            self.unread = events(&mut self.events).await;
        }
        let message = self.unread.pop_front().expect("a body holds a message");
        self.seen = Some((message.incarnation, message.number));
        if let Event::Started(started) = &message.event {
            self.container.clone_from(&started.container);
        }
        message
    }

    /// The next one that is not of a kind that the test passes over.
    pub(crate) async fn event(&mut self) -> Event {
        self.message().await.event
    }

    pub(crate) async fn accepted(&mut self) -> Claim {
        match self.event().await {
            Event::Accepted(claim) => claim,
            other => panic!("accepted was expected, not {other:?}"),
        }
    }

    pub(crate) async fn running(&mut self, job: &Job) {
        self.dispatch(job).await;
        assert_eq!(self.accepted().await, claim(job));
        match self.event().await {
            Event::Started(started) => assert_eq!(started.claim, claim(job)),
            other => panic!("started was expected, not {other:?}"),
        }
        // Written beside the event: a worker that dies between them would find it as it was before.
        let written = async {
            while !self.entries_of(&claim(job)).iter().any(|entry| entry["entry"] == "running") {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, written).await.expect("it is never written that it runs");
    }

    pub(crate) async fn finished(&mut self) -> Finished {
        loop {
            match self.event().await {
                Event::Finished(finished) => return finished,
                Event::Accepted(_) | Event::Started(_) => {}
                other => panic!("finished was expected, not {other:?}"),
            }
        }
    }

    /// The end of this one: the next incarnation of a worker tells again how others ended.
    pub(crate) async fn finished_of(&mut self, claim: &Claim) -> Finished {
        loop {
            let finished = self.finished().await;
            if finished.claim == *claim {
                return finished;
            }
        }
    }

    /// Dispatches a job and answers how it ended.
    pub(crate) async fn carry_out(&mut self, job: &Job) -> Finished {
        self.dispatch(job).await;
        let finished = self.finished().await;
        assert_eq!(finished.claim, claim(job));
        finished
    }

    pub(crate) async fn heartbeat(&mut self) -> Heartbeat {
        match next(&mut self.heartbeats, "heartbeat").await {
            HeartbeatMessage::Heartbeat(heartbeat) => heartbeat,
            HeartbeatMessage::Tick { .. } => panic!("nobody ticks here"),
        }
    }

    pub(crate) async fn heartbeat_where(&mut self, wanted: impl Fn(&Heartbeat) -> bool) -> Heartbeat {
        let search = async {
            loop {
                let heartbeat = self.heartbeat().await;
                // P7: one from before what was read last says nothing about it.
                let is_new = self.seen.is_none_or(|(incarnation, number)| {
                    heartbeat.incarnation == incarnation && heartbeat.last_event >= number
                });
                if is_new && wanted(&heartbeat) {
                    return heartbeat;
                }
            }
        };
        tokio::time::timeout(PATIENCE, search).await.expect("no such heartbeat came")
    }

    /// Carries out a job and answers what standard output it wrote.
    pub(crate) async fn carry_out_and_read(&mut self, job: &Job) -> (Finished, String) {
        let finished = self.carry_out(job).await;
        let log = self.log(&claim(job), Offsets::default(), finished.output).await;
        (finished, log.text(Stream::Stdout))
    }

    /// Waits until just these attempts' containers are parked.
    pub(crate) async fn parks(&mut self, parked: &[&Finished]) {
        let mut expected: Vec<_> = parked.iter().map(|finished| finished.claim.execution).collect();
        expected.sort_unstable();
        self.heartbeat_where(|hb| {
            let mut found: Vec<_> = hb.parked.iter().map(|claim| claim.execution).collect();
            found.sort_unstable();
            found == expected
        })
        .await;
    }

    /// Waits until what is removed behind the steps is removed.
    pub(crate) async fn has_containers(&mut self, count: usize) {
        let search = async {
            // Each heartbeat is a moment later.
            while self.containers().await.len() != count {
                self.heartbeat().await;
            }
        };
        tokio::time::timeout(PATIENCE, search).await.expect("so many containers are never there");
    }

    /// Waits until a worker holds nothing any more.
    pub(crate) async fn holds_nothing(&mut self, worker: &Process) {
        let incarnation = worker.incarnation;
        self.heartbeat_where(|hb| hb.incarnation == incarnation && hb.attempts.is_empty()).await;
    }

    /// Waits until so many heartbeats are sent from now on.
    pub(crate) async fn later(&mut self, heartbeats: usize) {
        while let Some(Some(before)) = self.heartbeats.next().now_or_never() {
            before.ack().await.unwrap();
        }
        for _ in 0..heartbeats {
            self.heartbeat().await;
        }
    }

    /// What has come and was not read.
    pub(crate) async fn output_here(&mut self) -> Option<OutputMessage> {
        let delivery = self.output.next().now_or_never()??;
        let message = wire::decode(&delivery.body).unwrap();
        delivery.ack().await.unwrap();
        Some(message)
    }

    pub(crate) async fn output(&mut self) -> OutputMessage {
        next(&mut self.output, "output").await
    }

    /// An attempt's log from some offsets on, up to its final ones: put together by offset.
    pub(crate) async fn log(&mut self, claim: &Claim, from: Offsets, to: Offsets) -> Log {
        let mut log = Log { end: from, ..Log::default() };
        while log.end != to {
            let message = self.output().await;
            assert_eq!(message.claim, *claim);
            for run in message.runs {
                let (end, bytes) = (run.end(), log.bytes.entry(run.stream).or_default());
                let known = log.end.of_mut(run.stream);
                if end <= *known {
                    continue;
                }
                assert_eq!(run.offset, *known, "P14: contiguous per stream");
                *known = end;
                bytes.extend(&run.bytes);
            }
        }
        log
    }

    pub(crate) async fn containers(&self) -> Vec<String> {
        use longshore_worker::engine::Engine as _;
        self.engine.containers().await.unwrap().iter().map(ToString::to_string).collect()
    }

    pub(crate) async fn snapshots(&self) -> Vec<longshore_protocol::SnapshotId> {
        use longshore_worker::engine::Engine as _;
        self.engine.snapshots().await.unwrap()
    }

    /// What is on the disk of an attempt's output.
    pub(crate) fn spool(&self, claim: &Claim) -> Vec<u8> {
        let path = format!("spool/{}-{}.log", claim.execution.to_hex(), claim.attempt);
        std::fs::read(self.state().join(path)).unwrap_or_default()
    }

    /// Whether an attempt's record and spool are on the disk.
    pub(crate) fn on_disk(&self, claim: &Claim) -> (bool, bool) {
        let spool = format!("spool/{}-{}.log", claim.execution.to_hex(), claim.attempt);
        let known = self.entries_of(claim).last().is_some_and(|entry| entry["entry"] != "forgotten");
        (known, self.state().join(spool).exists())
    }

    /// Waits until the worker has written that it knows nothing of an attempt any more. That it holds it no longer, it
    /// says before.
    pub(crate) async fn forgets(&self, claim: &Claim) {
        let forgotten = async {
            while self.on_disk(claim).0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, forgotten).await.expect("it is never forgotten");
    }

    /// What the worker wrote of an attempt, in order.
    fn entries_of(&self, claim: &Claim) -> Vec<serde_json::Value> {
        let all = entries(&std::fs::read(self.state().join("records.log")).unwrap_or_default());
        all.into_iter().filter(|entry| entry.to_string().contains(&claim.execution.to_string())).collect()
    }
}

/// The entries of a worker's record log: each behind its length and its check, four bytes each. A torn end is none.
fn entries(mut bytes: &[u8]) -> Vec<serde_json::Value> {
    let mut entries = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<8>() {
        let len = u32::from_le_bytes(*header.first_chunk().unwrap()) as usize;
        let Some((entry, rest)) = rest.split_at_checked(len) else { break };
        entries.push(serde_json::from_slice(entry).unwrap());
        bytes = rest;
    }
    entries
}

#[derive(Debug, Default)]
pub(crate) struct Log {
    bytes: BTreeMap<Stream, Vec<u8>>,
    end: Offsets,
}

impl Log {
    pub(crate) fn text(&self, stream: Stream) -> String {
        String::from_utf8(self.bytes.get(&stream).cloned().unwrap_or_default()).unwrap()
    }
}

pub(crate) fn claim(job: &Job) -> Claim {
    Claim { run: job.run, execution: job.execution, attempt: job.attempt }
}

pub(crate) fn fence(job: &Job, worker: &WorkerId) -> Fence {
    Fence { execution: job.execution, attempt: job.attempt, owner: worker.clone() }
}

pub(crate) fn claims(records: &[AttemptRecord]) -> Vec<Claim> {
    records.iter().map(|record| record.claim.clone()).collect()
}

pub(crate) async fn next_delivery(consumer: &mut Consumer, what: &str) -> Delivery {
    let delivery = tokio::time::timeout(PATIENCE, consumer.next()).await;
    delivery.unwrap_or_else(|_| panic!("no {what} came")).expect("the broker is open")
}

/// The events of the next body.
pub(crate) async fn events(consumer: &mut Consumer) -> VecDeque<EventMessage> {
    let delivery = next_delivery(consumer, "event").await;
    let messages: Vec<EventMessage> = wire::decode_all(&delivery.body).unwrap();
    delivery.ack().await.unwrap();
    messages.into()
}

async fn next<M: DeserializeOwned>(consumer: &mut Consumer, what: &str) -> M {
    let delivery = next_delivery(consumer, what).await;
    let message = wire::decode(&delivery.body).unwrap();
    delivery.ack().await.unwrap();
    message
}
