//! Who goes next: fair shares over tenants and runs, priorities, and how many jobs a queue holds.

use longshore_coordinator::core::effect::JobQueue;
use longshore_coordinator::pipeline::PlannedStep;
use longshore_protocol::Outcome;

use crate::bench::{Bench, Told, claim, from, plain, to, to_pool};
use crate::model::Model;

/// In which nobody runs out of work.
const TEN_MINUTES: u64 = 600_000;

fn many(count: usize) -> Vec<PlannedStep> {
    (0..count).map(|n| plain(&format!("s{n}"))).collect()
}

fn chains(count: usize, length: usize) -> Vec<PlannedStep> {
    let name = |chain: usize, n: usize| format!("c{chain}-{n}");
    // As the pipeline file's order has them: the first of every chain, the second of every chain, ...
    let step = |chain: usize, n: usize| match n {
        0 => plain(&name(chain, 0)),
        _ => from(&name(chain, n), &name(chain, n - 1)),
    };
    (0..length).flat_map(|n| (0..count).map(move |chain| step(chain, n))).collect()
}

fn urgent(priority: i32, steps: Vec<PlannedStep>) -> Vec<PlannedStep> {
    steps.into_iter().map(|step| PlannedStep { priority, ..step }).collect()
}

#[test]
fn a_run_of_three_starts_within_one_steps_length_beside_ten_thousand_queued_steps() {
    let three = || vec![plain("a"), from("b", "a"), from("c", "b")];
    for (workers, slots) in [(1, 2), (1, 8), (4, 4)] {
        for (what, big) in [("roots", many(10_000)), ("chains", chains(100, 100))] {
            let mut model = Model::new(&[], |_| 10_000);
            (0..workers).for_each(|_| model.join(slots));
            model.submit("big", big);
            model.run_until(model.now + 25_000);
            let asked = model.now;
            let run = model.submit("small", three());
            while model.core.run_summary(run).unwrap().outcome.is_none() {
                assert!(model.step());
            }
            let waited = model.first_of(run).unwrap() - asked;
            assert!(waited <= 10_000, "{what} on {workers} × {slots} slots: it began after {waited} ms");
            let took = model.now - asked;
            assert!(took <= 60_000, "{what}: three steps of 10 s took {took} ms");
            let slots = workers * slots;
            assert!(model.queued_most < slots, "{} jobs in a queue that {slots} slots read", model.queued_most);
        }
    }
}

#[test]
fn slot_time_is_received_by_weight_while_both_have_work_waiting() {
    // Steps of one are ten times as long as the other's: slots are shared, not starts.
    for lengths in [[1_000, 10_000], [10_000, 1_000], [5_000, 5_000]] {
        let takes: fn(&longshore_protocol::job::Job) -> u64 = match lengths {
            [1_000, _] => |job| if job.tenant == "one" { 1_000 } else { 10_000 },
            [10_000, _] => |job| if job.tenant == "one" { 10_000 } else { 1_000 },
            _ => |_| 5_000,
        };
        let mut model = Model::new(&[("three", 3)], takes);
        model.join(8);
        model.join(8);
        let began = model.now;
        model.submit("one", many(10_000));
        model.submit("three", many(10_000));
        let end = began + TEN_MINUTES;
        model.run_until(end);
        let [one, three] = ["one", "three"].map(|tenant| model.received(tenant, began, end) as f64);
        let ratio = three / one;
        assert!((2.7..3.3).contains(&ratio), "{lengths:?}: 1:{ratio:.2}");
        let used = (one + three) / (16.0 * TEN_MINUTES as f64);
        assert!(used > 0.99, "{lengths:?}: {used:.3} of the slots' time was used");
    }
}

#[test]
fn many_tenants_with_chains_and_roots_of_any_length_receive_the_same() {
    let takes = |job: &longshore_protocol::job::Job| 1_000 + 700 * (job.tenant.len() as u64 % 7);
    let mut model = Model::new(&[], takes);
    (0..5).for_each(|_| model.join(4));
    let tenants: Vec<String> = (0..10).map(|n| "t".repeat(n + 1)).collect();
    let began = model.now;
    for (n, tenant) in tenants.iter().enumerate() {
        model.submit(tenant, if n % 2 == 0 { many(5_000) } else { chains(200, 25) });
    }
    let end = began + 1_800_000;
    model.run_until(end);
    let shares: Vec<f64> = tenants.iter().map(|tenant| model.received(tenant, began, end) as f64).collect();
    let jain = shares.iter().sum::<f64>().powi(2) / (shares.len() as f64 * shares.iter().map(|x| x * x).sum::<f64>());
    assert!(jain >= 0.95, "Jain's index is {jain:.3}: {shares:?}");
}

