//! Sixty-four children of one snapshot: what a test matrix or an evaluation does.

use std::process::Stdio;
use std::time::Instant;

use longshore_coordinator::core::view::RunView;
use longshore_tests::Fleet;
use tokio::io::AsyncWriteExt as _;

use crate::drive;
use crate::failure::{Failure, Result};
use crate::figure::{Figure, Goal};
use crate::measure::Row;
use crate::stand::{self, IMAGE, Stand};

const CHILDREN: usize = 64;

/// For finding the best -P: enough to fill eight at a time more than once, few enough to try eight of them.
const TRIED: usize = 20;

pub(crate) struct Fan {
    stand: Stand,
    fleet: Fleet,
    /// Containers a second with each -P, as tried.
    tried: Vec<f64>,
    best: usize,
    last: Option<RunView>,
}

impl Fan {
    /// `seq N | xargs -P parallel -I{} docker run …`; containers a second.
    async fn docker_run(stand: &Stand, parallel: usize, containers: usize) -> Result<f64> {
        let mut command = tokio::process::Command::new("xargs");
        command.args(["-P", &parallel.to_string(), "-I{}", &stand.docker, "run", "--rm", "--network", "none", IMAGE]);
        command.arg("true").env("DOCKER_HOST", &stand.engine).stdin(Stdio::piped()).kill_on_drop(true);
        let began = Instant::now();
        let mut xargs = command.spawn()?;
        let numbers: Vec<String> = (0..containers).map(|n| n.to_string()).collect();
        let mut stdin = xargs.stdin.take().ok_or_else(|| Failure::new("xargs has an input"))?;
        stdin.write_all((numbers.join("\n") + "\n").as_bytes()).await?;
        drop(stdin);
        let status = xargs.wait().await?;
        if !status.success() {
            return Err(Failure::new(format!("docker run under xargs: {status}")));
        }
        Ok(containers as f64 / began.elapsed().as_secs_f64())
    }
}

impl Row for Fan {
    const FIGURES: &'static [Figure] = &[Figure {
        name: "fan64",
        says: "64 children of one snapshot, finished per second",
        unit: "steps/s",
        baseline: "docker run --rm --network none under xargs",
        goal: Goal::RatioAtLeast(1.6),
        limit: Some(
            "A start in a namespace that is kept peaks at 15 a second on the reference machine, one in a new namespace at \
                 8 (docs/architecture.md, known costs): what remains is runc, containerd and the Engine's locks",
        ),
    }];

    async fn set_up(stand: &Stand) -> Result<Self> {
        let mut tried = Vec::new();
        for parallel in 1..=8 {
            tried.push(Self::docker_run(stand, parallel, TRIED).await?);
        }
        let best = (0..tried.len()).max_by(|a, b| tried[*a].total_cmp(&tried[*b])).unwrap_or(0) + 1;
        let fleet = stand.fleet(4).await;
        Ok(Self { stand: stand.clone(), fleet, tried, best, last: None })
    }

    async fn ours(&mut self) -> Result<Vec<f64>> {
        let numbers: Vec<String> = (1..=CHILDREN).map(|n| n.to_string()).collect();
        let pipeline = format!(
            "name: fan\ndefaults: {{image: \"{IMAGE}\"}}\nsteps:\n  - {{name: root, run: echo root > /state}}\n  \
             - {{name: child, from: root, matrix: {{n: [{}]}}, command: [\"true\"]}}\n",
            numbers.join(", ")
        );
        let ran = drive::run(&self.fleet, &pipeline).await?;
        let root = ran.view.steps.first().ok_or_else(|| Failure::new("a run without steps"))?;
        let from = drive::last(root)?.ended_at_ms;
        let until = ran.view.summary.settled_at_ms;
        let (Some(from), Some(until)) = (from, until) else { return Err(Failure::new("it has no end")) };
        self.last = Some(ran.view);
        Ok(vec![CHILDREN as f64 * 1e3 / until.saturating_sub(from) as f64])
    }

    async fn baseline(&mut self) -> Result<Vec<f64>> {
        Ok(vec![Self::docker_run(&self.stand, self.best, CHILDREN).await?])
    }

    fn settings(&self) -> String {
        let tried: Vec<String> = self.tried.iter().map(|rate| format!("{rate:.1}")).collect();
        format!(
            "-P {}, the best of -P 1…8 ({} a second with {TRIED} each); ours with 4 slots",
            self.best,
            tried.join(", ")
        )
    }

    fn account(&self) -> String {
        self.last.as_ref().map(drive::account).unwrap_or_default()
    }

    async fn finish(self) -> Result<()> {
        stand::end(self.fleet).await;
        Ok(())
    }
}
