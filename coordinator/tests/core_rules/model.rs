//! Workers as a clock sees them, around the real core: queues in order, slots, and steps that take as long as a test
//! says. Time is the model's own, so that hours pass at once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use longshore_coordinator::core::effect::{Effect, JobQueue};
use longshore_coordinator::core::input::{Input, Millis};
use longshore_coordinator::core::{Core, CoreConfig};
use longshore_coordinator::pipeline::{Parent, Pipeline, PlannedStep, Retry, SnapshotRule};
use longshore_protocol::event::{Claim, Event, EventMessage, Finished, Hello, Phases};
use longshore_protocol::job::{Base, Command, Job, Keep, Network, Resources, StepSpec};
use longshore_protocol::output::Offsets;
use longshore_protocol::{EngineId, Epoch, Incarnation, Outcome, PoolName, RunId, WorkerId};

pub(crate) struct Model {
    pub(crate) core: Core,
    pub(crate) now: Millis,
    /// How long each job takes.
    pub(crate) takes: fn(&Job) -> Millis,
    pub(crate) began: Vec<Began>,
    /// The most jobs that all queues held while no slot was free.
    pub(crate) queued_most: usize,
    pub(crate) inputs: u64,
    /// Time that passed in the core.
    pub(crate) in_core: Duration,
    queues: BTreeMap<JobQueue, VecDeque<Queued>>,
    queued: usize,
    /// Queues that a job came to.
    arrived: VecDeque<JobQueue>,
    workers: Vec<Worker>,
    ids: BTreeMap<WorkerId, usize>,
    /// Workers with a free slot, by pool.
    free: BTreeMap<PoolName, BTreeSet<usize>>,
    ends: BTreeMap<(Millis, u64), (usize, Claim, bool)>,
    serial: u64,
}

/// What the model needs of a job. The job itself is dropped at once, as the coordinator does when it has written it.
struct Queued {
    claim: Claim,
    takes: Millis,
    tenant: String,
    step: String,
    from_parent: bool,
    parks: bool,
}

struct Worker {
    id: WorkerId,
    pool: PoolName,
    slots: usize,
    busy: usize,
    number: u64,
}

impl Queued {
    fn of(job: &Job, takes: fn(&Job) -> Millis) -> Self {
        Self {
            claim: Claim { run: job.run, execution: job.execution, attempt: job.attempt },
            takes: takes(job),
            tenant: job.tenant.clone(),
            step: job.step.to_string(),
            from_parent: matches!(job.base, Base::Parent { .. }),
            parks: !matches!(job.keep, Keep::Nothing),
        }
    }
}

/// A step that began.
#[derive(Clone, Debug)]
pub(crate) struct Began {
    pub(crate) at: Millis,
    pub(crate) until: Millis,
    pub(crate) tenant: String,
    pub(crate) run: RunId,
    pub(crate) step: String,
    pub(crate) from_parent: bool,
}

impl Model {
    pub(crate) fn new(weights: &[(&str, u32)], takes: fn(&Job) -> Millis) -> Self {
        let weights = weights.iter().map(|(tenant, weight)| ((*tenant).to_owned(), *weight)).collect();
        let mut model = Self {
            core: Core::new(CoreConfig { weights, ..CoreConfig::default() }),
            now: 1_000_000,
            takes,
            began: Vec::new(),
            queued_most: 0,
            inputs: 0,
            in_core: Duration::ZERO,
            queues: BTreeMap::new(),
            queued: 0,
            arrived: VecDeque::new(),
            workers: Vec::new(),
            ids: BTreeMap::new(),
            free: BTreeMap::new(),
            ends: BTreeMap::new(),
            serial: 0,
        };
        model.input(&Input::Lead { epoch: Epoch(1) });
        model
    }

    pub(crate) fn join(&mut self, slots: usize) {
        self.join_pool(slots, &PoolName::default());
    }

    pub(crate) fn join_pool(&mut self, slots: usize, pool: &PoolName) {
        let n = self.workers.len();
        let id: WorkerId = format!("w{n:05}").parse().unwrap();
        self.ids.insert(id.clone(), n);
        self.free.entry(pool.clone()).or_default().insert(n);
        self.workers.push(Worker { id, pool: pool.clone(), slots, busy: 0, number: 0 });
        let hello = Hello {
            // As long as an Engine's are.
            engine: EngineId::from(format!("f0c5b3d2-7a41-4e0c-9d55-{n:012}")),
            pool: pool.clone(),
            slots: u32::try_from(slots).unwrap(),
            version: "0".to_owned(),
            host: "h".to_owned(),
            records: Vec::new(),
        };
        self.say(n, Event::Hello(hello));
        self.hand_out();
    }

    pub(crate) fn submit(&mut self, tenant: &str, steps: Vec<PlannedStep>) -> RunId {
        let run = RunId::new();
        let pipeline = Box::new(Pipeline { name: "p".to_owned(), timeout_ms: None, steps });
        self.input(&Input::Submit { run, tenant: tenant.to_owned(), pipeline });
        self.hand_out();
        run
    }

