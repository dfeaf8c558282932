//! Workers that are killed or stopped.

use std::time::Instant;

use crate::scene::{LEASE_SECS, SHORT_LEASE_SECS, Scene};
use crate::signal::{is_gone, is_stopped, lasts};
use crate::stand::Stand;
use crate::table::Told;

pub(crate) async fn kill(stand: Stand) -> Told {
    let mut scene = Scene::start(stand, LEASE_SECS).await;
    let run = scene.busy(LEASE_SECS + 15).await;
    let victim = scene.owner(run, "long").await;
    let pid = scene.fleet.worker(victim).pid();
    scene.fleet.kill_worker(victim).await;
    let killed = Instant::now();
    scene.proves(is_gone(pid), format!("process {pid} is gone"));
    scene.until_tried_again(run, "long").await;
    scene.recovered_since(killed);
    scene.settles(run).await;
    // It comes back when nobody waits for it any more, and removes what it left (P10).
    scene.fleet.start_worker(victim).await;
    scene.ends().await
}

pub(crate) async fn restart(stand: Stand) -> Told {
    let mut scene = Scene::start(stand, LEASE_SECS).await;
    let run = scene.busy(12).await;
    let victim = scene.owner(run, "long").await;
    let before = scene.fleet.worker(victim).pid();
    scene.fleet.kill_worker(victim).await;
    let killed = Instant::now();
    scene.fleet.start_worker(victim).await;
    scene.recovered_since(killed);
    let after = scene.fleet.worker(victim).pid();
    scene.proves(is_gone(before) && before != after, format!("process {before} is now {after}"));
    scene.ends().await
}

pub(crate) async fn stop_short(stand: Stand) -> Told {
    let scene = Scene::start(stand, LEASE_SECS).await;
    stop(scene, LEASE_SECS / 2).await
}

pub(crate) async fn stop_long(stand: Stand) -> Told {
    let scene = Scene::start(stand, SHORT_LEASE_SECS).await;
    stop(scene, SHORT_LEASE_SECS + 5).await
}

async fn stop(mut scene: Scene, secs: u32) -> Told {
    let run = scene.busy(secs + 15).await;
    let victim = scene.owner(run, "long").await;
    let pid = scene.fleet.worker(victim).pid();
    scene.fleet.worker(victim).signal("STOP").await;
    lasts(secs).await;
    let seen = scene.seen(victim).await;
    scene.proves(
        is_stopped(pid) && seen.silent_ticks >= secs / 2,
        format!(
            "process {pid} stopped, silent for {} ticks, its lease {}",
            seen.silent_ticks,
            if seen.alive { "held" } else { "ended" }
        ),
    );
    scene.fleet.worker(victim).signal("CONT").await;
    let woken = Instant::now();
    scene.recovers_with(victim, &seen, woken).await;
    scene.ends().await
}
