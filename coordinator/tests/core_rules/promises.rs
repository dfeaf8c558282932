//! Settling (promises 1, 2 and 5), cancelling and skipping (P13), and replay.

use longshore_coordinator::core::entry::{Entry, RetryCause};
use longshore_coordinator::core::input::Input;
use longshore_coordinator::core::view::{RunOutcome, StepPhase};
use longshore_coordinator::core::{Core, CoreConfig};
use longshore_coordinator::pipeline::{PlannedStep, Retry, RetryOn};
use longshore_protocol::event::Event;
use longshore_protocol::outcome::{CancelledBy, HANDED_BACK, InfraStage};
use longshore_protocol::{Outcome, RunId};

use crate::bench::{Bench, Told, claim, from, needs, plain};

const FAILED: Outcome = Outcome::Failed { exit: 2 };

fn infra() -> Outcome {
    Outcome::infra(InfraStage::Exec, "the Engine went away")
}

fn outcome(bench: &Bench, run: RunId, step: usize) -> String {
    bench.core.step_view(run, step).unwrap().outcome.map(|outcome| outcome.to_string()).unwrap_or_default()
}

fn verdict(bench: &Bench, run: RunId) -> Option<RunOutcome> {
    bench.core.run_summary(run).unwrap().outcome
}

#[test]
fn a_run_submitted_twice_is_one_run() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, first) = bench.submit(vec![plain("s")]);
    assert_eq!(first.jobs().len(), 1);
    let again = bench.submit_as(run, vec![plain("s")]);
    assert_eq!((again.entries.len(), again.effects.len()), (0, 0));
}

#[test]
fn infra_is_the_fleets_to_retry_and_the_users_rule_never_sees_it() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![PlannedStep { retry: Retry::times(1), ..plain("s") }]);
    let causes = |bench: &Bench| -> Vec<RetryCause> {
        let cause = |entry: &Entry| match entry {
            Entry::Retried { because, .. } => Some(*because),
            _ => None,
        };
        bench.journal.iter().filter_map(|(entry, _)| cause(entry)).collect()
    };
    bench.carry_out("a", &claim(run, "s", 1), infra());
    assert_eq!(bench.core.step_view(run, 0).unwrap().phase, StepPhase::Waiting);
    bench.wake();
    let users = bench.carry_out("a", &claim(run, "s", 2), FAILED);
    assert_eq!(users.jobs().len(), 1, "the user's retry waits for nothing");
    for attempt in 3..=4 {
        bench.carry_out("a", &claim(run, "s", attempt), infra());
        bench.wake();
    }
    assert_eq!(causes(&bench), [RetryCause::Infra, RetryCause::User, RetryCause::Infra, RetryCause::Infra]);
    bench.carry_out("a", &claim(run, "s", 5), infra());
    assert_eq!((outcome(&bench, run, 0), verdict(&bench, run)), (infra().to_string(), Some(RunOutcome::Infra)));
}

#[test]
fn what_a_leaving_worker_hands_back_is_charged_to_nobody() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    let handed_back = || Outcome::infra(InfraStage::Exec, HANDED_BACK);
    for attempt in 1..=10 {
        let tried = bench.carry_out("a", &claim(run, "s", attempt), handed_back());
        assert_eq!(tried.jobs().len(), 1, "at once: whoever handed it back is not asked again");
    }
    // The fleet's own limit is whole.
    for attempt in 11..=13 {
        bench.carry_out("a", &claim(run, "s", attempt), infra());
        assert_eq!(bench.wake().jobs().len(), 1);
    }
    bench.carry_out("a", &claim(run, "s", 14), infra());
    assert_eq!(outcome(&bench, run, 0), infra().to_string());
}

