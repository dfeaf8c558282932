//! `longshore show RUN`: a run with its steps, as it stands.

use std::fmt::Write as _;

use longshore_coordinator::core::view::{AttemptView, RemakeView, RunView};

use super::ls::{local_time, outcome_words};
use crate::cli::{Output, ShowArgs};
use crate::client::Client;
use crate::failure::Failure;
use crate::last_words::{NOT_READABLE, is_failure, last_words};
use crate::render::progress::steps_table;
use crate::render::style::{Colour, Style, bytes, duration, mark, worker_words};
use crate::render::table::{Align, Table};
use crate::render::{json, screen};
use crate::runs::Runs;

pub(crate) async fn run(args: &ShowArgs, output: Output) -> Result<u8, Failure> {
    let runs = Runs::open(&args.remote)?;
    let run = runs.find(&args.run).await?;
    let view = runs.client(run)?.run(run).await?;
    let interrupted = runs.is_interrupted(&view.summary);
    if output == Output::Json {
        let mut value = serde_json::to_value(&view).unwrap_or_default();
        if let Some(object) = value.as_object_mut() {
            object.insert("interrupted".to_owned(), interrupted.into());
        }
        screen::print(json::text("run", &value).as_bytes())?;
        return Ok(0);
    }
    let style = Style::detect();
    // Before the logs are asked, which may be slow to answer.
    screen::print(page(&view, interrupted, style).as_bytes())?;
    failures(&runs.client(run)?, &view, style).await?;
    if interrupted {
        let words = format!("its process is gone; `longshore retry {run}` goes on with it");
        screen::print(format!("\n{}\n", style.paint(Colour::Yellow, &words)).as_bytes())?;
    }
    Ok(0)
}

/// Promise 5: the last words of what did not end well.
async fn failures(client: &Client, view: &RunView, style: Style) -> Result<(), Failure> {
    let failed = view.steps.iter().filter(|step| step.outcome.as_ref().is_some_and(is_failure));
    for step in failed.take(FAILURES_MAX) {
        let Some(outcome) = &step.outcome else { continue };
        let (mark, colour) = mark(outcome);
        let mut text = format!("\n{}\n", style.paint(colour, &format!("{mark} {}: {outcome}", step.step)));
        let words = last_words(client, view.summary.run, &step.step).await;
        for line in words.unwrap_or_else(|| vec![NOT_READABLE.to_owned()]) {
            let _ = writeln!(text, "    {line}");
        }
        screen::print(text.as_bytes())?;
    }
    Ok(())
}

/// The table names the others; `why` and `logs` tell of each.
const FAILURES_MAX: usize = 3;

fn page(view: &RunView, interrupted: bool, style: Style) -> String {
    let summary = &view.summary;
    let mut text = format!("{}  {}\n", style.paint(Colour::Bold, &summary.name), summary.run);
    let _ = write!(text, "{}", outcome_words(summary, interrupted, style));
    if let Some(took) = summary.took_ms() {
        let _ = write!(text, " in {}", duration(took));
    }
    let _ = write!(text, ", submitted {}", local_time(summary.submitted_at_ms));
    if let Some(retried) = summary.retried_at_ms {
        let _ = write!(text, ", tried again {}", local_time(retried));
    }
    text.push_str("\n\n");
    text.push_str(&steps_table(view, style));
    for step in &view.steps {
        // The table has the last word of each step; what was tried before is told only where there was something.
        let tried = step.attempts.len() > 1 || step.outcome.as_ref().is_some_and(longshore_protocol::Outcome::is_infra);
        if tried || !step.remakes.is_empty() {
            let _ = writeln!(text, "\n{}", style.paint(Colour::Bold, step.step.as_str()));
            for attempt in &step.attempts {
                let _ = writeln!(text, "  {}", attempt_words(attempt));
            }
            for remake in &step.remakes {
                let _ = writeln!(text, "  {}", remake_words(remake));
                for attempt in &remake.attempts {
                    let _ = writeln!(text, "    {}", attempt_words(attempt));
                }
            }
        }
    }
    text.push_str(&usage_table(view));
    text
}

