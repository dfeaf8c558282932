//! The journal rebuilds what people are shown; and where it does not, that is said with its place.

#![allow(clippy::unwrap_used)] // a test's helper that fails has failed its test

mod support;

use longshore_coordinator::replay::{Replay, Replayed, Verdict};
use longshore_protocol::output::Offsets;
use longshore_protocol::{Outcome, RunId};
use serde_json::json;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Executor};
use support::{CHAIN, Fleet, ONE_STEP, ScriptedWorker};

async fn replayed(fleet: &Fleet, run: RunId) -> Replayed {
    let replay = Replay::open(&fleet.file()).unwrap();
    let replayed = replay.run(run).await.unwrap().unwrap();
    replay.close().await;
    replayed
}

async fn tamper(fleet: &Fleet, statement: String) {
    let mut connection = SqliteConnectOptions::new().filename(fleet.file()).connect().await.unwrap();
    connection.execute(sqlx::AssertSqlSafe(statement)).await.unwrap();
}

#[tokio::test]
async fn what_is_shown_is_what_the_journal_says_also_beside_a_coordinator_that_leads() {
    let mut fleet = Fleet::start().await;
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let done = fleet.submitted(CHAIN).await;
    let build = worker.next_job().await;
    worker.carry_out(&build).await;
    let test = worker.next_job().await;
    worker.started(&test).await;
    worker.finished(&test, Outcome::Failed { exit: 1 }, Offsets::default()).await;
    fleet.settled(done).await;
    // Opened again, and under way.
    let again = fleet.submitted(ONE_STEP).await;
    let job = worker.next_job().await;
    worker.started(&job).await;
    worker.finished(&job, Outcome::Failed { exit: 1 }, Offsets::default()).await;
    fleet.settled(again).await;
    fleet.post(&format!("/v1/runs/{again}/retry"), &json!({})).await;
    let queued = fleet.submitted(ONE_STEP).await;

    let replay = Replay::open(&fleet.file()).unwrap();
    assert_eq!(replay.runs().await.unwrap(), [queued, again, done]);
    assert_eq!(replay.workers().await.unwrap().verdict, Verdict::Same);
    for run in [queued, again, done] {
        let replayed = replay.run(run).await.unwrap().unwrap();
        assert_eq!((replayed.run, replayed.verdict), (Some(run), Verdict::Same));
        assert!(replayed.entries > 1);
    }
    assert_eq!(replay.run(RunId::new()).await.unwrap(), None);
    replay.close().await;
    fleet.stop().await;
}

#[tokio::test]
async fn what_differs_is_named_and_an_illegal_entry_has_its_place() {
    let mut fleet = Fleet::start().await;
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let run = fleet.submitted(ONE_STEP).await;
    let job = worker.next_job().await;
    worker.carry_out(&job).await;
    fleet.settled(run).await;
    fleet.stop().await;
    let set = "json_set(view, '$.phase', 'running', '$.outcome', json('null'))";
    tamper(&fleet, format!("UPDATE steps SET view = {set} WHERE run = '{run}'")).await;
    let Verdict::Differs { differences } = replayed(&fleet, run).await.verdict else { panic!("it differs") };
    let named: Vec<&str> = differences.iter().map(|difference| difference.what.as_str()).collect();
    assert_eq!(named, ["build: phase", "build: outcome"]);
    assert_eq!((&differences[0].journal, &differences[0].table), (&json!("settled"), &json!("running")));

    let settled = format!("run = '{run}' AND json_extract(entry, '$.type') = 'ended'");
    tamper(&fleet, format!("DELETE FROM journal WHERE {settled}")).await;
    let Verdict::Illegal { seq, why } = replayed(&fleet, run).await.verdict else { panic!("it is illegal") };
    assert!(seq > 1 && why.contains("cannot follow what stands before it"), "{seq}: {why}");
}
