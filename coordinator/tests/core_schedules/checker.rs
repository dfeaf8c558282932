//! What must hold of every schedule, told by the journal and by what really happened, without the core's state.

use std::collections::{BTreeMap, BTreeSet};

use longshore_coordinator::core::Core;
use longshore_coordinator::core::entry::{End, Entry, LogGap, RetryCause};
use longshore_coordinator::core::view::RunOutcome;
use longshore_coordinator::pipeline::{Parent, Pipeline, PlannedStep, SnapshotRule};
use longshore_protocol::job::{Base, Job};
use longshore_protocol::outcome::{CancelledBy, InfraStage, LINEAGE, SNAPSHOT_LOST};
use longshore_protocol::{Attempt, EngineId, ExecutionId, Outcome, RunId, SnapshotId, WorkerId};

use crate::faults::config;
use crate::lineage::LeftBehind;
use crate::turns::Turns;
use crate::worker::{Name, Output, Worker};
use crate::world::{Really, holds};

/// One step, as the journal told of it.
pub(crate) struct Step {
    pub(crate) run: RunId,
    pub(crate) planned: PlannedStep,
    pub(crate) attempts: u32,
    pub(crate) retried: BTreeMap<&'static str, u32>,
    pub(crate) settled: Option<Outcome>,
    pub(crate) last_end: Option<Outcome>,
    pub(crate) open: bool,
    pub(crate) parent: Option<ExecutionId>,
    /// The steps that go on with its files, those that make a child's files again included.
    pub(crate) children: BTreeSet<ExecutionId>,
    /// Of one that makes a step's files again: which step's.
    pub(crate) remake_of: Option<ExecutionId>,
    /// What was left of it last, until that was said to be lost.
    pub(crate) left: Option<LeftBehind>,
    /// Somebody asked for its end alone.
    pub(crate) cancelled: bool,
    /// Of one that makes a step's files again: how often its run had been opened again then.
    pub(crate) asking: u32,
}

/// One attempt.
#[derive(Default)]
pub(crate) struct Try {
    pub(crate) owner: Option<WorkerId>,
    end: Option<End>,
    log: Option<LogGap>,
}

pub(crate) struct Checker {
    pub(crate) steps: BTreeMap<ExecutionId, Step>,
    pub(crate) tries: BTreeMap<Name, Try>,
    verdicts: BTreeMap<RunId, RunOutcome>,
    /// How often each run was opened again.
    askings: BTreeMap<RunId, u32>,
    /// Runs whose end the user asked for, since they were opened last.
    cancelled: BTreeSet<RunId>,
    cancelled_alone: u64,
    /// Runs that had been called off as too long before they were opened again.
    late_before: u64,
    runs: Vec<RunId>,
    /// Leases that ended in this very batch of entries.
    ended: BTreeSet<WorkerId>,
    /// Workers whose lease has ended, as far as the journal goes.
    pub(crate) away: BTreeSet<WorkerId>,
    /// The Engine of each, and what their attempts run in.
    pub(crate) engines: BTreeMap<WorkerId, EngineId>,
    pub(crate) bases: BTreeMap<Name, Option<Name>>,
    pub(crate) containers: BTreeMap<Name, String>,
    pub(crate) faultless: bool,
    pub(crate) remade: u64,
    broken: u64,
    pub(crate) taken: u64,
    turns: Turns,
    really: Really,
    kept: BTreeSet<ExecutionId>,
}

