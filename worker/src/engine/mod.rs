//! What a worker needs of a container Engine. Docker, and a fake; both pass `worker/tests/engine_contract.rs`.

pub mod docker;
pub mod fake;
mod injected;

use std::fmt;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use longshore_protocol::job::{Network, Resources};
use longshore_protocol::output::Stream;
use longshore_protocol::{EngineId, Fence, SnapshotId, WorkerId};
use tokio::io::AsyncRead;
use tokio::sync::mpsc;

/// How many pieces of output wait between the Engine's stream and the spool. A piece is at most
/// 64 KiB, so one step holds 1 MiB; beyond that the step blocks on its pipe.
pub const OUTPUT_PIECES_MAX: usize = 16;

/// Containers, images and snapshots of one Engine.
///
/// Every method may be called at the same time as any other, but for one container they come in the
/// order create → inject* → start → (stop)* → commit? → destroy. An error leaves behind what its
/// method's text says, and nothing else.
pub trait Engine: Clone + Send + Sync + 'static {
    /// Who it is. The cheapest call: also the probe of whether it is there.
    fn info(&self) -> impl Future<Output = Result<EngineInfo, EngineError>> + Send;

    /// Makes an image exist here and answers with its id. One pull per reference however many ask;
    /// never all tags. What is already here is not pulled again.
    fn ensure_image(&self, reference: &str) -> impl Future<Output = Result<ImageId, EngineError>> + Send;

    /// Makes a container, not started. On an error there is none of that name, or it is an older one
    /// of the same name, which means that the fence was used twice ([`EngineError::Exists`]).
    fn create(&self, spec: &ContainerSpec) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Streams a tar (uncompressed) into a created container, in constant memory. `target` is absolute; it and
    /// its parents are made if missing. The tar's entries stay under it. On an error part of it may be there.
    fn inject(
        &self,
        container: &ContainerName,
        target: &str,
        tar: impl AsyncRead + Send + Unpin + 'static,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Starts the command, attached from before its first instruction: no byte of its output is missed.
    fn start(&self, container: &ContainerName) -> impl Future<Output = Result<Running, EngineError>> + Send;

    /// Ends a running container: TERM to its first process, KILL after `grace`. Returns when nothing in
    /// it runs any more. `Ok` also if it had ended or does not exist.
    fn stop(&self, container: &ContainerName, grace: Duration) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Commits a container in which nothing runs, with the own CMD, ENTRYPOINT, User, `WorkingDir` and
    /// environment of the image that it was made from. One try; the caller retries by [`EngineError::class`].
    /// On an error there is no such snapshot, or the one that was there before.
    fn commit(
        &self,
        container: &ContainerName,
        snapshot: &SnapshotId,
    ) -> impl Future<Output = Result<Committed, EngineError>> + Send;

    /// Whether a snapshot is here.
    fn snapshot_exists(&self, snapshot: &SnapshotId) -> impl Future<Output = Result<bool, EngineError>> + Send;

    /// The snapshots that are here, of any worker, newest first.
    fn snapshots(&self) -> impl Future<Output = Result<Vec<SnapshotId>, EngineError>> + Send;

    /// Removes a snapshot. `Ok` also if it is not here. One that a container still uses goes when that does.
    fn remove_snapshot(&self, snapshot: &SnapshotId) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Removes a container with its anonymous volumes, running or not. `Ok` also if it is not here.
    fn destroy(&self, container: &ContainerName) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Every container of Longshore's on this Engine, whoever's: the caller picks by [`ContainerName::owner`].
    fn containers(&self) -> impl Future<Output = Result<Vec<ContainerName>, EngineError>> + Send;
}

/// A fence as a container's name: `longshore.<owner>.<execution>.<attempt>`. Names carry the identity, because
/// labels would be inherited by every image committed from the container.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerName(String);

impl ContainerName {
    /// The container of one attempt.
    pub fn of(fence: &Fence) -> Self {
        Self(format!("longshore.{}.{}.{}", fence.owner, fence.execution.to_hex(), fence.attempt))
    }

    /// Reads a name that an Engine listed, with the leading `/` or without; `None` for somebody else's container.
    pub fn parse(name: &str) -> Option<Self> {
        let name = name.strip_prefix('/').unwrap_or(name);
        let mut parts = name.strip_prefix("longshore.")?.split('.');
        let (owner, execution, attempt) = (parts.next()?, parts.next()?, parts.next()?);
        let is_fence = owner.parse::<WorkerId>().is_ok()
            && execution.len() == 32
            && execution.bytes().all(|b| b.is_ascii_hexdigit())
            && attempt.parse::<u32>().is_ok()
            && parts.next().is_none();
        is_fence.then(|| Self(name.to_owned()))
    }

