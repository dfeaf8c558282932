//! What only the fake can show: faults on request, and time that passes when a test says so.

use std::sync::Arc;
use std::time::Duration;

use longshore_protocol::output::Offsets;
use longshore_worker::engine::fake::FakeEngine;
use longshore_worker::engine::{Cleaned, Engine, EngineError, ErrorClass, ExitStatus, Way};

use crate::bench::{Bench, IMAGE, Kit, create, read, read_until};

/// Benches over one fake.
pub fn kit(direct: bool) -> Kit<FakeEngine> {
    let engine = FakeEngine::default();
    let (other, images, behind) = (engine.clone(), engine.clone(), engine);
    Kit {
        connect: Arc::new(move || Box::pin(std::future::ready(other.clone()))),
        image: Arc::new(move |files, volumes| {
            images.add_image("test/image:latest", files, volumes);
            Box::pin(std::future::ready("test/image:latest".to_owned()))
        }),
        left_of: Arc::new(move |worker| {
            let behind = behind.clone();
            Box::pin(async move {
                let all = behind.containers().await.unwrap();
                all.iter().filter(|name| name.owner() == worker).map(ToString::to_string).collect()
            })
        }),
        direct,
    }
}

async fn bench() -> Bench<FakeEngine> {
    Bench::new(kit(false)).await
}

#[tokio::test]
async fn a_fault_strikes_once_and_changes_nothing() {
    let bench = bench().await;
    let full = || EngineError::DiskFull { reason: "test".to_owned() };
    let spec = bench.spec("true");
    bench.create(&spec).await;
    bench.engine.fail_next("commit", full());
    bench.engine.fail_next("commit", full());
    let snapshot = bench.snapshot();
    for _ in 0..2 {
        assert_eq!(bench.engine.commit(&spec.name, &snapshot).await.unwrap_err().class(), ErrorClass::Host);
        assert_eq!(bench.snapshots().await, []);
    }
    bench.engine.commit(&spec.name, &snapshot).await.unwrap();
    assert_eq!(bench.engine.calls("commit"), 3);
    bench.engine.fail_next("exit", EngineError::Unreachable { address: "a".to_owned(), reason: "b".to_owned() });
    let ran = read(bench.start(&spec).await).await;
    assert_eq!(ran.exit.unwrap_err().class(), ErrorClass::Retry);
}

#[tokio::test]
async fn a_crash_ends_what_runs_and_gives_no_exit_code() {
    for direct in [false, true] {
        let bench = Bench::new(kit(direct)).await;
        let spec = bench.spec("echo up; sleep 3600");
        bench.create(&spec).await;
        let mut running = bench.start(&spec).await;
        read_until(&mut running, "up\n").await;
        bench.engine.crash();
        let exit = read(running).await.exit;
        assert!(matches!(exit, Err(EngineError::Unreachable { .. })), "{exit:?}");
        // It is back, with the container, and runs others.
        assert_eq!(bench.containers().await, [spec.name]);
        assert_eq!(bench.run_script("echo again").await.text(), "again\n");
    }
}

#[tokio::test]
async fn a_container_may_die_while_it_is_parked() {
    let bench = bench().await;
    let spec = bench.spec("echo kept > /f");
    bench.run(&spec).await;
    bench.engine.clean(&spec.name).await.unwrap();
    assert!(bench.engine.is_alive(&spec.name));
    bench.engine.kill(&spec.name);
    assert!(!bench.engine.is_alive(&spec.name));
    for error in [
        bench.engine.start(&spec.name, &spec.command).await.unwrap_err(),
        bench.engine.adopt(&spec.name, Offsets::default()).await.unwrap_err(),
        bench.engine.clean(&spec.name).await.unwrap_err(),
    ] {
        assert!(matches!(error, EngineError::Gone { .. }), "{error:?}");
    }
    // Its files are still there.
    let snapshot = bench.snapshot();
    bench.engine.commit(&spec.name, &snapshot).await.unwrap();
    assert_eq!(bench.run(&bench.spec_on(snapshot.as_str(), "cat /f")).await.text(), "kept\n");
    bench.clean().await;
}

#[tokio::test]
async fn what_is_unfit_can_be_committed_and_not_gone_on_in() {
    let bench = bench().await;
    let spec = bench.spec("true");
    bench.run(&spec).await;
    bench.engine.unfit_next("a process that cannot be killed");
    let cleaned = bench.engine.clean(&spec.name).await.unwrap();
    assert_eq!(cleaned, Cleaned::Unfit { because: "a process that cannot be killed".to_owned() });
    bench.engine.start(&spec.name, &spec.command).await.unwrap_err();
    bench.engine.commit(&spec.name, &bench.snapshot()).await.unwrap();
    bench.clean().await;
}

/// A trait's order that a real Engine may not look at: here it is.
#[tokio::test]
async fn a_command_is_not_started_where_nobody_cleaned() {
    let bench = bench().await;
    let spec = bench.spec("true");
    bench.run(&spec).await;
    let error = bench.engine.start(&spec.name, &spec.command).await.unwrap_err();
    assert!(matches!(error, EngineError::Refused { operation: "start", .. }), "{error:?}");
    bench.clean().await;
}

