//! One object a line: what `--output json` prints. `docs/cli.md` lists them.

use std::io;

use longshore_coordinator::core::view::{RunOutcome, RunSummary, RunView};
use serde::Serialize;
use serde_json::{Value, json};

use super::screen;
use crate::feed::Update;

/// Prints one object on a line of its own, its `type` first.
pub(crate) fn line(kind: &str, value: &impl Serialize) -> io::Result<()> {
    screen::print(text(kind, value).as_bytes())
}

/// An object's line.
pub(crate) fn text(kind: &str, value: &impl Serialize) -> String {
    let mut object = serde_json::Map::new();
    object.insert("type".to_owned(), kind.into());
    match serde_json::to_value(value) {
        Ok(Value::Object(fields)) => object.extend(fields.into_iter().filter(|(name, _)| name != "type")),
        Ok(other) => drop(object.insert("value".to_owned(), other)),
        Err(error) => drop(object.insert("error".to_owned(), error.to_string().into())),
    }
    format!("{}\n", Value::Object(object))
}

/// Tells a run as it happens.
#[derive(Debug, Default)]
pub(crate) struct JsonProgress {
    view: Option<RunView>,
}

impl JsonProgress {
    pub(crate) fn tell(&mut self, updates: Vec<Update>) -> io::Result<()> {
        let mut out = String::new();
        for update in updates {
            match update {
                Update::View(view) => {
                    out.push_str(&text("run", &view.summary));
                    for step in &view.steps {
                        out.push_str(&text("step", step));
                    }
                    self.view = Some(*view);
                }
                Update::Step(step) => {
                    out.push_str(&text("step", &step));
                    let known = self.view.iter_mut().flat_map(|view| &mut view.steps);
                    if let Some(known) = known.into_iter().find(|known| known.step == step.step) {
                        *known = *step;
                    }
                }
                Update::Run(summary) => {
                    out.push_str(&text("run", &summary));
                    if let Some(view) = &mut self.view {
                        view.summary = summary;
                    }
                }
                Update::Line(line) => out.push_str(&text("line", &line)),
                Update::Gap { step, attempt, gap, text: words } => {
                    let gap = json!({ "step": step, "attempt": attempt, "gap": gap, "text": words });
                    out.push_str(&text("gap", &gap));
                }
                Update::EventsEnd | Update::LogsEnd => {}
            }
        }
        screen::print(out.as_bytes())
    }

    /// The run with all its steps, and the exit code, as the last line.
    pub(crate) fn finish(&self) -> io::Result<()> {
        let Some(view) = &self.view else { return Ok(()) };
        screen::print(result(view).as_bytes())
    }

    pub(crate) fn view(&self) -> Option<&RunView> {
        self.view.as_ref()
    }
}

fn result(view: &RunView) -> String {
    let exit_code = view.summary.outcome.map(RunOutcome::exit_code);
    let mut value = serde_json::to_value(view).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        object.insert("exit_code".to_owned(), exit_code.into());
    }
    text("result", &value)
}

/// A run in a list, or alone.
pub(crate) fn run(summary: &RunSummary, interrupted: bool) -> String {
    let mut value = serde_json::to_value(summary).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        object.insert("interrupted".to_owned(), interrupted.into());
    }
    text("run", &value)
}
