//! A worker that is killed leaves its steps running under their supervisors, and takes them up again when it returns
//! (P10, P16); what it had begun in a parked container is never its parent's files (P19); and if it never returns, its
//! containers end by themselves (P17).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use longshore_coordinator::core::view::{RunOutcome, StepView};
use longshore_protocol::{Outcome, RunId};
use longshore_tests::actor::{self, Flavour};
use longshore_tests::check::{processes_of, processes_with};
use longshore_tests::engine::{docker, is_holder, named, running};
use longshore_tests::process::{Process, within_patience};
use longshore_tests::{Dice, Fleet};

/// Longer than what a killed worker is away in these tests: only then is it the one that goes on.
const LONG_LEASE_SECS: u32 = 60;

#[tokio::test]
async fn p10_p16_kill_9_twenty_times_in_a_step_and_every_number_is_in_the_log_once_from_one_process() {
    let mut dice = Dice::new(Dice::seed());
    let mut fleet = Fleet::new().worker("one", 1).lease_secs(LONG_LEASE_SECS).start().await;
    let image = actor::image(fleet.engine_of("one"), Flavour::Plain);
    let steps = format!("[{{name: counts, image: '{image}', command: [actor, count, '6000', '10']}}]");
    let run = fleet.submit(&format!("{{name: counts, steps: {steps}}}")).await.id;
    fleet.follow(run).prints("counts", " 1\n").await;
    let first_seen = containers_of(&fleet, "one", &fleet.follow(run).step("counts").await);

    for kill in 1..=20 {
        // What is random here is the moment itself, so this is a matter of time and not of an event: while the worker
        // starts, takes up its container, reports, publishes output, or has nothing to do.
        tokio::time::sleep(Duration::from_millis(dice.next() % 800)).await;
        let step = fleet.follow(run).step("counts").await;
        assert_eq!(step.outcome, None, "over before kill {kill}: {step:?}");
        fleet.kill_worker("one").await;
        assert_eq!(containers_of(&fleet, "one", &step), first_seen, "after kill {kill}");
        fleet.spawn_worker("one");
    }
    fleet.worker("one").says("longshore worker: ready").await;

    let run = fleet.follow(run);
    run.settles(RunOutcome::Passed).await;
    assert_eq!(counted(&run.log("counts").await), (1..=6000).collect::<Vec<_>>());
    let step = run.step("counts").await;
    assert_eq!(step.attempts.len(), 1, "{step:?}");
    assert_eq!(Some(first_seen), step.attempts[0].container.clone().map(|name| BTreeSet::from([name])));
    let shown = shown(&fleet, run.id).await;
    assert!(shown.iter().any(|line| line.contains("counts") && line.contains("passed")), "{shown:#?}");
    // It tells of each attempt where there was more than one.
    assert!(!shown.iter().any(|line| line.contains("attempt 1") || line.contains("attempt 2")), "{shown:#?}");
    fleet.checks_out().await;
}

#[tokio::test]
async fn p16_a_step_that_ends_while_its_worker_is_dead_is_told_as_it_was() {
    let mut fleet = Fleet::new().worker("one", 1).lease_secs(LONG_LEASE_SECS).start().await;
    let image = actor::image(fleet.engine_of("one"), Flavour::Plain);
    let run = fleet
        .submit(&format!(
            r#"
name: ends-alone
steps:
  - name: ends
    image: "{image}"
    run: |
      actor count 100 10
      echo made > /made
      exit 7
"#
        ))
        .await
        .id;
    fleet.follow(run).prints("ends", " 1\n").await;
    fleet.kill_worker("one").await;
    until("the step has ended by itself", || processes_of(&[run]).is_empty()).await;
    fleet.start_worker("one").await;

    let run = fleet.follow(run);
    run.settles(RunOutcome::Failed).await;
    let step = run.step("ends").await;
    assert_eq!(step.outcome, Some(Outcome::Failed { exit: 7 }), "{step:?}");
    assert_eq!(step.attempts.len(), 1, "{step:?}");
    assert_eq!(counted(&run.log("ends").await), (1..=100).collect::<Vec<_>>());
    fleet.checks_out().await;
}

