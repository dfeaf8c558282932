//! What breaks, and what must hold all the same: nothing lost, settled once, an honest verdict.

use longshore_coordinator::core::view::{RunOutcome, StepView};
use longshore_protocol::broker::amqp::AmqpBroker;
use longshore_protocol::broker::{Broker, Outgoing};
use longshore_protocol::topology::Topology;
use longshore_protocol::{Outcome, Shard};
use longshore_tests::check::journal_entries;
use longshore_tests::engine::{docker, named};
use longshore_tests::own::{OwnServices, base_image};
use longshore_tests::process::{Process, within_patience};
use longshore_tests::{Fleet, services};
use serde_json::Value;

/// A step that waits for its second attempt: the first one never ends by itself.
const ENDS_ON_THE_SECOND_ATTEMPT: &str = r#"
name: survives
defaults: {image: "longshore-test/busybox:latest"}
steps:
  - name: step
    run: |
      echo "attempt $LONGSHORE_ATTEMPT"
      test "$LONGSHORE_ATTEMPT" != 1 || sleep 600
  - name: child
    from: step
    run: echo child
"#;

#[tokio::test]
async fn p8_kill_9_of_a_worker_in_the_middle_of_a_step_and_it_is_carried_out_elsewhere() {
    let mut fleet = Fleet::new().worker("one", 1).worker("two", 2).start().await;
    let one = fleet.worker_id("one").await;
    let run = fleet.submit(ENDS_ON_THE_SECOND_ATTEMPT).await.id;
    fleet.follow(run).prints("step", "attempt 1").await;
    let owner = fleet.follow(run).step("step").await.attempts[0].worker.clone().expect("it runs somewhere");
    let victim = if owner == one { "one" } else { "two" };
    fleet.kill_worker(victim).await;

    fleet.follow(run).settles(RunOutcome::Passed).await;
    let step = fleet.follow(run).step("step").await;
    assert_eq!(step.attempts.len(), 2);
    assert!(matches!(step.attempts[0].outcome, Some(Outcome::Infra { .. })), "{step:?}");
    assert_ne!(step.attempts[1].worker.as_ref(), Some(&owner), "carried out elsewhere");
    assert_eq!(fleet.follow(run).log("step").await, "attempt 2\n");
    // Started again, the worker removes what it left (P10): the checker sees no container.
    fleet.start_worker(victim).await;
    fleet.checks_out().await;
}

#[tokio::test]
async fn p10_a_worker_without_supervisors_that_restarts_gives_up_what_it_held_at_once() {
    let mut fleet = Fleet::new().worker("one", 1).with(&["--direct"]).start().await;
    let run = fleet.submit(ENDS_ON_THE_SECOND_ATTEMPT).await.id;
    fleet.follow(run).prints("step", "attempt 1").await;
    fleet.follow(run).runs("step").await;
    fleet.kill_worker("one").await;
    fleet.start_worker("one").await;
    fleet.follow(run).settles(RunOutcome::Passed).await;
    assert_eq!(fleet.follow(run).step("step").await.attempts.len(), 2);
    fleet.checks_out().await;
}

#[tokio::test]
async fn p11_a_worker_told_to_end_in_the_middle_of_a_step_takes_its_containers_along() {
    let builder = Fleet::new().worker("one", 1).with(&["--drain", "0"]).worker("two", 2).with(&["--drain", "0"]);
    let mut fleet = builder.start().await;
    let one = fleet.worker_id("one").await;
    let run = fleet.submit(ENDS_ON_THE_SECOND_ATTEMPT).await.id;
    fleet.follow(run).prints("step", "attempt 1").await;
    let step = fleet.follow(run).step("step").await;
    let owner = step.attempts[0].worker.clone().expect("it runs somewhere");
    let leaving = if owner == one { "one" } else { "two" };
    fleet.terminate_worker(leaving).await;
    // Looked at once: what is left now, no lease and no sweep will ever remove.
    let left = named(fleet.engine_of(leaving), &format!("longshore.{owner}."));
    assert!(left.is_empty(), "{left:?}");

    fleet.follow(run).settles(RunOutcome::Passed).await;
    let step = fleet.follow(run).step("step").await;
    assert_eq!(step.attempts.len(), 2, "{step:?}");
    let handed_back = step.attempts[0].outcome.as_ref().is_some_and(Outcome::is_handed_back);
    assert!(handed_back, "it said so itself, nobody waited for its lease: {step:?}");
    assert_ne!(step.attempts[1].worker.as_ref(), Some(&owner), "carried out elsewhere");
    fleet.checks_out().await;
}

