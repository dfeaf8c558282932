//! The rows, one file each. What each measures, and beside what, stands in its `FIGURES`.

mod chain;
mod commit;
mod commits;
mod fan;
mod handover;
mod idle;
mod inject;
mod noisy;
pub(crate) mod noop;
mod output;
pub(crate) mod scale;
mod start;

use crate::failure::Result;
use crate::figure::{Entry, Figure};
use crate::measure::{Row, measure};
use crate::stand::Stand;

/// A row, by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Chain10,
    Chain10Keys,
    Handover,
    Start,
    Fan64,
    Commits,
    Noop,
    Output,
    Noisy,
    Inject,
    InjectMemory,
    Commit100,
    Idle,
    Scale,
}

impl Name {
    /// In the order of the table.
    pub(crate) const ALL: [Self; 14] = [
        Self::Chain10,
        Self::Chain10Keys,
        Self::Handover,
        Self::Start,
        Self::Fan64,
        Self::Commits,
        Self::Noop,
        Self::Output,
        Self::Noisy,
        Self::Inject,
        Self::InjectMemory,
        Self::Commit100,
        Self::Idle,
        Self::Scale,
    ];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Chain10 => "chain10",
            Self::Chain10Keys => "chain10-keys",
            Self::Handover => "handover",
            Self::Start => "start",
            Self::Fan64 => "fan64",
            Self::Commits => "commits",
            Self::Noop => "noop",
            Self::Output => "output",
            Self::Noisy => "noisy",
            Self::Inject => "inject",
            Self::InjectMemory => "inject-memory",
            Self::Commit100 => "commit100",
            Self::Idle => "idle",
            Self::Scale => "scale",
        }
    }

    pub(crate) fn parse(word: &str) -> std::result::Result<Self, String> {
        let found = Self::ALL.into_iter().find(|name| name.word() == word);
        found.ok_or_else(|| format!("there is no row {word}; --list names them"))
    }

    pub(crate) fn figures(self) -> &'static [Figure] {
        match self {
            Self::Chain10 => chain::Chain::<chain::Plain>::FIGURES,
            Self::Chain10Keys => chain::Chain::<chain::Keyed>::FIGURES,
            Self::Handover => handover::Handover::FIGURES,
            Self::Start => start::Start::FIGURES,
            Self::Fan64 => fan::Fan::FIGURES,
            Self::Commits => commits::Commits::FIGURES,
            Self::Noop => noop::Noop::FIGURES,
            Self::Output => output::Output::FIGURES,
            Self::Noisy => noisy::Noisy::FIGURES,
            Self::Inject => inject::Inject::FIGURES,
            Self::InjectMemory => inject::Memory::FIGURES,
            Self::Commit100 => commit::Commit::FIGURES,
            Self::Idle => idle::Idle::FIGURES,
            Self::Scale => scale::Scale::FIGURES,
        }
    }

    pub(crate) async fn measure(self, stand: &Stand, runs: usize) -> Result<Vec<Entry>> {
        match self {
            Self::Chain10 => measure::<chain::Chain<chain::Plain>>(stand, runs).await,
            Self::Chain10Keys => measure::<chain::Chain<chain::Keyed>>(stand, runs).await,
            Self::Handover => measure::<handover::Handover>(stand, runs).await,
            Self::Start => measure::<start::Start>(stand, runs).await,
            Self::Fan64 => measure::<fan::Fan>(stand, runs).await,
            Self::Commits => measure::<commits::Commits>(stand, runs).await,
            Self::Noop => measure::<noop::Noop>(stand, runs).await,
            Self::Output => measure::<output::Output>(stand, runs).await,
            Self::Noisy => measure::<noisy::Noisy>(stand, runs).await,
            Self::Inject => measure::<inject::Inject>(stand, runs).await,
            Self::InjectMemory => measure::<inject::Memory>(stand, runs).await,
            Self::Commit100 => measure::<commit::Commit>(stand, runs).await,
            Self::Idle => measure::<idle::Idle>(stand, runs).await,
            Self::Scale => measure::<scale::Scale>(stand, runs).await,
        }
    }
}
