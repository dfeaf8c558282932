//! P5, P12, P22: what the coordinator says.

use longshore_protocol::control::Control;
use longshore_protocol::event::{Event, Phase};
use longshore_protocol::job::{Job, Keep};
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::{Epoch, Incarnation, Outcome, SnapshotId};
use longshore_worker::WorkerError;

use crate::fleet::{Fleet, claim, fence};
use crate::process::Process;

async fn running(fleet: &mut Fleet, step: &str) -> Job {
    let job = fleet.job(step, "sleep 1000");
    fleet.running(&job).await;
    job
}

/// Of two cancels the first one counts: who is named in the outcome tells whether the other was obeyed.
fn stale(job: &Job) -> Control {
    Control::Cancel { claim: claim(job), by: CancelledBy::Sibling("stale".to_owned()) }
}

fn current(job: &Job) -> Control {
    Control::Cancel { claim: claim(job), by: CancelledBy::User }
}

async fn only_the_current_cancel_counted(fleet: &mut Fleet, worker: &Process, job: &Job) {
    fleet.control(worker, current(job)).await;
    assert_eq!(fleet.finished().await.outcome, Outcome::Cancelled { by: CancelledBy::User });
}

#[tokio::test]
async fn p5_an_abandoned_attempt_is_killed_and_forgotten_and_nothing_is_reported() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let job = running(&mut fleet, "a").await;
    for _ in 0..2 {
        fleet.control(&worker, Control::Abandon { claim: claim(&job) }).await;
    }
    fleet.holds_nothing(&worker).await;
    assert!(fleet.containers().await.is_empty());
    let next = fleet.job("b", "true");
    fleet.dispatch(&next).await;
    assert_eq!(fleet.accepted().await, claim(&next), "not a word about the abandoned one");
    worker.stop().await;
    assert_eq!(fleet.on_disk(&claim(&job)), (false, false));
}

#[tokio::test]
async fn p12_what_an_abandoned_attempt_left_is_removed() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let job = Job { keep: Keep::Snapshot, ..fleet.job("a", "echo x > f") };
    let finished = fleet.carry_out(&job).await;
    let left = SnapshotId::ephemeral(&fence(&job, &worker.id));
    assert_eq!(finished.snapshot.as_ref(), Some(&left));
    fleet.heartbeat_where(|hb| hb.snapshots.contains(&left)).await;
    fleet.control(&worker, Control::Abandon { claim: claim(&job) }).await;
    fleet.heartbeat_where(|hb| hb.attempts.is_empty() && hb.snapshots.is_empty()).await;
    assert_eq!(fleet.snapshots().await, []);
    worker.stop().await;
}

#[tokio::test]
async fn a_cancelled_step_ends_and_one_that_is_over_stays_as_it_is() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let job = running(&mut fleet, "a").await;
    only_the_current_cancel_counted(&mut fleet, &worker, &job).await;
    fleet.control(&worker, stale(&job)).await;
    fleet.control(&worker, Control::Sync).await;
    let Event::Records { records } = fleet.event().await else { panic!("records were expected") };
    let Phase::Finished(finished) = &records[0].phase else { panic!("{records:?}") };
    assert_eq!(finished.outcome, Outcome::Cancelled { by: CancelledBy::User });
    worker.stop().await;
    assert!(fleet.containers().await.is_empty());
}

#[tokio::test]
async fn who_is_told_to_kill_gives_no_cancelled_step_its_grace() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    // Told while it waits for the first one, and before it hears that the second one is cancelled.
    for name in ["first", "second"] {
        let mut job = fleet.job(name, "trap '' TERM; echo deaf; sleep 1000");
        job.spec.grace_ms = 600_000;
        fleet.running(&job).await;
        fleet.output().await;
        fleet.control(&worker, current(&job)).await;
        while fleet.engine.calls("stop") == 0 {
            tokio::task::yield_now().await;
        }
        worker.told_to_kill();
        assert_eq!(fleet.finished().await.outcome, Outcome::Cancelled { by: CancelledBy::User });
    }
    worker.stop().await;
}

#[tokio::test]
async fn p9_record_and_spool_are_kept_until_settled() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let job = fleet.job("a", "echo x");
    fleet.carry_out(&job).await;
    assert_eq!(fleet.on_disk(&claim(&job)), (true, true));
    for _ in 0..2 {
        fleet.control(&worker, Control::Settled { claim: claim(&job) }).await;
    }
    fleet.holds_nothing(&worker).await;
    worker.stop().await;
    assert_eq!(fleet.on_disk(&claim(&job)), (false, false));
}

#[tokio::test]
async fn p22_a_lower_epoch_is_ignored_also_after_a_restart() {
    let mut fleet = Fleet::new().await;
    fleet.epoch = Epoch(5);
    let (worker, _) = fleet.started().await;
    fleet.control(&worker, Control::Sync).await;
    assert!(matches!(fleet.event().await, Event::Records { .. }));
    let job = running(&mut fleet, "a").await;
    fleet.control_as(Epoch(4), worker.incarnation, &worker, stale(&job)).await;
    only_the_current_cancel_counted(&mut fleet, &worker, &job).await;
    fleet.control(&worker, Control::Settled { claim: claim(&job) }).await;
    fleet.forgets(&claim(&job)).await;
    worker.crash().await;

    let (worker, _) = fleet.started().await;
    let job = running(&mut fleet, "b").await;
    fleet.control_as(Epoch(4), worker.incarnation, &worker, stale(&job)).await;
    only_the_current_cancel_counted(&mut fleet, &worker, &job).await;
    worker.stop().await;
}

#[tokio::test]
async fn p22_what_addresses_another_incarnation_is_ignored() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let job = running(&mut fleet, "a").await;
    let Incarnation { start, nonce } = worker.incarnation;
    for other in [Incarnation { start: start + 1, nonce }, Incarnation { start, nonce: nonce ^ 1 }] {
        fleet.control_as(Epoch(9), other, &worker, stale(&job)).await;
    }
    // Nor did its epoch count.
    only_the_current_cancel_counted(&mut fleet, &worker, &job).await;
    worker.stop().await;
}

#[tokio::test]
async fn only_snapshots_of_longshores_are_removed() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let job = Job { keep: Keep::Snapshot, ..fleet.job("a", "true") };
    let snapshot = fleet.carry_out(&job).await.snapshot.unwrap();
    assert_eq!(fleet.engine.pulls(), 1);
    for id in [SnapshotId("base:latest".to_owned()), snapshot.clone(), snapshot] {
        fleet.control(&worker, Control::RemoveSnapshot { snapshot: id }).await;
    }
    fleet.heartbeat_where(|hb| hb.last_event >= 4 && hb.snapshots.is_empty()).await;
    assert_eq!(fleet.snapshots().await, []);
    fleet.carry_out(&fleet.job("b", "true")).await;
    assert_eq!(fleet.engine.pulls(), 1, "the image is still here");
    worker.stop().await;
}

#[tokio::test]
async fn p10_a_refused_worker_stops_and_says_why() {
    let mut fleet = Fleet::new().await;
    let (mut worker, _) = fleet.started().await;
    fleet.control(&worker, Control::Refused { reason: "a cloned disk".to_owned() }).await;
    let error = worker.ended().await.unwrap_err();
    assert!(matches!(&error, WorkerError::Refused { reason } if reason == "a cloned disk"), "{error}");
}
