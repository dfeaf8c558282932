//! A fake container: its files, and what it is doing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::files::{Files, Node};
use super::run::Run;
use crate::engine::{ContainerSpec, EngineError};

/// What a container has of its own, and hands on to nobody: its image's stays as it was.
const OWN_PATHS: [&str; 5] = ["dev", "etc/hosts", "etc/hostname", "etc/resolv.conf", "sys"];

#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) files: Files,
    /// As [`Files`] writes paths: without a leading slash.
    pub(super) volumes: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Container {
    /// Its limits are those of today.
    pub(super) spec: ContainerSpec,
    pub(super) base: Image,
    pub(super) files: Arc<Mutex<Files>>,
    /// What was there before anything ran: what [`Container::clean`] goes back to, where nothing is handed on.
    at_start: Files,
    pub(super) direct: bool,
    pub(super) phase: Phase,
    /// Which start of its worker last took it up.
    pub(super) incarnation: u64,
}

#[derive(Debug)]
pub(super) enum Phase {
    /// Nothing was started since it was made, or cleaned.
    Idle,
    /// Started; it may have ended.
    Command(Arc<Run>),
    /// It went wrong, or somebody said so: files, and no more.
    Unfit,
    /// Its supervisor does not run any more.
    Dead,
}

impl Container {
    pub(super) fn new(spec: ContainerSpec, base: Image, direct: bool, incarnation: u64) -> Self {
        let mut files = base.files.clone();
        for dir in ["dev/shm", "dev/mqueue", "etc"].into_iter().chain(base.volumes.iter().map(String::as_str)) {
            files.make_dirs(dir);
        }
        for (path, content) in
            [("etc/hosts", "127.0.0.1\tlocalhost\n"), ("etc/hostname", "fake\n"), ("etc/resolv.conf", "")]
        {
            files.put(path.to_owned(), Node::File(content.into()));
        }
        let at_start = files.clone();
        let files = Arc::new(Mutex::new(files));
        let container = Self { spec, base, files, at_start, direct, phase: Phase::Idle, incarnation };
        container.show_limits();
        container
    }

    /// Puts its limits where the kernel shows them.
    pub(super) fn show_limits(&self) {
        let text = |limit: Option<String>| Node::File((limit.unwrap_or_else(|| "max".to_owned()) + "\n").into());
        let resources = &self.spec.resources;
        let mut files = self.files();
        files.make_dirs("sys/fs/cgroup");
        files.put("sys/fs/cgroup/memory.max".to_owned(), text(resources.memory_bytes.map(|bytes| bytes.to_string())));
        files.put("sys/fs/cgroup/pids.max".to_owned(), text(resources.pids.map(|pids| pids.to_string())));
    }

    pub(super) fn files(&self) -> MutexGuard<'_, Files> {
        lock(&self.files)
    }

    /// What a commit keeps.
    pub(super) fn handed_on(&self) -> Files {
        let mut files = self.files().clone();
        for path in self.own_paths() {
            files.restore(path, &self.base.files);
        }
        files
    }

    /// Takes away what no step hands on.
    pub(super) fn clean(&self) {
        let mut files = self.files();
        for path in self.own_paths().filter(|path| *path != "sys") {
            files.restore(path, &self.at_start);
        }
    }

    fn own_paths(&self) -> impl Iterator<Item = &str> {
        OWN_PATHS.into_iter().chain(self.base.volumes.iter().map(String::as_str))
    }

    /// A declared VOLUME into which the image puts files: whoever restores sees them again, so cleaning cannot.
    pub(super) fn filled_volume(&self) -> Option<&str> {
        let filled = |path: &&String| self.base.files.below(path.as_str()).next().is_some();
        self.base.volumes.iter().find(filled).map(String::as_str)
    }

    /// Its command, if something of it runs.
    pub(super) fn running(&self) -> Option<&Arc<Run>> {
        match &self.phase {
            Phase::Command(run) if !run.is_over() => Some(run),
            _ => None,
        }
    }

    /// Nothing runs in it any more, and nothing ever will.
    pub(super) fn die(&mut self, because: EngineError) {
        if let Phase::Command(run) = std::mem::replace(&mut self.phase, Phase::Dead) {
            run.end(Err(because));
            run.kill.cancel();
        }
    }
}

pub(super) fn lock(files: &Mutex<Files>) -> MutexGuard<'_, Files> {
    files.lock().unwrap_or_else(PoisonError::into_inner)
}
