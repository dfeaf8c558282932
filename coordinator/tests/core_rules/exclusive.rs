//! Exclusive steps: who is told to begin, whose heartbeats are answered, and what is never done with them (P18).

use longshore_coordinator::core::entry::{Entry, RetryCause};
use longshore_coordinator::core::input::Input;
use longshore_coordinator::pipeline::PlannedStep;
use longshore_protocol::control::Control;
use longshore_protocol::event::{AttemptRecord, Claim, Phase};
use longshore_protocol::heartbeat::Heartbeat;
use longshore_protocol::job::{Keep, StepSpec};
use longshore_protocol::outcome::{CancelledBy, GO_VOID, InfraStage};
use longshore_protocol::{Outcome, RunId};

use crate::bench::{Bench, Told, claim, claim_of, dispatched, finished, from, plain, running, snapshot};

fn exclusive(step: PlannedStep) -> PlannedStep {
    PlannedStep { spec: StepSpec { exclusive: true, ..step.spec.clone() }, ..step }
}

/// `a` and `b`, and an exclusive step that nobody has claimed.
fn dispatch() -> (Bench, RunId, Claim) {
    let mut bench = Bench::new();
    bench.join("a", "e", 2);
    bench.join("b", "f", 2);
    let (run, _) = bench.submit(vec![exclusive(plain("s"))]);
    (bench, run, claim(run, "s", 1))
}

fn preparing(claim: &Claim) -> AttemptRecord {
    AttemptRecord { claim: claim.clone(), phase: Phase::Preparing }
}

fn go(worker: &str, claim: &Claim) -> (String, Control) {
    (worker.to_owned(), Control::Go { claim: claim.clone() })
}

fn heard(worker: &str, stamp_ms: u64, claims: &[&Claim]) -> (String, Control) {
    (worker.to_owned(), Control::Heard { stamp_ms, claims: claims.iter().copied().cloned().collect() })
}

fn beat_at(
    bench: &mut Bench,
    worker: &'static str,
    stamp_ms: u64,
    attempts: Vec<AttemptRecord>,
) -> Vec<(String, Control)> {
    let heartbeat = Heartbeat { stamp_ms, ..bench.heartbeat(worker, attempts) };
    bench.input(&Input::Heartbeat(heartbeat)).told()
}

#[test]
fn p18_the_owner_is_told_to_go_and_nobody_else() {
    let (mut bench, run, s) = dispatch();
    assert_eq!(bench.accept("a", &s).told(), [go("a", &s)]);
    assert_eq!(bench.accept("b", &s).told(), [("b".to_owned(), Control::Abandon { claim: s.clone() })]);
    let beat = beat_at(&mut bench, "b", 1, vec![preparing(&s)]);
    assert_eq!(beat, [("b".to_owned(), Control::Abandon { claim: s.clone() })]);
    // Whoever begins it again after that is called off: its job came a second time (P3).
    bench.finish("a", &s, Outcome::Passed);
    let called_off = Control::Cancel { claim: s.clone(), by: CancelledBy::User };
    assert_eq!(bench.accept("a", &s).told(), [("a".to_owned(), called_off)]);
    assert_eq!(bench.accept("b", &s).told(), [("b".to_owned(), Control::Abandon { claim: s })]);
    // Of other steps nobody waits for it.
    let other = bench.submit(vec![plain("s")]).0;
    assert_eq!(bench.accept("a", &claim(other, "s", 1)).told(), []);
    assert_ne!(run, other);
}

#[test]
fn p18_a_go_grants_the_whole_lease_that_its_receiver_counts_on() {
    let (mut bench, _, s) = dispatch();
    bench.ticks(29); // without a heartbeat
    assert_eq!(bench.accept("a", &s).told(), [go("a", &s)]);
    assert!(!bench.ticks(29).words().contains(&"ended"));
    let lost = bench.ticks(1);
    assert!(lost.words().contains(&"ended") && lost.jobs().is_empty(), "{:?}", lost.words());
}

#[test]
fn p18_a_claim_that_a_heartbeat_told_is_answered_as_well() {
    let (mut bench, _, s) = dispatch();
    let step = beat_at(&mut bench, "a", 5, vec![preparing(&s)]);
    assert_eq!(step, [go("a", &s), heard("a", 5, &[&s])]);
    assert_eq!(bench.accept("a", &s).told(), [go("a", &s)]);
}

#[test]
fn p18_a_go_is_told_again_while_it_is_waited_for_and_can_be_in_time() {
    let (mut bench, _, s) = dispatch();
    bench.accept("a", &s);
    bench.ticks(19);
    assert_eq!(beat_at(&mut bench, "a", 5, vec![preparing(&s)]), [go("a", &s), heard("a", 5, &[&s])]);
    bench.ticks(1);
    assert_eq!(beat_at(&mut bench, "a", 6, vec![preparing(&s)]), [heard("a", 6, &[&s])], "it would be void");
    // A later start of the worker asks anew, with its hello.
    assert_eq!(bench.start("a", "e", 2, 2, vec![preparing(&s)]).told(), [go("a", &s)]);
    bench.started_in("a", &s, "c");
    assert_eq!(beat_at(&mut bench, "a", 7, vec![preparing(&s)]), [heard("a", 7, &[&s])], "it runs");
}

