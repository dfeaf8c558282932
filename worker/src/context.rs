//! What every task of a worker shares.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use longshore_protocol::broker::Broker;
use longshore_protocol::event::Claim;
use longshore_protocol::heartbeat::SNAPSHOTS_MAX;
use longshore_protocol::process::Tasks;
use longshore_protocol::process::watch;
use longshore_protocol::topology::Topology;
use longshore_protocol::{EngineId, Fence, Incarnation, SnapshotId, WorkerId};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::attempts::Attempts;
use crate::blobs::Blobs;
use crate::config::Config;
use crate::disk::Disk;
use crate::disk::log::RecordLog;
use crate::engine::{Engine, EngineError, Way};
use crate::error::WorkerError;
use crate::gates::Gates;
use crate::pace::Pace;
use crate::parked::ParkedContainers;
use crate::report::{Reporter, Reports};
use crate::spools::Spools;
use crate::tidy::Tidying;
use crate::{checkpoint, report};

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
    pub(crate) parked: ParkedContainers,
    pub(crate) tidying: Tidying,
    pub(crate) gates: Gates,
    pub(crate) pace: Pace,
    /// How long this worker's commits take on average.
    commits: Mutex<Option<Duration>>,
    /// Whether the Engine answers.
    pub(crate) reachable: watch::Sender<bool>,
    pub(crate) snapshots: Snapshots,
    /// Tasks that carry attempts out.
    pub(crate) jobs: Tasks,
    /// Tasks that send events and output: they end when the worker has drained.
    pub(crate) pumps: Tasks,
    pub(crate) phases: Lifetime,
    /// Once cancelled, nothing that is stopped is given its grace any more.
    pub(crate) killing: CancellationToken,
    fatal: Mutex<Option<WorkerError>>,
}

/// What ends when. Each includes the ones before it.
#[derive(Debug, Default)]
pub(crate) struct Lifetime {
    /// No more claims; what runs may go on for a while.
    pub(crate) stopping: CancellationToken,
    /// What runs is handed back.
    pub(crate) hurried: CancellationToken,
    /// No more news: what is queued is sent, then its senders end.
    pub(crate) draining: CancellationToken,
    /// Everything ends where it stands.
    pub(crate) stopped: CancellationToken,
}

/// Who a worker is, at this start (P10).
#[derive(Clone, Debug)]
pub(crate) struct Who {
    pub(crate) id: WorkerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) engine_id: EngineId,
}

impl<B: Broker, E: Engine> Context<B, E> {
    /// A worker's, and what it will report.
    pub(crate) fn new(
        config: Config,
        who: Who,
        broker: B,
        engine: E,
        disk: Arc<Disk>,
        log: &RecordLog,
    ) -> Result<(Self, Reports), WorkerError> {
        let Who { id, incarnation, engine_id } = who;
        let (reporter, reports) = report::queue(config.slots, &log.records());
        let context = Self {
            topology: Topology::new(config.prefix.clone(), config.lease),
            attempts: Attempts::new(Arc::clone(&disk), log.clone(), Spools::new(disk.dir(), config.spools_bytes_max)),
            parked: ParkedContainers::new(log.clone()),
            slots: Arc::new(Semaphore::new(config.slots as usize)),
            tidying: Tidying::new(config.slots),
            gates: Gates::default(),
            pace: Pace::default(),
            commits: Mutex::default(),
            reachable: watch::Sender::new(true),
            snapshots: Snapshots::default(),
            jobs: Tasks::new(),
            pumps: Tasks::new(),
            phases: Lifetime::default(),
            killing: CancellationToken::new(),
            fatal: Mutex::default(),
            blobs: Blobs::new(config.blobs.clone())?,
            config,
            id,
            incarnation,
            engine_id,
            broker,
            engine,
            disk,
            reporter,
        };
        Ok((context, reports))
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
        let running = u32::try_from(self.attempts.running()).unwrap_or(u32::MAX);
        self.config.slots.saturating_sub(running)
    }

    /// Whether commands here are run by a supervisor: only then can others go on in their containers. An Engine that
    /// cannot say so is not relied on.
    pub(crate) async fn supervised(&self) -> bool {
        match self.engine.way().await {
            Ok(way) => way == Way::Supervised,
            Err(error) => {
                self.noticed(&error);
                false
            }
        }
    }

    /// How long this worker's commits take on average.
    pub(crate) fn commit_average(&self) -> Option<Duration> {
        *self.commits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more took so long.
    pub(crate) fn commit_took(&self, took: Duration) {
        let mut average = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        *average = Some(checkpoint::averaged(*average, took));
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
        self.phases.hurried.cancel();
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

    /// Whether it is here, as far as is known.
    pub(crate) fn has(&self, snapshot: &SnapshotId) -> bool {
        let list = self.lock();
        list.listed.contains(snapshot) || list.since.contains(snapshot)
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
