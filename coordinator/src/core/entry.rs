//! What is journalled: facts and decisions, in the order in which they became true.

use longshore_protocol::event::{Hello, Phases, Usage};
use longshore_protocol::job::Base;
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::output::Offsets;
use longshore_protocol::{Attempt, ExecutionId, Incarnation, Outcome, RunId, SnapshotId, WorkerId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::effect::JobQueue;
use super::retry::Missed;
use super::view::RunOutcome;
use crate::pipeline::Pipeline;

/// One line of the journal. A run's state is the fold of its entries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Entry {
    /// A run was taken.
    Submitted {
        /// Which.
        run: RunId,
        /// Whom it is charged to.
        tenant: String,
        /// All of it.
        pipeline: Box<Pipeline>,
    },
    /// Somebody no longer wants a run.
    CancelAsked {
        /// Which.
        run: RunId,
        /// Who.
        by: CancelledBy,
    },
    /// The user no longer wants one step. The rest of its run goes on, but for what waits for it.
    StepCancelAsked {
        /// Of which run.
        run: RunId,
        /// Which step.
        execution: ExecutionId,
    },
    /// A settled run is opened again: these steps, which did not pass, are carried out anew, with fresh charges.
    RetryAsked {
        /// Which run.
        run: RunId,
        /// What was asked for; empty for every step that had not passed.
        only: Vec<Missed>,
        /// The steps, in the pipeline's order.
        steps: Vec<ExecutionId>,
    },
    /// A worker's events up to this number are in (P9).
    Heard {
        /// Whose.
        worker: WorkerId,
        /// Which start of it.
        incarnation: Incarnation,
        /// The highest number.
        number: u64,
    },
    /// A worker began an incarnation (P10). Its records were taken as entries of their own.
    Joined {
        /// Which worker.
        worker: WorkerId,
        /// Which start of it.
        incarnation: Incarnation,
        /// What it said, `records` left empty.
        hello: Hello,
    },
    /// A worker whose lease had ended was heard of again.
    Back {
        /// Which worker.
        worker: WorkerId,
    },
    /// A worker's lease ended (P8).
    LeaseEnded {
        /// Which worker.
        worker: WorkerId,
    },
    /// An attempt was put on a queue.
    Dispatched {
        /// Which run.
        run: RunId,
        /// What is carried out.
        execution: ExecutionId,
        /// Which try of it.
        attempt: Attempt,
        /// Where its job went.
        queue: JobQueue,
        /// What it starts from.
        base: Origin,
        /// Of a step that has a key: where that was looked for. Older journals do not say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cache: Option<CacheLook>,
    },
    /// The first claim of an attempt (P5): from here on it has an owner.
    Accepted {
        /// Which run.
        run: RunId,
        /// What is carried out.
        execution: ExecutionId,
        /// Which try of it.
        attempt: Attempt,
        /// Its owner.
        worker: WorkerId,
        /// The number of the event that said so; if a heartbeat did (P7), that of the next event then. Older journals
        /// have 0 for that.
        number: u64,
    },
    /// The command's process was started.
    Started {
        /// Which run.
        run: RunId,
        /// What is carried out.
        execution: ExecutionId,
        /// Which try of it.
        attempt: Attempt,
        /// Its container, for people.
        container: String,
    },
    /// An attempt is over (P11), by its owner's `finished`, by the end of its lease, or because its job is gone.
    Ended {
        /// Which run.
        run: RunId,
        /// What was carried out.
        execution: ExecutionId,
        /// Which try of it.
        attempt: Attempt,
        /// How it ended.
        end: End,
    },
    /// The next try of an execution is wanted, not before this moment.
    Retried {
        /// Which run.
        run: RunId,
        /// What is carried out again.
        execution: ExecutionId,
        /// Why, for `why` and for the retry counters.
        because: RetryCause,
        /// Milliseconds since the Unix epoch.
        not_before_ms: u64,
    },
    /// A step's outcome is fixed: exactly once, until somebody asks for it again (promise 1).
    Settled {
        /// Which run.
        run: RunId,
        /// Its execution.
        execution: ExecutionId,
        /// For good.
        outcome: Outcome,
    },
    /// Every step of a run is settled. Again only after it was opened again.
    RunSettled {
        /// Which.
        run: RunId,
        /// The run's verdict.
        outcome: RunOutcome,
    },
    /// The log of an attempt will not grow any more (P14).
    LogClosed {
        /// Which run.
        run: RunId,
        /// Whose log.
        execution: ExecutionId,
        /// Which try of it.
        attempt: Attempt,
        /// What is missing at its end.
        gap: LogGap,
    },
    /// Nobody needs an ephemeral snapshot any more: it was told to go.
    SnapshotDropped {
        /// Which run.
        run: RunId,
        /// Of which step, though a remaking may have left it.
        execution: ExecutionId,
        /// Its name.
        snapshot: SnapshotId,
    },
    /// Nobody goes on in a parked container any more: it was told to go.
    Released {
        /// Which run.
        run: RunId,
        /// Of which step, though a remaking may have left it.
        execution: ExecutionId,
    },
    /// What a step left is gone or out of reach, and somebody needs it (P20).
    LeftLost {
        /// Which run.
        run: RunId,
        /// Which step.
        execution: ExecutionId,
        /// In words.
        reason: String,
    },
    /// What a step left is made again, by an execution of its own kind (P20).
    RemakeBegun {
        /// Which run.
        run: RunId,
        /// Which step.
        execution: ExecutionId,
        /// The execution that makes it again: [`ExecutionId::of_remake`].
        remake: ExecutionId,
    },
}

