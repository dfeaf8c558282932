//! What a row cost, whether that is as promised, and the table.

use std::any::Any;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use tokio::task::JoinError;

use crate::recovery::{LENIENCE, Recovery};
use crate::rows::{Again, Row};

/// Of a failure's words in the table: all of them stand above it.
const FAILURE_CHARS_MAX: usize = 100;

/// What a row has counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) steps: usize,
    pub(crate) settled: usize,
    /// Attempts that were claimed and had to be made again.
    pub(crate) again: usize,
    /// Which, in words for whoever has to find out why.
    #[serde(skip)]
    pub(crate) which: Vec<String>,
    /// Lines of steps that passed.
    pub(crate) lost: usize,
    /// Containers.
    pub(crate) left: usize,
    /// None where nothing is away that could come back.
    pub(crate) recovered: Option<Recovery>,
    /// What shows that the fault bit.
    pub(crate) proof: String,
}

/// A line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) row: &'static Row,
    pub(crate) told: Told,
    /// What was not as promised.
    pub(crate) failure: Option<String>,
}

impl Entry {
    pub(crate) fn of(row: &'static Row, told: Result<Told, JoinError>) -> Self {
        match told {
            Ok(told) => Self { row, failure: complaint(row, &told), told },
            Err(panic) => Self { row, told: Told::default(), failure: Some(words(panic)) },
        }
    }

    /// Seconds to recover.
    pub(crate) fn recovered(&self) -> String {
        self.told.recovered.map_or_else(none, |recovered| recovered.words(self.row.limit_secs))
    }

    /// What is promised of them.
    pub(crate) fn limit(&self) -> String {
        self.row.limit_secs.map_or_else(none, |limit| format!("{limit:.0}"))
    }

    /// As it is printed.
    pub(crate) fn line(&self) -> String {
        let Told { steps, settled, again, lost, left, .. } = self.told;
        let verdict = match &self.failure {
            None => self.told.proof.clone(),
            Some(failure) => {
                let line = failure.lines().next().unwrap_or_default();
                format!("FAILED: {}", line.chars().take(FAILURE_CHARS_MAX).collect::<String>())
            }
        };
        format!(
            "{:<24} {steps:>5} {settled:>7} {again:>5} {lost:>5} {left:>5} {:>15} {:>5}  {verdict}",
            self.row.name,
            self.recovered(),
            self.limit()
        )
    }
}

fn none() -> String {
    "-".to_owned()
}

/// What is not as promised.
fn complaint(row: &Row, told: &Told) -> Option<String> {
    let late = |limit: &f64| told.recovered.is_none_or(|recovered| recovered.fails(*limit));
    if told.settled != told.steps {
        Some(format!("{} of {} steps settled", told.settled, told.steps))
    } else if told.lost > 0 {
        Some(format!("{} lines lost", told.lost))
    } else if told.left > 0 {
        Some(format!("{} containers left", told.left))
    } else if row.again == Again::Never && told.again > 0 {
        let which = told.which.join("\n");
        Some(format!("{} attempts carried out again, for which there was no reason\n{which}", told.again))
    } else if row.again == Again::Once && told.again == 0 {
        Some("nothing was carried out again: what of it was lost?".to_owned())
    } else if row.limit_secs.as_ref().is_some_and(late) {
        Some(format!("recovered in {:?}, more than {LENIENCE} times its limit", told.recovered))
    } else if told.proof.is_empty() {
        Some("nothing proves that the fault bit".to_owned())
    } else {
        None
    }
}

fn words(panic: JoinError) -> String {
    let panic: Box<dyn Any + Send> = match panic.try_into_panic() {
        Ok(panic) => panic,
        Err(error) => return error.to_string(),
    };
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_else(|| "a panic".to_owned())
}

/// All of them.
pub(crate) fn table(entries: &[Entry]) -> String {
    let mut text = format!(
        "{:<24} {:>5} {:>7} {:>5} {:>5} {:>5} {:>15} {:>5}  {}\n",
        "fault", "steps", "settled", "again", "lost", "left", "recovered s", "limit", "proof"
    );
    for entry in entries {
        let _ = writeln!(text, "{}", entry.line());
    }
    text
}
