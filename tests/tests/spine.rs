//! One pipeline, carried out by a fleet over RabbitMQ and two Docker Engines, settled.

use longshore_coordinator::core::view::RunOutcome;
use longshore_protocol::{Outcome, RunId};
use longshore_tests::Fleet;

/// Chains that share nothing: with two workers of two slots they spread over both Engines, and every child must find its
/// parent's. The roots last until both workers take jobs, which they do a moment after they say that they are ready.
const CHAINS: &str = r#"
name: chains
defaults: {image: "longshore-test/busybox:latest"}
steps:
  - name: root
    matrix: {side: [a, b, c, d]}
    run: |
      echo "root of ${{ matrix.side }}"
      mkdir -p /work && echo "${{ matrix.side }}" > /work/trail
      sleep 3
  - name: middle
    from: root
    matrix: {side: [a, b, c, d]}
    run: |
      echo middle >> /work/trail
      echo "to stderr" >&2
  - name: leaf
    from: middle
    matrix: {side: [a, b, c, d]}
    run: cat /work/trail
  - name: end
    needs: [leaf]
    run: echo all leaves are done
"#;

#[tokio::test]
async fn children_find_the_engine_that_holds_their_parents_snapshot() {
    let fleet = Fleet::new().worker("one", 1).worker("two", 2).start().await;
    let run = fleet.submit(CHAINS).await;
    let view = run.settles(RunOutcome::Passed).await;

    let workers = fleet.workers_seen().await;
    let engine_of = |step: &str| {
        let step = view.steps.iter().find(|other| other.step.as_str() == step).expect("planned");
        let worker = step.attempts.last().and_then(|attempt| attempt.worker.clone()).expect("it passed somewhere");
        workers.iter().find(|other| other.worker == worker).expect("still in the fleet").engine.clone()
    };
    let mut engines = std::collections::BTreeSet::new();
    for side in ["a", "b", "c", "d"] {
        let root = engine_of(&format!("root[side={side}]"));
        assert_eq!(root, engine_of(&format!("middle[side={side}]")), "side {side}");
        assert_eq!(root, engine_of(&format!("leaf[side={side}]")), "side {side}");
        assert_eq!(run.log(&format!("leaf[side={side}]")).await, format!("{side}\nmiddle\n"));
        engines.insert(root);
    }
    assert_eq!(engines.len(), 2, "four roots on two workers with two slots each: both Engines had some");
    fleet.checks_out().await;
}

#[tokio::test]
async fn a_users_failure_fails_the_run_and_skips_what_follows() {
    let fleet = Fleet::new().worker("one", 1).start().await;
    let run = fleet
        .submit(
            r#"
name: fails
defaults: {image: "longshore-test/busybox:latest", keep_going: true}
steps:
  - name: bad
    run: |
      echo before
      exit 7
  - name: after
    from: bad
    run: echo never
  - name: beside
    run: printf 'no newline at the end'
  - name: again
    retry: {max: 2, on: [1], backoff: 1s}
    run: |
      echo "attempt $LONGSHORE_ATTEMPT"
      test "$LONGSHORE_ATTEMPT" = 3
  - name: hopeless
    retry: {max: 2, on: [75, signaled, oom_killed, timed_out]}
    run: exit 7
"#,
        )
        .await;
    let view = run.settles(RunOutcome::Failed).await;
    let outcome = |name: &str| {
        let step = view.steps.iter().find(|step| step.step.as_str() == name).expect("planned");
        (step.outcome.clone().expect("settled"), step.attempts.len())
    };
    assert_eq!(outcome("bad"), (Outcome::Failed { exit: 7 }, 1));
    assert_eq!(outcome("after"), (Outcome::Skipped { because: "bad".to_owned() }, 0));
    assert_eq!(outcome("beside"), (Outcome::Passed, 1));
    assert_eq!(outcome("again"), (Outcome::Passed, 3));
    assert_eq!(outcome("hopeless"), (Outcome::Failed { exit: 7 }, 1));
    assert_eq!(run.log("beside").await, "no newline at the end");
    assert_eq!(run.log("again").await, "attempt 3\n");
    fleet.checks_out().await;
}