#[test]
fn who_was_away_is_owed_nothing_for_that_time() {
    let mut model = Model::new(&[], |_| 1_000);
    model.join(4);
    model.submit("here", many(10_000));
    model.submit("away", many(40));
    model.run_until(model.now + 600_000);
    let back = model.now;
    model.submit("away", many(5_000));
    model.run_until(back + 200_000);
    let [here, away] = ["here", "away"].map(|tenant| model.received(tenant, back, back + 200_000) as f64);
    assert!((0.9..1.15).contains(&(away / here)), "{here} and {away}");
}

/// Its steps took twenty minutes each, and are paid for so; then they end within a second.
#[test]
fn what_was_paid_for_nothing_holds_up_neither_a_newcomer_nor_another_run() {
    let takes: fn(&longshore_protocol::job::Job) -> u64 =
        |job| if job.step.as_str().starts_with("long") { 1_200_000 } else { 1_000 };
    for newcomer in ["new", "old"] {
        let mut model = Model::new(&[], takes);
        model.join(8);
        let before = model.submit("old", (0..40).map(|n| plain(&format!("long{n}"))).collect());
        while model.core.run_summary(before).unwrap().outcome.is_none() {
            assert!(model.step());
        }
        model.submit("old", many(5_000));
        model.run_until(model.now + 3_000);
        let asked = model.now;
        let run = model.submit(newcomer, many(3));
        model.run_until(asked + 30_000);
        let waited = model.first_of(run).map(|at| at - asked);
        assert!(waited.is_some_and(|waited| waited <= 2_000), "{newcomer}: {waited:?}");
    }
}

#[test]
fn a_tenants_runs_share_alike_and_its_priorities_go_first() {
    let mut model = Model::new(&[], |_| 1_000);
    model.join(4);
    let began = model.now;
    let runs = [model.submit("t", many(2_000)), model.submit("t", many(2_000))];
    model.run_until(began + 100_000);
    let of = |model: &Model, run| model.began.iter().filter(|began| began.run == run).count();
    let counts = runs.map(|run| of(&model, run));
    assert!(counts[0].abs_diff(counts[1]) <= 8, "{counts:?}");
    // Urgent: before both, though it came last.
    let run = model.submit("t", urgent(5, many(40)));
    let before = model.began.len();
    model.run_until(model.now + 11_000);
    let others = model.began[before..].iter().filter(|began| began.run != run).count();
    assert_eq!(of(&model, run), 40);
    assert!(others <= 4 + 3 + 4, "{others} others began: what was queued, and what came after it");
}

#[test]
fn priority_is_within_a_tenant_and_takes_nothing_from_another() {
    let mut model = Model::new(&[], |_| 1_000);
    model.join(4);
    let began = model.now;
    model.submit("loud", urgent(100, many(5_000)));
    model.submit("quiet", many(5_000));
    let end = began + 300_000;
    model.run_until(end);
    let [loud, quiet] = ["loud", "quiet"].map(|tenant| model.received(tenant, began, end) as f64);
    assert!((0.95..1.05).contains(&(loud / quiet)), "{loud} and {quiet}");
}

#[test]
fn a_chain_that_was_begun_goes_on_before_its_run_begins_others() {
    let mut model = Model::new(&[], |_| 1_000);
    model.join(1);
    model.submit("t", chains(50, 10));
    model.run_until(model.now + 500_000);
    let parked_most = model
        .began
        .iter()
        .scan(0_i64, |open, began| {
            *open += i64::from(!began.from_parent) - i64::from(began.step.ends_with("-9"));
            Some(*open)
        })
        .max();
    assert_eq!(model.began.len(), 500);
    assert!(parked_most <= Some(2), "{parked_most:?} chains were under way on one slot");
}

#[test]
fn free_slots_are_filled_at_once_and_the_queue_holds_fewer_jobs_than_there_are_slots() {
    let mut bench = Bench::new();
    bench.join("a", "e", 3);
    bench.join("b", "f", 2);
    let (run, submitted) = bench.submit(many(20));
    assert_eq!(submitted.jobs().len(), 5, "a job for each free slot");
    assert!(submitted.jobs().iter().all(|(queue, _)| *queue == to_pool()));
    let mut sent = 5;
    for n in 0..5 {
        sent += bench.accept(if n < 3 { "a" } else { "b" }, &claim(run, &format!("s{n}"), 1)).jobs().len();
        let (queued, free) = (sent - n - 1, 4 - n);
        assert!(queued <= 4.max(free), "{queued} jobs are in the queue");
    }
    assert_eq!(sent - 5, 4, "all are busy: one fewer than slots waits in the queue");
    assert!(bench.finish("a", &claim(run, "s0", 1), Outcome::Passed).jobs().is_empty(), "the slot finds a job there");
    assert_eq!(bench.accept("a", &claim(run, "s5", 1)).jobs().len(), 1, "which makes room for the next");
}

