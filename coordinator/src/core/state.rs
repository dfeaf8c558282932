//! What the journal adds up to. It changes by [`State::apply`] alone, in `fold.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;

use foldhash::fast::FixedState;
use indexmap::IndexSet;
use longshore_protocol::breach::{self, Breach};
use longshore_protocol::event::{Claim, Hello};
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::{Attempt, ExecutionId, Incarnation, Outcome, RunId, StepName, WorkerId};

use super::effect::JobQueue;
use super::entry::{End, LogGap, Origin};
use super::graph::Graph;
use super::input::Millis;
use super::left::Left;
use super::plan::{Plan, Planned};
use super::view::RunOutcome;
use crate::pipeline::Retry;

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
    pub(super) tenant: Arc<str>,
    pub(super) pipeline: Plan,
    pub(super) graph: Graph,
    pub(super) submitted_at: Millis,
    pub(super) settled_at: Option<Millis>,
    /// When it was opened again last, and how often.
    pub(super) retried_at: Option<Millis>,
    pub(super) retries: u32,
    pub(super) outcome: Option<RunOutcome>,
    /// The user asked for the end of all of it.
    pub(super) cancelled: bool,
    /// It took longer than its timeout, and nobody had asked for its end before.
    pub(super) timed_out: bool,
    /// The first step whose failure ended the others.
    pub(super) failed_first: Option<String>,
    /// INVARIANT: one per step of the pipeline, in its order; behind them the hidden ones that make again what a
    /// step left (P20), in the order in which they were begun.
    pub(super) steps: Vec<Step>,
    /// INVARIANT: of the steps, in their order. A hash that does not vary, so that nothing does; whoever made names that
    /// meet in it would slow down the look-ups of their own run, of ten thousand steps at most.
    pub(super) executions: IndexSet<ExecutionId, FixedState>,
    /// Of the pipeline's steps.
    pub(super) tally: Tally,
    /// Hidden steps that are not settled.
    pub(super) remaking: u32,
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
    /// Since when it could be dispatched: what it waits for had passed, the backoff of its retry was over. Of no meaning
    /// before. A job that reached nobody (P6) changes nothing about it.
    pub(super) ready_at: Millis,
    /// Steps that go on with its files and are not settled yet.
    pub(super) children: u32,
    /// Steps for whose sake its files stay: its children that are not settled, and those whose own files are wanted
    /// and stand nowhere but in a container, which a fault may take (P20).
    pub(super) holds: u32,
    /// Whether it is one of its parent's `holds`.
    pub(super) holding: bool,
    /// INVARIANT: the n-th is attempt n.
    pub(super) attempts: Vec<Try>,
    pub(super) outcome: Option<Outcome>,
    /// The user asked for its end, and not for its run's.
    pub(super) cancelled: bool,
    pub(super) charged: Charged,
    /// What it left when it passed; or what was made again since. Boxed: of a million steps few have left something.
    pub(super) left: Option<Box<Left>>,
    /// Of a hidden step: the step whose files it makes again.
    pub(super) remake_of: Option<usize>,
    /// The hidden steps that made its files again, in order. INVARIANT: only the last may be unsettled.
    pub(super) remakes: Vec<usize>,
    /// How many of them there were when its run was opened again: they do not count towards their bound any more.
    pub(super) remakes_before: usize,
    /// Making it again failed: nobody tries that any more.
    pub(super) broken: bool,
    /// Why what it left is lost; of a hidden step, why that which it makes again was. For people.
    pub(super) lost: Option<String>,
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
    /// `None` likewise.
    pub(super) base: Option<Origin>,
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
        let step = run.find(&claim.execution)?;
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
            (None, Some(owner)) if owner == worker || breach::is(Breach::NoOwnerInFence) => Standing::Owner(key),
            (Some(End::Finished { .. }), Some(owner)) if owner == worker => Standing::Finisher(key),
            _ => Standing::Stale,
        }
    }
}

impl Run {
    /// The step that an execution carries out.
    pub(super) fn find(&self, execution: &ExecutionId) -> Option<usize> {
        self.executions.get_index_of(execution)
    }

    /// The step that an entry is about.
    pub(super) fn index(&self, execution: &ExecutionId) -> usize {
        self.find(execution).expect("the state took the entry, so its run has the step")
    }

