//! The binary, beside a state directory of its own.

#![allow(dead_code)] // each test file uses its part
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed
#![allow(unreachable_pub)] // so is the file of the services, which other crates include too

#[path = "../../../tests/services.rs"]
pub mod services;
pub mod tap;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};

use longshore_worker::engine::docker::DockerEngine;
use longshore_worker::engine::{ContainerName, Engine};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// An image that every Engine of the tests has.
pub const BUSYBOX: &str = "longshore-test/busybox:latest";

/// A place to work in: pipeline files, and the state of embedded runs.
pub struct Place {
    dir: tempfile::TempDir,
}

/// A `longshore` that was started, and what it has printed so far.
pub struct Started {
    pub child: Child,
    lines: BufReader<ChildStdout>,
    pub printed: String,
}

impl Place {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// Writes a file and returns its path.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The binary, without a Docker Engine, fleet or anybody's own settings.
    pub fn longshore(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_longshore"));
        for (name, _) in std::env::vars() {
            if name.starts_with("LONGSHORE_") || name.starts_with("DOCKER_") {
                command.env_remove(name);
            }
        }
        command.env("LONGSHORE_STATE", self.state()).env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
        command.env("NO_COLOR", "1").stdin(Stdio::null()).current_dir(self.dir.path()).args(args);
        command
    }

    /// The binary beside the first Engine of the tests.
    pub fn with_docker(&self, args: &[&str]) -> Command {
        let mut command = self.longshore(args);
        command.env("DOCKER_HOST", services::env("LONGSHORE_TEST_DOCKER_1"));
        command
    }

    /// Containers on the first Engine that belong to this state directory, or are left of it.
    pub fn containers(&self) -> Vec<ContainerName> {
        let id = std::fs::read_to_string(self.state().join("id")).unwrap();
        let ours = format!("e{id}-");
        let all = on_engine(async |engine| engine.containers().await.unwrap());
        all.into_iter().filter(|container| container.owner().as_str().starts_with(&ours)).collect()
    }

    /// Ephemeral snapshots of this state directory.
    pub fn snapshots(&self) -> Vec<String> {
        let id = std::fs::read_to_string(self.state().join("id")).unwrap();
        let ours = format!("longshore/e{id}-");
        let all = on_engine(async |engine| engine.snapshots().await.unwrap());
        all.into_iter().map(|snapshot| snapshot.0).filter(|snapshot| snapshot.starts_with(&ours)).collect()
    }

    /// The names of the locks that are there.
    pub fn locks(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.state().join("locks")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// Asks the first Engine of the tests.
pub fn on_engine<T>(ask: impl AsyncFnOnce(DockerEngine) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let address = services::env("LONGSHORE_TEST_DOCKER_1");
        ask(DockerEngine::connect(Some(&address)).await.unwrap()).await
    })
}

/// Waits for its end.
pub fn done(mut command: Command) -> Output {
    command.output().unwrap()
}

pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{}: {output:?}", output.status))
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Each line, parsed.
///
/// # Panics
/// If one is no JSON object with a `type`.
pub fn objects(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| {
            let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            assert!(value["type"].is_string(), "{line}");
            value
        })
        .collect()
}

impl Started {
    pub fn new(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines, printed: String::new() }
    }

    /// Reads until a line has this text; the line.
    ///
    /// # Panics
    /// If the output ends before.
    pub fn until(&mut self, text: &str) -> String {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).unwrap() == 0 {
                let mut errors = String::new();
                self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
                panic!("{text:?} never came:\n{}{errors}", self.printed);
            }
            self.printed.push_str(&line);
            if line.contains(text) {
                return line;
            }
        }
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Reads the rest and waits for its end. Exit status, all of stdout, all of stderr.
    pub fn end(mut self) -> (ExitStatus, String, String) {
        self.lines.read_to_string(&mut self.printed).unwrap();
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (self.child.wait().unwrap(), self.printed, errors)
    }
}

/// The id in the first line of a run's output.
pub fn run_id(first_line: &str) -> String {
    first_line.split_whitespace().nth(1).unwrap_or_else(|| panic!("no id in {first_line:?}")).to_owned()
}
