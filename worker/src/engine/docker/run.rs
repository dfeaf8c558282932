//! The direct way: attach, start, and what comes of it: output as it is written, and the exit as the kernel reported it.

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::errors::Error as ClientError;
use bollard::query_parameters::{AttachContainerOptionsBuilder, WaitContainerOptionsBuilder};
use futures_util::stream::{Stream as Frames, StreamExt};
use longshore_protocol::output::{Offsets, Stream};
use longshore_protocol::process::watch;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::super::{ContainerName, EngineError, Exit, ExitStatus, OUTPUT_PIECES_MAX, Piece, Running};
use super::{DockerEngine, QUESTION, errors};
use crate::clock;

/// A start is 0.1 to 0.3 s; on a host that swaps, seconds.
const START: Duration = Duration::from_mins(2);

/// The most bytes in one piece of output, as [`Running::output`] promises.
const PIECE_BYTES_MAX: usize = 64 * 1024;

/// The Engine has closed the output before it tells the exit: what is left is in its memory. When nothing at all comes
/// for so long, and no end either, the connection is dead. Shorter than most steps' timeouts, which would take it for
/// the user's failure.
const LAST_WORDS: Duration = Duration::from_secs(20);

/// What had come of the output when its Engine was lost is here in less; a stream that is not closed by then may
/// never be.
const WORDS_OF_THE_LOST: Duration = Duration::from_secs(1);

/// When a command has ended, the Engine goes on reading its pipes for two seconds, and throws away what it could
/// not pass on by then (moby `daemon/monitor.go`, `StreamConfig.Wait`).
/// Version 20.10.24 was seen to wait for the reader instead, holding the container's lock, behind which commits of other
/// containers wait too: so whoever reads must not pause.
const ENGINE_PATIENCE: Duration = Duration::from_secs(2);

/// How much of a stream the Engine holds before it stops reading the pipe (moby `ioutils.BytesPipe`,
/// `blockThreshold`). Whoever has less to hand over behind the exit had read everything.
const ENGINE_HOLDS: usize = 1_000_000;

/// What may lie before the Engine when the command ends: a pipe's 64 KiB and a copy's 32 KiB for each stream, with
/// room to spare. If that much was taken off it in its last two seconds, it came to its end.
const PIPES_HOLD: usize = 1024 * 1024;

/// The Engine records an OOM kill and an exit from two notices, which may come in either order. Seven looks are 1.3 s:
/// ten times any such delay seen, on a machine that was not busy.
const OOM_LOOKS: u32 = 7;
/// From the first look to the second; then doubling.
const OOM_PAUSE: Duration = Duration::from_millis(20);

pub(super) async fn start(engine: &DockerEngine, container: &ContainerName) -> Result<Running, EngineError> {
    let options = AttachContainerOptionsBuilder::new().stream(true).stdout(true).stderr(true).logs(false).build();
    // The Engine would start a container that has ended once more.
    if engine
        .inspect(container)
        .await?
        .state
        .and_then(|state| state.status)
        .is_some_and(|is| is.to_string() != "created")
    {
        let reason = format!("{container} was started before");
        return Err(EngineError::Refused { operation: "start", status: 400, reason });
    }
    // The Engine connects us to the streams before it answers, so nothing is missed after that.
    let call = engine.client().attach_container(container.as_str(), Some(options));
    let attached = engine.limited("attach", QUESTION, call).await.map_err(|error| errors::gone(error, container))?;

    let call = engine.client().start_container(container.as_str(), None);
    engine.limited("start", START, call).await.map_err(|error| errors::start_refused(error, container))?;

    let (output_tx, output) = mpsc::channel(OUTPUT_PIECES_MAX);
    let (exit_tx, exit) = oneshot::channel();
    // The Engine keeps nothing for whoever comes later: nobody looks at what is spooled.
    let (spooled, _) = watch::channel(Offsets::default());
    tokio::spawn(follow(engine.background(), container.clone(), attached.output, output_tx, exit_tx));
    Ok(Running { output, exit, spooled })
}

type AttachedFrames = Pin<Box<dyn Frames<Item = Result<LogOutput, ClientError>> + Send>>;

/// How the output came to its end.
enum OutputEnd {
    Complete,
    /// The stream broke, or may have lost its end: the exit code is worth nothing without it.
    Broken(String),
    /// Nobody listens any more.
    Unwanted,
}

