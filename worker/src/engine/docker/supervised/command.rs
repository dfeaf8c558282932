//! What is known of the command in a container: how far its output came, and how it ended.
//!
//! No I/O: pieces are handed in as they come, possibly again after a reconnect, and go out in order and once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use longshore_protocol::event::Usage;
use longshore_protocol::output::{Offsets, Stream};
use longshore_protocol::process::watch;
use longshore_supervisor::wire::{self, Run};
use tokio::sync::{mpsc, oneshot};

use super::super::super::{EngineError, Exit, ExitStatus, OUTPUT_PIECES_MAX, Piece, Running};

/// How much is spooled before it is acknowledged: with every piece, acknowledgements would cost as much as the output.
/// Well below what a supervisor keeps, together with a line that is not whole yet; less than this is sent twice after a
/// restart, and known by its offsets.
const ACK_BYTES: u64 = 64 * 1024;

pub(super) type Answer<T> = oneshot::Sender<Result<T, EngineError>>;

/// A command that was started or is to be, until its exit was handed on.
pub(super) struct Command {
    pub(super) id: Arc<str>,
    /// What to say (again) until it is known to have started, and whom to tell then.
    pub(super) starting: Option<Starting>,
    /// How much came.
    seen: Offsets,
    /// What came and was not handed on.
    queue: VecDeque<Piece>,
    /// How it ended; handed on when everything before it was.
    ended: Option<wire::Exit>,
    /// How it will turn out to have ended when all of its output is here.
    promised: Option<wire::Exit>,
    output: mpsc::Sender<Piece>,
    exit: Answer<Exit>,
    /// `None`: nobody moves it on any more.
    spooled: Option<watch::Receiver<Offsets>>,
    /// What the supervisor was told.
    acked: Offsets,
}

pub(super) struct Starting {
    pub(super) run: Run,
    /// The command's user and the Engine's are at the other end of `running`.
    pub(super) running: Running,
    pub(super) answer: Answer<Running>,
}

