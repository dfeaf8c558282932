//! An input comes in; entries and effects come out.

use std::collections::{BTreeMap, BTreeSet};

use longshore_protocol::breach::{self, Breach};
use longshore_protocol::control::Control;
use longshore_protocol::event::Claim;
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::{Epoch, ExecutionId, Incarnation, PoolName, RunId, WorkerId};

use super::config::CoreConfig;
use super::effect::{Effect, JobQueue};
use super::entry::{End, Entry};
use super::fleet::Fleet;
use super::fold::Illegal;
use super::graph::Graph;
use super::groups::Groups;
use super::input::{Input, Millis};
use super::lineage::{unwanted_remake, waiting_for};
use super::ready::{Lane, Ready};
use super::room::Room;
use super::share::Shares;
use super::state::{Key, Stage, Standing, State};

/// The pure core: the fold of the journal, what heartbeats told, and what still has to be looked at.
#[derive(Debug)]
pub struct Core {
    pub(super) config: CoreConfig,
    pub(super) epoch: Epoch,
    pub(super) state: State,
    pub(super) fleet: Fleet,
    /// Steps of which something changed. INVARIANT: empty between two inputs.
    pub(super) dirty: BTreeSet<(RunId, usize)>,
    /// Steps that wait for a moment.
    pub(super) timers: BTreeSet<(Millis, RunId, usize)>,
    /// Steps that wait for a worker that has, or could make again, what their parent left.
    pub(super) stranded: BTreeSet<(RunId, usize)>,
    /// When a run has taken too long.
    pub(super) deadlines: BTreeSet<(Millis, RunId)>,
    // Who goes next, beside the state and never journalled:
    pub(super) shares: Shares,
    pub(super) ready: Ready,
    pub(super) groups: Groups,
    pub(super) room: Room,
    /// Lanes with room whose first step lets another go first, by pool.
    pub(super) yielding: BTreeMap<PoolName, BTreeSet<Lane>>,
}

/// What one input led to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// To be journalled in this order. The core's own state has them already.
    pub entries: Vec<Entry>,
    /// To be carried out once the entries are on disk.
    pub effects: Vec<Effect>,
    /// Runs whose [`RunSummary`](super::view::RunSummary) changed.
    pub runs: BTreeSet<RunId>,
    /// Steps, by index, whose [`StepView`](super::view::StepView) changed.
    pub touched: BTreeSet<(RunId, usize)>,
    /// Messages, or parts of one, that were stale and thrown away (P12).
    pub fenced: Vec<Fenced>,
    /// Events that were in before (P9).
    pub repeats: u32,
}

/// What was thrown away as stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fenced {
    /// A claim of an attempt that another owns, or that is over (P5).
    Accepted,
    /// A start of an attempt that is not the sender's.
    Started,
    /// A result of an attempt that is not the sender's (P11).
    Finished,
    /// A record of such an attempt, out of a heartbeat, a hello or a sync.
    Record,
    /// Anything said by an incarnation that is not the worker's last (P10).
    Incarnation,
}

impl Fenced {
    /// For the label of the metric.
    pub fn word(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Started => "started",
            Self::Finished => "finished",
            Self::Record => "record",
            Self::Incarnation => "incarnation",
        }
    }
}

/// Whose output it is (P12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputFence {
    /// The attempt's owner's, its log open: store it.
    Current,
    /// Nobody's yet: it overtook its `accepted`. Drop it; it is asked for again once the owner is known.
    Early,
    /// Nobody's who counts: drop it.
    Stale,
}

/// How an incarnation stands to the one that the state knows (P10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaker {
    Current,
    /// A later start, or a worker never heard of.
    New,
    /// An earlier start.
    Old,
    /// The same start with another nonce: a cloned disk.
    Clone,
}

impl Core {
    /// A core without a journal.
    pub fn new(config: CoreConfig) -> Self {
        Self {
            config,
            epoch: Epoch::default(),
            state: State::default(),
            fleet: Fleet::default(),
            dirty: BTreeSet::new(),
            timers: BTreeSet::new(),
            stranded: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            shares: Shares::default(),
            ready: Ready::default(),
            groups: Groups::default(),
            room: Room::default(),
            yielding: BTreeMap::new(),
        }
    }

