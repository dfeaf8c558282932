//! The attempts that this worker speaks for (P9): on its disk, in its memory, and how to stop each.
//!
//! An attempt is here from before its `accepted` is sent until `settled` or `abandon`. While it is carried out its
//! task is the only one that changes it; once it is finished, only the control messages are.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longshore_protocol::breach::{self, Breach};
use longshore_protocol::event::{AttemptRecord, Claim, Finished, Phase};
use longshore_protocol::job::{Base, Job};
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::output::Offsets;
use longshore_protocol::process::blocking;
use longshore_protocol::process::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::Boot;
use crate::disk::Disk;
use crate::disk::log::{Durable, RecordLog};
use crate::disk::records::{AttemptKey, Ended, Entry, Open, Parked, claim_of};
use crate::exclusive::Leased;
use crate::spools::{Share, Spools};

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
    /// How far the spool is written (P16).
    pub(crate) bytes: u64,
    /// Up to where it was given back to the disk (P15).
    pub(crate) freed: u64,
    /// What the coordinator said that it has.
    pub(crate) stored: Offsets,
    /// How often it asked for what comes behind that (P14).
    pub(crate) asked: u64,
    /// Nothing can be given back: the file system cannot, or failed.
    pub(crate) kept: bool,
    /// The command waits where so much of its output stands here as may: a supervisor makes it.
    pub(crate) waits: bool,
    /// It does so now.
    pub(crate) full: bool,
}

impl Spooled {
    /// What it takes of the disk.
    pub(crate) fn held(&self) -> u64 {
        self.bytes - self.freed
    }
}

/// What the task of an attempt, and the sender of its output, hold of it.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    pub(crate) key: AttemptKey,
    pub(crate) claim: Claim,
    pub(crate) spool: PathBuf,
    pub(crate) spooled: watch::Sender<Spooled>,
    /// P15: its part of the room for all spools.
    pub(crate) share: Arc<Share>,
    pub(crate) stop: Stop,
    /// P18
    pub(crate) leased: watch::Sender<Leased>,
    /// The record is gone: whoever still sends its output may stop.
    pub(crate) forgotten: CancellationToken,
}

struct Held {
    record: AttemptRecord,
    /// Whose files it goes on with, until it has them.
    wants: Option<AttemptKey>,
    stop: watch::Sender<Option<StopReason>>,
    spooled: watch::Sender<Spooled>,
    leased: watch::Sender<Leased>,
    forgotten: CancellationToken,
}

impl Held {
    fn runs(&self) -> bool {
        !matches!(self.record.phase, Phase::Finished(_))
    }
}

/// How many that were let go of are remembered, some tens of bytes each: far more than end while a successor publishes
/// what a dying coordinator had published already.
const LET_GO_MAX: usize = 4096;

#[derive(Default)]
struct Table {
    held: BTreeMap<AttemptKey, Held>,
    /// Their records are on their way to the disk: nobody is told of them yet, and they are not claimed twice.
    claiming: BTreeSet<AttemptKey>,
    /// Those let go of last, the oldest first: their jobs may come a second time (P3).
    let_go: VecDeque<AttemptKey>,
}

impl Table {
    fn let_go(&mut self, key: AttemptKey) {
        if self.let_go.len() == LET_GO_MAX {
            self.let_go.pop_front();
        }
        self.let_go.push_back(key);
    }

    /// Whether an attempt is here, or was.
    fn had(&self, key: AttemptKey) -> bool {
        self.held.contains_key(&key) || self.let_go.contains(&key)
    }
}

/// All of them.
pub(crate) struct Attempts {
    disk: Arc<Disk>,
    log: RecordLog,
    spools: Arc<Spools>,
    table: Mutex<Table>,
}

impl Attempts {
    pub(crate) fn new(disk: Arc<Disk>, log: RecordLog, spools: Arc<Spools>) -> Self {
        Self { disk, log, spools, table: Mutex::default() }
    }

    /// Takes an attempt: its record is on disk when this returns (P4). `None` if it is here already, or was let go of
    /// lately: what it left, and what a child may go on in, bears the same name.
    pub(crate) async fn claim(&self, job: &Job) -> io::Result<Option<Handle>> {
        let claim = claim_of(job);
        let key = AttemptKey::of(&claim);
        {
            let mut table = self.lock();
            if table.had(key) || !table.claiming.insert(key) {
                return Ok(None);
            }
        }
        let written = self.log.add(Entry::Claimed { job: Box::new(job.clone()) }, Durable::Host).await;
        let claimed = match written {
            Ok(()) => {
                let record = AttemptRecord { claim, phase: Phase::Preparing };
                Ok(Some(self.hold(record, wanted(&job.base), Spooled::default())))
            }
            Err(error) => {
                // It may be on the disk all the same.
                self.note(Entry::Forgotten { claim }).await;
                Err(error)
            }
        };
        self.lock().claiming.remove(&key);
        claimed
    }

