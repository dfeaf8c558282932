//! A pipeline's edges by index.

use std::collections::BTreeMap;

use crate::pipeline::{Parent, Pipeline};

/// Who waits for whom. Derived from the pipeline once, when a run is taken.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Graph {
    /// Per step: the step whose files it goes on with.
    pub(super) parent: Vec<Option<usize>>,
    /// Per step: every step that waits for it, by `from` or `needs`, ascending.
    pub(super) dependents: Vec<Vec<usize>>,
    /// Per step: how many steps it waits for.
    pub(super) waits: Vec<u32>,
    /// Per step: how many steps its files came through; 0 of one that starts from an image.
    pub(super) depth: Vec<u32>,
    /// Per step: how many steps go on with its files.
    pub(super) children: Vec<u32>,
}

impl Graph {
    /// INVARIANT: whatever a step waits for has a lower index.
    pub(super) fn of(pipeline: &Pipeline) -> Result<Self, &'static str> {
        let count = pipeline.steps.len();
        let mut graph = Self {
            parent: vec![None; count],
            dependents: vec![Vec::new(); count],
            waits: vec![0; count],
            depth: vec![0; count],
            children: vec![0; count],
        };
        let mut indices = BTreeMap::new();
        for (index, step) in pipeline.steps.iter().enumerate() {
            for name in step.waits_for() {
                let before: usize = *indices.get(name).ok_or("a step waits for none that stands before it")?;
                // A step that names its parent under `needs` too waits for it once.
                if graph.dependents[before].last() != Some(&index) {
                    graph.dependents[before].push(index);
                    graph.waits[index] += 1;
                }
            }
            if let Parent::Step(name) = &step.parent {
                let parent = indices[name];
                graph.parent[index] = Some(parent);
                graph.children[parent] += 1;
                graph.depth[index] = graph.depth[parent] + 1;
            }
            if indices.insert(&step.name, index).is_some() {
                return Err("two steps have one name");
            }
        }
        Ok(graph)
    }
}
