//! The first words of a connection: what is, set against what was thought to be. The supervisor speaks first.

use std::sync::Arc;
use std::time::Duration;

use longshore_protocol::output::Offsets;
use longshore_supervisor::wire::{self, State, ToSupervisor, VERSION, WorkerHello};

use super::super::super::{Adopted, EngineError};
use super::command::Command;
use super::link::Opening;
use super::task::Task;

impl Task {
    /// The first words of a connection: what is, set against what was thought to be.
    pub(super) fn greet(&mut self, hello: wire::SupervisorHello) -> Result<(), EngineError> {
        if hello.version != VERSION {
            let said = format!("its supervisor speaks version {} of the protocol, not {VERSION}", hello.version);
            return Err(self.broken(&said));
        }
        if let Some(connection) = &mut self.connection {
            connection.greeted = true;
        }
        let orphan_ms = u64::try_from(self.identity.orphan.as_millis()).unwrap_or(u64::MAX);
        self.say(&ToSupervisor::Hello(WorkerHello { version: VERSION, orphan_ms }));
        match self.opening.take() {
            Some(Opening::New(answer)) => drop(answer.send(Ok(()))),
            Some(Opening::Adopt(have, answer)) => {
                let adopted = self.adopt(hello.state, hello.clean, have);
                let _ = answer.send(adopted);
            }
            None => self.resume(hello.state),
        }
        Ok(())
    }

    fn adopt(&mut self, state: State, clean: bool, have: Offsets) -> Result<Adopted, EngineError> {
        let (progress, exit) = match state {
            State::Idle | State::CannotStart(_) if clean => return Ok(Adopted::Idle),
            State::Idle | State::CannotStart(_) => return Err(self.broken("it was left half cleaned")),
            State::Running(progress) => (progress, None),
            State::Ended(ended) => (ended.progress, Some(ended.exit)),
        };
        if progress.from.stdout > have.stdout || progress.from.stderr > have.stderr {
            return Err(self.broken("its output was acknowledged, and is not all here"));
        }
        let (mut command, running) = Command::new(&progress.id, have);
        if let Some(exit) = exit {
            command.will_end(exit);
        }
        self.command = Some(command);
        Ok(Adopted::Command { attempt: progress.id, ran: Duration::from_millis(progress.ran_ms), running })
    }

    /// After a reconnect: says again what was not heard.
    fn resume(&mut self, state: State) {
        let id_of_command = self.command.as_ref().map(|command| Arc::clone(&command.id));
        let is_of_command = |id: &str| id_of_command.as_deref() == Some(id);
        match state {
            State::Running(progress) if is_of_command(&progress.id) => self.started(&progress.id),
            State::Ended(ended) if is_of_command(&ended.progress.id) => {
                self.started(&ended.progress.id);
                if let Some(command) = &mut self.command {
                    command.will_end(ended.exit);
                }
            }
            State::CannotStart(cannot) if is_of_command(&cannot.id) => self.cannot_start(cannot),
            _ => match self.command.as_ref().map(|command| command.starting.as_ref().map(|new| new.run.clone())) {
                Some(Some(run)) => self.say(&ToSupervisor::Run(run)),
                Some(None) => self.output_lost("its supervisor does not know it any more"),
                None => {}
            },
        }
        if let Some(command) = &mut self.command {
            command.forget_acks();
        }
        if let Some((clean, _)) = &self.cleaning {
            let clean = clean.clone();
            self.say(&ToSupervisor::Clean(clean));
        }
        self.say_extend();
        self.say_stop();
    }
}
