//! One coordinator and some workers, on RabbitMQ, each beside one of two Docker Engines.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use longshore_coordinator::core::view::WorkerView;
use longshore_protocol::{RunId, WorkerId};
use reqwest::Client;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::builder::FleetBuilder;
use crate::engine::{docker, named};
use crate::postgres::Database;
use crate::process::{Process, within_patience};
use crate::run::Run;

/// A fleet under test.
#[derive(Debug)]
pub struct Fleet {
    pub(crate) prefix: String,
    pub(crate) amqp: String,
    pub(crate) lease_secs: u32,
    pub(crate) dir: TempDir,
    pub(crate) address: String,
    /// Where the journal is, if others started its coordinators.
    pub(crate) database: Option<Database>,
    pub(crate) coordinator: Option<Process>,
    pub(crate) workers: BTreeMap<String, Member>,
    pub(crate) http: Client,
    pub(crate) runs: std::sync::Mutex<Vec<RunId>>,
}

/// A worker of the fleet: its directory outlives its process.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) docker: String,
    pub(crate) state: PathBuf,
    pub(crate) slots: u32,
    pub(crate) metrics: String,
    pub(crate) args: Vec<String>,
    pub(crate) place: Option<Place>,
    /// Another way to the broker than the fleet's.
    pub(crate) amqp: Option<String>,
    pub(crate) process: Option<Process>,
}

/// Where a worker's packets can be dropped.
#[derive(Clone, Debug)]
pub struct Place {
    /// A network namespace.
    pub net: PathBuf,
    /// The broker, as it is reached from there.
    pub amqp: String,
}

impl Fleet {
    /// Says which fleet is wanted.
    #[allow(clippy::new_ret_no_self)] // reads as the sentence it is: Fleet::new().worker(..).start()
    pub fn new() -> FleetBuilder {
        FleetBuilder::default()
    }

    /// Starts what was prepared, and waits until every process of it is ready.
    pub async fn start(&mut self) {
        if self.database.is_none() {
            self.spawn_coordinator();
        }
        let names: Vec<_> = self.workers.keys().cloned().collect();
        for name in &names {
            self.spawn_worker(name);
        }
        if self.database.is_none() {
            self.coordinator().says("longshore coordinator: ready").await;
        }
        for name in &names {
            self.worker(name).says("longshore worker: ready").await;
        }
        let count = names.len();
        self.until_workers("every worker", |seen| seen.iter().filter(|worker| worker.alive).count() == count).await;
    }

    /// The address of the coordinator's API.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Where a worker serves its metrics.
    pub fn worker_metrics(&self, name: &str) -> String {
        self.workers[name].metrics.clone()
    }

    /// The coordinator's address, `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The broker that it talks to.
    pub fn amqp(&self) -> &str {
        &self.amqp
    }

    /// What its queues' names begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A directory of the test's own.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts the coordinator, again on its old address and state if it ran before. Waits until it is ready.
    pub async fn start_coordinator(&mut self) {
        self.spawn_coordinator();
        self.coordinator().says("longshore coordinator: ready").await;
    }

    /// Starts the coordinator, and does not wait until it is ready.
    pub fn spawn_coordinator(&mut self) {
        let state = self.state_of_coordinator();
        let args = [
            ["coordinator", "--listen"].map(str::to_owned).to_vec(),
            vec![self.address.clone(), "--state".to_owned(), state.display().to_string()],
            self.common(),
        ];
        self.coordinator = Some(Process::start("coordinator", &args.concat()));
    }

    /// The coordinator's process.
    ///
    /// # Panics
    /// If it does not run.
    pub fn coordinator(&mut self) -> &mut Process {
        self.coordinator.as_mut().expect("the coordinator runs")
    }

    /// kill -9.
    ///
    /// # Panics
    /// If it does not run.
    pub async fn kill_coordinator(&mut self) {
        self.coordinator.take().expect("the coordinator runs").kill().await;
    }

    /// Starts a worker, again on its old state if it ran before. Waits until it is ready.
    ///
    /// # Panics
    /// If there is none of that name.
    pub async fn start_worker(&mut self, name: &str) {
        self.spawn_worker(name);
        self.worker(name).says("longshore worker: ready").await;
    }

