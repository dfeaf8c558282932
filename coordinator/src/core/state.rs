//! What the journal adds up to. It changes by [`State::apply`] alone, in `fold.rs`.

use std::collections::BTreeMap;

use longshore_protocol::event::{Claim, Hello};
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::{Attempt, EngineId, ExecutionId, Incarnation, Outcome, RunId, SnapshotId, WorkerId};

use super::effect::JobQueue;
use super::entry::{End, LogGap};
use super::graph::Graph;
use super::input::Millis;
use super::view::RunOutcome;
use crate::pipeline::{Pipeline, PlannedStep, SnapshotRule};

/// Every run that was not forgotten, and every worker ever heard of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    pub(super) runs: BTreeMap<RunId, Run>,
    pub(super) workers: BTreeMap<WorkerId, Worker>,
}

/// Names an attempt within the core: shorter than a [`Claim`], and it finds its place without a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) run: RunId,
    pub(super) step: usize,
    pub(super) attempt: Attempt,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Run {
    pub(super) tenant: String,
    pub(super) pipeline: Box<Pipeline>,
    pub(super) graph: Graph,
    pub(super) submitted_at: Millis,
    pub(super) settled_at: Option<Millis>,
    pub(super) outcome: Option<RunOutcome>,
    /// The user asked for its end.
    pub(super) cancelled: bool,
    /// The first step whose failure ended the others.
    pub(super) failed_first: Option<String>,
    /// INVARIANT: one per step of the pipeline, in its order.
    pub(super) steps: Vec<Step>,
    pub(super) indices: BTreeMap<ExecutionId, usize>,
    pub(super) tally: Tally,
    /// Attempts that have an owner and whose log is open (P14).
    pub(super) logs_open: u32,
}

/// How many steps are settled, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Tally {
    pub(super) settled: u32,
    pub(super) failed: u32,
    pub(super) infra: u32,
    pub(super) cancelled: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) execution: ExecutionId,
    pub(super) stage: Stage,
    /// Steps it waits for that have not passed yet.
    pub(super) waits: u32,
    /// Steps that go on with its files and are not settled yet.
    pub(super) children: u32,
    /// INVARIANT: the n-th is attempt n.
    pub(super) attempts: Vec<Try>,
    pub(super) outcome: Option<Outcome>,
    pub(super) charged: Charged,
    /// What it left when it passed.
    pub(super) left: Option<Left>,
}

/// Where a step is between two decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// No attempt is under way; the next one may begin at this moment.
    Waiting { not_before: Millis },
    /// Its last attempt is current.
    Current,
    /// Its last attempt is over, and what follows from that is not decided.
    Over,
    /// For good.
    Settled,
}

/// What its retries were charged to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Charged {
    pub(super) infra: u32,
    pub(super) user: u32,
    /// Charged to nobody, counted for the backoff.
    pub(super) gone: u32,
    /// Owners that were lost on it.
    pub(super) lost: u32,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Try {
    /// `None` for one that found no worker to be sent to.
    pub(super) queue: Option<JobQueue>,
    pub(super) dispatched_at: Millis,
    /// INVARIANT: never changes once it is set (P5).
    pub(super) owner: Option<WorkerId>,
    pub(super) accepted_at: Option<Millis>,
    pub(super) started_at: Option<Millis>,
    pub(super) container: Option<String>,
    /// INVARIANT: never changes once it is set (P11).
    pub(super) end: Option<End>,
    pub(super) ended_at: Option<Millis>,
    pub(super) log: Option<LogGap>,
}

/// The files of a step that passed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Left {
    pub(super) snapshot: SnapshotId,
    pub(super) engine: EngineId,
    pub(super) worker: WorkerId,
    pub(super) dropped: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Worker {
    pub(super) incarnation: Incarnation,
    pub(super) hello: Hello,
    /// Its events up to here are in (P9).
    pub(super) number: u64,
    /// INVARIANT: between two inputs, one that is not alive owns no attempt that is not over, or nobody would
    /// ever end it.
    pub(super) alive: bool,
    /// The current attempts it owns, with the number from which on it must report them (P7).
    pub(super) owned: BTreeMap<Key, u64>,
    /// The attempts it owned that are over, their logs open; with the same number.
    pub(super) spooled: BTreeMap<Key, u64>,
}

