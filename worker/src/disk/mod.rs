//! What must survive a crash: who the worker is, the highest epoch, and its attempts with their output.
//!
//! ```text
//! lock              held while the worker lives (P10)
//! identity.json     its id, and the Engine that the id is bound to
//! start.json        how often it was started
//! epoch.json        the highest epoch that it has obeyed (P22)
//! records.log       its attempts and parked containers (P9, P19)
//! spool/X-N.log     one attempt's output (P14, P16)
//! engine/           what the Engine needs: the supervisor, and a directory for each container
//! ```
//!
//! Small files are written beside their place, synced and renamed, so that a crash leaves the old one or
//! the new one. Records and spools are appended to; a torn end is cut off by whoever opens it next.

pub(crate) mod log;
pub(crate) mod records;
pub(crate) mod spool;

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use longshore_protocol::process::random;
use longshore_protocol::{EngineId, Epoch, Incarnation, WorkerId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use self::log::RecordLog;
use self::records::{AttemptKey, Records};
use crate::error::WorkerError;

/// A worker's state directory, locked for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Disk {
    dir: PathBuf,
    // INVARIANT: locked until this is dropped, or the process killed.
    lock: File,
}

impl Drop for Disk {
    /// Not left to the file's end: a process that is being started beside this holds it as well, for a moment.
    fn drop(&mut self) {
        let _ = self.lock.unlock();
    }
}

#[derive(Serialize, Deserialize)]
struct Identity {
    worker: WorkerId,
    engine: EngineId,
}

#[derive(Serialize, Deserialize)]
struct Starts {
    start: u64,
}

#[derive(Serialize, Deserialize)]
struct HighestEpoch {
    epoch: Epoch,
}

