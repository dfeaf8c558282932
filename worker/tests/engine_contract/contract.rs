//! The suite. Each function is one promise of the trait `Engine`.

use std::io::Cursor;
use std::time::Duration;

use longshore_worker::engine::{ContainerName, Engine, EngineError, ErrorClass, Exit};

use crate::bench::{Bench, IMAGE, read, read_until, tar_of};

/// Longer than any test: whoever waits for its end has failed.
const FOR_EVER: Duration = Duration::from_hours(1);

pub async fn info_names_the_engine<E: Engine>(bench: Bench<E>) {
    let info = bench.engine.info().await.unwrap();
    assert!(!info.id.0.is_empty() && !info.version.is_empty() && !info.data_root.is_empty(), "{info:?}");
    assert!(!info.storage_driver.is_empty() && info.api_version.starts_with("1."), "{info:?}");
    assert_eq!(bench.engine.info().await.unwrap(), info);
}

pub async fn an_image_is_ensured_twice_with_one_id<E: Engine>(bench: Bench<E>) {
    let id = bench.engine.ensure_image(IMAGE).await.unwrap();
    assert!(id.0.starts_with("sha256:"), "{id:?}");
    // Without a tag it is `latest`; and an id is a reference.
    assert_eq!(bench.engine.ensure_image("longshore-test/busybox").await.unwrap(), id);
    assert_eq!(bench.engine.ensure_image(&id.0).await.unwrap(), id);
}

pub async fn an_unknown_image_is_the_requests_fault<E: Engine>(bench: Bench<E>) {
    let id = format!("sha256:{}", "0f".repeat(32));
    let error = bench.engine.ensure_image(&id).await.unwrap_err();
    assert!(matches!(&error, EngineError::NoImage { reference, .. } if *reference == id), "{error:?}");
    assert_eq!(error.class(), ErrorClass::Request);
    let mut spec = bench.spec("true");
    spec.image = bench.snapshot().0;
    let error = bench.engine.create(&spec).await.unwrap_err();
    assert!(matches!(error, EngineError::NoImage { .. }), "{error:?}");
    assert_eq!(bench.containers().await, []);
}

pub async fn a_container_is_created_listed_and_destroyed<E: Engine>(bench: Bench<E>) {
    let name = bench.create(&bench.spec("true")).await;
    assert_eq!(bench.containers().await, std::slice::from_ref(&name));
    bench.engine.destroy(&name).await.unwrap();
    assert_eq!(bench.containers().await, []);
    bench.engine.destroy(&name).await.unwrap();
    let error = bench.engine.start(&name).await.unwrap_err();
    assert!(matches!(error, EngineError::Gone { .. }), "{error:?}");
}

pub async fn a_name_is_used_once<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec("true");
    bench.create(&spec).await;
    let error = bench.engine.create(&spec).await.unwrap_err();
    assert!(matches!(&error, EngineError::Exists { name } if *name == spec.name.to_string()), "{error:?}");
    bench.clean().await;
}

pub async fn a_container_of_nothing_is_refused<E: Engine>(bench: Bench<E>) {
    bench.engine.ensure_image(IMAGE).await.unwrap();
    let mut spec = bench.spec("true");
    spec.argv.clear();
    let error = bench.engine.create(&spec).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Request, "{error:?}");
    assert_eq!(bench.containers().await, []);
}

pub async fn output_is_complete_and_the_streams_are_apart<E: Engine>(bench: Bench<E>) {
    let ran = bench.run_script("echo out; echo err >&2; printf 'no newline'; printf '\\0\\377' >&2").await;
    assert_eq!(ran.stdout, b"out\nno newline");
    assert_eq!(ran.stderr, b"err\n\0\xff");
    assert_eq!(ran.exit.unwrap(), Exit { code: 0, oom_killed: false });
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
    spec.argv = ["echo", "an", "argv"].map(str::to_owned).to_vec();
    assert_eq!(bench.run(&spec).await.text(), "an argv\n");
    bench.clean().await;
}

