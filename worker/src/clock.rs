//! The wall clock, for stamps that people read, and the host's own, for times by which something is to have ended.
//! Durations are measured with `Instant`.

use std::sync::OnceLock;
use std::time::{Duration, Instant as Clock};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

pub(crate) use longshore_protocol::process::wall_ms as now_ms;

/// A moment of the host's `CLOCK_BOOTTIME`, ms. It goes on while the host sleeps, and is the supervisors' clock as well
/// (P17, P18).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Boot(
    /// Since the host's start.
    pub u64,
);

impl Boot {
    /// Now. Where tokio's time is paused, so is this.
    pub fn now() -> Self {
        static FIRST: OnceLock<(Duration, Clock)> = OnceLock::new();
        #[cfg(feature = "simulated")]
        if let Some(ms) = longshore_protocol::process::simulated::boot_ms() {
            return Self(ms);
        }
        // Tokio counts by the monotonic clock unless a test has paused it. What the host slept is all that lacks there.
        // P18: what passes between two readings may only put this clock back: then a lease ends early, not late.
        let (at, first) = FIRST.get_or_init(|| (read(ClockId::Monotonic), Clock::now()));
        let now = Instant::now().into_std();
        let awake = match now.checked_duration_since(*first) {
            Some(since) => *at + since,
            None => at.saturating_sub(first.duration_since(now)),
        };
        let slept = read(ClockId::Boottime).saturating_sub(read(ClockId::Monotonic));
        Self(millis(awake + slept))
    }

    /// So much later.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(millis(time)))
    }

    /// So much earlier.
    #[must_use]
    pub fn before(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(millis(time)))
    }

    /// How long it is until then; nothing if it is over.
    pub fn away(self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(Self::now().0))
    }
}

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    Duration::from_secs(part(time.tv_sec)) + Duration::from_nanos(part(time.tv_nsec))
}

/// Milliseconds since then.
pub(crate) fn since_ms(then: Instant) -> u64 {
    millis(then.elapsed())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p17_p18_it_is_the_clock_of_the_supervisors_and_never_ahead_of_it() {
        let before = millis(read(ClockId::Boottime));
        let now = Boot::now().0;
        let after = millis(read(ClockId::Boottime));
        // A millisecond for what is lost between readings of two clocks.
        assert!((before.saturating_sub(1)..=after).contains(&now), "{before} {now} {after}");
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_paused_with_everything_else() {
        let began = Boot::now();
        tokio::time::sleep(Duration::from_hours(1)).await;
        assert_eq!(Boot::now(), began.after(Duration::from_hours(1)));
        assert_eq!(began.away(), Duration::ZERO);
    }
}
