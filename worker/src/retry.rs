//! Calls to the Engine that are tried again: few times and shortly, because the fleet retries `infra` elsewhere.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use longshore_protocol::broker::Broker;

use crate::context::Context;
use crate::engine::{Engine, EngineError, ErrorClass};
use crate::metrics::RETRIES;

/// After this the fleet is quicker: 0.2 + 0.4 + 0.8 s.
const TIMES_MAX: usize = 3;

/// Long enough for a conflict in the Engine to pass (a removal under way, say).
const FIRST_WAIT: Duration = Duration::from_millis(200);

impl<B: Broker, E: Engine> Context<B, E> {
    /// Calls the Engine, again where [`ErrorClass::Retry`] says that it may help. An Engine that does not answer
    /// at the last try stops the claiming.
    pub(crate) async fn retrying<T, Call, Answer>(&self, operation: &'static str, call: Call) -> Result<T, EngineError>
    where
        Call: FnMut() -> Answer + Send,
        Answer: Future<Output = Result<T, EngineError>> + Send,
        T: Send,
    {
        let backoff = ExponentialBuilder::default().with_min_delay(FIRST_WAIT).with_max_times(TIMES_MAX);
        let answer = call
            .retry(backoff)
            .when(|error: &EngineError| error.class() == ErrorClass::Retry)
            .notify(|error, wait| {
                tracing::info!(operation, %error, wait_ms = wait.as_millis(), "tried again");
                metrics::counter!(RETRIES, "operation" => operation).increment(1);
            })
            .await;
        if let Err(error) = &answer {
            self.noticed(error);
        }
        answer
    }
}