pub async fn a_program_that_is_not_there_cannot_be_started<E: Engine>(bench: Bench<E>) {
    for (program, code) in [("nosuchprogram", 127), ("/no/such/program", 127), ("/etc", 126)] {
        let mut spec = bench.spec("");
        spec.argv = vec![program.to_owned()];
        let name = bench.create(&spec).await;
        let error = bench.engine.start(&name).await.unwrap_err();
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
    spec.env = vec![("A".to_owned(), "one = two  three".to_owned())];
    spec.workdir = Some("/made/for/it".to_owned());
    assert_eq!(bench.run(&spec).await.text(), "/made/for/it\n[one = two  three] [/usr/bin:/bin] [/root]\nhere\n");
    bench.clean().await;
}

pub async fn standard_input_is_empty<E: Engine>(bench: Bench<E>) {
    let mut spec = bench.spec("");
    spec.argv = vec!["/bin/sh".to_owned()]; // reads commands from its standard input, to its end
    let ran = bench.run(&spec).await;
    assert_eq!((ran.stdout.as_slice(), ran.code()), (&b""[..], 0));
    bench.clean().await;
}

pub async fn stop_lets_the_command_end_itself<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec("trap 'echo bye; exit 5' TERM\necho up\nsleep 3600 & wait\necho not reached");
    let name = bench.create(&spec).await;
    let mut running = bench.engine.start(&name).await.unwrap();
    read_until(&mut running, "up\n").await;
    bench.engine.stop(&name, FOR_EVER).await.unwrap();
    let ran = read(running).await;
    assert_eq!((ran.text().as_str(), ran.code()), ("bye\n", 5));
    bench.clean().await;
}

pub async fn stop_kills_what_does_not_listen<E: Engine>(bench: Bench<E>) {
    for grace in [Duration::ZERO, Duration::from_millis(50)] {
        let name = bench.create(&bench.spec("echo up; sleep 3600; echo not reached")).await;
        let mut running = bench.engine.start(&name).await.unwrap();
        read_until(&mut running, "up\n").await;
        bench.engine.stop(&name, grace).await.unwrap();
        // It had ended before `stop` came back: a commit is possible.
        bench.engine.commit(&name, &bench.snapshot()).await.unwrap();
        let ran = read(running).await;
        assert_eq!((ran.text().as_str(), ran.code()), ("", 137));
        assert!(!ran.exit.unwrap().oom_killed);
    }
    bench.clean().await;
}

pub async fn stop_of_what_does_not_run_is_no_error<E: Engine>(bench: Bench<E>) {
    bench.engine.stop(&ContainerName::of(&bench.fence()), FOR_EVER).await.unwrap();
    let created = bench.create(&bench.spec("true")).await;
    bench.engine.stop(&created, FOR_EVER).await.unwrap();
    let ended = bench.spec("true");
    bench.run(&ended).await;
    bench.engine.stop(&ended.name, FOR_EVER).await.unwrap();
    bench.clean().await;
}

pub async fn destroy_ends_what_runs<E: Engine>(bench: Bench<E>) {
    let name = bench.create(&bench.spec("echo up; sleep 3600")).await;
    let mut running = bench.engine.start(&name).await.unwrap();
    read_until(&mut running, "up\n").await;
    bench.engine.destroy(&name).await.unwrap();
    assert_eq!(bench.containers().await, []);
    // How it ended may be lost with the container; that it ended is told.
    let exit = read(running).await.exit;
    assert!(matches!(exit, Ok(Exit { code: 137, .. }) | Err(EngineError::Gone { .. })), "{exit:?}");
}

pub async fn a_snapshot_hands_files_on<E: Engine>(bench: Bench<E>) {
    let snapshot = bench.committed("mkdir -p /data/sub; echo one > /data/sub/file; rm -rf /tmp/x").await;
    // Two children of one parent do not see each other.
    for child in ["two", "three"] {
        let mut spec = bench.spec(&format!("echo {child} >> /data/sub/file; cat /data/sub/file"));
        spec.image = snapshot.0.clone();
        assert_eq!(bench.run(&spec).await.text(), format!("one\n{child}\n"));
    }
    bench.clean().await;
}

