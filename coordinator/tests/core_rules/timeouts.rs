//! How long a run may take, and how long a step may wait for a worker.

use longshore_coordinator::core::input::Input;
use longshore_coordinator::core::view::RunOutcome;
use longshore_coordinator::pipeline::{Concurrency, Pipeline, PlannedStep};
use longshore_protocol::control::Control;
use longshore_protocol::event::Event;
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::{Outcome, RunId};

use crate::bench::{Bench, Told, claim, finished, from, needs, plain, remake};

fn submit(bench: &mut Bench, timeout_ms: u64, steps: Vec<PlannedStep>) -> RunId {
    let run = RunId::new();
    let pipeline = Box::new(Pipeline { name: "p".to_owned(), timeout_ms: Some(timeout_ms), steps });
    bench.input(&Input::Submit { run, tenant: "t".to_owned(), pipeline });
    run
}

fn patient(queue_timeout_ms: u64, step: PlannedStep) -> PlannedStep {
    PlannedStep { queue_timeout_ms: Some(queue_timeout_ms), ..step }
}

fn outcome(bench: &Bench, run: RunId, step: usize) -> String {
    bench.core.step_view(run, step).unwrap().outcome.map(|outcome| outcome.to_string()).unwrap_or_default()
}

#[test]
fn p11_a_run_past_its_timeout_is_called_off_and_its_running_steps_end_by_their_owners_word() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let keep_going = PlannedStep { keep_going: true, ..plain("stubborn") };
    let run = submit(&mut bench, 60_000, vec![plain("s"), keep_going, needs("after", &["s"])]);
    let s = claim(run, "s", 1);
    bench.accept("a", &s);
    bench.restart();
    assert_eq!(bench.core.next_wakeup(), Some(bench.now + 60_000), "from its submission, also after a restart");
    let late = bench.wake();
    assert_eq!(late.told(), [("a".to_owned(), Control::Cancel { claim: s.clone(), by: CancelledBy::RunTimeout })]);
    assert_eq!(late.settled().len(), 2, "what nobody claimed never begins");
    assert!(bench.core.run_summary(run).unwrap().cancelling);
    let over = bench.event("a", Event::Finished(finished(&s, Outcome::Cancelled { by: CancelledBy::RunTimeout })));
    assert!(over.has("run_settled"));
    let verdict = bench.core.run_summary(run).unwrap().outcome.unwrap();
    assert_eq!((verdict, verdict.exit_code(), verdict.to_string().as_str()), (RunOutcome::TimedOut, 1, "timed_out"));
    assert_eq!(outcome(&bench, run, 0), "cancelled by the run's timeout");
    assert_eq!(bench.core.next_wakeup(), None);
}

#[test]
fn a_run_that_ends_in_time_hears_nothing_of_its_timeout() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let run = submit(&mut bench, 60_000, vec![plain("s")]);
    bench.carry_out("a", &claim(run, "s", 1), Outcome::Passed);
    assert_eq!(bench.core.next_wakeup(), None);
    bench.now += 100_000;
    assert_eq!(bench.input(&Input::Clock).words(), [""; 0]);
    // The user was first: then it is the user's doing.
    let run = submit(&mut bench, 60_000, vec![plain("s")]);
    bench.accept("a", &claim(run, "s", 1));
    bench.input(&Input::Cancel { run, by: CancelledBy::User });
    assert_eq!(bench.wake().words(), [""; 0]);
    bench.finish("a", &claim(run, "s", 1), Outcome::Cancelled { by: CancelledBy::User });
    assert_eq!(bench.core.run_summary(run).unwrap().outcome, Some(RunOutcome::Cancelled));
}

#[test]
fn a_step_that_nobody_claims_in_time_is_infra_with_the_mend_and_not_tried_again() {
    for worker in [false, true] {
        let mut bench = Bench::new();
        if worker {
            bench.join("a", "e", 1);
        }
        let (run, _) = bench.submit(vec![patient(60_000, plain("s"))]);
        assert_eq!(bench.core.next_wakeup(), Some(bench.now + 60_000));
        let late = bench.wake();
        assert_eq!(late.words(), ["ended", "settled", "run_settled"]);
        let said = outcome(&bench, run, 0);
        assert!(said.starts_with("infra{queue, nobody claimed it within its queue_timeout of 1m"), "{said}");
        assert_eq!(said.contains("no live worker"), !worker, "{said}");
        assert_eq!(bench.core.run_summary(run).unwrap().outcome, Some(RunOutcome::Infra));
        if worker {
            // Its job is still in the queue: whoever takes it is told to let go.
            assert!(matches!(bench.accept("a", &claim(run, "s", 1)).told()[0].1, Control::Abandon { .. }));
        }
    }
}

#[test]
fn p20_while_its_parents_files_are_made_again_a_step_waits_for_no_worker() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    bench.join("b", "f", 1);
    let (run, _) = bench.submit(vec![plain("s"), patient(60_000, from("t", "s"))]);
    bench.carry_out_parent("a", &claim(run, "s", 1));
    assert!(bench.not_found("a", &claim(run, "t", 1)).has("remake_begun"));
    let again = remake(run, "s", 1, 1);
    bench.accept("a", &again);
    bench.now += 500_000;
    assert!(!bench.input(&Input::Clock).has("ended"), "it could not have begun");
    bench.carry_out_parent("a", &again);
    let ready = bench.now;
    bench.restart();
    assert_eq!(bench.core.next_wakeup(), Some(ready + 60_000));
    assert!(bench.wake().has("ended"));
}

#[test]
fn a_queue_timeout_counts_from_when_a_step_could_begin_until_it_is_claimed() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s"), patient(60_000, from("t", "s"))]);
    bench.accept("a", &claim(run, "s", 1));
    bench.now += 500_000;
    bench.input(&Input::Clock);
    bench.event(
        "a",
        Event::Finished(longshore_protocol::event::Finished {
            parked: true,
            ..finished(&claim(run, "s", 1), Outcome::Passed)
        }),
    );
    let ready = bench.now;
    bench.restart();
    assert_eq!(bench.core.next_wakeup(), Some(ready + 60_000), "its parent's time is not its own");
    bench.accept("a", &claim(run, "t", 1));
    bench.now += 500_000;
    assert_eq!(bench.input(&Input::Clock).words(), [""; 0], "claimed in time, it takes as long as it takes");
    // Each try waits anew.
    let lost = Outcome::infra(longshore_protocol::InfraStage::Exec, "the Engine went away");
    bench.finish("a", &claim(run, "t", 1), lost);
    bench.wake();
    assert_eq!(bench.core.next_wakeup(), Some(bench.now + 60_000));
}

#[test]
fn a_queue_timeout_in_line_for_a_group_says_so() {
    let mut bench = Bench::new();
    bench.join("a", "e", 9);
    let group =
        |step: PlannedStep| PlannedStep { concurrency: Some(Concurrency { group: "g".to_owned(), max: 1 }), ..step };
    let (run, _) = bench.submit(vec![group(plain("s")), patient(60_000, group(plain("t")))]);
    bench.accept("a", &claim(run, "s", 1));
    bench.wake();
    assert!(outcome(&bench, run, 1).contains("concurrency group g was held"), "{}", outcome(&bench, run, 1));
}
