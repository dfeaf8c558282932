//! The client commands beside a coordinator and a worker over RabbitMQ.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod harness;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use harness::{BUSYBOX, Place, Started, code, done, objects, services, stderr, stdout};
use longshore_protocol::RunId;
use longshore_protocol::metric::{MetricDoc, MetricKind};
use rustix::process::{Pid, Signal, kill_process};

const TOKEN: &str = "s3cret";

/// A daemon of the fleet; ended in order when the test is over.
struct Daemon {
    child: Child,
    /// What follows `: ready` in its line.
    ready: String,
    /// What it said before that.
    said: String,
}

impl Daemon {
    /// Started, and waited for until it says that it is ready.
    fn start(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        let ready = loop {
            let line = lines.next().unwrap_or_else(|| panic!("it never was ready:\n{said}")).unwrap();
            if let Some((_, ready)) = line.split_once(": ready") {
                break ready.to_owned();
            }
            said.push_str(&line);
            said.push('\n');
        };
        // Else it would block on its log one day.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, ready, said }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        let _ = kill_process(pid, Signal::TERM);
        let _ = self.child.wait();
    }
}

struct Fleet {
    place: Place,
    address: String,
    // In this order: the worker says goodbye to a coordinator that is still there.
    worker: Daemon,
    _coordinator: Daemon,
}

impl Fleet {
    fn new() -> Self {
        let place = Place::new();
        // Queues of its own on the shared broker.
        let prefix = format!("cli-{}", RunId::new());
        let daemon = |role: &str, args: &[&str]| {
            let mut command = place.with_docker(&[role]);
            command.args(args).env("LONGSHORE_AMQP", services::env("LONGSHORE_TEST_AMQP"));
            command.env("LONGSHORE_PREFIX", &prefix).env("LONGSHORE_TOKEN", TOKEN);
            command.env("LONGSHORE_STATE", place.path(role));
            command
        };
        let coordinator = Daemon::start(daemon("coordinator", &["--listen", "127.0.0.1:0"]));
        let address = coordinator.ready.split_whitespace().last().unwrap().to_owned();
        let worker =
            Daemon::start(daemon("worker", &["--coordinator", &address, "--slots", "2", "--metrics", "127.0.0.1:0"]));
        assert!(worker.ready.contains("slots 2"), "{}", worker.ready);
        Self { place, address, worker, _coordinator: coordinator }
    }

    /// The binary as this fleet's client.
    fn client(&self, args: &[&str]) -> Command {
        let mut command = self.place.longshore(args);
        command.env("LONGSHORE_COORDINATOR", &self.address).env("LONGSHORE_TOKEN", TOKEN);
        command
    }
}

#[test]
fn the_same_file_goes_to_a_fleet() {
    let fleet = Fleet::new();
    fleet.place.file("src/words", "from the submitter\n");
    let text = format!(
        "name: fleet\nsteps:\n  - name: take\n    image: {BUSYBOX}\n    sources: [{{path: src, target: /in}}]\n    \
         run: cat /in/words\n  - name: fail\n    from: take\n    run: cat /in/words; exit 4\n"
    );
    fleet.place.file("p.yaml", &text);
    let id = RunId::new().to_string();
    let watched = done(fleet.client(&["submit", "p.yaml", "--watch", "--run-id", &id]));
    let printed = stdout(&watched);
    assert_eq!(code(&watched), 1, "{printed}{}", stderr(&watched));
    assert!(printed.contains("take | from the submitter\n✓ take"), "{printed}");
    assert!(printed.lines().last().unwrap().starts_with(&format!("{id} failed in ")), "{printed}");

    // Submitting twice with one run id: one run.
    let again = done(fleet.client(&["submit", "p.yaml", "--run-id", &id]));
    assert_eq!((code(&again), stdout(&again)), (0, format!("{id}\n")), "{}", stderr(&again));
    let listed = objects(&stdout(&done(fleet.client(&["--output", "json", "ls"]))));
    assert_eq!(listed.len(), 1, "{listed:?}");
    // Another pipeline under that id is not.
    let other = done(fleet.client(&["submit", "p.yaml", "--name", "other", "--run-id", &id]));
    assert_eq!(code(&other), 2, "{}", stderr(&other));

    assert_eq!(stdout(&done(fleet.client(&["logs", &id[..13], "fail"]))), "from the submitter\n");
    let replayed = done(fleet.client(&["watch", "last"]));
    assert_eq!((code(&replayed), stdout(&replayed).lines().last()), (1, printed.lines().last()));
    assert!(stdout(&done(fleet.client(&["show"]))).contains("failed{4}"));
    let cancelled = stdout(&done(fleet.client(&["cancel", &id])));
    assert_eq!(cancelled, format!("{id} is settled: failed\n"));
    let workers = objects(&stdout(&done(fleet.client(&["--output", "json", "workers"]))));
    assert_eq!((&workers[0]["slots"], &workers[0]["alive"]), (&2.into(), &true.into()), "{workers:?}");
    let stranger = done(fleet.client(&["ls", "--token", "wrong"]));
    assert_eq!(code(&stranger), 2, "{}", stderr(&stranger));
    let mut doctor = fleet.client(&["doctor"]);
    doctor.env("LONGSHORE_AMQP", services::env("LONGSHORE_TEST_AMQP"));
    doctor.env("DOCKER_HOST", services::env("LONGSHORE_TEST_DOCKER_1"));
    let doctor = done(doctor);
    assert_eq!(code(&doctor), 0, "{}", stdout(&doctor));
    assert!(stdout(&doctor).contains("by a supervisor in each container"), "{}", stdout(&doctor));
}