/// Every step writes its number below its parent's, and finds its parent's number last: files of a container in which a
/// step was begun and not finished would have one too many.
#[tokio::test]
async fn p19_a_chain_whose_worker_is_killed_at_random_moments_never_sees_a_childs_files_as_its_parents() {
    const STEPS: usize = 30;
    let mut dice = Dice::new(Dice::seed());
    let mut fleet = Fleet::new().worker("one", 1).lease_secs(LONG_LEASE_SECS).start().await;
    let mut pipeline = "name: trail\ndefaults: {image: 'longshore-test/busybox:latest'}\nsteps:\n".to_owned();
    for n in 0..STEPS {
        let from = if n == 0 { String::new() } else { format!("from: s{}, ", n - 1) };
        let before = if n == 0 { String::new() } else { (n - 1).to_string() };
        writeln!(
            pipeline,
            "  - {{name: s{n}, {from}run: 'test \"$(tail -n 1 /trail)\" = \"{before}\"; echo {n} >> /trail; \
             usleep {}000; cat /trail'}}",
            dice.below(200)
        )
        .expect("memory");
    }
    let run = fleet.submit(&pipeline).await.id;
    let mut kills = 0;
    while fleet.follow(run).view().await.summary.outcome.is_none() && kills < 20 {
        // A matter of time, as above.
        tokio::time::sleep(Duration::from_millis(dice.next() % 1_000)).await;
        fleet.kill_worker("one").await;
        kills += 1;
        fleet.spawn_worker("one");
    }
    fleet.worker("one").says("longshore worker: ready").await;
    assert!(kills > 5, "the chain was over before it was killed often: {kills} times");

    let run = fleet.follow(run);
    run.settles(RunOutcome::Passed).await;
    let whole: Vec<_> = (0..STEPS).map(|n| format!("{n}\n")).collect();
    assert_eq!(run.log(&format!("s{}", STEPS - 1)).await, whole.concat());
    fleet.checks_out().await;
}

#[tokio::test]
async fn p19_a_worker_killed_at_the_childs_first_instruction_goes_on_with_the_child_once() {
    let mut fleet = Fleet::new().worker("one", 1).lease_secs(LONG_LEASE_SECS).start().await;
    let run = fleet
        .submit(
            r#"
name: first-instruction
defaults: {image: "longshore-test/busybox:latest"}
steps:
  - name: parent
    run: echo parent > /made
  - name: child
    from: parent
    run: |
      cat /made
      echo child > /made
      sleep 2
      cat /made
"#,
        )
        .await
        .id;
    let of_child = [format!("LONGSHORE_RUN={run}"), "LONGSHORE_STEP=child".to_owned()];
    until("the child's first process", || !processes_with(&of_child).is_empty()).await;
    fleet.kill_worker("one").await;
    fleet.start_worker("one").await;

    let run = fleet.follow(run);
    run.settles(RunOutcome::Passed).await;
    // Adopted, or begun anew on its parent's files made again; never on what it had changed itself.
    assert_eq!(run.log("child").await, "parent\nchild\n", "{:#?}", run.view().await);
    assert_eq!(run.step("parent").await.attempts.len(), 1);
    fleet.checks_out().await;
}