/// Where a worker stands towards an attempt (P12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// No such attempt: its run was forgotten, or never was.
    Unknown,
    /// Current, and nobody's yet.
    Ownerless(Key),
    /// Current, and this worker's.
    Owner(Key),
    /// Over by this worker's own `finished`.
    Finisher(Key),
    /// Another's, or over without a word of this worker.
    Stale,
}

impl State {
    pub(super) fn key(&self, claim: &Claim) -> Option<Key> {
        let run = self.runs.get(&claim.run)?;
        let step = *run.indices.get(&claim.execution)?;
        run.steps[step].attempt(claim.attempt)?;
        Some(Key { run: claim.run, step, attempt: claim.attempt })
    }

    /// INVARIANT: a key is only ever made of an attempt that exists, and lives no longer than its run.
    pub(super) fn attempt(&self, key: Key) -> &Try {
        let run = self.runs.get(&key.run).expect("a key's run is in memory");
        run.steps[key.step].attempt(key.attempt).expect("a key's attempt exists")
    }

    pub(super) fn step(&self, run: RunId, step: usize) -> &Step {
        &self.runs.get(&run).expect("an indexed run is in memory").steps[step]
    }

    pub(super) fn claim(&self, key: Key) -> Claim {
        Claim { run: key.run, execution: self.step(key.run, key.step).execution, attempt: key.attempt }
    }

    /// P12: what a worker may say of an attempt.
    pub(super) fn standing(&self, worker: &WorkerId, claim: &Claim) -> Standing {
        let Some(key) = self.key(claim) else { return Standing::Unknown };
        let attempt = self.attempt(key);
        match (&attempt.end, &attempt.owner) {
            (None, None) => Standing::Ownerless(key),
            (None, Some(owner)) if owner == worker => Standing::Owner(key),
            (Some(End::Finished { .. }), Some(owner)) if owner == worker => Standing::Finisher(key),
            _ => Standing::Stale,
        }
    }
}

impl Run {
    /// Who wants the end of a step. A step that keeps going only listens to the user.
    pub(super) fn cancelled_by(&self, step: usize) -> Option<CancelledBy> {
        if self.cancelled {
            return Some(CancelledBy::User);
        }
        let failed = self.failed_first.as_ref()?;
        (!self.pipeline.steps[step].keep_going).then(|| CancelledBy::Sibling(failed.clone()))
    }

    pub(super) fn planned(&self, step: usize) -> &PlannedStep {
        &self.pipeline.steps[step]
    }

    /// The verdict, once every step is settled. Skipped steps only ever follow another that did not pass.
    pub(super) fn verdict(&self) -> RunOutcome {
        match self.tally {
            Tally { failed: 1.., .. } => RunOutcome::Failed,
            Tally { infra: 1.., .. } => RunOutcome::Infra,
            Tally { cancelled: 1.., .. } => RunOutcome::Cancelled,
            Tally { .. } => RunOutcome::Passed,
        }
    }

    /// Whether what a step left is nobody's but its children's: neither cached nor kept for people.
    pub(super) fn leaves_ephemeral(&self, step: usize) -> bool {
        let planned = self.planned(step);
        planned.cache_key.is_none() && planned.snapshot == SnapshotRule::Auto
    }
}

impl Step {
    pub(super) fn attempt(&self, attempt: Attempt) -> Option<&Try> {
        self.attempts.get((attempt.0 as usize).checked_sub(1)?)
    }

    /// The number of the last attempt; 0 before the first.
    pub(super) fn last(&self) -> Attempt {
        Attempt(u32::try_from(self.attempts.len()).expect("attempts are counted in 32 bits"))
    }
}

impl Try {
    pub(super) fn new(queue: Option<JobQueue>, dispatched_at: Millis) -> Self {
        Self {
            queue,
            dispatched_at,
            owner: None,
            accepted_at: None,
            started_at: None,
            container: None,
            end: None,
            ended_at: None,
            log: None,
        }
    }

    /// How it ended, as its step would be settled by it. `None` while it is not over, and where it reached nobody.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        match self.end.as_ref()? {
            End::Finished { outcome, .. } => Some(outcome.clone()),
            End::Lost { reason } => Some(Outcome::infra(longshore_protocol::InfraStage::Lease, reason.clone())),
            End::Gone { .. } | End::Withdrawn => None,
        }
    }
}
