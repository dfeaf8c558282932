//! What whoever goes on with a run of a process that has ended must know of it.

use std::path::Path;

use longshore_protocol::{RunId, WorkerId};

use crate::core::entry::Entry;
use crate::pipeline::Pipeline;
use crate::store::sqlite::SqliteStore;
use crate::store::{Store, StoreError};

/// A run that was carried out by a process of its own.
#[derive(Debug)]
pub struct Past {
    /// As it was submitted.
    pub pipeline: Pipeline,
    /// The highest start of its worker (P10).
    pub last_start: u64,
}

/// Reads it from the run's own store. `None`: its process ended before it had taken the run.
pub async fn past(store_file: &Path, run: RunId, worker: &WorkerId) -> Result<Option<Past>, StoreError> {
    let store = SqliteStore::open_to_read(store_file)?;
    let entries = store.entries_to_recall(run).await;
    store.close().await;
    let (mut pipeline, mut last_start) = (None, 0);
    for (_, entry) in entries? {
        match entry {
            Entry::Submitted { pipeline: submitted, .. } => pipeline = Some(*submitted),
            Entry::Joined { worker: joined, incarnation, .. } if joined == *worker => {
                last_start = last_start.max(incarnation.start);
            }
            _ => {}
        }
    }
    Ok(pipeline.map(|pipeline| Past { pipeline, last_start }))
}
