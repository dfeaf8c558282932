//! A run under test, followed until it is over.

use std::time::Duration;

use longshore_coordinator::core::view::{RunOutcome, RunView, StepPhase, StepView};
use longshore_protocol::RunId;

use crate::fleet::Fleet;
use crate::process::within_patience;

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
        let closed = |view: &RunView| view.steps.iter().flat_map(|step| &step.attempts).all(|a| a.log_closed);
        let view = self.until("it is settled", |view| view.summary.outcome.is_some() && closed(view)).await;
        assert_eq!(view.summary.outcome, Some(outcome), "{view:#?}");
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

    /// Cancels it.
    pub async fn cancel(&self) {
        self.fleet.post(&format!("/v1/runs/{}/cancel", self.id)).await;
    }

    /// Waits until its view is as asked for.
    ///
    /// # Panics
    /// If that takes longer than [`PATIENCE`](crate::process::PATIENCE).
    pub async fn until(&self, what: &str, holds: impl Fn(&RunView) -> bool) -> RunView {
        let poll = async {
            // Polled rather than followed: the coordinator may be killed and started again meanwhile.
            let mut interval = tokio::time::interval(Duration::from_millis(50));
            loop {
                interval.tick().await;
                let view = self.view().await;
                if holds(&view) {
                    return view;
                }
            }
        };
        match within_patience(poll).await {
            Some(view) => view,
            None => panic!("not reached: {what}: {:#?}", self.view().await),
        }
    }
}