/// The task behind a [`Running`]: its `exit` waits for it.
async fn follow(
    engine: DockerEngine,
    container: ContainerName,
    frames: AttachedFrames,
    output: mpsc::Sender<Piece>,
    mut exit: oneshot::Sender<Result<Exit, EngineError>>,
) {
    let lost = |reason| EngineError::Unreachable { address: engine.shared.address.clone(), reason };
    let started = Instant::now();
    let mut pump = Pump::new(frames);
    let mut ended = None;
    let status = {
        let mut waited = pin!(async {
            tokio::select! {
                waited = wait(&engine, &container) => Some(waited),
                () = exit.closed() => None,
            }
        });
        loop {
            tokio::select! {
                end = pump.run(&output), if ended.is_none() => {
                    // Unread, the connection would block the command sooner or later.
                    pump.detach();
                    // What a command goes on to write behind a broken stream is lost, and its exit code worth nothing:
                    // it is told at once.
                    match end {
                        OutputEnd::Complete => match runs(&engine, &container).await {
                            Ok(false) => {}
                            Ok(true) => break Some(Err(lost("the output ended before the command did".to_owned()))),
                            Err(error) => break Some(Err(error)),
                        },
                        OutputEnd::Broken(reason) => break Some(Err(lost(reason))),
                        OutputEnd::Unwanted => {}
                    }
                    ended = Some(end);
                }
                status = &mut waited => break status,
            }
        }
    };
    let ran = started.elapsed();
    let status = match status {
        None => return, // nobody wants to know
        Some(Ok(code)) => match ended {
            Some(ended) => Ok((code, ended)),
            None => Ok((code, pump.run_after_exit(&output).await)),
        },
        Some(Err(error)) => {
            // Whether the command goes on is not known: what had come belongs to the log, more is not waited for.
            let _ = tokio::time::timeout(WORDS_OF_THE_LOST, pump.run(&output)).await;
            Err(error)
        }
    };
    drop((output, pump));
    let answer = match status {
        Err(error) => Err(error),
        Ok((_, OutputEnd::Broken(reason))) => Err(lost(reason)),
        Ok((code, OutputEnd::Complete | OutputEnd::Unwanted)) => {
            // Also the proof that the Engine still lives, and did not take the end of the output with it.
            let status = ExitStatus::Code(code);
            oom_killed(&engine, &container, code).await.map(|oom_killed| Exit {
                status,
                oom_killed,
                ran: Some(ran),
                usage: None,
                out_of_lease: false,
            })
        }
    };
    // An error means that the caller has gone since.
    let _ = exit.send(answer);
}

/// The exit status, by `wait` alone: no other answer of the Engine's tells it from "not known".
async fn wait(engine: &DockerEngine, container: &ContainerName) -> Result<u8, EngineError> {
    let options = WaitContainerOptionsBuilder::new().condition("not-running").build();
    // No time limit: the step's timeout is the worker's, which stops the container.
    let answer = engine.client().wait_container(container.as_str(), Some(options)).next().await;
    let lost = |reason: String| EngineError::Unreachable { address: engine.shared.address.clone(), reason };
    let code = match answer {
        Some(Ok(answer)) => match answer.error.and_then(|error| error.message) {
            Some(reason) if !reason.is_empty() => {
                return Err(EngineError::Refused { operation: "wait", status: 500, reason });
            }
            _ => answer.status_code,
        },
        // The client makes an error of every status but 0.
        Some(Err(ClientError::DockerContainerWaitError { error, code })) if error.is_empty() => code,
        Some(Err(ClientError::DockerContainerWaitError { error, .. })) => {
            return Err(EngineError::Refused { operation: "wait", status: 500, reason: error });
        }
        Some(Err(error)) => {
            let error = errors::from_client(&engine.shared.address, "wait", error);
            return Err(errors::gone(error, container));
        }
        None => return Err(lost(format!("the Engine broke off before it said how {container} ended"))),
    };
    u8::try_from(code).map_err(|_| lost(format!("the Engine gave {code} as the exit status of {container}")))
}

/// Whether a command whose output has ended goes on. The Engine ends the output of a command that has ended, also of
/// one that had closed it before, and lets nobody look between that end and this one (moby `daemon/monitor.go` holds
/// the container's lock over both): so if it goes on, the connection was cut.
async fn runs(engine: &DockerEngine, container: &ContainerName) -> Result<bool, EngineError> {
    Ok(engine.inspect(container).await?.state.and_then(|state| state.running).unwrap_or(false))
}

