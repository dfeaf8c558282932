//! Why a command ends without having done what it was asked, and with which exit code.

use std::io::{self, Write};

use longshore_coordinator::pipeline::PipelineErrors;
use serde_json::json;

use crate::client::ClientError;
use crate::render::screen;

/// Something that the user wrote is wrong; nothing was begun.
pub(crate) const EXIT_INPUT: u8 = 2;
/// The fleet, the broker or Docker is at fault.
pub(crate) const EXIT_INFRA: u8 = 3;
/// What a shell reports of a program that Ctrl-C ended.
pub(crate) const EXIT_CANCELLED: u8 = 130;

/// What a command could not do.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A pipeline file is wrong: shown with its lines.
    Pipeline(Box<PipelineErrors>),
    /// Something else that the user wrote is wrong.
    Input(Said),
    /// Something that is not the user's fault.
    Infra(Said),
    /// Whoever reads our output has gone: nobody to tell.
    Pipe,
}

/// One sentence, and what would mend it.
#[derive(Debug)]
pub(crate) struct Said {
    message: String,
    mend: Option<String>,
}

impl Failure {
    pub(crate) fn input(message: impl Into<String>) -> Self {
        Self::Input(Said { message: message.into(), mend: None })
    }

    pub(crate) fn infra(message: impl Into<String>) -> Self {
        Self::Infra(Said { message: message.into(), mend: None })
    }

    /// Adds what would mend it: an imperative sentence without a full stop.
    #[must_use]
    pub(crate) fn mend(mut self, mend: impl Into<String>) -> Self {
        if let Self::Input(said) | Self::Infra(said) = &mut self {
            said.mend = Some(mend.into());
        }
        self
    }

    /// What is wrong, and what would mend it.
    pub(crate) fn words(&self) -> (String, Option<String>) {
        match self {
            Self::Pipeline(errors) => (errors.to_string(), None),
            Self::Input(said) | Self::Infra(said) => (said.message.clone(), said.mend.clone()),
            Self::Pipe => ("nobody reads the output".to_owned(), None),
        }
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Pipeline(_) | Self::Input(_) => EXIT_INPUT,
            Self::Infra(_) => EXIT_INFRA,
            Self::Pipe => 0,
        }
    }

    /// Tells the user, on stderr; with `json` also as an object on stdout.
    pub(crate) fn report(self, json: bool) {
        if json && !matches!(self, Self::Pipe) {
            // The reader may be gone: then there is nobody to tell.
            let _ = writeln!(io::stdout(), "{}", self.to_json());
        }
        match self {
            Self::Pipeline(errors) => screen::say(&format!("{:?}", miette::Report::new(*errors))),
            Self::Input(said) | Self::Infra(said) => match said.mend {
                Some(mend) => screen::say(&format!("longshore: {}; {mend}", said.message)),
                None => screen::say(&format!("longshore: {}", said.message)),
            },
            Self::Pipe => {}
        }
    }

    fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Pipeline(errors) => json!({
                "type": "error", "kind": "pipeline", "message": errors.to_string(), "exit_code": self.exit_code(),
            }),
            Self::Input(said) => error_json("input", said, self.exit_code()),
            Self::Infra(said) => error_json("infra", said, self.exit_code()),
            Self::Pipe => serde_json::Value::Null,
        }
    }
}

fn error_json(kind: &str, said: &Said, exit_code: u8) -> serde_json::Value {
    json!({ "type": "error", "kind": kind, "message": said.message, "mend": said.mend, "exit_code": exit_code })
}

impl From<PipelineErrors> for Failure {
    fn from(errors: PipelineErrors) -> Self {
        Self::Pipeline(Box::new(errors))
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let mend = error.mend();
        let failure = if error.is_users() { Self::input(error.to_string()) } else { Self::infra(error.to_string()) };
        match mend {
            Some(mend) => failure.mend(mend),
            None => failure,
        }
    }
}

/// For writes to stdout only: a reader that has gone is no failure.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::Pipe
        } else {
            Self::infra(format!("the output cannot be written: {error}"))
        }
    }
}
