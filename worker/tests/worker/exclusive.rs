//! P18: an exclusive step waits for its `go`, lives by answered heartbeats, and is told to be over only when it is.
//!
//! The leases are as short as they may be: what is waited for is counted in seconds.

use std::time::{Duration, Instant};

use longshore_protocol::control::Control;
use longshore_protocol::event::{Event, Phase};
use longshore_protocol::job::{Job, Keep};
use longshore_protocol::lease::{DEAD_BEFORE_END, LEASE_MIN, VOID_BEFORE_END};
use longshore_protocol::outcome::{CancelledBy, GO_VOID};
use longshore_protocol::{Attempt, InfraStage, Outcome};
use longshore_worker::engine::EngineError;

use crate::adoption::{adopts, log_of, the_container};
use crate::fleet::{Fleet, claim, claims};
use crate::process::Process;

fn exclusive(fleet: &Fleet, script: &str) -> Job {
    let mut job = Job { attempt: Attempt(3), ..fleet.job("a", script) };
    job.spec.exclusive = true;
    job
}

fn go(job: &Job) -> Control {
    Control::Go { claim: claim(job) }
}

async fn accepted(fleet: &mut Fleet, job: &Job) {
    fleet.dispatch(job).await;
    assert_eq!(fleet.accepted().await, claim(job));
}

/// Claimed, allowed, and running.
async fn running(fleet: &mut Fleet, worker: &Process, job: &Job) {
    accepted(fleet, job).await;
    fleet.control(worker, go(job)).await;
    started(fleet, job).await;
}

async fn started(fleet: &mut Fleet, job: &Job) {
    match fleet.event().await {
        Event::Started(started) => assert_eq!(started.claim, claim(job)),
        other => panic!("started was expected, not {other:?}"),
    }
}

/// Answers heartbeats for so long.
async fn answer(fleet: &mut Fleet, worker: &Process, job: &Job, time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {
        let heartbeat = fleet.heartbeat_where(|hb| !hb.attempts.is_empty()).await;
        assert_eq!(claims(&heartbeat.attempts), [claim(job)]);
        let heard = Control::Heard { stamp_ms: heartbeat.stamp_ms, claims: vec![claim(job)] };
        fleet.control(worker, heard).await;
    }
}

#[tokio::test]
async fn p18_an_exclusive_step_is_prepared_and_starts_on_its_go() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let mut job = exclusive(&fleet, "echo $LONGSHORE_FENCE");
    job.spec.env.insert("LONGSHORE_FENCE".to_owned(), "another".to_owned());
    accepted(&mut fleet, &job).await;
    // An answered heartbeat is none, nor is one for something else, or for an earlier start.
    answer(&mut fleet, &worker, &job, Duration::from_millis(200)).await;
    fleet.control(&worker, go(&Job { attempt: Attempt(4), ..job.clone() })).await;
    let earlier = longshore_protocol::Incarnation { start: 0, ..worker.incarnation };
    fleet.control_as(fleet.epoch, earlier, &worker, go(&job)).await;
    fleet.has_containers(1).await;
    let waits = fleet.heartbeat_where(|hb| hb.attempts.len() == 1).await;
    assert_eq!((&waits.attempts[0].phase, fleet.engine.calls("start")), (&Phase::Preparing, 0));
    fleet.control(&worker, go(&job)).await;
    let finished = fleet.finished().await;
    assert_eq!(finished.outcome, Outcome::Passed);
    assert_eq!(log_of(&mut fleet, &finished).await.0, "3\n");
    worker.stop().await;
}

#[tokio::test]
async fn p18_a_go_that_does_not_come_in_time_is_void() {
    let mut fleet = Fleet::with_lease(LEASE_MIN).await;
    let (worker, _) = fleet.started().await;
    let job = exclusive(&fleet, "true");
    let began = Instant::now();
    accepted(&mut fleet, &job).await;
    let finished = fleet.finished().await;
    assert_eq!(finished.outcome, Outcome::infra(InfraStage::Claim, GO_VOID));
    assert!(began.elapsed() >= LEASE_MIN.saturating_sub(VOID_BEFORE_END));
    fleet.control(&worker, go(&job)).await;
    fleet.has_containers(0).await;
    assert_eq!(fleet.engine.calls("start"), 0);
    worker.stop().await;
}

