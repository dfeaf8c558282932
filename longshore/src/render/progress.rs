//! A run as it happens, as text: output lines, then each step's end, then a table and the verdict.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io;
use std::time::{Duration, Instant};

use longshore_coordinator::api::types::LogLine;
use longshore_coordinator::core::view::{AttemptView, RemakeView, RunView, StepPhase, StepView};
use longshore_protocol::output::Ending;
use longshore_protocol::{Attempt, Outcome, StepName};

use super::clean::clean;
use super::live::Live;
use super::screen;
use super::style::{Colour, STEP_COLOURS, Style, counted, duration, mark, outcome_words, step_ms, worker_words};
use super::table::{Align, Table};
use crate::feed::Update;
use crate::last_words::{TAIL_LINES, is_failure};

/// A step's end is told behind its last line. Where that is not known (a gap), this long after its log was closed.
const PATIENCE: Duration = Duration::from_millis(500);

/// The run's changes and its lines come by two ways. A line is held back until its attempt was heard of, and with it the
/// end of what that waited for; but no more than some screens of them, whatever became of the other way.
const EARLY_MAX: usize = 1_024;

/// Names are padded to the longest one, but a long one shall not push all output to the right.
const PADDING_MAX: usize = 24;

/// Output of so many failed steps is repeated at the end; the table names the others.
const TAILS_MAX: usize = 3;

/// Tells a run as text.
pub(crate) struct Progress {
    style: Style,
    live: Option<Live>,
    view: Option<RunView>,
    /// How the run stood before, where somebody goes on with it.
    known: Option<RunView>,
    steps: BTreeMap<StepName, Told>,
    /// Ended, but not told yet; and since when that, or that the log was closed, is known.
    ended: Vec<(StepName, Instant)>,
    /// Lines of attempts that were not heard of yet.
    early: Vec<LogLine>,
    logs_ended: bool,
}

/// What was told of a step.
#[derive(Default)]
struct Told {
    colour: usize,
    /// Bytes of the output of the attempt that printed last.
    attempt: Option<Attempt>,
    bytes: u64,
    tail: VecDeque<String>,
}

impl Progress {
    /// With a live part if stdout is a terminal.
    pub(crate) fn new(style: Style) -> Self {
        Self {
            style,
            live: style.terminal.then(|| Live::new(style)),
            view: None,
            known: None,
            steps: BTreeMap::new(),
            ended: Vec::new(),
            early: Vec::new(),
            logs_ended: false,
        }
    }

    /// What was so before is not told once more.
    pub(crate) fn since(mut self, known: Option<RunView>) -> Self {
        self.known = known;
        self
    }

    /// Takes what happened and prints what follows from it.
    pub(crate) fn tell(&mut self, updates: Vec<Update>) -> io::Result<()> {
        let mut out = Vec::new();
        for update in updates {
            self.take(update, &mut out);
        }
        self.tell_ends(&mut out);
        screen::print(&out)?;
        self.draw();
        Ok(())
    }

    /// Whether [`tell`](Self::tell) has anything to do when only time went by.
    pub(crate) fn wants_ticks(&self) -> bool {
        self.live.is_some() || !self.ended.is_empty()
    }

    /// The table, the words of what failed, and the verdict as the last line.
    pub(crate) fn finish(&mut self, hint: impl Fn(&StepName) -> String) -> io::Result<()> {
        let mut out = Vec::new();
        self.logs_ended = true;
        self.tell_early(&mut out);
        self.tell_ends(&mut out);
        if let Some(live) = &mut self.live {
            live.clear();
        }
        if let Some(view) = &self.view {
            out.extend_from_slice(self.failures(view, hint).as_bytes());
            out.push(b'\n');
            out.extend_from_slice(steps_table(view, self.style).as_bytes());
            out.extend_from_slice(verdict(view, self.style).as_bytes());
        }
        screen::print(&out)
    }

