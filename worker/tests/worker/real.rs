//! The same worker on RabbitMQ and a Docker Engine: what the fakes cannot show.

use std::collections::VecDeque;

use longshore_protocol::broker::amqp::AmqpBroker;
use longshore_protocol::broker::{Broker as _, Consumer, Outgoing};
use longshore_protocol::control::{Control, ControlMessage};
use longshore_protocol::event::{Event, EventMessage, Finished};
use longshore_protocol::job::{Base, Job, Keep};
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::topology::Topology;
use longshore_protocol::{Incarnation, Outcome, PoolName, RunId, Shard, WorkerId, wire};
use longshore_worker::config::OUTPUT_BYTES_MAX;
use longshore_worker::engine::Engine as _;
use longshore_worker::engine::docker::DockerEngine;
use longshore_worker::{Config, Worker, WorkerError};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::fleet::{Fleet, LEASE, PATIENCE, claim, events};
use crate::services;

/// A worker on the real services, its jobs made by a fleet that is otherwise not used.
struct Real {
    fleet: Fleet,
    broker: AmqpBroker,
    engine: DockerEngine,
    topology: Topology,
    events: Consumer,
    unread: VecDeque<EventMessage>,
    id: WorkerId,
    incarnation: Incarnation,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), WorkerError>>,
}

impl Real {
    async fn start(slots: u32, output_bytes_max: u64) -> Self {
        let fleet = Fleet::new().await;
        let prefix = format!("test-{}", RunId::new());
        let topology = Topology::new(&prefix, LEASE);
        let broker = AmqpBroker::new(&services::env("LONGSHORE_TEST_AMQP"), "test").unwrap();
        let engine = DockerEngine::connect(Some(&services::env("LONGSHORE_TEST_DOCKER_1"))).await.unwrap();
        broker.declare(&topology.of_coordinator(Shard(0))).await.unwrap();
        let events = broker.consume(&topology.events(Shard(0)), 100).await.unwrap();
        let config = Config { prefix, slots, output_bytes_max, ..fleet.config() };
        let worker = Worker::open(config, broker.clone(), engine.clone()).await.unwrap();
        let (id, incarnation, shutdown) = (worker.id().clone(), worker.incarnation(), CancellationToken::new());
        let running = tokio::spawn(worker.run(shutdown.clone()));
        let mut real = Self {
            fleet,
            broker,
            engine,
            topology,
            events,
            unread: VecDeque::new(),
            id,
            incarnation,
            shutdown,
            running,
        };
        assert!(matches!(real.next().await, Event::Hello(_)));
        real
    }

    fn job(&self, step: &str, script: &str) -> Job {
        let base = Base::Image { reference: "longshore-test/busybox:latest".to_owned() };
        Job { base, ..self.fleet.job(step, script) }
    }

    async fn send(&self, job: &Job) {
        let pool = self.topology.pool_jobs(Shard(0), &job.spec.pool);
        self.broker.publish(vec![Outgoing::new(pool.address(), wire::encode(job))]).await.unwrap();
    }

    async fn cancel(&self, job: &Job) {
        let cancel = Control::Cancel { claim: claim(job), by: CancelledBy::User };
        let (worker, incarnation) = (self.id.clone(), self.incarnation);
        let message = ControlMessage { epoch: self.fleet.epoch, worker, incarnation, control: cancel };
        let control = self.topology.control(&self.id);
        self.broker.publish(vec![Outgoing::new(control.address(), wire::encode(&message))]).await.unwrap();
    }

    async fn next(&mut self) -> Event {
        if self.unread.is_empty() {
            self.unread = events(&mut self.events).await;
        }
        self.unread.pop_front().expect("a body holds a message").event
    }

    async fn finished(&mut self) -> Finished {
        loop {
            if let Event::Finished(finished) = self.next().await {
                return finished;
            }
        }
    }

    /// Stops it; nothing of it is left.
    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.running).await.expect("it stops").unwrap().unwrap();
        let left = self.engine.containers().await.unwrap();
        assert!(left.iter().all(|container| container.owner() != self.id), "{left:?}");
        let prefix = format!("longshore/{}:", self.id);
        for snapshot in self.engine.snapshots().await.unwrap() {
            if snapshot.as_str().starts_with(&prefix) {
                self.engine.remove_snapshot(&snapshot).await.unwrap();
            }
        }
        for queue in self.topology.of_worker(&self.id, &PoolName::default()) {
            self.broker.delete(&queue).await.unwrap();
        }
        self.broker.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_on_rabbitmq_and_docker_carries_out_keeps_and_cancels() {
    let mut real = Real::start(1, OUTPUT_BYTES_MAX).await;
    let parent = Job { keep: Keep::Snapshot, ..real.job("parent", "echo one; echo two > /f") };
    real.send(&parent).await;
    let finished = real.finished().await;
    assert_eq!((&finished.outcome, finished.output.stdout), (&Outcome::Passed, 4));

    let child = real.fleet.child("child", "cat /f; exit 3", &finished);
    real.send(&child).await;
    let finished = real.finished().await;
    assert_eq!((finished.outcome, finished.output.stdout), (Outcome::Failed { exit: 3 }, 4));

    // The shell ignores TERM as PID 1: only a kill ends it.
    let endless = real.job("endless", "while true; do sleep 1; done");
    real.send(&endless).await;
    while !matches!(real.next().await, Event::Started(_)) {}
    real.cancel(&endless).await;
    assert_eq!(real.finished().await.outcome, Outcome::Cancelled { by: CancelledBy::User });
    real.stop().await;
}

/// An Engine whose output is not taken holds up the commits of others (`docs/containers.md`): with a bound that is
/// reached with the first byte, all of it must be taken all the same, also behind the command's end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_a_step_beyond_its_bound_holds_nobody_up() {
    let mut real = Real::start(2, 1).await;
    let wrote = 20_000_000;
    // Both streams at once, and more than pipes and Engine hold between them when it ends.
    let loud = real.job("loud", &format!("head -c {wrote} /dev/zero & head -c {wrote} /dev/zero >&2; wait"));
    let kept = Job { keep: Keep::Snapshot, ..real.job("kept", "echo x > /f") };
    real.send(&loud).await;
    real.send(&kept).await;
    for _ in 0..2 {
        let finished = real.finished().await;
        assert_eq!(finished.outcome, Outcome::Passed);
        assert_eq!(finished.snapshot.is_some(), finished.claim == claim(&kept));
        if finished.claim == claim(&loud) {
            assert!(finished.output.stdout <= 1, "P14: what is there: {:?}", finished.output);
        }
    }
    real.stop().await;
}
