//! Two coordinators on Postgres and RabbitMQ: what happens when the one that leads is killed, or frozen and woken behind
//! its successor (P21, P22).

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use longshore_coordinator::core::view::RunOutcome;
use longshore_protocol::broker::amqp::AmqpBroker;
use longshore_protocol::broker::{Broker as _, Consumer, Outgoing};
use longshore_protocol::control::{Control, ControlMessage};
use longshore_protocol::event::Claim;
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::topology::{Queue, Topology};
use longshore_protocol::{Attempt, Epoch, Incarnation, RunId, Shard, WorkerId, wire};
use longshore_tests::own::OwnServices;
use longshore_tests::pair::Pair;
use longshore_tests::postgres::Database;
use longshore_tests::process::within_patience;
use longshore_tests::{Fleet, Run, services};

/// One step that prints for half a minute, and beside it some that follow each other: there is always an event, a line
/// of output or a heartbeat on its way when the leader goes.
const PIPELINE: &str = r#"
name: over-the-gap
defaults: {image: "longshore-test/busybox:latest"}
steps:
  - name: long
    run: |
      for i in $(seq 1 300); do echo "line $i"; sleep 0.1; done
  - name: a
    run: sleep 2; echo a
  - {name: b, from: a, run: "sleep 2; echo b"}
  - {name: c, from: b, run: "sleep 2; echo c"}
  - {name: d, from: c, run: "sleep 2; echo d"}
  - {name: e, from: d, run: "sleep 2; echo e"}
  - {name: f, from: e, run: "sleep 2; echo f"}
  - name: end
    needs: [long, f]
    run: echo end
"#;

const ONE_STEP: &str = "name: one\nsteps:\n  - {name: a, image: 'longshore-test/busybox:latest', run: echo a}\n";

/// Messages that the old leader is made to hold: none can be read, so whoever gets them back says so in the dead letters.
const HELD: usize = 20;

/// Promised: takeover within 5 s of a kill, and what was prefetched handled within 10 s of a freeze. A test asserts ten
/// times that; the table says what it was.
const TAKEOVER: Duration = Duration::from_secs(5);
const HANDLED: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill,
    Freeze,
}

