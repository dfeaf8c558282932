//! The coordinator's API, as the commands use it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use longshore_coordinator::api::types::{ErrorBody, RetryRequest, RunList, StepList, SubmitRequest, WorkerList};
use longshore_coordinator::core::retry::Missed;
use longshore_coordinator::core::view::{RunSummary, RunView, StepView, WorkerView};
use longshore_coordinator::pipeline::Pipeline;
use longshore_coordinator::why::Why;
use longshore_protocol::{Attempt, BlobHash, RunId, StepName};
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;
use tokio::fs::File;
use tokio::time::Instant;

use crate::sse::EventStream;
use crate::transport::{Answer, Payload, Request, Transport, TransportError};

/// A coordinator that is restarted is back within this time; submitting again is harmless (one run).
const SUBMIT_PATIENCE: Duration = Duration::from_secs(30);
/// The first wait before a submit is repeated; it doubles.
const SUBMIT_BACKOFF_FIRST: Duration = Duration::from_millis(200);
/// The longest one.
const SUBMIT_BACKOFF_MAX: Duration = Duration::from_secs(3);

/// Speaks with a coordinator, or with what a past run left.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    transport: Transport,
}

/// What could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The coordinator said no, in its own words.
    #[error("{message}")]
    Refused { status: StatusCode, message: String, hint: Option<String> },
    /// In an address it would mean another place.
    #[error("{name:?} is no step's name, nor a pattern")]
    Name { name: String },
    /// It answers, but cannot take runs now.
    #[error("the coordinator is not ready: it has no {missing}")]
    NotReady { missing: String },
    /// The answer broke off, or is none of a coordinator's.
    #[error("the coordinator's answer cannot be read: {reason}")]
    Answer { reason: String },
}

/// Which lines of a run's logs.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogQuery {
    pub(crate) step: Option<String>,
    pub(crate) attempt: Option<Attempt>,
    pub(crate) tail: Option<u64>,
    pub(crate) follow: bool,
}

impl ClientError {
    /// Whether the same request may work in a moment.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Transport(error) => matches!(error, TransportError::Unreachable { .. }),
            Self::Refused { status, .. } => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            Self::Name { .. } => false,
            Self::NotReady { .. } | Self::Answer { .. } => true,
        }
    }

    /// Whether what the user asked for is wrong, rather than the fleet.
    pub(crate) fn is_users(&self) -> bool {
        match self {
            Self::Transport(error) => !matches!(error, TransportError::Unreachable { .. }),
            Self::Refused { status, .. } => status.is_client_error() && *status != StatusCode::TOO_MANY_REQUESTS,
            Self::Name { .. } => true,
            Self::NotReady { .. } | Self::Answer { .. } => false,
        }
    }

    /// What would mend it.
    pub(crate) fn mend(&self) -> Option<String> {
        match self {
            Self::Transport(TransportError::Unreachable { .. }) => {
                Some("start one with `longshore coordinator`, or give another address with --coordinator".to_owned())
            }
            Self::Refused { status: StatusCode::UNAUTHORIZED, hint, .. } => {
                Some(hint.clone().unwrap_or_else(|| "give its token with --token or LONGSHORE_TOKEN".to_owned()))
            }
            Self::Refused { hint, .. } => hint.clone(),
            Self::NotReady { .. } => Some("its own stderr says what it waits for".to_owned()),
            Self::Transport(_) | Self::Name { .. } | Self::Answer { .. } => None,
        }
    }
}

impl Client {
    pub(crate) fn new(transport: Transport) -> Self {
        Self { transport }
    }

