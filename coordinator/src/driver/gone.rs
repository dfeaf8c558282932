//! Looks at job queues for jobs that may be gone (P6).

use longshore_protocol::Shard;
use longshore_protocol::broker::Broker;
use longshore_protocol::topology::{Queue, Topology};
use tokio::sync::mpsc;

use super::inputs::Internal;
use crate::core::effect::JobQueue;

/// A queue to be looked at, and how many jobs had been dispatched to it when the look was ordered.
pub(super) type Look = (JobQueue, u64);

/// Answers looks until it is dropped. A queue that cannot be looked at is left for the next time.
pub(super) async fn look<B: Broker>(
    broker: B,
    topology: Topology,
    shard: Shard,
    mut orders: mpsc::Receiver<Vec<Look>>,
    answers: mpsc::Sender<Internal>,
) {
    while let Some(looks) = orders.recv().await {
        for (queue, dispatched) in looks {
            match broker.waiting(&queue_of(&topology, shard, &queue)).await {
                Ok(messages) => {
                    if answers.send(Internal::Waiting { queue, dispatched, messages }).await.is_err() {
                        return;
                    }
                }
                Err(error) => tracing::debug!(%error, ?queue, "a job queue could not be looked at"),
            }
        }
    }
}

/// The queue that a job is put on.
pub(super) fn queue_of(topology: &Topology, shard: Shard, queue: &JobQueue) -> Queue {
    match queue {
        JobQueue::Pool(pool) => topology.pool_jobs(shard, pool),
        JobQueue::Worker(worker) => topology.worker_jobs(shard, worker),
    }
}
