use longshore_coordinator::core::view::{AttemptView, RunOutcome, RunSummary};
use longshore_protocol::output::{LineData, Offsets, Stream};
use longshore_protocol::{ExecutionId, InfraStage, RunId};

use super::*;

const RUN: &str = "018f2a3b-4c5d-7000-8000-000000000001";

fn run() -> RunId {
    RUN.parse().unwrap()
}

fn step(name: &str) -> StepView {
    StepView {
        step: name.into(),
        execution: ExecutionId::of_step(run(), &name.into()),
        phase: StepPhase::Waiting,
        outcome: None,
        cancelling: false,
        cached: false,
        attempts: Vec::new(),
        remakes: Vec::new(),
    }
}

fn attempt(n: u32, outcome: Option<Outcome>, stdout: u64) -> AttemptView {
    AttemptView {
        attempt: Attempt(n),
        worker: Some("east-1".parse().unwrap()),
        container: None,
        dispatched_at_ms: 1_000,
        accepted_at_ms: Some(1_000),
        started_at_ms: Some(1_100),
        ended_at_ms: outcome.as_ref().map(|_| 1_400),
        output: outcome.as_ref().map(|_| Offsets { stdout, stderr: 0 }),
        outcome,
        snapshot: None,
        parked: false,
        phases: None,
        usage: None,
        log_closed: false,
    }
}

fn settled(name: &str, outcome: Outcome, stdout: u64) -> StepView {
    let attempts = vec![attempt(1, Some(outcome.clone()), stdout)];
    StepView { phase: StepPhase::Settled, outcome: Some(outcome), attempts, ..step(name) }
}

fn view(steps: Vec<StepView>) -> Update {
    let summary = RunSummary {
        run: run(),
        name: "hello".to_owned(),
        tenant: "default".to_owned(),
        submitted_at_ms: 900,
        settled_at_ms: None,
        retried_at_ms: None,
        retries: 0,
        outcome: None,
        cancelling: false,
        steps: u32::try_from(steps.len()).unwrap(),
        steps_settled: 0,
    };
    Update::View(Box::new(RunView { summary, steps }))
}

fn line(step: &str, text: &str) -> Update {
    Update::Line(LogLine {
        n: 1,
        step: step.into(),
        attempt: Attempt::FIRST,
        stream: Stream::Stdout,
        at_ms: 1,
        ending: Ending::Newline,
        data: LineData(text.as_bytes().to_vec()),
    })
}

