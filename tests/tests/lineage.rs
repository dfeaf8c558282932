//! A snapshot that is gone is made again from its lineage (P20), and only as far back as it must: retrying what failed
//! never repeats a long build.

use std::time::Duration;

use longshore_coordinator::core::view::{RunOutcome, RunView, StepView};
use longshore_protocol::{ExecutionId, Outcome};
use longshore_tests::check::journal_entries;
use longshore_tests::engine::{docker, images, try_docker};
use longshore_tests::process::within_patience;
use longshore_tests::{Fleet, Run};

#[tokio::test]
async fn a_retry_of_the_test_does_not_repeat_the_build() {
    let fleet = Fleet::new().worker("one", 1).start().await;
    let run = fleet
        .submit(
            r#"
name: retry
defaults: {image: "longshore-test/busybox:latest"}
steps:
  - name: build
    run: |
      sleep 3
      echo built > /built
      echo "built"
  - name: test
    from: build
    retry: 2
    run: |
      cat /built
      echo "left by attempt $LONGSHORE_ATTEMPT" >> /built
      test "$LONGSHORE_ATTEMPT" = 3
"#,
        )
        .await;
    let view = run.settles(RunOutcome::Passed).await;
    let (build, test) = (step(&view, "build"), step(&view, "test"));
    assert_eq!((build.attempts.len(), build.remakes.len()), (1, 0), "{build:#?}");
    assert_eq!(test.attempts.len(), 3, "{test:#?}");
    let failed = |n: usize| test.attempts[n].outcome == Some(Outcome::Failed { exit: 1 });
    assert!(failed(0) && failed(1), "{test:#?}");
    assert_eq!(run.log("test").await, "built\n", "each try starts on what the build left");
    fleet.checks_out().await;
}

#[tokio::test]
async fn a_container_lost_far_behind_a_build_costs_the_trifles_between_and_not_the_build() {
    let fleet = Fleet::new().worker("one", 1).start().await;
    // Five seconds are more than twenty times what its commit is expected to take; the trifles are less.
    let run = fleet
        .submit(
            r#"
name: lost
defaults: {image: "longshore-test/busybox:latest"}
steps:
  - {name: build, run: "sleep 5; echo build > /trail"}
  - {name: trifle, from: build, run: "echo trifle >> /trail"}
  - {name: bagatelle, from: trifle, run: "echo bagatelle >> /trail"}
  - name: last
    from: bagatelle
    run: |
      cat /trail
      echo last >> /trail
      test "$LONGSHORE_ATTEMPT" != 1 || { echo waits; sleep 600; }
"#,
        )
        .await;
    run.prints("last", "waits").await;
    kill_container(&fleet, &run, "last").await;
    let view = run.settles(RunOutcome::Passed).await;

    assert_eq!(run.log("last").await, "build\ntrifle\nbagatelle\n", "{view:#?}");
    let build = step(&view, "build");
    assert_eq!((build.attempts.len(), build.remakes.len()), (1, 0), "{build:#?}");
    assert!(build.attempts[0].snapshot.is_some(), "committed because it ran long: {build:#?}");
    let trifles = ["trifle", "bagatelle"].map(|name| step(&view, name));
    let ran_ms: u64 = trifles.iter().filter_map(|step| step.attempts[0].phases).map(|phases| phases.exec_ms).sum();
    // On a machine that stalls they may take as long as a commit is worth, which is 1.8 s.
    for trifle in trifles.iter().filter(|_| ran_ms < 1_800) {
        assert_eq!((trifle.attempts.len(), trifle.remakes.len()), (1, 1), "{trifle:#?}");
        assert!(trifle.attempts[0].snapshot.is_none(), "a trifle is not committed: {trifle:#?}");
    }
    // By the journal as well: nothing that the build did was dispatched a second time.
    let entries = journal_entries(&fleet.dir().join("coordinator"), &run.id.to_string()).await;
    let again = [build.execution, ExecutionId::of_remake(build.execution, 1)].map(|id| id.to_string());
    let dispatched = entries.iter().filter(|entry| {
        entry["type"] == "dispatched" && entry["execution"].as_str().is_some_and(|id| again.iter().any(|a| a == id))
    });
    assert_eq!(dispatched.count(), 1, "{entries:#?}");
    fleet.checks_out().await;
}

#[tokio::test]
async fn p20_what_a_lost_host_held_is_made_again_elsewhere_and_its_return_changes_nothing() {
    let mut fleet = Fleet::new().worker("one", 1).worker("two", 2).start().await;
    let one = fleet.worker_id("one").await;
    let run = fleet
        .submit(
            r#"
name: elsewhere
defaults: {image: "longshore-test/busybox:latest"}
steps:
  - {name: root, run: "echo root > /made; echo made"}
  - {name: middle, from: root, run: "echo middle >> /made"}
  - name: leaf
    from: middle
    run: |
      cat /made
      echo leaf >> /made
      test "$LONGSHORE_ATTEMPT" != 1 || { echo waits; sleep 600; }
"#,
        )
        .await
        .id;
    fleet.follow(run).prints("leaf", "waits").await;
    let owner = fleet.follow(run).step("leaf").await.attempts[0].worker.clone().expect("it runs somewhere");
    let victim = if owner == one { "one" } else { "two" };
    fleet.kill_worker(victim).await;

    let view = fleet.follow(run).settles(RunOutcome::Passed).await;
    assert_eq!(fleet.follow(run).log("leaf").await, "root\nmiddle\n");
    for name in ["root", "middle"] {
        let lost = step(&view, name);
        assert_eq!((lost.attempts.len(), lost.remakes.len()), (1, 1), "{lost:#?}");
        assert_eq!(lost.attempts[0].worker.as_ref(), Some(&owner), "its attempt stays what it was");
        assert_ne!(lost.remakes[0].attempts[0].worker.as_ref(), Some(&owner), "made again elsewhere");
    }
    // The log of what settled stays, and the remaking has its own.
    assert_eq!(fleet.follow(run).log("root").await, "made\n");
    let again = step(&view, "root").remakes[0].name.clone();
    assert_eq!(fleet.follow(run).log_named(again.as_str(), 1).await, "made\n");
    // Back again, the old owner is told that nobody waits for what it held: the checker sees no container of it.
    fleet.start_worker(victim).await;
    fleet.checks_out().await;
}