/// Why a command's output is of no use any more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gap(String);

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Command {
    /// Whether its end is not known yet.
    pub(super) fn runs(&self) -> bool {
        self.ended.is_none() && self.promised.is_none()
    }

    /// A command of which `have` is on the worker's disk, and the ends that its user holds.
    pub(super) fn new(id: &str, have: Offsets) -> (Self, Running) {
        let (output, output_rx) = mpsc::channel(OUTPUT_PIECES_MAX);
        let (exit, exit_rx) = oneshot::channel();
        let (spooled, spooled_rx) = watch::channel(have);
        let command = Self {
            id: id.into(),
            starting: None,
            seen: have,
            queue: VecDeque::new(),
            ended: None,
            promised: None,
            output,
            exit,
            spooled: Some(spooled_rx),
            // Not `have`: the supervisor may know of less.
            acked: Offsets::default(),
        };
        (command, Running { output: output_rx, exit: exit_rx, spooled })
    }

    /// Takes a piece that came: what of it is new is queued.
    pub(super) fn take(&mut self, output: wire::Output) -> Result<(), Gap> {
        let (stream, seen) = match output.stream {
            wire::Stream::Stdout => (Stream::Stdout, &mut self.seen.stdout),
            wire::Stream::Stderr => (Stream::Stderr, &mut self.seen.stderr),
        };
        let Some(known) = seen.checked_sub(output.offset) else {
            let (from, to) = (*seen, output.offset);
            return Err(Gap(format!("bytes {from} to {to} of its {} are missing", stream.word())));
        };
        let mut bytes = Bytes::from(output.bytes);
        let known = usize::try_from(known).unwrap_or(usize::MAX).min(bytes.len());
        bytes = bytes.split_off(known);
        if bytes.is_empty() {
            return Ok(()); // sent again, and here already
        }
        *seen += bytes.len() as u64;
        if !self.discards() {
            self.queue.push_back(Piece { stream, at_ms: output.at_ms, bytes });
        }
        self.keep_promise();
        Ok(())
    }

    /// It has ended, and not all of its output may be here: after a reconnect that is told first.
    pub(super) fn will_end(&mut self, exit: wire::Exit) {
        self.promised = Some(exit);
        self.keep_promise();
    }

    fn keep_promise(&mut self) {
        let offsets = wire::Offsets { stdout: self.seen.stdout, stderr: self.seen.stderr };
        self.ended = self.ended.or(self.promised.filter(|exit| exit.offsets == offsets));
    }

    /// Takes the exit.
    pub(super) fn end(&mut self, exit: wire::Exit) -> Result<(), Gap> {
        self.will_end(exit);
        if self.ended.is_some() {
            return Ok(());
        }
        let wire::Offsets { stdout, stderr } = exit.offsets;
        let Offsets { stdout: out, stderr: err } = self.seen;
        Err(Gap(format!("it wrote {stdout} and {stderr} bytes, and {out} and {err} came")))
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Nobody takes its output any more, but somebody waits for its end: what comes is thrown away, so that it ends.
    fn discards(&self) -> bool {
        self.output.is_closed() && !self.exit.is_closed()
    }

    /// Whether to read on. With `hurry`, somebody waits for the command's end, and what comes may pile up: no more
    /// than the supervisor keeps unacknowledged.
    pub(super) fn wants_more(&self, hurry: bool) -> bool {
        if self.output.is_closed() {
            // Detached wholly, it goes on as long as the supervisor has room: its output is not thrown away, because
            // who adopts it later wants it.
            return hurry || !self.exit.is_closed();
        }
        hurry || self.queue.is_empty()
    }

    /// Whether something is to be handed on.
    pub(super) fn has_queued(&self) -> bool {
        !self.queue.is_empty() && (!self.output.is_closed() || self.discards())
    }

    /// Hands on what there is room for, as soon as there is any. May be dropped at its await.
    pub(super) async fn hand_on(&mut self) {
        match self.output.reserve().await {
            Ok(first) => {
                let mut room = Some(first);
                while let Some(permit) = room {
                    let Some(piece) = self.queue.pop_front() else { return };
                    permit.send(piece);
                    room = self.output.try_reserve().ok();
                }
            }
            Err(_) if self.discards() => self.queue.clear(),
            Err(_) => {}
        }
    }

    /// What the supervisor is to be told that it need not keep (P16), if that is news.
    pub(super) fn ack(&mut self, hurry: bool) -> Option<Offsets> {
        let spooled = self.spooled.as_mut().map(|spooled| *spooled.borrow_and_update());
        let drop_all = self.output.is_closed() && (hurry || self.discards());
        let upto = if drop_all { self.seen } else { spooled.unwrap_or(self.acked) };
        is_worth_telling(self.acked, upto).then(|| {
            self.acked = upto;
            upto
        })
    }

    /// On a new connection everything that was acknowledged is acknowledged again.
    pub(super) fn forget_acks(&mut self) {
        self.acked = Offsets::default();
    }

    /// Until so much more is spooled that it is to be acknowledged.
    pub(super) async fn spooled(&mut self) {
        if let Some(spooled) = &mut self.spooled {
            let acked = self.acked;
            if spooled.wait_for(|upto| is_worth_telling(acked, *upto)).await.is_ok() {
                return;
            }
            self.spooled = None;
        }
        std::future::pending::<()>().await;
    }

    /// Whether its exit can be handed on: everything that came before it was.
    pub(super) fn is_over(&self) -> bool {
        self.ended.is_some() && (self.queue.is_empty() || self.output.is_closed())
    }

    /// Hands on its end, behind all of its output. Nobody may listen any more.
    pub(super) fn conclude(self, error: Option<EngineError>) {
        let Self { id, starting, ended, output, exit, .. } = self;
        drop(output);
        let answer = match (error, ended) {
            (Some(error), _) => Err(error),
            (None, Some(ended)) => Ok(outcome(&id, &ended)),
            (None, None) => return,
        };
        if let (Some(starting), Err(error)) = (starting, &answer) {
            let _ = starting.answer.send(Err(error.clone()));
        }
        let _ = exit.send(answer);
    }
}

fn is_worth_telling(acked: Offsets, upto: Offsets) -> bool {
    upto.stdout >= acked.stdout + ACK_BYTES || upto.stderr >= acked.stderr + ACK_BYTES
}

fn outcome(id: &str, ended: &wire::Exit) -> Exit {
    if ended.by == wire::EndedBy::Limit {
        tracing::warn!(attempt = id, "its supervisor ended the command: the worker did not in time (P17)");
    }
    let wire::Usage { user_ms, system_ms, max_rss_bytes } = ended.usage;
    Exit {
        status: match ended.status {
            wire::Status::Code(code) => ExitStatus::Code(code),
            wire::Status::Signal(signal) => ExitStatus::Signal(signal),
        },
        oom_killed: ended.oom_killed,
        ran: Some(Duration::from_millis(ended.ran_ms)),
        usage: Some(Usage { user_ms, system_ms, max_rss_bytes }),
        out_of_lease: ended.by == wire::EndedBy::Lease,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(offset: u64, text: &str) -> wire::Output {
        let bytes = text.as_bytes().to_vec();
        wire::Output { id: "a".to_owned(), stream: wire::Stream::Stdout, at_ms: 7, offset, bytes }
    }

    fn exit(stdout: u64) -> wire::Exit {
        wire::Exit {
            status: wire::Status::Signal(9),
            oom_killed: true,
            ran_ms: 5,
            usage: wire::Usage { user_ms: 1, system_ms: 2, max_rss_bytes: 3 },
            offsets: wire::Offsets { stdout, stderr: 0 },
            by: wire::EndedBy::Itself,
        }
    }

    fn queued(command: &Command) -> String {
        command.queue.iter().map(|piece| String::from_utf8_lossy(&piece.bytes).into_owned()).collect()
    }

    #[test]
    fn p16_what_is_sent_again_is_taken_once() {
        let (mut command, _running) = Command::new("a", Offsets { stdout: 2, stderr: 0 });
        for (offset, text) in [(0, "abcd"), (2, "cd"), (3, "def"), (6, "g")] {
            command.take(output(offset, text)).unwrap();
        }
        assert_eq!(queued(&command), "cdefg");
        assert!(command.take(output(9, "j")).unwrap_err().to_string().contains("bytes 7 to 9"));
        assert!(command.end(exit(8)).is_err());
        assert!(command.end(exit(7)).is_ok());
    }

    #[tokio::test]
    async fn p16_only_what_is_spooled_is_acknowledged() {
        let (mut command, running) = Command::new("a", Offsets::default());
        command.take(output(0, &"x".repeat(100_000))).unwrap();
        command.take(output(100_000, &"x".repeat(100_000))).unwrap();
        assert_eq!(command.ack(true), None);
        let much = Offsets { stdout: 100_000, stderr: 0 };
        running.spooled.send_replace(much);
        command.spooled().await;
        assert_eq!(command.ack(false), Some(much));
        // A little more is not told each time.
        running.spooled.send_replace(Offsets { stdout: 100_001, stderr: 0 });
        assert_eq!(command.ack(false), None);
        command.forget_acks();
        assert_eq!(command.ack(false), Some(Offsets { stdout: 100_001, stderr: 0 }));
    }

    #[tokio::test]
    async fn the_exit_comes_behind_the_last_piece() {
        let (mut command, mut running) = Command::new("a", Offsets::default());
        command.take(output(0, "abc")).unwrap();
        command.end(exit(3)).unwrap();
        assert!(command.has_ended() && !command.is_over());
        command.hand_on().await;
        assert!(command.is_over());
        command.conclude(None);
        assert_eq!(running.output.recv().await.unwrap().bytes, "abc");
        assert_eq!(running.output.recv().await, None);
        let exit = running.exit.await.unwrap().unwrap();
        assert_eq!((exit.status, exit.oom_killed), (ExitStatus::Signal(9), true));
        assert_eq!(exit.usage, Some(Usage { user_ms: 1, system_ms: 2, max_rss_bytes: 3 }));
    }

    #[tokio::test]
    async fn output_that_nobody_takes_is_thrown_away_only_if_somebody_waits_for_the_end() {
        let (mut command, running) = Command::new("a", Offsets::default());
        let much = "x".repeat(100_000);
        command.take(output(0, &much)).unwrap();
        drop(running.output);
        assert!(command.has_queued() && command.wants_more(false));
        command.hand_on().await;
        assert_eq!((queued(&command).as_str(), command.ack(false).map(|upto| upto.stdout)), ("", Some(100_000)));
        drop(running.exit);
        command.take(output(100_000, &much)).unwrap();
        assert!(!command.wants_more(false) && !command.has_queued());
        assert_eq!(command.ack(false), None);
        // Until somebody stops it.
        assert!(command.wants_more(true));
        assert_eq!(command.ack(true).map(|upto| upto.stdout), Some(200_000));
    }
}
