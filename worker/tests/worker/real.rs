//! The same worker on RabbitMQ and a Docker Engine: what the fakes cannot show.

use std::time::Duration;

use longshore_protocol::broker::amqp::AmqpBroker;
use longshore_protocol::broker::{Broker as _, Consumer, Outgoing};
use longshore_protocol::control::{Control, ControlMessage};
use longshore_protocol::event::{Event, EventMessage, Finished};
use longshore_protocol::job::{Base, Job, Keep};
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::topology::Topology;
use longshore_protocol::{Outcome, RunId, Shard, wire};
use longshore_worker::engine::Engine as _;
use longshore_worker::engine::docker::DockerEngine;
use longshore_worker::{Config, Worker};
use tokio_util::sync::CancellationToken;

use crate::fleet::{Fleet, LEASE, claim, next_delivery};
use crate::services;

/// A pull of a busybox and some container starts, on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_on_rabbitmq_and_docker_carries_out_keeps_and_cancels() {
    // Only its jobs and its directory are used.
    let fleet = Fleet::new().await;
    let prefix = format!("test-{}", RunId::new());
    let topology = Topology::new(&prefix, LEASE);
    let broker = AmqpBroker::new(&services::env("LONGSHORE_TEST_AMQP"), "test").unwrap();
    let engine = DockerEngine::connect(Some(&services::env("LONGSHORE_TEST_DOCKER_1"))).await.unwrap();
    broker.declare(&topology.of_coordinator(Shard(0))).await.unwrap();
    let mut events = broker.consume(&topology.events(Shard(0)), 100).await.unwrap();

    let config = Config { prefix, ..fleet.config() };
    let pool = topology.pool_jobs(Shard(0), &config.pool);
    let worker = Worker::open(config, broker.clone(), engine.clone()).await.unwrap();
    let (id, incarnation, shutdown) = (worker.id().clone(), worker.incarnation(), CancellationToken::new());
    let running = tokio::spawn(worker.run(shutdown.clone()));
    assert!(matches!(next(&mut events).await, Event::Hello(_)));

    let on_busybox = |job: Job| Job { base: Base::Image { reference: "longshore-test/busybox:latest".into() }, ..job };
    let send = async |job: &Job| broker.publish(vec![Outgoing::new(pool.address(), wire::encode(job))]).await.unwrap();
    let parent = Job { keep: Keep::Snapshot, ..on_busybox(fleet.job("parent", "echo one; echo two > /f")) };
    send(&parent).await;
    let finished = finish(&mut events).await;
    assert_eq!((finished.outcome, finished.output.stdout), (Outcome::Passed, 4));
    let snapshot = finished.snapshot.unwrap();

    let child = Job { base: Base::Snapshot { id: snapshot.clone() }, ..fleet.job("child", "cat /f; exit 3") };
    send(&child).await;
    let finished = finish(&mut events).await;
    assert_eq!((finished.outcome, finished.output.stdout), (Outcome::Failed { exit: 3 }, 4));

    // The shell ignores TERM as PID 1: only a kill ends it.
    let endless = on_busybox(fleet.job("endless", "while true; do sleep 1; done"));
    send(&endless).await;
    while !matches!(next(&mut events).await, Event::Started(_)) {}
    let cancel = Control::Cancel { claim: claim(&endless), by: CancelledBy::User };
    let message = ControlMessage { epoch: fleet.epoch, worker: id.clone(), incarnation, control: cancel };
    let control = topology.control(&id);
    broker.publish(vec![Outgoing::new(control.address(), wire::encode(&message))]).await.unwrap();
    assert_eq!(finish(&mut events).await.outcome, Outcome::Cancelled { by: CancelledBy::User });

    shutdown.cancel();
    tokio::time::timeout(PATIENCE, running).await.expect("it stops").unwrap().unwrap();
    let left = engine.containers().await.unwrap();
    assert!(left.iter().all(|container| container.owner() != id), "{left:?}");
    engine.remove_snapshot(&snapshot).await.unwrap();
    for queue in topology.of_worker(&id, &longshore_protocol::PoolName::default()) {
        broker.delete(&queue).await.unwrap();
    }
    broker.close().await;
}

async fn next(events: &mut Consumer) -> Event {
    let delivery = next_delivery(events, "event").await;
    let message: EventMessage = wire::decode(&delivery.body).unwrap();
    delivery.ack().await.unwrap();
    message.event
}

async fn finish(events: &mut Consumer) -> Finished {
    loop {
        if let Event::Finished(finished) = next(events).await {
            return finished;
        }
    }
}