#[tokio::test]
async fn a_worker_told_to_end_lets_its_step_finish_first() {
    let mut fleet = Fleet::new().worker("one", 1).with(&["--drain", "600"]).start().await;
    let run = fleet
        .submit(
            r#"
name: leaves
steps:
  - name: step
    image: "longshore-test/busybox:latest"
    run: |
      echo "attempt $LONGSHORE_ATTEMPT"
      sleep 2
      echo done
"#,
        )
        .await
        .id;
    fleet.follow(run).prints("step", "attempt 1").await;
    fleet.terminate_worker("one").await;
    fleet.follow(run).settles(RunOutcome::Passed).await;
    assert_eq!(fleet.follow(run).log("step").await, "attempt 1\ndone\n");
    fleet.checks_out().await;
}

#[tokio::test]
async fn p6_what_waits_for_a_worker_that_is_gone_for_good_is_carried_out_by_its_neighbour() {
    // The lease is long enough that the children are dispatched while the dead one is still believed in.
    let fleet = Fleet::new().lease_secs(20).worker_at("one", &services::env("LONGSHORE_TEST_DOCKER_1"), 1);
    let mut fleet = fleet.worker_at("two", &services::env("LONGSHORE_TEST_DOCKER_1"), 1).start().await;
    let (one, two) = (fleet.worker_id("one").await, fleet.worker_id("two").await);
    let run = fleet
        .submit(
            r#"
name: neighbours
defaults: {image: "longshore-test/busybox:latest"}
steps:
  - name: root
    run: |
      echo root > /made
      echo made
      while test ! -e /go; do sleep 1; done
  - name: child
    from: root
    matrix: {n: [1, 2]}
    run: cat /made
"#,
        )
        .await
        .id;
    fleet.follow(run).prints("root", "made").await;
    let owner = fleet.follow(run).step("root").await.attempts[0].worker.clone();
    let (victim, goes, stays) = if owner.as_ref() == Some(&one) { ("two", two, one) } else { ("one", one, two) };
    fleet.kill_worker(victim).await;
    let run = fleet.follow(run);
    docker(&services::env("LONGSHORE_TEST_DOCKER_1"), &["exec", &run.container("root").await, "touch", "/go"]);

    let view = run.settles(RunOutcome::Passed).await;
    let last = |step: &StepView| step.attempts.last().and_then(|attempt| attempt.worker.clone());
    assert!(view.steps.iter().all(|step| last(step).as_ref() == Some(&stays)), "{view:#?}");
    // With one slot each, one child of two was meant for the dead one; nobody claimed it, and nobody is charged.
    let entries = journal_entries(&fleet.dir().join("coordinator"), &run.id.to_string()).await;
    let meant = |entry: &&Value| entry["type"] == "dispatched" && entry["queue"]["name"] == goes.to_string();
    assert!(entries.iter().any(|entry| meant(&entry)), "{entries:#?}");
    let tries = view.steps.iter().flat_map(|step| &step.attempts);
    assert!(tries.filter(|attempt| attempt.worker.is_none()).all(|attempt| attempt.outcome.is_none()), "{view:#?}");
    fleet.checks_out().await;
}

