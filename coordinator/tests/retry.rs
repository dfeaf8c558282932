//! One step cancelled, a run opened again, and why: over the API, through the journal.

#![allow(clippy::unwrap_used)] // a test's helper that fails has failed its test

mod support;

use axum::http::StatusCode;
use longshore_coordinator::core::view::{RunOutcome, StepPhase};
use longshore_protocol::control::Control;
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::output::Offsets;
use longshore_protocol::{Attempt, Outcome, RunId};
use serde_json::{Value, json};
use support::{CHAIN, Fleet, ScriptedWorker, claim};

const FAILED: Outcome = Outcome::Failed { exit: 7 };
const MATRIX: &str = "name: m\nsteps:\n  - {name: test, image: busybox, run: echo, keep_going: true, \
                      matrix: {cc: [gcc, clang], o: ['1', '2']}}\n  - {name: after, needs: [test], image: busybox, run: echo}\n";

async fn retry(fleet: &Fleet, run: RunId, body: &Value) -> (StatusCode, Value) {
    fleet.post(&format!("/v1/runs/{run}/retry"), body).await
}

/// The sentences that a step's `why` tells, and those about now.
async fn why(fleet: &Fleet, run: RunId, step: &str) -> (Vec<String>, Vec<String>) {
    let (status, why) = fleet.get(&format!("/v1/runs/{run}/steps/{step}/why")).await;
    assert_eq!(status, StatusCode::OK, "{why}");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let told = why["told"].as_array().unwrap().iter().map(|told| text(&told["text"])).collect();
    (told, why["now"].as_array().unwrap().iter().map(text).collect())
}

#[tokio::test]
async fn steps_are_cancelled_by_name_by_matrix_and_by_pattern() {
    let fleet = Fleet::start().await;
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let run = fleet.submitted(MATRIX).await;
    let job = worker.next_job().await;
    worker.started(&job).await;
    let cancel = async |steps: &str| {
        let (status, body) = fleet.post(&format!("/v1/runs/{run}/steps/{steps}/cancel"), &json!({})).await;
        let names = body["steps"].as_array().cloned().unwrap_or_default();
        (status, names.iter().map(|step| step["step"].as_str().unwrap().to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(cancel("tes").await, (StatusCode::NOT_FOUND, Vec::new()));
    let clang = ["test[cc=clang,o=1]", "test[cc=clang,o=2]"].map(str::to_owned).to_vec();
    assert_eq!(cancel("test%5Bcc=clang%2C*").await, (StatusCode::ACCEPTED, clang));
    assert_eq!(cancel("test").await.1.len(), 4);
    let told = worker.told(|control| matches!(control, Control::Cancel { .. })).await.control;
    assert_eq!(told, Control::Cancel { claim: claim(&job), by: CancelledBy::User });
    worker.finished(&job, Outcome::Cancelled { by: CancelledBy::User }, Offsets::default()).await;
    let view = fleet.settled(run).await;
    assert_eq!(view.summary.outcome, Some(RunOutcome::Cancelled));
    let (told, now) = why(&fleet, run, "after").await;
    assert!(told.last().unwrap().starts_with("it was skipped, because it waits for test["), "{told:?}");
    assert!(told.last().unwrap().ends_with("which was cancelled by the user") && now.is_empty(), "{told:?} {now:?}");
    let (told, _) = why(&fleet, run, "test%5Bcc=gcc%2Co=1%5D").await;
    assert!(told.contains(&"the user asked for its end".to_owned()), "{told:?}");
}

#[tokio::test]
async fn a_done_run_is_opened_again_after_a_restart_and_says_why() {
    let mut fleet = Fleet::start().await;
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let run = fleet.submitted(CHAIN).await;
    let (_, open) = retry(&fleet, run, &json!({})).await;
    assert_eq!(open["error"]["code"], "run_open");
    let build = worker.next_job().await;
    worker.carry_out(&build).await;
    let test = worker.next_job().await;
    worker.started(&test).await;
    worker.finished(&test, FAILED, Offsets::default()).await;
    assert_eq!(fleet.settled(run).await.summary.outcome, Some(RunOutcome::Failed));
    // Another coordinator never knew it.
    fleet.stop().await;
    fleet.restart().await;
    let (status, nothing) = retry(&fleet, run, &json!({ "only": ["infra"] })).await;
    assert_eq!((status, nothing["error"]["code"].as_str()), (StatusCode::CONFLICT, Some("nothing_to_retry")));
    let (status, summary) = retry(&fleet, run, &json!({ "only": ["failed"] })).await;
    assert_eq!((status, &summary["retries"], &summary["outcome"]), (StatusCode::ACCEPTED, &json!(1), &Value::Null));
    // P20: what `build` left was let go of when its only child was settled.
    let again = worker.next_job().await;
    assert_ne!(again.execution, build.execution);
    let (_, now) = why(&fleet, run, "test").await;
    assert_eq!(now, ["it waits for build~1, which makes its parent's files again"]);
    worker.carry_out(&again).await;
    let second = worker.next_job().await;
    assert_eq!((second.execution, second.attempt), (test.execution, Attempt(2)));
    worker.carry_out(&second).await;
    let view = fleet.settled(run).await;
    assert_eq!((view.summary.outcome, view.steps[1].attempts.len()), (Some(RunOutcome::Passed), 2));
    assert_eq!(retry(&fleet, run, &json!({})).await.1["error"]["code"], "nothing_to_retry");
    // The run passed before it was opened again, too, as far as `build` goes: that settled once.
    let (told, now) = why(&fleet, run, "test").await;
    for sentence in [
        "the run was submitted; it waits for build",
        "build passed: nothing that it waited for is missing any more",
        "attempt 1 was put on the queue of worker w1, beside what build left",
        "it failed with exit status 7; it has no rule to try it again",
        "somebody had what was failed, and what waits for that tried again; what was charged before is forgiven",
        "what build had left is made again, as build~1",
        "what build had left: build~1 is there again",
        "it passed",
    ] {
        assert!(told.iter().any(|told| told == sentence), "{sentence:?} is not in {told:#?}");
    }
    assert!(now.is_empty());
}

#[tokio::test]
async fn why_says_what_a_step_waits_for_at_this_moment() {
    let fleet = Fleet::start().await;
    let run = fleet.submitted(CHAIN).await;
    let (told, now) = why(&fleet, run, "test").await;
    assert_eq!(told, ["the run was submitted; it waits for build"]);
    assert_eq!(now, ["it waits for build, which has not begun"]);
    let (_, now) = why(&fleet, run, "build").await;
    assert_eq!(now, ["no worker of pool default is alive: start one, or name another pool"]);
    let (status, _) = fleet.get(&format!("/v1/runs/{run}/steps/none/why")).await;
    assert_eq!(status, StatusCode::NOT_FOUND);

    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let job = worker.next_job().await;
    worker.started(&job).await;
    let mut events = fleet.events(&format!("/v1/runs/{run}/events"), Some("0")).await;
    while events.next().await.expect("the run is not over").1["step"]["phase"] != "running" {}
    let (told, now) = why(&fleet, run, "build").await;
    assert!(told[2].starts_with("worker w1 claimed attempt 1"), "{told:?}");
    assert_eq!(now, ["attempt 1: its command runs at worker w1"]);
    assert_eq!(fleet.show(run).await.steps[0].phase, StepPhase::Running);
}