    /// Whose it is.
    pub fn owner(&self) -> WorkerId {
        let owner = self.0.split('.').nth(1).unwrap_or_default();
        owner.parse().expect("INVARIANT: both constructors made sure of the owner's form")
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An image's own id, `sha256:…`: what a reference meant at that moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageId(pub String);

/// Who an Engine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineInfo {
    /// Its own id.
    pub id: EngineId,
    /// For people: `20.10.24`.
    pub version: String,
    /// What was negotiated: `1.41`.
    pub api_version: String,
    /// For people: `overlay2`.
    pub storage_driver: String,
    /// Where it keeps its data, as it says: for the free disk, where the worker can see it.
    pub data_root: String,
}

/// A container to be.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerSpec {
    /// Its fence.
    pub name: ContainerName,
    /// An image's id, or a snapshot's reference: it must be here.
    pub image: String,
    /// The process. Replaces the image's ENTRYPOINT and CMD.
    pub argv: Vec<String>,
    /// On top of the image's.
    pub env: Vec<(String, String)>,
    /// `None`: the image's.
    pub workdir: Option<String>,
    /// `None`: the image's.
    pub user: Option<String>,
    /// Limits; what is `None` is not limited by the Engine.
    pub resources: Resources,
    /// What it can reach.
    pub network: Network,
}

/// A started container. Dropping it detaches; the container goes on.
#[derive(Debug)]
pub struct Running {
    /// What the command writes, as it was read: pieces of at most 64 KiB, cut anywhere. Closed when both
    /// streams have ended or the Engine's stream broke; which of them, [`exit`](Self::exit) tells.
    pub output: mpsc::Receiver<(Stream, Bytes)>,
    /// How the command ended: exactly one answer. It comes after the last piece of output was sent.
    pub exit: tokio::sync::oneshot::Receiver<Result<Exit, EngineError>>,
}

/// How the command ended, as the kernel reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit status; `128 + n` where a signal did it.
    pub code: u8,
    /// Whether the kernel's OOM killer ended a process of it.
    pub oom_killed: bool,
}

/// A commit that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// What it added to its parent, if the Engine says so.
    pub bytes: Option<u64>,
}

/// What to do about an [`EngineError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// The same call may work in a moment, here.
    Retry,
    /// It may work on another host, or after somebody mended this one.
    Host,
    /// It will never work: what was asked for is wrong.
    Request,
}

/// What an Engine could not do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EngineError {
    /// Nobody answers at its address, or the answer broke off.
    #[error("no container Engine answers at {address}: {reason}")]
    Unreachable {
        /// Where it was looked for.
        address: String,
        /// In the client's words.
        reason: String,
    },
    /// The image or snapshot asked for does not exist, here or in its registry, or may not be read.
    #[error("image {reference}: {reason}")]
    NoImage {
        /// As it was asked for.
        reference: String,
        /// In the Engine's or registry's words.
        reason: String,
    },
    /// A container of that name is there already.
    #[error("container {name} exists already")]
    Exists {
        /// Its name.
        name: String,
    },
    /// The container is not there.
    #[error("container {name} does not exist")]
    Gone {
        /// Its name.
        name: String,
    },
    /// The disk is full.
    #[error("no space left on the Engine's disk: {reason}")]
    DiskFull {
        /// In the Engine's words.
        reason: String,
    },
    /// The command cannot be started: no such program, not executable, no such user or directory.
    #[error("the command cannot be started: {reason}")]
    CannotStart {
        /// In the Engine's words.
        reason: String,
        /// 127 where the program does not exist, 126 where it cannot be executed: what a shell would say.
        exit: Option<u8>,
    },
    /// It took longer than this call may.
    #[error("{operation} took longer than {} s", limit.as_secs())]
    Slow {
        /// Which call.
        operation: &'static str,
        /// Its limit.
        limit: Duration,
    },
    /// Any other refusal.
    #[error("{operation} failed with status {status}: {reason}")]
    Refused {
        /// Which call.
        operation: &'static str,
        /// HTTP's.
        status: u16,
        /// In the Engine's words.
        reason: String,
    },
    /// The bytes handed in could not be read: a blob that ended early, say.
    #[error("the tar to be injected broke off: {reason}")]
    Input {
        /// In the reader's words.
        reason: String,
    },
}

impl EngineError {
    /// What to do about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Unreachable { .. } | Self::Slow { .. } | Self::Input { .. } => ErrorClass::Retry,
            Self::Refused { status, .. } if *status >= 500 || matches!(status, 408 | 409 | 429) => ErrorClass::Retry,
            Self::DiskFull { .. } | Self::Gone { .. } | Self::Exists { .. } => ErrorClass::Host,
            Self::NoImage { .. } | Self::CannotStart { .. } | Self::Refused { .. } => ErrorClass::Request,
        }
    }
}
