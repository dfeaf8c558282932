//! A step sees its parent's files and nothing else of it, whether it goes on in its parent's container or in one restored
//! from a snapshot (design page, section 7): both ways are gone, and compared.

mod chain;

use std::collections::BTreeSet;

use longshore_coordinator::core::view::{RunOutcome, RunView};
use longshore_tests::actor::{self, Flavour};
use longshore_tests::{Dice, Fleet};
use serde_json::json;

use chain::Chain;

/// Chains that are tried; `LONGSHORE_CHAINS` says otherwise. One takes about five restored steps of 0.7 s.
const CHAINS: u64 = 16;

#[tokio::test]
async fn random_chains_leave_the_same_trees_and_the_same_output_parked_and_restored() {
    let fleet = Fleet::new().worker("one", 1).start().await;
    let repeated = std::env::var_os("LONGSHORE_SEED").is_some();
    let chains = std::env::var("LONGSHORE_CHAINS").map_or(CHAINS, |text| text.parse().expect("a number"));
    let first = Dice::seed();
    let mut differ = Vec::new();
    for seed in (first..).take(if repeated { 1 } else { usize::try_from(chains).expect("few") }) {
        let (chain, began) = (Chain::new(seed), std::time::Instant::now());
        let image = actor::image(fleet.engine_of("one"), chain.flavour);
        let parked = fleet.submit(&chain.pipeline(&image, &json!({}))).await;
        let restored = fleet.submit(&chain.pipeline(&image, &json!({ "snapshot": "always" }))).await;
        let views = (parked.settles(RunOutcome::Passed).await, restored.settles(RunOutcome::Passed).await);

        for step in chain.steps() {
            let (parked, restored) = (parked.log(&step).await, restored.log(&step).await);
            if let Some(words) = first_difference(&parked, &restored) {
                differ.push(format!("LONGSHORE_SEED={seed}, step {step}: {words}\n{chain:#?}"));
                break;
            }
        }
        // Or the two had been the same way.
        assert_eq!(containers(&views.1).len(), chain.steps().len(), "LONGSHORE_SEED={seed}: {:#?}", views.1);
        if chain.flavour != Flavour::FilledVolume {
            assert_eq!(containers(&views.0).len(), 1, "LONGSHORE_SEED={seed}: {:#?}", views.0);
        }
        restored.forgets_snapshots().await;
        println!("chain {seed}, {} steps, both ways in {:?}", chain.steps().len(), began.elapsed());
    }
    assert!(differ.is_empty(), "{} of {chains} chains differ:\n{}", differ.len(), differ.join("\n"));
    fleet.checks_out().await;
}

/// What `docs/containers.md` lists as different, and that it is just so.
#[tokio::test]
async fn the_documented_differences_between_parked_and_restored_are_as_documented() {
    let fleet = Fleet::new().worker("one", 1).start().await;
    let image = actor::image(fleet.engine_of("one"), Flavour::Plain);
    let pipeline = |view: &str| {
        format!(
            r#"
name: differences
steps:
  - name: makes
    image: "{image}"
    {view}
    run: |
      mkdir /w /w/dir
      for file in plain attribute acl time; do echo made > /w/$file; done
      actor set-attribute /w/attribute user.colour blue
      actor acl /w/acl
      actor touch /w/time 1234567890 987654321
      actor capability /w/plain
      actor pair /w/one /w/other
  - name: looks
    from: makes
    {view}
    run: |
      actor attribute /w/attribute user.colour
      actor has-acl /w/acl
      actor nanos /w/time
      actor attribute /w/plain security.capability >/dev/null && echo "has its capability"
      actor same /w/one /w/other
      actor append /w/one more
      actor same /w/one /w/other
      actor cat /w/other
      actor rename-dir /w/dir /w/renamed
"#
        )
    };
    let parked = fleet.submit(&pipeline("snapshot: auto")).await;
    let restored = fleet.submit(&pipeline("snapshot: always")).await;
    let view = parked.settles(RunOutcome::Passed).await;
    assert_eq!(containers(&view).len(), 1, "{view:#?}");
    let made = parked.log("makes").await;
    assert!(made.lines().all(|line| line.ends_with(": done")), "the Engine's file system keeps all of this: {made}");
    restored.settles(RunOutcome::Passed).await;

    let seen = parked.log("looks").await;
    let expected = "\
attribute /w/attribute user.colour: blue
has-acl /w/acl: 44 bytes
nanos /w/time: 1234567890.987654321
has its capability
same /w/one /w/other: one file
append /w/one more: done
same /w/one /w/other: one file
cat /w/other: one of two names
more
rename-dir /w/dir /w/renamed: done
";
    assert_eq!(seen, expected);
    let seen = restored.log("looks").await;
    let expected = "\
attribute /w/attribute user.colour: ENODATA
has-acl /w/acl: ENODATA
nanos /w/time: 1234567890.000000000
has its capability
same /w/one /w/other: one file
append /w/one more: done
same /w/one /w/other: two files
cat /w/other: one of two names
rename-dir /w/dir /w/renamed: EXDEV
";
    assert_eq!(seen, expected);
    restored.forgets_snapshots().await;
    fleet.checks_out().await;
}

