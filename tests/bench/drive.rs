//! Submits a run and watches it with the coordinator's own events: when it was settled is known to the millisecond,
//! and nobody polls while the clock runs.

use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use longshore_coordinator::api::types::RunEvent;
use longshore_coordinator::core::view::{AttemptView, RunOutcome, RunView, StepView};
use longshore_protocol::{Outcome, RunId};
use longshore_tests::Fleet;
use reqwest::Client;
use serde_json::json;

use crate::failure::{Failure, Result};

/// A run that takes longer is stuck: the longest here takes half a minute.
const PATIENCE: Duration = Duration::from_mins(3);

/// Straight to the coordinator, whatever the environment says of proxies.
pub(crate) fn http() -> Result<Client> {
    Ok(Client::builder().no_proxy().build()?)
}

/// The wall clock, ms since 1970: the coordinator's, the steps' and this program's are one host's.
pub(crate) fn now_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64() * 1e3)
}

/// Looks every so often until there is something to see. For what nothing tells of, or tells too loudly: the events of
/// three thousand steps are work for the coordinator that is measured.
pub(crate) async fn until<T>(
    what: &str,
    every: Duration,
    patience: Duration,
    mut look: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let mut looks = tokio::time::interval(every);
    let looking = async {
        loop {
            looks.tick().await;
            if let Some(seen) = look().await? {
                return Ok(seen);
            }
        }
    };
    let never = || Failure::new(format!("waited in vain: {what}, for {} s", patience.as_secs()));
    tokio::time::timeout(patience, looking).await.unwrap_or_else(|_| Err(never()))
}

/// A run that is over.
pub(crate) struct Ran {
    pub(crate) view: RunView,
    /// From before it was submitted until we heard that it is settled.
    pub(crate) settled: Duration,
    /// The same until every byte of its logs is in the store.
    pub(crate) closed: Duration,
}

/// Submits a pipeline file and waits for its end. It must pass.
pub(crate) async fn run(fleet: &Fleet, pipeline: &str) -> Result<Ran> {
    let began = Instant::now();
    let run = submit(fleet, pipeline).await?;
    ends(fleet, run, began).await
}

/// Waits for the end of a run that was submitted then. It must pass.
pub(crate) async fn ends(fleet: &Fleet, run: RunId, began: Instant) -> Result<Ran> {
    let http = http()?;
    let watched = tokio::time::timeout(PATIENCE, watch(&http, fleet, run, began)).await;
    let (settled, closed) = watched.map_err(|_| Failure::new(format!("run {run} does not end")))??;
    let view = view(fleet, run).await?;
    passed(&view)?;
    Ok(Ran { view, settled, closed })
}

/// A run as it is now.
pub(crate) async fn view(fleet: &Fleet, run: RunId) -> Result<RunView> {
    let http = http()?;
    Ok(http.get(fleet.url(&format!("/v1/runs/{run}"))).send().await?.json().await?)
}

/// A pipeline that was read and packed: what is left to do is the coordinator's part.
pub(crate) struct Packed {
    run: RunId,
    body: Vec<u8>,
}

/// Reads and packs a pipeline file.
pub(crate) fn pack(pipeline: &str) -> Result<Packed> {
    let plan = longshore_coordinator::pipeline::parse("bench.yaml", pipeline)
        .map_err(|mistakes| Failure::new(format!("{mistakes}\n{mistakes:?}")))?;
    let run = RunId::new();
    Ok(Packed { run, body: serde_json::to_vec(&json!({ "run": run, "pipeline": plan }))? })
}

impl Packed {
    /// Submits it.
    pub(crate) async fn send(self, fleet: &Fleet) -> Result<RunId> {
        let request = http()?.post(fleet.url("/v1/runs")).header("content-type", "application/json").body(self.body);
        let answer = request.send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        if status.is_success() { Ok(self.run) } else { Err(Failure::new(format!("submit: {status}: {text}"))) }
    }
}

/// Submits a pipeline file.
pub(crate) async fn submit(fleet: &Fleet, pipeline: &str) -> Result<RunId> {
    pack(pipeline)?.send(fleet).await
}

