//! Workers' events: numbers (P9), incarnations (P10), claims (P5), results (P11), and what is stale (P12).

use std::collections::BTreeSet;

use longshore_protocol::breach::{self, Breach};
use longshore_protocol::control::Control;
use longshore_protocol::event::{AttemptRecord, Claim, Event, EventMessage, Finished, Hello, Phase, Started};
use longshore_protocol::outcome::{CancelledBy, InfraStage, Outcome};
use longshore_protocol::{Incarnation, WorkerId};

use super::decide::{Core, Fenced, Speaker, Step};
use super::entry::{End, Entry};
use super::fleet::Stranger;
use super::input::Millis;
use super::state::{Key, Standing};

/// Why a cloned disk's worker is refused (P10), with the mend.
const CLONED: &str = "another worker with this id began the same start: the state directory was copied. Give this \
                      worker a state directory of its own";

/// Who says something, and with which number.
#[derive(Clone, Copy)]
pub(super) struct Speech<'a> {
    pub(super) worker: &'a WorkerId,
    pub(super) incarnation: Incarnation,
    /// Of the event; 0 in a heartbeat.
    pub(super) number: u64,
}

impl Core {
    pub(super) fn hear(&mut self, message: &EventMessage, now: Millis, out: &mut Step) {
        let speech = Speech { worker: &message.worker, incarnation: message.incarnation, number: message.number };
        match self.speaker(speech.worker, speech.incarnation) {
            Speaker::Current => self.hear_current(speech, &message.event, now, out),
            Speaker::New => self.hear_new(speech, &message.event, now, out),
            Speaker::Old => out.fenced.push(Fenced::Incarnation),
            Speaker::Clone => Self::refuse(speech, out),
        }
    }

    /// P10: the same start with another nonce.
    pub(super) fn refuse(speech: Speech, out: &mut Step) {
        out.fenced.push(Fenced::Incarnation);
        Self::tell(speech.worker, speech.incarnation, Control::Refused { reason: CLONED.to_owned() }, out);
    }

    fn hear_current(&mut self, speech: Speech, event: &Event, now: Millis, out: &mut Step) {
        let last = self.state.workers[speech.worker].number;
        if speech.number <= last {
            out.repeats += 1; // P9
            return;
        }
        let closes_gap = matches!(event, Event::Records { .. });
        if speech.number > last + 1 && !closes_gap && !breach::is(Breach::GapIgnored) {
            self.ask_sync(speech.worker, out);
            return;
        }
        self.heard(speech, now, out);
        match event {
            Event::Accepted(claim) => self.accepted(speech, claim, now, out),
            Event::Started(started) => self.started(speech, started, now, out),
            Event::Finished(finished) => self.finished(speech, finished, now, out),
            Event::Records { records } | Event::Hello(Hello { records, .. }) => {
                self.records(speech, records, now, out);
            }
        }
    }

    fn heard(&mut self, speech: Speech, now: Millis, out: &mut Step) {
        let Speech { worker, incarnation, number } = speech;
        self.commit(Entry::Heard { worker: worker.clone(), incarnation, number }, now, out);
    }

    /// P10: an incarnation that is not known yet begins with `hello`. If that was lost, a sync's records and a
    /// heartbeat say as much together.
    fn hear_new(&mut self, speech: Speech, event: &Event, now: Millis, out: &mut Step) {
        match event {
            Event::Hello(hello) => self.join(speech, hello, &hello.records, now, out),
            Event::Records { records } => match self.hello_of_stranger(speech) {
                Some(hello) => self.join(speech, &hello, records, now, out),
                None => self.ask_stranger(speech, out),
            },
            _ => self.ask_stranger(speech, out),
        }
    }

    fn join(&mut self, speech: Speech, hello: &Hello, records: &[AttemptRecord], now: Millis, out: &mut Step) {
        let Speech { worker, incarnation, .. } = speech;
        let hello = Hello { records: Vec::new(), ..hello.clone() };
        self.commit(Entry::Joined { worker: worker.clone(), incarnation, hello }, now, out);
        self.heard(speech, now, out);
        self.records(speech, records, now, out);
        self.tell_stored_again(worker, out);
    }

    fn hello_of_stranger(&self, speech: Speech) -> Option<Hello> {
        let stranger = self.fleet.strangers.get(speech.worker)?;
        let heartbeat = stranger.heartbeat.as_ref().filter(|_| stranger.incarnation == speech.incarnation)?;
        Some(Hello {
            engine: heartbeat.engine.clone(),
            pool: heartbeat.pool.clone(),
            slots: heartbeat.slots,
            version: "unknown".to_owned(),
            host: speech.worker.to_string(),
            records: Vec::new(),
        })
    }

    /// P9: asks a known worker for its records, once per gap and again after some ticks.
    pub(super) fn ask_sync(&mut self, worker: &WorkerId, out: &mut Step) {
        let tick = self.fleet.tick;
        let seen = self.fleet.seen.entry(worker.clone()).or_default();
        if seen.sync_asked.is_none_or(|then| then + u64::from(self.config.resend_ticks) <= tick) {
            seen.sync_asked = Some(tick);
            self.tell_worker(worker, Control::Sync, out);
        }
    }

