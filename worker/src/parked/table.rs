//! Which containers are parked, and which of them have to go.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longshore_protocol::event::Claim;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::time::Instant;

use crate::clock::now_ms;
use crate::disk::log::{Durable, RecordLog};
use crate::disk::records::{AttemptKey, Entry, Parked};
use crate::metrics::PARKED;

/// What there is of a parked container.
#[derive(Debug)]
pub(crate) enum State {
    /// It can be taken.
    Here(Box<Parked>),
    /// A child took it, or it was removed.
    Gone {
        /// Why nobody can go on in it, if that is of interest: for the child's log.
        because: Option<String>,
    },
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Place {
    claim: Claim,
    since: Instant,
    state: Arc<tokio::sync::Mutex<State>>,
}

impl Place {
    /// Waits for what is under way with it.
    pub(super) async fn lock(&self) -> OwnedMutexGuard<State> {
        Arc::clone(&self.state).lock_owned().await
    }
}

#[derive(Default)]
struct Table {
    places: BTreeMap<AttemptKey, Arc<Place>>,
    /// Those that have to go: chosen once.
    leaving: Vec<AttemptKey>,
}

/// All of them.
pub(crate) struct ParkedContainers {
    log: RecordLog,
    table: Mutex<Table>,
    /// One more, or one less.
    changed: Notify,
}

impl ParkedContainers {
    pub(crate) fn new(log: RecordLog) -> Self {
        Self { log, table: Mutex::default(), changed: Notify::new() }
    }

    /// Parks a container; its record is the caller's. Nobody takes it before the lock is dropped.
    pub(crate) fn park(&self, parked: Parked) -> OwnedMutexGuard<State> {
        let claim = parked.claim.clone();
        let now = Instant::now();
        let age = Duration::from_millis(now_ms().saturating_sub(parked.since_ms));
        let state = Arc::new(tokio::sync::Mutex::new(State::Here(Box::new(parked))));
        let locked = Arc::clone(&state).try_lock_owned().expect("INVARIANT: nobody else has it yet");
        let key = AttemptKey::of(&claim);
        let place = Place { claim, since: now.checked_sub(age).unwrap_or(now), state };
        self.lock().places.insert(key, Arc::new(place));
        self.counted();
        locked
    }

    /// P7: whose containers are parked.
    pub(crate) fn claims(&self) -> Vec<Claim> {
        self.lock().places.values().map(|place| place.claim.clone()).collect()
    }

    /// Whether an attempt's is: then it was carried out here.
    pub(crate) fn has(&self, key: AttemptKey) -> bool {
        self.lock().places.contains_key(&key)
    }

    /// That of an attempt.
    pub(super) fn get(&self, key: AttemptKey) -> Option<Arc<Place>> {
        self.lock().places.get(&key).cloned()
    }

    /// All of them, those that go included.
    pub(super) fn all(&self) -> Vec<Arc<Place>> {
        self.lock().places.values().cloned().collect()
    }

    /// It is nobody's any more.
    pub(super) fn forget(&self, key: AttemptKey) {
        let mut table = self.lock();
        table.places.remove(&key);
        table.leaving.retain(|leaving| *leaving != key);
        drop(table);
        self.counted();
    }

    /// The oldest, if there are more than that; nobody else is given it.
    pub(super) fn beyond(&self, max: usize) -> Option<Arc<Place>> {
        self.choose(|staying| staying.len() > max)
    }

    /// The oldest, if it has been here for so long.
    pub(super) fn expired(&self, after: Duration) -> Option<Arc<Place>> {
        self.choose(|staying| staying.first().is_some_and(|oldest| oldest.since.elapsed() >= after))
    }

    fn choose(&self, must_leave: impl Fn(&[&Arc<Place>]) -> bool) -> Option<Arc<Place>> {
        let mut table = self.lock();
        let Table { places, leaving } = &*table;
        let mut staying: Vec<_> = places.iter().filter(|(key, _)| !leaving.contains(key)).map(|(_, p)| p).collect();
        staying.sort_by_key(|place| place.since);
        let chosen = must_leave(&staying).then(|| Arc::clone(staying[0]))?;
        table.leaving.push(AttemptKey::of(&chosen.claim));
        Some(chosen)
    }

    /// Since when the oldest of those that stay is here.
    pub(super) fn oldest_since(&self) -> Option<Instant> {
        let table = self.lock();
        let staying = table.places.iter().filter(|(key, _)| !table.leaving.contains(key));
        staying.map(|(_, place)| place.since).min()
    }

    /// One more, or one less, from now on.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// P19: the record that a commit begins.
    pub(super) async fn begin_commit(&self, claim: Claim) -> io::Result<()> {
        self.log.add(Entry::Committing { claim }, Durable::Process).await
    }

    /// Writes what a restart should know.
    pub(crate) async fn note(&self, entry: Entry) {
        if let Err(error) = self.log.add(entry, Durable::Process).await {
            tracing::error!(%error, "the record of a parked container could not be written");
        }
    }

    fn counted(&self) {
        metrics::gauge!(PARKED).set(self.lock().places.len() as f64);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::records::tests::parked_of;

    fn table() -> (tempfile::TempDir, ParkedContainers) {
        let dir = tempfile::tempdir().unwrap();
        let log = crate::disk::Disk::open(dir.path()).unwrap().take_over().unwrap();
        (dir, ParkedContainers::new(log))
    }

    fn chosen(place: Option<Arc<Place>>) -> Option<Claim> {
        place.map(|place| place.claim.clone())
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_has_to_go_first_and_each_is_chosen_once() {
        let (_dir, table) = table();
        let names = ["b", "a", "c"].map(|step| Parked { since_ms: now_ms(), ..parked_of(step) });
        for parked in &names {
            drop(table.park(parked.clone()));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(chosen(table.beyond(3)), None);
        assert_eq!(chosen(table.beyond(1)), Some(names[0].claim.clone()));
        assert_eq!(chosen(table.beyond(1)), Some(names[1].claim.clone()));
        assert_eq!(chosen(table.beyond(1)), None);
        assert_eq!(chosen(table.expired(Duration::from_secs(2))), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(chosen(table.expired(Duration::from_secs(2))), Some(names[2].claim.clone()));
        assert_eq!(table.claims().len(), 3, "those that go are here until they are gone");
    }

    #[tokio::test]
    async fn p19_nobody_has_it_while_something_is_under_way_with_it() {
        let (_dir, table) = table();
        let parked = parked_of("a");
        let cleaning = table.park(parked.clone());
        let place = table.get(AttemptKey::of(&parked.claim)).unwrap();
        assert!(place.state.try_lock().is_err());
        drop(cleaning);
        assert!(matches!(&*place.lock().await, State::Here(_)));
    }
}
