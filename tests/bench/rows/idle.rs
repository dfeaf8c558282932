//! A worker that has nothing to do: what it weighs, and how soon it is there.

use std::time::{Duration, Instant};

use longshore_tests::Fleet;

use crate::celery::{self, Celery};
use crate::failure::Result;
use crate::figure::{Figure, Goal};
use crate::measure::Row;
use crate::proc::{resident_mib, resident_of_tree_mib};
use crate::stand::{self, Stand};

/// Past the first heartbeat: what it needs for that, it has by then. Nothing tells of idleness, so this is a sleep.
const IDLE: Duration = Duration::from_secs(6);

/// Celery's processes are warm when it says that it is ready.
const IDLE_CELERY: Duration = Duration::from_secs(1);

const PROCESSES: u32 = 2;

pub(crate) struct Idle {
    stand: Stand,
    fleet: Fleet,
}

impl Row for Idle {
    const FIGURES: &'static [Figure] = &[
        Figure {
            name: "idle-memory",
            says: "an idle worker's resident set",
            unit: "MiB",
            baseline: "an idle Celery worker and its processes",
            goal: Goal::AtMost(20.0),
            limit: Some(
                "Two thirds are pages of the program itself, mapped from its file, which a second worker on the host \
                 shares; the rest is the heap, the threads' stacks, and the AMQP client's frame buffers on two connections",
            ),
        },
        Figure {
            name: "ready",
            says: "a worker's start until it is ready for jobs",
            unit: "ms",
            baseline: "a Celery worker's",
            goal: Goal::AtMost(200.0),
            limit: None,
        },
    ];

    async fn set_up(stand: &Stand) -> Result<Self> {
        let mut fleet = stand.fleet(PROCESSES).await;
        fleet.terminate_worker("one").await;
        Ok(Self { stand: stand.clone(), fleet })
    }

    async fn ours(&mut self) -> Result<Vec<f64>> {
        let began = Instant::now();
        self.fleet.start_worker("one").await;
        let ready = began.elapsed();
        tokio::time::sleep(IDLE).await;
        let resident = resident_mib(self.fleet.worker("one").pid())?;
        self.fleet.terminate_worker("one").await;
        Ok(vec![resident, ready.as_secs_f64() * 1e3])
    }

    async fn baseline(&mut self) -> Result<Vec<f64>> {
        let celery = Celery::start(&self.stand, PROCESSES, 1).await?;
        tokio::time::sleep(IDLE_CELERY).await;
        let resident = resident_of_tree_mib(celery.pid()?)?;
        let ready = celery.ready.as_secs_f64() * 1e3;
        celery.stop().await?;
        Ok(vec![resident, ready])
    }

    fn settings(&self) -> String {
        format!(
            "{PROCESSES} processes, pages that they share counted once; until it says \"ready\", as ours; ours with \
             {PROCESSES} slots, its state directory used before; {}",
            celery::SETTINGS
        )
    }

    async fn finish(mut self) -> Result<()> {
        self.fleet.start_worker("one").await;
        stand::end(self.fleet).await;
        Ok(())
    }
}
