//! The store: the journal, the read tables, the outbox and the open end of each log.
//!
//! [`Store`] is the contract; [`sqlite`] keeps it in one file, [`postgres`] on a server. What is in a store, by concern:
//!
//! * [`epoch`] who leads (P21): a row taken by compare-and-set, touched by every transaction;
//! * [`batch`] the one way to write: a batch of everything that follows from some inputs, one transaction (P3);
//! * [`recover`] what a new leader reads: entries of open runs, messages left in the outbox, open logs;
//! * [`runs`] and [`log_rows`] what the API reads.
//!
//! The statements are one text for every database, in `sql/`; migrations are a folder per database.

pub mod batch;
pub mod epoch;
pub mod log_rows;
pub mod packed;
pub mod postgres;
pub mod recover;
pub mod runs;
pub mod sqlite;

use futures_util::future::BoxFuture;
use longshore_protocol::event::Claim;
use longshore_protocol::{Attempt, Epoch, ExecutionId, RunId, StepName};

use crate::core::entry::Entry;
use crate::core::input::Millis;
use crate::core::view::{RunSummary, StepView};
use batch::{Batch, OutboxRow};
use log_rows::{RowPlace, Selection, StoredRow};
use recover::{Counters, JournalRow, OpenLog};
use runs::{Changed, RunState, Submitted};

/// What a store's method gives once it is awaited.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Where everything is that must outlive a coordinator. Which one it is, is known when a process starts: so the rest
/// holds an `Arc<dyn Store>`, and a boxed future is nothing beside a transaction.
///
/// INVARIANT, which every implementation keeps (`tests/src/store_contract`):
///
/// * *Committed means on disk.* What a method that writes has answered with `Ok` is there after a crash of the process
///   and of its machine; what it has not answered yet may be there or not, and then whole.
/// * *An error of a method that writes leaves open what was written*, except [`StoreError::Deposed`], which says: nothing.
///   An answer can be lost after the commit, so whoever leads ends the reign and begins again from what is read back.
/// * *Two processes may use one store at the same time.* Only the epoch's holder writes (P21), anybody reads.
/// * A method that reads changes nothing, and sees all of each batch or nothing of it. It may be called at any time, any
///   number at once, and need not wait for the one writer.
/// * A future that is dropped before its end has written all or nothing.
pub trait Store: std::fmt::Debug + Send + Sync {
    /// Takes the epoch if it was released or has lapsed: not renewed for [`LAPSE_MS`](epoch::LAPSE_MS) by the store's own
    /// clock, whatever the callers' clocks say. `None`: somebody leads. Of several who try at once, one gets it.
    /// `holder` is what others are told of who leads.
    fn take_epoch<'a>(&'a self, holder: &'a str) -> Answer<'a, Option<Epoch>>;

    /// Renews it and writes nothing else, while a leader has nothing to write. [`StoreError::Deposed`] as for
    /// [`commit`](Self::commit).
    fn renew_epoch(&self, epoch: Epoch) -> Answer<'_, ()>;

    /// Gives the epoch back, so that whoever stands by need not wait for it to lapse. Another's stays as it is.
    fn release_epoch(&self, epoch: Epoch) -> Answer<'_, ()>;

    /// The one way to write: all of the batch or nothing, and the epoch is renewed by it.
    /// [`StoreError::Deposed`] if another epoch was taken since, however long ago this one's holder looked last: a plain
    /// read before the transaction would not fence (P21). Called by the one writer of a reign, one at a time.
    fn commit<'a>(&'a self, epoch: Epoch, batch: &'a Batch) -> Answer<'a, ()>;

    /// Whether a run is known, for the one writer: no number of readers makes it wait.
    fn is_known(&self, run: RunId) -> Answer<'_, bool>;

    /// The entries of every run that is not done, and of the workers, in order, each with its moment. Of a worker's
    /// `heard` only the newest is worth reading: each replaces the one before it.
    fn entries_to_replay(&self) -> Answer<'_, Vec<(Millis, Entry)>>;

    /// What a run that is done is taken back from: its own entries, and the workers' among them, in order. How far each
    /// worker was heard no longer matters then.
    fn entries_to_recall(&self, run: RunId) -> Answer<'_, Vec<(Millis, Entry)>>;