impl Checker {
    pub(crate) fn new(runs: &[(RunId, Pipeline)], faultless: bool) -> Self {
        let turns = Turns::new(runs);
        let mut steps = BTreeMap::new();
        let mut kept = BTreeSet::new();
        for (run, pipeline) in runs {
            for planned in &pipeline.steps {
                let execution = ExecutionId::of_step(*run, &planned.name);
                if planned.snapshot == SnapshotRule::Always {
                    kept.insert(execution);
                }
                let children = pipeline
                    .steps
                    .iter()
                    .filter(|child| matches!(&child.parent, Parent::Step(name) if *name == planned.name));
                let step = Step {
                    run: *run,
                    planned: planned.clone(),
                    attempts: 0,
                    retried: BTreeMap::new(),
                    settled: None,
                    last_end: None,
                    open: false,
                    parent: match &planned.parent {
                        Parent::Step(name) => Some(ExecutionId::of_step(*run, name)),
                        Parent::Image(_) => None,
                    },
                    children: children.map(|child| ExecutionId::of_step(*run, &child.name)).collect(),
                    remake_of: None,
                    left: None,
                    cancelled: false,
                    asking: 0,
                };
                steps.insert(execution, step);
            }
        }
        let runs = runs.iter().map(|(run, _)| *run).collect();
        Self {
            steps,
            tries: BTreeMap::new(),
            verdicts: BTreeMap::new(),
            askings: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            cancelled_alone: 0,
            late_before: 0,
            runs,
            ended: BTreeSet::new(),
            away: BTreeSet::new(),
            engines: BTreeMap::new(),
            bases: BTreeMap::new(),
            containers: BTreeMap::new(),
            faultless,
            remade: 0,
            broken: 0,
            taken: 0,
            turns,
            really: Really::new(),
            kept,
        }
    }

    /// What the kernel reported to a worker.
    pub(crate) fn really(&mut self, of: Name, worker: &WorkerId, outcome: Outcome, bytes: u64) {
        self.really.insert((of, worker.clone()), (outcome, bytes));
    }

    pub(crate) fn kept(&self, snapshot: &SnapshotId) -> bool {
        self.kept.iter().any(|execution| snapshot.as_str().contains(&execution.to_hex()))
    }

    /// P12: nothing but an owner's output is stored.
    pub(crate) fn output(&self, output: &Output) {
        let of = (output.claim.execution, output.claim.attempt);
        let owner = self.tries.get(&of).and_then(|attempt| attempt.owner.as_ref());
        assert_eq!(owner, Some(&output.worker), "output of somebody who does not own {of:?} was taken");
    }

    /// A child's job names a snapshot that nobody was told to remove.
    pub(crate) fn dispatched(&self, job: &Job, removed: &BTreeSet<SnapshotId>) {
        let over = self.tries.get(&(job.execution, job.attempt)).is_some_and(|attempt| attempt.end.is_some());
        if let Base::Parent { snapshot: Some(id), .. } = &job.base {
            assert!(over || !removed.contains(id), "{} is asked for, and was removed", id.as_str());
        }
    }

    pub(crate) fn journalled(&mut self, entries: &[Entry], workers: &[Worker]) {
        self.ended.clear();
        for entry in entries {
            self.turns.entry(entry);
            self.entry(entry, workers);
        }
        let unsettled = self.steps.values().any(|step| step.open && step.settled.is_some());
        assert!(!unsettled, "a step is settled while an attempt of it is under way (P11)");
    }

