//! One schedule from its beginning to its end: users, faults, healing, and the checker.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use futures_util::future::join_all;
use http_body_util::BodyExt as _;
use longshore_protocol::ExecutionId;
use longshore_worker::engine::Engine as _;
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};
use tower::ServiceExt as _;

use crate::broker::SimBroker;
use crate::checker;
use crate::dice::Dice;
use crate::plan::{FAULTS_MS, Plan, RunPlan};
use crate::stage::Stage;
use crate::store::SimDatabase;
use crate::world::World;

/// Once the world has healed, everything settles within this time: some leases, the fleet's retries with their backoffs,
/// remakes of remakes, and the longest of commands in between.
const SETTLES: Duration = Duration::from_mins(15);

/// Once everything is settled, nothing is left within this time: some heartbeats, and what they are answered.
const LEAVES: Duration = Duration::from_mins(3);

/// Where nothing is wrong, a run that is cancelled is over within this time: commands here end when they are told to.
const CANCELLED: Duration = Duration::from_secs(2);

/// How often the commands that run are looked at: they take seconds, where it matters.
const LOOK: Duration = Duration::from_millis(400);

/// How long a user waits for an answer before asking again.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a schedule came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Broken promises.
    pub violations: Vec<String>,
    /// Faults that struck, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Of everything that happened.
    pub hash: u64,
    /// What happened, if it was to be told.
    pub story: Vec<String>,
    /// In simulated time.
    pub took: Duration,
}

/// Carries out one schedule on this thread. `dir` is empty, and is empty again afterwards.
///
/// # Panics
/// If this thread can have no runtime, or a directory cannot be made.
pub fn run(plan: &Plan, dir: &Path, told: bool) -> Report {
    let runtime = runtime();
    std::fs::create_dir_all(dir.join("blobs")).expect("the schedule's directory");
    let report = runtime.block_on(carry_out(plan, dir, told));
    drop(runtime);
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        // It is on a disk in memory, and goes with its parent at the latest.
        let _ = std::fs::remove_dir_all(entry.path());
    }
    report
}

/// Its clock is simulated.
///
/// # Panics
/// If this thread can have none.
pub fn runtime() -> Runtime {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime without threads")
}

async fn carry_out(plan: &Plan, dir: &Path, told: bool) -> Report {
    let world = World::new(Dice::new(plan.seed), plan.noise, told);
    let broker = SimBroker::new(world.clone());
    let database = SimDatabase::new(world.clone());
    let stage = Stage::new(plan, world.clone(), broker, database, dir.to_owned());
    stage.begin();
    let mut users = Vec::new();
    for (nth, run) in plan.runs.iter().cloned().enumerate() {
        users.push(tokio::spawn(use_it(stage.clone(), run, nth, plan.is_quiet())));
    }
    for (at, fault) in plan.faults.clone() {
        let stage = stage.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(at)).await;
            stage.befall(fault).await;
        });
    }
    let watching = tokio::spawn(no_two_at_once(plan.clone(), stage.clone()));
    let done = || {
        stage.database().look(|tables| plan.runs.iter().all(|run| tables.runs.get(&run.id).is_some_and(|run| run.done)))
    };
    if !plan.is_quiet() {
        // Of a fleet that has nothing to do, little is to be learned.
        until(Duration::from_millis(FAULTS_MS), async || done()).await;
    }
    stage.heal();
    // A user who panics has told so.
    if timeout(SETTLES, join_all(users)).await.is_err() {
        world.violated(format!("a user is not answered {} s after the world healed", SETTLES.as_secs()));
    }
    if !until(SETTLES, async || done()).await {
        world.violated(format!("not everything is settled {} s after the world healed", SETTLES.as_secs()));
    }
    let mut left = Vec::new();
    let gone = until(LEAVES, async || {
        left = what_is_left(plan, &stage).await;
        left.is_empty()
    });
    if !gone.await {
        world.violated(format!("left behind: {left:?} (promise 7)"));
    }
    watching.abort();
    for wrong in stage.database().look(|tables| checker::check(plan, tables)) {
        world.violated(wrong);
    }
    Report {
        violations: world.violations(),
        faults: world.counts(),
        hash: world.hash(),
        story: world.lines(),
        took: world.at(),
    }
}

