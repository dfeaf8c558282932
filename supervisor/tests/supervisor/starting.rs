//! What cannot be started, and what is refused.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use longshore_supervisor::wire::{CannotStart, FromSupervisor, Run, State, ToSupervisor, Whose};

use crate::sandbox::{Sandbox, Worker, command, sh};

fn refused(worker: &mut Worker, run: &Run) -> CannotStart {
    worker.send(&ToSupervisor::Run(run.clone()));
    match worker.next() {
        FromSupervisor::CannotStart(cannot) => {
            assert_eq!(cannot.id, run.id);
            cannot
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_cannot_be_executed_gets_a_shells_number() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    let file = |path: &str, text: &str, mode| {
        fs::write(sandbox.path(path), text).unwrap();
        fs::set_permissions(sandbox.path(path), Permissions::from_mode(mode)).unwrap();
    };
    file("/tmp/plain", "true", 0o644);
    file("/tmp/garbage", "\u{1}\u{2}", 0o755);
    file("/tmp/orphaned", "#!/no/interpreter\n", 0o755);
    fs::create_dir(sandbox.path("/tmp/later")).unwrap();
    file("/tmp/later/plain", "#!/bin/sh\necho later\n", 0o755);
    let long = "x".repeat(200_000);
    for (argv, exit) in [
        (&["no-such-program"][..], 127),
        (&[""], 127),
        (&["/no/such/program"], 127),
        (&["/tmp/orphaned"], 127),
        (&["/tmp/plain"], 126),
        (&["/tmp"], 126),
        (&["/tmp/plain/below"], 126),
        (&["/tmp/garbage"], 126),
        (&["/bin/true", &long], 126),
        (&["/bin/true", "zero\0byte"], 126),
    ] {
        let cannot = refused(&mut worker, &command("1", argv));
        assert_eq!((cannot.exit, cannot.whose), (Some(exit), Whose::Refused), "{argv:.40?}: {cannot:?}");
        assert!(!cannot.reason.is_empty() && cannot.reason.len() < 10_000);
    }
    // Like a shell: what may not be executed is passed over, and is the answer if nothing better comes.
    let path = |path: &str| vec![("PATH".to_owned(), path.to_owned())];
    let run = Run { env: path("/tmp:/none"), ..command("1", &["plain"]) };
    assert_eq!(refused(&mut worker, &run).exit, Some(126));
    let run = Run { env: path("/etc/passwd:/tmp:/tmp/later"), ..command("1", &["plain"]) };
    assert_eq!(worker.run(&run).text(), "later\n");
}

#[test]
fn a_bad_user_or_directory_has_no_number() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    let long = "i".repeat(256);
    for run in [
        Run { user: Some("nosuch".to_owned()), ..sh("1", "true") },
        Run { user: Some("me:nosuch".to_owned()), ..sh("1", "true") },
        Run { workdir: Some("relative".to_owned()), ..sh("1", "true") },
        Run { workdir: Some("/etc/passwd".to_owned()), ..sh("1", "true") },
        Run { workdir: Some("/etc/passwd/below".to_owned()), ..sh("1", "true") },
        command("1", &[]),
        sh(&long, "true"),
    ] {
        let cannot = refused(&mut worker, &run);
        assert_eq!((cannot.exit, cannot.whose), (None, Whose::Refused), "{cannot:?}");
    }
    // The last one is told after a reconnect too, and the container is as good as before.
    refused(&mut worker, &Run { user: Some("nosuch".to_owned()), ..sh("2", "true") });
    drop(worker);
    let (mut worker, hello) = sandbox.accept();
    assert!(matches!(&hello.state, State::CannotStart(cannot) if cannot.id == "2"), "{hello:?}");
    assert!(hello.clean);
    assert_eq!(worker.script("echo fine"), "fine\n");
}

#[test]
fn a_table_of_users_that_is_no_file_is_not_waited_for() {
    let sandbox = Sandbox::start();
    fs::remove_file(sandbox.path("/etc/passwd")).unwrap();
    sandbox.fifo("/etc/passwd");
    let (mut worker, _) = sandbox.accept();
    assert_eq!(refused(&mut worker, &Run { user: Some("me".to_owned()), ..sh("1", "true") }).exit, None);
    assert_eq!(worker.run(&Run { user: Some("7:8".to_owned()), ..sh("1", "id -u") }).text(), "7\n");
}

#[test]
fn one_command_at_a_time_and_each_in_a_clean_container() {
    let sandbox = Sandbox::start();
    sandbox.fifo("/tmp/go");
    let (mut worker, _) = sandbox.accept();
    let first = sh("1", "read x </tmp/go; exit 0");
    let pid = worker.start(&first);
    // The same one again is the same one.
    assert_eq!(worker.start(&first), pid);
    assert_eq!(refused(&mut worker, &sh("2", "true")).whose, Whose::Io);
    assert!(worker.clean().unwrap().contains("runs"));
    sandbox.tell("/tmp/go");
    assert_eq!(worker.finish().exit.status.code(), 0);
    assert_eq!(refused(&mut worker, &sh("2", "true")).whose, Whose::Io);
    assert_eq!(worker.clean(), None);
    assert_eq!(worker.script("echo 2"), "2\n");
}
