//! One started command: how it is told to end, what it wrote, how it ended. A supervisor's part, in memory.
//!
//! The command runs on the fake's machine, and so goes on when its worker dies. What it writes is kept until the worker
//! acknowledges it (P16), and behind [`KEPT_BYTES_MAX`] it blocks. Without a supervisor nothing is kept: what was
//! handed out is gone, and what nobody reads is lost.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use longshore_protocol::output::{LINE_BYTES_MAX, Offsets, Stream};
use longshore_protocol::process::watch;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::{Boot, now_ms};
use crate::engine::{CommandLease, EngineError, Exit, OUTPUT_PIECES_MAX, Piece, Running};

/// What is kept of one stream, as the real supervisor bounds it. More than the longest line, because a worker
/// acknowledges whole lines only.
const KEPT_BYTES_MAX: u64 = 1024 * 1024;
const _: () = assert!(KEPT_BYTES_MAX > LINE_BYTES_MAX as u64 + 1);

/// A command, from its start until the container's next one, or its cleaning.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) attempt: String,
    began: Instant,
    /// What passed in no time.
    skipped: watch::Sender<Duration>,
    /// Turns true when TERM was sent.
    pub(super) term: watch::Sender<bool>,
    pub(super) kill: CancellationToken,
    /// P18: as a supervisor holds it; `None` also once TERM was sent for it.
    lease: watch::Sender<Option<CommandLease>>,
    out_of_lease: AtomicBool,
    direct: bool,
    kept: watch::Sender<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// What is not acknowledged, each with the offset of its first byte.
    pieces: VecDeque<(u64, Piece)>,
    written: Offsets,
    acknowledged: Offsets,
    /// Nobody reads, and nothing is kept: it is written to nowhere.
    detached: bool,
    /// Which of the links speaks: an earlier one falls silent.
    link: u64,
    /// How it ended: the first answer counts.
    ended: Option<Result<Exit, EngineError>>,
    /// Nothing of it runs any more.
    over: bool,
}

impl Kept {
    /// The first piece that is not wholly before `from`, without what lies before it.
    fn after(&self, from: Offsets) -> Option<(Piece, Offsets)> {
        let (start, piece) = self.pieces.iter().find(|(start, piece)| {
            let end = start + piece.bytes.len() as u64;
            end > from.of(piece.stream)
        })?;
        let known = usize::try_from(from.of(piece.stream).saturating_sub(*start)).unwrap_or(usize::MAX);
        let rest = Piece { bytes: piece.bytes.slice(known..), ..piece.clone() };
        let mut to = from;
        *to.of_mut(piece.stream) = start + piece.bytes.len() as u64;
        Some((rest, to))
    }

    fn acknowledge(&mut self, to: Offsets) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let known = self.acknowledged.of_mut(stream);
            *known = to.of(stream).min(self.written.of(stream)).max(*known);
        }
        let acknowledged = self.acknowledged;
        self.pieces.retain(|(start, piece)| start + piece.bytes.len() as u64 > acknowledged.of(piece.stream));
    }
}

/// Ends a [`Run`] however its task ends: a machine that is switched off leaves nobody waiting.
pub(super) struct OverAtLast(pub(super) Arc<Run>);

impl Drop for OverAtLast {
    fn drop(&mut self) {
        self.0.kept.send_modify(|kept| kept.over = true);
    }
}

impl Run {
    pub(super) fn new(attempt: String, direct: bool, lease: Option<CommandLease>) -> Arc<Self> {
        Arc::new(Self {
            attempt,
            lease: watch::Sender::new(lease),
            out_of_lease: AtomicBool::new(false),
            began: Instant::now(),
            skipped: watch::Sender::default(),
            term: watch::Sender::new(false),
            kill: CancellationToken::new(),
            direct,
            kept: watch::Sender::default(),
        })
    }

    /// For the command: blocks where too much was not acknowledged.
    pub(super) async fn write(&self, stream: Stream, bytes: Bytes) {
        let len = bytes.len() as u64;
        let fits = |kept: &Kept| {
            let rest = kept.written.of(stream) - kept.acknowledged.of(stream);
            kept.detached || rest == 0 || rest + len <= KEPT_BYTES_MAX
        };
        // It cannot be closed: this holds the sender.
        let _ = self.kept.subscribe().wait_for(fits).await;
        self.kept.send_modify(|kept| {
            let start = kept.written.of(stream);
            *kept.written.of_mut(stream) += len;
            if kept.detached {
                kept.acknowledge(kept.written);
            } else {
                kept.pieces.push_back((start, Piece { stream, at_ms: now_ms(), bytes }));
            }
        });
    }

    /// Says how it ended, if nobody has said so before.
    pub(super) fn end(&self, answer: Result<Exit, EngineError>) {
        self.kept.send_modify(|kept| {
            kept.ended.get_or_insert(answer);
        });
    }

    /// P18: it may run until then.
    pub(super) fn extend(&self, dead_by: Boot) {
        self.lease.send_modify(|lease| {
            if let Some(lease) = lease {
                lease.dead_by = lease.dead_by.max(dead_by);
            }
        });
    }

