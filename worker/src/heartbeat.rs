//! What is (P7): every few seconds, whatever else happens.

use std::sync::Arc;

use longshore_protocol::broker::{Broker, Outgoing};
use longshore_protocol::heartbeat::{Heartbeat, HeartbeatMessage};
use longshore_protocol::process::watch;
use longshore_protocol::{Shard, wire};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::clock::Boot;
use crate::context::Context;
use crate::engine::Engine;
use crate::metrics::{BROKER_CONNECTED, HEARTBEATS_DROPPED, SLOTS_FREE};

/// Reports what is until the worker has stopped. `disk_free` is measured elsewhere, because it may block.
pub(crate) async fn run<B: Broker, E: Engine>(context: Arc<Context<B, E>>, disk_free: watch::Receiver<Option<u64>>) {
    let every = context.config.heartbeat;
    let mut ticks = interval(every);
    // What is late is old: the next one says it better.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stopping = false;
    loop {
        tokio::select! {
            biased;
            () = context.phases.stopped.cancelled() => return,
            // At once, so that nobody sends it anything more.
            () = context.phases.stopping.cancelled(), if !stopping => stopping = true,
            _ = ticks.tick() => {}
        }
        let connected = context.broker.connected();
        metrics::gauge!(BROKER_CONNECTED).set(f64::from(u8::from(connected)));
        metrics::gauge!(SLOTS_FREE).set(f64::from(context.slots_free()));
        let disk_free_bytes = *disk_free.borrow();
        // At most one is under way, and none waits for the broker: it would be old when it arrived.
        let sent = connected && {
            let publish = context.broker.publish(messages(&context, disk_free_bytes));
            let published = context.phases.stopped.run_until_cancelled(timeout(every, publish)).await;
            matches!(published, Some(Ok(Ok(()))))
        };
        if !sent {
            metrics::counter!(HEARTBEATS_DROPPED).increment(1);
        }
    }
}

fn messages<B: Broker, E: Engine>(context: &Context<B, E>, disk_free_bytes: Option<u64>) -> Vec<Outgoing> {
    let Boot(stamp_ms) = Boot::now(); // P18: before it is sent, and before what it lists is looked at
    // P7: the number first. An attempt is in the table before its `accepted` has a number, so whatever has a number
    // up to this one is listed below, or was settled or abandoned by the coordinator itself.
    let last_event = context.reporter.last_sent();
    let body = wire::encode(&HeartbeatMessage::Heartbeat(Heartbeat {
        worker: context.id.clone(),
        incarnation: context.incarnation,
        engine: context.engine_id.clone(),
        pool: context.config.pool.clone(),
        slots: context.config.slots,
        slots_free: context.slots_free(),
        attempts: context.attempts.records(),
        snapshots: context.snapshots.all(),
        parked: context.parked.claims(),
        stamp_ms,
        full: context.attempts.full(),
        last_event,
        disk_free_bytes,
    }));
    let to = |shard| context.topology.heartbeats(shard).address();
    (0..Shard::COUNT).map(|shard| Outgoing::new(to(Shard(shard)), body.clone())).collect()
}