fn attempt_words(attempt: &AttemptView) -> String {
    let end = attempt.outcome.as_ref().map_or_else(|| "no outcome".to_owned(), ToString::to_string);
    let worker = attempt.worker.as_ref().map_or("nobody", worker_words);
    format!("attempt {} by {worker}: {end}", attempt.attempt)
}

fn remake_words(remake: &RemakeView) -> String {
    let because = remake.because.as_deref().unwrap_or("a later step needed it once more");
    format!("made again as {}, what it had left was lost: {because}", remake.name)
}

/// What the commands used, where supervisors told it.
fn usage_table(view: &RunView) -> String {
    let used: Vec<_> = (view.steps.iter())
        .filter_map(|step| Some((&step.step, step.attempts.iter().rev().find_map(|attempt| attempt.usage)?)))
        .collect();
    if used.is_empty() {
        return String::new();
    }
    let mut table = Table::new([
        ("step", Align::Left),
        ("user", Align::Right),
        ("system", Align::Right),
        ("memory at most", Align::Right),
    ]);
    for (step, usage) in used {
        let (user, system) = (duration(usage.user_ms), duration(usage.system_ms));
        table.row([step.to_string(), user, system, bytes(usage.max_rss_bytes)]);
    }
    format!("\n{}", table.render())
}

#[cfg(test)]
mod tests {
    use longshore_coordinator::core::view::{RunSummary, StepPhase, StepView};
    use longshore_protocol::event::Usage;
    use longshore_protocol::{Attempt, ExecutionId, Outcome, RunId};

    use super::*;

    fn attempt(worker: &str, usage: Option<Usage>) -> AttemptView {
        AttemptView {
            attempt: Attempt::FIRST,
            worker: Some(worker.parse().unwrap()),
            container: None,
            dispatched_at_ms: 0,
            accepted_at_ms: None,
            started_at_ms: None,
            ended_at_ms: None,
            outcome: Some(Outcome::Passed),
            snapshot: None,
            parked: true,
            output: None,
            phases: None,
            usage,
            log_closed: true,
        }
    }

    #[test]
    fn p20_what_was_made_again_stands_below_its_step() {
        let (run, name) = (RunId::new(), "build".into());
        let execution = ExecutionId::of_step(run, &name);
        let remake = RemakeView {
            name: "build~1".into(),
            execution: ExecutionId::of_remake(execution, 1),
            because: Some("test did not find it".to_owned()),
            phase: StepPhase::Settled,
            outcome: Some(Outcome::Passed),
            attempts: vec![attempt("west", None)],
        };
        let usage = Usage { user_ms: 1_200, system_ms: 300, max_rss_bytes: 48_000_000 };
        let build = StepView {
            step: name,
            execution,
            phase: StepPhase::Settled,
            outcome: Some(Outcome::Passed),
            cancelling: false,
            cached: false,
            attempts: vec![attempt("east", Some(usage))],
            remakes: vec![remake],
        };
        let summary = RunSummary {
            run,
            name: "p".to_owned(),
            tenant: "default".to_owned(),
            submitted_at_ms: 0,
            settled_at_ms: None,
            retried_at_ms: None,
            retries: 0,
            outcome: None,
            cancelling: false,
            steps: 1,
            steps_settled: 1,
        };
        let page = page(&RunView { summary, steps: vec![build] }, false, Style::PLAIN);
        let expected = "
build
  attempt 1 by east: passed
  made again as build~1, what it had left was lost: test did not find it
    attempt 1 by west: passed

step    user  system  memory at most
build  1.2 s   0.3 s         48.0 MB
";
        assert!(page.ends_with(expected), "{page}");
    }
}
