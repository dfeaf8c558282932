//! The store contract on every implementation: an untested one lies.

#![allow(clippy::unwrap_used)] // a panic is how a test fails

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_coordinator::store::postgres::{PostgresAddress, PostgresStore};
use longshore_coordinator::store::sqlite::SqliteStore;
use longshore_coordinator::store::{Store, StoreError};
use longshore_tests::postgres::Database;
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

/// A database of its own.
struct Postgres(Database);

impl Postgres {
    fn address(&self) -> PostgresAddress {
        self.0.address().parse().unwrap()
    }
}

impl Place for Postgres {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(PostgresStore::open(&self.address()).await.unwrap())
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

mod postgres {
    longshore_tests::store_contract!(super::Postgres(super::Database::create().await));
}

/// Its holder is alive and its transaction takes long, or it is frozen in one: whoever stands by waits for neither.
#[tokio::test]
async fn p21_a_locked_epoch_is_its_holders() {
    let place = Postgres(Database::create().await);
    let store = place.open().await;
    let mut holder = place.0.connect().await;
    sqlx::raw_sql("BEGIN; UPDATE epoch SET holder = 'frozen'").execute(&mut holder).await.unwrap();
    let begun = Instant::now();
    assert_eq!(store.take_epoch("heir").await.unwrap(), None);
    assert!(begun.elapsed() < Duration::from_secs(30), "it waited for {:?}", begun.elapsed());
    drop(holder);
    let taken = async {
        while store.take_epoch("heir").await.unwrap().is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), taken).await.expect("the lock went with its connection");
}

/// Promise 8.
#[tokio::test]
async fn no_password_is_shown() {
    let place = Postgres(Database::create().await);
    let wrong = place.0.address().replace(":longshore@", ":s3cret@");
    let address: PostgresAddress = wrong.parse().unwrap();
    let error = PostgresStore::open(&address).await.unwrap_err();
    let shown = format!("{address} {address:?} {error} {error:?}");
    assert!(shown.contains("postgres://127.0.0.1:") && !shown.contains("s3cret"), "{shown}");
    for bad in ["mysql://u:s3cret@h/d", "postgres://u:s3cret@h:port/d", "u:s3cret@h"] {
        let error = bad.parse::<PostgresAddress>().unwrap_err();
        assert!(!error.contains("s3cret"), "{error}");
    }
}

#[tokio::test]
async fn a_sqlite_file_that_is_not_there_is_not_made_by_looking() {
    let place = Sqlite::new();
    assert!(matches!(SqliteStore::open_to_read(&place.file()), Err(StoreError::Missing(_))));
    assert!(!place.file().exists());
}
