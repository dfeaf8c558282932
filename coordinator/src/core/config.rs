//! The core's bounds, each with its reason, and the backoff that follows from them.

use std::collections::BTreeMap;

use longshore_protocol::{Attempt, ExecutionId};

use super::input::Millis;

/// How long the core waits, and how often it tries again. Ticks are seconds that came back (P8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreConfig {
    /// Ticks without a heartbeat that end a worker's lease (P8). 30: six heartbeats, so that five lost ones, or
    /// a restart of the broker (10 to 20 s), cost nobody a step.
    pub lease_ticks: u32,
    /// Ticks after which a job that nobody claimed is gone (P6). 30, as the lease: whoever took it and lives
    /// has published `accepted` by then, and who has not is lost by then.
    pub accept_deadline_ticks: u32,
    /// How often the fleet tries a step again after its own faults (promise 5). 3: a fault of one host is over
    /// with the first, one of the broker or registry usually within the backoff of three.
    pub infra_retries: u32,
    /// How many workers may be lost on one step before it is taken for poison (promise 5). 3: two may be bad luck.
    pub lost_max: u32,
    /// How often what one step left is made again (P20). 3, as the fleet's retries: a child that fails by the fleet's
    /// fault in a parked container uses up one with each try, and what is lost more often is lost for a reason.
    pub remakes_max: u32,
    /// Before the first retry, ms; each further one waits twice as long. 1 s: below it a daemon that restarts
    /// is not back yet.
    pub infra_backoff_ms: Millis,
    /// The longest backoff, ms. 30 s, a lease: after that nothing is gained by more patience.
    pub infra_backoff_max_ms: Millis,
    /// Ticks without progress after which missing events or output are asked for (again). 10: two heartbeats;
    /// a question costs one small message, and its answer is on its way for that long under load.
    pub resend_ticks: u32,
    /// Of slot-time: a tenant of weight 3 receives three times what one of weight 1 does while both have work waiting.
    /// Who is not named has 1.
    pub weights: BTreeMap<String, u32>,
}

impl Default for CoreConfig {
    fn default() -> Self {
        Self {
            lease_ticks: 30,
            accept_deadline_ticks: 30,
            infra_retries: 3,
            lost_max: 3,
            remakes_max: 3,
            infra_backoff_ms: 1_000,
            infra_backoff_max_ms: 30_000,
            resend_ticks: 10,
            weights: BTreeMap::new(),
        }
    }
}

/// The longest backoff of a user's rule, ms. An hour: what has not come back by then is looked at by somebody.
const USERS_BACKOFF_MAX_MS: Millis = 3_600_000;

impl CoreConfig {
    pub(super) fn weight(&self, tenant: &str) -> u32 {
        self.weights.get(tenant).copied().unwrap_or(1)
    }

    /// How long to wait after `attempt`, the `n`-th (from 1) that ended by the fleet's fault: doubling, capped,
    /// and ±25 % spread, so that a thousand steps that one broken host failed do not come back at once.
    ///
    /// The spread is a hash of what is retried: the core draws no random number.
    pub(super) fn backoff(&self, execution: ExecutionId, attempt: Attempt, n: u32) -> Millis {
        spread(doubled(self.infra_backoff_ms, n).min(self.infra_backoff_max_ms), execution, attempt)
    }
}

/// The same after the `n`-th failure of the user's own, whose rule says how long the first one waits.
pub(super) fn users_backoff(first: Millis, execution: ExecutionId, attempt: Attempt, n: u32) -> Millis {
    spread(doubled(first, n).min(USERS_BACKOFF_MAX_MS), execution, attempt)
}

fn doubled(first: Millis, n: u32) -> Millis {
    first.saturating_mul(1 << n.saturating_sub(1).min(16))
}

fn spread(wait: Millis, execution: ExecutionId, attempt: Attempt) -> Millis {
    let percent = 75 + mix(execution, attempt) % 51;
    wait.saturating_mul(percent) / 100
}

/// The finaliser of `SplitMix64` (Steele, Lea, Flood 2014): every bit of the input moves every bit of the output.
fn mix(execution: ExecutionId, attempt: Attempt) -> u64 {
    let (high, low) = execution.0.as_u64_pair();
    let mut z = high ^ low.rotate_left(32) ^ u64::from(attempt.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_doubles_up_to_its_cap_and_is_the_same_on_replay() {
        let config = CoreConfig::default();
        let id = |n: u128| ExecutionId(uuid::Uuid::from_u128(n * 0x1_0000_0001_0000_0001));
        for n in 1..50 {
            let wait = |try_: u32| config.backoff(id(n), Attempt(try_), try_);
            assert_eq!(wait(1), wait(1));
            assert!((750..=1_250).contains(&wait(1)), "{}", wait(1));
            assert!((1_500..=2_500).contains(&wait(2)));
            assert!((22_500..=37_500).contains(&wait(60)));
            let users = |try_: u32| users_backoff(10_000, id(n), Attempt(try_), try_);
            assert!((7_500..=12_500).contains(&users(1)) && (30_000..=50_000).contains(&users(3)));
            assert!((2_700_000..=4_500_000).contains(&users(10)), "an hour at most");
            assert_eq!(users_backoff(0, id(n), Attempt(3), 3), 0);
        }
        let spread: std::collections::BTreeSet<_> = (1..50).map(|n| config.backoff(id(n), Attempt(1), 1)).collect();
        assert!(spread.len() > 10, "all at once: {spread:?}");
    }
}