impl Disk {
    /// Makes the directory if it is missing, and locks it. P10: one process uses it at a time.
    pub(crate) fn open(dir: &Path) -> Result<Self, WorkerError> {
        for part in [dir.to_owned(), dir.join(spool::DIR), dir.join(ENGINE)] {
            // 0700: output may hold what its readers must not see.
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&part);
            made.map_err(|source| WorkerError::State { path: part, source })?;
        }
        let path = dir.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|source| WorkerError::State { path: path.clone(), source })?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { dir: dir.to_owned(), lock }),
            Err(TryLockError::WouldBlock) => Err(WorkerError::Locked { dir: dir.to_owned() }),
            Err(TryLockError::Error(source)) => Err(WorkerError::State { path, source }),
        }
    }

    /// P10: the worker's id, bound to its Engine. A `given` id replaces the one on disk, together with
    /// the records of it: they were another worker's.
    pub(crate) fn identity(&self, given: Option<&WorkerId>, engine: &EngineId) -> Result<WorkerId, WorkerError> {
        let known: Option<Identity> = self.read("identity.json")?;
        if let Some(known) = &known {
            if known.engine != *engine {
                let (bound, found) = (known.engine.clone(), engine.clone());
                return Err(WorkerError::OtherEngine { dir: self.dir.clone(), bound, found });
            }
            if given.is_none_or(|given| *given == known.worker) {
                return Ok(known.worker.clone());
            }
            // Before the new id is written: a crash between the two leaves the old worker without records.
            self.remove_records()?;
        }
        let made = || format!("w{:016x}", random()).parse().expect("hex digits after a letter are a name");
        let worker = given.cloned().unwrap_or_else(made);
        self.write("identity.json", &Identity { worker: worker.clone(), engine: engine.clone() })?;
        Ok(worker)
    }

    /// P10: the next start of this disk, on it before anybody hears of it; behind those `before` it on another.
    pub(crate) fn next_incarnation(&self, before: u64) -> Result<Incarnation, WorkerError> {
        let last: Option<Starts> = self.read("start.json")?;
        let start = last.map_or(0, |starts| starts.start).max(before) + 1;
        self.write("start.json", &Starts { start })?;
        Ok(Incarnation { start, nonce: random() })
    }

    /// P22: the highest epoch that was obeyed.
    pub(crate) fn epoch(&self) -> Result<Epoch, WorkerError> {
        let known: Option<HighestEpoch> = self.read("epoch.json")?;
        Ok(known.map_or(Epoch(0), |known| known.epoch))
    }

    /// P22: on disk before it is obeyed.
    pub(crate) fn set_epoch(&self, epoch: Epoch) -> Result<(), WorkerError> {
        self.write("epoch.json", &HighestEpoch { epoch })
    }

    /// P10: what the last incarnation left. Spools that no record names are removed.
    pub(crate) fn take_over(&self) -> Result<RecordLog, WorkerError> {
        let log = RecordLog::open(&self.dir)?;
        self.remove_spools_but(&log.records())?;
        Ok(log)
    }

    /// The file of an attempt's output.
    pub(crate) fn spool_path(&self, key: AttemptKey) -> PathBuf {
        self.dir.join(spool::DIR).join(key.spool_name())
    }

    /// Removes an attempt's spool, after its record: a crash in between leaves a spool that nobody asks for, which the
    /// next incarnation removes.
    pub(crate) fn remove_spool(&self, key: AttemptKey) -> io::Result<()> {
        remove_if_there(&self.spool_path(key))
    }

    /// Removes what no record names.
    fn remove_spools_but(&self, records: &Records) -> Result<(), WorkerError> {
        let dir = self.dir.join(spool::DIR);
        let failed = |source| WorkerError::State { path: dir.clone(), source };
        let kept: BTreeSet<PathBuf> = records.keys().map(|key| self.spool_path(key)).collect();
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if !kept.contains(&path) {
                remove_if_there(&path).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// The state directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The part of it that the Engine sees too, and at the same path.
    pub(crate) fn engine_dir(&self) -> io::Result<PathBuf> {
        std::path::absolute(self.dir.join(ENGINE))
    }

    /// For a directory that gets another worker's id.
    fn remove_records(&self) -> Result<(), WorkerError> {
        let path = self.dir.join(log::NAME);
        remove_if_there(&path).map_err(|source| WorkerError::State { path, source })
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, WorkerError> {
        let path = self.dir.join(name);
        match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(value) => Ok(Some(value)),
                Err(error) => Err(WorkerError::BadState { path, reason: error.to_string() }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(WorkerError::State { path, source }),
        }
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), WorkerError> {
        let bytes = serde_json::to_vec(value).expect("plain structs have no failing serializers");
        write_whole(&self.dir, name, &bytes).map_err(|source| WorkerError::State { path: self.dir.join(name), source })
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The first bytes of the hash of what was written: how a torn frame is known.
fn check(payload: &[u8]) -> [u8; 4] {
    let hash = blake3::hash(payload);
    let [a, b, c, d, ..] = *hash.as_bytes();
    [a, b, c, d]
}

/// Below the state directory.
const ENGINE: &str = "engine";

/// Ends names that are being written. Whoever opens the directory removes them.
const UNFINISHED: &str = ".new";

/// Replaces a file: after a crash there is the old one or the new one, and after `Ok` the new one.
fn write_whole(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let unfinished = dir.join(format!("{name}{UNFINISHED}"));
    let mut file = File::create(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&unfinished, dir.join(name))?;
    // The rename itself is on disk only with its directory.
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(id: &str) -> EngineId {
        EngineId::from(id)
    }

    #[test]
    fn p10_an_id_is_kept_and_bound_to_its_engine() {
        let dir = tempfile::tempdir().unwrap();
        let id = Disk::open(dir.path()).unwrap().identity(None, &engine("a")).unwrap();
        assert_eq!(id.as_str().len(), 17, "{id}");
        let disk = Disk::open(dir.path()).unwrap();
        assert_eq!(disk.identity(None, &engine("a")).unwrap(), id);
        let error = disk.identity(None, &engine("b")).unwrap_err().to_string();
        assert!(error.contains("belongs to the Engine a") && error.contains("another state directory"), "{error}");
    }

    #[test]
    fn p10_a_second_process_is_refused_and_told_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = Disk::open(dir.path()).unwrap();
        let error = Disk::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
        drop(first);
        Disk::open(dir.path()).unwrap();
    }

    #[tokio::test]
    async fn p10_another_id_does_not_speak_for_the_former_ones_attempts() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        disk.identity(Some(&"first".parse().unwrap()), &engine("e")).unwrap();
        let claimed = records::tests::claimed("a");
        let spool = disk.spool_path(AttemptKey::of(&claimed.claim()));
        disk.take_over().unwrap().add(claimed, log::Durable::Host).await.unwrap();
        fs::write(&spool, b"").unwrap();
        disk.identity(Some(&"first".parse().unwrap()), &engine("e")).unwrap();
        assert_eq!(disk.take_over().unwrap().records().open().count(), 1);
        assert!(spool.exists());
        disk.identity(Some(&"second".parse().unwrap()), &engine("e")).unwrap();
        assert_eq!(disk.take_over().unwrap().records().open().count(), 0);
        assert!(!spool.exists(), "nobody asks for it any more");
    }

    #[test]
    fn p10_each_start_grows_and_is_random() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        let (first, second) = (disk.next_incarnation(0).unwrap(), disk.next_incarnation(0).unwrap());
        assert_eq!((first.start, second.start), (1, 2));
        assert_ne!(first.nonce, second.nonce);
    }

    #[test]
    fn p22_the_highest_epoch_survives() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Disk::open(dir.path()).unwrap().epoch().unwrap(), Epoch(0));
        Disk::open(dir.path()).unwrap().set_epoch(Epoch(7)).unwrap();
        assert_eq!(Disk::open(dir.path()).unwrap().epoch().unwrap(), Epoch(7));
    }

    #[test]
    fn a_crash_before_the_rename_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        disk.set_epoch(Epoch(7)).unwrap();
        fs::write(dir.path().join("epoch.json.new"), b"{\"epo").unwrap();
        assert_eq!(disk.epoch().unwrap(), Epoch(7));
        disk.set_epoch(Epoch(8)).unwrap();
        assert_eq!(disk.epoch().unwrap(), Epoch(8));
    }
}
