//! How a coordinator is set up.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;

use super::{CoordinatorError, shared_dir};
use crate::core::CoreConfig;
use crate::store::Store;
use crate::store::postgres::{PostgresAddress, PostgresStore};
use crate::store::sqlite::SqliteStore;

/// Of one blob: a source directory, packed. Larger ones belong into an image.
pub const BLOB_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// A tick a second: a lease is then known to the second (P8).
const TICK: Duration = Duration::from_secs(1);

/// How a coordinator is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Of the fleet's queues.
    pub prefix: String,
    /// Where the journal is.
    pub state: StateLocation,
    /// Where blobs and log chunks are.
    pub blob_dir: PathBuf,
    /// The largest blob that is taken.
    pub blob_bytes_max: u64,
    /// Where the HTTP API listens; `None`: only in process.
    pub listen: Option<SocketAddr>,
    /// Where the others of this fleet reach the API, `http://host:port`: one that stands by passes on to it what only
    /// the leader can do. `None`: they do not.
    pub advertise: Option<String>,
    /// Who may use the API.
    pub tokens: Tokens,
    /// The core's bounds.
    pub core: CoreConfig,
    /// How often the lease clock ticks (P8).
    pub tick: Duration,
    /// What `/metrics` shows.
    pub metrics: Option<PrometheusHandle>,
}

impl Config {
    /// Defaults, without a port.
    pub fn new(prefix: impl Into<String>, state: StateLocation, blob_dir: PathBuf) -> Self {
        Self {
            prefix: prefix.into(),
            state,
            blob_dir,
            blob_bytes_max: BLOB_BYTES_MAX,
            listen: None,
            advertise: None,
            tokens: Tokens::default(),
            core: CoreConfig::default(),
            tick: TICK,
            metrics: None,
        }
    }

    /// How long a worker is believed that is not heard from; the workers' topology must say the same.
    pub fn lease(&self) -> Duration {
        self.tick * self.core.lease_ticks
    }
}

/// Where the journal is.
#[derive(Clone, Debug)]
pub enum StateLocation {
    /// In this file, made if it is missing.
    Sqlite(PathBuf),
    /// In this database. Blobs and sealed logs are in a directory all the same, which its coordinators share.
    Postgres(PostgresAddress),
    /// In this one, which is open.
    Open(Arc<dyn Store>),
}

impl StateLocation {
    /// Opens it, and brings its tables up to date. `dir` is where blobs and sealed logs are.
    pub(super) async fn open(&self, dir: &Path) -> Result<Arc<dyn Store>, CoordinatorError> {
        match self {
            Self::Sqlite(file) => Ok(Arc::new(SqliteStore::open(file).await?)),
            Self::Postgres(address) => {
                let store = PostgresStore::open(address).await?;
                shared_dir::check(&store, dir).await?;
                Ok(Arc::new(store))
            }
            Self::Open(store) => Ok(Arc::clone(store)),
        }
    }
}

/// Bearer tokens, each of a tenant. None: whoever reaches the API may use it, as tenant `default`.
#[derive(Clone, Default)]
pub struct Tokens(Vec<(blake3::Hash, String)>);

impl Tokens {
    /// Tokens, each with its tenant. An empty one, a variable that was left empty say, lets nobody in.
    pub fn new(tokens: impl IntoIterator<Item = (String, String)>) -> Self {
        let tokens = tokens.into_iter().filter(|(token, _)| !token.trim().is_empty());
        Self(tokens.map(|(token, tenant)| (blake3::hash(token.as_bytes()), tenant)).collect())
    }

    /// Whether no token is asked for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whose token it is. Hashes are compared, in constant time and all of them, so that the time
    /// that it takes says nothing about a token.
    pub fn tenant(&self, token: &str) -> Option<&str> {
        let hash = blake3::hash(token.as_bytes());
        let mut found = None;
        for (known, tenant) in &self.0 {
            if *known == hash {
                found = Some(tenant.as_str());
            }
        }
        found
    }
}

impl fmt::Debug for Tokens {
    /// Tenants only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(_, tenant)| tenant)).finish()
    }
}
