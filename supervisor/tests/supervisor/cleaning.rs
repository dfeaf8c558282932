//! Between two commands: the files stay, and nothing else.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use longshore_supervisor::wire::{Clean, Run};
use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::sandbox::{HOSTS, Sandbox, Worker, sh};

/// Runs a script that may say nothing, and does not clean up after it.
fn mess(worker: &mut Worker, script: &str) {
    let result = worker.run(&sh("mess", script));
    let said = String::from_utf8_lossy(&result.stderr).into_owned();
    assert_eq!((result.text().as_str(), said.as_str(), result.exit.status.code()), ("", "", 0));
}

#[test]
fn scratch_places_are_emptied_and_files_stay() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    let script = "
        for at in /volume /scratch /dev/shm; do
            mkdir -p $at/a/b/c $at/.hidden; echo x >$at/a/b/c/file; ln -s /etc $at/a/link; touch \"$at/new
line\"
            chmod 0 $at/a/b; chmod 711 $at; chown 1000:1001 $at
        done
        touch /dev/mqueue/queue
        mkdir -p /tmp/kept; echo kept >/tmp/kept/file";
    mess(&mut worker, script);
    assert_eq!(worker.clean(), None);
    let look = "find /volume /scratch /dev/shm /dev/mqueue -printf '%p %m %U\\n' | sort; cat /tmp/kept/file; ls -d /etc/passwd";
    let expected = "/dev/mqueue 1777 0\n/dev/shm 1777 0\n/scratch 1777 0\n/volume 755 0\nkept\n/etc/passwd\n";
    assert_eq!(worker.script(look), expected);
}

#[test]
fn a_tree_of_any_depth_goes() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    // Far beyond what one path may say, and more entries than are looked at in one go.
    mess(&mut worker, "cd /scratch; seq 2000 | xargs touch; mkdir -p d/$(seq -s / 100); touch .longshore-removed-1");
    let open = |at: &std::os::fd::OwnedFd| {
        rustix::fs::openat(at, "dddddddddd", OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap()
    };
    let mut at = rustix::fs::open(sandbox.path("/volume"), OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&at, "dddddddddd", Mode::RWXU).unwrap();
        at = open(&at);
    }
    assert_eq!(worker.clean(), None);
    assert_eq!(worker.script("ls -A /volume /scratch"), "/scratch:\n\n/volume:\n");
}

#[test]
fn a_volume_that_had_content_makes_the_container_unfit() {
    let sandbox = Sandbox::start();
    fs::write(sandbox.path("/volume/of-the-image"), "").unwrap();
    let (mut worker, _) = sandbox.accept();
    mess(&mut worker, "rm /volume/of-the-image");
    let unfit = worker.clean().expect("a new container would have the file again");
    assert!(unfit.contains("/volume"), "{unfit}");
    // And so it stays, whatever else was cleaned.
    assert!(worker.clean().is_some());
}

#[test]
fn a_volume_that_nobody_spoke_of_before_makes_the_container_unfit() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    let run = Run { volumes: Vec::new(), ..sh("1", "touch /volume/x") };
    worker.run(&run);
    assert!(worker.clean().is_some_and(|unfit| unfit.contains("/volume")));
}

#[test]
fn dev_is_as_the_runtime_made_it() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    let script = "
        mkdir -p /dev/dir/sub; echo x >/dev/dir/sub/file; touch /dev/foreign; mkfifo /dev/pipe; chmod 700 /dev
        chmod 600 /dev/null; chown 1000 /dev/zero
        ln -sfn /elsewhere /dev/fd
        ln -s / /dev/link";
    mess(&mut worker, script);
    assert_eq!(worker.clean(), None);
    let look = "cd /dev; echo *; stat -c '%a %u %n' . null zero; readlink fd";
    let expected = "fd longshore mqueue null shm urandom zero\n755 0 .\n666 0 null\n666 0 zero\n/proc/self/fd\n";
    assert_eq!(worker.script(look), expected);
    mess(&mut worker, "rm /dev/zero; touch /dev/zero");
    assert!(worker.clean().is_some_and(|unfit| unfit.contains("/dev/zero")), "no node can be made again");
}

