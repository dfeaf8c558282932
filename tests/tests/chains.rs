//! A thousand steps in a row: in one container, and each restored from an image, none of which is deeper than the Engine
//! can mount.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use longshore_coordinator::core::view::{RunOutcome, RunView};
use longshore_tests::Fleet;
use longshore_tests::engine::{depth, docker};

/// Steps of a chain in which everything stays in one container.
const PARKED_STEPS: usize = 1_000;

/// How much a chain's commands may take until it is committed: twenty times what the least of commits takes (section 7 of
/// the design page).
const COMMIT_WORTH_MS: u64 = 20 * 90;

/// Steps of a chain that is committed at each: enough to be flattened twice. A start and a commit take 0.5 s and more
/// each, so that the thousand of the closing run (`LONGSHORE_CHAIN_STEPS=1000`) would be a third of all tests' time.
const RESTORED_STEPS: usize = 260;

/// overlay2 mounts 128 layers at most, and an image's own come on top of what a container needs.
const LAYERS_MAX: usize = 100;

#[tokio::test]
async fn a_chain_of_a_thousand_steps_passes_in_one_container() {
    let fleet = Fleet::new().worker("one", 1).start().await;
    let began = Instant::now();
    let run = fleet.submit(&chain(PARKED_STEPS, "auto")).await;
    let view = run.settles_within(Duration::from_mins(15), RunOutcome::Passed).await;
    let took = began.elapsed();
    println!("{PARKED_STEPS} steps in one container: {took:?}, {:?} a step", took / 1_000);

    assert_eq!(run.log(&format!("s{}", PARKED_STEPS - 1)).await, expected(PARKED_STEPS));
    let containers: BTreeSet<_> = attempts(&view).filter_map(|attempt| attempt.container.clone()).collect();
    assert_eq!(containers.len(), 1, "{containers:?}");
    // Trifles: no more commits than the time together that their commands took was worth, and that is little.
    let commits = attempts(&view).filter(|attempt| attempt.snapshot.is_some()).count() as u64;
    let ran_ms: u64 = attempts(&view).filter_map(|attempt| attempt.phases).map(|phases| phases.exec_ms).sum();
    assert!(commits <= 1 + ran_ms / COMMIT_WORTH_MS, "{commits} commits of {ran_ms} ms");
    fleet.checks_out().await;
}

#[tokio::test]
async fn a_chain_that_is_committed_at_every_step_is_never_deeper_than_a_hundred_layers() {
    let steps = std::env::var("LONGSHORE_CHAIN_STEPS");
    let steps: usize = steps.map_or(RESTORED_STEPS, |text| text.parse().expect("a number"));
    let fleet = Fleet::new().worker("one", 1).start().await;
    let began = Instant::now();
    let run = fleet.submit(&chain(steps, "always")).await;
    // Ten times what it takes on an idle machine.
    let patience = Duration::from_mins(1) + Duration::from_secs(10) * u32::try_from(steps).expect("thousands");
    let view = run.settles_within(patience, RunOutcome::Passed).await;
    let took = began.elapsed();
    println!("{steps} steps, each committed: {took:?}, {:?} a step", took / u32::try_from(steps).expect("thousands"));

    assert_eq!(run.log(&format!("s{}", steps - 1)).await, expected(steps));
    let engine = fleet.engine_of("one");
    let mut depths = Vec::new();
    for step in &view.steps {
        let [attempt] = &step.attempts[..] else { panic!("{step:#?}") };
        let snapshot = attempt.snapshot.as_ref().unwrap_or_else(|| panic!("committed: {step:#?}"));
        depths.push(depth(engine, snapshot.as_str()));
    }
    assert!(depths.iter().all(|depth| *depth <= LAYERS_MAX), "{depths:?}");
    let flattened = depths.windows(2).filter(|pair| pair[1] < pair[0]).count();
    assert!(flattened >= steps / LAYERS_MAX - 1, "flattened {flattened} times: {depths:?}");
    // What the base image says is what the last one says.
    let last = view.steps.last().and_then(|step| step.attempts[0].snapshot.clone()).expect("looked at above");
    let config = |image: &str| docker(engine, &["image", "inspect", "--format", CONFIG, image]);
    assert_eq!(config(last.as_str()), config("longshore-test/configured:latest"));
    run.forgets_snapshots().await;
    fleet.checks_out().await;
}

/// What an image tells whoever runs it.
const CONFIG: &str = "{{json .Config.Entrypoint}} {{json .Config.Cmd}} {{.Config.User}} {{.Config.WorkingDir}} \
                      {{json .Config.Env}} {{len .Config.Volumes}} {{len .Config.Labels}}";

/// Each step removes what the one before made, makes its own, and adds to a file of all.
fn chain(steps: usize, snapshot: &str) -> String {
    let mut pipeline = "name: chain\ndefaults: {image: 'longshore-test/configured:latest'}\nsteps:\n".to_owned();
    for n in 0..steps {
        let (from, before) = match n {
            0 => (String::new(), "mkdir dir".to_owned()),
            n => (format!("from: s{}, ", n - 1), format!("test -e dir/of-{0}; rm dir/of-{0}", n - 1)),
        };
        let last = if n + 1 == steps { "; cat trail; ls dir" } else { "" };
        let run = format!("{before}; echo {n} >> trail; : > dir/of-{n}{last}");
        writeln!(pipeline, "  - {{name: s{n}, {from}snapshot: {snapshot}, run: '{run}'}}").expect("memory");
    }
    pipeline
}

/// What the last step of such a chain prints.
fn expected(steps: usize) -> String {
    let lines: Vec<_> = (0..steps).map(|n| format!("{n}\n")).collect();
    format!("{}of-{}\n", lines.concat(), steps - 1)
}

fn attempts(view: &RunView) -> impl Iterator<Item = &longshore_coordinator::core::view::AttemptView> {
    view.steps.iter().flat_map(|step| &step.attempts)
}
