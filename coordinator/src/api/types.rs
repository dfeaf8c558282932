//! What the HTTP API takes and answers: one set of types for the server, the clients and the tests.

use longshore_protocol::output::{Ending, LineData, Offsets, Stream};
use longshore_protocol::{Attempt, RunId, StepName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::core::retry::Missed;
use crate::core::view::{RunSummary, RunView, StepView, WorkerView};
use crate::pipeline::Pipeline;

/// The body of `POST /v1/runs`. Sent again with the same id and pipeline it is answered as the first time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SubmitRequest {
    /// The client's choice, a UUID v7.
    pub run: RunId,
    /// Resolved, its sources' blobs uploaded and filled in.
    pub pipeline: Pipeline,
}

/// The body of `POST /v1/runs/{run}/retry`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RetryRequest {
    /// Which of the steps that did not pass; empty for all of them. What waits for them follows.
    #[serde(default)]
    pub only: Vec<Missed>,
}

/// The answer to `GET /v1/runs`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunList {
    /// Newest first.
    pub runs: Vec<RunSummary>,
    /// Where there are older ones: the `before` of the next page.
    pub next: Option<RunId>,
}

/// The answer to `POST /v1/runs/{run}/steps/{step}/cancel`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepList {
    /// Those that were meant, in the pipeline's order, as they are now.
    pub steps: Vec<StepView>,
}

/// The answer to `GET /v1/workers`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerList {
    /// By id.
    pub workers: Vec<WorkerView>,
}

/// One event of `GET /v1/runs/{run}/events`, as the `data` of an SSE event. They are states, not
/// differences: of several changes between two looks only the last one is sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RunEvent {
    /// Everything: the first event of a stream that was not resumed.
    View {
        /// The run with its steps.
        view: RunView,
    },
    /// One step changed.
    Step {
        /// As it is now.
        step: StepView,
    },
    /// The run itself changed.
    Run {
        /// As it is now.
        run: RunSummary,
    },
    /// The run is settled and its logs are closed: nothing follows, do not connect again.
    End,
}

/// One event of `GET /v1/runs/{run}/logs`, as the `data` of an SSE event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum LogEvent {
    /// One line, or a marked piece of one.
    Line(LogLine),
    /// What never arrived, or was lost since, at the place where it is missing.
    Gap {
        /// Whose log.
        step: StepName,
        /// Which try of it.
        attempt: Attempt,
        /// How much is missing.
        gap: Missing,
        /// The same in words, for people.
        text: String,
    },
    /// Nothing follows: do not connect again.
    End,
}

/// What is missing in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Missing {
    /// So many bytes of each stream: they were written, and never arrived.
    Bytes {
        /// Of each stream.
        missing: Offsets,
    },
    /// Nobody knows how much: the worker was lost before it could say.
    EndUnknown,
    /// Lines that were stored, and whose file is gone or damaged.
    Lines {
        /// The number of the first one, from 1.
        first: u64,
        /// How many.
        count: u64,
    },
}

/// A line of a log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LogLine {
    /// Its number in the log of its attempt, from 1.
    pub n: u64,
    /// Whose.
    pub step: StepName,
    /// Which try of it.
    pub attempt: Attempt,
    /// Which stream.
    pub stream: Stream,
    /// When its end was read, ms since the Unix epoch, by the worker's clock.
    pub at_ms: u64,
    /// How it ended.
    pub ending: Ending,
    /// Its bytes without the newline: `text`, or `base64` where they are not UTF-8.
    #[serde(flatten)]
    pub data: LineData,
}

/// The body of every answer that is not 2xx.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// What is wrong.
    pub error: ErrorDetail,
}

/// What is wrong, for programs and for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorDetail {
    /// One of [`ApiError`](super::ApiError)'s codes: for programs.
    pub code: String,
    /// In words.
    pub message: String,
    /// What to do about it, if that is known.
    pub hint: Option<String>,
}
