//! A worker from its start to its end.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use longshore_protocol::broker::{Broker, BrokerError};
use longshore_protocol::event::{Event, Hello};
use longshore_protocol::process::Tasks;
use longshore_protocol::process::watch;
use longshore_protocol::{Epoch, Incarnation, WorkerId};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::attempts::StopReason;
use crate::clock::Boot;
use crate::config::Config;
use crate::context::{Context, Who};
use crate::disk::Disk;
use crate::disk::records::Records;
use crate::engine::{Duty, Engine};
use crate::error::WorkerError;
use crate::report::Reports;
use crate::{adopt, claim, control, heartbeat, http, metrics, parked, probe, report, sweep};
use longshore_protocol::process::blocking;

/// How long a stopping worker goes on sending what it knows. The rest is on its disk, for its next incarnation.
const FLUSH_MAX: Duration = Duration::from_secs(5);

/// The broker's own backoff paces reconnection; this only keeps a failing declare from spinning.
const DECLARE_WAIT: Duration = Duration::from_secs(1);

/// One process beside one Engine (see the [crate's page](crate)).
pub struct Worker<B, E> {
    context: Arc<Context<B, E>>,
    reports: Reports,
    epoch: Epoch,
    /// P10: what the last incarnation left.
    left: Records,
    listener: Option<TcpListener>,
    ready: watch::Sender<bool>,
}

impl<B, E> fmt::Debug for Worker<B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Context { id, incarnation, .. } = &*self.context;
        f.debug_struct("Worker").field("id", id).field("incarnation", incarnation).finish_non_exhaustive()
    }
}

impl<B: Broker, E: Engine> Worker<B, E> {
    /// Locks the state directory, binds the worker's id to the Engine's, and begins an incarnation (P10). Nothing is
    /// sent yet. Needs the Engine, does not need the broker.
    pub async fn open(config: Config, broker: B, engine: E) -> Result<Self, WorkerError> {
        if config.slots == 0 {
            return Err(WorkerError::NoSlots);
        }
        let dir = config.state_dir.clone();
        let disk = blocking(move || Disk::open(&dir)).await?;
        let info = engine.info().await?;
        let (given, starts_before, engine_id) = (config.worker_id.clone(), config.starts_before, info.id.clone());
        let (disk, who, epoch, log) = blocking(move || {
            let id = disk.identity(given.as_ref(), &engine_id)?;
            let incarnation = disk.next_incarnation(starts_before)?;
            let (epoch, log) = (disk.epoch()?, disk.take_over()?);
            Ok::<_, WorkerError>((Arc::new(disk), Who { id, incarnation, engine_id }, epoch, log))
        })
        .await?;
        let listener = match config.metrics_listen {
            Some(address) => {
                let listener = TcpListener::bind(address).await;
                Some(listener.map_err(|source| WorkerError::Listen { address, source })?)
            }
            None => None,
        };
        let left = log.records();
        let (context, reports) = Context::new(config, who, broker, engine, disk, &log)?;
        let context = Arc::new(context);
        Ok(Self { context, reports, epoch, left, listener, ready: watch::Sender::new(false) })
    }

    /// Its id: given, or kept in the state directory.
    pub fn id(&self) -> &WorkerId {
        &self.context.id
    }

    /// This start of it.
    pub fn incarnation(&self) -> Incarnation {
        self.context.incarnation
    }

    /// Where the health page is served: the port that was chosen, where 0 was asked for.
    pub fn listens_on(&self) -> Option<std::net::SocketAddr> {
        self.listener.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Becomes true when the queues exist and `hello` was confirmed: jobs are claimed from then on.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Once cancelled, what runs when the worker ends does not go on for [`Config::drain`], but is handed back at once.
    pub fn hurry(&self) -> CancellationToken {
        self.context.phases.hurried.clone()
    }

    /// Once cancelled, no step is given its grace any more: what is being stopped, and what is stopped later, is killed
    /// at once.
    pub fn kill(&self) -> CancellationToken {
        self.context.killing.clone()
    }

    /// Carries out jobs until `shutdown`, or until it must not go on. What runs then goes on for [`Config::drain`]; what
    /// is not over by then is stopped, removed and handed back as `infra`. What cannot be sent any more is on the disk.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), WorkerError> {
        let Self { context, reports, epoch, left, listener, ready } = self;
        metrics::start(context.config.slots);
        tracing::info!(worker = %context.id, incarnation = %context.incarnation, engine = %context.engine_id, "starts");
        let tasks = Tasks::new();
        if let Some(listener) = listener {
            tasks.spawn(http::serve(Arc::clone(&context), listener));
        }
        let stopping = context.phases.stopping.clone();
        let forwarder = context.clone();
        tasks.spawn(async move {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => forwarder.phases.stopping.cancel(),
                () = forwarder.phases.stopping.cancelled() => {}
            }
        });
        // Apart, because it is as large as all that it waits for, and gone once it is done.
        let begun = Box::pin(begin(&context, &tasks, reports, left, epoch, &ready));
        if stopping.run_until_cancelled(begun).await.is_some() {
            let claimer = tasks.spawn(claim::run(Arc::clone(&context)));
            stopping.cancelled().await;
            if let Err(panic) = claimer.await {
                tracing::error!(%panic, "the claimer ended badly");
            }
            drain(&context).await;
        }
        Box::pin(end(&context, &tasks)).await;
        context.take_failure().map_or(Ok(()), Err)
    }
}

