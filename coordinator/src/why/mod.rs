//! Why a step is as it is, in plain sentences: what it waits for, why it was tried or made again, why nothing was found
//! under its key, why it settled as it did.
//!
//! * [`tale`] reads the run's journal, entry by entry: what is told of a run that is long done is told the same way;
//! * [`now`] adds what only the live core knows: who is before it in the queue, who is silent, who is away;
//! * [`standing`] how far the other steps are;
//! * [`words`] how things are called.
//!
//! Pure: entries in, sentences out.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)] // pure: see clippy.toml

mod now;
mod standing;
mod tale;
mod words;

use longshore_protocol::{Attempt, Outcome, RunId, StepName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::core::entry::{Entry, RetryCause};
use crate::core::input::Millis;
use crate::core::present::Present;
use crate::core::view::StepPhase;

/// Why a step is as it is: the answer to `GET /v1/runs/{run}/steps/{step}/why`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Why {
    /// Of which run.
    pub run: RunId,
    /// Which step.
    pub step: StepName,
    /// What it is doing.
    pub phase: StepPhase,
    /// For good, once it is settled.
    pub outcome: Option<Outcome>,
    /// What became of it so far, from the journal, the newest last.
    pub told: Vec<Told>,
    /// What it waits for at this moment; nothing once it is settled.
    pub now: Vec<String>,
}

/// One thing that happened to a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Told {
    /// When it was journalled.
    pub at_ms: Millis,
    /// What it is about, for programs.
    pub about: About,
    /// Of which try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Attempt>,
    /// Of an attempt's end: whom it is charged to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub charge: Option<Charge>,
    /// Of a retry: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<RetryCause>,
    /// A sentence.
    pub text: String,
}

/// What a sentence is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum About {
    /// The run was taken, or opened again.
    Asked,
    /// What it waits for.
    Waits,
    /// Where its job was put.
    Dispatched,
    /// Whether something was found under its key.
    Cache,
    /// Who carries it out.
    Claimed,
    /// Its command began.
    Started,
    /// An attempt is over.
    Ended,
    /// It is tried again.
    Retried,
    /// What it, or its parent, had left is lost or made again (P20).
    Files,
    /// Somebody no longer wants it.
    Cancelled,
    /// Its outcome.
    Settled,
    /// Its log.
    Log,
}

/// Whose fault an end was, and so whose retries it uses up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Charge {
    /// The fleet's (promise 5).
    Fleet,
    /// The user's.
    User,
    /// Nobody's.
    Nobody,
}

/// Why a step is as it is: from its run's entries, each with the time it was journalled, and from what the live core
/// knows, if one was asked. `None` if the run has no such step.
pub fn why<'a>(
    run: RunId,
    step: &StepName,
    entries: impl IntoIterator<Item = &'a (Millis, Entry)>,
    present: Option<&Present>,
) -> Option<Why> {
    let tale = tale::Tale::of(run, step, entries)?;
    let now = now::now(&tale, present);
    let (phase, outcome) = (tale.phase(), tale.outcome());
    Some(Why { run, step: step.clone(), phase, outcome, told: tale.told, now })
}
