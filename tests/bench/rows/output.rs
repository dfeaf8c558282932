//! A step that writes a gigabyte: how fast it comes into the store, and what that costs in memory.

use std::process::Stdio;
use std::time::Instant;

use longshore_coordinator::core::view::RunView;
use longshore_tests::Fleet;

use crate::drive;
use crate::failure::{Failure, Result};
use crate::figure::{Figure, Goal};
use crate::measure::Row;
use crate::naive::Naive;
use crate::proc::{forget_peak, peak_mib};
use crate::stand::{self, IMAGE, INSIDE, Stand};

const BYTES: u64 = 1_000_000_000;

pub(crate) struct Output {
    stand: Stand,
    fleet: Fleet,
    naive: Naive,
    /// The container that is exec'd in.
    container: String,
    /// Of coordinator and worker.
    pids: [u32; 2],
    last: Option<RunView>,
}

impl Row for Output {
    const FIGURES: &'static [Figure] = &[
        Figure {
            name: "output",
            says: "output of one step into the store, 1 GB",
            unit: "MB/s",
            baseline: "docker exec > /dev/null",
            goal: Goal::RatioAtLeast(2.0),
            limit: Some(
                "docker exec > /dev/null copies a pipe and keeps nothing. Here every byte is on the worker's disk before \
                 anybody may know of it (P16), on the broker's before it is confirmed, and packed on the store's. For a \
                 gigabyte the broker takes 5.7 s of processor time, the worker 5 and the coordinator 8 (the reference \
                 machine); two cores have less than 6 in the time that the goal leaves: the broker alone would fill it",
            ),
        },
        Figure {
            name: "output-worker-memory",
            says: "the worker's largest resident set meanwhile",
            unit: "MiB",
            baseline: "dockerd's, over docker exec > /dev/null",
            goal: Goal::AtMost(64.0),
            limit: None,
        },
        Figure {
            name: "output-coordinator-memory",
            says: "the coordinator's largest resident set meanwhile",
            unit: "MiB",
            baseline: "dockerd's, over docker exec > /dev/null",
            goal: Goal::AtMost(64.0),
            limit: Some(
                "What is on its way to the store is bounded (P15; 3 MiB that are not acknowledged), but held several times \
                 over: as AMQP frames, as JSON, as runs, in the database's hands, and in the chunk that is being sealed",
            ),
        },
    ];

    async fn set_up(stand: &Stand) -> Result<Self> {
        let naive = Naive::connect(stand)?;
        let container = naive.start(IMAGE, &["sleep", "100000"]).await?;
        let mut fleet = stand.fleet(1).await;
        let pids = [fleet.coordinator().pid(), fleet.worker("one").pid()];
        Ok(Self { stand: stand.clone(), fleet, naive, container, pids, last: None })
    }

    async fn ours(&mut self) -> Result<Vec<f64>> {
        for pid in self.pids {
            forget_peak(pid)?;
        }
        let pipeline = format!(
            "name: output\nsteps:\n  - {{name: spew, image: \"{IMAGE}\", command: [{INSIDE}, spew, \"{BYTES}\"]}}\n"
        );
        let ran = drive::run(&self.fleet, &pipeline).await?;
        let step = ran.view.steps.first().ok_or_else(|| Failure::new("a run without steps"))?;
        let attempt = drive::last(step)?;
        if attempt.output.map(|output| output.total()) != Some(BYTES) {
            return Err(Failure::new(format!("bytes are missing: {:?}", attempt.output)));
        }
        // From the command's start until the last byte is in the store; making its container is another row's affair.
        let started = attempt.started_at_ms.unwrap_or_default().saturating_sub(ran.view.summary.submitted_at_ms);
        let seconds = ran.closed.as_secs_f64() - started as f64 / 1e3;
        self.last = Some(ran.view);
        let [coordinator, worker] = self.pids;
        Ok(vec![BYTES as f64 / 1e6 / seconds, peak_mib(worker)?, peak_mib(coordinator)?])
    }

    async fn baseline(&mut self) -> Result<Vec<f64>> {
        forget_peak(self.stand.engine_pid)?;
        let began = Instant::now();
        let mut exec = self.stand.docker(&["exec", &self.container, INSIDE, "spew", &BYTES.to_string()]);
        let status = exec.stdout(Stdio::null()).status().await?;
        let seconds = began.elapsed().as_secs_f64();
        if !status.success() {
            return Err(Failure::new(format!("docker exec: {status}")));
        }
        let daemon = peak_mib(self.stand.engine_pid)?;
        Ok(vec![BYTES as f64 / 1e6 / seconds, daemon, daemon])
    }

    fn settings(&self) -> String {
        "the same program, lines of 100 bytes, from the start of the docker program to its end".to_owned()
    }

    fn account(&self) -> String {
        self.last.as_ref().map(drive::account).unwrap_or_default()
    }

    async fn finish(self) -> Result<()> {
        self.naive.remove(&self.container).await?;
        stand::end(self.fleet).await;
        Ok(())
    }
}
