//! The state directory of embedded runs: `$LONGSHORE_STATE`, else `$XDG_STATE_HOME/longshore`, else
//! `~/.local/state/longshore`.
//!
//! ```text
//! id              16 hex digits, once and for ever: part of every container's name
//! runs/RUN.db     the store of one run
//! blobs/          sources and logs, shared by all runs
//! locks/RUN       held by the process that carries out RUN, for as long as it lives; holds the Engine's id
//! workers/RUN/    what that process's worker keeps on disk
//! ```
//!
//! A lock that exists and is held by nobody is the proof that its process is dead: only then are its containers
//! swept. A lock that cannot be seen belongs to another user or machine, and proves nothing.

use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use longshore_protocol::{EngineId, ExecutionId, RunId, WorkerId};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// 10,000 executions and more; the file is ours, but it may have been damaged.
const LOCK_BYTES_MAX: u64 = 1024 * 1024;

/// The directory, there and writable.
#[derive(Clone, Debug)]
pub(crate) struct StateDir {
    root: PathBuf,
    id: String,
}

/// What a lock says of its process, for whoever may have to sweep after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LockNote {
    /// Where its containers are.
    pub(crate) engine: EngineId,
    /// The executions whose snapshots outlive the run (`snapshot: always`).
    pub(crate) keeps: Vec<ExecutionId>,
}

/// A run's lock, held until dropped. The file stays: whoever sees it unheld sweeps.
#[derive(Debug)]
pub(crate) struct RunLock {
    file: File,
    path: PathBuf,
}

/// What became of taking the lock of a run that was carried out before.
#[derive(Debug)]
pub(crate) enum Again {
    Taken(RunLock),
    /// Somebody is at it, or sweeps what is left of it.
    Held,
    /// Its process is dead, and what it left stands there.
    OnAnotherEngine(EngineId),
}

/// A run whose process is dead. Holds its lock, so that only one sweeper is at it.
#[derive(Debug)]
pub(crate) struct Dead {
    pub(crate) run: RunId,
    pub(crate) note: LockNote,
    lock: RunLock,
}

impl StateDir {
    /// Where it is, made or not.
    pub(crate) fn path() -> Result<PathBuf, Failure> {
        let var = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        var("LONGSHORE_STATE")
            .or_else(|| var("XDG_STATE_HOME").map(|dir| dir.join("longshore")))
            .or_else(|| var("HOME").map(|home| home.join(".local/state/longshore")))
            .ok_or_else(|| {
                Failure::infra("there is no place for the state directory: HOME is not set")
                    .mend("name one in LONGSHORE_STATE")
            })
    }

    /// Finds or makes it.
    pub(crate) fn open() -> Result<Self, Failure> {
        let root = Self::path()?;
        let root = std::path::absolute(&root).unwrap_or(root);
        Self::open_at(&root).map_err(|error| unusable(&root, &error))
    }

