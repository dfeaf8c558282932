//! A coordinator that is killed or stopped.

use std::time::Instant;

use crate::scene::{SHORT_LEASE_SECS, Scene};
use crate::signal::{is_gone, is_stopped, lasts};
use crate::stand::Stand;
use crate::table::Told;

pub(crate) async fn kill(stand: Stand) -> Told {
    let mut scene = Scene::start(stand, SHORT_LEASE_SECS).await;
    scene.busy(15).await;
    let before = scene.fleet.coordinator().pid();
    scene.fleet.kill_coordinator().await;
    let killed = Instant::now();
    scene.fleet.start_coordinator().await;
    let after = scene.fleet.coordinator().pid();
    scene.proves(is_gone(before) && before != after, format!("process {before} is now {after}"));
    scene.recovers_with_a_new_run(killed).await;
    scene.ends().await
}

pub(crate) async fn stop(stand: Stand) -> Told {
    let mut scene = Scene::start(stand, SHORT_LEASE_SECS).await;
    scene.busy(SHORT_LEASE_SECS + 10).await;
    let pid = scene.fleet.coordinator().pid();
    scene.fleet.coordinator().signal("STOP").await;
    lasts(SHORT_LEASE_SECS + 5).await;
    scene.proves(is_stopped(pid), format!("process {pid} stopped for {} s", SHORT_LEASE_SECS + 5));
    scene.fleet.coordinator().signal("CONT").await;
    let woken = Instant::now();
    scene.recovers_with_a_new_run(woken).await;
    scene.ends().await
}
