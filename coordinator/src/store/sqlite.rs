//! SQLite: one file, without any set-up.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqlitePool};

pub use sql::SqlStore as SqliteStore;

use super::StoreError;

type Db = Sqlite;

/// It holds the write lock from its start: an upgrade from reading gets BUSY whatever the timeout.
const BEGIN: &str = "BEGIN IMMEDIATE";

/// A reader's snapshot begins with its first statement and stays (WAL).
const BEGIN_READING: &str = "BEGIN";

/// `SQLITE_BUSY`: whoever writes leads.
const LOCKED: &str = "5";

/// A file answers, or says why it does not.
const WRITE_MAX: Option<Duration> = None;
const READ_MAX: Option<Duration> = None;

/// Now, in ms, by the host's clock: whoever opens the file is on that host.
macro_rules! now_ms {
    () => {
        "CAST(unixepoch('subsec') * 1000 AS INTEGER)"
    };
}

// Behind what it names: `now_ms!` is only known below its definition.
#[path = "sql/mod.rs"]
#[allow(clippy::duplicate_mod)] // that is what it is for: one text of SQL, compiled for each database
mod sql;

/// SQLite has one writer at a time. More connections would only wait for each other.
const WRITERS: u32 = 1;

/// Readers do not wait for the writer (WAL). Each costs a thread; API requests queue for them.
const READERS: u32 = 4;

/// How long a transaction waits for another process's, a standing-by coordinator's say, which takes
/// milliseconds. Beyond it something is wrong with the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Pages of 4 KiB in the write-ahead log before they go into the file itself. With SQLite's 1,000, one batch of output
/// would be written twice and synced three times; in 16 MiB most of its pages have been freed by a sealed chunk and used
/// again, and are written once.
const WAL_PAGES: &str = "4096";

/// How often a migration is tried that met another process migrating the same new file.
const MIGRATE_TRIES: u32 = 5;

impl SqliteStore {
    /// Opens a file, or makes it and its directory, and brings its tables up to date.
    pub async fn open(file: &Path) -> Result<Self, StoreError> {
        if let Some(dir) = file.parent() {
            tokio::fs::create_dir_all(dir).await.map_err(sqlx::Error::Io)?;
        }
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("wal_autocheckpoint", WAL_PAGES)
            .busy_timeout(BUSY_TIMEOUT);
        let writer = pool(WRITERS).connect_with(options.clone()).await?;
        migrate(&writer).await?;
        let readers = pool(READERS).connect_lazy_with(options.read_only(true));
        Ok(Self { writer, readers })
    }

    /// A past run's file, to look at. It connects with the first question; nothing is ever written.
    pub fn open_to_read(file: &Path) -> Result<Self, StoreError> {
        if !file.is_file() {
            return Err(StoreError::Missing(file.to_owned()));
        }
        let options = SqliteConnectOptions::new().filename(file).read_only(true).busy_timeout(BUSY_TIMEOUT);
        let readers = pool(READERS).connect_lazy_with(options);
        Ok(Self { writer: readers.clone(), readers })
    }
}

/// A file in this process is not lost between two questions: asking it first whether it is there would cost a round
/// trip to its thread each time.
fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new().max_connections(connections).test_before_acquire(false)
}

/// SQLite has no lock for migrations: of two processes that open a new file at once, one finds the
/// tables of the other half made, and finds them whole when it looks again.
async fn migrate(pool: &SqlitePool) -> Result<(), StoreError> {
    let migrator = sqlx::migrate!("migrations/sqlite");
    let mut tries = 1;
    loop {
        match migrator.run(pool).await {
            Ok(()) => return Ok(()),
            Err(error) if tries == MIGRATE_TRIES => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(50 * u64::from(tries))).await,
        }
        tries += 1;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a test's helper that fails has failed its test

    use longshore_protocol::topology::Address;

    use super::*;
    use crate::store::Store;
    use crate::store::batch::{Batch, OutboxAbout, OutboxRow};

    fn large(id: i64) -> OutboxRow {
        let to = Address { exchange: "control".to_owned(), routing_key: "w1".to_owned() };
        OutboxRow { id, about: OutboxAbout::Control, to, body: vec![7; 1024 * 1024] }
    }

    /// SQLite's own bound stands for the disk's: what it answers, and how it rolls back, are the same.
    #[tokio::test]
    async fn p3_a_full_disk_writes_nothing_and_is_no_longer_full_when_there_is_room() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = SqliteStore::open(&dir.path().join("state.db")).await.unwrap();
        let epoch = store.take_epoch("t").await.unwrap().unwrap();
        sqlx::query("PRAGMA max_page_count = 100").execute(&store.writer).await.unwrap();
        let refused = store.commit(epoch, &Batch { outbox: vec![large(1)], ..Batch::default() }).await.unwrap_err();
        assert!(refused.to_string().contains("full"), "{refused}");
        assert_eq!(store.outbox_rows().await.unwrap(), 0);
        // The bound was of that connection: now there is room.
        store.commit(epoch, &Batch { outbox: vec![large(1)], ..Batch::default() }).await.unwrap();
        assert_eq!(store.outbox_rows().await.unwrap(), 1);
    }
}
