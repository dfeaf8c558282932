//! What every row stands on: the services that `scripts/bench.sh` started, a directory, and the image of the steps.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use longshore_tests::{Fleet, services};
use tokio::process::Command;

use crate::failure::{Failure, Result};

/// The image of every step: busybox and [`INSIDE`], nothing else.
pub(crate) const IMAGE: &str = "longshore-bench/base:latest";

/// The helper in it.
pub(crate) const INSIDE: &str = "/usr/bin/inside";

/// As in production (the tests' fleets have a shorter one): heartbeats come every five seconds.
const LEASE_SECS: u32 = 30;

/// The benchmark's surroundings.
#[derive(Clone)]
pub(crate) struct Stand {
    /// `target/bench`: report, profiles, work.
    pub(crate) dir: PathBuf,
    /// The Engine of both sides.
    pub(crate) engine: String,
    /// Of its daemon.
    pub(crate) engine_pid: u32,
    pub(crate) amqp: String,
    /// The client that came with the Engine.
    pub(crate) docker: String,
    /// Python with Celery and the Docker SDK.
    pub(crate) venv: PathBuf,
}

impl Stand {
    pub(crate) async fn find() -> Result<Self> {
        let named =
            |name: &str| std::env::var(name).map_err(|_| Failure::new(format!("{name} is not set: use `make bench`")));
        let dir = services::target_dir().join("bench");
        std::fs::create_dir_all(dir.join("work"))?;
        let pid = named("LONGSHORE_TEST_DOCKER_1_PID")?;
        let stand = Self {
            engine: named("LONGSHORE_TEST_DOCKER_1")?,
            engine_pid: pid.parse().map_err(|_| Failure::new(format!("{pid} is no process id")))?,
            amqp: named("LONGSHORE_TEST_AMQP")?,
            docker: named("LONGSHORE_BENCH_DOCKER")?,
            venv: PathBuf::from(named("LONGSHORE_BENCH_VENV")?),
            dir,
        };
        stand.make_image().await?;
        Ok(stand)
    }

    /// An empty directory of a row's own.
    pub(crate) fn work(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join("work").join(name);
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// Where the Python side and the helper's source lie.
    pub(crate) fn sources() -> PathBuf {
        services::root().join("tests/bench")
    }

    /// The helper, for the machine itself.
    pub(crate) fn inside(&self) -> PathBuf {
        self.dir.join("work/image/inside")
    }

    /// A coordinator and one worker beside the Engine, every process of it ready.
    pub(crate) async fn fleet(&self, slots: u32) -> Fleet {
        Fleet::new().worker_at("one", &self.engine, slots).amqp(&self.amqp).lease_secs(LEASE_SECS).start().await
    }

    /// A fleet without a worker, its coordinator ready.
    pub(crate) async fn coordinator(&self) -> Fleet {
        Fleet::new().amqp(&self.amqp).lease_secs(LEASE_SECS).start().await
    }

    /// The `docker` command on the Engine.
    pub(crate) fn docker(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.docker);
        command.args(args).env("DOCKER_HOST", &self.engine).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// The same, to its end; what it printed.
    pub(crate) async fn docker_said(&self, args: &[&str]) -> Result<String> {
        said(&mut self.docker(args)).await
    }

    /// What all of it ran on, as lines of a list.
    pub(crate) async fn machine(&self) -> Result<String> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let value = |text: String, key: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(key)?.split_once(':').map(|(_, value)| value.trim().to_owned()));
            line.unwrap_or_else(|| "unknown".to_owned())
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let processor = value(read("/proc/cpuinfo"), "model name");
        let memory =
            value(read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0.0) / 1024.0 / 1024.0;
        let kernel = read("/proc/sys/kernel/osrelease");
        let engine = self
            .docker_said(&[
                "info",
                "--format",
                "{{.ServerVersion}}, {{.Driver}} on {{index (index .DriverStatus 0) 1}}, cgroup v{{.CgroupVersion}}",
            ])
            .await?;
        let python = said(Command::new(self.venv.join("bin/pip")).args(["freeze"])).await?;
        let wanted = |line: &&str| ["celery==", "docker==", "SQLAlchemy=="].iter().any(|name| line.starts_with(name));
        let python: Vec<&str> = python.lines().filter(wanted).collect();
        let broker = said(Command::new("dpkg-query").args(["-W", "-f", "${Version}", "rabbitmq-server"])).await;
        Ok(format!(
            "- {cores} cores of {processor}, {memory:.0} GiB of memory, Linux {}\n- Docker Engine {}\n- RabbitMQ {}\n- {}\n",
            kernel.trim(),
            engine.trim(),
            broker.unwrap_or_else(|_| "of unknown version".to_owned()),
            python.join(", ")
        ))
    }

    async fn make_image(&self) -> Result<()> {
        let dir = self.work("image")?;
        let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
        let mut compile = Command::new(rustc);
        compile.args(["--edition", "2024", "-C", "opt-level=3", "-C", "panic=abort", "-C", "strip=symbols"]);
        // Static: the image has no C library.
        compile
            .args(["-C", "target-feature=+crt-static", "-o"])
            .arg(self.inside())
            .arg(Self::sources().join("inside.rs"));
        said(&mut compile).await?;
        let dockerfile = format!("FROM longshore-test/busybox:latest\nCOPY inside {INSIDE}\n");
        std::fs::write(dir.join("Dockerfile"), dockerfile)?;
        self.docker_said(&["build", "--quiet", "--tag", IMAGE, text(&dir)?]).await.map(drop)
    }
}

/// A fleet's end: the worker goes first, and takes its containers with it.
pub(crate) async fn end(mut fleet: Fleet) {
    fleet.terminate_worker("one").await;
    fleet.kill_coordinator().await;
}

/// A command's output, to its end; its complaints if it fails.
pub(crate) async fn said(command: &mut Command) -> Result<String> {
    let what = command.as_std().get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().await.map_err(|e| Failure::from(e).during(&what))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Failure::new(format!("{what}: {}: {words}", output.status)))
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| Failure::new(format!("{} is not UTF-8", path.display())))
}
