//! Who goes on in a parked container, and who removes it (P19).

use longshore_coordinator::core::effect::JobQueue;
use longshore_coordinator::core::input::Input;
use longshore_coordinator::pipeline::PlannedStep;
use longshore_protocol::control::Control;
use longshore_protocol::event::{Claim, Event, Finished};
use longshore_protocol::job::Keep;
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::{Fence, Outcome, SnapshotId};

use crate::bench::{Bench, Told, claim, finished, from, id, needs, parent, plain, snapshot, to};

fn queues(jobs: &[(JobQueue, longshore_protocol::job::Job)]) -> Vec<JobQueue> {
    jobs.iter().map(|(queue, _)| queue.clone()).collect()
}

#[test]
fn p19_what_stands_in_a_parked_container_only_is_its_workers_alone() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    bench.join("b", "e", 9);
    let (run, _) = bench.submit(vec![plain("s"), from("t", "s")]);
    let s = claim(run, "s", 1);
    let (queue, job) = bench.park("a", &s, "c-s").jobs().remove(0);
    assert_eq!((queue, job.base), (to("a"), parent(&s, None)));
    let view = bench.core.step_view(run, 0).unwrap();
    assert!(view.attempts[0].parked && view.attempts[0].snapshot.is_none());
}

#[test]
fn p19_the_owner_of_a_parked_container_is_asked_first_while_nobody_else_is_sooner_free() {
    let fork = |bench: &mut Bench, children: u32| {
        let children = (0..children).map(|n| from(&format!("t{n}"), "s"));
        let steps = std::iter::once(plain("s")).chain(children).collect();
        let (run, _) = bench.submit(steps);
        let s = claim(run, "s", 1);
        (run, queues(&bench.park_with("a", &s, "c-s", Some(snapshot(&s))).jobs()))
    };
    let mut bench = Bench::new();
    bench.join("a", "e", 2);
    bench.join("b", "e", 9);
    bench.join("c", "elsewhere", 9);
    assert_eq!(fork(&mut bench, 4).1, [to("a"), to("a"), to("b"), to("b")], "as long as it has slots");
    let mut bench = Bench::new();
    bench.join("b", "e", 1);
    bench.join("a", "e", 2);
    let (run, all) = fork(&mut bench, 4);
    assert_eq!(all, [to("a"), to("a"), to("b")], "one for each slot");
    bench.accept("b", &claim(run, "t2", 1));
    let queued = bench.accept("a", &claim(run, "t0", 1)).jobs();
    assert_eq!(queues(&queued), [to("a")], "where all must wait, the container is worth waiting for");
}

#[test]
fn p19_a_container_that_a_child_took_is_not_released() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s"), from("t", "s"), from("u", "t")]);
    let t = claim(run, "t", 1);
    bench.park("a", &claim(run, "s", 1), "c");
    bench.accept("a", &t);
    bench.started_in("a", &t, "c");
    let passed = Finished { parked: true, ..finished(&t, Outcome::Passed) };
    let step = bench.event("a", Event::Finished(passed));
    assert_eq!(step.released(), [], "s has left nothing but what is now t's");
    assert_eq!(step.words(), ["heard", "ended", "log_closed", "settled", "dispatched"]);
}

#[test]
fn p19_a_container_that_nobody_took_is_released_with_its_last_child() {
    // The child could not go on in it, and was restored to another.
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s"), from("t", "s")]);
    let (s, t) = (claim(run, "s", 1), claim(run, "t", 1));
    bench.park("a", &s, "c-s");
    bench.accept("a", &t);
    bench.started_in("a", &t, "c-t");
    let last = bench.finish("a", &t, Outcome::Passed);
    assert_eq!(last.released(), [("a".to_owned(), s.clone())]);
    // It was committed for that, under the name that follows from the fence.
    let fence = Fence { execution: s.execution, attempt: s.attempt, owner: id("a") };
    let snapshot = SnapshotId::ephemeral(&fence);
    assert!(last.told().contains(&("a".to_owned(), Control::RemoveSnapshot { snapshot })));
}

#[test]
fn p19_what_is_parked_and_committed_goes_both_ways_and_a_key_is_kept() {
    let both = |cache_key: Option<&str>| {
        let mut bench = Bench::new();
        bench.join("a", "e", 1);
        let s = PlannedStep { cache_key: cache_key.map(str::to_owned), ..plain("s") };
        let (run, _) = bench.submit(vec![s, from("t", "s")]);
        let s = claim(run, "s", 1);
        bench.park_with("a", &s, "c-s", Some(snapshot(&s)));
        bench.carry_out("a", &claim(run, "t", 1), Outcome::Passed).told()
    };
    let removes = |told: &[(String, Control)]| {
        told.iter().filter(|(_, control)| matches!(control, Control::RemoveSnapshot { .. })).count()
    };
    let releases =
        |told: &[(String, Control)]| told.iter().filter(|(_, c)| matches!(c, Control::Release { .. })).count();
    let ephemeral = both(None);
    assert_eq!((removes(&ephemeral), releases(&ephemeral)), (1, 1));
    let cached = both(Some("k"));
    assert_eq!((removes(&cached), releases(&cached)), (0, 1));
}

