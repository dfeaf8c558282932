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

/// P15: what one step may leave on the worker's disk until it is stored.
pub const SPOOL_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// P15: [`Config::output_bytes_max`] where nothing is said.
pub const OUTPUT_BYTES_MAX: u64 = 4 * SPOOL_BYTES_MAX;

/// A chain whose next step does not come within this time is not a chain that anybody waits for; what its container
/// held is committed then.
pub const PARKED_FOR: Duration = Duration::from_mins(10);

/// P17: longer than a restart of a worker takes, its host's included, and short enough for what nobody comes back to.
pub const ORPHAN: Duration = Duration::from_mins(10);

/// How long a worker that leaves in order commits what is parked: service managers kill it after 90 s, orchestrators
/// after 30, and the steps' own grace comes first.
pub const LEAVING: Duration = Duration::from_secs(5);

/// How long a worker that is told to end lets its steps go on: with their grace and [`LEAVING`] it is gone within half
/// a minute, which is what orchestrators wait unless told otherwise.
pub const DRAIN: Duration = Duration::from_secs(10);

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
    /// How often a worker of this id was started on another state directory, as far as is known: this start counts on
    /// from there (P10).
    pub starts_before: u64,
    /// The embedded worker is given its id. `None`: it makes one and keeps it in the state directory.
    pub worker_id: Option<WorkerId>,
    /// P15: bytes of one step's spool that are kept on disk until they are stored. A step that has so much there waits,
    /// where there is a supervisor to make it wait; else what goes beyond is counted, and the log says so. At least 128
    /// MiB: 16 are given back at a time, once 64 KiB more of output are stored, which in lines of one byte are 2 of frames.
    pub spool_bytes_max: u64,
    /// P15: bytes of all steps' spools together, beyond 8 MiB that each step has in any case. A step that finds no room
    /// waits in line, where there is a supervisor to make it wait. `None`: a quarter of what is free on the state
    /// directory's disk when the worker starts, at least 64 MiB.
    pub spools_bytes_max: Option<u64>,
    /// P15: bytes of one step's output that are taken at all, where its pipeline does not say; what goes beyond is
    /// counted, and the log says so.
    pub output_bytes_max: u64,
    /// How many containers are kept after their steps, so that a child can go on in each; 0: none. `None`: as many as
    /// there are slots.
    pub parked_max: Option<u32>,
    /// For how long.
    pub parked_for: Duration,
    /// Do without supervisors, even where they would work: every command is its container's own process, nothing is
    /// parked and nothing adopted.
    pub direct: bool,
    /// P17: how long a container goes on without its worker.
    pub orphan: Duration,
    /// How long steps may go on when the worker is told to end, before they are handed back.
    pub drain: Duration,
    /// How long parked containers are committed for when the worker leaves; zero where nobody comes back.
    pub leaving: Duration,
}

impl Config {
    /// The defaults: pool `default`, one slot, no HTTP server, an id of its own, as many parked containers as slots.
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
            starts_before: 0,
            worker_id: None,
            spool_bytes_max: SPOOL_BYTES_MAX,
            spools_bytes_max: None,
            output_bytes_max: OUTPUT_BYTES_MAX,
            parked_max: None,
            parked_for: PARKED_FOR,
            direct: false,
            orphan: ORPHAN,
            drain: DRAIN,
            leaving: LEAVING,
        }
    }

    /// How many containers may be parked.
    pub(crate) fn parked_max(&self) -> usize {
        self.parked_max.unwrap_or(self.slots) as usize
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
