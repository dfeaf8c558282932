//! One step is cancelled, and the rest of its run goes on: at every stage of a step.

use longshore_coordinator::core::Step;
use longshore_coordinator::core::input::Input;
use longshore_coordinator::core::view::{RunOutcome, StepPhase};
use longshore_coordinator::pipeline::{PlannedStep, Retry};
use longshore_protocol::control::Control;
use longshore_protocol::outcome::{CancelledBy, InfraStage};
use longshore_protocol::{ExecutionId, Outcome, RunId};

use crate::bench::{Bench, Told, claim, from, needs, plain};

const BY_USER: Outcome = Outcome::Cancelled { by: CancelledBy::User };

fn cancel(bench: &mut Bench, run: RunId, steps: &[&str]) -> Step {
    let steps = steps.iter().map(|step| ExecutionId::of_step(run, &(*step).into())).collect();
    bench.input(&Input::CancelSteps { run, steps })
}

fn outcome(bench: &Bench, run: RunId, step: usize) -> Option<String> {
    bench.core.step_view(run, step).unwrap().outcome.map(|outcome| outcome.to_string())
}

fn verdict(bench: &Bench, run: RunId) -> Option<RunOutcome> {
    bench.core.run_summary(run).unwrap().outcome
}

#[test]
fn a_cancelled_step_takes_what_waits_for_it_along_and_nothing_else() {
    let mut bench = Bench::new();
    bench.join("a", "e", 4);
    let steps = vec![plain("gone"), from("child", "gone"), needs("grandchild", &["child"]), plain("other")];
    let (run, _) = bench.submit(steps);
    bench.accept("a", &claim(run, "gone", 1));
    let asked = cancel(&mut bench, run, &["gone"]);
    // P11: its owner has it, so it is over by its owner's word.
    assert_eq!(asked.words(), ["step_cancel_asked"]);
    let told = Control::Cancel { claim: claim(run, "gone", 1), by: CancelledBy::User };
    assert_eq!(asked.told(), [("a".to_owned(), told)]);
    assert!(bench.core.step_view(run, 0).unwrap().cancelling);
    assert_eq!(cancel(&mut bench, run, &["gone"]).words(), [""; 0], "asked for once more");
    let over = bench.finish("a", &claim(run, "gone", 1), BY_USER);
    assert!(!over.has("cancel_asked"), "it is no failure");
    let skipped = Some("skipped because of gone".to_owned());
    assert_eq!((outcome(&bench, run, 1), outcome(&bench, run, 2)), (skipped.clone(), skipped));
    assert_eq!((outcome(&bench, run, 3), verdict(&bench, run)), (None, None));
    bench.carry_out("a", &claim(run, "other", 1), Outcome::Passed);
    assert_eq!(verdict(&bench, run), Some(RunOutcome::Cancelled), "not everything passed");
    assert!(!bench.core.step_view(run, 0).unwrap().cancelling);
    assert_eq!(cancel(&mut bench, run, &["gone", "other"]).words(), [""; 0], "what is settled stays as it is");
}

#[test]
fn a_step_that_is_queued_waiting_or_backing_off_is_cancelled_at_once() {
    let mut bench = Bench::new();
    bench.join("a", "e", 4);
    let steps = vec![
        plain("queued"),
        PlannedStep { retry: Retry { backoff_ms: 60_000, ..Retry::times(3) }, ..plain("backs-off") },
        plain("first"),
        needs("waits", &["first"]),
        needs("behind", &["waits"]),
    ];
    let (run, _) = bench.submit(steps);
    bench.carry_out("a", &claim(run, "backs-off", 1), Outcome::Failed { exit: 1 });
    assert_eq!(bench.core.step_view(run, 1).unwrap().phase, StepPhase::Waiting);
    let asked = cancel(&mut bench, run, &["queued", "backs-off", "waits"]);
    let settled: Vec<_> = asked.settled().into_iter().map(|(_, outcome)| outcome).collect();
    let skipped = Outcome::Skipped { because: "waits".to_owned() };
    assert_eq!(settled, [BY_USER, BY_USER, BY_USER, skipped]);
    // The job that was withdrawn is claimed after all: its worker is told so.
    assert!(matches!(bench.accept("a", &claim(run, "queued", 1)).told()[0].1, Control::Abandon { .. }));
    // The timer of the backoff finds nothing to do.
    assert!(bench.wake().entries.is_empty());
    bench.carry_out("a", &claim(run, "first", 1), Outcome::Passed);
    assert_eq!(verdict(&bench, run), Some(RunOutcome::Cancelled));
}

#[test]
fn p13_a_parked_parent_is_let_go_of_when_its_only_child_is_cancelled() {
    let mut bench = Bench::new();
    bench.join("a", "e", 2);
    let steps =
        vec![plain("first"), plain("parent"), PlannedStep { needs: vec!["first".into()], ..from("child", "parent") }];
    let (run, _) = bench.submit(steps);
    bench.park("a", &claim(run, "parent", 1), "c1");
    let asked = cancel(&mut bench, run, &["child"]);
    assert_eq!(asked.words(), ["step_cancel_asked", "settled", "released"]);
    assert_eq!(asked.released(), [("a".to_owned(), claim(run, "parent", 1))]);
}

#[test]
fn p11_a_cancelled_step_whose_worker_is_cut_off_is_over_by_the_end_of_its_lease() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    bench.accept("a", &claim(run, "s", 1));
    cancel(&mut bench, run, &["s"]);
    assert!(bench.ticks(29).entries.is_empty(), "nobody has said that it is over");
    let ended = bench.ticks(1);
    assert!(ended.has("lease_ended") && ended.settled()[0].1 == BY_USER, "{:?}", ended.words());
    assert_eq!(verdict(&bench, run), Some(RunOutcome::Cancelled));
}

#[test]
fn a_cancelled_step_is_not_tried_again_and_what_it_said_last_counts() {
    let mut bench = Bench::new();
    bench.join("a", "e", 2);
    let retry = || Retry::times(3);
    let steps =
        vec![PlannedStep { retry: retry(), keep_going: true, ..plain("fails") }, plain("passes"), plain("breaks")];
    let (run, _) = bench.submit(steps);
    for step in ["fails", "passes", "breaks"] {
        bench.accept("a", &claim(run, step, 1));
    }
    cancel(&mut bench, run, &["fails", "passes", "breaks"]);
    bench.finish("a", &claim(run, "fails", 1), Outcome::Failed { exit: 3 });
    // Promise 2: it had passed before it heard of that.
    bench.finish("a", &claim(run, "passes", 1), Outcome::Passed);
    bench.finish("a", &claim(run, "breaks", 1), Outcome::infra(InfraStage::Exec, "the Engine went away"));
    let by = Some("cancelled by the user".to_owned());
    assert_eq!((outcome(&bench, run, 0), outcome(&bench, run, 2)), (by.clone(), by));
    assert_eq!(outcome(&bench, run, 1), Some("passed".to_owned()));
    assert_eq!(verdict(&bench, run), Some(RunOutcome::Cancelled));
}

#[test]
fn a_coordinator_that_restarts_tells_the_owner_again() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    bench.accept("a", &claim(run, "s", 1));
    cancel(&mut bench, run, &["s"]);
    bench.restart();
    let led = bench.input(&Input::Lead { epoch: crate::bench::EPOCH });
    assert!(matches!(led.told()[0].1, Control::Cancel { .. }), "{:?}", led.told());
}