#[tokio::test]
async fn p9_rabbitmq_killed_in_the_middle_of_a_step_costs_no_line_and_no_second_attempt() {
    let services = OwnServices::prepare("broker-restart");
    services.up("rabbitmq");
    let fleet = Fleet::new().amqp(&services.env("LONGSHORE_TEST_AMQP")).worker("one", 1).start().await;
    let run = fleet
        .submit(
            r#"
name: restarts
defaults: {image: "longshore-test/busybox:latest"}
steps:
  - name: first
    run: |
      for i in $(seq 1 80); do echo "line $i"; sleep 0.1; done
  - name: second
    from: first
    run: echo second
"#,
        )
        .await;
    // More than 4 s after the last queue was made: RabbitMQ 3.10 keeps the registration of a quorum queue in memory
    // for up to 3 s (the write cache of Erlang's dets), and one killed before that has a queue without a leader.
    run.prints("first", "line 45").await;
    services::script(&["kill", services.path(), "rabbitmq"]);
    services::script(&["start", services.path(), "rabbitmq"]);
    let view = run.settles(RunOutcome::Passed).await;
    assert!(view.steps.iter().all(|step| step.attempts.len() == 1), "{view:#?}");
    let lines: Vec<_> = (1..=80).map(|i| format!("line {i}\n")).collect();
    assert_eq!(run.log("first").await, lines.concat());
    fleet.checks_out().await;
}

#[tokio::test]
async fn p3_kill_9_of_the_coordinator_and_the_run_settles_without_a_step_run_again() {
    let mut fleet = Fleet::new().worker("one", 1).worker("two", 2).start().await;
    let run = fleet
        .submit(
            r#"
name: survives
defaults: {image: "longshore-test/busybox:latest"}
steps:
  - name: first
    run: |
      for i in $(seq 1 50); do echo "line $i"; sleep 0.1; done
  - name: second
    from: first
    run: echo second
  - name: third
    from: second
    run: echo third
"#,
        )
        .await
        .id;
    fleet.follow(run).prints("first", "line 3").await;
    fleet.kill_coordinator().await;
    fleet.start_coordinator().await;
    let view = fleet.follow(run).settles(RunOutcome::Passed).await;
    assert!(view.steps.iter().all(|step| step.attempts.len() == 1), "{view:?}");
    let lines: Vec<_> = (1..=50).map(|i| format!("line {i}\n")).collect();
    let expected = lines.concat();
    assert_eq!(fleet.follow(run).log("first").await, expected);
    fleet.checks_out().await;
}

