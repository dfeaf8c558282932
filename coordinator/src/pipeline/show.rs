//! What `longshore plan` prints. JSON is the [`Pipeline`]'s own.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use longshore_protocol::job::Network;

use super::model::{Parent, Pipeline, PlannedStep, SnapshotRule};
use super::units::duration_text;

/// More names than these in one cell push the next column off the screen.
const NEEDS_SHOWN: usize = 3;

/// Deeper trees are cut from the left: a chain is read by its order, not by its indentation.
const LEVELS_SHOWN: usize = 12;

/// A table of the steps: a child stands indented under the step whose files it goes on with, roots in the order in
/// which they can run.
pub fn to_text(pipeline: &Pipeline) -> String {
    let mut rows = vec![["STEP".to_owned(), "ON".to_owned(), "AFTER".to_owned(), "WITH".to_owned()]];
    let forest = Forest::of(pipeline);
    // A stack rather than recursion: a chain may be ten thousand steps long.
    let mut stack: Vec<(usize, Vec<bool>)> = forest.roots.iter().rev().map(|&root| (root, Vec::new())).collect();
    while let Some((at, lasts)) = stack.pop() {
        let step = &pipeline.steps[at];
        let on = match &step.parent {
            Parent::Image(image) => image.clone(),
            Parent::Step(_) => "↑".to_owned(),
        };
        rows.push([format!("{}{}", branch(&lasts), step.name), on, needs(step), with(step)]);
        let children = forest.children.get(&at).map(Vec::as_slice).unwrap_or_default();
        for (n, &child) in children.iter().enumerate().rev() {
            // One level more than is shown, so that `branch` sees that some are cut; not all of them, of which a
            // chain of ten thousand steps would hold fifty million.
            let mut below = lasts[lasts.len().saturating_sub(LEVELS_SHOWN)..].to_vec();
            below.push(n + 1 == children.len());
            stack.push((child, below));
        }
    }
    let count = pipeline.steps.len();
    let noun = if count == 1 { "step" } else { "steps" };
    let mut text = format!("{}: {count} {noun}\n\n", pipeline.name);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    for [name, on, after, with] in &rows {
        let row = format!("{name:0$}  {on:1$}  {after:2$}  {with}", widths[0], widths[1], widths[2]);
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

/// Steps by their parents.
struct Forest {
    roots: Vec<usize>,
    children: HashMap<usize, Vec<usize>>,
}

impl Forest {
    fn of(pipeline: &Pipeline) -> Self {
        let at: HashMap<_, _> = pipeline.steps.iter().enumerate().map(|(at, step)| (&step.name, at)).collect();
        let mut forest = Self { roots: Vec::new(), children: HashMap::new() };
        for (index, step) in pipeline.steps.iter().enumerate() {
            match &step.parent {
                Parent::Step(parent) if at.contains_key(parent) => {
                    forest.children.entry(at[parent]).or_default().push(index);
                }
                _ => forest.roots.push(index),
            }
        }
        forest
    }
}

/// The lines of the tree before a name. `lasts`: for each level, whether it is the last of its siblings.
fn branch(lasts: &[bool]) -> String {
    let cut = lasts.len().saturating_sub(LEVELS_SHOWN);
    let Some((own, above)) = lasts[cut..].split_last() else {
        return String::new();
    };
    let above: String = above.iter().map(|last| if *last { "  " } else { "│ " }).collect();
    let start = if cut > 0 { "… " } else { "" };
    format!("{start}{above}{}", if *own { "└ " } else { "├ " })
}

fn needs(step: &PlannedStep) -> String {
    // All instances of a step read as one: `test[…] × 12`.
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for name in &step.needs {
        let base = name.as_str().split('[').next().unwrap_or_default();
        match groups.iter_mut().find(|(known, _)| *known == base) {
            Some((_, names)) => names.push(name.as_str()),
            None => groups.push((base, vec![name.as_str()])),
        }
    }
    let mut words: Vec<String> = groups
        .iter()
        .map(|(base, names)| match names.as_slice() {
            [only] => (*only).to_owned(),
            several => format!("{base}[…] × {}", several.len()),
        })
        .collect();
    if words.len() > NEEDS_SHOWN {
        let rest = words.split_off(NEEDS_SHOWN).len();
        words.push(format!("and {rest} more"));
    }
    words.join(", ")
}

/// What differs from a step without any keys.
fn with(step: &PlannedStep) -> String {
    let spec = &step.spec;
    let mut words = Vec::new();
    if spec.timeout_ms != 3_600_000 {
        words.push(format!("timeout {}", duration_text(spec.timeout_ms)));
    }
    if step.retry.max > 0 {
        words.push(format!("retry {}", step.retry));
    }
    if spec.network == Network::Bridge {
        words.push("network bridge".to_owned());
    }
    if let Some(memory) = spec.resources.memory_bytes {
        words.push(format!("memory {} MiB", memory / 1024 / 1024));
    }
    if let Some(bytes) = spec.output_max {
        words.push(format!("output {} KiB", bytes / 1024));
    }
    if let Some(cpus) = spec.resources.cpus {
        words.push(format!("cpus {cpus}"));
    }
    if spec.pool != longshore_protocol::PoolName::default() {
        words.push(format!("pool {}", spec.pool));
    }
    if let Some(ms) = step.queue_timeout_ms {
        words.push(format!("queue timeout {}", duration_text(ms)));
    }
    if step.priority != 0 {
        words.push(format!("priority {}", step.priority));
    }
    if let Some(concurrency) = &step.concurrency {
        words.push(format!("group {} × {}", concurrency.group, concurrency.max));
    }
    if let Some(key) = &step.cache_key {
        words.push(format!("cache {key}"));
    }
    if step.snapshot == SnapshotRule::Always {
        words.push("snapshot always".to_owned());
    }
    for source in &step.sources {
        words.push(format!("{} → {}", source.path, source.target));
    }
    if step.keep_going {
        words.push("keep going".to_owned());
    }
    if spec.exclusive {
        words.push("exclusive".to_owned());
    }
    words.join(", ")
}

/// The graph for Graphviz: solid edges hand over files, dashed ones only order.
pub fn to_dot(pipeline: &Pipeline) -> String {
    let mut dot = format!("digraph {} {{\n  rankdir=LR;\n  node [shape=box];\n", quoted(&pipeline.name));
    let mut images = HashSet::new();
    for step in &pipeline.steps {
        let name = quoted(step.name.as_str());
        let _ = writeln!(dot, "  {name};");
        match &step.parent {
            Parent::Image(image) => {
                // Prefixed, so that an image is never taken for a step of the same name.
                let id = quoted(&format!("image {image}"));
                if images.insert(image) {
                    let _ = writeln!(dot, "  {id} [label={}, shape=cylinder];", quoted(image));
                }
                let _ = writeln!(dot, "  {id} -> {name};");
            }
            Parent::Step(parent) => {
                let _ = writeln!(dot, "  {} -> {name};", quoted(parent.as_str()));
            }
        }
        for need in &step.needs {
            let _ = writeln!(dot, "  {} -> {name} [style=dashed];", quoted(need.as_str()));
        }
    }
    dot.push_str("}\n");
    dot
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
