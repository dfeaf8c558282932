//! P19: parked containers, taken, shared and released.

use longshore_protocol::control::Control;
use longshore_protocol::event::{Event, Finished};
use longshore_protocol::job::{Job, Keep, Network, Resources};
use longshore_protocol::outcome::SNAPSHOT_LOST;
use longshore_protocol::output::{Offsets, Stream};
use longshore_protocol::{Attempt, InfraStage, Outcome};
use longshore_worker::engine::{ContainerName, EngineError};

use crate::fleet::{Fleet, PATIENCE, claim, fence};

pub(crate) fn live(job: Job) -> Job {
    Job { keep: Keep::Live, ..job }
}

fn lost() -> Outcome {
    Outcome::Infra { stage: InfraStage::Prepare, reason: SNAPSHOT_LOST.to_owned() }
}

/// A parent that wrote `/f` and whose container is parked.
pub(crate) async fn parked_parent(fleet: &mut Fleet, keep: Keep) -> Finished {
    let parent = Job { keep, ..fleet.job("parent", "echo of the parent > /f") };
    let finished = fleet.carry_out(&parent).await;
    assert_eq!((&finished.outcome, finished.parked), (&Outcome::Passed, true));
    finished
}
#[tokio::test]
async fn a_single_child_goes_on_in_its_parents_container() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let parent = parked_parent(&mut fleet, Keep::Live).await;
    assert_eq!(parent.snapshot, None);
    let container = fleet.container.clone();
    assert_eq!(container, ContainerName::of(&fence(&fleet.job("parent", ""), &worker.id)).to_string());
    fleet.parks(&[&parent]).await;

    let child = fleet.child("child", "cat /f; echo $LONGSHORE_STEP", &parent);
    let (finished, text) = fleet.carry_out_and_read(&child).await;
    assert_eq!((finished.outcome, finished.parked), (Outcome::Passed, false));
    assert_eq!(text, "of the parent\nchild\n");
    assert_eq!(fleet.container, container, "a container keeps its name for life");
    assert_eq!((fleet.engine.calls("create"), fleet.engine.calls("commit")), (1, 0));
    fleet.parks(&[]).await;
    fleet.has_containers(0).await;
    worker.stop().await;
}
#[tokio::test]
async fn a_chain_of_trifles_is_one_container_and_no_commit() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let mut last = fleet.carry_out(&live(fleet.job("0", "echo 0 > /f"))).await;
    // Few enough for what they really take to stay less than a commit is worth.
    for n in 1..20 {
        let job = live(fleet.child(&n.to_string(), &format!("work 0.01; echo {n} >> /f"), &last));
        last = fleet.carry_out(&job).await;
        assert_eq!((&last.outcome, last.parked, &last.snapshot), (&Outcome::Passed, true, &None), "{n}");
    }
    let (_, text) = fleet.carry_out_and_read(&fleet.child("end", "cat /f", &last)).await;
    assert_eq!(text, (0..20).map(|n| n.to_string() + "\n").collect::<String>());
    assert_eq!((fleet.engine.calls("create"), fleet.engine.calls("commit")), (1, 0));
    worker.stop().await;
}
#[tokio::test]
async fn a_parked_container_holds_no_slot() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let parent = parked_parent(&mut fleet, Keep::Live).await;
    fleet.heartbeat_where(|hb| hb.slots_free == 1 && hb.parked == [parent.claim.clone()]).await;
    assert_eq!(fleet.carry_out(&fleet.job("other", "true")).await.outcome, Outcome::Passed);
    fleet.parks(&[&parent]).await;
    worker.stop().await;
}
#[tokio::test]
async fn of_several_children_the_first_goes_on_and_the_others_get_the_same_files() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let parent = parked_parent(&mut fleet, Keep::Snapshot).await;
    let container = fleet.container.clone();
    let mut containers = Vec::new();
    for name in ["first", "second", "third"] {
        let child = fleet.child(name, &format!("cat /f; echo {name} > /f"), &parent);
        let (finished, text) = fleet.carry_out_and_read(&child).await;
        assert_eq!((finished.outcome, text.as_str()), (Outcome::Passed, "of the parent\n"), "{name}");
        containers.push(fleet.container.clone());
    }
    assert_eq!(containers[0], container);
    assert!(!containers[1..].contains(&container), "{containers:?}");
    assert_eq!(fleet.engine.calls("commit"), 1);
    worker.stop().await;
}

