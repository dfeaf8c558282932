//! What Longshore's processes say to each other, and how it travels.
//!
//! Read in this order:
//!
//! 1. [`ids`] who and what is meant: runs, executions, attempts, workers, and the [fence](ids::Fence), and [`kept`]
//!    what is kept by name: snapshots, blobs;
//! 2. [`outcome`] how an attempt ended, one typed value;
//! 3. [`job`] the message that asks a worker to carry out one attempt;
//! 4. [`event`] what workers report, numbered (P9), and [`heartbeat`] what is (P7);
//! 5. [`output`] every output line, counted in bytes (P14);
//! 6. [`control`] what the coordinator answers: what should be (P22), and [`lease`] how much of a lease an exclusive
//!    step may use (P18);
//! 7. [`wire`] JSON with a version, and what happens to what cannot be read (P1);
//! 8. [`topology`] the queues, and [`broker`] the trait that moves bytes between them: AMQP or memory.
//!
//! [`process`] is what both take from their host, [`breach`] which rules a simulator can break; [`metric`] the table that they describe their metrics with.
//!
//! The rules `P1` … `P22` are numbered in `docs/protocol.md`.

pub mod breach;
pub mod broker;
pub mod control;
pub mod event;
pub mod heartbeat;
pub mod ids;
pub mod job;
pub mod kept;
pub mod lease;
pub mod metric;
pub mod outcome;
pub mod output;
pub mod process;
pub mod topology;
pub mod wire;

pub use ids::{Attempt, EngineId, Epoch, ExecutionId, Fence, Incarnation, PoolName, RunId, Shard, StepName, WorkerId};
pub use kept::{BlobHash, SnapshotId};
pub use outcome::{InfraStage, Outcome};