/// Waits until a step of a run that somebody else submitted has passed; the run as it is then.
pub(crate) async fn until_passed(fleet: &Fleet, run: RunId, step: &str) -> Result<RunView> {
    let http = http()?;
    let mut events = Events::open(&http, fleet, run).await?;
    let is_over = |view: &StepView| view.step.as_str() == step && view.outcome.is_some();
    while let Some(event) = events.next().await? {
        let over = match &event {
            RunEvent::View { view } => view.steps.iter().any(is_over),
            RunEvent::Step { step } => is_over(step),
            RunEvent::Run { .. } => false,
            RunEvent::End => true,
        };
        if over {
            break;
        }
    }
    let view: RunView = http.get(fleet.url(&format!("/v1/runs/{run}"))).send().await?.json().await?;
    match view.steps.iter().find(|view| view.step.as_str() == step) {
        Some(passed) if passed.outcome.as_ref().is_some_and(Outcome::is_passed) => Ok(view),
        other => Err(Failure::new(format!("{step} of run {run} did not pass: {other:?}"))),
    }
}

/// The events of a run, as the coordinator sends them.
pub(crate) struct Events {
    answer: reqwest::Response,
    unread: Vec<u8>,
}

impl Events {
    pub(crate) async fn open(http: &Client, fleet: &Fleet, run: RunId) -> Result<Self> {
        let answer = http.get(fleet.url(&format!("/v1/runs/{run}/events"))).send().await?;
        Ok(Self { answer, unread: Vec::new() })
    }

    /// The next one; none after the last, which is `End`.
    pub(crate) async fn next(&mut self) -> Result<Option<RunEvent>> {
        loop {
            while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                if let Some(data) = line.strip_prefix(b"data:") {
                    return Ok(Some(serde_json::from_slice(data)?));
                }
            }
            let Some(chunk) = self.answer.chunk().await? else { return Ok(None) };
            self.unread.extend_from_slice(&chunk);
        }
    }
}

async fn watch(http: &Client, fleet: &Fleet, run: RunId, began: Instant) -> Result<(Duration, Duration)> {
    let (mut events, mut settled) = (Events::open(http, fleet, run).await?, None);
    while let Some(event) = events.next().await? {
        let over = match event {
            RunEvent::View { view } => view.summary.outcome.is_some(),
            RunEvent::Run { run } => run.outcome.is_some(),
            RunEvent::Step { .. } => false,
            RunEvent::End => {
                let closed = began.elapsed();
                return Ok((settled.unwrap_or(closed), closed));
            }
        };
        if over {
            settled.get_or_insert_with(|| began.elapsed());
        }
    }
    Err(Failure::new(format!("the events of {run} broke off")))
}

fn passed(view: &RunView) -> Result<()> {
    if view.summary.outcome == Some(RunOutcome::Passed) {
        return Ok(());
    }
    let bad = view.steps.iter().find(|step| step.outcome.as_ref().is_none_or(|outcome| !outcome.is_passed()));
    Err(Failure::new(format!("run {} did not pass: {bad:?}", view.summary.run)))
}

/// The attempt that a step's outcome comes from.
pub(crate) fn last(step: &StepView) -> Result<&AttemptView> {
    step.attempts.last().ok_or_else(|| Failure::new(format!("{} was never tried", step.step)))
}

/// What a step wrote.
pub(crate) async fn log(fleet: &Fleet, run: RunId, step: &str) -> Result<String> {
    let http = http()?;
    let request = http.get(fleet.url(&format!("/v1/runs/{run}/logs"))).query(&[("step", step), ("attempt", "1")]);
    Ok(request.send().await?.error_for_status()?.text().await?)
}

/// Each step's time by where it went, ms: a line a step, for a profile.
pub(crate) fn account(view: &RunView) -> String {
    let mut text = format!(
        "{:<12} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}\n",
        "step", "queued at", "claim", "prepare", "command", "commit", "settle"
    );
    for step in &view.steps {
        let Ok(attempt) = last(step) else { continue };
        let phases = attempt.phases.unwrap_or_default();
        let since = |from: u64, to: Option<u64>| to.map_or(0, |to| to.saturating_sub(from));
        let accepted = attempt.accepted_at_ms.unwrap_or(attempt.dispatched_at_ms);
        let on_worker = phases.prepare_ms + phases.exec_ms + phases.snapshot_ms;
        let _ = writeln!(
            text,
            "{:<12} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            step.step.as_str(),
            attempt.dispatched_at_ms.saturating_sub(view.summary.submitted_at_ms),
            accepted.saturating_sub(attempt.dispatched_at_ms),
            phases.prepare_ms,
            phases.exec_ms,
            phases.snapshot_ms,
            since(accepted, attempt.ended_at_ms).saturating_sub(on_worker),
        );
    }
    text
}
