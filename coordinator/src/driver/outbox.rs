//! Publishes what transactions have decided (P3): in order, each message until it is confirmed.
//!
//! Rows are read from the store, so what a crash left is carried out first, and nothing is held in
//! memory however long the broker is away. The one writer deletes them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use longshore_protocol::breach::{self, Breach};
use longshore_protocol::broker::{Broker, Outgoing, PublishError};
use longshore_protocol::process::watch;
use longshore_protocol::topology::Topology;
use longshore_protocol::{PoolName, Shard};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::gone::queue_of;
use super::inputs::Internal;
use crate::core::effect::JobQueue;
use crate::store::batch::{OutboxAbout, OutboxRow};
use crate::store::epoch::LAPSE_MS;
use crate::store::{Store, StoreError};

/// Published without waiting between: enough to hide the confirm's round trip, few enough that
/// what is sent again after a lost connection is soon sent.
const BATCH: u32 = 256;

/// After a publish that failed, doubling up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(100);

/// As the workers' reconnecting (P8).
const BACKOFF_MAX: Duration = Duration::from_secs(3);

/// Without a renewal for so long another may lead.
const LAPSE: Duration = Duration::from_millis(LAPSE_MS);

/// The newest rows of the outbox. They are handed over in memory, because between a step's end and the next one's
/// job nobody should wait for them to be read back; whoever has missed some reads the store.
#[derive(Clone, Debug)]
pub(super) struct Newest {
    /// The row before the first of them.
    pub(super) after: i64,
    /// The last one, though `rows` be empty because they are too many.
    pub(super) last: i64,
    pub(super) rows: Arc<[OutboxRow]>,
}

impl Newest {
    /// Of a reign that begins: what is there stands in the store.
    pub(super) fn recovered(last: i64) -> Self {
        Self { after: last, last, rows: Arc::new([]) }
    }

    /// What a transaction has put behind the row before.
    pub(super) fn next(&self, rows: Vec<OutboxRow>) -> Option<Self> {
        let last = rows.last()?.id;
        let rows: Arc<[OutboxRow]> = if rows.len() <= BATCH as usize { rows.into() } else { Arc::new([]) };
        Some(Self { after: self.last, last, rows })
    }
}

/// The publisher of one reign.
pub(super) struct Publisher<B: Broker> {
    pub(super) broker: B,
    pub(super) topology: Topology,
    pub(super) shard: Shard,
    pub(super) store: Arc<dyn Store>,
    pub(super) newest: watch::Receiver<Newest>,
    /// When the last transaction was begun that renewed the epoch; `None` before the reign's first.
    pub(super) renewed: watch::Receiver<Option<Instant>>,
    pub(super) done: mpsc::Sender<Internal>,
    pub(super) declared: BTreeSet<PoolName>,
}

#[derive(Debug, thiserror::Error)]
enum OutboxError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Publish(#[from] PublishError),
}

impl<B: Broker> Publisher<B> {
    /// Publishes until it is dropped, or nobody listens any more.
    pub(super) async fn run(mut self) {
        let mut last = if breach::is(Breach::NoOutbox) { self.newest.borrow().last } else { 0 };
        let mut wait = BACKOFF;
        loop {
            // Marked as seen before the look: a row that comes in between wakes us again.
            let newest = self.newest.borrow_and_update().clone();
            match self.publish_after(last, newest).await {
                Ok(Some(published)) => {
                    last = published;
                    wait = BACKOFF;
                }
                Ok(None) => {
                    if self.newest.changed().await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the outbox waits");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(BACKOFF_MAX);
                }
            }
        }
    }

    /// The last row's id that was carried out; `None` if there is nothing to do.
    async fn publish_after(&mut self, last: i64, newest: Newest) -> Result<Option<i64>, OutboxError> {
        let rows = if newest.last == last {
            return Ok(None);
        } else if newest.after == last && !newest.rows.is_empty() {
            newest.rows.to_vec()
        } else {
            self.store.outbox_after(last, BATCH).await?
        };
        let Some(published) = rows.last().map(|row| row.id) else { return Ok(None) };
        self.declare_pools(&rows).await?;
        self.leads().await;
        match self.broker.publish(messages(&rows)).await {
            Ok(()) => self.report(rows.into_iter().map(confirmed).collect()).await,
            Err(PublishError::Returned { .. }) if breach::is(Breach::ReturnedIsPublished) => {
                self.report(rows.into_iter().map(confirmed).collect()).await;
            }
            Err(PublishError::Returned { .. }) => {
                // A pool's queue that somebody deleted is made again, or its jobs would be returned for ever.
                self.declared.clear();
                self.declare_pools(&rows).await?;
                self.publish_one_by_one(rows).await?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(Some(published))
    }

    /// P21: only the active one publishes. One that was frozen finds what it had in hand when it is woken, and learns
    /// from its next transaction that another leads: until then it commands nothing.
    async fn leads(&mut self) {
        while self.renewed.borrow_and_update().is_none_or(|renewed| renewed.elapsed() >= LAPSE) {
            if self.renewed.changed().await.is_err() {
                // The reign is over: this task is about to be ended.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Some of them were returned: each for itself says which. What arrives twice is harmless (P3).
    async fn publish_one_by_one(&self, rows: Vec<OutboxRow>) -> Result<(), OutboxError> {
        for row in rows {
            match self.broker.publish(vec![message(&row)]).await {
                Ok(()) => self.report(vec![confirmed(row)]).await,
                Err(PublishError::Returned { address, .. }) => {
                    tracing::info!(?address, "nobody has this queue");
                    self.report(vec![Internal::Returned { id: row.id, about: row.about }]).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// A pool without workers yet must still hold its jobs. A worker's queue is the worker's to make.
    async fn declare_pools(&mut self, rows: &[OutboxRow]) -> Result<(), OutboxError> {
        for row in rows {
            if let OutboxAbout::Job { queue: JobQueue::Pool(pool), .. } = &row.about
                && !self.declared.contains(pool)
            {
                let queue = queue_of(&self.topology, self.shard, &JobQueue::Pool(pool.clone()));
                self.broker.declare(&[queue]).await.map_err(PublishError::from)?;
                self.declared.insert(pool.clone());
            }
        }
        Ok(())
    }

    async fn report(&self, done: Vec<Internal>) {
        for one in done {
            // Nobody listens once the reign is over: the rows stay, and the next reign carries them out.
            drop(self.done.send(one).await);
        }
    }
}

/// What a worker is told shares bodies: it is read by one who takes all of it. Jobs are claimed one by one (P4).
fn messages(rows: &[OutboxRow]) -> Vec<Outgoing> {
    let mut messages = Vec::new();
    for row in rows {
        match row.about {
            OutboxAbout::Control => message(row).join(&mut messages),
            OutboxAbout::Job { .. } => messages.push(message(row)),
        }
    }
    messages
}

fn message(row: &OutboxRow) -> Outgoing {
    Outgoing::new(row.to.clone(), row.body.clone())
}

fn confirmed(row: OutboxRow) -> Internal {
    Internal::Confirmed { id: row.id, about: row.about }
}
