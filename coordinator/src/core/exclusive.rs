//! Exclusive steps (P18): what their owners are told. What is never done with them stands where it would be: they are
//! committed (`dispatch`), and not made again (`lineage`).

use longshore_protocol::control::Control;
use longshore_protocol::event::Phase;
use longshore_protocol::heartbeat::Heartbeat;
use longshore_protocol::lease::VOID_BEFORE_END;

use super::decide::{Core, Step};
use super::hear::Speech;
use super::input::Millis;
use super::state::{Key, Standing};

impl Core {
    fn is_exclusive(&self, key: Key) -> bool {
        self.state.runs[&key.run].planned(key.step).spec.exclusive
    }

    /// The owner of an exclusive attempt has just said that it holds it, and may start it from now on. Its lease begins
    /// anew: it counts what it may do from when it said so.
    pub(super) fn go(&mut self, speech: Speech, key: Key, out: &mut Step) {
        let wanted = self.state.runs[&key.run].cancelled_by(key.step).is_none();
        if !self.is_exclusive(key) || !wanted || self.state.attempt(key).started_at.is_some() {
            return;
        }
        let tick = self.fleet.tick;
        self.fleet.seen.entry(speech.worker.clone()).or_default().tick = tick;
        let claim = self.state.claim(key);
        Self::tell(speech.worker, speech.incarnation, Control::Go { claim }, out);
    }

    /// The same to one that still waits for it, as a heartbeat tells; unless it could only come too late.
    pub(super) fn go_again(&mut self, speech: Speech, key: Key, now: Millis, out: &mut Step) {
        let lease_ms = u64::from(self.config.lease_ticks) * 1000;
        let void_ms = lease_ms.saturating_sub(u64::try_from(VOID_BEFORE_END.as_millis()).unwrap_or(u64::MAX));
        if self.state.attempt(key).accepted_at.is_some_and(|at| now.saturating_sub(at) < void_ms) {
            self.go(speech, key, out);
        }
    }

    /// Answers a heartbeat, which has just begun its worker's lease anew, where somebody counts on that.
    pub(super) fn answer(&self, speech: Speech, heartbeat: &Heartbeat, out: &mut Step) {
        let held = heartbeat.attempts.iter().filter(|record| !matches!(record.phase, Phase::Finished(_)));
        let exclusive = held.filter(|record| match self.state.standing(speech.worker, &record.claim) {
            Standing::Owner(key) => self.is_exclusive(key),
            Standing::Unknown | Standing::Ownerless(_) | Standing::Finisher(_) | Standing::Stale => false,
        });
        let claims: Vec<_> = exclusive.map(|record| record.claim.clone()).collect();
        if !claims.is_empty() {
            let stamp_ms = heartbeat.stamp_ms;
            Self::tell(speech.worker, speech.incarnation, Control::Heard { stamp_ms, claims }, out);
        }
    }
}
