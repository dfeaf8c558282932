//! Parked containers: kept after their step, so that one child can go on in each without a new start (P19).
//!
//! Each is cleaned, committed, taken or removed by whoever has its lock, one after the other: so a clean or a commit
//! under way ends before a child starts. How many, and for how long, is bounded; who has to go is committed first,
//! under the name that its children look for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longshore_protocol::SnapshotId;
use longshore_protocol::broker::Broker;
use longshore_protocol::event::Claim;
use longshore_protocol::job::Job;
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::attempts::Handle;
use crate::checkpoint::Cause;
use crate::clock::now_ms;
use crate::context::Context;
use crate::disk::log::{Durable, RecordLog};
use crate::disk::records::{AttemptKey, Entry, Parked};
use crate::engine::{Cleaned, Engine};
use crate::metrics::{COMMITS_AVOIDED, PARKED};
use crate::{snapshot, tidy};

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
    async fn lock(&self) -> OwnedMutexGuard<State> {
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

/// What a child got.
pub(crate) enum Taken {
    /// The container: it is the child's, on disk.
    Container(Box<Parked>),
    /// It could not go on in it, but its files are kept under this name.
    Files(SnapshotId),
    /// There is none.
    Nothing {
        /// Why, if that is known: for the child's log.
        because: Option<String>,
    },
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

    fn get(&self, key: AttemptKey) -> Option<Arc<Place>> {
        self.lock().places.get(&key).cloned()
    }

    fn all(&self) -> Vec<Arc<Place>> {
        self.lock().places.values().cloned().collect()
    }

    fn forget(&self, key: AttemptKey) {
        let mut table = self.lock();
        table.places.remove(&key);
        table.leaving.retain(|leaving| *leaving != key);
        drop(table);
        self.counted();
    }

    /// The oldest, if there are more than that; nobody else is given it.
    fn beyond(&self, max: usize) -> Option<Arc<Place>> {
        self.choose(|staying| staying.len() > max)
    }

    /// The oldest, if it has been here for so long.
    fn expired(&self, after: Duration) -> Option<Arc<Place>> {
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

    fn oldest_since(&self) -> Option<Instant> {
        let table = self.lock();
        let staying = table.places.iter().filter(|(key, _)| !table.leaving.contains(key));
        staying.map(|(_, place)| place.since).min()
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

/// Makes a parked container ready for a child, and room for it among the others.
pub(crate) async fn make_ready<B: Broker, E: Engine>(context: &Context<B, E>, mut state: OwnedMutexGuard<State>) {
    if let State::Here(parked) = &*state {
        let because = match context.engine.clean(&parked.container).await {
            Ok(Cleaned::Ready) => None,
            Ok(Cleaned::Unfit { because }) => Some(because),
            Err(error) => {
                context.noticed(&error);
                Some(error.to_string())
            }
        };
        if let Some(because) = because {
            tracing::info!(container = %parked.container, because, "nobody can go on in a container");
            let _ = leave(context, &mut state, Cause::Unfit, Some(because)).await;
        }
    }
    drop(state);
    make_room(context).await;
}

/// Keeps their number within its bound.
pub(crate) async fn make_room<B: Broker, E: Engine>(context: &Context<B, E>) {
    while let Some(place) = context.parked.beyond(context.config.parked_max()) {
        let _ = leave(context, &mut *place.lock().await, Cause::Evicted, None).await;
    }
}

/// P19: gives a child its parent's container, if it is here and fits; else its parent's files, if they can be had from
/// it. What is under way with it ends first.
pub(crate) async fn take<B: Broker, E: Engine>(
    context: &Context<B, E>,
    child: &Handle,
    job: &Job,
    parent: AttemptKey,
) -> std::io::Result<Taken> {
    let Some(place) = context.parked.get(parent) else { return Ok(Taken::Nothing { because: None }) };
    let mut state = place.lock().await;
    let parked = match &mut *state {
        State::Here(parked) => parked,
        State::Gone { because } => return Ok(Taken::Nothing { because: because.clone() }),
    };
    if let Some(because) = unfit(context, job, parked).await {
        let files = leave(context, &mut state, Cause::Unfit, Some(because.clone())).await;
        return Ok(files.map_or(Taken::Nothing { because: Some(because) }, Taken::Files));
    }
    if parked.committed.is_none() && context.attempts.wanting(parent) > 1 {
        // The coordinator meant one, but sent it again: whoever comes second finds the files.
        keep_files(context, parked, Cause::Shared).await;
    }
    let avoided = parked.committed.is_none();
    let parked = parked.clone();
    // From here on it is never again the parent's, also if this fails.
    *state = State::Gone { because: None };
    context.parked.forget(parent);
    context.attempts.consume(&child.claim, &parked).await.inspect_err(|_| {
        tracing::error!(container = %parked.container, "a container is lost: its record could not be written");
    })?;
    if avoided {
        metrics::counter!(COMMITS_AVOIDED).increment(1);
    }
    Ok(Taken::Container(parked))
}

/// Why a step cannot go on in a container. Limits are changed in place.
async fn unfit<B: Broker, E: Engine>(context: &Context<B, E>, job: &Job, parked: &Parked) -> Option<String> {
    if parked.tenant != job.tenant {
        return Some("it is another tenant's".to_owned());
    }
    if parked.network != job.spec.network {
        return Some("its network is another one".to_owned());
    }
    let fitted = context.engine.fit(&parked.container, &job.spec.resources).await;
    fitted.err().map(|error| {
        context.noticed(&error);
        error.to_string()
    })
}

/// Nobody goes on with what an attempt left: its container, if it is still parked, and what was committed of it under
/// its own name.
pub(crate) async fn release<B: Broker, E: Engine>(context: &Context<B, E>, claim: &Claim) {
    if let Some(place) = context.parked.get(AttemptKey::of(claim)) {
        let mut state = place.lock().await;
        if let State::Here(parked) = std::mem::replace(&mut *state, State::Gone { because: None }) {
            unpark(context, &parked).await;
        }
    }
    let own = SnapshotId::ephemeral(&context.fence(claim));
    if context.snapshots.has(&own) {
        snapshot::remove(context, &own).await;
    }
}

/// Removes those that have been parked for too long, until the worker stops.
pub(crate) async fn expire<B: Broker, E: Engine>(context: Arc<Context<B, E>>) {
    let after = context.config.parked_for;
    loop {
        // Whoever is parked while these go is noticed all the same.
        let changed = context.parked.changed.notified();
        while let Some(place) = context.parked.expired(after) {
            let _ = leave(&context, &mut *place.lock().await, Cause::Evicted, None).await;
        }
        let until = async {
            match context.parked.oldest_since() {
                Some(since) => sleep_until(since + after).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = context.phases.stopping.cancelled() => return,
            () = changed => {}
            () = until => {}
        }
    }
}

/// The worker leaves in order: none stays. What was not committed is, while there is time, what is worth most first;
/// the rest is made again from its lineage (P20).
pub(crate) async fn leave_all<B: Broker, E: Engine>(context: &Context<B, E>, time: Duration) {
    let deadline = Instant::now() + time;
    let mut states = Vec::new();
    for place in context.parked.all() {
        states.push(place.lock().await);
    }
    let worth = |state: &OwnedMutexGuard<State>| match &**state {
        State::Here(parked) => parked.chain.ran_ms,
        State::Gone { .. } => 0,
    };
    states.sort_by_key(|state| std::cmp::Reverse(worth(state)));
    let leaving = states.into_iter().map(|mut state| async move {
        let State::Here(mut parked) = std::mem::replace(&mut *state, State::Gone { because: None }) else { return };
        if !time.is_zero() && timeout_at(deadline, keep_files(context, &mut parked, Cause::Leaving)).await.is_err() {
            tracing::info!(container = %parked.container, "not kept: there was no time");
        }
        unpark(context, &parked).await;
    });
    futures_util::future::join_all(leaving).await;
}

/// Commits it if it was not, and removes it. Answers under which name its files are.
async fn leave<B: Broker, E: Engine>(
    context: &Context<B, E>,
    state: &mut State,
    cause: Cause,
    because: Option<String>,
) -> Option<SnapshotId> {
    let State::Here(mut parked) = std::mem::replace(state, State::Gone { because }) else { return None };
    keep_files(context, &mut parked, cause).await;
    unpark(context, &parked).await;
    parked.committed
}

/// Commits it under the name that its children look for, unless it is committed.
async fn keep_files<B: Broker, E: Engine>(context: &Context<B, E>, parked: &mut Parked, cause: Cause) {
    if parked.committed.is_some() {
        return;
    }
    let id = SnapshotId::ephemeral(&context.fence(&parked.claim));
    match snapshot::commit(context, &parked.container, &id, cause).await {
        Ok(committed) => {
            parked.chain.committed(committed.bytes);
            parked.committed = Some(id.clone());
            context.parked.note(Entry::Committed { claim: parked.claim.clone(), snapshot: id }).await;
        }
        // Its children are told that it is lost, and it is made again (P20).
        Err(error) => tracing::warn!(container = %parked.container, %error, "a parked container could not be kept"),
    }
}

async fn unpark<B: Broker, E: Engine>(context: &Context<B, E>, parked: &Parked) {
    // The record first: a container that is half removed must not be adopted.
    context.parked.note(Entry::Unparked { claim: parked.claim.clone() }).await;
    context.parked.forget(AttemptKey::of(&parked.claim));
    tidy::remove(context, &parked.container).await;
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