pub async fn a_chain_of_snapshots_keeps_the_images_own_environment<E: Engine>(bench: Bench<E>) {
    let mut spec = bench.spec("echo $TOKEN > /t1; cd / || true");
    spec.env = vec![("TOKEN".to_owned(), "secret".to_owned()), ("PATH".to_owned(), "/usr/bin:/bin:/x".to_owned())];
    spec.workdir = Some("/elsewhere".to_owned());
    // `cd` is a builtin of real shells only; the fake says "not found", and goes on behind the `||`.
    assert_eq!(bench.run(&spec).await.code(), 0);
    let first = bench.snapshot();
    let committed = bench.engine.commit(&spec.name, &first).await.unwrap();
    assert!(committed.bytes.is_some_and(|bytes| (7..100_000).contains(&bytes)), "{committed:?}");

    let show = "echo \"[$TOKEN] [$PATH]\"; pwd; cat /t1";
    let mut second = bench.spec(show);
    second.image = first.0;
    assert_eq!(bench.run(&second).await.text(), "[] [/usr/bin:/bin]\n/\nsecret\n");
    let snapshot = bench.snapshot();
    bench.engine.commit(&second.name, &snapshot).await.unwrap();

    let mut third = bench.spec(show);
    third.image = snapshot.0;
    third.env = vec![("TOKEN".to_owned(), "another".to_owned())];
    assert_eq!(bench.run(&third).await.text(), "[another] [/usr/bin:/bin]\n/\nsecret\n");
    bench.clean().await;
}

pub async fn a_snapshot_is_found_listed_and_removed<E: Engine>(bench: Bench<E>) {
    let absent = bench.snapshot();
    assert!(!bench.engine.snapshot_exists(&absent).await.unwrap());
    bench.engine.remove_snapshot(&absent).await.unwrap();
    let first = bench.committed("echo 1 > /first").await;
    assert!(bench.engine.snapshot_exists(&first).await.unwrap());
    assert_eq!(bench.snapshots().await, std::slice::from_ref(&first));
    bench.engine.remove_snapshot(&first).await.unwrap();
    assert!(!bench.engine.snapshot_exists(&first).await.unwrap());
    bench.clean().await;
}

pub async fn a_snapshot_in_use_can_be_removed<E: Engine>(bench: Bench<E>) {
    let snapshot = bench.committed("echo kept > /file").await;
    let mut spec = bench.spec("cat /file");
    spec.image = snapshot.0.clone();
    let name = bench.create(&spec).await;
    bench.engine.remove_snapshot(&snapshot).await.unwrap();
    assert!(!bench.engine.snapshot_exists(&snapshot).await.unwrap());
    assert_eq!(bench.snapshots().await, []);
    // The container has all that it was made from, and its files can still be kept.
    let ran = read(bench.engine.start(&name).await.unwrap()).await;
    assert_eq!((ran.text().as_str(), ran.code()), ("kept\n", 0));
    bench.engine.commit(&name, &bench.snapshot()).await.unwrap();
    bench.clean().await;
}

pub async fn a_snapshot_can_be_replaced<E: Engine>(bench: Bench<E>) {
    let snapshot = bench.committed("echo old > /file").await;
    let spec = bench.spec("echo new > /file");
    bench.run(&spec).await;
    bench.engine.commit(&spec.name, &snapshot).await.unwrap();
    assert_eq!(bench.snapshots().await, std::slice::from_ref(&snapshot));
    let mut child = bench.spec("cat /file");
    child.image = snapshot.0;
    assert_eq!(bench.run(&child).await.text(), "new\n");
    bench.clean().await;
}

pub async fn what_runs_or_is_gone_is_not_committed<E: Engine>(bench: Bench<E>) {
    let snapshot = bench.snapshot();
    let error = bench.engine.commit(&ContainerName::of(&bench.fence()), &snapshot).await.unwrap_err();
    assert!(matches!(error, EngineError::Gone { .. }), "{error:?}");
    let name = bench.create(&bench.spec("echo up; sleep 3600")).await;
    let mut running = bench.engine.start(&name).await.unwrap();
    read_until(&mut running, "up\n").await;
    let error = bench.engine.commit(&name, &snapshot).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Request, "{error:?}");
    assert!(!bench.engine.snapshot_exists(&snapshot).await.unwrap());
    bench.clean().await;
}

