//! `make test-sim`: many schedules and what they came to, or one of them and its whole story.

use std::process::ExitCode;
use std::time::Duration;

use longshore_sim::many::{carry_out, scratch};
use longshore_sim::plan::{Plan, index};
use longshore_sim::scale::{FILES, measure};
use longshore_sim::schedule;
use longshore_sim::shrink::words;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// An eighth more schedules in the same time than with the C library's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |text: &str| text.parse::<u64>().ok();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["seed", seed] if let Some(seed) = number(seed) => one(seed),
        ["schedules", count] if let Some(count) = number(count) => all(0, count),
        ["schedules", first, count] if let (Some(first), Some(count)) = (number(first), number(count)) => {
            all(first, count)
        }
        ["scale", workers, steps, rounds]
            if let [Some(workers), Some(steps), Some(rounds)] = [workers, steps, rounds].map(|text| number(text)) =>
        {
            scale(index(workers), index(steps), rounds)
        }
        ["look", first, count] if let (Some(first), Some(count)) = (number(first), number(count)) => look(first, count),
        #[cfg(feature = "breach")]
        ["breaches"] => breaches(),
        _ => {
            eprintln!(
                "longshore-sim schedules [FIRST] COUNT | look FIRST COUNT | seed SEED | scale WORKERS STEPS ROUNDS | breaches"
            );
            ExitCode::from(2)
        }
    }
}

/// `make test-sim SEED=n`
fn one(seed: u64) -> ExitCode {
    let plan = Plan::thrown(seed);
    println!("{}", words(&plan));
    let dir = scratch();
    let report = schedule::run(&plan, dir.path(), true);
    for line in &report.story {
        println!("{line}");
    }
    println!(
        "{} s simulated, trace {:016x}, violations: {}",
        report.took.as_secs(),
        report.hash,
        report.violations.len()
    );
    if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// `make bench`: the coordinator's time for a step in us, among so many workers and open steps.
fn scale(workers: usize, steps: usize, rounds: u64) -> ExitCode {
    let files = getrlimit(Resource::Nofile);
    let wanted = 100 + FILES * workers as u64;
    let raised = Rlimit { current: files.maximum, ..files };
    if files.maximum.is_some_and(|most| most < wanted) || setrlimit(Resource::Nofile, raised).is_err() {
        eprintln!("longshore-sim: {workers} workers have up to {wanted} files open; see `ulimit -Hn`");
        return ExitCode::FAILURE;
    }
    let (mut ended, mut coordinator) = (0, Duration::ZERO);
    for _ in 0..rounds {
        let dir = scratch();
        let scaled = measure(workers, steps, dir.path());
        ended += scaled.steps;
        coordinator += scaled.coordinator;
    }
    println!("{:.2}", coordinator.as_secs_f64() * 1e6 / ended as f64);
    ExitCode::SUCCESS
}

/// Every schedule that fails, in a line each: for whoever has just changed something.
fn look(first: u64, count: u64) -> ExitCode {
    let dir = scratch();
    let mut failed = 0;
    for seed in first..first + count {
        let report = schedule::run(&Plan::thrown(seed), dir.path(), false);
        if !report.violations.is_empty() {
            failed += 1;
            println!("seed {seed}: {}", report.violations.join("; ").chars().take(600).collect::<String>());
        }
    }
    println!("{failed} of {count} fail");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn all(first: u64, count: u64) -> ExitCode {
    let total = carry_out(first, count);
    for (kind, count) in total.kinds() {
        println!("{kind:<36} {count:>9}");
    }
    println!("schedules: {}, {} of them twice with the same trace", total.schedules, total.twice);
    println!("violations: {}", total.failed.len());
    println!("seconds: {:.1}, {} simulated", total.took.as_secs_f64(), total.simulated.as_secs());
    for failed in &total.failed {
        println!("{}", failed.story());
    }
    let never = total.kinds().filter(|(_, count)| *count == 0).count();
    if total.failed.is_empty() && never == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Breaks one rule after the other: the checker finds each, or it is worth nothing.
#[cfg(feature = "breach")]
fn breaches() -> ExitCode {
    use longshore_protocol::breach;

    /// Within so many schedules.
    const FOUND_WITHIN: u64 = 1_000;

    println!("{}", breach::MARK);
    let mut missed = Vec::new();
    for broken in breach::ALL {
        let total = longshore_sim::many::carry_out_with(0, FOUND_WITHIN, &|| breach::choose(Some(broken)));
        let Some(failed) = total.failed.iter().min_by_key(|failed| failed.seed) else {
            println!("{broken:?}: NOT FOUND in {FOUND_WITHIN} schedules");
            missed.push(broken);
            continue;
        };
        breach::choose(Some(broken));
        let (plan, report) = failed.shortest();
        breach::choose(None);
        let first = report.violations.first().or(failed.violations.first()).cloned().unwrap_or_default();
        println!("{broken:?}: found by seed {} of {}: {first}", failed.seed, total.schedules);
        println!("  {}", words(&plan).replace('\n', "\n  "));
    }
    println!("breaches: {}, not found: {missed:?}", breach::ALL.len());
    if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
