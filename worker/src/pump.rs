//! Sends an attempt's output: only what is on the disk (P16), from wherever the coordinator wants it (P14).
//!
//! One task an attempt, from its claim until it is forgotten. It holds no output while it waits.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use longshore_protocol::broker::{Broker, Outgoing};
use longshore_protocol::output::{MESSAGE_BYTES_MAX, Offsets, OutputMessage, Run, WINDOW_BYTES_MIN, window_bytes};
use longshore_protocol::process::watch;
use longshore_protocol::wire;

use crate::attempts::{Handle, Spooled};
use crate::context::Context;
use crate::disk::spool::{self, Place};
use crate::engine::Engine;
use crate::metrics::SPOOL_BYTES;
use crate::report::until_confirmed;
use longshore_protocol::process::blocking;

/// One place of the spool every so often is remembered, so that sending again does not read all of it.
const INDEX_EVERY_BYTES: u64 = 1024 * 1024;

/// What the smallest window lets through holds a whole frame.
const _: () = assert!(WINDOW_BYTES_MIN > spool::FRAME_BYTES_MAX as u64);

/// The spool's beginning is given back to the disk when it is so long: each time costs an fsync. While a step waits for
/// room, whatever can be.
const FREE_EVERY_BYTES: u64 = 16 * 1024 * 1024;

/// Sends until the attempt is forgotten, or the worker has drained.
pub(crate) async fn run<B: Broker, E: Engine>(context: Arc<Context<B, E>>, attempt: Handle) {
    let forgotten = attempt.forgotten.clone();
    tokio::select! {
        biased;
        () = forgotten.cancelled() => {}
        () = context.phases.stopped.cancelled() => {}
        sent = send(&context, &attempt) => if let Err(error) = sent {
            // The log will be closed with a gap of stated size: its final offsets are in `finished`.
            tracing::error!(%error, spool = %attempt.spool.display(), "the spooled output cannot be read");
            // Nobody gives anything back any more: a command must not wait for that.
            attempt.spooled.send_modify(|spooled| spooled.kept = true);
        }
    }
}

async fn send<B: Broker, E: Engine>(context: &Context<B, E>, attempt: &Handle) -> io::Result<()> {
    let mut spooled = attempt.spooled.subscribe();
    let mut reader: Option<Arc<File>> = None;
    let mut place = Place::default();
    let mut index = vec![Place::default()];
    let mut asked = 0;
    let mut heard = (Offsets::default(), 0);
    let mut patience = ASK_AFTER;
    // One batch is on its way while the next one is read and encoded. Not two: batches have no order among them.
    let mut on_its_way: Option<BoxFuture<'_, bool>> = None;
    loop {
        let now: Spooled = *spooled.borrow_and_update();
        if (now.stored, now.asked) != heard {
            heard = (now.stored, now.asked);
            patience = ASK_AFTER;
        }
        // The first place of the index is never behind what is stored.
        let stored = index.iter().rposition(|known| is_before(known, now.stored)).unwrap_or_default();
        // What is stored is not sent again; and what is given back is not read.
        if now.asked != asked || place.position < index[stored].position {
            asked = now.asked;
            place = index[stored];
        }
        let scarce = attempt.share.is_scarce();
        let worth_it = if scarce { 1 } else { FREE_EVERY_BYTES };
        if index[stored].position >= now.freed + worth_it && !now.kept {
            free(attempt, index[stored]).await;
            index.drain(..stored);
            continue;
        }
        // P15
        let open_to = now.stored.total() + window_bytes(context.attempts.held());
        let is_shut = place.offsets.total() >= open_to;
        if place.position >= now.bytes || is_shut {
            let goes_on = match (on_its_way.take(), &reader) {
                (Some(batch), _) => batch.await,
                (None, Some(file)) if is_shut || (now.full && scarce) => {
                    let silent = if is_shut { context.config.lease } else { patience };
                    match opened(context, &mut spooled, room(attempt, scarce), silent).await {
                        Window::Open => true,
                        Window::Silent => {
                            patience = (patience * 2).min(context.config.lease);
                            let again = first_unstored(context, attempt, file, index[stored], now).await?;
                            again.is_empty() || until_confirmed(context, again, "output").await
                        }
                        Window::Over => false,
                    }
                }
                (None, _) => changed(context, &mut spooled, room(attempt, scarce)).await,
            };
            if !goes_on {
                return Ok(());
            }
            continue;
        }
        let file = match &reader {
            Some(file) => Arc::clone(file),
            None => Arc::clone(reader.insert(Arc::new(File::open(&attempt.spool)?))),
        };
        let arrived = async {
            match on_its_way.take() {
                Some(batch) => batch.await,
                None => true,
            }
        };
        // A small window is not passed by a large batch, only by its last message.
        let at_once = open_to.saturating_sub(place.offsets.total()).max(WINDOW_BYTES_MIN);
        let upto = Spooled { bytes: now.bytes.min(place.position + at_once), ..now };
        let next = async {
            let messages = read(context, attempt, file, &mut place, upto).await?;
            keep_pace(context, attempt, &messages).await;
            io::Result::Ok(messages)
        };
        let (arrived, next) = tokio::join!(arrived, next);
        let messages = next?;
        if !arrived {
            return Ok(());
        }
        if index.last().is_none_or(|last| place.position >= last.position + INDEX_EVERY_BYTES) {
            index.push(place);
        }
        if !messages.is_empty() {
            on_its_way = Some(until_confirmed(context, messages, "output").boxed());
        }
    }
}

