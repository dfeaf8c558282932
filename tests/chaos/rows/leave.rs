//! Workers that are told to end.

use std::time::Instant;

use longshore_protocol::Outcome;

use crate::scene::{LEASE_SECS, NAMES, Scene};
use crate::signal::is_gone;
use crate::stand::Stand;
use crate::table::Told;

/// Longer than this row takes: only the second signal ends the wait.
const LONG_DRAIN: [&str; 2] = ["--drain", "600"];

/// Shorter than the load's long step, longer than its links.
const SHORT_DRAIN: [&str; 2] = ["--drain", "4"];

pub(crate) async fn drain(stand: Stand) -> Told {
    let fleet = Scene::fleet(&stand, LEASE_SECS, &LONG_DRAIN).prepare();
    let mut scene = Scene::of(stand, fleet).await;
    let run = scene.busy(20).await;
    let victim = scene.owner(run, "long").await;
    let pid = scene.fleet.worker(victim).pid();
    scene.fleet.worker(victim).signal("TERM").await;
    scene.until_worker(victim, "without a slot", |worker| worker.slots_free == 0).await;
    // It lets them finish: a step of those that it has goes on to print.
    let lines = scene.fleet.follow(run).log("long").await.lines().count();
    scene.fleet.follow(run).prints("long", &format!("line {}\n", lines + 20)).await;
    let still_there = !is_gone(pid);
    let hurried = Instant::now();
    scene.fleet.terminate_worker(victim).await;
    scene.until_tried_again(run, "long").await;
    scene.recovered_since(hurried);
    let first = scene.fleet.follow(run).step("long").await.attempts[0].outcome.clone();
    scene.proves(
        still_there && is_gone(pid) && first.as_ref().is_some_and(Outcome::is_handed_back),
        format!("process {pid} waited, then handed back its steps at the second signal"),
    );
    scene.fleet.start_worker(victim).await;
    scene.ends().await
}

pub(crate) async fn rolling(stand: Stand) -> Told {
    let fleet = Scene::fleet(&stand, LEASE_SECS, &SHORT_DRAIN).prepare();
    let mut scene = Scene::of(stand, fleet).await;
    let run = scene.busy(20).await;
    let mut pids = Vec::new();
    for name in NAMES {
        let before = scene.fleet.worker(name).pid();
        scene.fleet.terminate_worker(name).await;
        scene.fleet.start_worker(name).await;
        pids.push((before, scene.fleet.worker(name).pid()));
    }
    let whole = Instant::now();
    scene.recovers_with_a_new_run(whole).await;
    let changed = pids.iter().all(|(before, after)| before != after && is_gone(*before));
    scene.proves(changed, format!("processes before and after: {pids:?}"));
    let view = scene.settles(run).await;
    let charged = view.steps.iter().flat_map(|step| &step.attempts).filter_map(|attempt| attempt.outcome.as_ref());
    let charged: Vec<_> =
        charged.filter(|outcome| matches!(outcome, Outcome::Infra { .. }) && !outcome.is_handed_back()).collect();
    assert!(charged.is_empty(), "an end in order is charged to nobody: {charged:?}");
    scene.ends().await
}
