//! Ten steps, each on the files of the one before, as most builds are; with and without a cache key on every step.

use std::fmt::Write as _;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Instant;

use longshore_coordinator::core::view::RunView;
use longshore_tests::Fleet;
use uuid::Uuid;

use crate::drive;
use crate::failure::Result;
use crate::figure::{Figure, Goal, median};
use crate::measure::Row;
use crate::stand::{self, IMAGE, Stand};

const STEPS: usize = 10;

/// One row, with keys or without.
pub(crate) struct Chain<K> {
    stand: Stand,
    fleet: Fleet,
    /// Where the Dockerfile of the same steps lies.
    context: PathBuf,
    versions: String,
    /// `BuildKit`'s seconds with `--network none`: what ours have. Shown beside, since users rarely say it.
    without_network: Vec<f64>,
    last: Option<RunView>,
    keys: PhantomData<K>,
}

/// Whether its steps have cache keys, and what is wanted of it then.
pub(crate) trait Keys {
    const FIGURES: &'static [Figure];
    const KEYED: bool;
}

/// Without keys: nothing says that anybody will want the files again.
pub(crate) enum Plain {}

impl Keys for Plain {
    const FIGURES: &'static [Figure] = &[Figure {
        name: "chain10",
        says: "chain of 10, no cache keys, over RabbitMQ",
        unit: "s",
        baseline: "DOCKER_BUILDKIT=1 docker build --no-cache",
        goal: Goal::RatioAtMost(0.15),
        limit: None,
    }];
    const KEYED: bool = false;
}

/// With a new key on each: ten commits, no hit. `BuildKit` keeps ten layers too.
pub(crate) enum Keyed {}

impl Keys for Keyed {
    const FIGURES: &'static [Figure] = &[Figure {
        name: "chain10-keys",
        says: "chain of 10, every step with a new cache key (ten commits, no hit)",
        unit: "s",
        baseline: "DOCKER_BUILDKIT=1 docker build --no-cache",
        goal: Goal::RatioAtMost(0.35),
        limit: Some(
            "Ten commits, one after the other, since each step's files are kept before the next may change them: 50 to \
             90 ms each on the reference machine (docs/architecture.md, known costs), most of it the Engine's own",
        ),
    }];
    const KEYED: bool = true;
}

impl<K: Keys> Row for Chain<K> {
    const FIGURES: &'static [Figure] = K::FIGURES;

    async fn set_up(stand: &Stand) -> Result<Self> {
        let context = stand.work("chain")?;
        let steps = (1..=STEPS).map(|n| format!("RUN {}\n", command(n)));
        let dockerfile = format!("FROM {IMAGE}\n{}", steps.collect::<String>());
        std::fs::write(context.join("Dockerfile"), dockerfile)?;
        let format = "client {{.Client.Version}}, engine {{.Server.Version}}";
        let versions = stand.docker_said(&["version", "--format", format]).await?.trim().to_owned();
        let fleet = stand.fleet(2).await;
        let stand = stand.clone();
        Ok(Self { stand, fleet, context, versions, without_network: Vec::new(), last: None, keys: PhantomData })
    }

    async fn ours(&mut self) -> Result<Vec<f64>> {
        let ran = drive::run(&self.fleet, &pipeline(K::KEYED)).await?;
        self.last = Some(ran.view);
        Ok(vec![ran.settled.as_secs_f64()])
    }

    async fn baseline(&mut self) -> Result<Vec<f64>> {
        let seconds = self.buildkit(&[]).await?;
        self.without_network.push(self.buildkit(&["--network", "none"]).await?);
        Ok(vec![seconds])
    }

    fn settings(&self) -> String {
        let without = median(self.without_network.iter().copied());
        format!(
            "the same ten RUN lines from the same image, {}, its default network; with --network none, which ours \
             have, it takes {without:.2} s",
            self.versions
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

impl<K: Keys> Chain<K> {
    async fn buildkit(&self, more: &[&str]) -> Result<f64> {
        let args = [&["build", "--no-cache"], more, &[stand::text(&self.context)?]].concat();
        let mut command = self.stand.docker(&args);
        command.env("DOCKER_BUILDKIT", "1");
        let began = Instant::now();
        stand::said(&mut command).await?;
        Ok(began.elapsed().as_secs_f64())
    }
}

/// With a key of its own for each step, if so: none was there before.
fn pipeline(keyed: bool) -> String {
    let salt = Uuid::new_v4().simple().to_string();
    let mut text = format!("name: chain\ndefaults: {{image: \"{IMAGE}\"}}\nsteps:\n");
    for n in 1..=STEPS {
        let _ = writeln!(text, "  - name: s{n}\n    run: {}", command(n));
        if n > 1 {
            let _ = writeln!(text, "    from: s{}", n - 1);
        }
        if keyed {
            let _ = writeln!(text, "    cache: {{key: {salt}-{n}}}");
        }
    }
    text
}

fn command(n: usize) -> String {
    format!("echo {n} >> /state")
}
