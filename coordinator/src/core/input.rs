//! What the core is told.

use std::collections::BTreeSet;

use longshore_protocol::event::{Claim, EventMessage};
use longshore_protocol::heartbeat::Heartbeat;
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::output::Offsets;
use longshore_protocol::{Epoch, ExecutionId, RunId, WorkerId};

use super::effect::JobQueue;
use super::retry::Missed;
use crate::pipeline::Pipeline;

/// Milliseconds since the Unix epoch. Only ever compared with other values that the driver passed in.
pub type Millis = u64;

/// What the core is told. Every input may come twice, late, or never.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// This coordinator has just become active (P21): every worker is granted a full lease (P8).
    Lead {
        /// Its reign.
        epoch: Epoch,
    },
    /// Somebody submitted a run. A second time with the same id: nothing.
    Submit {
        /// The client's choice.
        run: RunId,
        /// By the submitter's token.
        tenant: String,
        /// Validated, its sources' blobs filled in.
        pipeline: Box<Pipeline>,
    },
    /// Somebody cancels a run. Of an unknown or settled run: nothing.
    Cancel {
        /// Which.
        run: RunId,
        /// Who asks.
        by: CancelledBy,
    },
    /// The user cancels some steps of a run, by their executions. Of one that is unknown or settled: nothing.
    CancelSteps {
        /// Of which run.
        run: RunId,
        /// Which.
        steps: Vec<ExecutionId>,
    },
    /// Somebody wants a settled run's steps that did not pass tried again: see
    /// [`Core::retryable`](super::Core::retryable). Where that refuses: nothing.
    Retry {
        /// Which run.
        run: RunId,
        /// Which of them; empty for all.
        only: Vec<Missed>,
    },
    /// A worker's numbered event (P9).
    Event(EventMessage),
    /// A worker's heartbeat (P7).
    Heartbeat(Heartbeat),
    /// A tick came back through the heartbeat queue (P8). Of another epoch: nothing.
    Tick {
        /// Who had sent it.
        epoch: Epoch,
    },
    /// A job queue was looked at (P6).
    Waiting {
        /// Which.
        queue: JobQueue,
        /// How many wait in it.
        messages: u32,
    },
    /// All the queues of workers for which a job is still in the outbox: what is not there yet cannot be claimed (P6).
    /// To be said before each tick.
    UnderWay {
        /// Whose.
        to: BTreeSet<WorkerId>,
    },
    /// A dispatched job was returned by the broker: nobody has that queue.
    Returned {
        /// Which attempt.
        claim: Claim,
    },
    /// Output was stored, contiguous from 0 up to here (P14).
    Stored {
        /// Which attempt.
        claim: Claim,
        /// Up to where.
        offsets: Offsets,
    },
    /// Output arrived that does not continue what is stored: some before it is missing (P14).
    Gap {
        /// Which attempt.
        claim: Claim,
        /// What is stored.
        stored: Offsets,
    },
    /// Time went by: what waited for a moment (a backoff) may go on.
    Clock,
}
