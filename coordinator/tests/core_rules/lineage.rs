//! What was lost is made again, and nothing else changes by it (P20).

use longshore_coordinator::core::entry::{Entry, RetryCause};
use longshore_coordinator::core::input::Input;
use longshore_coordinator::core::view::{RunOutcome, StepPhase};
use longshore_coordinator::pipeline::{PlannedStep, Retry, SnapshotRule};
use longshore_protocol::event::{Event, Finished};
use longshore_protocol::job::{Base, Keep, StepSpec};
use longshore_protocol::outcome::{CancelledBy, InfraStage, LINEAGE};
use longshore_protocol::{Outcome, RunId};

use crate::bench::{
    Bench, Told, claim, claim_of, dispatched, finished, from, id, needs, parent, plain, remake, snapshot, to, to_pool,
};

fn infra() -> Outcome {
    Outcome::infra(InfraStage::Exec, "the Engine went away")
}

fn lineage() -> Outcome {
    Outcome::infra(InfraStage::Prepare, LINEAGE)
}

fn causes(bench: &Bench) -> Vec<RetryCause> {
    let cause = |entry: &Entry| match entry {
        Entry::Retried { because, .. } => Some(*because),
        _ => None,
    };
    bench.journal.iter().filter_map(|(entry, _)| cause(entry)).collect()
}

fn outcome(bench: &Bench, run: RunId, step: usize) -> Option<Outcome> {
    bench.core.step_view(run, step).unwrap().outcome
}

fn verdict(bench: &Bench, run: RunId) -> Option<RunOutcome> {
    bench.core.run_summary(run).unwrap().outcome
}

/// `a` alone with a chain whose steps all ran in one container, but for the last, which is asked for.
fn parked_chain(steps: Vec<PlannedStep>) -> (Bench, RunId) {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let names: Vec<String> = steps.iter().map(|step| step.name.to_string()).collect();
    let (run, _) = bench.submit(steps);
    for name in &names[..names.len() - 1] {
        bench.park("a", &claim(run, name, 1), "c");
    }
    (bench, run)
}

#[test]
fn p20_a_lost_snapshot_is_made_again_and_charges_nobody() {
    let (mut bench, run) = parked_chain(vec![plain("s"), from("t", "s")]);
    let (s, t) = (claim(run, "s", 1), claim(run, "t", 1));
    let before = bench.core.step_view(run, 0).unwrap();
    let step = bench.not_found("a", &t);
    assert_eq!(step.words()[1..], ["ended", "left_lost", "log_closed", "retried", "remake_begun", "dispatched"]);
    assert_eq!(causes(&bench), [RetryCause::Lineage]);
    let (queue, job) = step.jobs().remove(0);
    let again = remake(run, "s", 1, 1);
    assert_eq!((queue, claim_of(&job), &job.keep), (to_pool(), again.clone(), &Keep::Live));
    assert_eq!((job.step.as_str(), job.base), ("s", Base::Image { reference: "base".to_owned() }));
    // The child waits, and is asked for as soon as what it needs is there: from there.
    assert_eq!(bench.core.step_view(run, 1).unwrap().phase, StepPhase::Waiting);
    let (queue, job) = bench.park("a", &again, "c2").jobs().remove(0);
    assert_eq!((queue, claim_of(&job), job.base), (to("a"), claim(run, "t", 2), parent(&again, None)));
    let t = claim(run, "t", 2);
    bench.accept("a", &t);
    bench.started_in("a", &t, "c2");
    let last = bench.finish("a", &t, Outcome::Passed);
    assert_eq!((last.released(), verdict(&bench, run)), (vec![], Some(RunOutcome::Passed)));
    // Outcome, attempts and log of the step that settled are what they were.
    let after = bench.core.step_view(run, 0).unwrap();
    assert_eq!((&after.outcome, &after.attempts), (&before.outcome, &before.attempts));
    assert_eq!(after.remakes.len(), 1);
    let shown = &after.remakes[0];
    assert_eq!((shown.name.as_str(), shown.execution), ("s~1", again.execution));
    assert_eq!((shown.attempts.len(), shown.because.as_deref()), (1, Some("t did not find it")));
    assert_eq!(bench.core.log_name(&again).unwrap().as_str(), "s~1");
    assert_eq!(bench.core.log_name(&s).unwrap().as_str(), "s");
    assert_eq!(bench.core.run_summary(run).unwrap().steps, 2);
}

