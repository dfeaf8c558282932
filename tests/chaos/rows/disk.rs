//! Disks that are full.

use std::path::Path;
use std::time::Instant;

use longshore_tests::own::{OwnServices, base_image};

use crate::disk::SmallDisk;
use crate::scene::{NAMES, SHORT_LEASE_SECS, Scene};
use crate::stand::Stand;
use crate::table::Told;

/// Of a worker's records and spools, and of a coordinator's journal and logs: these rows' loads leave some MiB.
const STATE_SIZE: &str = "64m";

/// Of an Engine's images and containers.
const ENGINE_SIZE: &str = "256m";

/// For longer than a write takes to fail and a step to be tried again, and shorter than three tries take.
const FULL_SECS: u32 = 5;

pub(crate) async fn worker(stand: Stand) -> Told {
    let fleet = Scene::fleet(&stand, SHORT_LEASE_SECS, &[]).prepare();
    // Both: who will have the steps is not known yet.
    let disks = NAMES.map(|name| SmallDisk::at(fleet.state_of(name), STATE_SIZE));
    let mut scene = Scene::of(stand, fleet).await;
    let run = scene.busy(20).await;
    let victim = scene.owner(run, "long").await;
    let disk = &disks[usize::from(victim == NAMES[1])];
    fill_and_free(&mut scene, disk).await;
    scene.ends().await
}

pub(crate) async fn engine(stand: Stand) -> Told {
    let services = OwnServices::prepare("chaos-engine");
    let disk = SmallDisk::at(Path::new(services.path()), ENGINE_SIZE);
    services.up("docker-1");
    let docker = services.env("LONGSHORE_TEST_DOCKER_1");
    base_image(&docker);
    let fleet = Scene::fleet_beside(&stand, &docker, SHORT_LEASE_SECS).prepare();
    let mut scene = Scene::of(stand, fleet).await;
    scene.files = false;
    scene.busy(20).await;
    fill_and_free(&mut scene, &disk).await;
    scene.ends().await
}

pub(crate) async fn coordinator(stand: Stand) -> Told {
    let fleet = Scene::fleet(&stand, SHORT_LEASE_SECS, &[]).prepare();
    let disk = SmallDisk::at(&fleet.state_of_coordinator(), STATE_SIZE);
    let mut scene = Scene::of(stand, fleet).await;
    scene.busy(20).await;
    fill_and_free(&mut scene, &disk).await;
    scene.ends().await
}

async fn fill_and_free(scene: &mut Scene, disk: &SmallDisk) {
    let bytes = disk.is_full_for(FULL_SECS).await;
    scene.proves(disk.is_full(), format!("filled with {} MiB, full for {FULL_SECS} s", bytes >> 20));
    disk.free();
    let freed = Instant::now();
    scene.recovers_with_a_new_run(freed).await;
}
