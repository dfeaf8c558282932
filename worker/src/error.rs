//! Why a worker cannot start, or must stop.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use longshore_protocol::EngineId;
use longshore_protocol::broker::BrokerError;

use crate::engine::EngineError;

/// Why a worker cannot start, or must stop. Nothing of it mends itself; each text names the mend.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// A worker without slots would only wait.
    #[error("a worker needs at least one slot")]
    NoSlots,
    /// Another process has the state directory.
    #[error(
        "{} is in use by another worker: stop that one, or give this one a state directory of its own",
        dir.display()
    )]
    Locked {
        /// The state directory.
        dir: PathBuf,
    },
    /// The state directory cannot be read or written.
    #[error("cannot use {}: {source}", path.display())]
    State {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file in the state directory is not one of ours.
    #[error(
        "{} cannot be read ({reason}): give this worker another state directory, or move the file away",
        path.display()
    )]
    BadState {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// P10: an id is bound to one Engine.
    #[error(
        "{} belongs to the Engine {bound}, but {found} answers: point the worker at that Engine again, \
         or give it another state directory",
        dir.display()
    )]
    OtherEngine {
        /// The state directory.
        dir: PathBuf,
        /// The Engine that the id was made beside.
        bound: EngineId,
        /// The one that answers.
        found: EngineId,
    },
    /// The Engine does not answer at the start.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The broker refuses the worker's queues.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The coordinator does not take this incarnation (P10).
    #[error("the coordinator refused this worker: {reason}")]
    Refused {
        /// In its words, with the mend.
        reason: String,
    },
    /// The address of the health page cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The HTTP client for blobs cannot be made.
    #[error("cannot fetch blobs: {reason}")]
    Blobs {
        /// In the client's words.
        reason: String,
    },
}
