//! The driver on the wire: what a worker sends and is sent, what a crash leaves.

#![allow(clippy::unwrap_used)] // a test's helper that fails has failed its test

mod support;

use std::collections::BTreeMap;

use longshore_coordinator::Coordinator;
use longshore_coordinator::core::entry::Entry;
use longshore_coordinator::core::view::{RunOutcome, StepPhase};
use longshore_coordinator::store::Store as _;
use longshore_coordinator::store::sqlite::SqliteStore;
use longshore_protocol::broker::memory::MemoryBroker;
use longshore_protocol::broker::{Broker, BrokerError, Consumer, Outgoing, PublishError, QUEUE_HEADER, REASON_HEADER};
use longshore_protocol::control::Control;
use longshore_protocol::event::{AttemptRecord, Event, Phase};
use longshore_protocol::output::Offsets;
use longshore_protocol::topology::Queue;
use longshore_protocol::{Attempt, Outcome, PoolName};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use support::{CHAIN, Fleet, ONE_STEP, SHARD, ScriptedWorker, claim, line, patiently};

#[tokio::test]
async fn a_chain_is_submitted_carried_out_and_settled() {
    let mut fleet = Fleet::start().await;
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let run = fleet.submitted(CHAIN).await;
    for step in ["build", "test"] {
        let job = worker.next_job().await;
        assert_eq!((job.step.as_str(), job.attempt), (step, Attempt::FIRST));
        worker.carry_out(&job).await;
        let settled = worker.told(|control| matches!(control, Control::Settled { .. })).await;
        assert_eq!(settled.control, Control::Settled { claim: claim(&job) });
        assert_eq!((settled.incarnation, settled.epoch.0), (worker.incarnation, 1));
    }
    let view = fleet.settled(run).await;
    assert_eq!(view.summary.outcome, Some(RunOutcome::Passed));
    assert_eq!((view.summary.steps, view.summary.steps_settled), (2, 2));
    assert!(view.steps.iter().all(|step| step.phase == StepPhase::Settled && step.attempts.len() == 1));
    assert_eq!(fleet.text(&format!("/v1/runs/{run}/logs")).await, b"build | output of build\ntest | output of test\n");
    fleet.stop().await;
}

/// Notes in which order queues are consumed and ticks are sent; declaring takes a while, as on a wire.
#[derive(Clone)]
struct Noted {
    broker: MemoryBroker,
    notes: mpsc::UnboundedSender<&'static str>,
}

impl Broker for Noted {
    async fn declare(&self, queues: &[Queue]) -> Result<(), BrokerError> {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        self.broker.declare(queues).await
    }

    async fn publish(&self, messages: Vec<Outgoing>) -> Result<(), PublishError> {
        self.notes.send("published").unwrap();
        self.broker.publish(messages).await
    }

    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Consumer, BrokerError> {
        let consumer = self.broker.consume(queue, prefetch).await;
        self.notes.send("consumed").unwrap();
        consumer
    }

    async fn waiting(&self, queue: &Queue) -> Result<u32, BrokerError> {
        self.broker.waiting(queue).await
    }

    async fn delete(&self, queue: &Queue) -> Result<(), BrokerError> {
        self.broker.delete(queue).await
    }

    fn connected(&self) -> bool {
        self.broker.connected()
    }

    async fn close(&self) {
        self.broker.close().await;
    }
}

/// A broker closes the channel on which something is sent to an exchange that does not exist yet.
#[tokio::test]
async fn p8_the_clock_ticks_only_when_its_queue_is_there_and_consumed() {
    let fleet = Fleet::stopped(|_| {});
    let (notes, mut noted) = mpsc::unbounded_channel();
    let broker = Noted { broker: fleet.broker.another(), notes };
    let coordinator = Coordinator::open(fleet.config(), broker).await.unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(coordinator.run(stop.clone()));
    for expected in ["consumed", "consumed", "consumed", "published", "published"] {
        assert_eq!(patiently("a note", noted.recv()).await, Some(expected));
    }
    stop.cancel();
    patiently("the end", running).await.unwrap().unwrap();
}

