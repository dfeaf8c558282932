//! Who is asked, and what the job says.

use longshore_coordinator::core::effect::JobQueue;
use longshore_coordinator::core::entry::Entry;
use longshore_coordinator::pipeline::{PlannedStep, Retry, SnapshotRule, SourceDir};
use longshore_protocol::control::Control;
use longshore_protocol::job::{Keep, Network, Resources, StepSpec};
use longshore_protocol::{BlobHash, Outcome, PoolName, SnapshotId};

use crate::bench::{Bench, Told, claim, from, needs, parent, plain, snapshot, to};

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
    assert!(jobs.iter().all(|(_, job)| job.base == parent(&s, Some(snapshot(&s)))));
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
fn which_sources_go_in() {
    let mut bench = Bench::new();
    let blob = BlobHash::of(b"tar");
    bench.join("a", "e", 1);
    let source = SourceDir { path: "src".to_owned(), target: "/src".to_owned(), blob: Some((blob.clone(), 3)) };
    let (_, step) = bench.submit(vec![PlannedStep { sources: vec![source], ..plain("s") }]);
    let sources = &step.jobs()[0].1.spec.sources;
    assert_eq!((&sources[0].blob, sources[0].bytes, sources[0].target.as_str()), (&blob, 3, "/src"));
}

/// What must be kept of `parent`, with these children.
fn kept(parent: PlannedStep, children: Vec<PlannedStep>) -> Keep {
    let mut steps = vec![parent];
    steps.extend(children);
    let mut bench = Bench::new();
    bench.join("a", "e", 1);
    bench.submit(steps).1.jobs()[0].1.keep.clone()
}

#[test]
fn p19_only_one_child_that_can_go_on_in_the_container_leaves_it_uncommitted() {
    let s = || plain("s");
    let child = |name: &str| from(name, "s");
    let pool = |pool: &str, step: PlannedStep| {
        let pool = pool.parse().unwrap();
        PlannedStep { spec: StepSpec { pool, ..step.spec.clone() }, ..step }
    };
    let bridge = |step: PlannedStep| {
        let spec = StepSpec { network: Network::Bridge, ..step.spec.clone() };
        PlannedStep { spec, ..step }
    };
    let limited = |step: PlannedStep| {
        let resources = Resources { pids: Some(7), ..Resources::default() };
        PlannedStep { spec: StepSpec { resources, ..step.spec.clone() }, ..step }
    };
    let cached = |step: PlannedStep| PlannedStep { cache_key: Some("k".to_owned()), ..step };
    let always = |step: PlannedStep| PlannedStep { snapshot: SnapshotRule::Always, ..step };
    let retried = |step: PlannedStep| PlannedStep { retry: Retry::times(1), ..step };
    let id = SnapshotId::cached("t", "k");

    assert_eq!(kept(s(), vec![]), Keep::Nothing);
    assert_eq!(kept(s(), vec![needs("t", &["s"])]), Keep::Nothing, "it goes on with other files");
    assert_eq!(kept(s(), vec![child("t")]), Keep::Live);
    assert_eq!(kept(s(), vec![child("t"), needs("u", &["s"])]), Keep::Live);
    assert_eq!(kept(retried(s()), vec![child("t")]), Keep::Live, "tried again is what failed, and left nothing");
    assert_eq!(kept(s(), vec![limited(child("t"))]), Keep::Live, "limits are changed in place");
    assert_eq!(kept(s(), vec![cached(child("t"))]), Keep::Live);
    assert_eq!(kept(s(), vec![child("t"), child("u")]), Keep::Snapshot, "a fork");
    assert_eq!(kept(s(), vec![retried(child("t"))]), Keep::Snapshot, "the user's rule may want the files again");
    assert_eq!(kept(s(), vec![pool("other", child("t"))]), Keep::Snapshot);
    assert_eq!(kept(s(), vec![bridge(child("t"))]), Keep::Snapshot);
    assert_eq!(kept(bridge(s()), vec![bridge(child("t"))]), Keep::Live);
    assert_eq!(kept(cached(s()), vec![child("t")]), Keep::Cached { id: id.clone() });
    assert_eq!(kept(always(s()), vec![child("t")]), Keep::Always);
    assert_eq!(kept(cached(always(s())), vec![]), Keep::Cached { id });
}

#[test]
fn p19_of_a_fork_only_what_is_left_of_it_counts() {
    let mut bench = Bench::new();
    let keep_going = |step: PlannedStep| PlannedStep { keep_going: true, ..step };
    bench.join("a", "e", 4);
    let mut t = keep_going(from("t", "s"));
    t.needs = vec!["bad".into()];
    let s = keep_going(needs("s", &["x"]));
    let (run, _) =
        bench.submit(vec![keep_going(plain("bad")), keep_going(plain("x")), s, t, keep_going(from("u", "s"))]);
    bench.carry_out("a", &claim(run, "bad", 1), Outcome::Failed { exit: 1 });
    let jobs = bench.carry_out("a", &claim(run, "x", 1), Outcome::Passed).jobs();
    assert_eq!(jobs[0].1.keep, Keep::Live, "t was skipped before s began");
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
