//! The moments that entries are stamped with.

use longshore_protocol::process::wall_ms;
use tokio::time::Instant;

use crate::core::input::Millis;

/// The host's clock for as long as it goes on; where somebody sets it back, time passes all the same, from what it
/// showed. So the core, which compares moments, never sees one twice, and what it waits for comes after that time and
/// not after the clock has caught up.
#[derive(Debug)]
pub(super) struct Calendar {
    shown: Millis,
    at: Instant,
}

impl Calendar {
    /// Goes on behind the newest moment in the journal.
    pub(super) fn behind(newest: Millis) -> Self {
        Self { shown: newest, at: Instant::now() }
    }

    /// Never before any that it answered.
    pub(super) fn now(&mut self) -> Millis {
        let passed = u64::try_from(self.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (gone_on, wall) = (self.shown.saturating_add(passed), wall_ms());
        if wall > gone_on {
            *self = Self { shown: wall, at: Instant::now() };
        }
        wall.max(gone_on)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_passes_behind_a_clock_that_was_set_back() {
        let ahead = wall_ms() + 7_200_000;
        let mut calendar = Calendar::behind(ahead);
        assert_eq!(calendar.now(), ahead);
        for _ in 0..4 {
            tokio::time::advance(Duration::from_micros(500)).await;
            calendar.now();
        }
        assert_eq!(calendar.now(), ahead + 2, "the parts of a millisecond count");
    }

    #[tokio::test(start_paused = true)]
    async fn the_hosts_clock_is_followed() {
        let began = wall_ms();
        let shown = Calendar::behind(5).now();
        assert!((began..began + 60_000).contains(&shown), "{shown}");
    }
}
