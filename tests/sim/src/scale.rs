//! The coordinator among very many workers and steps, without any fault: what a step costs it.
//!
//! All of it is the real one, and so are the workers: the reading of messages, the core, the views and messages that it
//! writes, heartbeats and ticks. What the store does with a transaction, and the broker with what is published and acked,
//! happens elsewhere and does not count.

use std::path::Path;
use std::time::{Duration, Instant};

use longshore_protocol::RunId;
use rustix::time::ClockId;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::broker::SimBroker;
use crate::dice::Dice;
use crate::plan::Plan;
use crate::schedule::{ask, runtime};
use crate::stage::Stage;
use crate::store::SimDatabase;
use crate::world::{Noise, World};

/// A worker has so many open: its lock, its records, and a step's spool to write and to read.
pub const FILES: u64 = 4;

/// Steps of a run: as many as one may have.
const RUN_STEPS: usize = 10_000;

/// Something is wrong with a fleet that has not come so far within this time.
const PATIENCE: Duration = Duration::from_hours(1);

/// What it came to.
#[derive(Clone, Copy, Debug)]
pub struct Scaled {
    /// Steps that passed while it was measured.
    pub steps: usize,
    /// Processor time in the coordinator.
    pub coordinator: Duration,
}

/// So many open steps on so many workers with a slot each. Measured from when as many steps have passed as there are
/// workers, for as long as it takes a sixteenth of all.
///
/// # Panics
/// If the fleet breaks a promise, or comes to nothing.
pub fn measure(workers: usize, steps: usize, dir: &Path) -> Scaled {
    runtime().block_on(carry_out(workers, steps, dir))
}

/// A coordinator that is told of fewer messages than so many idle workers send, for so long. What promises it breaks.
///
/// # Panics
/// If there is no directory for it.
pub fn behind(workers: usize, passes: Duration, dir: &Path) -> Vec<String> {
    let behind = async {
        let fleet = Fleet::begin(workers, dir);
        // Of each worker's heartbeat every 2.5 s, two of five are heard.
        fleet.broker.deliver_within(12_500 / workers as u64);
        sleep(passes).await;
        fleet.world.violations()
    };
    runtime().block_on(behind)
}

async fn carry_out(workers: usize, steps: usize, dir: &Path) -> Scaled {
    let Fleet { world, stage, .. } = Fleet::begin(workers, dir);
    let pipeline = longshore_coordinator::pipeline::parse("scale.yaml", &file(steps.min(RUN_STEPS)));
    let pipeline = pipeline.expect("a pipeline of ours");
    for run in 1..=steps.div_ceil(RUN_STEPS) as u128 {
        let body = serde_json::json!({ "run": RunId(Uuid::from_u128(run)), "pipeline": pipeline }).to_string();
        ask(&stage, 0, "/v1/runs", &body).await;
    }
    let (process, _) = stage.ask(0).expect("a coordinator that took the runs");
    // The fleet is at work by then; some workers have had several short ones, others are at their first long one.
    until(&world, workers).await;
    process.time();
    let (began, used, before) = (Instant::now(), processor(), world.passed());
    until(&world, before + steps / 16).await;
    assert_eq!(world.violations(), Vec::<String>::new());
    assert_eq!(world.joined(), workers, "files: a worker with a step has {FILES} open");
    // While others had the processor, the coordinator's share of the time is the same.
    let share = process.busy().as_secs_f64() / began.elapsed().as_secs_f64();
    Scaled { steps: world.passed() - before, coordinator: processor().saturating_sub(used).mul_f64(share) }
}

/// One coordinator, workers with a slot each, and a broker that delivers at once.
struct Fleet {
    world: World,
    broker: SimBroker,
    stage: Stage,
}

impl Fleet {
    fn begin(workers: usize, dir: &Path) -> Self {
        std::fs::create_dir_all(dir.join("blobs")).expect("a directory for it");
        let world = World::new(Dice::new(1), Noise::default(), false);
        let broker = SimBroker::new(world.clone());
        broker.deliver_within(0);
        let plan = Plan {
            seed: 1,
            runs: Vec::new(),
            coordinators: 1,
            workers: vec![1; workers],
            noise: Noise::default(),
            faults: Vec::new(),
        };
        let database = SimDatabase::new(world.clone());
        let stage = Stage::new(&plan, world.clone(), broker.clone(), database, dir.to_owned());
        stage.begin();
        Self { world, broker, stage }
    }
}

/// Of this process, until now.
fn processor() -> Duration {
    let time = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).expect("time does not run backwards")
}

/// Waits until so many steps have passed.
async fn until(world: &World, steps: usize) {
    let passed = async {
        while world.passed() < steps {
            sleep(Duration::from_secs(1)).await;
        }
    };
    timeout(PATIENCE, passed).await.expect("steps that pass");
}

/// A matrix, as a batch evaluation has them, of steps that take one to ten seconds.
fn file(steps: usize) -> String {
    let cases: Vec<usize> = (0..steps / 10).collect();
    format!(
        "name: scale\nsteps:\n  - name: case\n    image: sim\n    matrix: {{n: {cases:?}, secs: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}}\n    \
         run: |\n      echo ${{{{ matrix.n }}}}\n      sleep ${{{{ matrix.secs }}}}\n"
    )
}