/// P18: of an exclusive step, no two attempts run at once, on whatever host.
async fn no_two_at_once(plan: Plan, stage: Stage) {
    let exclusive: Vec<ExecutionId> = plan.runs.iter().flat_map(RunPlan::exclusive).collect();
    while !exclusive.is_empty() {
        let running: Vec<String> = stage.engines().flat_map(|(_, engine)| engine.commands()).collect();
        for execution in &exclusive {
            let execution = execution.to_string();
            let at_once: Vec<_> = running.iter().filter(|attempt| attempt.starts_with(&execution)).collect();
            if at_once.len() > 1 {
                return stage.world().violated(format!("{at_once:?} run at once (P18)"));
            }
        }
        sleep(LOOK).await;
    }
}

/// Looks every second, for so long.
async fn until(most: Duration, mut looks: impl AsyncFnMut() -> bool) -> bool {
    for _ in 0..most.as_secs() {
        if looks().await {
            return true;
        }
        sleep(Duration::from_secs(1)).await;
    }
    false
}

/// Containers, and snapshots that no cache keeps.
async fn what_is_left(plan: &Plan, stage: &Stage) -> Vec<String> {
    let mut left = Vec::new();
    for (name, engine) in stage.engines() {
        let containers = engine.containers().await.unwrap_or_default();
        left.extend(containers.iter().map(|container| format!("{name}: container {container}")));
        // An order to remove one may die with the incarnation that it addresses: until snapshots are collected
        // (section 12 of the architecture page) such a one stays.
        let snapshots = if plan.is_quiet() { engine.snapshots().await.unwrap_or_default() } else { Vec::new() };
        let of_steps = snapshots.iter().filter(|snapshot| !checker::is_kept(plan, snapshot.as_str()));
        left.extend(of_steps.map(|snapshot| format!("{name}: snapshot {snapshot}")));
    }
    // P3: every effect is carried out.
    let rows = stage.database().look(|tables| tables.outbox.len());
    left.extend((rows > 0).then(|| format!("{rows} messages in the outbox")));
    left
}

/// A user submits a run, and may change their mind.
async fn use_it(stage: Stage, run: RunPlan, nth: usize, quiet: bool) {
    let pipeline = match longshore_coordinator::pipeline::parse("sim.yaml", &run.file()) {
        Ok(pipeline) => pipeline,
        Err(error) => return stage.world().violated(format!("a pipeline of ours is refused: {error:?}")),
    };
    let body = serde_json::json!({ "run": run.id, "pipeline": pipeline }).to_string();
    sleep(Duration::from_millis(run.submitted_ms)).await;
    ask(&stage, nth, "/v1/runs", &body).await;
    if let Some(cancelled_ms) = run.cancelled_ms {
        sleep(Duration::from_millis(cancelled_ms.saturating_sub(run.submitted_ms))).await;
        stage.world().count("run cancelled");
        ask(&stage, nth, &format!("/v1/runs/{}/cancel", run.id), "").await;
        if quiet {
            sleep(CANCELLED).await;
        }
        let settled =
            stage.database().look(|tables| tables.runs.get(&run.id).is_some_and(|run| run.summary.outcome.is_some()));
        if quiet && !settled {
            stage.world().violated(format!("{} was cancelled, and goes on without a fault (P13)", run.id));
        }
    }
}

/// Asks one coordinator after the other until one says that it is done.
pub async fn ask(stage: &Stage, mut nth: usize, path: &str, body: &str) {
    loop {
        if let Some((process, router)) = stage.ask(nth) {
            let request = Request::post(path)
                .header("content-type", "application/json")
                .body(Body::from(body.to_owned()))
                .expect("INVARIANT: a path of ours is one");
            // In the coordinator's own hands: it may be stopped, or die over it.
            let answered = process.spawn(async move {
                let answer = router.oneshot(request).await.ok()?;
                let status = answer.status();
                let text = answer.into_body().collect().await.ok()?.to_bytes();
                Some((status, String::from_utf8_lossy(&text).into_owned()))
            });
            if let Ok(Ok(Some((status, text)))) = timeout(PATIENCE, answered).await {
                stage.world().note("answer", status.as_u16().into(), || format!("user: {path}: {status} {text}"));
                if status.is_success() {
                    return;
                }
                if status.is_client_error() && status != StatusCode::CONFLICT {
                    return stage.world().violated(format!("{path} is answered {status}: {text}"));
                }
            }
        }
        nth += 1;
        sleep(Duration::from_millis(700)).await;
    }
}
