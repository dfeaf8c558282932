//! A fleet of two workers, from its start until nothing of it is left.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use longshore_coordinator::core::view::{RunOutcome, RunView, WorkerView};
use longshore_protocol::broker::Broker;
use longshore_protocol::broker::amqp::AmqpBroker;
use longshore_protocol::topology::Topology;
use longshore_protocol::{PoolName, RunId, Shard, WorkerId};
use longshore_tests::engine::{is_holder, named};
use longshore_tests::pair::Pair;
use longshore_tests::process::within_patience;
use longshore_tests::{Fleet, FleetBuilder};

use crate::load::{self, Load};
use crate::recovery::Recovery;
use crate::stand::Stand;
use crate::table::Told;

/// The workers' names; each is beside the Engine of its number.
pub(crate) const NAMES: [&str; 2] = ["one", "two"];

/// Enough that one worker can take over what the other one had.
const SLOTS: u32 = 6;

/// As in production. Rows that measure how long a dead worker is missed have it.
pub(crate) const LEASE_SECS: u32 = 30;

/// Of the rows that wait for a lease's end and measure something else: as in all other tests.
pub(crate) const SHORT_LEASE_SECS: u32 = longshore_tests::builder::LEASE_SECS;

/// Longest that a load may take beyond its own time: three tries of everything on a machine that compiles meanwhile.
const LOAD_PATIENCE: Duration = Duration::from_mins(5);

/// How often what has no push is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// One row's fleet.
pub(crate) struct Scene {
    pub(crate) stand: Stand,
    pub(crate) fleet: Fleet,
    /// Its coordinators, where it has two.
    pair: Option<Pair>,
    ids: BTreeMap<&'static str, WorkerId>,
    /// Whether the loads' steps leave files to one another.
    pub(crate) files: bool,
    loads: Vec<(RunId, Load)>,
    recovered: Option<Recovery>,
    proofs: Vec<String>,
}

impl Scene {
    /// A fleet with this lease that has settled a load.
    pub(crate) async fn start(stand: Stand, lease_secs: u32) -> Self {
        let fleet = Self::fleet(&stand, lease_secs, &[]);
        Self::of(stand, fleet.prepare()).await
    }

    /// One with two coordinators, of which one leads and one stands by.
    pub(crate) async fn start_with_two_coordinators(stand: Stand) -> Self {
        let pair = Pair::start().await;
        let fleet = Self::fleet(&stand, SHORT_LEASE_SECS, &[]).coordinated_by(&pair);
        Self { pair: Some(pair), ..Self::of(stand, fleet.prepare()).await }
    }

    /// A coordinator and a worker beside each Engine, where its packets can be dropped.
    pub(crate) fn fleet(stand: &Stand, lease_secs: u32, args: &[&str]) -> FleetBuilder {
        let mut fleet = Fleet::new().amqp(&stand.amqp).lease_secs(lease_secs);
        for (name, engine) in NAMES.into_iter().zip(1..) {
            fleet = fleet.worker_at(name, &stand.engine(engine), SLOTS).with(args);
            if let Some(place) = stand.place(engine) {
                fleet = fleet.at(place);
            }
        }
        fleet
    }

    /// The same, the first worker beside an Engine of a row's own.
    pub(crate) fn fleet_beside(stand: &Stand, docker: &str, lease_secs: u32) -> FleetBuilder {
        let fleet = Fleet::new().amqp(&stand.amqp).lease_secs(lease_secs);
        fleet.worker_at(NAMES[0], docker, SLOTS).worker_at(NAMES[1], &stand.engine(2), SLOTS)
    }

    /// The same, of a fleet that was prepared and not started.
    pub(crate) async fn of(stand: Stand, fleet: Fleet) -> Self {
        let mut scene = Self::fresh(stand, fleet).await;
        let before = scene.load(1).await;
        scene.settles(before).await;
        scene
    }

    /// A fleet that has done nothing yet.
    pub(crate) async fn fresh(stand: Stand, mut fleet: Fleet) -> Self {
        fleet.start().await;
        let (ids, loads, proofs) = (BTreeMap::new(), Vec::new(), Vec::new());
        let (pair, recovered) = (None, None);
        let mut scene = Self { stand, fleet, pair, ids, files: true, loads, recovered, proofs };
        for name in NAMES {
            scene.ids.insert(name, scene.fleet.worker_id(name).await);
        }
        scene
    }

