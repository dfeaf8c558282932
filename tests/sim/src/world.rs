//! What everything simulated shares: the dice, what is told of a schedule, and which faults strike.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longshore_coordinator::core::entry::{End, Entry};
use longshore_protocol::broker::Outgoing;
use longshore_protocol::control::{Control, ControlMessage};
use longshore_protocol::event::{Claim, Event, EventMessage, Hello};
use longshore_protocol::heartbeat::HeartbeatMessage;
use longshore_protocol::job::Job;
use longshore_protocol::process::simulated::Process;
use longshore_protocol::{Attempt, ExecutionId, Incarnation, Outcome, RunId, WorkerId, wire};
use tokio::time::Instant;

use crate::dice::Dice;

/// Faults that strike by chance, each so many times in a thousand chances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Noise {
    /// A publish whose connection breaks before all of it has arrived.
    pub publish_lost: u64,
    /// One whose connection breaks before its confirm is back.
    pub confirm_lost: u64,
    /// One that arrives twice.
    pub repeated: u64,
    /// An ack whose connection breaks before it has arrived.
    pub ack_lost: u64,
    /// A message that is under way for up to two seconds.
    pub delayed: u64,
    /// A transaction that fails and has written nothing.
    pub commit_failed: u64,
    /// One that is written, and whose answer is lost.
    pub commit_unanswered: u64,
    /// A transaction that takes up to two seconds.
    pub commit_slow: u64,
    /// A process that is killed at a point where it acts.
    pub killed: u64,
}

/// One schedule's world.
#[derive(Clone)]
pub struct World(Arc<Inner>);

struct Inner {
    began: Instant,
    dice: Mutex<Dice>,
    noise: Mutex<Noise>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    trace: Mutex<Trace>,
    violations: Mutex<Vec<String>>,
    known: Mutex<Known>,
}

/// What is checked while it happens: what was said, against what was committed.
#[derive(Default)]
struct Known {
    joined: BTreeMap<WorkerId, Incarnation>,
    /// When a worker's last heartbeat came into the queue, or it joined.
    heard: BTreeMap<WorkerId, Instant>,
    /// How long each had been silent when the last two ticks came into the queue: silence is counted in ticks, and what
    /// is behind one in the queue has not been heard when that one is counted. The last but one, because the next is
    /// on its way before what follows from it is committed.
    silent: [BTreeMap<WorkerId, Duration>; 2],
    /// Attempts whose dispatch is committed, those that are over, and those whose log is closed.
    dispatched: BTreeSet<Key>,
    over: BTreeSet<Key>,
    closed: BTreeSet<Key>,
    passed: usize,
    /// Whose owner is committed.
    owners: BTreeMap<Key, WorkerId>,
    /// Attempts whose job came into a queue, that somebody said to have, and of which somebody said the end.
    queued: BTreeSet<Key>,
    accepted: BTreeSet<Key>,
    /// Attempts of which a job was acked.
    acked: BTreeSet<Key>,
    finished: BTreeSet<(WorkerId, Key)>,
    /// Attempts that were lost because their owner did not hold them.
    not_held: BTreeSet<(WorkerId, Key)>,
    /// Runs whose verdict is committed.
    runs_over: BTreeSet<RunId>,
    /// The highest epoch that a worker obeyed.
    obeyed: BTreeMap<usize, u64>,
}

type Key = (ExecutionId, Attempt);

struct Trace {
    hash: u64,
    told: bool,
    lines: Vec<String>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("World")
    }
}

impl World {
    /// Of a seed. If it is `told`, every line of its trace is kept.
    pub fn new(dice: Dice, noise: Noise, told: bool) -> Self {
        Self(Arc::new(Inner {
            began: Instant::now(),
            dice: Mutex::new(dice),
            noise: Mutex::new(noise),
            counts: Mutex::default(),
            trace: Mutex::new(Trace { hash: 0xcbf2_9ce4_8422_2325, told, lines: Vec::new() }),
            violations: Mutex::default(),
            known: Mutex::default(),
        }))
    }

