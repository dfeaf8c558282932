//! What the worker's disk knows of its attempts and parked containers, as entries and as what they come to (P9, P10,
//! P19).

use std::collections::BTreeMap;

use longshore_protocol::event::{AttemptRecord, Claim, Finished, Phase, Usage};
use longshore_protocol::job::{Job, Network};
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::{Attempt, ExecutionId, Outcome, SnapshotId};
use serde::{Deserialize, Serialize};

use crate::checkpoint::Chain;
use crate::engine::ContainerName;

/// An attempt among one worker's: its fence without the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct AttemptKey {
    execution: ExecutionId,
    attempt: Attempt,
}

impl AttemptKey {
    pub(crate) fn new(execution: ExecutionId, attempt: Attempt) -> Self {
        Self { execution, attempt }
    }

    pub(crate) fn of(claim: &Claim) -> Self {
        Self::new(claim.execution, claim.attempt)
    }

    pub(super) fn spool_name(self) -> String {
        format!("{}-{}.log", self.execution.to_hex(), self.attempt)
    }
}

/// What a job claims.
pub(crate) fn claim_of(job: &Job) -> Claim {
    Claim { run: job.run, execution: job.execution, attempt: job.attempt }
}

/// One thing that the worker must still know after a crash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub(crate) enum Entry {
    /// P4: a job was taken.
    Claimed { job: Box<Job> },
    /// P19: the attempt has the parked container from now on; it is nobody's snapshot any more.
    Consumed { claim: Claim, parked: Box<Parked> },
    /// The command's process was started.
    Running { claim: Claim },
    /// Nobody wants it any more, and its command was told so: however that ends, it was cancelled.
    Cancelled { claim: Claim, by: CancelledBy },
    /// Its worker is told to end, and so was its command: however that ends, it was handed back.
    HandedBack { claim: Claim },
    /// P16: its command has ended, and the supervisor, which knew how, may forget it: the container is cleaned and
    /// committed next. An Engine goes on with a commit whatever becomes of the worker.
    Ended { claim: Claim, ended: Box<Ended> },
    /// A commit of the container that is parked for it begins.
    Committing { claim: Claim },
    /// It is over (P9), and its container is parked if that is said.
    Finished { finished: Box<Finished>, parked: Option<Box<Parked>> },
    /// Settled or abandoned.
    Forgotten { claim: Claim },
    /// A container is parked, whatever became of the attempt whose files it holds.
    Parked { parked: Box<Parked> },
    /// A parked container's files are kept under this name as well.
    Committed { claim: Claim, snapshot: SnapshotId },
    /// A parked container was removed, or is about to be.
    Unparked { claim: Claim },
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    pub(crate) exec_ms: u64,
    pub(crate) usage: Option<Usage>,
}

/// A container in which a child may go on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Parked {
    /// Whose files it holds.
    pub(crate) claim: Claim,
    /// It keeps the name of the attempt that it was made for.
    #[serde(with = "container_name")]
    pub(crate) container: ContainerName,
    /// Only this tenant's steps go on in it.
    pub(crate) tenant: String,
    /// What it can reach.
    pub(crate) network: Network,
    /// What was done in it.
    pub(crate) chain: Chain,
    /// The name of what it holds, if that was committed.
    pub(crate) committed: Option<SnapshotId>,
    /// A commit of it was begun, and may be under way: nobody goes on in it.
    #[serde(default)]
    pub(crate) committing: bool,
    /// Since when, ms since the Unix epoch.
    pub(crate) since_ms: u64,
}

/// An attempt that is not over.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Open {
    pub(crate) job: Job,
    /// P19: the container that it took.
    pub(crate) consumed: Option<Parked>,
    /// Its command was started. It may have been started also if this does not say so.
    pub(crate) running: bool,
    pub(crate) cancelled: Option<CancelledBy>,
    pub(crate) handed_back: bool,
    /// Its command has ended, and a commit of its container may be under way.
    pub(crate) ended: Option<Ended>,
}

/// What all entries come to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Records {
    attempts: BTreeMap<AttemptKey, Local>,
    parked: BTreeMap<AttemptKey, Parked>,
}

#[derive(Clone, Debug, PartialEq)]
enum Local {
    Open(Box<Open>),
    Over(Box<Finished>),
}

