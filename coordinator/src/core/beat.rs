//! Heartbeats (P7), the lease clock (P8), and jobs that nobody claims (P6).

use longshore_protocol::breach::{self, Breach};
use longshore_protocol::event::Phase;
use longshore_protocol::heartbeat::Heartbeat;
use longshore_protocol::{Epoch, WorkerId};

use super::decide::{Core, Fenced, Speaker, Step};
use super::entry::{End, Entry};
use super::hear::Speech;
use super::input::Millis;
use super::state::Standing;

/// What [`SnapshotId::cached`](longshore_protocol::SnapshotId::cached) begins with. Only these are remembered: a
/// step is sent after a snapshot of a key by what heartbeats say, after its parent's by the journal.
const CACHED: &str = "longshore/cache:";

impl Core {
    pub(super) fn beat(&mut self, heartbeat: &Heartbeat, now: Millis, out: &mut Step) {
        let speech = Speech { worker: &heartbeat.worker, incarnation: heartbeat.incarnation, number: 0 };
        match self.speaker(speech.worker, speech.incarnation) {
            Speaker::Current => {
                self.beat_current(speech, heartbeat, now, out);
                self.answer(speech, heartbeat, out); // P18: the lease has begun anew
            }
            Speaker::New => self.beat_new(speech, heartbeat, out),
            Speaker::Old if breach::is(Breach::OldIncarnationHeard) => self.beat_current(speech, heartbeat, now, out),
            Speaker::Old => out.fenced.push(Fenced::Incarnation),
            Speaker::Clone => Self::refuse(speech, out),
        }
    }

    /// Its `hello` is on its way, unless it was lost.
    fn beat_new(&mut self, speech: Speech, heartbeat: &Heartbeat, out: &mut Step) {
        let tick = self.fleet.tick;
        let stranger = self.stranger(speech);
        stranger.heartbeat = Some(heartbeat.clone());
        let since = stranger.since;
        if heartbeat.last_event > 0 && since + u64::from(self.config.resend_ticks) <= tick {
            self.ask_stranger(speech, out);
        }
    }

    fn beat_current(&mut self, speech: Speech, heartbeat: &Heartbeat, now: Millis, out: &mut Step) {
        let worker = &self.state.workers[speech.worker];
        let heard = worker.number;
        if !worker.alive {
            self.commit(Entry::Back { worker: speech.worker.clone() }, now, out);
        }
        let tick = self.fleet.tick;
        let seen = self.fleet.seen.entry(speech.worker.clone()).or_default();
        seen.tick = tick;
        seen.slots_free = Some(heartbeat.slots_free);
        seen.disk_free_bytes = heartbeat.disk_free_bytes;
        seen.full.clone_from(&heartbeat.full);
        seen.snapshots = u32::try_from(heartbeat.snapshots.len()).unwrap_or(u32::MAX);
        seen.parked = u32::try_from(heartbeat.parked.len()).unwrap_or(u32::MAX);
        let held = heartbeat.attempts.iter().filter(|record| !matches!(record.phase, Phase::Finished(_))).count();
        seen.closed = heartbeat.slots_free == 0 && held < heartbeat.slots as usize;
        let cached = heartbeat.snapshots.iter().filter(|snapshot| snapshot.as_str().starts_with(CACHED));
        self.fleet.has_cached(speech.worker, cached.cloned().collect());
        self.recount(speech.worker);

        // P7: a heartbeat overtakes events. Until all that were sent before it are in, what it adds to them is
        // not news, and what it lacks proves nothing.
        if heartbeat.last_event <= heard || breach::is(Breach::NotHeldAtOnce) {
            for record in &heartbeat.attempts {
                self.record(speech, record, now, out);
            }
            let number = if breach::is(Breach::NotHeldAtOnce) { u64::MAX } else { heartbeat.last_event };
            self.not_listed(speech, number, &heartbeat.attempts, now, out);
            self.release_unneeded(speech, &heartbeat.parked, out);
            return;
        }
        for record in &heartbeat.attempts {
            let standing = self.state.standing(speech.worker, &record.claim);
            if matches!(standing, Standing::Stale | Standing::Finisher(_)) {
                self.record(speech, record, now, out);
            }
        }
        let seen = self.fleet.seen.entry(speech.worker.clone()).or_default();
        let since = *seen.behind_since.get_or_insert(tick);
        if since + u64::from(self.config.resend_ticks) <= tick && !breach::is(Breach::GapIgnored) {
            // The last event before it may be lost, with none behind it that would show the gap (P9).
            self.ask_sync(speech.worker, out);
        }
    }

    /// P8: a second in which this coordinator was able to hear.
    pub(super) fn tick(&mut self, epoch: Epoch, now: Millis, out: &mut Step) {
        if epoch != self.epoch {
            return; // a predecessor's
        }
        self.fleet.tick += 1;
        let lease = u64::from(self.config.lease_ticks);
        let deadline = u64::from(self.config.accept_deadline_ticks);
        let alive: Vec<WorkerId> =
            self.state.workers.iter().filter(|(_, worker)| worker.alive).map(|(id, _)| id.clone()).collect();
        for worker in alive {
            let unheard = || self.fleet.seen.get(&worker).is_none_or(|seen| seen.slots_free.is_none());
            let unheard = breach::is(Breach::NoFreshLease) && unheard();
            if self.fleet.silence(&worker) >= lease || unheard {
                self.lease_ends(&worker, now, out);
            } else if self.fleet.seen.get(&worker).is_some_and(|seen| seen.slots_free.is_some_and(|free| free > 0)) {
                for key in self.fleet.queues.free_tick(&worker, deadline) {
                    self.gone(key, "its worker had a free slot, and did not claim it", now, out);
                }
            }
        }
        for key in self.fleet.queues.overdue(self.fleet.tick, deadline) {
            self.gone(key, "it left its queue, and nobody claimed it", now, out);
        }
        self.look_at_due_logs(now, out);
    }

    /// P8, P11: whatever it owned is over now, and what was meant for it is dispatched anew (P6).
    fn lease_ends(&mut self, worker: &WorkerId, now: Millis, out: &mut Step) {
        self.commit(Entry::LeaseEnded { worker: worker.clone() }, now, out);
        let known = &self.state.workers[worker];
        let owned: Vec<_> = known.owned.keys().copied().collect();
        let spooled: Vec<_> = known.spooled.keys().copied().collect();
        for key in owned {
            let reason = format!("worker {worker} was not heard of for {} s", self.config.lease_ticks);
            self.end(key, End::Lost { reason }, now, out);
            self.close_lost(key, now, out);
        }
        for key in spooled {
            if breach::is(Breach::LeaseEndsWhatIsOver) {
                self.end(key, End::Lost { reason: "its lease ended".to_owned() }, now, out);
            }
            self.close_lost(key, now, out);
        }
        for key in self.fleet.queues.of_worker(worker) {
            self.gone(key, "the worker it was meant for was lost", now, out);
        }
    }
}
