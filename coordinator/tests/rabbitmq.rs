//! The driver over RabbitMQ: the same words on another wire.

#![allow(clippy::unwrap_used)] // a test's helper that fails has failed its test

#[allow(unreachable_pub)] // one file for every crate's tests
#[path = "../../tests/services.rs"]
mod services;
mod support;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use longshore_coordinator::core::view::RunOutcome;
use longshore_coordinator::{Config, Coordinator, StateLocation};
use longshore_protocol::RunId;
use longshore_protocol::broker::Broker;
use longshore_protocol::broker::amqp::AmqpBroker;
use longshore_protocol::control::Control;
use longshore_protocol::topology::Topology;
use serde_json::json;
use support::{CHAIN, Events, SHARD, ScriptedWorker, claim, json_answer, patiently, pipeline};
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn a_chain_settles_over_rabbitmq() {
    let uri = tokio::task::spawn_blocking(|| services::env("LONGSHORE_TEST_AMQP")).await.unwrap();
    let dir = tempfile::TempDir::new().unwrap();
    // Tests share a broker: each is a fleet of its own.
    let prefix = format!("coordinator-{}", uuid::Uuid::new_v4().simple());
    let state = StateLocation::Sqlite(dir.path().join("state.db"));
    let config = Config::new(&prefix, state, dir.path().join("blobs"));
    let topology = Topology::new(&prefix, config.lease());
    let coordinator = Coordinator::open(config, AmqpBroker::new(&uri, "coordinator").unwrap()).await.unwrap();
    let router = coordinator.router();
    let stop = CancellationToken::new();
    let running = tokio::spawn(coordinator.run(stop.clone()));

    let broker = AmqpBroker::new(&uri, "worker").unwrap();
    // Before anybody reads the pool's queue: it is there all the same, and holds the job.
    let run = RunId::new();
    let body = json!({ "run": run, "pipeline": pipeline(CHAIN) }).to_string();
    let request = Request::post("/v1/runs").header("content-type", "application/json").body(Body::from(body)).unwrap();
    assert_eq!(json_answer(&router, request).await.0, StatusCode::CREATED);
    let mut worker = ScriptedWorker::join_over(broker.clone(), topology.clone(), "w1").await;
    for _ in 0..2 {
        let job = worker.next_job().await;
        worker.raw(&topology.events(SHARD), b"garbage".to_vec()).await;
        worker.carry_out(&job).await;
        worker.told(|control| *control == Control::Settled { claim: claim(&job) }).await;
    }
    let events = Events::open(&router, &format!("/v1/runs/{run}/events"), Some("0")).await.rest().await;
    let settled = events.iter().rev().find(|(_, event)| event["type"] == "run").expect("it was settled");
    assert_eq!(settled.1["run"]["outcome"], RunOutcome::Passed.to_string());

    stop.cancel();
    patiently("the end", running).await.unwrap().unwrap();
    let id = worker.id.clone();
    drop(worker);
    for queue in topology.of_worker(&id, &"default".parse().unwrap()) {
        broker.delete(&queue).await.unwrap();
    }
    broker.close().await;
}
