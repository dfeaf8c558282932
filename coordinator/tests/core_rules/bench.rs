//! A core, a journal, and a few words to speak to them with. After every input the journal is replayed and compared.

use std::collections::BTreeMap;

use longshore_coordinator::core::effect::{Effect, JobQueue};
use longshore_coordinator::core::entry::Entry;
use longshore_coordinator::core::input::{Input, Millis};
use longshore_coordinator::core::{Core, CoreConfig, Step};
use longshore_coordinator::pipeline::{Parent, Pipeline, PlannedStep};
use longshore_protocol::control::Control;
use longshore_protocol::event::{AttemptRecord, Claim, Event, EventMessage, Finished, Hello, Phase, Phases, Started};
use longshore_protocol::heartbeat::Heartbeat;
use longshore_protocol::job::{Base, Job};
use longshore_protocol::outcome::{InfraStage, SNAPSHOT_LOST};
use longshore_protocol::output::Offsets;
use longshore_protocol::{
    Attempt, EngineId, Epoch, ExecutionId, Incarnation, Outcome, PoolName, RunId, SnapshotId, WorkerId,
};

pub(crate) use crate::model::plain;

pub(crate) const EPOCH: Epoch = Epoch(7);

pub(crate) struct Bench {
    pub(crate) core: Core,
    pub(crate) now: Millis,
    pub(crate) journal: Vec<(Entry, Millis)>,
    hosts: BTreeMap<&'static str, Host>,
}

