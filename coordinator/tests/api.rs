//! The HTTP API: once per id, who may ask, streams that resume, blobs.

#![allow(clippy::unwrap_used)] // a test's helper that fails has failed its test

mod support;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use longshore_coordinator::core::view::RunOutcome;
use longshore_coordinator::{Coordinator, CoordinatorError, Tokens, reader};
use longshore_protocol::control::Control;
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::output::Offsets;
use longshore_protocol::{BlobHash, Outcome, RunId};
use serde_json::json;
use support::{CHAIN, Fleet, ONE_STEP, ScriptedWorker, claim, json_answer, pipeline};
use tower::ServiceExt;

#[tokio::test]
async fn submitting_twice_with_one_id_is_one_run_and_another_pipeline_is_refused() {
    let mut fleet = Fleet::start().await;
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let run = RunId::new();
    let one = pipeline(ONE_STEP);
    let (first, second) = tokio::join!(fleet.submit(run, &one), fleet.submit(run, &one));
    let mut statuses = [first.0, second.0];
    statuses.sort();
    assert_eq!(statuses, [StatusCode::OK, StatusCode::CREATED]);
    let (status, body) = fleet.submit(run, &pipeline(CHAIN)).await;
    assert_eq!((status, body["error"]["code"].as_str()), (StatusCode::CONFLICT, Some("run_exists")));
    let job = worker.next_job().await;
    worker.carry_out(&job).await;
    fleet.settled(run).await;
    // The core has forgotten it by now, and another coordinator never knew it.
    fleet.stop().await;
    fleet.restart().await;
    assert_eq!(fleet.submit(run, &pipeline(ONE_STEP)).await.0, StatusCode::OK);
    assert_eq!(fleet.submit(run, &pipeline(CHAIN)).await.0, StatusCode::CONFLICT);
    let (_, list) = fleet.get("/v1/runs").await;
    assert_eq!(list["runs"].as_array().unwrap().len(), 1);
    assert_eq!(fleet.show(run).await.steps[0].attempts.len(), 1);
}

#[tokio::test]
async fn what_cannot_be_carried_out_is_refused_in_words() {
    let fleet = Fleet::start().await;
    let run = RunId::new();
    let mut bad = pipeline(CHAIN);
    bad.steps.swap(0, 1);
    let (status, body) = fleet.submit(run, &bad).await;
    assert_eq!((status, body["error"]["code"].as_str()), (StatusCode::UNPROCESSABLE_ENTITY, Some("invalid_pipeline")));
    let (status, body) = fleet.post("/v1/runs", &json!({ "run": "no id" })).await;
    assert_eq!(body["error"]["code"], "bad_request", "{status} {body}");
    for path in
        [format!("/v1/runs/{run}"), format!("/v1/runs/{run}/events"), format!("/v1/runs/{run}/logs"), "/x".into()]
    {
        let (status, body) = fleet.get(&path).await;
        assert_eq!((status, body["error"]["code"].as_str()), (StatusCode::NOT_FOUND, Some("not_found")), "{path}");
    }
    assert_eq!(fleet.post(&format!("/v1/runs/{run}/cancel"), &json!({})).await.0, StatusCode::NOT_FOUND);
    assert_eq!(fleet.get("/v1/runs").await.1["runs"], json!([]));
}

