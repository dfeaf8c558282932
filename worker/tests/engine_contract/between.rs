//! What only a supervisor can do: several commands in one container, told apart.

use std::io::Cursor;
use std::time::Duration;

use longshore_protocol::job::Resources;
use longshore_worker::Boot;
use longshore_worker::engine::{
    Cleaned, CommandLease, ContainerName, Engine, EngineError, ErrorClass, ExitStatus, Way,
};
use tokio::time::timeout;

use crate::bench::{Bench, FOR_EVER, PATIENCE, read, read_until, tar_of};
use crate::snapshots::{LEAVE_OWN, LOOK_FOR_OWN, OWN_SEEN};

/// How long nothing has to come for the tests to believe that nothing will.
const QUIET: Duration = Duration::from_millis(500);

/// More than a supervisor, its connection and the pipes hold together.
const HELD_MAX: usize = 8 * 1024 * 1024;

pub async fn the_way_is_by_a_supervisor<E: Engine>(bench: Bench<E>) {
    assert_eq!(bench.begun().await.way().await.unwrap(), Way::Supervised);
    bench.clean().await;
}

pub async fn a_container_carries_out_one_command_after_another<E: Engine>(bench: Bench<E>) {
    let mut spec = bench.spec("echo one > /f; pwd; echo \"[$A] [$B]\"; exit 3");
    spec.command.env = vec![("A".to_owned(), "of the first".to_owned())];
    spec.command.workdir = Some("/first".to_owned());
    let first = bench.run(&spec).await;
    assert_eq!((first.text().as_str(), first.code()), ("/first\n[of the first] []\n", 3));
    for n in 0..3 {
        assert_eq!(bench.engine.clean(&spec.name).await.unwrap(), Cleaned::Ready);
        let mut command = bench.command("cat /f; echo again >> /f; pwd; echo \"[$A] [$B]\"");
        command.env = vec![("B".to_owned(), "of another".to_owned())];
        let ran = read(bench.engine.start(&spec.name, &command).await.unwrap()).await;
        let expected = format!("one\n{}/\n[] [of another]\n", "again\n".repeat(n));
        assert_eq!((ran.text(), ran.code()), (expected, 0));
    }
    bench.clean().await;
}

/// What was not started leaves the container as it was: another command may be.
pub async fn a_command_that_could_not_be_started_is_in_nobodys_way<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec("echo fine");
    bench.create(&spec).await;
    let mut wrong = bench.command("");
    wrong.argv = vec!["nosuchprogram".to_owned()];
    let error = bench.engine.start(&spec.name, &wrong).await.unwrap_err();
    assert!(matches!(error, EngineError::CannotStart { exit: Some(127), .. }), "{error:?}");
    assert_eq!(bench.engine.clean(&spec.name).await.unwrap(), Cleaned::Ready);
    assert_eq!(read(bench.start(&spec).await).await.text(), "fine\n");
    bench.clean().await;
}

pub async fn a_signal_is_told_from_an_exit<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec("echo up; kill -9 $$; echo not reached");
    let ran = bench.run(&spec).await;
    assert_eq!((ran.text().as_str(), ran.status()), ("up\n", ExitStatus::Signal(9)));
    // Nobody is PID 1 any more, whom TERM would not end.
    bench.engine.clean(&spec.name).await.unwrap();
    let sleeper = bench.command("echo up; sleep 3600; echo not reached");
    let mut running = bench.engine.start(&spec.name, &sleeper).await.unwrap();
    read_until(&mut running, "up\n").await;
    bench.engine.stop(&spec.name, FOR_EVER).await.unwrap();
    let ran = read(running).await;
    assert_eq!((ran.text().as_str(), ran.status()), ("", ExitStatus::Signal(15)));
    bench.clean().await;
}

pub async fn how_long_it_ran_is_told<E: Engine>(bench: Bench<E>) {
    let exit = bench.run_script("sleep 0.2").await.exit.unwrap();
    let ran = exit.ran.unwrap();
    assert!(ran >= Duration::from_millis(200) && ran < PATIENCE, "{ran:?}");
    assert!(exit.usage.unwrap().max_rss_bytes > 0);
    bench.clean().await;
}

/// A container that was gone on in, and one that was restored, show the next step the same.
pub async fn cleaning_takes_away_what_is_not_handed_on<E: Engine>(bench: Bench<E>) {
    let image = bench.image(&[("/data/of-the-image", "image\n")], &["/volume", "/var/cache"]).await;
    let spec = bench.spec_on(&image, &format!("{LEAVE_OWN}; {LOOK_FOR_OWN}; sleep 3600 & echo left it"));
    let ran = timeout(PATIENCE, bench.run(&spec)).await.expect("what is left behind does not hold it up");
    assert_eq!((ran.text(), ran.code()), (format!("{OWN_SEEN}left it\n"), 0));
    assert_eq!(bench.engine.clean(&spec.name).await.unwrap(), Cleaned::Ready);
    assert_eq!(bench.run_in(&spec.name, LOOK_FOR_OWN).await.text(), "image\nkept\n");
    bench.clean().await;
}

