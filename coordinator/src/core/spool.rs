//! How far each open log is stored, and when the rest of it is asked for (P14).

use std::collections::{BTreeMap, BTreeSet};

use longshore_protocol::output::{Offsets, STORED_EVERY_BYTES};

use super::state::Key;

/// Every attempt that has an owner and whose log is open.
#[derive(Debug, Default)]
pub(super) struct Logs {
    logs: BTreeMap<Key, Log>,
    /// When to look whether a log whose end is known has grown, by tick.
    due: BTreeSet<(u64, Key)>,
}

/// Why a worker is told how much is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Because {
    /// It is more: told every so often.
    Grown,
    /// What came was stored before: perhaps the worker was told, and it was lost. Once a tick, as many come at once.
    Repeat,
    /// A new incarnation has heard nothing yet.
    Joined,
}

#[derive(Debug, Default)]
struct Log {
    /// Contiguous from 0.
    stored: Offsets,
    /// How much of it its worker was told to be stored, in bytes of both streams.
    told_bytes: u64,
    /// In which tick.
    told_at: Option<u64>,
    /// The tick of the last growth.
    grew: u64,
    /// What was stored when bytes were last asked for, and the tick of that.
    asked: Option<(Offsets, u64)>,
    due: Option<u64>,
}

impl Logs {
    pub(super) fn open(&mut self, key: Key, tick: u64) {
        self.logs.insert(key, Log { grew: tick, ..Log::default() });
    }

    pub(super) fn close(&mut self, key: Key) {
        if let Some(Log { due: Some(due), .. }) = self.logs.remove(&key) {
            self.due.remove(&(due, key));
        }
    }

    /// So much of it is stored. Offsets never shrink, whatever comes late. Answers whether it is more than before.
    pub(super) fn stored(&mut self, key: Key, offsets: Offsets, tick: u64) -> bool {
        let Some(log) = self.logs.get_mut(&key) else { return false };
        let grown =
            Offsets { stdout: log.stored.stdout.max(offsets.stdout), stderr: log.stored.stderr.max(offsets.stderr) };
        let is_more = grown != log.stored;
        if is_more {
            log.stored = grown;
            log.grew = tick;
        }
        is_more
    }

    /// P15: whether its worker should hear how much is stored, and counts it as told then.
    pub(super) fn should_tell(&mut self, key: Key, because: Because, tick: u64) -> bool {
        let Some(log) = self.logs.get_mut(&key) else { return false };
        let stored = log.stored.total();
        let tell = match because {
            Because::Grown => stored >= log.told_bytes + STORED_EVERY_BYTES,
            Because::Repeat => stored > 0 && log.told_at != Some(tick),
            Because::Joined => stored > 0,
        };
        if tell {
            (log.told_bytes, log.told_at) = (stored, Some(tick));
        }
        tell
    }

    /// Up to where it is stored.
    pub(super) fn offsets(&self, key: Key) -> Offsets {
        self.logs.get(&key).map(|log| log.stored).unwrap_or_default()
    }

    /// Its end is known, and it is not reached: look again at this tick.
    pub(super) fn expect_rest(&mut self, key: Key, tick: u64) {
        let Some(log) = self.logs.get_mut(&key) else { return };
        if let Some(before) = log.due.replace(tick) {
            self.due.remove(&(before, key));
        }
        self.due.insert((tick, key));
    }

    /// The logs to look at now. Each must be closed or [expected](Self::expect_rest) again.
    pub(super) fn take_due(&mut self, tick: u64) -> Vec<Key> {
        let mut keys = Vec::new();
        while let Some(&(due, key)) = self.due.first() {
            if due > tick {
                break;
            }
            self.due.pop_first();
            if let Some(log) = self.logs.get_mut(&key) {
                log.due = None;
                keys.push(key);
            }
        }
        keys
    }

    /// The tick of its last growth.
    pub(super) fn grew(&self, key: Key) -> u64 {
        self.logs.get(&key).map_or(0, |log| log.grew)
    }

    /// Whether to ask for the bytes after what is stored: once, and again only after `patience` ticks without
    /// growth. A log of a thousand messages behind one gap is asked for once.
    pub(super) fn may_ask(&mut self, key: Key, tick: u64, patience: u64) -> bool {
        let Some(log) = self.logs.get_mut(&key) else { return false };
        if log.asked.is_some_and(|(stored, then)| stored == log.stored && tick < then + patience) {
            return false;
        }
        log.asked = Some((log.stored, tick));
        true
    }
}
