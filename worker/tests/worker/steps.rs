//! Every way in which a step can end.

use std::time::Duration;

use longshore_protocol::control::Control;
use longshore_protocol::event::{Event, Finished};
use longshore_protocol::job::{Base, Command, Job, Keep, Source, StepSpec};
use longshore_protocol::outcome::{HANDED_BACK, SNAPSHOT_LOST};
use longshore_protocol::output::{Offsets, Stream};
use longshore_protocol::{BlobHash, InfraStage, Outcome, SnapshotId};
use longshore_worker::engine::EngineError;

use crate::fleet::{Fleet, Log, claim, fence};

async fn ends(fleet: &mut Fleet, job: &Job) -> (Finished, Log) {
    let finished = fleet.carry_out(job).await;
    let log = fleet.log(&claim(job), Offsets::default(), finished.output).await;
    (finished, log)
}

fn infra_reason(finished: &Finished, stage: InfraStage) -> &str {
    match &finished.outcome {
        Outcome::Infra { stage: found, reason } if *found == stage => reason,
        other => panic!("infra{{{stage}, …}} was expected, not {other}"),
    }
}

fn refused() -> EngineError {
    EngineError::Refused { operation: "commit", status: 500, reason: "a driver's bad day".to_owned() }
}

#[tokio::test]
async fn the_environment_is_ours_then_the_pipelines() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let script = "echo $CI $LONGSHORE_RUN $LONGSHORE_STEP $LONGSHORE_ATTEMPT $LONGSHORE_POOL; echo $A";
    let mut job = fleet.job("a", script);
    job.spec.env.insert("CI".to_owned(), "otherwise".to_owned());
    let (finished, log) = ends(&mut fleet, &job).await;
    assert_eq!(finished.outcome, Outcome::Passed);
    let expected = format!("otherwise {} a 1 default\nfrom the spec\n", job.run);
    assert_eq!(log.text(Stream::Stdout), expected);
    worker.stop().await;
    assert!(fleet.containers().await.is_empty());
}

#[tokio::test]
async fn exit_codes_are_the_kernels() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    for (script, outcome) in [
        ("true", Outcome::Passed),
        ("exit 1", Outcome::Failed { exit: 1 }),
        ("exit 137", Outcome::Failed { exit: 137 }),
        ("kill -9 $$", Outcome::Signaled { signal: 9 }),
        ("oom", Outcome::OomKilled),
    ] {
        let job = fleet.job(script, script);
        let finished = fleet.carry_out(&job).await;
        assert_eq!(finished.outcome, outcome, "{script}");
        assert!(finished.usage.is_some_and(|usage| usage.max_rss_bytes > 0), "{script}");
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_command_that_cannot_be_started_is_the_users_failure_and_the_log_says_why() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let job = fleet.job("a", "");
    let spec = StepSpec { command: Command::Argv(vec!["no-such-program".to_owned()]), ..job.spec.clone() };
    let (finished, log) = ends(&mut fleet, &Job { spec, ..job }).await;
    assert_eq!(finished.outcome, Outcome::Failed { exit: 127 });
    assert!(log.text(Stream::Stderr).starts_with("longshore: the command cannot be started"), "{log:?}");
    worker.stop().await;
}

#[tokio::test]
async fn a_step_that_takes_too_long_is_ended_with_its_output() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let mut job = fleet.job("a", "trap 'echo ending' TERM; echo begun; sleep 1000 & wait");
    (job.spec.timeout_ms, job.spec.grace_ms) = (2_000, 60_000);
    let (finished, log) = ends(&mut fleet, &job).await;
    assert_eq!(finished.outcome, Outcome::TimedOut);
    assert_eq!(log.text(Stream::Stdout), "begun\nending\n");
    worker.stop().await;
    assert!(fleet.containers().await.is_empty());
}

#[tokio::test]
async fn files_are_handed_on() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let parent = Job { keep: Keep::Snapshot, ..fleet.job("parent", "echo from the parent > /f") };
    let left = fleet.carry_out(&parent).await;
    let snapshot = left.snapshot.clone().unwrap();
    assert_eq!(snapshot, SnapshotId::ephemeral(&fence(&parent, &worker.id)));
    let child = fleet.child("child", "cat /f", &left);
    let (finished, log) = ends(&mut fleet, &child).await;
    assert_eq!(finished.snapshot, None);
    assert_eq!(log.text(Stream::Stdout), "from the parent\n");

    let nobodys = Finished { claim: claim(&fleet.job("nobody", "")), snapshot: None, ..left };
    let lost = fleet.child("lost", "true", &nobodys);
    let (finished, _) = ends(&mut fleet, &lost).await;
    assert_eq!(infra_reason(&finished, InfraStage::Prepare), SNAPSHOT_LOST);
    worker.stop().await;
}

