//! What workers report: facts, numbered, published in order on one channel, resent until confirmed (P9).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{Attempt, EngineId, ExecutionId, Incarnation, PoolName, RunId, Shard, WorkerId};
use crate::kept::SnapshotId;
use crate::outcome::Outcome;
use crate::output::Offsets;

/// One numbered event of one incarnation of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventMessage {
    /// Who speaks.
    pub worker: WorkerId,
    /// Which start of it (P10): an older one is stale.
    pub incarnation: Incarnation,
    /// From 1 with each incarnation, without gaps (P9).
    pub number: u64,
    /// What happened.
    pub event: Event,
}

/// What a worker reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// The first event of an incarnation (P10). What it does not list in `records` is lost at once.
    Hello(Hello),
    /// The claim of a job: on the worker's disk before it was sent, acked to the broker after it was confirmed (P4).
    Accepted(Claim),
    /// The command's process was started.
    Started(Started),
    /// The attempt ended; nothing of it runs any more (P11).
    Finished(Finished),
    /// The answer to [`Control::Sync`](crate::control::Control::Sync): every record the worker has.
    /// It closes any gap in the numbers before it, whatever was in it (P9).
    Records {
        /// All of them.
        records: Vec<AttemptRecord>,
    },
}

/// Who a worker is, when it starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hello {
    /// The Engine beside it.
    pub engine: EngineId,
    /// Whose queue it reads, besides its own.
    pub pool: PoolName,
    /// How many steps it carries out at once.
    pub slots: u32,
    /// The worker's version, `CARGO_PKG_VERSION`.
    pub version: String,
    /// The host's name, for people.
    pub host: String,
    /// What it adopted, and what ended but was not settled when the last incarnation stopped.
    pub records: Vec<AttemptRecord>,
}

/// Names one attempt. With the sender it is the fence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Claim {
    /// For the shard, and for people.
    pub run: RunId,
    /// What is carried out.
    pub execution: ExecutionId,
    /// Which try of it.
    pub attempt: Attempt,
}

impl Claim {
    /// Where its events go.
    pub fn shard(&self) -> Shard {
        Shard::of(self.run)
    }
}

/// The command's process was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Started {
    /// Which attempt.
    pub claim: Claim,
    /// From the job's delivery to the process's start.
    pub prepare_ms: u64,
    /// From the coordinator's dispatch to the process's start, by the two clocks; 0 where they disagree.
    pub queue_to_start_ms: u64,
    /// The container's name, for people who want to look.
    pub container: String,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Finished {
    /// Which attempt.
    pub claim: Claim,
    /// How.
    pub outcome: Outcome,
    /// Whether it passed because its key's snapshot was there: nothing ran.
    pub cached: bool,
    /// The final offsets (P14): how many bytes each stream had.
    pub output: Offsets,
    /// What it left committed, if anything. On the sender's Engine.
    pub snapshot: Option<SnapshotId>,
    /// Whether its container is parked: one child on this Engine may go on in it (P19).
    #[serde(default)]
    pub parked: bool,
    /// Where the time went.
    pub phases: Phases,
    /// What the command used, where a supervisor could tell.
    #[serde(default)]
    pub usage: Option<Usage>,
}

/// What a command and everything that it waited for used, by `getrusage(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Processor time in user mode, ms.
    pub user_ms: u64,
    /// Processor time in the kernel, ms.
    pub system_ms: u64,
    /// The largest resident set of any one process, bytes.
    pub max_rss_bytes: u64,
}

/// Milliseconds in each of the worker's verbs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Phases {
    /// Image, container, sources.
    pub prepare_ms: u64,
    /// The command.
    pub exec_ms: u64,
    /// The commit.
    pub snapshot_ms: u64,
}

/// What a worker's disk knows of an attempt, kept until the coordinator says `settled` (P9).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AttemptRecord {
    /// Which attempt.
    pub claim: Claim,
    /// How far it is.
    pub phase: Phase,
}

/// How far an attempt is on its worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// Claimed; the container is being made.
    Preparing,
    /// The command runs.
    Running,
    /// It passed; its files are being kept.
    Snapshotting,
    /// Over, but not settled by the coordinator as far as the worker knows.
    Finished(Box<Finished>),
}

impl Phase {
    /// For `workers` and for people.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Running => "running",
            Self::Snapshotting => "snapshotting",
            Self::Finished(_) => "finished",
        }
    }
}