    /// Until the next attempt ends, and what follows from that. `false` if none is under way.
    pub(crate) fn step(&mut self) -> bool {
        let Some(((at, _), (worker, claim, parked))) = self.ends.pop_first() else { return false };
        self.now = at;
        self.workers[worker].busy -= 1;
        let pool = self.workers[worker].pool.clone();
        self.free.entry(pool).or_default().insert(worker);
        // The slot is free before anybody hears of it: what waits in a queue goes first.
        self.claim(worker);
        let finished = Finished {
            claim,
            outcome: Outcome::Passed,
            cached: false,
            output: Offsets::default(),
            snapshot: None,
            parked,
            phases: Phases::default(),
            usage: None,
        };
        self.say(worker, Event::Finished(finished));
        self.hand_out();
        true
    }

    pub(crate) fn run_until(&mut self, end: Millis) {
        while self.ends.first_key_value().is_some_and(|((at, _), _)| *at <= end) {
            self.step();
        }
        self.now = end;
    }

    /// Slot-milliseconds that a tenant received in this time.
    pub(crate) fn received(&self, tenant: &str, from: Millis, to: Millis) -> u64 {
        let own = self.began.iter().filter(|began| began.tenant == tenant);
        own.map(|began| began.until.min(to).saturating_sub(began.at.max(from))).sum()
    }

    pub(crate) fn first_of(&self, run: RunId) -> Option<Millis> {
        self.began.iter().find(|began| began.run == run).map(|began| began.at)
    }

    /// Jobs go to whoever is free.
    fn hand_out(&mut self) {
        while let Some(queue) = self.arrived.pop_front() {
            match &queue {
                JobQueue::Worker(worker) => self.claim(self.ids[worker]),
                JobQueue::Pool(pool) => {
                    if let Some(&worker) = self.free.get(pool).and_then(BTreeSet::first) {
                        self.claim(worker);
                    }
                }
            }
        }
        if self.free.values().all(BTreeSet::is_empty) {
            self.queued_most = self.queued_most.max(self.queued);
        }
    }

    /// Takes jobs while a slot is free, its own queue's first.
    fn claim(&mut self, index: usize) {
        while self.workers[index].busy < self.workers[index].slots {
            let worker = &self.workers[index];
            let queues = [JobQueue::Worker(worker.id.clone()), JobQueue::Pool(worker.pool.clone())];
            let Some(queued) = queues.iter().find_map(|queue| self.queues.get_mut(queue)?.pop_front()) else { return };
            let Queued { claim, takes, tenant, step, from_parent, parks } = queued;
            self.queued -= 1;
            let worker = &mut self.workers[index];
            worker.busy += 1;
            if worker.busy == worker.slots {
                let pool = worker.pool.clone();
                self.free.entry(pool).or_default().remove(&index);
            }
            let until = self.now + takes;
            self.began.push(Began { at: self.now, until, tenant, run: claim.run, step, from_parent });
            self.serial += 1;
            self.ends.insert((until, self.serial), (index, claim.clone(), parks));
            self.say(index, Event::Accepted(claim));
        }
    }

    fn say(&mut self, index: usize, event: Event) {
        let worker = &mut self.workers[index];
        worker.number += 1;
        let incarnation = Incarnation { start: 1, nonce: 1 };
        let message = EventMessage { worker: worker.id.clone(), incarnation, number: worker.number, event };
        self.input(&Input::Event(message));
    }

    fn input(&mut self, input: &Input) {
        self.inputs += 1;
        let began = Instant::now();
        let effects = self.core.apply(input, self.now).effects;
        self.in_core += began.elapsed();
        for effect in effects {
            if let Effect::Dispatch { queue, job } = effect {
                let queued = Queued::of(&job, self.takes);
                self.queues.entry(queue.clone()).or_default().push_back(queued);
                self.queued += 1;
                self.arrived.push_back(queue);
            }
        }
    }
}

/// A step with nothing but a command.
pub(crate) fn plain(name: &str) -> PlannedStep {
    PlannedStep {
        name: name.into(),
        parent: Parent::Image("base".to_owned()),
        needs: Vec::new(),
        spec: StepSpec {
            command: Command::Argv(vec!["true".to_owned()]),
            env: std::iter::empty().collect(),
            workdir: None,
            user: None,
            sources: Vec::new(),
            timeout_ms: 1_000,
            grace_ms: 1_000,
            output_max: None,
            exclusive: false,
            resources: Resources::default(),
            network: Network::default(),
            pool: PoolName::default(),
        },
        sources: Vec::new(),
        retry: Retry::default(),
        cache_key: None,
        snapshot: SnapshotRule::Auto,
        keep_going: false,
        priority: 0,
        queue_timeout_ms: None,
        concurrency: None,
    }
}
