//! A Docker daemon that dies or stops.

use std::time::Instant;

use longshore_tests::engine::try_docker;

use crate::scene::{NAMES, SHORT_LEASE_SECS, Scene};
use crate::signal::{is_gone, is_stopped, lasts, send};
use crate::stand::Stand;
use crate::table::Told;

/// The service beside a worker.
fn beside(worker: &str) -> &'static str {
    if worker == NAMES[0] { "docker-1" } else { "docker-2" }
}

pub(crate) async fn kill(stand: Stand) -> Told {
    let mut scene = Scene::start(stand, SHORT_LEASE_SECS).await;
    let run = scene.busy(20).await;
    let victim = scene.owner(run, "long").await;
    let service = beside(victim);
    let before = scene.stand.pid(service);
    scene.stand.kill(service);
    let away = is_gone(before);
    scene.stand.start(service);
    let back = Instant::now();
    let after = scene.stand.pid(service);
    scene.proves(away && before != after, format!("dockerd {before} is now {after}"));
    scene.until_tried_again(run, "long").await;
    scene.recovered_since(back);
    scene.ends().await
}

pub(crate) async fn stop(stand: Stand) -> Told {
    let mut scene = Scene::start(stand, SHORT_LEASE_SECS).await;
    let secs = SHORT_LEASE_SECS + 5;
    let run = scene.busy(secs + 10).await;
    let victim = scene.owner(run, "long").await;
    let daemon = Stopped::stop(scene.stand.pid(beside(victim)));
    lasts(secs).await;
    let pid = daemon.0;
    scene.proves(is_stopped(pid), format!("dockerd {pid} stopped for {secs} s"));
    drop(daemon);
    let woken = Instant::now();
    let answers = try_docker(scene.fleet.engine_of(victim), &["version"]).status.success();
    assert!(answers, "the daemon does not answer");
    scene.recovers_with_a_new_run(woken).await;
    scene.ends().await
}

/// A daemon that is stopped, until it is dropped.
struct Stopped(u32);

impl Stopped {
    fn stop(pid: u32) -> Self {
        send(pid, "STOP");
        Self(pid)
    }
}

impl Drop for Stopped {
    /// Also by a row that fails: the next one needs it.
    fn drop(&mut self) {
        send(self.0, "CONT");
    }
}