    /// P10: takes over one that the last incarnation left, and that is not over.
    pub(crate) fn adopt(&self, open: &Open, spooled: Spooled) -> Handle {
        let wants = wanted(&open.job.base).filter(|_| open.consumed.is_none() && !open.running);
        self.hold(open.record(), wants, spooled)
    }

    /// P10: takes over one that is over and not settled.
    pub(crate) fn adopt_finished(&self, finished: &Finished, spooled: Spooled) -> Handle {
        let phase = Phase::Finished(Box::new(finished.clone()));
        let record = AttemptRecord { claim: finished.claim.clone(), phase };
        self.hold(record, None, spooled)
    }

    fn hold(&self, record: AttemptRecord, wants: Option<AttemptKey>, spooled: Spooled) -> Handle {
        let (stop, stopped) = watch::channel(None);
        let share = self.spools.share();
        // What an earlier incarnation spooled is there, whether there is room for it or not.
        share.try_cover(spooled.held());
        let spooled = watch::Sender::new(spooled);
        let leased = watch::Sender::default();
        let forgotten = CancellationToken::new();
        let key = AttemptKey::of(&record.claim);
        let handle = Handle {
            key,
            claim: record.claim.clone(),
            spool: self.disk.spool_path(key),
            spooled: spooled.clone(),
            share,
            stop: Stop(stopped),
            leased: leased.clone(),
            forgotten: forgotten.clone(),
        };
        self.lock().held.insert(key, Held { record, wants, stop, spooled, leased, forgotten });
        handle
    }

    /// How many wait for what this attempt left.
    pub(crate) fn wanting(&self, parent: AttemptKey) -> usize {
        self.lock().held.values().filter(|held| held.wants == Some(parent)).count()
    }

    /// It has what it goes on with, or will never have it.
    pub(crate) fn has_base(&self, key: AttemptKey) {
        if let Some(held) = self.lock().held.get_mut(&key) {
            held.wants = None;
        }
    }

    /// P19: the attempt has the parked container. The kernel knows when this returns; a host that loses its power ends
    /// the container as well, and one that does not run is nobody's snapshot.
    pub(crate) async fn consume(&self, claim: &Claim, parked: &Parked) -> io::Result<()> {
        if breach::is(Breach::ConsumedIsParents) {
            return Ok(());
        }
        let entry = Entry::Consumed { claim: claim.clone(), parked: Box::new(parked.clone()) };
        self.log.add(entry, Durable::Process).await
    }

    /// Its command runs. A disk that fails here costs a restart's knowledge of it, and the Engine has it too.
    pub(crate) async fn runs(&self, claim: &Claim) {
        self.enter(AttemptKey::of(claim), Phase::Running);
        self.note(Entry::Running { claim: claim.clone() }).await;
    }

    /// Its command is being ended, because nobody wants it any more.
    pub(crate) async fn cancelled(&self, claim: &Claim, by: &CancelledBy) {
        self.note(Entry::Cancelled { claim: claim.clone(), by: by.clone() }).await;
    }

    /// Its command is being ended, because its worker is.
    pub(crate) async fn handed_back(&self, claim: &Claim) {
        self.note(Entry::HandedBack { claim: claim.clone() }).await;
    }

    /// P16: its command has ended so, which its supervisor is about to forget. P19: a commit of its container begins:
    /// after a crash nobody goes on in it, because that may be under way still.
    pub(crate) async fn ended(&self, claim: &Claim, ended: Ended) -> io::Result<()> {
        self.enter(AttemptKey::of(claim), Phase::Snapshotting);
        self.log.add(Entry::Ended { claim: claim.clone(), ended: Box::new(ended) }, Durable::Process).await
    }

    /// Says how far it is; a restart finds that out by itself.
    pub(crate) fn enter(&self, key: AttemptKey, phase: Phase) {
        if let Some(held) = self.lock().held.get_mut(&key) {
            held.record.phase = phase;
        }
    }

    /// Notes how it ended and what is parked of it, on disk first (P9). `false` if it was abandoned meanwhile: then
    /// nothing is reported.
    pub(crate) async fn finish(&self, key: AttemptKey, finished: &Finished, parked: Option<&Parked>) -> bool {
        let boxed = Box::new(finished.clone());
        let entry = Entry::Finished { finished: boxed.clone(), parked: parked.cloned().map(Box::new) };
        if let Err(error) = self.log.add(entry, Durable::Host).await {
            // Reported from memory all the same: only a crash before `settled` would now lose the attempt.
            tracing::error!(%error, "the record of a finished attempt could not be written");
        }
        let mut table = self.lock();
        let Some(held) = table.held.get_mut(&key) else { return false };
        if *held.stop.borrow() == Some(StopReason::Abandoned) {
            return false;
        }
        held.record.phase = Phase::Finished(boxed);
        held.wants = None;
        true
    }

