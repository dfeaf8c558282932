//! Parked containers: kept after their step, so that one child can go on in each without a new start (P19).
//!
//! Each is cleaned, committed, taken or removed by whoever has its lock, one after the other: so a clean or a commit
//! under way ends before a child starts. How many, and for how long, is bounded; who has to go is committed first,
//! under the name that its children look for.

mod table;

use std::sync::Arc;
use std::time::Duration;

use longshore_protocol::SnapshotId;
use longshore_protocol::broker::Broker;
use longshore_protocol::event::Claim;
use longshore_protocol::job::Job;
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, sleep_until, timeout_at};

pub(crate) use self::table::{ParkedContainers, State};
use crate::attempts::Handle;
use crate::checkpoint::Cause;
use crate::context::Context;
use crate::disk::records::{AttemptKey, Entry, Parked};
use crate::engine::{Cleaned, Engine, EngineError, ErrorClass};
use crate::metrics::COMMITS_AVOIDED;
use crate::{snapshot, tidy};

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

/// Why a child can be given nothing now; a later one may.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeError {
    #[error("the worker's disk: {0}")]
    Disk(#[from] std::io::Error),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Makes a parked container ready for a child.
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
}

/// P19: an earlier incarnation began a commit of it, which may be under way: it is committed (again) while nobody has
/// it, and nobody ever will.
pub(crate) async fn leave_in_doubt<B: Broker, E: Engine>(context: &Context<B, E>, mut state: OwnedMutexGuard<State>) {
    let because = "a commit of it was under way when the worker was restarted".to_owned();
    let _ = leave(context, &mut state, Cause::Evicted, Some(because)).await;
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
) -> Result<Taken, TakeError> {
    let Some(place) = context.parked.get(parent) else { return Ok(Taken::Nothing { because: None }) };
    let mut state = place.lock().await;
    let parked = match &mut *state {
        State::Here(parked) => parked,
        State::Gone { because } => return Ok(Taken::Nothing { because: because.clone() }),
    };
    if let Some(because) = unfit(context, job, parked).await? {
        let files = leave(context, &mut state, Cause::Unfit, Some(because.clone())).await;
        return Ok(files.map_or(Taken::Nothing { because: Some(because) }, Taken::Files));
    }
    if parked.committed.is_none() && context.attempts.wanting(parent) > 1 {
        // The coordinator meant one, but sent it again: whoever comes second finds the files.
        if !keep_files(context, parked, Cause::Shared).await {
            let because = "a commit of it may be under way still".to_owned();
            let files = leave(context, &mut state, Cause::Shared, Some(because.clone())).await;
            return Ok(files.map_or(Taken::Nothing { because: Some(because) }, Taken::Files));
        }
    }
    let avoided = parked.committed.is_none();
    let parked = parked.clone();
    // From here on it is never again the parent's, also if this fails.
    *state = State::Gone { because: None };
    context.parked.forget(parent);
    if let Err(error) = context.attempts.consume(&child.claim, &parked).await {
        // Nobody has it now, and it counts as used: the sweep would pass it by.
        tracing::error!(container = %parked.container, %error, "a container is given up: who takes it could not be recorded");
        unpark(context, &parked).await;
        return Err(error.into());
    }
    if avoided {
        metrics::counter!(COMMITS_AVOIDED).increment(1);
    }
    Ok(Taken::Container(parked))
}

/// Why a step cannot go on in a container. Limits are changed in place.
async fn unfit<B: Broker, E: Engine>(
    context: &Context<B, E>,
    job: &Job,
    parked: &Parked,
) -> Result<Option<String>, TakeError> {
    if parked.tenant != job.tenant {
        return Ok(Some("it is another tenant's".to_owned()));
    }
    if parked.network != job.spec.network {
        return Ok(Some("its network is another one".to_owned()));
    }
    match context.retrying("fit", || context.engine.fit(&parked.container, &job.spec.resources)).await {
        Ok(()) => Ok(None),
        // The Engine's bad day is not the container's: it stays for the next try.
        Err(error) if error.class() == ErrorClass::Retry => Err(error.into()),
        Err(error) => Ok(Some(error.to_string())),
    }
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
        let changed = context.parked.changed();
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
            biased;
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
        if !time.is_zero() {
            let keeping = keep_files(context, &mut parked, Cause::Leaving);
            if timeout_at(deadline, keeping).await.is_err() {
                tracing::info!(container = %parked.container, "not kept: there was no time");
            }
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

/// Commits it under the name that its children look for, unless it is committed. `false` if somebody's commit of it may
/// be under way still: then nobody may go on in it.
async fn keep_files<B: Broker, E: Engine>(context: &Context<B, E>, parked: &mut Parked, cause: Cause) -> bool {
    if parked.committed.is_some() {
        return true;
    }
    let claim = || parked.claim.clone();
    let id = SnapshotId::ephemeral(&context.fence(&parked.claim));
    if let Err(error) = context.parked.begin_commit(claim()).await {
        tracing::error!(%error, "a parked container is not kept: that could not be recorded");
        return true;
    }
    match snapshot::commit(context, &parked.container, &id, cause).await {
        Ok(kept) => {
            if !kept.in_doubt {
                context.parked.note(Entry::Committed { claim: claim(), snapshot: id.clone() }).await;
            }
            parked.chain.committed(kept.bytes);
            parked.committed = Some(id);
            !kept.in_doubt
        }
        Err(error) => {
            // Its children are told that it is lost, and it is made again (P20).
            tracing::warn!(container = %parked.container, %error, "a parked container could not be kept");
            false
        }
    }
}

async fn unpark<B: Broker, E: Engine>(context: &Context<B, E>, parked: &Parked) {
    // The record first: a container that is half removed must not be adopted.
    context.parked.note(Entry::Unparked { claim: parked.claim.clone() }).await;
    context.parked.forget(AttemptKey::of(&parked.claim));
    tidy::remove(context, &parked.container).await;
}
