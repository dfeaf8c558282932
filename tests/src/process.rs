//! One `longshore` process: started, heard, killed.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::services;

/// Ten times what anything here takes on an idle machine: a test that waits longer is stuck.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// What a future gives, unless it takes longer than [`PATIENCE`].
pub async fn within_patience<T>(future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(PATIENCE, future).await.ok()
}

/// A running `longshore`. Dropped, it is killed; what it said is printed if the test panics.
#[derive(Debug)]
pub struct Process {
    what: String,
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
    lines: watch::Receiver<usize>,
}

impl Process {
    /// Starts `longshore ARGS`.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(what: &str, args: &[String]) -> Self {
        Self::spawn(what, Command::new(binary()), args)
    }

    /// The same, in the network namespace of that path.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start_inside(net: &Path, what: &str, args: &[String]) -> Self {
        // It becomes what it starts: the process id is longshore's own.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", net.display())).arg(binary());
        Self::spawn(what, command, args)
    }

    fn spawn(what: &str, mut command: Command, args: &[String]) -> Self {
        // Every flag has a variable, and only a test's own arguments are meant. The mark of a set of services stays:
        // by it they find what belongs to them, should this test be killed.
        let is_flags = |name: &OsStr| name.as_bytes().starts_with(b"LONGSHORE_") && name != "LONGSHORE_SERVICES";
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_flags(name)) {
            command.env_remove(name);
        }
        let mut child = command
            .args(args)
            .env("LONGSHORE_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        let said = Arc::new(Mutex::new(Vec::new()));
        let (heard, lines) = watch::channel(0);
        let heard = Arc::new(heard);
        // Both end with the process's streams.
        hear(child.stdout.take().expect("piped above"), said.clone(), heard.clone());
        hear(child.stderr.take().expect("piped above"), said.clone(), heard);
        Self { what: what.to_owned(), child, said, lines }
    }

    /// Waits until it prints a line with this text, and answers with that line.
    ///
    /// # Panics
    /// If it ends before, or takes longer than [`PATIENCE`].
    pub async fn says(&mut self, text: &str) -> String {
        let wait = async {
            loop {
                // Marked as seen before the look, so that a line between the two wakes us.
                self.lines.borrow_and_update();
                if let Some(line) = self.said().into_iter().find(|line| line.contains(text)) {
                    return Some(line);
                }
                if self.lines.changed().await.is_err() {
                    return self.said().into_iter().find(|line| line.contains(text));
                }
            }
        };
        match within_patience(wait).await {
            Some(Some(line)) => line,
            Some(None) => panic!("{} ended without saying {text:?}:\n{}", self.what, self.said().join("\n")),
            None => panic!("{} does not say {text:?}:\n{}", self.what, self.said().join("\n")),
        }
    }

    /// Everything it has printed.
    pub fn said(&self) -> Vec<String> {
        self.said.lock().expect("no panic while it is held").clone()
    }

    /// Its process id.
    ///
    /// # Panics
    /// If it has ended and was waited for.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("still running")
    }

    /// Sends it a signal, `STOP` say.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub async fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status().await.expect("kill is there");
        assert!(status.success(), "kill -s {name} {pid}");
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("a child of ours can be killed");
    }

    /// Waits until it has ended by itself: its exit code, and everything it has printed.
    ///
    /// # Panics
    /// If it does not end, or by a signal.
    pub async fn ends(mut self) -> (i32, Vec<String>) {
        let end = async {
            let status = self.child.wait().await.expect("a child");
            // Both streams' readers are done, not only the process.
            while self.lines.changed().await.is_ok() {}
            status
        };
        let Some(status) = within_patience(end).await else {
            panic!("{} does not end:\n{}", self.what, self.said().join("\n"));
        };
        let code = status.code().unwrap_or_else(|| panic!("{}: {status}", self.what));
        (code, self.said())
    }

    /// SIGTERM, and waits until it has ended by itself.
    ///
    /// # Panics
    /// If it does not, or not with exit code 0.
    pub async fn terminate(self) {
        self.signal("TERM").await;
        let what = self.what.clone();
        let (code, said) = self.ends().await;
        assert_eq!(code, 0, "{what}:\n{}", said.join("\n"));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- {} said:\n{}", self.what, self.said().join("\n"));
        }
    }
}

fn hear(
    stream: impl AsyncRead + Unpin + Send + 'static,
    said: Arc<Mutex<Vec<String>>>,
    heard: Arc<watch::Sender<usize>>,
) {
    tokio::spawn(async move {
        let mut lines = BufReader::new(stream).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            said.lock().expect("no panic while it is held").push(line);
            heard.send_modify(|lines| *lines += 1);
        }
    });
}

/// The binary of this checkout, built now if it is not up to date, with the profile of this test.
///
/// # Panics
/// If it cannot be built.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let test = std::env::current_exe().expect("a running test has a path");
        // …/target/debug/deps/spine-0123, …/target/release/longshore-bench: one or two up.
        let mut profile_dir = test.parent().expect("a program lies in a directory").to_owned();
        if profile_dir.ends_with("deps") {
            profile_dir.pop();
        }
        let mut build = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.current_dir(services::root()).args(["build", "--quiet", "--locked", "--package", "longshore"]);
        if profile_dir.ends_with("release") {
            build.arg("--release");
        }
        // What cargo tells a test of its own package. Some build scripts run again when it changes, and then everything
        // above them is built anew: here, and once more by the next cargo that nobody has told this.
        let of_package = |name: &OsStr| {
            let name = name.as_bytes();
            name.starts_with(b"CARGO_PKG_") || name.starts_with(b"CARGO_MANIFEST_")
        };
        for (name, _) in std::env::vars_os().filter(|(name, _)| of_package(name)) {
            build.env_remove(name);
        }
        let status = build.status().expect("cargo is there");
        assert!(status.success(), "longshore cannot be built: {status}");
        profile_dir.join("longshore")
    })
}