#[test]
fn p18_heartbeats_are_answered_to_whoever_holds_an_exclusive_attempt() {
    let (mut bench, _, s) = dispatch();
    let other = bench.submit(vec![plain("s")]).0;
    let other = claim(other, "s", 1);
    bench.accept("a", &s);
    bench.accept("b", &other);
    bench.started_in("a", &s, "c");
    assert_eq!(beat_at(&mut bench, "a", 70, vec![running(&s)]), [heard("a", 70, &[&s])]);
    assert_eq!(beat_at(&mut bench, "b", 71, vec![running(&other)]), []);
    // One that overtook an event says no less that its worker lives.
    let mut early = bench.heartbeat("a", vec![running(&s)]);
    (early.last_event, early.stamp_ms) = (early.last_event + 1, 72);
    assert_eq!(bench.input(&Input::Heartbeat(early)).told(), [heard("a", 72, &[&s])]);
    // Nor does anybody count on it when it is over, or no longer its own.
    bench.finish("a", &s, Outcome::Passed);
    let over = crate::bench::over(finished(&s, Outcome::Passed));
    assert!(!beat_at(&mut bench, "a", 73, vec![over]).iter().any(|(_, told)| matches!(told, Control::Heard { .. })));
}

#[test]
fn p18_what_was_lost_is_answered_no_more_and_begins_elsewhere_only_then() {
    let (mut bench, run, s) = dispatch();
    bench.accept("a", &s);
    bench.started_in("a", &s, "c");
    assert!(bench.ticks(29).jobs().is_empty());
    bench.beat("b", vec![]);
    bench.ticks(1);
    let next = claim(run, "s", 2);
    assert_eq!(dispatched(&bench.wake()), std::slice::from_ref(&next));
    assert_eq!(bench.accept("b", &next).told(), [go("b", &next)]);
    let back = beat_at(&mut bench, "a", 9, vec![running(&s)]);
    assert_eq!(back, [("a".to_owned(), Control::Abandon { claim: s })]);
}

#[test]
fn p18_what_nobody_wants_does_not_go() {
    let (mut bench, run, s) = dispatch();
    beat_at(&mut bench, "a", 1, vec![preparing(&s)]);
    bench.input(&Input::Cancel { run, by: CancelledBy::User });
    assert_eq!(bench.accept("a", &s).told(), []);
    let told = beat_at(&mut bench, "a", 2, vec![preparing(&s)]);
    assert_eq!(told[1], heard("a", 2, &[&s]), "until it is over it is its worker's");
    assert!(matches!(told[0].1, Control::Cancel { .. }));
}

#[test]
fn p18_a_go_that_came_too_late_charges_nobody() {
    let (mut bench, run, s) = dispatch();
    for n in 1..=10 {
        let s = claim(run, "s", n);
        bench.carry_out("a", &s, Outcome::infra(InfraStage::Claim, GO_VOID));
        let step = bench.wake();
        assert_eq!(dispatched(&step), [claim(run, "s", n + 1)]);
    }
    let causes = bench.journal.iter().filter_map(|(entry, _)| match entry {
        Entry::Retried { because, .. } => Some(*because),
        _ => None,
    });
    assert!(causes.eq([RetryCause::GoVoid; 10]));
    assert_eq!(s, claim(run, "s", 1));
}

#[test]
fn p18_what_somebody_goes_on_with_is_committed() {
    let mut bench = Bench::new();
    bench.join("a", "e", 2);
    let (_, step) = bench.submit(vec![exclusive(plain("s")), from("t", "s")]);
    assert_eq!(step.jobs()[0].1.keep, Keep::Snapshot);
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (_, step) = bench.submit(vec![exclusive(plain("s"))]);
    assert_eq!(step.jobs()[0].1.keep, Keep::Nothing);
}

#[test]
fn p18_p20_an_exclusive_step_is_never_made_again() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![exclusive(plain("s")), from("t", "s"), from("u", "t")]);
    let (s, t) = (claim(run, "s", 1), claim(run, "t", 1));
    assert_eq!(dispatched(&bench.carry_out_parent("a", &s)), std::slice::from_ref(&t));
    let step = bench.not_found("a", &t);
    assert!(!step.has("remake_begun") && step.has("left_lost"), "{:?}", step.words());
    let because = "lineage: s is exclusive, so what it left is not made again: t did not find it";
    let lineage = Outcome::infra(InfraStage::Prepare, because);
    let skipped = Outcome::Skipped { because: "t".to_owned() };
    assert_eq!(step.settled(), [(t.execution, lineage), (claim(run, "u", 1).execution, skipped)]);
    assert_eq!(bench.core.step_view(run, 0).unwrap().outcome, Some(Outcome::Passed));
}

#[test]
fn p18_p20_nor_for_the_sake_of_one_that_is() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![exclusive(plain("s")), from("t", "s"), from("u", "t")]);
    let (s, t, u) = (claim(run, "s", 1), claim(run, "t", 1), claim(run, "u", 1));
    bench.carry_out_parent("a", &s);
    bench.park("a", &t, "c");
    // `t` is made again from what `s` left; and that is gone as well.
    let again = bench.not_found("a", &u).jobs().remove(0).1;
    assert_eq!(
        (claim_of(&again), again.base),
        (crate::bench::remake(run, "t", 1, 1), crate::bench::parent(&s, Some(snapshot(&s))))
    );
    let step = bench.not_found("a", &crate::bench::remake(run, "t", 1, 1));
    assert!(!step.has("remake_begun"), "{:?}", step.words());
    let outcome = bench.core.step_view(run, 2).unwrap().outcome.unwrap();
    assert_eq!(outcome, Outcome::infra(InfraStage::Prepare, "lineage"));
}
