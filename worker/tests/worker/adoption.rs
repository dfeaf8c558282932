//! P10, P16: a worker is killed at some point of an attempt's way, and its next incarnation goes on with it.

use std::time::Duration;

use longshore_protocol::broker::Broker as _;
use longshore_protocol::control::Control;
use longshore_protocol::event::{Event, Finished, Phase};
use longshore_protocol::job::{Job, Keep};
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::output::{Offsets, Stream};
use longshore_protocol::{InfraStage, Outcome, SnapshotId};
use longshore_worker::engine::{ContainerName, EngineError};

use crate::fleet::{Fleet, claim, claims, fence};
use crate::process::Process;
use crate::tap::Mode;

/// A job that runs, and has written so much.
async fn running_and_wrote(fleet: &mut Fleet, worker: &Process, job: &Job, text: &str) {
    fleet.running(job).await;
    while !String::from_utf8_lossy(&fleet.spool(&claim(job))).contains(text) {
        // Each heartbeat is a moment later.
        let heartbeat = fleet.heartbeat().await;
        assert_eq!(heartbeat.worker, worker.id);
    }
}

/// The next incarnation, which took over just this, in this phase.
pub(crate) async fn adopts(fleet: &mut Fleet, job: &Job, phase: &Phase) -> Process {
    let (worker, hello) = fleet.started().await;
    assert_eq!(claims(&hello.records), [claim(job)]);
    assert_eq!(hello.records[0].phase, *phase);
    worker
}

pub(crate) async fn log_of(fleet: &mut Fleet, finished: &Finished) -> (String, String) {
    let log = fleet.log(&finished.claim.clone(), Offsets::default(), finished.output).await;
    (log.text(Stream::Stdout), log.text(Stream::Stderr))
}

pub(crate) fn the_container(fleet: &Fleet) -> ContainerName {
    ContainerName::parse(&fleet.container).unwrap()
}
#[tokio::test]
async fn p10_a_step_goes_on_while_its_worker_is_dead_and_is_followed_again() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let job = fleet.job("a", "echo one; await go; echo two; echo three >&2; await end; exit 3");
    running_and_wrote(&mut fleet, &worker, &job, "one").await;
    let container = the_container(&fleet);
    worker.crash().await;
    assert!(fleet.engine.is_alive(&container));
    fleet.engine.raise("go");
    let worker = adopts(&mut fleet, &job, &Phase::Running).await;
    fleet.engine.raise("end");
    let finished = fleet.finished().await;
    assert_eq!((&finished.claim, &finished.outcome), (&claim(&job), &Outcome::Failed { exit: 3 }));
    assert!(finished.usage.is_some());
    assert_eq!(log_of(&mut fleet, &finished).await, ("one\ntwo\n".to_owned(), "three\n".to_owned()));
    assert_eq!((fleet.engine.calls("create"), fleet.engine.calls("start")), (1, 1));
    assert_eq!(fleet.container, container.to_string());
    fleet.has_containers(0).await;
    worker.stop().await;
}

/// P16: the supervisor keeps the exit, and the output that was not on the worker's disk.
#[tokio::test]
async fn p16_what_ended_while_the_worker_was_dead_is_found() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let job = Job { keep: Keep::Live, ..fleet.job("a", "echo one; await go; echo two; echo kept > /f") };
    running_and_wrote(&mut fleet, &worker, &job, "one").await;
    worker.crash().await;
    fleet.engine.raise("go");
    fleet.engine.ended(&the_container(&fleet)).await;
    let worker = adopts(&mut fleet, &job, &Phase::Running).await;
    let finished = fleet.finished().await;
    assert_eq!((&finished.outcome, finished.parked), (&Outcome::Passed, true));
    assert_eq!(log_of(&mut fleet, &finished).await.0, "one\ntwo\n");
    // As good as any other: a child goes on in it.
    let (child, text) = fleet.carry_out_and_read(&fleet.child("child", "cat /f", &finished)).await;
    assert_eq!((child.outcome, text.as_str()), (Outcome::Passed, "kept\n"));
    assert_eq!(fleet.engine.calls("create"), 1);
    worker.stop().await;
}

