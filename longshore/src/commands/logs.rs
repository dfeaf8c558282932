//! `longshore logs RUN [STEP]`: what steps wrote.

use longshore_coordinator::api::types::{LogEvent, LogLine};
use longshore_coordinator::core::view::RunView;
use longshore_protocol::output::Ending;
use longshore_protocol::{Attempt, StepName};
use serde_json::json;

use super::steps::no_such_step;
use crate::cli::{LogsArgs, Output};
use crate::client::LogQuery;
use crate::failure::Failure;
use crate::feed::next_of;
use crate::render::clean::clean;
use crate::render::style::{Colour, Style};
use crate::render::{json, screen};
use crate::runs::Runs;

pub(crate) async fn run(args: LogsArgs, output: Output) -> Result<u8, Failure> {
    let runs = Runs::open(&args.remote)?;
    let run = runs.find(&args.run).await?;
    let client = runs.client(run)?;
    if let Some(step) = &args.step {
        known(step, &client.run(run).await?)?;
    }
    let with_names = args.step.is_none();
    let query = LogQuery { step: args.step, attempt: args.attempt.map(Attempt), tail: args.tail, follow: args.follow };
    let mut lines = client.logs(run, &query);
    let style = Style::detect();
    let mut gathered = Vec::new();
    loop {
        let bytes = match (next_of::<LogEvent>(&mut lines).await?, output) {
            (LogEvent::End, _) => {
                screen::print(&gathered)?;
                return Ok(0);
            }
            (LogEvent::Line(line), Output::Text) => text(&line, with_names, style),
            (LogEvent::Line(line), Output::Json) => json::text("line", &line).into_bytes(),
            (LogEvent::Gap { step, text, .. }, Output::Text) => {
                let name = if with_names { named(&step, style) } else { String::new() };
                format!("{name}{}\n", style.paint(Colour::Yellow, &text)).into_bytes()
            }
            (LogEvent::Gap { step, attempt, gap, text }, Output::Json) => {
                let gap = json!({ "step": step, "attempt": attempt, "gap": gap, "text": text });
                json::text("gap", &gap).into_bytes()
            }
        };
        gathered.extend_from_slice(&bytes);
        // A million lines are not a million writes; a single one is not kept waiting.
        if !lines.is_ready() || gathered.len() >= WRITE_BYTES {
            screen::print(&gathered)?;
            gathered.clear();
        }
    }
}

fn known(step: &str, run: &RunView) -> Result<(), Failure> {
    let mut remakes = run.steps.iter().flat_map(|other| &other.remakes);
    let is_step = run.steps.iter().any(|other| other.step.as_str() == step);
    if is_step || remakes.any(|remake| remake.name.as_str() == step) { Ok(()) } else { Err(no_such_step(step, run)) }
}

/// A pipe takes this much at once.
const WRITE_BYTES: usize = 64 * 1024;

/// With the step's name before each line; or, of one step, the very bytes that it wrote, unless a terminal
/// would obey them.
fn text(line: &LogLine, with_name: bool, style: Style) -> Vec<u8> {
    let mut bytes = Vec::new();
    if with_name {
        bytes.extend_from_slice(named(&line.step, style).as_bytes());
    }
    if style.terminal {
        bytes.extend_from_slice(clean(&line.data.0, style.colour).as_bytes());
    } else {
        bytes.extend_from_slice(&line.data.0);
    }
    if line.ending == Ending::Newline || with_name || style.terminal {
        bytes.push(b'\n');
    }
    bytes
}

fn named(step: &StepName, style: Style) -> String {
    format!("{} {} ", style.paint(Colour::Cyan, step.as_str()), style.paint(Colour::Dim, "|"))
}