#[test]
fn p20_a_child_that_died_in_its_parents_container_is_tried_on_one_made_again() {
    let (mut bench, run) = parked_chain(vec![plain("s"), from("t", "s")]);
    let t = claim(run, "t", 1);
    bench.accept("a", &t);
    bench.started_in("a", &t, "c");
    bench.finish("a", &t, infra());
    // P19: what it took is known to be gone, so that nobody is sent there in vain.
    let step = bench.wake();
    assert_eq!(dispatched(&step), [remake(run, "s", 1, 1)]);
    assert!(step.has("left_lost"));
    assert_eq!(dispatched(&bench.park("a", &remake(run, "s", 1, 1), "c2")), [claim(run, "t", 2)]);
    assert_eq!(causes(&bench), [RetryCause::Infra], "what it died of is charged; the remake is not");
}

#[test]
fn p20_the_lineage_is_made_again_up_to_the_image() {
    let (mut bench, run) = parked_chain(vec![plain("s"), from("t", "s"), from("u", "t")]);
    for (name, of) in [("t", 1), ("u", 1)] {
        // Both went on in the one container: the parents left nothing of their own.
        let claim = claim(run, name, of);
        if name == "u" {
            bench.accept("a", &claim);
            bench.started_in("a", &claim, "c");
            bench.finish("a", &claim, infra());
        }
    }
    let step = bench.wake();
    let begun = step.words().into_iter().filter(|word| *word == "remake_begun").count();
    assert_eq!((begun, dispatched(&step)), (2, vec![remake(run, "s", 1, 1)]));
    let step = bench.park("a", &remake(run, "s", 1, 1), "c2");
    assert_eq!(step.jobs()[0].1.base, parent(&remake(run, "s", 1, 1), None));
    assert_eq!(dispatched(&step), [remake(run, "t", 1, 1)]);
    bench.accept("a", &remake(run, "t", 1, 1));
    bench.started_in("a", &remake(run, "t", 1, 1), "c2");
    let passed = Finished { parked: true, ..finished(&remake(run, "t", 1, 1), Outcome::Passed) };
    let step = bench.event("a", Event::Finished(passed));
    assert_eq!((dispatched(&step), step.released()), (vec![claim(run, "u", 2)], vec![]));
    bench.carry_out("a", &claim(run, "u", 2), Outcome::Passed);
    assert_eq!(verdict(&bench, run), Some(RunOutcome::Passed));
}

#[test]
fn p20_what_is_lost_three_times_and_once_more_is_a_broken_lineage() {
    let (mut bench, run) = parked_chain(vec![plain("s"), from("t", "s")]);
    bench.not_found("a", &claim(run, "t", 1));
    for n in 1..=3 {
        bench.park("a", &remake(run, "s", n, 1), "c");
        let step = bench.not_found("a", &claim(run, "t", n + 1));
        assert_eq!(dispatched(&step).is_empty(), n == 3);
    }
    assert_eq!((outcome(&bench, run, 1), verdict(&bench, run)), (Some(lineage()), Some(RunOutcome::Infra)));
    assert_eq!(causes(&bench), [RetryCause::Lineage; 4]);
}

#[test]
fn p20_a_remake_that_does_not_pass_breaks_the_lineage_at_once() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let retried = PlannedStep { retry: Retry::times(5), ..plain("s") };
    let (run, _) = bench.submit(vec![retried, from("t", "s"), needs("w", &["t"])]);
    bench.park("a", &claim(run, "s", 1), "c");
    bench.not_found("a", &claim(run, "t", 1));
    let step = bench.carry_out("a", &remake(run, "s", 1, 1), Outcome::Failed { exit: 1 });
    assert!(!step.has("retried"), "the user's rule never sees it");
    assert_eq!(outcome(&bench, run, 0), Some(Outcome::Passed), "what settled is settled");
    assert_eq!(outcome(&bench, run, 1), Some(lineage()));
    assert_eq!(outcome(&bench, run, 2), Some(Outcome::Skipped { because: "t".to_owned() }));
    assert_eq!(verdict(&bench, run), Some(RunOutcome::Infra));
}

#[test]
fn p20_a_remake_has_the_fleets_retries_of_its_own() {
    let (mut bench, run) = parked_chain(vec![plain("s"), from("t", "s")]);
    bench.not_found("a", &claim(run, "t", 1));
    for attempt in 1..=3 {
        bench.carry_out("a", &remake(run, "s", 1, attempt), infra());
        assert_eq!(dispatched(&bench.wake()), [remake(run, "s", 1, attempt + 1)]);
    }
    bench.carry_out("a", &remake(run, "s", 1, 4), infra());
    assert_eq!(outcome(&bench, run, 1), Some(lineage()));
    assert_eq!(bench.core.step_view(run, 0).unwrap().remakes[0].attempts.len(), 4);
}

