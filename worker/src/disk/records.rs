//! One record per attempt (P9): who, how far, and in the end how it ended. Kept until `settled`.

use std::fs;
use std::io;
use std::path::PathBuf;

use longshore_protocol::event::{AttemptRecord, Claim, Phase};
use longshore_protocol::{Attempt, ExecutionId, wire};

use super::{Disk, UNFINISHED, spool, write_whole};
use crate::error::WorkerError;

/// Below the state directory.
pub(super) const DIR: &str = "attempts";

/// An attempt among one worker's: its fence without the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct AttemptKey {
    execution: ExecutionId,
    attempt: Attempt,
}

impl AttemptKey {
    pub(crate) fn of(claim: &Claim) -> Self {
        Self { execution: claim.execution, attempt: claim.attempt }
    }

    fn record_name(self) -> String {
        format!("{}-{}.json", self.execution.to_hex(), self.attempt)
    }

    fn spool_name(self) -> String {
        format!("{}-{}.log", self.execution.to_hex(), self.attempt)
    }
}

impl Disk {
    /// The file of an attempt's output.
    pub(crate) fn spool_path(&self, key: AttemptKey) -> PathBuf {
        self.dir.join(spool::DIR).join(key.spool_name())
    }

    /// Writes an attempt's record; on disk when it returns.
    pub(crate) fn put_record(&self, record: &AttemptRecord) -> io::Result<()> {
        let name = AttemptKey::of(&record.claim).record_name();
        write_whole(&self.dir.join(DIR), &name, &wire::encode(record))
    }

    /// Removes an attempt's record, then its spool: a crash in between leaves a spool that nobody asks for, which
    /// the next incarnation removes. Not synced: a record that comes back is settled or abandoned once more.
    pub(crate) fn remove_attempt(&self, key: AttemptKey) -> io::Result<()> {
        remove_if_there(&self.dir.join(DIR).join(key.record_name()))?;
        remove_if_there(&self.spool_path(key))
    }

    /// P10: what the last incarnation left and this one speaks for: attempts that ended and were not settled.
    /// Without a supervisor nothing that ran is adopted; everything else is removed, here and not on the Engine.
    pub(crate) fn take_over(&self) -> Result<Vec<AttemptRecord>, WorkerError> {
        let dir = self.dir.join(DIR);
        let failed = |source| WorkerError::State { path: dir.clone(), source };
        let mut finished = Vec::new();
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.ends_with(UNFINISHED) {
                remove_if_there(&path).map_err(failed)?;
            } else {
                let bytes = fs::read(&path).map_err(failed)?;
                match wire::decode::<AttemptRecord>(&bytes) {
                    Ok(record) if matches!(record.phase, Phase::Finished(_)) => finished.push(record),
                    Ok(record) => self.remove_attempt(AttemptKey::of(&record.claim)).map_err(failed)?,
                    // No crash of ours leaves this, or any other file: somebody wrote here, or the disk is failing.
                    Err(error) => return Err(WorkerError::BadState { path, reason: error.to_string() }),
                }
            }
        }
        finished.sort_by_key(|record| AttemptKey::of(&record.claim));
        self.remove_spools_but(&finished)?;
        Ok(finished)
    }

    fn remove_spools_but(&self, kept: &[AttemptRecord]) -> Result<(), WorkerError> {
        let dir = self.dir.join(spool::DIR);
        let failed = |source| WorkerError::State { path: dir.clone(), source };
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if !kept.iter().any(|record| self.spool_path(AttemptKey::of(&record.claim)) == path) {
                remove_if_there(&path).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// For a directory that gets another worker's id.
    pub(super) fn remove_all_attempts(&self) -> Result<(), WorkerError> {
        for record in self.take_over()? {
            let key = AttemptKey::of(&record.claim);
            self.remove_attempt(key).map_err(|source| WorkerError::State { path: self.dir.join(DIR), source })?;
        }
        Ok(())
    }
}

fn remove_if_there(path: &std::path::Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use longshore_protocol::event::{Finished, Phases};
    use longshore_protocol::output::Offsets;
    use longshore_protocol::{Outcome, RunId};

    use super::*;

    fn claim(step: &str) -> Claim {
        let run = RunId::new();
        Claim { run, execution: ExecutionId::of_step(run, &step.into()), attempt: Attempt(2) }
    }

    fn finished(claim: &Claim) -> AttemptRecord {
        let finished = Finished {
            claim: claim.clone(),
            outcome: Outcome::Failed { exit: 3 },
            cached: false,
            output: Offsets { stdout: 5, stderr: 0 },
            snapshot: None,
            phases: Phases::default(),
        };
        AttemptRecord { claim: claim.clone(), phase: Phase::Finished(Box::new(finished)) }
    }

    #[test]
    fn p10_only_what_ended_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        let (ended, running) = (claim("a"), claim("b"));
        disk.put_record(&finished(&ended)).unwrap();
        disk.put_record(&AttemptRecord { claim: running.clone(), phase: Phase::Running }).unwrap();
        for key in [&ended, &running, &claim("nobody's")].map(AttemptKey::of) {
            fs::write(disk.spool_path(key), b"").unwrap();
        }
        fs::write(dir.path().join("attempts/torn.json.new"), b"{").unwrap();

        assert_eq!(disk.take_over().unwrap(), [finished(&ended)]);
        assert_eq!(fs::read_dir(dir.path().join("attempts")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(dir.path().join("spool")).unwrap().count(), 1);

        disk.remove_attempt(AttemptKey::of(&ended)).unwrap();
        disk.remove_attempt(AttemptKey::of(&ended)).unwrap();
        assert_eq!(disk.take_over().unwrap(), []);
    }

    #[test]
    fn another_id_does_not_speak_for_the_former_ones_attempts() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        let engine = longshore_protocol::EngineId("e".to_owned());
        disk.identity(Some(&"first".parse().unwrap()), &engine).unwrap();
        disk.put_record(&finished(&claim("a"))).unwrap();
        disk.identity(Some(&"first".parse().unwrap()), &engine).unwrap();
        assert_eq!(disk.take_over().unwrap().len(), 1);
        disk.identity(Some(&"second".parse().unwrap()), &engine).unwrap();
        assert_eq!(disk.take_over().unwrap(), []);
    }
}
