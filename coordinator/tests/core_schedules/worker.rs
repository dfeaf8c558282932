//! A model of a worker, as `docs/protocol.md` wants it: records on disk, numbered events, a spool.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use longshore_protocol::control::Control;
use longshore_protocol::event::{AttemptRecord, Claim, Event, EventMessage, Finished, Hello, Phase, Phases};
use longshore_protocol::heartbeat::Heartbeat;
use longshore_protocol::job::{Job, Keep};
use longshore_protocol::outcome::{CancelledBy, GO_VOID, InfraStage, SNAPSHOT_LOST};
use longshore_protocol::output::Offsets;
use longshore_protocol::{Attempt, EngineId, ExecutionId, Incarnation, Outcome, PoolName, SnapshotId, WorkerId};

use crate::dice::Dice;
use crate::engine::{Engine, Files, Parked};

/// Within one schedule an execution belongs to one run.
pub(crate) type Name = (ExecutionId, Attempt);

pub(crate) fn name(claim: &Claim) -> Name {
    (claim.execution, claim.attempt)
}

/// Some bytes of standard output, by offset: what they are does not matter to the core.
#[derive(Clone)]
pub(crate) struct Output {
    pub(crate) worker: WorkerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) claim: Claim,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

pub(crate) struct Record {
    pub(crate) claim: Claim,
    pub(crate) job: Job,
    pub(crate) phase: Phase,
    /// Once it has started: its container, and what stands in it.
    pub(crate) container: String,
    pub(crate) files: Files,
    /// Bytes of output so far.
    spooled: u64,
    sent: u64,
    pub(crate) cancel: Option<CancelledBy>,
    /// P18: it may be started. Said to this incarnation.
    go: bool,
}

pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) engine: usize,
    pub(crate) slots: u32,
    pub(crate) up: bool,
    /// It will never start again.
    pub(crate) gone: bool,
    /// Rounds for which it does nothing at all.
    pub(crate) frozen: u32,
    pub(crate) incarnation: Incarnation,
    number: u64,
    /// In order, not confirmed by the broker yet.
    pub(crate) unconfirmed: VecDeque<EventMessage>,
    pub(crate) disk: BTreeMap<Name, Record>,
    pub(crate) output: Vec<Output>,
    /// Records that its disk has lost. Their jobs may come again.
    pub(crate) wiped: BTreeSet<Name>,
    /// Containers in which a child may go on, by whose attempt they are.
    pub(crate) parked: BTreeMap<Name, Parked>,
}

/// What one step of a worker's came to.
pub(crate) enum Worked {
    /// A command began, on these files.
    Began(Box<Job>, Files),
    /// An attempt ended: how, and with how much output.
    Ended(Name, Outcome, u64),
}

impl Worker {
    pub(crate) fn new(id: &str, engine: usize, slots: u32) -> Self {
        Self {
            id: id.parse().unwrap(),
            engine,
            slots,
            up: false,
            gone: false,
            frozen: 0,
            incarnation: Incarnation { start: 0, nonce: 0 },
            number: 0,
            unconfirmed: VecDeque::new(),
            disk: BTreeMap::new(),
            output: Vec::new(),
            wiped: BTreeSet::new(),
            parked: BTreeMap::new(),
        }
    }

    pub(crate) fn engine_id(&self) -> EngineId {
        EngineId::from(format!("engine-{}", self.engine))
    }

    pub(crate) fn acts(&self) -> bool {
        self.up && self.frozen == 0
    }

    /// P9: numbered, in order.
    pub(crate) fn report(&mut self, event: Event) {
        self.number += 1;
        let (worker, incarnation) = (self.id.clone(), self.incarnation);
        self.unconfirmed.push_back(EventMessage { worker, incarnation, number: self.number, event });
    }

    fn records(&self) -> Vec<AttemptRecord> {
        let records = self.disk.values();
        records.map(|record| AttemptRecord { claim: record.claim.clone(), phase: record.phase.clone() }).collect()
    }

