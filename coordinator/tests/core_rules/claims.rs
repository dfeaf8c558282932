//! Who owns an attempt (P5), when it is over (P11), and what is stale (P12).

use longshore_coordinator::core::input::Input;
use longshore_coordinator::core::{Fenced, OutputFence};
use longshore_protocol::control::Control;
use longshore_protocol::event::{Event, Started};
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::{Incarnation, Outcome};

use crate::bench::{Bench, Told, claim, id, plain};

const FIRST: Incarnation = Incarnation { start: 1, nonce: 100 };

#[test]
fn p5_the_first_claim_makes_the_owner_and_every_later_one_is_abandoned() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    bench.join("b", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    let s = claim(run, "s", 1);
    assert!(bench.accept("a", &s).has("accepted"));
    let second = bench.accept("b", &s);
    assert_eq!(second.told(), [("b".to_owned(), Control::Abandon { claim: s.clone() })]);
    assert_eq!((second.words(), second.fenced), (vec!["heard"], vec![Fenced::Accepted]));
    // The owner itself may say it again, with another number: a resend after a restart of the broker.
    let again = bench.accept("a", &s);
    assert_eq!((again.words(), again.told()), (vec!["heard"], Vec::new()));
    assert_eq!(bench.core.step_view(run, 0).unwrap().attempts[0].worker, Some(id("a")));
}

#[test]
fn p5_a_claim_of_what_was_never_dispatched_is_abandoned() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    for stale in [claim(run, "s", 2), claim(run, "other", 1), claim(longshore_protocol::RunId::new(), "s", 1)] {
        let step = bench.accept("a", &stale);
        assert_eq!(step.told(), [("a".to_owned(), Control::Abandon { claim: stale })]);
    }
}

#[test]
fn p5_a_worker_whose_lease_has_ended_becomes_no_owner_until_it_is_back() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    let s = claim(run, "s", 1);
    bench.ticks(30);
    assert_eq!(bench.accept("a", &s).words(), ["heard"]); // late: it may well be dead
    let beat = bench.beat("a", vec![crate::bench::running(&s)]);
    assert_eq!(beat.words(), ["back", "accepted"]);
}

#[test]
fn p11_the_outcome_is_fixed_by_finished_and_a_lease_that_ends_later_changes_nothing() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    let s = claim(run, "s", 1);
    bench.accept("a", &s);
    let step = bench.event("a", Event::Finished(crate::bench::with_output(&s, Outcome::Failed { exit: 4 }, 9)));
    assert_eq!(step.words(), ["heard", "ended", "settled", "run_settled"]);
    let lost = bench.ticks(31);
    assert_eq!(lost.words(), ["lease_ended", "log_closed"]);
    assert!(lost.jobs().is_empty());
}

#[test]
fn p11_a_claimed_step_is_cancelled_only_when_its_owner_says_so_or_is_lost() {
    for lost in [false, true] {
        let mut bench = Bench::new();
        bench.join("a", "e", 1);
        let (run, _) = bench.submit(vec![plain("s")]);
        let s = claim(run, "s", 1);
        bench.accept("a", &s);
        let by = CancelledBy::User;
        let asked = bench.input(&Input::Cancel { run, by: by.clone() });
        assert_eq!(asked.words(), ["cancel_asked"]);
        assert_eq!(asked.told(), [("a".to_owned(), Control::Cancel { claim: s.clone(), by: by.clone() })]);
        let cancelled = Outcome::Cancelled { by };
        let end = if lost { bench.ticks(30) } else { bench.finish("a", &s, cancelled.clone()) };
        assert_eq!(end.settled(), [(s.execution, cancelled)]);
        assert!(end.has("run_settled") && !end.has("retried"));
    }
}

#[test]
fn p12_only_the_owner_starts_and_finishes() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    bench.join("b", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    let s = claim(run, "s", 1);
    bench.accept("a", &s);
    let started = Started { claim: s.clone(), prepare_ms: 1, queue_to_start_ms: 1, container: "b's".to_owned() };
    let stale = bench.event("b", Event::Started(started.clone()));
    assert_eq!((stale.words(), stale.fenced), (vec!["heard"], vec![Fenced::Started]));
    let stale = bench.finish("b", &s, Outcome::Passed);
    assert_eq!((stale.words(), stale.fenced.clone()), (vec!["heard"], vec![Fenced::Finished]));
    assert_eq!(stale.told(), [("b".to_owned(), Control::Abandon { claim: s.clone() })]);
    assert_eq!(bench.event("a", Event::Started(started)).words(), ["heard", "started"]);
    assert_eq!(bench.finish("a", &s, Outcome::Passed).settled(), [(s.execution, Outcome::Passed)]);
}

#[test]
fn p12_a_result_that_comes_after_the_lease_is_stale() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    let s = claim(run, "s", 1);
    bench.accept("a", &s);
    bench.ticks(30);
    let late = bench.finish("a", &s, Outcome::Passed);
    assert_eq!((late.settled(), late.fenced), (Vec::new(), vec![Fenced::Finished]));
    bench.beat("a", Vec::new());
    assert_eq!(bench.wake().jobs()[0].1.attempt, claim(run, "s", 2).attempt);
}

#[test]
fn p12_output_is_early_until_there_is_an_owner_and_stale_from_others() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    bench.join("b", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    let s = claim(run, "s", 1);
    let fence = |bench: &Bench, worker, incarnation| bench.core.output_fence(&id(worker), incarnation, &s);
    assert_eq!(fence(&bench, "a", FIRST), OutputFence::Early);
    bench.accept("a", &s);
    assert_eq!(fence(&bench, "a", FIRST), OutputFence::Current);
    assert_eq!(fence(&bench, "b", FIRST), OutputFence::Stale);
    assert_eq!(fence(&bench, "a", Incarnation { start: 2, nonce: 0 }), OutputFence::Early);
    assert_eq!(fence(&bench, "a", Incarnation { start: 0, nonce: 0 }), OutputFence::Stale);
    bench.event("a", Event::Finished(crate::bench::with_output(&s, Outcome::Passed, 5)));
    assert_eq!(fence(&bench, "a", FIRST), OutputFence::Current, "its log is open");
    let offsets = longshore_protocol::output::Offsets { stdout: 5, stderr: 0 };
    bench.input(&Input::Stored { claim: s.clone(), offsets });
    assert_eq!(fence(&bench, "a", FIRST), OutputFence::Stale, "its log is closed");
}
