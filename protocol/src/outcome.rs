//! How an attempt ended: one typed value (promise 2: an exit code is one that the kernel reported).

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The reason in `infra{prepare, …}` of a child whose parent's files are not where it was sent: the coordinator knows
/// this word, and has the parent made again (P20).
pub const SNAPSHOT_LOST: &str = "snapshot_lost";

/// The reason in `infra{prepare, …}` of a step whose parent's files were lost and could not be made again (P20), or must
/// not be (P18). What stands behind a `:` is for people.
pub const LINEAGE: &str = "lineage";

/// The reason in `infra{…}` of an attempt that a worker gave up because it was told to end: nobody's fault, so it is
/// tried again uncharged.
pub const HANDED_BACK: &str = "handed_back";

/// The reason in `infra{claim, …}` of an exclusive attempt that was never begun, because no `go` came in time (P18):
/// nobody's fault, so it is tried again uncharged.
pub const GO_VOID: &str = "go_void";

/// What the reason in `infra{lease, …}` of a step begins with on which so many workers were lost that it is tried no more
/// (promise 5).
pub const POISON: &str = "poison";

/// How an attempt, and in the end its step, ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome {
    /// Exit status 0, or found under its cache key.
    Passed,
    /// The command's own exit status, 1 to 255. `128 + n` where no supervisor could tell a signal from it.
    Failed {
        /// As the kernel reported it.
        exit: u8,
    },
    /// The command was ended by a signal that was not ours.
    Signaled {
        /// The signal's number.
        signal: u8,
    },
    /// It ran past the step's timeout and was ended by us.
    TimedOut,
    /// The kernel's OOM killer ended it.
    OomKilled,
    /// Ended, or never begun, because someone no longer wants it.
    Cancelled {
        /// Who asked for it.
        by: CancelledBy,
    },
    /// Never begun, because of how another step ended.
    Skipped {
        /// The step that stood in the way.
        because: String,
    },
    /// The fleet's fault, never the user's: retried by the fleet.
    Infra {
        /// Where it broke.
        stage: InfraStage,
        /// In words, for people.
        reason: String,
    },
}

/// Who asked for an end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CancelledBy {
    /// The user, who cancelled the run or the step.
    User,
    /// The run took longer than its timeout.
    RunTimeout,
    /// Another step of the run failed, and this one's `keep_going` is not set.
    Sibling(String),
}

/// The verb in which the fleet failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InfraStage {
    /// No worker took it within its `queue_timeout`.
    Queue,
    /// The job did not reach anybody, or could not be claimed.
    Claim,
    /// Image, parent snapshot, sources or container could not be had.
    Prepare,
    /// The container or its Engine went away while the command ran, or gave no exit code.
    Exec,
    /// The command passed but its files could not be kept.
    Snapshot,
    /// The worker was lost: its lease ended, or it came back without the attempt.
    Lease,
}

impl Outcome {
    /// Whether children may start on it.
    pub fn is_passed(&self) -> bool {
        matches!(self, Self::Passed)
    }

    /// Whether the fleet retries it, uncharged to the user's rule (promise 5).
    pub fn is_infra(&self) -> bool {
        matches!(self, Self::Infra { .. })
    }

    /// Whether its worker was told to end and handed it back: it is tried again, charged to nobody.
    pub fn is_handed_back(&self) -> bool {
        matches!(self, Self::Infra { reason, .. } if reason == HANDED_BACK)
    }

    /// P18: whether it waited for a `go` in vain: it is tried again, charged to nobody.
    pub fn is_go_void(&self) -> bool {
        matches!(self, Self::Infra { reason, .. } if reason == GO_VOID)
    }

    /// Whether workers were lost on it until it was tried no more.
    pub fn is_poison(&self) -> bool {
        matches!(self, Self::Infra { stage: InfraStage::Lease, reason } if reason.starts_with(POISON))
    }

    /// Whether the user's `retry` rule sees it (promise 5): the user's failures and no others.
    pub fn is_users_failure(&self) -> bool {
        matches!(self, Self::Failed { .. } | Self::Signaled { .. } | Self::TimedOut | Self::OomKilled)
    }

    /// The one word of it, as in `kind`: for metrics labels and tables.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed { .. } => "failed",
            Self::Signaled { .. } => "signaled",
            Self::TimedOut => "timed_out",
            Self::OomKilled => "oom_killed",
            Self::Cancelled { .. } => "cancelled",
            Self::Skipped { .. } => "skipped",
            Self::Infra { .. } => "infra",
        }
    }

    /// Every word that [`word`](Self::word) can answer.
    pub const WORDS: [&'static str; 8] =
        ["passed", "failed", "signaled", "timed_out", "oom_killed", "cancelled", "skipped", "infra"];

    /// An `infra` outcome.
    pub fn infra(stage: InfraStage, reason: impl Into<String>) -> Self {
        Self::Infra { stage, reason: reason.into() }
    }
}

impl fmt::Display for InfraStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queue => "queue",
            Self::Claim => "claim",
            Self::Prepare => "prepare",
            Self::Exec => "exec",
            Self::Snapshot => "snapshot",
            Self::Lease => "lease",
        })
    }
}

impl fmt::Display for CancelledBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User => f.write_str("the user"),
            Self::RunTimeout => f.write_str("the run's timeout"),
            Self::Sibling(step) => write!(f, "the failure of {step}"),
        }
    }
}

impl fmt::Display for Outcome {
    /// As the design page writes them: `failed{1}`, `infra{prepare, snapshot_lost}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed { exit } => write!(f, "failed{{{exit}}}"),
            Self::Signaled { signal } => write!(f, "signaled{{{signal}}}"),
            Self::Cancelled { by } => write!(f, "cancelled by {by}"),
            Self::Skipped { because } => write!(f, "skipped because of {because}"),
            Self::Infra { stage, reason } => write!(f, "infra{{{stage}, {reason}}}"),
            Self::Passed | Self::TimedOut | Self::OomKilled => f.write_str(self.word()),
        }
    }
}