#[tokio::test]
async fn p1_garbage_on_every_queue_is_dead_lettered_and_nothing_stops() {
    let mut fleet = Fleet::new().worker("one", 1).start().await;
    let topology = Topology::new(fleet.prefix(), std::time::Duration::from_secs(10));
    let worker = fleet.worker_id("one").await;
    let broker = AmqpBroker::new(fleet.amqp(), "garbage").expect("the tests' broker");
    let queues = [
        topology.events(Shard(0)),
        topology.heartbeats(Shard(0)),
        topology.output(Shard(0)),
        topology.control(&worker),
        topology.worker_jobs(Shard(0), &worker),
    ];
    let bodies: [&[u8]; 4] =
        [b"\xff\xfe garbage", b"{}", br#"{"v":99,"type":"hello"}"#, br#"{"v":1,"type":"nonsense"}"#];
    let garbage = queues.iter().flat_map(|queue| bodies.map(|body| Outgoing::new(queue.address(), body.to_vec())));
    let garbage: Vec<_> = garbage.collect();
    let sent = garbage.len();
    broker.publish(garbage).await.expect("every queue exists");

    let run =
        fleet.submit("{name: after, steps: [{name: s, image: 'longshore-test/busybox:latest', run: echo on}]}").await;
    run.settles(RunOutcome::Passed).await;

    let mut dead = broker.consume(&topology.dead_letters(), 100).await.expect("the dead letters are a queue");
    for _ in 0..sent {
        let letter = within_patience(dead.next()).await;
        let letter = letter.expect("every piece of garbage is dead-lettered").expect("the broker is there");
        assert!(letter.headers.contains_key("x-longshore-reason"), "{:?}", letter.headers);
        letter.ack().await.expect("the connection holds");
    }
    broker.close().await;
    fleet.checks_out().await;
}

#[tokio::test]
async fn rabbitmq_that_is_not_there_at_start_is_waited_for() {
    let services = OwnServices::prepare("late-rabbitmq");
    services.up("rabbitmq");
    let amqp = services.env("LONGSHORE_TEST_AMQP");
    services::script(&["kill", services.path(), "rabbitmq"]);

    let mut fleet = Fleet::new().amqp(&amqp).worker("one", 1).prepare();
    fleet.spawn_coordinator();
    fleet.spawn_worker("one");
    fleet.coordinator().says("broker").await;
    let doctor = Process::start("doctor", &["doctor", "--amqp", &amqp].map(str::to_owned));
    let mut doctor = doctor;
    let line = doctor.says("RabbitMQ").await;
    assert!(line.contains("problem") || line.contains('✗'), "{line}");

    services::script(&["start", services.path(), "rabbitmq"]);
    fleet.coordinator().says("longshore coordinator: ready").await;
    fleet.worker("one").says("longshore worker: ready").await;
    let run =
        fleet.submit("{name: late, steps: [{name: s, image: 'longshore-test/busybox:latest', run: echo on}]}").await;
    run.settles(RunOutcome::Passed).await;
    fleet.checks_out().await;
}

#[tokio::test]
async fn docker_that_dies_in_the_middle_of_a_step_is_infra_and_the_step_is_retried() {
    let services = OwnServices::prepare("dying-docker");
    services.up("docker-1");
    let docker = services.env("LONGSHORE_TEST_DOCKER_1");
    base_image(&docker);

    let fleet = Fleet::new().worker_at("one", &docker, 2).start().await;
    let run = fleet.submit(ENDS_ON_THE_SECOND_ATTEMPT).await;
    run.prints("step", "attempt 1").await;
    services::script(&["kill", services.path(), "docker-1"]);
    // The step runs on under its supervisor; a daemon without `live-restore` ends it when it returns.
    services::script(&["start", services.path(), "docker-1"]);
    run.until("the first attempt ended", |view| view.steps[0].attempts[0].outcome.is_some()).await;
    run.settles(RunOutcome::Passed).await;
    let step = run.step("step").await;
    assert!(matches!(step.attempts[0].outcome, Some(Outcome::Infra { .. })), "{step:?}");
    fleet.checks_out().await;
}

#[tokio::test]
async fn a_disk_that_is_full_at_commit_is_infra_and_the_container_is_removed() {
    let services = OwnServices::prepare("full-disk");
    services.on_a_disk_of("64m");
    services.up("docker-1");
    let docker = services.env("LONGSHORE_TEST_DOCKER_1");
    base_image(&docker);

    let fleet = Fleet::new().worker_at("one", &docker, 2).start().await;
    let run = fleet
        .submit(
            r#"
name: full
defaults: {image: "longshore-test/busybox:latest"}
steps:
  - name: fills
    snapshot: always
    run: dd if=/dev/urandom of=/big bs=1M count=35
  - name: child
    from: fills
    run: echo never
"#,
        )
        .await;
    run.settles(RunOutcome::Infra).await;
    let outcome = run.step("fills").await.outcome.expect("settled");
    let Outcome::Infra { stage, reason } = &outcome else { panic!("{outcome}") };
    assert_eq!(stage.to_string(), "snapshot", "{outcome}");
    assert!(reason.contains("disk"), "{outcome}");
    fleet.checks_out().await;
}
