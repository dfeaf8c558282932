//! The messages, and how they are framed.
//!
//! The worker listens on a unix socket, the supervisor connects; both begin with a hello. A frame is
//! `length u32 LE | kind u8 | payload`, where `length` counts the kind and the payload. Payloads are JSON, but for
//! bytes of output and of a tar. A field that is not known is ignored, and so is a frame of a kind that is not
//! known: whoever must know it raises [`VERSION`].
//!
//! ```text
//! worker                          supervisor
//!    |<- Hello{state, clean} ---------|   on every connection, at once
//!    |-- Hello{version, orphan_ms} -->|   from here on the supervisor counts as having a worker,
//!    |<- Output ... Exited -----------|   and sends again what was not acknowledged
//!    |-- Inject, InjectData*, End --->|   only while no command runs
//!    |<- Injected | InjectFailed -----|
//!    |-- Run ------------------------>|
//!    |<- Started | CannotStart -------|
//!    |<- Output* ---------------------|
//!    |-- Acked* --------------------->|   P16: what is on the worker's disk
//!    |-- Extend* -------------------->|   P18: so much longer it may run
//!    |-- Stop ----------------------->|
//!    |<- Exited ----------------------|   after both streams' last byte
//!    |-- Clean ---------------------->|   before the next Run: the container is handed on
//!    |<- Cleaned ---------------------|
//!    |-- End ------------------------>|   the supervisor exits, and with it the container
//! ```

mod codec;

use serde::{Deserialize, Serialize};

pub use codec::{
    Decoded, Decoder, FRAME_BYTES_MAX, Message, OUTPUT_BYTES_MAX, WireError, encode, encode_inject_data, encode_output,
};

/// What both hellos carry. A supervisor closes a connection whose worker has another one; a worker gives up a
/// container whose supervisor has.
pub const VERSION: u32 = 2;

/// The time without a worker until which a supervisor lives that was told no other, neither as it was started nor in a
/// hello (P17).
pub const ORPHAN_MS_DEFAULT: u64 = 600_000;

/// From the worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToSupervisor {
    /// The first frame of every connection.
    Hello(WorkerHello),
    /// Starts a command. Answered by `Started` or `CannotStart`; sent again, by the same answer.
    Run(Run),
    /// Everything below these offsets is on the worker's disk. Has no answer.
    Acked(Acked),
    /// P18: the command may run until then. Has no answer; ignored if it does not run any more, or is being ended. A
    /// time before the one that holds changes nothing.
    Extend(Extend),
    /// TERM to every process now, KILL after the grace. Has no answer but `Exited`; ignored if that command does
    /// not run any more. A second one may shorten the grace, and never lengthens it.
    Stop(Stop),
    /// Announces a tar. Answered by `Injected` or `InjectFailed` when its end has come, a failure at once.
    Inject(Inject),
    /// A piece of the tar, cut anywhere. After a failure these are thrown away until the end.
    InjectData(Vec<u8>),
    /// The tar is complete, or the worker could not go on reading it: then it lacks its end mark, and fails.
    InjectEnd,
    /// Removes what one command leaves to the next but for files. Answered by `Cleaned`.
    Clean(Clean),
    /// Kills everything and exits at once. Its answer is the end of the connection. Heard without a hello too: a
    /// worker gives up a container whose supervisor has another version so.
    End,
}

/// From the supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromSupervisor {
    /// The first frame of every connection.
    Hello(SupervisorHello),
    /// The command's program was executed.
    Started(Started),
    /// The command's program was not executed, and nothing of it runs.
    CannotStart(CannotStart),
    /// A piece of output, at most [`OUTPUT_BYTES_MAX`]; in order per stream.
    Output(Output),
    /// The command has ended, nothing else runs in the container, and every byte of output was sent before this.
    Exited(Exited),
    /// The tar is unpacked.
    Injected,
    /// The tar is not, or only in part, unpacked.
    InjectFailed(InjectFailed),
    /// Nothing runs, and what could be removed was.
    Cleaned(Cleaned),
}

