//! A container without an Engine, and the worker's side of the connection.

use std::collections::VecDeque;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use longshore_supervisor::wire::{
    Acked, Clean, Cleaned, Decoder, Exit, FromSupervisor, Offsets, Run, State, Stream, SupervisorHello, ToSupervisor,
    VERSION, WorkerHello, encode,
};
use tempfile::TempDir;

/// A machine under load answers later than one would think; what never comes fails here.
const PATIENCE: Duration = Duration::from_mins(1);

/// As in `worker/src/engine/docker/create.rs`.
const CAPABILITIES: &str = "-all,+audit_write,+chown,+dac_override,+fowner,+fsetid,+kill,+net_bind_service,\
                            +setfcap,+setgid,+setuid,+sys_chroot";

pub(crate) const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nme:x:1000:1001::/home/me:/bin/sh\n";
const GROUP: &str = "root:x:0:\nwheel:x:10:me\nme:x:1001:\n";
pub(crate) const HOSTS: &str = "127.0.0.1 localhost\n";

/// Process 1, and what it lives in. Dropping it kills all of it.
pub(crate) struct Sandbox {
    directory: TempDir,
    listener: Option<UnixListener>,
    child: Child,
}

impl Sandbox {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(options: &[String]) -> Self {
        Self::start_binary(Path::new(crate::BINARY), options)
    }

    pub(crate) fn start_binary(binary: &Path, options: &[String]) -> Self {
        assert!(rustix::process::geteuid().is_root(), "namespaces are root's: run this as root");
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["proc", "sys", "dev", "usr", "old", "etc", "tmp", "root", "scratch", "volume", "home/me"] {
            fs::create_dir_all(at("root").join(name)).unwrap();
        }
        for name in ["bin", "lib", "lib64", "sbin"] {
            std::os::unix::fs::symlink(format!("usr/{name}"), at("root").join(name)).unwrap();
        }
        fs::set_permissions(at("root/tmp"), Permissions::from_mode(0o1777)).unwrap();
        fs::write(at("root/etc/passwd"), PASSWD).unwrap();
        fs::write(at("root/etc/group"), GROUP).unwrap();
        fs::write(at("root/etc/hosts"), "").unwrap();
        fs::write(at("root.hosts"), HOSTS).unwrap();
        fs::create_dir(at("worker")).unwrap();
        fs::copy(binary, at("worker/supervisor")).unwrap();
        let listener = UnixListener::bind(at("worker/sock")).unwrap();
        fs::set_permissions(at("worker/sock"), Permissions::from_mode(0o666)).unwrap();
        let child = Command::new("unshare")
            .args(["--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--", "sh"])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/supervisor/sandbox.sh"))
            .args([at("root"), at("worker")])
            .arg(CAPABILITIES)
            .args(options)
            .stdin(Stdio::null())
            .spawn()
            .expect("unshare, of util-linux");
        Self { directory, listener: Some(listener), child }
    }

    /// A file of the container, as seen from outside.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.directory.path().join("root").join(inside.trim_start_matches('/'))
    }

    /// A pipe on which a command and the test wait for each other.
    pub(crate) fn fifo(&self, inside: &str) {
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        let path = self.path(inside);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o666)).unwrap();
    }

    /// Waits until a command opens the pipe and closes it again; what it said.
    pub(crate) fn hear(&self, inside: &str) -> String {
        fs::read_to_string(self.path(inside)).unwrap()
    }

    /// Waits until a command opens the pipe for reading; it then sees its end.
    pub(crate) fn tell(&self, inside: &str) {
        drop(OpenOptions::new().write(true).open(self.path(inside)).unwrap());
    }

    /// The next connection, before any hello.
    pub(crate) fn accept_silent(&self) -> Worker {
        let (stream, _) = self.listener.as_ref().unwrap().accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Worker { stream, decoder: Decoder::new(), waiting: VecDeque::new() }
    }

    /// The next connection, with both hellos.
    pub(crate) fn accept(&self) -> (Worker, SupervisorHello) {
        self.accept_for(PATIENCE)
    }

    pub(crate) fn accept_for(&self, orphan: Duration) -> (Worker, SupervisorHello) {
        let mut worker = self.accept_silent();
        let orphan_ms = u64::try_from(orphan.as_millis()).unwrap();
        worker.send(&ToSupervisor::Hello(WorkerHello { version: VERSION, orphan_ms }));
        match worker.next() {
            FromSupervisor::Hello(hello) => (worker, hello),
            other => panic!("{other:?}"),
        }
    }

    /// A worker that ends and starts again: another socket of the same name.
    pub(crate) fn rebind(&mut self) {
        self.unbind();
        let path = self.directory.path().join("worker/sock");
        self.listener = Some(UnixListener::bind(&path).unwrap());
        fs::set_permissions(path, Permissions::from_mode(0o666)).unwrap();
    }

    pub(crate) fn unbind(&mut self) {
        self.listener = None;
        fs::remove_file(self.directory.path().join("worker/sock")).unwrap();
    }

    /// Waits for the end of process 1.
    pub(crate) fn exit_status(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // `--kill-child` takes process 1 with it, and that everything else. It may have ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The worker's end of one connection.
pub(crate) struct Worker {
    pub(crate) stream: UnixStream,
    decoder: Decoder<FromSupervisor>,
    waiting: VecDeque<FromSupervisor>,
}

/// What a command came to.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exit: Exit,
}

