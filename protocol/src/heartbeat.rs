//! What is (P7), and the tick by which silence is counted (P8). Both travel in the heartbeat queue;
//! neither is numbered, resent or journalled.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::{AttemptRecord, Claim};
use crate::ids::{EngineId, Epoch, Incarnation, PoolName, WorkerId};
use crate::kept::SnapshotId;

/// What the heartbeat queue carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "nearly all of them are heartbeats, and few are in memory at once")]
pub enum HeartbeatMessage {
    /// A worker's.
    Heartbeat(Heartbeat),
    /// The active coordinator's own: silence is counted in ticks that came back, so whatever holds
    /// up the queue stops the clock (P8).
    Tick {
        /// Who sent it: a predecessor's ticks do not count.
        epoch: Epoch,
        /// From 1 in each epoch.
        number: u64,
    },
}

/// What one worker has at this moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Heartbeat {
    /// Who speaks.
    pub worker: WorkerId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// The Engine beside it.
    pub engine: EngineId,
    /// Whose queue it reads.
    pub pool: PoolName,
    /// How many steps it carries out at once.
    pub slots: u32,
    /// How many of them are free.
    pub slots_free: u32,
    /// Every attempt whose record it has.
    pub attempts: Vec<AttemptRecord>,
    /// Committed snapshots on its Engine, [`SNAPSHOTS_MAX`] at most, newest first.
    pub snapshots: Vec<SnapshotId>,
    /// Attempts whose containers are parked: a child may go on in each.
    #[serde(default)]
    pub parked: Vec<Claim>,
    /// When it was sent, by a clock of the worker's own: the coordinator gives it back where it answers (P18).
    #[serde(default)]
    pub stamp_ms: u64,
    /// Attempts whose output fills what may stand on the worker's disk: they wait on their pipes until more is stored
    /// (P15).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub full: Vec<Claim>,
    /// The number of the last event it sent before: "not held" counts only when all up to it are in.
    pub last_event: u64,
    /// Free bytes where the Engine keeps its data, if the worker can see that.
    pub disk_free_bytes: Option<u64>,
}

/// A heartbeat stays below 256 KiB: an entry has about 100 bytes.
pub const SNAPSHOTS_MAX: usize = 2_000;