/// Waits for its turn where other steps run. Not if the command cannot wait, whose output would be cut behind a full
/// spool; nor on a worker that ends, which sends what it can.
async fn keep_pace<B: Broker, E: Engine>(context: &Context<B, E>, attempt: &Handle, messages: &[Outgoing]) {
    if attempt.spooled.borrow().waits && context.attempts.others_run(&attempt.claim) {
        let bytes = messages.iter().map(|message| message.body.len()).sum();
        // `None`: it ends.
        let _ = context.phases.stopping.run_until_cancelled(context.pace.turn(bytes)).await;
    }
}

/// The next batch, of what is not stored yet.
async fn read<B: Broker, E: Engine>(
    context: &Context<B, E>,
    attempt: &Handle,
    file: Arc<File>,
    place: &mut Place,
    now: Spooled,
) -> io::Result<Vec<Outgoing>> {
    // Held while a batch is in memory twice, not while it is waited for.
    let _memory = context.gates.output.acquire().await.map_err(io::Error::other)?;
    let from = *place;
    let chunk = blocking(move || spool::read(&file, from, now.bytes)).await?;
    *place = chunk.next;
    if chunk.torn {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("no frame at byte {}", place.position)));
    }
    let wanted = chunk.runs.into_iter().filter_map(|run| {
        let known = now.stored.of(run.stream);
        run.behind(known)
    });
    Ok(messages(context, attempt, wanted))
}

/// The first message of what is not stored yet; none if all of it is. The index is coarse: what stands behind its place
/// may be stored for longer than one read.
async fn first_unstored<B: Broker, E: Engine>(
    context: &Context<B, E>,
    attempt: &Handle,
    file: &Arc<File>,
    mut place: Place,
    now: Spooled,
) -> io::Result<Vec<Outgoing>> {
    let mut batch = Vec::new();
    while batch.is_empty() && place.position < now.bytes {
        batch = read(context, attempt, Arc::clone(file), &mut place, now).await?;
    }
    batch.truncate(1);
    Ok(batch)
}

/// Waits for more. `false` when there will be none, because the worker drains and everything is sent.
async fn changed<B: Broker, E: Engine>(
    context: &Context<B, E>,
    spooled: &mut watch::Receiver<Spooled>,
    scarce: impl Future<Output = ()>,
) -> bool {
    tokio::select! {
        biased;
        changed = spooled.changed() => changed.is_ok(),
        () = scarce => true,
        () = context.phases.draining.cancelled() => false,
    }
}

/// What became of a window that was shut.
enum Window {
    /// Something changed.
    Open,
    /// Nothing was heard for long: perhaps what was sent is lost, with its queue for example. One message of it is sent
    /// again, and the answer says what is stored. Not all of it: perhaps nobody is there, and the broker keeps it.
    Silent,
    /// The worker has no more time for it.
    Over,
}

/// How long a step that waits for room goes without hearing how much of what it sent is stored: less than it is told of
/// by itself may be all that it has. It doubles, up to the lease, until something is heard: while nobody is there, the
/// broker keeps whatever asks.
const ASK_AFTER: Duration = Duration::from_secs(1);

/// Until somebody begins to wait for room, if nobody did: then what can be given back is worth an fsync.
async fn room(attempt: &Handle, scarce: bool) {
    if scarce {
        return std::future::pending().await;
    }
    // It cannot be closed: the share holds the sender.
    let _ = attempt.share.waiting().wait_for(|waiting| *waiting > 0).await;
}

/// P15: waits until more is stored, also while the worker drains.
async fn opened<B: Broker, E: Engine>(
    context: &Context<B, E>,
    spooled: &mut watch::Receiver<Spooled>,
    scarce: impl Future<Output = ()>,
    silent: Duration,
) -> Window {
    tokio::select! {
        biased;
        changed = spooled.changed() => if changed.is_ok() { Window::Open } else { Window::Over },
        () = context.phases.stopped.cancelled() => Window::Over,
        () = scarce => Window::Open,
        () = tokio::time::sleep(silent) => Window::Silent,
    }
}

/// P15: gives the spool's beginning back to the disk. Where that fails it is kept, and bounds what the step may write.
async fn free(attempt: &Handle, place: Place) {
    let path = attempt.spool.clone();
    let freed = blocking(move || spool::free(&path, place)).await;
    let gone = match &freed {
        Ok(gone) => *gone,
        Err(error) => {
            tracing::warn!(%error, spool = %attempt.spool.display(), "the disk does not take back what is stored");
            false
        }
    };
    attempt.spooled.send_modify(|spooled| {
        if gone {
            metrics::gauge!(SPOOL_BYTES).decrement((place.position - spooled.freed) as f64);
            spooled.freed = place.position;
            attempt.share.shrink(spooled.held());
        } else {
            spooled.kept = true;
        }
    });
}

/// Whether nothing is missed by going on from there.
fn is_before(place: &Place, stored: Offsets) -> bool {
    place.offsets.stdout <= stored.stdout && place.offsets.stderr <= stored.stderr
}

/// Runs in the order in which they were read, in messages of bounded size.
fn messages<B: Broker, E: Engine>(
    context: &Context<B, E>,
    attempt: &Handle,
    runs: impl Iterator<Item = Run>,
) -> Vec<Outgoing> {
    let mut batches: Vec<Vec<Run>> = Vec::new();
    let mut weight = usize::MAX;
    for run in runs {
        if weight.saturating_add(run.weight()) > MESSAGE_BYTES_MAX {
            batches.push(Vec::new());
            weight = 0;
        }
        weight += run.weight();
        if let Some(batch) = batches.last_mut() {
            batch.push(run);
        }
    }
    let to = context.topology.output(attempt.claim.shard()).address();
    let message = |runs| OutputMessage {
        worker: context.id.clone(),
        incarnation: context.incarnation,
        claim: attempt.claim.clone(),
        runs,
    };
    batches.into_iter().map(|runs| Outgoing::new(to.clone(), wire::encode(&message(runs)))).collect()
}
