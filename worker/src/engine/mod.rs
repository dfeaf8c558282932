//! What a worker needs of a container Engine. Docker, and a fake; both pass `worker/tests/engine_contract.rs`.

pub mod docker;
pub mod fake;
mod injected;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use longshore_protocol::event::Usage;
use longshore_protocol::job::{Network, Resources};
use longshore_protocol::output::{Offsets, Stream};
use longshore_protocol::process::watch;
use longshore_protocol::{EngineId, Fence, SnapshotId, WorkerId};
use tokio::io::AsyncRead;
use tokio::sync::{mpsc, oneshot};

use crate::clock::Boot;

/// How many pieces of output wait between the Engine's stream and the spool. A piece is at most
/// 64 KiB, so one step holds 1 MiB; beyond that the step blocks on its pipe.
pub const OUTPUT_PIECES_MAX: usize = 16;

/// Containers, images and snapshots of one Engine.
///
/// Every method may be called at the same time as any other, but for one container they come in the order
/// create → (inject* → start → (stop)*)+ → commit* → destroy, where between two commands stands a [`clean`](Self::clean),
/// and a commit only where nothing runs. An error leaves behind what its method's text says, and nothing else.
///
/// What a supervisor needs (P16, P17), and what only it can do, stands with `supervised`: without one
/// ([`Way::Direct`]) a container carries out one command, and neither goes on with another nor is adopted.
pub trait Engine: Clone + Send + Sync + 'static {
    /// Who it is. The cheapest call: also the probe of whether it is there.
    fn info(&self) -> impl Future<Output = Result<EngineInfo, EngineError>> + Send;

    /// Takes up one worker's work: once, before anything is created. Unpacks the supervisor, and takes over what the
    /// Engine kept for the worker's last incarnation (network namespaces); what it keeps from now on is made
    /// meanwhile, nobody waits for it.
    fn begin(&self, duty: Duty) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// How commands are run here. Found out once, by a container that tries it; until then this waits.
    fn way(&self) -> impl Future<Output = Result<Way, EngineError>> + Send;

    /// Removes what the Engine kept for the worker: the last call of one that leaves in order.
    fn end(&self) -> impl Future<Output = ()> + Send;

    /// Makes an image exist here and answers with its id. One pull per reference however many ask;
    /// never all tags. What is already here is not pulled again.
    fn ensure_image(&self, reference: &str) -> impl Future<Output = Result<ImageId, EngineError>> + Send;

    /// Makes a container in which a command can be started; supervised: its supervisor runs and answers. On an error
    /// there is none of that name, or it is an older one of the same name, which means that the fence was used twice
    /// ([`EngineError::Exists`]).
    fn create(&self, spec: &ContainerSpec) -> impl Future<Output = Result<Created, EngineError>> + Send;

    /// Streams a tar (uncompressed) into a container in which no command runs, in constant memory. `target` is
    /// absolute; it and its parents are made if missing, and belong to `user` (`None`: the image's) like all that is
    /// unpacked. The tar's entries stay under it. On an error part of it may be there.
    fn inject(
        &self,
        container: &ContainerName,
        user: Option<&str>,
        target: &str,
        tar: impl AsyncRead + Send + Unpin + 'static,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Starts a command; no byte of its output is missed. Direct: the one that the container was created with.
    fn start(
        &self,
        container: &ContainerName,
        command: &CommandSpec,
    ) -> impl Future<Output = Result<Running, EngineError>> + Send;

    /// Supervised: a command that was started with a [`CommandLease`] may run until then (P18). `Ok` says that it is on its
    /// way to the supervisor. A time before the one that holds changes nothing, nor does any once TERM was sent.
    fn extend(&self, container: &ContainerName, dead_by: Boot) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Ends a running command: TERM, KILL after `grace`. Returns when nothing of it runs any more, and its
    /// [`Running::exit`] follows. `Ok` also if it had ended or the container does not exist.
    fn stop(&self, container: &ContainerName, grace: Duration) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Supervised: takes away what no step hands on to the next (design page, section 7), so that another command
    /// may go on in the container. After an error, or [`Cleaned::Unfit`], none may.
    fn clean(&self, container: &ContainerName) -> impl Future<Output = Result<Cleaned, EngineError>> + Send;

    /// Supervised: gives a clean container other limits, if they differ from what it has.
    fn fit(
        &self,
        container: &ContainerName,
        resources: &Resources,
    ) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Supervised: takes up a container that an earlier incarnation of the worker made (P10). `have` is how much of
    /// its command's output is on this worker's disk: the rest comes (again). An error means that it is of no use,
    /// [`EngineError::Gone`] that it is not there or does not run any more.
    fn adopt(
        &self,
        container: &ContainerName,
        have: Offsets,
    ) -> impl Future<Output = Result<Adopted, EngineError>> + Send;

    /// Commits a container in which no command runs, with the own CMD, ENTRYPOINT, User, `WorkingDir` and
    /// environment of the image that it was made from; flattened before the layers become too many. One try; the
    /// caller retries by [`EngineError::class`]. On an error there is no such snapshot, or the one that was there
    /// before.
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

    /// Every container of Longshore's that was made for an attempt, whoever's: the caller picks by
    /// [`ContainerName::owner`]. What [`begin`](Self::begin) keeps for a worker is not among them.
    fn containers(&self) -> impl Future<Output = Result<Vec<ContainerName>, EngineError>> + Send;
}

