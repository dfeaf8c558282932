//! Random pipelines: at most eight steps, every kind of edge and rule.

use indexmap::IndexMap;
use longshore_coordinator::pipeline::{Parent, Pipeline, PlannedStep, SnapshotRule};
use longshore_protocol::job::{Command, StepSpec};
use longshore_protocol::{PoolName, StepName};

use crate::dice::Dice;

pub(crate) fn spec() -> StepSpec {
    StepSpec {
        command: Command::Argv(vec!["true".to_owned()]),
        env: IndexMap::new(),
        workdir: None,
        user: None,
        sources: Vec::new(),
        timeout_ms: 1_000,
        grace_ms: 1_000,
        resources: longshore_protocol::job::Resources::default(),
        network: longshore_protocol::job::Network::default(),
        pool: PoolName::default(),
    }
}

pub(crate) fn thrown(dice: &mut Dice) -> Pipeline {
    let count = 1 + dice.below(8);
    let name = |index: usize| StepName(format!("s{index}"));
    let step = |index: usize, dice: &mut Dice| {
        let from = (index > 0 && dice.permille(500)).then(|| dice.below(index));
        let needs = (0..index).filter(|before| Some(*before) != from && dice.permille(200)).map(name).collect();
        PlannedStep {
            name: name(index),
            parent: from.map_or_else(|| Parent::Image("base".to_owned()), |parent| Parent::Step(name(parent))),
            needs,
            spec: spec(),
            sources: Vec::new(),
            retry: if dice.permille(300) { 2 } else { 0 },
            cache_key: dice.permille(150).then(|| format!("key-{index}")),
            snapshot: if dice.permille(100) { SnapshotRule::Always } else { SnapshotRule::Auto },
            keep_going: dice.permille(300),
        }
    };
    Pipeline { name: "p".to_owned(), steps: (0..count).map(|index| step(index, dice)).collect() }
}
