//! Whether a resolved pipeline can be carried out: what a server checks of a submitted one, since not everything that
//! is submitted was made by our own client.

use std::collections::{HashMap, HashSet};

use super::bounds::{self, EDGES_MAX, STEPS_MAX, TEXT_BYTES_MAX};
use super::model::{Parent, Pipeline, PlannedStep};

/// Whether a resolved pipeline can be carried out, without the file it came from. Whatever [`parse`](super::parse)
/// gives passes.
///
/// # Errors
/// The first thing that is wrong, in words for the submitter.
pub fn validate(pipeline: &Pipeline) -> Result<(), String> {
    bounds::name(&pipeline.name)?;
    pipeline.timeout_ms.map_or(Ok(()), bounds::timeout_ms)?;
    let count = pipeline.steps.len();
    if count == 0 || count > STEPS_MAX {
        return Err(format!("{count} steps, a pipeline has 1 to {STEPS_MAX}"));
    }
    let mut names = HashSet::new();
    let mut cache_keys = HashMap::new();
    let (mut edges, mut text_bytes) = (0, 0);
    for step in &pipeline.steps {
        let within = |message| format!("step `{}`: {message}", step.name);
        for dependency in step.waits_for() {
            // Only what stands before a step may be waited for: so no cycle, and no step that does not exist.
            if !names.contains(dependency) {
                return Err(within(format!("it waits for `{dependency}`, which is no step that stands before it")));
            }
            edges += 1;
        }
        self::step(step).map_err(within)?;
        if !names.insert(&step.name) {
            return Err(within("there are two of this name".to_owned()));
        }
        if let Some(key) = &step.cache_key
            && let Some(other) = cache_keys.insert(key, &step.name)
        {
            return Err(within(format!("its cache key is that of `{other}`: each would be given the other's files")));
        }
        text_bytes += bounds::text_bytes(&step.spec);
    }
    if edges > EDGES_MAX {
        return Err(format!("{edges} edges between steps, at most {EDGES_MAX}"));
    }
    if text_bytes > TEXT_BYTES_MAX {
        return Err(format!("{text_bytes} bytes of scripts and environments, at most {TEXT_BYTES_MAX}"));
    }
    Ok(())
}

fn step(step: &PlannedStep) -> Result<(), String> {
    let spec = &step.spec;
    bounds::instance_name(step.name.as_str())?;
    match &step.parent {
        Parent::Image(reference) => bounds::image(reference)?,
        Parent::Step(parent) if step.needs.contains(parent) => {
            return Err("its parent is in `needs` as well".to_owned());
        }
        Parent::Step(_) => {}
    }
    if step.needs.iter().collect::<HashSet<_>>().len() != step.needs.len() {
        return Err("`needs` holds a step twice".to_owned());
    }
    bounds::command(&spec.command)?;
    spec.env
        .iter()
        .try_for_each(|(name, value)| bounds::env_name(name).and_then(|()| bounds::env_value(name, value)))?;
    bounds::total(spec)?;
    spec.workdir.as_deref().map_or(Ok(()), |path| bounds::absolute("`workdir`", path))?;
    spec.user.as_deref().map_or(Ok(()), bounds::user)?;
    bounds::timeout_ms(spec.timeout_ms)?;
    bounds::timeout_ms(spec.grace_ms).map_err(|_| "the grace is 1 s to 7 d".to_owned())?;
    bounds::resources(&spec.resources)?;
    spec.output_max.map_or(Ok(()), bounds::output_max)?;
    if !spec.sources.is_empty() {
        return Err("`spec.sources` is filled from `sources`, it is submitted empty".to_owned());
    }
    bounds::sources(step.sources.len())?;
    for source in &step.sources {
        bounds::source_path(&source.path)?;
        bounds::absolute("the target", &source.target)?;
    }
    bounds::retry(&step.retry)?;
    bounds::priority(step.priority)?;
    step.queue_timeout_ms.map_or(Ok(()), bounds::queue_timeout_ms)?;
    step.concurrency.as_ref().map_or(Ok(()), bounds::concurrency)?;
    step.cache_key.as_deref().map_or(Ok(()), bounds::cache_key)
}
