//! Runs by what they received: the least first.

use std::collections::{BTreeMap, BTreeSet};

use longshore_protocol::RunId;

/// Some runs, ordered by what each had received when it was last looked at. That only grows, but for what is given
/// back, which counts when the run is looked at next. So what is received elsewhere costs nothing here.
#[derive(Debug, Default)]
pub(super) struct Order {
    order: BTreeSet<(u64, RunId)>,
    /// INVARIANT: the same runs as in the order.
    keys: BTreeMap<RunId, u64>,
}

impl Order {
    /// A second time: nothing.
    pub(super) fn insert(&mut self, run: RunId) {
        // What it received is looked up when it is its turn.
        if let std::collections::btree_map::Entry::Vacant(new) = self.keys.entry(run) {
            new.insert(0);
            self.order.insert((0, run));
        }
    }

    pub(super) fn remove(&mut self, run: RunId) {
        if let Some(key) = self.keys.remove(&run) {
            self.order.remove(&(key, run));
        }
    }

    /// Whoever received least. One that received something since it was last looked at is put where it belongs, once
    /// for each time that it did.
    pub(super) fn first(&mut self, received: impl Fn(RunId) -> u64) -> Option<RunId> {
        loop {
            let &(key, run) = self.order.first()?;
            let now = received(run);
            if now <= key {
                return Some(run);
            }
            self.order.remove(&(key, run));
            self.order.insert((now, run));
            self.keys.insert(run, now);
        }
    }
}