#[test]
fn the_users_rule_names_its_failures_and_its_patience() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let rule = Retry { max: 3, on: vec![RetryOn::Exit(2), RetryOn::OomKilled], backoff_ms: 60_000 };
    let (run, _) = bench.submit(vec![PlannedStep { retry: rule, ..plain("s") }]);
    let mut waits = Vec::new();
    for (attempt, ended) in [(1, FAILED), (2, Outcome::OomKilled)] {
        let before = bench.now;
        let tried = bench.carry_out("a", &claim(run, "s", attempt), ended);
        assert!(tried.jobs().is_empty(), "it waits");
        assert_eq!(bench.core.step_view(run, 0).unwrap().phase, StepPhase::Waiting);
        assert_eq!(bench.wake().jobs().len(), 1);
        waits.push(bench.now - before);
    }
    assert!((45_000..=75_000).contains(&waits[0]) && (90_000..=150_000).contains(&waits[1]), "{waits:?}");
    // One is left, and the rule does not name this.
    bench.carry_out("a", &claim(run, "s", 3), Outcome::Failed { exit: 1 });
    assert_eq!((outcome(&bench, run, 0), verdict(&bench, run)), ("failed{1}".to_owned(), Some(RunOutcome::Failed)));
}

#[test]
fn three_workers_lost_on_one_step_are_poison() {
    let mut bench = Bench::new();
    let (run, _) = bench.submit(vec![plain("s")]);
    for (attempt, worker) in [(1, "a"), (2, "b"), (3, "c")] {
        assert_eq!(bench.join(worker, "e", 1).jobs().len(), 1);
        bench.accept(worker, &claim(run, "s", attempt));
        bench.ticks(30);
        if attempt < 3 {
            assert!(bench.wake().jobs().is_empty(), "nobody is there");
        }
    }
    let verdict = outcome(&bench, run, 0);
    assert!(verdict.starts_with("infra{lease, poison: 3 workers were lost"), "{verdict}");
    assert!(verdict.contains(": a, b, c;") && verdict.contains("longshore retry --only infra"), "{verdict}");
    // It is asked for again: who was lost before is forgiven, and not named.
    bench.input(&Input::Retry { run, only: Vec::new() });
    for attempt in 4..=6 {
        bench.start("c", "e", 1, u64::from(attempt), Vec::new());
        bench.accept("c", &claim(run, "s", attempt));
        bench.ticks(30);
        if attempt < 6 {
            bench.wake();
        }
    }
    assert!(outcome(&bench, run, 0).contains(": c, c, c;"), "{}", outcome(&bench, run, 0));
}

#[test]
fn a_failure_calls_off_the_others_and_skips_what_waits_for_it() {
    let mut bench = Bench::new();
    bench.join("a", "e", 4);
    let steps = vec![
        plain("bad"),
        from("child", "bad"),
        needs("grandchild", &["child"]),
        plain("other"),
        plain("claimed"),
        PlannedStep { keep_going: true, ..plain("stubborn") },
    ];
    let (run, _) = bench.submit(steps);
    bench.accept("a", &claim(run, "claimed", 1));
    bench.carry_out("a", &claim(run, "bad", 1), FAILED);
    let seen: Vec<_> = (0..6).map(|step| outcome(&bench, run, step)).collect();
    let by = "cancelled by the failure of bad";
    assert_eq!(seen, ["failed{2}", "skipped because of bad", "skipped because of bad", by, "", ""]);
    // P11, promise 2: it passed although its end had been asked for, and that is what it says.
    bench.finish("a", &claim(run, "claimed", 1), Outcome::Passed);
    bench.carry_out("a", &claim(run, "stubborn", 1), Outcome::Passed);
    assert_eq!((outcome(&bench, run, 4), outcome(&bench, run, 5)), ("passed".to_owned(), "passed".to_owned()));
    assert_eq!(verdict(&bench, run), Some(RunOutcome::Failed));
}

#[test]
fn a_step_that_keeps_going_takes_only_its_dependents_with_it() {
    let mut bench = Bench::new();
    bench.join("a", "e", 4);
    let steps = vec![PlannedStep { keep_going: true, ..plain("bad") }, from("child", "bad"), plain("other")];
    let (run, _) = bench.submit(steps);
    let step = bench.carry_out("a", &claim(run, "bad", 1), FAILED);
    assert!(!step.has("cancel_asked"));
    assert_eq!(
        (outcome(&bench, run, 1), outcome(&bench, run, 2)),
        ("skipped because of bad".to_owned(), String::new())
    );
}