impl Records {
    /// Takes the next entry. One that says what is known, or that comes too late, changes nothing.
    pub(super) fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Claimed { job } => {
                let key = AttemptKey::of(&claim_of(&job));
                let open = Open {
                    job: *job,
                    consumed: None,
                    running: false,
                    cancelled: None,
                    handed_back: false,
                    ended: None,
                };
                self.attempts.insert(key, Local::Open(Box::new(open)));
            }
            Entry::Consumed { claim, parked } => {
                self.parked.remove(&AttemptKey::of(&parked.claim));
                self.change(&claim, |open| open.consumed = Some(*parked));
            }
            Entry::Running { claim } => self.change(&claim, |open| open.running = true),
            Entry::Cancelled { claim, by } => self.change(&claim, |open| open.cancelled = Some(by)),
            Entry::HandedBack { claim } => self.change(&claim, |open| open.handed_back = true),
            Entry::Ended { claim, ended } => self.change(&claim, |open| open.ended = Some(*ended)),
            Entry::Committing { claim } => {
                if let Some(parked) = self.parked.get_mut(&AttemptKey::of(&claim)) {
                    parked.committing = true;
                }
            }
            Entry::Finished { finished, parked } => {
                if let Some(parked) = parked {
                    self.parked.insert(AttemptKey::of(&parked.claim), *parked);
                }
                self.attempts.insert(AttemptKey::of(&finished.claim), Local::Over(finished));
            }
            Entry::Forgotten { claim } => {
                self.attempts.remove(&AttemptKey::of(&claim));
            }
            Entry::Parked { parked } => {
                self.parked.insert(AttemptKey::of(&parked.claim), *parked);
            }
            Entry::Committed { claim, snapshot } => {
                if let Some(parked) = self.parked.get_mut(&AttemptKey::of(&claim)) {
                    parked.committed = Some(snapshot);
                    parked.committing = false;
                }
            }
            Entry::Unparked { claim } => {
                self.parked.remove(&AttemptKey::of(&claim));
            }
        }
    }

    fn change(&mut self, claim: &Claim, change: impl FnOnce(&mut Open)) {
        if let Some(Local::Open(open)) = self.attempts.get_mut(&AttemptKey::of(claim)) {
            change(open);
        }
    }

    /// The fewest entries that come to the same.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        for local in self.attempts.values() {
            match local {
                Local::Open(open) => {
                    let Open { job, consumed, running, cancelled, handed_back, ended } = &**open;
                    let claim = claim_of(job);
                    entries.push(Entry::Claimed { job: Box::new(job.clone()) });
                    let consumed = consumed.clone().map(Box::new);
                    entries.extend(consumed.map(|parked| Entry::Consumed { claim: claim.clone(), parked }));
                    entries.extend(running.then(|| Entry::Running { claim: claim.clone() }));
                    let ended = ended.clone().map(Box::new);
                    entries.extend(ended.map(|ended| Entry::Ended { claim: claim.clone(), ended }));
                    entries.extend(handed_back.then(|| Entry::HandedBack { claim: claim.clone() }));
                    entries.extend(cancelled.clone().map(|by| Entry::Cancelled { claim, by }));
                }
                Local::Over(finished) => {
                    // What is parked stands for itself below: the attempt may be forgotten before its container.
                    entries.push(Entry::Finished { finished: finished.clone(), parked: None });
                }
            }
        }
        entries.extend(self.parked.values().map(|parked| Entry::Parked { parked: Box::new(parked.clone()) }));
        entries
    }

    /// Whose spools are kept.
    pub(super) fn keys(&self) -> impl Iterator<Item = AttemptKey> {
        self.attempts.keys().copied()
    }

    /// Those that are over and not settled (P9).
    pub(crate) fn over(&self) -> impl Iterator<Item = &Finished> {
        self.attempts.values().filter_map(|local| match local {
            Local::Over(finished) => Some(&**finished),
            Local::Open(_) => None,
        })
    }

    /// Those that are not.
    pub(crate) fn open(&self) -> impl Iterator<Item = &Open> {
        self.attempts.values().filter_map(|local| match local {
            Local::Open(open) => Some(&**open),
            Local::Over(_) => None,
        })
    }

    /// The parked containers.
    pub(crate) fn parked(&self) -> impl Iterator<Item = &Parked> {
        self.parked.values()
    }
}

impl Open {
    /// What the coordinator is told of it (P10).
    pub(crate) fn record(&self) -> AttemptRecord {
        let phase = if self.running { Phase::Running } else { Phase::Preparing };
        AttemptRecord { claim: claim_of(&self.job), phase }
    }
}

/// A container's name as text.
mod container_name {
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    use crate::engine::ContainerName;

