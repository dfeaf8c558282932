//! A broker that loses, doubles, delays and reorders; a store that survives; and the real core between them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use longshore_coordinator::core::effect::{Effect, JobQueue};
use longshore_coordinator::core::entry::Entry;
use longshore_coordinator::core::input::{Input, Millis};
use longshore_coordinator::core::retry::Missed;
use longshore_coordinator::core::{Core, CoreConfig, OutputFence};
use longshore_coordinator::pipeline::Pipeline;
use longshore_protocol::control::Control;
use longshore_protocol::event::{Claim, EventMessage};
use longshore_protocol::heartbeat::HeartbeatMessage;
use longshore_protocol::job::Job;
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::output::Offsets;
use longshore_protocol::{Epoch, ExecutionId, Incarnation, Outcome, RunId, SnapshotId, WorkerId};

use crate::checker::Checker;
use crate::dice::Dice;
use crate::engine::Engine;
use crate::faults::{Faults, config, patient};
use crate::pipelines;
use crate::turns;
use crate::worker::{Name, Output, Worked, Worker, name};

pub(crate) struct World {
    pub(crate) dice: Dice,
    pub(crate) faults: Faults,
    pub(crate) now: Millis,
    pub(crate) epoch: Epoch,
    pub(crate) config: CoreConfig,
    pub(crate) core: Core,
    // On disk, at the coordinator's:
    pub(crate) journal: Vec<(Entry, Millis)>,
    pub(crate) outbox: VecDeque<Effect>,
    pub(crate) stored: BTreeMap<Name, u64>,
    // At the broker:
    pub(crate) jobs: BTreeMap<JobQueue, VecDeque<Job>>,
    pub(crate) events: Vec<VecDeque<EventMessage>>,
    pub(crate) heartbeats: VecDeque<HeartbeatMessage>,
    pub(crate) output: VecDeque<Output>,
    pub(crate) control: Vec<VecDeque<(Incarnation, Control)>>,
    // Beside the Engines:
    pub(crate) workers: Vec<Worker>,
    pub(crate) engines: Vec<Engine>,
    pub(crate) runs: Vec<(RunId, Pipeline)>,
    pub(crate) checker: Checker,
    /// Snapshots the coordinator has ordered to be removed.
    pub(crate) removed: BTreeSet<SnapshotId>,
    pub(crate) applied: u64,
    /// How often each run may be opened again.
    askings: BTreeMap<RunId, usize>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let engines = 1 + dice.below(3);
        let count = engines.max(1 + dice.below(4));
        let workers: Vec<Worker> = (0..count)
            .map(|n| Worker::new(&format!("w{n}"), n % engines, u32::try_from(1 + dice.below(3)).unwrap()))
            .collect();
        let runs: Vec<(RunId, Pipeline)> = (0..=dice.below(2))
            .map(|_| {
                let id = u128::from(dice.next()) << 64 | u128::from(dice.next());
                (RunId(uuid::Uuid::from_u128(id)), pipelines::thrown(&mut dice))
            })
            .collect();
        // Every tenth has no fault at all: there every promise holds to the letter.
        let faultless = seed.is_multiple_of(10);
        let faults = if faultless { Faults::NONE } else { Faults::thrown(&mut dice) };
        let config = if faultless { patient() } else { config() };
        let mut world = Self {
            faults,
            now: 1_000_000,
            epoch: Epoch(0),
            core: Core::new(config.clone()),
            config,
            journal: Vec::new(),
            outbox: VecDeque::new(),
            stored: BTreeMap::new(),
            jobs: BTreeMap::new(),
            events: vec![VecDeque::new(); count],
            heartbeats: VecDeque::new(),
            output: VecDeque::new(),
            control: vec![VecDeque::new(); count],
            workers,
            engines: (0..engines).map(|_| Engine::default()).collect(),
            checker: Checker::new(&runs, faultless),
            askings: runs.iter().map(|(run, _)| (*run, dice.below(3))).collect(),
            runs,
            removed: BTreeSet::new(),
            applied: 0,
            dice,
        };
        world.lead();
        world
    }

    /// Runs the schedule to its end, and checks it.
    pub(crate) fn run(&mut self) {
        /// Long enough for a lease, a backoff and a sync to fall into the faults.
        const FAULTY_ROUNDS: usize = 60;
        /// Every wait of the core is shorter than 10 rounds; a chain of 8 steps waits for a few of each, each of the
        /// three times that it may be asked for.
        const CALM_ROUNDS: usize = 1_800;
        for worker in 0..self.workers.len() {
            self.workers[worker].start(&mut self.dice, false);
        }
        let faultless = self.config == patient();
        for round in 0..FAULTY_ROUNDS + CALM_ROUNDS {
            if round == FAULTY_ROUNDS && !faultless {
                self.calm_down();
            }
            self.round(round < FAULTY_ROUNDS && !faultless, round);
            let done = self.runs.iter().all(|(run, _)| self.core.is_done(*run));
            if done && self.quiet() {
                if self.asks_again() {
                    continue;
                }
                self.check(faultless);
                return;
            }
        }
        let undone: Vec<_> = self
            .runs
            .iter()
            .filter(|(run, _)| !self.core.is_done(*run))
            .map(|(run, _)| self.core.run_view(*run))
            .collect();
        let held: Vec<_> =
            self.workers.iter().map(|worker| (worker.up, worker.disk.keys().collect::<Vec<_>>())).collect();
        let (workers, events) = (self.core.workers(), self.events.iter().map(VecDeque::len).collect::<Vec<_>>());
        panic!("not settled after the faults were over: {undone:#?}\nheld: {held:?}\n{workers:#?}\n{events:?}");
    }

    /// Somebody opens a settled run again. Whether anybody may do that once more.
    fn asks_again(&mut self) -> bool {
        let left: Vec<RunId> = self.askings.iter().filter(|(_, left)| **left > 0).map(|(run, _)| *run).collect();
        for run in &left {
            self.askings.entry(*run).and_modify(|left| *left -= 1);
            self.retry(*run);
        }
        !left.is_empty()
    }

    fn retry(&mut self, run: RunId) {
        let missed = [Missed::Failed, Missed::Infra, Missed::Missing];
        let only = if self.dice.permille(500) { Vec::new() } else { vec![*self.dice.pick(&missed)] };
        if self.dice.permille(500) {
            // A driver forgets what is done, and takes it back from its store.
            self.core.forget(run);
            let entries = self.journal.iter().filter(|(entry, _)| entry.run().is_none_or(|of| of == run));
            self.core.recall(run, entries.map(|(entry, at)| (*at, entry.clone()))).unwrap();
        }
        self.apply(&Input::Retry { run, only });
    }

    /// Nothing is under way, and nothing is held; what is meant for a worker that is gone does not count.
    fn quiet(&self) -> bool {
        let gone = |queue: &JobQueue| matches!(queue, JobQueue::Worker(id) if self.workers[self.index(id)].gone);
        self.outbox.is_empty()
            && self.output.is_empty()
            && self.events.iter().all(VecDeque::is_empty)
            && self.jobs.iter().all(|(queue, jobs)| jobs.is_empty() || gone(queue))
            && self.workers.iter().zip(&self.control).all(|(worker, control)| {
                let idle = worker.unconfirmed.is_empty() && worker.disk.is_empty() && worker.output.is_empty();
                // P19: every parked container was taken or released.
                let idle = idle && worker.parked.is_empty();
                worker.gone || (idle && control.is_empty())
            })
    }

    /// No more faults; everybody returns, but some workers are gone for good.
    fn calm_down(&mut self) {
        self.faults = Faults::NONE;
        for index in 0..self.workers.len() {
            self.workers[index].frozen = 0;
            self.workers[index].gone = index > 0 && self.dice.permille(300);
            if self.workers[index].gone {
                self.workers[index].crash();
            } else if !self.workers[index].up {
                self.workers[index].start(&mut self.dice, true);
            }
        }
    }

    /// About a second.
    fn round(&mut self, faulty: bool, round: usize) {
        self.now += 1_000;
        for index in 0..self.runs.len() {
            let run = self.runs[index].0;
            // A client sends its run again until it knows that it was taken; later that changes nothing.
            let unknown = round >= index * 3 && self.core.run_summary(run).is_none();
            if unknown || (faulty && round > index * 3 && self.dice.permille(30)) {
                let pipeline = Box::new(self.runs[index].1.clone());
                self.apply(&Input::Submit { run, tenant: turns::tenant(run), pipeline });
            }
            if self.dice.permille(self.faults.cancel) {
                self.apply(&Input::Cancel { run, by: CancelledBy::User });
            }
            if self.dice.permille(self.faults.cancel * 3) {
                let name = self.dice.pick(&self.runs[index].1.steps).name.clone();
                self.apply(&Input::CancelSteps { run, steps: vec![ExecutionId::of_step(run, &name)] });
            }
            // Also while the log of another run, or its own, is still open.
            let settled = self.core.run_summary(run).is_some_and(|summary| summary.outcome.is_some());
            if settled && self.askings[&run] > 0 && self.dice.permille(50) {
                self.askings.entry(run).and_modify(|left| *left -= 1);
                self.retry(run);
            }
        }
        let ticking = self
            .heartbeats
            .iter()
            .any(|message| matches!(message, HeartbeatMessage::Tick { epoch, .. } if *epoch == self.epoch));
        if !ticking && !self.dice.permille(self.faults.stall) {
            self.heartbeats.push_back(HeartbeatMessage::Tick { epoch: self.epoch, number: 0 });
        }
        for index in 0..self.workers.len() {
            self.mishap(index);
            if self.workers[index].acts() {
                let heartbeat = self.workers[index].heartbeat(&self.engines[self.workers[index].engine]);
                if !self.dice.permille(self.faults.lose) {
                    let copies = 1 + usize::from(self.dice.permille(self.faults.double));
                    (0..copies).for_each(|_| self.heartbeats.push_back(HeartbeatMessage::Heartbeat(heartbeat.clone())));
                }
            }
        }
        for _ in 0..12 + 4 * self.workers.len() {
            self.act(faulty);
        }
        if self.core.next_wakeup().is_some_and(|at| at <= self.now) {
            self.apply(&Input::Clock);
        }
        for queue in self.core.queues_to_watch() {
            let messages = u32::try_from(self.jobs.get(&queue).map_or(0, VecDeque::len)).unwrap();
            self.apply(&Input::Waiting { queue, messages });
        }
    }

    fn mishap(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        worker.frozen = worker.frozen.saturating_sub(1);
        if worker.up && self.dice.permille(self.faults.crash) {
            worker.crash();
        } else if !worker.up && !worker.gone && self.dice.permille(200) {
            worker.start(&mut self.dice, self.faults.crash > 20);
        } else if worker.acts() && self.dice.permille(self.faults.freeze) {
            worker.frozen = u32::try_from(1 + self.dice.below(15)).unwrap();
        }
    }

    /// One of the many things that may happen next.
    fn act(&mut self, faulty: bool) {
        let index = self.dice.below(self.workers.len());
        match self.dice.below(9) {
            0 => (0..=self.dice.below(8)).for_each(|_| self.carry_out()),
            1 => self.deliver_job(index),
            2 | 3 => {
                if self.workers[index].acts() {
                    let engine = self.workers[index].engine;
                    match self.workers[index].work(&mut self.engines[engine], &mut self.dice, faulty) {
                        Some(Worked::Ended(of, outcome, bytes)) => {
                            let worker = self.workers[index].id.clone();
                            self.checker.really(of, &worker, outcome, bytes);
                        }
                        Some(Worked::Began(job, files)) => self.checker.began(&job, &files),
                        None => {}
                    }
                }
            }
            4 => self.publish(index),
            5 => self.take_events(index),
            6 => self.take_heartbeats(),
            7 => self.take_output(),
            _ => self.obey(index),
        }
    }

    fn take_events(&mut self, index: usize) {
        for _ in 0..=self.dice.below(8) {
            let Some(message) = self.events[index].front().cloned() else { return };
            if self.apply(&Input::Event(message)) {
                self.events[index].pop_front();
            }
        }
    }

    fn obey(&mut self, index: usize) {
        if !self.workers[index].acts() {
            return;
        }
        for (incarnation, control) in std::mem::take(&mut self.control[index]) {
            if self.workers[index].incarnation != incarnation {
                continue; // P22: meant for another
            }
            if let Control::RemoveSnapshot { snapshot } = &control {
                self.removed.insert(snapshot.clone());
            }
            let engine = self.workers[index].engine;
            self.workers[index].obey(control, &mut self.engines[engine]);
        }
    }

    /// Several at a time, or the queue would grow for ever.
    fn take_heartbeats(&mut self) {
        for _ in 0..=self.workers.len() {
            let input = match self.heartbeats.front().cloned() {
                Some(HeartbeatMessage::Heartbeat(heartbeat)) => Input::Heartbeat(heartbeat),
                Some(HeartbeatMessage::Tick { epoch, .. }) => Input::Tick { epoch },
                None => return,
            };
            if self.apply(&input) {
                self.heartbeats.pop_front();
            }
        }
    }

    /// P9: in order; a publish that fails, or whose confirm is lost, is sent again from there on.
    fn publish(&mut self, index: usize) {
        if !self.workers[index].acts() {
            return;
        }
        while let Some(message) = self.workers[index].unconfirmed.front().cloned() {
            if self.dice.permille(self.faults.lose) {
                return;
            }
            if !self.dice.permille(self.faults.vanish) {
                self.events[index].push_back(message);
            }
            if self.dice.permille(self.faults.double) {
                return;
            }
            self.workers[index].unconfirmed.pop_front();
        }
        for output in std::mem::take(&mut self.workers[index].output) {
            if !self.dice.permille(self.faults.vanish) {
                self.output.push_back(output);
            }
        }
    }

    /// P3: an effect's row goes when its publish is confirmed; so it may be carried out twice.
    fn carry_out(&mut self) {
        let Some(effect) = self.outbox.front().cloned() else { return };
        if !self.dice.permille(self.faults.double) {
            self.outbox.pop_front();
        }
        match effect {
            Effect::Dispatch { queue, job } => {
                self.checker.dispatched(&job, &self.removed);
                if self.dice.permille(self.faults.vanish) {
                    if self.dice.permille(500) {
                        let claim = Claim { run: job.run, execution: job.execution, attempt: job.attempt };
                        self.apply(&Input::Returned { claim });
                    }
                    return;
                }
                self.jobs.entry(queue).or_default().push_back(*job);
            }
            Effect::Tell { worker, incarnation, control } => {
                let index = self.index(&worker);
                self.control[index].push_back((incarnation, control));
            }
        }
    }

    fn index(&self, worker: &WorkerId) -> usize {
        self.workers.iter().position(|known| known.id == *worker).unwrap()
    }

    fn deliver_job(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        if !worker.acts() || worker.slots_free() == 0 {
            return;
        }
        let own = JobQueue::Worker(worker.id.clone());
        let pool = JobQueue::Pool(longshore_protocol::PoolName::default());
        let first = if self.dice.permille(500) { [own, pool] } else { [pool, own] };
        for queue in first {
            let Some(job) = self.jobs.get_mut(&queue).and_then(VecDeque::pop_front) else { continue };
            if self.dice.permille(self.faults.lose) {
                // Given back: it lost its channel before it had the record on disk.
                self.jobs.get_mut(&queue).unwrap().push_back(job);
            } else {
                worker.claim(job);
            }
            return;
        }
    }

    fn take_output(&mut self) {
        let Some(output) = self.output.pop_front() else { return };
        if self.dice.permille(self.faults.lose) {
            return self.output.push_back(output); // another overtakes it
        }
        match self.core.output_fence(&output.worker, output.incarnation, &output.claim) {
            OutputFence::Current => {}
            OutputFence::Early | OutputFence::Stale => return,
        }
        self.checker.output(&output);
        let stored = self.stored.entry(name(&output.claim)).or_default();
        let known = *stored;
        if output.from <= known {
            *stored = known.max(output.to);
            let offsets = Offsets { stdout: *stored, stderr: 0 };
            self.apply(&Input::Stored { claim: output.claim, offsets });
        } else {
            self.apply(&Input::Gap { claim: output.claim, stored: Offsets { stdout: known, stderr: 0 } });
        }
    }
}

/// Whether a worker has had an attempt's record all the time since it claimed it.
pub(crate) fn holds(workers: &[Worker], worker: &WorkerId, of: Name) -> bool {
    let has = |known: &Worker| known.disk.contains_key(&of) && !known.wiped.contains(&of);
    workers.iter().any(|known| known.id == *worker && has(known))
}

/// For the checker's table of results.
pub(crate) type Really = BTreeMap<(Name, WorkerId), (Outcome, u64)>;
