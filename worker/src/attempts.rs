//! The attempts that this worker speaks for (P9): on its disk, in its memory, and how to stop each.
//!
//! An attempt is here from before its `accepted` is sent until `settled` or `abandon`. While it is carried out its
//! task is the only one that changes it; once it is finished, only the control messages are.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longshore_protocol::event::{AttemptRecord, Claim, Finished, Phase};
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::output::Offsets;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::blocking::blocking;
use crate::disk::Disk;
use crate::disk::records::AttemptKey;

/// Why an attempt is stopped before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// It is not this worker's: nothing is reported. Wins over the others.
    Abandoned,
    /// Nobody wants it any more.
    Cancelled(CancelledBy),
    /// The worker is being stopped.
    Shutdown,
}

/// Tells the task of an attempt that it should stop.
#[derive(Clone, Debug)]
pub(crate) struct Stop(watch::Receiver<Option<StopReason>>);

impl Stop {
    /// The reason, if there is one by now.
    pub(crate) fn reason(&self) -> Option<StopReason> {
        self.0.borrow().clone()
    }

    /// Waits for a reason.
    pub(crate) async fn requested(&mut self) -> StopReason {
        loop {
            if let Some(reason) = self.0.borrow_and_update().clone() {
                return reason;
            }
            if self.0.changed().await.is_err() {
                // Dropped from the table without a word: nobody will ever ask.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// How far an attempt's output is, for the one who sends it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spooled {
    /// Bytes of the spool that are written (P16).
    pub(crate) bytes: u64,
    /// What the coordinator said that it has, last time it asked (P14).
    pub(crate) stored: Offsets,
    /// How often it asked.
    pub(crate) asked: u64,
}

/// What the task of an attempt, and the sender of its output, hold of it.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    pub(crate) key: AttemptKey,
    pub(crate) claim: Claim,
    pub(crate) spool: PathBuf,
    pub(crate) spooled: watch::Sender<Spooled>,
    pub(crate) stop: Stop,
    /// The record is gone: whoever still sends its output may stop.
    pub(crate) forgotten: CancellationToken,
}

struct Held {
    record: AttemptRecord,
    stop: watch::Sender<Option<StopReason>>,
    spooled: watch::Sender<Spooled>,
    forgotten: CancellationToken,
}

/// All of them.
pub(crate) struct Attempts {
    disk: Arc<Disk>,
    held: Mutex<BTreeMap<AttemptKey, Held>>,
}

impl Attempts {
    pub(crate) fn new(disk: Arc<Disk>) -> Self {
        Self { disk, held: Mutex::new(BTreeMap::new()) }
    }

    /// Takes an attempt: its record is on disk when this returns (P4). `None` if it is here already.
    pub(crate) async fn claim(&self, claim: &Claim) -> io::Result<Option<Handle>> {
        let key = AttemptKey::of(claim);
        if self.lock().contains_key(&key) {
            return Ok(None);
        }
        let record = AttemptRecord { claim: claim.clone(), phase: Phase::Preparing };
        // Only the one claimer comes here, so nobody can have taken the key meanwhile.
        self.write(record.clone()).await?;
        Ok(Some(self.hold(record, Spooled::default())))
    }

    /// P10: takes over what the last incarnation left.
    pub(crate) fn adopt(&self, record: AttemptRecord, spool_bytes: u64) -> Handle {
        self.hold(record, Spooled { bytes: spool_bytes, ..Spooled::default() })
    }

    fn hold(&self, record: AttemptRecord, spooled: Spooled) -> Handle {
        let (stop, stopped) = watch::channel(None);
        let spooled = watch::Sender::new(spooled);
        let forgotten = CancellationToken::new();
        let key = AttemptKey::of(&record.claim);
        let handle = Handle {
            key,
            claim: record.claim.clone(),
            spool: self.disk.spool_path(key),
            spooled: spooled.clone(),
            stop: Stop(stopped),
            forgotten: forgotten.clone(),
        };
        self.lock().insert(key, Held { record, stop, spooled, forgotten });
        handle
    }

    /// Notes how far it is. A disk that fails here costs nothing yet: what runs is not adopted anyway.
    pub(crate) async fn enter(&self, key: AttemptKey, phase: Phase) {
        let record = {
            let mut held = self.lock();
            let Some(held) = held.get_mut(&key) else { return };
            held.record.phase = phase;
            held.record.clone()
        };
        if let Err(error) = self.write(record).await {
            tracing::error!(%error, "an attempt's record could not be written");
        }
    }

    /// Notes how it ended, on disk first (P9). `false` if it was abandoned meanwhile: then nothing is reported.
    pub(crate) async fn finish(&self, key: AttemptKey, finished: &Finished) -> bool {
        let phase = Phase::Finished(Box::new(finished.clone()));
        if let Err(error) = self.write(AttemptRecord { claim: finished.claim.clone(), phase: phase.clone() }).await {
            // Reported from memory all the same: only a crash before `settled` would now lose the attempt.
            tracing::error!(%error, "the record of a finished attempt could not be written");
        }
        let mut held = self.lock();
        let Some(held) = held.get_mut(&key) else { return false };
        if *held.stop.borrow() == Some(StopReason::Abandoned) {
            return false;
        }
        held.record.phase = phase;
        true
    }

    /// Drops record and spool.
    pub(crate) async fn forget(&self, key: AttemptKey) {
        let Some(held) = self.lock().remove(&key) else { return };
        held.forgotten.cancel();
        let spooled = held.spooled.borrow().bytes;
        metrics::gauge!(crate::metrics::SPOOL_BYTES).decrement(spooled as f64);
        let disk = Arc::clone(&self.disk);
        if let Err(error) = blocking(move || disk.remove_attempt(key)).await {
            // The next incarnation lists it again, and is told again that it is settled.
            tracing::error!(%error, "an attempt's record could not be removed");
        }
    }

    /// Asks an attempt's task to stop, if it has one. Answers how the attempt ended, if it is over already.
    pub(crate) fn stop(&self, key: AttemptKey, reason: StopReason) -> Option<Finished> {
        let held = self.lock();
        let held = held.get(&key)?;
        if let Phase::Finished(finished) = &held.record.phase {
            return Some((**finished).clone());
        }
        request(&held.stop, reason);
        None
    }

    /// Asks every task to stop.
    pub(crate) fn stop_all(&self, reason: &StopReason) {
        for held in self.lock().values() {
            request(&held.stop, reason.clone());
        }
    }

    /// P14: the output is wanted again from there on.
    pub(crate) fn resend(&self, key: AttemptKey, stored: Offsets) {
        if let Some(held) = self.lock().get(&key) {
            held.spooled.send_modify(|spooled| {
                spooled.stored = stored;
                spooled.asked += 1;
            });
        }
    }

    /// Whether an attempt is here and over.
    pub(crate) fn is_finished(&self, key: AttemptKey) -> bool {
        self.lock().get(&key).is_some_and(|held| matches!(held.record.phase, Phase::Finished(_)))
    }

    /// Those that are being carried out.
    pub(crate) fn running(&self) -> Vec<Claim> {
        let held = self.lock();
        let running = held.values().filter(|held| !matches!(held.record.phase, Phase::Finished(_)));
        running.map(|held| held.record.claim.clone()).collect()
    }

    /// Every record (P7, P9, P10).
    pub(crate) fn records(&self) -> Vec<AttemptRecord> {
        self.lock().values().map(|held| held.record.clone()).collect()
    }

    async fn write(&self, record: AttemptRecord) -> io::Result<()> {
        let disk = Arc::clone(&self.disk);
        blocking(move || disk.put_record(&record)).await
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<AttemptKey, Held>> {
        // Every change is one assignment, so a panic elsewhere leaves nothing half done.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first reason stays, but for an abandoned attempt no other one counts.
fn request(stop: &watch::Sender<Option<StopReason>>, reason: StopReason) {
    stop.send_if_modified(|current| {
        let wins = current.is_none() || (reason == StopReason::Abandoned && *current != Some(StopReason::Abandoned));
        if wins {
            *current = Some(reason);
        }
        wins
    });
}
