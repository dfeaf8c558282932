//! What became of a step, read from its run's journal.

use longshore_protocol::outcome::{CancelledBy, LINEAGE, SNAPSHOT_LOST};
use longshore_protocol::{Attempt, ExecutionId, Outcome, RunId, StepName, WorkerId};

use super::standing::{Standing, Steps};
use super::words::{self, list, time, times};
use super::{About, Charge, Told};
use crate::core::effect::JobQueue;
use crate::core::entry::{CacheLook, End, Entry, Origin, RetryCause};
use crate::core::input::Millis;
use crate::core::retry::Missed;
use crate::core::view::StepPhase;
use crate::logs::read::{gap_text, missing};
use crate::pipeline::{Parent, Pipeline, PlannedStep};

/// The fold of a run's entries, as far as they concern one step.
pub(super) struct Tale<'a> {
    run: RunId,
    pub(super) told: Vec<Told>,
    /// The step itself.
    execution: ExecutionId,
    step: &'a PlannedStep,
    /// The step whose files it goes on with.
    parent: Option<ExecutionId>,
    pub(super) steps: Steps<'a>,
    /// Its own last attempt.
    pub(super) attempt: Option<Try<'a>>,
    pub(super) backoff_until: Option<Millis>,
    pub(super) retries: Retries,
    /// Whose leases ended while they carried it out.
    lost_with: Vec<&'a WorkerId>,
    cancelled_at: Option<Millis>,
}

/// What its last attempt came to so far.
#[derive(Clone, Debug)]
pub(super) struct Try<'a> {
    pub(super) number: Attempt,
    pub(super) queue: &'a JobQueue,
    pub(super) dispatched_at: Millis,
    pub(super) owner: Option<&'a WorkerId>,
    accepted_at: Option<Millis>,
    started_at: Option<Millis>,
    cache: Option<&'a CacheLook>,
}

/// How often it was tried again, by whose rule.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Retries {
    pub(super) infra: u32,
    pub(super) user: u32,
}

impl<'a> Tale<'a> {
    /// `None` if the run has no such step.
    pub(super) fn of(
        run: RunId,
        name: &StepName,
        entries: impl IntoIterator<Item = &'a (Millis, Entry)>,
    ) -> Option<Self> {
        let mut tale: Option<Self> = None;
        for (at, entry) in entries {
            match (&mut tale, entry) {
                (_, entry) if entry.run() != Some(run) => {}
                (None, Entry::Submitted { pipeline, .. }) => tale = Some(Self::begin(run, pipeline, name, *at)?),
                (Some(tale), entry) => tale.take(*at, entry),
                (None, _) => {}
            }
        }
        tale
    }

    fn begin(run: RunId, pipeline: &'a Pipeline, name: &StepName, at: Millis) -> Option<Self> {
        let step = pipeline.steps.iter().find(|step| step.name == *name)?;
        let parent = match &step.parent {
            Parent::Step(parent) => Some(ExecutionId::of_step(run, parent)),
            Parent::Image(_) => None,
        };
        let mut tale = Self {
            run,
            told: Vec::new(),
            execution: ExecutionId::of_step(run, name),
            step,
            parent,
            steps: Steps::before(step.waits_for().map(|name| (ExecutionId::of_step(run, name), name))),
            attempt: None,
            backoff_until: None,
            retries: Retries::default(),
            lost_with: Vec::new(),
            cancelled_at: None,
        };
        let waits = list(step.waits_for());
        let waits =
            if waits.is_empty() { "it waits for no other step".to_owned() } else { format!("it waits for {waits}") };
        tale.tell(at, About::Asked, format!("the run was submitted; {waits}"));
        Some(tale)
    }

    /// What the step is doing.
    pub(super) fn phase(&self) -> StepPhase {
        self.standing(self.execution).phase
    }

    pub(super) fn outcome(&self) -> Option<Outcome> {
        self.standing(self.execution).outcome.cloned()
    }

