//! The one writer, and the process around it.
//!
//! 1. [`Coordinator::open`] checks the configuration, binds the port and opens the store;
//! 2. [`Coordinator::run`] stands by until it takes the epoch (P21), then leads: [`reign`];
//! 3. [`inputs`] gathers a batch of API commands, events, heartbeats, ticks and output;
//! 4. [`writer`] carries it out: core → one transaction, then [`commit`] effects → acks;
//! 5. around it: [`outbox`] publishes (P3), [`clock`] ticks (P8), [`gone`] looks at job queues (P6),
//!    [`feed`] wakes followers.

mod calendar;
mod clock;
mod commit;
mod config;
pub mod feed;
mod gone;
pub(crate) mod inputs;
mod open;
mod outbox;
mod past;
mod reign;
mod shared_dir;
mod writer;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use longshore_protocol::broker::Broker;
use longshore_protocol::process;
use longshore_protocol::process::watch;
use longshore_protocol::topology::Topology;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use past::{Past, past};

pub use config::{BLOB_BYTES_MAX, Config, StateLocation, Tokens};

use crate::api::{ApiState, Live, Passing};
use crate::blobs::{BlobError, Blobs};
use crate::core::CoreConfig;
use crate::core::view::WorkerView;
use crate::logs::seal::ChunkFiles;
use crate::store::epoch::RENEW;
use crate::store::sqlite::SqliteStore;
use crate::store::{Store, StoreError};
use feed::Feed;
use reign::ReignError;

/// How often one that stands by looks whether the epoch has lapsed: a sixth of the lapse.
const STAND_BY: Duration = Duration::from_millis(500);

/// How often the recorder's histograms are drained while nobody scrapes: they hold every sample until then.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// How long requests under way may take to end when the process ends: an upload that does not go on would hold it for ever.
const SERVER_GRACE: Duration = Duration::from_secs(5);

/// Why a coordinator cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// Anybody who reaches the port could run commands on the fleet.
    #[error(
        "refusing to listen on {address} without a token: anybody who reaches it could run commands on the fleet; \
         set a bearer token, or listen on a loopback address such as 127.0.0.1"
    )]
    OpenToAnybody {
        /// Where it was to listen.
        address: SocketAddr,
    },
    /// The port cannot be had.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// Where it was to listen.
        address: SocketAddr,
        /// In the system's words.
        error: std::io::Error,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The blob directory cannot be used.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// The directory beside a database cannot be used.
    #[error("the directory {dir} cannot be used: {error}")]
    Directory {
        /// Which one.
        dir: PathBuf,
        /// In the system's words.
        error: std::io::Error,
    },
    /// What the other coordinators have stored there would be missing here.
    #[error(
        "{dir} is not the directory that the coordinators of this database share: blobs and sealed logs would be \
         missing after a takeover; mount that one here and name it with --state (where it is lost for good, \
         `DELETE FROM directory` in the database lets this one take its place)"
    )]
    OtherDirectory {
        /// Which one was given.
        dir: PathBuf,
    },
    /// The journal cannot be replayed: a damaged file or a bug. Nothing was changed.
    #[error("{0}")]
    Journal(String),
}

/// What the parts of a coordinator share.
#[derive(Clone)]
struct Shared<B: Broker> {
    broker: B,
    topology: Topology,
    store: Arc<dyn Store>,
    chunks: ChunkFiles,
    feed: Arc<Feed>,
    core: CoreConfig,
    tick: Duration,
    lease: Duration,
    workers: watch::Sender<Vec<WorkerView>>,
}

/// A coordinator that is open: its API answers, and once it [runs](Self::run) it leads or stands by.
pub struct Coordinator<B: Broker> {
    shared: Shared<B>,
    api: ApiState,
    commands: mpsc::Receiver<inputs::Command>,
    leading: watch::Sender<bool>,
    listener: Option<TcpListener>,
    address: Option<SocketAddr>,
    /// What others are told of who leads.
    holder: String,
    closing: CancellationToken,
}

impl<B: Broker> Coordinator<B> {
    /// Opens the store and binds the port. The broker need not be there yet.
    pub async fn open(config: Config, broker: B) -> Result<Self, CoordinatorError> {
        if let Some(address) = config.listen
            && !address.ip().is_loopback()
            && config.tokens.is_empty()
        {
            return Err(CoordinatorError::OpenToAnybody { address });
        }
        let listener = match config.listen {
            None => None,
            Some(address) => {
                let listener = TcpListener::bind(address).await;
                Some(listener.map_err(|error| CoordinatorError::Listen { address, error })?)
            }
        };
        let address = listener.as_ref().and_then(|listener| listener.local_addr().ok());
        let store = config.state.open(&config.blob_dir).await?;
        let blobs = Blobs::open(&config.blob_dir, config.blob_bytes_max).await?;
        let chunks = ChunkFiles::in_blobs(&config.blob_dir);
        let lease = config.lease();
        let feed = Arc::new(Feed::default());
        let (commands, commands_in) = mpsc::channel(inputs::COMMANDS);
        let (workers, workers_in) = watch::channel(Vec::new());
        let (leading, leading_in) = watch::channel(false);
        let closing = CancellationToken::new();
        let connected = broker.clone();
        let live = Live {
            commands,
            feed: Arc::clone(&feed),
            workers: workers_in,
            leading: leading_in,
            broker_connected: Arc::new(move || connected.connected()),
            passing: config.advertise.clone().map(Passing::new),
            closing: closing.clone(),
        };
        let api = ApiState::new(store.clone(), blobs, chunks.clone())
            .with_live(live)
            .with_tokens(config.tokens)
            .with_metrics(config.metrics);
        let topology = Topology::new(config.prefix, lease);
        let (core, tick) = (config.core, config.tick);
        let shared = Shared { broker, topology, store, chunks, feed, core, tick, lease, workers };
        let holder = config.advertise.unwrap_or_else(|| format!("process {}", std::process::id()));
        Ok(Self { shared, api, commands: commands_in, leading, listener, address, holder, closing })
    }

