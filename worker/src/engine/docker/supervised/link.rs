//! What the rest of the Engine holds of a container's supervisor: asks, which the [`task`](super::task) carries out.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use longshore_protocol::output::Offsets;
use longshore_supervisor::wire::{Clean, Inject, Run};
use tokio::sync::{mpsc, oneshot};

use super::super::super::{Adopted, Cleaned, EngineError, Running};
use super::command::Answer;
use crate::clock::Boot;

/// Asks that wait for the task. Callers take turns anyway; a tar's chunks shall not wait for each other.
pub(super) const ASKS_MAX: usize = 4;

/// One thing that the task is to do. What has an answer is answered, also when the supervisor is lost.
pub(super) enum Ask {
    Run(Run, Answer<Running>),
    /// Whether a command runs.
    Runs(Answer<bool>),
    /// P18: the command may run until then. Not answered.
    Extend(Boot),
    /// Answered when nothing of the command runs.
    Stop(Duration, Answer<()>),
    Clean(Clean, Answer<Cleaned>),
    /// Answered when the tar was unpacked, or as soon as it cannot be.
    Inject(Inject, Answer<()>),
    Data(Bytes),
    DataEnd,
    /// Answered when the connection has ended.
    End(Answer<()>),
}

/// How the task begins.
pub(super) enum Opening {
    /// The container was just made: nothing runs in it.
    New(Answer<()>),
    /// It may run a command, of whose output so much is here.
    Adopt(Offsets, Answer<Adopted>),
}

/// A container's supervisor. When the last handle goes, so does the connection; the container goes on.
#[derive(Clone)]
pub(in super::super) struct Link {
    asks: mpsc::Sender<Ask>,
    /// Why there is no task any more.
    lost: Arc<OnceLock<EngineError>>,
}

impl Link {
    pub(super) fn new() -> (Self, mpsc::Receiver<Ask>, Arc<OnceLock<EngineError>>) {
        let (asks, receiver) = mpsc::channel(ASKS_MAX);
        let lost = Arc::new(OnceLock::new());
        (Self { asks, lost: Arc::clone(&lost) }, receiver, lost)
    }

    pub(super) async fn ask(&self, ask: Ask) -> Result<(), EngineError> {
        self.asks.send(ask).await.map_err(|_| self.why())
    }

    /// Asks, and waits for the answer.
    pub(super) async fn call<T>(&self, ask: impl FnOnce(Answer<T>) -> Ask) -> Result<T, EngineError> {
        let (answer, receiver) = oneshot::channel();
        self.ask(ask(answer)).await?;
        self.answer(receiver).await
    }

    /// Waits for an answer.
    pub(super) async fn answer<T>(
        &self,
        receiver: oneshot::Receiver<Result<T, EngineError>>,
    ) -> Result<T, EngineError> {
        receiver.await.unwrap_or_else(|_| Err(self.why()))
    }

    fn why(&self) -> EngineError {
        let left = || EngineError::Refused {
            operation: "supervise",
            status: 500,
            reason: "nobody speaks to its supervisor any more".to_owned(),
        };
        self.lost.get().cloned().unwrap_or_else(left)
    }
}