/// What became of one fault.
#[derive(Debug)]
struct Row {
    fault: &'static str,
    taken_over: Duration,
    handled: Duration,
    /// Journalled under the old epoch behind the first row of the new one.
    rows: i64,
    /// Sent under the old epoch behind the first command of the new one, and not ignored by the worker.
    obeyed: u64,
    /// Sent by the old one after it was woken; and ignored by the worker, of those and the one that this test forges.
    sent: u64,
    ignored: u64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p21_p22_a_leader_that_is_killed_or_frozen_is_succeeded_and_writes_and_commands_nothing_more() {
    let rows = [fail_over(Fault::Kill).await, fail_over(Fault::Freeze).await];
    println!(
        "| the leader is | s to take over | s until what it held was handled | rows of its epoch written after | its commands sent after | … obeyed | ignored, one forged among them |"
    );
    println!("|---|---|---|---|---|---|---|");
    for Row { fault, taken_over, handled, rows, obeyed, sent, ignored } in &rows {
        let (taken_over, handled) = (taken_over.as_secs_f64(), handled.as_secs_f64());
        println!("| {fault} | {taken_over:.1} | {handled:.1} | {rows} | {sent} | {obeyed} | {ignored} |");
    }
    for row in rows {
        assert!(row.taken_over < TAKEOVER * 10 && row.handled < HANDLED * 10, "{row:?}");
        // More than the forged one where what the old one was about to write when it was stopped went out when it woke.
        assert_eq!((row.rows, row.obeyed, row.ignored), (0, 0, row.sent + 1), "{row:?}");
    }
}

async fn fail_over(fault: Fault) -> Row {
    let mut pair = Pair::start().await;
    let mut fleet = Fleet::new().worker("one", 1).coordinated_by(&pair).start().await;
    let worker = fleet.worker_id("one").await;
    let broker = AmqpBroker::new(fleet.amqp(), "the test").expect("an address");
    let topology = Topology::new(fleet.prefix(), Pair::LEASE);
    let mut commands = Commands::tap(&broker, &topology, &worker).await;
    let (run, mut client) = fleet.submit_and_watch(&written(&fleet, "long", PIPELINE));
    client.says("long | line 10").await;

    let (old, epoch) = (pair.leader().await, pair.epoch().await);
    pair.signal(old, "STOP").await;
    let mut begun = Instant::now();
    hold(&broker, &topology).await;
    if fault == Fault::Kill {
        pair.kill(old).await;
        begun = Instant::now();
    }
    // Submitted while nobody leads: the client sends it again under the same id until it is taken.
    let (late, submitting) = fleet.submit_file(&written(&fleet, "late", ONE_STEP));
    let handled = tokio::spawn(handled(broker.clone(), topology.clone(), begun));
    pair.heir_of(old).await;
    let taken_over = begun.elapsed();
    let (code, said) = submitting.ends().await;
    assert_eq!(code, 0, "{said:#?}");
    let handled = handled.await.expect("it does not panic");

    // The run goes on under the new epoch, and the worker has heard of it.
    let new = commands.first_of_later(epoch).await;
    let sent_before = commands.count(epoch).await;
    let ignored_before = fleet.worker_metric("one", "longshore_worker_fenced_total").await;
    if fault == Fault::Freeze {
        pair.signal(old, "CONT").await;
        pair.process(old).says("no longer leading").await;
    }
    forge(&broker, &topology, &worker, epoch, &fleet.follow(run), commands.incarnation.expect("heard")).await;
    fleet.until_metric("one", "longshore_worker_fenced_total", |fenced| fenced > ignored_before).await;

    let (code, said) = client.ends().await;
    assert_eq!(code, 0, "{said:#?}");
    let printed: Vec<&str> = said.iter().filter_map(|line| line.strip_prefix("long | ")).collect();
    let expected: Vec<String> = (1..=300).map(|i| format!("line {i}")).collect();
    assert_eq!(printed, expected, "every line once, though the stream was cut");
    for run in [run, late] {
        let view = fleet.follow(run).settles(RunOutcome::Passed).await;
        for step in &view.steps {
            assert_eq!(step.attempts.len(), 1, "{} was carried out again", step.step);
        }
    }
    let (_, rows) = pair.rows_of(epoch).await;
    let ignored = fleet.worker_metric("one", "longshore_worker_fenced_total").await - ignored_before;
    // One of these is this test's own.
    let sent = commands.count(epoch).await - sent_before - 1;
    assert!(new > epoch);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    // a small count, and never less than the forged one
    let ignored = ignored as u64;
    let obeyed = (sent + 1).saturating_sub(ignored);
    broker.close().await;
    fleet.checks_out().await;
    let fault = if fault == Fault::Kill { "killed (-9)" } else { "frozen, then woken" };
    Row { fault, taken_over, handled, rows, obeyed, sent, ignored }
}

fn written(fleet: &Fleet, name: &str, pipeline: &str) -> PathBuf {
    let file = fleet.dir().join(format!("{name}.yaml"));
    std::fs::write(&file, pipeline).expect("writable");
    file
}

/// Puts messages into the events' queue until the frozen consumer holds them.
async fn hold(broker: &AmqpBroker, topology: &Topology) {
    let events = topology.events(Shard(0));
    let garbage = (0..HELD).map(|n| Outgoing::new(events.address(), format!("garbage {n}").into_bytes()));
    broker.publish(garbage.collect()).await.expect("the broker is there");
    let held = async {
        let mut interval = tokio::time::interval(Duration::from_millis(20));
        let mut looks = 0;
        // RabbitMQ says 0 as well where it does not hear from the queue within 250 ms.
        while looks < 20 {
            interval.tick().await;
            looks = if broker.waiting(&events).await.expect("the queue is there") > 0 { 0 } else { looks + 1 };
        }
    };
    assert!(within_patience(held).await.is_some(), "nobody has prefetched them");
}

/// How long it took until each of them was in the dead letters.
async fn handled(broker: AmqpBroker, topology: Topology, begun: Instant) -> Duration {
    let mut letters = broker.consume(&topology.dead_letters(), 32).await.expect("the queue can be made");
    let mut seen = BTreeSet::new();
    let all = async {
        while seen.len() < HELD {
            let letter = letters.next().await.expect("the broker is there");
            seen.insert(letter.body.clone());
            letter.ack().await.ok();
        }
    };
    assert!(within_patience(all).await.is_some(), "some never came back");
    begun.elapsed()
}

/// Everything that a worker is told, as it is published.
struct Commands {
    consumer: Consumer,
    told: Vec<Epoch>,
    incarnation: Option<Incarnation>,
}

impl Commands {
    async fn tap(broker: &AmqpBroker, topology: &Topology, worker: &WorkerId) -> Self {
        let own = topology.control(worker);
        let tap = Queue { name: format!("{}.tapped", own.name), ..own };
        let consumer = broker.consume(&tap, 64).await.expect("the queue can be made");
        Self { consumer, told: Vec::new(), incarnation: None }
    }

    async fn next(&mut self) {
        let delivery = self.consumer.next().await.expect("the broker is there");
        for message in wire::decode_all::<ControlMessage>(&delivery.body).expect("a coordinator can be read") {
            self.told.push(message.epoch);
            self.incarnation = Some(message.incarnation);
        }
        delivery.ack().await.expect("the broker is there");
    }

