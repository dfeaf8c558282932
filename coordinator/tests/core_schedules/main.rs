//! Ten thousand seeded fault schedules around the real core: a broker, workers and a store that fail in every way
//! the protocol speaks of, and a checker that knows nothing of the core's state.
//!
//! `LONGSHORE_SEED` runs one schedule again, `LONGSHORE_SCHEDULES` says how many there are.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the message")]

mod checker;
mod coordinator;
mod dice;
mod engine;
mod faults;
mod lineage;
mod pipelines;
mod turns;
mod worker;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use world::World;

/// As many as the design promises; enough that each of the mutations tried on the core is found many times over.
const SCHEDULES: u64 = 10_000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}")))
}

#[test]
fn every_step_settles_exactly_once_under_every_schedule_of_faults() {
    if let Some(seed) = number("LONGSHORE_SEED") {
        return World::new(seed).run();
    }
    let schedules = number("LONGSHORE_SCHEDULES").unwrap_or(SCHEDULES);
    let next = AtomicU64::new(0);
    let applied = AtomicU64::new(0);
    let seen: [AtomicU64; 7] = Default::default();
    let failed: Vec<u64> = thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let work = || {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= schedules {
                    return None;
                }
                let run = || {
                    let mut world = World::new(seed);
                    world.run();
                    applied.fetch_add(world.applied, Ordering::Relaxed);
                    for (sum, of) in seen.iter().zip(world.checker.seen()) {
                        sum.fetch_add(of, Ordering::Relaxed);
                    }
                };
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
                    next.store(schedules, Ordering::Relaxed); // the first one is enough
                    return Some(seed);
                }
            }
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(failed.is_empty(), "failed: rerun one with LONGSHORE_SEED={}", failed[0]);
    assert!(applied.load(Ordering::Relaxed) > schedules * 100, "the schedules hardly did anything");
    // What is rare must not be so rare that nobody would notice its faults.
    let seen = seen.map(AtomicU64::into_inner);
    let [remade, broken, taken, expired, late, again, cancelled] = seen;
    assert!(taken > schedules / 2 && remade > schedules / 10 && broken > schedules / 1_000, "{seen:?}");
    assert!(expired > schedules / 100 && late > schedules / 100, "{seen:?}");
    assert!(again > schedules / 2 && cancelled > schedules / 10, "{seen:?}");
}
