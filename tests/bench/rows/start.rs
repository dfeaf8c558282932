//! A command in a container that runs already: by its supervisor, and by `docker exec`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use longshore_protocol::job::{Network, Resources};
use longshore_protocol::{Attempt, ExecutionId, Fence, RunId, WorkerId};
use longshore_worker::engine::docker::DockerEngine;
use longshore_worker::engine::{CommandSpec, ContainerName, ContainerSpec, Duty, Engine as _, Way};
use uuid::Uuid;

use super::handover::stamp;
use crate::failure::{Failure, Result};
use crate::figure::{Figure, Goal, median};
use crate::measure::Row;
use crate::naive::Naive;
use crate::stand::{IMAGE, INSIDE, Stand};

/// Of each run: a median of so many is steady, and a run still takes less than a second or two.
const STARTS: usize = 40;
const EXECS: usize = 20;

/// Nothing here runs longer than a millisecond; the supervisor wants to be told.
const LIMIT: Duration = Duration::from_mins(1);

pub(crate) struct Start {
    engine: DockerEngine,
    naive: Naive,
    container: ContainerName,
    /// The one that is exec'd in.
    other: String,
}

impl Start {
    fn command() -> CommandSpec {
        CommandSpec {
            attempt: Uuid::new_v4().to_string(),
            argv: vec![INSIDE.to_owned(), "stamp".to_owned()],
            env: Vec::new(),
            workdir: None,
            user: None,
            limit: LIMIT,
            lease: None,
        }
    }

    /// One start, in ms, until the command's first instruction.
    async fn start(&self) -> Result<f64> {
        let began = now_ns()?;
        let mut running = self.engine.start(&self.container, &Self::command()).await?;
        let mut text = Vec::new();
        while let Some(piece) = running.output.recv().await {
            text.extend_from_slice(&piece.bytes);
        }
        running.exit.await??;
        let (first, _) = stamp(&String::from_utf8_lossy(&text))?;
        // Between two steps in one container; not part of a start.
        self.engine.clean(&self.container).await?;
        Ok(first.saturating_sub(began) as f64 / 1e6)
    }
}

impl Row for Start {
    const FIGURES: &'static [Figure] = &[Figure {
        name: "start",
        says: "a command's start in a running container, until its first instruction",
        unit: "ms",
        baseline: "docker exec",
        goal: Goal::RatioAtMost(0.05),
        limit: None,
    }];

    async fn set_up(stand: &Stand) -> Result<Self> {
        let owner: WorkerId = format!("bench-{}", Uuid::new_v4().simple()).parse()?;
        let engine = DockerEngine::connect(Some(&stand.engine)).await?;
        let dir = stand.work("start")?;
        let orphan = Duration::from_mins(10);
        engine.begin(Duty { worker: owner.clone(), dir, namespaces: 1, direct: false, orphan }).await?;
        if let Way::Direct { because } = engine.way().await? {
            return Err(Failure::new(format!("no supervisor can be used here: {because}")));
        }
        let image = engine.ensure_image(IMAGE).await?;
        let execution = ExecutionId::of_step(RunId::new(), &"start".into());
        let spec = ContainerSpec {
            name: ContainerName::of(&Fence { execution, attempt: Attempt::FIRST, owner }),
            image: image.0,
            command: Self::command(),
            resources: Resources::default(),
            network: Network::None,
            tenant: "default".to_owned(),
        };
        engine.create(&spec).await?;
        let naive = Naive::connect(stand)?;
        let other = naive.start(IMAGE, &["sleep", "100000"]).await?;
        Ok(Self { engine, naive, container: spec.name, other })
    }

    async fn ours(&mut self) -> Result<Vec<f64>> {
        let mut all = Vec::new();
        for _ in 0..STARTS {
            all.push(self.start().await?);
        }
        Ok(vec![median(all)])
    }

    async fn baseline(&mut self) -> Result<Vec<f64>> {
        let mut all = Vec::new();
        for _ in 0..EXECS {
            let began = now_ns()?;
            let text = self.naive.exec(&self.other, &[INSIDE, "stamp"]).await?;
            all.push(stamp(&text)?.0.saturating_sub(began) as f64 / 1e6);
        }
        Ok(vec![median(all)])
    }

    fn settings(&self) -> String {
        format!(
            "its two API calls, without the start of the docker program; p50 of {EXECS} execs and {STARTS} starts a run"
        )
    }

    async fn finish(self) -> Result<()> {
        self.naive.remove(&self.other).await?;
        self.engine.destroy(&self.container).await?;
        self.engine.end().await;
        Ok(())
    }
}

fn now_ns() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?)
}