    /// Takes one entry of the journal, written at `at`. No effects: those are in the outbox (P3).
    ///
    /// # Errors
    /// The entry cannot follow those before it. The state is unchanged.
    pub fn replay(&mut self, entry: &Entry, at: Millis) -> Result<(), Illegal> {
        self.state.apply(entry, at)?;
        self.keep_up(entry, at);
        self.dirty.clear(); // what follows from an entry stands behind it in the journal
        Ok(())
    }

    /// Decides what an input leads to. The state has the entries when it returns; the caller must journal them
    /// before it carries out the effects, or stop.
    pub fn apply(&mut self, input: &Input, now: Millis) -> Step {
        let mut out = Step::default();
        self.wake(now, &mut out);
        match input {
            Input::Lead { epoch } => self.lead(*epoch),
            Input::Submit { run, tenant, pipeline } => {
                // The client may send it again: one run. What is no pipeline was refused before it came here.
                if !self.state.runs.contains_key(run) && Graph::of(pipeline).is_ok() {
                    let pipeline = pipeline.clone();
                    self.commit(Entry::Submitted { run: *run, tenant: tenant.clone(), pipeline }, now, &mut out);
                    self.settle_run(*run, now, &mut out);
                }
            }
            Input::Cancel { run, by } => self.cancel(*run, by, now, &mut out),
            Input::Retry { run, only } => self.retry(*run, only, now, &mut out),
            Input::CancelSteps { run, steps } => self.cancel_steps(*run, steps, now, &mut out),
            Input::Event(message) => self.hear(message, now, &mut out),
            Input::Heartbeat(heartbeat) => self.beat(heartbeat, now, &mut out),
            Input::Tick { epoch } => self.tick(*epoch, now, &mut out),
            Input::Waiting { queue, messages } => {
                if matches!(queue, JobQueue::Pool(_)) {
                    self.fleet.queues.looked_at(queue, *messages, self.fleet.tick);
                }
            }
            Input::UnderWay { to } => self.fleet.queues.under_way.clone_from(to),
            Input::Returned { claim } => {
                if let Some(key) = self.state.key(claim) {
                    self.gone(key, "no such queue at the broker", now, &mut out);
                }
            }
            Input::Stored { claim, offsets } => self.stored(claim, *offsets, now, &mut out),
            Input::Gap { claim, stored } => self.gap(claim, *stored, now, &mut out),
            Input::Clock => {}
        }
        self.follow(now, &mut out);
        out
    }

    /// Writes an entry: the state takes it, and what may follow from it is looked at.
    pub(super) fn commit(&mut self, entry: Entry, now: Millis, out: &mut Step) {
        if let Err(illegal) = self.state.apply(&entry, now) {
            panic!("the core decided what its own rules refuse: {illegal}");
        }
        self.keep_up(&entry, now);
        self.touch(&entry, out);
        out.entries.push(entry);
    }

