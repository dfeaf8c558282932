//! How fast output is sent while steps run beside each other, so that none of them feels what another one prints.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Of all attempts of a worker together. At this pace all of the way into the store takes half of one processor on the
/// reference machine, where the store is, and a quiet step's lines are as soon there as without it; at twice the pace
/// they took a third longer, without one six times as long (`docs/decisions/output.md`).
const BYTES_PER_SEC: u64 = 8 * 1024 * 1024;

/// What is shorter is not held up, a quiet step's lines for one, and takes nothing from the others.
const HELD_BYTES_MIN: usize = 64 * 1024;

/// The pace of one worker. Whoever comes first is let through first.
#[derive(Debug)]
pub(crate) struct Pace {
    /// When what was let through so far has taken its time.
    free: Mutex<Instant>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { free: Mutex::new(Instant::now()) }
    }
}

impl Pace {
    /// Waits until so many bytes may be sent. Dropped while it waits, its turn passes unused.
    pub(crate) async fn turn(&self, bytes: usize) {
        if bytes >= HELD_BYTES_MIN {
            sleep_until(self.place(bytes as u64)).await;
        }
    }

    fn place(&self, bytes: u64) -> Instant {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = Instant::now().max(*free);
        *free = turn + Duration::from_micros(bytes.saturating_mul(1_000_000) / BYTES_PER_SEC);
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: usize = 256 * 1024;

    #[tokio::test(start_paused = true)]
    async fn all_of_a_worker_have_one_pace_and_little_is_not_held_up() {
        let pace = Pace::default();
        let began = Instant::now();
        let noisy = async || {
            for _ in 0..32 {
                pace.turn(MESSAGE).await;
            }
            began.elapsed()
        };
        let quiet = async {
            for _ in 0..1_000 {
                pace.turn(100).await;
            }
            began.elapsed()
        };
        let (one, other, quiet) = tokio::join!(noisy(), noisy(), quiet);
        // 16 MiB, of which the last message has not taken its time yet.
        assert!(one.max(other) > Duration::from_millis(1_900) && one.max(other) <= Duration::from_secs(2), "{other:?}");
        assert!(one.abs_diff(other) < Duration::from_millis(100), "{one:?} and {other:?}: turn about");
        assert_eq!(quiet, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_used_is_not_made_up_for() {
        let pace = Pace::default();
        pace.turn(MESSAGE).await;
        tokio::time::sleep(Duration::from_mins(1)).await;
        let began = Instant::now();
        for _ in 0..33 {
            pace.turn(MESSAGE).await;
        }
        assert!(began.elapsed() >= Duration::from_millis(999), "{:?}", began.elapsed());
    }
}