    /// The run as it is known now.
    pub(crate) fn view(&self) -> Option<&RunView> {
        self.view.as_ref()
    }

    fn take(&mut self, update: Update, out: &mut Vec<u8>) {
        match update {
            Update::View(view) => {
                self.whole(*view, out);
                self.tell_ends(out);
                self.tell_early(out);
            }
            Update::Step(step) => {
                self.step(*step, out);
                self.tell_ends(out);
                self.tell_early(out);
            }
            Update::Run(summary) => {
                if let Some(view) = &mut self.view {
                    view.summary = summary;
                }
            }
            Update::Line(line) if self.is_heard_of(&line) => {
                self.line(&line, out);
                // Before a line of what waited for it.
                if self.ended.iter().any(|(step, _)| *step == line.step) {
                    self.tell_ends(out);
                }
            }
            Update::Line(line) => {
                self.early.push(line);
                if self.early.len() > EARLY_MAX {
                    self.early.drain(..).collect::<Vec<_>>().iter().for_each(|line| self.line(line, out));
                }
            }
            Update::Gap { step, text, .. } => {
                let prefix = self.prefix(&step);
                push_line(out, &format!("{prefix}{}", self.style.paint(Colour::Yellow, &text)));
            }
            Update::LogsEnd => self.logs_ended = true,
            Update::EventsEnd => {}
        }
    }

    fn whole(&mut self, view: RunView, out: &mut Vec<u8>) {
        let steps = view.steps.clone();
        if self.view.is_none() {
            let head = format!("{}  {}", view.summary.run, counted(u64::from(view.summary.steps), "step"));
            let again = self.known.as_ref().map(again_words).unwrap_or_default();
            push_line(out, &format!("{}  {head}{again}", self.style.paint(Colour::Bold, &view.summary.name)));
            for (index, step) in steps.iter().enumerate() {
                self.steps.insert(step.step.clone(), Told { colour: index, ..Told::default() });
            }
            // Nothing of it is known yet: whatever has ended is news.
            let blank =
                |step: &StepView| StepView { outcome: None, attempts: Vec::new(), remakes: Vec::new(), ..step.clone() };
            let known = self.known.take().map(|known| known.steps);
            let steps = known.unwrap_or_else(|| view.steps.iter().map(blank).collect());
            self.view = Some(RunView { steps, ..view });
        } else if let Some(known) = &mut self.view {
            known.summary = view.summary;
        }
        for step in steps {
            self.step(step, out);
        }
    }

    fn step(&mut self, step: StepView, out: &mut Vec<u8>) {
        let Some(view) = &mut self.view else { return };
        let Some(known) = view.steps.iter_mut().find(|known| known.step == step.step) else { return };
        let before = std::mem::replace(known, step.clone());
        if step.attempts.len() > before.attempts.len().max(1) {
            push_line(out, &retried(&step, self.style));
        }
        for remake in step.remakes.iter().skip(before.remakes.len()) {
            push_line(out, &remade(&step, remake, self.style));
        }
        let is_closed = |step: &StepView| step.attempts.last().is_some_and(|attempt| attempt.log_closed);
        if before.outcome.is_none() && step.outcome.is_some() {
            self.ended.push((step.step, Instant::now()));
        } else if is_closed(&step) && !is_closed(&before) {
            let ended = self.ended.iter_mut().filter(|(name, _)| *name == step.step);
            ended.for_each(|(_, since)| *since = Instant::now());
        }
    }

    fn line(&mut self, line: &LogLine, out: &mut Vec<u8>) {
        let prefix = self.prefix(&line.step);
        out.extend_from_slice(prefix.as_bytes());
        if self.style.terminal {
            out.extend_from_slice(clean(&line.data.0, self.style.colour).as_bytes());
        } else {
            out.extend_from_slice(&line.data.0);
        }
        out.push(b'\n');
        let told = self.steps.entry(line.step.clone()).or_default();
        if told.attempt != Some(line.attempt) {
            *told = Told { colour: told.colour, attempt: Some(line.attempt), ..Told::default() };
        }
        told.bytes += line.data.0.len() as u64 + u64::from(line.ending == Ending::Newline);
        if told.tail.len() == TAIL_LINES {
            told.tail.pop_front();
        }
        told.tail.push_back(clean(&line.data.0, self.style.colour));
    }

