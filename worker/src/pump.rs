//! Sends an attempt's output: only what is on the disk (P16), from wherever the coordinator wants it (P14).
//!
//! One task an attempt, from its claim until it is forgotten. It holds no output while it waits.

use std::fs::File;
use std::io;
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt as _};
use longshore_protocol::broker::{Broker, Outgoing};
use longshore_protocol::output::{MESSAGE_BYTES_MAX, Offsets, OutputMessage, Run};
use longshore_protocol::wire;
use tokio::sync::watch;

use crate::attempts::{Handle, Spooled};
use crate::blocking::blocking;
use crate::context::Context;
use crate::disk::spool::{self, Chunk};
use crate::engine::Engine;
use crate::report::until_confirmed;

/// What a run weighs in a message besides its bytes: without it a message of many short ones would have no bound.
const RUN_OVERHEAD_BYTES: usize = 96;

/// One place of the spool every so often is remembered, so that sending again does not read all of it.
const INDEX_EVERY_BYTES: u64 = 1024 * 1024;

/// Sends until the attempt is forgotten, or the worker has drained.
pub(crate) async fn run<B: Broker, E: Engine>(context: Arc<Context<B, E>>, attempt: Handle) {
    let forgotten = attempt.forgotten.clone();
    tokio::select! {
        () = forgotten.cancelled() => {}
        () = context.phases.stopped.cancelled() => {}
        sent = send(&context, &attempt) => if let Err(error) = sent {
            // The log will be closed with a gap of stated size: its final offsets are in `finished`.
            tracing::error!(%error, spool = %attempt.spool.display(), "the spooled output cannot be read");
        }
    }
}

async fn send<B: Broker, E: Engine>(context: &Context<B, E>, attempt: &Handle) -> io::Result<()> {
    let mut spooled = attempt.spooled.subscribe();
    let mut reader: Option<Arc<File>> = None;
    let mut place = Place::default();
    let mut index = vec![Place::default()];
    let (mut asked, mut stored) = (0, Offsets::default());
    // One batch is on its way while the next one is read and encoded. Not two: batches have no order among them.
    let mut on_its_way: Option<BoxFuture<'_, bool>> = None;
    loop {
        let now: Spooled = *spooled.borrow_and_update();
        if now.asked != asked {
            (asked, stored) = (now.asked, now.stored);
            let known = index.iter().rev().find(|known| known.is_before(stored));
            place = known.copied().unwrap_or_default();
        }
        if place.position >= now.bytes {
            let goes_on = match on_its_way.take() {
                Some(batch) => batch.await,
                None => changed(context, &mut spooled).await,
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
        let (arrived, next) = tokio::join!(arrived, read(context, attempt, file, &mut place, now.bytes, stored));
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

/// The next batch, of what is not stored yet.
async fn read<B: Broker, E: Engine>(
    context: &Context<B, E>,
    attempt: &Handle,
    file: Arc<File>,
    place: &mut Place,
    to: u64,
    stored: Offsets,
) -> io::Result<Vec<Outgoing>> {
    // Held while a batch is in memory twice, not while it is waited for.
    let _memory = context.gates.output.acquire().await.map_err(io::Error::other)?;
    let from = place.position;
    let chunk = blocking(move || spool::read(&file, from, to)).await?;
    if chunk.torn {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("no frame at byte {}", chunk.next)));
    }
    place.advance(&chunk);
    let wanted = chunk.runs.into_iter().filter_map(|run| {
        let known = stored.of(run.stream);
        run.behind(known)
    });
    Ok(messages(context, attempt, wanted))
}

/// Waits for more. `false` when there will be none, because the worker drains and everything is sent.
async fn changed<B: Broker, E: Engine>(context: &Context<B, E>, spooled: &mut watch::Receiver<Spooled>) -> bool {
    tokio::select! {
        biased;
        changed = spooled.changed() => changed.is_ok(),
        () = context.phases.draining.cancelled() => false,
    }
}

/// A place between two frames, and how far each stream is there.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    position: u64,
    offsets: Offsets,
}

impl Place {
    fn advance(&mut self, chunk: &Chunk) {
        self.position = chunk.next;
        for run in &chunk.runs {
            *self.offsets.of_mut(run.stream) = run.end();
        }
    }

    /// Whether nothing is missed by starting here.
    fn is_before(&self, stored: Offsets) -> bool {
        self.offsets.stdout <= stored.stdout && self.offsets.stderr <= stored.stderr
    }
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
        let added = run.bytes.len() + RUN_OVERHEAD_BYTES;
        if weight.saturating_add(added) > MESSAGE_BYTES_MAX {
            batches.push(Vec::new());
            weight = 0;
        }
        weight += added;
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
