//! What many open steps cost the core: resident bytes of each, time of an event, and whether slots are shared fairly.
//! Modelled workers, the real core, all tenants with work waiting. `make bench` measures the same.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "in a test a panic is the message")]
#![allow(dead_code, reason = "the model's other users need more of it")]

#[path = "../core_rules/model.rs"]
mod model;

use std::collections::BTreeMap;
use std::time::Instant;

use longshore_coordinator::pipeline::{Parent, PlannedStep};
use longshore_protocol::RunId;
use longshore_protocol::job::{Command, Job, StepSpec};

use self::model::{Model, plain};

const TENANTS: usize = 100;

/// Small runs that come in between, each of a tenant of its own.
const VISITORS: usize = 200;

/// Steps of such a run.
const VISITORS_STEPS: usize = 3;

/// Of a matrix, as a batch evaluation has them.
fn step(n: usize) -> PlannedStep {
    let shell = ["/bin/sh", "-e"].map(str::to_owned).to_vec();
    let step = plain(&format!("case[n={n}]"));
    PlannedStep {
        parent: Parent::Image("registry.example.org/team/image:1.2.3".to_owned()),
        spec: StepSpec {
            command: Command::Script { script: format!("./evaluate --case {n} --out /result"), shell },
            env: [("MODE".to_owned(), "full".to_owned())].into_iter().collect(),
            workdir: Some("/work".to_owned()),
            timeout_ms: 600_000,
            grace_ms: 10_000,
            ..step.spec
        },
        ..step
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

/// What it came to.
pub(crate) struct Measured {
    pub(crate) bytes_of_a_step: f64,
    /// Processor time in the core: what the modelled workers take is not in it.
    pub(crate) micros_of_an_event: f64,
    /// Jain's index of what the tenants received (Jain, Chiu, Hawe: DEC TR-301, 1984): 1 where all received the same.
    pub(crate) jain: f64,
    /// How long the small runs waited for their first slot, s, the median and the 99th percentile.
    pub(crate) delay: [f64; 2],
}

/// Measures so many steps on so many workers, and an event's time so many times over: little is hard to time.
pub(crate) fn measure(workers: usize, steps: usize, rounds: usize) -> Measured {
    let (mut measured, mut secs, mut events) = (None, 0.0, 0.0);
    for _ in 0..rounds {
        let round = Round::of(workers, steps);
        secs += round.secs;
        events += round.events;
        measured.get_or_insert(round);
    }
    let Round { bytes_of_a_step, jain, delay, .. } = measured.unwrap();
    Measured { bytes_of_a_step, micros_of_an_event: secs * 1e6 / events, jain, delay }
}

struct Round {
    bytes_of_a_step: f64,
    secs: f64,
    events: f64,
    jain: f64,
    delay: [f64; 2],
}

impl Round {
    fn of(workers: usize, steps: usize) -> Self {
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
        let (clock, in_core) = (Instant::now(), model.in_core);
        let mut visits: Vec<(RunId, u64)> = Vec::with_capacity(VISITORS);
        while model.began.len() < steps / 2 {
            if model.began.len() * VISITORS / (steps / 2) > visits.len() {
                let run = model.submit(&format!("visitor-{}", visits.len()), (0..VISITORS_STEPS).map(step).collect());
                visits.push((run, model.now));
            }
            assert!(model.step());
        }
        // While others had the processor, the core's share of the time is the same.
        let share = model.in_core.saturating_sub(in_core).as_secs_f64() / clock.elapsed().as_secs_f64();
        let (secs, events) = ((processor_secs() - began) * share, (model.inputs - inputs) as f64);
        let (mut received, mut first) = (BTreeMap::<&str, u64>::new(), BTreeMap::new());
        for began in &model.began {
            *received.entry(&began.tenant).or_default() +=
                began.until.min(model.now).saturating_sub(began.at.max(from));
            first.entry(began.run).or_insert(began.at);
        }
        let shares: Vec<f64> = (0..TENANTS).map(|n| received[format!("tenant-{n}").as_str()] as f64).collect();
        let jain = shares.iter().sum::<f64>().powi(2) / (TENANTS as f64 * shares.iter().map(|x| x * x).sum::<f64>());
        // One that waits still has waited until now.
        let mut waited: Vec<u64> =
            visits.iter().map(|(run, at)| first.get(run).unwrap_or(&model.now).saturating_sub(*at)).collect();
        waited.sort_unstable();
        let delay = [50, 99].map(|percent| waited[(waited.len() - 1) * percent / 100] as f64 / 1e3);
        Self { bytes_of_a_step, secs, events, jain, delay }
    }
}
