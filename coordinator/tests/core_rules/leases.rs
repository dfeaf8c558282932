//! Jobs that nobody claims (P6), heartbeats (P7), and the lease clock (P8).

use longshore_coordinator::core::effect::JobQueue;
use longshore_coordinator::core::entry::{End, Entry, RetryCause};
use longshore_coordinator::core::input::Input;
use longshore_protocol::control::Control;
use longshore_protocol::event::{Claim, Event};
use longshore_protocol::{Epoch, Outcome, PoolName};

use crate::bench::{Bench, EPOCH, Told, claim, finished, from, over, plain, running};

fn pool() -> JobQueue {
    JobQueue::Pool(PoolName::default())
}

/// A worker with a parent done, and a child's job in its queue.
fn child_waits(bench: &mut Bench) -> Claim {
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s"), from("t", "s")]);
    let step = bench.carry_out_parent("a", &claim(run, "s", 1));
    assert_eq!(step.jobs()[0].0, JobQueue::Worker("a".parse().unwrap()));
    claim(run, "t", 1)
}

fn beat_and_tick(bench: &mut Bench, ticks: u32, free: u32) -> Vec<&'static str> {
    let mut words = Vec::new();
    for _ in 0..ticks {
        let heartbeat = longshore_protocol::heartbeat::Heartbeat { slots_free: free, ..bench.heartbeat("a", vec![]) };
        bench.input(&Input::Heartbeat(heartbeat));
        words.extend(bench.ticks(1).words());
    }
    words
}

/// So many seconds in which the worker was heard of.
fn beats(bench: &mut Bench, count: u32) -> Vec<&'static str> {
    let mut words = Vec::new();
    for _ in 0..count {
        bench.beat("a", Vec::new());
        words.extend(bench.ticks(1).words());
    }
    words
}

#[test]
fn p6_a_job_in_a_workers_queue_is_gone_after_its_deadline_of_free_slots() {
    let mut bench = Bench::new();
    let t = child_waits(&mut bench);
    assert_eq!(beat_and_tick(&mut bench, 100, 0), [""; 0], "no slot was free: no fault");
    assert_eq!(beat_and_tick(&mut bench, 29, 1), [""; 0]);
    assert_eq!(beat_and_tick(&mut bench, 1, 1), ["ended", "retried"]);
    let Some((Entry::Retried { because, .. }, _)) = bench.journal.last() else { panic!("it is tried again") };
    assert_eq!(*because, RetryCause::Gone);
    assert_eq!(bench.wake().jobs()[0].1.attempt, t.attempt.next());
}

/// A broker that was killed takes half a minute until it takes it, say: given up meanwhile, it is carried out beside its
/// successor, in the parent's container.
#[test]
fn p6_a_job_on_its_way_to_a_workers_queue_has_no_deadline_yet() {
    let mut bench = Bench::new();
    child_waits(&mut bench);
    assert_eq!(beat_and_tick(&mut bench, 10, 1), [""; 0]);
    bench.input(&Input::UnderWay { to: ["a".parse().unwrap()].into() });
    assert_eq!(beat_and_tick(&mut bench, 100, 1), [""; 0]);
    bench.input(&Input::UnderWay { to: [].into() });
    assert_eq!(beat_and_tick(&mut bench, 19, 1), [""; 0]);
    assert_eq!(beat_and_tick(&mut bench, 1, 1), ["ended", "retried"]);
}

#[test]
fn p6_a_job_in_a_workers_queue_ends_with_its_lease() {
    let mut bench = Bench::new();
    child_waits(&mut bench);
    let step = bench.ticks(30);
    assert_eq!(step.words(), ["lease_ended", "ended", "retried"]);
    assert!(matches!(&step.entries[1], Entry::Ended { end: End::Gone { .. }, .. }));
}

#[test]
fn p6_a_pools_job_is_gone_a_deadline_after_its_queue_was_seen_empty() {
    let mut bench = Bench::new();
    bench.join("a", "e", 3);
    bench.submit(vec![plain("s")]);
    assert_eq!(bench.core.queues_to_watch(), [pool()]);
    assert_eq!(beats(&mut bench, 500), [""; 0], "waiting in a pool is no fault");
    bench.input(&Input::Waiting { queue: pool(), messages: 0 });
    assert_eq!(beats(&mut bench, 29), [""; 0]);
    assert_eq!(beats(&mut bench, 1), ["ended", "retried"]);
}

#[test]
fn p6_a_queue_seen_empty_in_the_tick_of_the_dispatch_proves_nothing() {
    let mut bench = Bench::new();
    bench.join("a", "e", 3);
    bench.submit(vec![plain("s")]);
    bench.input(&Input::Waiting { queue: pool(), messages: 0 });
    assert_eq!(beats(&mut bench, 100), [""; 0]);
}

#[test]
fn p6_a_job_that_was_given_back_is_no_suspect_any_more() {
    let mut bench = Bench::new();
    bench.join("a", "e", 3);
    bench.submit(vec![plain("s")]);
    beats(&mut bench, 1);
    bench.input(&Input::Waiting { queue: pool(), messages: 0 });
    beats(&mut bench, 20);
    bench.input(&Input::Waiting { queue: pool(), messages: 1 });
    assert_eq!(beats(&mut bench, 100), [""; 0]);
}

