//! What becomes of a container's files when its command has ended: parked, committed, both or neither. Pure
//! (`docs/decisions/checkpoint.md`).

use std::time::Duration;

use longshore_protocol::Outcome;
use longshore_protocol::job::Keep;
use serde::{Deserialize, Serialize};

/// A chain is committed when what a loss would repeat took so many times as long as the commit takes: a checkpoint
/// then costs 5 % of the time at most, and a loss repeats no more than that.
const WORTH: u32 = 20;

/// Of a commit on the reference machine: a process of the Engine's is started, whatever there is to pack …
const COMMIT_AT_LEAST: Duration = Duration::from_millis(90);
/// … and a megabyte is read, packed and written.
const COMMIT_PER_MB: Duration = Duration::from_millis(6);

/// A commit writes everything since the container's own image, each time again: from here on that costs more than the
/// start of a fresh container of what was committed (250 ms), whose own commits begin at nothing.
const LAYER_BYTES_MAX: u64 = 40_000_000;

/// How much one more commit counts in the average of them: the last ten or so.
const AVERAGE_SHARE: u32 = 8;

/// What was done in a container since somebody could last go back to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Chain {
    /// How long commands ran in it since its last commit, or since it was made.
    pub(crate) ran_ms: u64,
    /// What the last commit of it wrote.
    pub(crate) layer_bytes: Option<u64>,
}

impl Chain {
    /// A command ran in it.
    pub(crate) fn ran(&mut self, ms: u64) {
        self.ran_ms += ms;
    }

    /// It was committed.
    pub(crate) fn committed(&mut self, bytes: Option<u64>) {
        *self = Self { ran_ms: 0, layer_bytes: bytes };
    }

    /// Whether losing it would cost much more than a commit does.
    pub(crate) fn is_worth_a_commit(&self, average: Option<Duration>) -> bool {
        Duration::from_millis(self.ran_ms) > expected(self.layer_bytes, average) * WORTH
    }

    /// Whether one that commits each of its steps is better off in a fresh container.
    pub(crate) fn is_heavy(&self) -> bool {
        self.layer_bytes.is_some_and(|bytes| bytes > LAYER_BYTES_MAX)
    }
}

/// What a commit is expected to take. This container's own size says most, then how long this worker's commits take;
/// never less than an empty one takes.
pub(crate) fn expected(layer_bytes: Option<u64>, average: Option<Duration>) -> Duration {
    let of_size = |bytes: u64| COMMIT_AT_LEAST + COMMIT_PER_MB * u32::try_from(bytes / 1_000_000).unwrap_or(u32::MAX);
    layer_bytes.map(of_size).or(average).unwrap_or_default().max(COMMIT_AT_LEAST)
}

/// How much work a commit was, where an empty one is 1.
pub(crate) fn work(bytes: Option<u64>) -> f64 {
    expected(bytes, None).as_secs_f64() / COMMIT_AT_LEAST.as_secs_f64()
}

/// The average with one more of them.
pub(crate) fn averaged(average: Option<Duration>, took: Duration) -> Duration {
    average.map_or(took, |average| (average * (AVERAGE_SHARE - 1) + took) / AVERAGE_SHARE)
}

/// Why a commit is made: the values of `cause`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The job asks for one: several go on with it, or one may again.
    Asked,
    /// Under a cache key.
    Key,
    /// `snapshot: always`.
    Always,
    /// Enough would be lost.
    Checkpoint,
    /// Without a supervisor nobody can go on in a container.
    Direct,
    /// No container may be parked, or not this one any longer.
    Evicted,
    /// It was parked, but the child does not fit into it.
    Unfit,
    /// It is parked, and more than one child wants it.
    Shared,
    /// The worker leaves.
    Leaving,
}

impl Cause {
    /// For a label.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Key => "key",
            Self::Always => "always",
            Self::Checkpoint => "checkpoint",
            Self::Direct => "direct",
            Self::Evicted => "evicted",
            Self::Unfit => "unfit",
            Self::Shared => "shared",
            Self::Leaving => "leaving",
        }
    }

    /// Every word that [`word`](Self::word) can answer.
    pub(crate) const WORDS: [&'static str; 9] =
        ["asked", "key", "always", "checkpoint", "direct", "evicted", "unfit", "shared", "leaving"];
}

/// What to do with a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Commit it before anybody is told.
    pub(crate) commit: Option<Cause>,
    /// Park it then.
    pub(crate) park: bool,
}

/// What is known of a container whose command has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) keep: &'a Keep,
    pub(crate) outcome: &'a Outcome,
    /// Another command could go on in it, and this worker parks containers.
    pub(crate) may_park: bool,
    pub(crate) supervised: bool,
    pub(crate) chain: Chain,
    /// Of this worker's commits.
    pub(crate) average: Option<Duration>,
}