    pub(crate) fn crash(&mut self) {
        self.up = false;
        self.unconfirmed.clear();
        self.output.clear();
    }

    /// P10: a new incarnation adopts what is on its disk. Some containers did not survive; `wiped` takes some
    /// records with them.
    pub(crate) fn start(&mut self, dice: &mut Dice, harsh: bool) {
        if harsh {
            let wiped: Vec<Name> = self.disk.keys().filter(|_| dice.permille(150)).copied().collect();
            self.disk.retain(|name, _| !wiped.contains(name));
            self.wiped.extend(wiped);
        }
        for record in self.disk.values_mut() {
            record.go = false;
            if harsh && !matches!(record.phase, Phase::Finished(_)) && dice.permille(300) {
                let lost = Outcome::infra(InfraStage::Exec, "its container did not survive");
                record.finish(lost, false, (None, false));
            }
        }
        if harsh {
            self.parked.retain(|_, _| !dice.permille(300));
        }
        self.up = true;
        self.incarnation = Incarnation { start: self.incarnation.start + 1, nonce: dice.next() };
        self.number = 0;
        let hello = Hello {
            engine: self.engine_id(),
            pool: PoolName::default(),
            slots: self.slots,
            version: "0".to_owned(),
            host: "h".to_owned(),
            records: self.records(),
        };
        self.report(Event::Hello(hello));
    }

    pub(crate) fn slots_free(&self) -> u32 {
        let busy = self.disk.values().filter(|record| !matches!(record.phase, Phase::Finished(_))).count();
        self.slots.saturating_sub(u32::try_from(busy).unwrap())
    }

    pub(crate) fn heartbeat(&self, engine: &Engine) -> Heartbeat {
        Heartbeat {
            worker: self.id.clone(),
            incarnation: self.incarnation,
            engine: self.engine_id(),
            pool: PoolName::default(),
            slots: self.slots,
            slots_free: self.slots_free(),
            attempts: self.records(),
            snapshots: engine.snapshots.keys().cloned().collect(),
            parked: self.parked.values().map(|parked| parked.claim.clone()).collect(),
            stamp_ms: 0,
            full: Vec::new(),
            last_event: self.number,
            disk_free_bytes: None,
        }
    }

    /// P4: on disk first, then `accepted`. A job whose record it has is dropped.
    pub(crate) fn claim(&mut self, job: Job) {
        let claim = Claim { run: job.run, execution: job.execution, attempt: job.attempt };
        if self.disk.contains_key(&name(&claim)) {
            return;
        }
        let record = Record {
            claim: claim.clone(),
            job,
            phase: Phase::Preparing,
            container: String::new(),
            files: Files::new(),
            spooled: 0,
            sent: 0,
            cancel: None,
            go: false,
        };
        self.disk.insert(name(&claim), record);
        self.report(Event::Accepted(claim));
    }