/// The coordinator asked for one child, and two came: one of them was sent again, say.
#[tokio::test]
async fn p19_two_that_race_for_a_live_container_both_get_its_files() {
    let mut fleet = Fleet::new().await;
    fleet.slots = 2;
    let (worker, _) = fleet.started().await;
    let cleaning = fleet.engine.hold("clean");
    let parent = parked_parent(&mut fleet, Keep::Live).await;
    cleaning.reached().await;
    for name in ["one", "two"] {
        let child = fleet.child(name, &format!("cat /f; echo {name} > /f"), &parent);
        fleet.dispatch(&child).await;
        assert_eq!(fleet.accepted().await, claim(&child));
    }
    assert_eq!(fleet.engine.calls("start"), 1, "nothing starts in a container that is being cleaned");
    drop(cleaning);
    for _ in 0..2 {
        let finished = fleet.finished().await;
        assert_eq!((finished.outcome, finished.output.stdout), (Outcome::Passed, "of the parent\n".len() as u64));
    }
    worker.stop().await;
}
#[tokio::test]
async fn p19_a_child_that_failed_leaves_nothing_of_the_parent_to_a_retry() {
    for (keep, second) in [(Keep::Live, None), (Keep::Snapshot, Some("of the parent\n"))] {
        let mut fleet = Fleet::new().await;
        let (worker, _) = fleet.started().await;
        let parent = parked_parent(&mut fleet, keep).await;
        let container = fleet.container.clone();
        let child = fleet.child("child", "cat /f; echo of the child > /f; kill -9 $$", &parent);
        assert_eq!(fleet.carry_out(&child).await.outcome, Outcome::Signaled { signal: 9 });
        assert_eq!(fleet.container, container, "it was the parent's");

        let retry = Job { attempt: Attempt(2), ..fleet.child("child", "cat /f", &parent) };
        let finished = fleet.carry_out(&retry).await;
        match second {
            Some(files) => {
                assert_eq!(finished.outcome, Outcome::Passed);
                assert_ne!(fleet.container, container);
                assert_eq!(finished.output.stdout, files.len() as u64);
            }
            // The parent is made again: whatever lies in that container is nobody's.
            None => assert_eq!(finished.outcome, lost()),
        }
        worker.stop().await;
    }
}