pub async fn injected_files_are_there<E: Engine>(bench: Bench<E>) {
    let long = format!("{}/file", ["a-directory-with-a-long-name"; 9].join("/"));
    let tar = tar_of(&[("./", ""), ("a", "first\n"), ("sub/", ""), ("sub/b", "second\n"), (&long, "deep\n")]);
    let script = format!("cat /new/place/a /new/place/sub/b; cat /new/place/{long}; cat /tmp/a");
    let name = bench.create(&bench.spec(&script)).await;
    bench.engine.inject(&name, "/new/place", Cursor::new(tar)).await.unwrap();
    // Again, into a directory that is there, and over what is there.
    let again = tar_of(&[("a", "again\n")]);
    bench.engine.inject(&name, "/tmp/", Cursor::new(again.clone())).await.unwrap();
    bench.engine.inject(&name, "/new/place", Cursor::new(again)).await.unwrap();
    let ran = read(bench.engine.start(&name).await.unwrap()).await;
    assert_eq!(ran.text(), "again\nsecond\ndeep\nagain\n", "{ran:?}");
    bench.clean().await;
}

pub async fn injecting_does_not_leave_the_target<E: Engine>(bench: Bench<E>) {
    let name = bench.create(&bench.spec("true")).await;
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_mode(0o777);
    header.set_size(0);
    builder.append_link(&mut header, "link", "/etc").unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(1);
    builder.append_data(&mut header, "link/passwd", &b"x"[..]).unwrap();
    let tar = builder.into_inner().unwrap();
    let error = bench.engine.inject(&name, "/target", Cursor::new(tar)).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Request, "{error:?}");
    for target in ["relative", "/up/../there", ""] {
        let tar = Cursor::new(tar_of(&[("a", "x")]));
        let error = bench.engine.inject(&name, target, tar).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Request, "{target}: {error:?}");
    }
    let nowhere = ContainerName::of(&bench.fence());
    let error = bench.engine.inject(&nowhere, "/target", Cursor::new(tar_of(&[("a", "x")]))).await.unwrap_err();
    assert!(matches!(error, EngineError::Gone { .. }), "{error:?}");
    bench.clean().await;
}

pub async fn a_broken_tar_is_the_inputs_fault<E: Engine>(bench: Bench<E>) {
    let name = bench.create(&bench.spec("true")).await;
    let tar = tar_of(&[("a", &"x".repeat(300_000)), ("b", "y")]);
    for cut in [0, 100, 1000, 200_000] {
        let error = bench.engine.inject(&name, "/in", Cursor::new(tar[..cut].to_vec())).await.unwrap_err();
        assert!(matches!(error, EngineError::Input { .. }), "{cut}: {error:?}");
    }
    // A reader that fails in the middle, in its own words.
    let (mut broken, reader) = tokio::io::duplex(1024);
    let feed = tokio::spawn(async move {
        tokio::io::AsyncWriteExt::write_all(&mut broken, &tar[..700]).await.unwrap();
    });
    let failing = tokio::io::AsyncReadExt::chain(reader, Failing);
    let error = bench.engine.inject(&name, "/in", failing).await.unwrap_err();
    assert!(matches!(&error, EngineError::Input { reason } if reason.contains("hash")), "{error:?}");
    feed.await.unwrap();
    bench.clean().await;
}

struct Failing;

impl tokio::io::AsyncRead for Failing {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Err(std::io::Error::other("the hash is wrong")))
    }
}

pub async fn detaching_leaves_the_container_alone<E: Engine>(bench: Bench<E>) {
    // Far more than any pipe holds: it ends only if somebody takes it, or nobody has to.
    let spec = bench.spec("echo up; head -c 5000000 /dev/zero; echo done > /done");
    let name = bench.create(&spec).await;
    let mut running = bench.engine.start(&name).await.unwrap();
    read_until(&mut running, "up\n").await;
    drop(running.output);
    assert_eq!(running.exit.await.unwrap().unwrap().code, 0);
    let snapshot = bench.snapshot();
    bench.engine.commit(&name, &snapshot).await.unwrap();
    let mut child = bench.spec("cat /done");
    child.image = snapshot.0;
    assert_eq!(bench.run(&child).await.text(), "done\n");
    bench.clean().await;
}