    /// P9: the same for one whose `hello` is missing. Its number 1 may just be late: events keep their order, but
    /// heartbeats overtake them.
    pub(super) fn ask_stranger(&mut self, speech: Speech, out: &mut Step) {
        let tick = self.fleet.tick;
        let stranger = self.stranger(speech);
        let asked = stranger.sync_asked;
        if asked.is_none_or(|then| then + u64::from(self.config.resend_ticks) <= tick) {
            self.stranger(speech).sync_asked = Some(tick);
            Self::tell(speech.worker, speech.incarnation, Control::Sync, out);
        }
    }

    /// What is known of an incarnation that has not joined. A later start replaces an earlier one.
    pub(super) fn stranger(&mut self, speech: Speech) -> &mut Stranger {
        let tick = self.fleet.tick;
        let new = || Stranger { incarnation: speech.incarnation, heartbeat: None, since: tick, sync_asked: None };
        let stranger = self.fleet.strangers.entry(speech.worker.clone()).or_insert_with(new);
        if stranger.incarnation != speech.incarnation {
            *stranger = new();
        }
        stranger
    }

    /// P5: the first claim makes the owner; every later one by another is answered `abandon`.
    fn accepted(&mut self, speech: Speech, claim: &Claim, now: Millis, out: &mut Step) {
        match self.state.standing(speech.worker, claim) {
            Standing::Ownerless(key) => {
                if self.own(speech, key, now, out) {
                    self.go(speech, key, out);
                }
            }
            Standing::Owner(key) => self.go(speech, key, out), // P18: a heartbeat may have made it the owner
            Standing::Finisher(key) => self.call_off_again(speech, key, out),
            Standing::Stale if breach::is(Breach::SecondTakesOver) && self.take_over(speech, claim, now, out) => {}
            Standing::Stale | Standing::Unknown => Self::abandon(speech, claim, Fenced::Accepted, out),
        }
    }

    /// Makes the speaker the owner, unless its lease has ended: nobody would end that again. If it is there after
    /// all, its next heartbeat says both that and what it holds (P7).
    fn own(&mut self, speech: Speech, key: Key, now: Millis, out: &mut Step) -> bool {
        if !self.state.workers[speech.worker].alive {
            return false;
        }
        let Claim { run, execution, attempt } = self.state.claim(key);
        let worker = speech.worker.clone();
        // A heartbeat has none: it is behind all that was heard, and before what comes next.
        let number = if speech.number == 0 { self.state.workers[&worker].number + 1 } else { speech.number };
        self.commit(Entry::Accepted { run, execution, attempt, worker, number }, now, out);
        true
    }

    /// What P5 forbids.
    fn take_over(&mut self, speech: Speech, claim: &Claim, now: Millis, out: &mut Step) -> bool {
        let open = self.state.key(claim).filter(|key| self.state.attempt(*key).end.is_none());
        open.is_some_and(|key| self.own(speech, key, now, out))
    }

    fn started(&mut self, speech: Speech, started: &Started, now: Millis, out: &mut Step) {
        let claim = &started.claim;
        let key = match self.state.standing(speech.worker, claim) {
            Standing::Ownerless(key) if self.own(speech, key, now, out) => key,
            Standing::Owner(key) => key,
            Standing::Ownerless(_) | Standing::Finisher(_) => return,
            Standing::Stale | Standing::Unknown => return Self::abandon(speech, claim, Fenced::Started, out),
        };
        if self.state.attempt(key).started_at.is_none() {
            let Claim { run, execution, attempt } = claim.clone();
            let container = started.container.clone();
            self.commit(Entry::Started { run, execution, attempt, container }, now, out);
        }
    }

    /// P11: the outcome is fixed when the owner's `finished` is journalled.
    fn finished(&mut self, speech: Speech, finished: &Finished, now: Millis, out: &mut Step) {
        let claim = &finished.claim;
        match self.state.standing(speech.worker, claim) {
            Standing::Ownerless(key) => {
                if self.own(speech, key, now, out) {
                    self.end_finished(key, finished, now, out);
                }
            }
            Standing::Owner(key) => self.end_finished(key, finished, now, out),
            Standing::Finisher(key) => self.remind_settled(speech, key, out),
            Standing::Stale => Self::abandon(speech, claim, Fenced::Finished, out),
            Standing::Unknown => Self::let_go(speech, claim, Fenced::Finished, out),
        }
    }

    /// P9: every record of a worker, as facts. What it owned and does not list, it has lost.
    fn records(&mut self, speech: Speech, records: &[AttemptRecord], now: Millis, out: &mut Step) {
        for record in records {
            self.record(speech, record, now, out);
        }
        self.not_listed(speech, speech.number, records, now, out);
    }

