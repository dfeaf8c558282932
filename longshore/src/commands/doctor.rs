//! `longshore doctor`: looks at what Longshore needs, and says what to mend.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use longshore_coordinator::store::postgres::{PostgresAddress, probe as probe_postgres};
use longshore_protocol::RunId;
use longshore_protocol::broker::amqp::{AmqpBroker, shown_address};
use longshore_worker::engine::docker::DockerEngine;
use longshore_worker::engine::{Duty, Engine, EngineInfo, Way};
use serde::Serialize;

use crate::cli::{DoctorArgs, Output};
use crate::embedded::{Found, find_engine};
use crate::failure::{EXIT_INFRA, Failure};
use crate::render::style::{Colour, Style, bytes};
use crate::render::{json, screen};
use crate::runs;
use crate::state::StateDir;

/// The smallest images of a real build, once.
const DISK_BYTES_MIN: u64 = 1_000_000_000;

/// For a container that tries how commands are run: a start is a quarter of a second, an import of its image as much. If
/// this process is killed meanwhile, that container ends itself after the same time.
const WAY: Duration = Duration::from_mins(1);

/// What was looked at, and what was found.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    found: String,
    /// What to do about it.
    mend: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    /// It works, but something is not as it should be.
    Warning,
    /// Nothing will work until it is mended.
    Problem,
    /// Not asked for.
    NotLookedAt,
}

impl Check {
    fn new(name: &'static str, state: State, found: impl Into<String>) -> Self {
        Self { name, state, found: found.into(), mend: None }
    }

    #[must_use]
    fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }
}

pub(crate) async fn run(args: &DoctorArgs, output: Output) -> Result<u8, Failure> {
    let (docker, rabbitmq, postgres, coordinator) =
        tokio::join!(docker(args), rabbitmq(args), postgres(args), coordinator(args));
    let mut checks = docker;
    checks.extend([rabbitmq, postgres, coordinator]);
    checks.extend(state_dir());
    let text: String = match output {
        Output::Json => checks.iter().map(|check| json::text("check", check)).collect(),
        Output::Text => page(&checks, Style::detect()),
    };
    screen::print(text.as_bytes())?;
    let is_ill = checks.iter().any(|check| check.state == State::Problem);
    Ok(if is_ill { EXIT_INFRA } else { 0 })
}

fn page(checks: &[Check], style: Style) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Check { name, state, found, mend } in checks {
        let mark = match state {
            State::Ok => style.paint(Colour::Green, "✓"),
            State::Warning => style.paint(Colour::Yellow, "!"),
            State::Problem => style.paint(Colour::Red, "✗"),
            State::NotLookedAt => style.paint(Colour::Dim, "-"),
        };
        let _ = writeln!(text, "{mark} {name:width$}  {found}");
        if let Some(mend) = mend {
            let _ = writeln!(text, "  {:width$}  → {mend}", "");
        }
    }
    text
}

async fn docker(args: &DoctorArgs) -> Vec<Check> {
    match find_engine(args.docker.as_deref()).await {
        Ok(Found { engine: found, info }) => vec![engine(&info), storage(&info), commands(&found).await],
        Err(failure) => {
            let (found, mend) = failure.words();
            let check = Check::new("Docker", State::Problem, found);
            vec![match mend {
                Some(mend) => check.mend(mend),
                None => check,
            }]
        }
    }
}

fn engine(info: &EngineInfo) -> Check {
    Check::new("Docker", State::Ok, format!("Engine {}, API {}, id {}", info.version, info.api_version, info.id))
}

/// The figures and the depth of snapshots that Longshore reckons with are overlay2's.
fn storage(info: &EngineInfo) -> Check {
    let driver = &info.storage_driver;
    if matches!(driver.as_str(), "overlay2" | "overlayfs") {
        return Check::new("storage driver", State::Ok, driver.as_str());
    }
    Check::new("storage driver", State::Warning, format!("{driver}: snapshots may be slow, or large"))
        .mend("use overlay2, if the kernel has it")
}

/// How steps' commands would be run here: tried with a container, as a worker does.
async fn commands(engine: &DockerEngine) -> Check {
    let name = "commands";
    let dir = match StateDir::path() {
        Ok(dir) => nearest_existing(&dir),
        Err(failure) => return Check::new(name, State::NotLookedAt, failure.words().0),
    };
    // Beside the state: another file system may see, or allow, something else.
    let dir = match tempfile::Builder::new().prefix(".longshore-doctor-").tempdir_in(&dir) {
        Ok(dir) => dir,
        Err(error) => return Check::new(name, State::NotLookedAt, format!("{}: {error}", dir.display())),
    };
    let worker = format!("doctor-{}", RunId::new()).parse().expect("a word and a run's id make a worker id");
    let duty = Duty { worker, dir: dir.path().to_owned(), namespaces: 0, direct: false, orphan: WAY };
    let tried = async {
        engine.begin(duty).await?;
        let way = engine.way().await;
        engine.end().await;
        way
    };
    match tokio::time::timeout(WAY, tried).await {
        Ok(Ok(Way::Supervised)) => Check::new(name, State::Ok, "by a supervisor in each container"),
        Ok(Ok(Way::Direct { because })) => {
            let found = format!("as their containers' first processes, which is slower: {because}");
            Check::new(name, State::Warning, found)
                .mend("see \"When it cannot be\" in docs/containers.md; steps run all the same")
        }
        Ok(Err(error)) => Check::new(name, State::Warning, format!("not found out: {error}")),
        Err(_) => Check::new(name, State::Warning, format!("not found out within {} s", WAY.as_secs()))
            .mend("is the Engine overloaded? Ask again"),
    }
}

