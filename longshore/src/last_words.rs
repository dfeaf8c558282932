//! What a step that did not end well said last.

use std::time::Duration;

use longshore_coordinator::api::types::LogEvent;
use longshore_protocol::{Outcome, RunId, StepName};

use crate::client::{Client, ClientError, LogQuery};
use crate::render::clean::clean;
use crate::sse::Next;

/// About what a compiler's error takes.
pub(crate) const TAIL_LINES: usize = 10;

/// Whether somebody will want to know its last words.
pub(crate) fn is_failure(outcome: &Outcome) -> bool {
    outcome.is_users_failure() || outcome.is_infra()
}

/// Where its log cannot be read, in place of them.
pub(crate) const NOT_READABLE: &str = "(log not readable)";

/// So long at most: whoever asks for them has said the rest already.
const LAST_WORDS_MAX: Duration = Duration::from_secs(3);

/// The last lines of its log, of whichever attempt, as a terminal may show them. `None` if it cannot be read: its disk may
/// fail, or whoever has it be silent.
pub(crate) async fn last_words(client: &Client, run: RunId, step: &StepName) -> Option<Vec<String>> {
    let read = tokio::time::timeout(LAST_WORDS_MAX, read(client, run, step)).await;
    let silent = |_| Err(ClientError::Answer { reason: "it was silent for too long".to_owned() });
    read.unwrap_or_else(silent).inspect_err(|error| tracing::info!(%step, %error, "a log cannot be read")).ok()
}

async fn read(client: &Client, run: RunId, step: &StepName) -> Result<Vec<String>, ClientError> {
    let tail = Some(TAIL_LINES as u64);
    let query = LogQuery { step: Some(step.to_string()), tail, ..LogQuery::default() };
    let mut log = client.logs(run, &query);
    let mut lines = Vec::new();
    loop {
        // One that ends without its `end` would do so again: it is cut off where it cannot be read.
        let Next::Frame(frame) = log.next().await? else {
            return Err(ClientError::Answer { reason: "it broke off".to_owned() });
        };
        let event = serde_json::from_str(&frame.data);
        match event.map_err(|error| ClientError::Answer { reason: error.to_string() })? {
            LogEvent::Line(line) => lines.push(clean(&line.data.0, false)),
            LogEvent::Gap { text, .. } => lines.push(text),
            LogEvent::End => return Ok(lines),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::{Body, Bytes};
    use axum::routing::get;
    use futures_util::{StreamExt as _, stream};
    use longshore_coordinator::api::types::Missing;
    use longshore_protocol::Attempt;

    use super::*;
    use crate::transport::Transport;

    /// Of a log of these events, which ends behind them or goes silent.
    async fn of(events: &[LogEvent], ends: bool) -> Option<Vec<String>> {
        let data = |event| format!("data: {}\n\n", serde_json::to_string(event).unwrap());
        let text = Bytes::from(events.iter().map(data).collect::<String>());
        let answer = async move || {
            let text = stream::iter([Ok::<_, std::io::Error>(text)]);
            if ends { Body::from_stream(text) } else { Body::from_stream(text.chain(stream::pending())) }
        };
        let router = Router::new().route("/v1/runs/{run}/logs", get(answer));
        last_words(&Client::new(Transport::Local(router)), RunId::new(), &"a".into()).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_that_cannot_be_read_holds_nobody_up() {
        let (step, text) = ("a".into(), "oh".to_owned());
        let gap = LogEvent::Gap { step, attempt: Attempt::FIRST, gap: Missing::EndUnknown, text };
        assert_eq!(of(&[gap.clone(), LogEvent::End], true).await, Some(vec!["oh".to_owned()]));
        assert_eq!(of(std::slice::from_ref(&gap), true).await, None, "it broke off");
        assert_eq!(of(&[gap], false).await, None, "it is silent");
    }
}
