//! Thousands of schedules, on as many threads as the machine has processors: one schedule is one thread.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::plan::{KINDS, Plan};
use crate::schedule::{self, Report};
use crate::shrink::{shrink, words};

/// Every so many seeds a schedule is carried out twice.
const TWICE_EVERY: u64 = 50;

/// Whether what a schedule comes to is compared with what it came to before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Twice {
    Some,
    Never,
}

/// What they came to.
#[derive(Debug, Default)]
pub struct Total {
    pub schedules: u64,
    /// Carried out twice, with the same trace.
    pub twice: u64,
    pub faults: BTreeMap<&'static str, u64>,
    /// The first schedule of each thread that failed.
    pub failed: Vec<Failed>,
    pub took: Duration,
    pub simulated: Duration,
}

/// A schedule that failed.
#[derive(Debug)]
pub struct Failed {
    pub seed: u64,
    pub violations: Vec<String>,
}

/// A directory in memory, where there is one.
pub fn scratch() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a directory for a schedule's disks")
}

/// Carries out the schedules of these seeds; ends early once one has failed.
///
/// # Panics
/// If a thread does.
pub fn carry_out(first: u64, schedules: u64) -> Total {
    on_threads(first, schedules, Twice::Some, &|| ())
}

/// Each of them once, on threads that do this first: break a rule, say. Whoever looks for what that leads to wants to see
/// nothing else.
///
/// # Panics
/// If a thread does.
pub fn carry_out_with(first: u64, schedules: u64, prepare: &(dyn Fn() + Sync)) -> Total {
    on_threads(first, schedules, Twice::Never, prepare)
}

fn on_threads(first: u64, schedules: u64, twice: Twice, prepare: &(dyn Fn() + Sync)) -> Total {
    let next = AtomicU64::new(first);
    let end = first + schedules;
    let began = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let totals: Vec<Total> = std::thread::scope(|scope| {
        let work = || {
            prepare();
            let dir = scratch();
            let mut total = Total::default();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= end {
                    return total;
                }
                let plan = Plan::thrown(seed);
                let report = schedule::run(&plan, dir.path(), false);
                let mut violations = report.violations.clone();
                if twice == Twice::Some && seed.is_multiple_of(TWICE_EVERY) {
                    let again = schedule::run(&plan, dir.path(), false);
                    if again.hash == report.hash {
                        total.twice += 1;
                    } else {
                        violations.push("carried out twice, it came to two traces".to_owned());
                    }
                }
                total.add(&report);
                if !violations.is_empty() {
                    next.store(end, Ordering::Relaxed); // the first one is enough
                    total.failed.push(Failed { seed, violations });
                }
            }
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a schedule panicked")).collect()
    });
    let mut sum = Total { took: began.elapsed(), ..Total::default() };
    for total in totals {
        sum.schedules += total.schedules;
        sum.twice += total.twice;
        sum.simulated += total.simulated;
        for (kind, count) in total.faults {
            *sum.faults.entry(kind).or_default() += count;
        }
        sum.failed.extend(total.failed);
    }
    sum
}

impl Total {
    /// Every kind of fault, and how often it struck.
    pub fn kinds(&self) -> impl Iterator<Item = (&'static str, u64)> {
        KINDS.into_iter().map(|kind| (kind, self.faults.get(kind).copied().unwrap_or(0)))
    }

    fn add(&mut self, report: &Report) {
        self.schedules += 1;
        self.simulated += report.took;
        for (kind, count) in &report.faults {
            *self.faults.entry(*kind).or_default() += count;
        }
    }
}

impl Failed {
    /// The shortest schedule in which something goes wrong as well, and what that comes to.
    pub fn shortest(&self) -> (Plan, Report) {
        let dir = scratch();
        let plan = shrink(&Plan::thrown(self.seed), dir.path());
        let report = schedule::run(&plan, dir.path(), true);
        (plan, report)
    }

    /// What went wrong, and the shortest schedule in which it does.
    pub fn story(&self) -> String {
        let (plan, report) = self.shortest();
        let violations = if report.violations.is_empty() { &self.violations } else { &report.violations };
        let mut lines = vec![format!("seed {} fails: {}", self.seed, violations.join("\n  "))];
        lines.push(format!("the shortest schedule that does:\n{}", words(&plan)));
        lines.push("its trace:".to_owned());
        lines.extend(report.story);
        lines.push(format!("again, the whole story: make test-sim SEED={}", self.seed));
        lines.join("\n")
    }
}
