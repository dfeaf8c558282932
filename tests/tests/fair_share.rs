//! A small run beside a large one, on a real coordinator and a real worker with an Engine of commands that only sleep.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the message")]

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt as _;
use longshore_coordinator::api::types::RunEvent;
use longshore_coordinator::core::view::{RunOutcome, RunView, StepPhase, StepView};
use longshore_coordinator::{Coordinator, StateLocation, Tokens};
use longshore_protocol::RunId;
use longshore_protocol::broker::memory::MemoryBroker;
use longshore_worker::engine::fake::FakeEngine;
use longshore_worker::{BlobSource, Worker};
use serde_json::json;
use tokio_util::sync::CancellationToken;

const SLOTS: u32 = 4;

/// Of a step of the large run, seconds: ten in the promise, fewer here, so that the test is short. What is measured is
/// in steps' lengths.
const STEP_SECS: u64 = 10;

/// Far beyond what it takes.
const PATIENCE: Duration = Duration::from_mins(2);

struct Api {
    http: reqwest::Client,
    url: String,
}

impl Api {
    async fn submit(&self, tenant: &str, pipeline: &str) -> RunId {
        let run = RunId::new();
        let plan =
            longshore_coordinator::pipeline::parse("p.yaml", pipeline).unwrap_or_else(|errors| panic!("{errors}"));
        let request = self.http.post(format!("{}/v1/runs", self.url)).bearer_auth(tenant);
        let body = serde_json::to_vec(&json!({ "run": run, "pipeline": plan })).unwrap();
        let answer = request.header("content-type", "application/json").body(body).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
        run
    }

    async fn view(&self, tenant: &str, run: RunId) -> RunView {
        let request = self.http.get(format!("{}/v1/runs/{run}", self.url)).bearer_auth(tenant);
        request.send().await.unwrap().json().await.unwrap()
    }

    /// Follows a run until an event makes `seen` true.
    async fn until(&self, tenant: &str, run: RunId, mut seen: impl FnMut(RunEvent) -> bool) {
        let request = self.http.get(format!("{}/v1/runs/{run}/events", self.url)).bearer_auth(tenant);
        let mut body = request.send().await.unwrap().bytes_stream();
        let mut buffer = String::new();
        while let Some(chunk) = body.next().await {
            buffer.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
            while let Some((event, rest)) = buffer.split_once("\n\n") {
                let data = event.lines().find_map(|line| line.strip_prefix("data:"));
                let over = data.is_some_and(|data| seen(serde_json::from_str(data).unwrap()));
                buffer = rest.to_owned();
                if over {
                    return;
                }
            }
        }
        panic!("the stream of events broke off");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_of_three_starts_within_one_steps_length_beside_ten_thousand() {
    let dir = tempfile::tempdir().unwrap();
    let broker = MemoryBroker::new();
    let state = StateLocation::Sqlite(dir.path().join("state.db"));
    let mut config = longshore_coordinator::Config::new("fair", state, dir.path().join("blobs"));
    config.listen = Some(([127, 0, 0, 1], 0).into());
    config.tokens = Tokens::new(["big", "small"].map(|tenant| (tenant.to_owned(), tenant.to_owned())));
    let coordinator = Coordinator::open(config, broker.another()).await.unwrap();
    let url = format!("http://{}", coordinator.local_addr().unwrap());
    let shutdown = CancellationToken::new();
    let leads = tokio::spawn(coordinator.run(shutdown.clone()));
    let blobs = BlobSource::Http { coordinator: url.clone(), token: Some("big".to_owned()) };
    let config = longshore_worker::Config {
        slots: SLOTS,
        ..longshore_worker::Config::new("fair", dir.path().join("worker"), blobs)
    };
    let worker = Worker::open(config, broker.another(), FakeEngine::new("fake")).await.unwrap();
    let works = tokio::spawn(worker.run(shutdown.clone()));
    let api = Api { http: reqwest::Client::builder().no_proxy().build().unwrap(), url };

    let numbers: Vec<String> = (0..10_000).map(|n| n.to_string()).collect();
    let large = format!(
        "name: large\nsteps:\n  - {{name: s, image: i, matrix: {{n: [{}]}}, run: sleep {STEP_SECS}}}\n",
        numbers.join(", ")
    );
    let small = "name: small\ndefaults: {image: i}\nsteps:\n  - {name: a, run: 'true'}\n  \
                 - {name: b, from: a, run: 'true'}\n  - {name: c, needs: [b], run: 'true'}\n";
    let big = api.submit("big", &large).await;
    let mut running = BTreeSet::new();
    let all_busy = api.until("big", big, |event| {
        let steps = match event {
            RunEvent::View { view } => view.steps,
            RunEvent::Step { step } => vec![step],
            _ => Vec::new(),
        };
        let runs = |step: &StepView| step.phase == StepPhase::Running;
        running.extend(steps.into_iter().filter(runs).map(|step| step.step));
        running.len() >= SLOTS as usize
    });
    tokio::time::timeout(PATIENCE, all_busy).await.expect("all slots are busy");

    let run = api.submit("small", small).await;
    tokio::time::timeout(PATIENCE, api.until("small", run, |event| event == RunEvent::End)).await.expect("it ends");
    let view = api.view("small", run).await;
    assert_eq!(view.summary.outcome, Some(RunOutcome::Passed));
    let asked = view.summary.submitted_at_ms;
    let began = view.steps[0].attempts[0].started_at_ms.unwrap();
    let ended = view.summary.settled_at_ms.unwrap();
    let (waited, took) = (began - asked, ended - asked);
    println!(
        "beside 10,000 steps of {STEP_SECS} s on {SLOTS} slots: the run of three began after {waited} ms, \
         and was over after {took} ms"
    );
    let of_big = api.view("big", big).await;
    assert!(of_big.summary.steps_settled < 1_000, "the large run goes on");
    // What coordinator and worker need for it themselves, on a machine that runs other tests, is no part of a step.
    let overhead = 8_000;
    assert!(waited <= STEP_SECS * 1_000 + overhead, "it began after {waited} ms");
    shutdown.cancel();
    works.await.unwrap().unwrap();
    leads.await.unwrap().unwrap();
}
