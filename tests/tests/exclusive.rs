//! P18 on the real thing: an exclusive step whose worker is stopped, killed or cut off from the broker is dead before
//! its lease ends, and the second attempt begins behind that. Seen from outside, in the kernel's list of processes.

use std::collections::BTreeMap;
use std::fs;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use longshore_coordinator::core::view::RunOutcome;
use longshore_protocol::{Outcome, RunId};
use longshore_tests::{Fleet, services};

use crate::proxy::{Proxy, Way};

#[path = "../../protocol/tests/contract/proxy.rs"]
#[allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)] // it is another crate's tests'
mod proxy;

/// Deaf to TERM, and without an end of its own, until it is carried out for the second time.
const DEPLOY: &str = r#"
name: deploys
steps:
  - name: deploy
    image: "longshore-test/busybox:latest"
    exclusive: true
    run: |
      trap '' TERM
      echo "fence $LONGSHORE_FENCE"
      test "$LONGSHORE_FENCE" != 1 || while :; do sleep 1; done
      sleep 1
"#;

/// When processes of each attempt were seen, s since the host's start.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// The start of the first of them, by the kernel.
    from: f64,
    /// The last look that found one.
    to: f64,
}

/// Looks at the host's processes all the time, for those of one run: every step of it has the run and its fence in its
/// environment. The workers' Engines are on this host.
struct Watch {
    stop: mpsc::Sender<()>,
    looking: JoinHandle<BTreeMap<u32, Seen>>,
}

/// By it a command is told to end when nothing was heard for 14 s: two heartbeats of 4 s may be late. Of the shortest
/// lease it would be one.
const LEASE_SECS: u32 = 24;

/// A look takes a few milliseconds, of which an attempt's processes live thousands.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Watch {
    fn of(run: RunId) -> Self {
        let (stop, stopped) = mpsc::channel();
        let looking = std::thread::spawn(move || {
            let run = format!("LONGSHORE_RUN={run}");
            let mut seen = BTreeMap::new();
            while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(LOOK_EVERY) {
                let now = uptime();
                let mut alive = Vec::new();
                for (fence, began) in processes_of(&run) {
                    let seen = seen.entry(fence).or_insert(Seen { from: began, to: now });
                    (seen.from, seen.to) = (seen.from.min(began), now);
                    alive.push(fence);
                }
                alive.dedup();
                assert!(alive.len() < 2, "attempts {alive:?} run at once");
            }
            seen
        });
        Self { stop, looking }
    }

    fn ends(self) -> BTreeMap<u32, Seen> {
        drop(self.stop);
        self.looking.join().expect("never two at once")
    }
}

fn processes_of(run: &str) -> impl Iterator<Item = (u32, f64)> {
    let processes = fs::read_dir("/proc").expect("a /proc").flatten();
    processes.filter_map(move |process| {
        // One that ends meanwhile has none of these.
        let environment = fs::read(process.path().join("environ")).ok()?;
        let variables: Vec<_> =
            environment.split(|byte| *byte == 0).filter_map(|one| str::from_utf8(one).ok()).collect();
        variables.iter().find(|one| **one == run)?;
        let fence = variables.iter().find_map(|one| one.strip_prefix("LONGSHORE_FENCE="))?.parse().ok()?;
        let stat = fs::read_to_string(process.path().join("stat")).ok()?;
        // Behind the name, which may hold anything, stand the third field and those that follow.
        let ticks: f64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        Some((fence, ticks / 100.0)) // USER_HZ, 100 on every Linux that Docker runs on
    })
}

/// The same clock as processes' start times.
fn uptime() -> f64 {
    let uptime = fs::read_to_string("/proc/uptime").expect("a /proc");
    uptime.split(' ').next().and_then(|secs| secs.parse().ok()).expect("seconds")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Stopped,
    Killed,
    CutOff,
}