#[test]
fn objects_of_every_owner_in_shared_memory_queues_and_semaphores_go() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    let script = "
        ipcmk -M 4096 -p 0 >/dev/null; ipcmk -Q >/dev/null; ipcmk -S 2 >/dev/null
        for kind in '-M 4096' -Q '-S 2'; do
            setpriv --reuid 1000 --regid 1001 --clear-groups ipcmk $kind -p 0600 >/dev/null
        done
        [ $(cat /proc/sysvipc/* | wc -l) = 9 ]";
    mess(&mut worker, script);
    assert_eq!(worker.clean(), None);
    assert_eq!(worker.script("cat /proc/sysvipc/* | wc -l; id -u"), "3\n0\n");
    // Still hidden, and able to switch users, after having been somebody else.
    assert_eq!(worker.script("readlink /proc/1/fd/0 || echo hidden"), "hidden\n");
    assert_eq!(worker.run(&Run { user: Some("me".to_owned()), ..sh("1", "id -u") }).text(), "1000\n");
}

#[test]
fn the_engines_files_are_put_back_in_place() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    mess(
        &mut worker,
        "echo 6.6.6.6 evil >>/etc/hosts; chmod 600 /etc/hosts; chown 1000 /etc/hosts; echo own >/etc/hostname",
    );
    assert_eq!(worker.clean(), None);
    // The image's own file, where the Engine mounts none, is a file like any other.
    let look = "cat /etc/hosts /etc/hostname; stat -c '%a %u' /etc/hosts";
    assert_eq!(worker.script(look), format!("{HOSTS}own\n644 0\n"));
    mess(&mut worker, ": >/etc/hosts");
    assert_eq!(worker.clean(), None);
    assert_eq!(worker.script("cat /etc/hosts"), HOSTS);
}

#[test]
fn what_is_joined_by_others_is_put_back_at_the_end_too() {
    let mut sandbox = Sandbox::start();
    let hosts = sandbox.path("/").parent().unwrap().join("root.hosts");
    let (mut worker, _) = sandbox.accept();
    mess(&mut worker, "echo 6.6.6.6 evil >>/etc/hosts");
    assert_ne!(fs::read_to_string(&hosts).unwrap(), HOSTS);
    worker.send(&longshore_supervisor::wire::ToSupervisor::End);
    assert_eq!(sandbox.exit_status().code(), Some(0));
    assert_eq!(fs::read_to_string(hosts).unwrap(), HOSTS);
}

fn socket(sandbox: &Sandbox, inside: &str) {
    rustix::fs::mknodat(CWD, sandbox.path(inside), FileType::Socket, Mode::from_raw_mode(0o777), 0).unwrap();
}

fn is_there(sandbox: &Sandbox, inside: &str) -> bool {
    fs::symlink_metadata(sandbox.path(inside)).is_ok()
}

#[test]
fn sockets_go_and_their_directories_keep_their_times() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    mess(&mut worker, "mkdir -p /tmp/a/b; touch /tmp/a/b/file; mkfifo /tmp/a/b/fifo; ln -s /tmp/a /tmp/link");
    socket(&sandbox, "/tmp/a/b/socket");
    socket(&sandbox, "/top");
    mess_times(&sandbox, "/tmp/a/b");
    assert_eq!(worker.clean(), None);
    assert!(!is_there(&sandbox, "/tmp/a/b/socket") && !is_there(&sandbox, "/top"));
    let kept = fs::metadata(sandbox.path("/tmp/a/b")).unwrap();
    assert_eq!((kept.mtime(), kept.mtime_nsec()), (1_000_000_000, 5));
    assert!(is_there(&sandbox, "/tmp/a/b/file"));
    assert!(fs::metadata(sandbox.path("/tmp/a/b/fifo")).unwrap().file_type().is_fifo());
}

fn mess_times(sandbox: &Sandbox, inside: &str) {
    let time = rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 5 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, sandbox.path(inside), &times, rustix::fs::AtFlags::empty()).unwrap();
}

#[test]
fn of_listed_names_only_sockets_go_and_no_link_is_followed() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    mess(&mut worker, "mkdir -p /tmp/a; touch /tmp/a/file; ln -s /tmp/a /tmp/link; ln -s /tmp/a/other /tmp/to");
    for name in ["/tmp/a/listed", "/tmp/a/other", "/tmp/a/unlisted"] {
        socket(&sandbox, name);
    }
    let listed =
        ["/tmp/a/listed", "/tmp/link/other", "/tmp/to", "/tmp/a/file", "/no/such", "/", "/tmp/a/../a/unlisted"];
    let sockets = Some(listed.map(str::to_owned).to_vec());
    let unfit = worker.clean_with(Clean { volumes: vec!["/volume".to_owned()], sockets });
    assert!(unfit.is_some_and(|unfit| unfit.contains("..")), "a path with '..' is nobody's list");
    assert!(!is_there(&sandbox, "/tmp/a/listed"));
    for name in ["/tmp/a/other", "/tmp/a/unlisted", "/tmp/a/file", "/tmp/to", "/tmp/link"] {
        assert!(is_there(&sandbox, name), "{name}");
    }
}

#[test]
fn a_daemon_that_forks_all_the_time_is_gone() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    let script = "(setsid sh -c \"trap '' TERM; while :; do (sleep 1000 &) ; sleep 0.001; done\" &) ; sleep 0.05";
    worker.run(&sh("1", script));
    assert_eq!(worker.clean(), None);
    assert_eq!(worker.script("cd /proc; for p in [0-9]*; do [ $p = $$ ] || echo $p; done"), "1\n");
}