/// A commit under way ends before a child starts, and the child gets what was committed.
#[tokio::test]
async fn p19_a_child_waits_for_the_commit_of_a_container_that_has_to_go() {
    let mut fleet = Fleet::new().await;
    fleet.parked_max = Some(1);
    fleet.slots = 2;
    let (worker, _) = fleet.started().await;
    let first = parked_parent(&mut fleet, Keep::Live).await;
    fleet.parks(&[&first]).await;
    let commit = fleet.engine.hold("commit");
    let second = fleet.carry_out(&live(fleet.job("second", "true"))).await;
    commit.reached().await;
    let child = fleet.child("child", "cat /f", &first);
    fleet.dispatch(&child).await;
    assert_eq!(fleet.accepted().await, claim(&child));
    assert_eq!(fleet.engine.calls("start"), 2, "the two parents");
    drop(commit);
    let finished = fleet.finished().await;
    assert_eq!((finished.outcome, finished.output.stdout), (Outcome::Passed, "of the parent\n".len() as u64));
    fleet.parks(&[&second]).await;
    worker.stop().await;
}
#[tokio::test]
async fn what_is_released_is_removed() {
    for keep in [Keep::Live, Keep::Snapshot] {
        let mut fleet = Fleet::new().await;
        let (worker, _) = fleet.started().await;
        let parent = parked_parent(&mut fleet, keep).await;
        fleet.parks(&[&parent]).await;
        for _ in 0..2 {
            fleet.control(&worker, Control::Release { claim: parent.claim.clone() }).await;
        }
        fleet.heartbeat_where(|hb| hb.parked.is_empty() && hb.snapshots.is_empty()).await;
        fleet.has_containers(0).await;
        assert_eq!(fleet.snapshots().await, []);
        let late = fleet.child("late", "cat /f", &Finished { snapshot: None, ..parent });
        assert_eq!(fleet.carry_out(&late).await.outcome, lost());
        worker.stop().await;
    }
}
#[tokio::test]
async fn p19_what_a_child_has_taken_is_not_released() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let parent = parked_parent(&mut fleet, Keep::Live).await;
    let child = fleet.child("child", "await go; cat /f", &parent);
    fleet.running(&child).await;
    fleet.control(&worker, Control::Release { claim: parent.claim.clone() }).await;
    // Obeyed in order: when this is answered, that was obeyed.
    fleet.control(&worker, Control::Sync).await;
    assert!(matches!(fleet.event().await, Event::Records { .. }));
    fleet.engine.raise("go");
    let finished = fleet.finished().await;
    assert_eq!((finished.outcome, finished.output.stdout), (Outcome::Passed, "of the parent\n".len() as u64));
    worker.stop().await;
}
#[tokio::test]
async fn limits_are_changed_in_place_and_what_cannot_be_changed_is_restored() {
    /// Asks for something, and whether that can be had in place.
    type Want = (&'static str, fn(&mut Job), bool);
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let wants: [Want; 3] = [
        (
            "limits",
            |job| job.spec.resources = Resources { memory_bytes: Some(1 << 30), cpus: None, pids: Some(7) },
            true,
        ),
        ("network", |job| job.spec.network = Network::Bridge, false),
        ("tenant", |job| job.tenant = "another".to_owned(), false),
    ];
    for (n, (name, want, in_place)) in wants.into_iter().enumerate() {
        let mut parent = live(fleet.job(&format!("parent {n}"), "echo of the parent > /f"));
        parent.attempt = Attempt(3);
        let parent = fleet.carry_out(&parent).await;
        assert_eq!((parent.snapshot.clone(), parent.parked), (None, true));
        let container = fleet.container.clone();
        let mut child = live(fleet.child(name, "cat /f", &parent));
        want(&mut child);
        let (finished, text) = fleet.carry_out_and_read(&child).await;
        assert_eq!((finished.outcome, text.as_str()), (Outcome::Passed, "of the parent\n"), "{name}");
        assert_eq!(fleet.container == container, in_place, "{name}");
        if in_place {
            let limits = fleet.engine.limits(&ContainerName::parse(&container).unwrap());
            assert_eq!(limits, Some(child.spec.resources));
        }
    }
    worker.stop().await;
}
#[tokio::test]
async fn a_container_that_cannot_be_cleaned_is_restored_and_the_childs_log_says_why() {
    let mut fleet = Fleet::new().await;
    fleet.slots = 2;
    let (worker, _) = fleet.started().await;
    fleet.engine.unfit_next("a process that nothing ends");
    // The child comes while it is being cleaned, as children do.
    let cleaning = fleet.engine.hold("clean");
    let parent = parked_parent(&mut fleet, Keep::Live).await;
    let container = fleet.container.clone();
    cleaning.reached().await;
    let child = fleet.child("child", "cat /f", &parent);
    let asked = fleet.engine.calls("way");
    fleet.dispatch(&child).await;
    assert_eq!(fleet.accepted().await, claim(&child));
    let asks = async {
        while fleet.engine.calls("way") == asked {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, asks).await.expect("it asks which way there is");
    // That was the last question before the container. One that came later and is over says that the child waits for it.
    let later = fleet.job("later", "true");
    assert_eq!(fleet.carry_out(&later).await.outcome, Outcome::Passed);
    drop(cleaning);
    let finished = fleet.finished().await;
    assert_eq!(finished.outcome, Outcome::Passed);
    assert_ne!(fleet.container, container);
    let log = fleet.log(&claim(&child), Offsets::default(), finished.output).await;
    assert_eq!(log.text(Stream::Stdout), "of the parent\n");
    assert!(log.text(Stream::Stderr).contains("a process that nothing ends"), "{log:?}");
    worker.stop().await;
}
/// It may be committed although nothing runs in it any more; if not, the parent is made again.
#[tokio::test]
async fn p20_a_container_that_died_while_parked_is_restored_or_its_files_are_lost() {
    for can_commit in [true, false] {
        let mut fleet = Fleet::new().await;
        let (worker, _) = fleet.started().await;
        let parent = parked_parent(&mut fleet, Keep::Live).await;
        fleet.parks(&[&parent]).await;
        if !can_commit {
            fleet.engine.fail_next("commit", EngineError::Gone { name: fleet.container.clone() });
        }
        fleet.engine.kill(&ContainerName::parse(&fleet.container).unwrap());
        let finished = fleet.carry_out(&fleet.child("child", "cat /f", &parent)).await;
        if can_commit {
            assert_eq!((finished.outcome, finished.output.stdout), (Outcome::Passed, "of the parent\n".len() as u64));
        } else {
            assert_eq!(finished.outcome, lost());
        }
        fleet.has_containers(0).await;
        worker.stop().await;
    }
}