    /// What the journal says of the workers, in order.
    fn journal_of_workers(&self) -> Answer<'_, Vec<JournalRow>>;

    /// What a run would be [recalled](Self::entries_to_recall) from, and what is shown of it, as of one moment. `None` if
    /// the run is unknown.
    fn journal_and_view(&self, run: RunId) -> Answer<'_, Option<(Vec<JournalRow>, RunState)>>;

    /// Where the one writer goes on counting.
    fn counters(&self) -> Answer<'_, Counters>;

    /// Messages behind this one, in order, at most so many.
    fn outbox_after(&self, id: i64, limit: u32) -> Answer<'_, Vec<OutboxRow>>;

    /// The logs of the runs that are not done which may still grow.
    fn open_logs(&self) -> Answer<'_, Vec<OpenLog>>;

    /// The lines of one log in no chunk, from one on and before another, row by row, [packed](packed::pack).
    fn open_rows<'a>(&'a self, claim: &'a Claim, from: u64, before: u64) -> Answer<'a, Vec<Vec<u8>>>;

    /// Runs, newest first, from behind `before` on; of one tenant, or of all.
    fn list_runs<'a>(
        &'a self,
        tenant: Option<&'a str>,
        before: Option<RunId>,
        limit: u32,
    ) -> Answer<'a, Vec<RunSummary>>;

    /// A run with its steps, as of one moment.
    fn run(&self, run: RunId) -> Answer<'_, Option<RunState>>;

    /// Whether a run is known, and what was submitted.
    fn submitted(&self, run: RunId) -> Answer<'_, Option<Submitted>>;

    /// One run in the list, and whether it is done.
    fn summary(&self, run: RunId) -> Answer<'_, Option<(RunSummary, bool)>>;

    /// One step of a run by its name.
    fn step<'a>(&'a self, run: RunId, step: &'a StepName) -> Answer<'a, Option<StepView>>;

    /// What changed in a run after a place, in order, each with its own; and whether the run is done. As of one moment.
    fn changes_after(&self, run: RunId, change: u64) -> Answer<'_, (Vec<(u64, Changed)>, bool)>;

    /// Rows of logs from a place on, in order, at most so many.
    fn log_rows<'a>(&'a self, of: &'a Selection, from: u64, limit: u32) -> Answer<'a, Vec<StoredRow>>;

    /// The row that holds a line of one log; the one before it where the log is shorter.
    fn row_of_line(&self, execution: ExecutionId, attempt: Attempt, line: u64) -> Answer<'_, Option<RowPlace>>;

    /// Rows before a place, newest first, at most so many, without their bytes.
    fn rows_before<'a>(&'a self, of: &'a Selection, before: u64, limit: u32) -> Answer<'a, Vec<RowPlace>>;

    /// The index of one log's chunks: first line and number of lines of each.
    fn chunks(&self, execution: ExecutionId, attempt: Attempt) -> Answer<'_, Vec<(u64, u64)>>;

    /// The whole journal of one run, for tests and for people.
    fn entries_of(&self, run: RunId) -> Answer<'_, Vec<Entry>>;

    /// How many messages are in the outbox.
    fn outbox_rows(&self) -> Answer<'_, u64>;

    /// Whether it answers: cheap enough to be asked by anybody, at any time. And who leads, as the one said who took the
    /// epoch; nobody if it was released or has lapsed.
    fn answers(&self) -> Answer<'_, Option<String>>;

    /// Lets go of it. What was committed is in it; the methods of what was closed fail.
    fn close(&self) -> BoxFuture<'_, ()>;
}
/// What the store could not do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else has taken the epoch: nothing was written (P21).
    #[error("epoch {0} no longer leads")]
    Deposed(Epoch),
    /// The store's own word: a full disk, a damaged file, a connection that was lost.
    #[error("the store failed: {0}")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It did not answer. What was asked of it may have been done.
    #[error("the store did not answer within {} s", .0.as_secs())]
    Silent(std::time::Duration),
    /// The database cannot be had, or not be brought up to date.
    #[error("the database at {address} cannot be used: {error}")]
    Unusable {
        /// Where it is, without a password.
        address: String,
        /// Why.
        error: Box<StoreError>,
    },
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

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error.into())
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
