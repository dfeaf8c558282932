//! Packets that are dropped.

use std::time::Instant;

use crate::net::{Cut, Way};
use crate::scene::{LEASE_SECS, NAMES, SHORT_LEASE_SECS, Scene};
use crate::signal::lasts;
use crate::stand::Stand;
use crate::table::Told;

pub(crate) async fn worker_both(stand: Stand) -> Told {
    worker(stand, Way::Both, SHORT_LEASE_SECS, SHORT_LEASE_SECS + 8).await
}

pub(crate) async fn worker_to_broker(stand: Stand) -> Told {
    worker(stand, Way::ToBroker, SHORT_LEASE_SECS, SHORT_LEASE_SECS + 8).await
}

/// What the worker sends still arrives until its end of the connection gives up, after two of AMQP's heartbeats: the
/// lease begins to run out then.
pub(crate) async fn worker_from_broker(stand: Stand) -> Told {
    worker(stand, Way::FromBroker, SHORT_LEASE_SECS, SHORT_LEASE_SECS + 16).await
}

pub(crate) async fn worker_short(stand: Stand) -> Told {
    worker(stand, Way::Both, LEASE_SECS, LEASE_SECS / 2).await
}

async fn worker(stand: Stand, way: Way, lease_secs: u32, secs: u32) -> Told {
    let mut scene = Scene::start(stand, lease_secs).await;
    let run = scene.busy(secs + 15).await;
    let victim = scene.owner(run, "long").await;
    let engine = NAMES.into_iter().zip(1..).find(|(name, _)| *name == victim).expect("one of ours").1;
    let cut = Cut::worker(&scene.stand, engine, way);
    lasts(secs).await;
    let seen = scene.seen(victim).await;
    let dropped = cut.mend();
    let mended = Instant::now();
    scene.proves(
        dropped.iter().all(|packets| *packets > 0) && seen.alive == (secs < lease_secs),
        format!("packets dropped: {dropped:?}, its lease {}", if seen.alive { "held" } else { "ended" }),
    );
    scene.recovers_with(victim, &seen, mended).await;
    scene.ends().await
}

pub(crate) async fn coordinator_both(stand: Stand) -> Told {
    coordinator(stand, Way::Both).await
}

pub(crate) async fn coordinator_to_broker(stand: Stand) -> Told {
    coordinator(stand, Way::ToBroker).await
}

pub(crate) async fn coordinator_from_broker(stand: Stand) -> Told {
    coordinator(stand, Way::FromBroker).await
}

async fn coordinator(stand: Stand, way: Way) -> Told {
    let mut scene = Scene::start(stand, SHORT_LEASE_SECS).await;
    let secs = SHORT_LEASE_SECS + 8;
    scene.busy(secs + 5).await;
    let cut = Cut::coordinator(&scene.stand, way);
    lasts(secs).await;
    let dropped = cut.mend();
    let mended = Instant::now();
    scene.proves(dropped.iter().all(|packets| *packets > 0), format!("packets dropped: {dropped:?}"));
    scene.recovers_with_a_new_run(mended).await;
    scene.ends().await
}