    /// P18: ends it before its lease does: TERM, grace, KILL. Never returns.
    pub(super) async fn keep_lease(&self) {
        let mut changes = self.lease.subscribe();
        let over = loop {
            // It cannot be closed: this holds the sender.
            let lease = *changes.borrow_and_update();
            match lease {
                Some(lease) if lease.term_at() <= Boot::now() => break lease,
                Some(lease) => {
                    let _ = tokio::time::timeout(lease.term_at().away(), changes.changed()).await;
                }
                None => return std::future::pending().await,
            }
        };
        self.out_of_lease.store(true, Ordering::Relaxed);
        // From here on nothing lengthens it.
        self.lease.send_replace(None);
        if !over.grace.is_zero() {
            self.term.send_replace(true);
            tokio::time::sleep(over.dead_by.away()).await;
        }
        self.kill.cancel();
        std::future::pending::<()>().await;
    }

    /// Whether it was ended because of its lease.
    pub(super) fn is_out_of_lease(&self) -> bool {
        self.out_of_lease.load(Ordering::Relaxed)
    }

    /// Since its start, by the clock of the container.
    pub(super) fn ran(&self) -> Duration {
        self.began.elapsed() + *self.skipped.borrow()
    }

    /// So much time passes in no time.
    pub(super) fn skip(&self, time: Duration) {
        self.skipped.send_modify(|skipped| *skipped += time);
    }

    pub(super) fn is_over(&self) -> bool {
        self.kept.borrow().over
    }

    /// Waits until nothing of it runs any more.
    pub(super) async fn over(&self) {
        let _ = self.kept.subscribe().wait_for(|kept| kept.over).await;
    }

    /// Whether the output from `have` on is still here.
    pub(super) fn reaches_back_to(&self, have: Offsets) -> bool {
        let kept = self.kept.borrow();
        [Stream::Stdout, Stream::Stderr]
            .into_iter()
            .all(|stream| (kept.acknowledged.of(stream)..=kept.written.of(stream)).contains(&have.of(stream)))
    }

    /// Hands its output, from `have` on, and its exit to the worker that asks: until that dies, or another one asks.
    /// `fault` is what the exit is to be.
    pub(super) fn link(self: &Arc<Self>, have: Offsets, fault: Option<EngineError>) -> Running {
        let (pieces, output) = mpsc::channel(OUTPUT_PIECES_MAX);
        let (answer, exit) = oneshot::channel();
        let (spooled, acknowledged) = watch::channel(have);
        let mut number = 0;
        self.kept.send_modify(|kept| {
            kept.acknowledge(have);
            kept.link += 1;
            number = kept.link;
        });
        let run = Arc::clone(self);
        // On the worker's own runtime: it dies with the worker, as a connection does.
        longshore_protocol::process::spawn(async move {
            let _detach = DetachAtLast(Arc::clone(&run));
            tokio::select! {
                biased;
                () = run.take_acknowledgements(acknowledged) => {}
                ended = run.talk(number, have, pieces) => if let Some(ended) = ended {
                    // The caller may have let go of it.
                    let _ = answer.send(fault.map_or(ended, Err));
                },
            }
        });
        Running { output, exit, spooled }
    }

    async fn take_acknowledgements(&self, mut acknowledged: watch::Receiver<Offsets>) {
        while acknowledged.changed().await.is_ok() {
            let to = *acknowledged.borrow_and_update();
            if !self.direct {
                self.kept.send_modify(|kept| kept.acknowledge(to));
            }
        }
        std::future::pending::<()>().await;
    }

    /// Answers how it ended when all of its output was handed over; `None` if another link speaks now.
    async fn talk(
        &self,
        number: u64,
        mut at: Offsets,
        pieces: mpsc::Sender<Piece>,
    ) -> Option<Result<Exit, EngineError>> {
        let mut listened_to = true;
        loop {
            let next = |kept: &Kept| kept.after(at).filter(|_| listened_to);
            let mut changes = self.kept.subscribe();
            let something =
                |kept: &Kept| kept.link != number || next(kept).is_some() || (kept.over && kept.ended.is_some());
            let found = {
                let kept = changes.wait_for(something).await.ok()?;
                if kept.link != number {
                    return None;
                }
                next(&kept).ok_or_else(|| kept.ended.clone())
            };
            match found {
                Ok((piece, to)) => {
                    listened_to = pieces.send(piece).await.is_ok();
                    at = to;
                    if self.direct {
                        self.kept.send_modify(|kept| {
                            kept.detached |= !listened_to;
                            kept.acknowledge(if listened_to { to } else { kept.written });
                        });
                    }
                }
                Err(ended) => return ended,
            }
        }
    }
}

/// Without a supervisor, what nobody reads is lost.
struct DetachAtLast(Arc<Run>);

impl Drop for DetachAtLast {
    fn drop(&mut self) {
        if self.0.direct {
            self.0.kept.send_modify(|kept| {
                kept.detached = true;
                kept.acknowledge(kept.written);
            });
        }
    }
}
