//! Which runs there are, and which one is meant: on a fleet, or those that were carried out here.

use longshore_coordinator::core::view::RunSummary;
use longshore_protocol::RunId;

use crate::cli::Remote;
use crate::client::Client;
use crate::failure::Failure;
use crate::state::{StateDir, unusable};
use crate::transport::Transport;

/// Among so many of the newest runs a prefix is looked for.
const SEARCHED_MAX: u32 = 1_000;

/// Where runs are looked for.
pub(crate) enum Runs {
    /// On a fleet's coordinator.
    Fleet(Client),
    /// In this user's state directory.
    Here(StateDir),
}

/// A run in a list.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) summary: RunSummary,
    /// It is not settled, and nobody carries it out any more.
    pub(crate) interrupted: bool,
}

/// The coordinator that was named.
pub(crate) fn fleet(remote: &Remote) -> Result<Client, Failure> {
    named(remote)?.ok_or_else(|| {
        Failure::input("no coordinator is named")
            .mend("give its address with --coordinator or LONGSHORE_COORDINATOR, or use `longshore run`")
    })
}

fn named(remote: &Remote) -> Result<Option<Client>, Failure> {
    // An empty variable is how a shell unsets it for one command.
    let Some(address) = remote.coordinator.as_deref().filter(|address| !address.is_empty()) else {
        return Ok(None);
    };
    let token = remote.token.as_deref().filter(|token| !token.is_empty());
    let transport = Transport::http(address, token).map_err(|error| Failure::input(error.to_string()))?;
    Ok(Some(Client::new(transport)))
}

impl Runs {
    /// The fleet's if one is named, else those that were carried out here.
    pub(crate) fn open(remote: &Remote) -> Result<Self, Failure> {
        match named(remote)? {
            Some(client) => Ok(Self::Fleet(client)),
            None => StateDir::open().map(Self::Here),
        }
    }

    /// The run that is meant by an id, a unique prefix of one, or `last`.
    pub(crate) async fn find(&self, name: &str) -> Result<RunId, Failure> {
        if let Ok(run) = name.parse() {
            return Ok(run);
        }
        let newest_first = match self {
            Self::Fleet(client) => client.runs(SEARCHED_MAX).await?.into_iter().map(|summary| summary.run).collect(),
            Self::Here(state) => state.runs().map_err(|error| unusable(state.root(), &error))?,
        };
        pick(name, &newest_first)
    }

    /// Answers questions about one run.
    pub(crate) fn client(&self, run: RunId) -> Result<Client, Failure> {
        match self {
            Self::Fleet(client) => Ok(client.clone()),
            Self::Here(state) => past(state, run),
        }
    }

    /// Whether a run that is not settled will never be, as it is.
    pub(crate) fn is_interrupted(&self, summary: &RunSummary) -> bool {
        match self {
            Self::Fleet(_) => false,
            Self::Here(state) => summary.outcome.is_none() && !state.is_held(summary.run),
        }
    }

    /// The newest runs first.
    pub(crate) async fn list(&self, limit: u32) -> Result<Vec<Listed>, Failure> {
        let summaries = match self {
            Self::Fleet(client) => client.runs(limit).await?,
            Self::Here(state) => {
                let runs = state.runs().map_err(|error| unusable(state.root(), &error))?;
                let mut summaries = Vec::new();
                for run in runs.into_iter().take(limit as usize) {
                    // A store that was cut off before its run was taken lists none; a damaged one hides no other.
                    match summary_of(state, run).await {
                        Ok(found) => summaries.extend(found),
                        Err(error) => tracing::warn!(%run, ?error, "the store of a run cannot be read"),
                    }
                }
                summaries
            }
        };
        Ok(summaries
            .into_iter()
            .map(|summary| Listed { interrupted: self.is_interrupted(&summary), summary })
            .collect())
    }
}

async fn summary_of(state: &StateDir, run: RunId) -> Result<Vec<RunSummary>, Failure> {
    Ok(past(state, run)?.runs(1).await?)
}

fn past(state: &StateDir, run: RunId) -> Result<Client, Failure> {
    let store = state.store(run);
    if !store.exists() {
        return Err(unknown(&run.to_string()));
    }
    let router = longshore_coordinator::reader(&store, &state.blobs())
        .map_err(|error| Failure::infra(format!("the store of run {run} cannot be read: {error}")))?;
    Ok(Client::new(Transport::Local(router)))
}

/// The run that is meant by an id, a unique prefix of one, or `last`, of these.
pub(crate) fn pick(name: &str, newest_first: &[RunId]) -> Result<RunId, Failure> {
    if name == "last" {
        return newest_first
            .first()
            .copied()
            .ok_or_else(|| Failure::input("there is no run yet").mend("start one with `longshore run FILE`"));
    }
    let digits = name.replace('-', "").to_ascii_lowercase();
    if digits.is_empty() {
        return Err(unknown(name));
    }
    let fits = |run: &&RunId| run.0.simple().to_string().starts_with(&digits);
    let found: Vec<&RunId> = newest_first.iter().filter(fits).collect();
    match found[..] {
        [run] => Ok(*run),
        [] => Err(unknown(name)),
        [first, second, ..] => {
            Err(Failure::input(format!("{name:?} could be {} runs, {first} and {second} among them", found.len()))
                .mend("give more of the id"))
        }
    }
}

fn unknown(name: &str) -> Failure {
    Failure::input(format!("there is no run {name:?}")).mend("`longshore ls` lists them")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> RunId {
        text.parse().unwrap()
    }

    #[test]
    fn a_run_is_found_by_a_unique_prefix_or_as_the_last_one() {
        let runs = [
            run("018f2a3b-4c5d-7000-8000-000000000003"),
            run("018f2a3b-4c5d-7000-8000-000000000002"),
            run("018f2a3a-4c5d-7000-8000-000000000001"),
        ];
        assert_eq!(pick("last", &runs).unwrap(), runs[0]);
        assert_eq!(pick("018f2a3a", &runs).unwrap(), runs[2]);
        assert_eq!(pick("018F2A3A4c5d", &runs).unwrap(), runs[2]);
        for (name, reason) in [("018f2a3b", "could be 2 runs"), ("9", "no run"), ("", "no run"), ("zz", "no run")] {
            let failure = pick(name, &runs).unwrap_err();
            assert!(format!("{failure:?}").contains(reason), "{name}: {failure:?}");
        }
        assert!(format!("{:?}", pick("last", &[]).unwrap_err()).contains("no run yet"));
    }
}