    /// Starts a worker, and does not wait until it is ready.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn spawn_worker(&mut self, name: &str) {
        let amqp = self.workers.get(name).and_then(|member| member.amqp.clone());
        let common = self.common_through(amqp.as_deref().unwrap_or(&self.amqp));
        let coordinator = format!("http://{}", self.address);
        let member = self.workers.get_mut(name).expect("a worker of this fleet");
        let args = [
            vec!["worker".to_owned(), "--coordinator".to_owned(), coordinator],
            vec!["--docker".to_owned(), member.docker.clone()],
            vec!["--state".to_owned(), member.state.display().to_string()],
            vec!["--slots".to_owned(), member.slots.to_string()],
            vec!["--metrics".to_owned(), member.metrics.clone()],
            member.args.clone(),
            common,
        ];
        let (what, mut args) = (format!("worker {name}"), args.concat());
        member.process = Some(match &member.place {
            None => Process::start(&what, &args),
            Some(place) => {
                let broker = args.iter().position(|arg| *arg == self.amqp).expect("every process is told its broker");
                args[broker].clone_from(&place.amqp);
                Process::start_inside(&place.net, &what, &args)
            }
        });
    }

    /// A worker's process.
    ///
    /// # Panics
    /// If it does not run.
    pub fn worker(&mut self, name: &str) -> &mut Process {
        self.workers.get_mut(name).and_then(|member| member.process.as_mut()).expect("the worker runs")
    }

    /// kill -9.
    ///
    /// # Panics
    /// If it does not run.
    pub async fn kill_worker(&mut self, name: &str) {
        let member = self.workers.get_mut(name).expect("a worker of this fleet");
        member.process.take().expect("the worker runs").kill().await;
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Panics
    /// If it does not run or does not end well.
    pub async fn terminate_worker(&mut self, name: &str) {
        let member = self.workers.get_mut(name).expect("a worker of this fleet");
        member.process.take().expect("the worker runs").terminate().await;
    }

    /// What a worker that was killed and will not come back left, before the ten minutes are over after which it ends
    /// by itself (P17).
    pub fn remove_what_is_left_of(&self, name: &str, worker: &WorkerId) {
        let engine = self.engine_of(name);
        for container in named(engine, &format!("longshore.{worker}.")) {
            docker(engine, &["rm", "--force", "--volumes", &container]);
        }
    }

    /// Where a worker keeps what must survive it.
    pub fn state_of(&self, name: &str) -> &Path {
        &self.workers[name].state
    }

    /// Where the coordinator does.
    pub fn state_of_coordinator(&self) -> PathBuf {
        self.dir.path().join("coordinator")
    }

    /// The runs that were submitted to it.
    ///
    /// # Panics
    /// Never: nobody panics while they are looked at.
    pub fn runs(&self) -> Vec<RunId> {
        self.runs.lock().expect("no panic while it is held").clone()
    }

    /// The Engine beside a worker.
    pub fn engine_of(&self, name: &str) -> &str {
        &self.workers[name].docker
    }

    /// The id that a worker has given itself.
    pub async fn worker_id(&mut self, name: &str) -> WorkerId {
        let line = self.worker(name).says("longshore worker: ready").await;
        let id = line.split("id ").nth(1).and_then(|rest| rest.split([',', ')', ' ']).next());
        id.and_then(|id| id.parse().ok()).unwrap_or_else(|| panic!("no id in {line:?}"))
    }

    /// Every worker, as the coordinator sees it.
    pub async fn workers_seen(&self) -> Vec<WorkerView> {
        let mut page: Value = self.get("/v1/workers").await;
        serde_json::from_value(page["workers"].take()).unwrap_or_else(|e| panic!("/v1/workers: {e}: {page}"))
    }

    /// Waits until the coordinator sees what is asked for.
    ///
    /// # Panics
    /// If it takes longer than [`PATIENCE`](crate::process::PATIENCE).
    pub async fn until_workers(&self, what: &str, holds: impl Fn(&[WorkerView]) -> bool) {
        let poll = async {
            // The API has no push for workers: a heartbeat changes them once a second or so.
            let mut interval = tokio::time::interval(std::time::Duration::from_millis(100));
            loop {
                interval.tick().await;
                if holds(&self.workers_seen().await) {
                    return;
                }
            }
        };
        let seen = within_patience(poll).await;
        assert!(seen.is_some(), "the coordinator does not see {what}: {:?}", self.workers_seen().await);
    }

    /// Waits until the sum of a metric of a worker's is as asked for.
    ///
    /// # Panics
    /// If it takes longer than [`PATIENCE`](crate::process::PATIENCE).
    pub async fn until_metric(&self, worker: &str, metric: &str, holds: impl Fn(f64) -> bool) {
        let poll = async {
            let mut interval = tokio::time::interval(std::time::Duration::from_millis(100));
            loop {
                interval.tick().await;
                if holds(self.worker_metric(worker, metric).await) {
                    return;
                }
            }
        };
        let reached = within_patience(poll).await;
        assert!(reached.is_some(), "{metric} of {worker} is {}", self.worker_metric(worker, metric).await);
    }

    /// The sum of a metric of a worker's, over all its labels.
    ///
    /// # Panics
    /// If the worker does not answer.
    pub async fn worker_metric(&self, worker: &str, metric: &str) -> f64 {
        let url = format!("http://{}/metrics", self.worker_metrics(worker));
        let text = self.http.get(url).send().await.expect("the worker answers").text().await.expect("a body");
        let lines = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(metric));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Submits a pipeline file as the command line does, and follows it.
    pub async fn submit(&self, pipeline: &str) -> Run<'_> {
        self.submit_as(RunId::new(), pipeline).await
    }

    /// Submits a pipeline file by the command line itself, which follows the run until it is settled.
    pub fn submit_and_watch(&self, file: &Path) -> (RunId, Process) {
        self.submit_by_command(file, &["--watch"])
    }

    /// Submits a pipeline file by the command line itself, which ends when the coordinator has it.
    pub fn submit_file(&self, file: &Path) -> (RunId, Process) {
        self.submit_by_command(file, &[])
    }

    fn submit_by_command(&self, file: &Path, more: &[&str]) -> (RunId, Process) {
        let run = RunId::new();
        let (id, url, file) = (run.to_string(), self.url(""), file.display().to_string());
        let args = ["submit", "--run-id", &id, "--coordinator", &url, &file];
        self.runs.lock().expect("no panic while it is held").push(run);
        let args: Vec<String> = args.iter().chain(more).map(|&word| word.to_owned()).collect();
        (run, Process::start(&format!("submit {run}"), &args))
    }

    /// A run that was submitted before.
    pub fn follow(&self, run: RunId) -> Run<'_> {
        Run::new(self, run)
    }

    /// Submits under a given id.
    ///
    /// # Panics
    /// If the pipeline or the coordinator says no.
    pub async fn submit_as(&self, run: RunId, pipeline: &str) -> Run<'_> {
        let plan = longshore_coordinator::pipeline::parse("test.yaml", pipeline)
            .unwrap_or_else(|mistakes| panic!("{mistakes}\n{mistakes:?}"));
        let body = json!({ "run": run, "pipeline": plan });
        let response = self.http.post(self.url("/v1/runs")).json(&body).send().await.expect("the coordinator answers");
        let status = response.status();
        let text = response.text().await.expect("a body");
        assert!(status.is_success(), "{status}: {text}");
        self.runs.lock().expect("no panic while it is held").push(run);
        Run::new(self, run)
    }

    pub(crate) async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> T {
        let response = self.http.get(self.url(path)).send().await.expect("the coordinator answers");
        let status = response.status();
        let text = response.text().await.expect("a body");
        assert!(status.is_success(), "{path}: {status}: {text}");
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}: {text}"))
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Value {
        let response = self.http.post(self.url(path)).json(body).send().await.expect("the coordinator answers");
        let status = response.status();
        let text = response.text().await.expect("a body");
        assert!(status.is_success(), "{path}: {status}: {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// The Engines that workers of this fleet were beside.
    pub(crate) fn engines(&self) -> Vec<String> {
        let mut engines: Vec<_> = self.workers.values().map(|member| member.docker.clone()).collect();
        engines.sort();
        engines.dedup();
        engines
    }

    fn common(&self) -> Vec<String> {
        self.common_through(&self.amqp)
    }

    fn common_through(&self, amqp: &str) -> Vec<String> {
        let lease = self.lease_secs.to_string();
        ["--amqp", amqp, "--prefix", &self.prefix, "--lease", &lease].map(str::to_owned).to_vec()
    }
}