async fn oom_killed(engine: &DockerEngine, container: &ContainerName, code: u8) -> Result<bool, EngineError> {
    let mut pause = OOM_PAUSE;
    for _ in 0..OOM_LOOKS {
        let inspected = engine.inspect(container).await?;
        let oom_killed = inspected.state.and_then(|state| state.oom_killed).unwrap_or(false);
        let limited = inspected.host_config.and_then(|config| config.memory).is_some_and(|bytes| bytes > 0);
        // Only a command that ended in SIGKILL under a limit may have its notice still to come.
        if oom_killed || code != 128 + 9 || !limited {
            return Ok(oom_killed);
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    Ok(false)
}

/// Carries frames from the Engine to whoever reads the output, never holding more than one.
struct Pump {
    frames: AttachedFrames,
    /// What could not be handed over yet. Kept here, because a run may be cancelled at any await.
    held: VecDeque<Piece>,
    /// How many bytes were taken off the Engine, in buckets of a tenth of its patience.
    taken: VecDeque<(Instant, usize)>,
}

impl Pump {
    fn new(frames: AttachedFrames) -> Self {
        Self { frames, held: VecDeque::new(), taken: VecDeque::new() }
    }

    /// Closes the connection: the Engine throws away what is written from now on.
    fn detach(&mut self) {
        self.frames = Box::pin(futures_util::stream::empty());
        self.held.clear();
    }

    /// Until the streams end. May be dropped at any await and run again: nothing is lost.
    async fn run(&mut self, output: &mpsc::Sender<Piece>) -> OutputEnd {
        loop {
            if let Some(end) = self.hand_over(output).await {
                return end;
            }
            let frame = tokio::select! {
                frame = self.frames.next() => frame,
                () = output.closed() => return OutputEnd::Unwanted,
            };
            if let Some(end) = self.take(frame) {
                return end;
            }
        }
    }

    /// Until the streams end, which is soon: the command has ended. Tells whether the Engine may have
    /// thrown away the end of a stream because we had not taken it off it in time.
    async fn run_after_exit(&mut self, output: &mpsc::Sender<Piece>) -> OutputEnd {
        let exited = Instant::now();
        let taken_in_time: usize =
            self.taken.iter().filter(|(at, _)| exited - *at <= ENGINE_PATIENCE).map(|(_, bytes)| bytes).sum();
        let mut rest = [0; 2];
        loop {
            if let Some(end) = self.hand_over(output).await {
                return end;
            }
            let Ok(frame) = tokio::time::timeout(LAST_WORDS, self.frames.next()).await else {
                return OutputEnd::Broken("the Engine did not end the output of an ended command".to_owned());
            };
            match self.take(frame) {
                None => {
                    for piece in &self.held {
                        rest[usize::from(piece.stream == Stream::Stderr)] += piece.bytes.len();
                    }
                }
                Some(OutputEnd::Complete) if taken_in_time < PIPES_HOLD && rest.iter().any(|n| *n > ENGINE_HOLDS) => {
                    return OutputEnd::Broken(
                        "the output was not taken within two seconds of the command's end: the Engine may have \
                         thrown away the last of it"
                            .to_owned(),
                    );
                }
                Some(end) => return end,
            }
        }
    }

    /// Hands over what is held; waits while the reader is behind, and the command blocks on its pipe in the end.
    async fn hand_over(&mut self, output: &mpsc::Sender<Piece>) -> Option<OutputEnd> {
        while !self.held.is_empty() {
            match output.reserve().await {
                Ok(permit) => permit.send(self.held.pop_front()?),
                Err(_) => return Some(OutputEnd::Unwanted),
            }
        }
        None
    }

    /// Takes one frame, in pieces, or tells the end.
    fn take(&mut self, frame: Option<Result<LogOutput, ClientError>>) -> Option<OutputEnd> {
        let (stream, mut bytes) = match frame {
            None => return Some(OutputEnd::Complete),
            Some(Ok(LogOutput::StdOut { message })) => (Stream::Stdout, message),
            Some(Ok(LogOutput::StdErr { message })) => (Stream::Stderr, message),
            // Without a TTY the client calls so what is no frame: a torn one, at the end of a broken stream.
            Some(Ok(LogOutput::Console { .. } | LogOutput::StdIn { .. })) => {
                return Some(OutputEnd::Broken("the Engine broke off in the middle of the output".into()));
            }
            Some(Err(error)) => return Some(OutputEnd::Broken(format!("the output broke off: {error}"))),
        };
        self.note_taken(bytes.len());
        let at_ms = clock::now_ms();
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE_BYTES_MAX));
            self.held.push_back(Piece { stream, at_ms, bytes: piece });
        }
        None
    }

    fn note_taken(&mut self, bytes: usize) {
        let now = Instant::now();
        match self.taken.back_mut() {
            Some((at, sum)) if now - *at < ENGINE_PATIENCE / 10 => *sum += bytes,
            _ => self.taken.push_back((now, bytes)),
        }
        while self.taken.front().is_some_and(|(at, _)| now - *at > 2 * ENGINE_PATIENCE) {
            self.taken.pop_front();
        }
    }
}