/// [`ToSupervisor::Hello`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerHello {
    /// [`VERSION`].
    pub version: u32,
    /// How long the supervisor lives on without a worker (P17).
    pub orphan_ms: u64,
}

/// [`ToSupervisor::Run`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The attempt's fence. At most 255 bytes.
    pub id: String,
    /// The program and its arguments. A program without a `/` is looked up in the `PATH` of `env`.
    pub argv: Vec<String>,
    /// All of it: the image's and the step's. What is missing of `PATH`, `HOME` and `HOSTNAME` is added as
    /// Docker does; of two with one name the last counts.
    pub env: Vec<(String, String)>,
    /// `None`: `/`. Made if missing, root's.
    #[serde(default)]
    pub workdir: Option<String>,
    /// `name|uid[:group|gid]`, looked up in the container's own files. `None` or empty: root.
    #[serde(default)]
    pub user: Option<String>,
    /// From now until the supervisor kills it by itself (P17): timeout, grace, and some room.
    pub limit_ms: u64,
    /// P18: until when it may run unless that is [extended](ToSupervisor::Extend). It is not started behind that.
    #[serde(default)]
    pub lease: Option<Lease>,
    /// The image's declared VOLUMEs: what lies in them when the first command comes is not known to be
    /// anybody's later, see [`Clean`].
    #[serde(default)]
    pub volumes: Vec<String>,
}

/// [`Run::lease`]: an exclusive command's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// By when nothing of it runs any more, ms of the host's `CLOCK_BOOTTIME`: a time, not a span, because a frame may
    /// lie somewhere for as long as its reader is stopped.
    pub dead_by_ms: u64,
    /// From TERM to KILL, which comes at that time.
    pub grace_ms: u64,
}

impl Lease {
    /// When TERM is sent, `CLOCK_BOOTTIME`.
    pub fn term_at_ms(&self) -> u64 {
        self.dead_by_ms.saturating_sub(self.grace_ms)
    }
}

/// A count of bytes for each stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offsets {
    /// Of standard output.
    pub stdout: u64,
    /// Of standard error.
    pub stderr: u64,
}

/// [`ToSupervisor::Acked`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acked {
    /// Of which command. About another one it says nothing.
    pub id: String,
    /// The first byte of each stream that may be asked for again.
    pub upto: Offsets,
}

/// [`ToSupervisor::Extend`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extend {
    /// Which command.
    pub id: String,
    /// As [`Lease::dead_by_ms`].
    pub dead_by_ms: u64,
}

/// [`ToSupervisor::Stop`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Which command.
    pub id: String,
    /// From TERM to KILL; 0 means KILL at once.
    pub grace_ms: u64,
}

/// [`ToSupervisor::Inject`]: a tar, uncompressed, whose entries' names are relative to the target.
///
/// Entries that lead out of the target (absolute, `..`, below a symbolic link of the same tar, a hard link
/// outside) and devices are refused. The owners in the tar are not looked at. A symbolic link in the target's
/// own path is followed, within the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inject {
    /// Absolute. It and its parents are made if missing.
    pub target: String,
    /// Whose the files and the directories made for them become; as [`Run::user`].
    #[serde(default)]
    pub user: Option<String>,
}

/// [`ToSupervisor::Clean`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clean {
    /// The image's declared VOLUMEs, as in [`Run`].
    pub volumes: Vec<String>,
    /// Absolute paths of files that may be sockets, if the worker knows them; `None`: the root file system is
    /// searched for them. A commit does not keep sockets.
    #[serde(default)]
    pub sockets: Option<Vec<String>>,
}

/// [`FromSupervisor::Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupervisorHello {
    /// [`VERSION`].
    pub version: u32,
    /// Its own process id as it sees it: 1, or it is not in a container.
    pub pid: u32,
    /// What is, or was last, run here.
    pub state: State,
    /// No command has run since the container's start or the last clean without a fault: a `Run` is allowed.
    pub clean: bool,
}