    /// Drops record and spool.
    pub(crate) async fn forget(&self, key: AttemptKey) {
        let held = {
            let mut table = self.lock();
            let Some(held) = table.held.remove(&key) else { return };
            table.let_go(key);
            held
        };
        held.forgotten.cancel();
        let spooled = held.spooled.borrow().held();
        metrics::gauge!(crate::metrics::SPOOL_BYTES).decrement(spooled as f64);
        // Not waited for by the disk: a record that comes back is settled or abandoned once more.
        self.note(Entry::Forgotten { claim: held.record.claim }).await;
        let disk = Arc::clone(&self.disk);
        if let Err(error) = blocking(move || disk.remove_spool(key)).await {
            tracing::error!(%error, "a spool could not be removed");
        }
    }

    /// Asks an attempt's task to stop, if it has one. Answers how the attempt ended, if it is over already.
    pub(crate) fn stop(&self, key: AttemptKey, reason: StopReason) -> Option<Finished> {
        let table = self.lock();
        let held = table.held.get(&key)?;
        if let Phase::Finished(finished) = &held.record.phase {
            return Some((**finished).clone());
        }
        request(&held.stop, reason);
        None
    }

    /// Asks every task to stop.
    pub(crate) fn stop_all(&self, reason: &StopReason) {
        for held in self.lock().held.values() {
            request(&held.stop, reason.clone());
        }
    }

    /// P14: the output is wanted again from there on.
    pub(crate) fn resend(&self, key: AttemptKey, stored: Offsets) {
        if let Some(held) = self.lock().held.get(&key) {
            held.spooled.send_modify(|spooled| {
                spooled.stored = stored;
                spooled.asked += 1;
            });
        }
    }

    /// P15: so much of the output is stored.
    pub(crate) fn stored(&self, key: AttemptKey, stored: Offsets) {
        if let Some(held) = self.lock().held.get(&key) {
            held.spooled.send_modify(|spooled| {
                let Offsets { stdout, stderr } = spooled.stored;
                spooled.stored = Offsets { stdout: stdout.max(stored.stdout), stderr: stderr.max(stored.stderr) };
            });
        }
    }

    /// P18: what is known of how long an attempt is its worker's.
    pub(crate) fn leased(&self, key: AttemptKey, change: impl FnOnce(&mut Leased)) {
        if let Some(held) = self.lock().held.get(&key) {
            held.leased.send_modify(change);
        }
    }

    /// P18: all that was adopted is about to be told.
    pub(crate) fn ask_all(&self, now: Boot) {
        for held in self.lock().held.values() {
            held.leased.send_modify(|leased| leased.ask(now));
        }
    }

    /// Whether an attempt is here and over.
    pub(crate) fn is_finished(&self, key: AttemptKey) -> bool {
        self.lock().held.get(&key).is_some_and(|held| !held.runs())
    }

    /// How many are being carried out.
    pub(crate) fn running(&self) -> usize {
        self.lock().held.values().filter(|held| held.runs()).count()
    }

    /// Whether another one is.
    pub(crate) fn others_run(&self, claim: &Claim) -> bool {
        self.lock().held.values().any(|held| held.runs() && held.record.claim != *claim)
    }

    /// How many it speaks for: those that run, and those whose output may be on its way.
    pub(crate) fn held(&self) -> usize {
        self.lock().held.len()
    }

    /// Every record (P7, P9, P10).
    pub(crate) fn records(&self) -> Vec<AttemptRecord> {
        self.lock().held.values().map(|held| held.record.clone()).collect()
    }

    /// P15: those whose commands wait until more of their output is stored.
    pub(crate) fn full(&self) -> Vec<Claim> {
        let full = |held: &&Held| held.spooled.borrow().full;
        self.lock().held.values().filter(full).map(|held| held.record.claim.clone()).collect()
    }

    /// Writes what a restart should know, though nothing goes wrong without it.
    async fn note(&self, entry: Entry) {
        if let Err(error) = self.log.add(entry, Durable::Process).await {
            tracing::error!(%error, "an attempt's record could not be written");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every change is one assignment, so a panic elsewhere leaves nothing half done.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose files a job goes on with.
fn wanted(base: &Base) -> Option<AttemptKey> {
    match base {
        Base::Parent { execution, attempt, .. } => Some(AttemptKey::new(*execution, *attempt)),
        Base::Image { .. } => None,
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