#[test]
fn p13_a_cancelled_run_settles_its_own_steps_and_tries_none_again() {
    let mut bench = Bench::new();
    bench.join("a", "e", 4);
    let (run, _) = bench.submit(vec![
        PlannedStep { retry: Retry::times(5), ..plain("claimed") },
        PlannedStep { keep_going: true, ..plain("queued") },
        from("waiting", "claimed"),
    ]);
    let (other, _) = bench.submit(vec![plain("s")]);
    bench.accept("a", &claim(run, "claimed", 1));
    let asked = bench.input(&Input::Cancel { run, by: CancelledBy::User });
    assert_eq!(asked.words(), ["cancel_asked", "ended", "settled", "settled"]);
    assert!(bench.core.run_summary(run).unwrap().cancelling);
    assert_eq!(bench.input(&Input::Cancel { run, by: CancelledBy::User }).words(), [""; 0]);
    bench.finish("a", &claim(run, "claimed", 1), FAILED);
    for step in 0..3 {
        assert_eq!(outcome(&bench, run, step), "cancelled by the user");
    }
    assert_eq!((verdict(&bench, run), verdict(&bench, other)), (Some(RunOutcome::Cancelled), None));
    // The job that was withdrawn is claimed after all.
    assert_eq!(bench.accept("a", &claim(run, "queued", 1)).told().len(), 1);
}

#[test]
fn a_worker_that_cancels_unasked_is_the_fleets_fault() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    let step = bench.carry_out("a", &claim(run, "s", 1), Outcome::Cancelled { by: CancelledBy::User });
    assert!(step.has("retried") && !step.has("settled"));
}

#[test]
fn an_empty_pipeline_is_settled_at_once() {
    let mut bench = Bench::new();
    let (run, step) = bench.submit(Vec::new());
    assert_eq!((step.words(), verdict(&bench, run)), (vec!["submitted", "run_settled"], Some(RunOutcome::Passed)));
}

#[test]
fn a_journal_that_cannot_be_is_refused_and_changes_nothing() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s"), from("t", "s")]);
    let s = claim(run, "s", 1);
    bench.carry_out("a", &s, FAILED);
    let mut core = bench.replayed();
    // Every entry a second time; and every one but the run's first without what stands before it.
    for (entry, at) in &bench.journal {
        let error = core.replay(entry, *at).unwrap_err();
        assert!(error.to_string().contains(entry.word()), "{error}");
        assert_eq!(core.state(), bench.core.state());
        let mut empty = Core::new(CoreConfig::default());
        let first = matches!(entry, Entry::Submitted { .. } | Entry::Joined { .. });
        assert_eq!(empty.replay(entry, *at).is_ok(), first, "{entry:?}");
    }
}

#[test]
fn ten_thousand_steps_cost_what_they_change() {
    // A fan of 10,000: if an input scanned its run, this would be 10^8 looks, and minutes here.
    let mut bench = Core::new(CoreConfig::default());
    let count = 10_000;
    let mut steps = vec![plain("s")];
    steps.extend((0..count).map(|n| PlannedStep { keep_going: true, ..needs(&format!("t{n}"), &["s"]) }));
    let run = RunId::new();
    let pipeline =
        Box::new(longshore_coordinator::pipeline::Pipeline { name: "p".to_owned(), timeout_ms: None, steps });
    bench.apply(&Input::Submit { run, tenant: "t".to_owned(), pipeline }, 0);
    let worker = crate::bench::id("a");
    let incarnation = longshore_protocol::Incarnation { start: 1, nonce: 1 };
    let mut number = 0;
    let mut say = |bench: &mut Core, event| {
        number += 1;
        let message = longshore_protocol::event::EventMessage { worker: worker.clone(), incarnation, number, event };
        bench.apply(&Input::Event(message), 0)
    };
    say(&mut bench, Event::Hello(crate::bench::hello("e", 1, Vec::new())));
    let mut touched_most = 0;
    for name in std::iter::once("s".to_owned()).chain((0..count).map(|n| format!("t{n}"))) {
        let of = claim(run, &name, 1);
        say(&mut bench, Event::Accepted(of.clone()));
        let step = say(&mut bench, Event::Finished(crate::bench::finished(&of, Outcome::Passed)));
        if name != "s" {
            touched_most = touched_most.max(step.touched.len());
        }
    }
    // The step that ended, and the one that goes out in its place.
    assert_eq!((touched_most, bench.run_summary(run).unwrap().outcome), (2, Some(RunOutcome::Passed)));
}