    /// Keeps everything beside the state in step with an entry.
    fn keep_up(&mut self, entry: &Entry, at: Millis) {
        self.fleet.follow(entry, &self.state, u64::from(self.config.resend_ticks));
        self.keep_share(entry, at);
        self.keep_deadlines(entry);
        if matches!(entry, Entry::Joined { .. } | Entry::Back { .. }) {
            self.dirty.append(&mut self.stranded);
        }
        let Some(id) = entry.run() else { return };
        let Some(run) = self.state.runs.get(&id) else { return };
        match entry {
            Entry::Submitted { .. } => {
                let roots = (0..run.steps.len()).filter(|step| run.steps[*step].waits == 0);
                self.dirty.extend(roots.map(|step| (id, step)));
            }
            Entry::CancelAsked { .. } => {
                let unsettled = (0..run.steps.len()).filter(|step| run.steps[*step].stage != Stage::Settled);
                self.dirty.extend(unsettled.map(|step| (id, step)));
            }
            Entry::RetryAsked { steps, .. } => {
                let ready = steps.iter().map(|step| run.index(step)).filter(|step| run.steps[*step].waits == 0);
                self.dirty.extend(ready.map(|step| (id, step)));
            }
            Entry::StepCancelAsked { execution, .. } | Entry::Ended { execution, .. } => {
                self.dirty.insert((id, run.index(execution)));
            }
            Entry::Retried { execution, not_before_ms, .. } => {
                let step = run.index(execution);
                self.dirty.insert((id, step));
                self.timers.insert((*not_before_ms, id, step));
            }
            Entry::Settled { execution, outcome, .. } if outcome.is_passed() => {
                let step = run.index(execution);
                if let Some(of) = run.steps[step].remake_of {
                    self.dirty.extend(waiting_for(run, of).map(|step| (id, step)));
                } else {
                    let ready = run.graph.dependents[step].iter();
                    self.dirty.extend(ready.filter(|step| run.steps[**step].waits == 0).map(|step| (id, *step)));
                }
                self.dirty.extend(unwanted_remake(run, step).map(|step| (id, step)));
            }
            Entry::Settled { execution, .. } => {
                let step = run.index(execution);
                // P20: what waited for what could not be made again.
                if let Some(of) = run.steps[step].remake_of {
                    self.dirty.extend(waiting_for(run, of).map(|step| (id, step)));
                }
                self.dirty.extend(unwanted_remake(run, step).map(|step| (id, step)));
            }
            Entry::RemakeBegun { remake, .. } => {
                self.dirty.insert((id, run.index(remake)));
            }
            _ => {}
        }
    }

    /// Notes which rows people see have changed.
    fn touch(&self, entry: &Entry, out: &mut Step) {
        let Some(id) = entry.run() else { return };
        let run = &self.state.runs[&id];
        match entry {
            Entry::Submitted { .. } => {
                out.runs.insert(id);
                out.touched.extend((0..run.steps.len()).map(|step| (id, step)));
            }
            Entry::RetryAsked { steps, .. } => {
                out.runs.insert(id);
                out.touched.extend(steps.iter().map(|step| (id, run.index(step))));
            }
            Entry::CancelAsked { .. } | Entry::RunSettled { .. } => {
                out.runs.insert(id);
            }
            Entry::Settled { execution, .. } => {
                out.runs.insert(id);
                out.touched.insert((id, run.original(run.index(execution))));
            }
            Entry::RemakeBegun { execution, .. }
            | Entry::LeftLost { execution, .. }
            | Entry::StepCancelAsked { execution, .. }
            | Entry::Dispatched { execution, .. }
            | Entry::Accepted { execution, .. }
            | Entry::Started { execution, .. }
            | Entry::Ended { execution, .. }
            | Entry::Retried { execution, .. }
            | Entry::LogClosed { execution, .. } => {
                out.touched.insert((id, run.original(run.index(execution))));
            }
            _ => {}
        }
    }

    /// Backoffs and deadlines that are over.
    fn wake(&mut self, now: Millis, out: &mut Step) {
        while let Some(&(at, run, step)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            if self.state.runs.contains_key(&run) {
                self.dirty.insert((run, step));
            }
        }
        self.call_off_late_runs(now, out);
    }

    /// P8: who has just become active grants everyone a full lease, and looks at everything once: the one scan.
    fn lead(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        let tick = self.fleet.tick;
        for worker in self.state.workers.keys() {
            let seen = self.fleet.seen.entry(worker.clone()).or_default();
            seen.tick = tick;
        }
        for (id, run) in &self.state.runs {
            let unsettled = (0..run.steps.len()).filter(|step| run.steps[*step].stage != Stage::Settled);
            self.dirty.extend(unsettled.map(|step| (*id, step)));
        }
    }

    pub(super) fn cancel(&mut self, id: RunId, by: &CancelledBy, now: Millis, out: &mut Step) {
        let Some(run) = self.state.runs.get(&id) else { return };
        let known = match by {
            CancelledBy::User => run.cancelled,
            CancelledBy::RunTimeout => run.cancelled || run.timed_out,
            CancelledBy::Sibling(_) => run.failed_first.is_some(),
        };
        if run.outcome.is_none() && !known {
            self.commit(Entry::CancelAsked { run: id, by: by.clone() }, now, out);
        }
    }

