//! A directory of the submitter's into a container: how fast, and that its size does not show in the memory.

use std::path::PathBuf;
use std::time::Instant;

use longshore_coordinator::core::view::RunView;
use longshore_tests::Fleet;
use tokio::process::Command;

use crate::drive;
use crate::failure::{Failure, Result};
use crate::figure::{Figure, Goal};
use crate::measure::Row;
use crate::naive::Naive;
use crate::proc::{forget_peak, peak_mib};
use crate::stand::{self, IMAGE, Stand, said, text};

const FILES: usize = 2_000;
const BYTES: u64 = 100_000_000;

/// Of the row that looks at the memory: twenty times as much, in as many files.
const BYTES_LARGE: u64 = 2_000_000_000;

/// How long a container with injected files is kept, so that the row is over by then. A file system may be slow to
/// make files just after many were deleted (ext4 without a journal passes over every inode that was deleted in the last
/// minute, one by one): that would be measured instead, on both sides.
const KEPT_SECS: u32 = 30;

/// More than there are runs: each keeps a container, and with it a slot.
const SLOTS: u32 = 16;

/// "Constant" is within what an allocator's arenas make of chance.
const CONSTANT: f64 = 1.25;

/// A fleet, and pipelines whose second step is given a directory.
struct Sources {
    fleet: Fleet,
    dir: PathBuf,
    last: Option<RunView>,
}

impl Sources {
    async fn set_up(stand: &Stand, name: &str, slots: u32) -> Result<Self> {
        Ok(Self { fleet: stand.fleet(slots).await, dir: stand.work(name)?, last: None })
    }

    /// Makes a directory of so many bytes, and the pipeline that injects it. The first step makes the container; what
    /// the second one is prepared for is the injection; those in `after` follow it there.
    async fn make(&self, stand: &Stand, name: &str, bytes: u64, after: &str) -> Result<()> {
        let mut tree = Command::new(stand.inside());
        tree.args(["tree", text(&self.dir.join(name))?, &FILES.to_string(), &bytes.to_string()]);
        said(&mut tree).await?;
        let pipeline = format!(
            "name: inject\nsteps:\n  - {{name: first, image: \"{IMAGE}\", command: [\"true\"]}}\n  \
             - {{name: second, from: first, sources: [{{path: {name}, target: /src}}], command: [\"true\"]}}\n\
             {after}"
        );
        std::fs::write(self.dir.join(format!("{name}.yaml")), pipeline)?;
        Ok(())
    }

    /// Seconds that the second step was prepared for.
    async fn inject(&mut self, name: &str) -> Result<f64> {
        // The command packs and uploads; a pack that the coordinator has is not sent again.
        let (run, submitted) = self.fleet.submit_file(&self.dir.join(format!("{name}.yaml")));
        let (code, lines) = submitted.ends().await;
        if code != 0 {
            return Err(Failure::new(lines.join("\n")));
        }
        let view = drive::until_passed(&self.fleet, run, "second").await?;
        let second = view.steps.get(1).ok_or_else(|| Failure::new("a run without a second step"))?;
        let phases = drive::last(second)?.phases.ok_or_else(|| Failure::new("it has no phases"))?;
        self.last = Some(view);
        Ok(phases.prepare_ms as f64 / 1e3)
    }
}

pub(crate) struct Inject {
    stand: Stand,
    naive: Naive,
    sources: Sources,
    kept: Vec<String>,
}

impl Row for Inject {
    const FIGURES: &'static [Figure] = &[Figure {
        name: "inject",
        says: "100 MB in 2,000 files into a container, fetched from the coordinator",
        unit: "s",
        baseline: "docker cp",
        goal: Goal::RatioAtMost(1.0),
        limit: Some(
            "The files come over HTTP from the coordinator, are hashed, and pass a socket into the container: three \
                 copies, in two processes more than docker cp has",
        ),
    }];

    async fn set_up(stand: &Stand) -> Result<Self> {
        let sources = Sources::set_up(stand, "inject", SLOTS).await?;
        let keeps = format!("  - {{name: keeps, from: second, command: [sleep, \"{KEPT_SECS}\"]}}\n");
        sources.make(stand, "tree", BYTES, &keeps).await?;
        Ok(Self { stand: stand.clone(), naive: Naive::connect(stand)?, sources, kept: Vec::new() })
    }

    async fn ours(&mut self) -> Result<Vec<f64>> {
        Ok(vec![self.sources.inject("tree").await?])
    }

    async fn baseline(&mut self) -> Result<Vec<f64>> {
        let container = self.naive.start(IMAGE, &["sleep", "100000"]).await?;
        let tree = self.sources.dir.join("tree");
        let to = format!("{container}:/src");
        let began = Instant::now();
        self.stand.docker_said(&["cp", text(&tree)?, &to]).await?;
        let seconds = began.elapsed().as_secs_f64();
        self.kept.push(container);
        Ok(vec![seconds])
    }

    fn settings(&self) -> String {
        "the same directory, from the page cache, into a running container, from the start of the docker program to \
         its end; the containers of both are kept until the row is over"
            .to_owned()
    }

    fn account(&self) -> String {
        self.sources.last.as_ref().map(drive::account).unwrap_or_default()
    }

    async fn finish(self) -> Result<()> {
        for container in &self.kept {
            self.naive.remove(container).await?;
        }
        stand::end(self.sources.fleet).await;
        std::fs::remove_dir_all(&self.sources.dir)?;
        Ok(())
    }
}

pub(crate) struct Memory {
    sources: Sources,
    worker: u32,
}

impl Memory {
    async fn peak(&mut self, name: &str) -> Result<Vec<f64>> {
        forget_peak(self.worker)?;
        self.sources.inject(name).await?;
        Ok(vec![peak_mib(self.worker)?])
    }
}

impl Row for Memory {
    const FIGURES: &'static [Figure] = &[Figure {
        name: "inject-memory",
        says: "the worker's largest resident set over 2 GB of injected files",
        unit: "MiB",
        baseline: "the same over 100 MB",
        goal: Goal::RatioAtMost(CONSTANT),
        limit: None,
    }];

    async fn set_up(stand: &Stand) -> Result<Self> {
        let mut sources = Sources::set_up(stand, "inject-memory", 1).await?;
        sources.make(stand, "small", BYTES, "").await?;
        sources.make(stand, "large", BYTES_LARGE, "").await?;
        let worker = sources.fleet.worker("one").pid();
        Ok(Self { sources, worker })
    }

    async fn ours(&mut self) -> Result<Vec<f64>> {
        self.peak("large").await
    }

    async fn baseline(&mut self) -> Result<Vec<f64>> {
        self.peak("small").await
    }

    fn settings(&self) -> String {
        format!("one and the same worker; {FILES} files each; constant is a ratio of at most {CONSTANT}")
    }

    async fn finish(self) -> Result<()> {
        stand::end(self.sources.fleet).await;
        std::fs::remove_dir_all(&self.sources.dir)?;
        Ok(())
    }
}
