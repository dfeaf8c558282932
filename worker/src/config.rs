//! What a worker is told when it starts.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use longshore_protocol::{PoolName, WorkerId};
use metrics_exporter_prometheus::PrometheusHandle;

/// How long the coordinator believes a worker that it has not heard from (P8).
pub const LEASE: Duration = Duration::from_secs(30);

/// A sixth of the lease (P7): five may be lost before anybody is.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

/// P15: what one step may leave on the worker's disk until it is settled.
pub const SPOOL_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// What a worker is told when it starts.
#[derive(Clone, Debug)]
pub struct Config {
    /// Of the fleet's queues.
    pub prefix: String,
    /// Whose queue it reads, besides its own.
    pub pool: PoolName,
    /// How many steps it carries out at once; at least 1.
    pub slots: u32,
    /// What must survive it: its id, its attempts, their output. One process uses it at a time.
    pub state_dir: PathBuf,
    /// How often it reports what is (P7).
    pub heartbeat: Duration,
    /// The coordinator's lease, which is the heartbeats' time to live in their queue.
    pub lease: Duration,
    /// Where the bytes of sources come from.
    pub blobs: BlobSource,
    /// Where `/metrics`, `/healthz` and `/readyz` are served, if anywhere.
    pub metrics_listen: Option<SocketAddr>,
    /// Renders `/metrics`: the process installs its one recorder, the worker only reads it.
    pub metrics_render: Option<PrometheusHandle>,
    /// The embedded worker is given its id. `None`: it makes one and keeps it in the state directory.
    pub worker_id: Option<WorkerId>,
    /// P15: bytes of one step's output that are kept on disk; what goes beyond is counted, and the log says so.
    pub spool_bytes_max: u64,
}

impl Config {
    /// The defaults: pool `default`, one slot, no HTTP server, an id of its own.
    pub fn new(prefix: impl Into<String>, state_dir: impl Into<PathBuf>, blobs: BlobSource) -> Self {
        Self {
            prefix: prefix.into(),
            pool: PoolName::default(),
            slots: 1,
            state_dir: state_dir.into(),
            heartbeat: HEARTBEAT,
            lease: LEASE,
            blobs,
            metrics_listen: None,
            metrics_render: None,
            worker_id: None,
            spool_bytes_max: SPOOL_BYTES_MAX,
        }
    }
}

/// Where the bytes of sources come from.
#[derive(Clone, PartialEq, Eq)]
pub enum BlobSource {
    /// Files named by their hash, below the first two digits of it: `DIR/ab/abcdef…`.
    Dir(PathBuf),
    /// `GET {coordinator}/v1/blobs/{hash}`.
    Http {
        /// Base URL, `http://host:port`.
        coordinator: String,
        /// Sent as a bearer token.
        token: Option<String>,
    },
}

impl fmt::Debug for BlobSource {
    /// Without the token (promise 8).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(dir) => f.debug_tuple("Dir").field(dir).finish(),
            Self::Http { coordinator, token } => f
                .debug_struct("Http")
                .field("coordinator", coordinator)
                .field("token", &token.as_ref().map(|_| "…"))
                .finish(),
        }
    }
}
