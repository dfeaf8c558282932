//! One entry changes the state, or is refused: the one place where transitions are checked.

use std::sync::Arc;

use longshore_protocol::event::Hello;
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::{Attempt, ExecutionId, Incarnation, Outcome, RunId, WorkerId};

use super::entry::{End, Entry, LogGap, RetryCause};
use super::graph::Graph;
use super::input::Millis;
use super::left::{Fate, Left, Parked};
use super::plan::Plan;
use super::state::{Key, Run, Stage, State, Step, Tally, Try, Worker};
use super::view::RunOutcome;
use crate::pipeline::Pipeline;

/// An entry that cannot follow the journal before it: the journal is not one that this code wrote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the journal's entry `{entry}` of {of} cannot follow what stands before it: {why}")]
pub struct Illegal {
    /// Its type, as in the journal.
    pub entry: &'static str,
    /// Of which run or worker.
    pub of: String,
    /// Which rule it breaks.
    pub why: &'static str,
}

pub(super) type Checked = Result<(), &'static str>;

pub(super) fn ensure(holds: bool, why: &'static str) -> Checked {
    if holds { Ok(()) } else { Err(why) }
}

impl State {
    /// Changes the state by one entry, written at `at`. An entry that is refused changes nothing.
    pub fn apply(&mut self, entry: &Entry, at: Millis) -> Result<(), Illegal> {
        let checked = match entry {
            Entry::Submitted { run, tenant, pipeline } => self.submitted(*run, tenant, pipeline, at),
            Entry::CancelAsked { run, by } => self.cancel_asked(*run, by),
            Entry::RetryAsked { run, steps, .. } => self.retry_asked(*run, steps, at),
            Entry::StepCancelAsked { run, execution } => self.step_cancel_asked(*run, *execution),
            Entry::Heard { worker, incarnation, number } => self.heard(worker, *incarnation, *number),
            Entry::Joined { worker, incarnation, hello } => self.joined(worker, *incarnation, hello),
            Entry::Back { worker } => self.alive(worker, true),
            Entry::LeaseEnded { worker } => self.alive(worker, false),
            Entry::Dispatched { run, execution, attempt, queue, base, .. } => {
                let new = Try::new(Some(queue.clone()), Some(base.clone()), at);
                self.dispatched(*run, *execution, *attempt, new)
            }
            Entry::Accepted { run, execution, attempt, worker, number } => {
                self.accepted(*run, *execution, *attempt, (worker, *number), at)
            }
            Entry::Started { run, execution, attempt, container } => {
                self.started(*run, *execution, *attempt, container, at)
            }
            Entry::Ended { run, execution, attempt, end } => self.ended(*run, *execution, *attempt, end, at),
            Entry::Retried { run, execution, because, not_before_ms } => {
                self.retried(*run, *execution, *because, *not_before_ms)
            }
            Entry::Settled { run, execution, outcome } => self.settled(*run, *execution, outcome, at),
            Entry::RunSettled { run, outcome } => self.run_settled(*run, *outcome, at),
            Entry::LogClosed { run, execution, attempt, gap } => self.log_closed(*run, *execution, *attempt, *gap),
            Entry::SnapshotDropped { run, execution, .. } => self.snapshot_dropped(*run, *execution),
            Entry::Released { run, execution } => self.released(*run, *execution),
            Entry::LeftLost { run, execution, reason } => self.left_lost(*run, *execution, reason),
            Entry::RemakeBegun { run, execution, remake } => self.remake_begun(*run, *execution, *remake, at),
        };
        checked.map_err(|why| Illegal { entry: entry.word(), of: entry.subject(), why })
    }

