//! Logs, as the coordinator's API hands them out.

use longshore_coordinator::api::types::{LogEvent, LogLine};
use longshore_protocol::{Attempt, RunId};

use crate::fleet::Fleet;

impl Fleet {
    /// What an attempt wrote.
    pub(crate) async fn log_of(&self, run: RunId, step: &str, attempt: Attempt) -> String {
        let response =
            self.asked_for_log(run, &[("step", step), ("attempt", &attempt.to_string())], "text/plain").await;
        response.text().await.expect("a body")
    }

    /// How much an attempt wrote. Counted as it comes: it may be more than this test's memory.
    pub(crate) async fn log_bytes(&self, run: RunId, step: &str, attempt: Attempt) -> u64 {
        let query = [("step", step), ("attempt", &attempt.to_string())];
        let mut response = self.asked_for_log(run, &query, "text/plain").await;
        let mut bytes = 0;
        while let Some(piece) = response.chunk().await.expect("the answer does not break off") {
            bytes += piece.len() as u64;
        }
        bytes
    }

    /// So many of the first lines of a step's log, or all where there are fewer.
    pub(crate) async fn log_lines(&self, run: RunId, step: &str, count: usize) -> Vec<LogLine> {
        let mut response = self.asked_for_log(run, &[("step", step)], "text/event-stream").await;
        let (mut lines, mut text) = (Vec::new(), Vec::new());
        while lines.len() < count
            && let Some(piece) = response.chunk().await.expect("the answer does not break off")
        {
            text.extend_from_slice(&piece);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                let Some(data) = line.strip_prefix(b"data:") else { continue };
                if let LogEvent::Line(line) = serde_json::from_slice(data).expect("an event is JSON") {
                    lines.push(line);
                }
            }
        }
        lines.truncate(count);
        lines
    }

    async fn asked_for_log(&self, run: RunId, query: &[(&str, &str)], accept: &str) -> reqwest::Response {
        let request = self.http.get(self.url(&format!("/v1/runs/{run}/logs"))).query(query).header("accept", accept);
        let response = request.send().await.expect("the coordinator answers");
        assert!(response.status().is_success(), "log of {query:?}: {}", response.status());
        response
    }
}