#[test]
fn p20_with_a_lease_that_ended_goes_what_stood_in_its_containers() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let slow = || vec![plain("s"), plain("slow"), PlannedStep { needs: vec!["slow".into()], ..from("t", "s") }];
    let (run, _) = bench.submit(slow());
    let s = claim(run, "s", 1);
    bench.park("a", &s, "c");
    bench.join("b", "f", 2);
    bench.accept("b", &claim(run, "slow", 1));
    for _ in 0..3 {
        bench.ticks(10);
        bench.beat("b", vec![crate::bench::running(&claim(run, "slow", 1))]);
    }
    let step = bench.finish("b", &claim(run, "slow", 1), Outcome::Passed);
    assert_eq!(dispatched(&step), [remake(run, "s", 1, 1)]);
    // Its owner, should it return before it is stopped, is told; and again when it still reports the container.
    assert_eq!(step.released(), [("a".to_owned(), s.clone())]);
    assert_eq!(causes(&bench), [], "nobody is charged");
    bench.has_parked("a", vec![s.clone()]);
    assert_eq!(bench.beat("a", vec![]).released(), [("a".to_owned(), s)]);
    bench.park("b", &remake(run, "s", 1, 1), "c");
    bench.carry_out("b", &claim(run, "t", 1), Outcome::Passed);
    assert_eq!(verdict(&bench, run), Some(RunOutcome::Passed));
}

#[test]
fn p20_while_nobody_is_there_to_make_it_again_it_is_not_given_up() {
    for committed in [true, false] {
        let mut bench = Bench::new();
        bench.join("a", "e", 1);
        let (run, _) = bench.submit(vec![plain("s"), from("t", "s")]);
        let s = claim(run, "s", 1);
        bench.park_with("a", &s, "c", committed.then(|| snapshot(&s)));
        assert!(bench.ticks(30).has("lease_ended"));
        let step = bench.wake(); // the job for `t` went with the worker
        assert_eq!((step.words(), bench.core.next_wakeup()), (vec![], None), "it waits for a worker, not for a moment");
        bench.restart(); // and a coordinator that begins anew knows what waits
        let step = bench.beat("a", vec![]);
        assert_eq!(dispatched(&step), [claim(run, "t", 2)], "who returns first may have it");
    }
    // Somebody else comes first: it is made again, without three tries that cannot succeed.
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s"), from("t", "s")]);
    bench.carry_out_parent("a", &claim(run, "s", 1));
    bench.ticks(30);
    bench.wake();
    let step = bench.join("b", "f", 1);
    assert_eq!((dispatched(&step), causes(&bench)), (vec![remake(run, "s", 1, 1)], vec![RetryCause::Gone]));
    assert_eq!(dispatched(&bench.carry_out_parent("b", &remake(run, "s", 1, 1))), [claim(run, "t", 2)]);
}

#[test]
fn p20_where_no_remake_would_help_the_fleet_says_so_after_its_retries() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let pool = "other".parse().unwrap();
    let t = from("t", "s");
    let t = PlannedStep { spec: StepSpec { pool, ..t.spec.clone() }, ..t };
    let (run, _) = bench.submit(vec![plain("s"), t]);
    assert!(bench.carry_out_parent("a", &claim(run, "s", 1)).jobs().is_empty(), "nobody of its pool is there");
    bench.join_pool("b", "f", "other");
    for _ in 0..3 {
        bench.wake();
    }
    let Some(Outcome::Infra { reason, .. }) = outcome(&bench, run, 1) else { panic!("{:?}", outcome(&bench, run, 1)) };
    assert_eq!(reason, "snapshot_lost: no worker of pool other is beside Engine e, where s left its files");
}

#[test]
fn p20_a_remake_ends_with_its_run_and_the_run_with_it() {
    let (mut bench, run) = parked_chain(vec![plain("s"), from("t", "s")]);
    bench.not_found("a", &claim(run, "t", 1));
    let again = remake(run, "s", 1, 1);
    bench.accept("a", &again);
    let asked = bench.input(&Input::Cancel { run, by: CancelledBy::User });
    assert_eq!(asked.told().len(), 1, "{:?}", asked.told());
    assert_eq!((outcome(&bench, run, 1).is_some(), verdict(&bench, run)), (true, None), "something of it still runs");
    bench.finish("a", &again, Outcome::Cancelled { by: CancelledBy::User });
    assert_eq!(verdict(&bench, run), Some(RunOutcome::Cancelled));
    assert!(bench.core.is_done(run) && bench.core.open_logs().is_empty());
}

