//! `longshore show RUN`: a run with its steps, as it stands.

use std::fmt::Write as _;

use longshore_coordinator::core::view::RunView;

use super::ls::{local_time, outcome_words};
use crate::cli::{Output, ShowArgs};
use crate::failure::Failure;
use crate::render::progress::steps_table;
use crate::render::style::{Colour, Style, duration};
use crate::render::{json, screen};
use crate::runs::Runs;

pub(crate) async fn run(args: &ShowArgs, output: Output) -> Result<u8, Failure> {
    let runs = Runs::open(&args.remote)?;
    let run = runs.find(&args.run).await?;
    let view = runs.client(run)?.run(run).await?;
    let interrupted = runs.is_interrupted(&view.summary);
    let text = match output {
        Output::Json => {
            let mut value = serde_json::to_value(&view).unwrap_or_default();
            if let Some(object) = value.as_object_mut() {
                object.insert("interrupted".to_owned(), interrupted.into());
            }
            json::text("run", &value)
        }
        Output::Text => page(&view, interrupted, Style::detect()),
    };
    screen::print(text.as_bytes())?;
    Ok(0)
}

fn page(view: &RunView, interrupted: bool, style: Style) -> String {
    let summary = &view.summary;
    let mut text = format!("{}  {}\n", style.paint(Colour::Bold, &summary.name), summary.run);
    let _ = write!(text, "{}", outcome_words(summary, interrupted, style));
    if let Some(settled) = summary.settled_at_ms {
        let _ = write!(text, " in {}", duration(settled.saturating_sub(summary.submitted_at_ms)));
    }
    let _ = write!(text, ", submitted {}\n\n", local_time(summary.submitted_at_ms));
    text.push_str(&steps_table(view, style));
    for step in &view.steps {
        // The table has the last word of each step; what was tried before is told only where there was something.
        let tried = step.attempts.len() > 1 || step.outcome.as_ref().is_some_and(longshore_protocol::Outcome::is_infra);
        if tried {
            let _ = writeln!(text, "\n{}", style.paint(Colour::Bold, step.step.as_str()));
            for attempt in &step.attempts {
                let end = attempt.outcome.as_ref().map_or_else(|| "no outcome".to_owned(), ToString::to_string);
                let worker = attempt.worker.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string);
                let _ = writeln!(text, "  attempt {} by {worker}: {end}", attempt.attempt);
            }
        }
    }
    text
}
