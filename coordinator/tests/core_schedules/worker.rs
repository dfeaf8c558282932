//! A model of a worker, as `docs/protocol.md` wants it: records on disk, numbered events, a spool.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use longshore_protocol::control::Control;
use longshore_protocol::event::{AttemptRecord, Claim, Event, EventMessage, Finished, Hello, Phase, Phases, Started};
use longshore_protocol::heartbeat::Heartbeat;
use longshore_protocol::job::{Base, Job, Keep};
use longshore_protocol::outcome::{CancelledBy, InfraStage};
use longshore_protocol::output::Offsets;
use longshore_protocol::{Attempt, EngineId, ExecutionId, Fence, Incarnation, Outcome, PoolName, SnapshotId, WorkerId};

use crate::dice::Dice;

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

/// What its Engine has.
#[derive(Default)]
pub(crate) struct Engine {
    pub(crate) snapshots: BTreeSet<SnapshotId>,
}

pub(crate) struct Record {
    pub(crate) claim: Claim,
    keep: Keep,
    base: Base,
    pub(crate) phase: Phase,
    /// Bytes of output so far.
    spooled: u64,
    sent: u64,
    cancel: Option<CancelledBy>,
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
        }
    }

    pub(crate) fn engine_id(&self) -> EngineId {
        EngineId(format!("engine-{}", self.engine))
    }

    pub(crate) fn acts(&self) -> bool {
        self.up && self.frozen == 0
    }

    /// P9: numbered, in order.
    fn report(&mut self, event: Event) {
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
            if harsh && !matches!(record.phase, Phase::Finished(_)) && dice.permille(300) {
                let lost = Outcome::infra(InfraStage::Exec, "its container did not survive");
                record.finish(lost, false, None);
            }
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
            snapshots: engine.snapshots.iter().cloned().collect(),
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
            keep: job.keep,
            base: job.base,
            phase: Phase::Preparing,
            spooled: 0,
            sent: 0,
            cancel: None,
        };
        self.disk.insert(name(&claim), record);
        self.report(Event::Accepted(claim));
    }

    /// Moves one attempt on by one step. Returns what really happened to it, if it ended.
    pub(crate) fn work(&mut self, engine: &mut Engine, dice: &mut Dice, faults: bool) -> Option<(Name, Outcome, u64)> {
        let busy: Vec<Name> = (self.disk.iter())
            .filter(|(_, record)| !matches!(record.phase, Phase::Finished(_)))
            .map(|(name, _)| *name)
            .collect();
        if busy.is_empty() {
            return None;
        }
        let chosen = *dice.pick(&busy);
        let fence = Fence { execution: chosen.0, attempt: chosen.1, owner: self.id.clone() };
        let record = self.disk.get_mut(&chosen).unwrap();
        let mut cached = false;
        let outcome = match &record.phase {
            _ if record.cancel.is_some() && dice.permille(700) => {
                Some(Outcome::Cancelled { by: record.cancel.clone().unwrap() })
            }
            Phase::Preparing => match (&record.keep, &record.base) {
                (Keep::Cached { id }, _) if engine.snapshots.contains(id) => {
                    cached = true;
                    Some(Outcome::Passed)
                }
                (_, Base::Snapshot { id }) if !engine.snapshots.contains(id) => {
                    Some(Outcome::infra(InfraStage::Prepare, "its snapshot is not here"))
                }
                _ => {
                    record.phase = Phase::Running;
                    let started = Started {
                        claim: record.claim.clone(),
                        prepare_ms: 1,
                        queue_to_start_ms: 1,
                        container: "c".to_owned(),
                    };
                    self.report(Event::Started(started));
                    return None;
                }
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
        let record = self.disk.get_mut(&chosen).unwrap();
        let snapshot = match &record.keep {
            Keep::Cached { id } if outcome.is_passed() => Some(id.clone()),
            Keep::Snapshot if outcome.is_passed() => Some(SnapshotId::ephemeral(&fence)),
            Keep::Always => Some(SnapshotId::ephemeral(&fence)),
            _ => None,
        };
        engine.snapshots.extend(snapshot.clone());
        let finished = record.finish(outcome.clone(), cached, snapshot);
        let spooled = record.spooled;
        self.report(Event::Finished(finished));
        Some((chosen, outcome, spooled))
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
                    let fence = Fence { execution: claim.execution, attempt: claim.attempt, owner: self.id.clone() };
                    engine.snapshots.remove(&SnapshotId::ephemeral(&fence));
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
            Control::RemoveSnapshot { snapshot } => {
                engine.snapshots.remove(&snapshot);
            }
            Control::Refused { reason } => panic!("no disk was cloned here: {reason}"),
        }
    }
}

impl Record {
    fn finish(&mut self, outcome: Outcome, cached: bool, snapshot: Option<SnapshotId>) -> Finished {
        let finished = Finished {
            claim: self.claim.clone(),
            outcome,
            cached,
            output: Offsets { stdout: self.spooled, stderr: 0 },
            snapshot,
            phases: Phases::default(),
        };
        self.phase = Phase::Finished(Box::new(finished.clone()));
        finished
    }
}
