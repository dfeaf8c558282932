//! What is to be done outside: at least once, and harmless twice (P3).

use longshore_protocol::control::Control;
use longshore_protocol::job::Job;
use longshore_protocol::{Incarnation, PoolName, WorkerId};
use serde::{Deserialize, Serialize};

/// Which queue a job is put on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", content = "name", rename_all = "snake_case")]
pub enum JobQueue {
    /// For whoever of a pool is free.
    Pool(PoolName),
    /// For one worker, because its Engine has what the step needs.
    Worker(WorkerId),
}

/// A message to be published. In the outbox from the transaction that decided it until its confirm.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Put a job on a queue.
    Dispatch {
        /// Which.
        queue: JobQueue,
        /// What.
        job: Box<Job>,
    },
    /// Tell a worker something. The driver adds its epoch (P22).
    Tell {
        /// Whom.
        worker: WorkerId,
        /// Which start of it.
        incarnation: Incarnation,
        /// What.
        control: Control,
    },
}
