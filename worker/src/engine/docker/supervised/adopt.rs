//! Takes up containers that an earlier incarnation of the worker made (P10).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use longshore_protocol::job::Resources;
use longshore_protocol::output::Offsets;
use tokio::sync::oneshot;

use super::super::super::{Adopted, ContainerName, EngineError};
use super::super::DockerEngine;
use super::link::{Link, Opening};
use super::open::{OOM_SCORE_ADJ, is_ours, listen, speak};
use super::place::Place;
use super::{Begun, Held, ImageFacts, broken};

/// A step's container. `have` of its command's output is on the worker's disk.
pub(in super::super) async fn adopt(
    engine: &DockerEngine,
    container: &ContainerName,
    have: Offsets,
) -> Result<Adopted, EngineError> {
    // Not before it is known: until then leftovers are looked for that a commit of this one could be taken for.
    super::way(engine).await;
    let begun = engine.shared.supervised.begun()?;
    let name = container.as_str();
    let inspected = engine.inspect(container).await?;
    if inspected.state.and_then(|state| state.running) != Some(true) {
        return Err(EngineError::Gone { name: name.to_owned() });
    }
    if !is_ours(begun, container, &inspected.mounts.unwrap_or_default()) {
        return Err(broken(name, "it has no supervisor of this worker's"));
    }
    let image = engine.inspect_image(&inspected.image.unwrap_or_default()).await?;
    let image = image.ok_or_else(|| broken(name, "the image that it was made from is gone"))?;
    let limits = inspected.host_config.unwrap_or_default();
    // 0 and -1 mean none, as does what `fit` takes a limit back with.
    let stated = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0);
    let resources = Resources {
        memory_bytes: stated(limits.memory),
        cpus: stated(limits.nano_cpus).map(|nanos| nanos as f64 / 1e9),
        pids: stated(limits.pids_limit).and_then(|pids| u32::try_from(pids).ok()),
    };
    let (link, upper, adopted) = connect(engine, begun, name, have).await?;
    let image = Arc::new(ImageFacts::of(image.config.as_ref()));
    engine.shared.supervised.held().insert(name.to_owned(), Held { link, image, upper, resources });
    Ok(adopted)
}

/// A container of Longshore's own, in which no command ever runs.
pub(in super::super) async fn resume(engine: &DockerEngine, name: &str) -> Result<(), EngineError> {
    let begun = engine.shared.supervised.begun()?;
    let (link, upper, adopted) = connect(engine, begun, name, Offsets::default()).await?;
    if !matches!(adopted, Adopted::Idle) {
        return Err(broken(name, "a command was started in it"));
    }
    // Whether the Engine may protect supervisors was found out when this one was made: no start fails to tell it again.
    let host = engine.inspect_name(name).await?.host_config.unwrap_or_default();
    if host.oom_score_adj != Some(OOM_SCORE_ADJ) {
        engine.shared.supervised.protects.store(false, Ordering::Relaxed);
    }
    let held = Held { link, image: Arc::default(), upper, resources: Resources::default() };
    engine.shared.supervised.held().insert(name.to_owned(), held);
    Ok(())
}

async fn connect(
    engine: &DockerEngine,
    begun: &Begun,
    name: &str,
    have: Offsets,
) -> Result<(Link, Option<std::path::PathBuf>, Adopted), EngineError> {
    // Whoever spoke to it here until now does not any more.
    engine.shared.supervised.held().remove(name);
    let listener = listen(&begun.place, name, Place::listen).await?;
    let (answer, adopted) = oneshot::channel();
    let (link, upper) = speak(engine, begun, name, listener, Opening::Adopt(have, answer)).await?;
    let adopted = link.answer(adopted).await?;
    Ok((link, upper, adopted))
}
