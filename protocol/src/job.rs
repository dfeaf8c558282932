//! The message that asks a worker to carry out one attempt, and what a step is.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{Attempt, Epoch, ExecutionId, PoolName, RunId, Shard, StepName};
use crate::kept::{BlobHash, SnapshotId};

/// Asks whoever claims it to carry out one attempt. Jobs outlive an epoch (P22).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Job {
    /// The run, for people, labels and `LONGSHORE_RUN`.
    pub run: RunId,
    /// The step's name, for people, labels and `LONGSHORE_STEP`.
    pub step: StepName,
    /// What is carried out.
    pub execution: ExecutionId,
    /// Which try of it.
    pub attempt: Attempt,
    /// Where its events and output go.
    pub shard: Shard,
    /// The epoch that dispatched it, for logs only.
    pub epoch: Epoch,
    /// Whom the run is charged to.
    pub tenant: String,
    /// What to do.
    pub spec: StepSpec,
    /// What to do it on.
    pub base: Base,
    /// What must exist when the step has passed.
    pub keep: Keep,
    /// When the coordinator dispatched it, ms since the Unix epoch: for queue-to-start latency.
    pub dispatched_at_ms: u64,
}

/// What a step's container is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Base {
    /// An image out of a registry, or one that the Engine has.
    Image {
        /// As the user wrote it; the worker normalises it.
        reference: String,
    },
    /// What an attempt of the parent left, on the Engine that the job is sent to: its parked container, if it still
    /// stands there and fits (P19); else its committed snapshot. Where neither is there, the answer is
    /// [`SNAPSHOT_LOST`](crate::outcome::SNAPSHOT_LOST) and the parent is made again (P20).
    Parent {
        /// What was carried out.
        execution: ExecutionId,
        /// Which try of it.
        attempt: Attempt,
        /// Committed, as far as the coordinator knows. The worker may have committed a parked container since,
        /// under the attempt's own [`SnapshotId::ephemeral`].
        snapshot: Option<SnapshotId>,
    },
}

/// What becomes of the files of a step that passed (or, with `Always`, of any that ran).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Keep {
    /// Nobody needs it: removed.
    Nothing,
    /// One child goes on with it, on this host: the container is parked. Committed as well, under the ephemeral name,
    /// only where the worker's checkpoint rule, its bounds on parked containers or a missing supervisor ask for it.
    Live,
    /// Committed under the attempt's own ephemeral name ([`SnapshotId::ephemeral`]): several may go on with it, or
    /// one may again. The container may be parked besides, for the first of them.
    Snapshot,
    /// As `Snapshot`, but whatever the command's own outcome was (passed, failed, timed out, …), so that
    /// people can look at what a failed step left (`snapshot: always`). It outlives the run, and whoever goes on with it
    /// gets the restored view: the container is never parked.
    Always,
    /// Committed under a key; if the Engine has it already, the step passes without being run.
    Cached {
        /// See [`SnapshotId::cached`].
        id: SnapshotId,
    },
}

/// One step as the plan resolved it: matrix expanded, defaults and environments merged, templates rendered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepSpec {
    /// What runs.
    pub command: Command,
    /// The pipeline's and the step's environment, in order; the worker puts `CI` and `LONGSHORE_*` before it.
    #[serde(default)]
    pub env: IndexMap<String, String>,
    /// Absolute; made if missing. `None`: the image's.
    #[serde(default)]
    pub workdir: Option<String>,
    /// Name or id, with `:group` or without. `None`: the image's.
    #[serde(default)]
    pub user: Option<String>,
    /// Directories put into the container before the command runs.
    #[serde(default)]
    pub sources: Vec<Source>,
    /// How long the command may run, ms. Counted from its start.
    pub timeout_ms: u64,
    /// How long it has between TERM and KILL, ms.
    pub grace_ms: u64,
    /// P15: bytes of its output, both streams, that are kept; what goes beyond is counted. `None`: the worker's bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_max: Option<u64>,
    /// P18: it never runs twice at once. It starts on the coordinator's `go` only, and ends with its worker's lease.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exclusive: bool,
    /// Limits of the container.
    #[serde(default)]
    pub resources: Resources,
    /// What it can reach.
    #[serde(default)]
    pub network: Network,
    /// Who carries it out.
    #[serde(default)]
    pub pool: PoolName,
}

/// A script for a shell, or an argv without one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// The last argument of `shell`: `["/bin/sh", "-e", "-c", script]` unless changed.
    Script {
        /// What the user wrote under `run`.
        script: String,
        /// Program and flags, without the `-c`.
        shell: Vec<String>,
    },
    /// Carried out as it is.
    Argv(Vec<String>),
}

impl Command {
    /// The argv of the container's process.
    pub fn argv(&self) -> Vec<String> {
        match self {
            Self::Script { script, shell } => shell.iter().cloned().chain(["-c".to_owned(), script.clone()]).collect(),
            Self::Argv(argv) => argv.clone(),
        }
    }
}

/// A directory of the submitter's, packed once, named by its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Source {
    /// A tar in the blob store, deterministic.
    pub blob: BlobHash,
    /// Of the tar.
    pub bytes: u64,
    /// Where its root goes in the container: absolute; missing directories are made.
    pub target: String,
}

/// Limits of a step's container. `None` is the worker's own default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Resources {
    /// Of memory, swap included.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Of processor time, in cores: 0.5 is half of one.
    #[serde(default)]
    pub cpus: Option<f64>,
    /// Of processes and threads.
    #[serde(default)]
    pub pids: Option<u32>,
}

/// What a step can reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// Its own loopback.
    #[default]
    None,
    /// What the Engine's default bridge lets it.
    Bridge,
}