    fn entry(&mut self, entry: &Entry, workers: &[Worker]) {
        match entry {
            Entry::CancelAsked { run, by: CancelledBy::User } => assert!(self.cancelled.insert(*run), "asked twice"),
            Entry::StepCancelAsked { execution, .. } => {
                let step = self.steps.get_mut(execution).unwrap();
                assert!(step.settled.is_none() && step.remake_of.is_none());
                assert!(!std::mem::replace(&mut step.cancelled, true), "asked twice");
                self.cancelled_alone += 1;
            }
            Entry::RetryAsked { run, steps, .. } => self.opened_again(*run, steps),
            Entry::LeaseEnded { worker } => {
                self.ended.insert(worker.clone());
                self.away.insert(worker.clone());
            }
            Entry::Back { worker } => {
                self.away.remove(worker);
            }
            Entry::Joined { worker, hello, .. } => {
                self.away.remove(worker);
                self.engines.insert(worker.clone(), hello.engine.clone());
            }
            Entry::Dispatched { run, execution, attempt, base, .. } => {
                self.begins(*run, *execution, *attempt);
                self.starts_from(*execution, *attempt, base);
                self.steps.get_mut(execution).unwrap().open = true;
            }
            Entry::Accepted { execution, attempt, worker, .. } => {
                let before = self.tries.get_mut(&(*execution, *attempt)).expect("it was dispatched");
                assert!(before.end.is_none(), "what is over was claimed");
                assert_eq!(before.owner.replace(worker.clone()), None, "two owners (P5)");
            }
            Entry::Started { execution, attempt, container, .. } => {
                self.started((*execution, *attempt), container);
            }
            Entry::Ended { run, execution, attempt, end } => self.ends(*run, (*execution, *attempt), end, workers),
            Entry::Retried { execution, because, .. } => {
                let cause = match because {
                    RetryCause::Infra => "infra",
                    RetryCause::Gone => "gone",
                    RetryCause::User => "user",
                    RetryCause::Lineage => "lineage",
                    RetryCause::HandedBack => "handed_back",
                    RetryCause::GoVoid => "go_void",
                };
                let step = self.steps.get_mut(execution).unwrap();
                *step.retried.entry(cause).or_default() += 1;
                if cause == "user" {
                    let covers = |outcome| step.planned.retry.covers(outcome);
                    assert!(step.last_end.as_ref().is_some_and(covers), "tried again, and the rule does not say so");
                }
                let users = if step.remake_of.is_some() { 0 } else { step.planned.retry.max };
                assert!(step.retried.get("user").copied().unwrap_or(0) <= users);
                assert!(step.retried.get("infra").copied().unwrap_or(0) <= config().infra_retries);
            }
            Entry::Settled { execution, outcome, .. } => {
                let step = self.steps.get_mut(execution).unwrap();
                assert_eq!(step.settled.replace(outcome.clone()), None, "settled twice (promise 1)");
                assert!(!step.open, "settled before its attempt was over (P11)");
                let never_begun = matches!(outcome, Outcome::Cancelled { .. } | Outcome::Skipped { .. });
                if *outcome == (Outcome::Cancelled { by: CancelledBy::User }) && step.remake_of.is_none() {
                    assert!(step.cancelled || self.cancelled.contains(&step.run), "nobody had asked for its end");
                }
                let lost = |end: &Outcome| matches!(end, Outcome::Infra { stage: InfraStage::Lease, .. });
                let poison = outcome.is_poison() && step.last_end.as_ref().is_some_and(lost);
                let as_it_ended = poison || step.last_end.as_ref() == Some(outcome);
                assert!(never_begun || as_it_ended, "settled as it did not end");
                // P20: of a remake only what it left is anybody's.
                if let (Some(of), true) = (step.remake_of, outcome.is_passed()) {
                    let left = step.left.take();
                    self.steps.get_mut(&of).unwrap().left = left;
                }
            }
            Entry::RunSettled { run, outcome } => {
                assert_eq!(self.verdicts.insert(*run, *outcome), None, "a run was settled twice");
                // Remakes included: nothing of a settled run is under way.
                let open = self.steps.values().any(|step| step.run == *run && step.settled.is_none());
                assert!(!open, "a run was settled before its steps");
            }
            Entry::LogClosed { execution, attempt, gap, .. } => {
                let of = self.tries.get_mut(&(*execution, *attempt)).unwrap();
                assert!(of.end.is_some() && of.owner.is_some());
                assert_eq!(of.log.replace(*gap), None, "a log was closed twice");
            }
            Entry::SnapshotDropped { execution, .. } | Entry::Released { execution, .. } => {
                assert!(!self.is_needed(*execution), "what a step left was dropped, and is still needed");
                let left = self.steps.get_mut(execution).unwrap().left.as_mut().expect("there was something");
                // Of what a child took there is nothing to release; what is committed beside it stays till dropped.
                assert!(!left.dropped && (!left.taken || left.committed), "there was nothing to let go of");
                left.dropped = matches!(entry, Entry::SnapshotDropped { .. }) || !left.committed;
            }
            Entry::LeftLost { execution, reason, .. } => self.left_lost(*execution, reason),
            Entry::RemakeBegun { run, execution, remake } => self.remake_begun(*run, *execution, *remake),
            _ => {}
        }
    }

