//! The lower edge of a terminal: a line per running step, and one for the run.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use longshore_coordinator::core::view::{RemakeView, RunView, StepPhase, StepView};
use longshore_protocol::StepName;

use super::screen;
use super::style::{Colour, Style, counted, duration, mark};

/// More would push the output off a small terminal; the last line counts the rest.
const LINES_MAX: usize = 8;

/// Dots that go round.
const SPINNER: &str = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ ";

/// What runs at this moment.
pub(crate) struct Live {
    progress: MultiProgress,
    style: Style,
    lines: BTreeMap<StepName, ProgressBar>,
    run: ProgressBar,
}

impl Live {
    pub(crate) fn new(style: Style) -> Self {
        let progress = screen::go_live();
        let run = progress.add(ProgressBar::new_spinner().with_style(shape("{wide_msg}")));
        Self { progress, style, lines: BTreeMap::new(), run }
    }

    /// Draws a run as it is now.
    pub(crate) fn draw(&mut self, view: &RunView) {
        let now = now_ms();
        let remakes: Vec<StepView> = view.steps.iter().flat_map(|step| &step.remakes).map(as_step).collect();
        let running: Vec<&StepView> = view.steps.iter().chain(&remakes).filter(|step| is_shown(step)).collect();
        let shown = &running[..running.len().min(LINES_MAX)];
        self.lines.retain(|name, line| {
            let stays = shown.iter().any(|step| step.step == *name);
            if !stays {
                self.progress.remove(line);
            }
            stays
        });
        for step in shown {
            let line = self.lines.entry(step.step.clone()).or_insert_with(|| {
                let line = ProgressBar::new_spinner().with_style(shape("{spinner} {wide_msg}"));
                self.progress.insert_before(&self.run, line)
            });
            line.set_message(step_words(step, now, self.style));
            line.tick();
        }
        self.run.set_message(run_words(view, running.len(), now, self.style));
        self.run.tick();
    }

    /// Leaves nothing on the screen but what was printed.
    pub(crate) fn clear(&mut self) {
        for (_, line) in std::mem::take(&mut self.lines) {
            self.progress.remove(&line);
        }
        self.run.finish_and_clear();
        let _ = self.progress.clear();
    }
}

fn shape(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("our own templates are well formed").tick_chars(SPINNER)
}

/// What is made again runs like a step, under its own name.
fn as_step(remake: &RemakeView) -> StepView {
    StepView {
        step: remake.name.clone(),
        execution: remake.execution,
        phase: remake.phase,
        outcome: remake.outcome.clone(),
        cancelling: false,
        cached: false,
        attempts: remake.attempts.clone(),
        remakes: Vec::new(),
    }
}

fn is_shown(step: &StepView) -> bool {
    matches!(step.phase, StepPhase::Preparing | StepPhase::Running)
}

fn step_words(step: &StepView, now: u64, style: Style) -> String {
    let attempt = step.attempts.last();
    let since = attempt.map_or(now, |attempt| attempt.accepted_at_ms.unwrap_or(attempt.dispatched_at_ms));
    let mut words = format!("{}  ", style.paint(Colour::Bold, step.step.as_str()));
    if step.phase == StepPhase::Preparing {
        words.push_str(&style.paint(Colour::Dim, "preparing "));
    }
    words.push_str(&duration(now.saturating_sub(since)));
    if step.attempts.len() > 1 {
        words.push_str(&style.paint(Colour::Yellow, &format!("  attempt {}", step.attempts.len())));
    }
    words
}

fn run_words(view: &RunView, running: usize, now: u64, style: Style) -> String {
    let summary = &view.summary;
    let mut parts = vec![format!("{}/{}", summary.steps_settled, counted(u64::from(summary.steps), "step"))];
    let count = |wanted: StepPhase| view.steps.iter().filter(|step| step.phase == wanted).count();
    if running > 0 {
        parts.push(format!("{running} running"));
    }
    if count(StepPhase::Queued) > 0 {
        parts.push(format!("{} queued", count(StepPhase::Queued)));
    }
    let cached = view.steps.iter().filter(|step| step.cached).count();
    if cached > 0 {
        parts.push(format!("{cached} cached"));
    }
    let unhappy = |step: &&StepView| step.outcome.as_ref().is_some_and(|outcome| mark(outcome).1 == Colour::Red);
    let failed = view.steps.iter().filter(unhappy).count();
    if failed > 0 {
        parts.push(style.paint(Colour::Red, &format!("{failed} failed")));
    }
    if summary.cancelling {
        parts.push(style.paint(Colour::Yellow, "cancelling"));
    }
    parts.push(duration(now.saturating_sub(summary.submitted_at_ms)));
    parts.join(&style.paint(Colour::Dim, " · "))
}

/// Compared with the coordinator's times: its clock may differ by as much as a person would not mind.
fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}
