//! One command in one container.

use std::time::{Duration, SystemTime};

use longshore_protocol::output::Offsets;
use longshore_worker::Boot;
use longshore_worker::engine::{CommandLease, ContainerName, Engine, EngineError, ErrorClass, ExitStatus, Way};

use crate::bench::{Bench, FOR_EVER, IMAGE, read, read_until};

pub async fn info_names_the_engine<E: Engine>(bench: Bench<E>) {
    let info = bench.engine.info().await.unwrap();
    assert!(!info.id.as_str().is_empty() && !info.version.is_empty() && !info.data_root.is_empty(), "{info:?}");
    assert!(!info.storage_driver.is_empty() && info.api_version.starts_with("1."), "{info:?}");
    assert_eq!(bench.engine.info().await.unwrap(), info);
}

pub async fn an_image_is_ensured_twice_with_one_id<E: Engine>(bench: Bench<E>) {
    let id = bench.begun().await.ensure_image(IMAGE).await.unwrap();
    assert!(id.0.starts_with("sha256:"), "{id:?}");
    // Without a tag it is `latest`; and an id is a reference.
    assert_eq!(bench.engine.ensure_image("longshore-test/busybox").await.unwrap(), id);
    assert_eq!(bench.engine.ensure_image(&id.0).await.unwrap(), id);
    bench.clean().await;
}

pub async fn an_unknown_image_is_the_requests_fault<E: Engine>(bench: Bench<E>) {
    let id = format!("sha256:{}", "0f".repeat(32));
    let error = bench.begun().await.ensure_image(&id).await.unwrap_err();
    assert!(matches!(&error, EngineError::NoImage { reference, .. } if *reference == id), "{error:?}");
    assert_eq!(error.class(), ErrorClass::Request);
    let spec = bench.spec_on(bench.snapshot().as_str(), "true");
    let error = bench.begun().await.create(&spec).await.unwrap_err();
    assert!(matches!(error, EngineError::NoImage { .. }), "{error:?}");
    assert_eq!(bench.containers().await, []);
    bench.clean().await;
}

pub async fn a_container_is_created_listed_and_destroyed<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec("true");
    assert_eq!(bench.create(&spec).await.volumes, Vec::<String>::new());
    assert_eq!(bench.containers().await, std::slice::from_ref(&spec.name));
    bench.engine.destroy(&spec.name).await.unwrap();
    assert_eq!(bench.containers().await, []);
    bench.engine.destroy(&spec.name).await.unwrap();
    let error = bench.engine.start(&spec.name, &spec.command).await.unwrap_err();
    assert!(matches!(error, EngineError::Gone { .. }), "{error:?}");
    bench.clean().await;
}

pub async fn a_name_is_used_once<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec("true");
    bench.create(&spec).await;
    let error = bench.engine.create(&spec).await.unwrap_err();
    assert!(matches!(&error, EngineError::Exists { name } if *name == spec.name.to_string()), "{error:?}");
    bench.clean().await;
}

pub async fn a_container_of_nothing_is_refused<E: Engine>(bench: Bench<E>) {
    bench.begun().await.ensure_image(IMAGE).await.unwrap();
    let mut spec = bench.spec("true");
    spec.command.argv.clear();
    let error = bench.engine.create(&spec).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Request, "{error:?}");
    assert_eq!(bench.containers().await, []);
    bench.clean().await;
}

pub async fn output_is_complete_and_the_streams_are_apart<E: Engine>(bench: Bench<E>) {
    let ran = bench.run_script("echo out; echo err >&2; printf 'no newline'; printf '\\0\\377' >&2").await;
    assert_eq!(ran.stdout, b"out\nno newline");
    assert_eq!(ran.stderr, b"err\n\0\xff");
    let supervised = !bench.duty.direct;
    let exit = ran.exit.unwrap();
    assert_eq!((exit.status, exit.oom_killed), (ExitStatus::Code(0), false));
    // Whoever can tell, does.
    assert!(exit.ran.is_some() || !supervised, "{exit:?}");
    assert_eq!(exit.usage.is_some(), supervised, "{exit:?}");
    bench.clean().await;
}