    /// One record, from a hello, a sync, or a heartbeat.
    pub(super) fn record(&mut self, speech: Speech, record: &AttemptRecord, now: Millis, out: &mut Step) {
        let claim = &record.claim;
        let finished = match &record.phase {
            Phase::Finished(finished) => Some(&**finished),
            Phase::Preparing | Phase::Running | Phase::Snapshotting => None,
        };
        let key = match self.state.standing(speech.worker, claim) {
            Standing::Ownerless(key) if self.own(speech, key, now, out) => key,
            Standing::Ownerless(_) => return,
            Standing::Owner(key) => key,
            Standing::Finisher(key) if finished.is_some() => return self.remind_settled(speech, key, out),
            Standing::Finisher(key) => return self.call_off_again(speech, key, out),
            Standing::Unknown if finished.is_some() => return Self::let_go(speech, claim, Fenced::Record, out),
            Standing::Stale | Standing::Unknown => return Self::abandon(speech, claim, Fenced::Record, out),
        };
        if let Some(finished) = finished {
            self.end_finished(key, finished, now, out);
        } else if let Some(by) = self.state.runs[&key.run].cancelled_by(key.step)
            && !breach::is(Breach::CancelledGoesOn)
        {
            // It was told so before; a restart since then would have made it forget.
            Self::tell(speech.worker, speech.incarnation, Control::Cancel { claim: claim.clone(), by }, out);
        } else if record.phase == Phase::Preparing {
            // P18
            if speech.number == 0 { self.go_again(speech, key, now, out) } else { self.go(speech, key, out) }
        }
    }

    /// What a worker owned or spooled by `number`, and does not list now, it does not have any more.
    pub(super) fn not_listed(
        &mut self,
        speech: Speech,
        number: u64,
        records: &[AttemptRecord],
        now: Millis,
        out: &mut Step,
    ) {
        let listed: BTreeSet<Key> = records.iter().filter_map(|record| self.state.key(&record.claim)).collect();
        let worker = &self.state.workers[speech.worker];
        let missing = |(key, since): (&Key, &u64)| (*since <= number && !listed.contains(key)).then_some(*key);
        let lost: Vec<Key> = worker.owned.iter().filter_map(missing).collect();
        let unspooled: Vec<Key> = worker.spooled.iter().filter_map(missing).collect();
        for key in lost {
            self.end(key, End::Lost { reason: "its worker no longer has it".to_owned() }, now, out);
            self.close_lost(key, now, out);
        }
        for key in unspooled {
            self.close_lost(key, now, out);
        }
    }

    /// Writes a result, unless it says what its sender cannot know.
    fn end_finished(&mut self, key: Key, finished: &Finished, now: Millis, out: &mut Step) {
        let run = &self.state.runs[&key.run];
        let wanted = run.steps[run.original(key.step)].children > 0;
        let infra = match &finished.outcome {
            Outcome::Cancelled { .. } if run.cancelled_by(key.step).is_none() => {
                Some(Outcome::infra(InfraStage::Exec, "its worker cancelled it, though nobody had asked for that"))
            }
            Outcome::Skipped { .. } => Some(Outcome::infra(InfraStage::Exec, "its worker skipped it")),
            Outcome::Passed if finished.snapshot.is_none() && !finished.parked && wanted => {
                Some(Outcome::infra(InfraStage::Snapshot, "it passed, but its worker kept nothing for the next step"))
            }
            _ => None,
        };
        let end = End::Finished {
            outcome: infra.unwrap_or_else(|| finished.outcome.clone()),
            cached: finished.cached,
            output: finished.output,
            snapshot: finished.snapshot.clone(),
            parked: finished.parked,
            phases: finished.phases,
            usage: finished.usage,
        };
        self.end(key, end, now, out);
        self.close_if_complete(key, now, out);
    }

    /// A result that is in: once its log is closed too, the worker may let go of it.
    fn remind_settled(&self, speech: Speech, key: Key, out: &mut Step) {
        if self.state.attempt(key).log.is_some() {
            let claim = self.state.claim(key);
            Self::tell(speech.worker, speech.incarnation, Control::Settled { claim }, out);
        }
    }

    /// An attempt that is over and settled, and runs: its job came a second time (P3), after its record had gone.
    /// It is cancelled and not abandoned, because what it left the first time bears the same name.
    fn call_off_again(&self, speech: Speech, key: Key, out: &mut Step) {
        if self.state.attempt(key).log.is_some() {
            let control = Control::Cancel { claim: self.state.claim(key), by: CancelledBy::User };
            Self::tell(speech.worker, speech.incarnation, control, out);
        }
    }

    /// P12: kill it, and report nothing.
    fn abandon(speech: Speech, claim: &Claim, fenced: Fenced, out: &mut Step) {
        out.fenced.push(fenced);
        Self::tell(speech.worker, speech.incarnation, Control::Abandon { claim: claim.clone() }, out);
    }

    /// A result of a run that was forgotten: settled long ago, its `settled` missed by a restart. What it left may
    /// be kept for people, so it is not abandoned.
    fn let_go(speech: Speech, claim: &Claim, fenced: Fenced, out: &mut Step) {
        out.fenced.push(fenced);
        Self::tell(speech.worker, speech.incarnation, Control::Settled { claim: claim.clone() }, out);
    }
}