#[test]
fn p20_a_remake_that_nobody_waits_for_any_more_is_called_off() {
    let mut bench = Bench::new();
    bench.join("a", "e", 3);
    let (run, _) = bench.submit(vec![plain("s"), plain("bad"), from("t", "s")]);
    bench.accept("a", &claim(run, "bad", 1));
    bench.park("a", &claim(run, "s", 1), "c");
    bench.not_found("a", &claim(run, "t", 1));
    let again = remake(run, "s", 1, 1);
    bench.accept("a", &again);
    let step = bench.finish("a", &claim(run, "bad", 1), Outcome::Failed { exit: 1 });
    let by = CancelledBy::Sibling("bad".to_owned());
    let cancel = longshore_protocol::control::Control::Cancel { claim: again.clone(), by: by.clone() };
    assert!(step.told().contains(&("a".to_owned(), cancel)), "{:?}", step.told());
    // It passes all the same: then what it left is let go of at once.
    let passed = Finished { parked: true, ..finished(&again, Outcome::Passed) };
    let step = bench.event("a", Event::Finished(passed));
    assert_eq!(step.released(), [("a".to_owned(), again)]);
    assert_eq!(verdict(&bench, run), Some(RunOutcome::Failed));
}

#[test]
fn p20_a_child_that_was_sent_after_old_files_does_not_lose_new_ones() {
    let mut bench = Bench::new();
    bench.join("a", "e", 3);
    let (run, _) = bench.submit(vec![plain("s"), from("t", "s"), from("u", "s")]);
    bench.carry_out_parent("a", &claim(run, "s", 1));
    let step = bench.not_found("a", &claim(run, "t", 1));
    assert_eq!(step.jobs()[0].1.keep, Keep::Snapshot, "two wait for it");
    let again = remake(run, "s", 1, 1);
    assert_eq!(dispatched(&bench.carry_out_parent("a", &again)), [claim(run, "t", 2)]);
    let step = bench.not_found("a", &claim(run, "u", 1));
    assert!(!step.has("left_lost") && !step.has("remake_begun"));
    assert_eq!(dispatched(&step), [claim(run, "u", 2)]);
    assert_eq!(step.jobs()[0].1.base, parent(&again, Some(snapshot(&again))));
}

#[test]
fn p20_a_remake_keeps_what_those_who_wait_for_it_need() {
    let made = |s: PlannedStep, children: Vec<PlannedStep>| {
        let mut bench = Bench::new();
        bench.join("a", "e", 3);
        let steps = std::iter::once(s).chain(children).collect();
        let (run, _) = bench.submit(steps);
        bench.carry_out_parent("a", &claim(run, "s", 1));
        bench.not_found("a", &claim(run, "t", 1)).jobs()[0].1.keep.clone()
    };
    let cached = PlannedStep { cache_key: Some("k".to_owned()), ..plain("s") };
    let always = PlannedStep { snapshot: SnapshotRule::Always, ..plain("s") };
    assert_eq!(made(plain("s"), vec![from("t", "s")]), Keep::Live);
    assert_eq!(made(plain("s"), vec![PlannedStep { retry: Retry::times(1), ..from("t", "s") }]), Keep::Snapshot);
    assert!(matches!(made(cached, vec![from("t", "s")]), Keep::Cached { .. }), "it may find its key's snapshot");
    assert_eq!(made(always, vec![from("t", "s")]), Keep::Always, "that is still what people look at");
}

#[test]
fn p11_a_remake_whose_worker_is_lost_is_tried_again_like_any_attempt() {
    let (mut bench, run) = parked_chain(vec![plain("s"), from("t", "s")]);
    bench.not_found("a", &claim(run, "t", 1));
    bench.accept("a", &remake(run, "s", 1, 1));
    bench.ticks(30);
    bench.join("b", "f", 1);
    assert_eq!(dispatched(&bench.wake()), [remake(run, "s", 1, 2)]);
    let step = bench.finish("a", &remake(run, "s", 1, 1), Outcome::Passed);
    assert_eq!(step.told().len(), 1, "P12: stale, and told to stop");
    assert_eq!(dispatched(&bench.park("b", &remake(run, "s", 1, 2), "c")), [claim(run, "t", 2)]);
    let owner = bench.core.step_view(run, 0).unwrap().remakes[0].attempts[1].worker.clone();
    assert_eq!(owner, Some(id("b")));
}

#[test]
fn a_worker_without_a_parent_to_miss_is_not_believed() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    bench.not_found("a", &claim(run, "s", 1));
    assert_eq!(causes(&bench), [RetryCause::Infra]);
}