pub async fn exit_codes_are_the_commands_own<E: Engine>(bench: Bench<E>) {
    for (script, code) in [
        ("true", 0),
        ("false\necho not reached", 1),
        ("exit 2", 2),
        ("nosuchprogram", 127),
        ("exit 126", 126),
        ("exit 137", 137),
        ("exit 255", 255),
    ] {
        let ran = bench.run_script(script).await;
        assert_eq!(ran.code(), code, "{script}: {ran:?}");
        assert_eq!(ran.stdout, b"", "{script}");
        assert!(!ran.exit.unwrap().oom_killed);
    }
    // Without a shell as well.
    let mut spec = bench.spec("");
    spec.command.argv = ["echo", "an", "argv"].map(str::to_owned).to_vec();
    assert_eq!(bench.run(&spec).await.text(), "an argv\n");
    bench.clean().await;
}

pub async fn a_program_that_is_not_there_cannot_be_started<E: Engine>(bench: Bench<E>) {
    for (program, code) in [("nosuchprogram", 127), ("/no/such/program", 127), ("/etc", 126)] {
        let mut spec = bench.spec("");
        spec.command.argv = vec![program.to_owned()];
        bench.create(&spec).await;
        let error = bench.engine.start(&spec.name, &spec.command).await.unwrap_err();
        assert!(matches!(error, EngineError::CannotStart { exit: Some(exit), .. } if exit == code), "{error:?}");
        assert_eq!(error.class(), ErrorClass::Request);
    }
    bench.clean().await;
}

pub async fn megabytes_of_output_arrive<E: Engine>(bench: Bench<E>) {
    let bytes = 50_000_003;
    let ran = bench.run_script(&format!("head -c {bytes} /dev/zero; echo end >&2")).await;
    assert_eq!((ran.stdout.len(), ran.stderr.as_slice()), (bytes, &b"end\n"[..]));
    assert_eq!(ran.code(), 0);
    bench.clean().await;
}

pub async fn environment_and_workdir_are_given<E: Engine>(bench: Bench<E>) {
    let mut spec = bench.spec("pwd; echo \"[$A] [$PATH] [$HOME]\"; echo here > file; cat /made/for/it/file");
    spec.command.env = vec![("A".to_owned(), "one = two  three".to_owned())];
    spec.command.workdir = Some("/made/for/it".to_owned());
    assert_eq!(bench.run(&spec).await.text(), "/made/for/it\n[one = two  three] [/usr/bin:/bin] [/root]\nhere\n");
    bench.clean().await;
}

pub async fn standard_input_is_empty<E: Engine>(bench: Bench<E>) {
    let mut spec = bench.spec("");
    spec.command.argv = vec!["/bin/sh".to_owned()]; // reads commands from its standard input, to its end
    let ran = bench.run(&spec).await;
    assert_eq!((ran.stdout.as_slice(), ran.code()), (&b""[..], 0));
    bench.clean().await;
}

pub async fn stop_lets_the_command_end_itself<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec("trap 'echo bye; exit 5' TERM\necho up\nsleep 3600 & wait\necho not reached");
    bench.create(&spec).await;
    let mut running = bench.start(&spec).await;
    read_until(&mut running, "up\n").await;
    bench.engine.stop(&spec.name, FOR_EVER).await.unwrap();
    let ran = read(running).await;
    assert_eq!((ran.text().as_str(), ran.code()), ("bye\n", 5));
    bench.clean().await;
}

pub async fn stop_kills_what_does_not_listen<E: Engine>(bench: Bench<E>) {
    for grace in [Duration::ZERO, Duration::from_millis(50)] {
        let spec = bench.spec("trap '' TERM; echo up; sleep 3600; echo not reached");
        bench.create(&spec).await;
        let mut running = bench.start(&spec).await;
        read_until(&mut running, "up\n").await;
        bench.engine.stop(&spec.name, grace).await.unwrap();
        // It had ended before `stop` came back: a commit is possible.
        bench.engine.commit(&spec.name, &bench.snapshot()).await.unwrap();
        let ran = read(running).await;
        assert_eq!((ran.text().as_str(), ran.status()), ("", bench.killed()));
        assert!(!ran.exit.unwrap().oom_killed);
    }
    bench.clean().await;
}

pub async fn a_stop_without_grace_overtakes_one_that_waits<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec("trap 'echo heard; sleep 3600' TERM; echo up; sleep 3600 & wait");
    bench.create(&spec).await;
    let mut running = bench.start(&spec).await;
    read_until(&mut running, "up\n").await;
    // Nobody waits for the first one any more when the second one comes.
    tokio::select! {
        ended = bench.engine.stop(&spec.name, FOR_EVER) => panic!("{ended:?}: it was to go on"),
        () = read_until(&mut running, "heard\n") => {}
    }
    bench.engine.stop(&spec.name, Duration::ZERO).await.unwrap();
    assert_eq!(read(running).await.status(), bench.killed());
    bench.clean().await;
}

