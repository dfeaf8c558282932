//! Celery, the task queue that most people would take: a worker with the Docker SDK, and who gives it work.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use uuid::Uuid;

use crate::failure::{Failure, Result};
use crate::stand::{IMAGE, Stand, said, text};

/// Importing Celery takes half a second, starting its processes another one.
const START: Duration = Duration::from_mins(1);

/// What all of its workers have in common, for the table.
pub(crate) const SETTINGS: &str = "durable queue, persistent messages, confirm_publish, acks_late, \
    reject_on_worker_lost, results in SQLite (SQLAlchemy; WAL, synchronous=FULL) on disk, prefork, \
    no gossip, mingle or heartbeat";

/// A Celery worker with a queue and a database of its own.
pub(crate) struct Celery {
    child: Child,
    /// From the start of its process until it said that it is ready.
    pub(crate) ready: Duration,
    environment: Vec<(&'static str, String)>,
    python: PathBuf,
    log: tokio::task::JoinHandle<()>,
}

/// What `celery_give.py` prints.
#[derive(Deserialize)]
struct Given {
    seconds: f64,
}

impl Celery {
    /// Starts one with so many processes, each of which may hold so many tasks.
    pub(crate) async fn start(stand: &Stand, processes: u32, prefetch: u32) -> Result<Self> {
        let name = format!("celery-{}", Uuid::new_v4().simple());
        let dir = stand.work(&name)?;
        let environment = vec![
            ("BENCH_AMQP", stand.amqp.clone()),
            ("BENCH_QUEUE", name),
            ("BENCH_RESULTS", text(&dir.join("results.db"))?.to_owned()),
            ("BENCH_IMAGE", IMAGE.to_owned()),
            ("DOCKER_HOST", stand.engine.clone()),
            ("PYTHONPATH", text(&Stand::sources())?.to_owned()),
            // No caches among the sources.
            ("PYTHONDONTWRITEBYTECODE", "1".to_owned()),
        ];
        let (processes, prefetch) = (processes.to_string(), prefetch.to_string());
        let began = Instant::now();
        let mut child = Command::new(stand.venv.join("bin/celery"))
            .args(["-A", "celery_tasks", "worker", "--pool", "prefork", "--loglevel", "info"])
            .args(["--concurrency", &processes, "--prefetch-multiplier", &prefetch])
            .args(["--without-gossip", "--without-mingle", "--without-heartbeat"])
            .envs(environment.iter().map(|(name, value)| (name, value)))
            // Root is who runs the Engine's tests; it would only be warned of.
            .env("C_FORCE_ROOT", "1")
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stderr = child.stderr.take().ok_or_else(|| Failure::new("celery's log is piped"))?;
        let mut lines = BufReader::new(stderr).lines();
        let mut heard = Vec::new();
        let ready = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains(" ready.") {
                    return true;
                }
                heard.push(line);
            }
            false
        };
        if !tokio::time::timeout(START, ready).await.unwrap_or(false) {
            return Err(Failure::new(format!("celery does not start:\n{}", heard.join("\n"))));
        }
        let ready = began.elapsed();
        // Its log is read to its end: a full pipe would hold it.
        let log = tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { child, ready, environment, python: stand.venv.join("bin/python"), log })
    }

    /// Of its main process.
    pub(crate) fn pid(&self) -> Result<u32> {
        self.child.id().ok_or_else(|| Failure::new("celery has ended"))
    }

    /// Tasks of a kind a second, from before the first was published until the last one's result was stored.
    pub(crate) async fn rate(&self, kind: &str, tasks: usize) -> Result<f64> {
        let mut give = Command::new(&self.python);
        give.arg(Stand::sources().join("celery_give.py")).args([kind, &tasks.to_string()]);
        give.envs(self.environment.iter().map(|(name, value)| (name, value))).kill_on_drop(true);
        let given: Given = serde_json::from_str(&said(&mut give).await?)?;
        Ok(tasks as f64 / given.seconds)
    }

    /// TERM, and waits for its end.
    pub(crate) async fn stop(mut self) -> Result<()> {
        Command::new("kill").args(["-TERM", &self.pid()?.to_string()]).status().await?;
        self.child.wait().await?;
        let _ = self.log.await;
        Ok(())
    }
}
