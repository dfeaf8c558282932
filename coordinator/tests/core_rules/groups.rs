//! Concurrency groups: how many at a time, in which order, until when (P11).

use longshore_coordinator::core::Step;
use longshore_coordinator::pipeline::{Concurrency, PlannedStep};
use longshore_protocol::outcome::InfraStage;
use longshore_protocol::{Outcome, RunId};

use crate::bench::{Bench, Told, claim, from, needs, plain};

fn grouped(step: PlannedStep, max: u32) -> PlannedStep {
    PlannedStep { concurrency: Some(Concurrency { group: "g".to_owned(), max }), ..step }
}

fn names(step: &Step) -> Vec<String> {
    step.jobs().iter().map(|(_, job)| job.step.to_string()).collect()
}

fn three() -> Vec<PlannedStep> {
    ["s", "t", "u"].map(|name| grouped(plain(name), 1)).to_vec()
}

#[test]
fn one_of_a_group_is_under_way_whatever_its_run_and_each_tenant_has_its_own() {
    let mut bench = Bench::new();
    bench.join("a", "e", 9);
    let (first, submitted) = bench.submit(vec![grouped(plain("s"), 1), grouped(plain("t"), 1), plain("free")]);
    assert_eq!(names(&submitted), ["s", "free"]);
    let (second, submitted) = bench.submit(vec![grouped(plain("v"), 1)]);
    assert_eq!(names(&submitted), [""; 0]);
    let other = bench.submit_of("other", vec![grouped(plain("w"), 1)]).1;
    assert_eq!(names(&other), ["w"]);
    assert_eq!(names(&bench.carry_out("a", &claim(first, "s", 1), Outcome::Passed)), ["t"], "the older one");
    assert_eq!(names(&bench.carry_out("a", &claim(first, "t", 1), Outcome::Passed)), ["v"]);
    assert!(bench.carry_out("a", &claim(second, "v", 1), Outcome::Passed).has("run_settled"));
}

#[test]
fn p11_a_group_is_released_by_its_owners_word_or_the_end_of_its_lease_and_not_before() {
    for lost in [false, true] {
        let mut bench = Bench::new();
        bench.join("a", "e", 3);
        bench.join("b", "f", 3);
        let (run, _) = bench.submit(three());
        let (other, _) = bench.submit(vec![grouped(plain("v"), 1)]);
        bench.accept("a", &claim(run, "s", 1));
        let cancelled = bench.input(&longshore_coordinator::core::input::Input::Cancel {
            run,
            by: longshore_protocol::outcome::CancelledBy::User,
        });
        assert_eq!(names(&cancelled), [""; 0], "it is called off, and still under way");
        let over = if lost {
            let mut all = Step::default();
            for _ in 0..31 {
                bench.beat("b", Vec::new());
                all.effects.extend(bench.ticks(1).effects);
            }
            all
        } else {
            let by = longshore_protocol::outcome::CancelledBy::User;
            bench.finish("a", &claim(run, "s", 1), Outcome::Cancelled { by })
        };
        assert_eq!(names(&over), ["v"], "lost: {lost}");
        assert!(bench.core.run_summary(other).unwrap().outcome.is_none());
    }
}

#[test]
fn a_group_is_held_again_by_each_try_and_a_later_step_does_not_overtake() {
    let mut bench = Bench::new();
    bench.join("a", "e", 9);
    let (run, _) = bench.submit(three());
    let failed = bench.carry_out("a", &claim(run, "s", 1), Outcome::infra(InfraStage::Exec, "the Engine went away"));
    assert_eq!(names(&failed), ["t"], "while it waits for its backoff it holds nothing");
    assert_eq!(names(&bench.wake()), [""; 0]);
    assert_eq!(names(&bench.carry_out("a", &claim(run, "t", 1), Outcome::Passed)), ["u"]);
    assert_eq!(names(&bench.carry_out("a", &claim(run, "u", 1), Outcome::Passed)), ["s"]);
}

#[test]
fn who_waits_for_a_group_goes_by_priority_and_then_by_age() {
    let mut bench = Bench::new();
    bench.join("a", "e", 9);
    let (run, _) = bench.submit(vec![grouped(plain("s"), 1), grouped(plain("old"), 1)]);
    bench.now += 1_000;
    let steps = vec![grouped(plain("young"), 1), PlannedStep { priority: 1, ..grouped(plain("urgent"), 1) }];
    let (later, _) = bench.submit(steps);
    assert_eq!(names(&bench.carry_out("a", &claim(run, "s", 1), Outcome::Passed)), ["urgent"]);
    assert_eq!(names(&bench.carry_out("a", &claim(later, "urgent", 1), Outcome::Passed)), ["old"]);
    assert_eq!(names(&bench.carry_out("a", &claim(run, "old", 1), Outcome::Passed)), ["young"]);
}

#[test]
fn as_many_as_max_are_under_way_and_a_chain_in_one_group_does_not_wait_for_itself() {
    let mut bench = Bench::new();
    bench.join("a", "e", 9);
    let steps = (0..5).map(|n| grouped(plain(&format!("s{n}")), 2)).collect();
    let (run, submitted) = bench.submit(steps);
    assert_eq!(submitted.jobs().len(), 2);
    bench.restart();
    assert_eq!(bench.carry_out("a", &claim(run, "s0", 1), Outcome::Passed).jobs().len(), 1, "also after a restart");

    let (run, _) = bench.submit_of("other", vec![grouped(plain("s"), 1), grouped(from("t", "s"), 1)]);
    assert_eq!(names(&bench.park("a", &claim(run, "s", 1), "c")), ["t"]);
    // Its files are lost: what makes them again needs the place that it was to have.
    let step = bench.not_found("a", &claim(run, "t", 1));
    assert_eq!(names(&step), ["s"], "made again");
}

#[test]
fn a_step_that_never_begins_leaves_the_line() {
    let mut bench = Bench::new();
    bench.join("a", "e", 9);
    let bad = PlannedStep { keep_going: true, ..plain("bad") };
    let (run, _) = bench.submit(vec![bad, grouped(needs("s", &["bad"]), 1), grouped(plain("t"), 1)]);
    let (later, _) = bench.submit(vec![grouped(plain("v"), 1)]);
    bench.carry_out("a", &claim(run, "bad", 1), Outcome::Failed { exit: 1 });
    assert_eq!(names(&bench.carry_out("a", &claim(run, "t", 1), Outcome::Passed)), ["v"]);
    let cancel = |run: RunId| longshore_coordinator::core::input::Input::Cancel {
        run,
        by: longshore_protocol::outcome::CancelledBy::User,
    };
    // A job that nobody claimed is withdrawn at once, and its place is free.
    assert!(bench.input(&cancel(later)).has("run_settled"));
    assert_eq!(names(&bench.submit(vec![grouped(plain("w"), 1)]).1), ["w"]);
}