    /// Promise 1: what did not pass is asked for once more, and may settle once more.
    fn opened_again(&mut self, run: RunId, steps: &[ExecutionId]) {
        assert!(self.verdicts.remove(&run).is_some(), "opened again before it was settled");
        *self.askings.entry(run).or_default() += 1;
        self.cancelled.remove(&run);
        // Its time begins anew.
        self.late_before += u64::from(self.turns.late.remove(&run));
        for execution in steps {
            let step = self.steps.get_mut(execution).unwrap();
            let settled = step.settled.take().expect("what is opened again was settled");
            assert!(!settled.is_passed() && step.remake_of.is_none());
            step.last_end = None;
            step.cancelled = false;
            step.retried.clear();
        }
    }

    pub(crate) fn asking(&self, run: RunId) -> u32 {
        self.askings.get(&run).copied().unwrap_or(0)
    }

    /// An attempt begins: its number follows, and what it waits for has passed.
    fn begins(&mut self, run: RunId, execution: ExecutionId, attempt: Attempt) {
        let step = self.steps.get_mut(&execution).unwrap();
        step.attempts += 1;
        assert_eq!(attempt, Attempt(step.attempts), "attempts grow by one");
        assert!(!step.open, "two attempts at once");
        assert_eq!(step.settled, None, "a settled step was dispatched");
        let planned = step.planned.clone();
        for name in planned.waits_for() {
            let parent = &self.steps[&ExecutionId::of_step(run, name)];
            assert_eq!(parent.settled, Some(Outcome::Passed), "{} began before {name} had passed", planned.name);
        }
        assert!(self.tries.insert((execution, attempt), Try::default()).is_none());
    }

    fn ends(&mut self, run: RunId, of: Name, end: &End, workers: &[Worker]) {
        if !self.tries.contains_key(&of) {
            self.begins(run, of.0, of.1); // it found no worker to be sent to
        }
        let attempt = self.tries.get_mut(&of).unwrap();
        assert_eq!(attempt.end.replace(end.clone()), None, "over twice (P11)");
        let step = self.steps.get_mut(&of.0).unwrap();
        step.open = false;
        step.last_end = None;
        match (end, &attempt.owner) {
            (End::Finished { outcome, output, snapshot, parked, .. }, Some(owner)) => {
                step.last_end = Some(outcome.clone());
                // P18: what is kept is not lost with a container.
                let committed = snapshot.is_some() || !*parked;
                assert!(committed || !step.planned.spec.exclusive, "an exclusive step's files are in a container only");
                if outcome.is_passed() && (snapshot.is_some() || *parked) {
                    step.left = Some(LeftBehind {
                        of,
                        committed: snapshot.is_some(),
                        parked: *parked,
                        owner: owner.clone(),
                        container: self.containers.get(&of).cloned(),
                        taken: false,
                        missed: false,
                        dropped: false,
                    });
                }
                let parent = step.parent;
                if *outcome == Outcome::infra(InfraStage::Prepare, SNAPSHOT_LOST)
                    && let Some(left) = parent.and_then(|parent| self.steps.get_mut(&parent)?.left.as_mut())
                    && self.bases.get(&of) == Some(&Some(left.of))
                {
                    left.missed = true;
                }
                // Promise 2: what counts is what the owner's kernel reported.
                match self.really.get(&(of, owner.clone())) {
                    Some((really, bytes)) => {
                        assert_eq!(really, outcome, "the outcome is not what the owner saw");
                        assert_eq!(*bytes, output.stdout);
                    }
                    None => assert!(outcome.is_infra(), "{outcome} came from nowhere"),
                }
            }
            (End::Finished { outcome, .. }, None) => {
                assert!(outcome.is_infra());
                step.last_end = Some(outcome.clone());
                // A command that passed once may fail when what it left is made again for a retry.
                let lineage = matches!(outcome, Outcome::Infra { stage: InfraStage::Prepare, reason } if reason.starts_with(LINEAGE));
                assert!(lineage || !self.faultless, "{outcome} without a fault");
                if lineage {
                    self.lineage_is_broken(of.0);
                    self.broken += 1;
                }
            }
            (End::Lost { reason }, Some(owner)) => {
                step.last_end = Some(Outcome::infra(InfraStage::Lease, reason.clone()));
                // P11: by the end of its lease, or because it truly does not have it any more.
                assert!(self.ended.contains(owner) || !holds(workers, owner, of), "{owner} still holds {of:?}");
            }
            (End::Expired { reason }, None) => {
                assert!(step.planned.queue_timeout_ms.is_some() && step.remake_of.is_none());
                step.last_end = Some(Outcome::infra(InfraStage::Queue, reason.clone()));
            }
            (End::Gone { .. } | End::Withdrawn, None) => {}
            (end, owner) => panic!("{end:?} of an attempt of {owner:?}"),
        }
    }

