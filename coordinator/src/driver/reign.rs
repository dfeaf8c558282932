//! One reign: recover, then take batches until the epoch is lost or the process ends (P21).

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use longshore_protocol::broker::Broker;
use longshore_protocol::process::Tasks;
use longshore_protocol::process::watch;
use longshore_protocol::{Epoch, Shard};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::calendar::Calendar;
use super::clock::Ticks;
use super::inputs::{Arrival, Command, INTERNALS, Intake, Internal, consume};
use super::open::OpenSteps;
use super::outbox::{Newest, Publisher};
use super::writer::{Hands, Writer};
use super::{Shared, clock, gone};
use crate::core::Core;
use crate::logs::LogDesk;
use crate::pipeline::STEPS_MAX;
use crate::store::batch::OutboxAbout;
use crate::store::epoch::RENEW;
use crate::store::{Store, StoreError};

/// Rows of the outbox looked through at a time when a reign begins.
const OUTBOX_PAGE: u32 = 1_000;

/// There is one shard today, and one active coordinator for it.
const SHARD: Shard = Shard(0);

/// Why a reign could not begin or go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReignError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A journal that our own core rejects: a bug or a damaged file. Nobody leads until someone looks.
    #[error("the journal cannot be replayed: {0}")]
    Replay(String),
}

/// Leads until `shutdown`, or until an error says that it no longer does.
pub(super) async fn lead<B: Broker>(
    shared: Shared<B>,
    epoch: Epoch,
    commands: &mut mpsc::Receiver<Command>,
    shutdown: &CancellationToken,
) -> Result<(), ReignError> {
    let stop = shutdown.child_token();
    // Where this future is dropped instead of ended, the tasks around the writer must end as well.
    let _guard = stop.clone().drop_guard();
    let tracker = Tasks::new();
    let led = async {
        // A long journal takes longer to replay than an epoch lapses: two that stand by would take it
        // from each other for ever. That it is lost all the same, the first transaction says.
        let recovering = stop.child_token();
        tracker.spawn(recovering.clone().run_until_cancelled_owned(renew(shared.store.clone(), epoch)));
        let recovered = recover(shared, epoch, &tracker, &stop).await.map_err(unreadable);
        recovering.cancel();
        let (writer, intake, internals) = recovered?;
        rule(writer, intake, internals, commands, &stop).await
    };
    let led = led.await;
    stop.cancel();
    tracker.close();
    tracker.wait().await;
    led
}

/// What cannot be read now cannot be read by anybody who leads next.
fn unreadable(error: ReignError) -> ReignError {
    match error {
        ReignError::Store(unreadable @ StoreError::Unreadable { .. }) => ReignError::Replay(unreadable.to_string()),
        error => error,
    }
}

async fn renew(store: Arc<dyn Store>, epoch: Epoch) {
    loop {
        tokio::time::sleep(RENEW).await;
        if let Err(error) = store.renew_epoch(epoch).await {
            tracing::warn!(%error, %epoch, "the epoch was not renewed");
        }
    }
}

/// Reads what the last reign left, and starts the tasks around the writer.
async fn recover<B: Broker>(
    shared: Shared<B>,
    epoch: Epoch,
    tracker: &Tasks,
    stop: &CancellationToken,
) -> Result<(Writer<B>, Intake, mpsc::Receiver<Internal>), ReignError> {
    let mut core = Core::new(shared.core.clone());
    let mut now = 0;
    let mut runs = BTreeSet::new();
    for (at, entry) in shared.store.entries_to_replay().await? {
        core.replay(&entry, at).map_err(|illegal| ReignError::Replay(illegal.to_string()))?;
        now = at;
        runs.extend(entry.run());
        // Replay has no await of its own, and others share this thread.
        tokio::task::consume_budget().await;
    }
    let counters = shared.store.counters().await?;
    let (mut jobs, mut outstanding) = (BTreeMap::<_, (u64, u64)>::new(), BTreeSet::new());
    let mut last = 0;
    loop {
        let rows = shared.store.outbox_after(last, OUTBOX_PAGE).await?;
        let Some(row) = rows.last() else { break };
        last = row.id;
        for row in rows {
            outstanding.insert(row.id);
            if let OutboxAbout::Job { queue, .. } = row.about {
                jobs.entry(queue).or_default().0 += 1;
            }
        }
    }
    let logs = LogDesk::recovered(shared.store.open_logs().await?);
    let mut open = OpenSteps::default();
    for run in runs {
        let steps = core.run_view(run).map(|view| view.steps).unwrap_or_default();
        steps.iter().enumerate().for_each(|(index, step)| open.put(run, index, step.phase));
    }
    let Started { hands, intake, internals, begun } = start_tasks(&shared, epoch, counters.outbox, tracker, stop);
    let mut writer = Writer {
        shared,
        shard: SHARD,
        epoch,
        core,
        logs,
        counters,
        hands,
        jobs,
        outstanding,
        early: BTreeSet::new(),
        ticks: Ticks::new(),
        open,
        confirmed: Vec::new(),
        committed_at: Instant::now(),
        calendar: Calendar::behind(now),
        now,
    };
    writer.begin().await?;
    // Where they have ended, the reign has as well.
    let _ = begun.send(());
    Ok((writer, intake, internals))
}