    /// What waits for them is skipped when they are settled, as behind any step that did not pass; but it is no failure,
    /// so the rest of the run goes on.
    fn cancel_steps(&mut self, id: RunId, steps: &[ExecutionId], now: Millis, out: &mut Step) {
        for execution in steps {
            let Some(run) = self.state.runs.get(&id) else { return };
            let step = run.find(execution).map(|index| &run.steps[index]);
            let open = step.is_some_and(|step| {
                step.remake_of.is_none() && step.stage != Stage::Settled && !step.cancelled && !run.cancelled
            });
            if open {
                self.commit(Entry::StepCancelAsked { run: id, execution: *execution }, now, out);
            }
        }
    }

    /// P6: an attempt's job reached nobody. If somebody claimed it meanwhile, nothing.
    pub(super) fn gone(&mut self, key: Key, reason: &str, now: Millis, out: &mut Step) {
        let attempt = self.state.attempt(key);
        if attempt.end.is_none() && attempt.owner.is_none() && !breach::is(Breach::GoneIsWaitedFor) {
            self.end(key, End::Gone { reason: reason.to_owned() }, now, out);
        }
    }

    /// Writes how an attempt ended (P11).
    pub(super) fn end(&mut self, key: Key, end: End, now: Millis, out: &mut Step) {
        let Claim { run, execution, attempt } = self.state.claim(key);
        self.commit(Entry::Ended { run, execution, attempt, end }, now, out);
        if self.state.attempt(key).missed_its_base() {
            self.base_is_lost(key, now, out); // at once, also where it is called off: others may be sent after the same
        }
    }

    /// Tells one incarnation something.
    pub(super) fn tell(worker: &WorkerId, incarnation: Incarnation, control: Control, out: &mut Step) {
        out.effects.push(Effect::Tell { worker: worker.clone(), incarnation, control });
    }

    /// Tells a worker, as it is known now, something.
    pub(super) fn tell_worker(&self, worker: &WorkerId, control: Control, out: &mut Step) {
        if let Some(known) = self.state.workers.get(worker) {
            Self::tell(worker, known.incarnation, control, out);
        }
    }

    /// P10: whether this incarnation speaks for its worker.
    pub(super) fn speaker(&self, worker: &WorkerId, incarnation: Incarnation) -> Speaker {
        let Some(known) = self.state.workers.get(worker) else { return Speaker::New };
        match incarnation.start.cmp(&known.incarnation.start) {
            std::cmp::Ordering::Greater => Speaker::New,
            std::cmp::Ordering::Less => Speaker::Old,
            std::cmp::Ordering::Equal if incarnation == known.incarnation => Speaker::Current,
            std::cmp::Ordering::Equal => Speaker::Clone,
        }
    }

    /// P12: what to do with output that a worker sent. To be asked in the order of arrival, before it is stored.
    pub fn output_fence(&self, worker: &WorkerId, incarnation: Incarnation, claim: &Claim) -> OutputFence {
        match self.speaker(worker, incarnation) {
            Speaker::Current => {}
            Speaker::New => return OutputFence::Early,
            Speaker::Old | Speaker::Clone => return OutputFence::Stale,
        }
        match self.state.standing(worker, claim) {
            Standing::Ownerless(_) => OutputFence::Early,
            Standing::Owner(_) => OutputFence::Current,
            Standing::Finisher(key) if self.state.attempt(key).log.is_none() => OutputFence::Current,
            Standing::Finisher(_) | Standing::Stale | Standing::Unknown => OutputFence::Stale,
        }
    }

    /// The next moment at which [`Input::Clock`] is due, if nothing else comes before.
    pub fn next_wakeup(&self) -> Option<Millis> {
        let timer = self.timers.first().map(|(at, ..)| *at);
        timer.into_iter().chain(self.deadlines.first().map(|(at, _)| *at)).min()
    }

    /// The fold of the journal, to be compared: what was replayed equals what was lived.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// P6: the pool queues with jobs that nobody has claimed. To be asked about once a few ticks, with
    /// [`Input::Waiting`] as the answer.
    pub fn queues_to_watch(&self) -> Vec<JobQueue> {
        self.fleet.queues.pools()
    }
}