    /// The whole HTTP API, which can also be called in process. Requests that change something wait
    /// until this coordinator [runs](Self::run) and leads.
    pub fn router(&self) -> axum::Router {
        crate::api::router(self.api.clone())
    }

    /// Where it listens, if it does.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Whether it leads, as it changes.
    pub fn leading(&self) -> watch::Receiver<bool> {
        self.leading.subscribe()
    }

    /// Serves the API, and leads or stands by, until `shutdown`. The epoch is given back.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), CoordinatorError> {
        // Where this future is dropped instead of ended, server and streams must end as well.
        let _guard = self.closing.clone().drop_guard();
        let router = self.router();
        let server = self.listener.take().map(|listener| {
            let closing = self.closing.clone();
            process::spawn(async move {
                let served = axum::serve(listener, router);
                served.with_graceful_shutdown(closing.cancelled_owned()).await
            })
        });
        let upkeep = process::spawn(upkeep(self.api.metrics(), self.closing.clone()));
        let ended = self.stand_by_and_lead(&shutdown).await;
        self.closing.cancel();
        if let Some(mut server) = server {
            match tokio::time::timeout(SERVER_GRACE, &mut server).await {
                Ok(Ok(Err(error))) => tracing::warn!(%error, "the HTTP server ended badly"),
                Ok(_) => {}
                Err(_) => {
                    tracing::warn!("requests were still under way: they are cut off");
                    server.abort();
                }
            }
        }
        drop(upkeep.await);
        self.shared.store.close().await;
        ended
    }

    async fn stand_by_and_lead(&mut self, shutdown: &CancellationToken) -> Result<(), CoordinatorError> {
        let mut failing = false;
        while !shutdown.is_cancelled() {
            let taken = self.shared.store.take_epoch(&self.holder).await;
            // Said once, not with every try: on a full disk the log would only make it worse.
            let failed_before = std::mem::replace(&mut failing, taken.is_err());
            match taken {
                Ok(Some(epoch)) => self.lead(epoch, shutdown).await?,
                Ok(None) => tracing::debug!("another coordinator leads: standing by"),
                Err(error) if failed_before => tracing::debug!(%error, "the epoch still cannot be taken"),
                Err(error) => tracing::error!(%error, "the epoch cannot be taken: trying again until it can"),
            }
            shutdown.run_until_cancelled(tokio::time::sleep(STAND_BY)).await;
        }
        Ok(())
    }

    async fn lead(
        &mut self,
        epoch: longshore_protocol::Epoch,
        shutdown: &CancellationToken,
    ) -> Result<(), CoordinatorError> {
        tracing::info!(%epoch, "leading");
        metrics::gauge!("longshore_leader").set(1.0);
        self.leading.send_replace(true);
        let led = reign::lead(self.shared.clone(), epoch, &mut self.commands, shutdown).await;
        self.leading.send_replace(false);
        // Whoever asked is told by the line above; what was not taken must not be carried out in a later reign.
        while self.commands.try_recv().is_ok() {}
        metrics::gauge!("longshore_leader").set(0.0);
        match led {
            Ok(()) => {
                if let Err(error) = self.shared.store.release_epoch(epoch).await {
                    tracing::warn!(%error, "the epoch was not given back: it lapses by itself");
                }
                Ok(())
            }
            Err(ReignError::Store(error)) => {
                // What is in memory may be ahead of the store: begin again from what is written there.
                tracing::error!(%error, %epoch, "no longer leading");
                shutdown.run_until_cancelled(tokio::time::sleep(RENEW)).await;
                Ok(())
            }
            Err(error @ ReignError::Replay(_)) => Err(CoordinatorError::Journal(error.to_string())),
        }
    }
}

async fn upkeep(metrics: Option<metrics_exporter_prometheus::PrometheusHandle>, closing: CancellationToken) {
    let Some(metrics) = metrics else { return };
    let mut interval = tokio::time::interval(METRICS_UPKEEP);
    while closing.run_until_cancelled(interval.tick()).await.is_some() {
        metrics.run_upkeep();
    }
}

/// The read-only API over a past run's file, without a driver: `ls`, `show` and `logs`.
pub fn reader(store_file: &Path, blob_dir: &Path) -> Result<axum::Router, StoreError> {
    let store = Arc::new(SqliteStore::open_to_read(store_file)?);
    let api = ApiState::new(store, Blobs::open_to_read(blob_dir), ChunkFiles::in_blobs(blob_dir));
    Ok(crate::api::router(api))
}
