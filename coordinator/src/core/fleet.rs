//! What is not journalled: silence counted in ticks (P8), what heartbeats reported, how far output is stored.
//!
//! All of it may be forgotten at any moment; a coordinator that starts begins without it. Whatever is concluded
//! from it is an [`Entry`].

use std::collections::{BTreeMap, BTreeSet};

use longshore_protocol::event::Claim;
use longshore_protocol::heartbeat::Heartbeat;
use longshore_protocol::{Incarnation, SnapshotId, WorkerId};

use super::entry::{End, Entry};
use super::spool::Logs;
use super::state::{Key, State};
use super::watch::Queues;

/// The volatile side of the core.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    /// Ticks that came back since this coordinator became active: the clock of everything here.
    pub(super) tick: u64,
    /// INVARIANT: one per worker that the state knows.
    pub(super) seen: BTreeMap<WorkerId, Seen>,
    /// Workers whose heartbeats came before their `hello`.
    pub(super) strangers: BTreeMap<WorkerId, Stranger>,
    pub(super) queues: Queues,
    pub(super) logs: Logs,
    /// Who reported a cached snapshot. INVARIANT: the exact reverse of what was [`Seen`].
    pub(super) cached_by: BTreeMap<SnapshotId, BTreeSet<WorkerId>>,
}

/// What is known of one worker's present.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The tick of its last sign of life.
    pub(super) tick: u64,
    /// As last reported; `None` before the first heartbeat.
    pub(super) slots_free: Option<u32>,
    /// Cached snapshots it reported: those that a step may be sent after.
    pub(super) cached: BTreeSet<SnapshotId>,
    pub(super) snapshots: u32,
    /// How many containers it reported as parked.
    pub(super) parked: u32,
    pub(super) disk_free_bytes: Option<u64>,
    /// It reported no free slot, and not because all are taken: it is ending, say, or its disk is full.
    pub(super) closed: bool,
    /// Its attempts whose output fills what may stand on its disk (P15).
    pub(super) full: Vec<Claim>,
    /// When it was last asked for a sync, while a number is missing (P9).
    pub(super) sync_asked: Option<u64>,
    /// Since when its heartbeats name a number that is not in.
    pub(super) behind_since: Option<u64>,
}

/// An incarnation that was heard of, but not from its beginning.
#[derive(Debug)]
pub(super) struct Stranger {
    pub(super) incarnation: Incarnation,
    pub(super) heartbeat: Option<Heartbeat>,
    pub(super) since: u64,
    pub(super) sync_asked: Option<u64>,
}

impl Fleet {
    /// Keeps up with an entry that the state took, live or on replay.
    pub(super) fn follow(&mut self, entry: &Entry, state: &State, resend_ticks: u64) {
        match entry {
            Entry::Joined { worker, .. } => {
                self.strangers.remove(worker);
                self.has_cached(worker, BTreeSet::new());
                self.seen.insert(worker.clone(), Seen { tick: self.tick, ..Seen::default() });
            }
            Entry::Back { worker } => self.seen.entry(worker.clone()).or_default().tick = self.tick,
            Entry::Heard { worker, .. } => {
                let seen = self.seen.entry(worker.clone()).or_default();
                seen.sync_asked = None;
                seen.behind_since = None;
            }
            Entry::Dispatched { queue, .. } => {
                if let Some(key) = key_of(entry, state) {
                    self.queues.put(queue.clone(), key, self.tick);
                }
            }
            Entry::Accepted { .. } => {
                if let Some(key) = key_of(entry, state) {
                    self.queues.claimed(key, self.tick);
                    self.logs.open(key, self.tick);
                }
            }
            Entry::Ended { end, .. } => {
                if let Some(key) = key_of(entry, state) {
                    self.queues.remove(key);
                    if matches!(end, End::Finished { .. }) {
                        self.logs.expect_rest(key, self.tick + resend_ticks);
                    }
                }
            }
            Entry::LogClosed { .. } => {
                if let Some(key) = key_of(entry, state) {
                    self.logs.close(key);
                }
            }
            _ => {}
        }
    }

    /// What cached snapshots a worker has.
    pub(super) fn has_cached(&mut self, worker: &WorkerId, cached: BTreeSet<SnapshotId>) {
        let seen = self.seen.entry(worker.clone()).or_default();
        for gone in seen.cached.difference(&cached) {
            if let Some(workers) = self.cached_by.get_mut(gone) {
                workers.remove(worker);
                if workers.is_empty() {
                    self.cached_by.remove(gone);
                }
            }
        }
        for new in cached.difference(&seen.cached) {
            self.cached_by.entry(new.clone()).or_default().insert(worker.clone());
        }
        seen.cached = cached;
    }

    /// Whether a worker reported that an attempt's output fills what may stand on its disk (P15).
    pub(super) fn is_full(&self, worker: &WorkerId, claim: &Claim) -> bool {
        self.seen.get(worker).is_some_and(|seen| seen.full.contains(claim))
    }

    /// Ticks since a worker's last sign of life.
    pub(super) fn silence(&self, worker: &WorkerId) -> u64 {
        self.tick - self.seen.get(worker).map_or(0, |seen| seen.tick)
    }
}

/// The attempt that an entry is about.
fn key_of(entry: &Entry, state: &State) -> Option<Key> {
    let (Entry::Dispatched { run, execution, attempt, .. }
    | Entry::Accepted { run, execution, attempt, .. }
    | Entry::Ended { run, execution, attempt, .. }
    | Entry::LogClosed { run, execution, attempt, .. }) = entry
    else {
        return None;
    };
    let step = state.runs.get(run)?.find(execution)?;
    Some(Key { run: *run, step, attempt: *attempt })
}