#[tokio::test]
async fn a_step_that_asks_for_another_network_goes_on_with_the_files_in_a_container_of_its_own() {
    let fleet = Fleet::new().worker("one", 1).start().await;
    let image = actor::image(fleet.engine_of("one"), Flavour::Plain);
    let run = fleet
        .submit(&format!(
            r#"
name: networks
steps:
  - {{name: none, image: "{image}", run: "echo none > /trail; test ! -e /sys/class/net/eth0"}}
  - {{name: bridge, from: none, network: bridge, run: "echo bridge >> /trail; test -e /sys/class/net/eth0"}}
  - {{name: again, from: bridge, run: "cat /trail; test ! -e /sys/class/net/eth0"}}
"#
        ))
        .await;
    let view = run.settles(RunOutcome::Passed).await;
    assert_eq!(containers(&view).len(), 3, "{view:#?}");
    assert_eq!(run.log("again").await, "none\nbridge\n");
    fleet.checks_out().await;
}

#[tokio::test]
async fn sources_injected_into_a_parked_container_are_what_a_fresh_one_gets() {
    let fleet = Fleet::new().worker("one", 1).start().await;
    let image = actor::image(fleet.engine_of("one"), Flavour::Plain);
    let tree = fleet.dir().join("tree");
    std::fs::create_dir_all(tree.join("sub/deep")).expect("writable");
    std::fs::write(tree.join("sub/deep/file"), "of the submitter\n").expect("writable");
    std::fs::write(tree.join("taken"), "of the submitter\n").expect("writable");
    std::os::unix::fs::symlink("sub/deep/file", tree.join("link")).expect("writable");

    let mut logs = Vec::new();
    for view in ["auto", "always"] {
        let file = fleet.dir().join(format!("{view}.yaml"));
        let pipeline = format!(
            r#"
name: sources
steps:
  - name: before
    image: "{image}"
    snapshot: {view}
    run: |
      mkdir -p /elsewhere /into/sub
      chmod 775 /into
      ln -s /elsewhere /into/sub/deep
      mkdir /into/taken
      echo stale > /into/sub/stale
  - name: after
    from: before
    snapshot: {view}
    user: tester
    sources: [{{path: tree, target: /into/made/there}}, {{path: tree/sub, target: /into/sub}}]
    run: actor look
"#
        );
        std::fs::write(&file, pipeline).expect("writable");
        let (run, client) = fleet.submit_and_watch(&file);
        let (code, said) = client.ends().await;
        assert_eq!(code, 0, "{said:#?}");
        let run = fleet.follow(run);
        run.settles(RunOutcome::Passed).await;
        logs.push(run.log("after").await);
        run.forgets_snapshots().await;
    }
    assert!(logs[0].contains("/into/made/there/sub/deep/file"), "{}", logs[0]);
    assert_eq!(first_difference(&logs[0], &logs[1]), None);
    fleet.checks_out().await;
}

/// The containers that a run's attempts were carried out in.
fn containers(view: &RunView) -> BTreeSet<String> {
    view.steps.iter().flat_map(|step| &step.attempts).filter_map(|attempt| attempt.container.clone()).collect()
}

/// The first lines that differ, for people. What the worker says in a log (which way it was, and why) is not the step's.
fn first_difference(parked: &str, restored: &str) -> Option<String> {
    let steps_own = |line: &&str| !line.starts_with("longshore: ");
    let lines = |text: &str| text.lines().filter(steps_own).map(str::to_owned).collect::<Vec<_>>();
    let (parked, restored) = (lines(parked), lines(restored));
    let at = (0..parked.len().max(restored.len())).find(|at| parked.get(*at) != restored.get(*at))?;
    let around = |lines: &[String]| lines[at.min(lines.len())..(at + 4).min(lines.len())].join("\n  ");
    Some(format!("line {at}\nparked:\n  {}\nrestored:\n  {}", around(&parked), around(&restored)))
}