#[tokio::test]
async fn calls_are_held_until_the_test_lets_go() {
    let bench = bench().await;
    let spec = bench.spec("true");
    bench.run(&spec).await;
    let hold = bench.engine.hold("commit");
    let snapshot = bench.snapshot();
    let (engine, name, id) = (bench.engine.clone(), spec.name.clone(), snapshot.clone());
    let commit = tokio::spawn(async move { engine.commit(&name, &id).await });
    hold.reached().await;
    assert_eq!(bench.snapshots().await, []);
    drop(hold);
    commit.await.unwrap().unwrap();
    assert_eq!(bench.snapshots().await, [snapshot]);
    bench.clean().await;
}

#[tokio::test]
async fn where_supervisors_are_refused_the_way_is_direct() {
    let bench = bench().await;
    bench.engine.refuse_supervisors("no common disk");
    assert_eq!(bench.begun().await.way().await.unwrap(), Way::Direct { because: "no common disk".to_owned() });
    let exit = bench.run_script("exit 3").await.exit.unwrap();
    assert_eq!((exit.status, exit.ran, exit.usage), (ExitStatus::Code(3), None, None));
    bench.clean().await;
}

/// P17, in the time of the machine: a worker that does not come back in time finds its containers dead.
#[tokio::test(start_paused = true)]
async fn p17_what_nobody_adopts_in_time_ends_itself() {
    let mut bench = bench().await;
    bench.duty.orphan = Duration::from_mins(10);
    let spec = bench.spec("echo up; sleep 100000");
    let (parked, running) = (bench.spec("true"), spec.clone());
    let (first, second) = (parked.clone(), running.clone());
    bench
        .before_its_death(|engine| async move {
            create(&engine, &first).await;
            create(&engine, &second).await;
            let mut running = engine.start(&second.name, &second.command).await.unwrap();
            read_until(&mut running, "up\n").await;
        })
        .await;
    // The clock is paused: it goes from one timer to the next only when nobody has anything left to do.
    tokio::time::sleep(Duration::from_mins(9)).await;
    assert!(bench.engine.is_alive(&parked.name) && bench.engine.is_alive(&running.name));
    // Taken up again in the last minute.
    bench.adopt(&running.name, Offsets::default()).await.unwrap();
    tokio::time::sleep(Duration::from_mins(2)).await;
    assert!(bench.engine.is_alive(&running.name));
    assert!(!bench.engine.is_alive(&parked.name));
    bench.clean().await;
}

#[tokio::test]
async fn a_commands_time_may_pass_in_no_time_and_it_may_wait_for_a_flag() {
    let bench = bench().await;
    let spec = bench.spec("work 600; echo up; await go; echo down");
    bench.create(&spec).await;
    let mut running = bench.start(&spec).await;
    read_until(&mut running, "up\n").await;
    bench.engine.raise("go");
    let ran = read(running).await;
    assert_eq!(ran.text(), "down\n");
    assert!(ran.exit.unwrap().ran.unwrap() >= Duration::from_mins(10));
    bench.clean().await;
}
#[tokio::test]
async fn images_are_pulled_once_and_some_are_missing() {
    let bench = bench().await;
    bench.engine.ensure_image(IMAGE).await.unwrap();
    bench.engine.ensure_image(IMAGE).await.unwrap();
    assert_eq!(bench.engine.pulls(), 1);
    let error = bench.engine.ensure_image("r.example/missing:1").await.unwrap_err();
    assert!(matches!(error, EngineError::NoImage { .. }), "{error:?}");
}

#[tokio::test]
async fn the_kernel_can_run_out_of_memory() {
    for direct in [false, true] {
        let bench = Bench::new(kit(direct)).await;
        let ran = bench.run_script("echo before; oom; echo after").await;
        assert_eq!((ran.text().as_str(), ran.status()), ("before\n", bench.killed()));
        assert!(ran.exit.unwrap().oom_killed);
    }
}

#[tokio::test]
async fn the_little_language_speaks_as_a_shell_does() {
    for (script, stdout, code) in [
        ("A=1 && export B=2; echo \"$A${B}3\" '$A' \\$A # not this", "123 $A $A\n", 0),
        ("false || echo no; true || echo never; false && echo never; echo last", "no\nlast\n", 0),
        ("true && false; echo never", "", 1),
        ("echo a > /f; echo b >> /f; cat /f; echo c > /f; cat /f", "a\nb\nc\n", 0),
        ("echo x > /no/such/dir", "", 1),
        ("[ -d /tmp ] && [ ! -e /x ] && test a = a && echo yes", "yes\n", 0),
        ("nosuch || echo $?", "127\n", 0),
        (
            "echo to-stdout 2>&1; echo gone > /dev/null; nosuch 2> /err || cat /err",
            "to-stdout\nsh: nosuch: not found\n",
            0,
        ),
        ("printf '%s-%d%%\\n\\t\\101' a 7", "a-7%\n\tA", 0),
        ("seq 3; exit 9", "1\n2\n3\n", 9),
    ] {
        let ran = bench().await.run_script(script).await;
        assert_eq!((ran.text().as_str(), ran.code()), (stdout, code), "{script}");
    }
}