#[tokio::test]
async fn p18_a_step_that_waits_for_its_go_can_be_stopped() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let job = exclusive(&fleet, "true");
    accepted(&mut fleet, &job).await;
    fleet.control(&worker, Control::Cancel { claim: claim(&job), by: CancelledBy::User }).await;
    assert_eq!(fleet.finished().await.outcome, Outcome::Cancelled { by: CancelledBy::User });
    fleet.has_containers(0).await;
    assert_eq!(fleet.engine.calls("start"), 0);
    worker.stop().await;
}

#[tokio::test]
async fn p18_answered_heartbeats_keep_it_alive_and_nothing_else_does() {
    let mut fleet = Fleet::with_lease(LEASE_MIN).await;
    let (worker, _) = fleet.started().await;
    let mut job = exclusive(&fleet, "trap '' TERM; sleep 1000");
    job.spec.grace_ms = 60_000;
    running(&mut fleet, &worker, &job).await;
    // Longer than it would live on its `go`.
    answer(&mut fleet, &worker, &job, LEASE_MIN.saturating_sub(DEAD_BEFORE_END) + Duration::from_secs(1)).await;
    assert_eq!(fleet.heartbeat_where(|hb| hb.attempts.len() == 1).await.attempts[0].phase, Phase::Running);
    // The worker goes on to send them, and nobody answers.
    let began = Instant::now();
    let finished = fleet.finished().await;
    let lived = began.elapsed();
    assert!(matches!(&finished.outcome, Outcome::Infra { stage: InfraStage::Lease, .. }), "{}", finished.outcome);
    let limit = LEASE_MIN.saturating_sub(DEAD_BEFORE_END);
    // The last answer is a moment older.
    assert!(lived + Duration::from_secs(3) >= limit && lived < LEASE_MIN, "{lived:?}");
    println!("unanswered, it was dead after {:.1} s of a lease of {} s", lived.as_secs_f64(), LEASE_MIN.as_secs());
    worker.stop().await;
}

#[tokio::test]
async fn p18_it_is_refused_where_nobody_could_end_it_in_time() {
    for (direct, lease, word) in
        [(true, LEASE_MIN, "longshore doctor"), (false, LEASE_MIN.saturating_sub(Duration::from_secs(1)), "--lease 15")]
    {
        let mut fleet = Fleet::with_lease(lease).await;
        fleet.direct = direct;
        let (worker, _) = fleet.started().await;
        let job = exclusive(&fleet, "true");
        match fleet.carry_out(&job).await.outcome {
            Outcome::Infra { stage: InfraStage::Prepare, reason } => assert!(reason.contains(word), "{reason}"),
            other => panic!("refused, not {other}"),
        }
        assert_eq!((fleet.engine.calls("create"), fleet.engine.calls("start")), (0, 0));
        // Others are carried out all the same.
        assert_eq!(fleet.carry_out(&fleet.job("b", "true")).await.outcome, Outcome::Passed);
        worker.stop().await;
    }
}

#[tokio::test]
async fn p18_p10_an_adopted_one_goes_on_under_the_same_timer() {
    let mut fleet = Fleet::with_lease(LEASE_MIN).await;
    let (worker, _) = fleet.started().await;
    let job = exclusive(&fleet, "echo one; await end; exit 3");
    running(&mut fleet, &worker, &job).await;
    worker.crash().await;
    let before = fleet.engine.calls("extend");
    let worker = adopts(&mut fleet, &job, &Phase::Running).await;
    fleet.heartbeat_where(|hb| hb.incarnation == worker.incarnation).await;
    assert_eq!(fleet.engine.calls("extend"), before, "until somebody hears of it nothing is moved on");
    answer(&mut fleet, &worker, &job, LEASE_MIN.saturating_sub(DEAD_BEFORE_END) + Duration::from_secs(1)).await;
    fleet.engine.raise("end");
    assert_eq!(fleet.finished().await.outcome, Outcome::Failed { exit: 3 });
    worker.stop().await;
}