#[test]
fn p19_a_cancelled_run_releases_what_it_parked() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s"), plain("slow"), {
        let mut t = from("t", "s");
        t.needs = vec!["slow".into()];
        t
    }]);
    let s = claim(run, "s", 1);
    bench.park("a", &s, "c-s");
    let asked = bench.input(&Input::Cancel { run, by: CancelledBy::User });
    assert_eq!(asked.released(), [("a".to_owned(), s)]);
}

#[test]
fn p19_a_step_that_passed_after_its_children_were_called_off_is_released_at_once() {
    let mut bench = Bench::new();
    bench.join("a", "e", 2);
    let (run, _) = bench.submit(vec![plain("s"), plain("bad"), from("t", "s")]);
    let s = claim(run, "s", 1);
    bench.accept("a", &s);
    bench.carry_out("a", &claim(run, "bad", 1), Outcome::Failed { exit: 1 });
    let passed = Finished { parked: true, ..finished(&s, Outcome::Passed) };
    let step = bench.event("a", Event::Finished(passed));
    assert_eq!(step.released(), [("a".to_owned(), s)]);
}

#[test]
fn p7_a_heartbeat_is_answered_for_every_parked_container_that_nobody_needs() {
    let mut bench = Bench::new();
    bench.join("a", "e", 4);
    bench.join("b", "e", 4);
    let mut t = from("t", "s");
    t.needs = vec!["slow".into()];
    let (run, _) = bench.submit(vec![plain("s"), plain("slow"), t]);
    let (s, slow) = (claim(run, "s", 1), claim(run, "slow", 1));
    bench.park("a", &s, "c-s");
    bench.accept("a", &slow);
    let running = vec![crate::bench::running(&slow)];
    // Needed; not over; then of a run that nobody knows, and of an attempt that is another's.
    let unknown = claim(longshore_protocol::RunId::new(), "s", 1);
    bench.has_parked("a", vec![s.clone(), slow.clone(), unknown.clone()]);
    assert_eq!(bench.beat("a", running.clone()).released(), [("a".to_owned(), unknown)]);
    bench.has_parked("b", vec![s.clone(), slow]);
    let of_b: Vec<Claim> = bench.beat("b", vec![]).released().into_iter().map(|(_, claim)| claim).collect();
    assert_eq!(of_b.len(), 2);
    // Once nobody needs it, it is released again with every heartbeat that still has it: a message may get lost.
    assert_eq!(bench.input(&Input::Cancel { run, by: CancelledBy::User }).released().len(), 1);
    for _ in 0..2 {
        assert!(bench.beat("a", running.clone()).released().contains(&("a".to_owned(), s.clone())));
    }
}

#[test]
fn p7_a_heartbeat_from_before_a_child_took_the_container_does_not_remove_what_its_siblings_need() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s"), from("t", "s"), from("u", "s")]);
    let (s, t) = (claim(run, "s", 1), claim(run, "t", 1));
    bench.park_with("a", &s, "c", Some(snapshot(&s)));
    bench.has_parked("a", vec![s]);
    let before = bench.heartbeat("a", vec![]);
    bench.accept("a", &t);
    bench.started_in("a", &t, "c");
    assert_eq!(bench.input(&Input::Heartbeat(before)).released(), []);
}

#[test]
fn p7_a_heartbeat_that_overtook_its_events_releases_nothing() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s"), needs("t", &["s"])]);
    let s = claim(run, "s", 1);
    bench.has_parked("a", vec![s.clone()]);
    let mut heartbeat = bench.heartbeat("a", vec![]);
    heartbeat.last_event += 1;
    assert_eq!(bench.input(&Input::Heartbeat(heartbeat)).told(), []);
}

#[test]
fn workers_are_shown_with_what_they_have_parked() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, step) = bench.submit(vec![plain("s"), from("t", "s")]);
    assert_eq!(step.jobs()[0].1.keep, Keep::Live);
    let s = claim(run, "s", 1);
    bench.park("a", &s, "c-s");
    bench.has_parked("a", vec![s]);
    bench.beat("a", vec![]);
    assert_eq!(bench.core.workers()[0].parked, 1);
}
