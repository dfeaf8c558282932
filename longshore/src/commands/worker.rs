//! `longshore worker`: carries out steps beside a Docker Engine.

use std::time::Duration;

use longshore_protocol::broker::Broker;
use longshore_worker::{BlobSource, Config, Worker, WorkerError};
use tokio_util::sync::CancellationToken;

use crate::cli::WorkerArgs;
use crate::embedded::{Found, default_slots, find_engine};
use crate::failure::Failure;
use crate::render::screen;
use crate::server;
use crate::state::StateDir;

/// In lists of connections, and before what it says.
const NAME: &str = "longshore worker";

/// P7: five heartbeats may be lost before a lease ends.
const HEARTBEATS_PER_LEASE: u32 = 6;

pub(crate) async fn run(args: WorkerArgs) -> Result<u8, Failure> {
    let metrics = server::install_metrics(longshore_worker::METRICS, longshore_worker::BUCKETS)?;
    let hurry = CancellationToken::new();
    let shutdown = server::shutdown(Some(hurry.clone()))?;
    let Found { engine, info } = find_engine(args.docker.as_deref()).await?;
    let broker = server::broker(&args.fleet, NAME)?;
    let dir = match args.state {
        Some(dir) => dir,
        None => StateDir::path()?.join("worker"),
    };
    let lease = Duration::from_secs(args.fleet.lease.into());
    let slots = args.slots.unwrap_or_else(default_slots);
    let blobs = BlobSource::Http { coordinator: args.coordinator, token: args.token };
    let config = Config {
        pool: args.pool,
        slots,
        lease,
        heartbeat: lease / HEARTBEATS_PER_LEASE,
        parked_max: args.parked,
        parked_for: Duration::from_secs(args.parked_for),
        drain: Duration::from_secs(args.drain),
        spools_bytes_max: args.spool.map(|mib| mib * 1024 * 1024),
        orphan: Duration::from_secs(args.orphan),
        direct: args.direct,
        metrics_listen: args.metrics,
        metrics_render: Some(metrics.clone()),
        ..Config::new(args.fleet.prefix.clone(), dir, blobs)
    };
    let worker = Worker::open(config, broker.clone(), engine).await.map_err(|error| refused(&error))?;
    if let Some(address) = worker.listens_on() {
        screen::say(&format!("{NAME}: metrics on http://{address}/metrics"));
    }
    let words = format!("(id {}, engine {}, slots {slots})", worker.id(), info.id);
    let mut ready = worker.ready();
    let ready = async move {
        // One that ends before never is.
        if ready.wait_for(|ready| *ready).await.is_err() {
            std::future::pending::<()>().await;
        }
        words
    };
    // Its pages answer meanwhile: what is away comes back without a restart.
    let announced =
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(server::announce(args.fleet.amqp, NAME, ready)));
    let hurried = worker.hurry();
    tokio::spawn(async move {
        hurry.cancelled().await;
        hurried.cancel();
    });
    let upkeep = tokio::spawn(server::upkeep(metrics, shutdown.clone()));
    let done = worker.run(shutdown.clone()).await;
    shutdown.cancel();
    broker.close().await;
    let _ = tokio::join!(announced, upkeep);
    done.map(|()| 0).map_err(|error| refused(&error))
}

/// Its own text names the mend.
fn refused(error: &WorkerError) -> Failure {
    match error {
        WorkerError::NoSlots | WorkerError::Listen { .. } => Failure::input(error.to_string()),
        _ => Failure::infra(error.to_string()),
    }
}
