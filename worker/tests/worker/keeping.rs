//! What is kept of whom, and for how long: parked, committed, both or neither.

use std::time::Duration;

use longshore_protocol::job::{Base, Job, Keep};
use longshore_protocol::output::{Offsets, Stream};
use longshore_protocol::{Outcome, SnapshotId};

use crate::fleet::{Fleet, claim, fence};
use crate::parking::{live, parked_parent};

#[tokio::test]
async fn what_is_kept_of_whom() {
    let mut fleet = Fleet::new().await;
    fleet.parked_max = Some(9);
    let (worker, _) = fleet.started().await;
    let key = SnapshotId::cached("default", "key");
    for (name, keep, parked) in [
        ("nothing", Keep::Nothing, false),
        ("live", Keep::Live, true),
        ("snapshot", Keep::Snapshot, true),
        ("always", Keep::Always, false),
        ("cached", Keep::Cached { id: key.clone() }, true),
    ] {
        let job = Job { keep: keep.clone(), ..fleet.job(name, "true") };
        let own = SnapshotId::ephemeral(&fence(&job, &worker.id));
        let expected = match keep {
            Keep::Nothing | Keep::Live => None,
            Keep::Snapshot | Keep::Always => Some(own),
            Keep::Cached { id } => Some(id),
        };
        let finished = fleet.carry_out(&job).await;
        assert_eq!((finished.snapshot, finished.parked), (expected, parked), "{name}");
        // Promise 6: nothing is kept of a step that failed, but for people to look at.
        let failed = Job { keep: job.keep, ..fleet.job(&format!("{name}, failed"), "exit 1") };
        let failed = Job { keep: if name == "cached" { Keep::Snapshot } else { failed.keep.clone() }, ..failed };
        let finished = fleet.carry_out(&failed).await;
        assert_eq!((finished.snapshot.is_some(), finished.parked), (name == "always", false), "{name}");
    }
    worker.stop().await;
}
#[tokio::test]
async fn the_oldest_beyond_the_bound_is_committed_and_removed() {
    let mut fleet = Fleet::new().await;
    fleet.parked_max = Some(2);
    let (worker, _) = fleet.started().await;
    let mut parents = Vec::new();
    for n in 0..4 {
        let parent = live(fleet.job(&n.to_string(), &format!("echo {n} > /f")));
        parents.push(fleet.carry_out(&parent).await);
    }
    fleet.parks(&[&parents[2], &parents[3]]).await;
    fleet.has_containers(2).await;
    assert_eq!(fleet.snapshots().await.len(), 2);
    // The coordinator does not know of it: they are found under their attempts' own names.
    for (n, parent) in parents.iter().enumerate() {
        assert_eq!((&parent.snapshot, parent.parked), (&None, true));
        let (finished, text) = fleet.carry_out_and_read(&fleet.child(&format!("of {n}"), "cat /f", parent)).await;
        assert_eq!((finished.outcome, text), (Outcome::Passed, format!("{n}\n")));
    }
    worker.stop().await;
}
#[tokio::test]
async fn what_is_parked_too_long_is_committed_and_removed() {
    let mut fleet = Fleet::new().await;
    fleet.parked_for = Duration::from_millis(50);
    let (worker, _) = fleet.started().await;
    let parent = parked_parent(&mut fleet, Keep::Live).await;
    let own = SnapshotId::ephemeral(&fence(&fleet.job("parent", ""), &worker.id));
    fleet.heartbeat_where(|hb| hb.parked.is_empty() && hb.snapshots == [own.clone()]).await;
    fleet.has_containers(0).await;
    let (finished, text) = fleet.carry_out_and_read(&fleet.child("child", "cat /f", &parent)).await;
    assert_eq!((finished.outcome, text.as_str()), (Outcome::Passed, "of the parent\n"));
    worker.stop().await;
}
#[tokio::test]
async fn a_worker_that_parks_nothing_commits() {
    for direct in [false, true] {
        let mut fleet = Fleet::new().await;
        (fleet.direct, fleet.parked_max) = (direct, if direct { None } else { Some(0) });
        let (worker, _) = fleet.started().await;
        let parent = live(fleet.job("parent", "echo of the parent > /f"));
        let finished = fleet.carry_out(&parent).await;
        let own = SnapshotId::ephemeral(&fence(&parent, &worker.id));
        assert_eq!((&finished.snapshot, finished.parked), (&Some(own), false), "direct: {direct}");
        let (child, text) = fleet.carry_out_and_read(&fleet.child("child", "cat /f", &finished)).await;
        assert_eq!((child.outcome, text.as_str()), (Outcome::Passed, "of the parent\n"));
        // Nobody can say it without a supervisor.
        assert_eq!(child.usage.is_none(), direct);
        fleet.has_containers(0).await;
        worker.stop().await;
    }
}
#[tokio::test]
async fn volumes_are_not_handed_on_and_the_log_says_so_once() {
    let mut fleet = Fleet::new().await;
    fleet.engine.add_image("volumes:latest", &[], &["/volume"]);
    let (worker, _) = fleet.started().await;
    let base = Base::Image { reference: "volumes:latest".to_owned() };
    let parent = live(Job { base, ..fleet.job("parent", "echo x > /volume/f; echo y > /f") });
    let mut last = fleet.carry_out(&parent).await;
    let log = fleet.log(&last.claim.clone(), Offsets::default(), last.output).await;
    assert!(log.text(Stream::Stderr).contains("/volume"), "{log:?}");
    for name in ["child", "grandchild"] {
        let child = live(fleet.child(name, "cat /f; [ ! -e /volume/f ] || echo handed on", &last));
        last = fleet.carry_out(&child).await;
        let log = fleet.log(&claim(&child), Offsets::default(), last.output).await;
        assert_eq!((log.text(Stream::Stdout).as_str(), log.text(Stream::Stderr).as_str()), ("y\n", ""), "{name}");
    }
    worker.stop().await;
}

