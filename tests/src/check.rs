//! The checker that every end-to-end test runs at its end: settled once, no line missing, no container and no process
//! left.

use std::collections::BTreeMap;
use std::process::Command;

use longshore_coordinator::core::view::{RunView, StepPhase};
use longshore_protocol::{EngineId, Outcome, RunId, WorkerId};
use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;

use crate::engine::{is_holder, named};
use crate::fleet::Fleet;
use crate::process::within_patience;
use crate::services;

impl Fleet {
    /// Checks every run that was submitted to it, ends what runs of it in order, and checks that nothing is left. A
    /// worker that does not run any more is taken for gone for good: what it left on its Engine goes with this.
    ///
    /// # Panics
    /// If a promise of `docs/architecture.md` section 6 does not hold.
    pub async fn checks_out(mut self) {
        let runs = self.runs.lock().expect("no panic while it is held").clone();
        for run in &runs {
            let view: RunView = self.get(&format!("/v1/runs/{run}")).await;
            assert!(view.summary.outcome.is_some(), "{run} is not settled");
            settled_once(&self.journal(&run.to_string()).await, &view);
            self.no_line_missing(&view).await;
        }
        let mut seen: BTreeMap<WorkerId, EngineId> =
            self.workers_seen().await.into_iter().map(|worker| (worker.worker, worker.engine)).collect();
        let names: Vec<String> = self.workers.keys().cloned().collect();
        let (living, dead): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| self.workers[name].process.is_some());
        if dead.is_empty() {
            no_process_left(&runs).await;
        }
        for name in &living {
            let id = self.worker_id(name).await;
            seen.remove(&id);
            // Once every run is settled nothing waits for a parked container: only what the worker keeps for itself stays.
            self.no_container_left(name, &id, |container| !is_holder(container)).await;
            self.terminate_worker(name).await;
            let left = named(self.engine_of(name), &format!("longshore.{id}."));
            assert!(left.is_empty(), "left by {name}, which was told to end: {left:?}");
        }
        for name in &dead {
            for id in seen.keys() {
                self.remove_what_is_left_of(name, id);
            }
        }
    }

    /// Every output byte that an attempt's worker had counted is in the store, unless the log says in place that
    /// some are missing.
    async fn no_line_missing(&self, view: &RunView) {
        let steps = view.steps.iter().map(|step| (&step.step, &step.attempts));
        let remakes = view.steps.iter().flat_map(|step| &step.remakes).map(|remake| (&remake.name, &remake.attempts));
        for (name, attempts) in steps.chain(remakes) {
            for attempt in attempts {
                assert!(attempt.log_closed, "the log of {name}, attempt {}, is not closed", attempt.attempt);
                let Some(output) = attempt.output else { continue };
                let log = self.log_bytes(view.summary.run, name.as_str(), attempt.attempt).await;
                assert_eq!(log, output.total(), "bytes of {name}, attempt {}", attempt.attempt);
            }
        }
    }

    /// Waits until the Engine beside a worker has none of its containers that are meant: removal is off the critical path.
    ///
    /// # Panics
    /// If some stay.
    pub async fn no_container_left(&self, name: &str, worker: &WorkerId, meant: impl Fn(&str) -> bool) {
        let prefix = format!("longshore.{worker}.");
        let left = || {
            let mut left = named(self.engine_of(name), &prefix);
            left.retain(|container| meant(container));
            left
        };
        let gone = async {
            let mut interval = tokio::time::interval(std::time::Duration::from_millis(100));
            while !left().is_empty() {
                interval.tick().await;
            }
        };
        let emptied = within_patience(gone).await;
        assert!(emptied.is_some(), "containers left by {name}: {:?}", left());
    }

    /// How often each kind of entry is in a run's journal, for each execution; read from the file itself, which
    /// the API does not stand between.
    async fn journal(&self, run: &str) -> BTreeMap<(String, String), u32> {
        let mut counts = BTreeMap::new();
        let entries = match &self.database {
            Some(database) => database.journal_entries(run).await,
            None => journal_entries(&self.dir().join("coordinator"), run).await,
        };
        for entry in entries {
            let word = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
            *counts.entry((word("type"), word("execution"))).or_default() += 1;
            for step in entry["steps"].as_array().into_iter().flatten().filter(|_| entry["type"] == "retry_asked") {
                let execution = step.as_str().unwrap_or_default().to_owned();
                *counts.entry(("step_asked_again".to_owned(), execution)).or_default() += 1;
            }
        }
        counts
    }
}

