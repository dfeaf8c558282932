//! What a step that did not end well said last.

use longshore_coordinator::api::types::LogEvent;
use longshore_protocol::{Outcome, RunId, StepName};

use crate::client::{Client, ClientError, LogQuery};
use crate::feed::next_of;
use crate::render::clean::clean;

/// About what a compiler's error takes.
pub(crate) const TAIL_LINES: usize = 10;

/// Whether somebody will want to know its last words.
pub(crate) fn is_failure(outcome: &Outcome) -> bool {
    outcome.is_users_failure() || outcome.is_infra()
}

/// The last lines of its log, of whichever attempt, as a terminal may show them.
pub(crate) async fn last_words(client: &Client, run: RunId, step: &StepName) -> Result<Vec<String>, ClientError> {
    let tail = Some(TAIL_LINES as u64);
    let query = LogQuery { step: Some(step.to_string()), tail, ..LogQuery::default() };
    let mut log = client.logs(run, &query);
    let mut lines = Vec::new();
    loop {
        match next_of::<LogEvent>(&mut log).await? {
            LogEvent::Line(line) => lines.push(clean(&line.data.0, false)),
            LogEvent::Gap { text, .. } => lines.push(text),
            LogEvent::End => return Ok(lines),
        }
    }
}
