//! Random pipelines: at most eight steps, every kind of edge and rule.

use indexmap::IndexMap;
use longshore_coordinator::pipeline::{Concurrency, Parent, Pipeline, PlannedStep, Retry, RetryOn, SnapshotRule};
use longshore_protocol::job::{Command, Network, StepSpec};
use longshore_protocol::{PoolName, StepName};

use crate::dice::Dice;

fn spec(dice: &mut Dice) -> StepSpec {
    let network = if dice.permille(100) { Network::Bridge } else { Network::None };
    StepSpec {
        command: Command::Argv(vec!["true".to_owned()]),
        env: IndexMap::new(),
        workdir: None,
        user: None,
        sources: Vec::new(),
        timeout_ms: 1_000,
        grace_ms: 1_000,
        output_max: None,
        exclusive: dice.permille(150),
        resources: longshore_protocol::job::Resources::default(),
        network,
        pool: PoolName::default(),
    }
}

fn retry(dice: &mut Dice) -> Retry {
    if !dice.permille(200) {
        return Retry::default();
    }
    let on = if dice.permille(300) { vec![RetryOn::Exit(1), RetryOn::Signaled] } else { Vec::new() };
    Retry { max: 2, on, backoff_ms: if dice.permille(300) { 5_000 } else { 0 } }
}

/// Two groups, of which one lets two steps begin.
fn concurrency(dice: &mut Dice) -> Concurrency {
    let two = dice.permille(500);
    Concurrency { group: if two { "two" } else { "one" }.to_owned(), max: 1 + u32::from(two) }
}

pub(crate) fn thrown(dice: &mut Dice) -> Pipeline {
    let count = 1 + dice.below(8);
    let name = |index: usize| StepName::from(format!("s{index}"));
    let step = |index: usize, dice: &mut Dice| {
        // Chains as often as forks: only what has one child is parked without a commit.
        let from =
            (index > 0 && dice.permille(700)).then(|| if dice.permille(600) { index - 1 } else { dice.below(index) });
        let needs = (0..index).filter(|before| Some(*before) != from && dice.permille(200)).map(name).collect();
        PlannedStep {
            name: name(index),
            parent: from.map_or_else(|| Parent::Image("base".to_owned()), |parent| Parent::Step(name(parent))),
            needs,
            spec: spec(dice),
            sources: Vec::new(),
            retry: retry(dice),
            cache_key: dice.permille(150).then(|| format!("key-{index}")),
            snapshot: if dice.permille(100) { SnapshotRule::Always } else { SnapshotRule::Auto },
            keep_going: dice.permille(300),
            priority: i32::try_from(dice.below(3)).unwrap() - 1,
            queue_timeout_ms: dice.permille(100).then_some(15_000),
            concurrency: dice.permille(250).then(|| concurrency(dice)),
        }
    };
    let steps = (0..count).map(|index| step(index, dice)).collect();
    Pipeline { name: "p".to_owned(), timeout_ms: dice.permille(60).then_some(40_000), steps }
}