    // ---- the load -------------------------------------------------------------------------

    /// Gives the fleet something to do for about so long.
    pub(crate) async fn load(&mut self, secs: u32) -> RunId {
        let load = Load { secs, files: self.files };
        let run = self.fleet.submit(&load.pipeline()).await.id;
        self.loads.push((run, load));
        run
    }

    /// The same, and waits until all kinds of steps are under way.
    pub(crate) async fn busy(&mut self, secs: u32) -> RunId {
        let run = self.load(secs).await;
        let followed = self.fleet.follow(run);
        followed.prints("long", "line 10\n").await;
        followed.prints("chatty", "line 100\n").await;
        followed.runs("leaf[n=1]").await;
        run
    }

    /// The worker that carries out a step.
    pub(crate) async fn owner(&self, run: RunId, step: &str) -> &'static str {
        let attempts = self.fleet.follow(run).step(step).await.attempts;
        let owner = attempts.last().and_then(|attempt| attempt.worker.clone()).expect("it runs somewhere");
        *self.ids.iter().find(|(_, id)| **id == owner).expect("a worker of this fleet").0
    }

    /// Waits until it has passed.
    pub(crate) async fn settles(&self, run: RunId) -> RunView {
        let secs = self.loads.iter().find(|(other, _)| *other == run).expect("a load of this scene").1.secs;
        let patience = LOAD_PATIENCE + Duration::from_secs(secs.into());
        self.fleet.follow(run).settles_within(patience, RunOutcome::Passed).await
    }

    /// Its coordinators, of a row that started with two.
    ///
    /// # Panics
    /// If it did not.
    pub(crate) fn pair(&mut self) -> &mut Pair {
        self.pair.as_mut().expect("this row has two coordinators")
    }

    // ---- what was seen ----------------------------------------------------------------------

    /// The fault bit: in words, for the table's last column.
    ///
    /// # Panics
    /// If it did not.
    pub(crate) fn proves(&mut self, bit: bool, words: impl Into<String>) {
        let words = words.into();
        assert!(bit, "the fault did not bite: {words}");
        self.proofs.push(words);
    }

    /// It took so long since then until all was well again.
    pub(crate) fn recovered_since(&mut self, then: Instant) {
        self.recovered = Some(Recovery::since(then));
    }

    /// Waits until a step, submitted now, runs; and has then recovered.
    pub(crate) async fn recovers_with_a_new_run(&mut self, since: Instant) {
        self.until_a_new_run_starts(since).await;
        self.recovered_since(since);
    }

    /// Waits until a step, submitted now, runs. How many seconds after that moment it does.
    pub(crate) async fn until_a_new_run_starts(&mut self, since: Instant) -> f64 {
        let probe = self.load(1).await;
        let started = |view: &RunView| {
            view.steps.iter().any(|step| step.attempts.iter().any(|attempt| attempt.started_at_ms.is_some()))
        };
        self.fleet.follow(probe).until("a step of a new run has started", started).await;
        since.elapsed().as_secs_f64()
    }

    /// A worker, as the coordinator sees it.
    pub(crate) async fn seen(&self, name: &str) -> WorkerView {
        let seen = self.fleet.workers_seen().await;
        seen.into_iter().find(|worker| worker.worker == self.ids[name]).expect("it was there at the start")
    }

    /// Waits until a worker of the fleet's is seen like this.
    pub(crate) async fn until_worker(&self, name: &str, what: &str, holds: impl Fn(&WorkerView) -> bool) {
        let id = &self.ids[name];
        let is_so = |seen: &[WorkerView]| seen.iter().any(|worker| worker.worker == *id && holds(worker));
        self.fleet.until_workers(&format!("{name}, {what}"), is_so).await;
    }

    /// Waits until more is heard of a worker than there was then; and has then recovered.
    pub(crate) async fn recovers_with(&mut self, name: &str, then: &WorkerView, since: Instant) {
        let silent = then.silent_ticks;
        self.until_worker(name, "heard again", |worker| worker.alive && worker.silent_ticks < silent).await;
        self.recovered_since(since);
    }

    /// Waits until the step's second attempt runs.
    pub(crate) async fn until_tried_again(&self, run: RunId, step: &str) {
        let again = |view: &RunView| {
            let step = view.steps.iter().find(|other| other.step.as_str() == step);
            let last = step.and_then(|step| step.attempts.last());
            last.is_some_and(|last| last.attempt.0 > 1 && last.started_at_ms.is_some())
        };
        self.fleet.follow(run).until(&format!("{step} is tried again"), again).await;
    }

    // ---- the end ------------------------------------------------------------------------------

    /// One more load, on a fleet that is whole again; then counts, checks, and takes everything down.
    pub(crate) async fn ends(mut self) -> Told {
        self.load(1).await;
        let mut told = Told { recovered: self.recovered, proof: self.proofs.join("; "), ..Told::default() };
        for (run, load) in &self.loads {
            let view = self.settles(*run).await;
            for step in &view.steps {
                told.steps += 1;
                told.settled += usize::from(step.outcome.is_some());
                let again = load::carried_out_again(step);
                told.again += again.len();
                told.which.extend(again);
                let (wanted, got) =
                    (load.printed(step.step.as_str()), self.fleet.follow(*run).log(step.step.as_str()).await);
                told.lost += load::lines_lost(&wanted, &got);
                assert!(wanted == got, "the log of {}: {}", step.step, first_difference(&wanted, &got));
            }
        }
        self.queues_are_empty().await;
        told.left = self.containers_left().await;
        let (amqp, topology, ids) = (self.stand.amqp.clone(), self.topology(), self.ids.clone());
        self.fleet.checks_out().await;
        // Who lives makes queues anew.
        drop(self.pair);
        forget_queues(&amqp, &topology, ids.values()).await;
        told
    }

    fn topology(&self) -> Topology {
        Topology::new(self.fleet.prefix(), Duration::from_secs(LEASE_SECS.into()))
    }

    /// Nothing waits for anybody, nothing was dead-lettered. Heartbeats, which expire, come and go.
    async fn queues_are_empty(&self) {
        let prefix = format!("{}.", self.fleet.prefix());
        let full = || {
            let list = self.stand.rabbitmqctl(&["list_queues", "--silent", "name", "messages"]);
            let ours = list.lines().filter(|line| line.starts_with(&prefix) && !line.contains(".heartbeats."));
            ours.filter(|line| !line.ends_with("\t0")).map(str::to_owned).collect::<Vec<_>>()
        };
        let emptied = within_patience(async {
            let mut look = tokio::time::interval(LOOK_EVERY);
            while !full().is_empty() {
                look.tick().await;
            }
        });
        assert!(emptied.await.is_some(), "queues with messages: {:?}", full());
    }

    /// Of steps: those that hold network namespaces are kept. Removal is off the critical path, so it is waited for.
    async fn containers_left(&self) -> usize {
        let left = || {
            let of = |(name, id): (&&str, &WorkerId)| {
                let names = named(self.fleet.engine_of(name), &format!("longshore.{id}."));
                names.into_iter().filter(|name| !is_holder(name)).count()
            };
            self.ids.iter().map(of).sum::<usize>()
        };
        within_patience(async {
            let mut look = tokio::time::interval(LOOK_EVERY);
            while left() > 0 {
                look.tick().await;
            }
        })
        .await;
        left()
    }
}

/// A row's queues are not the next one's.
async fn forget_queues(amqp: &str, topology: &Topology, workers: impl Iterator<Item = &WorkerId>) {
    let broker = AmqpBroker::new(amqp, "chaos").expect("the rows' broker");
    let pool = PoolName::default();
    for queue in
        topology.of_coordinator(Shard(0)).into_iter().chain(workers.flat_map(|id| topology.of_worker(id, &pool)))
    {
        broker.delete(&queue).await.expect("nobody uses it any more");
    }
    broker.close().await;
}

fn first_difference(wanted: &str, got: &str) -> String {
    let at = wanted.lines().zip(got.lines()).position(|(wanted, got)| wanted != got);
    let count = |text: &str| text.lines().count();
    let line = at.map_or("all that both have is the same".to_owned(), |at| {
        format!("line {} is {:?}", at + 1, got.lines().nth(at).unwrap_or_default())
    });
    format!("{} lines instead of {}; {line}", count(got), count(wanted))
}