    /// Who wants the end of a step. A step that keeps going only listens to the user; one that makes again what
    /// another left goes on while somebody waits for that.
    pub(super) fn cancelled_by(&self, step: usize) -> Option<CancelledBy> {
        if self.cancelled || self.steps[step].cancelled {
            return Some(CancelledBy::User);
        }
        if self.timed_out {
            return Some(CancelledBy::RunTimeout);
        }
        if let Some(of) = self.steps[step].remake_of {
            return (self.steps[of].children == 0).then(|| self.left_by(of));
        }
        let failed = self.failed_first.as_ref()?;
        (!self.pipeline.steps[step].keep_going).then(|| CancelledBy::Sibling(failed.clone()))
    }

    /// Why nobody waits for what a step left any more: the failure that ended its children.
    fn left_by(&self, step: usize) -> CancelledBy {
        let mut children = self.children_of(step).filter_map(|child| self.steps[child].outcome.as_ref());
        let because = children.find_map(|outcome| match outcome {
            Outcome::Skipped { because } => Some(because.clone()),
            _ => None,
        });
        because.or_else(|| self.failed_first.clone()).map_or(CancelledBy::User, CancelledBy::Sibling)
    }

    /// The step of the pipeline that a hidden one stands for; any other stands for itself.
    pub(super) fn original(&self, step: usize) -> usize {
        self.steps[step].remake_of.unwrap_or(step)
    }

    /// As the pipeline has it; of a hidden step, what it makes again.
    pub(super) fn planned(&self, step: usize) -> &Planned {
        &self.pipeline.steps[self.original(step)]
    }

    /// The user's rule for trying it again. None for a remaking: that is the fleet's own doing (P20).
    pub(super) fn users_rule(&self, step: usize) -> Option<&Retry> {
        self.steps[step].remake_of.is_none().then(|| &self.pipeline.steps[step].retry)
    }

    /// The step whose files it goes on with.
    pub(super) fn parent(&self, step: usize) -> Option<usize> {
        self.graph.parent[self.original(step)]
    }

    /// As people see it: `build`, or `build~2` for the second remaking of what `build` left. `~` is in no step's name.
    pub(super) fn log_name(&self, step: usize) -> StepName {
        let name = &self.planned(step).name;
        let Some(of) = self.steps[step].remake_of else { return name.clone() };
        let n = self.steps[of].remakes.iter().take_while(|remake| **remake != step).count() + 1;
        StepName::from(format!("{name}~{n}"))
    }

    /// Whether the run is over but for its verdict: nothing of it will be carried out any more.
    pub(super) fn all_settled(&self) -> bool {
        self.tally.settled as usize == self.pipeline.steps.len() && self.remaking == 0
    }

    /// The verdict, once every step is settled. Skipped steps only ever follow another that did not pass.
    pub(super) fn verdict(&self) -> RunOutcome {
        match self.tally {
            Tally { failed: 1.., .. } => RunOutcome::Failed,
            Tally { cancelled: 1.., .. } if self.timed_out => RunOutcome::TimedOut,
            Tally { infra: 1.., .. } => RunOutcome::Infra,
            Tally { cancelled: 1.., .. } => RunOutcome::Cancelled,
            Tally { .. } => RunOutcome::Passed,
        }
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

    pub(super) fn new(execution: ExecutionId, waits: u32, children: u32, remake_of: Option<usize>) -> Self {
        Self {
            execution,
            stage: Stage::Waiting { not_before: 0 },
            waits,
            ready_at: 0,
            children,
            holds: children,
            holding: true,
            attempts: Vec::new(),
            outcome: None,
            cancelled: false,
            charged: Charged::default(),
            left: None,
            remake_of,
            remakes: Vec::new(),
            remakes_before: 0,
            broken: false,
            lost: None,
        }
    }
}

impl Try {
    pub(super) fn new(queue: Option<JobQueue>, base: Option<Origin>, dispatched_at: Millis) -> Self {
        Self {
            queue,
            base,
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
            End::Expired { reason } => Some(Outcome::infra(longshore_protocol::InfraStage::Queue, reason.clone())),
            End::Gone { .. } | End::Withdrawn => None,
        }
    }
}