/// A run that was taken must be carried out although the coordinator died before it published anything.
#[tokio::test]
async fn p3_outbox_left_by_a_crash_is_carried_out_first() {
    let mut fleet = Fleet::start().await;
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    fleet.knows("w1").await;
    fleet.cut_off().await;
    let first = fleet.submitted(ONE_STEP).await;
    fleet.crash().await;
    let store = SqliteStore::open(&fleet.file()).await.unwrap();
    assert_eq!(store.outbox_rows().await.unwrap(), 1, "committed with the run, not confirmed");
    fleet.restart().await;
    let second = fleet.submitted(ONE_STEP).await;
    let jobs = [worker.next_job().await, worker.next_job().await];
    assert_eq!([jobs[0].run, jobs[1].run], [first, second], "what was left comes first");
    for job in &jobs {
        worker.carry_out(job).await;
        worker.told(|control| matches!(control, Control::Settled { .. })).await;
    }
    for run in [first, second] {
        assert_eq!(fleet.settled(run).await.summary.outcome, Some(RunOutcome::Passed));
    }
    let entries = store.entries_of(first).await.unwrap();
    let dispatched = entries.iter().filter(|entry| matches!(entry, Entry::Dispatched { .. })).count();
    assert_eq!(dispatched, 1, "carried out again is not dispatched anew: {entries:?}");
    fleet.stop().await;
}

