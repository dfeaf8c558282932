//! A settled run is opened again: what is carried out anew, from what, and that it settles once for each asking.

use longshore_coordinator::core::entry::Entry;
use longshore_coordinator::core::input::{Input, Millis};
use longshore_coordinator::core::retry::Missed;
use longshore_coordinator::core::view::RunOutcome;
use longshore_coordinator::core::{NotRetried, Step};
use longshore_coordinator::pipeline::{PlannedStep, Retry};
use longshore_protocol::event::Event;
use longshore_protocol::outcome::{CancelledBy, InfraStage};
use longshore_protocol::{Attempt, ExecutionId, Outcome, RunId};

use crate::bench::{Bench, Told, claim, dispatched, finished, from, needs, plain, remake};

const FAILED: Outcome = Outcome::Failed { exit: 1 };

fn infra() -> Outcome {
    Outcome::infra(InfraStage::Exec, "the Engine went away")
}

fn retry(bench: &mut Bench, run: RunId, only: &[Missed]) -> Step {
    bench.input(&Input::Retry { run, only: only.to_vec() })
}

fn names(run: RunId, steps: &[&str]) -> Vec<ExecutionId> {
    steps.iter().map(|step| ExecutionId::of_step(run, &(*step).into())).collect()
}

fn verdict(bench: &Bench, run: RunId) -> Option<RunOutcome> {
    bench.core.run_summary(run).unwrap().outcome
}

/// One that passed, one that failed with two behind it, one of the fleet's faults with one behind it.
fn mixed(bench: &mut Bench) -> RunId {
    bench.join("a", "e", 4);
    let keeps_going = |step| PlannedStep { keep_going: true, ..step };
    let (run, _) = bench.submit(vec![
        keeps_going(plain("good")),
        keeps_going(needs("bad", &["good"])),
        keeps_going(needs("behind", &["bad"])),
        keeps_going(plain("broken")),
        keeps_going(needs("last", &["behind", "broken"])),
    ]);
    bench.carry_out("a", &claim(run, "good", 1), Outcome::Passed);
    bench.carry_out("a", &claim(run, "bad", 1), FAILED);
    for attempt in 1..=4 {
        bench.carry_out("a", &claim(run, "broken", attempt), infra());
        if attempt < 4 {
            bench.wake();
        }
    }
    assert_eq!(verdict(bench, run), Some(RunOutcome::Failed));
    run
}

#[test]
fn only_what_is_asked_for_is_tried_again_with_what_waits_for_it() {
    let mut bench = Bench::new();
    let run = mixed(&mut bench);
    let would = |only: &[Missed]| bench.core.retryable(run, only);
    assert_eq!(would(&[]), Ok(names(run, &["bad", "behind", "broken", "last"])));
    // `last` waits for `broken` as well, which stays as it is.
    assert_eq!(would(&[Missed::Failed]), Ok(names(run, &["bad", "behind"])));
    assert_eq!(would(&[Missed::Infra]), Ok(names(run, &["broken"])));
    assert_eq!(would(&[Missed::Infra, Missed::Failed]), Ok(names(run, &["bad", "behind", "broken", "last"])));
    assert_eq!(would(&[Missed::Missing]), Err(NotRetried::Nothing), "they wait for what would not be tried again");
    assert_eq!(bench.core.retryable(RunId::new(), &[]), Err(NotRetried::Unknown));
}

#[test]
fn a_retry_goes_on_counting_forgives_what_was_charged_and_settles_once_more() {
    let mut bench = Bench::new();
    let run = mixed(&mut bench);
    let asked = retry(&mut bench, run, &[]);
    assert_eq!(asked.words(), ["retry_asked", "dispatched", "dispatched"]);
    assert_eq!(dispatched(&asked), [claim(run, "bad", 2), claim(run, "broken", 5)]);
    assert_eq!(bench.core.run_summary(run).unwrap().retries, 1);
    assert_eq!((verdict(&bench, run), bench.core.retryable(run, &[])), (None, Err(NotRetried::Open)));
    // The fleet's limit is whole again.
    for attempt in 5..=7 {
        assert!(bench.carry_out("a", &claim(run, "broken", attempt), infra()).has("retried"));
        bench.wake();
    }
    bench.carry_out("a", &claim(run, "broken", 8), Outcome::Passed);
    bench.carry_out("a", &claim(run, "bad", 2), Outcome::Passed);
    bench.carry_out("a", &claim(run, "behind", 1), Outcome::Passed);
    let last = bench.carry_out("a", &claim(run, "last", 1), Outcome::Passed);
    assert!(last.has("run_settled"));
    assert_eq!(verdict(&bench, run), Some(RunOutcome::Passed));
    assert_eq!(bench.core.retryable(run, &[]), Err(NotRetried::AllPassed));
    assert!(retry(&mut bench, run, &[]).entries.is_empty());
    // P12: an attempt of before is as stale as ever.
    assert!(
        bench.finish("a", &claim(run, "bad", 1), Outcome::Passed).entries.iter().all(|entry| entry.run().is_none())
    );
}

#[test]
fn a_cancelled_run_is_opened_again_and_may_be_cancelled_again() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s"), needs("t", &["s"])]);
    for attempt in 1..=2 {
        bench.accept("a", &claim(run, "s", attempt));
        assert!(bench.input(&Input::Cancel { run, by: CancelledBy::User }).has("cancel_asked"));
        bench.finish("a", &claim(run, "s", attempt), Outcome::Cancelled { by: CancelledBy::User });
        assert_eq!(verdict(&bench, run), Some(RunOutcome::Cancelled));
        assert_eq!(dispatched(&retry(&mut bench, run, &[Missed::Missing])), [claim(run, "s", attempt + 1)]);
    }
    bench.carry_out("a", &claim(run, "s", 3), Outcome::Passed);
    bench.carry_out("a", &claim(run, "t", 1), Outcome::Passed);
    assert_eq!(verdict(&bench, run), Some(RunOutcome::Passed));
}

