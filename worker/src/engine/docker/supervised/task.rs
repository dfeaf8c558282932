//! One container's supervisor, as a task: it listens, speaks to who proves to be that supervisor, and outlives lost
//! connections, until the container has ended or nobody holds the [`Link`](super::link::Link) any more.
//!
//! What a new connection begins with is in [`greeting`](super::greeting).

use std::sync::{Arc, OnceLock};

use longshore_protocol::output::Offsets;
use longshore_supervisor::wire::{self, FromSupervisor, ToSupervisor};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::super::{Cleaned, EngineError, Running};
use super::super::errors;
use super::away::{Identity, look};
use super::broken;
use super::command::{Answer, Command, Starting};
use super::connection::{Connection, Exchanged};
use super::link::{Ask, Opening};
use crate::clock::Boot;

pub(super) struct Task {
    pub(super) identity: Identity,
    listener: UnixListener,
    asks: mpsc::Receiver<Ask>,
    pub(super) connection: Option<Connection>,
    /// Since when there is no connection.
    away_since: Instant,
    pub(super) opening: Option<Opening>,
    pub(super) command: Option<Command>,
    /// P18: until when its command may run, as it was said last.
    extended: Option<Boot>,
    stops: Vec<Stop>,
    pub(super) cleaning: Option<(wire::Clean, Answer<Cleaned>)>,
    injecting: Option<Answer<()>>,
    ending: Option<Answer<()>>,
}

struct Stop {
    /// When the grace is over.
    until: Instant,
    answer: Answer<()>,
}

/// What the task does next.
enum Turn {
    Ask(Option<Ask>),
    Accepted(std::io::Result<UnixStream>),
    Exchanged(std::io::Result<Exchanged>),
    Looked(Option<EngineError>),
    /// A piece was handed on, or more was spooled.
    Moved,
}

impl Task {
    pub(super) fn new(identity: Identity, listener: UnixListener, asks: mpsc::Receiver<Ask>, opening: Opening) -> Self {
        Self {
            identity,
            listener,
            asks,
            connection: None,
            away_since: Instant::now(),
            opening: Some(opening),
            command: None,
            extended: None,
            stops: Vec::new(),
            cleaning: None,
            injecting: None,
            ending: None,
        }
    }

    /// Until the supervisor is lost, or no longer wanted.
    pub(super) async fn run(mut self, life: CancellationToken, lost: Arc<OnceLock<EngineError>>) {
        let error = loop {
            self.settle();
            let step = match life.run_until_cancelled(self.turn()).await {
                None | Some(Turn::Ask(None)) => Err(self.broken("nobody here speaks to its supervisor any more")),
                Some(turn) => self.take_turn(turn),
            };
            if let Err(error) = step {
                break error;
            }
        };
        self.give_up(error, &lost);
    }

    fn take_turn(&mut self, turn: Turn) -> Result<(), EngineError> {
        match turn {
            Turn::Ask(Some(ask)) => {
                self.carry_out(ask);
                Ok(())
            }
            Turn::Accepted(accepted) => self.accepted(accepted),
            Turn::Exchanged(Ok(Exchanged::Received(messages))) => {
                messages.into_iter().try_for_each(|message| self.take(message))
            }
            Turn::Exchanged(Err(error)) => self.disconnected(&error),
            Turn::Looked(Some(error)) => Err(error),
            Turn::Exchanged(Ok(Exchanged::Sent)) | Turn::Looked(None) | Turn::Moved | Turn::Ask(None) => Ok(()),
        }
    }

