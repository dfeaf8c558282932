//! What is measured, what is wanted of it, and what the report says.

use serde::Serialize;

use crate::options::RUNS_MIN;

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Figure {
    /// For `report.json`; never changes, so that reports of different days can be laid side by side.
    pub(crate) name: &'static str,
    /// What it is, for people.
    pub(crate) says: &'static str,
    pub(crate) unit: &'static str,
    /// What stands beside it, for people.
    pub(crate) baseline: &'static str,
    pub(crate) goal: Goal,
    /// What keeps it from its goal, where something is known to. Printed beside a profile of the same run.
    pub(crate) limit: Option<&'static str>,
}

/// What is wanted of a figure.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// Of the baseline.
    RatioAtMost(f64),
    /// Of the baseline.
    RatioAtLeast(f64),
    /// In the figure's own unit, whatever the baseline does.
    AtMost(f64),
    /// The same.
    AtLeast(f64),
    /// Nothing: it stands beside a figure that is judged, so that nobody has to take that one's word.
    Shown,
}

/// In place of a goal.
const SHOWN: &str = "shown";

impl Goal {
    fn holds(self, value: f64, ratio: f64) -> bool {
        match self {
            Self::RatioAtMost(most) => ratio <= most,
            Self::RatioAtLeast(least) => ratio >= least,
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
            Self::Shown => true,
        }
    }

    fn words(self, unit: &str) -> String {
        match self {
            Self::RatioAtMost(most) => format!("ratio <= {most}"),
            Self::RatioAtLeast(least) => format!("ratio >= {least}"),
            Self::AtMost(most) => format!("<= {most} {unit}"),
            Self::AtLeast(least) => format!(">= {least} {unit}"),
            Self::Shown => SHOWN.to_owned(),
        }
    }
}

/// One run of ours and the baseline's beside it.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Pair {
    pub(crate) value: f64,
    pub(crate) baseline: f64,
}

/// A figure as it was measured: an element of `report.json`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) says: String,
    /// The median of the runs.
    pub(crate) value: f64,
    pub(crate) unit: String,
    /// What it is compared with, and how that was set up.
    pub(crate) baseline: String,
    /// The median of its runs.
    pub(crate) baseline_value: f64,
    /// `value / baseline_value`.
    pub(crate) ratio: f64,
    pub(crate) goal: String,
    pub(crate) holds: bool,
    pub(crate) runs: Vec<Pair>,
    /// Where the goal does not hold: why, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<String>,
    /// Where the goal does not hold: the file that shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) profile: Option<String>,
}

impl Entry {
    pub(crate) fn of(figure: &Figure, runs: Vec<Pair>, settings: &str) -> Self {
        let value = median(runs.iter().map(|run| run.value));
        let baseline_value = median(runs.iter().map(|run| run.baseline));
        let ratio = value / baseline_value;
        let holds = figure.goal.holds(value, ratio);
        Self {
            name: figure.name.to_owned(),
            says: figure.says.to_owned(),
            value,
            unit: figure.unit.to_owned(),
            baseline: format!("{}: {settings}", figure.baseline),
            baseline_value,
            ratio,
            goal: figure.goal.words(figure.unit),
            holds,
            runs,
            limit: figure.limit.filter(|_| !holds).map(str::to_owned),
            profile: None,
        }
    }

    /// Whether anything is wanted of it.
    pub(crate) fn is_judged(&self) -> bool {
        self.goal != SHOWN
    }

    /// What makes the report worthless at this place; empty if nothing does.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        let mut complain = |words: String| complaints.push(format!("{}: {words}", self.name));
        if self.runs.len() < RUNS_MIN {
            complain(format!("has {} runs, {RUNS_MIN} are needed", self.runs.len()));
        }
        if !self.value.is_finite() || self.value <= 0.0 {
            complain(format!("its value is {}", self.value));
        }
        if !self.baseline_value.is_finite() || self.baseline_value <= 0.0 {
            complain("has no baseline".to_owned());
        }
        if !self.holds && self.limit.is_none() {
            complain(format!("its goal ({}) does not hold, and no limit is known that keeps it from that", self.goal));
        }
        let shown = self.profile.as_ref().is_some_and(|path| std::fs::metadata(path).is_ok_and(|file| file.len() > 0));
        if !self.holds && !shown {
            complain(format!("its goal ({}) does not hold, and no profile shows why", self.goal));
        }
        complaints
    }
}

/// The middle one; of an even number, the mean of the middle two. NaN of none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIGURE: Figure = Figure {
        name: "chain",
        says: "a chain",
        unit: "s",
        baseline: "something else",
        goal: Goal::RatioAtMost(0.5),
        limit: None,
    };

    fn runs(count: usize, value: f64, baseline: f64) -> Vec<Pair> {
        vec![Pair { value, baseline }; count]
    }

    #[test]
    fn a_median_is_the_middle_one() {
        assert!((median([3.0, 1.0, 100.0]) - 3.0).abs() < 1e-9);
        assert!((median([4.0, 1.0, 2.0, 100.0]) - 3.0).abs() < 1e-9);
        assert!(median([]).is_nan());
    }

    #[test]
    fn goals_hold_by_ratio_or_by_value() {
        assert!(Entry::of(&FIGURE, runs(5, 1.0, 2.0), "as it comes").holds);
        assert!(!Entry::of(&FIGURE, runs(5, 1.1, 2.0), "").holds);
        let least = Figure { goal: Goal::RatioAtLeast(2.0), ..FIGURE };
        assert!(Entry::of(&least, runs(5, 4.0, 2.0), "").holds && !Entry::of(&least, runs(5, 3.9, 2.0), "").holds);
        let shown = Entry::of(&Figure { goal: Goal::Shown, ..FIGURE }, runs(5, 9.0, 1.0), "");
        assert!(shown.holds && !shown.is_judged() && Entry::of(&least, runs(5, 4.0, 2.0), "").is_judged());
        let most = Figure { goal: Goal::AtMost(10.0), ..FIGURE };
        assert!(Entry::of(&most, runs(5, 10.0, 1.0), "").holds && !Entry::of(&most, runs(5, 10.1, 1.0), "").holds);
    }

    #[test]
    fn a_report_without_runs_baseline_limit_or_profile_is_complained_of() {
        let words = |entry: Entry| entry.complaints().join("; ");
        assert_eq!(words(Entry::of(&FIGURE, runs(5, 1.0, 2.0), "")), "");
        assert!(words(Entry::of(&FIGURE, runs(4, 1.0, 2.0), "")).contains("has 4 runs"));
        assert!(words(Entry::of(&FIGURE, runs(5, 1.0, 0.0), "")).contains("no baseline"));
        let missed = words(Entry::of(&FIGURE, runs(5, 2.0, 2.0), ""));
        assert!(missed.contains("no limit is known") && missed.contains("no profile shows why"), "{missed}");
        let known = Figure { limit: Some("the disk"), ..FIGURE };
        let mut entry = Entry::of(&known, runs(5, 2.0, 2.0), "");
        assert_eq!(entry.limit.as_deref(), Some("the disk"));
        assert!(words(entry.clone()).contains("no profile shows why"));
        entry.profile = Some(file!().replace("tests/bench", "bench"));
        assert_eq!(words(entry), "");
    }
}