#[tokio::test]
async fn what_is_cached_is_not_run() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let id = SnapshotId::cached("default", "key");
    let cached = |name: &str| Job { keep: Keep::Cached { id: id.clone() }, ..fleet.job(name, "echo ran") };
    let (first, second) = (cached("a"), cached("b"));
    let finished = fleet.carry_out(&first).await;
    assert_eq!((finished.cached, finished.snapshot.as_ref(), finished.output.stdout), (false, Some(&id), 4));
    fleet.dispatch(&second).await;
    assert_eq!(fleet.accepted().await, claim(&second));
    let Event::Finished(finished) = fleet.event().await else { panic!("nothing was to be started") };
    assert_eq!((finished.cached, finished.snapshot.as_ref(), finished.output.stdout), (true, Some(&id), 0));
    assert_eq!(finished.outcome, Outcome::Passed);
    worker.stop().await;
}

#[tokio::test]
async fn a_failed_step_is_kept_only_if_asked_for() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let plain = Job { keep: Keep::Snapshot, ..fleet.job("plain", "exit 1") };
    assert_eq!(fleet.carry_out(&plain).await.snapshot, None);
    let always = Job { keep: Keep::Always, ..fleet.job("always", "echo x > /f; exit 1") };
    let finished = fleet.carry_out(&always).await;
    assert_eq!(finished.outcome, Outcome::Failed { exit: 1 });
    assert_eq!(finished.snapshot, Some(SnapshotId::ephemeral(&fence(&always, &worker.id))));
    worker.stop().await;
}

#[tokio::test]
async fn a_commit_is_tried_again_where_that_may_help() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    fleet.engine.fail_next("commit", refused());
    let job = Job { keep: Keep::Snapshot, ..fleet.job("a", "true") };
    let finished = fleet.carry_out(&job).await;
    assert_eq!(finished.outcome, Outcome::Passed);
    assert!(finished.snapshot.is_some());
    worker.stop().await;
}

#[tokio::test]
async fn a_full_disk_at_the_commit_is_infra_and_the_container_is_removed() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    fleet.engine.fail_next("commit", EngineError::DiskFull { reason: "no space left on device".to_owned() });
    let job = Job { keep: Keep::Snapshot, ..fleet.job("a", "true") };
    let (finished, log) = ends(&mut fleet, &job).await;
    assert_eq!(infra_reason(&finished, InfraStage::Snapshot), "disk");
    assert_eq!(finished.snapshot, None);
    assert!(fleet.containers().await.is_empty(), "it may still be written: it goes before anybody is told");
    assert!(log.text(Stream::Stderr).contains("no space left"), "{log:?}");
    worker.stop().await;
}

#[tokio::test]
async fn an_image_that_cannot_be_had_is_infra_and_the_log_says_why() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let base = Base::Image { reference: "registry.test/missing".to_owned() };
    let job = Job { base, ..fleet.job("a", "true") };
    let (finished, log) = ends(&mut fleet, &job).await;
    assert!(infra_reason(&finished, InfraStage::Prepare).contains("registry.test/missing"));
    assert!(log.text(Stream::Stderr).contains("manifest unknown"), "{log:?}");
    worker.stop().await;
}

#[tokio::test]
async fn sources_are_put_in_and_checked_against_their_name() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    tar.append_data(&mut header, "f", &b"words"[..]).unwrap();
    let bytes = tar.into_inner().unwrap();
    let blob = BlobHash::of(&bytes);
    let source = Source { blob: blob.clone(), bytes: bytes.len() as u64, target: "/src/deep".to_owned() };
    let path = fleet.blobs().join(&blob.as_str()[..2]);
    std::fs::create_dir_all(&path).unwrap();
    std::fs::write(path.join(blob.as_str()), &bytes).unwrap();

    let mut job = fleet.job("good", "cat /src/deep/f");
    job.spec.sources = vec![source];
    let (finished, log) = ends(&mut fleet, &job).await;
    assert_eq!((finished.outcome, log.text(Stream::Stdout).as_str()), (Outcome::Passed, "words"));

    // The same length, the same tar to whoever reads it, another content than was named.
    let mut other = bytes;
    *other.last_mut().unwrap() = 1;
    std::fs::write(path.join(blob.as_str()), &other).unwrap();
    let bad = Job { spec: job.spec.clone(), ..fleet.job("bad", "cat /src/deep/f") };
    let finished = fleet.carry_out(&bad).await;
    let reason = infra_reason(&finished, InfraStage::Prepare);
    assert!(reason.contains(blob.as_str()) && reason.contains("have the hash"), "{reason}");
    worker.stop().await;
    assert!(fleet.containers().await.is_empty());
}