async fn rabbitmq(args: &DoctorArgs) -> Check {
    let Some(uri) = args.amqp.as_deref().filter(|uri| !uri.is_empty()) else {
        return Check::new("RabbitMQ", State::NotLookedAt, "no address given with --amqp or LONGSHORE_AMQP");
    };
    let at = shown_address(uri).map_or_else(String::new, |address| format!(" at {address}"));
    match AmqpBroker::probe(uri).await {
        Ok(server) => Check::new("RabbitMQ", State::Ok, format!("{} {}{at}", server.product, server.version)),
        Err(error) => Check::new("RabbitMQ", State::Problem, format!("no use of it{at}: {}", error.reason()))
            .mend("start RabbitMQ, or mend the address, user and password in --amqp or LONGSHORE_AMQP"),
    }
}

async fn postgres(args: &DoctorArgs) -> Check {
    let Some(uri) = args.database.as_deref().filter(|uri| !uri.is_empty()) else {
        return Check::new("Postgres", State::NotLookedAt, "no address given with --database or LONGSHORE_DATABASE");
    };
    let address: PostgresAddress = match uri.parse() {
        Ok(address) => address,
        Err(reason) => {
            return Check::new("Postgres", State::Problem, reason).mend("mend --database or LONGSHORE_DATABASE");
        }
    };
    match probe_postgres(&address).await {
        Ok(version) => Check::new("Postgres", State::Ok, format!("{version} at {address}")),
        Err(error) => Check::new("Postgres", State::Problem, format!("no use of {address}: {error}")).mend(
            "start Postgres, or mend the address, user, password and database in --database or LONGSHORE_DATABASE",
        ),
    }
}

async fn coordinator(args: &DoctorArgs) -> Check {
    let name = "coordinator";
    if args.remote.coordinator.as_deref().is_none_or(str::is_empty) {
        return Check::new(name, State::NotLookedAt, "no address given with --coordinator or LONGSHORE_COORDINATOR");
    }
    let asked = async {
        let client = runs::fleet(&args.remote)?;
        client.ready().await?;
        // Needs the token, which /readyz does not.
        Ok::<_, Failure>(client.workers().await?)
    };
    match asked.await {
        Ok(workers) => {
            let alive = workers.iter().filter(|worker| worker.alive).count();
            let check = Check::new(name, State::Ok, format!("ready, {alive} of {} workers alive", workers.len()));
            if alive > 0 { check } else { Check { state: State::Warning, ..check }.mend("start a `longshore worker`") }
        }
        Err(failure) => {
            let (found, mend) = failure.words();
            let check = Check::new(name, State::Problem, found);
            match mend {
                Some(mend) => check.mend(mend),
                None => check,
            }
        }
    }
}

fn state_dir() -> Vec<Check> {
    let name = "state directory";
    let dir = match StateDir::path() {
        Ok(dir) => dir,
        Err(failure) => return vec![Check::new(name, State::Problem, failure.words().0)],
    };
    let existing = nearest_existing(&dir);
    let written = tempfile::tempfile_in(&existing).and_then(|mut file| file.write_all(b"longshore"));
    let check = match written {
        Ok(()) => Check::new(name, State::Ok, dir.display().to_string()),
        Err(error) => Check::new(name, State::Problem, format!("{} cannot be written: {error}", existing.display()))
            .mend("mend its rights, or name another one in LONGSHORE_STATE"),
    };
    vec![check, disk(&existing)]
}

fn disk(dir: &Path) -> Check {
    let name = "disk";
    let free = match rustix::fs::statvfs(dir) {
        Ok(disk) => disk.f_bavail.saturating_mul(disk.f_frsize),
        Err(error) => {
            return Check::new(name, State::Warning, format!("{} cannot be measured: {error}", dir.display()));
        }
    };
    let found = format!("{} free at {}", bytes(free), dir.display());
    if free >= DISK_BYTES_MIN {
        return Check::new(name, State::Ok, found);
    }
    Check::new(name, State::Warning, found).mend("make room: logs and sources are kept there")
}

/// The directory itself need not be there before the first run.
fn nearest_existing(dir: &Path) -> PathBuf {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    absolute.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("/")).to_owned()
}