/// Decides (promise 6: only what passed is kept, or what `snapshot: always` wants to be looked at).
pub(crate) fn plan(facts: &Facts<'_>) -> Plan {
    let Facts { keep, outcome, may_park, supervised, chain, average } = *facts;
    let commit = |cause, park| Plan { commit: Some(cause), park };
    match keep {
        Keep::Always if outcome.is_passed() || outcome.is_users_failure() => commit(Cause::Always, false),
        _ if !outcome.is_passed() => Plan::default(),
        Keep::Nothing | Keep::Always => Plan::default(),
        Keep::Live if !supervised => commit(Cause::Direct, false),
        Keep::Live if !may_park => commit(Cause::Evicted, false),
        Keep::Live if chain.is_worth_a_commit(average) => commit(Cause::Checkpoint, true),
        Keep::Live => Plan { commit: None, park: true },
        Keep::Snapshot => commit(Cause::Asked, may_park),
        Keep::Cached { .. } => commit(Cause::Key, may_park),
    }
}

#[cfg(test)]
mod tests {
    use longshore_protocol::{InfraStage, SnapshotId};

    use super::*;

    const MB: u64 = 1_000_000;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn after(ran_ms: u64) -> Chain {
        Chain { ran_ms, layer_bytes: None }
    }

    #[test]
    fn trifles_are_never_committed_and_a_ten_minute_build_always() {
        let mut chain = Chain::default();
        for _ in 0..100 {
            chain.ran(15);
            assert!(!chain.is_worth_a_commit(None));
        }
        assert!(after(600_000).is_worth_a_commit(None));
        // Also where it leaves a gigabyte, or this worker's commits take seconds.
        assert!(Chain { ran_ms: 600_000, layer_bytes: Some(1_000 * MB) }.is_worth_a_commit(None));
        assert!(after(600_000).is_worth_a_commit(Some(ms(10_000))));
        assert!(!after(60_000).is_worth_a_commit(Some(ms(10_000))));
    }

    #[test]
    fn what_was_committed_is_not_counted_again() {
        let mut chain = after(600_000);
        chain.committed(Some(20 * MB));
        assert_eq!(chain, Chain { ran_ms: 0, layer_bytes: Some(20 * MB) });
        chain.ran(4_200); // 20 times 90 + 120 ms
        assert!(!chain.is_worth_a_commit(None));
        chain.ran(1);
        assert!(chain.is_worth_a_commit(None));
    }

    #[test]
    fn an_engine_that_answers_at_once_does_not_make_trifles_dear() {
        assert_eq!(expected(None, Some(ms(1))), ms(90));
        assert!(!after(1_800).is_worth_a_commit(Some(ms(1))));
        assert!(after(1_801).is_worth_a_commit(Some(ms(1))));
    }

    #[test]
    fn the_average_follows_the_last_commits() {
        let mut average = None;
        for _ in 0..3 {
            average = Some(averaged(average, ms(100)));
        }
        assert_eq!(average, Some(ms(100)));
        for _ in 0..40 {
            average = Some(averaged(average, ms(300)));
        }
        assert!((ms(290)..=ms(300)).contains(&average.unwrap()), "{average:?}");
        assert!((work(Some(15 * MB)) - 2.0).abs() < 0.01);
    }

    #[test]
    fn what_is_kept_of_whom() {
        let id = SnapshotId("longshore/cache:k".to_owned());
        let (failed, infra) = (Outcome::Failed { exit: 1 }, Outcome::infra(InfraStage::Exec, "x"));
        let plan_of = |keep: &Keep, outcome: &Outcome, may_park, ran_ms| {
            let facts = Facts { keep, outcome, may_park, supervised: true, chain: after(ran_ms), average: None };
            plan(&facts)
        };
        let committed = |cause, park| Plan { commit: Some(cause), park };
        let cached = Keep::Cached { id };
        for (keep, passed_and_parks, parks_nothing) in [
            (&Keep::Nothing, Plan::default(), Plan::default()),
            (&Keep::Live, Plan { commit: None, park: true }, committed(Cause::Evicted, false)),
            (&Keep::Snapshot, committed(Cause::Asked, true), committed(Cause::Asked, false)),
            (&cached, committed(Cause::Key, true), committed(Cause::Key, false)),
            (&Keep::Always, committed(Cause::Always, false), committed(Cause::Always, false)),
        ] {
            assert_eq!(plan_of(keep, &Outcome::Passed, true, 5), passed_and_parks, "{keep:?}");
            assert_eq!(plan_of(keep, &Outcome::Passed, false, 5), parks_nothing, "{keep:?}");
            assert_eq!(plan_of(keep, &infra, true, 600_000), Plan::default(), "{keep:?}");
            let always = if *keep == Keep::Always { committed(Cause::Always, false) } else { Plan::default() };
            assert_eq!(plan_of(keep, &failed, true, 600_000), always, "{keep:?}");
        }
        assert_eq!(plan_of(&Keep::Live, &Outcome::Passed, true, 600_000), committed(Cause::Checkpoint, true));
        let facts = Facts {
            keep: &Keep::Live,
            outcome: &Outcome::Passed,
            may_park: false,
            supervised: false,
            chain: after(5),
            average: None,
        };
        assert_eq!(plan(&facts), committed(Cause::Direct, false));
    }
}
