//! What people are shown of the state: the read tables hold these as JSON, the API answers with them.

use std::fmt;

use longshore_protocol::event::{Phases, Usage};
use longshore_protocol::output::Offsets;
use longshore_protocol::{Attempt, EngineId, ExecutionId, Outcome, PoolName, RunId, SnapshotId, StepName, WorkerId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::input::Millis;

/// A run's verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunOutcome {
    /// Every step passed.
    Passed,
    /// A step failed by its user's fault.
    Failed,
    /// It took longer than its timeout, and was called off.
    TimedOut,
    /// No step failed by its user's fault, but the fleet could not carry out one.
    Infra,
    /// The user cancelled it, or a step of it, and nothing failed.
    Cancelled,
}

impl RunOutcome {
    /// The exit code of `longshore run` and `submit --watch`.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Passed => 0,
            Self::Failed | Self::TimedOut => 1,
            Self::Infra => 3,
            Self::Cancelled => 130,
        }
    }
}

impl fmt::Display for RunOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Infra => "infra",
            Self::Cancelled => "cancelled",
        })
    }
}

/// A run in a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunSummary {
    /// Its id.
    pub run: RunId,
    /// The pipeline's name.
    pub name: String,
    /// Whom it is charged to.
    pub tenant: String,
    /// When it was taken.
    pub submitted_at_ms: Millis,
    /// When its last step was settled.
    pub settled_at_ms: Option<Millis>,
    /// When it was opened again last, by `longshore retry`.
    #[serde(default)]
    pub retried_at_ms: Option<Millis>,
    /// How often it was.
    #[serde(default)]
    pub retries: u32,
    /// Its verdict, once it is settled.
    pub outcome: Option<RunOutcome>,
    /// Whether somebody has asked for its end.
    pub cancelling: bool,
    /// How many steps it has. In JSON not `steps`: a [`RunView`] has those beside it.
    #[serde(rename = "steps_total")]
    pub steps: u32,
    /// How many of them are settled.
    pub steps_settled: u32,
}

impl RunSummary {
    /// How long it took, the last time it was asked for; `None` while it is not settled.
    pub fn took_ms(&self) -> Option<Millis> {
        let begun = self.retried_at_ms.unwrap_or(self.submitted_at_ms);
        self.settled_at_ms.map(|settled| settled.saturating_sub(begun))
    }
}

/// A run with its steps, in the pipeline's order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunView {
    /// As in the list.
    #[serde(flatten)]
    pub summary: RunSummary,
    /// Every step.
    pub steps: Vec<StepView>,
}

/// A step of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepView {
    /// Its name.
    pub step: StepName,
    /// Its execution.
    pub execution: ExecutionId,
    /// What it is doing.
    pub phase: StepPhase,
    /// For good, once it is settled.
    pub outcome: Option<Outcome>,
    /// Whether the user has asked for the end of this step, and it is not settled yet.
    #[serde(default)]
    pub cancelling: bool,
    /// Whether it passed because its key's snapshot was there.
    pub cached: bool,
    /// Every try, the first one first.
    pub attempts: Vec<AttemptView>,
    /// How what it left was made again, because that was lost (P20): nothing of the above changes by it.
    #[serde(default)]
    pub remakes: Vec<RemakeView>,
}

/// What a step left, made again (P20).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RemakeView {
    /// By which its log is asked for: `build~1`, for the first remaking of what `build` left.
    pub name: StepName,
    /// Its own execution.
    pub execution: ExecutionId,
    /// Why what the step left was lost, in words. `None` where it had been dropped, because nobody needed it until
    /// something behind it was lost.
    pub because: Option<String>,
    /// What it is doing.
    pub phase: StepPhase,
    /// For good, once it is settled.
    pub outcome: Option<Outcome>,
    /// Every try, the first one first.
    pub attempts: Vec<AttemptView>,
}

/// What a step is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepPhase {
    /// For its parent, for what it needs, or for the backoff of a retry.
    Waiting,
    /// Its job is on a queue.
    Queued,
    /// A worker has claimed it and makes its container.
    Preparing,
    /// Its command runs.
    Running,
    /// Its outcome is fixed.
    Settled,
}

/// One try of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AttemptView {
    /// Which, from 1.
    pub attempt: Attempt,
    /// Whose claim was journalled.
    pub worker: Option<WorkerId>,
    /// Its container's name.
    pub container: Option<String>,
    /// When its job was put on a queue.
    pub dispatched_at_ms: Millis,
    /// When its claim was journalled.
    pub accepted_at_ms: Option<Millis>,
    /// When its command's start was journalled.
    pub started_at_ms: Option<Millis>,
    /// When its end was journalled.
    pub ended_at_ms: Option<Millis>,
    /// How it ended. `None` also for one whose job reached nobody, or that was called off.
    pub outcome: Option<Outcome>,
    /// What it left committed.
    pub snapshot: Option<SnapshotId>,
    /// Whether its container was parked, so that a child could go on in it.
    #[serde(default)]
    pub parked: bool,
    /// Final offsets, once known.
    pub output: Option<Offsets>,
    /// Where the time went.
    pub phases: Option<Phases>,
    /// What its command used, where a supervisor could tell.
    #[serde(default)]
    pub usage: Option<Usage>,
    /// Whether its log will not grow any more.
    pub log_closed: bool,
}

/// A worker, as the coordinator sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerView {
    /// Its id.
    pub worker: WorkerId,
    /// Its host's name.
    pub host: String,
    /// The Engine beside it.
    pub engine: EngineId,
    /// Whose queue it reads.
    pub pool: PoolName,
    /// Its version.
    pub version: String,
    /// How many steps it carries out at once.
    pub slots: u32,
    /// How many of them are free, as last reported.
    pub slots_free: u32,
    /// Whether its lease holds.
    pub alive: bool,
    /// Ticks since its last heartbeat (P8).
    pub silent_ticks: u32,
    /// How many committed snapshots it reported.
    pub snapshots: u32,
    /// How many containers it reported as parked.
    #[serde(default)]
    pub parked: u32,
    /// Free bytes on its Engine's disk, if it can see that.
    pub disk_free_bytes: Option<u64>,
}
