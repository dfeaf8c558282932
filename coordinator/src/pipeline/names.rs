//! Which step each `from` and `needs` means, and in which order steps can run.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use petgraph::Direction::{Incoming, Outgoing};
use petgraph::algo::kosaraju_scc;
use petgraph::graph::{DiGraph, NodeIndex};

use super::bounds;
use super::matrix::{Values, instance_name};
use super::mistake::{Mistake, Mistakes, Span};
use super::raw::RawStep;
use super::tree::Node;

/// Steps and their instances by name.
pub(super) struct Names<'a> {
    steps: HashMap<&'a str, usize>,
    exact: HashMap<String, (usize, usize)>,
    misses: Cell<usize>,
}

/// The nearest name is looked for this often: all names are compared each time, and so many mistakes are not shown.
const SUGGESTIONS_MAX: usize = 100;

/// What a name in `from` or `needs` stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// All instances of a step.
    Step(usize),
    /// One instance of a matrix step.
    Instance(usize, usize),
}

impl Target {
    pub(super) fn step(self) -> usize {
        match self {
            Self::Step(step) | Self::Instance(step, _) => step,
        }
    }
}

/// An edge of the file: a step waits for a target.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) target: Target,
    pub(super) span: Span,
}

/// Names are names, and none comes twice.
pub(super) fn check(steps: &[RawStep], nodes: &[Node], mistakes: &mut Mistakes) {
    let mut seen: HashMap<&str, Span> = HashMap::new();
    for (step, node) in steps.iter().zip(nodes) {
        let span = node.place("name");
        if let Err(message) = bounds::name(&step.name) {
            mistakes.note(Mistake::new(message).at(span.clone(), "not this"));
        }
        if let Some(first) = seen.insert(&step.name, span.clone()) {
            let mistake = Mistake::new(format!("two steps are called `{}`", step.name));
            mistakes.note(mistake.at(span, "again").at(first, "first here"));
        }
    }
}

impl<'a> Names<'a> {
    pub(super) fn new(steps: &'a [RawStep], instances: &[Vec<Values>]) -> Self {
        let mut exact = HashMap::new();
        for (at, (step, instances)) in steps.iter().zip(instances).enumerate() {
            for (which, values) in instances.iter().enumerate().filter(|(_, values)| !values.is_empty()) {
                exact.insert(instance_name(&step.name, values), (at, which));
            }
        }
        let steps = steps.iter().enumerate().map(|(at, step)| (step.name.as_str(), at)).collect();
        Self { steps, exact, misses: Cell::new(0) }
    }

    pub(super) fn find(&self, name: &str, key: &str, span: Span) -> Result<Link, Mistake> {
        if let Some(&step) = self.steps.get(name) {
            return Ok(Link { target: Target::Step(step), span });
        }
        if let Some(&(step, instance)) = self.exact.get(name) {
            return Ok(Link { target: Target::Instance(step, instance), span });
        }
        let mistake = Mistake::new(format!("`{key}` names `{name}`, and there is no such step")).at(span, "not a step");
        self.misses.set(self.misses.get() + 1);
        if self.misses.get() > SUGGESTIONS_MAX {
            return Err(mistake);
        }
        // Instances are searched only for what looks like one: there may be thousands.
        let exact = self.exact.keys().map(String::as_str).filter(|_| name.contains('['));
        let mut known: Vec<_> = self.steps.keys().copied().chain(exact).collect();
        known.sort_unstable();
        Err(mistake.nearest(name, known))
    }

    /// The instance of `parent` whose values `child` has as well.
    pub(super) fn same_values(&self, parent: &RawStep, child: &Values) -> Option<usize> {
        let keys = parent.matrix.as_ref()?.keys();
        let values: Option<Values> = keys.map(|key| Some((key.clone(), child.get(key)?.clone()))).collect();
        self.exact.get(&instance_name(&parent.name, &values?)).map(|(_, instance)| *instance)
    }
}

/// Steps so that each stands after what it waits for, otherwise as in the file. `None` with every cycle noted.
pub(super) fn order(steps: &[RawStep], links: &[Vec<Link>], mistakes: &mut Mistakes) -> Option<Vec<usize>> {
    let mut graph = DiGraph::<(), Span>::new();
    let nodes: Vec<NodeIndex> = steps.iter().map(|_| graph.add_node(())).collect();
    for (step, links) in links.iter().enumerate() {
        for link in links {
            graph.update_edge(nodes[step], nodes[link.target.step()], link.span.clone());
        }
    }
    let mut acyclic = true;
    // Kosaraju rather than Tarjan: petgraph's Tarjan recurses, and a chain of 10,000 steps would end the stack.
    for component in kosaraju_scc(&graph) {
        let lone = component.len() == 1 && !graph.contains_edge(component[0], component[0]);
        if !lone {
            acyclic = false;
            mistakes.note(cycle(steps, &graph, &component));
        }
    }
    acyclic.then(|| sort(&graph))
}

/// Kahn's algorithm, always taking the ready step that comes first in the file.
fn sort(graph: &DiGraph<(), Span>) -> Vec<usize> {
    let mut waiting: Vec<usize> =
        graph.node_indices().map(|step| graph.neighbors_directed(step, Outgoing).count()).collect();
    let mut ready: BinaryHeap<_> = (0..waiting.len()).filter(|&step| waiting[step] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(waiting.len());
    while let Some(Reverse(step)) = ready.pop() {
        order.push(step);
        for child in graph.neighbors_directed(NodeIndex::new(step), Incoming) {
            waiting[child.index()] -= 1;
            if waiting[child.index()] == 0 {
                ready.push(Reverse(child.index()));
            }
        }
    }
    order
}

/// One cycle of a component, from its first step in the file: `a → b → a`, where `→` is "waits for".
fn cycle(steps: &[RawStep], graph: &DiGraph<(), Span>, component: &[NodeIndex]) -> Mistake {
    let within: HashSet<_> = component.iter().copied().collect();
    let start = component.iter().copied().min().expect("a component has a node");
    // The shortest way from the start back to it. In a strongly connected component there is one.
    let mut came_from = HashMap::new();
    let mut queue = std::collections::VecDeque::from([start]);
    'search: while let Some(at) = queue.pop_front() {
        let mut next: Vec<_> = graph.neighbors(at).filter(|step| within.contains(step)).collect();
        next.sort_unstable();
        for step in next {
            if step == start {
                came_from.insert(start, at);
                break 'search;
            }
            came_from.entry(step).or_insert_with(|| {
                queue.push_back(step);
                at
            });
        }
    }
    let mut path = vec![start];
    let mut at = start;
    while let Some(&before) = came_from.get(&at) {
        path.push(before);
        at = before;
        if at == start {
            break;
        }
    }
    path.reverse();
    let name = |step: NodeIndex| steps[step.index()].name.as_str();
    let names: Vec<_> = path.iter().map(|&step| name(step)).collect();
    let mut mistake = Mistake::new(format!("steps wait for each other: {}", names.join(" → ")));
    // More labels than these would cover the file.
    for pair in path.windows(2).take(8) {
        if let Some(edge) = graph.find_edge(pair[0], pair[1]) {
            let label = format!("`{}` waits for `{}`", name(pair[0]), name(pair[1]));
            mistake = mistake.at(graph[edge].clone(), label);
        }
    }
    mistake
}