#[tokio::test]
async fn p18_p10_without_a_worker_it_ends_and_the_next_one_says_so() {
    let mut fleet = Fleet::with_lease(LEASE_MIN).await;
    let (worker, _) = fleet.started().await;
    let job = exclusive(&fleet, "trap 'exit 0' TERM; sleep 1000 & wait");
    running(&mut fleet, &worker, &job).await;
    worker.crash().await;
    let began = Instant::now();
    fleet.engine.ended(&the_container(&fleet)).await;
    assert!(began.elapsed() < LEASE_MIN);
    let worker = adopts(&mut fleet, &job, &Phase::Running).await;
    let finished = fleet.finished().await;
    assert!(matches!(finished.outcome, Outcome::Infra { stage: InfraStage::Lease, .. }), "it has not passed");
    worker.stop().await;
}

#[tokio::test]
async fn p18_p10_what_was_not_started_asks_anew() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let job = exclusive(&fleet, "true");
    accepted(&mut fleet, &job).await;
    let first = worker.incarnation;
    worker.crash().await;
    let worker = adopts(&mut fleet, &job, &Phase::Preparing).await;
    fleet.control_as(fleet.epoch, first, &worker, go(&job)).await;
    fleet.has_containers(1).await;
    assert_eq!(fleet.engine.calls("start"), 0, "that was for the one before");
    fleet.control(&worker, go(&job)).await;
    assert_eq!(fleet.finished().await.outcome, Outcome::Passed);
    worker.stop().await;
}

/// The Engine's next answers to these are no.
fn refuses(fleet: &Fleet, operations: &[&'static str]) {
    for operation in operations {
        let reason = "a driver's bad day".to_owned();
        fleet.engine.fail_next(operation, EngineError::Refused { operation: "stop", status: 400, reason });
    }
}

/// The crash may have come between its start and the record of that.
#[tokio::test]
async fn p18_p10_what_cannot_be_removed_is_not_prepared_again() {
    let mut fleet = Fleet::with_lease(LEASE_MIN).await;
    let (worker, _) = fleet.started().await;
    let job = exclusive(&fleet, "true");
    accepted(&mut fleet, &job).await;
    fleet.has_containers(1).await;
    worker.crash().await;
    refuses(&fleet, &["adopt", "destroy"]);
    let worker = adopts(&mut fleet, &job, &Phase::Preparing).await;
    fleet.control(&worker, go(&job)).await;
    let finished = fleet.finished().await;
    assert!(matches!(finished.outcome, Outcome::Infra { stage: InfraStage::Exec, .. }), "{}", finished.outcome);
    assert!(fleet.containers().await.is_empty(), "P11: before its end is told");
    assert_eq!((fleet.engine.calls("create"), fleet.engine.calls("start")), (1, 0));
    worker.stop().await;
}

#[tokio::test]
async fn p18_p10_one_that_is_lost_in_a_container_that_it_took_is_removed_before_that_is_told() {
    let mut fleet = Fleet::with_lease(LEASE_MIN).await;
    let (worker, _) = fleet.started().await;
    let parent = fleet.carry_out(&Job { keep: Keep::Live, ..fleet.job("parent", "true") }).await;
    let mut job = fleet.child("a", "sleep 1000", &parent);
    job.spec.exclusive = true;
    running(&mut fleet, &worker, &job).await;
    let container = the_container(&fleet);
    worker.crash().await;
    // By who takes over, and by the sweep.
    refuses(&fleet, &["adopt", "destroy", "destroy"]);
    let (worker, _) = fleet.started().await;
    let finished = fleet.finished_of(&claim(&job)).await;
    assert!(matches!(finished.outcome, Outcome::Infra { stage: InfraStage::Exec, .. }), "{}", finished.outcome);
    assert!(!fleet.engine.is_alive(&container), "P11: before its end is told");
    worker.stop().await;
}

#[tokio::test]
async fn p18_p11_its_end_is_not_told_before_it_is_sure() {
    let mut fleet = Fleet::with_lease(LEASE_MIN).await;
    let (worker, _) = fleet.started().await;
    let job = exclusive(&fleet, "sleep 1000");
    running(&mut fleet, &worker, &job).await;
    refuses(&fleet, &["stop", "destroy"]);
    let began = Instant::now();
    fleet.control(&worker, Control::Cancel { claim: claim(&job), by: CancelledBy::User }).await;
    let container = the_container(&fleet);
    let finished = fleet.finished().await;
    assert_eq!(finished.outcome, Outcome::Cancelled { by: CancelledBy::User });
    assert!(began.elapsed() >= LEASE_MIN);
    fleet.engine.ended(&container).await; // by its timer
    worker.stop().await;
}
