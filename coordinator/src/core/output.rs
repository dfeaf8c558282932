//! When a log is complete, and what is asked for until then (P14).

use longshore_protocol::WorkerId;
use longshore_protocol::control::Control;
use longshore_protocol::event::Claim;
use longshore_protocol::output::Offsets;

use super::decide::{Core, Step};
use super::entry::{End, Entry, LogGap};
use super::input::Millis;
use super::spool::Because;
use super::state::Key;

impl Core {
    /// Output came, and is stored up to here.
    pub(super) fn stored(&mut self, claim: &Claim, offsets: Offsets, now: Millis, out: &mut Step) {
        let Some(key) = self.state.key(claim) else { return };
        let grown = self.fleet.logs.stored(key, offsets, self.fleet.tick);
        self.close_if_complete(key, now, out);
        self.tell_stored(key, if grown { Because::Grown } else { Because::Repeat }, out);
    }

    /// P15: tells the worker of a log that is open how much of it is stored, if it should hear that.
    fn tell_stored(&mut self, key: Key, because: Because, out: &mut Step) {
        let attempt = self.state.attempt(key);
        let Some(owner) = attempt.owner.clone().filter(|_| attempt.log.is_none()) else { return };
        if self.fleet.logs.should_tell(key, because, self.fleet.tick) {
            let stored = self.fleet.logs.offsets(key);
            self.tell_worker(&owner, Control::Stored { claim: self.state.claim(key), stored }, out);
        }
    }

    /// P15: a new incarnation knows nothing of what is stored, and would send all of it again.
    pub(super) fn tell_stored_again(&mut self, worker: &WorkerId, out: &mut Step) {
        let Some(known) = self.state.workers.get(worker) else { return };
        let open: Vec<Key> = known.owned.keys().chain(known.spooled.keys()).copied().collect();
        for key in open {
            self.tell_stored(key, Because::Joined, out);
        }
    }

    /// Output arrived that does not continue what is stored.
    pub(super) fn gap(&mut self, claim: &Claim, stored: Offsets, now: Millis, out: &mut Step) {
        let Some(key) = self.state.key(claim) else { return };
        self.fleet.logs.stored(key, stored, self.fleet.tick);
        self.close_if_complete(key, now, out);
        self.ask_resend(key, out);
    }

    /// P14: closes a log that has every byte that `finished` counted, and lets the worker drop its spool.
    pub(super) fn close_if_complete(&mut self, key: Key, now: Millis, out: &mut Step) {
        let attempt = self.state.attempt(key);
        let (Some(End::Finished { output, .. }), None, Some(owner)) = (&attempt.end, attempt.log, &attempt.owner)
        else {
            return;
        };
        let stored = self.fleet.logs.offsets(key);
        if stored.stdout < output.stdout || stored.stderr < output.stderr {
            return;
        }
        let owner = owner.clone();
        self.close(key, LogGap::None, now, out);
        if self.state.workers[&owner].alive {
            self.tell_worker(&owner, Control::Settled { claim: self.state.claim(key) }, out);
        }
    }

    /// P14: closes the log of an attempt that is over, and whose worker will never send the rest.
    pub(super) fn close_lost(&mut self, key: Key, now: Millis, out: &mut Step) {
        let attempt = self.state.attempt(key);
        if attempt.log.is_some() || attempt.owner.is_none() {
            return;
        }
        let gap = match &attempt.end {
            Some(End::Finished { output, .. }) => {
                let stored = self.fleet.logs.offsets(key);
                LogGap::Bytes {
                    missing: Offsets {
                        stdout: output.stdout.saturating_sub(stored.stdout),
                        stderr: output.stderr.saturating_sub(stored.stderr),
                    },
                }
            }
            Some(_) => LogGap::EndUnknown,
            None => return,
        };
        self.close(key, gap, now, out);
    }

    fn close(&mut self, key: Key, gap: LogGap, now: Millis, out: &mut Step) {
        let Claim { run, execution, attempt } = self.state.claim(key);
        self.commit(Entry::LogClosed { run, execution, attempt, gap }, now, out);
    }

    /// Finished attempts whose logs have stood still for some ticks: asks for the rest.
    pub(super) fn look_at_due_logs(&mut self, now: Millis, out: &mut Step) {
        let tick = self.fleet.tick;
        let patience = u64::from(self.config.resend_ticks);
        for key in self.fleet.logs.take_due(tick) {
            self.close_if_complete(key, now, out);
            let still = self.fleet.logs.grew(key) + patience <= tick;
            if still {
                self.ask_resend(key, out);
            }
            // A closed log is not there to be expected any more.
            let next = if still { tick } else { self.fleet.logs.grew(key) } + patience;
            self.fleet.logs.expect_rest(key, next);
        }
    }

    /// Asks the owner for everything after what is stored.
    fn ask_resend(&mut self, key: Key, out: &mut Step) {
        let attempt = self.state.attempt(key);
        let Some(owner) = attempt.owner.clone().filter(|_| attempt.log.is_none()) else { return };
        if self.fleet.logs.may_ask(key, self.fleet.tick, u64::from(self.config.resend_ticks)) {
            let stored = self.fleet.logs.offsets(key);
            self.tell_worker(&owner, Control::Resend { claim: self.state.claim(key), stored }, out);
        }
    }

    /// The attempts whose logs are open. A driver that starts feeds [`Input::Stored`](super::input::Input::Stored)
    /// for each from its store, before anything else.
    pub fn open_logs(&self) -> Vec<Claim> {
        let workers = self.state.workers.values();
        workers
            .flat_map(|worker| worker.owned.keys().chain(worker.spooled.keys()))
            .map(|key| self.state.claim(*key))
            .collect()
    }

    /// Whether a run is settled and every log of it closed: nothing of it will change any more.
    pub fn is_done(&self, run: longshore_protocol::RunId) -> bool {
        self.state.runs.get(&run).is_some_and(super::state::Run::is_done)
    }

    /// Drops a run that [is done](Self::is_done) from memory; any other stays. The caller answers from its store
    /// from now on, and must look there before it submits a run: the core does not know it any more.
    pub fn forget(&mut self, run: longshore_protocol::RunId) {
        if self.is_done(run) {
            self.state.runs.remove(&run);
        }
    }
}
