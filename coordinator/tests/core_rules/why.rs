//! Why a step is as it is: what the journal and the live core tell of it.

use longshore_coordinator::core::entry::Entry;
use longshore_coordinator::core::input::{Input, Millis};
use longshore_coordinator::pipeline::{PlannedStep, Retry};
use longshore_coordinator::why::{About, Charge, Why, why};
use longshore_protocol::outcome::{HANDED_BACK, InfraStage};
use longshore_protocol::{ExecutionId, Outcome, RunId, SnapshotId};

use crate::bench::{Bench, claim, from, plain, running, to_pool};

const FAILED: Outcome = Outcome::Failed { exit: 1 };

/// As a coordinator that leads tells it.
fn asked(bench: &Bench, run: RunId, step: &str) -> Why {
    let present = bench.core.present(run, ExecutionId::of_step(run, &step.into()), bench.now);
    let entries: Vec<(Millis, Entry)> = bench.journal.iter().map(|(entry, at)| (*at, entry.clone())).collect();
    let live = why(run, &step.into(), &entries, present.as_ref()).unwrap();
    // What happened is told from the journal alone.
    assert_eq!(why(run, &step.into(), &entries, None).unwrap().told, live.told);
    live
}

fn of(why: &Why, about: About) -> Vec<&str> {
    why.told.iter().filter(|told| told.about == about).map(|told| told.text.as_str()).collect()
}

fn charges(why: &Why) -> Vec<Charge> {
    why.told.iter().filter_map(|told| told.charge).collect()
}

#[test]
fn a_step_that_was_tried_again_tells_whose_fault_each_end_was() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![PlannedStep { retry: Retry::times(1), ..plain("s") }]);
    let infra = |reason: &str| Outcome::infra(InfraStage::Exec, reason);
    bench.carry_out("a", &claim(run, "s", 1), infra("the Engine went away"));
    bench.wake();
    bench.carry_out("a", &claim(run, "s", 2), infra(HANDED_BACK));
    bench.carry_out("a", &claim(run, "s", 3), FAILED);
    bench.carry_out("a", &claim(run, "s", 4), FAILED);
    let why = asked(&bench, run, "s");
    assert_eq!(charges(&why), [Charge::Fleet, Charge::Nobody, Charge::User, Charge::User]);
    let retried = of(&why, About::Retried);
    assert!(retried[0].starts_with("the fleet tries it again (once), after a wait of "), "{retried:?}");
    let others = ["another worker is asked, charged to nobody", "its own rule has it tried again (1 of 1)"];
    assert_eq!(retried[1..], others);
    assert_eq!(of(&why, About::Settled), ["it failed with exit status 1; its rule's one retry is used up"]);
    assert!(why.now.is_empty());
}

#[test]
fn poison_names_the_workers_that_were_lost() {
    let mut bench = Bench::new();
    let (run, _) = bench.submit(vec![plain("s")]);
    for (attempt, worker) in [(1, "a"), (2, "b"), (3, "c")] {
        bench.join(worker, "e", 1);
        bench.accept(worker, &claim(run, "s", attempt));
        bench.ticks(20);
        let now = asked(&bench, run, "s").now;
        let silent =
            format!("worker {worker} was not heard of for 20 s: in 10 s its lease ends, and the attempt with it");
        assert_eq!(now[1], silent);
        bench.ticks(10);
        if attempt < 3 {
            bench.wake();
        }
    }
    let why = asked(&bench, run, "s");
    let lost = of(&why, About::Ended);
    assert!(lost[2].starts_with("attempt 3 was lost with worker c: worker c was not heard of"), "{lost:?}");
    let settled = of(&why, About::Settled)[0];
    assert!(
        settled.starts_with("it is not tried any more: it could not") || settled.contains("poison: 3 workers"),
        "{settled}"
    );
    assert!(settled.contains("a, b, c"), "{settled}");
}

#[test]
fn a_key_that_was_missed_tells_who_was_asked() {
    let keyed = || PlannedStep { cache_key: Some("k".to_owned()), ..plain("s") };
    let key = SnapshotId::cached("t", "k");
    let missed = |bench: &mut Bench, worker: &'static str| {
        let (run, _) = bench.submit(vec![keyed()]);
        bench.accept(worker, &claim(run, "s", 1));
        bench.started_in(worker, &claim(run, "s", 1), "c");
        bench.finish(worker, &claim(run, "s", 1), FAILED);
        of(&asked(bench, run, "s"), About::Cache)[0].to_owned()
    };
    let mut bench = Bench::new();
    let (run, _) = bench.submit(vec![keyed()]);
    bench.join("a", "e", 2);
    bench.accept("a", &claim(run, "s", 1));
    bench.started_in("a", &claim(run, "s", 1), "c");
    bench.finish("a", &claim(run, "s", 1), FAILED);
    let silent = "nothing was found under its key k: the one worker of pool default that was there had not reported it \
                  (a); 1 of them had not said yet what they have";
    assert_eq!(of(&asked(&bench, run, "s"), About::Cache), [silent]);
    bench.beat("a", Vec::new());
    bench.join("b", "f", 2);
    assert_eq!(
        missed(&mut bench, "a"),
        "nothing was found under its key k: the 2 workers of pool default that were there had not reported it (a and b); \
         1 of them had not said yet what they have"
    );
    bench.has_cached("b", key);
    bench.beat("b", Vec::new());
    assert_eq!(
        missed(&mut bench, "b"),
        "nothing was found under its key k: worker b had reported it, but it was gone when the job came there"
    );
}

#[test]
fn p20_files_out_of_reach_are_told_with_their_place() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s"), from("t", "s")]);
    bench.carry_out_parent("a", &claim(run, "s", 1));
    bench.ticks(30); // its only worker is lost, and the job in its queue with it
    bench.wake();
    let why = asked(&bench, run, "t");
    assert_eq!(
        why.now,
        [
            "what s left stands on Engine e, where worker a kept it, which is away; it goes on when that one is back, or \
          another of pool default that could make it again"
        ]
    );
}

#[test]
fn p6_a_job_that_left_its_queue_tells_when_it_counts_as_gone() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    bench.beat("a", Vec::new());
    bench.ticks(1);
    bench.input(&Input::Waiting { queue: to_pool(), messages: 0 });
    bench.beat("a", Vec::new());
    bench.ticks(10);
    let now = asked(&bench, run, "s").now;
    assert_eq!(now[1], "pool default has 1 worker alive, with 1 slot free");
    assert_eq!(now[2], "it left its queue and nobody has claimed it: in 20 s it is taken for gone, and sent anew");
}

#[test]
fn p15_a_full_disk_is_told() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s")]);
    bench.accept("a", &claim(run, "s", 1));
    let mut heartbeat = bench.heartbeat("a", vec![running(&claim(run, "s", 1))]);
    heartbeat.full = vec![claim(run, "s", 1)];
    bench.input(&Input::Heartbeat(heartbeat));
    let full = "its output fills what may stand on its worker's disk: it waits on its pipe until more is stored";
    assert_eq!(asked(&bench, run, "s").now[1], full);
    bench.beat("a", vec![running(&claim(run, "s", 1))]);
    assert_eq!(asked(&bench, run, "s").now.len(), 1);
}