    /// Its dice.
    pub fn dice(&self) -> MutexGuard<'_, Dice> {
        lock(&self.0.dice)
    }

    /// Faults stop.
    pub fn calm(&self) {
        *lock(&self.0.noise) = Noise::default();
    }

    /// Whether a fault strikes now; one that does is counted.
    pub fn strikes(&self, kind: &'static str, of: impl Fn(&Noise) -> u64) -> bool {
        let times = of(&lock(&self.0.noise));
        let strikes = self.dice().permille(times);
        if strikes {
            self.count(kind);
        }
        strikes
    }

    /// One more fault of a kind.
    pub fn count(&self, kind: &'static str) {
        *lock(&self.0.counts).entry(kind).or_default() += 1;
        self.note(kind, 0, || format!("fault: {kind}"));
    }

    /// Faults by kind.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.0.counts).clone()
    }

    /// Since its beginning.
    pub fn at(&self) -> Duration {
        self.0.began.elapsed()
    }

    /// Something happened: `what` and `number` go into the hash, `line` is for people.
    pub fn note(&self, what: &'static str, number: u64, line: impl FnOnce() -> String) {
        let at = self.at().as_millis();
        let mut trace = lock(&self.0.trace);
        let mut hash = trace.hash;
        let numbers = u64::try_from(at).unwrap_or(u64::MAX).to_le_bytes().into_iter().chain(number.to_le_bytes());
        for byte in what.bytes().chain(numbers) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3); // FNV-1a
        }
        trace.hash = hash;
        if trace.told {
            let line = format!("{:>8}.{:03} {}", at / 1_000, at % 1_000, line());
            trace.lines.push(line);
        }
    }

    /// A promise was broken.
    pub fn violated(&self, how: String) {
        self.note("violation", 0, || format!("VIOLATION: {how}"));
        lock(&self.0.violations).push(how);
    }

    /// Broken promises, in the order in which they were noticed.
    pub fn violations(&self) -> Vec<String> {
        lock(&self.0.violations).clone()
    }

    /// A message came into a queue. P3: nothing is said that is not committed.
    pub fn published(&self, message: &Outgoing) {
        let kind = message.to.exchange.rsplit('.').next();
        if kind == Some("heartbeats") {
            let mut known = lock(&self.0.known);
            match wire::decode(&message.body) {
                Ok(HeartbeatMessage::Heartbeat(heartbeat)) => {
                    known.accepted.extend(heartbeat.attempts.iter().map(|record| key(&record.claim)));
                    // One that has not joined yet has no lease.
                    if known.joined.get(&heartbeat.worker) == Some(&heartbeat.incarnation) {
                        known.heard.insert(heartbeat.worker, Instant::now());
                    }
                }
                Ok(HeartbeatMessage::Tick { .. }) => {
                    let heard = known.heard.iter();
                    let silent: BTreeMap<_, _> =
                        heard.map(|(worker, heard)| (worker.clone(), heard.elapsed())).collect();
                    known.silent = [std::mem::take(&mut known.silent[1]), silent];
                }
                Err(_) => {}
            }
        } else if kind == Some("jobs") {
            let Ok(job) = wire::decode::<Job>(&message.body) else { return };
            let key = (job.execution, job.attempt);
            let mut known = lock(&self.0.known);
            known.queued.insert(key);
            let right = known.dispatched.contains(&key);
            drop(known);
            if !right {
                self.violated(format!(
                    "{} {} is on a queue, and its dispatch is not committed (P3)",
                    job.step, job.attempt
                ));
            }
        } else if kind == Some("events") {
            for message in wire::decode_all::<EventMessage>(&message.body).unwrap_or_default() {
                self.told(message);
            }
        } else if kind == Some("control") {
            for message in wire::decode_all::<ControlMessage>(&message.body).unwrap_or_default() {
                let Control::Settled { claim } = message.control else { continue };
                let known = lock(&self.0.known);
                // Of a run that is over and forgotten, a worker may let go of everything.
                let right =
                    known.closed.contains(&(claim.execution, claim.attempt)) || known.runs_over.contains(&claim.run);
                drop(known);
                if !right {
                    self.violated(format!("{claim:?} is said to be settled, and that is not committed (P3)"));
                }
            }
        }
    }

    fn told(&self, message: EventMessage) {
        let mut known = lock(&self.0.known);
        match message.event {
            Event::Accepted(claim) => {
                known.accepted.insert(key(&claim));
            }
            Event::Hello(Hello { records, .. }) | Event::Records { records } => {
                known.accepted.extend(records.iter().map(|record| key(&record.claim)));
            }
            Event::Finished(finished) => {
                let of = (message.worker, key(&finished.claim));
                let not_held = known.not_held.contains(&of);
                known.finished.insert(of);
                drop(known);
                if not_held {
                    self.violated(format!("{:?} was lost, and its worker had it (P7, P10)", finished.claim));
                }
            }
            Event::Started(_) => {}
        }
    }

    /// A job is out of its queue. P4: not before somebody said that they have it, unless
    /// there is `another` of the same attempt.
    /// One that comes `again` may be acked for the first one's record.
    pub fn acked(&self, body: &[u8], again: bool, another: impl FnOnce(&Job) -> bool) {
        let Ok(job) = wire::decode::<Job>(body) else { return };
        let key = (job.execution, job.attempt);
        let first = {
            let mut known = lock(&self.0.known);
            known.acked.insert(key) && !known.accepted.contains(&key)
        };
        if first && !again && !another(&job) {
            self.violated(format!("{} {} is acked, and nobody has accepted it (P4)", job.step, job.attempt));
        }
    }

    /// A job's row of the outbox goes. P2: not before it is in a queue, or over.
    pub fn carried_out(&self, claim: &Claim) {
        let known = lock(&self.0.known);
        let right = known.queued.contains(&key(claim)) || known.over.contains(&key(claim));
        drop(known);
        if !right {
            self.violated(format!("{claim:?} counts as published, and was never in a queue (P2)"));
        }
    }

    /// An entry is committed. P8: no lease ends of whom the coordinator could have heard.
    pub fn committed(&self, entry: &Entry, lease: Duration) {
        let mut known = lock(&self.0.known);
        match entry {
            Entry::Dispatched { execution, attempt, .. } => {
                known.dispatched.insert((*execution, *attempt));
            }
            Entry::LogClosed { execution, attempt, .. } => {
                known.closed.insert((*execution, *attempt));
            }
            Entry::Accepted { execution, attempt, worker, .. } => {
                known.owners.insert((*execution, *attempt), worker.clone());
            }
            Entry::Ended { execution, attempt, end, .. } => {
                let key = (*execution, *attempt);
                known.over.insert(key);
                known.passed += usize::from(matches!(end, End::Finished { outcome: Outcome::Passed, .. }));
                let not_held = matches!(end, End::Lost { reason } if reason.contains("no longer has it"));
                let Some(owner) = known.owners.get(&key).filter(|_| not_held).cloned() else { return };
                let finished = known.finished.contains(&(owner.clone(), key));
                known.not_held.insert((owner, key));
                drop(known);
                if finished {
                    self.violated(format!("{execution} {attempt} is lost, and its worker had it (P7, P10)"));
                }
            }
            Entry::RunSettled { run, .. } => {
                known.runs_over.insert(*run);
            }
            Entry::Joined { worker, incarnation, .. } => {
                known.joined.insert(worker.clone(), *incarnation);
                known.heard.insert(worker.clone(), Instant::now());
            }
            Entry::LeaseEnded { worker } => {
                let silent = known.silent.iter().filter_map(|silent| silent.get(worker)).max().copied();
                drop(known);
                if let Some(silent) = silent.filter(|silent| *silent < lease) {
                    self.violated(format!(
                        "the lease of {worker} ends {} s after it was heard of (P8)",
                        silent.as_secs()
                    ));
                }
            }
            _ => {}
        }
    }

    /// How many attempts have passed.
    pub fn passed(&self) -> usize {
        lock(&self.0.known).passed
    }

    /// How many workers have joined.
    pub fn joined(&self) -> usize {
        lock(&self.0.known).joined.len()
    }

    /// P22: a worker obeys a command of that epoch.
    pub fn obeys(&self, worker: usize, epoch: u64) {
        let highest = {
            let mut known = lock(&self.0.known);
            let highest = known.obeyed.entry(worker).or_default();
            std::mem::replace(highest, (*highest).max(epoch))
        };
        if epoch < highest {
            self.violated(format!("worker {worker} obeys epoch {epoch} after {highest} (P22)"));
        }
    }

    /// Of everything that happened.
    pub fn hash(&self) -> u64 {
        lock(&self.0.trace).hash
    }

    /// What happened, in order.
    pub fn lines(&self) -> Vec<String> {
        lock(&self.0.trace).lines.clone()
    }

    /// A process acts: it may be the last that it does.
    pub fn point(&self, process: &Process) {
        if !process.is_dead() && self.strikes("killed between two effects", |noise| noise.killed) {
            self.note("killed", 0, || format!("{} is killed here", process.name()));
            process.kill();
        }
    }
}

fn key(claim: &Claim) -> Key {
    (claim.execution, claim.attempt)
}

/// A number for a message's bytes, for the trace.
pub fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(bytes.len() as u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Done by the broker, or the database, which a process only waits for: its processor time is not the process's.
pub fn elsewhere<T>(process: Option<&Process>, act: impl FnOnce() -> T) -> T {
    match process {
        Some(process) => process.elsewhere(act),
        None => act(),
    }
}