    /// How often something was made again, a lineage broken, a parked container taken, a step not claimed in time, a
    /// run called off as too long, a run opened again, a step cancelled.
    pub(crate) fn seen(&self) -> [u64; 7] {
        let again = self.askings.values().copied().map(u64::from).sum();
        let turns = [self.turns.expired, self.turns.late.len() as u64 + self.late_before];
        [self.remade, self.broken, self.taken, turns[0], turns[1], again, self.cancelled_alone]
    }

    pub(crate) fn at_end(&self, stored: &BTreeMap<Name, u64>, core: &Core, faultless: bool) {
        for step in self.steps.values() {
            assert!(step.settled.is_some(), "{} was never settled", step.planned.name);
        }
        for run in &self.runs {
            self.verdict(*run);
            assert!(core.is_done(*run));
        }
        assert_eq!(core.open_logs(), Vec::new());
        for (of, attempt) in &self.tries {
            assert!(attempt.end.is_some(), "{of:?} is not over");
            assert_eq!(attempt.owner.is_some(), attempt.log.is_some(), "the log of {of:?}");
            if let (Some(End::Finished { output, .. }), Some(gap)) = (&attempt.end, attempt.log) {
                let missing = output.stdout - stored.get(of).copied().unwrap_or(0).min(output.stdout);
                match gap {
                    LogGap::None => assert_eq!(missing, 0, "bytes are missing in the closed log of {of:?} (P14)"),
                    LogGap::Bytes { missing: said } => assert_eq!(said.stdout, missing),
                    LogGap::EndUnknown => panic!("its end was known"),
                }
            }
            if faultless {
                let fine = matches!(attempt.end, Some(End::Finished { .. } | End::Expired { .. } | End::Withdrawn));
                assert!(fine, "an attempt was lost without a fault: {:?}", attempt.end);
            }
        }
    }

    /// A run's verdict, computed anew.
    fn verdict(&self, run: RunId) {
        let own = |step: &&Step| step.run == run && step.remake_of.is_none();
        let outcomes = || self.steps.values().filter(own).filter_map(|step| step.settled.as_ref());
        let expected = if outcomes().any(Outcome::is_users_failure) {
            RunOutcome::Failed
        } else if self.turns.late.contains(&run) && outcomes().any(|of| matches!(of, Outcome::Cancelled { .. })) {
            RunOutcome::TimedOut
        } else if outcomes().any(Outcome::is_infra) {
            RunOutcome::Infra
        } else if outcomes().any(|outcome| matches!(outcome, Outcome::Cancelled { .. })) {
            RunOutcome::Cancelled
        } else {
            assert!(outcomes().all(Outcome::is_passed), "skipped, and nothing that it could follow from");
            RunOutcome::Passed
        };
        assert_eq!(self.verdicts.get(&run), Some(&expected));
    }
}