#[test]
fn without_a_worker_nothing_is_dispatched_and_everything_when_one_joins() {
    let mut bench = Bench::new();
    let (run, submitted) = bench.submit(many(3));
    assert_eq!(submitted.words(), ["submitted"]);
    assert_eq!(bench.join("a", "e", 2).jobs().len(), 2);
    bench.accept("a", &claim(run, "s0", 1));
    bench.accept("a", &claim(run, "s1", 1));
    let lost = bench.ticks(30);
    assert!(lost.has("lease_ended") && lost.jobs().is_empty());
    assert!(bench.wake().jobs().is_empty(), "their backoff is over, but nobody is there");
    bench.now += 10_000;
    assert_eq!(bench.beat("a", Vec::new()).jobs().len(), 1, "the other one is still in the queue");
}

#[test]
fn a_worker_that_takes_no_steps_has_no_slots() {
    let mut bench = Bench::new();
    bench.join("a", "e", 2);
    let closed = longshore_protocol::heartbeat::Heartbeat { slots_free: 0, ..bench.heartbeat("a", Vec::new()) };
    bench.input(&longshore_coordinator::core::input::Input::Heartbeat(closed));
    assert!(bench.submit(many(1)).1.jobs().is_empty(), "it is ending, or its disk is full");
    assert_eq!(bench.beat("a", Vec::new()).jobs().len(), 1);
}

#[test]
fn a_workers_own_queue_holds_no_more_than_it_has_slots() {
    let mut bench = Bench::new();
    bench.join("a", "e", 3);
    let children = (0..20).map(|n| from(&format!("t{n}"), "s"));
    let (run, _) = bench.submit(std::iter::once(plain("s")).chain(children).collect());
    let out = bench.carry_out_parent("a", &claim(run, "s", 1)).jobs();
    assert_eq!(out.iter().map(|(queue, _)| queue.clone()).collect::<Vec<JobQueue>>(), [to("a"), to("a"), to("a")]);
    let mut queued = 3;
    for n in 0..10 {
        queued = queued + bench.accept("a", &claim(run, &format!("t{n}"), 1)).jobs().len() - 1;
        assert!(queued <= 2 || n == 0, "{queued}");
        if n >= 2 {
            queued += bench.finish("a", &claim(run, &format!("t{}", n - 2), 1), Outcome::Passed).jobs().len();
        }
        assert!(queued <= 3);
    }
}

#[test]
fn what_a_step_waits_for_is_told() {
    use longshore_coordinator::core::WaitsFor;
    use longshore_coordinator::pipeline::Concurrency;
    let grouped = |name: &str| PlannedStep {
        concurrency: Some(Concurrency { group: "g".to_owned(), max: 1 }),
        priority: 7,
        ..plain(name)
    };
    let mut bench = Bench::new();
    let pool = longshore_protocol::PoolName::default();
    let (run, _) = bench.submit(vec![grouped("s"), grouped("t"), plain("u"), from("v", "u")]);
    let told = |bench: &Bench, step: usize| bench.core.waits_for(run, step);
    assert_eq!(told(&bench, 0), Some(WaitsFor::Worker { pool: pool.clone() }));
    bench.join("a", "e", 1);
    assert_eq!(told(&bench, 0), Some(WaitsFor::Claim(to_pool())), "the highest priority");
    let held_by = vec![(run, "s".into())];
    let group = WaitsFor::Group { group: "g".to_owned(), max: 1, held_by, before: 0 };
    assert_eq!(told(&bench, 1), Some(group));
    let turn = WaitsFor::Turn { pool, slots: 1, queued: 1, waiting: 1, priority: 0 };
    assert_eq!(told(&bench, 2), Some(turn));
    assert_eq!(told(&bench, 3), Some(WaitsFor::Steps(vec!["u".into()])));
    bench.carry_out("a", &claim(run, "s", 1), Outcome::infra(longshore_protocol::InfraStage::Exec, "gone"));
    let until_ms = bench.core.next_wakeup().unwrap();
    assert_eq!(told(&bench, 0), Some(WaitsFor::Backoff { until_ms }));
    bench.accept("a", &claim(run, "t", 1));
    assert_eq!(told(&bench, 1), None, "it is with a worker");
}
