//! From one step's exit to the next one's first instruction: report, journal, plan, dispatch, claim, clean, start.

use std::fmt::Write as _;

use longshore_coordinator::core::view::RunView;
use longshore_tests::Fleet;

use crate::drive;
use crate::failure::{Failure, Result};
use crate::figure::{Figure, Goal, median};
use crate::measure::Row;
use crate::naive::Naive;
use crate::stand::{self, IMAGE, INSIDE, Stand};

/// 40 handovers a run: enough for a median that one fsync does not move.
const STEPS: usize = 41;

/// Each takes half a second.
const NAIVE_STEPS: usize = 6;

pub(crate) struct Handover {
    fleet: Fleet,
    naive: Naive,
    last: Option<RunView>,
}

impl Row for Handover {
    const FIGURES: &'static [Figure] = &[Figure {
        name: "handover",
        says: "a step's exit to the next step's first instruction, same host, over RabbitMQ, p50",
        unit: "ms",
        baseline: "a loop over the Engine's API",
        goal: Goal::AtMost(10.0),
        limit: Some(
            "Between two steps lie three messages (finished, job, accepted), each confirmed by a quorum queue, a commit \
             of the journal with synchronous=FULL, and the worker's record of the claim (P3, P4): each of them waits for \
             a disk before the next may begin",
        ),
    }];

    async fn set_up(stand: &Stand) -> Result<Self> {
        Ok(Self { fleet: stand.fleet(2).await, naive: Naive::connect(stand)?, last: None })
    }

    async fn ours(&mut self) -> Result<Vec<f64>> {
        let mut text = format!("name: handover\ndefaults: {{image: \"{IMAGE}\"}}\nsteps:\n");
        for n in 1..=STEPS {
            let _ = writeln!(text, "  - name: s{n}\n    command: [{INSIDE}, stamp]");
            if n > 1 {
                let _ = writeln!(text, "    from: s{}", n - 1);
            }
        }
        let ran = drive::run(&self.fleet, &text).await?;
        let mut stamps = Vec::new();
        for step in &ran.view.steps {
            stamps.push(drive::log(&self.fleet, ran.view.summary.run, step.step.as_str()).await?);
        }
        self.last = Some(ran.view);
        Ok(vec![median(gaps_ms(&stamps)?)])
    }

    async fn baseline(&mut self) -> Result<Vec<f64>> {
        let stamps = self.naive.chain(IMAGE, &vec![vec![INSIDE, "stamp"]; NAIVE_STEPS]).await?;
        Ok(vec![median(gaps_ms(&stamps)?)])
    }

    fn settings(&self) -> String {
        format!("create, start, wait, logs, commit, remove, in a chain of {NAIVE_STEPS}, network none")
    }

    fn account(&self) -> String {
        self.last.as_ref().map(drive::account).unwrap_or_default()
    }

    async fn finish(self) -> Result<()> {
        stand::end(self.fleet).await;
        Ok(())
    }
}

/// What each step printed: when it began and when it was about to end, ns since the Unix epoch.
pub(crate) fn stamp(text: &str) -> Result<(u64, u64)> {
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok((first, last)),
        _ => Err(Failure::new(format!("{text:?} is no stamp"))),
    }
}

fn gaps_ms(stamps: &[String]) -> Result<Vec<f64>> {
    let stamps: Vec<(u64, u64)> = stamps.iter().map(|text| stamp(text)).collect::<Result<_>>()?;
    Ok(stamps.windows(2).map(|pair| pair[1].0.saturating_sub(pair[0].1) as f64 / 1e6).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_lie_between_the_end_of_one_and_the_beginning_of_the_next() {
        let stamps = ["1000000 2000000", "5000000 6000000", "6500000 7000000"].map(str::to_owned);
        assert_eq!(gaps_ms(&stamps).unwrap(), [3.0, 0.5]);
        assert!(stamp("no numbers").is_err() && stamp("1").is_err());
    }
}
