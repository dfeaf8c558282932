//! What stands beside a model of a worker: snapshots on its Engine, parked containers, and what is done with them.

use std::collections::BTreeMap;

use longshore_protocol::event::{Claim, Event, Phase, Started};
use longshore_protocol::job::{Base, Keep, Network};
use longshore_protocol::{ExecutionId, Fence, Outcome, RunId, SnapshotId, StepName};

use crate::dice::Dice;
use crate::worker::{Name, Worked, Worker, name};

/// Files: the marks of the commands that wrote to them, in order, those included that died half way.
pub(crate) type Files = Vec<String>;

/// The mark of a step's command.
pub(crate) fn mark(run: RunId, step: &StepName) -> String {
    ExecutionId::of_step(run, step).to_string()
}

/// What its Engine has.
#[derive(Default)]
pub(crate) struct Engine {
    pub(crate) snapshots: BTreeMap<SnapshotId, Files>,
}

/// A container that stands between two steps.
pub(crate) struct Parked {
    pub(crate) claim: Claim,
    pub(crate) container: String,
    pub(crate) network: Network,
    pub(crate) files: Files,
}

impl Worker {
    pub(crate) fn fence(&self, of: Name) -> Fence {
        Fence { execution: of.0, attempt: of.1, owner: self.id.clone() }
    }

    /// P19: a parked container that fits is consumed; one that does not is committed and restored, like what was
    /// committed before. `None`: nothing of the parent's is here.
    pub(crate) fn prepare(&mut self, of: Name, engine: &mut Engine, dice: &mut Dice) -> Option<Worked> {
        let record = &self.disk[&of];
        let mut container = format!("c-{}-{}", of.0.to_hex(), of.1);
        let mut files = match &record.job.base {
            Base::Image { .. } => Files::new(),
            Base::Parent { execution, attempt, snapshot } => {
                let parent = (*execution, *attempt);
                let ephemeral = SnapshotId::ephemeral(&self.fence(parent));
                let fits = |parked: &Parked| parked.network == record.job.spec.network;
                if self.parked.get(&parent).is_some_and(|parked| fits(parked) && !dice.permille(50)) {
                    let parked = self.parked.remove(&parent).unwrap();
                    container = parked.container;
                    parked.files
                } else {
                    let committed = snapshot.as_ref().is_some_and(|snapshot| engine.snapshots.contains_key(snapshot));
                    if let Some(parked) = self.parked.get(&parent).filter(|_| !committed) {
                        engine.snapshots.entry(ephemeral.clone()).or_insert_with(|| parked.files.clone());
                    }
                    let committed = snapshot.as_ref().and_then(|snapshot| engine.snapshots.get(snapshot));
                    committed.or_else(|| engine.snapshots.get(&ephemeral))?.clone()
                }
            }
        };
        let record = self.disk.get_mut(&of).unwrap();
        let began = Worked::Began(Box::new(record.job.clone()), files.clone());
        files.push(mark(record.job.run, &record.job.step));
        record.phase = Phase::Running;
        (record.container, record.files) = (container.clone(), files);
        let started = Started { claim: record.claim.clone(), prepare_ms: 1, queue_to_start_ms: 1, container };
        self.report(Event::Started(started));
        Some(began)
    }

    /// What is kept of an attempt: the name it was committed under, and whether it is parked.
    pub(crate) fn keep(
        &mut self,
        of: Name,
        outcome: &Outcome,
        cached: bool,
        engine: &mut Engine,
        dice: &mut Dice,
    ) -> (Option<SnapshotId>, bool) {
        let ephemeral = SnapshotId::ephemeral(&self.fence(of));
        let record = self.disk.get_mut(&of).unwrap();
        if let (Keep::Cached { id }, true) = (&record.job.keep, outcome.is_passed()) {
            record.files = vec![id.to_string()]; // whoever made them: that is what a key says
        }
        let (passed, park, commit) = (outcome.is_passed(), dice.permille(700), dice.permille(200));
        let (snapshot, park) = match &record.job.keep {
            Keep::Cached { id } if passed => (Some(id.clone()), park && !cached),
            Keep::Snapshot if passed => (Some(ephemeral), park),
            // Not parked: where no supervisor can be used.
            Keep::Live if passed => ((commit || !park).then_some(ephemeral), park),
            Keep::Always if record.phase != Phase::Preparing => (Some(ephemeral), false),
            _ => (None, false),
        };
        if !cached && let Some(snapshot) = &snapshot {
            engine.snapshots.insert(snapshot.clone(), record.files.clone());
        }
        if park {
            let (claim, container) = (record.claim.clone(), record.container.clone());
            let (network, files) = (record.job.spec.network, record.files.clone());
            self.parked.insert(of, Parked { claim, container, network, files });
        }
        (snapshot, park)
    }

    /// Parked containers are bounded in number and time: one that must go is committed. With faults, one is simply
    /// gone, or a snapshot is.
    pub(crate) fn evict(&mut self, engine: &mut Engine, dice: &mut Dice, faults: bool) {
        if dice.permille(20)
            && let Some((of, parked)) = self.parked.pop_first()
        {
            engine.snapshots.entry(SnapshotId::ephemeral(&self.fence(of))).or_insert(parked.files);
        }
        if faults && dice.permille(5) {
            self.parked.pop_last();
        }
        if faults && dice.permille(5) {
            engine.snapshots.pop_last();
        }
    }

    /// What an attempt left parked, and what was committed of it under its own name.
    pub(crate) fn remove_left(&mut self, claim: &Claim, engine: &mut Engine) {
        self.parked.remove(&name(claim));
        engine.snapshots.remove(&SnapshotId::ephemeral(&self.fence(name(claim))));
    }
}
