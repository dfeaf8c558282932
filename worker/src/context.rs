//! What every task of a worker shares.

use std::sync::{Arc, Mutex, PoisonError};

use longshore_protocol::broker::Broker;
use longshore_protocol::event::Claim;
use longshore_protocol::heartbeat::SNAPSHOTS_MAX;
use longshore_protocol::topology::Topology;
use longshore_protocol::{EngineId, Fence, Incarnation, SnapshotId, WorkerId};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attempts::Attempts;
use crate::blobs::Blobs;
use crate::config::Config;
use crate::disk::Disk;
use crate::engine::{Engine, EngineError};
use crate::error::WorkerError;
use crate::report::Reporter;

/// What every task of a worker shares.
pub(crate) struct Context<B, E> {
    pub(crate) config: Config,
    pub(crate) id: WorkerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) engine_id: EngineId,
    pub(crate) broker: B,
    pub(crate) engine: E,
    pub(crate) topology: Topology,
    pub(crate) disk: Arc<Disk>,
    pub(crate) attempts: Attempts,
    pub(crate) reporter: Reporter,
    pub(crate) blobs: Blobs,
    /// One permit a slot. Taken before a job is, moved into its task.
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) gates: Gates,
    /// Whether the Engine answers.
    pub(crate) reachable: watch::Sender<bool>,
    pub(crate) snapshots: Snapshots,
    /// Tasks that carry attempts out.
    pub(crate) jobs: TaskTracker,
    /// Tasks that send events and output: they end when the worker has drained.
    pub(crate) pumps: TaskTracker,
    pub(crate) phases: Lifetime,
    fatal: Mutex<Option<WorkerError>>,
}

/// What ends when. Each includes the ones before it.
#[derive(Debug, Default)]
pub(crate) struct Lifetime {
    /// No more claims; what runs is stopped.
    pub(crate) stopping: CancellationToken,
    /// No more news: what is queued is sent, then its senders end.
    pub(crate) draining: CancellationToken,
    /// Everything ends where it stands.
    pub(crate) stopped: CancellationToken,
}

/// How many calls of a kind go to the Engine at once, apart from the slots: more makes all of them slower
/// (measured on the reference machine). Pulls are not here: whether one is needed, only the Engine's side knows.
#[derive(Debug)]
pub(crate) struct Gates {
    /// Create and start: best at 4 in parallel.
    pub(crate) start: Semaphore,
    /// Commits: best 2 at once, 32 a second.
    pub(crate) commit: Semaphore,
    /// Batches of output on their way: each holds some MiB at most while it is encoded.
    pub(crate) output: Semaphore,
}

impl Default for Gates {
    fn default() -> Self {
        Self { start: Semaphore::new(4), commit: Semaphore::new(2), output: Semaphore::new(4) }
    }
}

/// What a context is made of, besides what it makes itself.
pub(crate) struct Parts<B, E> {
    pub(crate) config: Config,
    pub(crate) id: WorkerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) engine_id: EngineId,
    pub(crate) broker: B,
    pub(crate) engine: E,
    pub(crate) disk: Arc<Disk>,
    pub(crate) reporter: Reporter,
    pub(crate) blobs: Blobs,
}

impl<B: Broker, E: Engine> Context<B, E> {
    pub(crate) fn new(parts: Parts<B, E>) -> Self {
        let Parts { config, id, incarnation, engine_id, broker, engine, disk, reporter, blobs } = parts;
        Self {
            topology: Topology::new(config.prefix.clone(), config.lease),
            attempts: Attempts::new(Arc::clone(&disk)),
            slots: Arc::new(Semaphore::new(config.slots as usize)),
            gates: Gates::default(),
            reachable: watch::Sender::new(true),
            snapshots: Snapshots::default(),
            jobs: TaskTracker::new(),
            pumps: TaskTracker::new(),
            phases: Lifetime::default(),
            fatal: Mutex::new(None),
            config,
            id,
            incarnation,
            engine_id,
            broker,
            engine,
            disk,
            reporter,
            blobs,
        }
    }

