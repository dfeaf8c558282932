//! `longshore why RUN [STEP]`: why a step is as it is.

use std::fmt::Write as _;

use longshore_coordinator::core::view::{RunView, StepView};
use longshore_coordinator::why::{About, Charge, Told, Why};
use longshore_protocol::Outcome;

use super::ls::moment;
use super::steps::no_such_step;
use crate::cli::{Output, WhyArgs};
use crate::failure::Failure;
use crate::last_words::{NOT_READABLE, is_failure, last_words};
use crate::render::progress::phase_word;
use crate::render::style::{Colour, Style, counted};
use crate::render::{json, screen};
use crate::runs::Runs;

/// Without a step's name, so many are told of: a few screens.
const STEPS_MAX: usize = 10;

pub(crate) async fn run(args: &WhyArgs, output: Output) -> Result<u8, Failure> {
    let runs = Runs::open(&args.remote)?;
    let run = runs.find(&args.run).await?;
    let client = runs.client(run)?;
    let view = client.run(run).await?;
    let interrupted = runs.is_interrupted(&view.summary);
    let (steps, more) = match &args.step {
        Some(name) => {
            let step = view.steps.iter().find(|step| step.step.as_str() == name);
            (vec![step.ok_or_else(|| no_such_step(name, &view))?], 0)
        }
        None => worth_telling(&view),
    };
    let style = Style::detect();
    // Each as soon as it is known: a log may be slow to answer.
    for (index, step) in steps.iter().enumerate() {
        let why = client.why(run, &step.step).await?;
        let failed = step.outcome.as_ref().is_some_and(is_failure);
        let last = if failed { last_words(&client, run, &step.step).await } else { Some(Vec::new()) };
        let text = match output {
            Output::Json => json::text("why", &json_of(&why, last)),
            Output::Text => {
                let last = last.unwrap_or_else(|| vec![NOT_READABLE.to_owned()]);
                let between = if index > 0 { "\n" } else { "" };
                format!("{between}{}", page(&why, &last, args.step.is_some(), style))
            }
        };
        screen::print(text.as_bytes())?;
    }
    if output == Output::Text {
        screen::print(end(&view, steps.len(), more, interrupted, style).as_bytes())?;
    }
    Ok(0)
}

/// What is not settled or did not pass; of what was skipped only if there is nothing else.
fn worth_telling(view: &RunView) -> (Vec<&StepView>, usize) {
    let skipped = |step: &&StepView| matches!(step.outcome, Some(Outcome::Skipped { .. }));
    let not_passed = view.steps.iter().filter(|step| step.outcome != Some(Outcome::Passed));
    let mut steps: Vec<&StepView> = not_passed.clone().filter(|step| !skipped(step)).collect();
    if steps.is_empty() {
        steps = not_passed.collect();
    }
    let more = steps.len().saturating_sub(STEPS_MAX);
    steps.truncate(STEPS_MAX);
    (steps, more)
}

fn end(view: &RunView, told: usize, more: usize, interrupted: bool, style: Style) -> String {
    let run = view.summary.run;
    let mut text = String::new();
    if told == 0 {
        let _ = writeln!(text, "every step passed; `longshore why {run} STEP` tells of one");
    }
    if more > 0 {
        let more = counted(u64::try_from(more).unwrap_or(u64::MAX), "more step");
        let _ = writeln!(text, "\n{}", style.paint(Colour::Dim, &format!("{more} did not pass: name one")));
    }
    if interrupted {
        let words = format!("the run was interrupted: its process is gone; `longshore retry {run}` goes on with it");
        let _ = writeln!(text, "\n{}", style.paint(Colour::Yellow, &words));
    }
    text
}

/// `last_words` is null where its log cannot be read.
fn json_of(why: &Why, last_words: Option<Vec<String>>) -> serde_json::Value {
    let mut value = serde_json::to_value(why).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        object.insert("last_words".to_owned(), last_words.into());
    }
    value
}

/// What happened to it, the newest last, then what it waits for; in short, only the last of what happened.
fn page(why: &Why, last_words: &[String], whole: bool, style: Style) -> String {
    let state = match &why.outcome {
        Some(outcome) => style.outcome(outcome, false),
        None => style.paint(Colour::Cyan, phase_word(why.phase)),
    };
    let mut text = format!("{}  {state}\n", style.paint(Colour::Bold, why.step.as_str()));
    let shown = if whole { &why.told[..] } else { &why.told[why.told.len().saturating_sub(SHORT)..] };
    let mut day = String::new();
    for told in shown {
        let (date, time) = moment(told.at_ms);
        if date != day {
            let _ = writeln!(text, "  {}", style.paint(Colour::Dim, &date));
            day = date;
        }
        let _ = writeln!(text, "  {}  {}", style.paint(Colour::Dim, &time), painted(told, style));
    }
    for now in &why.now {
        let _ = writeln!(
            text,
            "  {}  {}",
            style.paint(Colour::Cyan, &format!("{:<10}", "now")),
            style.paint(Colour::Bold, now)
        );
    }
    if !last_words.is_empty() {
        let _ = writeln!(text, "  {}", style.paint(Colour::Dim, "its last words:"));
        for line in last_words {
            let _ = writeln!(text, "    {line}");
        }
    }
    text
}

/// Without a step's name, how much of each.
const SHORT: usize = 3;

fn painted(told: &Told, style: Style) -> String {
    let colour = match (told.about, told.charge) {
        (_, Some(Charge::User)) => Colour::Red,
        (_, Some(Charge::Fleet)) => Colour::Magenta,
        (About::Retried | About::Cancelled | About::Files, _) => Colour::Yellow,
        (About::Settled, _) => Colour::Bold,
        _ => return told.text.clone(),
    };
    style.paint(colour, &told.text)
}