/// P10: what the last incarnation left is taken up, then the rest is swept, then `hello` is said before anything else.
/// The broker comes last: what runs goes on without it.
async fn begin<B: Broker, E: Engine>(
    context: &Arc<Context<B, E>>,
    tasks: &Tasks,
    reports: Reports,
    left: Records,
    epoch: Epoch,
    ready: &watch::Sender<bool>,
) {
    if let Err(error) = begin_engine(context).await {
        return context.fail(error);
    }
    let left = adopt::take_over(context, &left).await;
    sweep::sweep(context).await;
    probe::list_snapshots(context).await;
    context.attempts.ask_all(Boot::now()); // P18: `hello` lists them, and is sent after this
    let hello = context.reporter.send(Event::Hello(hello(context))).await;
    adopt::go_on(context, left).await;
    // Fewer may be parked than before.
    let room = Arc::clone(context);
    context.tidying.at_once(async move { parked::make_room(&room).await });
    tasks.spawn(parked::expire(Arc::clone(context)));
    if let Err(error) = declare(context).await {
        return context.fail(error.into());
    }
    context.pumps.spawn(report::run(Arc::clone(context), reports));
    // The answer to `hello` may be that this incarnation is refused.
    tasks.spawn(control::run(Arc::clone(context), epoch));
    let disk_free = watch::Sender::new(None);
    let seen = disk_free.subscribe();
    tasks.spawn(probe::run(Arc::clone(context), disk_free));
    if hello.await.is_ok() {
        tasks.spawn(heartbeat::run(Arc::clone(context), seen));
        ready.send_replace(true);
    }
}

async fn begin_engine<B: Broker, E: Engine>(context: &Context<B, E>) -> Result<(), WorkerError> {
    let dir = context.disk.engine_dir();
    let dir = dir.map_err(|source| WorkerError::State { path: context.disk.dir().to_owned(), source })?;
    let config = &context.config;
    let duty = Duty {
        worker: context.id.clone(),
        dir,
        // Each slot's container has one, and each parked one keeps its own.
        namespaces: config.slots as usize + config.parked_max(),
        direct: config.direct,
        orphan: config.orphan,
    };
    Ok(context.retrying("begin", || context.engine.begin(duty.clone())).await?)
}

async fn declare<B: Broker, E: Engine>(context: &Context<B, E>) -> Result<(), BrokerError> {
    let queues = context.topology.of_worker(&context.id, &context.config.pool);
    loop {
        match context.broker.declare(&queues).await {
            Err(BrokerError::Lost { reason }) => tracing::info!(reason, "the queues are declared again"),
            answer => return answer,
        }
        tokio::time::sleep(DECLARE_WAIT).await;
    }
}

fn hello<B: Broker, E: Engine>(context: &Context<B, E>) -> Hello {
    // For people: one that cannot be read is no reason not to work.
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    Hello {
        engine: context.engine_id.clone(),
        pool: context.config.pool.clone(),
        slots: context.config.slots,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host,
        records: context.attempts.records(),
    }
}

/// Lets what runs finish, for as long as it is given. Nothing is claimed any more; heartbeats and output go on.
async fn drain<B: Broker, E: Engine>(context: &Context<B, E>) {
    let steps = context.attempts.running();
    if steps == 0 || context.config.drain.is_zero() {
        return;
    }
    tracing::info!(steps, seconds = context.config.drain.as_secs(), "waits for what runs");
    context.jobs.close();
    tokio::select! {
        biased;
        () = context.jobs.wait() => {}
        () = context.phases.hurried.cancelled() => tracing::info!("does not wait any longer"),
        () = tokio::time::sleep(context.config.drain) => tracing::info!("hands back what still runs"),
    }
}

/// Stops what runs, says so, and waits for every task.
async fn end<B: Broker, E: Engine>(context: &Context<B, E>, tasks: &Tasks) {
    context.attempts.stop_all(&StopReason::Shutdown);
    context.jobs.close();
    context.jobs.wait().await;
    // Nobody has news any more: what is queued and spooled is sent, if the broker is there.
    context.phases.draining.cancel();
    context.pumps.close();
    let flushed = timeout(FLUSH_MAX, context.pumps.wait());
    let (flushed, ()) = tokio::join!(flushed, leave_engine(context));
    if flushed.is_err() {
        tracing::info!("not everything could be sent; it is on the disk for the next start");
    }
    context.phases.stopped.cancel();
    context.pumps.wait().await;
    tasks.close();
    tasks.wait().await;
}

/// Leaves no container behind.
async fn leave_engine<B: Broker, E: Engine>(context: &Context<B, E>) {
    parked::leave_all(context, context.config.leaving).await;
    context.tidying.done().await;
    context.engine.end().await;
}
