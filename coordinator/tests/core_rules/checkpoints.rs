//! What was committed stays for what stands behind it in containers only, and little is made again (P20).

use longshore_coordinator::core::entry::Entry;
use longshore_coordinator::core::input::Input;
use longshore_coordinator::core::view::RunOutcome;
use longshore_coordinator::core::{Core, CoreConfig, Step};
use longshore_coordinator::pipeline::Pipeline;
use longshore_protocol::event::{Event, EventMessage, Finished, Started};
use longshore_protocol::outcome::InfraStage;
use longshore_protocol::{Incarnation, Outcome, RunId};

use crate::bench::{Bench, Told, claim, dispatched, finished, from, id, parent, plain, remake, running, snapshot};

/// The build took ten minutes, so its worker committed it (the checkpoint rule); the trifles behind it were not.
#[test]
fn p20_a_retry_of_what_failed_does_not_repeat_the_ten_minute_build() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let names = ["build", "one", "two", "three"];
    let steps = (0..4).map(|n| if n == 0 { plain("build") } else { from(names[n], names[n - 1]) });
    let (run, _) = bench.submit(steps.collect());
    let build = claim(run, "build", 1);
    bench.accept("a", &build);
    bench.started_in("a", &build, "c");
    // All that time its worker was heard of.
    for _ in 0..60 {
        bench.ticks(10);
        bench.beat("a", vec![running(&build)]);
    }
    let kept = Finished { parked: true, snapshot: Some(snapshot(&build)), ..finished(&build, Outcome::Passed) };
    bench.event("a", Event::Finished(kept));
    bench.park("a", &claim(run, "one", 1), "c");
    bench.park("a", &claim(run, "two", 1), "c");
    bench.accept("a", &claim(run, "three", 1));
    bench.started_in("a", &claim(run, "three", 1), "c");
    bench.finish("a", &claim(run, "three", 1), Outcome::infra(InfraStage::Exec, "the Engine went away"));
    // All of them went on in one container, and it is gone: what was committed first is still there.
    let step = bench.wake();
    assert_eq!(dispatched(&step), [remake(run, "one", 1, 1)], "the build is not repeated");
    assert_eq!(step.jobs()[0].1.base, parent(&build, Some(snapshot(&build))));
    for again in [remake(run, "one", 1, 1), remake(run, "two", 1, 1)] {
        bench.park("a", &again, "c2");
    }
    let last = bench.carry_out("a", &claim(run, "three", 2), Outcome::Passed);
    assert!(last.has("snapshot_dropped"), "until nothing behind it can be lost any more");
    assert_eq!(bench.core.run_summary(run).unwrap().outcome, Some(RunOutcome::Passed));
    let built = bench.core.step_view(run, 0).unwrap();
    assert_eq!((built.attempts.len(), built.remakes.len()), (1, 0));
}

#[test]
fn p20_a_commit_stays_until_the_next_one_down_the_chain() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s"), from("t", "s"), from("u", "t"), from("v", "u")]);
    let (s, u) = (claim(run, "s", 1), claim(run, "u", 1));
    bench.park_with("a", &s, "c", Some(snapshot(&s)));
    assert!(!bench.park("a", &claim(run, "t", 1), "c").has("snapshot_dropped"));
    let step = bench.park_with("a", &u, "c", Some(snapshot(&u)));
    let dropped: Vec<_> = step.entries.iter().filter(|entry| entry.word() == "snapshot_dropped").collect();
    assert!(matches!(dropped[..], [Entry::SnapshotDropped { execution, .. }] if *execution == s.execution));
}

#[test]
fn p20_a_chain_of_ten_thousand_in_one_container_costs_what_it_changes() {
    // If every step looked at all before it, this would be 10^8 looks, and minutes here.
    let count = 10_000;
    let name = |n: usize| format!("t{n}");
    let steps = (0..count).map(|n| if n == 0 { plain(&name(0)) } else { from(&name(n), &name(n - 1)) });
    let pipeline = Box::new(Pipeline { name: "p".to_owned(), timeout_ms: None, steps: steps.collect() });
    let run = RunId::new();
    let mut core = Core::new(CoreConfig::default());
    core.apply(&Input::Submit { run, tenant: "t".to_owned(), pipeline }, 0);
    let incarnation = Incarnation { start: 1, nonce: 1 };
    let mut number = 0;
    let mut say = |core: &mut Core, event| {
        number += 1;
        core.apply(&Input::Event(EventMessage { worker: id("a"), incarnation, number, event }), 0)
    };
    say(&mut core, Event::Hello(crate::bench::hello("e", 1, Vec::new())));
    let mut last = Step::default();
    for n in 0..count {
        let of = claim(run, &name(n), 1);
        let container = "c".to_owned();
        say(&mut core, Event::Accepted(of.clone()));
        let claim = of.clone();
        say(&mut core, Event::Started(Started { claim, prepare_ms: 1, queue_to_start_ms: 1, container }));
        // The first is committed as well, and stays until the end.
        let snapshot = (n == 0).then(|| snapshot(&of));
        let parked = n + 1 < count;
        last = say(&mut core, Event::Finished(Finished { parked, snapshot, ..finished(&of, Outcome::Passed) }));
    }
    assert_eq!(core.run_summary(run).unwrap().outcome, Some(RunOutcome::Passed));
    assert!(last.has("snapshot_dropped") && last.released().is_empty());
}