/// More rows than one statement takes, of every kind that comes with a run; and as many confirms at once.
#[tokio::test]
async fn p3_a_large_run_is_written_whole_and_its_outbox_is_emptied() {
    const STEPS: usize = 1_201;
    let fleet = Fleet::start().await;
    fleet.idler("w1", u32::try_from(STEPS).unwrap()).await;
    let steps: Vec<String> = (1..=STEPS).map(|n| format!("  - {{name: s{n}, image: busybox, run: echo}}")).collect();
    let run = fleet.submitted(&format!("name: large\nsteps:\n{}", steps.join("\n"))).await;
    let view = fleet.show(run).await;
    let names: Vec<String> = view.steps.iter().map(|step| step.step.to_string()).collect();
    assert_eq!(names, (1..=STEPS).map(|n| format!("s{n}")).collect::<Vec<_>>());
    let store = SqliteStore::open(&fleet.file()).await.unwrap();
    assert_eq!(store.entries_of(run).await.unwrap().len(), 1 + STEPS, "submitted, and each step dispatched");
    assert_eq!(store.open_logs().await.unwrap().len(), STEPS);
    patiently("every confirm", async {
        while store.outbox_rows().await.unwrap() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let queue = fleet.topology().pool_jobs(SHARD, &PoolName::default());
    assert_eq!(fleet.broker.waiting(&queue).await.unwrap() as usize, STEPS);
}

#[tokio::test]
async fn p5_the_first_claim_owns_and_the_second_is_told_to_abandon() {
    let fleet = Fleet::start().await;
    let mut first = ScriptedWorker::join(&fleet, "w1").await;
    let run = fleet.submitted(ONE_STEP).await;
    let job = first.next_job().await;
    let mut second = ScriptedWorker::join(&fleet, "w2").await;
    first.event(Event::Accepted(claim(&job))).await;
    second.event(Event::Accepted(claim(&job))).await;
    let told = second.next_control().await;
    assert_eq!(told.control, Control::Abandon { claim: claim(&job) });
    // P12: what it says of the attempt changes nothing.
    second.output(&claim(&job), vec![line(0, "not mine")]).await;
    second.finished(&job, Outcome::Failed { exit: 9 }, Offsets::default()).await;
    second.told(|control| matches!(control, Control::Abandon { .. })).await;
    first.carry_out(&job).await;
    let view = fleet.settled(run).await;
    assert_eq!(view.summary.outcome, Some(RunOutcome::Passed));
    assert_eq!(view.steps[0].attempts[0].worker, Some(first.id.clone()));
    assert_eq!(fleet.text(&format!("/v1/runs/{run}/logs?step=build")).await, b"output of build\n");
}

#[tokio::test]
async fn p9_a_missing_number_is_asked_for_and_records_close_the_gap() {
    let fleet = Fleet::start().await;
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let run = fleet.submitted(ONE_STEP).await;
    let job = worker.next_job().await;
    // Its `accepted` is lost: number 2 never arrives, number 3 does.
    worker.number += 1;
    let started = longshore_protocol::event::Started {
        claim: claim(&job),
        prepare_ms: 1,
        queue_to_start_ms: 1,
        container: "c".to_owned(),
    };
    worker.event(Event::Started(started)).await;
    worker.told(|control| *control == Control::Sync).await;
    let record = AttemptRecord { claim: claim(&job), phase: Phase::Running };
    worker.event(Event::Records { records: vec![record] }).await;
    worker.finished(&job, Outcome::Failed { exit: 3 }, Offsets::default()).await;
    let view = fleet.settled(run).await;
    assert_eq!(view.steps[0].outcome, Some(Outcome::Failed { exit: 3 }));
    assert_eq!(view.steps[0].attempts.len(), 1);
}

#[tokio::test]
async fn p14_missing_output_is_asked_for_again_and_repeats_are_cut() {
    let fleet = Fleet::start().await;
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let run = fleet.submitted(ONE_STEP).await;
    let job = worker.next_job().await;
    worker.started(&job).await;
    let all = [line(0, "one"), line(4, "two"), line(8, "three")];
    let end = all[2].end();
    worker.output(&claim(&job), all[..1].to_vec()).await;
    // The second message is lost.
    worker.output(&claim(&job), all[2..].to_vec()).await;
    worker.finished(&job, Outcome::Passed, Offsets { stdout: end, stderr: 0 }).await;
    let stored = loop {
        let told = worker.told(|control| matches!(control, Control::Resend { .. })).await;
        if let Control::Resend { stored, .. } = told.control {
            break stored;
        }
    };
    assert!(stored.stdout <= 4, "{stored:?}");
    // From the middle of a line on, and with what was there before: cut to what is new.
    let mut piece = line(2, "e");
    piece.data.0 = b"e".to_vec();
    worker.output(&claim(&job), vec![line(0, "one"), piece, line(4, "two"), line(8, "three")]).await;
    worker.told(|control| matches!(control, Control::Settled { .. })).await;
    assert_eq!(fleet.settled(run).await.summary.outcome, Some(RunOutcome::Passed));
    assert_eq!(fleet.text(&format!("/v1/runs/{run}/logs?step=build")).await, b"one\ntwo\nthree\n");
}

#[tokio::test]
async fn p12_output_that_overtakes_its_claim_is_asked_for_once_the_owner_is_known() {
    let fleet = Fleet::start().await;
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let run = fleet.submitted(ONE_STEP).await;
    let job = worker.next_job().await;
    let lines = vec![line(0, "early")];
    worker.output(&claim(&job), lines.clone()).await;
    worker.started(&job).await;
    // Whichever came first, the line is stored or asked for: a worker sends it again when asked.
    worker.finished(&job, Outcome::Passed, Offsets { stdout: 6, stderr: 0 }).await;
    loop {
        match worker.next_control().await.control {
            Control::Resend { .. } => worker.output(&claim(&job), lines.clone()).await,
            Control::Settled { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(fleet.text(&format!("/v1/runs/{run}/logs?step=build")).await, b"early\n");
}

#[tokio::test]
async fn p1_garbage_goes_to_the_dead_letters_and_the_next_message_is_handled() {
    let fleet = Fleet::start().await;
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let topology = fleet.topology();
    let queues = [topology.events(SHARD), topology.heartbeats(SHARD), topology.output(SHARD)];
    for queue in &queues {
        worker.raw(queue, b"\xff garbage".to_vec()).await;
        worker.raw(queue, br#"{"v":2,"type":"tick"}"#.to_vec()).await;
    }
    let mut dead = fleet.broker.consume(&topology.dead_letters(), 10).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..queues.len() * 2 {
        let letter = patiently("a dead letter", dead.next()).await.unwrap();
        assert!(letter.headers.contains_key(REASON_HEADER));
        seen.push(letter.headers[QUEUE_HEADER].clone());
        letter.ack().await.unwrap();
    }
    seen.sort();
    let mut expected: Vec<String> = queues.iter().flat_map(|queue| [queue.name.clone(), queue.name.clone()]).collect();
    expected.sort();
    assert_eq!(seen, expected);
    // Behind the garbage every queue goes on: a run needs events and output, and ticks the heartbeats.
    let run = fleet.submitted(ONE_STEP).await;
    let job = worker.next_job().await;
    worker.carry_out(&job).await;
    assert_eq!(fleet.settled(run).await.summary.outcome, Some(RunOutcome::Passed));
}

#[tokio::test]
async fn p8_a_silent_worker_is_lost_after_its_lease_and_its_step_goes_on_elsewhere() {
    let fleet = Fleet::start_with(|config| {
        config.core.lease_ticks = 20;
        config.core.infra_backoff_ms = 1;
    })
    .await;
    let mut silent = ScriptedWorker::join(&fleet, "w1").await;
    let run = fleet.submitted(ONE_STEP).await;
    let job = silent.next_job().await;
    silent.started(&job).await;
    drop(silent);
    // The other one is silent between its events as well: its lease begins when the first one's has ended.
    let mut events = fleet.events(&format!("/v1/runs/{run}/events"), None).await;
    while events.next().await.expect("the run is not over").1["step"]["attempts"][0]["outcome"].is_null() {}
    let mut other = ScriptedWorker::join(&fleet, "w2").await;
    let again = other.next_job().await;
    assert_eq!((again.execution, again.attempt), (job.execution, Attempt(2)));
    other.carry_out(&again).await;
    let view = fleet.settled(run).await;
    assert_eq!(view.summary.outcome, Some(RunOutcome::Passed));
    assert!(view.steps[0].attempts[0].outcome.as_ref().is_some_and(Outcome::is_infra));
    // P14: its log ends in a gap whose size nobody knows.
    let log = fleet.text(&format!("/v1/runs/{run}/logs?step=build&attempt=1")).await;
    assert!(String::from_utf8(log).unwrap().contains("not known"));
}

#[tokio::test]
async fn p6_a_job_lost_from_its_queue_is_dispatched_anew() {
    let fleet = Fleet::start_with(|config| config.core.accept_deadline_ticks = 5).await;
    fleet.idler("idle", 9).await;
    let run = fleet.submitted(ONE_STEP).await;
    let queue = fleet.topology().pool_jobs(SHARD, &PoolName::default());
    patiently("the job in its queue", async {
        while fleet.broker.waiting(&queue).await.unwrap() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    fleet.broker.delete(&queue).await.unwrap();
    // Attempts follow each other until somebody claims one: each is gone as long as nobody reads the queue.
    let mut events = fleet.events(&format!("/v1/runs/{run}/events"), None).await;
    while events.next().await.expect("the run is not over").1["step"]["attempts"][1].is_null() {}
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let job = worker.next_job().await;
    assert!(job.attempt > Attempt::FIRST, "the first one is gone");
    worker.carry_out(&job).await;
    let view = fleet.settled(run).await;
    assert_eq!(view.summary.outcome, Some(RunOutcome::Passed));
    assert_eq!(view.steps[0].attempts[0].outcome, None, "gone is no fault of anybody's");
}

/// Two processes on one file: the second one waits, and takes over what the first one left.
#[tokio::test]
async fn p21_a_second_coordinator_stands_by_until_the_first_lapses() {
    let mut fleet = Fleet::start().await;
    let second = Coordinator::open(fleet.config(), fleet.broker.another()).await.unwrap();
    let (router, mut leading) = (second.router(), second.leading());
    let stop = CancellationToken::new();
    let running = tokio::spawn(second.run(stop.clone()));
    let run = fleet.submitted(CHAIN).await;
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let job = worker.next_job().await;
    worker.carry_out(&job).await;
    worker.told(|control| matches!(control, Control::Settled { .. })).await;
    assert!(!*leading.borrow(), "one leads");
    fleet.crash().await;
    patiently("the heir", leading.wait_for(|leading| *leading)).await.unwrap();
    fleet.router = router;
    let job = worker.next_job().await;
    worker.carry_out(&job).await;
    // P3: what the first one had not noted as confirmed is told again, under its own epoch.
    let settled = worker.told(|control| *control == Control::Settled { claim: claim(&job) }).await;
    assert_eq!(settled.epoch.0, 2);
    assert_eq!(fleet.settled(run).await.summary.outcome, Some(RunOutcome::Passed));
    stop.cancel();
    running.await.unwrap().unwrap();
}

/// Kills the coordinator at moments of a seed's choosing; the run settles once per step all the same.
#[tokio::test]
async fn a_coordinator_killed_at_any_batch_is_replaced_and_the_run_settles() {
    let seed = std::env::var("LONGSHORE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        u64::from(now.subsec_nanos())
    });
    println!("LONGSHORE_SEED={seed}");
    let mut random = seed;
    let mut chance = move |of: u64| {
        // SplitMix64's step is enough to choose moments.
        random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (random ^ (random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)) % of
    };
    for round in 0..5 {
        println!("round {round}");
        let mut fleet = Fleet::start().await;
        let mut worker = ScriptedWorker::join(&fleet, "w1").await;
        let run = fleet
            .submitted(
                "name: many\nsteps:\n  - {name: a, image: busybox, run: echo}\n  - {name: b, from: a, run: echo}\n  \
                 - {name: c, from: a, run: echo}\n  - {name: d, image: busybox, run: echo, needs: [b, c]}\n",
            )
            .await;
        let mut jobs = BTreeMap::new();
        while jobs.len() < 4 {
            let job = worker.next_job().await;
            // P4: a job may come twice, a worker that has its record drops it.
            if jobs.insert(job.execution, job.attempt).is_some() {
                continue;
            }
            if chance(2) == 0 {
                fleet.crash().await;
                fleet.restart().await;
            }
            worker.started(&job).await;
            for _ in 0..chance(20) {
                tokio::task::yield_now().await;
            }
            if chance(2) == 0 {
                fleet.crash().await;
            }
            let lines = vec![line(0, "x")];
            worker.output(&claim(&job), lines.clone()).await;
            worker.finished(&job, Outcome::Passed, Offsets { stdout: 2, stderr: 0 }).await;
            if fleet.is_down() {
                fleet.restart().await;
            }
            // A worker answers until it is told that its record may go (P9, P14).
            loop {
                match worker.next_control().await.control {
                    // What a crash gave back may come in another order, which looks like a gap.
                    Control::Sync => {
                        let finished = worker.result(&job, Outcome::Passed, Offsets { stdout: 2, stderr: 0 });
                        let record = AttemptRecord { claim: claim(&job), phase: Phase::Finished(Box::new(finished)) };
                        worker.event(Event::Records { records: vec![record] }).await;
                    }
                    Control::Resend { .. } => worker.output(&claim(&job), lines.clone()).await,
                    Control::Settled { claim: settled } if settled == claim(&job) => break,
                    _ => {}
                }
            }
        }
        assert!(jobs.values().all(|attempt| *attempt == Attempt::FIRST), "seed {seed}: {jobs:?}");
        let view = fleet.settled(run).await;
        assert_eq!(view.summary.outcome, Some(RunOutcome::Passed), "seed {seed}");
        let store = SqliteStore::open(&fleet.file()).await.unwrap();
        let entries = store.entries_of(run).await.unwrap();
        let settled = entries.iter().filter(|entry| matches!(entry, Entry::Settled { .. })).count();
        assert_eq!(settled, 4, "seed {seed}: {entries:?}");
        for step in ["a", "b", "c", "d"] {
            assert_eq!(fleet.text(&format!("/v1/runs/{run}/logs?step={step}")).await, b"x\n", "seed {seed}");
        }
    }
}

#[tokio::test]
async fn p3_a_confirmed_message_leaves_the_outbox_though_nothing_else_is_written() {
    let mut fleet = Fleet::start().await;
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let run = fleet.submitted(ONE_STEP).await;
    let job = worker.next_job().await;
    worker.carry_out(&job).await;
    worker.told(|control| matches!(control, Control::Settled { .. })).await;
    fleet.settled(run).await;
    // The last confirm has no transaction of its own: its row goes with the next one, or when the epoch is renewed.
    let store = SqliteStore::open(&fleet.file()).await.unwrap();
    patiently("an empty outbox", async {
        while store.outbox_rows().await.unwrap() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    store.close().await;
    fleet.stop().await;
}