/// What is committed costs a twentieth of the time at most, and what is lost repeats little.
#[tokio::test]
async fn a_ten_minute_build_is_committed_and_the_trifles_behind_it_are_not() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let fetch = fleet.carry_out(&live(fleet.job("fetch", "work 0.5; echo src > /src"))).await;
    assert_eq!((&fetch.snapshot, fetch.parked), (&None, true));
    let build = live(fleet.child("build", "work 600; echo built > /f", &fetch));
    let build = fleet.carry_out(&build).await;
    assert!(build.snapshot.is_some() && build.parked, "{build:?}");

    let mut last = build.clone();
    for n in 0..5 {
        let trifle = live(fleet.child(&format!("trifle {n}"), "work 0.1; echo more > /more", &last));
        last = fleet.carry_out(&trifle).await;
        assert_eq!((&last.snapshot, last.parked), (&None, true), "{n}");
    }
    // They add up, and then one more commit is worth it.
    let trifle = live(fleet.child("the last trifle", "work 1.5; true", &last));
    let checkpoint = fleet.carry_out(&trifle).await;
    assert!(checkpoint.snapshot.is_some() && checkpoint.parked, "{checkpoint:?}");
    assert_eq!(fleet.engine.calls("commit"), 2);
    assert_eq!(fleet.engine.calls("create"), 1);

    // Whatever is lost behind it: the build is not repeated.
    let again = fleet.child("again", "cat /f; [ ! -e /more ] || echo a trifle", &build);
    let (finished, text) = fleet.carry_out_and_read(&again).await;
    assert_eq!((finished.outcome, text.as_str()), (Outcome::Passed, "built\n"));
    worker.stop().await;
}

/// A commit writes everything since the container's own image, each time again.
#[tokio::test]
async fn a_heavy_chain_of_commits_goes_on_in_fresh_containers() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let keep = |job: Job| Job { keep: Keep::Snapshot, ..job };
    let heavy = fleet.carry_out(&keep(fleet.job("heavy", "head -c 50000000 /dev/zero > /big"))).await;
    assert!(heavy.snapshot.is_some() && !heavy.parked, "{heavy:?}");
    let light = fleet.carry_out(&keep(fleet.child("light", "echo x > /f", &heavy))).await;
    assert!(light.snapshot.is_some() && light.parked, "its own layer is small again: {light:?}");
    worker.stop().await;
}