    /// What this worker signs with (P12).
    pub(crate) fn fence(&self, claim: &Claim) -> Fence {
        Fence { execution: claim.execution, attempt: claim.attempt, owner: self.id.clone() }
    }

    /// Slots without a step; none while the Engine does not answer.
    pub(crate) fn slots_free(&self) -> u32 {
        if !*self.reachable.borrow() || self.phases.stopping.is_cancelled() {
            return 0;
        }
        let running = u32::try_from(self.attempts.running().len()).unwrap_or(u32::MAX);
        self.config.slots.saturating_sub(running)
    }

    /// An error of the Engine's was seen: one that does not answer stops the claiming until it is back.
    pub(crate) fn noticed(&self, error: &EngineError) {
        if matches!(error, EngineError::Unreachable { .. }) {
            self.reachable.send_if_modified(|reachable| std::mem::replace(reachable, false));
        }
    }

    /// Waits until the Engine answers.
    pub(crate) async fn engine_back(&self) {
        // The sender is in `self`, so this cannot fail while somebody waits.
        let _ = self.reachable.subscribe().wait_for(|reachable| *reachable).await;
    }

    /// The worker must stop, and why. The first reason counts.
    pub(crate) fn fail(&self, error: WorkerError) {
        self.fatal.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.phases.stopping.cancel();
    }

    /// Why it had to stop, if it had to.
    pub(crate) fn take_failure(&self) -> Option<WorkerError> {
        self.fatal.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The committed snapshots on the Engine, as this worker last saw them: heartbeats never wait for the Engine.
#[derive(Debug, Default)]
pub(crate) struct Snapshots(Mutex<SnapshotList>);

#[derive(Debug, Default)]
struct SnapshotList {
    listed: Vec<SnapshotId>,
    /// Committed since the listing under way began; it may have missed them.
    since: Vec<SnapshotId>,
}

impl Snapshots {
    /// A listing begins.
    pub(crate) fn listing(&self) {
        self.lock().since.clear();
    }

    /// A listing ended with these, newest first. What was committed meanwhile stays: were it missing from one
    /// heartbeat, a child of it would be given up.
    pub(crate) fn listed(&self, mut found: Vec<SnapshotId>) {
        let mut list = self.lock();
        for snapshot in std::mem::take(&mut list.since) {
            if !found.contains(&snapshot) {
                found.insert(0, snapshot);
            }
        }
        found.truncate(SNAPSHOTS_MAX);
        list.listed = found;
    }

    /// One was committed.
    pub(crate) fn add(&self, snapshot: &SnapshotId) {
        let mut list = self.lock();
        list.since.push(snapshot.clone());
        list.listed.retain(|known| known != snapshot);
        list.listed.insert(0, snapshot.clone());
        list.listed.truncate(SNAPSHOTS_MAX);
    }

    /// One was removed.
    pub(crate) fn remove(&self, snapshot: &SnapshotId) {
        let mut list = self.lock();
        list.since.retain(|known| known != snapshot);
        list.listed.retain(|known| known != snapshot);
    }

    /// Newest first.
    pub(crate) fn all(&self) -> Vec<SnapshotId> {
        self.lock().listed.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, SnapshotList> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p7_a_snapshot_committed_during_a_listing_is_not_lost() {
        let snapshots = Snapshots::default();
        let id = |name: &str| SnapshotId(format!("longshore/w:{name}"));
        snapshots.listing();
        snapshots.add(&id("new"));
        snapshots.listed(vec![id("old")]);
        assert_eq!(snapshots.all(), [id("new"), id("old")]);
        snapshots.remove(&id("old"));
        snapshots.listing();
        snapshots.listed(vec![id("new")]);
        assert_eq!(snapshots.all(), [id("new")]);
    }
}
