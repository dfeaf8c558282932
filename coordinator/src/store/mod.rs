//! The store: one SQLite file with the journal, the read tables, the outbox and the open end of each log.
//!
//! * [`epoch`] who leads (P21): a row taken by compare-and-set, touched by every transaction;
//! * [`batch`] the one way to write: a batch of everything that follows from some inputs, one transaction (P3);
//! * [`recover`] what a new leader reads: entries of open runs, messages left in the outbox, open logs;
//! * [`runs`] and [`log_rows`] what the API reads.
//!
//! Statements use `$1` (or are built by sqlx, with each database's own), `ON CONFLICT` and 64-bit numbers
//! only, so that Postgres takes them as they are; migrations are a folder per database. Committed means on disk (`synchronous=FULL`).

pub mod batch;
pub mod epoch;
pub mod log_rows;
pub mod packed;
pub mod recover;
pub mod runs;

use std::path::Path;
use std::time::Duration;

use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

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

/// What the store could not do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else has taken the epoch: nothing was written (P21).
    #[error("epoch {0} no longer leads")]
    Deposed(longshore_protocol::Epoch),
    /// The database's own word: a full disk, a damaged file.
    #[error("the store failed: {0}")]
    Database(#[from] sqlx::Error),
    /// The file was written by another Longshore.
    #[error("the store cannot be brought up to date: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// What is in it cannot be read.
    #[error("the store holds {what} that cannot be read: {why}")]
    Unreadable {
        /// What was read.
        what: &'static str,
        /// In the reader's words.
        why: String,
    },
    /// There is no such file.
    #[error("there is no store at {0}")]
    Missing(std::path::PathBuf),
}

/// One SQLite file. Cloned freely: the connections are shared.
#[derive(Clone, Debug)]
pub struct Store {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl Store {
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

    /// Whether it answers: cheap enough to be asked by anybody, at any time.
    pub async fn answers(&self) -> bool {
        sqlx::query_as::<_, (i64,)>("SELECT epoch FROM epoch WHERE id = 1").fetch_one(&self.readers).await.is_ok()
    }

    /// Lets go of the file. What was committed is in it.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
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

/// As SQL counts. What we count (bytes, lines, milliseconds) stays far below 2^63.
fn sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// As we count. The store holds no negative number of ours.
fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn to_json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("our types have string keys and no failing serializers")
}

fn from_json<T: serde::de::DeserializeOwned>(what: &'static str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Unreadable { what, why: error.to_string() })
}

fn from_text<T: std::str::FromStr<Err: std::fmt::Display>>(what: &'static str, text: &str) -> Result<T, StoreError> {
    text.parse().map_err(|error: T::Err| StoreError::Unreadable { what, why: error.to_string() })
}