#[tokio::test]
async fn p19_a_child_that_died_in_a_parked_container_starts_again_on_its_parents_files() {
    let fleet = Fleet::new().worker("one", 1).start().await;
    let run = fleet
        .submit(
            r#"
name: dies
defaults: {image: "longshore-test/busybox:latest"}
steps:
  - name: parent
    run: echo parent > /made
  - name: child
    from: parent
    run: |
      cat /made
      echo child > /made
      touch /only-the-childs
      ls /only-the-childs /made
      test "$LONGSHORE_ATTEMPT" != 1 || sleep 600
      rm /only-the-childs
"#,
        )
        .await;
    run.prints("child", "/only-the-childs").await;
    docker(fleet.engine_of("one"), &["kill", &run.container("child").await]);

    run.settles(RunOutcome::Passed).await;
    let (parent, child) = (run.step("parent").await, run.step("child").await);
    assert_eq!(run.log("child").await, "parent\n/made\n/only-the-childs\n", "{child:#?}");
    // The parent's one attempt stands, with its log; what it left was made again (P20).
    assert_eq!((parent.attempts.len(), parent.remakes.len()), (1, 1), "{parent:#?}");
    assert!(matches!(child.attempts[0].outcome, Some(Outcome::Infra { .. })), "{child:#?}");
    fleet.checks_out().await;
}

#[tokio::test]
async fn p17_the_containers_of_a_worker_that_is_gone_for_good_end_by_themselves() {
    let mut fleet = Fleet::new().worker("one", 1).with(&["--orphan", "3"]).start().await;
    let worker = fleet.worker_id("one").await;
    let run = fleet
        .submit(
            r#"
name: orphan
defaults: {image: "longshore-test/busybox:latest"}
steps:
  - name: step
    run: |
      trap '' TERM
      echo started
      sleep 600
"#,
        )
        .await
        .id;
    fleet.follow(run).prints("step", "started").await;
    // Slots and parked ones: two each. One that is still being made has not been told how long it may be alone.
    fleet.until_metric("one", "longshore_worker_namespaces", |held| held >= 4.0).await;
    let engine = fleet.engine_of("one").to_owned();
    let prefix = format!("longshore.{worker}.");
    assert!(running(&engine, &prefix).iter().any(|name| !is_holder(name)), "the step's container");
    fleet.kill_worker("one").await;
    // The step's, and those that only hold a namespace.
    until("every container has ended", || running(&engine, &prefix).is_empty()).await;
    assert!(processes_of(&[run]).is_empty());

    // Nobody is left to carry it out.
    fleet.follow(run).until("its worker's lease has ended", |view| view.steps[0].attempts[0].outcome.is_some()).await;
    fleet.follow(run).cancel().await;
    fleet.follow(run).settles(RunOutcome::Cancelled).await;
    fleet.checks_out().await;
}

/// The containers on the Engine beside a worker that were made for a step.
fn containers_of(fleet: &Fleet, worker: &str, step: &StepView) -> BTreeSet<String> {
    let all = named(fleet.engine_of(worker), "longshore.");
    all.into_iter().filter(|name| name.contains(&step.execution.to_hex())).collect()
}

/// The numbers of lines `PID NUMBER`, all of which one process must have said.
fn counted(log: &str) -> Vec<u32> {
    let lines = log.lines().map(|line| line.split_once(' ').unwrap_or_else(|| panic!("not PID NUMBER: {line:?}")));
    let (pids, numbers): (BTreeSet<&str>, Vec<u32>) =
        lines.map(|(pid, number)| (pid, number.parse::<u32>().expect("a number"))).unzip();
    assert_eq!(pids.len(), 1, "one process: {pids:?}");
    numbers
}

/// What `longshore show` prints.
async fn shown(fleet: &Fleet, run: RunId) -> Vec<String> {
    let args = ["show", &run.to_string(), "--coordinator", &fleet.url("")].map(str::to_owned);
    let (code, said) = Process::start("show", &args).ends().await;
    assert_eq!(code, 0, "{said:#?}");
    said
}

/// Waits for what nobody tells.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let poll = async {
        // Short, because a process's first instruction is among what is waited for.
        let mut interval = tokio::time::interval(Duration::from_millis(2));
        while !holds() {
            interval.tick().await;
        }
    };
    assert!(within_patience(poll).await.is_some(), "not reached: {what}");
}
