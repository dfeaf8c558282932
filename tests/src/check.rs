//! The checker that every end-to-end test runs at its end: settled once, no line missing, no container left.

use std::collections::BTreeMap;
use std::process::Command;

use bollard::query_parameters::ListContainersOptionsBuilder;
use bollard::{ClientVersion, Docker};
use longshore_coordinator::core::view::{RunView, StepPhase};
use longshore_protocol::Outcome;
use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;

use crate::fleet::Fleet;
use crate::process::within_patience;
use crate::services;

impl Fleet {
    /// Checks every run that was submitted to it.
    ///
    /// # Panics
    /// If a promise of `docs/architecture.md` section 6 does not hold.
    pub async fn checks_out(&self) {
        let runs = self.runs.lock().expect("no panic while it is held").clone();
        let mut executions = Vec::new();
        for run in runs {
            let view: RunView = self.get(&format!("/v1/runs/{run}")).await;
            assert!(view.summary.outcome.is_some(), "{run} is not settled");
            settled_once(&self.journal(&run.to_string()).await, &view);
            self.no_line_missing(&view).await;
            executions.extend(view.steps.iter().map(|step| step.execution.to_hex()));
        }
        self.no_container_left(&executions).await;
    }

    /// Every output byte that an attempt's worker had counted is in the store, unless the log says in place that
    /// some are missing.
    async fn no_line_missing(&self, view: &RunView) {
        for step in &view.steps {
            for attempt in &step.attempts {
                assert!(attempt.log_closed, "the log of {}, attempt {}, is not closed", step.step, attempt.attempt);
                let Some(output) = attempt.output else { continue };
                let log = self.log_of(view.summary.run, step.step.as_str(), attempt.attempt).await;
                assert_eq!(log.len() as u64, output.total(), "bytes of {}, attempt {}", step.step, attempt.attempt);
            }
        }
    }

    /// Waits until the Engines have no container of these executions: removal is off the critical path.
    async fn no_container_left(&self, executions: &[String]) {
        let gone = async {
            let mut interval = tokio::time::interval(std::time::Duration::from_millis(100));
            while !self.left_of(executions).await.is_empty() {
                interval.tick().await;
            }
        };
        let emptied = within_patience(gone).await;
        assert!(emptied.is_some(), "containers left: {:?}", self.left_of(executions).await);
    }

    async fn left_of(&self, executions: &[String]) -> Vec<String> {
        let mut left = Vec::new();
        for engine in self.engines() {
            left.extend(containers(&engine).await);
        }
        left.retain(|name| executions.iter().any(|execution| name.contains(execution)));
        left
    }

    /// How often each kind of entry is in a run's journal, for each execution; read from the file itself, which
    /// the API does not stand between.
    async fn journal(&self, run: &str) -> BTreeMap<(String, String), u32> {
        let mut counts = BTreeMap::new();
        for entry in journal_entries(&self.dir().join("coordinator"), run).await {
            let word = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
            *counts.entry((word("type"), word("execution"))).or_default() += 1;
        }
        counts
    }
}

/// Promise 1, in the journal and in what people are shown.
fn settled_once(journal: &BTreeMap<(String, String), u32>, view: &RunView) {
    let count = |kind: &str, execution: &str| journal.get(&(kind.to_owned(), execution.to_owned())).copied();
    assert_eq!(count("run_settled", ""), Some(1), "{journal:?}");
    for step in &view.steps {
        assert_eq!(count("settled", &step.execution.to_string()), Some(1), "{}: {journal:?}", step.step);
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

/// The names of every container on an Engine that Longshore made, running or not. Asked of the Engine itself, not
/// through the product's own code.
///
/// # Panics
/// If the Engine does not answer.
pub async fn containers(engine: &str) -> Vec<String> {
    // 1.41 is the oldest API that Longshore speaks, and this is an old question.
    let version = ClientVersion { major_version: 1, minor_version: 41 };
    let docker = Docker::connect_with_unix(engine, 30, &version).expect("a unix socket's address");
    let all = ListContainersOptionsBuilder::new().all(true).build();
    let containers = docker.list_containers(Some(all)).await.unwrap_or_else(|e| panic!("{engine}: {e}"));
    let names = containers.into_iter().flat_map(|container| container.names.unwrap_or_default());
    names.map(|name| name.trim_start_matches('/').to_owned()).filter(|name| name.starts_with("longshore")).collect()
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
