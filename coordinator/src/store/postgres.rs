//! Postgres: for a fleet whose coordinator has another one beside it that stands by.
//!
//! A process that stops answering (frozen, cut off, its host gone) must not hold the epoch's row, and a server that stops
//! answering must not hold the process: so the server ends a transaction that nobody goes on with, and every answer is
//! waited for with a bound.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection as _, Executor, PgConnection, PgPool, Postgres};

pub use sql::SqlStore as PostgresStore;

use super::StoreError;

type Db = Postgres;

/// Touching the epoch's row locks it: that is all the isolation that the one writer needs, and what fences (P21). Stated,
/// because a stricter default of the database's would refuse the second of two instead of letting it see the first's row.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// As of one moment.
const BEGIN_READING: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY";

/// `lock_not_available`: whoever holds the epoch's row leads.
const LOCKED: &str = "55P03";

/// How long a reign, or who would like one, waits for an answer. After 3 s without one (P21) another may lead; what is
/// left is for the largest run that is taken, which is written in two.
const WRITE_MAX: Option<Duration> = Some(Duration::from_secs(10));

/// How long a read waits. The journal of a million steps is read in a fraction; a host that is gone never answers, and
/// sqlx sets no keepalive.
const READ_MAX: Option<Duration> = Some(Duration::from_mins(5));

/// Now, in ms, by the server's clock. Not `now()`, which is when the transaction began.
macro_rules! now_ms {
    () => {
        "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"
    };
}

// Behind what it names: `now_ms!` is only known below its definition.
#[path = "sql/mod.rs"]
#[allow(clippy::duplicate_mod)] // that is what it is for: one text of SQL, compiled for each database
mod sql;

/// One transaction at a time (P21), and one more connection for what a lost one leaves behind.
const WRITERS: u32 = 2;

/// The server does the work: more than it has cores only queue there. Two coordinators and people's own share its hundred.
const READERS: u32 = 8;

/// How long a request waits for a connection while the server is away: whoever asks can ask again.
const ACQUIRE_MAX: Duration = Duration::from_secs(5);

/// How long a server that answers may take to bring the tables up to date, and another coordinator that does so already.
const MIGRATE_MAX: Duration = Duration::from_mins(5);

/// How long a connection that was used is looked at, whether it still answers.
const PING_MAX: Duration = Duration::from_secs(2);

/// Of each of the writer's sessions. A transaction that its client has left alone for 2 s is ended by the server: its
/// client is frozen, or gone without a word, and an epoch lapses after 3. Whoever stands by waits for the row no longer
/// than it lets a leader be silent. No statement of ours takes 10 s.
const WRITER_SESSION: &str = "SET idle_in_transaction_session_timeout = '2s'; SET lock_timeout = '3s'; \
                              SET statement_timeout = '10s'; SET synchronous_commit = on";

/// A client that is gone must not hold back the server's vacuum.
const READER_SESSION: &str = "SET idle_in_transaction_session_timeout = '60s'; SET statement_timeout = '300s'";

/// Where a Postgres is: `postgres://user:password@host:5432/database`, with sqlx's parameters (`sslmode=verify-full`,
/// `sslrootcert=…`). It shows no password (promise 8).
#[derive(Clone)]
pub struct PostgresAddress(Box<PgConnectOptions>);

impl PostgresAddress {
    /// What can be shown of it.
    fn shown(&self) -> String {
        let Self(options) = self;
        let database = options.get_database().unwrap_or_else(|| options.get_username());
        format!("postgres://{}:{}/{database}", options.get_host(), options.get_port())
    }
}

impl fmt::Debug for PostgresAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl fmt::Display for PostgresAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl FromStr for PostgresAddress {
    type Err = String;

    /// The error says what is wrong and repeats nothing of what was given.
    fn from_str(text: &str) -> Result<Self, String> {
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err("it does not begin with postgres://".to_owned());
        }
        let options: PgConnectOptions = text.parse().map_err(|_| "it is no address of a Postgres".to_owned())?;
        // A statement that took long would be warned of, however often.
        Ok(Self(Box::new(options.application_name("longshore coordinator").disable_statement_logging())))
    }
}

impl PostgresStore {
    /// Connects, and brings the tables up to date.
    pub async fn open(address: &PostgresAddress) -> Result<Self, StoreError> {
        let opening = async {
            // Without the sessions' bounds: a change of tables takes as long as it takes.
            let one = PgPoolOptions::new().max_connections(1).connect_with((*address.0).clone()).await?;
            // By an advisory lock, so that of two one waits for the other.
            sqlx::migrate!("migrations/postgres").run(&one).await?;
            one.close().await;
            Ok::<_, StoreError>(())
        };
        let opened = tokio::time::timeout(MIGRATE_MAX, opening).await.unwrap_or(Err(StoreError::Silent(MIGRATE_MAX)));
        opened.map_err(|error| StoreError::Unusable { address: address.to_string(), error: Box::new(error) })?;
        let writer = pool(address, WRITERS, WRITER_SESSION);
        let readers = pool(address, READERS, READER_SESSION);
        Ok(Self { writer, readers })
    }

    /// The marker of the directory which the coordinators of this database share; the first one's, whoever asks.
    pub async fn shared_marker(&self, mine: &str) -> Result<String, StoreError> {
        sqlx::query("INSERT INTO directory (id, marker) VALUES (1, $1) ON CONFLICT (id) DO NOTHING")
            .bind(mine)
            .execute(&self.writer)
            .await?;
        let (marker,) = sqlx::query_as("SELECT marker FROM directory WHERE id = 1").fetch_one(&self.writer).await?;
        Ok(marker)
    }
}

/// Whether a server answers there, lets us in, and knows the database: for `longshore doctor`. Its version.
pub async fn probe(address: &PostgresAddress) -> Result<String, StoreError> {
    let asking = async {
        let mut connection = PgConnection::connect_with(&address.0).await?;
        let (version,): (String,) = sqlx::query_as("SHOW server_version").fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok(version)
    };
    tokio::time::timeout(ACQUIRE_MAX, asking).await.unwrap_or(Err(StoreError::Silent(ACQUIRE_MAX)))
}

fn pool(address: &PostgresAddress, connections: u32, session: &'static str) -> PgPool {
    let options = PgPoolOptions::new().max_connections(connections).acquire_timeout(ACQUIRE_MAX);
    let options = options.after_connect(move |connection, _| {
        Box::pin(async move {
            connection.execute(session).await?;
            Ok(())
        })
    });
    // Whoever stopped waiting left a connection that may never answer again: the pool would wait for it without a bound.
    let options = options.after_release(|connection, _| {
        Box::pin(async move {
            let answered = tokio::time::timeout(PING_MAX, connection.ping()).await;
            answered.unwrap_or(Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))?;
            Ok(true)
        })
    });
    // Just released, and looked at by that: asking again before each use would cost a round trip.
    options.test_before_acquire(false).connect_lazy_with((*address.0).clone())
}
