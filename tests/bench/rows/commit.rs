//! A commit of 100 MB: what we add to the Engine's own call.

use std::time::Instant;

use longshore_coordinator::core::view::RunView;
use longshore_tests::Fleet;

use crate::drive;
use crate::failure::{Failure, Result};
use crate::figure::{Figure, Goal};
use crate::measure::Row;
use crate::naive::Naive;
use crate::stand::{self, IMAGE, Stand};

/// The same bytes on both sides; `sync` because what the Engine reads shall not be on its way to the disk meanwhile.
const COMMAND: &str = "head -c 100000000 /dev/urandom > /data; sync";

pub(crate) struct Commit {
    fleet: Fleet,
    naive: Naive,
    last: Option<RunView>,
}

impl Row for Commit {
    const FIGURES: &'static [Figure] = &[Figure {
        name: "commit100",
        says: "commit of 100 MB",
        unit: "s",
        baseline: "the bare API call",
        goal: Goal::RatioAtMost(1.05),
        limit: None,
    }];

    async fn set_up(stand: &Stand) -> Result<Self> {
        Ok(Self { fleet: stand.fleet(1).await, naive: Naive::connect(stand)?, last: None })
    }

    async fn ours(&mut self) -> Result<Vec<f64>> {
        let pipeline = format!(
            "name: commit\nsteps:\n  - {{name: fill, image: \"{IMAGE}\", snapshot: always, run: \"{COMMAND}\"}}\n"
        );
        let ran = drive::run(&self.fleet, &pipeline).await?;
        let step = ran.view.steps.first().ok_or_else(|| Failure::new("a run without steps"))?;
        let attempt = drive::last(step)?;
        let phases = attempt.phases.ok_or_else(|| Failure::new("it has no phases"))?;
        // So that no run finds the disk fuller than the one before.
        if let Some(snapshot) = &attempt.snapshot {
            self.naive.remove_image(snapshot.as_str()).await?;
        }
        self.last = Some(ran.view);
        Ok(vec![phases.snapshot_ms as f64 / 1e3])
    }

    async fn baseline(&mut self) -> Result<Vec<f64>> {
        let container = self.naive.start(IMAGE, &["sh", "-c", COMMAND]).await?;
        self.naive.wait(&container).await?;
        let began = Instant::now();
        let image = self.naive.commit(&container).await?;
        let seconds = began.elapsed().as_secs_f64();
        self.naive.remove(&container).await?;
        self.naive.remove_image(&image).await?;
        Ok(vec![seconds])
    }

    fn settings(&self) -> String {
        "POST /commit of a container that has ended, pause=false; ours by the worker's own clock".to_owned()
    }

    fn account(&self) -> String {
        self.last.as_ref().map(drive::account).unwrap_or_default()
    }

    async fn finish(self) -> Result<()> {
        stand::end(self.fleet).await;
        Ok(())
    }
}
