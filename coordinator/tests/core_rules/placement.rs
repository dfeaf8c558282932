//! Who is asked, and what the job says.

use longshore_coordinator::core::effect::JobQueue;
use longshore_coordinator::core::entry::Entry;
use longshore_coordinator::pipeline::{PlannedStep, SnapshotRule, SourceDir};
use longshore_protocol::control::Control;
use longshore_protocol::job::{Base, Keep};
use longshore_protocol::{BlobHash, Outcome, PoolName, SnapshotId};

use crate::bench::{Bench, Told, claim, from, plain, snapshot};

fn to(worker: &str) -> JobQueue {
    JobQueue::Worker(worker.parse().unwrap())
}

#[test]
fn a_child_goes_to_the_freest_worker_beside_its_parents_engine() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    bench.join("b", "e", 3);
    bench.join("c", "elsewhere", 9);
    let (run, _) = bench.submit(vec![plain("s"), from("t", "s"), from("u", "s"), from("v", "s")]);
    let s = claim(run, "s", 1);
    let jobs = bench.carry_out_parent("a", &s).jobs();
    let queues: Vec<_> = jobs.iter().map(|(queue, _)| queue.clone()).collect();
    assert_eq!(queues, [to("b"), to("b"), to("a")], "three slots, then two, then one each: the first by id");
    assert!(jobs.iter().all(|(_, job)| job.base == Base::Snapshot { id: snapshot(&s) }));
}

#[test]
fn without_a_worker_beside_the_snapshot_a_step_is_infra_after_the_fleets_retries() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s"), plain("x"), from("t", "s")]);
    bench.carry_out_parent("a", &claim(run, "s", 1));
    let lost = bench.ticks(30);
    assert!(lost.has("lease_ended"));
    for _ in 0..3 {
        bench.wake(); // gone with its worker; then it finds nobody, as often as the fleet tries
    }
    let last = bench.wake();
    let outcomes = last.settled();
    assert!(
        matches!(&outcomes[0].1, Outcome::Infra { reason, .. } if reason.contains("snapshot_lost")),
        "{outcomes:?}"
    );
    // A worker that returns in time gets it.
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s"), from("t", "s")]);
    bench.carry_out_parent("a", &claim(run, "s", 1));
    bench.ticks(30);
    bench.wake();
    bench.beat("a", Vec::new());
    assert_eq!(bench.wake().jobs()[0].0, to("a"));
}

#[test]
fn a_step_is_sent_after_the_snapshot_of_its_key() {
    let cached = || PlannedStep { cache_key: Some("k".to_owned()), ..plain("s") };
    let id = SnapshotId::cached("t", "k");
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    bench.join("b", "f", 1);
    let (queue, job) = bench.submit(vec![cached()]).1.jobs().remove(0);
    assert_eq!((queue, job.keep), (JobQueue::Pool(PoolName::default()), Keep::Cached { id: id.clone() }));
    bench.has_cached("b", id);
    bench.beat("b", Vec::new());
    assert_eq!(bench.submit(vec![cached()]).1.jobs()[0].0, to("b"));
}

#[test]
fn what_is_kept_and_which_sources_go_in() {
    let mut bench = Bench::new();
    let blob = BlobHash::of(b"tar");
    let source = |blob| SourceDir { path: "src".to_owned(), target: "/src".to_owned(), blob };
    let (_, step) = bench.submit(vec![
        PlannedStep { sources: vec![source(Some((blob.clone(), 3)))], ..plain("alone") },
        PlannedStep { snapshot: SnapshotRule::Always, ..plain("always") },
        plain("parent"),
        from("child", "parent"),
    ]);
    let keeps: Vec<_> = step.jobs().into_iter().map(|(_, job)| job.keep).collect();
    assert_eq!(keeps, [Keep::Nothing, Keep::Always, Keep::Snapshot]);
    let sources = &step.jobs()[0].1.spec.sources;
    assert_eq!((&sources[0].blob, sources[0].bytes, sources[0].target.as_str()), (&blob, 3, "/src"));
}

#[test]
fn a_snapshot_goes_when_its_last_child_is_settled_unless_it_is_kept() {
    for rule in [SnapshotRule::Auto, SnapshotRule::Always] {
        let mut bench = Bench::new();
        bench.join("a", "e", 3);
        let parent = PlannedStep { snapshot: rule, ..plain("s") };
        let (run, _) = bench.submit(vec![parent, from("t", "s"), from("u", "s")]);
        bench.carry_out_parent("a", &claim(run, "s", 1));
        assert!(!bench.carry_out("a", &claim(run, "t", 1), Outcome::Passed).has("snapshot_dropped"));
        let last = bench.carry_out("a", &claim(run, "u", 1), Outcome::Passed);
        let told = last.told().into_iter().any(|(_, control)| matches!(control, Control::RemoveSnapshot { .. }));
        assert_eq!((last.has("snapshot_dropped"), told), (rule == SnapshotRule::Auto, rule == SnapshotRule::Auto));
    }
}

#[test]
fn a_parent_that_passed_without_its_snapshot_is_the_fleets_fault() {
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    let (run, _) = bench.submit(vec![plain("s"), from("t", "s")]);
    let step = bench.carry_out("a", &claim(run, "s", 1), Outcome::Passed);
    assert!(step.has("retried") && step.settled().is_empty());
    assert!(!step.entries.iter().any(|entry| matches!(entry, Entry::Dispatched { .. })));
}