    fn is_heard_of(&self, line: &LogLine) -> bool {
        if self.steps.get(&line.step).is_some_and(|told| told.attempt == Some(line.attempt)) {
            return true;
        }
        let steps = self.view.iter().flat_map(|view| &view.steps);
        let of = |attempts: &[AttemptView]| attempts.iter().any(|attempt| attempt.attempt == line.attempt);
        steps.into_iter().any(|step| {
            let mut remakes = step.remakes.iter();
            step.step == line.step && of(&step.attempts)
                || remakes.any(|remake| remake.name == line.step && of(&remake.attempts))
        })
    }

    /// Tells the lines that were held back, as far as they need not be any more.
    fn tell_early(&mut self, out: &mut Vec<u8>) {
        for line in std::mem::take(&mut self.early) {
            if self.logs_ended || self.is_heard_of(&line) {
                self.line(&line, out);
            } else {
                self.early.push(line);
            }
        }
    }

    fn prefix(&self, step: &StepName) -> String {
        let colour = STEP_COLOURS[self.steps.get(step).map_or(0, |told| told.colour) % STEP_COLOURS.len()];
        let longest = self.steps.keys().map(|name| name.as_str().len()).max().unwrap_or(0).min(PADDING_MAX);
        // Padding is for eyes; a program splits at the first ` | `.
        let width = if self.style.terminal { longest } else { 0 };
        format!(
            "{} {} ",
            self.style.paint(colour, &format!("{:width$}", step.as_str())),
            self.style.paint(Colour::Dim, "|")
        )
    }

    /// Tells the ends of those steps whose output is told.
    fn tell_ends(&mut self, out: &mut Vec<u8>) {
        let Some(view) = &self.view else { return };
        let (steps, style, logs_ended) = (&self.steps, self.style, self.logs_ended);
        self.ended.retain(|(name, since)| {
            let Some(step) = view.steps.iter().find(|step| step.step == *name) else { return false };
            let told = logs_ended || is_told(step, steps.get(name), *since);
            if told {
                push_line(out, &end_words(step, style));
            }
            !told
        });
    }

    fn draw(&mut self) {
        if let (Some(live), Some(view)) = (&mut self.live, &self.view) {
            live.draw(view);
        }
    }

    fn failures(&self, view: &RunView, hint: impl Fn(&StepName) -> String) -> String {
        let failed = view.steps.iter().filter(|step| step.outcome.as_ref().is_some_and(is_failure));
        let mut text = String::new();
        for step in failed.take(TAILS_MAX) {
            let outcome = step.outcome.as_ref().expect("filtered by it");
            let tail = self.steps.get(&step.step).map(|told| &told.tail);
            let (mark, colour) = mark(outcome);
            let head = format!("{mark} {}: {outcome}", step.step);
            let _ = writeln!(text, "\n{}", self.style.paint(colour, &head));
            for line in tail.into_iter().flatten() {
                let _ = writeln!(text, "    {line}");
            }
            let more = format!("  the whole log: {}", hint(&step.step));
            let _ = writeln!(text, "{}", self.style.paint(Colour::Dim, &more));
        }
        text
    }
}

/// Whether every line of the step was told, as far as that is known.
fn is_told(step: &StepView, told: Option<&Told>, since: Instant) -> bool {
    let Some(attempt) = step.attempts.last() else { return true };
    match attempt.output {
        Some(output) if output.total() == 0 => true,
        Some(output) => {
            let counted =
                told.is_some_and(|told| told.attempt == Some(attempt.attempt) && told.bytes >= output.total());
            counted || (attempt.log_closed && since.elapsed() >= PATIENCE)
        }
        // Withdrawn, lost: nobody says where its output ends.
        None => since.elapsed() >= PATIENCE,
    }
}

