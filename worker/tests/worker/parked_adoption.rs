//! P10, P19: a worker is killed, or leaves in order, while containers are parked, or just taken.

use longshore_protocol::control::Control;
use longshore_protocol::event::{Finished, Phase};
use longshore_protocol::job::{Job, Keep};
use longshore_protocol::outcome::SNAPSHOT_LOST;
use longshore_protocol::{Attempt, InfraStage, Outcome};

use crate::adoption::{adopts, log_of, the_container};
use crate::fleet::{Fleet, claim};
use crate::tap::Mode;

/// A worker killed after `finished`, while the parked container was being cleaned, or later.
#[tokio::test]
async fn p10_a_parked_container_is_taken_over_clean_or_not() {
    for cleaned in [false, true] {
        let mut fleet = Fleet::new().await;
        let (worker, _) = fleet.started().await;
        let hold = fleet.engine.hold("clean");
        let parent = Job { keep: Keep::Live, ..fleet.job("parent", "echo kept > /f; echo own > /dev/shm/f") };
        let parent = fleet.carry_out(&parent).await;
        hold.reached().await;
        if cleaned {
            drop(hold);
            // A step that is carried out behind it says that the cleaning is over.
            let next = fleet.child("next", "[ ! -e /dev/shm/f ]", &parent);
            let next = fleet.carry_out(&Job { keep: Keep::Live, ..next }).await;
            assert_eq!(next.outcome, Outcome::Passed);
            worker.crash().await;
            goes_on(&mut fleet, &next).await;
        } else {
            worker.crash().await;
            drop(hold);
            goes_on(&mut fleet, &parent).await;
        }
    }
}

/// The next incarnation's: a child goes on in its parent's container.
async fn goes_on(fleet: &mut Fleet, parent: &Finished) {
    let container = the_container(fleet);
    let (worker, _) = fleet.started().await;
    fleet.parks(&[parent]).await;
    let child = fleet.child("child", "cat /f; [ ! -e /dev/shm/f ] || echo not clean", parent);
    fleet.dispatch(&child).await;
    let finished = fleet.finished_of(&claim(&child)).await;
    assert_eq!((&finished.outcome, log_of(fleet, &finished).await.0.as_str()), (&Outcome::Passed, "kept\n"));
    assert_eq!(the_container(fleet), container);
    worker.stop().await;
}

/// An Engine goes on with a commit whatever becomes of the worker: nobody goes on in such a container.
#[tokio::test]
async fn p19_a_parked_container_that_was_being_committed_is_committed_again_and_not_taken() {
    let mut fleet = Fleet::new().await;
    fleet.parked_max = Some(1);
    let (worker, _) = fleet.started().await;
    let parent = Job { keep: Keep::Live, ..fleet.job("parent", "echo kept > /f") };
    let parent = fleet.carry_out(&parent).await;
    let container = the_container(&fleet);
    let commit = fleet.engine.hold("commit");
    // Another one is parked, and the older has to go.
    fleet.carry_out(&Job { keep: Keep::Live, ..fleet.job("another", "true") }).await;
    commit.reached().await;
    worker.crash().await;
    drop(commit);
    let (worker, _) = fleet.started().await;
    let child = fleet.child("child", "cat /f", &parent);
    fleet.dispatch(&child).await;
    let finished = fleet.finished_of(&claim(&child)).await;
    assert_eq!((&finished.outcome, log_of(&mut fleet, &finished).await.0.as_str()), (&Outcome::Passed, "kept\n"));
    assert_ne!(the_container(&fleet), container);
    worker.stop().await;
}
#[tokio::test]
async fn p10_a_parked_container_that_died_with_the_worker_is_lost() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let parent = fleet.carry_out(&Job { keep: Keep::Live, ..fleet.job("parent", "true") }).await;
    fleet.parks(&[&parent]).await;
    worker.crash().await;
    fleet.engine.kill(&the_container(&fleet));
    let (worker, _) = fleet.started().await;
    assert!(fleet.containers().await.is_empty(), "swept before hello");
    let child = fleet.child("child", "true", &parent);
    fleet.dispatch(&child).await;
    let lost = Outcome::Infra { stage: InfraStage::Prepare, reason: SNAPSHOT_LOST.to_owned() };
    assert_eq!(fleet.finished_of(&claim(&child)).await.outcome, lost);
    worker.stop().await;
}

/// The rule of this test in all its parts: the worker is killed after the child took its parent's container, before
/// and after the child's command was started. The child goes on; nobody else ever gets that container.
#[tokio::test]
async fn p19_what_a_child_took_is_never_again_the_parents_across_a_kill() {
    for started in [false, true] {
        let mut fleet = Fleet::new().await;
        let (worker, _) = fleet.started().await;
        let parent = Job { keep: Keep::Live, ..fleet.job("parent", "echo of the parent > /f") };
        let parent = fleet.carry_out(&parent).await;
        fleet.parks(&[&parent]).await;
        fleet.control(&worker, Control::Settled { claim: parent.claim.clone() }).await;
        fleet.holds_nothing(&worker).await;
        let container = the_container(&fleet);

        let child = fleet.child("child", "cat /f; echo of the child > /f; await go", &parent);
        let start = fleet.engine.hold("start");
        fleet.dispatch(&child).await;
        assert_eq!(fleet.accepted().await, claim(&child));
        start.reached().await;
        if started {
            // Killed between its start and its first event.
            worker.tap.set(".events", Mode::Hold);
            drop(start);
            worker.tap.holds("\"started\"").await;
            worker.crash().await;
        } else {
            worker.crash().await;
            drop(start);
        }
        let worker = adopts(&mut fleet, &child, if started { &Phase::Running } else { &Phase::Preparing }).await;
        fleet.heartbeat_where(|hb| hb.parked.is_empty()).await;

        // The coordinator may believe that the parent's container still stands there.
        fleet.engine.raise("go");
        let finished = fleet.finished_of(&claim(&child)).await;
        assert_eq!(finished.outcome, Outcome::Passed);
        assert_eq!(log_of(&mut fleet, &finished).await.0, "of the parent\n", "once");
        assert_eq!(the_container(&fleet), container);
        let retry = Job { attempt: Attempt(2), ..fleet.child("child", "cat /f", &parent) };
        let lost = Outcome::Infra { stage: InfraStage::Prepare, reason: SNAPSHOT_LOST.to_owned() };
        assert_eq!(fleet.carry_out(&retry).await.outcome, lost);
        worker.stop().await;
    }
}
#[tokio::test]
async fn an_orderly_stop_keeps_the_files_of_what_is_parked_and_leaves_no_container() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let parent = Job { keep: Keep::Live, ..fleet.job("parent", "echo kept > /f") };
    let parent = fleet.carry_out(&parent).await;
    fleet.parks(&[&parent]).await;
    worker.stop().await;
    assert!(fleet.containers().await.is_empty());
    assert_eq!(fleet.engine.calls("end"), 1);

    let (worker, _) = fleet.started().await;
    let child = fleet.child("child", "cat /f", &parent);
    fleet.dispatch(&child).await;
    let finished = fleet.finished_of(&claim(&child)).await;
    assert_eq!((&finished.outcome, log_of(&mut fleet, &finished).await.0.as_str()), (&Outcome::Passed, "kept\n"));
    worker.stop().await;
}