/// The spool is torn somewhere in the middle of 2.7 MB each time: every number comes once, in order.
#[tokio::test]
async fn p16_output_is_complete_however_often_the_worker_is_killed() {
    let mut fleet = Fleet::new().await;
    let (mut worker, _) = fleet.started().await;
    let job = fleet.job("a", "seq 400000; await end; exit 6");
    fleet.running(&job).await;
    for n in 0..5 {
        // After some more of it was published, if there is more.
        let message = fleet.output().await;
        assert_eq!(message.claim, claim(&job), "{n}");
        worker.crash().await;
        worker = adopts(&mut fleet, &job, &Phase::Running).await;
    }
    fleet.engine.raise("end");
    let finished = fleet.finished().await;
    assert_eq!(finished.outcome, Outcome::Failed { exit: 6 });
    // What the dead ones published is in the queue as well: the last one sends all of it again, from its disk.
    let mut text = Vec::new();
    while text.len() < usize::try_from(finished.output.stdout).unwrap() {
        let message = fleet.output().await;
        for run in message.runs.into_iter().filter(|_| message.incarnation == worker.incarnation) {
            assert_eq!(run.offset, text.len() as u64, "P14: contiguous");
            text.extend(run.bytes);
        }
    }
    let whole: String = (1..=400_000).map(|n| n.to_string() + "\n").collect();
    assert!(text == whole.as_bytes(), "{} of {} bytes", text.len(), whole.len());
    worker.stop().await;
}

#[tokio::test]
async fn p10_an_adopted_step_takes_a_slot_and_can_be_cancelled() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let (job, next) = (fleet.job("a", "await never"), fleet.job("b", "true"));
    fleet.running(&job).await;
    worker.crash().await;
    let worker = adopts(&mut fleet, &job, &Phase::Running).await;
    fleet.dispatch(&next).await;
    fleet.heartbeat_where(|hb| hb.slots_free == 0 && hb.attempts.len() == 1).await;
    assert_eq!(fleet.broker.waiting(&fleet.pool_queue()).await.unwrap(), 1);
    fleet.control(&worker, Control::Cancel { claim: claim(&job), by: CancelledBy::User }).await;
    let finished = fleet.finished().await;
    assert_eq!((finished.claim, finished.outcome), (claim(&job), Outcome::Cancelled { by: CancelledBy::User }));
    assert_eq!(fleet.finished().await.claim, claim(&next));
    worker.stop().await;
}

/// A timeout is counted from the command's start, whoever follows it.
#[tokio::test]
async fn p10_time_passes_while_the_worker_is_dead() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let mut job = fleet.job("a", "echo up; await never");
    job.spec.timeout_ms = 60_000;
    running_and_wrote(&mut fleet, &worker, &job, "up").await;
    worker.crash().await;
    fleet.engine.pass(&the_container(&fleet), Duration::from_secs(61));
    let worker = adopts(&mut fleet, &job, &Phase::Running).await;
    let finished = fleet.finished().await;
    assert_eq!(finished.outcome, Outcome::TimedOut);
    assert!(finished.phases.exec_ms >= 61_000, "{:?}", finished.phases);
    worker.stop().await;
}

/// … and a command that ended in time stays by its exit, however late somebody asks.
#[tokio::test]
async fn p10_a_command_that_ended_in_time_is_not_timed_out_by_its_workers_death() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let mut job = fleet.job("a", "await go; exit 5");
    job.spec.timeout_ms = 60_000;
    fleet.running(&job).await;
    worker.crash().await;
    fleet.engine.raise("go");
    fleet.engine.ended(&the_container(&fleet)).await;
    fleet.engine.pass(&the_container(&fleet), Duration::from_secs(61));
    let worker = adopts(&mut fleet, &job, &Phase::Running).await;
    assert_eq!(fleet.finished().await.outcome, Outcome::Failed { exit: 5 });
    worker.stop().await;
}

/// Whatever it was that ended the container: nobody can tell how the command ended, so the fleet tries again.
#[tokio::test]
async fn p10_a_container_that_did_not_outlive_the_worker_is_infra() {
    for fault in [false, true] {
        let mut fleet = Fleet::new().await;
        let (worker, _) = fleet.started().await;
        let job = fleet.job("a", "echo one; await never");
        running_and_wrote(&mut fleet, &worker, &job, "one").await;
        worker.crash().await;
        if fault {
            let reason = "its output is not here any more".to_owned();
            fleet.engine.fail_next("adopt", EngineError::Refused { operation: "adopt", status: 400, reason });
        } else {
            fleet.engine.kill(&the_container(&fleet));
        }
        let worker = adopts(&mut fleet, &job, &Phase::Running).await;
        assert!(fleet.containers().await.is_empty(), "P11: gone before it is told");
        let finished = fleet.finished().await;
        assert!(matches!(finished.outcome, Outcome::Infra { stage: InfraStage::Exec, .. }), "{finished:?}");
        assert_eq!(log_of(&mut fleet, &finished).await.0, "one\n", "what it said is kept");
        worker.stop().await;
    }
}

