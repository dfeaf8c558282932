//! Follows a run as clients do, and notes when what is said of it is heard.

use std::collections::BTreeMap;

use longshore_coordinator::api::types::RunEvent;
use longshore_coordinator::core::view::StepView;
use longshore_protocol::RunId;
use longshore_tests::Fleet;

use crate::drive::{Events, http, now_ms};
use crate::failure::{Failure, Result};

/// What was heard of a run of steps that print the time; all times ms since 1970.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// Each line: when it was printed, and when it was here.
    pub(crate) lines: Vec<(f64, f64)>,
    /// Each step's last line: when that was printed. It ends with it.
    last: BTreeMap<String, f64>,
    /// Each step: when it was known to be settled.
    settled: BTreeMap<String, f64>,
}

impl Heard {
    /// Each step: when it printed its last line, and when it was known to be settled.
    pub(crate) fn results(&self) -> Vec<(f64, f64)> {
        let both = self.last.iter().filter_map(|(step, last)| Some((*last, *self.settled.get(step)?)));
        both.collect()
    }
}

/// Until the run is over.
pub(crate) async fn overhear(fleet: &Fleet, run: RunId) -> Result<Heard> {
    let http = http()?;
    let mut events = Events::open(&http, fleet, run).await?;
    let url = fleet.url(&format!("/v1/runs/{run}/logs?follow=true"));
    let logs = http.get(url).send().await?.error_for_status()?;
    let mut heard = Heard::default();
    let settled = async {
        let mut settled = BTreeMap::new();
        while let Some(event) = events.next().await? {
            let now = now_ms();
            let mut note = |step: &StepView| {
                if step.outcome.is_some() {
                    settled.entry(step.step.to_string()).or_insert(now);
                }
            };
            match &event {
                RunEvent::View { view } => view.steps.iter().for_each(&mut note),
                RunEvent::Step { step } => note(step),
                RunEvent::Run { .. } => {}
                RunEvent::End => break,
            }
        }
        Ok::<_, Failure>(settled)
    };
    let (settled, lines) = tokio::try_join!(settled, lines(logs))?;
    heard.settled = settled;
    for (step, printed, seen) in lines {
        heard.lines.push((printed, seen));
        let last = heard.last.entry(step).or_insert(printed);
        *last = last.max(printed);
    }
    Ok(heard)
}

/// Lines of `step | time`.
async fn lines(mut logs: reqwest::Response) -> Result<Vec<(String, f64, f64)>> {
    let (mut lines, mut unread) = (Vec::new(), Vec::new());
    while let Some(chunk) = logs.chunk().await? {
        let now = now_ms();
        unread.extend_from_slice(&chunk);
        while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = unread.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let (step, printed) =
                line.trim_end().split_once(" | ").ok_or_else(|| Failure::new(format!("a line {line:?}")))?;
            lines.push((step.to_owned(), printed.parse()?, now));
        }
    }
    Ok(lines)
}
