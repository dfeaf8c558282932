//! Who received least, of some runs or tenants.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};

/// Ordered by what each had received when it was last looked at. That only grows, but for what is given back: what is
/// received elsewhere costs nothing here.
#[derive(Debug)]
pub(super) struct Order<K, V> {
    order: BTreeSet<(V, K)>,
    /// INVARIANT: the same keys as in the order.
    values: BTreeMap<K, V>,
}

impl<K, V> Default for Order<K, V> {
    fn default() -> Self {
        Self { order: BTreeSet::new(), values: BTreeMap::new() }
    }
}

impl<K: Ord + Clone, V: Ord + Copy + Default> Order<K, V> {
    /// A second time: nothing.
    pub(super) fn insert(&mut self, key: &K) {
        // What it received is looked up when it is its turn.
        if let Entry::Vacant(new) = self.values.entry(key.clone()) {
            new.insert(V::default());
            self.order.insert((V::default(), key.clone()));
        }
    }

    pub(super) fn remove(&mut self, key: &K) {
        if let Some(value) = self.values.remove(key) {
            self.order.remove(&(value, key.clone()));
        }
    }

    /// Something was given back to it: it is looked at anew.
    pub(super) fn look_again(&mut self, key: &K) {
        if let Some(value) = self.values.get_mut(key) {
            self.order.remove(&(*value, key.clone()));
            *value = V::default();
            self.order.insert((V::default(), key.clone()));
        }
    }

    /// Whoever received least. One that received something since it was last looked at is put where it belongs, once
    /// for each time that it did.
    pub(super) fn first(&mut self, received: impl Fn(&K) -> V) -> Option<K> {
        loop {
            let (value, key) = self.order.first()?;
            let now = received(key);
            if now <= *value {
                return Some(key.clone());
            }
            let (_, key) = self.order.pop_first()?;
            self.values.insert(key.clone(), now);
            self.order.insert((now, key));
        }
    }
}