#[test]
fn a_sibling_that_was_called_off_follows_the_one_that_failed() {
    let mut bench = Bench::new();
    bench.join("a", "e", 2);
    let (run, _) = bench.submit(vec![plain("bad"), plain("other")]);
    bench.carry_out("a", &claim(run, "bad", 1), FAILED);
    assert_eq!(verdict(&bench, run), Some(RunOutcome::Failed));
    // It does not wait for the one that failed: it is its own to ask for.
    assert_eq!(bench.core.retryable(run, &[Missed::Failed]), Ok(names(run, &["bad"])));
    assert_eq!(dispatched(&retry(&mut bench, run, &[])), [claim(run, "bad", 2), claim(run, "other", 2)]);
    let again = bench.carry_out("a", &claim(run, "bad", 2), FAILED);
    assert!(again.has("cancel_asked"), "it fails fast each time");
}

#[test]
fn p20_a_parents_files_that_were_let_go_of_are_made_again() {
    let mut bench = Bench::new();
    bench.join("a", "e", 2);
    let (run, _) = bench.submit(vec![plain("base"), from("build", "base"), from("test", "build")]);
    bench.park("a", &claim(run, "base", 1), "c1");
    bench.park("a", &claim(run, "build", 1), "c1");
    let over = bench.carry_out("a", &claim(run, "test", 1), FAILED);
    assert!(over.has("released") && over.has("run_settled"), "{:?}", over.words());
    let mut asked = retry(&mut bench, run, &[Missed::Failed]);
    // As often as it takes: each asking has its own bound.
    for n in 1..=4 {
        let test = claim(run, "test", n + 1);
        let remakes = asked.words().iter().filter(|word| **word == "remake_begun").count();
        assert_eq!(remakes, 2, "{:?}", asked.words());
        assert_eq!(dispatched(&asked), [remake(run, "base", n, 1)]);
        bench.park("a", &remake(run, "base", n, 1), "c1");
        let made = bench.park("a", &remake(run, "build", n, 1), "c1");
        assert_eq!(dispatched(&made), std::slice::from_ref(&test));
        let over = bench.carry_out("a", &test, FAILED);
        assert!(over.has("run_settled"));
        asked = retry(&mut bench, run, &[]);
    }
}

#[test]
fn a_forgotten_run_is_recalled_from_its_journal_though_its_workers_are_gone() {
    let mut bench = Bench::new();
    let run = mixed(&mut bench);
    let (other, _) = bench.submit(vec![plain("other")]);
    bench.ticks(30); // the lease of its worker ends
    bench.start("a", "e", 4, 2, Vec::new());
    bench.core.forget(run);
    assert_eq!(bench.core.retryable(run, &[]), Err(NotRetried::Unknown));
    let of_run = |(entry, at): &(Entry, Millis)| {
        let wanted = entry.run().is_none_or(|of| of == run) && !matches!(entry, Entry::Heard { .. });
        wanted.then(|| (*at, entry.clone()))
    };
    let entries: Vec<_> = bench.journal.iter().filter_map(of_run).collect();
    bench.core.recall(run, entries.clone()).unwrap();
    assert_eq!(dispatched(&retry(&mut bench, run, &[Missed::Failed])), [claim(run, "bad", 2)]);
    // Twice is once: what is in memory is ahead of what was read.
    bench.core.recall(run, entries).unwrap();
    let passed = Event::Finished(finished(&claim(run, "bad", 2), Outcome::Passed));
    assert!(bench.event("a", passed).has("settled"));
    assert!(bench.core.run_summary(other).unwrap().outcome.is_none());
}

#[test]
fn promise_1_a_run_settles_once_for_each_asking() {
    let mut bench = Bench::new();
    let run = mixed(&mut bench);
    let refused = |bench: &Bench, entry: Entry| bench.replayed().replay(&entry, 1).unwrap_err().why;
    let settled = Entry::RunSettled { run, outcome: RunOutcome::Failed };
    assert_eq!(refused(&bench, settled.clone()), "the run is settled");
    let asking = |steps: &[&str]| Entry::RetryAsked { run, only: Vec::new(), steps: names(run, steps) };
    for (steps, why) in [
        (&[][..], "no step is asked for"),
        (&["good"], "the step passed"),
        (&["behind"], "a step that it waits for has not passed"),
        (&["bad", "bad"], "the step is asked for twice"),
    ] {
        assert_eq!(refused(&bench, asking(steps)), why);
    }
    retry(&mut bench, run, &[]);
    assert_eq!(refused(&bench, asking(&["bad"])), "the run is not settled");
    assert_eq!(refused(&bench, settled), "a step is not settled");
}

#[test]
fn the_users_rule_is_whole_again_after_a_retry() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![PlannedStep { retry: Retry::times(1), ..plain("s") }]);
    for asking in 0..2 {
        for attempt in 1..=2 {
            bench.carry_out("a", &claim(run, "s", asking * 2 + attempt), FAILED);
        }
        assert_eq!(verdict(&bench, run), Some(RunOutcome::Failed));
        retry(&mut bench, run, &[]);
    }
    assert_eq!(bench.core.step_view(run, 0).unwrap().attempts.last().unwrap().attempt, Attempt(5));
}