#[test]
fn every_metric_is_there_from_the_first_scrape() {
    let fleet = Fleet::new();
    let page = |url: &str| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        runtime.block_on(async { client.get(url).bearer_auth(TOKEN).send().await.unwrap().text().await.unwrap() })
    };
    let workers = fleet.worker.said.lines().find_map(|line| line.split_once("metrics on ")).unwrap().1;
    let pages = [
        (page(&format!("{}/metrics", fleet.address)), longshore_coordinator::metrics::METRICS),
        (page(workers), longshore_worker::METRICS),
    ];
    for (page, table) in pages {
        // Open labels have no value before the first one is seen.
        let known = |metric: &&MetricDoc| metric.labels.iter().all(|(_, values)| !values.is_empty());
        for metric in table.iter().filter(known) {
            let sample = match metric.kind {
                MetricKind::Histogram => format!("{}_bucket", metric.name),
                MetricKind::Counter | MetricKind::Gauge => metric.name.to_owned(),
            };
            assert!(page.lines().any(|line| line.starts_with(&sample)), "{sample} is not in\n{page}");
        }
    }
}

/// It takes a moment to end, or it would be over before `cancel` has said what it did.
const SLOW_TO_GO: &str = "trap 'sleep 4; exit 0' TERM; echo up; while :; do sleep 1 & wait $!; done";

#[test]
fn ctrl_c_leaves_a_fleets_run_alone_and_cancel_ends_it() {
    let fleet = Fleet::new();
    let text = format!("name: long\nsteps:\n  - name: long\n    image: {BUSYBOX}\n    run: \"{SLOW_TO_GO}\"\n");
    fleet.place.file("p.yaml", &text);
    let mut watcher = Started::new(fleet.client(&["submit", "p.yaml", "--watch"]));
    watcher.until("long | up");
    watcher.signal(Signal::INT);
    let (status, _, said) = watcher.end();
    assert_eq!(status.code(), Some(130));
    assert!(said.contains("the run goes on"), "{said}");
    let again = Started::new(fleet.client(&["watch"]));
    let cancelled = done(fleet.client(&["cancel", "last"]));
    assert!(stdout(&cancelled).contains("is being cancelled"), "{}{}", stdout(&cancelled), stderr(&cancelled));
    let (status, printed, said) = again.end();
    assert_eq!(status.code(), Some(130), "{printed}{said}");
}

#[test]
fn steps_of_a_fleets_run_are_cancelled_by_name_and_the_run_not_by_a_slip() {
    let fleet = Fleet::new();
    let step = |name: &str| format!("  - name: {name}\n    image: {BUSYBOX}\n    run: \"{SLOW_TO_GO}\"\n");
    fleet.place.file("p.yaml", &format!("name: long\nsteps:\n{}{}", step("one"), step("two")));
    let mut watcher = Started::new(fleet.client(&["submit", "p.yaml", "--watch"]));
    while !(watcher.printed.contains("one | up") && watcher.printed.contains("two | up")) {
        watcher.until(" | up");
    }
    // In a path these would mean the run.
    for slip in ["..", ".", ""] {
        let refused = done(fleet.client(&["cancel", "last", slip]));
        assert_eq!(code(&refused), 2, "{slip:?}: {}", stdout(&refused));
        assert!(stderr(&refused).contains("its steps are one, two"), "{slip:?}: {}", stderr(&refused));
    }
    let cancel = |step: &str| stdout(&done(fleet.client(&["cancel", "last", step])));
    assert_eq!(cancel("one"), "one is being cancelled\n");
    watcher.until("one  cancelled");
    assert_eq!(cancel("t?o"), "two is being cancelled\n");
    let (status, printed, said) = watcher.end();
    assert_eq!(status.code(), Some(130), "{printed}{said}");

    let state = fleet.place.path("coordinator").display().to_string();
    let replayed = objects(&stdout(&done(fleet.place.longshore(&["--output", "json", "replay", "--state", &state]))));
    assert_eq!(replayed.len(), 2, "the workers and the run: {replayed:?}");
    assert!(replayed.iter().all(|replayed| replayed["verdict"] == "same"), "{replayed:?}");
}
