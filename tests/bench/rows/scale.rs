//! A million open steps: the real core among ten thousand modelled workers, without disk and broker; and the whole
//! coordinator among four thousand real workers, in the simulator.

use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

use crate::failure::{Failure, Result};
use crate::figure::{Figure, Goal};
use crate::measure::Row;
use crate::stand::Stand;

#[path = "../../../coordinator/tests/core_scale/measure.rs"]
mod measure;

const MANY: usize = 1_000_000;
const FEW: usize = 10_000;

/// Steps for each worker.
const STEPS: usize = 100;

/// The same of the simulator's.
const SIMULATED_STEPS: usize = 250;

/// The simulator's program, beside this one.
const SIMULATOR: &str = "longshore-sim";

/// Little is hard to time, so it is done so many times over.
const FEW_ROUNDS: usize = 20;

pub(crate) struct Scale {
    last: Option<[f64; 6]>,
}

impl Row for Scale {
    const FIGURES: &'static [Figure] = &[
        Figure {
            name: "scale-event",
            says: "the core's time for an event, 1,000,000 open steps on 10,000 workers",
            unit: "us",
            baseline: "10,000 open steps on 100 workers",
            goal: Goal::RatioAtMost(1.2),
            limit: Some(
                "What is looked up is spread over a hundred times as much memory: the same steps, and more misses of \
                 the processor's caches",
            ),
        },
        Figure {
            name: "scale-bytes",
            says: "the core's resident bytes for an open step, of 1,000,000",
            unit: "B",
            baseline: "10,000 steps on 100 workers",
            goal: Goal::AtMost(1024.0),
            limit: None,
        },
        Figure {
            name: "scale-share",
            says: "Jain's index of what 100 tenants received while all had work waiting",
            unit: "",
            baseline: "10,000 steps on 100 workers",
            goal: Goal::AtLeast(0.95),
            limit: None,
        },
        Figure {
            name: "scale-delay",
            says: "a run of 3 among them, until its first slot, p99 of 200; steps take 1 to 10 s",
            unit: "s",
            baseline: "10,000 steps on 100 workers",
            goal: Goal::AtMost(10.0),
            limit: None,
        },
        Figure {
            name: "scale-step",
            says: "the coordinator's time for a step, but for store and broker, 1,000,000 open steps on 4,000 workers",
            unit: "us",
            baseline: "10,000 open steps on 40 workers",
            goal: Goal::RatioAtMost(1.2),
            limit: Some(
                "The same as of an event; and here four thousand real workers take the processor's caches in between",
            ),
        },
    ];

    async fn set_up(_: &Stand) -> Result<Self> {
        Ok(Self { last: None })
    }

    async fn ours(&mut self) -> Result<Vec<f64>> {
        let measured = measured(MANY, 1).await?;
        self.last = Some(measured);
        Ok(figures(measured))
    }

    async fn baseline(&mut self) -> Result<Vec<f64>> {
        Ok(figures(measured(FEW, FEW_ROUNDS).await?))
    }

    fn settings(&self) -> String {
        let words = |[micros, _, _, median, ..]: [f64; 6]| {
            format!("; {:.0} events/s, and the median of those delays is {median:.1} s", 1e6 / micros)
        };
        format!("a process of its own for each{}", self.last.map(words).unwrap_or_default())
    }

    async fn finish(self) -> Result<()> {
        Ok(())
    }
}

fn figures([micros, bytes, jain, _, worst, of_a_step]: [f64; 6]) -> Vec<f64> {
    vec![micros, bytes, jain, worst, of_a_step]
}

/// The hidden command that this program is started with a second time: memory that was freed is not given back.
pub(crate) const COMMAND: &str = "steps-at-scale";

/// Measures so many steps, and says it.
pub(crate) fn said(args: &[String]) -> Result<()> {
    let steps = args.first().and_then(|steps| steps.parse().ok()).ok_or_else(|| Failure::new("STEPS"))?;
    let measure::Measured { bytes_of_a_step, micros_of_an_event, jain, delay: [median, worst] } =
        measure::measure(steps / STEPS, steps, (MANY / 10 / steps).max(1));
    println!("{micros_of_an_event} {bytes_of_a_step} {jain} {median} {worst}");
    Ok(())
}

/// All of it among so many steps; the simulator in so many rounds.
async fn measured(steps: usize, rounds: usize) -> Result<[f64; 6]> {
    let own = std::env::current_exe()?;
    let core = numbers(&own, &[COMMAND.to_owned(), steps.to_string()]).await?;
    let args = [steps / SIMULATED_STEPS, steps, rounds].map(|number| number.to_string());
    let simulated = numbers(&own.with_file_name(SIMULATOR), &[&["scale".to_owned()], &args[..]].concat()).await?;
    let all = [core, simulated].concat();
    all.try_into().map_err(|all| Failure::new(format!("{steps} steps were not measured: {all:?}")))
}

/// What a program prints: in a process of its own, since memory that was freed is not given back.
async fn numbers(program: &Path, args: &[String]) -> Result<Vec<f64>> {
    let output = Command::new(program).args(args).stderr(Stdio::inherit()).kill_on_drop(true).output().await?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split_whitespace().filter_map(|number| number.parse().ok()).collect())
}