/// [`SupervisorHello::state`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum State {
    /// Nothing since the container's start, or since it was cleaned.
    Idle,
    /// A command runs, or its last output is not read yet.
    Running(Progress),
    /// A command has ended; kept until the next `Clean` or `End`.
    Ended(Ended),
    /// The last command did not start; kept until the next `Run`.
    CannotStart(CannotStart),
}

/// How far a command is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Its fence.
    pub id: String,
    /// Of its first process, in the container.
    pub pid: u32,
    /// Since it was started, with the time that the host slept (`CLOCK_BOOTTIME`).
    pub ran_ms: u64,
    /// The first bytes that are still here: what will be sent begins there.
    pub from: Offsets,
    /// What was read of it so far.
    pub have: Offsets,
}

/// A command that has ended, and may have output that is not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// As it was at the end.
    pub progress: Progress,
    /// How it ended: what `Exited` says.
    pub exit: Exit,
}

/// [`FromSupervisor::Started`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its fence.
    pub id: String,
    /// Of its first process, in the container.
    pub pid: u32,
}

/// [`FromSupervisor::CannotStart`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CannotStart {
    /// Its fence.
    pub id: String,
    /// A shell's number: 127 no such program, 126 not to be executed. `None` where a shell has none (no such
    /// user, a bad working directory), and where the fault is not the command's; see [`Self::whose`].
    pub exit: Option<u8>,
    /// For people.
    pub reason: String,
    /// Whose fault it is.
    pub whose: Whose,
}

/// [`FromSupervisor::Output`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its command's fence.
    pub id: String,
    /// Which stream.
    pub stream: Stream,
    /// Wall clock, when it was read: milliseconds since 1970.
    pub at_ms: u64,
    /// Of the first byte, in the stream.
    pub offset: u64,
    /// Never empty.
    pub bytes: Vec<u8>,
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// [`FromSupervisor::Exited`]. Nobody acknowledges it: `Clean` and `End` say that it is on the worker's disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// Its fence.
    pub id: String,
    /// How.
    pub exit: Exit,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Of its first process, as the kernel reported it.
    pub status: Status,
    /// The kernel counted an OOM kill in this container while the command ran, and it did not exit with 0.
    pub oom_killed: bool,
    /// From its start to the end of its first process, however late its output is read. As [`Progress::ran_ms`].
    pub ran_ms: u64,
    /// What it and everything that it left behind used.
    pub usage: Usage,
    /// How much it wrote.
    pub offsets: Offsets,
    /// Who ended it.
    pub by: EndedBy,
}

/// As `wait` gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It exited with this code.
    Code(u8),
    /// This signal ended it.
    Signal(u8),
}

impl Status {
    /// One number for both, as a shell gives it: `128 + n` for a signal.
    pub fn code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128_u8.saturating_add(signal),
        }
    }
}

/// What the kernel counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time in user mode.
    pub user_ms: u64,
    /// Processor time in the kernel.
    pub system_ms: u64,
    /// The most that one of its processes had resident.
    pub max_rss_bytes: u64,
}

/// Why a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// Nobody asked it to.
    Itself,
    /// A `Stop` came before its end.
    Stopped,
    /// [`Run::limit_ms`] passed (P17).
    Limit,
    /// [`Run::lease`] was about to end (P18).
    Lease,
}

/// [`FromSupervisor::InjectFailed`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InjectFailed {
    /// For people.
    pub reason: String,
    /// Whose fault it is.
    pub whose: Whose,
}

/// Whom to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Whose {
    /// The bytes are no whole tar.
    Input,
    /// What was asked for is not done: an entry that leads out of the target, a program that does not exist.
    Refused,
    /// The container could not: a full disk, a full process table, or something that runs there already.
    Io,
}

/// [`FromSupervisor::Cleaned`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleaned {
    /// Why no other command may go on in this container, if so.
    pub unfit: Option<String>,
}
