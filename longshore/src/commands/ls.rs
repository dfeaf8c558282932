//! `longshore ls`: runs, the newest first.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use longshore_coordinator::core::view::RunSummary;

use crate::cli::{LsArgs, Output};
use crate::failure::Failure;
use crate::render::style::{Colour, Style, duration};
use crate::render::table::{Align, Table};
use crate::render::{json, screen};
use crate::runs::{Listed, Runs};

pub(crate) async fn run(args: &LsArgs, output: Output) -> Result<u8, Failure> {
    let listed = Runs::open(&args.remote)?.list(args.limit).await?;
    let text = match output {
        Output::Json => listed.iter().map(|run| json::run(&run.summary, run.interrupted)).collect(),
        Output::Text if listed.is_empty() => "no runs yet; start one with `longshore run FILE`\n".to_owned(),
        Output::Text => table(&listed, Style::detect()),
    };
    screen::print(text.as_bytes())?;
    Ok(0)
}

fn table(listed: &[Listed], style: Style) -> String {
    let mut table = Table::new([
        ("run", Align::Left),
        ("name", Align::Left),
        ("outcome", Align::Left),
        ("steps", Align::Right),
        ("submitted", Align::Left),
        ("duration", Align::Right),
    ]);
    for Listed { summary, interrupted } in listed {
        table.row([
            summary.run.to_string(),
            summary.name.clone(),
            outcome_words(summary, *interrupted, style),
            format!("{}/{}", summary.steps_settled, summary.steps),
            local_time(summary.submitted_at_ms),
            summary.took_ms().map(duration).unwrap_or_default(),
        ]);
    }
    table.render()
}

/// How a run stands, in a word.
pub(crate) fn outcome_words(summary: &RunSummary, interrupted: bool, style: Style) -> String {
    match summary.outcome {
        Some(outcome) => style.verdict(outcome),
        None if interrupted => style.paint(Colour::Yellow, "interrupted"),
        None if summary.cancelling => style.paint(Colour::Yellow, "cancelling"),
        None => style.paint(Colour::Cyan, "running"),
    }
}

/// `2026-05-04` and `17:30:12.3`, by this machine's clock and zone.
pub(crate) fn moment(at_ms: u64) -> (String, String) {
    let whole = local_time(at_ms);
    let (date, time) = whole.split_once(' ').unwrap_or_default();
    (date.to_owned(), format!("{time}.{}", at_ms % 1_000 / 100))
}

/// `2026-05-04 17:30:12`, by this machine's clock and zone.
pub(crate) fn local_time(at_ms: u64) -> String {
    let moment = i64::try_from(at_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    moment.map_or_else(String::new, |moment| {
        moment.to_zoned_datetime(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
    })
}
