//! Steps that do not want to end, or want too much: each is over within its timeout and grace, judged by what the kernel
//! said, and nothing of it is left.

use std::collections::BTreeMap;
use std::time::Duration;

use longshore_coordinator::core::view::{RunOutcome, StepView};
use longshore_protocol::Outcome;
use longshore_tests::Fleet;
use longshore_tests::actor::{self, Flavour};
use longshore_tests::check::{no_process_left, processes_of};

/// From TERM to KILL, as the worker does it.
const GRACE: Duration = Duration::from_secs(10);

/// What the machine may need besides, when its two cores compile something else at the same time.
const SLACK: Duration = Duration::from_secs(10);

/// What a nasty step does, and how it must end.
struct Case {
    name: &'static str,
    settings: &'static str,
    command: &'static str,
    outcome: Outcome,
    timeout: Duration,
}

fn case(name: &'static str, settings: &'static str, command: &'static str, outcome: Outcome, timeout: u64) -> Case {
    Case { name, settings, command, outcome, timeout: Duration::from_secs(timeout) }
}

fn cases() -> Vec<Case> {
    let failed = |exit: u8| Outcome::Failed { exit };
    vec![
        // Daemons left behind, that hold the step's pipes, a port and a name.
        case("daemons", "", "actor daemon left; sleep 1000 & actor stubborn & echo done", Outcome::Passed, 60),
        case("daemons-and-failure", "", "actor daemon left; actor stubborn & exit 9", failed(9), 60),
        // Deaf to TERM, alone and with a tree in sessions of its own; stopped; and deaf while it talks.
        case("ignores-term", "", "trap '' TERM; while true; do sleep 1; done", Outcome::TimedOut, 2),
        case("stubborn-tree", "", "exec actor stubborn", Outcome::TimedOut, 2),
        case("stopped", "", "exec actor stop-yourself", Outcome::TimedOut, 2),
        case("talks-on", "", "trap '' TERM; while true; do echo on; usleep 5000; done", Outcome::TimedOut, 2),
        case("ends-on-term", "", "trap 'exit 3' TERM; while true; do sleep 0.1; done", Outcome::TimedOut, 2),
        // Memory: the kernel counted an oom_kill, and the exit was not 0, or was.
        case("fills-memory", "resources: {memory: 32MiB}", "exec actor fill", Outcome::OomKilled, 60),
        case("child-fills-memory", "resources: {memory: 32MiB}", "exec actor fill-in-child 1", Outcome::OomKilled, 60),
        case("survives-its-child", "resources: {memory: 32MiB}", "exec actor fill-in-child 0", Outcome::Passed, 60),
        case("says-137", "resources: {memory: 32MiB}", "exit 137", failed(137), 60),
        // The pid limit: nothing can be started any more, and the step is ended all the same.
        case("fills-pids", "resources: {pids: 40}", "exec actor fork-until-refused 3", failed(3), 60),
        case("bomb", "resources: {pids: 40}", "exec actor bomb", Outcome::TimedOut, 3),
        // Its exit is what counts, not the end of its output.
        case("closes-stdout", "", "exec >&- 2>&-; sleep 2; exit 5", failed(5), 60),
        case("closes-stdout-and-passes", "", "exec >&- 2>&-; sleep 1", Outcome::Passed, 60),
        // Signals to everybody, the first process included.
        case("kills-everything", "", "actor kill-everything", Outcome::Signaled { signal: 9 }, 60),
        case("kills-init", "", "exec actor kill-init 6", failed(6), 60),
        case("kills-itself", "", "kill -SEGV $$", Outcome::Signaled { signal: 11 }, 60),
        // Its own files.
        case("removes-everything", "", "rm -rf / 2>/dev/null || true; exit 7", failed(7), 60),
        case("last-words", "", "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i + 1)); done", Outcome::Passed, 60),
    ]
}

