//! P1, P4: how a job becomes an attempt.

use longshore_protocol::broker::{Broker as _, REASON_HEADER};
use longshore_protocol::control::Control;
use longshore_protocol::event::{AttemptRecord, Event, Phase};
use longshore_protocol::job::{Job, Keep};
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::{Outcome, Shard, wire};

use crate::fleet::{Fleet, claim, next_delivery};
use crate::tap::Mode;

#[tokio::test]
async fn p4_the_record_is_on_disk_before_accepted_and_nothing_runs_before_its_confirm() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    worker.tap.set(".events", Mode::Hold);
    let job = fleet.job("a", "echo done");
    fleet.dispatch(&job).await;
    worker.tap.holds("\"accepted\"").await;
    assert!(fleet.on_disk(&claim(&job)).0, "the record comes first");
    assert!(fleet.containers().await.is_empty(), "work comes last");
    assert_eq!(fleet.broker.waiting(&fleet.pool_queue()).await.unwrap(), 0);

    // Not acked: whoever dies here leaves the job to others.
    worker.crash().await;
    assert_eq!(fleet.broker.waiting(&fleet.pool_queue()).await.unwrap(), 1);
    let (worker, hello) = fleet.started().await;
    // P10: it goes on with what it has on disk. The job that comes again is acked and dropped (P4).
    let preparing = AttemptRecord { claim: claim(&job), phase: Phase::Preparing };
    assert_eq!(hello.records, [preparing]);
    assert!(matches!(fleet.event().await, Event::Started(started) if started.claim == claim(&job)));
    assert_eq!(fleet.finished().await.outcome, Outcome::Passed);
    assert_eq!(fleet.broker.waiting(&fleet.pool_queue()).await.unwrap(), 0);
    worker.stop().await;
}

/// P3: a successor publishes again what its predecessor may have published.
#[tokio::test]
async fn p4_a_job_that_comes_when_its_attempt_is_settled_is_dropped() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let job = fleet.job("a", "echo done");
    let parked = Job { keep: Keep::Live, ..fleet.job("b", "echo done") };
    fleet.carry_out(&job).await;
    let left = fleet.carry_out(&parked).await;
    fleet.parks(&[&left]).await;
    for job in [&job, &parked] {
        fleet.control(&worker, Control::Settled { claim: claim(job) }).await;
    }
    fleet.holds_nothing(&worker).await;
    fleet.dispatch(&job).await;
    fleet.dispatch(&parked).await;
    let other = fleet.job("c", "true");
    fleet.dispatch(&other).await;
    assert_eq!(fleet.accepted().await, claim(&other), "neither of them is accepted a second time");
    assert_eq!(fleet.finished().await.outcome, Outcome::Passed);
    worker.crash().await;
    // What is parked outlives its worker, and so does whose it is.
    let (worker, _) = fleet.started().await;
    fleet.dispatch(&parked).await;
    let other = fleet.job("d", "true");
    fleet.dispatch(&other).await;
    fleet.finished_of(&claim(&other)).await;
    assert_eq!(fleet.engine.calls("start"), 4);
    worker.stop().await;
}

#[tokio::test]
async fn p4_nothing_is_unacknowledged_while_a_step_runs() {
    let mut fleet = Fleet::new().await;
    // Without supervisors nothing is adopted either.
    fleet.direct = true;
    let (worker, _) = fleet.started().await;
    let job = fleet.job("a", "sleep 1000");
    fleet.running(&job).await;
    assert_eq!(fleet.containers().await, [fleet.container.clone()]);
    worker.crash().await;
    assert_eq!(fleet.broker.waiting(&fleet.pool_queue()).await.unwrap(), 0, "it was acked");

    let (worker, hello) = fleet.started().await;
    assert_eq!(hello.records, [AttemptRecord { claim: claim(&job), phase: Phase::Running }]);
    assert!(fleet.containers().await.is_empty(), "removed before hello");
    assert!(fleet.finished().await.outcome.is_infra(), "and told as lost");
    worker.stop().await;
}

#[tokio::test]
async fn p4_a_full_worker_leaves_jobs_to_others() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let (first, second) = (fleet.job("a", "sleep 1000"), fleet.job("b", "true"));
    fleet.dispatch(&first).await;
    fleet.dispatch(&second).await;
    assert_eq!(fleet.accepted().await, claim(&first));
    assert!(matches!(fleet.event().await, Event::Started(_)));
    // Cancelled before the ack: it waits in the queue, not with this worker.
    assert_eq!(fleet.broker.waiting(&fleet.pool_queue()).await.unwrap(), 1);

    fleet.control(&worker, Control::Cancel { claim: claim(&first), by: CancelledBy::User }).await;
    assert_eq!(fleet.finished().await.outcome, Outcome::Cancelled { by: CancelledBy::User });
    assert_eq!(fleet.accepted().await, claim(&second));
    assert_eq!(fleet.finished().await.outcome, Outcome::Passed);
    worker.stop().await;
}