    /// Waits for whatever comes first. Nothing is lost if a branch is dropped.
    async fn turn(&mut self) -> Turn {
        let hurry = !self.stops.is_empty();
        let Self { identity, listener, asks, connection, command, away_since, .. } = self;
        let away_since = *away_since;
        let is_away = connection.is_none();
        let has_room = connection.as_ref().is_none_or(Connection::has_room);
        let is_idle = connection.as_ref().is_some_and(|connection| connection.greeted && connection.is_idle());
        let wants_more = command.as_ref().is_none_or(|command| command.wants_more(hurry));
        let has_queued = command.as_ref().is_some_and(Command::has_queued);
        let exchange = async {
            match connection {
                Some(connection) => connection.exchange(wants_more).await,
                None => std::future::pending().await,
            }
        };
        let progress = async {
            match command {
                Some(command) if has_queued => command.hand_on().await,
                // One acknowledgement on its way at a time: the next says what has come together by then.
                Some(command) if is_idle => command.spooled().await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            ask = asks.recv(), if has_room => Turn::Ask(ask),
            accepted = listener.accept() => Turn::Accepted(accepted.map(|(stream, _)| stream)),
            exchanged = exchange => Turn::Exchanged(exchanged),
            () = progress => Turn::Moved,
            found = look(identity, away_since), if is_away => Turn::Looked(found),
        }
    }

    /// What follows from what is known by now.
    fn settle(&mut self) {
        let hurry = !self.stops.is_empty();
        let acked = match (&mut self.command, &self.connection) {
            (Some(command), Some(connection)) if connection.greeted && connection.is_idle() => command.ack(hurry),
            _ => None,
        };
        if let (Some(upto), Some(command)) = (acked, &self.command) {
            let upto = wire::Offsets { stdout: upto.stdout, stderr: upto.stderr };
            let acked = wire::Acked { id: command.id.to_string(), upto };
            self.say(&ToSupervisor::Acked(acked));
        }
        // Nothing of a command that has ended runs any more, whoever has yet to read its output.
        if self.command.as_ref().is_none_or(Command::has_ended) {
            self.stops.drain(..).for_each(|stop| drop(stop.answer.send(Ok(()))));
        }
        if self.command.as_ref().is_some_and(Command::is_over)
            && let Some(command) = self.command.take()
        {
            command.conclude(None);
        }
    }

    fn carry_out(&mut self, ask: Ask) {
        match ask {
            Ask::Run(run, answer) => {
                let (mut command, running) = Command::new(&run.id, Offsets::default());
                command.starting = Some(Starting { run: run.clone(), running, answer });
                self.command = Some(command);
                self.extended = None;
                self.say(&ToSupervisor::Run(run));
            }
            Ask::Runs(answer) => {
                let _ = answer.send(Ok(self.command.as_ref().is_some_and(Command::runs)));
            }
            Ask::Extend(dead_by) => {
                self.extended = self.extended.max(Some(dead_by));
                self.say_extend();
            }
            Ask::Stop(grace, answer) => {
                self.stops.push(Stop { until: Instant::now() + grace, answer });
                self.say_stop();
            }
            Ask::Clean(clean, answer) => {
                // If whoever started the last one still listens, it is over with it all the same.
                if self.command.is_some() {
                    self.output_lost("the container was cleaned before the command's end was taken");
                }
                self.say(&ToSupervisor::Clean(clean.clone()));
                self.cleaning = Some((clean, answer));
            }
            Ask::Inject(inject, answer) => {
                if self.connection.as_ref().is_some_and(|connection| connection.greeted) {
                    self.say(&ToSupervisor::Inject(inject));
                    self.injecting = Some(answer);
                } else {
                    let _ = answer.send(Err(self.broken("its supervisor is away")));
                }
            }
            // What is left of one that failed is not sent: the supervisor waits for its end only.
            Ask::Data(bytes) => {
                if self.injecting.is_some()
                    && let Some(connection) = &mut self.connection
                {
                    let said = connection.say_data(&bytes);
                    debug_assert!(said.is_ok(), "a chunk is far below a frame's limit");
                }
            }
            Ask::DataEnd => self.say(&ToSupervisor::InjectEnd),
            Ask::End(answer) => {
                if self.connection.is_some() {
                    self.say(&ToSupervisor::End);
                    self.ending = Some(answer);
                } else {
                    let _ = answer.send(Ok(()));
                }
            }
        }
    }

    /// To a supervisor that was heard; what it misses is said when it is heard again.
    pub(super) fn say(&mut self, message: &ToSupervisor) {
        let Some(connection) = self.connection.as_mut().filter(|connection| connection.greeted) else { return };
        if let Err(error) = connection.say(message) {
            // Only a command beyond what the kernel takes can be too long: that is the request's fault.
            let reason = error.to_string();
            if let Some(Starting { answer, .. }) = self.command.take().and_then(|command| command.starting) {
                let _ = answer.send(Err(EngineError::CannotStart { reason, exit: Some(126) }));
            }
        }
    }

    pub(super) fn say_extend(&mut self) {
        if let (Some(Boot(dead_by_ms)), Some(command)) = (self.extended, &self.command) {
            let extend = wire::Extend { id: command.id.to_string(), dead_by_ms };
            self.say(&ToSupervisor::Extend(extend));
        }
    }

    pub(super) fn say_stop(&mut self) {
        let now = Instant::now();
        let Some(grace) = self.stops.iter().map(|stop| stop.until.saturating_duration_since(now)).min() else { return };
        let Some(command) = &self.command else { return };
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let stop = wire::Stop { id: command.id.to_string(), grace_ms };
        self.say(&ToSupervisor::Stop(stop));
    }

    /// Takes a connection if the kernel says that the container's first process made it.
    fn accepted(&mut self, accepted: std::io::Result<UnixStream>) -> Result<(), EngineError> {
        let stream = accepted.map_err(|error| self.broken(&format!("its socket failed: {error}")))?;
        let pid = stream.peer_cred().ok().and_then(|cred| cred.pid());
        if pid == Some(self.identity.pid) {
            // A second one: it has given up the first, whose end may not have been seen here.
            if self.connection.is_some() {
                self.disconnected(&std::io::Error::other("it connected again"))?;
            }
            self.connection = Some(Connection::new(stream));
            return Ok(());
        }
        let Some(pid) = pid.filter(|pid| *pid != 0) else {
            // No process of this host's, as far as can be seen: so nobody can prove anything.
            let why = "the kernel does not tell the process id of who connects: the worker is in a process namespace \
                       that the Engine's containers are not below (in a pod, `hostPID: true` mends that)";
            return Err(self.broken(why));
        };
        if let Some(Opening::New(_)) = self.opening {
            // Nobody else can connect yet.
            let own = self.identity.pid;
            let why =
                format!("process {pid} speaks for its first process, which is {own} to the Engine: they count apart");
            return Err(self.broken(&why));
        }
        // A step that plays supervisor: there is nothing to be said to it.
        tracing::debug!(container = self.identity.container, pid, "not its supervisor: connection refused");
        Ok(())
    }

    fn disconnected(&mut self, error: &std::io::Error) -> Result<(), EngineError> {
        tracing::debug!(container = self.identity.container, %error, "the supervisor's connection has ended");
        self.connection = None;
        self.away_since = Instant::now();
        if let Some(answer) = self.ending.take() {
            let _ = answer.send(Ok(()));
            return Err(self.broken("it was told to end"));
        }
        if let Some(answer) = self.injecting.take() {
            // The part of the tar that was sent cannot be sent again.
            let _ = answer.send(Err(self.broken("the connection to its supervisor was lost")));
        }
        Ok(())
    }

    fn take(&mut self, message: FromSupervisor) -> Result<(), EngineError> {
        let is_greeted = self.connection.as_ref().is_some_and(|connection| connection.greeted);
        match message {
            FromSupervisor::Hello(hello) if !is_greeted => return self.greet(hello),
            _ if !is_greeted => return Err(self.broken("its supervisor does not begin with a hello")),
            FromSupervisor::Hello(_) => return Err(self.broken("its supervisor greets twice")),
            FromSupervisor::Started(started) => self.started(&started.id),
            FromSupervisor::CannotStart(cannot) => self.cannot_start(cannot),
            FromSupervisor::Output(output) => {
                if let Some(command) = self.command_of(&output.id)
                    && let Err(gap) = command.take(output)
                {
                    self.output_lost(&gap.to_string());
                }
            }
            FromSupervisor::Exited(exited) => self.exited(&exited.id, exited.exit),
            FromSupervisor::Injected => {
                if let Some(answer) = self.injecting.take() {
                    let _ = answer.send(Ok(()));
                }
            }
            FromSupervisor::InjectFailed(failed) => {
                if let Some(answer) = self.injecting.take() {
                    let _ = answer.send(Err(refusal("inject", failed.whose, failed.reason)));
                }
            }
            FromSupervisor::Cleaned(cleaned) => {
                if let Some((_, answer)) = self.cleaning.take() {
                    let _ = answer.send(Ok(match cleaned.unfit {
                        None => Cleaned::Ready,
                        Some(because) => Cleaned::Unfit { because },
                    }));
                }
            }
        }
        Ok(())
    }

    pub(super) fn command_of(&mut self, id: &str) -> Option<&mut Command> {
        self.command.as_mut().filter(|command| *command.id == *id)
    }

    pub(super) fn started(&mut self, id: &str) {
        if let Some(Starting { running, answer, .. }) = self.command_of(id).and_then(|command| command.starting.take())
        {
            // Nobody takes it: dropped, it is detached.
            let _: Result<(), Result<Running, EngineError>> = answer.send(Ok(running));
        }
    }

    pub(super) fn cannot_start(&mut self, cannot: wire::CannotStart) {
        if self.command_of(&cannot.id).is_none() {
            return;
        }
        let Some(Starting { answer, .. }) = self.command.take().and_then(|command| command.starting) else { return };
        let wire::CannotStart { exit, reason, whose, .. } = cannot;
        let _ = answer.send(Err(match whose {
            wire::Whose::Io => errors::refused("start", 500, reason),
            wire::Whose::Input | wire::Whose::Refused => EngineError::CannotStart { reason, exit },
        }));
    }

    fn exited(&mut self, id: &str, exit: wire::Exit) {
        // A very short command may have ended before its start was told.
        self.started(id);
        if let Some(command) = self.command_of(id)
            && let Err(gap) = command.end(exit)
        {
            self.output_lost(&gap.to_string());
        }
    }

    /// Its exit is worth nothing without its output.
    pub(super) fn output_lost(&mut self, why: &str) {
        let error = self.broken(why);
        if let Some(command) = self.command.take() {
            command.conclude(Some(error));
        }
    }

    fn give_up(self, error: EngineError, lost: &OnceLock<EngineError>) {
        tracing::debug!(container = self.identity.container, %error, "its supervisor is given up");
        let _ = lost.set(error.clone());
        match self.opening {
            Some(Opening::New(answer)) => drop(answer.send(Err(error.clone()))),
            Some(Opening::Adopt(_, answer)) => drop(answer.send(Err(error.clone()))),
            None => {}
        }
        if let Some((_, answer)) = self.cleaning {
            let _ = answer.send(Err(error.clone()));
        }
        for answer in [self.injecting, self.ending].into_iter().flatten() {
            let _ = answer.send(Err(error.clone()));
        }
        // Their callers see to it that nothing runs: whether the container has ended is not said here.
        self.stops.into_iter().for_each(|stop| drop(stop.answer.send(Err(error.clone()))));
        if let Some(command) = self.command {
            command.conclude(Some(error));
        }
    }

    pub(super) fn broken(&self, reason: &str) -> EngineError {
        broken(&self.identity.container, reason)
    }
}

pub(super) fn refusal(operation: &'static str, whose: wire::Whose, reason: String) -> EngineError {
    match whose {
        wire::Whose::Input => EngineError::Input { reason },
        wire::Whose::Refused => EngineError::Refused { operation, status: 400, reason },
        wire::Whose::Io => errors::refused(operation, 500, reason),
    }
}

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;