    pub(super) fn serialize<S: Serializer>(name: &ContainerName, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(name.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ContainerName, D::Error> {
        let name = String::deserialize(deserializer)?;
        ContainerName::parse(&name).ok_or_else(|| de::Error::custom(format!("{name:?} is no container of ours")))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use longshore_protocol::event::Phases;
    use longshore_protocol::job::{Base, Command, Keep, Resources, StepSpec};
    use longshore_protocol::output::Offsets;
    use longshore_protocol::{Epoch, Fence, RunId, Shard, StepName};

    use super::*;

    impl Entry {
        /// The attempt that an entry of these tests is about.
        pub(in crate::disk) fn claim(&self) -> Claim {
            match self {
                Self::Claimed { job } => claim_of(job),
                Self::Finished { finished, .. } => finished.claim.clone(),
                Self::Parked { parked } => parked.claim.clone(),
                Self::Consumed { claim, .. }
                | Self::Running { claim }
                | Self::Cancelled { claim, .. }
                | Self::HandedBack { claim }
                | Self::Ended { claim, .. }
                | Self::Committing { claim }
                | Self::Forgotten { claim }
                | Self::Committed { claim, .. }
                | Self::Unparked { claim } => claim.clone(),
            }
        }
    }

    pub(in crate::disk) fn claimed(step: &str) -> Entry {
        let run = RunId(uuid::Uuid::nil());
        let step = StepName::from(step);
        let spec = StepSpec {
            command: Command::Argv(vec!["true".to_owned()]),
            env: indexmap::IndexMap::default(),
            workdir: None,
            user: None,
            sources: Vec::new(),
            timeout_ms: 1,
            grace_ms: 1,
            output_max: None,
            exclusive: false,
            resources: Resources::default(),
            network: Network::None,
            pool: longshore_protocol::PoolName::default(),
        };
        let job = Job {
            run,
            execution: ExecutionId::of_step(run, &step),
            step,
            attempt: Attempt(2),
            shard: Shard(0),
            epoch: Epoch(1),
            tenant: "t".to_owned(),
            spec,
            base: Base::Image { reference: "i".to_owned() },
            keep: Keep::Live,
            dispatched_at_ms: 1,
        };
        Entry::Claimed { job: Box::new(job) }
    }

    fn finished_of(step: &str) -> Finished {
        Finished {
            claim: claimed(step).claim(),
            outcome: Outcome::Passed,
            cached: false,
            output: Offsets { stdout: 5, stderr: 0 },
            snapshot: None,
            parked: true,
            phases: Phases::default(),
            usage: None,
        }
    }

    pub(crate) fn parked_of(step: &str) -> Parked {
        let claim = claimed(step).claim();
        let fence = Fence { execution: claim.execution, attempt: claim.attempt, owner: "w".parse().unwrap() };
        Parked {
            container: ContainerName::of(&fence),
            claim,
            tenant: "t".to_owned(),
            network: Network::None,
            chain: Chain { ran_ms: 7, layer_bytes: Some(9) },
            committed: None,
            committing: false,
            since_ms: 3,
        }
    }

    /// Over, and its container parked.
    pub(in crate::disk) fn finished(step: &str) -> Entry {
        Entry::Finished { finished: Box::new(finished_of(step)), parked: Some(Box::new(parked_of(step))) }
    }

    fn folded(entries: impl IntoIterator<Item = Entry>) -> Records {
        let mut records = Records::default();
        entries.into_iter().for_each(|entry| records.apply(entry));
        records
    }

    /// A parent that is parked, and a child that takes it and is cancelled.
    fn life() -> Vec<Entry> {
        let child = claimed("child").claim();
        let ended = Ended { outcome: Outcome::Passed, exec_ms: 5, usage: None };
        vec![
            claimed("parent"),
            Entry::Running { claim: claimed("parent").claim() },
            Entry::Ended { claim: claimed("parent").claim(), ended: Box::new(ended) },
            finished("parent"),
            Entry::Committing { claim: claimed("parent").claim() },
            Entry::Committed { claim: claimed("parent").claim(), snapshot: SnapshotId("s".to_owned()) },
            claimed("child"),
            Entry::Consumed { claim: child.clone(), parked: Box::new(parked_of("parent")) },
            Entry::Running { claim: child.clone() },
            Entry::Cancelled { claim: child.clone(), by: CancelledBy::User },
            Entry::HandedBack { claim: child.clone() },
            Entry::Forgotten { claim: claimed("parent").claim() },
            finished("child"),
            Entry::Forgotten { claim: child.clone() },
            Entry::Unparked { claim: child },
        ]
    }

    #[test]
    fn p9_every_state_comes_to_entries_that_come_to_it() {
        let life = life();
        for length in 0..=life.len() {
            let records = folded(life[..length].iter().cloned());
            assert_eq!(folded(records.entries()), records, "after {length} entries");
        }
        assert_eq!(folded(life), Records::default());
    }

    #[test]
    fn p19_a_consumed_container_is_the_childs_alone() {
        let life = life();
        let records = folded(life[..6].iter().cloned());
        let parked: Vec<_> = records.parked().collect();
        assert_eq!((&parked[0].committed, parked[0].committing), (&Some(SnapshotId("s".to_owned())), false));
        assert!(folded(life[..5].iter().cloned()).parked().all(|parked| parked.committing));
        let records = folded(life[..8].iter().cloned());
        assert_eq!(records.parked().count(), 0);
        let open: Vec<_> = records.open().collect();
        assert_eq!(open[0].consumed.as_ref().map(|parked| &parked.container), Some(&parked_of("parent").container));
        // Late news of the parent's bring it back to nobody.
        let late = Entry::Committed { claim: claimed("parent").claim(), snapshot: SnapshotId("s".to_owned()) };
        assert_eq!(folded(life[..8].iter().cloned().chain([late])), records);
    }
}