#[tokio::test]
async fn every_nasty_step_is_over_within_timeout_and_grace_and_leaves_nothing() {
    let fleet = Fleet::new().worker("one", 1).start().await;
    let image = actor::image(fleet.engine_of("one"), Flavour::Plain);
    let cases = cases();
    let steps = cases.iter().map(|case| {
        let Case { name, settings, command, timeout, .. } = case;
        let timeout = timeout.as_secs();
        // Each has a child where that can be: what it left in its container is met there.
        format!(
            r#"
  - name: {name}
    image: "{image}"
    timeout: {timeout}s
    {settings}
    run: |
      {command}
  - name: after-{name}
    from: {name}
    run: actor look
"#
        )
    });
    let pipeline = format!("name: nasty\ndefaults: {{keep_going: true}}\nsteps:{}", steps.collect::<String>());
    let run = fleet.submit(&pipeline).await;
    let view = run.settles_within(Duration::from_mins(5), RunOutcome::Failed).await;
    // At once: a step is over when nothing of it runs any more.
    assert_eq!(processes_of(&[run.id]), Vec::<u32>::new());

    let steps: BTreeMap<&str, &StepView> = view.steps.iter().map(|step| (step.step.as_str(), step)).collect();
    let mut wrong = Vec::new();
    for case in &cases {
        let step = steps[case.name];
        let attempt = step.attempts.last().expect("it was begun");
        let ran = attempt.ended_at_ms.zip(attempt.started_at_ms).map(|(end, start)| end.saturating_sub(start));
        let ran = Duration::from_millis(ran.unwrap_or_default());
        if step.outcome.as_ref() != Some(&case.outcome) || step.attempts.len() != 1 {
            wrong.push(format!("{}: {:?} instead of {}, {:#?}", case.name, step.outcome, case.outcome, step.attempts));
        }
        if ran > case.timeout + GRACE + SLACK {
            wrong.push(format!("{}: over only after {ran:?}", case.name));
        }
        let after = steps[format!("after-{}", case.name).as_str()];
        if case.outcome == Outcome::Passed {
            let saw = run.log(&format!("after-{}", case.name)).await;
            let alone = saw.lines().filter(|line| line.starts_with("processes")).all(|line| !line.contains("sleep"));
            let free = saw.contains("\nport free\n") && saw.contains("\nabstract free\n");
            if !(alone && free) {
                wrong.push(format!("after {}: {saw}", case.name));
            }
        } else {
            assert!(after.attempts.is_empty(), "{after:#?}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let lines: Vec<_> = (0..20_000).map(|n| format!("line {n}\n")).collect();
    assert!(run.log("last-words").await == lines.concat(), "everything that was said before the exit is in the log");
    assert_eq!(run.log("kills-init").await, "sent\n", "the kernel takes it, and PID 1 does not mind");
    fleet.checks_out().await;
}

/// `LONGSHORE_POUR_MIB` says otherwise.
const POUR_MIB: u64 = 1024;

#[tokio::test]
async fn a_gigabyte_without_a_newline_passes_and_its_pieces_are_marked() {
    let fleet = Fleet::new().worker("one", 1).start().await;
    let image = actor::image(fleet.engine_of("one"), Flavour::Plain);
    let mib: u64 = std::env::var("LONGSHORE_POUR_MIB").map_or(POUR_MIB, |text| text.parse().expect("a number"));
    let bytes = mib << 20;
    let steps = format!("[{{name: pours, image: '{image}', command: [actor, pour, '{bytes}']}}]");
    let run = fleet.submit(&format!("{{name: pours, steps: {steps}}}")).await;
    run.settles_within(Duration::from_mins(15), RunOutcome::Passed).await;
    let step = run.step("pours").await;
    assert_eq!(step.attempts[0].output.map(|output| output.total()), Some(bytes), "{step:#?}");
    // The first lines of the log as it is told line by line: none is longer than 64 KiB, and each says that it goes on.
    let lines = run.log_lines("pours", 100).await;
    assert_eq!(lines.len(), 100);
    assert!(lines.iter().all(|line| line.ending == longshore_protocol::output::Ending::Split), "{:?}", lines[0].ending);
    assert!(lines.iter().all(|line| line.data.0.iter().all(|byte| *byte == b'x')));
    // That the store has every byte is the checker's.
    fleet.checks_out().await;
}

#[tokio::test]
async fn a_cancelled_step_that_will_not_go_is_gone_with_all_that_it_started() {
    let fleet = Fleet::new().worker("one", 1).start().await;
    let image = actor::image(fleet.engine_of("one"), Flavour::Plain);
    let run = fleet
        .submit(&format!(
            r#"
name: cancelled
steps:
  - name: stays
    image: "{image}"
    run: |
      trap '' TERM
      actor daemon stays
      exec actor stubborn
"#
        ))
        .await;
    run.prints("stays", "stubborn").await;
    run.cancel().await;
    run.settles(RunOutcome::Cancelled).await;
    no_process_left(&[run.id]).await;
    fleet.checks_out().await;
}