#[tokio::test]
async fn p4_a_surplus_delivery_is_given_back_at_once() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let own = fleet.topology.worker_jobs(Shard(0), &worker.id);
    // One in each of its two queues, with one slot: both may be delivered before either is claimed.
    fleet.publish(&own, wire::encode(&fleet.job("a", "sleep 1000"))).await;
    fleet.dispatch(&fleet.job("b", "sleep 1000")).await;
    let first = fleet.accepted().await;
    assert!(matches!(fleet.event().await, Event::Started(_)));
    let waiting = [fleet.broker.waiting(&own).await.unwrap(), fleet.broker.waiting(&fleet.pool_queue()).await.unwrap()];
    assert_eq!(waiting.iter().sum::<u32>(), 1, "{waiting:?}");
    fleet.control(&worker, Control::Cancel { claim: first.clone(), by: CancelledBy::User }).await;
    assert_eq!(fleet.finished().await.claim, first);
    assert_ne!(fleet.accepted().await, first);
    worker.stop().await;
}

#[tokio::test]
async fn p4_a_job_whose_record_is_here_is_acked_and_dropped() {
    let mut fleet = Fleet::new().await;
    fleet.slots = 2;
    let (worker, _) = fleet.started().await;
    let (first, other) = (fleet.job("a", "sleep 1000"), fleet.job("b", "true"));
    fleet.dispatch(&first).await;
    assert_eq!(fleet.accepted().await, claim(&first));
    assert!(matches!(fleet.event().await, Event::Started(_)));
    fleet.dispatch(&first).await;
    fleet.dispatch(&other).await;
    assert_eq!(fleet.accepted().await, claim(&other), "the first was not accepted once more");
    assert_eq!(fleet.finished().await.claim, claim(&other));
    worker.crash().await;
    assert_eq!(fleet.broker.waiting(&fleet.pool_queue()).await.unwrap(), 0, "and it was acked");
}

#[tokio::test]
async fn p4_as_many_as_there_are_slots_run_at_once() {
    let mut fleet = Fleet::new().await;
    fleet.slots = 3;
    let (worker, _) = fleet.started().await;
    for name in ["a", "b", "c"] {
        fleet.dispatch(&fleet.job(name, "sleep 1000")).await;
    }
    let mut started = 0;
    while started < 3 {
        started += u32::from(matches!(fleet.event().await, Event::Started(_)));
    }
    assert_eq!(fleet.containers().await.len(), 3);
    fleet.heartbeat_where(|hb| hb.slots == 3 && hb.slots_free == 0 && hb.attempts.len() == 3).await;
    worker.stop().await;
    assert!(fleet.containers().await.is_empty());
}

#[tokio::test]
async fn a_job_in_the_workers_own_queue_is_carried_out() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let job = fleet.job("a", "true");
    fleet.publish(&fleet.topology.worker_jobs(Shard(0), &worker.id), wire::encode(&job)).await;
    assert_eq!(fleet.finished().await.claim, claim(&job));
    worker.stop().await;
}

#[tokio::test]
async fn p1_a_garbage_job_is_dead_lettered_and_the_next_one_is_carried_out() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    for garbage in [&b"\xff garbage"[..], br#"{"v":2}"#, br#"{"v":1,"run":7}"#] {
        fleet.publish(&fleet.pool_queue(), garbage.to_vec()).await;
    }
    fleet.publish(&fleet.topology.control(&worker.id), b"{}".to_vec()).await;
    let job = fleet.job("a", "true");
    assert_eq!(fleet.carry_out(&job).await.outcome, Outcome::Passed);

    let mut dead = fleet.broker.consume(&fleet.topology.dead_letters(), 10).await.unwrap();
    let mut reasons = Vec::new();
    for _ in 0..4 {
        let letter = next_delivery(&mut dead, "dead letter").await;
        reasons.push(letter.headers[REASON_HEADER].clone());
        letter.ack().await.unwrap();
    }
    for expected in ["not a message", "version 2", "not understood"] {
        assert!(reasons.iter().any(|reason| reason.contains(expected)), "{expected}: {reasons:?}");
    }
    worker.stop().await;
}
