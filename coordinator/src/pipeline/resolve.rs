//! A file that has the right shape to a [`Pipeline`]: defaults and environments merged, matrices expanded, names
//! found, templates rendered, every value within its bounds.

use std::collections::HashMap;

use longshore_protocol::StepName;

use super::bounds::{self, EDGES_MAX, STEPS_MAX, TEXT_BYTES_MAX};
use super::matrix::{self, Values};
use super::mistake::{Mistake, Mistakes};
use super::model::{Pipeline, PlannedStep};
use super::names::{self, Link, Names, Target};
use super::raw::{RawEnv, RawPipeline, RawStep};
use super::step::{Links, Resolver};
use super::template::Templates;
use super::tree::Node;

/// `None` only with a mistake noted; with a pipeline there may be mistakes as well.
pub(super) fn resolve(raw: &RawPipeline, root: &Node, text: &str, mistakes: &mut Mistakes) -> Option<Pipeline> {
    if let Err(message) = bounds::name(&raw.name) {
        mistakes.note(Mistake::new(message).at(root.place("name"), "not this"));
    }
    if raw.steps.is_empty() {
        mistakes.note(Mistake::new("a pipeline has at least one step").at(root.place("steps"), "none here"));
        return None;
    }
    let nodes = root.get("steps")?.items();
    names::check(&raw.steps, nodes, mistakes);
    let instances = expand(&raw.steps, nodes, root, mistakes)?;
    let names = Names::new(&raw.steps, &instances);
    let links: Vec<Links> =
        raw.steps.iter().zip(nodes).map(|(step, node)| links(step, node, &names, mistakes)).collect();
    let edges: Vec<Vec<Link>> =
        links.iter().map(|links| links.parent.iter().chain(&links.needs).cloned().collect()).collect();
    let order = names::order(&raw.steps, &edges, mistakes);
    check_size(raw, root, &instances, &edges, mistakes)?;

    let mut resolver =
        Resolver { raw, root, text, names, instances: &instances, templates: Templates::new(), mistakes };
    // In the order of the file while something is wrong: mistakes within steps are worth telling beside a cycle.
    let order = order.unwrap_or_else(|| (0..raw.steps.len()).collect());
    let steps: Vec<PlannedStep> = order.into_iter().flat_map(|at| resolver.step(at, &nodes[at], &links[at])).collect();
    let timeout_ms = resolver.run_timeout();
    check_cache_keys(raw, &steps, nodes, resolver.mistakes);
    Some(Pipeline { name: raw.name.clone(), timeout_ms: timeout_ms?, steps })
}

/// The instances of every step; none of a step whose matrix is wrong. `None` if they are too many.
fn expand(steps: &[RawStep], nodes: &[Node], root: &Node, mistakes: &mut Mistakes) -> Option<Vec<Vec<Values>>> {
    let mut count = 0;
    let mut all = Vec::with_capacity(steps.len());
    for (step, node) in steps.iter().zip(nodes) {
        let instances = matrix::expand(step, node, mistakes).unwrap_or_default();
        count += instances.len();
        if count > STEPS_MAX {
            let message = format!("more than {STEPS_MAX} steps with all instances of all matrices");
            mistakes.note(
                Mistake::new(message).at(node.place("name"), "with this one").at(root.place("steps"), "from here"),
            );
            return None;
        }
        all.push(instances);
    }
    Some(all)
}

fn links(step: &RawStep, node: &Node, names: &Names<'_>, mistakes: &mut Mistakes) -> Links {
    let mut find = |name: &str, key: &str, span| {
        names.find(name, key, span).map_err(|mistake| mistakes.note(mistake.follows())).ok()
    };
    let parent = step.from.as_deref().and_then(|from| find(from, "from", node.place("from")));
    let places = node.get("needs").map(Node::items).unwrap_or_default();
    let needs = step.needs.iter().zip(places).filter_map(|(name, place)| find(name, "needs", place.head())).collect();
    Links { parent, needs }
}

/// What expansion would hold, before it is made.
fn check_size(
    raw: &RawPipeline,
    root: &Node,
    instances: &[Vec<Values>],
    edges: &[Vec<Link>],
    mistakes: &mut Mistakes,
) -> Option<()> {
    let width = |link: &Link| match link.target {
        Target::Step(step) => instances[step].len(),
        Target::Instance(..) => 1,
    };
    let edge_count: usize =
        edges.iter().zip(instances).map(|(links, own)| own.len() * links.iter().map(width).sum::<usize>()).sum();
    if edge_count > EDGES_MAX {
        let mistake = Mistake::new(format!("{edge_count} edges between steps, at most {EDGES_MAX}"));
        mistakes.note(
            mistake
                .at(root.place("steps"), "of these")
                .help("put one step between the instances that are waited for and those that wait"),
        );
        return None;
    }
    let of_env = |env: &RawEnv| env.iter().map(|(name, value)| name.len() + value.0.len()).sum::<usize>();
    let shared = of_env(&raw.env) + of_env(&raw.defaults.env);
    let of_step = |step: &RawStep| {
        let command = step.command.iter().flatten().map(|word| word.0.len()).sum::<usize>();
        shared + of_env(&step.env) + step.run.as_ref().map_or(0, String::len) + command
    };
    let bytes: usize = raw.steps.iter().zip(instances).map(|(step, own)| own.len() * of_step(step)).sum();
    if bytes > TEXT_BYTES_MAX {
        let message = format!("{bytes} bytes of scripts and environments after expansion, at most {TEXT_BYTES_MAX}");
        let mistake = Mistake::new(message).at(root.place("steps"), "of these");
        mistakes.note(mistake.help("put a long script into a file and the file into `sources`"));
        return None;
    }
    Some(())
}

/// Two steps that leave different files under one key would each be given the other's.
fn check_cache_keys(raw: &RawPipeline, steps: &[PlannedStep], nodes: &[Node], mistakes: &mut Mistakes) {
    let mut seen: HashMap<&str, &StepName> = HashMap::new();
    for step in steps {
        let Some(key) = step.cache_key.as_deref() else { continue };
        let Some(first) = seen.insert(key, &step.name) else { continue };
        let base = step.name.as_str().split('[').next().unwrap_or_default();
        let of_step = raw.steps.iter().position(|raw| raw.name == base).and_then(|at| nodes.get(at));
        let mistake = Mistake::new(format!("`{first}` and `{}` have the same cache key `{key}`", step.name));
        let span = of_step.map_or(0..0, |node| node.get("cache").map_or(node.head(), |cache| cache.place("key")));
        let mistake = mistake.at(span, "each would be given the other's files");
        let in_matrix = step.name.as_str().contains('[');
        mistakes.note(if in_matrix {
            mistake.help("put the matrix's values into it, as in `${{ matrix.NAME }}`")
        } else {
            mistake
        });
        // The rest of a matrix would say the same.
        break;
    }
}
