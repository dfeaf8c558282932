//! The store contract on every implementation: an untested one lies.

#![allow(clippy::unwrap_used)] // a panic is how a test fails

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_coordinator::store::sqlite::SqliteStore;
use longshore_coordinator::store::{Store, StoreError};
use longshore_tests::store_contract::Place;
use tempfile::TempDir;

/// A real clock goes by by itself.
async fn pass(time: Duration) -> Duration {
    let begun = Instant::now();
    tokio::time::sleep(time).await;
    begun.elapsed()
}

/// A directory with one file.
struct Sqlite(TempDir);

impl Sqlite {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("state.db")
    }
}

impl Place for Sqlite {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(SqliteStore::open(&self.file()).await.unwrap())
    }

    async fn crash(&self, store: Arc<dyn Store>) {
        drop(store);
    }

    async fn pass(&self, time: Duration) -> Duration {
        pass(time).await
    }
}

mod sqlite {
    longshore_tests::store_contract!(super::Sqlite::new());
}

#[tokio::test]
async fn a_sqlite_file_that_is_not_there_is_not_made_by_looking() {
    let place = Sqlite::new();
    assert!(matches!(SqliteStore::open_to_read(&place.file()), Err(StoreError::Missing(_))));
    assert!(!place.file().exists());
}