pub async fn stop_of_what_does_not_run_is_no_error<E: Engine>(bench: Bench<E>) {
    bench.begun().await.stop(&ContainerName::of(&bench.fence()), FOR_EVER).await.unwrap();
    let created = bench.spec("true");
    bench.create(&created).await;
    bench.engine.stop(&created.name, FOR_EVER).await.unwrap();
    let ended = bench.spec("true");
    bench.run(&ended).await;
    bench.engine.stop(&ended.name, FOR_EVER).await.unwrap();
    bench.clean().await;
}

pub async fn destroy_ends_what_runs<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec("echo up; sleep 3600");
    bench.create(&spec).await;
    let mut running = bench.start(&spec).await;
    read_until(&mut running, "up\n").await;
    bench.engine.destroy(&spec.name).await.unwrap();
    assert_eq!(bench.containers().await, []);
    // How it ended may be lost with the container; that it ended is told.
    let exit = read(running).await.exit;
    match exit {
        Ok(exit) => assert_eq!(exit.status, bench.killed()),
        Err(error) => assert!(matches!(error, EngineError::Gone { .. }), "{error:?}"),
    }
    bench.clean().await;
}

pub async fn output_says_when_it_was_read<E: Engine>(bench: Bench<E>) {
    let now_ms = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    let before = now_ms();
    let spec = bench.spec("echo one");
    bench.create(&spec).await;
    let mut running = bench.start(&spec).await;
    let piece = running.output.recv().await.unwrap();
    assert!((before..=now_ms()).contains(&u128::from(piece.at_ms)), "{before} {piece:?}");
    bench.clean().await;
}

pub async fn detaching_leaves_the_container_alone<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec("echo up; echo more; echo done > /done");
    bench.create(&spec).await;
    let mut running = bench.start(&spec).await;
    read_until(&mut running, "up\n").await;
    drop(running.output);
    assert_eq!(running.exit.await.unwrap().unwrap().status, ExitStatus::Code(0));
    let snapshot = bench.snapshot();
    bench.engine.commit(&spec.name, &snapshot).await.unwrap();
    let child = bench.spec_on(snapshot.as_str(), "cat /done");
    assert_eq!(bench.run(&child).await.text(), "done\n");
    bench.clean().await;
}

/// Without a supervisor nobody keeps what nobody reads.
pub async fn direct_detaching_holds_no_output_up<E: Engine>(bench: Bench<E>) {
    // Far more than any pipe holds: it ends only if somebody takes it, or nobody has to.
    let spec = bench.spec("echo up; head -c 5000000 /dev/zero; echo done > /done");
    bench.create(&spec).await;
    let mut running = bench.start(&spec).await;
    read_until(&mut running, "up\n").await;
    drop(running.output);
    assert_eq!(running.exit.await.unwrap().unwrap().status, ExitStatus::Code(0));
    bench.clean().await;
}

/// Without a supervisor a container carries out one command, the one it was made for.
pub async fn direct_containers_are_used_once<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec("echo mine");
    bench.create(&spec).await;
    assert!(matches!(bench.engine.way().await.unwrap(), Way::Direct { .. }));
    let other = bench.command("echo other");
    let ran = read(bench.engine.start(&spec.name, &other).await.unwrap()).await;
    assert_eq!(ran.text(), "mine\n");
    bench.engine.start(&spec.name, &other).await.unwrap_err();
    bench.engine.clean(&spec.name).await.unwrap_err();
    bench.engine.adopt(&spec.name, Offsets::default()).await.unwrap_err();
    bench.clean().await;
}

/// P18: nobody would keep it.
pub async fn p18_direct_commands_have_no_lease<E: Engine>(bench: Bench<E>) {
    let mut spec = bench.spec("echo never");
    bench.create(&spec).await;
    spec.command.lease = Some(CommandLease { dead_by: Boot::now().after(FOR_EVER), grace: FOR_EVER / 2 });
    assert!(bench.engine.start(&spec.name, &spec.command).await.is_err());
    bench.clean().await;
}