/// Whose work an Engine does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duty {
    /// In whose name containers and what they need are made.
    pub worker: WorkerId,
    /// The worker's alone, on its disk, at the same path for the Engine: the supervisor's binary, and a directory with
    /// a socket for each container.
    pub dir: PathBuf,
    /// How many network namespaces are kept for containers that are to come: slots and parked ones.
    pub namespaces: usize,
    /// Do without supervisors, even where they would work.
    pub direct: bool,
    /// How long a supervisor goes on without hearing of its worker before it ends its container (P17): 10 min.
    pub orphan: Duration,
}

/// How commands are run in an Engine's containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// By a supervisor that is their first process.
    Supervised,
    /// As their first process.
    Direct {
        /// Why there is no supervisor, for people.
        because: String,
    },
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
    /// The fence of the attempt that it is made for. Attempts that go on in it do not rename it.
    pub name: ContainerName,
    /// An image's id, or a snapshot's reference: it must be here.
    pub image: String,
    /// The first command to be started in it.
    pub command: CommandSpec,
    /// Limits; what is `None` is not limited by the Engine.
    pub resources: Resources,
    /// What it can reach.
    pub network: Network,
    /// Whom the run is charged to: what a network namespace was used for stays with its tenant.
    pub tenant: String,
}

/// A command to be.
#[derive(Clone, Debug, PartialEq)]
pub struct CommandSpec {
    /// Which attempt it is: [`Adopted::Command`] tells it again.
    pub attempt: String,
    /// The process. Replaces the image's ENTRYPOINT and CMD.
    pub argv: Vec<String>,
    /// On top of the image's.
    pub env: Vec<(String, String)>,
    /// `None`: the image's.
    pub workdir: Option<String>,
    /// `None`: the image's.
    pub user: Option<String>,
    /// When it is over at the latest, counted from its start, whatever becomes of the worker (P17).
    pub limit: Duration,
    /// P18: by when it is dead, whatever becomes of the worker, unless that is [extended](Engine::extend). Where TERM would
    /// be due already it is not started. Supervised only: nobody else could keep it.
    pub lease: Option<CommandLease>,
}

/// [`CommandSpec::lease`]: an exclusive command's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandLease {
    /// When KILL is sent to what then still runs.
    pub dead_by: Boot,
    /// So long before, TERM is.
    pub grace: Duration,
}

impl CommandLease {
    /// When TERM is sent.
    pub fn term_at(&self) -> Boot {
        self.dead_by.before(self.grace)
    }
}

/// A container that was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Created {
    /// The VOLUMEs that its image declares: nothing in them is ever handed on.
    pub volumes: Vec<String>,
}

/// What a container is after [`Engine::clean`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cleaned {
    /// Another command may go on in it.
    Ready,
    /// It may still be committed, but not gone on in.
    Unfit {
        /// For people.
        because: String,
    },
}

/// What an adopted container was doing.
#[derive(Debug)]
pub enum Adopted {
    /// No command was started in it since it was made or cleaned.
    Idle,
    /// This one runs, or has ended and nobody was told.
    Command {
        /// As its [`CommandSpec`] said.
        attempt: String,
        /// Since its start.
        ran: Duration,
        /// As if it had just been started, with its output from where it was asked for.
        running: Running,
    },
}

/// A started command. Dropping it detaches; the command goes on.
#[derive(Debug)]
pub struct Running {
    /// What the command writes, as it was read. Closed when both streams have ended or the connection broke; which
    /// of them, [`exit`](Self::exit) tells.
    pub output: mpsc::Receiver<Piece>,
    /// How the command ended: exactly one answer. It comes after the last piece of output was sent. A supervisor keeps
    /// it until the container's next command, so what is lost of it here is found again by [`Engine::adopt`] (P16).
    pub exit: oneshot::Receiver<Result<Exit, EngineError>>,
    /// How much of the output is on the worker's own disk: moved on by whoever spools. A supervisor keeps the rest, and
    /// behind a bounded rest the command blocks (P16).
    pub spooled: watch::Sender<Offsets>,
}

/// Some output of one stream, cut anywhere; at most 64 KiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which stream.
    pub stream: Stream,
    /// When it was read from the command's pipe, ms since the Unix epoch.
    pub at_ms: u64,
    /// As it was written.
    pub bytes: Bytes,
}

/// How the command ended, as the kernel reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its status.
    pub status: ExitStatus,
    /// Whether the kernel's OOM killer ended a process of it.
    pub oom_killed: bool,
    /// How long it ran until its own end, however late its output was read; if somebody could tell.
    pub ran: Option<Duration>,
    /// What it used, if somebody could tell.
    pub usage: Option<Usage>,
    /// P18: its lease was about to end, so it was ended.
    pub out_of_lease: bool,
}

/// What `wait(2)` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited; `128 + n` may also be a signal, where there is no supervisor to tell.
    Code(u8),
    /// A signal ended it.
    Signal(u8),
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
            Self::DiskFull { .. } | Self::Gone { .. } | Self::Exists { .. } | Self::Refused { status: 410, .. } => {
                ErrorClass::Host
            }
            Self::NoImage { .. } | Self::CannotStart { .. } | Self::Refused { .. } => ErrorClass::Request,
        }
    }
}