struct Host {
    engine: &'static str,
    slots: u32,
    incarnation: Incarnation,
    number: u64,
    pub(crate) snapshots: Vec<SnapshotId>,
    parked: Vec<Claim>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let core = Core::new(CoreConfig::default());
        let mut bench = Self { core, now: 1_000, journal: Vec::new(), hosts: BTreeMap::new() };
        bench.input(&Input::Lead { epoch: EPOCH });
        bench
    }

    pub(crate) fn input(&mut self, input: &Input) -> Step {
        let step = self.core.apply(input, self.now);
        self.journal.extend(step.entries.iter().map(|entry| (entry.clone(), self.now)));
        assert_eq!(self.replayed().state(), self.core.state());
        step
    }

    pub(crate) fn replayed(&self) -> Core {
        let mut core = Core::new(CoreConfig::default());
        for (entry, at) in &self.journal {
            core.replay(entry, *at).unwrap();
        }
        core
    }

    /// A coordinator that crashed and is there again: everything volatile is gone.
    pub(crate) fn restart(&mut self) {
        self.core = self.replayed();
        self.input(&Input::Lead { epoch: EPOCH });
    }

    pub(crate) fn submit(&mut self, steps: Vec<PlannedStep>) -> (RunId, Step) {
        let run = RunId::new();
        (run, self.submit_as(run, steps))
    }

    /// Of another tenant.
    pub(crate) fn submit_of(&mut self, tenant: &str, steps: Vec<PlannedStep>) -> (RunId, Step) {
        let run = RunId::new();
        let pipeline = Box::new(Pipeline { name: "p".to_owned(), timeout_ms: None, steps });
        (run, self.input(&Input::Submit { run, tenant: tenant.to_owned(), pipeline }))
    }

    pub(crate) fn submit_as(&mut self, run: RunId, steps: Vec<PlannedStep>) -> Step {
        let pipeline = Box::new(Pipeline { name: "p".to_owned(), timeout_ms: None, steps });
        self.input(&Input::Submit { run, tenant: "t".to_owned(), pipeline })
    }

    pub(crate) fn join(&mut self, worker: &'static str, engine: &'static str, slots: u32) -> Step {
        self.start(worker, engine, slots, 1, Vec::new())
    }

    /// Start number `start` of a worker, which adopted these.
    pub(crate) fn start(
        &mut self,
        worker: &'static str,
        engine: &'static str,
        slots: u32,
        start: u64,
        records: Vec<AttemptRecord>,
    ) -> Step {
        let incarnation = Incarnation { start, nonce: start * 100 };
        let host = Host { engine, slots, incarnation, number: 0, snapshots: Vec::new(), parked: Vec::new() };
        self.hosts.insert(worker, host);
        self.event(worker, Event::Hello(hello(engine, slots, records)))
    }

    /// Of another pool.
    pub(crate) fn join_pool(&mut self, worker: &'static str, engine: &'static str, pool: &str) -> Step {
        let incarnation = Incarnation { start: 1, nonce: 100 };
        let host = Host { engine, slots: 1, incarnation, number: 0, snapshots: Vec::new(), parked: Vec::new() };
        self.hosts.insert(worker, host);
        self.event(worker, Event::Hello(Hello { pool: pool.parse().unwrap(), ..hello(engine, 1, Vec::new()) }))
    }

    /// A worker that the journal told of.
    pub(crate) fn knows(&mut self, worker: &'static str, engine: &'static str, slots: u32, number: u64) {
        let known = self.core.workers().iter().any(|known| known.worker == id(worker));
        assert!(known, "{worker} never joined");
        let incarnation = Incarnation { start: 1, nonce: 100 };
        let host = Host { engine, slots, incarnation, number, snapshots: Vec::new(), parked: Vec::new() };
        self.hosts.insert(worker, host);
    }

    pub(crate) fn event(&mut self, worker: &'static str, event: Event) -> Step {
        let host = self.hosts.get_mut(worker).unwrap();
        host.number += 1;
        let number = host.number;
        self.event_numbered(worker, number, event)
    }

    pub(crate) fn event_numbered(&mut self, worker: &'static str, number: u64, event: Event) -> Step {
        let incarnation = self.hosts[worker].incarnation;
        self.input(&Input::Event(EventMessage { worker: id(worker), incarnation, number, event }))
    }

    /// Its next event is lost on the way.
    pub(crate) fn lose_event(&mut self, worker: &'static str) {
        self.hosts.get_mut(worker).unwrap().number += 1;
    }

    pub(crate) fn has_cached(&mut self, worker: &'static str, snapshot: SnapshotId) {
        self.hosts.get_mut(worker).unwrap().snapshots.push(snapshot);
    }

    /// What it reports as parked from now on.
    pub(crate) fn has_parked(&mut self, worker: &'static str, parked: Vec<Claim>) {
        self.hosts.get_mut(worker).unwrap().parked = parked;
    }

    pub(crate) fn heartbeat(&self, worker: &'static str, attempts: Vec<AttemptRecord>) -> Heartbeat {
        let host = &self.hosts[worker];
        Heartbeat {
            worker: id(worker),
            incarnation: host.incarnation,
            engine: EngineId::from(host.engine),
            pool: PoolName::default(),
            slots: host.slots,
            slots_free: host.slots.saturating_sub(u32::try_from(attempts.len()).unwrap()),
            attempts,
            snapshots: host.snapshots.clone(),
            parked: host.parked.clone(),
            stamp_ms: 0,
            full: Vec::new(),
            last_event: host.number,
            disk_free_bytes: None,
        }
    }

    pub(crate) fn beat(&mut self, worker: &'static str, attempts: Vec<AttemptRecord>) -> Step {
        let heartbeat = self.heartbeat(worker, attempts);
        self.input(&Input::Heartbeat(heartbeat))
    }

    /// So many seconds. Everything they led to.
    pub(crate) fn ticks(&mut self, count: u32) -> Step {
        let mut all = Step::default();
        for _ in 0..count {
            self.now += 1_000;
            let step = self.input(&Input::Tick { epoch: EPOCH });
            all.entries.extend(step.entries);
            all.effects.extend(step.effects);
        }
        all
    }

    /// Waits for the next backoff.
    pub(crate) fn wake(&mut self) -> Step {
        self.now = self.core.next_wakeup().expect("something waits for a moment");
        self.input(&Input::Clock)
    }

    pub(crate) fn accept(&mut self, worker: &'static str, claim: &Claim) -> Step {
        self.event(worker, Event::Accepted(claim.clone()))
    }

    pub(crate) fn finish(&mut self, worker: &'static str, claim: &Claim, outcome: Outcome) -> Step {
        self.event(worker, Event::Finished(finished(claim, outcome)))
    }

    /// Claimed and ended at once.
    pub(crate) fn carry_out(&mut self, worker: &'static str, claim: &Claim, outcome: Outcome) -> Step {
        self.accept(worker, claim);
        self.finish(worker, claim, outcome)
    }

    /// Claimed and passed at once, with a snapshot for the next step.
    pub(crate) fn carry_out_parent(&mut self, worker: &'static str, claim: &Claim) -> Step {
        self.accept(worker, claim);
        let finished = Finished { snapshot: Some(snapshot(claim)), ..finished(claim, Outcome::Passed) };
        self.event(worker, Event::Finished(finished))
    }
}

/// What became of steps whose containers are parked.
impl Bench {
    /// Its process runs, in this container.
    pub(crate) fn started_in(&mut self, worker: &'static str, claim: &Claim, container: &str) -> Step {
        let (claim, container) = (claim.clone(), container.to_owned());
        self.event(worker, Event::Started(Started { claim, prepare_ms: 1, queue_to_start_ms: 1, container }))
    }

    /// Claimed, started in this container and passed; the container is parked, and nothing committed.
    pub(crate) fn park(&mut self, worker: &'static str, claim: &Claim, container: &str) -> Step {
        self.park_with(worker, claim, container, None)
    }

    /// As [`Self::park`], and committed as well.
    pub(crate) fn park_with(
        &mut self,
        worker: &'static str,
        claim: &Claim,
        container: &str,
        snapshot: Option<SnapshotId>,
    ) -> Step {
        self.accept(worker, claim);
        self.started_in(worker, claim, container);
        let finished = Finished { parked: true, snapshot, ..finished(claim, Outcome::Passed) };
        self.event(worker, Event::Finished(finished))
    }