/// Who was asked for what is kept under a step's key, when it was sent out: what a miss is explained by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheLook {
    /// How many workers of its pool were there.
    pub asked: u32,
    /// The first of them, by id: enough to know the fleet by.
    pub named: Vec<WorkerId>,
    /// How many of them had not reported yet what they have.
    #[serde(default)]
    pub silent: u32,
    /// Those, of the first, that had reported it.
    pub has: Vec<WorkerId>,
}

/// What an attempt starts from, as the journal tells it: a job's [`Base`], and what versions before it wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Origin {
    /// An image.
    Image {
        /// As the user wrote it.
        reference: String,
    },
    /// What an attempt of its parent left.
    Parent {
        /// What was carried out.
        execution: ExecutionId,
        /// Which try of it.
        attempt: Attempt,
        /// Where it was committed.
        snapshot: Option<SnapshotId>,
    },
    /// What its parent left, as journals tell it that were begun before containers were parked. Read, never written.
    Snapshot {
        /// The parent's committed snapshot.
        id: SnapshotId,
    },
}

impl From<&Base> for Origin {
    fn from(base: &Base) -> Self {
        match base.clone() {
            Base::Image { reference } => Self::Image { reference },
            Base::Parent { execution, attempt, snapshot } => Self::Parent { execution, attempt, snapshot },
        }
    }
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum End {
    /// The owner said so; or, of an attempt that found no worker to be sent to, the coordinator.
    Finished {
        /// How.
        outcome: Outcome,
        /// Whether nothing ran, because its key's snapshot was there.
        cached: bool,
        /// Final offsets.
        output: Offsets,
        /// What it left committed, on the owner's Engine.
        snapshot: Option<SnapshotId>,
        /// Whether its container is parked at the owner's.
        #[serde(default)]
        parked: bool,
        /// Where the time went.
        phases: Phases,
        /// What the command used, if that is known.
        #[serde(default)]
        usage: Option<Usage>,
    },
    /// Its owner was lost, or no longer held it.
    Lost {
        /// In words.
        reason: String,
    },
    /// Its job reached nobody (P6): dispatched anew, uncharged.
    Gone {
        /// In words.
        reason: String,
    },
    /// It waited longer for a worker than its `queue_timeout`, and nobody had claimed it.
    Expired {
        /// In words, with the mend.
        reason: String,
    },
    /// It was called off before anybody claimed it.
    Withdrawn,
}

/// Why an execution is carried out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RetryCause {
    /// The fleet's fault, charged to the fleet's limit.
    Infra,
    /// The job reached nobody: uncharged (P6).
    Gone,
    /// The user's failure, under the user's rule.
    User,
    /// Its parent's files were not where it was sent: uncharged (P20).
    Lineage,
    /// Its worker was told to end before it was over: uncharged.
    HandedBack,
    /// It is exclusive, and no `go` came in time: it never began, uncharged (P18).
    GoVoid,
}

/// What is missing at a log's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LogGap {
    /// Nothing.
    None,
    /// So many bytes of each stream: `finished` had said how many there were.
    Bytes {
        /// Of each stream.
        missing: Offsets,
    },
    /// Nobody knows: the worker was lost before it said `finished`.
    EndUnknown,
}

impl Entry {
    /// The run it belongs to; `None` for what concerns a worker.
    pub fn run(&self) -> Option<RunId> {
        match self {
            Self::Heard { .. } | Self::Joined { .. } | Self::Back { .. } | Self::LeaseEnded { .. } => None,
            Self::Submitted { run, .. }
            | Self::CancelAsked { run, .. }
            | Self::StepCancelAsked { run, .. }
            | Self::RetryAsked { run, .. }
            | Self::Dispatched { run, .. }
            | Self::Accepted { run, .. }
            | Self::Started { run, .. }
            | Self::Ended { run, .. }
            | Self::Retried { run, .. }
            | Self::Settled { run, .. }
            | Self::RunSettled { run, .. }
            | Self::LogClosed { run, .. }
            | Self::SnapshotDropped { run, .. }
            | Self::Released { run, .. }
            | Self::LeftLost { run, .. }
            | Self::RemakeBegun { run, .. } => Some(*run),
        }
    }

    /// Its type, as the journal writes it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Submitted { .. } => "submitted",
            Self::CancelAsked { .. } => "cancel_asked",
            Self::StepCancelAsked { .. } => "step_cancel_asked",
            Self::RetryAsked { .. } => "retry_asked",
            Self::Heard { .. } => "heard",
            Self::Joined { .. } => "joined",
            Self::Back { .. } => "back",
            Self::LeaseEnded { .. } => "lease_ended",
            Self::Dispatched { .. } => "dispatched",
            Self::Accepted { .. } => "accepted",
            Self::Started { .. } => "started",
            Self::Ended { .. } => "ended",
            Self::Retried { .. } => "retried",
            Self::Settled { .. } => "settled",
            Self::RunSettled { .. } => "run_settled",
            Self::LogClosed { .. } => "log_closed",
            Self::SnapshotDropped { .. } => "snapshot_dropped",
            Self::Released { .. } => "released",
            Self::LeftLost { .. } => "left_lost",
            Self::RemakeBegun { .. } => "remake_begun",
        }
    }

    /// The run or the worker that it is about, for messages.
    pub fn subject(&self) -> String {
        match self {
            Self::Heard { worker, .. }
            | Self::Joined { worker, .. }
            | Self::Back { worker }
            | Self::LeaseEnded { worker } => format!("worker {worker}"),
            _ => self.run().map(|run| format!("run {run}")).unwrap_or_default(),
        }
    }
}