/// A restored container would show what the image has there; one that was emptied cannot.
pub async fn a_volume_with_the_images_files_is_not_gone_on_with<E: Engine>(bench: Bench<E>) {
    let image = bench.image(&[("/volume/of-the-image", "image\n")], &["/volume"]).await;
    let spec = bench.spec_on(&image, "cat /volume/of-the-image; rm -f /volume/of-the-image; echo kept > /kept");
    let ran = bench.run(&spec).await;
    assert_eq!((ran.text().as_str(), ran.code()), ("image\n", 0));
    let cleaned = bench.engine.clean(&spec.name).await.unwrap();
    assert!(matches!(&cleaned, Cleaned::Unfit { because } if because.contains("/volume")), "{cleaned:?}");
    let snapshot = bench.snapshot();
    bench.engine.commit(&spec.name, &snapshot).await.unwrap();
    let child = bench.spec_on(snapshot.as_str(), "cat /volume/of-the-image /kept");
    assert_eq!(bench.run(&child).await.text(), "image\nkept\n");
    bench.clean().await;
}

pub async fn a_container_goes_on_after_its_commit<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec("echo parent > /f");
    bench.run(&spec).await;
    bench.engine.clean(&spec.name).await.unwrap();
    let snapshot = bench.snapshot();
    bench.engine.commit(&spec.name, &snapshot).await.unwrap();
    assert_eq!(bench.run_in(&spec.name, "cat /f; echo child > /f").await.text(), "parent\n");
    bench.engine.clean(&spec.name).await.unwrap();
    // P19: the snapshot is the parent's, whatever the child did.
    let restored = bench.spec_on(snapshot.as_str(), "cat /f");
    assert_eq!(bench.run(&restored).await.text(), "parent\n");
    assert_eq!(bench.run_in(&spec.name, "cat /f").await.text(), "child\n");
    bench.clean().await;
}

pub async fn files_are_injected_between_two_commands<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec("echo first > /f");
    bench.run(&spec).await;
    bench.engine.clean(&spec.name).await.unwrap();
    bench.engine.inject(&spec.name, None, "/in", Cursor::new(tar_of(&[("a", "injected\n")]))).await.unwrap();
    assert_eq!(bench.run_in(&spec.name, "cat /f /in/a").await.text(), "first\ninjected\n");
    bench.clean().await;
}

pub async fn limits_are_changed_in_place<E: Engine>(bench: Bench<E>) {
    // The kernel's own words, in both of its versions.
    const SHOW: &str = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2> /dev/null || cat /sys/fs/cgroup/memory.max
         cat /sys/fs/cgroup/pids/pids.max 2> /dev/null || cat /sys/fs/cgroup/pids.max";
    let mut spec = bench.spec(SHOW);
    spec.resources = Resources { memory_bytes: Some(64 << 20), cpus: Some(0.5), pids: Some(77) };
    assert_eq!(bench.run(&spec).await.text(), format!("{}\n77\n", 64 << 20));
    for (memory, pids) in [(128 << 20, 99), (32 << 20, 55)] {
        bench.engine.clean(&spec.name).await.unwrap();
        let resources = Resources { memory_bytes: Some(memory), cpus: Some(0.25), pids: Some(pids) };
        bench.engine.fit(&spec.name, &resources).await.unwrap();
        assert_eq!(bench.run_in(&spec.name, SHOW).await.text(), format!("{memory}\n{pids}\n"));
    }
    // To no limit at all: whatever the kernel calls that, it is none of the above.
    bench.engine.clean(&spec.name).await.unwrap();
    bench.engine.fit(&spec.name, &Resources::default()).await.unwrap();
    let shown = bench.run_in(&spec.name, SHOW).await.text();
    let mut lines = shown.lines();
    let is_large = |limit: &str| limit == "max" || limit.parse::<u64>().is_ok_and(|bytes| bytes > 1 << 40);
    assert!(lines.next().is_some_and(is_large), "{shown}");
    assert_eq!(lines.next(), Some("max"), "{shown}");
    bench.clean().await;
}

pub async fn p16_a_command_blocks_behind_what_is_not_acknowledged<E: Engine>(bench: Bench<E>) {
    const LINE: usize = 64 * 1024;
    let bytes = 2 * HELD_MAX;
    let spec = bench.spec(&format!("head -c {bytes} /dev/zero; echo done > /done"));
    bench.create(&spec).await;
    let mut running = bench.start(&spec).await;
    let mut read = 0;
    // Nobody acknowledges any of it: at some point no more comes. The first of it may take its time.
    while let Ok(piece) = timeout(if read > LINE { QUIET } else { PATIENCE }, running.output.recv()).await {
        read += piece.expect("it has not ended").bytes.len();
        assert!(read < HELD_MAX, "the command goes on although nothing is acknowledged");
    }
    assert!(read > LINE, "a line of the longest kind fits: {read}");
    let started = read;
    while read < bytes {
        running.spooled.send_modify(|spooled| spooled.stdout = read as u64);
        let piece = timeout(PATIENCE, running.output.recv()).await.expect("acknowledged: it goes on");
        read += piece.expect("it has not ended").bytes.len();
    }
    assert_eq!(read, bytes, "nothing is lost, nothing comes twice, after {started} without a word");
    assert_eq!(running.output.recv().await, None);
    assert_eq!(running.exit.await.unwrap().unwrap().status, ExitStatus::Code(0));
    bench.clean().await;
}