/// Killed before, and in the middle of, the making of its container.
#[tokio::test]
async fn p10_what_was_being_prepared_is_prepared_again() {
    for operation in ["ensure_image", "create", "start"] {
        let mut fleet = Fleet::new().await;
        let (worker, _) = fleet.started().await;
        let job = fleet.job("a", "echo ran");
        let hold = fleet.engine.hold(operation);
        fleet.dispatch(&job).await;
        assert_eq!(fleet.accepted().await, claim(&job));
        hold.reached().await;
        worker.crash().await;
        drop(hold);
        let worker = adopts(&mut fleet, &job, &Phase::Preparing).await;
        let finished = fleet.finished().await;
        assert_eq!(finished.outcome, Outcome::Passed, "{operation}");
        assert_eq!(log_of(&mut fleet, &finished).await.0, "ran\n", "{operation}");
        fleet.has_containers(0).await;
        worker.stop().await;
    }
}

/// Killed between the command's start and the news of it.
#[tokio::test]
async fn p10_a_start_that_nobody_heard_of_is_followed() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let job = fleet.job("a", "echo one; await go; echo two");
    let start = fleet.engine.hold("start");
    fleet.dispatch(&job).await;
    assert_eq!(fleet.accepted().await, claim(&job));
    start.reached().await;
    worker.tap.set(".events", Mode::Hold);
    drop(start);
    worker.tap.holds("\"started\"").await;
    worker.crash().await;
    let worker = adopts(&mut fleet, &job, &Phase::Running).await;
    fleet.engine.raise("go");
    let finished = fleet.finished().await;
    assert_eq!((&finished.outcome, finished.output.stdout), (&Outcome::Passed, 8));
    assert_eq!(fleet.engine.calls("start"), 1, "it did not run twice");
    worker.stop().await;
}

/// Killed in the commit: the exit is still with the supervisor, and the commit is made again.
#[tokio::test]
async fn p16_a_commit_that_was_under_way_is_made_again() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let job = Job { keep: Keep::Snapshot, ..fleet.job("a", "echo kept > /f") };
    let commit = fleet.engine.hold("commit");
    fleet.dispatch(&job).await;
    commit.reached().await;
    // `accepted` and `started`.
    for _ in 0..2 {
        fleet.event().await;
    }
    worker.crash().await;
    drop(commit);
    let (worker, hello) = fleet.started().await;
    assert_eq!(claims(&hello.records), [claim(&job)]);
    let finished = fleet.finished().await;
    assert_eq!((&finished.outcome, fleet.engine.calls("start")), (&Outcome::Passed, 1));
    assert_eq!(finished.snapshot, Some(SnapshotId::ephemeral(&fence(&job, &worker.id))));
    assert!(!finished.parked, "P19: the Engine may still be at the first one");
    let (child, text) = fleet.carry_out_and_read(&fleet.child("child", "cat /f", &finished)).await;
    assert_eq!((child.outcome, text.as_str()), (Outcome::Passed, "kept\n"));
    worker.stop().await;
}

/// Without supervisors nothing is adopted: the command is ended, and that is told.
#[tokio::test]
async fn p10_a_direct_step_does_not_outlive_its_worker() {
    let mut fleet = Fleet::new().await;
    fleet.direct = true;
    let (worker, _) = fleet.started().await;
    let job = fleet.job("a", "echo one; await never");
    running_and_wrote(&mut fleet, &worker, &job, "one").await;
    worker.crash().await;
    let worker = adopts(&mut fleet, &job, &Phase::Running).await;
    assert!(fleet.containers().await.is_empty(), "P11: gone before it is told");
    let finished = fleet.finished().await;
    assert!(matches!(finished.outcome, Outcome::Infra { stage: InfraStage::Exec, .. }), "{finished:?}");
    worker.stop().await;
}

/// The events of a dead worker are in the queue before those of the next one.
#[tokio::test]
async fn p10_a_finished_step_is_not_run_again() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let job = fleet.job("a", "exit 4");
    fleet.dispatch(&job).await;
    let told = fleet.finished().await;
    worker.crash().await;
    let worker = adopts(&mut fleet, &job, &Phase::Finished(Box::new(told.clone()))).await;
    assert_eq!(fleet.event().await, Event::Finished(told));
    assert_eq!(fleet.engine.calls("start"), 1);
    worker.stop().await;
}
