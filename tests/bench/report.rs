//! What was measured, for programs (`report.json`), for the terminal, and as a page.

use std::fmt::Write as _;
use std::path::Path;

use longshore_tests::services;

use crate::failure::Result;
use crate::figure::Entry;

/// Its marks are replaced, and nothing else of it changes from run to run.
const PAGE: &str = include_str!("page.md");

/// Baselines are told below the table, by their numbers in it.
pub(crate) fn table(entries: &[Entry]) -> String {
    let says = entries.iter().map(|entry| entry.says.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (number, entry) in (1..).zip(entries) {
        let _ = writeln!(
            text,
            "{number:>2}  {:<says$}  {:>10} {:<7} | {:>10}  x {:>7}  {:<14} {}",
            entry.says,
            figure(entry.value),
            entry.unit,
            figure(entry.baseline_value),
            figure(entry.ratio),
            entry.goal,
            verdict(entry, "DOES NOT HOLD"),
        );
    }
    text += "\nbeside:\n";
    for (number, entry) in (1..).zip(entries) {
        let _ = writeln!(text, "{number:>2}  {}", entry.baseline);
    }
    for entry in entries.iter().filter(|entry| !entry.holds) {
        let limit = entry.limit.as_deref().unwrap_or("unknown");
        let profile = entry.profile.as_deref().unwrap_or("none");
        let _ = write!(text, "\n{}: {}\n  limit: {limit}\n  profile: {profile}\n", entry.name, entry.says);
    }
    text
}

/// The table of the page.
fn markdown(entries: &[Entry]) -> String {
    let mut text = String::from("| | figure | ours | beside it | ratio | goal | |\n|---|---|---|---|---|---|---|\n");
    for (number, entry) in (1..).zip(entries) {
        let _ = writeln!(
            text,
            "| {number} | {} | {} {} | {} {} | {} | {} | {} |",
            entry.says,
            figure(entry.value),
            entry.unit,
            figure(entry.baseline_value),
            entry.unit,
            figure(entry.ratio),
            entry.goal,
            verdict(entry, "**does not hold**"),
        );
    }
    text
}

fn verdict(entry: &Entry, missed: &'static str) -> &'static str {
    match (entry.is_judged(), entry.holds) {
        (false, _) => "",
        (true, true) => "holds",
        (true, false) => missed,
    }
}

/// Three digits that count, and no more than three behind the point.
fn figure(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        small if small >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Writes the array that programs read.
pub(crate) fn write_json(file: &Path, entries: &[Entry]) -> Result<()> {
    Ok(std::fs::write(file, serde_json::to_string_pretty(entries)? + "\n")?)
}

/// Writes `docs/benchmarks.md` from its template.
pub(crate) fn write_page(entries: &[Entry], machine: &str, runs: usize) -> Result<()> {
    let beside = (1..).zip(entries).map(|(number, entry)| format!("{number}. {}\n", entry.baseline));
    let missed = entries.iter().filter(|entry| !entry.holds);
    let limits: Vec<String> = missed
        .map(|entry| format!("- **{}**: {}\n", entry.says, entry.limit.as_deref().unwrap_or("unknown")))
        .collect();
    let limits = limits.concat();
    let limits = if limits.is_empty() { "Every goal holds.\n".to_owned() } else { limits };
    let page = PAGE
        .replace("{{table}}", markdown(entries).trim_end())
        .replace("{{beside}}", beside.collect::<String>().trim_end())
        .replace("{{limits}}", limits.trim_end())
        .replace("{{machine}}", machine.trim_end())
        .replace("{{runs}}", &runs.to_string());
    Ok(std::fs::write(services::root().join("docs/benchmarks.md"), page)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::{Figure, Goal, Pair};

    fn entries() -> Vec<Entry> {
        let figure = Figure {
            name: "chain",
            says: "a chain of steps",
            unit: "s",
            baseline: "something else",
            goal: Goal::RatioAtMost(0.5),
            limit: Some("the disk is slow"),
        };
        let runs = |value| vec![Pair { value, baseline: 2.0 }; 5];
        vec![Entry::of(&figure, runs(0.5), "as it comes"), Entry::of(&figure, runs(1.5), "as it comes")]
    }

    #[test]
    fn the_table_says_what_holds_what_does_not_and_why() {
        let text = table(&entries());
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains("0.500 s") && lines[0].ends_with("holds"), "{text}");
        assert!(lines[1].contains("0.750") && lines[1].ends_with("DOES NOT HOLD"), "{text}");
        assert!(text.contains("something else: as it comes") && text.contains("limit: the disk is slow"), "{text}");
    }

    #[test]
    fn the_page_has_a_place_for_everything() {
        for mark in ["{{table}}", "{{beside}}", "{{limits}}", "{{machine}}", "{{runs}}"] {
            assert_eq!(PAGE.matches(mark).count(), 1, "{mark}");
        }
        assert!(
            markdown(&entries())
                .contains("| 2 | a chain of steps | 1.50 s | 2.00 s | 0.750 | ratio <= 0.5 | **does not hold** |")
        );
    }

    #[test]
    fn a_report_is_an_array_of_objects_with_the_agreed_keys() {
        let json = serde_json::to_value(entries()).unwrap();
        for key in ["name", "value", "unit", "baseline", "baseline_value", "ratio", "goal", "holds", "runs"] {
            assert!(json[0].get(key).is_some(), "{key}");
        }
        assert!(json[0].get("limit").is_none() && json[1]["limit"] == "the disk is slow");
    }
}
