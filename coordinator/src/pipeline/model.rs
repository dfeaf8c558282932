//! A resolved pipeline: what is submitted, journalled and carried out.

use longshore_protocol::job::StepSpec;
use longshore_protocol::{BlobHash, StepName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::retry::Retry;

/// A pipeline with nothing left to decide. Its JSON is what is submitted over HTTP and journalled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Pipeline {
    /// For people; runs are told apart by their ids.
    pub name: String,
    /// How long the whole run may take, ms, from its submission. `None`: without limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// INVARIANT: in a topological order: whatever a step waits for stands before it. [`validate`](super::validate)
    /// checks it of what was submitted.
    pub steps: Vec<PlannedStep>,
}

/// One step, one instance of a matrix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlannedStep {
    /// `build`, or `test[cc=gcc,opt=2]` out of a matrix. Unique within the pipeline.
    pub name: StepName,
    /// What its container is made from.
    pub parent: Parent,
    /// What must have passed before it starts. Holds no step twice, and not the parent, which is waited for anyway.
    #[serde(default)]
    pub needs: Vec<StepName>,
    /// What runs. Its `sources` are empty: they are known once [`PlannedStep::sources`] were packed.
    pub spec: StepSpec,
    /// Directories of the submitter's.
    #[serde(default)]
    pub sources: Vec<SourceDir>,
    /// Extra tries after the user's own failures, never after the fleet's.
    #[serde(default)]
    pub retry: Retry,
    /// Under which the files it leaves are kept on an Engine. Unique within the pipeline.
    #[serde(default)]
    pub cache_key: Option<String>,
    /// When its container is committed.
    #[serde(default)]
    pub snapshot: SnapshotRule,
    /// It is started and finished although another step failed, if what it waits for passed.
    #[serde(default)]
    pub keep_going: bool,
    /// Among the steps of one tenant that wait for the same pool, those of the highest go first.
    #[serde(default, skip_serializing_if = "is_ordinary")]
    pub priority: i32,
    /// How long it may wait for a worker, ms, from when it could have been dispatched. `None`: without limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_timeout_ms: Option<u64>,
    /// With which other steps of its tenant it shares a number of places.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
}

/// Membership of a concurrency group: a tenant's steps of one group, whatever their run, are carried out so many at a
/// time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Concurrency {
    /// The group's name, the tenant's own.
    pub group: String,
    /// The step begins only while fewer than so many steps of its group are under way.
    pub max: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_ordinary(priority: &i32) -> bool {
    *priority == 0
}

/// What a step's container is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Parent {
    /// An image reference as the user wrote it.
    Image(String),
    /// The file system that this step leaves.
    Step(StepName),
}

/// A directory that goes into a step's container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SourceDir {
    /// On the submitter's machine, relative to the pipeline file.
    pub path: String,
    /// Where its content goes: absolute, without `..`.
    pub target: String,
    /// What it was packed to. `None` until the submitter has uploaded it.
    #[serde(default)]
    pub blob: Option<Blob>,
}

/// A packed directory in the blob store: its hash, and its size in bytes.
pub type Blob = (BlobHash, u64);

/// When a step that passed is committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotRule {
    /// When a later step or a cache key needs it.
    #[default]
    Auto,
    /// Always; its children then see the restored files.
    Always,
}

impl PlannedStep {
    /// Every step that it waits for: the parent first, then `needs`.
    pub fn waits_for(&self) -> impl Iterator<Item = &StepName> {
        let parent = match &self.parent {
            Parent::Step(parent) => Some(parent),
            Parent::Image(_) => None,
        };
        parent.into_iter().chain(&self.needs)
    }
}
