//! What was lost is made again, as people see it (P20).

#![allow(clippy::unwrap_used)] // a test's helper that fails has failed its test

mod support;

use axum::http::StatusCode;
use longshore_coordinator::core::view::{RunOutcome, StepPhase};
use longshore_protocol::event::{Event, Finished};
use longshore_protocol::job::{Base, Keep};
use longshore_protocol::outcome::{InfraStage, SNAPSHOT_LOST};
use longshore_protocol::output::Offsets;
use longshore_protocol::{Attempt, ExecutionId, Outcome};
use support::{CHAIN, Fleet, ScriptedWorker, claim, line};

#[tokio::test]
async fn p20_a_remake_has_a_log_of_its_own_and_changes_nothing_else() {
    let mut fleet = Fleet::start().await;
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let run = fleet.submitted(CHAIN).await;
    let build = worker.next_job().await;
    assert_eq!(build.keep, Keep::Live);
    // It passes, and its files stand in a parked container only.
    worker.started(&build).await;
    worker.output(&claim(&build), vec![line(0, "built")]).await;
    let output = Offsets { stdout: 6, stderr: 0 };
    let parked = Finished { snapshot: None, parked: true, ..worker.result(&build, Outcome::Passed, output) };
    worker.event(Event::Finished(parked)).await;

    let test = worker.next_job().await;
    assert_eq!(test.base, Base::Parent { execution: build.execution, attempt: build.attempt, snapshot: None });
    worker.started(&test).await;
    let lost = Outcome::infra(InfraStage::Prepare, SNAPSHOT_LOST);
    worker.finished(&test, lost, Offsets::default()).await;

    // A coordinator that crashes in between goes on with the remake, from what its journal says.
    let again = worker.next_job().await;
    assert_eq!((again.execution, again.attempt), (ExecutionId::of_remake(build.execution, 1), Attempt::FIRST));
    assert_eq!((again.step.as_str(), &again.spec), ("build", &build.spec));
    worker.started(&again).await;
    fleet.crash().await;
    fleet.restart().await;
    worker.output(&claim(&again), vec![line(0, "built again")]).await;
    worker.finished(&again, Outcome::Passed, Offsets { stdout: 12, stderr: 0 }).await;
    let mut test = worker.next_job().await;
    while test.attempt == Attempt::FIRST {
        test = worker.next_job().await; // P3: what was not known to be confirmed is published again
    }
    assert!(matches!(test.base, Base::Parent { execution, .. } if execution == again.execution), "{:?}", test.base);
    worker.carry_out(&test).await;

    let view = fleet.settled(run).await;
    assert_eq!((view.summary.outcome, view.summary.steps), (Some(RunOutcome::Passed), 2));
    let step = &view.steps[0];
    assert_eq!((step.attempts.len(), step.remakes.len()), (1, 1));
    let remake = &step.remakes[0];
    assert_eq!((remake.name.as_str(), remake.phase), ("build~1", StepPhase::Settled));
    assert_eq!(remake.because.as_deref(), Some("test did not find it"));

    let logs = async |query: &str| String::from_utf8(fleet.text(&format!("/v1/runs/{run}/logs{query}")).await).unwrap();
    assert_eq!(logs("?step=build").await, "built\n");
    assert_eq!(logs("?step=build~1").await, "built again\n");
    assert_eq!(logs("?step=build~1&attempt=1&follow=true").await, "built again\n");
    assert_eq!(logs("").await, "build | built\nbuild~1 | built again\ntest | output of test\n");
    for unknown in ["build~2", "test~1", "~1", "build~"] {
        let (status, _) = fleet.get(&format!("/v1/runs/{run}/logs?step={unknown}")).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{unknown}");
    }
    fleet.stop().await;
}
