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
    let read = tokio::try_join!(store.entries_of(run), store.journal_of_workers());
    store.close().await;
    let (of_run, of_workers) = read?;
    let pipeline = of_run.into_iter().find_map(|entry| match entry {
        Entry::Submitted { pipeline, .. } => Some(*pipeline),
        _ => None,
    });
    // Also those after the run's last word: a sitting in which nothing was carried out had a start all the same.
    let starts = of_workers.into_iter().filter_map(|row| match row.entry {
        Entry::Joined { worker: joined, incarnation, .. } if joined == *worker => Some(incarnation.start),
        _ => None,
    });
    let last_start = starts.max().unwrap_or(0);
    Ok(pipeline.map(|pipeline| Past { pipeline, last_start }))
}
