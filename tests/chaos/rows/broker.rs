//! A broker that goes away, stops reading, or loses its patience.

use std::time::{Duration, Instant};

use longshore_protocol::broker::amqp::AmqpBroker;
use longshore_protocol::broker::{Broker, Outgoing};
use longshore_protocol::topology::Topology;
use longshore_tests::process::PATIENCE;

use crate::broker;
use crate::scene::{LEASE_SECS, SHORT_LEASE_SECS, Scene};
use crate::signal::{is_gone, lasts};
use crate::stand::Stand;
use crate::table::Told;

/// The smallest that RabbitMQ's manual allows; it looks once a minute.
const DELIVERY_TIMEOUT_MS: u32 = 60_000;

/// Until the control consumer is closed at the latest, and two minutes more.
const OUTLASTS_SECS: u32 = 60 + 60 + 120 + 10;

pub(crate) async fn stop_app(stand: Stand) -> Told {
    let mut scene = Scene::start(stand, LEASE_SECS).await;
    scene.busy(25).await;
    scene.stand.rabbitmqctl(&["stop_app"]);
    let away = !broker::listens(&scene.stand);
    scene.stand.rabbitmqctl(&["start_app"]);
    let back = Instant::now();
    scene.proves(away, "nobody listened on its port");
    scene.recovers_with_a_new_run(back).await;
    scene.ends().await
}

pub(crate) async fn restart(stand: Stand) -> Told {
    let mut scene = Scene::start(stand, LEASE_SECS).await;
    let began = Instant::now();
    scene.busy(25).await;
    let before = scene.stand.pid(broker::NAME);
    broker::stop(&scene.stand);
    let away = is_gone(before);
    scene.stand.start(broker::NAME);
    came_back(scene, began, before, away).await
}

pub(crate) async fn kill(stand: Stand) -> Told {
    let mut scene = Scene::start(stand, LEASE_SECS).await;
    let began = Instant::now();
    scene.busy(25).await;
    let before = scene.stand.pid(broker::NAME);
    scene.stand.kill(broker::NAME);
    let away = is_gone(before);
    scene.stand.start(broker::NAME);
    came_back(scene, began, before, away).await
}

/// RabbitMQ 3.10 forgets a quorum queue's members when it is killed within about three seconds of its making: the
/// queue is there, and has no leader.
pub(crate) async fn kill_young(stand: Stand) -> Told {
    let began = Instant::now();
    let fleet = Scene::fleet(&stand, LEASE_SECS, &[]).prepare();
    let scene = Scene::fresh(stand, fleet).await;
    let before = scene.stand.pid(broker::NAME);
    scene.stand.kill(broker::NAME);
    let away = is_gone(before);
    scene.stand.start(broker::NAME);
    came_back(scene, began, before, away).await
}

async fn came_back(mut scene: Scene, began: Instant, before: u32, away: bool) -> Told {
    let back = Instant::now();
    scene.recovers_with_a_new_run(back).await;
    let (after, uptime) = (scene.stand.pid(broker::NAME), broker::uptime_secs(&scene.stand));
    scene.proves(
        away && before != after && uptime < began.elapsed().as_secs_f64(),
        format!("process {before} is now {after}, up for {uptime:.0} s"),
    );
    scene.ends().await
}

pub(crate) async fn alarm(stand: Stand) -> Told {
    let mut scene = Scene::start(stand, SHORT_LEASE_SECS).await;
    // Half of its steps end while nobody hears of it.
    let run = scene.busy(8).await;
    let alarm = Alarm::raise(&scene.stand);
    lasts(SHORT_LEASE_SECS + 5).await;
    let (raised, blocked) = (broker::is_in_alarm(&scene.stand), broker::blocked(&scene.stand));
    drop(alarm);
    let over = Instant::now();
    scene.proves(raised && blocked > 0, format!("memory alarm, {blocked} connections not read"));
    scene.recovers_with_a_new_run(over).await;
    scene.settles(run).await;
    scene.ends().await
}

/// Ends with the row, also with one that fails.
struct Alarm<'a>(&'a Stand);

impl<'a> Alarm<'a> {
    fn raise(stand: &'a Stand) -> Self {
        stand.rabbitmqctl(&["set_vm_memory_high_watermark", "absolute", "1MB"]);
        Self(stand)
    }
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        self.0.rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"]);
    }
}

pub(crate) async fn delivery_timeout(stand: Stand) -> Told {
    set_delivery_timeout(&stand, DELIVERY_TIMEOUT_MS);
    let mut scene = Scene::start(stand, SHORT_LEASE_SECS).await;
    let run = scene.busy(OUTLASTS_SECS).await;
    let claimed = Instant::now();

    // Beside it, somebody who does what Longshore does not: holds a delivery for the length of the work.
    let control = AmqpBroker::new(&scene.stand.amqp, "control").expect("the rows' broker");
    let queue = Topology::new(format!("{}-control", scene.fleet.prefix()), Duration::from_secs(1)).dead_letters();
    control.declare(std::slice::from_ref(&queue)).await.expect("a queue of its own");
    let message = Outgoing::new(queue.address(), b"work".to_vec());
    control.publish(vec![message]).await.expect("it was declared");
    let mut consumer = control.consume(&queue, 1).await.expect("it was declared");
    let held = consumer.next().await.expect("one was published");
    let again = tokio::time::timeout(PATIENCE * 2, consumer.next()).await.ok().flatten();
    let closed = claimed.elapsed().as_secs();
    // Given out a second time, because the broker closed the channel on which it was held.
    let bit = again.as_ref().is_some_and(|delivery| delivery.redelivered);
    drop((held, again));
    control.delete(&queue).await.expect("it is ours");
    control.close().await;

    scene.settles(run).await;
    let outlasted = claimed.elapsed().as_secs().saturating_sub(closed);
    set_delivery_timeout(&scene.stand, DEFAULT_DELIVERY_TIMEOUT_MS);
    scene.proves(
        bit && outlasted >= 120,
        format!("a control consumer was closed after {closed} s, our step went on for {outlasted} s"),
    );
    scene.ends().await
}

/// RabbitMQ's own default: half an hour.
const DEFAULT_DELIVERY_TIMEOUT_MS: u32 = 1_800_000;

/// Of every channel that is opened from now on.
fn set_delivery_timeout(stand: &Stand, millis: u32) {
    stand.rabbitmqctl(&["eval", &format!("application:set_env(rabbit, consumer_timeout, {millis}).")]);
}