async fn never_twice_at_once(fault: Fault) {
    let amqp = services::env("LONGSHORE_TEST_AMQP");
    let (before, rest) = amqp.split_once('@').expect("an address with a user");
    let (broker, path) = rest.split_once('/').unwrap_or((rest, ""));
    let proxy = Proxy::start(broker.to_owned(), Way::Open).await;
    let way = format!("{before}@127.0.0.1:{}/{path}", proxy.port());

    let fleet = Fleet::new().lease_secs(LEASE_SECS).worker("one", 1).through(way.trim_end_matches('/'));
    let mut fleet = fleet.worker("two", 2).prepare();
    fleet.start_coordinator().await;
    fleet.start_worker("one").await;
    let run = fleet.submit(DEPLOY).await.id;
    let watch = Watch::of(run);
    fleet.follow(run).prints("deploy", "fence 1").await;
    // Only now, so that the first attempt is the other's; and before the fault, so that nothing else is waited for.
    fleet.start_worker("two").await;
    let victim = fleet.worker("one").pid();
    match fault {
        Fault::Stopped => signal(victim, "-STOP"),
        Fault::Killed => fleet.kill_worker("one").await,
        Fault::CutOff => proxy.set(Way::Frozen),
    }
    let struck = uptime();

    fleet.follow(run).settles(RunOutcome::Passed).await;
    let seen = watch.ends();
    let [first, second] = [seen[&1], seen[&2]];
    let (dead, began) = (first.to - struck, second.from - struck);
    println!(
        "{fault:?}: lease {LEASE_SECS} s; dead after {dead:.1} s, carried out again after {began:.1} s: {:.1} s between",
        began - dead
    );
    assert!(dead < f64::from(LEASE_SECS) - 2.0, "{seen:?}: dead before the lease can end");
    assert!(second.from > first.to, "{seen:?}");
    let step = fleet.follow(run).step("deploy").await;
    assert_eq!(step.attempts.len(), 2, "{step:?}");
    assert!(matches!(step.attempts[0].outcome, Some(Outcome::Infra { .. })), "{step:?}");
    assert_eq!(fleet.follow(run).log("deploy").await, "fence 2\n");

    match fault {
        Fault::Stopped => signal(victim, "-CONT"),
        Fault::Killed => fleet.start_worker("one").await,
        Fault::CutOff => proxy.set(Way::Open),
    }
    fleet.until_workers("both", |seen| seen.iter().filter(|worker| worker.alive).count() == 2).await;
    fleet.checks_out().await;
}

fn signal(pid: u32, signal: &str) {
    let status = std::process::Command::new("kill").args([signal, &pid.to_string()]).status();
    assert!(status.expect("kill is there").success());
}

#[tokio::test]
async fn p18_a_stopped_worker() {
    never_twice_at_once(Fault::Stopped).await;
}

#[tokio::test]
async fn p18_a_killed_worker() {
    never_twice_at_once(Fault::Killed).await;
}

#[tokio::test]
async fn p18_a_worker_cut_off_from_the_broker() {
    never_twice_at_once(Fault::CutOff).await;
}

#[tokio::test]
async fn p18_an_exclusive_step_of_a_healthy_fleet_outlives_its_leases() {
    let fleet = Fleet::new().lease_secs(LEASE_SECS).worker("one", 1).start().await;
    let run = fleet
        .submit(
            r#"
name: long
steps:
  - name: deploy
    image: "longshore-test/busybox:latest"
    exclusive: true
    run: sleep 75
  - name: after
    from: deploy
    run: echo after
"#,
        )
        .await;
    let settled = run.settles_within(Duration::from_mins(5), RunOutcome::Passed).await;
    assert!(settled.steps.iter().all(|step| step.attempts.len() == 1), "{settled:#?}");
    assert!(run.step("deploy").await.attempts[0].snapshot.is_some(), "committed before `finished`");
    fleet.checks_out().await;
}
