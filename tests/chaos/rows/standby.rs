//! Two coordinators, of which the one that leads is killed, or stopped and woken behind its successor (P21).

use std::time::Instant;

use longshore_protocol::Epoch;

use crate::scene::Scene;
use crate::signal::{is_gone, is_stopped};
use crate::stand::Stand;
use crate::table::Told;

/// Who led before the fault.
struct Leader {
    seat: usize,
    pid: u32,
    epoch: Epoch,
}

impl Leader {
    async fn of(scene: &mut Scene) -> Self {
        let pair = scene.pair();
        let seat = pair.leader().await;
        Self { seat, pid: pair.process(seat).pid(), epoch: pair.epoch().await }
    }

    /// Waits until the other one leads; how that went, in words.
    async fn is_succeeded(&self, scene: &mut Scene, since: Instant) -> String {
        scene.pair().heir_of(self.seat).await;
        let secs = since.elapsed().as_secs_f64();
        let (before, after) = (self.epoch, scene.pair().epoch().await);
        assert!(after > before, "epoch {before} is now {after}, and another one leads");
        format!("epoch {before} became {after} after {secs:.1} s")
    }

    /// To be called when all that it may have had in hand is over.
    async fn wrote_behind_its_successor(&self, scene: &mut Scene) -> i64 {
        let (all, behind) = scene.pair().rows_of(self.epoch).await;
        assert!(all > 0, "it led, and had something to write");
        behind
    }
}

pub(crate) async fn kill(stand: Stand) -> Told {
    let mut scene = Scene::start_with_two_coordinators(stand).await;
    let run = scene.busy(15).await;
    let old = Leader::of(&mut scene).await;
    scene.pair().kill(old.seat).await;
    let killed = Instant::now();
    let succeeded = old.is_succeeded(&mut scene, killed).await;
    // What is promised is the takeover.
    scene.recovered_since(killed);
    let started = scene.until_a_new_run_starts(killed).await;
    scene.settles(run).await;
    scene.proves(
        is_gone(old.pid),
        format!("process {} is gone, {succeeded}, a step of a new run started after {started:.1} s", old.pid),
    );
    scene.pair().start_seat(old.seat);
    scene.pair().stands_by(old.seat).await;
    scene.ends().await
}

pub(crate) async fn stop(stand: Stand) -> Told {
    let mut scene = Scene::start_with_two_coordinators(stand).await;
    let run = scene.busy(20).await;
    let old = Leader::of(&mut scene).await;
    scene.pair().signal(old.seat, "STOP").await;
    let stopped = Instant::now();
    let succeeded = old.is_succeeded(&mut scene, stopped).await;
    scene.recovers_with_a_new_run(stopped).await;
    let bit = is_stopped(old.pid);

    // Behind its successor, which has journalled the start of that run; and half of the long step is still to come.
    scene.pair().signal(old.seat, "CONT").await;
    let woken = Instant::now();
    scene.pair().stands_by(old.seat).await;
    let stood_by = woken.elapsed().as_secs_f64();
    scene.settles(run).await;
    let behind = old.wrote_behind_its_successor(&mut scene).await;
    assert_eq!(behind, 0, "rows of epoch {} behind its successor's first", old.epoch);
    scene.proves(
        bit && is_running(old.pid),
        format!(
            "process {} stopped, {succeeded}; woken, it stands by after {stood_by:.1} s and wrote {behind} rows more",
            old.pid
        ),
    );
    scene.ends().await
}

/// Whether it was woken, and lives.
fn is_running(pid: u32) -> bool {
    !is_gone(pid) && !is_stopped(pid)
}