#[tokio::test]
async fn the_kernels_word_is_the_verdict() {
    let fleet = Fleet::new().worker("one", 1).start().await;
    let run = fleet
        .submit(
            r#"
name: verdicts
defaults: {image: "longshore-test/busybox:latest", keep_going: true}
steps:
  - name: slow
    timeout: 1s
    run: |
      trap '' TERM
      echo started
      while true; do sleep 1; done
  - name: greedy
    resources: {memory: 16MiB}
    command: [tail, /dev/zero]
  - name: absent
    command: [/no/such/program]
  - name: terminated
    run: kill -TERM $$
"#,
        )
        .await;
    run.settles(RunOutcome::Failed).await;
    assert_eq!(run.step("slow").await.outcome, Some(Outcome::TimedOut));
    assert_eq!(run.step("greedy").await.outcome, Some(Outcome::OomKilled));
    assert_eq!(run.step("absent").await.outcome, Some(Outcome::Failed { exit: 127 }));
    fleet.checks_out().await;
}

#[tokio::test]
async fn submitted_twice_is_one_run() {
    let fleet = Fleet::new().worker("one", 1).start().await;
    let pipeline = "{name: once, steps: [{name: only, image: 'longshore-test/busybox:latest', run: echo hello}]}";
    let id = RunId::new();
    let first = fleet.submit_as(id, pipeline).await;
    fleet.submit_as(id, pipeline).await;
    first.settles(RunOutcome::Passed).await;
    fleet.submit_as(id, pipeline).await;
    assert_eq!(first.view().await.steps[0].attempts.len(), 1);
    fleet.checks_out().await;
}

#[tokio::test]
async fn a_cancelled_run_ends_what_runs_and_never_starts_the_rest() {
    let fleet = Fleet::new().worker("one", 1).start().await;
    let run = fleet
        .submit(
            r#"
name: cancelled
defaults: {image: "longshore-test/busybox:latest"}
steps:
  - name: long
    run: |
      echo on my way
      sleep 600
  - name: next
    from: long
    run: echo never
"#,
        )
        .await;
    run.prints("long", "on my way").await;
    run.cancel().await;
    run.settles(RunOutcome::Cancelled).await;
    assert!(matches!(run.step("long").await.outcome, Some(Outcome::Cancelled { .. })));
    assert!(run.step("next").await.attempts.is_empty());
    fleet.checks_out().await;
}

#[tokio::test]
async fn a_second_run_finds_the_first_ones_key() {
    let fleet = Fleet::new().worker("one", 1).start().await;
    let key = uuid::Uuid::new_v4();
    let pipeline = format!(
        r#"
name: cached
defaults: {{image: "longshore-test/busybox:latest"}}
steps:
  - name: deps
    cache: {{key: "{key}"}}
    run: |
      echo made once > /made
  - name: use
    from: deps
    run: cat /made
"#
    );
    let first = fleet.submit(&pipeline).await;
    first.settles(RunOutcome::Passed).await;
    assert!(!first.step("deps").await.cached);
    let second = fleet.submit(&pipeline).await;
    second.settles(RunOutcome::Passed).await;
    assert!(second.step("deps").await.cached);
    assert_eq!(second.log("use").await, "made once\n");
    fleet.checks_out().await;
}

#[tokio::test]
async fn a_megabyte_a_step_arrives_whole_and_in_order() {
    let fleet = Fleet::new().worker("one", 1).worker("two", 2).start().await;
    let run = fleet
        .submit(
            r#"
name: loud
defaults: {image: "longshore-test/busybox:latest"}
steps:
  - name: loud
    matrix: {n: [1, 2, 3, 4]}
    command: [awk, 'BEGIN { for (i = 1; i <= 40000; i++) print "${{ matrix.n }} line", i, "of a great many" }']
"#,
        )
        .await;
    run.settles(RunOutcome::Passed).await;
    for n in 1..=4 {
        let lines: Vec<_> = (1..=40_000).map(|line| format!("{n} line {line} of a great many\n")).collect();
        let expected = lines.concat();
        assert!(run.log(&format!("loud[n={n}]")).await == expected, "the log of {n} is not what was printed");
    }
    fleet.checks_out().await;
}
