//! A run under test, followed until it is over.

use std::time::Duration;

use longshore_coordinator::api::types::LogLine;
use longshore_coordinator::core::view::{RunOutcome, RunView, StepPhase, StepView};
use longshore_coordinator::why::Why;
use longshore_protocol::{Attempt, Outcome, RunId};
use serde_json::json;

use crate::engine::try_docker;
use crate::fleet::Fleet;
use crate::process::{PATIENCE, within_patience};

/// A submitted run.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    fleet: &'a Fleet,
    /// Its id.
    pub id: RunId,
}

impl<'a> Run<'a> {
    pub(crate) fn new(fleet: &'a Fleet, id: RunId) -> Self {
        Self { fleet, id }
    }

    /// What the coordinator shows of it.
    pub async fn view(&self) -> RunView {
        self.fleet.get(&format!("/v1/runs/{}", self.id)).await
    }

    /// What the coordinator shows of one step.
    ///
    /// # Panics
    /// If there is none of that name.
    pub async fn step(&self, name: &str) -> StepView {
        let view = self.view().await;
        let step = view.steps.iter().find(|step| step.step.as_str() == name);
        step.unwrap_or_else(|| panic!("no step {name} in {view:?}")).clone()
    }

    /// Waits until it is settled, and its logs are closed; it must have ended like this.
    ///
    /// # Panics
    /// If it ended otherwise, or has not after [`PATIENCE`](crate::process::PATIENCE).
    pub async fn settles(&self, outcome: RunOutcome) -> RunView {
        self.settles_within(PATIENCE, outcome).await
    }

    /// As [`settles`](Self::settles), for a run that takes long by its nature.
    ///
    /// # Panics
    /// If it ended otherwise, or has not after that time.
    pub async fn settles_within(&self, patience: Duration, outcome: RunOutcome) -> RunView {
        let closed = |view: &RunView| {
            let again = view.steps.iter().flat_map(|step| &step.remakes).flat_map(|remake| &remake.attempts);
            view.steps.iter().flat_map(|step| &step.attempts).chain(again).all(|attempt| attempt.log_closed)
        };
        let over = |view: &RunView| view.summary.outcome.is_some() && closed(view);
        let view = self.until_within(patience, "it is settled", over).await;
        assert_eq!(view.summary.outcome, Some(outcome), "{}", in_short(&view));
        view
    }

    /// Waits until a step's command runs.
    pub async fn runs(&self, step: &str) -> StepView {
        let is_running = |view: &RunView| {
            view.steps.iter().any(|other| other.step.as_str() == step && other.phase == StepPhase::Running)
        };
        self.until(&format!("{step} is running"), is_running).await;
        self.step(step).await
    }

    /// The container in which a step's last attempt runs, once that is known.
    ///
    /// # Panics
    /// If there is no step of that name.
    pub async fn container(&self, step: &str) -> String {
        let of = |view: &RunView| {
            let step = view.steps.iter().find(|other| other.step.as_str() == step);
            step.and_then(|step| step.attempts.last()).and_then(|attempt| attempt.container.clone())
        };
        let view = self.until(&format!("{step} has a container"), |view| of(view).is_some()).await;
        of(&view).expect("waited for")
    }

    /// Waits until a step's log has a line with this text.
    pub async fn prints(&self, step: &str, text: &str) {
        let poll = async {
            let mut interval = tokio::time::interval(Duration::from_millis(50));
            loop {
                interval.tick().await;
                if self.log(step).await.contains(text) {
                    return;
                }
            }
        };
        let printed = within_patience(poll).await;
        assert!(printed.is_some(), "{step} does not print {text:?}: {:#?}", self.view().await);
    }

    /// The log of a step's last attempt, as it was written: both streams, in order of arrival.
    pub async fn log(&self, step: &str) -> String {
        match self.step(step).await.attempts.last() {
            Some(last) => self.fleet.log_of(self.id, step, last.attempt).await,
            None => String::new(),
        }
    }

    /// The first lines of a log as they are told line by line.
    pub async fn log_lines(&self, step: &str, count: usize) -> Vec<LogLine> {
        self.fleet.log_lines(self.id, step, count).await
    }

    /// What a remaking, or any other log that has a name of its own, wrote.
    pub async fn log_named(&self, name: &str, attempt: u32) -> String {
        self.fleet.log_of(self.id, name, Attempt(attempt)).await
    }

    /// Removes what it left committed, on every Engine of the fleet: `snapshot: always` outlives its run, and the tests'
    /// Engines are shared.
    pub async fn forgets_snapshots(&self) {
        let view = self.view().await;
        let again = view.steps.iter().flat_map(|step| &step.remakes).flat_map(|remake| &remake.attempts);
        let attempts = view.steps.iter().flat_map(|step| &step.attempts).chain(again);
        for snapshot in attempts.filter_map(|attempt| attempt.snapshot.as_ref()) {
            for engine in self.fleet.engines() {
                // It is on one of them only.
                try_docker(&engine, &["image", "rm", "--force", snapshot.as_str()]);
            }
        }
    }

    /// Cancels it.
    pub async fn cancel(&self) {
        self.fleet.post(&format!("/v1/runs/{}/cancel", self.id), &json!({})).await;
    }

    /// Cancels one step of it.
    pub async fn cancel_step(&self, step: &str) {
        self.fleet.post(&format!("/v1/runs/{}/steps/{step}/cancel", self.id), &json!({})).await;
    }

    /// Opens it again; of what did not pass only what ended in these ways, if some are named.
    pub async fn retry(&self, only: &[&str]) {
        self.fleet.post(&format!("/v1/runs/{}/retry", self.id), &json!({ "only": only })).await;
    }

    /// Why a step is as it is.
    pub async fn why(&self, step: &str) -> Why {
        self.fleet.get(&format!("/v1/runs/{}/steps/{step}/why", self.id)).await
    }

    /// Waits until its view is as asked for.
    ///
    /// # Panics
    /// If that takes longer than [`PATIENCE`](crate::process::PATIENCE).
    pub async fn until(&self, what: &str, holds: impl Fn(&RunView) -> bool) -> RunView {
        self.until_within(PATIENCE, what, holds).await
    }

    async fn until_within(&self, patience: Duration, what: &str, holds: impl Fn(&RunView) -> bool) -> RunView {
        let poll = async {
            loop {
                let asked = tokio::time::Instant::now();
                let view = self.view().await;
                if holds(&view) {
                    return view;
                }
                // Polled rather than followed: the coordinator may be killed and started again meanwhile. A run of a
                // thousand steps is a long answer: whoever asks leaves the coordinator its time.
                tokio::time::sleep(Duration::from_millis(50).max(asked.elapsed() * 10)).await;
            }
        };
        match tokio::time::timeout(patience, poll).await.ok() {
            Some(view) => view,
            None => panic!("not reached: {what}: {}", in_short(&self.view().await)),
        }
    }
}

/// A run for a failed test's reader: of a long one those steps that did not simply pass.
fn in_short(view: &RunView) -> String {
    let is_plain = |step: &&StepView| step.outcome == Some(Outcome::Passed) && step.attempts.len() == 1;
    if view.steps.len() < 20 {
        return format!("{view:#?}");
    }
    let told: Vec<_> = view.steps.iter().filter(|step| !is_plain(step)).take(20).collect();
    format!("{:#?}, and of its steps the first that did not pass at once: {told:#?}", view.summary)
}
