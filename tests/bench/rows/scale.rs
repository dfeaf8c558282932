//! A million open steps and ten thousand workers: the real core, modelled workers, no disk and no broker.

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

pub(crate) struct Scale {
    last: Option<[f64; 5]>,
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
    ];

    async fn set_up(_: &Stand) -> Result<Self> {
        Ok(Self { last: None })
    }

    async fn ours(&mut self) -> Result<Vec<f64>> {
        let measured = in_a_process(MANY).await?;
        self.last = Some(measured);
        Ok(figures(measured))
    }

    async fn baseline(&mut self) -> Result<Vec<f64>> {
        Ok(figures(in_a_process(FEW).await?))
    }

    fn settings(&self) -> String {
        let words = |[micros, .., median, _]: [f64; 5]| {
            format!("; {:.0} events/s, and the median of those delays is {median:.1} s", 1e6 / micros)
        };
        format!("a process of its own for each{}", self.last.map(words).unwrap_or_default())
    }

    async fn finish(self) -> Result<()> {
        Ok(())
    }
}

fn figures([micros, bytes, jain, _, worst]: [f64; 5]) -> Vec<f64> {
    vec![micros, bytes, jain, worst]
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

async fn in_a_process(steps: usize) -> Result<[f64; 5]> {
    let mut command = Command::new(std::env::current_exe()?);
    let output =
        command.args([COMMAND, &steps.to_string()]).stderr(Stdio::inherit()).kill_on_drop(true).output().await?;
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    numbers.try_into().map_err(|_| Failure::new(format!("{steps} steps were not measured: {text}")))
}