    /// Moves one attempt on by one step.
    pub(crate) fn work(&mut self, engine: &mut Engine, dice: &mut Dice, faults: bool) -> Option<Worked> {
        self.evict(engine, dice, faults);
        let busy: Vec<Name> = (self.disk.iter())
            .filter(|(_, record)| !matches!(record.phase, Phase::Finished(_)))
            .map(|(name, _)| *name)
            .collect();
        if busy.is_empty() {
            return None;
        }
        let chosen = *dice.pick(&busy);
        let record = self.disk.get_mut(&chosen).unwrap();
        let mut cached = false;
        let outcome = match &record.phase {
            _ if record.cancel.is_some() && dice.permille(700) => {
                Some(Outcome::Cancelled { by: record.cancel.clone().unwrap() })
            }
            // P18: until it is told to, or believes that it will not be in time.
            Phase::Preparing if record.job.spec.exclusive && !record.go => {
                (faults && dice.permille(50)).then(|| Outcome::infra(InfraStage::Claim, GO_VOID))
            }
            Phase::Preparing => match &record.job.keep {
                Keep::Cached { id } if engine.snapshots.contains_key(id) => {
                    cached = true;
                    Some(Outcome::Passed)
                }
                _ => match self.prepare(chosen, engine, dice) {
                    Some(began) => return Some(began),
                    None => Some(Outcome::infra(InfraStage::Prepare, SNAPSHOT_LOST)),
                },
            },
            _ if dice.permille(500) => {
                record.spooled += dice.next() % 100;
                None
            }
            _ => Some(match dice.below(100) {
                0..12 => Outcome::Failed { exit: u8::try_from(1 + dice.below(200)).unwrap() },
                12..15 => Outcome::TimedOut,
                15..25 if faults => Outcome::infra(InfraStage::Exec, "the Engine went away"),
                _ => Outcome::Passed,
            }),
        };
        self.send_output(chosen);
        let outcome = outcome?;
        let left = self.keep(chosen, &outcome, cached, engine, dice);
        let record = self.disk.get_mut(&chosen).unwrap();
        let finished = record.finish(outcome.clone(), cached, left);
        let spooled = record.spooled;
        self.report(Event::Finished(finished));
        Some(Worked::Ended(chosen, outcome, spooled))
    }

    fn send_output(&mut self, of: Name) {
        let record = self.disk.get_mut(&of).unwrap();
        if record.sent < record.spooled {
            let (worker, incarnation) = (self.id.clone(), self.incarnation);
            let (claim, from, to) = (record.claim.clone(), record.sent, record.spooled);
            record.sent = to;
            self.output.push(Output { worker, incarnation, claim, from, to });
        }
    }

    /// P22: what should be. Another incarnation's orders were filtered out before.
    pub(crate) fn obey(&mut self, control: Control, engine: &mut Engine) {
        match control {
            Control::Abandon { claim } => {
                if self.disk.remove(&name(&claim)).is_some() {
                    self.remove_left(&claim, engine);
                }
            }
            Control::Settled { claim } => {
                // A second copy may meet a job that came twice and runs again: that one is not settled yet.
                if matches!(self.disk.get(&name(&claim)), Some(Record { phase: Phase::Finished(_), .. })) {
                    self.disk.remove(&name(&claim));
                }
            }
            Control::Cancel { claim, by } => {
                if let Some(record) = self.disk.get_mut(&name(&claim)) {
                    record.cancel = Some(by);
                }
            }
            Control::Sync => {
                let records = self.records();
                self.report(Event::Records { records });
            }
            Control::Resend { claim, stored } => {
                if let Some(record) = self.disk.get_mut(&name(&claim)) {
                    record.sent = stored.stdout;
                    self.send_output(name(&claim));
                }
            }
            Control::Go { claim } => {
                if let Some(record) = self.disk.get_mut(&name(&claim)) {
                    assert!(record.job.spec.exclusive, "P18: nobody waits for that");
                    record.go = true;
                }
            }
            // Time is not what is shown here.
            Control::Heard { claims, .. } => {
                let exclusive = |claim| self.disk.get(&name(claim)).is_none_or(|record| record.job.spec.exclusive);
                assert!(claims.iter().all(exclusive), "P18: of others nobody need know");
            }
            // No log here is as long as the window.
            Control::Stored { .. } => {}
            Control::Release { claim } => self.remove_left(&claim, engine),
            Control::RemoveSnapshot { snapshot } => {
                engine.snapshots.remove(&snapshot);
            }
            Control::Refused { reason } => panic!("no disk was cloned here: {reason}"),
        }
    }
}

impl Record {
    fn finish(&mut self, outcome: Outcome, cached: bool, left: (Option<SnapshotId>, bool)) -> Finished {
        let (snapshot, parked) = left;
        let finished = Finished {
            claim: self.claim.clone(),
            outcome,
            cached,
            output: Offsets { stdout: self.spooled, stderr: 0 },
            snapshot,
            parked,
            phases: Phases::default(),
            usage: None,
        };
        self.phase = Phase::Finished(Box::new(finished.clone()));
        finished
    }
}