    pub(super) fn run(&mut self, run: RunId) -> Result<&mut Run, &'static str> {
        self.runs.get_mut(&run).ok_or("nobody submitted this run")
    }

    /// The run, and which of its steps is meant.
    pub(super) fn of(&mut self, run: RunId, execution: ExecutionId) -> Result<(&mut Run, usize), &'static str> {
        let run = self.run(run)?;
        let step = run.find(&execution).ok_or("the run has no such execution")?;
        Ok((run, step))
    }

    fn submitted(&mut self, id: RunId, tenant: &str, pipeline: &Pipeline, at: Millis) -> Checked {
        ensure(!self.runs.contains_key(&id), "the run was submitted before")?;
        let graph = Graph::of(pipeline)?;
        let steps: Vec<Step> = (pipeline.steps.iter().enumerate())
            .map(|(index, planned)| {
                let execution = ExecutionId::of_step(id, &planned.name);
                let step = Step::new(execution, graph.waits[index], graph.children[index], None);
                Step { ready_at: at, ..step }
            })
            .collect();
        let run = Run {
            tenant: Arc::from(tenant),
            pipeline: Plan::from(pipeline),
            graph,
            submitted_at: at,
            settled_at: None,
            retried_at: None,
            retries: 0,
            outcome: None,
            cancelled: false,
            timed_out: false,
            failed_first: None,
            executions: steps.iter().map(|step| step.execution).collect(),
            steps,
            tally: Tally::default(),
            remaking: 0,
            logs_open: 0,
        };
        self.runs.insert(id, run);
        Ok(())
    }

    fn cancel_asked(&mut self, run: RunId, by: &CancelledBy) -> Checked {
        let run = self.run(run)?;
        ensure(run.outcome.is_none(), "the run is settled")?;
        match by {
            CancelledBy::User => {
                ensure(!run.cancelled, "the user asked before")?;
                run.cancelled = true;
            }
            CancelledBy::RunTimeout => {
                ensure(run.pipeline.timeout_ms.is_some(), "the run has no timeout")?;
                ensure(!run.cancelled && !run.timed_out, "its end was asked for before")?;
                run.timed_out = true;
            }
            CancelledBy::Sibling(step) => {
                ensure(run.failed_first.is_none(), "another step failed first")?;
                run.failed_first = Some(step.clone());
            }
        }
        Ok(())
    }

    fn step_cancel_asked(&mut self, run: RunId, execution: ExecutionId) -> Checked {
        let (run, step) = self.of(run, execution)?;
        let step = &mut run.steps[step];
        ensure(step.remake_of.is_none(), "what is made again is no step of the user's")?;
        ensure(step.stage != Stage::Settled, "the step is settled")?;
        ensure(!step.cancelled, "the user asked before")?;
        step.cancelled = true;
        Ok(())
    }

    fn heard(&mut self, worker: &WorkerId, incarnation: Incarnation, number: u64) -> Checked {
        let worker = self.workers.get_mut(worker).ok_or("the worker never joined")?;
        ensure(worker.incarnation == incarnation, "another incarnation is the current one")?;
        ensure(worker.number < number, "the number was heard before")?; // P9
        worker.number = number;
        Ok(())
    }

    fn joined(&mut self, id: &WorkerId, incarnation: Incarnation, hello: &Hello) -> Checked {
        let known = self.workers.get(id);
        // P10: an older start is stale, the same one with another nonce is a cloned disk.
        ensure(known.is_none_or(|known| known.incarnation.start < incarnation.start), "a later start is known")?;
        let known = self.workers.remove(id);
        let (mut owned, mut spooled) = known.map(|known| (known.owned, known.spooled)).unwrap_or_default();
        // Whatever the new incarnation holds it has held from its first heartbeat on.
        owned.values_mut().chain(spooled.values_mut()).for_each(|number| *number = 0);
        let worker = Worker { incarnation, hello: hello.clone(), number: 0, alive: true, owned, spooled };
        self.workers.insert(id.clone(), worker);
        Ok(())
    }

    fn alive(&mut self, worker: &WorkerId, alive: bool) -> Checked {
        let worker = self.workers.get_mut(worker).ok_or("the worker never joined")?;
        ensure(worker.alive != alive, "nothing changes")?;
        worker.alive = alive;
        Ok(())
    }

    fn dispatched(&mut self, run: RunId, execution: ExecutionId, attempt: Attempt, new: Try) -> Checked {
        let (run, step) = self.of(run, execution)?;
        ensure(run.cancelled_by(step).is_none(), "nobody wants the step any more")?;
        let step = &mut run.steps[step];
        ensure(matches!(step.stage, Stage::Waiting { .. }), "the step is not waiting for an attempt")?;
        ensure(step.waits == 0, "a step that it waits for has not passed")?;
        ensure(attempt == step.last().next(), "attempts grow by one")?;
        step.attempts.push(new);
        step.stage = Stage::Current;
        Ok(())
    }

    /// The step and its current attempt, which must be this one.
    fn current(run: &mut Run, step: usize, attempt: Attempt) -> Result<&mut Try, &'static str> {
        let step = &mut run.steps[step];
        ensure(step.stage == Stage::Current && step.last() == attempt, "the attempt is not current")?;
        step.attempts.last_mut().ok_or("the step has no attempt")
    }

    fn accepted(
        &mut self,
        id: RunId,
        execution: ExecutionId,
        attempt: Attempt,
        (worker_id, number): (&WorkerId, u64),
        at: Millis,
    ) -> Checked {
        let worker = self.workers.get_mut(worker_id).ok_or("the worker never joined")?;
        ensure(worker.alive, "the worker's lease has ended")?;
        let run = self.runs.get_mut(&id).ok_or("nobody submitted this run")?;
        let step = run.find(&execution).ok_or("the run has no such execution")?;
        let current = Self::current(run, step, attempt)?;
        ensure(current.owner.is_none(), "the attempt has an owner")?; // P5
        current.owner = Some(worker_id.clone());
        current.accepted_at = Some(at);
        run.logs_open += 1;
        // P7: a claim that a heartbeat told is in an event still to come, so that no heartbeat sent before that
        // event can be taken as "not held".
        let number = if number == 0 { worker.number + 1 } else { number };
        worker.owned.insert(Key { run: id, step, attempt }, number);
        Ok(())
    }

    fn started(
        &mut self,
        run: RunId,
        execution: ExecutionId,
        attempt: Attempt,
        container: &str,
        at: Millis,
    ) -> Checked {
        let (run, step) = self.of(run, execution)?;
        let current = Self::current(run, step, attempt)?;
        ensure(current.owner.is_some(), "the attempt has no owner")?;
        ensure(current.started_at.is_none(), "it was started before")?;
        current.started_at = Some(at);
        current.container = Some(container.to_owned());
        let (base, owner) = (current.base.clone(), current.owner.clone());
        if let Some(parent) = run.parent(step)
            && let Some(left) = run.steps[parent].left.as_mut()
            && left.is_base(base.as_ref())
            && owner.as_ref() == Some(&left.worker)
        {
            left.gone_on(container);
        }
        Ok(())
    }

    fn ended(&mut self, id: RunId, execution: ExecutionId, attempt: Attempt, end: &End, at: Millis) -> Checked {
        let (run, index) = self.of(id, execution)?;
        let step = &mut run.steps[index];
        if matches!(step.stage, Stage::Waiting { .. }) {
            // It found no worker to be sent to: over before it began.
            ensure(step.waits == 0, "a step that it waits for has not passed")?;
            ensure(attempt == step.last().next(), "attempts grow by one")?;
            let infra = matches!(end, End::Finished { outcome, .. } if outcome.is_infra());
            let fleets = infra || matches!(end, End::Expired { .. });
            ensure(fleets, "what was never dispatched ends by the fleet's fault alone")?;
            step.attempts.push(Try { end: Some(end.clone()), ended_at: Some(at), ..Try::new(None, None, at) });
            step.stage = Stage::Over;
            return Ok(());
        }
        let current = Self::current(run, index, attempt)?;
        match end {
            End::Finished { .. } | End::Lost { .. } => ensure(current.owner.is_some(), "the attempt has no owner")?,
            // P11: what was accepted is over only by its owner's word or the end of its lease.
            End::Gone { .. } | End::Withdrawn | End::Expired { .. } => {
                ensure(current.owner.is_none(), "the attempt has an owner")?;
            }
        }
        current.end = Some(end.clone());
        current.ended_at = Some(at);
        let owner = current.owner.clone();
        let step = &mut run.steps[index];
        step.stage = Stage::Over;
        step.charged.lost += u32::from(matches!(end, End::Lost { .. }));
        let Some(owner) = owner else { return Ok(()) };
        let worker = self.workers.get_mut(&owner).expect("an owner has joined");
        let key = Key { run: id, step: index, attempt };
        let number = worker.owned.remove(&key).expect("an owner owns its attempt");
        worker.spooled.insert(key, number);
        if let End::Finished { outcome: Outcome::Passed, snapshot, parked, .. } = end
            && (snapshot.is_some() || *parked)
        {
            let engine = worker.hello.engine.clone();
            let step = &mut self.of(id, execution)?.0.steps[index];
            let container = step.attempts.last().and_then(|attempt| attempt.container.clone());
            let parked = parked.then_some(Parked(container));
            let snapshot = snapshot.clone();
            let fate = Fate::Kept;
            step.left = Some(Box::new(Left { execution, attempt, snapshot, parked, engine, worker: owner, fate }));
        }
        Ok(())
    }

    fn retried(&mut self, run: RunId, execution: ExecutionId, because: RetryCause, not_before: Millis) -> Checked {
        let (run, step) = self.of(run, execution)?;
        let step = &mut run.steps[step];
        ensure(step.stage == Stage::Over, "no attempt has just ended")?;
        let last = step.attempts.last().ok_or("the step has no attempt")?;
        let outcome = last.outcome();
        let (charge, fits) = match because {
            RetryCause::Infra => (Some(&mut step.charged.infra), outcome.is_some_and(|outcome| outcome.is_infra())),
            RetryCause::User => {
                (Some(&mut step.charged.user), outcome.is_some_and(|outcome| outcome.is_users_failure()))
            }
            RetryCause::Gone => (Some(&mut step.charged.gone), matches!(last.end, Some(End::Gone { .. }))),
            // P20: it charges nobody. What bounds it is how often its parent's files are made again.
            RetryCause::Lineage => (None, last.missed_its_base()),
            RetryCause::HandedBack => (None, outcome.is_some_and(|outcome| outcome.is_handed_back())),
            RetryCause::GoVoid => {
                (Some(&mut step.charged.gone), outcome.is_some_and(|outcome| outcome.is_go_void())) // P18
            }
        };
        ensure(fits, "the attempt did not end that way")?; // promise 5
        if let Some(charge) = charge {
            *charge += 1;
        }
        if because != RetryCause::Gone {
            step.ready_at = not_before;
        }
        step.stage = Stage::Waiting { not_before };
        Ok(())
    }

    fn settled(&mut self, run: RunId, execution: ExecutionId, outcome: &Outcome, at: Millis) -> Checked {
        let (run, index) = self.of(run, execution)?;
        let step = &run.steps[index];
        match step.stage {
            Stage::Settled => return Err("the step is settled"), // promise 1: once for each asking
            Stage::Current => return Err("its attempt is not over"), // P11
            Stage::Over => {
                let last = step.attempts.last().and_then(Try::outcome);
                let called_off = matches!(outcome, Outcome::Cancelled { .. });
                let passed = last.as_ref().is_some_and(Outcome::is_passed);
                // Promise 2: nothing passes but by its owner's word, and that word is never turned round.
                ensure(outcome.is_passed() == passed, "its attempt ended otherwise")?;
                // Promise 5: which workers were lost on it is more than its last attempt knew.
                let poison =
                    outcome.is_poison() && step.charged.lost > 0 && last.as_ref().is_some_and(Outcome::is_infra);
                ensure(called_off || poison || last.as_ref() == Some(outcome), "its attempt ended otherwise")?;
            }
            Stage::Waiting { .. } => {
                let never_begun = matches!(outcome, Outcome::Cancelled { .. } | Outcome::Skipped { .. });
                ensure(never_begun, "no attempt has ended that way")?;
            }
        }
        let parent = run.parent(index);
        let step = &mut run.steps[index];
        step.stage = Stage::Settled;
        step.outcome = Some(outcome.clone());
        if let Some(parent) = parent {
            run.steps[parent].children -= 1;
        }
        if let Some(of) = run.steps[index].remake_of {
            // P20: nothing changes for the step that settled but what it left.
            let left = run.steps[index].left.take();
            run.remaking -= 1;
            if outcome.is_passed() {
                run.steps[of].left = left;
            } else {
                run.steps[of].broken |= !matches!(outcome, Outcome::Cancelled { .. });
            }
            run.let_go_of_parents(of);
            return Ok(());
        }
        run.tally.settled += 1;
        run.tally.failed += u32::from(outcome.is_users_failure());
        run.tally.infra += u32::from(outcome.is_infra());
        run.tally.cancelled += u32::from(matches!(outcome, Outcome::Cancelled { .. }));
        if outcome.is_passed() {
            for &dependent in &run.graph.dependents[index] {
                run.steps[dependent].waits -= 1;
                run.steps[dependent].ready_at = at;
            }
        }
        run.let_go_of_parents(index);
        Ok(())
    }

    fn run_settled(&mut self, run: RunId, outcome: RunOutcome, at: Millis) -> Checked {
        let run = self.run(run)?;
        ensure(run.outcome.is_none(), "the run is settled")?;
        ensure(run.all_settled(), "a step is not settled")?;
        ensure(run.verdict() == outcome, "its steps say otherwise")?;
        run.outcome = Some(outcome);
        run.settled_at = Some(at);
        Ok(())
    }

    fn log_closed(&mut self, id: RunId, execution: ExecutionId, attempt: Attempt, gap: LogGap) -> Checked {
        let (run, index) = self.of(id, execution)?;
        let number = (attempt.0 as usize).wrapping_sub(1);
        let attempt_state = run.steps[index].attempts.get_mut(number).ok_or("there is no such attempt")?;
        let owner = attempt_state.owner.clone().ok_or("nobody wrote to this log")?;
        ensure(attempt_state.end.is_some(), "the attempt is not over")?;
        ensure(attempt_state.log.is_none(), "the log is closed")?;
        attempt_state.log = Some(gap);
        run.logs_open -= 1;
        let worker = self.workers.get_mut(&owner).expect("an owner has joined");
        worker.spooled.remove(&Key { run: id, step: index, attempt });
        Ok(())
    }
}
