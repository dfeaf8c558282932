//! What must hold of what steps leave: who goes on with it, when it is let go of, when it is made again (P19, P20).

use std::collections::{BTreeMap, BTreeSet};

use longshore_coordinator::core::entry::Origin;
use longshore_protocol::job::Job;
use longshore_protocol::{Attempt, ExecutionId, Outcome, RunId, SnapshotId, WorkerId};

use crate::checker::{Checker, Step};
use crate::engine::{Files, mark};
use crate::faults::config;
use crate::worker::Name;

/// What an attempt left.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each may be so or not, whatever the others are")]
pub(crate) struct LeftBehind {
    pub(crate) of: Name,
    pub(crate) committed: bool,
    pub(crate) parked: bool,
    pub(crate) owner: WorkerId,
    /// Its container's name.
    pub(crate) container: Option<String>,
    pub(crate) taken: bool,
    /// A worker said that it is not there.
    pub(crate) missed: bool,
    pub(crate) dropped: bool,
}

impl Checker {
    /// P19: a command finds its parents' files, and no others': not those of a step that died in the same container.
    pub(crate) fn began(&self, job: &Job, files: &Files) {
        let mut lineage = Vec::new();
        let mut at = self.steps[&ExecutionId::of_step(job.run, &job.step)].parent;
        while let Some(parent) = at {
            let step = &self.steps[&parent];
            if let Some(key) = &step.planned.cache_key {
                lineage.insert(0, SnapshotId::cached(&job.tenant, key).to_string());
                break;
            }
            lineage.insert(0, mark(job.run, &step.planned.name));
            at = step.parent;
        }
        assert_eq!(*files, lineage, "{} began on files that are not its parent's", job.step);
    }

    pub(crate) fn starts_from(&mut self, execution: ExecutionId, attempt: Attempt, base: &Origin) {
        let parent = self.steps[&execution].parent;
        let from = match base {
            Origin::Image { .. } => None,
            Origin::Parent { execution, attempt, .. } => Some((*execution, *attempt)),
            Origin::Snapshot { .. } => panic!("that is written no more"),
        };
        // What it is sent after is what its parent has left, last.
        let left = parent.map(|parent| self.steps[&parent].left.as_ref().expect("the parent's files are there"));
        assert_eq!(from, left.map(|left| left.of));
        assert!(left.is_none_or(|left| !left.missed && !left.dropped), "sent after what is not there: {left:?}");
        self.bases.insert((execution, attempt), from);
    }

    pub(crate) fn started(&mut self, of: Name, container: &str) {
        self.containers.insert(of, container.to_owned());
        let owner = self.tries[&of].owner.clone();
        let parent = self.steps[&of.0].parent;
        let left = parent.and_then(|parent| self.steps.get_mut(&parent)?.left.as_mut());
        let of_left = |left: &&mut LeftBehind| self.bases[&of] == Some(left.of) && Some(&left.owner) == owner.as_ref();
        if let Some(left) = left.filter(of_left)
            && left.parked
            && !left.taken
            && let Some(own) = &left.container
        {
            left.taken = own == container;
            self.taken += u64::from(left.taken);
            // Restored from what stood in a container only: so it was committed for that.
            left.committed |= !left.taken;
        }
    }

    /// Whether a step behind it may yet need its files: a child that is not settled, or one whose own files are
    /// needed and not committed.
    pub(crate) fn is_needed(&self, execution: ExecutionId) -> bool {
        self.steps[&execution].children.iter().any(|child| {
            let of = self.steps[child].remake_of.unwrap_or(*child);
            let committed = self.steps[&of].left.as_ref().is_some_and(|left| left.committed && !left.dropped);
            let passed = self.steps[child].settled == Some(Outcome::Passed);
            self.steps[child].settled.is_none() || (passed && !committed && self.is_needed(of))
        })
    }

    /// P20: what is given up is gone, or out of everybody's reach.
    pub(crate) fn left_lost(&mut self, execution: ExecutionId, reason: &str) {
        let left = self.steps.get_mut(&execution).unwrap().left.take().expect("there was something to lose");
        let gone = left.missed || (left.taken && !left.committed);
        let beside = |worker: &WorkerId| {
            !left.committed && *worker == left.owner
                || left.committed && self.engines.get(worker) == self.engines.get(&left.owner)
        };
        let out_of_reach = !self.engines.keys().any(|worker| !self.away.contains(worker) && beside(worker));
        assert!(gone || out_of_reach, "{left:?} was given up, and is there: {reason}");
        // What a step went on in is only asked for once more by a retry.
        let again = left.taken && self.asking(self.steps[&execution].run) > 0;
        assert!(again || !self.faultless, "{left:?} was lost without a fault: {reason}");
    }

    pub(crate) fn remake_begun(&mut self, run: RunId, of: ExecutionId, remake: ExecutionId) {
        let step = &self.steps[&of];
        assert_eq!(step.settled, Some(Outcome::Passed), "what never passed is made again");
        assert!(!step.planned.spec.exclusive, "an exclusive step is made again (P18)");
        assert!(step.left.as_ref().is_none_or(|left| left.dropped), "{:?} is there, and is made again", step.left);
        let waits = step.children.iter().any(|child| self.steps[child].settled.is_none());
        assert!(waits, "nobody waits for it");
        let others = self.steps.values().filter(|other| other.remake_of == Some(of));
        assert!(others.clone().all(|other| other.settled.is_some()), "two remakes at once");
        let of_asking = others.filter(|other| other.asking == self.asking(run));
        assert!(of_asking.count() < config().remakes_max as usize, "made again too often");
        let (planned, parent) = (step.planned.clone(), step.parent);
        let hidden = Step {
            run,
            planned,
            attempts: 0,
            retried: BTreeMap::new(),
            settled: None,
            last_end: None,
            open: false,
            parent,
            children: BTreeSet::new(),
            remake_of: Some(of),
            left: None,
            cancelled: false,
            asking: self.asking(run),
        };
        assert!(self.steps.insert(remake, hidden).is_none());
        self.remade += 1;
        if let Some(parent) = parent {
            self.steps.get_mut(&parent).unwrap().children.insert(remake);
        }
    }

    /// P20: only where making it again failed, or was tried often enough; or must not be tried (P18).
    pub(crate) fn lineage_is_broken(&self, child: ExecutionId) {
        let parent = self.steps[&child].parent.expect("a lineage has a parent");
        let asking = self.asking(self.steps[&child].run);
        let of_asking = |step: &&Step| step.remake_of == Some(parent) && step.asking == asking;
        let mut remakes = self.steps.values().filter(of_asking);
        let failed = |step: &Step| {
            step.settled.as_ref().is_some_and(|end| !end.is_passed() && !matches!(end, Outcome::Cancelled { .. }))
        };
        let count = remakes.clone().count();
        let never = self.steps[&parent].planned.spec.exclusive;
        let tried = count == config().remakes_max as usize || remakes.any(failed);
        assert!(never || tried, "nobody has tried to make it again");
    }
}
