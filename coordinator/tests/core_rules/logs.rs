//! When a log is closed, and what is asked for until then (P14).

use longshore_coordinator::core::entry::{Entry, LogGap};
use longshore_coordinator::core::input::Input;
use longshore_protocol::control::Control;
use longshore_protocol::event::{Claim, Event};
use longshore_protocol::output::{Offsets, STORED_EVERY_BYTES};
use longshore_protocol::{Outcome, RunId};

use crate::bench::{Bench, Told, claim, over, plain, running, with_output};

fn bytes(stdout: u64) -> Offsets {
    Offsets { stdout, stderr: 0 }
}

/// A step that ended after ten bytes, of which none is stored.
fn ended() -> (Bench, RunId, Claim) {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    let s = claim(run, "s", 1);
    bench.accept("a", &s);
    let end = bench.event("a", Event::Finished(with_output(&s, Outcome::Passed, 10)));
    assert!(end.has("run_settled") && !end.has("log_closed"), "settling does not wait for the log");
    (bench, run, s)
}

fn gap(entries: &[Entry]) -> Option<LogGap> {
    entries.iter().find_map(|entry| match entry {
        Entry::LogClosed { gap, .. } => Some(*gap),
        _ => None,
    })
}

#[test]
fn p14_a_log_is_closed_and_the_spool_let_go_when_every_byte_is_stored() {
    let (mut bench, run, s) = ended();
    assert_eq!(bench.core.open_logs(), std::slice::from_ref(&s));
    let part = bench.input(&Input::Stored { claim: s.clone(), offsets: bytes(9) });
    assert_eq!((part.words(), part.told(), bench.core.is_done(run)), (vec![], vec![], false));
    let rest = bench.input(&Input::Stored { claim: s.clone(), offsets: bytes(10) });
    assert_eq!(gap(&rest.entries), Some(LogGap::None));
    assert_eq!(rest.told(), [("a".to_owned(), Control::Settled { claim: s })]);
    assert!(bench.core.is_done(run) && bench.core.open_logs().is_empty());
    bench.core.forget(run);
    assert_eq!(bench.core.run_view(run), None);
}

#[test]
fn p14_missing_bytes_are_asked_for_when_nothing_comes_any_more() {
    let (mut bench, _, s) = ended();
    let alive = |bench: &mut Bench| bench.beat("a", vec![over(with_output(&s, Outcome::Passed, 10))]);
    bench.ticks(5);
    bench.input(&Input::Stored { claim: s.clone(), offsets: bytes(4) });
    assert_eq!(bench.ticks(9).told(), [], "some came five ticks ago");
    let resend = [("a".to_owned(), Control::Resend { claim: s.clone(), stored: bytes(4) })];
    assert_eq!(bench.ticks(1).told(), resend);
    alive(&mut bench);
    assert_eq!(bench.ticks(9).told(), []);
    assert_eq!(bench.ticks(1).told(), resend, "it is asked for again");
}

#[test]
fn p14_a_gap_is_asked_for_once() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    let s = claim(run, "s", 1);
    let gap = |bench: &mut Bench, stored| bench.input(&Input::Gap { claim: s.clone(), stored: bytes(stored) }).told();
    assert_eq!(gap(&mut bench, 0), [], "nobody's yet");
    bench.accept("a", &s);
    let resend = |stored| [("a".to_owned(), Control::Resend { claim: s.clone(), stored: bytes(stored) })];
    assert_eq!(gap(&mut bench, 3), resend(3));
    assert_eq!(gap(&mut bench, 3), []);
    assert_eq!(gap(&mut bench, 7), resend(7), "the next gap");
    bench.ticks(10);
    assert_eq!(gap(&mut bench, 7), resend(7), "it was not answered");
}

#[test]
fn p14_a_log_whose_worker_never_returns_is_closed_with_its_gap() {
    let (mut bench, _, s) = ended();
    bench.input(&Input::Stored { claim: s, offsets: bytes(4) });
    assert_eq!(gap(&bench.ticks(30).entries), Some(LogGap::Bytes { missing: bytes(6) }));

    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    bench.accept("a", &claim(run, "s", 1));
    assert_eq!(gap(&bench.ticks(30).entries), Some(LogGap::EndUnknown));
}

#[test]
fn p14_a_spool_that_is_not_held_any_more_closes_its_log() {
    let (mut bench, _, _) = ended();
    assert_eq!(gap(&bench.beat("a", Vec::new()).entries), Some(LogGap::Bytes { missing: bytes(10) }));
}

#[test]
fn p14_a_restarted_coordinator_asks_for_what_its_store_lacks() {
    let (mut bench, _, s) = ended();
    bench.restart();
    assert_eq!(bench.core.open_logs(), std::slice::from_ref(&s));
    bench.input(&Input::Stored { claim: s.clone(), offsets: bytes(8) });
    assert_eq!(bench.ticks(19).told(), [("a".to_owned(), Control::Resend { claim: s, stored: bytes(8) })]);
}

#[test]
fn p14_a_settled_attempt_that_runs_again_is_cancelled_and_keeps_what_it_left() {
    let (mut bench, _, s) = ended();
    bench.input(&Input::Stored { claim: s.clone(), offsets: bytes(10) });
    let by = longshore_protocol::outcome::CancelledBy::User;
    assert_eq!(bench.beat("a", vec![running(&s)]).told(), [("a".to_owned(), Control::Cancel { claim: s, by })]);
}

#[test]
fn p15_a_worker_hears_how_much_is_stored_every_so_often_and_after_each_start() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    let s = claim(run, "s", 1);
    bench.accept("a", &s);
    let told = |bytes_stored| [("a".to_owned(), Control::Stored { claim: s.clone(), stored: bytes(bytes_stored) })];
    let store = |bench: &mut Bench, to| bench.input(&Input::Stored { claim: s.clone(), offsets: bytes(to) }).told();
    let every = STORED_EVERY_BYTES;
    assert_eq!(store(&mut bench, every - 1), []);
    assert_eq!(store(&mut bench, every), told(every));
    assert_eq!(store(&mut bench, every + 5), []);
    // What was stored before came again: perhaps it was told in vain. Once a tick, as much comes at once.
    assert_eq!(store(&mut bench, 5), []);
    bench.ticks(1);
    assert_eq!(store(&mut bench, 5), told(every + 5));
    assert_eq!(store(&mut bench, 5), []);
    assert_eq!(store(&mut bench, 3 * every), told(3 * every), "once for whatever came at once");
    // A new coordinator does not know what the old one said.
    bench.restart();
    assert_eq!(store(&mut bench, 3 * every), told(3 * every));
    // Neither does a new incarnation of the worker; it hears it at once, however little it is more.
    assert_eq!(store(&mut bench, 3 * every + 7), []);
    assert!(bench.start("a", "e", 1, 2, vec![running(&s)]).told().contains(&told(3 * every + 7)[0]));
}
