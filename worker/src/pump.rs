//! Sends an attempt's output: only what is on the disk (P16), from wherever the coordinator wants it (P14).
//!
//! One task an attempt, from its claim until it is forgotten. It holds no output while it waits.

use std::fs::File;
use std::io;
use std::sync::Arc;

use longshore_protocol::broker::{Broker, Outgoing};
use longshore_protocol::output::{Line, MESSAGE_BYTES_MAX, Offsets, OutputMessage};
use longshore_protocol::wire;
use tokio::sync::watch;

use crate::attempts::{Handle, Spooled};
use crate::blocking::blocking;
use crate::context::Context;
use crate::disk::spool::{self, Chunk};
use crate::engine::Engine;
use crate::report::until_confirmed;

/// What a line weighs in a message besides its bytes: else a message of empty lines would have no bound.
const LINE_OVERHEAD_BYTES: usize = 64;

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
    loop {
        let now: Spooled = *spooled.borrow_and_update();
        if now.asked != asked {
            (asked, stored) = (now.asked, now.stored);
            let known = index.iter().rev().find(|known| known.is_before(stored));
            place = known.copied().unwrap_or_default();
        }
        if place.position >= now.bytes {
            if !changed(context, &mut spooled).await {
                return Ok(());
            }
            continue;
        }
        // Held while a batch is in memory, not while it is waited for.
        let _memory = context.gates.output.acquire().await.map_err(io::Error::other)?;
        let file = match &reader {
            Some(file) => Arc::clone(file),
            None => Arc::clone(reader.insert(Arc::new(File::open(&attempt.spool)?))),
        };
        let from = place.position;
        let chunk = blocking(move || spool::read(&file, from, now.bytes)).await?;
        if chunk.torn {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("no frame at byte {}", chunk.next)));
        }
        place.advance(&chunk);
        if index.last().is_none_or(|last| place.position >= last.position + INDEX_EVERY_BYTES) {
            index.push(place);
        }
        let wanted = chunk.lines.into_iter().filter(|line| line.end() > stored.of(line.stream));
        let messages = messages(context, attempt, wanted);
        if !messages.is_empty() && !until_confirmed(context, messages, "output").await {
            return Ok(());
        }
    }
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
        for line in &chunk.lines {
            *self.offsets.of_mut(line.stream) = line.end();
        }
    }

    /// Whether nothing is missed by starting here.
    fn is_before(&self, stored: Offsets) -> bool {
        self.offsets.stdout <= stored.stdout && self.offsets.stderr <= stored.stderr
    }
}

/// Lines in the order in which they were read, in messages of bounded size.
fn messages<B: Broker, E: Engine>(
    context: &Context<B, E>,
    attempt: &Handle,
    lines: impl Iterator<Item = Line>,
) -> Vec<Outgoing> {
    let mut batches: Vec<Vec<Line>> = Vec::new();
    let mut weight = usize::MAX;
    for line in lines {
        let added = line.data.0.len() + LINE_OVERHEAD_BYTES;
        if weight.saturating_add(added) > MESSAGE_BYTES_MAX {
            batches.push(Vec::new());
            weight = 0;
        }
        weight += added;
        if let Some(batch) = batches.last_mut() {
            batch.push(line);
        }
    }
    let to = context.topology.output(attempt.claim.shard()).address();
    let message = |lines| OutputMessage {
        worker: context.id.clone(),
        incarnation: context.incarnation,
        claim: attempt.claim.clone(),
        lines,
    };
    batches.into_iter().map(|lines| Outgoing::new(to.clone(), wire::encode(&message(lines)))).collect()
}