#[tokio::test]
async fn p11_a_cancelled_run_settles_when_the_owner_of_its_last_attempt_says_so() {
    let fleet = Fleet::start().await;
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let run = fleet.submitted(CHAIN).await;
    let job = worker.next_job().await;
    worker.started(&job).await;
    let mut events = fleet.events(&format!("/v1/runs/{run}/events"), Some("0")).await;
    while events.next().await.expect("the run is not over").1["step"]["phase"] != "running" {}
    let (status, summary) = fleet.post(&format!("/v1/runs/{run}/cancel"), &json!({})).await;
    assert_eq!((status, &summary["cancelling"]), (StatusCode::ACCEPTED, &json!(true)));
    let told = worker.next_control().await.control;
    assert_eq!(told, Control::Cancel { claim: claim(&job), by: CancelledBy::User });
    assert_eq!(fleet.show(run).await.summary.outcome, None);
    worker.finished(&job, Outcome::Cancelled { by: CancelledBy::User }, Offsets::default()).await;
    assert_eq!(fleet.settled(run).await.summary.outcome, Some(RunOutcome::Cancelled));
    // Once more: nothing.
    assert_eq!(fleet.post(&format!("/v1/runs/{run}/cancel"), &json!({})).await.0, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn without_the_token_nothing_but_health_is_answered() {
    let tokens = || Tokens::new([("s3cret".to_owned(), "alice".to_owned()), ("other".to_owned(), "bob".to_owned())]);
    let mut fleet = Fleet::stopped(|config| {
        config.tokens = Tokens::new([("s3cret".to_owned(), "alice".to_owned())]);
    });
    fleet.restart().await;
    assert!(!format!("{:?}", tokens()).contains("s3cret"), "secrets are not printed");
    assert_eq!(tokens().tenant("other"), Some("bob"));
    let ask = async |token: Option<&str>, path: &str| {
        let mut request = Request::get(path);
        if let Some(token) = token {
            request = request.header("authorization", token);
        }
        fleet.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap().status()
    };
    assert_eq!(ask(None, "/healthz").await, StatusCode::OK);
    for path in ["/v1/runs", "/v1/workers", "/metrics", "/v1/blobs/00"] {
        assert_eq!(ask(None, path).await, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(ask(Some("Bearer wrong"), path).await, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(ask(Some("Basic s3cret"), path).await, StatusCode::UNAUTHORIZED, "{path}");
    }
    assert_eq!(ask(Some("Bearer s3cret"), "/v1/runs").await, StatusCode::OK);
    let run = RunId::new();
    let body = json!({ "run": run, "pipeline": pipeline(ONE_STEP) }).to_string();
    let request = Request::post("/v1/runs").header("authorization", "bearer s3cret");
    let request = request.header("content-type", "application/json").body(Body::from(body)).unwrap();
    let (status, summary) = json_answer(&fleet.router, request).await;
    assert_eq!((status, summary["tenant"].as_str()), (StatusCode::CREATED, Some("alice")));
}

/// To another tenant a run is one that does not exist, whatever is asked of it.
#[tokio::test]
async fn a_tenant_sees_and_ends_its_own_runs_only() {
    let mut fleet = Fleet::stopped(|config| {
        let tokens = [("a-token", "alice"), ("b-token", "bob")];
        config.tokens = Tokens::new(tokens.map(|(token, tenant)| (token.to_owned(), tenant.to_owned())));
    });
    fleet.restart().await;
    let ask = async |token: &str, request: axum::http::request::Builder, body: String| {
        let request = request.header("authorization", format!("Bearer {token}"));
        let request = request.header("content-type", "application/json");
        json_answer(&fleet.router, request.body(Body::from(body)).unwrap()).await
    };
    let get = async |token: &str, path: &str| ask(token, Request::get(path), String::new()).await;
    let run = RunId::new();
    let submit = json!({ "run": run, "pipeline": pipeline(ONE_STEP) }).to_string();
    assert_eq!(ask("a-token", Request::post("/v1/runs"), submit.clone()).await.0, StatusCode::CREATED);
    let of_run = ["", "/logs", "/logs?step=build", "/events"].map(|rest| format!("/v1/runs/{run}{rest}"));
    for path in &of_run {
        let (status, body) = get("b-token", path).await;
        let (nowhere, unknown) = get("b-token", &path.replace(&run.to_string(), &RunId::new().to_string())).await;
        assert_eq!((status, &body), (nowhere, &unknown), "{path} tells it from a run that does not exist");
        assert_eq!((status, body["error"]["message"].as_str()), (StatusCode::NOT_FOUND, Some("there is no such run")));
    }
    let cancel = format!("/v1/runs/{run}/cancel");
    assert_eq!(ask("b-token", Request::post(&cancel), String::new()).await.0, StatusCode::NOT_FOUND);
    assert_eq!(get("b-token", "/v1/runs").await.1["runs"], json!([]));
    // Its id is taken, and stays alice's.
    assert_eq!(ask("b-token", Request::post("/v1/runs"), submit).await.0, StatusCode::CONFLICT);
    let (status, body) = get("a-token", &of_run[0]).await;
    assert_eq!((status, &body["cancelling"], &body["tenant"]), (StatusCode::OK, &json!(false), &json!("alice")));
    assert_eq!(get("a-token", "/v1/runs").await.1["runs"].as_array().unwrap().len(), 1);
    assert_eq!(ask("a-token", Request::post(&cancel), String::new()).await.0, StatusCode::ACCEPTED);
}

/// A web page whose name was made to resolve to 127.0.0.1 speaks to us through the user's browser.
#[tokio::test]
async fn without_tokens_a_request_to_another_machines_name_is_refused() {
    let fleet = Fleet::start().await;
    let ask = async |host: &str| {
        json_answer(&fleet.router, Request::get("/v1/runs").header("host", host).body(Body::empty()).unwrap()).await
    };
    let (status, body) = ask("evil.example:7420").await;
    assert_eq!((status, body["error"]["code"].as_str()), (StatusCode::FORBIDDEN, Some("foreign_host")));
    assert_eq!(ask("127.0.0.1:7420").await.0, StatusCode::OK);
    assert_eq!(ask("localhost").await.0, StatusCode::OK);
}

#[test]
fn an_empty_token_lets_nobody_in() {
    let tokens = Tokens::new([(String::new(), "a".to_owned()), (" ".to_owned(), "b".to_owned())]);
    assert!(tokens.is_empty());
    assert_eq!(tokens.tenant(""), None);
}

#[tokio::test]
async fn an_open_port_without_a_token_is_refused_with_the_mend() {
    let fleet = Fleet::stopped(|config| config.listen = Some("0.0.0.0:0".parse().unwrap()));
    let refused = Coordinator::open(fleet.config(), fleet.broker.another()).await.err().expect("it must refuse");
    assert!(matches!(refused, CoordinatorError::OpenToAnybody { .. }));
    assert!(refused.to_string().contains("set a bearer token"), "{refused}");
    assert!(!fleet.file().exists(), "nothing was made");
    let mut config = fleet.config();
    config.tokens = Tokens::new([("t".to_owned(), "default".to_owned())]);
    let coordinator = Coordinator::open(config, fleet.broker.another()).await.unwrap();
    assert_ne!(coordinator.local_addr().expect("it listens").port(), 0);
    let mut config = fleet.config();
    config.listen = Some("127.0.0.1:0".parse().unwrap());
    assert!(Coordinator::open(config, fleet.broker.another()).await.is_ok());
}

/// Cuts the stream after every event and resumes: together the pieces are the whole, once.
#[tokio::test]
async fn events_resume_behind_last_event_id_without_loss_or_repeat() {
    let fleet = Fleet::start().await;
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let run = fleet.submitted(CHAIN).await;
    for _ in 0..2 {
        let job = worker.next_job().await;
        worker.carry_out(&job).await;
    }
    fleet.settled(run).await;
    let path = format!("/v1/runs/{run}/events");
    let mut first = fleet.events(&path, None).await;
    let (start, view) = first.next().await.unwrap();
    assert_eq!((view["type"].as_str(), view["view"]["outcome"].as_str()), (Some("view"), Some("passed")));
    assert_eq!(first.next().await.unwrap().1["type"], "end");
    // From before everything: each row's last change, in order.
    let whole = fleet.events(&path, Some("0")).await.rest().await;
    assert_eq!(whole.len(), 4, "two steps, the run, the end: {whole:?}");
    assert_eq!(whole[2].1["type"], "run", "the run is settled after its steps");
    assert_eq!(whole[3].0, start);
    for cut in 0..3 {
        let rest = fleet.events(&path, Some(&whole[cut].0)).await.rest().await;
        assert_eq!(rest, whole[cut + 1..], "cut behind {cut}");
    }
    let request = Request::get(&path).header("last-event-id", "x").body(Body::empty()).unwrap();
    assert_eq!(json_answer(&fleet.router, request).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn events_follow_a_run_as_it_goes() {
    let fleet = Fleet::start().await;
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let run = fleet.submitted(ONE_STEP).await;
    let mut events = fleet.events(&format!("/v1/runs/{run}/events"), None).await;
    assert_eq!(events.next().await.unwrap().1["type"], "view");
    let job = worker.next_job().await;
    worker.started(&job).await;
    loop {
        let (_, event) = events.next().await.expect("the run is not over");
        if event["step"]["phase"] == "running" {
            break;
        }
    }
    worker.finished(&job, Outcome::Failed { exit: 1 }, Offsets::default()).await;
    let rest = events.rest().await;
    assert!(rest.iter().any(|(_, event)| event["run"]["outcome"] == "failed"), "{rest:?}");
    assert_eq!(rest.last().unwrap().1["type"], "end");
    let mut ids: Vec<u64> = rest.iter().map(|(id, _)| id.parse().unwrap()).collect();
    ids.pop();
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
}

#[tokio::test]
async fn blobs_are_taken_whole_with_the_right_hash_or_not_at_all() {
    let fleet = Fleet::start_with(|config| config.blob_bytes_max = 1_000).await;
    let put = async |hash: &BlobHash, bytes: Vec<u8>| {
        let request = Request::put(format!("/v1/blobs/{hash}")).body(Body::from(bytes)).unwrap();
        json_answer(&fleet.router, request).await
    };
    let bytes = b"a packed directory".to_vec();
    let hash = BlobHash::of(&bytes);
    let (status, body) = put(&hash, b"something else".to_vec()).await;
    assert_eq!((status, body["error"]["code"].as_str()), (StatusCode::UNPROCESSABLE_ENTITY, Some("hash_mismatch")));
    let path = format!("/v1/blobs/{hash}");
    let head = async || {
        let request = Request::head(&path).body(Body::empty()).unwrap();
        fleet.router.clone().oneshot(request).await.unwrap()
    };
    assert_eq!(head().await.status(), StatusCode::NOT_FOUND);
    assert_eq!(put(&hash, bytes.clone()).await.0, StatusCode::CREATED);
    assert_eq!(put(&hash, bytes.clone()).await.0, StatusCode::OK);
    let response = head().await;
    assert_eq!((response.status(), &response.headers()["content-length"]), (StatusCode::OK, &"18".parse().unwrap()));
    assert_eq!(fleet.text(&path).await, bytes);
    let large = vec![0; 1_001];
    assert_eq!(put(&BlobHash::of(&large), large).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    let incoming = std::fs::read_dir(fleet.blob_dir().join("incoming")).unwrap().count();
    assert_eq!(incoming, 0, "nothing of a refused upload stays");
    assert!(fleet.blob_dir().join(&hash.as_str()[..2]).join(hash.as_str()).is_file());
    assert_eq!(fleet.get("/v1/blobs/..%2F..%2Fstate.db").await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn an_upload_whose_client_goes_away_leaves_nothing() {
    let fleet = Fleet::start().await;
    let hash = BlobHash::of(b"never comes");
    let body = Body::from_stream(futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>());
    let request = Request::put(format!("/v1/blobs/{hash}")).body(body).unwrap();
    let incoming = || std::fs::read_dir(fleet.blob_dir().join("incoming")).unwrap().count();
    let begun = support::patiently("the upload's file", async {
        while incoming() == 0 {
            tokio::task::yield_now().await;
        }
    });
    tokio::select! {
        answer = fleet.router.clone().oneshot(request) => panic!("{answer:?}"),
        () = begun => {}
    }
    assert_eq!(incoming(), 0);
}

#[tokio::test]
async fn a_pipeline_whose_blobs_are_missing_is_refused_by_name_until_they_are_there() {
    let fleet = Fleet::start().await;
    let mut pipeline = pipeline(
        "name: s\nsteps:\n  - {name: build, image: busybox, run: make, sources: [{path: src, target: /src}]}\n",
    );
    let run = RunId::new();
    assert_eq!(fleet.submit(run, &pipeline).await.0, StatusCode::UNPROCESSABLE_ENTITY, "not packed");
    let bytes = b"tar".to_vec();
    let hash = BlobHash::of(&bytes);
    pipeline.steps[0].sources[0].blob = Some((hash.clone(), 3));
    let (status, body) = fleet.submit(run, &pipeline).await;
    assert_eq!((status, body["error"]["code"].as_str()), (StatusCode::CONFLICT, Some("blobs_missing")));
    assert!(body["error"]["message"].as_str().unwrap().contains(hash.as_str()), "{body}");
    let request = Request::put(format!("/v1/blobs/{hash}")).body(Body::from(bytes)).unwrap();
    assert_eq!(json_answer(&fleet.router, request).await.0, StatusCode::CREATED);
    assert_eq!(fleet.submit(run, &pipeline).await.0, StatusCode::CREATED);
    // The worker is told which blob to fetch.
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    assert_eq!(worker.next_job().await.spec.sources[0].blob, hash);
}

#[tokio::test]
async fn health_says_what_is_missing() {
    let fleet = Fleet::start().await;
    assert_eq!(fleet.get("/readyz").await.0, StatusCode::OK);
    fleet.cut_off().await;
    let (status, body) = fleet.get("/readyz").await;
    assert_eq!(
        (status, &body["broker"], &body["leading"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!(false), &json!(true))
    );
}

/// `longshore ls`, `show` and `logs` on a file that nobody has open any more.
#[tokio::test]
async fn a_past_runs_file_can_be_read_and_not_written() {
    let mut fleet = Fleet::start().await;
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let run = fleet.submitted(ONE_STEP).await;
    let job = worker.next_job().await;
    worker.carry_out(&job).await;
    fleet.settled(run).await;
    fleet.stop().await;
    fleet.router = reader(&fleet.file(), &fleet.blob_dir()).unwrap();
    assert_eq!(fleet.get("/v1/runs").await.1["runs"][0]["outcome"], "passed");
    assert_eq!(fleet.show(run).await.summary.outcome, Some(RunOutcome::Passed));
    assert_eq!(fleet.text(&format!("/v1/runs/{run}/logs?follow=true")).await, b"build | output of build\n");
    let (status, body) = fleet.submit(RunId::new(), &pipeline(ONE_STEP)).await;
    assert_eq!((status, body["error"]["code"].as_str()), (StatusCode::METHOD_NOT_ALLOWED, Some("read_only")));
    assert!(reader(&fleet.dir.path().join("none.db"), &fleet.blob_dir()).is_err());
}

/// What `kill -9` leaves: the write-ahead log is not yet in the file.
#[tokio::test]
async fn a_file_that_was_left_in_the_middle_of_a_run_can_be_read() {
    let mut fleet = Fleet::start().await;
    let run = fleet.submitted(ONE_STEP).await;
    let left = fleet.dir.path().join("left");
    std::fs::create_dir(&left).unwrap();
    for name in ["state.db", "state.db-wal"] {
        std::fs::copy(fleet.dir.path().join(name), left.join(name)).unwrap();
    }
    fleet.router = reader(&left.join("state.db"), &fleet.blob_dir()).unwrap();
    let view = fleet.show(run).await;
    assert_eq!((view.summary.outcome, view.steps.len()), (None, 1));
    assert_eq!(fleet.text(&format!("/v1/runs/{run}/logs?follow=true")).await, b"");
    // A past run's events end where they are.
    let events = fleet.events(&format!("/v1/runs/{run}/events"), None).await.rest().await;
    assert_eq!(events.len(), 1, "{events:?}");
}