impl Finished {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Worker {
    pub(crate) fn send(&mut self, message: &ToSupervisor) {
        let mut bytes = Vec::new();
        encode(message, &mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next message; `None` at the connection's end.
    pub(crate) fn try_next(&mut self) -> Option<FromSupervisor> {
        let mut bytes = vec![0; 64 * 1024];
        loop {
            if let Some(message) = self.waiting.pop_front() {
                return Some(message);
            }
            let read = match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                read => read.expect("a message within a minute"),
            };
            self.waiting.extend(self.decoder.push(&bytes[..read]).map(Result::unwrap));
        }
    }

    pub(crate) fn next(&mut self) -> FromSupervisor {
        self.try_next().expect("the supervisor closed the connection")
    }

    /// Starts it and expects that it started.
    pub(crate) fn start(&mut self, run: &Run) -> u32 {
        self.send(&ToSupervisor::Run(run.clone()));
        match self.next() {
            FromSupervisor::Started(started) => {
                assert_eq!(started.id, run.id);
                started.pid
            }
            other => panic!("{other:?}"),
        }
    }

    /// Takes output until the end, and acknowledges all of it.
    pub(crate) fn finish(&mut self) -> Finished {
        let mut streams = [Vec::new(), Vec::new()];
        loop {
            match self.next() {
                FromSupervisor::Output(output) => {
                    let bytes = &mut streams[usize::from(output.stream == Stream::Stderr)];
                    assert_eq!(output.offset, bytes.len() as u64, "a gap, or something twice");
                    bytes.extend(output.bytes);
                    let upto = Offsets { stdout: streams[0].len() as u64, stderr: streams[1].len() as u64 };
                    self.send(&ToSupervisor::Acked(Acked { id: output.id, upto }));
                }
                FromSupervisor::Exited(exited) => {
                    let [stdout, stderr] = streams;
                    let have = Offsets { stdout: stdout.len() as u64, stderr: stderr.len() as u64 };
                    assert_eq!(exited.exit.offsets, have, "output came after the exit, or never");
                    return Finished { stdout, stderr, exit: exited.exit };
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Start to end.
    pub(crate) fn run(&mut self, run: &Run) -> Finished {
        self.start(run);
        self.finish()
    }

    /// Start to end of a script, and cleaned up after.
    pub(crate) fn script(&mut self, script: &str) -> String {
        let result = self.run(&sh("script", script));
        assert_eq!(self.clean(), None);
        let stderr = String::from_utf8_lossy(&result.stderr).into_owned();
        assert_eq!((stderr.as_str(), result.exit.status.code()), ("", 0), "{}", result.text());
        result.text()
    }

    /// Cleans with the one volume that these containers have; why it is unfit.
    pub(crate) fn clean(&mut self) -> Option<String> {
        self.clean_with(Clean { volumes: vec!["/volume".to_owned()], sockets: None })
    }

    pub(crate) fn clean_with(&mut self, clean: Clean) -> Option<String> {
        self.send(&ToSupervisor::Clean(clean));
        match self.next() {
            FromSupervisor::Cleaned(Cleaned { unfit }) => unfit,
            other => panic!("{other:?}"),
        }
    }
}

/// A script for `sh`, as root, in `/`, for an hour at most.
pub(crate) fn sh(id: &str, script: &str) -> Run {
    command(id, &["/bin/sh", "-c", script])
}

pub(crate) fn command(id: &str, argv: &[&str]) -> Run {
    Run {
        id: id.to_owned(),
        argv: argv.iter().map(|&argument| argument.to_owned()).collect(),
        env: vec![("PATH".to_owned(), "/usr/bin:/usr/sbin".to_owned())],
        workdir: None,
        user: None,
        limit_ms: 3_600_000,
        lease: None,
        volumes: vec!["/volume".to_owned()],
    }
}

/// What a hello says of a command that runs.
pub(crate) fn progress(state: &State) -> &longshore_supervisor::wire::Progress {
    match state {
        State::Running(progress) => progress,
        State::Ended(ended) => &ended.progress,
        other => panic!("{other:?}"),
    }
}
