//! Marks, colours and durations.

use std::env;
use std::io::{IsTerminal, stdout};

use longshore_coordinator::core::view::{RunOutcome, StepView};
use longshore_protocol::{Outcome, WorkerId};

/// Colours, or none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    /// Whether stdout is a terminal.
    pub(crate) terminal: bool,
    pub(crate) colour: bool,
}

/// The colours that every terminal has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colour {
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
    Blue,
    Magenta,
    Cyan,
}

/// Steps are told apart by these; red and green mean something else.
pub(crate) const STEP_COLOURS: [Colour; 4] = [Colour::Cyan, Colour::Magenta, Colour::Blue, Colour::Yellow];

impl Style {
    /// As stdout and the environment want it: <https://no-color.org>.
    pub(crate) fn detect() -> Self {
        let set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        let terminal = stdout().is_terminal();
        Self { terminal, colour: terminal && !set("NO_COLOR") && !dumb }
    }

    #[cfg(test)]
    pub(crate) const PLAIN: Self = Self { terminal: false, colour: false };

    pub(crate) fn paint(self, colour: Colour, text: &str) -> String {
        if !self.colour || text.is_empty() {
            return text.to_owned();
        }
        let code = match colour {
            Colour::Bold => 1,
            Colour::Dim => 2,
            Colour::Red => 31,
            Colour::Green => 32,
            Colour::Yellow => 33,
            Colour::Blue => 34,
            Colour::Magenta => 35,
            Colour::Cyan => 36,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// A step's outcome with its mark: `✓ passed`, `✓ cached`, `✗ failed{1}`.
    pub(crate) fn outcome(self, outcome: &Outcome, cached: bool) -> String {
        let (mark, colour) = mark(outcome);
        self.paint(colour, &format!("{mark} {}", outcome_words(outcome, cached)))
    }

    /// A run's outcome, as its last line says it.
    pub(crate) fn verdict(self, outcome: RunOutcome) -> String {
        let colour = match outcome {
            RunOutcome::Passed => Colour::Green,
            RunOutcome::Failed | RunOutcome::TimedOut => Colour::Red,
            RunOutcome::Infra => Colour::Magenta,
            RunOutcome::Cancelled => Colour::Yellow,
        };
        self.paint(colour, &outcome.to_string())
    }
}

/// The mark of an outcome and its colour.
pub(crate) fn mark(outcome: &Outcome) -> (&'static str, Colour) {
    match outcome {
        Outcome::Passed => ("✓", Colour::Green),
        Outcome::Failed { .. } | Outcome::Signaled { .. } | Outcome::TimedOut | Outcome::OomKilled => {
            ("✗", Colour::Red)
        }
        Outcome::Infra { .. } => ("!", Colour::Magenta),
        Outcome::Cancelled { .. } => ("-", Colour::Yellow),
        Outcome::Skipped { .. } => ("-", Colour::Dim),
    }
}

/// Short enough for a table: the reason of an `infra` is told apart.
pub(crate) fn outcome_words(outcome: &Outcome, cached: bool) -> String {
    match outcome {
        Outcome::Passed if cached => "cached".to_owned(),
        Outcome::Infra { stage, .. } => format!("infra{{{stage}}}"),
        other => other.to_string(),
    }
}

/// A worker's id as people see it: of an embedded run's worker it says nothing that they want to know.
pub(crate) fn worker_words(worker: &WorkerId) -> &str {
    let id = worker.as_str();
    let embedded = id.len() == 50 && id.starts_with('e') && id.as_bytes()[17] == b'-';
    if embedded { "here" } else { id }
}

/// From the first dispatch of its last attempt to its end, ms; 0 of a step that never was on a queue.
pub(crate) fn step_ms(step: &StepView) -> u64 {
    let Some(attempt) = step.attempts.last() else { return 0 };
    let from = attempt.accepted_at_ms.unwrap_or(attempt.dispatched_at_ms);
    attempt.ended_at_ms.map_or(0, |end| end.saturating_sub(from))
}

/// `0.4 s`, `12.3 s`, `3 min 05 s`, `1 h 02 min`.
pub(crate) fn duration(ms: u64) -> String {
    let tenths = (ms + 50) / 100;
    let secs = (ms + 500) / 1_000;
    if tenths < 600 {
        format!("{}.{} s", tenths / 10, tenths % 10)
    } else if secs < 3_600 {
        format!("{} min {:02} s", secs / 60, secs % 60)
    } else {
        format!("{} h {:02} min", secs / 3_600, secs % 3_600 / 60)
    }
}

/// `512 B`, `1.4 kB`, `3.2 GB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1_000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `1 step`, `3 steps`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well_at_every_size() {
        let cases = [
            (0, "0.0 s"),
            (449, "0.4 s"),
            (12_345, "12.3 s"),
            (59_949, "59.9 s"),
            (59_950, "1 min 00 s"),
            (185_000, "3 min 05 s"),
            (3_599_499, "59 min 59 s"),
            (3_720_000, "1 h 02 min"),
        ];
        for (ms, text) in cases {
            assert_eq!(duration(ms), text, "{ms}");
        }
    }

    #[test]
    fn sizes_read_well() {
        let cases = [(0, "0 B"), (999, "999 B"), (1_400, "1.4 kB"), (999_600, "1.0 MB"), (3_200_000_000, "3.2 GB")];
        for (count, text) in cases {
            assert_eq!(bytes(count), text, "{count}");
        }
    }

    #[test]
    fn an_embedded_worker_is_here() {
        let embedded: WorkerId = format!("e{}-{}", "0".repeat(16), "1".repeat(32)).parse().unwrap();
        assert_eq!(worker_words(&embedded), "here");
        assert_eq!(worker_words(&"east-1".parse().unwrap()), "east-1");
    }
}