#[test]
fn p6_a_pools_job_is_gone_a_deadline_after_a_later_one_was_claimed() {
    let mut bench = Bench::new();
    bench.join("a", "e", 3);
    let (run, _) = bench.submit(vec![plain("s"), plain("t"), plain("u")]);
    bench.accept("a", &claim(run, "t", 1));
    let mut gone = Vec::new();
    for _ in 0..30 {
        bench.beat("a", vec![running(&claim(run, "t", 1))]);
        gone.extend(bench.ticks(1).entries);
    }
    let [Entry::Ended { execution, end: End::Gone { .. }, .. }, Entry::Retried { .. }] = &gone[..] else {
        panic!("{gone:?}")
    };
    assert_eq!(*execution, claim(run, "s", 1).execution, "published before `t`; `u` was not");
}

#[test]
fn p6_what_the_broker_returns_is_gone_at_once_and_not_dispatched_in_a_hot_loop() {
    let mut bench = Bench::new();
    bench.join("a", "e", 3);
    let (run, _) = bench.submit(vec![plain("s")]);
    let mut waits = Vec::new();
    for attempt in 1..8 {
        let step = bench.input(&Input::Returned { claim: claim(run, "s", attempt) });
        assert_eq!(step.words(), ["ended", "retried"]);
        waits.push(bench.core.next_wakeup().unwrap() - bench.now);
        assert_eq!(bench.wake().jobs().len(), 1);
    }
    assert!(waits[0] >= 750 && waits[6] >= 22_500, "{waits:?}");
}

#[test]
fn p6_after_a_restart_a_lost_job_is_still_found() {
    let mut bench = Bench::new();
    bench.join("a", "e", 3);
    bench.submit(vec![plain("s")]);
    bench.restart();
    assert_eq!(bench.core.queues_to_watch(), [pool()]);
    beats(&mut bench, 1);
    bench.input(&Input::Waiting { queue: pool(), messages: 0 });
    assert_eq!(beats(&mut bench, 30), ["ended", "retried"]);
}

#[test]
fn p7_not_held_counts_only_when_all_events_before_the_heartbeat_are_in() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    let before = bench.heartbeat("a", Vec::new());
    bench.accept("a", &claim(run, "s", 1));
    // It was sent before the claim, and came after it.
    assert_eq!(bench.input(&Input::Heartbeat(before)).words(), [""; 0]);
    bench.lose_event("a");
    assert_eq!(bench.beat("a", Vec::new()).words(), [""; 0], "an event is under way that may explain it");
    bench.event_numbered("a", 3, Event::Records { records: vec![running(&claim(run, "s", 1))] });
    let lost = bench.beat("a", Vec::new());
    assert_eq!(lost.words(), ["ended", "log_closed", "retried"]);
    assert!(matches!(&lost.entries[0], Entry::Ended { end: End::Lost { .. }, .. }));
}

#[test]
fn p7_a_current_attempt_held_without_an_owner_counts_as_accepted() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    let s = claim(run, "s", 1);
    let before = bench.heartbeat("a", Vec::new());
    assert_eq!(bench.beat("a", vec![running(&s)]).words(), ["accepted"]);
    // Delivered a second time, an older heartbeat does not take it away.
    assert_eq!(bench.input(&Input::Heartbeat(before)).words(), [""; 0]);
    // Its own event comes after all, and is not an intruder's.
    let late = bench.accept("a", &s);
    assert_eq!((late.words(), late.told()), (vec!["heard"], Vec::new()));
}

#[test]
fn p7_what_is_held_and_not_wanted_is_abandoned_and_what_is_settled_is_let_go() {
    let mut bench = Bench::new();
    bench.join("a", "e", 2);
    bench.join("b", "e", 2);
    let (run, _) = bench.submit(vec![plain("s"), plain("t")]);
    let (s, t) = (claim(run, "s", 1), claim(run, "t", 1));
    bench.accept("b", &s);
    bench.carry_out("a", &t, Outcome::Passed);
    let step = bench.beat("a", vec![running(&s), over(finished(&t, Outcome::Passed))]);
    let told = [Control::Abandon { claim: s }, Control::Settled { claim: t }].map(|control| ("a".to_owned(), control));
    assert_eq!((step.words(), step.told()), (vec![], told.to_vec()));
}

#[test]
fn p7_a_heartbeat_that_stays_ahead_of_the_events_asks_for_a_sync() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    bench.lose_event("a"); // and none comes after it that would show the gap
    let mut told = Vec::new();
    for _ in 0..11 {
        told.extend(bench.beat("a", Vec::new()).told());
        bench.ticks(1);
    }
    assert_eq!(told, [("a".to_owned(), Control::Sync)]);
}

#[test]
fn p8_thirty_silent_ticks_end_a_lease_and_a_heartbeat_brings_the_worker_back() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    let s = claim(run, "s", 1);
    bench.accept("a", &s);
    bench.ticks(20);
    bench.beat("a", vec![running(&s)]);
    assert_eq!(bench.ticks(29).words(), [""; 0]);
    assert_eq!(bench.ticks(1).words(), ["lease_ended", "ended", "log_closed", "retried"]);
    assert!(!bench.core.workers()[0].alive);
    let back = bench.beat("a", vec![running(&s)]);
    assert_eq!(back.words(), ["back"]);
    assert_eq!(back.told(), [("a".to_owned(), Control::Abandon { claim: s })]);
}

#[test]
fn p8_another_epochs_ticks_do_not_count_and_who_leads_anew_grants_a_full_lease() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    bench.ticks(29);
    for _ in 0..100 {
        bench.input(&Input::Tick { epoch: Epoch(EPOCH.0 - 1) });
    }
    assert!(bench.core.workers()[0].alive);
    bench.input(&Input::Lead { epoch: EPOCH });
    assert_eq!(bench.ticks(29).words(), [""; 0]);
    assert_eq!(bench.ticks(1).words(), ["lease_ended"]);
}
