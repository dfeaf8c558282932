//! What only the fake can show: faults on request.

use longshore_worker::engine::fake::FakeEngine;
use longshore_worker::engine::{Engine, EngineError, ErrorClass, Exit};

use crate::bench::{Bench, IMAGE, read, read_until};

fn bench() -> Bench<FakeEngine> {
    Bench::new(FakeEngine::default())
}

#[tokio::test]
async fn a_fault_strikes_once_and_changes_nothing() {
    let bench = bench();
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
    bench.engine.fail_next("exit", EngineError::Unreachable { address: "a".to_owned(), reason: "b".to_owned() });
    let ran = read(bench.engine.start(&spec.name).await.unwrap()).await;
    assert_eq!(ran.exit.unwrap_err().class(), ErrorClass::Retry);
}

#[tokio::test]
async fn a_crash_ends_what_runs_and_gives_no_exit_code() {
    let bench = bench();
    let name = bench.create(&bench.spec("echo up; sleep 3600")).await;
    let mut running = bench.engine.start(&name).await.unwrap();
    read_until(&mut running, "up\n").await;
    bench.engine.crash();
    let exit = read(running).await.exit;
    assert!(matches!(exit, Err(EngineError::Unreachable { .. })), "{exit:?}");
    // It is back, with the container, and runs others.
    assert_eq!(bench.containers().await, [name]);
    assert_eq!(bench.run_script("echo again").await.text(), "again\n");
}

#[tokio::test]
async fn images_are_pulled_once_and_some_are_missing() {
    let bench = bench();
    bench.engine.ensure_image(IMAGE).await.unwrap();
    bench.engine.ensure_image(IMAGE).await.unwrap();
    assert_eq!(bench.engine.pulls(), 1);
    let error = bench.engine.ensure_image("r.example/missing:1").await.unwrap_err();
    assert!(matches!(error, EngineError::NoImage { .. }), "{error:?}");
}

#[tokio::test]
async fn the_kernel_can_run_out_of_memory() {
    let ran = bench().run_script("echo before; oom; echo after").await;
    assert_eq!(ran.text(), "before\n");
    assert_eq!(ran.exit.unwrap(), Exit { code: 137, oom_killed: true });
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
        let ran = bench().run_script(script).await;
        assert_eq!((ran.text().as_str(), ran.code()), (stdout, code), "{script}");
    }
}