/// The tasks around the writer, from its side.
struct Started {
    hands: Hands,
    intake: Intake,
    internals: mpsc::Receiver<Internal>,
    /// That the reign's first transaction is committed.
    begun: oneshot::Sender<()>,
}

fn start_tasks<B: Broker>(
    shared: &Shared<B>,
    epoch: Epoch,
    newest: i64,
    tracker: &Tasks,
    stop: &CancellationToken,
) -> Started {
    let (internals, internals_in) = mpsc::channel(INTERNALS);
    let (newest, newest_in) = watch::channel(Newest::recovered(newest));
    // P21: nothing is consumed or published before the reign's first transaction has shown that it is one. Of one
    // watch, two that wait would be woken in no order.
    let (renewed, renewed_in) = watch::channel(None);
    let (begun, begins) = oneshot::channel();
    let (tick_back, tick_back_in) = watch::channel(0);
    // One order of looks at a time, and one set of consumers ever.
    let (looks, looks_in) = mpsc::channel(1);
    let (ready, arriving) = mpsc::channel(1);
    let spawn = |task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        let stop = stop.clone();
        tracker.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    };
    let (broker, topology) = (shared.broker.clone(), shared.topology.clone());
    // P3: what is left in the outbox is carried out first, since ids are given in order.
    let publisher = Publisher {
        broker: broker.clone(),
        topology: topology.clone(),
        shard: SHARD,
        store: shared.store.clone(),
        newest: newest_in,
        renewed: renewed_in,
        done: internals.clone(),
        declared: BTreeSet::new(),
    };
    spawn(Box::pin(publisher.run()));
    let (consuming, queues) = (broker.clone(), topology.clone());
    let (every, lease) = (shared.tick, shared.lease);
    spawn(Box::pin(async move {
        if begins.await.is_err() {
            return;
        }
        consume(consuming.clone(), queues.clone(), SHARD, RENEW, &ready).await;
        // P8: the clock begins when a tick has where to go, and can come back.
        let heartbeats = queues.heartbeats(SHARD).address();
        clock::tick(consuming, heartbeats, epoch, every, lease, tick_back_in).await;
    }));
    spawn(Box::pin(gone::look(broker, topology, SHARD, looks_in, internals.clone())));
    let hands = Hands { tracker: tracker.clone(), stop: stop.clone(), internals, newest, renewed, tick_back, looks };
    Started { hands, intake: Intake::new(arriving), internals: internals_in, begun }
}

/// Batch after batch: while a transaction runs, the inputs of the next one gather.
async fn rule<B: Broker>(
    mut writer: Writer<B>,
    mut intake: Intake,
    mut internals: mpsc::Receiver<Internal>,
    commands: &mut mpsc::Receiver<Command>,
    stop: &CancellationToken,
) -> Result<(), ReignError> {
    let mut renew = tokio::time::interval(RENEW);
    renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let wakeup = writer.core.next_wakeup();
        let wait = wakeup.map(|at| Duration::from_millis(at.saturating_sub(writer.calendar.now())));
        let first = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(writer.end().await?),
            // Every second, whatever else there is: it only counts where nothing was committed meanwhile.
            _ = renew.tick() => Arrival::Renew,
            Some(command) = commands.recv() => Arrival::Command(command),
            Some(internal) = internals.recv() => Arrival::Internal(internal),
            (source, delivery) = intake.next() => Arrival::Delivery(source, delivery),
            () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => Arrival::Clock,
        };
        let idle = matches!(first, Arrival::Renew) && writer.committed_at.elapsed() < RENEW / 2;
        let mut steps = if let Arrival::Command(command) = &first { command.steps() } else { 0 };
        let mut arrivals = vec![first];
        // There may be as many as fit the line, and each may be a run as large as any: all of them at
        // once would take longer than the epoch lapses.
        while steps < STEPS_MAX
            && let Ok(command) = commands.try_recv()
        {
            steps += command.steps();
            arrivals.push(Arrival::Command(command));
        }
        for _ in 0..INTERNALS {
            let Ok(internal) = internals.try_recv() else { break };
            arrivals.push(Arrival::Internal(internal));
        }
        intake.drain(&mut arrivals);
        if idle && arrivals.len() == 1 {
            continue;
        }
        writer.carry_out(arrivals).await?;
    }
}
