//! What should be: the coordinator's answers to a worker (P22).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::Claim;
use crate::ids::{Epoch, Incarnation, WorkerId};
use crate::kept::SnapshotId;
use crate::outcome::CancelledBy;
use crate::output::Offsets;

/// One control message. A worker ignores an epoch lower than the highest it has on disk, and what
/// addresses another incarnation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ControlMessage {
    /// Who commands.
    pub epoch: Epoch,
    /// Whom.
    pub worker: WorkerId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// What.
    pub control: Control,
}

/// What a worker is told. Every one may arrive twice and is harmless then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Control {
    /// The attempt is not, or no longer, the worker's (P5, P12): kill it, drop its record and spool, report nothing.
    Abandon {
        /// Which attempt.
        claim: Claim,
    },
    /// P18: the attempt is the worker's, and exclusive: its command may be started, within [`VOID_BEFORE_END`] of the end
    /// of a lease that is counted from the sending of the `accepted` (or `hello`, or `records`) that this answers.
    ///
    /// [`VOID_BEFORE_END`]: crate::lease::VOID_BEFORE_END
    Go {
        /// Which attempt.
        claim: Claim,
    },
    /// P18: that heartbeat was heard, and the lease of its worker begins anew with it: so do the timers of these.
    Heard {
        /// The heartbeat's own [`stamp_ms`](crate::heartbeat::Heartbeat::stamp_ms).
        stamp_ms: u64,
        /// The exclusive attempts that it listed and that are the worker's.
        claims: Vec<Claim>,
    },
    /// Nobody wants the attempt any more: end it (TERM, grace, KILL) and report `finished` as cancelled.
    /// One that is already over is left as it is.
    Cancel {
        /// Which attempt.
        claim: Claim,
        /// Who asked.
        by: CancelledBy,
    },
    /// `finished` is journalled and the log complete: record and spool may go (P9, P14).
    Settled {
        /// Which attempt.
        claim: Claim,
    },
    /// A number is missing: send [`Records`](crate::event::Event::Records) (P9).
    Sync,
    /// Bytes are missing (P14): send the output again from these offsets on.
    Resend {
        /// Which attempt.
        claim: Claim,
        /// What the coordinator has, contiguous from 0.
        stored: Offsets,
    },
    /// So much of its output is stored for good (P15): the worker sends on, and needs its spool from there on only. Told
    /// after every [`STORED_EVERY_BYTES`](crate::output::STORED_EVERY_BYTES), once a transaction, and to each incarnation.
    Stored {
        /// Which attempt.
        claim: Claim,
        /// What the coordinator has, contiguous from 0.
        stored: Offsets,
    },
    /// Nobody goes on with what the worker's own attempt left live: a container still parked for it is removed, with
    /// what was committed of it under the attempt's own name. One that a child has taken is the child's (P19).
    Release {
        /// Which attempt.
        claim: Claim,
    },
    /// Nobody needs a snapshot any more.
    RemoveSnapshot {
        /// Which one.
        snapshot: SnapshotId,
    },
    /// The incarnation cannot be taken (P10: the same start with another nonce is a cloned disk). It stops.
    Refused {
        /// In words, with the mend.
        reason: String,
    },
}
