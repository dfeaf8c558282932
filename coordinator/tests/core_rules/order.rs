//! Numbers (P9) and incarnations (P10).

use longshore_coordinator::core::Fenced;
use longshore_coordinator::core::entry::{End, Entry};
use longshore_coordinator::core::input::Input;
use longshore_protocol::control::Control;
use longshore_protocol::event::{Event, EventMessage};
use longshore_protocol::{Incarnation, Outcome};

use crate::bench::{Bench, Told, claim, finished, hello, id, over, plain, running};

#[test]
fn p9_a_number_that_is_in_is_ignored() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    let event = Event::Accepted(claim(run, "s", 1));
    assert_eq!(bench.event_numbered("a", 2, event.clone()).words(), ["heard", "accepted"]);
    let again = bench.event_numbered("a", 2, event);
    assert_eq!((again.entries.len(), again.effects.len(), again.repeats), (0, 0, 1));
}

#[test]
fn p9_a_gap_asks_once_for_a_sync_and_again_after_some_ticks() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    let event = Event::Accepted(claim(run, "s", 1));
    let gap = bench.event_numbered("a", 3, event.clone());
    assert_eq!((gap.words(), gap.told()), (vec![], vec![("a".to_owned(), Control::Sync)]));
    assert_eq!(bench.event_numbered("a", 4, event.clone()).told(), []);
    bench.ticks(10);
    assert_eq!(bench.event_numbered("a", 5, event).told(), [("a".to_owned(), Control::Sync)]);
}

#[test]
fn p9_records_close_a_gap_whatever_was_in_it() {
    let mut bench = Bench::new();
    bench.join("a", "e", 3);
    let (run, _) = bench.submit(vec![plain("s"), plain("t"), plain("u")]);
    let [s, t, u] = ["s", "t", "u"].map(|step| claim(run, step, 1));
    bench.accept("a", &s); // 2
    bench.accept("a", &u); // 3
    // 4 to 8 are lost: `s` finished, `t` was claimed, `u` vanished.
    let records = vec![over(finished(&s, Outcome::Passed)), running(&t)];
    let sync = bench.event_numbered("a", 9, Event::Records { records });
    let kinds: Vec<_> = sync.words();
    assert_eq!(
        kinds,
        ["heard", "ended", "log_closed", "accepted", "ended", "log_closed", "settled", "retried"],
        "s finished, t claimed, u lost"
    );
    assert!(
        matches!(&sync.entries[4], Entry::Ended { execution, end: End::Lost { .. }, .. } if *execution == u.execution)
    );
    let next = bench.event_numbered("a", 10, Event::Finished(finished(&t, Outcome::Passed)));
    assert_eq!(next.settled(), [(t.execution, Outcome::Passed)]);
}

#[test]
fn p9_what_was_claimed_after_a_sync_is_not_lost_by_it() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    let sync = bench.event("a", Event::Records { records: Vec::new() });
    assert_eq!(sync.words(), ["heard"]);
    bench.accept("a", &claim(run, "s", 1));
    let again = bench.event_numbered("a", 2, Event::Records { records: Vec::new() });
    assert_eq!((again.words(), again.repeats), (vec![], 1));
}

#[test]
fn p9_a_worker_whose_hello_was_lost_joins_by_a_heartbeat_and_a_sync() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    let incarnation = Incarnation { start: 5, nonce: 5 };
    let event = |number, event| Input::Event(EventMessage { worker: id("a"), incarnation, number, event });
    let asked = bench.input(&event(2, Event::Accepted(claim(run, "s", 1))));
    assert_eq!((asked.words(), asked.told()), (vec![], vec![("a".to_owned(), Control::Sync)]));
    let mut heartbeat = bench.heartbeat("a", Vec::new());
    heartbeat.incarnation = incarnation;
    bench.input(&Input::Heartbeat(heartbeat));
    let joined = bench.input(&event(3, Event::Records { records: vec![running(&claim(run, "s", 1))] }));
    assert_eq!(joined.words(), ["joined", "heard", "accepted"]);
}

#[test]
fn p10_what_a_new_incarnation_lists_it_speaks_for_and_the_rest_is_lost_at_once() {
    let mut bench = Bench::new();
    bench.join("a", "e", 3);
    let (run, _) = bench.submit(vec![plain("s"), plain("t"), plain("u")]);
    let [s, t, u] = ["s", "t", "u"].map(|step| claim(run, step, 1));
    for claimed in [&s, &t, &u] {
        bench.accept("a", claimed);
    }
    let records = vec![running(&s), over(finished(&t, Outcome::Passed))];
    let joined = bench.start("a", "e", 3, 2, records);
    assert_eq!(joined.words(), ["joined", "heard", "ended", "log_closed", "ended", "log_closed", "settled", "retried"]);
    assert_eq!(joined.settled(), [(t.execution, Outcome::Passed)]);
    assert_eq!(bench.core.step_view(run, 2).unwrap().attempts[0].outcome.as_ref().unwrap().word(), "infra");
    assert_eq!(bench.finish("a", &s, Outcome::Passed).settled(), [(s.execution, Outcome::Passed)]);
}

#[test]
fn p10_the_older_incarnation_is_stale() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    let old = bench.heartbeat("a", vec![running(&claim(run, "s", 1))]);
    bench.start("a", "e", 1, 2, Vec::new());
    let beat = bench.input(&Input::Heartbeat(old));
    assert_eq!((beat.words(), beat.fenced), (vec![], vec![Fenced::Incarnation]));
    let incarnation = Incarnation { start: 1, nonce: 100 };
    let event = Event::Accepted(claim(run, "s", 1));
    let said = bench.input(&Input::Event(EventMessage { worker: id("a"), incarnation, number: 2, event }));
    assert_eq!((said.words(), said.fenced), (vec![], vec![Fenced::Incarnation]));
}

#[test]
fn p10_a_cloned_disk_is_refused() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let incarnation = Incarnation { start: 1, nonce: 666 };
    let event = Event::Hello(hello("other", 1, Vec::new()));
    let said = bench.input(&Input::Event(EventMessage { worker: id("a"), incarnation, number: 1, event }));
    assert_eq!(said.words(), [""; 0]);
    assert!(matches!(&said.told()[..], [(_, Control::Refused { reason })] if reason.contains("state directory")));
}

#[test]
fn p10_a_cancel_is_told_again_to_the_incarnation_that_adopted_the_attempt() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    let s = claim(run, "s", 1);
    bench.accept("a", &s);
    let by = longshore_protocol::outcome::CancelledBy::User;
    bench.input(&Input::Cancel { run, by: by.clone() });
    let joined = bench.start("a", "e", 1, 2, vec![running(&s)]);
    assert_eq!(joined.told(), [("a".to_owned(), Control::Cancel { claim: s, by })]);
}