    fn open_at(root: &Path) -> io::Result<Self> {
        for dir in [root.to_owned(), root.join("runs"), root.join("blobs"), root.join("locks"), root.join("workers")] {
            private_dir(&dir)?;
        }
        let id = directory_id(root)?;
        Ok(Self { root: root.to_owned(), id })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// The store of one run.
    pub(crate) fn store(&self, run: RunId) -> PathBuf {
        self.root.join("runs").join(format!("{run}.db"))
    }

    /// What the worker that carries out a run keeps on disk.
    pub(crate) fn worker_dir(&self, run: RunId) -> PathBuf {
        self.root.join("workers").join(lock_name(run))
    }

    /// The owner in the names of a run's containers: this directory's id and the lock's.
    pub(crate) fn owner(&self, run: RunId) -> WorkerId {
        // e + 16 + - + 32 characters: within a worker id's 64.
        format!("e{}-{}", self.id, lock_name(run)).parse().expect("hex digits and a dash make a worker id")
    }

    /// The runs that have a store, the newest first: a run's id begins with its time.
    pub(crate) fn runs(&self) -> io::Result<Vec<RunId>> {
        let mut runs: Vec<RunId> = names(&self.root.join("runs"))?
            .filter_map(|name| name.strip_suffix(".db").and_then(|run| run.parse().ok()))
            .collect();
        runs.sort_unstable_by(|a, b| b.cmp(a));
        Ok(runs)
    }

    /// Takes a new run's lock. It is held before anybody can see it, so nobody ever takes it for a dead one's.
    pub(crate) fn lock(&self, run: RunId, note: &LockNote) -> io::Result<RunLock> {
        let locks = self.root.join("locks");
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(&locks)?;
        flock(file.as_file(), FlockOperation::NonBlockingLockExclusive)?;
        serde_json::to_writer(&mut file, note)?;
        file.as_file().sync_all()?;
        let path = locks.join(lock_name(run));
        let file = file.persist_noclobber(&path).map_err(|error| error.error)?;
        Ok(RunLock { file, path })
    }

    /// Takes the lock of a run that was carried out before; of a dead process, if it was killed.
    pub(crate) fn lock_again(&self, run: RunId, note: &LockNote) -> io::Result<Again> {
        let path = self.root.join("locks").join(lock_name(run));
        if let Some((lock, left)) = RunLock::of_the_dead(path.clone())? {
            if left.engine != note.engine {
                return Ok(Again::OnAnotherEngine(left.engine));
            }
            return Ok(Again::Taken(lock));
        }
        if path.exists() {
            return Ok(Again::Held);
        }
        match self.lock(run, note) {
            Ok(lock) => Ok(Again::Taken(lock)),
            // Two at once: the other one was quicker.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Again::Held),
            Err(error) => Err(error),
        }
    }

    /// Whether the process that carries out a run lives.
    pub(crate) fn is_held(&self, run: RunId) -> bool {
        let path = self.root.join("locks").join(lock_name(run));
        // Shared: several who look at once do not take each other for the owner.
        File::open(path).is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockShared).is_err())
    }

    /// The runs of this directory, carried out on this Engine, whose processes are dead.
    pub(crate) fn dead(&self, engine: &EngineId) -> io::Result<Vec<Dead>> {
        let mut dead = Vec::new();
        for name in names(&self.root.join("locks"))? {
            let Some(run) = run_of(&name) else { continue };
            if let Some((lock, note)) = RunLock::of_the_dead(self.root.join("locks").join(name))?
                && note.engine == *engine
            {
                dead.push(Dead { run, note, lock });
            }
        }
        Ok(dead)
    }

    /// Forgets a dead run's process, once nothing of it is left on the Engine. Its store stays.
    pub(crate) fn bury(&self, dead: Dead) -> io::Result<()> {
        self.forget_worker(dead.run)?;
        dead.lock.remove()
    }

    /// Removes what a run's worker kept on disk.
    pub(crate) fn forget_worker(&self, run: RunId) -> io::Result<()> {
        match fs::remove_dir_all(self.worker_dir(run)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl RunLock {
    /// Ends the proof: nothing of its process is left.
    pub(crate) fn remove(self) -> io::Result<()> {
        // Held while it is removed: nobody finds it unheld.
        fs::remove_file(&self.path)
    }

    /// `None` if somebody holds it, it went away meanwhile, or it cannot be read: then it proves nothing.
    fn of_the_dead(path: PathBuf) -> io::Result<Option<(Self, LockNote)>> {
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() || !path.exists() {
            return Ok(None);
        }
        let mut content = String::new();
        (&file).take(LOCK_BYTES_MAX).read_to_string(&mut content)?;
        Ok(serde_json::from_str(&content).ok().map(|note| (Self { file, path }, note)))
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        // Closing the file would do, unless a child process had inherited it.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// 32 hex digits.
fn lock_name(run: RunId) -> String {
    run.0.simple().to_string()
}

fn run_of(lock_name: &str) -> Option<RunId> {
    (lock_name.len() == 32).then(|| lock_name.parse().ok()).flatten()
}

fn names(dir: &Path) -> io::Result<impl Iterator<Item = String>> {
    Ok(fs::read_dir(dir)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()))
}

fn directory_id(root: &Path) -> io::Result<String> {
    let path = root.join("id");
    if let Ok(id) = fs::read_to_string(&path) {
        return checked_id(&path, &id);
    }
    let mut file = tempfile::Builder::new().prefix(".id-").tempfile_in(root)?;
    // The tail of a run's id is random.
    file.write_all(&lock_name(RunId::new()).as_bytes()[16..])?;
    file.as_file().sync_all()?;
    // Two first starts at once: one of them wins, both read what it wrote.
    match file.persist_noclobber(&path) {
        Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => return Err(error.error),
        _ => {}
    }
    checked_id(&path, &fs::read_to_string(&path)?)
}

fn checked_id(path: &Path, id: &str) -> io::Result<String> {
    if id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(id.to_owned());
    }
    Err(io::Error::other(format!("{} does not hold 16 hex digits", path.display())))
}

/// Finds or makes a directory. Logs may hold what only their owner should read.
pub(crate) fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// What to tell of a directory that cannot be used.
pub(crate) fn unusable(dir: &Path, error: &io::Error) -> Failure {
    Failure::infra(format!("the state directory {} cannot be used: {error}", dir.display()))
        .mend("mend its rights, or name another one in LONGSHORE_STATE")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine() -> EngineId {
        EngineId::from("engine-1")
    }

    fn note() -> LockNote {
        LockNote { engine: engine(), keeps: vec![ExecutionId::of_step(RunId::new(), &"kept".into())] }
    }

    #[test]
    fn the_directory_keeps_its_id() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open_at(dir.path()).unwrap();
        let again = StateDir::open_at(dir.path()).unwrap();
        assert_eq!(first.id, again.id);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(StateDir::open_at(other.path()).unwrap().id, first.id);
        fs::write(dir.path().join("id"), "../../etc").unwrap();
        assert!(StateDir::open_at(dir.path()).is_err());
    }

    #[test]
    fn a_held_lock_proves_life_and_an_unheld_one_death() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open_at(dir.path()).unwrap();
        let (alive, killed) = (RunId::new(), RunId::new());
        let held = state.lock(alive, &note()).unwrap();
        drop(state.lock(killed, &note()).unwrap());
        assert!(state.is_held(alive));
        assert!(!state.is_held(killed));

        let dead = state.dead(&engine()).unwrap();
        assert_eq!(dead.iter().map(|dead| dead.run).collect::<Vec<_>>(), [killed]);
        assert_eq!(dead[0].note.keeps.len(), 1);
        // While one sweeps, another finds nothing to sweep.
        assert!(state.dead(&engine()).unwrap().is_empty());
        for dead in dead {
            state.bury(dead).unwrap();
        }
        assert_eq!(names(&dir.path().join("locks")).unwrap().count(), 1);
        held.remove().unwrap();
        assert!(!state.is_held(alive));
        assert!(state.dead(&engine()).unwrap().is_empty());
    }

    #[test]
    fn a_lock_is_taken_again_from_the_dead_and_from_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open_at(dir.path()).unwrap();
        let run = RunId::new();
        let held = state.lock(run, &note()).unwrap();
        assert!(matches!(state.lock_again(run, &note()).unwrap(), Again::Held));
        drop(held);
        let elsewhere = LockNote { engine: EngineId::from("engine-2"), ..note() };
        assert!(matches!(state.lock_again(run, &elsewhere).unwrap(), Again::OnAnotherEngine(left) if left == engine()));
        let Again::Taken(again) = state.lock_again(run, &note()).unwrap() else { panic!("nobody holds it") };
        assert!(state.is_held(run) && state.dead(&engine()).unwrap().is_empty());
        // It ended in order: there is no lock, and any Engine will do.
        again.remove().unwrap();
        assert!(matches!(state.lock_again(run, &elsewhere).unwrap(), Again::Taken(_)));
    }

    #[test]
    fn a_sweep_that_failed_leaves_the_proof() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open_at(dir.path()).unwrap();
        drop(state.lock(RunId::new(), &note()).unwrap());
        drop(state.dead(&engine()).unwrap());
        assert_eq!(state.dead(&engine()).unwrap().len(), 1);
    }

    #[test]
    fn what_runs_on_another_engine_is_not_ours_to_sweep() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open_at(dir.path()).unwrap();
        drop(state.lock(RunId::new(), &note()).unwrap());
        assert!(state.dead(&EngineId::from("engine-2")).unwrap().is_empty());
        assert_eq!(state.dead(&engine()).unwrap().len(), 1);
    }

    #[test]
    fn owners_of_two_directories_differ_for_the_same_run() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let run = RunId::new();
        let owner = |dir: &Path| StateDir::open_at(dir).unwrap().owner(run);
        assert_ne!(owner(one.path()), owner(two.path()));
        assert_eq!(owner(one.path()), owner(one.path()));
    }
}