    /// Waits for the first command of a later epoch.
    async fn first_of_later(&mut self, epoch: Epoch) -> Epoch {
        let found = async {
            loop {
                if let Some(later) = self.told.iter().find(|told| **told > epoch) {
                    return *later;
                }
                self.next().await;
            }
        };
        within_patience(found).await.expect("the new leader commands something")
    }

    /// How many of an epoch there were so far.
    async fn count(&mut self, epoch: Epoch) -> u64 {
        // What was confirmed to its publisher is in this queue as well: nothing more comes at once.
        while tokio::time::timeout(Duration::from_millis(300), self.next()).await.is_ok() {}
        self.told.iter().filter(|told| **told == epoch).count() as u64
    }
}

/// What a leader that does not know better would say: end a step that runs.
async fn forge(
    broker: &AmqpBroker,
    topology: &Topology,
    worker: &WorkerId,
    epoch: Epoch,
    run: &Run<'_>,
    incarnation: Incarnation,
) {
    let step = run.step("long").await;
    let claim = Claim { run: run.id, execution: step.execution, attempt: Attempt(1) };
    let control = Control::Cancel { claim, by: CancelledBy::User };
    let message = ControlMessage { epoch, worker: worker.clone(), incarnation, control };
    let forged = Outgoing::new(topology.control(worker).address(), wire::encode(&message));
    broker.publish(vec![forged]).await.expect("the broker is there");
}

#[tokio::test]
async fn one_that_stands_by_shows_runs_and_passes_on_what_only_the_leader_can_do() {
    let pair = Pair::start().await;
    let fleet = Fleet::new().worker("one", 1).coordinated_by(&pair).start().await;
    let run = fleet.submit(ONE_STEP).await;
    run.settles(RunOutcome::Passed).await;
    let leader = pair.leader().await;
    let stand_by = 1 - leader;
    pair.stands_by(stand_by).await;
    let http = reqwest::Client::builder().no_proxy().build().expect("no TLS to set up");
    let url = |path: &str| format!("http://{}{path}", pair.address_of(stand_by));
    let answer = async |request: reqwest::RequestBuilder| {
        let answer = request.send().await.expect("it answers");
        (answer.status().as_u16(), answer.text().await.expect("a body"))
    };
    // From the store.
    assert_eq!(answer(http.get(url(&format!("/v1/runs/{}", run.id)))).await.0, 200);
    let (_, log) = answer(http.get(url(&format!("/v1/runs/{}/logs?step=a", run.id)))).await;
    assert_eq!(log, "a\n");
    // By the leader.
    let (status, workers) = answer(http.get(url("/v1/workers"))).await;
    assert!(status == 200 && workers.contains("\"alive\":true"), "{status}: {workers}");
    let plan =
        longshore_coordinator::pipeline::parse("test.yaml", ONE_STEP).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let other = RunId::new();
    let submit = || http.post(url("/v1/runs")).json(&serde_json::json!({ "run": other, "pipeline": plan }));
    assert_eq!(answer(submit()).await.0, 201);
    assert_eq!(answer(submit()).await.0, 200, "one run");
    let (status, refused) = answer(http.post(url(&format!("/v1/runs/{}/cancel", RunId::new())))).await;
    assert!(status == 404 && refused.contains("not_found"), "{status}: {refused}");
    fleet.follow(other).settles(RunOutcome::Passed).await;
    fleet.checks_out().await;
}

/// What was answered is there, what was not is submitted again under the same id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p21_coordinators_whose_database_died_lead_again_when_it_is_back() {
    // Of the test's own, so that nobody else's tests lose theirs.
    let server = OwnServices::prepare("postgres");
    server.up("postgres");
    let mut pair = Pair::start_on(Database::create_on(&server.env("LONGSHORE_TEST_POSTGRES")).await).await;
    let fleet = Fleet::new().worker("one", 1).coordinated_by(&pair).start().await;
    let run = fleet.submit(ONE_STEP).await;
    run.settles(RunOutcome::Passed).await;
    let long = fleet.submit("name: long\nsteps:\n  - {name: a, image: 'longshore-test/busybox:latest', run: 'echo on; sleep 15; echo off'}\n").await;
    long.prints("a", "on").await;
    let epoch = pair.epoch().await;

    let leader = pair.leader().await;
    services::script(&["kill", server.path(), "postgres"]);
    // That it is not ready is seen sooner, but its reign ends with what it writes next: were the server back by then, it
    // would go on.
    pair.process(leader).says("no longer leading").await;
    pair.nobody_leads().await;
    services::script(&["start", server.path(), "postgres"]);
    pair.leader().await;
    assert!(pair.epoch().await > epoch, "a new reign");
    let again = fleet.submit_as(RunId::new(), ONE_STEP).await;
    again.settles(RunOutcome::Passed).await;
    let view = long.settles(RunOutcome::Passed).await;
    assert_eq!(view.steps[0].attempts.len(), 1, "its worker kept it");
    fleet.checks_out().await;
}