#[tokio::test]
async fn an_engine_that_dies_is_infra_and_the_next_job_is_carried_out() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let job = fleet.job("a", "echo begun; sleep 1000");
    fleet.dispatch(&job).await;
    assert_eq!(fleet.output().await.claim, claim(&job));
    // Away for a while: it neither lists, nor answers, nor removes.
    let away = || EngineError::Unreachable { address: "fake".to_owned(), reason: "away".to_owned() };
    for operation in ["info", "info", "destroy"] {
        fleet.engine.fail_next(operation, away());
    }
    fleet.engine.crash();
    let finished = fleet.finished().await;
    assert!(infra_reason(&finished, InfraStage::Exec).contains("the Engine died"));
    assert!(fleet.containers().await.is_empty(), "P11: gone before it was told");
    assert_eq!(fleet.carry_out(&fleet.job("b", "true")).await.outcome, Outcome::Passed);
    worker.stop().await;
}

#[tokio::test]
async fn a_worker_without_its_engine_offers_no_slot() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let away = || EngineError::Unreachable { address: "fake".to_owned(), reason: "away".to_owned() };
    (0..3).for_each(|_| fleet.engine.fail_next("info", away()));
    fleet.heartbeat_where(|hb| hb.slots_free == 0).await;
    fleet.heartbeat_where(|hb| hb.slots_free == 1).await;
    assert_eq!(fleet.carry_out(&fleet.job("a", "true")).await.outcome, Outcome::Passed);
    worker.stop().await;
}

#[tokio::test]
async fn a_worker_told_to_end_lets_its_steps_finish_and_claims_no_more() {
    let mut fleet = Fleet::new().await;
    fleet.drain = Duration::from_mins(10);
    fleet.heartbeat_every = Duration::from_mins(10);
    let (mut worker, _) = fleet.started().await;
    let job = fleet.job("a", "echo begun; await go; echo done; exit 3");
    fleet.dispatch(&job).await;
    assert_eq!(fleet.output().await.claim, claim(&job));
    worker.told_to_end();
    let other = fleet.job("b", "true");
    fleet.dispatch(&other).await;
    // Whoever reads its heartbeats sends it nothing either: the first one said otherwise, so it does not wait.
    fleet.heartbeat_where(|hb| hb.slots_free == 0 && hb.attempts.len() == 1).await;
    fleet.engine.raise("go");
    let finished = fleet.finished().await;
    assert_eq!((&finished.claim, finished.outcome), (&claim(&job), Outcome::Failed { exit: 3 }));
    worker.ended().await.unwrap();
    assert!(fleet.containers().await.is_empty());
    // The other one is still in the queue, for whoever comes; nobody has settled the first.
    let (worker, _) = fleet.started().await;
    while fleet.finished().await.claim != claim(&other) {}
    worker.stop().await;
}

#[tokio::test]
async fn what_runs_is_handed_back_after_its_time_or_at_the_second_signal() {
    for hurries in [false, true] {
        let mut fleet = Fleet::new().await;
        fleet.drain = if hurries { Duration::from_mins(10) } else { Duration::from_millis(200) };
        let (mut worker, _) = fleet.started().await;
        let job = fleet.job("a", "echo begun; sleep 1000");
        fleet.dispatch(&job).await;
        assert_eq!(fleet.output().await.claim, claim(&job));
        worker.told_to_end();
        fleet.heartbeat_where(|hb| hb.slots_free == 0 && hb.attempts.len() == 1).await;
        if hurries {
            worker.told_to_hurry();
        }
        assert!(fleet.finished().await.outcome.is_handed_back());
        worker.ended().await.unwrap();
        assert!(fleet.containers().await.is_empty());
    }
}

#[tokio::test]
async fn a_worker_that_is_stopped_ends_its_steps_and_says_so() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let job = fleet.job("a", "echo begun; sleep 1000");
    fleet.dispatch(&job).await;
    assert_eq!(fleet.output().await.claim, claim(&job));
    let stopped = tokio::time::timeout(Duration::from_secs(20), worker.stop());
    stopped.await.expect("it flushes for some seconds at most");
    let finished = fleet.finished().await;
    assert_eq!(infra_reason(&finished, InfraStage::Exec), HANDED_BACK);
    assert!(fleet.containers().await.is_empty());
    let (worker, hello) = fleet.started().await;
    assert_eq!(hello.records.len(), 1, "not settled yet");
    fleet.control(&worker, Control::Settled { claim: claim(&job) }).await;
    fleet.holds_nothing(&worker).await;
    worker.stop().await;
}