    /// Submits a resolved pipeline whose blobs are uploaded. Said again under the same id until it was answered:
    /// the coordinator makes one run of it.
    pub(crate) async fn submit(&self, run: RunId, pipeline: &Pipeline) -> Result<(), ClientError> {
        let request = SubmitRequest { run, pipeline: pipeline.clone() };
        let body = serde_json::to_vec(&request).expect("a pipeline has string keys and no failing serializers");
        let deadline = Instant::now() + SUBMIT_PATIENCE;
        let mut wait = SUBMIT_BACKOFF_FIRST;
        loop {
            let request = Request::new(Method::POST, "/v1/runs").payload(Payload::Json(body.clone()));
            match self.send(request).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_transient() && Instant::now() + wait < deadline => {
                    tracing::warn!(%error, "the submission is repeated under the same id");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(SUBMIT_BACKOFF_MAX);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The newest runs first.
    pub(crate) async fn runs(&self, limit: u32) -> Result<Vec<RunSummary>, ClientError> {
        let RunList { runs, .. } = self.get(format!("/v1/runs?limit={limit}")).await?;
        Ok(runs)
    }

    /// A run with its steps.
    pub(crate) async fn run(&self, run: RunId) -> Result<RunView, ClientError> {
        self.get(format!("/v1/runs/{run}")).await
    }

    /// Asks for a run's end. Of a settled run: nothing.
    pub(crate) async fn cancel(&self, run: RunId) -> Result<(), ClientError> {
        self.send(Request::new(Method::POST, format!("/v1/runs/{run}/cancel"))).await.map(drop)
    }

    /// Why a step is as it is.
    pub(crate) async fn why(&self, run: RunId, step: &StepName) -> Result<Why, ClientError> {
        self.get(format!("/v1/runs/{run}/steps/{}/why", part_of_path(step.as_str())?)).await
    }

    /// Has a settled run's steps that did not pass carried out anew; of these only, if some are named.
    pub(crate) async fn retry(&self, run: RunId, only: Vec<Missed>) -> Result<RunSummary, ClientError> {
        let body = serde_json::to_vec(&RetryRequest { only }).expect("words have no failing serializers");
        let request = Request::new(Method::POST, format!("/v1/runs/{run}/retry")).payload(Payload::Json(body));
        read(self.send(request).await?).await
    }

    /// Asks for the end of the steps that a name or a pattern stands for. The steps, as they are then.
    pub(crate) async fn cancel_steps(&self, run: RunId, steps: &str) -> Result<Vec<StepView>, ClientError> {
        let path = format!("/v1/runs/{run}/steps/{}/cancel", part_of_path(steps)?);
        let StepList { steps } = read(self.send(Request::new(Method::POST, path)).await?).await?;
        Ok(steps)
    }

    /// Every worker that the coordinator knows.
    pub(crate) async fn workers(&self) -> Result<Vec<WorkerView>, ClientError> {
        let WorkerList { workers } = self.get("/v1/workers".to_owned()).await?;
        Ok(workers)
    }

    /// Whether it is ready to take runs, and what it lacks if not.
    pub(crate) async fn ready(&self) -> Result<(), ClientError> {
        let answer = self.transport.send(Request::get("/readyz")).await?;
        if answer.status != StatusCode::SERVICE_UNAVAILABLE {
            return if answer.status.is_success() { Ok(()) } else { Err(refusal(answer).await) };
        }
        let body = answer.bytes().await.map_err(|reason| ClientError::Answer { reason })?;
        let has: BTreeMap<String, bool> = serde_json::from_slice(&body).unwrap_or_default();
        let words = [("leader", "leader"), ("broker", "connection to its broker"), ("store", "store")];
        let missing: Vec<_> =
            words.iter().filter(|(name, _)| has.get(*name) == Some(&false)).map(|(_, it)| *it).collect();
        Err(ClientError::NotReady { missing: missing.join(", no ") })
    }

    /// Whether the blob is there.
    pub(crate) async fn has_blob(&self, hash: &BlobHash) -> Result<bool, ClientError> {
        match self.send(Request::new(Method::HEAD, format!("/v1/blobs/{hash}"))).await {
            Ok(_) => Ok(true),
            Err(ClientError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Uploads a blob from where the file stands.
    pub(crate) async fn put_blob(&self, hash: &BlobHash, file: File, bytes: u64) -> Result<(), ClientError> {
        let request = Request::new(Method::PUT, format!("/v1/blobs/{hash}")).payload(Payload::File(file, bytes));
        self.send(request).await.map(drop)
    }

    /// What changes in a run, from a full view on.
    pub(crate) fn events(&self, run: RunId) -> EventStream {
        EventStream::new(self.clone(), format!("/v1/runs/{run}/events"))
    }

    /// A run's output lines.
    pub(crate) fn logs(&self, run: RunId, query: &LogQuery) -> EventStream {
        let mut parameters = vec![format!("follow={}", query.follow)];
        parameters.extend(query.step.as_deref().map(|step| format!("step={}", percent_encoded(step))));
        parameters.extend(query.attempt.map(|attempt| format!("attempt={attempt}")));
        parameters.extend(query.tail.map(|tail| format!("tail={tail}")));
        EventStream::new(self.clone(), format!("/v1/runs/{run}/logs?{}", parameters.join("&")))
    }

    /// Sends a request; an answer that is no success is an error in the coordinator's words.
    pub(crate) async fn send(&self, request: Request) -> Result<Answer, ClientError> {
        let answer = self.transport.send(request).await?;
        if answer.status.is_success() { Ok(answer) } else { Err(refusal(answer).await) }
    }

    async fn get<T: DeserializeOwned>(&self, path: String) -> Result<T, ClientError> {
        read(self.send(Request::get(path)).await?).await
    }
}

async fn read<T: DeserializeOwned>(answer: Answer) -> Result<T, ClientError> {
    let body = answer.bytes().await.map_err(|reason| ClientError::Answer { reason })?;
    serde_json::from_slice(&body).map_err(|error| ClientError::Answer { reason: error.to_string() })
}

async fn refusal(answer: Answer) -> ClientError {
    let status = answer.status;
    let body = answer.bytes().await.unwrap_or_default();
    match serde_json::from_slice::<ErrorBody>(&body) {
        Ok(ErrorBody { error }) => ClientError::Refused { status, message: error.message, hint: error.hint },
        // Not a coordinator's words: a proxy's, or the answer to HEAD, which has none.
        Err(_) => ClientError::Refused { status, message: format!("the coordinator answers {status}"), hint: None },
    }
}

/// What somebody typed, as one part of a path. A dot, or two, would be taken as steps through the path, also where they
/// are encoded: the cancelling of a step would be that of its run.
fn part_of_path(text: &str) -> Result<String, ClientError> {
    if matches!(text, "" | "." | "..") {
        return Err(ClientError::Name { name: text.to_owned() });
    }
    Ok(percent_encoded(text))
}

/// A query parameter's value, or a part of a path: step names hold brackets, commas and equals signs.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_does_not_lead_out_of_its_path() {
        for name in ["", ".", ".."] {
            assert!(part_of_path(name).unwrap_err().is_users(), "{name:?}");
        }
        // What stands for dots is text like another: its sign is encoded itself.
        for (name, part) in [("%2E%2E", "%252E%252E"), ("../x", "..%2Fx"), ("...", "..."), ("a.b", "a.b")] {
            assert_eq!(part_of_path(name).unwrap(), part);
        }
    }

    #[test]
    fn step_names_survive_a_query() {
        assert_eq!(percent_encoded("test[cc=gcc,o=2]"), "test%5Bcc%3Dgcc%2Co%3D2%5D");
        assert_eq!(percent_encoded("a-b_c.d"), "a-b_c.d");
    }
}