/// What the updates print, without a terminal.
fn told(progress: &mut Progress, updates: Vec<Update>) -> String {
    let mut out = Vec::new();
    for update in updates {
        progress.take(update, &mut out);
    }
    progress.tell_ends(&mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn a_steps_end_is_told_behind_its_last_line() {
    let mut progress = Progress::new(Style::PLAIN);
    let start = told(&mut progress, vec![view(vec![step("greet"), step("read")])]);
    assert_eq!(start, format!("hello  {RUN}  2 steps\n"));
    let done = Update::Step(Box::new(settled("greet", Outcome::Passed, 12)));
    // The news of the end may overtake the output: 12 bytes are two lines of 5, each with its newline.
    assert_eq!(told(&mut progress, vec![line("greet", "hello"), done]), "greet | hello\n");
    assert_eq!(told(&mut progress, vec![line("greet", "again")]), "greet | again\n✓ greet  0.4 s\n");
}

/// The run's changes and its lines come by two ways, and the lines may be the quicker ones.
#[test]
fn a_line_stands_behind_the_end_of_what_its_step_waited_for() {
    let begun = |name| Update::Step(Box::new(StepView { attempts: vec![attempt(1, None, 0)], ..step(name) }));
    let done = || Update::Step(Box::new(settled("greet", Outcome::Passed, 6)));
    let mut progress = Progress::new(Style::PLAIN);
    told(&mut progress, vec![view(vec![step("greet"), step("read")]), begun("greet")]);
    assert_eq!(told(&mut progress, vec![line("greet", "hello"), line("read", "words")]), "greet | hello\n");
    assert_eq!(told(&mut progress, vec![done(), begun("read")]), "✓ greet  0.4 s\nread | words\n");

    let mut progress = Progress::new(Style::PLAIN);
    told(&mut progress, vec![view(vec![step("greet"), step("read")]), begun("greet")]);
    let all = vec![done(), begun("read"), line("greet", "hello"), line("read", "words")];
    assert_eq!(told(&mut progress, all), "greet | hello\n✓ greet  0.4 s\nread | words\n");
}

#[test]
fn a_step_without_output_ends_at_once_and_a_gap_holds_up_nobody_for_long() {
    let mut progress = Progress::new(Style::PLAIN);
    let quiet = Update::Step(Box::new(settled("greet", Outcome::Failed { exit: 3 }, 0)));
    let out = told(&mut progress, vec![view(vec![step("greet"), step("read")]), quiet]);
    assert!(out.ends_with("✗ greet  failed{3}  0.4 s\n"), "{out}");
    let lossy = Update::Step(Box::new(settled("read", Outcome::Passed, 100)));
    assert_eq!(told(&mut progress, vec![lossy]), "");
    assert_eq!(told(&mut progress, vec![Update::LogsEnd]), "✓ read  0.4 s\n");
}

#[test]
fn a_retry_says_what_became_of_the_attempt_before() {
    let mut progress = Progress::new(Style::PLAIN);
    let lost = Outcome::infra(InfraStage::Lease, "the worker was lost");
    let attempts = vec![attempt(1, Some(lost), 0), attempt(2, None, 0)];
    let again = StepView { phase: StepPhase::Running, attempts, ..step("greet") };
    let out = told(&mut progress, vec![view(vec![step("greet")]), Update::Step(Box::new(again))]);
    assert!(out.ends_with("↻ greet  attempt 2: infra{lease, the worker was lost}\n"), "{out}");
}

#[test]
fn p20_what_is_made_again_is_told_once_and_the_step_stays_as_it_settled() {
    let mut progress = Progress::new(Style::PLAIN);
    let built = settled("build", Outcome::Passed, 0);
    told(&mut progress, vec![view(vec![built.clone(), step("test")])]);
    let remake = RemakeView {
        name: "build~1".into(),
        execution: ExecutionId::of_remake(built.execution, 1),
        because: Some("test did not find it".to_owned()),
        phase: StepPhase::Running,
        outcome: None,
        attempts: vec![attempt(1, None, 0)],
    };
    let again = || Update::Step(Box::new(StepView { remakes: vec![remake.clone()], ..built.clone() }));
    let out = told(&mut progress, vec![again(), line("build~1", "compiling"), again()]);
    assert_eq!(out, "↻ build  made again as build~1: test did not find it\nbuild~1 | compiling\n");
}

#[test]
fn the_table_and_the_verdict_close_a_run() {
    let mut cached = settled("prepare", Outcome::Passed, 0);
    cached.cached = true;
    let skipped = Outcome::Skipped { because: "test".to_owned() };
    let last = StepView { phase: StepPhase::Settled, outcome: Some(skipped), ..step("package") };
    let steps = vec![cached, settled("test", Outcome::Failed { exit: 1 }, 0), last];
    let Update::View(mut view) = view(steps) else { unreachable!() };
    view.summary.outcome = Some(RunOutcome::Failed);
    view.summary.settled_at_ms = Some(13_200);
    let expected = "\
step     outcome                    attempts  worker  duration
prepare  ✓ cached                          1  east-1     0.4 s
test     ✗ failed{1}                       1  east-1     0.4 s
package  - skipped because of test         0
";
    assert_eq!(steps_table(&view, Style::PLAIN), expected);
    assert_eq!(verdict(&view, Style::PLAIN), format!("{RUN} failed in 12.3 s\n"));
}

#[test]
fn the_words_of_a_failed_step_are_repeated_with_the_way_to_more() {
    let mut progress = Progress::new(Style::PLAIN);
    told(&mut progress, vec![view(vec![step("test")])]);
    let lines = (0..20).map(|n| line("test", &format!("line {n}"))).collect();
    told(&mut progress, lines);
    told(&mut progress, vec![Update::Step(Box::new(settled("test", Outcome::Failed { exit: 2 }, 150)))]);
    let view = progress.view().unwrap();
    let text = progress.failures(view, |step| format!("longshore logs last {step}"));
    let expected_tail = (10..20).map(|n| format!("    line {n}")).collect::<Vec<_>>().join("\n");
    assert_eq!(text, format!("\n✗ test: failed{{2}}\n{expected_tail}\n  the whole log: longshore logs last test\n"));
}