    pub(super) fn standing(&self, execution: ExecutionId) -> Standing<'a> {
        self.steps.standing(execution)
    }

    /// What it waits for that has not passed, each with how it stands.
    pub(super) fn waits_for(&self) -> Vec<(&'a StepName, Standing<'a>)> {
        self.steps.missing().collect()
    }

    /// The remake of its parent's files that is under way, by its name.
    pub(super) fn remake_of_parent(&self) -> Option<String> {
        let remake = self.steps.remakes_of(self.parent?).find(|remake| !self.steps.is_settled(*remake))?;
        Some(self.name_of(remake))
    }

    pub(super) fn cancelled_at(&self) -> Option<Millis> {
        self.cancelled_at
    }

    /// P18: whether it must never run twice at once.
    pub(super) fn is_exclusive(&self) -> bool {
        self.step.spec.exclusive
    }

    /// Of whose pool it needs a worker.
    pub(super) fn pool(&self) -> &'a longshore_protocol::PoolName {
        &self.step.spec.pool
    }

    /// The step whose files it goes on with.
    pub(super) fn parent_name(&self) -> Option<&'a StepName> {
        match &self.step.parent {
            Parent::Step(parent) => Some(parent),
            Parent::Image(_) => None,
        }
    }

    fn tell(&mut self, at_ms: Millis, about: About, text: String) {
        self.told.push(Told { at_ms, about, attempt: None, charge: None, cause: None, text });
    }

    fn tell_of(&mut self, at_ms: Millis, about: About, attempt: Attempt, text: String) {
        self.told.push(Told { at_ms, about, attempt: Some(attempt), charge: None, cause: None, text });
    }

    /// `build`, or `build~1`: of the step itself, of what it waits for, and of their remakes.
    fn name_of(&self, execution: ExecutionId) -> String {
        if let Some((of, n)) = self.steps.remake(execution) {
            return format!("{}~{n}", self.name_of(of));
        }
        let own = (execution == self.execution).then_some(&self.step.name);
        own.or_else(|| self.steps.name_before(execution)).map(ToString::to_string).unwrap_or_default()
    }

    fn take(&mut self, at: Millis, entry: &'a Entry) {
        self.steps.note(entry);
        match entry {
            Entry::CancelAsked { by, .. } => self.cancel_asked(at, by),
            Entry::StepCancelAsked { execution, .. } if *execution == self.execution => {
                self.cancelled_at = Some(at);
                self.tell(at, About::Cancelled, "the user asked for its end".to_owned());
            }
            Entry::RetryAsked { only, steps, .. } => self.retry_asked(at, only, steps),
            Entry::Dispatched { execution, attempt, queue, base, cache, .. } if *execution == self.execution => {
                self.dispatched(at, *attempt, queue, base, cache.as_ref());
            }
            Entry::Accepted { execution, attempt, worker, .. } if *execution == self.execution => {
                let Some(current) = &mut self.attempt else { return };
                (current.owner, current.accepted_at) = (Some(worker), Some(at));
                let waited = time(at.saturating_sub(current.dispatched_at));
                let text = format!("{} claimed attempt {attempt}, which had waited {waited}", words::worker(worker));
                self.tell_of(at, About::Claimed, *attempt, text);
            }
            Entry::Started { execution, attempt, .. } if *execution == self.execution => {
                let Some(current) = &mut self.attempt else { return };
                current.started_at = Some(at);
                let took = time(at.saturating_sub(current.accepted_at.unwrap_or(at)));
                let text = format!("its command began; to prepare its container had taken {took}");
                self.tell_of(at, About::Started, *attempt, text);
            }
            Entry::Ended { execution, attempt, end, .. } if *execution == self.execution => {
                self.ended(at, *attempt, end);
            }
            Entry::Retried { execution, because, not_before_ms, .. } if *execution == self.execution => {
                self.retried(at, *because, *not_before_ms);
            }
            Entry::Settled { execution, outcome, .. } => self.settled(at, *execution, outcome),
            Entry::LogClosed { execution, attempt, gap, .. } if *execution == self.execution => {
                if let Some(missing) = missing(*gap) {
                    let text = format!("its log ends with a gap: {}", gap_text(missing).trim_start_matches("… "));
                    self.tell_of(at, About::Log, *attempt, text);
                }
            }
            Entry::LeftLost { execution, reason, .. } if self.is_own_or_parent(*execution) => {
                let text = format!("what {} had left was lost: {reason}", self.whose(*execution));
                self.tell(at, About::Files, text);
            }
            Entry::RemakeBegun { execution, remake, .. } if self.is_own_or_parent(*execution) => {
                let whose = self.whose(*execution);
                let text = format!("what {whose} had left is made again, as {}", self.name_of(*remake));
                self.tell(at, About::Files, text);
            }
            _ => {}
        }
    }

    fn is_own_or_parent(&self, execution: ExecutionId) -> bool {
        execution == self.execution || Some(execution) == self.parent
    }

    fn whose(&self, execution: ExecutionId) -> String {
        if execution == self.execution { "it".to_owned() } else { self.name_of(execution) }
    }

    fn cancel_asked(&mut self, at: Millis, by: &CancelledBy) {
        if self.steps.is_settled(self.execution) {
            return;
        }
        let text = match by {
            CancelledBy::RunTimeout => "the run had taken longer than its timeout".to_owned(),
            CancelledBy::User => "the user asked for the end of the run".to_owned(),
            CancelledBy::Sibling(failed) if failed == self.step.name.as_str() => return,
            CancelledBy::Sibling(failed) if self.step.keep_going => {
                format!("{failed} failed, which ends the rest of the run; but this step keeps going")
            }
            CancelledBy::Sibling(failed) => format!("{failed} failed, which ends the rest of the run"),
        };
        if !matches!(by, CancelledBy::Sibling(_)) || !self.step.keep_going {
            self.cancelled_at = Some(at);
        }
        self.tell(at, About::Cancelled, text);
    }

    fn retry_asked(&mut self, at: Millis, only: &[Missed], steps: &[ExecutionId]) {
        self.cancelled_at = None;
        if !steps.contains(&self.execution) {
            return;
        }
        (self.retries, self.attempt, self.backoff_until) = (Retries::default(), None, None);
        self.lost_with.clear();
        let word = |missed: &Missed| match missed {
            Missed::Failed => "failed",
            Missed::Infra => "infra",
            Missed::Missing => "missing",
        };
        let which = match only {
            [] => "everything that had not passed".to_owned(),
            only => format!("what was {}, and what waits for that", list(only.iter().map(word))),
        };
        let text = format!("somebody had {which} tried again; what was charged before is forgiven");
        self.tell(at, About::Asked, text);
    }

    fn dispatched(
        &mut self,
        at: Millis,
        attempt: Attempt,
        queue: &'a JobQueue,
        base: &Origin,
        cache: Option<&'a CacheLook>,
    ) {
        self.backoff_until = None;
        self.attempt = Some(Try {
            number: attempt,
            queue,
            dispatched_at: at,
            owner: None,
            accepted_at: None,
            started_at: None,
            cache,
        });
        let parent = self.parent_name().map(ToString::to_string).unwrap_or_default();
        let because = match (base, queue) {
            (Origin::Parent { .. } | Origin::Snapshot { .. }, JobQueue::Worker(_)) => {
                format!(", beside what {parent} left")
            }
            (Origin::Image { .. }, JobQueue::Worker(_)) => ", which reported what was kept under its key".to_owned(),
            _ => String::new(),
        };
        let text = format!("attempt {attempt} was put on {}{because}", words::queue(queue));
        self.tell_of(at, About::Dispatched, attempt, text);
    }

    fn ended(&mut self, at: Millis, attempt: Attempt, end: &'a End) {
        let current = self.attempt.take();
        let ran = current.as_ref().and_then(|current| current.started_at).map(|began| at.saturating_sub(began));
        let after = ran.map(|ran| format!(" after {}", time(ran))).unwrap_or_default();
        let owner = current.as_ref().and_then(|current| current.owner);
        let (charge, text) = match end {
            End::Finished { outcome: Outcome::Passed, cached: true, .. } => {
                self.cache(at, attempt, "what was kept under its key was there, so nothing had to run".to_owned());
                return;
            }
            End::Finished { outcome, .. } => {
                if let Some(current) = &current {
                    self.cache_missed(at, current);
                }
                let charge = match outcome {
                    outcome if outcome.is_handed_back() || outcome.is_go_void() => Some(Charge::Nobody),
                    Outcome::Infra { reason, .. }
                        if reason.starts_with(SNAPSHOT_LOST) || reason.starts_with(LINEAGE) =>
                    {
                        Some(Charge::Nobody)
                    }
                    outcome if outcome.is_infra() => Some(Charge::Fleet),
                    outcome if outcome.is_users_failure() => Some(Charge::User),
                    _ => None,
                };
                (charge, finished_words(outcome, attempt, &after, owner))
            }
            End::Lost { reason } => {
                self.lost_with.extend(owner);
                let with = owner.map(words::worker).unwrap_or_default();
                (Some(Charge::Fleet), format!("attempt {attempt} was lost with {with}{after}: {reason}"))
            }
            End::Gone { reason } => {
                (Some(Charge::Nobody), format!("the job of attempt {attempt} reached nobody: {reason}"))
            }
            End::Expired { reason } => (Some(Charge::Fleet), format!("attempt {attempt} was given up: {reason}")),
            End::Withdrawn => (None, format!("attempt {attempt} was called off before anybody had claimed it")),
        };
        let whose = match charge {
            Some(Charge::Fleet) => " (the fleet's fault)",
            Some(Charge::User) => " (its own fault)",
            Some(Charge::Nobody) => " (charged to nobody)",
            None => "",
        };
        let text = format!("{text}{whose}");
        self.told.push(Told { at_ms: at, about: About::Ended, attempt: Some(attempt), charge, cause: None, text });
    }

    fn cache(&mut self, at: Millis, attempt: Attempt, text: String) {
        self.tell_of(at, About::Cache, attempt, text);
    }

    /// Why a step that has a key ran all the same.
    fn cache_missed(&mut self, at: Millis, current: &Try<'a>) {
        let (Some(key), Some(_)) = (&self.step.cache_key, current.started_at) else { return };
        let head = format!("nothing was found under its key {key}");
        let text = match current.cache {
            None => format!("{head} where it ran"),
            Some(look) => format!("{head}: {}", look_words(look, current.owner, self.step)),
        };
        self.cache(at, current.number, text);
    }

    fn retried(&mut self, at: Millis, because: RetryCause, not_before: Millis) {
        self.backoff_until = (not_before > at).then_some(not_before);
        let by = match because {
            RetryCause::Infra => {
                self.retries.infra += 1;
                format!("the fleet tries it again ({})", times(self.retries.infra))
            }
            RetryCause::User => {
                self.retries.user += 1;
                format!("its own rule has it tried again ({} of {})", self.retries.user, self.step.retry.max)
            }
            RetryCause::Gone => "it is sent out anew, charged to nobody".to_owned(),
            RetryCause::Lineage => {
                "it is sent out anew when its parent's files are there, charged to nobody".to_owned()
            }
            RetryCause::HandedBack => "another worker is asked, charged to nobody".to_owned(),
            RetryCause::GoVoid => "it is sent out anew, charged to nobody, because no go had come in time".to_owned(),
        };
        let wait = if not_before > at { format!(", after a wait of {}", time(not_before - at)) } else { String::new() };
        let told = Told {
            at_ms: at,
            about: About::Retried,
            attempt: None,
            charge: None,
            cause: Some(because),
            text: format!("{by}{wait}"),
        };
        self.told.push(told);
    }

    fn settled(&mut self, at: Millis, execution: ExecutionId, outcome: &Outcome) {
        if let Some((of, _)) = self.steps.remake(execution) {
            if self.is_own_or_parent(of) {
                let ended = if outcome.is_passed() { "is there again".to_owned() } else { words::ended(outcome) };
                let text = format!("what {} had left: {} {ended}", self.whose(of), self.name_of(execution));
                self.tell(at, About::Files, text);
            }
        } else if execution == self.execution {
            self.settled_itself(at, outcome);
        } else if outcome.is_passed()
            && self.steps.is_complete()
            && let Some(name) = self.steps.name_before(execution)
        {
            self.tell(at, About::Waits, format!("{name} passed: nothing that it waited for is missing any more"));
        }
    }

    fn settled_itself(&mut self, at: Millis, outcome: &Outcome) {
        let text = match outcome {
            Outcome::Passed => "it passed".to_owned(),
            Outcome::Skipped { because } => {
                let of = self.standing(ExecutionId::of_step(self.run, &because.as_str().into())).outcome;
                let how = of.map(|outcome| format!(", which {}", words::ended(outcome))).unwrap_or_default();
                format!("it was skipped, because it waits for {because}{how}")
            }
            Outcome::Cancelled { by: CancelledBy::User } => "it was cancelled by the user".to_owned(),
            Outcome::Cancelled { by: CancelledBy::RunTimeout } => {
                "it was cancelled by the timeout of its run".to_owned()
            }
            Outcome::Cancelled { by: CancelledBy::Sibling(failed) } => {
                format!("it was cancelled, because {failed} failed and neither of the two has keep_going")
            }
            outcome if outcome.is_poison() => format!("it is not tried any more: {}", words::ended(outcome)),
            outcome if outcome.is_infra() => {
                let tried = match self.retries.infra {
                    0 => String::new(),
                    n => format!(", though the fleet had tried it again {}", times(n)),
                };
                format!("it {}{tried}", words::ended(outcome))
            }
            failure => format!("it {}; {}", words::ended(failure), self.no_retry(failure)),
        };
        self.tell(at, About::Settled, text);
    }

    /// Why the user's rule did not try it (again).
    fn no_retry(&self, failure: &Outcome) -> String {
        let rule = &self.step.retry;
        if self.cancelled_at.is_some() {
            "nobody wanted it any more".to_owned()
        } else if rule.max == 0 {
            "it has no rule to try it again".to_owned()
        } else if !rule.covers(failure) {
            "its rule does not try it again after that".to_owned()
        } else if rule.max == 1 {
            "its rule's one retry is used up".to_owned()
        } else {
            format!("its rule's {} retries are used up", rule.max)
        }
    }
}

