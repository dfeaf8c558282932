//! Steps that each leave a snapshot, four at a time: what a farm of builds does.

use std::fmt::Write as _;

use longshore_coordinator::core::view::RunView;
use longshore_tests::Fleet;

use crate::celery::{self, Celery};
use crate::drive;
use crate::failure::Result;
use crate::figure::{Figure, Goal};
use crate::measure::Row;
use crate::stand::{self, IMAGE, Stand};

/// Six rounds of four.
const STEPS: usize = 24;

const AT_ONCE: u32 = 4;

pub(crate) struct Commits {
    fleet: Fleet,
    celery: Celery,
    last: Option<RunView>,
}

impl Row for Commits {
    const FIGURES: &'static [Figure] = &[Figure {
        name: "commits",
        says: "container steps with a commit per second, 4 slots",
        unit: "steps/s",
        baseline: "Celery and the Docker SDK, 4 processes",
        goal: Goal::RatioAtLeast(2.5),
        limit: Some(
            "Every step is one start and one commit of the Engine's. Alone those peak at 15 and 32 a second on the \
                 reference machine (docs/architecture.md, known costs), together at about 10, and the loop of the \
                 baseline needs them too: what is ours to save is the network namespace and the removal",
        ),
    }];

    async fn set_up(stand: &Stand) -> Result<Self> {
        // One each: a second one would wait behind the first while another process is free.
        let celery = Celery::start(stand, AT_ONCE, 1).await?;
        Ok(Self { fleet: stand.fleet(AT_ONCE).await, celery, last: None })
    }

    async fn ours(&mut self) -> Result<Vec<f64>> {
        let mut text = format!("name: commits\ndefaults: {{image: \"{IMAGE}\"}}\nsteps:\n");
        for n in 1..=STEPS {
            let _ = writeln!(text, "  - {{name: s{n}, snapshot: always, run: echo {n} > /state}}");
        }
        let ran = drive::run(&self.fleet, &text).await?;
        self.last = Some(ran.view);
        Ok(vec![STEPS as f64 / ran.settled.as_secs_f64()])
    }

    async fn baseline(&mut self) -> Result<Vec<f64>> {
        Ok(vec![self.celery.rate("step", STEPS).await?])
    }

    fn settings(&self) -> String {
        format!("create, start, wait, logs, commit, remove, network none; {}, prefetch 1 a process", celery::SETTINGS)
    }

    fn account(&self) -> String {
        self.last.as_ref().map(drive::account).unwrap_or_default()
    }

    async fn finish(self) -> Result<()> {
        self.celery.stop().await?;
        stand::end(self.fleet).await;
        Ok(())
    }
}
