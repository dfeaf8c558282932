//! What many open steps cost the core: resident bytes of each, and time of an event as they grow in number. Modelled
//! workers, the real core, all tenants with work waiting.
//!
//! `LONGSHORE_STEPS` (50000,10000; the most first, since memory that was freed is not given back) and
//! `LONGSHORE_WORKERS` (1000) say how many.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the message")]
#![allow(dead_code, reason = "the model's other users need more of it")]

#[path = "../core_rules/model.rs"]
mod model;

use longshore_coordinator::pipeline::{Parent, PlannedStep, Retry, SnapshotRule};
use longshore_protocol::PoolName;
use longshore_protocol::job::{Command, Job, Network, Resources, StepSpec};

use crate::model::Model;

const TENANTS: usize = 100;

/// Journal bytes apart, and what the allocator keeps for itself included.
const BYTES_MAX: f64 = 1024.0;

/// Of an event's processor time with five times as many steps: the goal is 1.2 on a quiet machine; this one is shared
/// with other tests, and a scan of the steps would be 5.
const GROWTH_MAX: f64 = 2.0;

/// Of a matrix, as a batch evaluation has them.
fn step(n: usize) -> PlannedStep {
    let shell = ["/bin/sh", "-e"].map(str::to_owned).to_vec();
    PlannedStep {
        name: format!("case[n={n}]").as_str().into(),
        parent: Parent::Image("registry.example.org/team/image:1.2.3".to_owned()),
        needs: Vec::new(),
        spec: StepSpec {
            command: Command::Script { script: format!("./evaluate --case {n} --out /result"), shell },
            env: [("MODE".to_owned(), "full".to_owned())].into_iter().collect(),
            workdir: Some("/work".to_owned()),
            user: None,
            sources: Vec::new(),
            timeout_ms: 600_000,
            grace_ms: 10_000,
            output_max: None,
            exclusive: false,
            resources: Resources::default(),
            network: Network::default(),
            pool: PoolName::default(),
        },
        sources: Vec::new(),
        retry: Retry::default(),
        cache_key: None,
        snapshot: SnapshotRule::Auto,
        keep_going: false,
        priority: 0,
        queue_timeout_ms: None,
        concurrency: None,
    }
}

/// One to ten seconds.
fn takes(job: &Job) -> u64 {
    1_000 + u64::try_from(job.execution.0.as_u128() % 9_000).unwrap()
}

fn resident_bytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    resident.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap() * 1024.0
}

/// Of this process, in the kernel's ticks of 10 ms: what others do on the machine does not count.
fn processor_secs() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // The second field is the program's name, in parentheses; user and system time are the 14th and 15th.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
}

struct Measured {
    bytes_of_a_step: f64,
    micros_of_an_event: f64,
}

fn measure(workers: usize, steps: usize) -> Measured {
    let mut model = Model::new(&[], takes);
    // A run has ten thousand steps at most.
    let runs = TENANTS * steps.div_ceil(TENANTS * 10_000);
    let before = resident_bytes();
    for n in 0..runs {
        model.submit(&format!("tenant-{}", n % TENANTS), (0..steps / runs).map(step).collect());
    }
    let bytes_of_a_step = (resident_bytes() - before) / steps as f64;
    (0..workers).for_each(|_| model.join(1));
    // Half of them: everybody has work waiting to the end.
    let (began, inputs, from) = (processor_secs(), model.inputs, model.now);
    while model.began.len() < steps / 2 {
        assert!(model.step());
    }
    let events = (model.inputs - inputs) as f64;
    let micros_of_an_event = (processor_secs() - began) * 1e6 / events;
    let received = |n: usize| model.received(&format!("tenant-{n}"), from, model.now) as f64;
    let shares: Vec<f64> = (0..TENANTS).map(received).collect();
    let jain = shares.iter().sum::<f64>().powi(2) / (TENANTS as f64 * shares.iter().map(|x| x * x).sum::<f64>());
    println!(
        "{steps} steps on {workers} workers: {bytes_of_a_step:.0} bytes an open step, {micros_of_an_event:.1} µs an \
         event ({:.0} events/s), Jain's index {jain:.4} over {TENANTS} tenants",
        1e6 / micros_of_an_event
    );
    assert!(jain >= 0.95, "Jain's index is {jain:.3}");
    Measured { bytes_of_a_step, micros_of_an_event }
}

fn numbers(variable: &str, default: &str) -> Vec<usize> {
    let text = std::env::var(variable).unwrap_or_else(|_| default.to_owned());
    text.split(',').map(|n| n.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}"))).collect()
}

#[test]
fn an_open_step_is_small_and_an_event_costs_the_same_however_many_there_are() {
    let workers = numbers("LONGSHORE_WORKERS", "1000")[0];
    let all: Vec<Measured> =
        numbers("LONGSHORE_STEPS", "50000,10000").into_iter().map(|n| measure(workers, n)).collect();
    let (many, few) = (all.first().unwrap(), all.last().unwrap());
    let growth = many.micros_of_an_event / few.micros_of_an_event;
    println!("an event costs {growth:.2} times as much");
    assert!(many.bytes_of_a_step <= BYTES_MAX, "{:.0} bytes", many.bytes_of_a_step);
    assert!(growth <= GROWTH_MAX, "{growth:.2}");
}