fn finished_words(outcome: &Outcome, attempt: Attempt, after: &str, owner: Option<&WorkerId>) -> String {
    let on = owner.map(|owner| format!(" on {}", words::worker(owner))).unwrap_or_default();
    match outcome {
        outcome if outcome.is_handed_back() => {
            format!("attempt {attempt} was handed back{after}: its worker was told to end")
        }
        Outcome::Infra { reason, .. } if reason.starts_with(SNAPSHOT_LOST) => {
            format!("attempt {attempt} found nothing of its parent's files{on}")
        }
        Outcome::Infra { reason, .. } if reason.starts_with(LINEAGE) => {
            "its parent's files could not be made again".to_owned()
        }
        outcome => format!("attempt {attempt}{on} {}{after}", words::ended(outcome)),
    }
}

/// Where its key was looked for.
fn look_words(look: &CacheLook, owner: Option<&WorkerId>, step: &PlannedStep) -> String {
    let pool = &step.spec.pool;
    let asked = match look.asked {
        0 => return format!("no worker of pool {pool} was there to be asked"),
        1 => format!("the one worker of pool {pool} that was there"),
        n => format!("the {n} workers of pool {pool} that were there"),
    };
    if look.has.is_empty() {
        let silent = match look.silent {
            0 => String::new(),
            n => format!("; {n} of them had not said yet what they have"),
        };
        return format!("{asked} had not reported it ({}){silent}", list(&look.named));
    }
    let has = list(look.has.iter().map(words::worker));
    if owner.is_some_and(|owner| look.has.contains(owner)) {
        return format!("{has} had reported it, but it was gone when the job came there");
    }
    format!("{has} had reported it, but it went where its parent's files are")
}