    /// Claimed, and what it was to start from is not there.
    pub(crate) fn not_found(&mut self, worker: &'static str, claim: &Claim) -> Step {
        self.carry_out(worker, claim, Outcome::infra(InfraStage::Prepare, SNAPSHOT_LOST))
    }
}

pub(crate) fn to(worker: &str) -> JobQueue {
    JobQueue::Worker(id(worker))
}

pub(crate) fn to_pool() -> JobQueue {
    JobQueue::Pool(PoolName::default())
}

/// An attempt of the n-th remaking of what a step left.
pub(crate) fn remake(run: RunId, step: &str, n: u32, attempt: u32) -> Claim {
    let execution = ExecutionId::of_remake(ExecutionId::of_step(run, &step.into()), n);
    Claim { run, execution, attempt: Attempt(attempt) }
}

/// A job that starts from what this attempt left.
pub(crate) fn parent(claim: &Claim, snapshot: Option<SnapshotId>) -> Base {
    Base::Parent { execution: claim.execution, attempt: claim.attempt, snapshot }
}

pub(crate) fn claim_of(job: &Job) -> Claim {
    Claim { run: job.run, execution: job.execution, attempt: job.attempt }
}

/// The attempts that a step of the core's dispatched.
pub(crate) fn dispatched(step: &Step) -> Vec<Claim> {
    step.jobs().iter().map(|(_, job)| claim_of(job)).collect()
}

pub(crate) fn id(worker: &str) -> WorkerId {
    worker.parse().unwrap()
}

pub(crate) fn hello(engine: &str, slots: u32, records: Vec<AttemptRecord>) -> Hello {
    let engine = EngineId::from(engine);
    Hello { engine, pool: PoolName::default(), slots, version: "0".to_owned(), host: "h".to_owned(), records }
}

pub(crate) fn claim(run: RunId, step: &str, attempt: u32) -> Claim {
    Claim { run, execution: ExecutionId::of_step(run, &step.into()), attempt: Attempt(attempt) }
}

pub(crate) fn finished(claim: &Claim, outcome: Outcome) -> Finished {
    let (output, phases) = (Offsets::default(), Phases::default());
    let claim = claim.clone();
    Finished { claim, outcome, cached: false, output, snapshot: None, parked: false, phases, usage: None }
}

pub(crate) fn snapshot(claim: &Claim) -> SnapshotId {
    SnapshotId(format!("longshore/w:{}", claim.execution.to_hex()))
}

pub(crate) fn with_output(claim: &Claim, outcome: Outcome, stdout: u64) -> Finished {
    Finished { output: Offsets { stdout, stderr: 0 }, ..finished(claim, outcome) }
}

pub(crate) fn running(claim: &Claim) -> AttemptRecord {
    AttemptRecord { claim: claim.clone(), phase: Phase::Running }
}

pub(crate) fn over(finished: Finished) -> AttemptRecord {
    AttemptRecord { claim: finished.claim.clone(), phase: Phase::Finished(Box::new(finished)) }
}

pub(crate) fn from(name: &str, parent: &str) -> PlannedStep {
    PlannedStep { parent: Parent::Step(parent.into()), ..plain(name) }
}

pub(crate) fn needs(name: &str, before: &[&str]) -> PlannedStep {
    PlannedStep { needs: before.iter().map(|name| (*name).into()).collect(), ..plain(name) }
}

/// What a step of the core's led to, in words that tests compare.
pub(crate) trait Told {
    fn jobs(&self) -> Vec<(JobQueue, Job)>;
    fn told(&self) -> Vec<(String, Control)>;
    fn words(&self) -> Vec<&'static str>;
    fn settled(&self) -> Vec<(ExecutionId, Outcome)>;
    fn released(&self) -> Vec<(String, Claim)> {
        let released = |(worker, control)| match control {
            Control::Release { claim } => Some((worker, claim)),
            _ => None,
        };
        self.told().into_iter().filter_map(released).collect()
    }
    fn has(&self, word: &str) -> bool {
        self.words().contains(&word)
    }
}

impl Told for Step {
    fn jobs(&self) -> Vec<(JobQueue, Job)> {
        let job = |effect: &Effect| match effect {
            Effect::Dispatch { queue, job } => Some((queue.clone(), (**job).clone())),
            Effect::Tell { .. } => None,
        };
        self.effects.iter().filter_map(job).collect()
    }

    fn told(&self) -> Vec<(String, Control)> {
        let told = |effect: &Effect| match effect {
            Effect::Tell { worker, control, .. } => Some((worker.to_string(), control.clone())),
            Effect::Dispatch { .. } => None,
        };
        self.effects.iter().filter_map(told).collect()
    }

    fn words(&self) -> Vec<&'static str> {
        self.entries.iter().map(Entry::word).collect()
    }

    fn settled(&self) -> Vec<(ExecutionId, Outcome)> {
        let settled = |entry: &Entry| match entry {
            Entry::Settled { execution, outcome, .. } => Some((*execution, outcome.clone())),
            _ => None,
        };
        self.entries.iter().filter_map(settled).collect()
    }
}