/// P17: also where the worker lives and forgets it.
pub async fn p17_a_command_past_its_limit_is_ended_by_its_supervisor<E: Engine>(bench: Bench<E>) {
    let mut spec = bench.spec("trap '' TERM; echo up; sleep 3600");
    spec.command.limit = Duration::from_millis(300);
    bench.create(&spec).await;
    let running = bench.start(&spec).await;
    let exit = timeout(PATIENCE, read(running)).await.expect("it is ended").exit;
    match exit {
        Ok(exit) => assert_eq!(exit.status, ExitStatus::Signal(9)),
        Err(error) => assert!(matches!(error, EngineError::Gone { .. }), "{error:?}"),
    }
    bench.clean().await;
}

fn lease(away: Duration, grace: Duration) -> CommandLease {
    CommandLease { dead_by: Boot::now().after(away), grace }
}

/// P18: TERM before the end of its lease, and KILL at that.
pub async fn p18_a_command_is_ended_before_its_lease_is<E: Engine>(bench: Bench<E>) {
    for (script, status) in [
        ("trap 'echo bye; exit 5' TERM; echo up; sleep 3600 & wait; echo not reached", ExitStatus::Code(5)),
        ("trap '' TERM; echo up; sleep 3600", ExitStatus::Signal(9)),
    ] {
        let mut spec = bench.spec(script);
        bench.create(&spec).await;
        spec.command.lease = Some(lease(Duration::from_secs(6), Duration::from_secs(3)));
        let running = bench.start(&spec).await;
        let ran = timeout(PATIENCE, read(running)).await.expect("it is ended");
        let over = spec.command.lease.unwrap();
        assert!(Boot::now() >= if status == ExitStatus::Code(5) { over.term_at() } else { over.dead_by });
        assert!(ran.text().starts_with("up\n"));
        let exit = ran.exit.unwrap();
        assert_eq!((exit.status, exit.out_of_lease), (status, true));
        // The container is none the worse for it.
        assert_eq!(bench.engine.clean(&spec.name).await.unwrap(), Cleaned::Ready);
        let next = bench.run_in(&spec.name, "echo next").await;
        assert_eq!((next.text().as_str(), next.exit.unwrap().out_of_lease), ("next\n", false));
    }
    bench.clean().await;
}

pub async fn p18_a_lease_is_extended_and_never_shortened<E: Engine>(bench: Bench<E>) {
    let mut spec = bench.spec("echo up; sleep 7; exit 4");
    bench.create(&spec).await;
    spec.command.lease = Some(lease(Duration::from_secs(6), Duration::from_secs(3)));
    let running = bench.start(&spec).await;
    let first = spec.command.lease.unwrap().dead_by;
    for dead_by in [first.after(FOR_EVER), first, Boot(0)] {
        bench.engine.extend(&spec.name, dead_by).await.unwrap();
    }
    let exit = timeout(PATIENCE, read(running)).await.expect("it ends").exit.unwrap();
    assert_eq!((exit.status, exit.out_of_lease), (ExitStatus::Code(4), false));
    bench.clean().await;
}

pub async fn p18_nothing_starts_behind_its_lease<E: Engine>(bench: Bench<E>) {
    let mut spec = bench.spec("echo never > /f");
    bench.create(&spec).await;
    spec.command.lease = Some(lease(Duration::from_secs(1), Duration::from_secs(2)));
    assert!(bench.engine.start(&spec.name, &spec.command).await.is_err());
    assert_eq!(bench.run_in(&spec.name, "cat /f 2> /dev/null || echo nothing").await.text(), "nothing\n");
    bench.clean().await;
}

pub async fn what_is_not_there_is_told_as_gone<E: Engine>(bench: Bench<E>) {
    let nowhere = ContainerName::of(&bench.fence());
    let engine = bench.begun().await;
    for error in [
        engine.clean(&nowhere).await.unwrap_err(),
        engine.fit(&nowhere, &Resources::default()).await.unwrap_err(),
        engine.start(&nowhere, &bench.command("true")).await.unwrap_err(),
    ] {
        assert!(matches!(error, EngineError::Gone { .. }), "{error:?}");
        assert_eq!(error.class(), ErrorClass::Host);
    }
    bench.clean().await;
}
