//! Cancelling reaches a step's process within a second: by the user, of a run and of one step, and by a sibling that
//! failed. And what did not pass is tried again.

use std::time::{Duration, Instant};

use longshore_coordinator::core::view::RunOutcome;
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::{Outcome, RunId};
use longshore_tests::Fleet;
use longshore_tests::check::processes_with;
use longshore_tests::process::within_patience;

/// The promise is a second; a busy machine is no reason to fail, a lost message is.
const REACHES_MAX: Duration = Duration::from_secs(10);

const ENDLESS: &str = r#"
name: endless
defaults: {image: "longshore-test/busybox:latest"}
steps:
  - {name: one, run: "echo up; exec sleep 600"}
  - {name: other, run: "echo up; exec sleep 600"}
"#;

/// One of them fails as soon as somebody ends its sleep from outside.
const FAILS: &str = r#"
name: fails
defaults: {image: "longshore-test/busybox:latest"}
steps:
  - {name: fails, run: "echo up; sleep 600 || exit 3"}
  - {name: other, run: "echo up; exec sleep 600"}
"#;

fn processes(run: RunId, step: &str) -> Vec<u32> {
    processes_with(&[format!("LONGSHORE_RUN={run}"), format!("LONGSHORE_STEP={step}")])
}

/// Waits until no process of the step is there; how long that took since then.
async fn dies(run: RunId, step: &str, since: Instant) -> Duration {
    let gone = async {
        // A millisecond is what is to be told apart.
        let mut interval = tokio::time::interval(Duration::from_millis(1));
        while !processes(run, step).is_empty() {
            interval.tick().await;
        }
    };
    assert!(within_patience(gone).await.is_some(), "{step} still runs");
    since.elapsed()
}

fn told(what: &str, took: Duration) {
    println!("cancelling {what} reached its process after {} ms", took.as_millis());
    assert!(took < REACHES_MAX, "{what}: {took:?}");
}

#[tokio::test]
async fn a_cancelled_run_a_cancelled_step_and_a_sibling_that_failed_each_reach_the_process_within_a_second() {
    let fleet = Fleet::new().worker("one", 2).start().await;

    let run = fleet.submit(ENDLESS).await;
    for step in ["one", "other"] {
        run.prints(step, "up").await;
    }
    let asked = Instant::now();
    run.cancel_step("one").await;
    told("one step", dies(run.id, "one", asked).await);
    run.until("the step is settled", |view| view.steps[0].outcome.is_some()).await;
    assert_eq!(run.step("one").await.outcome, Some(Outcome::Cancelled { by: CancelledBy::User }));
    assert!(!processes(run.id, "other").is_empty(), "the rest of the run goes on");
    let asked = Instant::now();
    run.cancel().await;
    told("a run", dies(run.id, "other", asked).await);
    run.settles(RunOutcome::Cancelled).await;

    let run = fleet.submit(FAILS).await;
    for step in ["fails", "other"] {
        run.prints(step, "up").await;
    }
    let sleep = processes(run.id, "fails").into_iter().max().expect("it runs");
    let asked = Instant::now();
    let killed = std::process::Command::new("kill").args(["-KILL", &sleep.to_string()]).status().expect("kill");
    assert!(killed.success());
    told("what a failed sibling ends", dies(run.id, "other", asked).await);
    run.settles(RunOutcome::Failed).await;
    assert_eq!(
        run.step("other").await.outcome,
        Some(Outcome::Cancelled { by: CancelledBy::Sibling("fails".to_owned()) })
    );
    fleet.checks_out().await;
}

/// The file is made by a step that passes, in the container in which the next one fails.
const FLAKY: &str = r#"
name: flaky
defaults: {image: "longshore-test/busybox:latest"}
steps:
  - {name: build, run: "echo built > /made; echo building"}
  - name: test
    from: build
    run: |
      cat /made
      echo spoilt > /made
      test "$LONGSHORE_ATTEMPT" != 1
  - {name: after, from: test, run: cat /made}
"#;

#[tokio::test]
async fn what_did_not_pass_is_tried_again_on_its_parents_files_and_what_passed_is_not() {
    let fleet = Fleet::new().worker("one", 1).start().await;
    let run = fleet.submit(FLAKY).await;
    run.settles(RunOutcome::Failed).await;
    let why = run.why("after").await;
    assert!(why.told.last().expect("something").text.contains("because it waits for test, which failed"), "{why:?}");
    run.retry(&["failed"]).await;
    let view = run.settles(RunOutcome::Passed).await;
    assert_eq!(view.summary.retries, 1);
    let attempts: Vec<usize> = view.steps.iter().map(|step| step.attempts.len()).collect();
    assert_eq!(attempts, [1, 2, 1]);
    // P20: a fork or a commit would have kept them (a machine that stalls may make it worth one); a chain's container is
    // gone with the step that failed in it.
    let committed = view.steps[0].attempts[0].snapshot.is_some();
    assert_eq!(view.steps[0].remakes.len(), usize::from(!committed));
    assert_eq!(run.log("test").await, "built\n");
    assert_eq!(run.log("after").await, "spoilt\n");
    fleet.checks_out().await;
}