#[tokio::test]
async fn p20_a_snapshot_removed_behind_longshores_back_is_made_again() {
    let fleet = Fleet::new().worker("one", 1).start().await;
    let run = fleet
        .submit(
            r#"
name: removed
defaults: {image: "longshore-test/busybox:latest"}
steps:
  - {name: parent, run: "echo parent > /made"}
  - {name: holds, run: "while test ! -e /go; do sleep 1; done"}
  - name: child
    from: parent
    needs: [holds]
    matrix: {n: [1, 2, 3]}
    run: cat /made
"#,
        )
        .await;
    // A fork: committed, and its container kept for the first of the three, the others start from the image.
    run.until("the parent is committed", |view| step(view, "parent").outcome.is_some()).await;
    let engine = fleet.engine_of("one");
    let snapshot = run.step("parent").await.attempts[0].snapshot.clone().expect("a fork needs a commit");
    assert!(try_docker(engine, &["image", "rm", "--force", snapshot.as_str()]).status.success());
    docker(engine, &["exec", &run.container("holds").await, "touch", "/go"]);

    let view = run.settles(RunOutcome::Passed).await;
    for n in 1..=3 {
        assert_eq!(run.log(&format!("child[n={n}]")).await, "parent\n", "{view:#?}");
    }
    assert_eq!(step(&view, "parent").attempts.len(), 1);
    fleet.checks_out().await;
}

#[tokio::test]
async fn p20_where_the_remaking_does_not_pass_what_waits_is_the_fleets_fault() {
    let fleet = Fleet::new().worker("one", 1).start().await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    // Long enough for the first time, and over before the second.
    let until = now + 45;
    let run = fleet
        .submit(&format!(
            r#"
name: once
defaults: {{image: "longshore-test/busybox:latest"}}
steps:
  - name: parent
    run: |
      test "$(date +%s)" -lt {until}
      echo parent > /made
  - name: child
    from: parent
    run: |
      while test "$(date +%s)" -le {until}; do sleep 1; done
      echo waits
      sleep 600
"#
        ))
        .await;
    run.prints("child", "waits").await;
    kill_container(&fleet, &run, "child").await;
    let view = run.settles(RunOutcome::Infra).await;
    let (parent, child) = (step(&view, "parent"), step(&view, "child"));
    let Some(Outcome::Infra { stage, reason }) = &child.outcome else { panic!("{child:#?}") };
    assert_eq!((stage.to_string().as_str(), reason.contains("lineage")), ("prepare", true), "{child:#?}");
    // The parent passed; that it could not be made again does not change that.
    assert_eq!(parent.outcome, Some(Outcome::Passed), "{parent:#?}");
    assert_eq!(parent.remakes[0].outcome, Some(Outcome::Failed { exit: 1 }), "{parent:#?}");
    fleet.checks_out().await;
}

#[tokio::test]
async fn a_forks_snapshot_goes_when_the_last_child_has_ended() {
    let mut fleet = Fleet::new().worker("one", 1).start().await;
    let worker = fleet.worker_id("one").await;
    let run = fleet
        .submit(
            r#"
name: fork
defaults: {image: "longshore-test/busybox:latest"}
steps:
  - {name: parent, run: "echo parent > /made"}
  - {name: child, from: parent, matrix: {n: [1, 2, 3, 4]}, run: "cat /made; echo ${{ matrix.n }} > /made"}
"#,
        )
        .await
        .id;
    let view = fleet.follow(run).settles(RunOutcome::Passed).await;
    for n in 1..=4 {
        assert_eq!(fleet.follow(run).log(&format!("child[n={n}]")).await, "parent\n", "{view:#?}");
    }
    let engine = fleet.engine_of("one").to_owned();
    let repository = format!("longshore/{}", worker.as_str().to_ascii_lowercase());
    let gone = async {
        // Removal is off the critical path, and nobody tells when it is done.
        let mut interval = tokio::time::interval(Duration::from_millis(100));
        while !images(&engine, &repository).is_empty() {
            interval.tick().await;
        }
    };
    assert!(within_patience(gone).await.is_some(), "{:?}", images(&engine, &repository));
    fleet.checks_out().await;
}

fn step<'a>(view: &'a RunView, name: &str) -> &'a StepView {
    view.steps.iter().find(|step| step.step.as_str() == name).unwrap_or_else(|| panic!("no step {name} in {view:?}"))
}

/// Ends the container of a step's last attempt from outside, as the kernel or an operator might.
async fn kill_container(fleet: &Fleet, run: &Run<'_>, name: &str) {
    docker(fleet.engine_of("one"), &["kill", &run.container(name).await]);
}
