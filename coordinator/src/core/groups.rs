//! Concurrency groups: so many steps of a tenant's group at a time.
//!
//! A step holds its place from when it is its turn until its attempt is over (P11): by its owner's `finished` or the
//! end of its lease, never before. Who waits goes in the order of priority, then of age, and nobody is overtaken: the
//! first that may not begin yet holds up those behind it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use longshore_protocol::RunId;

use super::input::Millis;

/// A tenant's group.
pub(super) type GroupName = (Arc<str>, String);

/// Every group that somebody holds or waits for.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// INVARIANT: none is empty.
    groups: BTreeMap<GroupName, Group>,
    /// Those in which it may be somebody's turn.
    touched: BTreeSet<GroupName>,
}

#[derive(Debug, Default)]
struct Group {
    holders: BTreeSet<(RunId, usize)>,
    waiting: BTreeMap<(Reverse<i32>, Millis, RunId, usize), u32>,
}

/// A step that wants a place.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) step: (RunId, usize),
    pub(super) priority: i32,
    /// Since when it could begin.
    pub(super) since: Millis,
    /// How many may be under way with it.
    pub(super) max: u32,
}

impl Candidate {
    fn key(&self) -> (Reverse<i32>, Millis, RunId, usize) {
        (Reverse(self.priority), self.since, self.step.0, self.step.1)
    }
}

impl Groups {
    pub(super) fn holds(&self, name: &GroupName, step: (RunId, usize)) -> bool {
        self.groups.get(name).is_some_and(|group| group.holders.contains(&step))
    }

    /// Who holds the places of a group.
    pub(super) fn holders(&self, name: &GroupName) -> impl Iterator<Item = (RunId, usize)> {
        self.groups.get(name).into_iter().flat_map(|group| group.holders.iter().copied())
    }

    /// How many stand before it in line; `None` if it does not.
    pub(super) fn before(&self, name: &GroupName, candidate: &Candidate) -> Option<usize> {
        let waiting = &self.groups.get(name)?.waiting;
        waiting.contains_key(&candidate.key()).then(|| waiting.range(..candidate.key()).count())
    }

    /// It stands in line from now on.
    pub(super) fn wait(&mut self, name: GroupName, candidate: &Candidate) {
        let group = self.groups.entry(name.clone()).or_default();
        group.waiting.insert(candidate.key(), candidate.max);
        self.touched.insert(name);
    }

    /// It was dispatched, as the journal says: it has its place.
    pub(super) fn hold(&mut self, name: GroupName, candidate: &Candidate) {
        let group = self.groups.entry(name).or_default();
        group.waiting.remove(&candidate.key());
        group.holders.insert(candidate.step);
    }

    /// It neither holds nor waits any more.
    pub(super) fn leave(&mut self, name: &GroupName, candidate: &Candidate) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let left = group.holders.remove(&candidate.step) | group.waiting.remove(&candidate.key()).is_some();
        if group.holders.is_empty() && group.waiting.is_empty() {
            self.groups.remove(name);
        } else if left {
            self.touched.insert(name.clone());
        }
    }

    /// Whose turn it is: they hold their places from now on.
    pub(super) fn admit(&mut self) -> Vec<(RunId, usize)> {
        let mut admitted = Vec::new();
        for name in std::mem::take(&mut self.touched) {
            let Some(group) = self.groups.get_mut(&name) else { continue };
            while let Some(first) = group.waiting.first_entry() {
                if group.holders.len() >= *first.get() as usize {
                    break;
                }
                let ((_, _, run, step), _) = first.remove_entry();
                group.holders.insert((run, step));
                admitted.push((run, step));
            }
        }
        admitted
    }
}