/// How much of a run is still to be done, where somebody goes on with it.
fn again_words(known: &RunView) -> String {
    let left = known.steps.iter().filter(|step| step.outcome.is_none()).count();
    format!(", goes on with {left}")
}

fn end_words(step: &StepView, style: Style) -> String {
    let outcome = step.outcome.as_ref().expect("only steps that have ended are told so");
    let mut words = style.paint(mark(outcome).1, &format!("{} {}", mark(outcome).0, step.step));
    if *outcome != Outcome::Passed || step.cached {
        let _ = write!(words, "  {}", outcome_words(outcome, step.cached));
    }
    if let Outcome::Infra { reason, .. } = outcome {
        let _ = write!(words, ": {reason}");
    }
    if !step.attempts.is_empty() {
        let _ = write!(words, "  {}", style.paint(Colour::Dim, &duration(step_ms(step))));
    }
    words
}

fn retried(step: &StepView, style: Style) -> String {
    let last = step.attempts.len();
    let because = last
        .checked_sub(2)
        .and_then(|before| step.attempts[before].outcome.as_ref())
        .map_or_else(|| "the one before reached nobody".to_owned(), ToString::to_string);
    style.paint(Colour::Yellow, &format!("↻ {}  attempt {last}: {because}", step.step))
}

/// P20: the step stays as it settled; its lines come again under the remake's own name.
fn remade(step: &StepView, remake: &RemakeView, style: Style) -> String {
    let because = remake.because.as_deref().unwrap_or("a later step needed it once more");
    let words = format!("↻ {}  made again as {}: {because}", step.step, remake.name);
    style.paint(Colour::Yellow, &words)
}

fn push_line(out: &mut Vec<u8>, line: &str) {
    out.extend_from_slice(line.as_bytes());
    out.push(b'\n');
}

/// Step, outcome, attempts, worker, duration.
pub(crate) fn steps_table(view: &RunView, style: Style) -> String {
    let mut table = Table::new([
        ("step", Align::Left),
        ("outcome", Align::Left),
        ("attempts", Align::Right),
        ("worker", Align::Left),
        ("duration", Align::Right),
    ]);
    for step in &view.steps {
        let outcome = match &step.outcome {
            Some(outcome) => style.outcome(outcome, step.cached),
            None => format!("  {}", phase_word(step.phase)),
        };
        let worker = step.attempts.iter().rev().find_map(|attempt| attempt.worker.as_ref());
        let ran = step.attempts.last().is_some_and(|attempt| attempt.ended_at_ms.is_some());
        table.row([
            step.step.to_string(),
            outcome,
            step.attempts.len().to_string(),
            worker.map(worker_words).unwrap_or_default().to_owned(),
            if ran { duration(step_ms(step)) } else { String::new() },
        ]);
    }
    table.render()
}

/// What a step is doing, in a word.
pub(crate) fn phase_word(phase: StepPhase) -> &'static str {
    match phase {
        StepPhase::Waiting => "waiting",
        StepPhase::Queued => "queued",
        StepPhase::Preparing => "preparing",
        StepPhase::Running => "running",
        StepPhase::Settled => "settled",
    }
}

/// `RUN passed in 12.3 s`.
pub(crate) fn verdict(view: &RunView, style: Style) -> String {
    let summary = &view.summary;
    match (summary.outcome, summary.took_ms()) {
        (Some(outcome), Some(took)) => {
            let took = duration(took);
            format!("{} {} in {took}\n", summary.run, style.verdict(outcome))
        }
        _ => format!("{} is not settled\n", summary.run),
    }
}

#[cfg(test)]
#[path = "progress_tests.rs"]
mod tests;
