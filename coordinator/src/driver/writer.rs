//! One batch: each input to the core, and what follows from it gathered for one transaction (P3).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use longshore_protocol::breach::{self, Breach};
use longshore_protocol::broker::{Broker, Delivery, dead_letter};
use longshore_protocol::control::ControlMessage;
use longshore_protocol::event::{Claim, EventMessage};
use longshore_protocol::heartbeat::HeartbeatMessage;
use longshore_protocol::output::{Offsets, OutputMessage, Stream};
use longshore_protocol::process::Tasks;
use longshore_protocol::process::watch;
use longshore_protocol::wire::{self, Unreadable};
use longshore_protocol::{Attempt, Epoch, ExecutionId, RunId, Shard, WorkerId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Shared;
use super::calendar::Calendar;
use super::clock::Ticks;
use super::gone::{Look, queue_of};
use super::inputs::{Arrival, Command, Internal, Source, Taken};
use super::open::OpenSteps;
use super::outbox::Newest;
use crate::core::effect::{Effect, JobQueue};
use crate::core::entry::Entry;
use crate::core::input::{Input, Millis};
use crate::core::retry::Missed;
use crate::core::{Core, NotRetried, OutputFence, Step};
use crate::logs::LogDesk;
use crate::store::StoreError;
use crate::store::batch::{Batch, EntryRow, NewLog, OutboxAbout, OutboxRow};
use crate::store::recover::Counters;

/// Claims whose output came before their `accepted`, remembered so that it is asked for at once.
/// Beyond so many the ordinary resend does it, some ticks later.
const EARLY_MAX: usize = 1_024;

/// Job queues are looked at every so many ticks: an accept deadline is ten times as long.
const LOOK_TICKS: u64 = 3;

/// The one writer of a reign.
pub(super) struct Writer<B: Broker> {
    pub(super) shared: Shared<B>,
    pub(super) shard: Shard,
    pub(super) epoch: Epoch,
    pub(super) core: Core,
    pub(super) logs: LogDesk,
    pub(super) counters: Counters,
    pub(super) hands: Hands,
    /// Jobs per queue, in this reign: dispatched, and of those confirmed.
    pub(super) jobs: BTreeMap<JobQueue, (u64, u64)>,
    /// Messages that are in the outbox.
    pub(super) outstanding: BTreeSet<i64>,
    pub(super) early: BTreeSet<(RunId, ExecutionId, Attempt)>,
    pub(super) ticks: Ticks,
    pub(super) open: OpenSteps,
    /// Of the outbox, confirmed: their rows go with the next transaction. One of their own would stand in the way of
    /// what the workers answer; and what a crash leaves is published again, which is harmless (P3).
    pub(super) confirmed: Vec<i64>,
    pub(super) committed_at: Instant,
    pub(super) calendar: Calendar,
    /// Of the batch that is carried out.
    pub(super) now: Millis,
}

/// How long the one writer waits for the journal of a run that is opened again: less than it takes the epoch to lapse.
const RECALL_MAX: Duration = Duration::from_secs(1);

/// The tasks around the writer.
pub(super) struct Hands {
    pub(super) tracker: Tasks,
    pub(super) stop: tokio_util::sync::CancellationToken,
    pub(super) internals: mpsc::Sender<Internal>,
    /// The newest rows of the outbox, for the publisher.
    pub(super) newest: watch::Sender<Newest>,
    /// When the last transaction was begun that renewed the epoch, for the publisher (P21).
    pub(super) renewed: watch::Sender<Option<Instant>>,
    /// The highest tick that came back, for the clock.
    pub(super) tick_back: watch::Sender<u64>,
    /// Looks at job queues (P6).
    pub(super) looks: mpsc::Sender<Vec<Look>>,
}

/// What one batch has come to so far.
#[derive(Default)]
pub(super) struct Work {
    pub(super) batch: Batch,
    pub(super) runs: BTreeSet<RunId>,
    pub(super) steps: BTreeSet<(RunId, usize)>,
    /// Of the runs that this batch takes.
    pub(super) hashes: BTreeMap<RunId, String>,
    pub(super) done: Vec<RunId>,
    pub(super) acks: Vec<Delivery>,
    pub(super) submits: Vec<(oneshot::Sender<Taken>, Taken)>,
    pub(super) cancels: Vec<oneshot::Sender<()>>,
    pub(super) retries: Vec<oneshot::Sender<Result<(), NotRetried>>>,
    pub(super) workers_changed: bool,
    /// New bytes of output.
    pub(super) output: Offsets,
}

impl Work {
    /// P9: of what was heard of a worker only the last number is read again: by a replay at its end, and where a
    /// heartbeat told of a claim (P7), which then counts from the number before. Its events come many in a batch.
    fn supersede(&mut self, by: &Entry) {
        let Entry::Heard { worker, incarnation, .. } = by else { return };
        let older = self.batch.entries.iter().rposition(|row| match &row.entry {
            Entry::Heard { worker: w, incarnation: i, .. } => w == worker && i == incarnation,
            Entry::Accepted { worker: w, number: 0, .. } => w == worker,
            _ => false,
        });
        if let Some(older) = older
            && matches!(self.batch.entries[older].entry, Entry::Heard { .. })
        {
            self.batch.entries.remove(older);
        }
    }

    /// Whether there is nothing to put on disk. Asked once the logs' lines are in the batch.
    fn writes_nothing(&self) -> bool {
        let Batch { entries, runs, steps, outbox, outbox_done, logs, log_rows, log_ends, chunks } = &self.batch;
        let rows = entries.len() + runs.len() + steps.len() + outbox.len() + outbox_done.len();
        let log_rows = logs.len() + log_rows.len() + log_ends.len() + chunks.len();
        rows + log_rows + self.runs.len() + self.steps.len() == 0
    }
}

impl<B: Broker> Writer<B> {
    /// Carries out one batch. After an error nothing of it was written, and the reign is over: what is
    /// in memory is ahead of the store.
    pub(super) async fn carry_out(&mut self, arrivals: Vec<Arrival>) -> Result<(), StoreError> {
        let before = std::mem::replace(&mut self.now, self.calendar.now());
        let inputs = arrivals.len();
        let mut work = Work::default();
        if breach::is(Breach::LeaseByWallClock) {
            for _ in 0..((self.now - before) / 1_000).min(100) {
                self.apply(&Input::Tick { epoch: self.epoch }, &mut work);
            }
        }
        let mut renew = false;
        for arrival in arrivals {
            renew |= matches!(arrival, Arrival::Renew);
            self.take(arrival, &mut work).await?;
        }
        self.logs.write(&mut self.counters.change, &mut work.batch);
        if work.writes_nothing() && !renew {
            // A heartbeat without news, a repeat, a confirm: nothing to put on disk, nobody to wait for it.
            self.committed(work).await;
            return Ok(());
        }
        self.commit(work, inputs).await
    }

    /// A reign that ends by itself leaves no confirmed message behind, to be published again.
    pub(super) async fn end(&mut self) -> Result<(), StoreError> {
        if self.confirmed.is_empty() { Ok(()) } else { self.commit(Work::default(), 0).await }
    }

    /// What a new leader says first: what is stored of the open logs, then that it leads (P8).
    pub(super) async fn begin(&mut self) -> Result<(), StoreError> {
        self.now = self.calendar.now();
        let mut work = Work::default();
        for claim in self.core.open_logs() {
            if let Some(offsets) = self.logs.stored(&claim) {
                self.apply(&Input::Stored { claim, offsets }, &mut work);
            }
        }
        self.apply(&Input::Lead { epoch: self.epoch }, &mut work);
        work.workers_changed = true;
        self.commit(work, 1).await
    }

    async fn take(&mut self, arrival: Arrival, work: &mut Work) -> Result<(), StoreError> {
        match arrival {
            Arrival::Command(command) => self.command(command, work).await?,
            Arrival::Internal(internal) => self.internal(internal, work),
            Arrival::Clock => self.apply(&Input::Clock, work),
            Arrival::Renew => {}
            Arrival::Delivery(source, delivery) => match source {
                Source::Events => self.read(wire::decode_all, delivery, work, Self::events),
                Source::Heartbeats => self.read(wire::decode, delivery, work, Self::heartbeat),
                Source::Output => self.read(wire::decode, delivery, work, Self::output),
            },
        }
        Ok(())
    }

    async fn command(&mut self, command: Command, work: &mut Work) -> Result<(), StoreError> {
        if command.is_unheard() {
            // It may have stood in the line since an earlier reign, and whoever asked was told that it failed.
            return Ok(());
        }
        match command {
            Command::Submit { run, tenant, pipeline, pipeline_hash, reply } => {
                // A run that is done was forgotten by the core: only the store knows it.
                let known = self.core.run_summary(run).is_some() || self.shared.store.is_known(run).await?;
                if !known {
                    work.hashes.insert(run, pipeline_hash);
                    self.apply(&Input::Submit { run, tenant, pipeline }, work);
                }
                work.submits.push((reply, if known { Taken::Known } else { Taken::New }));
            }
            Command::Cancel { run, by, reply } => {
                self.apply(&Input::Cancel { run, by }, work);
                work.cancels.push(reply);
            }
            // A client that went away is not told.
            Command::Present { run, execution, reply } => {
                drop(reply.send(self.core.present(run, execution, self.now)));
            }
            Command::Retry { run, only, reply } => {
                if let Err(refused) = self.retry(run, only, work).await {
                    // A client that went away is not told.
                    reply.send(Err(refused)).ok();
                } else {
                    work.retries.push(reply);
                }
            }
            Command::CancelSteps { run, steps, reply } => {
                self.apply(&Input::CancelSteps { run, steps }, work);
                work.cancels.push(reply);
            }
        }
        Ok(())
    }

    /// A run that is done was forgotten by the core: it is taken back from its journal.
    async fn retry(&mut self, run: RunId, only: Vec<Missed>, work: &mut Work) -> Result<(), NotRetried> {
        let forgotten = self.core.run_summary(run).is_none();
        if forgotten {
            // Nobody else's run suffers from one that is damaged, or from readers that keep the store busy (P21).
            let entries = tokio::time::timeout(RECALL_MAX, self.shared.store.entries_to_recall(run)).await;
            let recalled = entries.map_err(|_| "the store did not answer in time".to_owned()).and_then(|entries| {
                let entries = entries.map_err(|error| error.to_string())?;
                self.core.recall(run, entries).map_err(|illegal| illegal.to_string())
            });
            if let Err(reason) = recalled {
                tracing::error!(reason, %run, "a run cannot be opened again");
                return Err(NotRetried::Unknown);
            }
        }
        let refused = self.core.retryable(run, &only).err();
        match refused {
            // As it was, it need not be in memory. One that is, is there for whatever this batch still writes of it.
            Some(_) if forgotten => self.core.forget(run),
            Some(_) => {}
            None => self.apply(&Input::Retry { run, only }, work),
        }
        refused.map_or(Ok(()), Err)
    }

    fn internal(&mut self, internal: Internal, work: &mut Work) {
        match internal {
            Internal::Confirmed { id, about } => {
                // A batch that was published again is confirmed again.
                if self.outbox_done(id) {
                    self.job_confirmed(&about);
                }
            }
            Internal::Returned { id, about } => {
                if self.outbox_done(id) {
                    self.job_confirmed(&about);
                    let kind = if matches!(about, OutboxAbout::Control) { "control" } else { "job" };
                    metrics::counter!("longshore_returned_total", "kind" => kind).increment(1);
                    if let OutboxAbout::Job { claim, .. } = about {
                        self.apply(&Input::Returned { claim }, work);
                    }
                }
            }
            Internal::Waiting { queue, dispatched, messages } => {
                // P6: seen empty before a later job arrived there says nothing of that job.
                if self.jobs.get(&queue).is_none_or(|(now, _)| *now == dispatched) {
                    self.apply(&Input::Waiting { queue, messages }, work);
                }
            }
            Internal::Sealed { claim, chunks: Ok(chunks) } => {
                self.logs.sealed(&claim, &chunks);
                work.batch.chunks.extend(chunks.into_iter().map(|(chunk, _)| chunk));
            }
            Internal::Sealed { claim, chunks: Err(error) } => {
                tracing::error!(%error, run = %claim.run, "a log stays open: it could not be sealed");
                self.logs.sealed(&claim, &[]);
            }
        }
    }

    fn outbox_done(&mut self, id: i64) -> bool {
        let known = self.outstanding.remove(&id);
        self.confirmed.extend(known.then_some(id));
        known
    }

    fn job_confirmed(&mut self, about: &OutboxAbout) {
        if let OutboxAbout::Job { queue, .. } = about
            && let Some((_, confirmed)) = self.jobs.get_mut(queue)
        {
            *confirmed += 1;
        }
    }

    /// P1: what cannot be read goes to the dead letters and never wedges a consumer. A task does it,
    /// because the broker may be away; it is bounded by the prefetch, each being unacknowledged.
    fn read<M>(
        &mut self,
        decode: impl FnOnce(&[u8]) -> Result<M, Unreadable>,
        mut delivery: Delivery,
        work: &mut Work,
        then: impl FnOnce(&mut Self, M, &mut Work),
    ) {
        match decode(&delivery.body) {
            Ok(message) => {
                // Only its ack is still wanted: of output there are megabytes in a batch, in three forms.
                delivery.body = Vec::new();
                then(self, message, work);
                work.acks.push(delivery);
            }
            Err(reason) => self.dead_letter(delivery, reason),
        }
    }

    fn dead_letter(&self, delivery: Delivery, reason: Unreadable) {
        let (broker, topology) = (self.shared.broker.clone(), self.shared.topology.clone());
        let stop = self.hands.stop.clone();
        self.hands.tracker.spawn(async move {
            let moved = dead_letter(&broker, &topology, delivery, &reason);
            if let Some(Err(error)) = stop.run_until_cancelled(moved).await {
                tracing::warn!(%error, "an unreadable message was not dead-lettered: it comes again");
            }
        });
    }

    fn events(&mut self, messages: Vec<EventMessage>, work: &mut Work) {
        for message in messages {
            self.apply(&Input::Event(message), work);
        }
    }

    fn heartbeat(&mut self, message: HeartbeatMessage, work: &mut Work) {
        match message {
            HeartbeatMessage::Heartbeat(heartbeat) => self.apply(&Input::Heartbeat(heartbeat), work),
            HeartbeatMessage::Tick { epoch, number } => {
                // P8: at most one is under way, so a number counts once, and a predecessor's not at all.
                if epoch == self.epoch
                    && let Some(in_time) = self.ticks.came_back(number, self.shared.lease)
                {
                    self.hands.tick_back.send_replace(number);
                    self.say_what_is_under_way(work);
                    if in_time {
                        self.apply(&Input::Tick { epoch }, work);
                    }
                    work.workers_changed = true;
                    if number % LOOK_TICKS == 0 {
                        self.look();
                    }
                }
            }
        }
    }

    /// P6: a worker is not blamed for what its queue does not hold yet. A broker that was killed may take half a minute
    /// until it takes a job; one that was given up meanwhile would be carried out beside its successor, in whose
    /// parent's container.
    fn say_what_is_under_way(&mut self, work: &mut Work) {
        let unconfirmed = self.jobs.iter().filter(|(_, (dispatched, confirmed))| dispatched != confirmed);
        let to: BTreeSet<WorkerId> = unconfirmed
            .filter_map(|(queue, _)| match queue {
                JobQueue::Worker(worker) => Some(worker.clone()),
                JobQueue::Pool(_) => None,
            })
            .collect();
        self.apply(&Input::UnderWay { to }, work);
    }

    /// P6: only where every job is confirmed; what is still in the outbox cannot be in the queue.
    fn look(&self) {
        let arrived = |queue: JobQueue| {
            let (dispatched, confirmed) = self.jobs.get(&queue).copied().unwrap_or_default();
            (dispatched == confirmed).then_some((queue, dispatched))
        };
        let looks: Vec<Look> = self.core.queues_to_watch().into_iter().filter_map(arrived).collect();
        // One that is still looking looks again some ticks later.
        drop(self.hands.looks.try_send(looks));
    }

    fn output(&mut self, message: OutputMessage, work: &mut Work) {
        let OutputMessage { worker, incarnation, claim, runs } = message;
        match self.core.output_fence(&worker, incarnation, &claim) {
            fence
                if fence == OutputFence::Current
                    || (fence == OutputFence::Stale && breach::is(Breach::StaleOutputStored)) =>
            {
                match self.logs.take(&claim, runs) {
                    Some(taken) => {
                        for stream in [Stream::Stdout, Stream::Stderr] {
                            *work.output.of_mut(stream) += taken.new.of(stream);
                        }
                        // P15: also if all of it was stored before, so that whoever sends it again hears so.
                        if taken.new.total() > 0 || !taken.gap {
                            self.apply(&Input::Stored { claim: claim.clone(), offsets: taken.stored }, work);
                        }
                        // P14: after what was stored, so that it is asked for from there.
                        if taken.gap {
                            metrics::counter!("longshore_output_gaps_total").increment(1);
                            self.apply(&Input::Gap { claim, stored: taken.stored }, work);
                        }
                    }
                    None => fenced("output"),
                }
            }
            OutputFence::Early => {
                metrics::counter!("longshore_output_early_total").increment(1);
                if self.early.len() < EARLY_MAX {
                    self.early.insert((claim.run, claim.execution, claim.attempt));
                }
            }
            _ => fenced("output"),
        }
    }

    fn apply(&mut self, input: &Input, work: &mut Work) {
        let step = self.core.apply(input, self.now);
        self.absorb(step, work);
    }

    fn absorb(&mut self, step: Step, work: &mut Work) {
        for kind in &step.fenced {
            fenced(kind.word());
        }
        if step.repeats > 0 {
            metrics::counter!("longshore_event_repeats_total").increment(u64::from(step.repeats));
        }
        for effect in step.effects {
            self.effect(effect, work);
        }
        let mut overtaken = Vec::new();
        for entry in step.entries {
            match &entry {
                Entry::LogClosed { run, execution, attempt, gap } => {
                    let claim = Claim { run: *run, execution: *execution, attempt: *attempt };
                    self.logs.close(&claim, *gap, &mut self.counters.change, &mut work.batch);
                }
                Entry::Accepted { run, execution, attempt, .. } if self.early.remove(&(*run, *execution, *attempt)) => {
                    overtaken.push(Claim { run: *run, execution: *execution, attempt: *attempt });
                }
                Entry::Joined { .. } | Entry::Back { .. } | Entry::LeaseEnded { .. } => work.workers_changed = true,
                _ => {}
            }
            work.supersede(&entry);
            self.counters.seq += 1;
            work.batch.entries.push(EntryRow { seq: self.counters.seq, at_ms: self.now, entry });
        }
        work.runs.extend(step.runs);
        work.steps.extend(step.touched);
        // P12: output that overtook its claim is asked for now that the owner is known.
        for claim in overtaken {
            if let Some(stored) = self.logs.stored(&claim) {
                self.apply(&Input::Gap { claim, stored }, work);
            }
        }
    }

    fn effect(&mut self, effect: Effect, work: &mut Work) {
        let topology = &self.shared.topology;
        let (about, to, body) = match effect {
            Effect::Dispatch { queue, job } => {
                let claim = Claim { run: job.run, execution: job.execution, attempt: job.attempt };
                self.logs.begin(&claim);
                // A remake's log has a name of its own (P20); its command sees the step's.
                let step = self.core.log_name(&claim).unwrap_or_else(|| job.step.clone());
                work.batch.logs.push(NewLog { claim: claim.clone(), step });
                let to = queue_of(topology, self.shard, &queue).address();
                self.jobs.entry(queue.clone()).or_default().0 += 1;
                (OutboxAbout::Job { queue, claim }, to, wire::encode(&*job))
            }
            Effect::Tell { worker, incarnation, control } => {
                let to = topology.control(&worker).address();
                // P22: every control message carries the epoch and whom it addresses.
                let message = ControlMessage { epoch: self.epoch, worker, incarnation, control };
                (OutboxAbout::Control, to, wire::encode(&message))
            }
        };
        self.counters.outbox += 1;
        self.outstanding.insert(self.counters.outbox);
        work.batch.outbox.push(OutboxRow { id: self.counters.outbox, about, to, body });
    }
}

fn fenced(kind: &'static str) {
    metrics::counter!("longshore_fenced_total", "kind" => kind).increment(1);
}