/// Promise 1, in the journal and in what people are shown: once, and once more for each time that it was asked for again.
fn settled_once(journal: &BTreeMap<(String, String), u32>, view: &RunView) {
    let count = |kind: &str, execution: &str| journal.get(&(kind.to_owned(), execution.to_owned())).copied();
    assert_eq!(count("run_settled", ""), Some(1 + view.summary.retries), "{journal:?}");
    for step in &view.steps {
        let execution = step.execution.to_string();
        let asked = 1 + count("step_asked_again", &execution).unwrap_or(0);
        assert_eq!(count("settled", &execution), Some(asked), "{}: {journal:?}", step.step);
        assert_eq!(step.phase, StepPhase::Settled, "{}", step.step);
        // Promise 2: a step that passed has an attempt whose worker said so.
        if step.outcome == Some(Outcome::Passed) {
            let said = step.attempts.last().and_then(|attempt| attempt.outcome.clone());
            assert_eq!(said, Some(Outcome::Passed), "{}", step.step);
        }
    }
}

/// The entries of a run's journal, in order.
///
/// # Panics
/// If the coordinator's database cannot be read.
pub async fn journal_entries(state: &std::path::Path, run: &str) -> Vec<serde_json::Value> {
    let database = std::fs::read_dir(state)
        .expect("the coordinator's directory")
        .filter_map(|file| Some(file.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "db"))
        .expect("the coordinator's database");
    let options = SqliteConnectOptions::new().filename(&database).read_only(true);
    let mut connection = options.connect().await.expect("the coordinator's database opens");
    let rows: Vec<(String,)> = sqlx::query_as("SELECT entry FROM journal WHERE run = $1 ORDER BY seq")
        .bind(run)
        .fetch_all(&mut connection)
        .await
        .expect("the journal is a table of the store's");
    rows.iter().map(|(entry,)| serde_json::from_str(entry).expect("an entry is JSON")).collect()
}

/// Waits until no process of a step of these runs is there: `LONGSHORE_RUN` is in the environment of each, whatever
/// became of its container. Only where this test sees the Engine's processes, as beside `scripts/services.sh`.
///
/// # Panics
/// If some stay.
pub async fn no_process_left(runs: &[RunId]) {
    let gone = async {
        let mut interval = tokio::time::interval(std::time::Duration::from_millis(100));
        while !processes_of(runs).is_empty() {
            interval.tick().await;
        }
    };
    let emptied = within_patience(gone).await;
    assert!(emptied.is_some(), "processes left: {:?}", processes_of(runs));
}

/// The ids of the processes of steps of these runs, as this test sees them.
pub fn processes_of(runs: &[RunId]) -> Vec<u32> {
    runs.iter().flat_map(|run| processes_with(&[format!("LONGSHORE_RUN={run}")])).collect()
}

/// The ids of the processes in whose environment all of these stand.
///
/// # Panics
/// If there is no `/proc`.
pub fn processes_with(variables: &[String]) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has_them = |pid: &u32| {
        // One that ends meanwhile has no environment any more.
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        variables.iter().all(|variable| environment.split(|byte| *byte == 0).any(|part| part == variable.as_bytes()))
    };
    ids.filter(has_them).collect()
}

/// Runs a command to its end.
///
/// # Panics
/// If it fails.
pub fn run_command(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).current_dir(services::root()).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}
