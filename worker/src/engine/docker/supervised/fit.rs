//! Gives a container other limits while it runs.

use bollard::models::ContainerUpdateBody;
use longshore_protocol::job::Resources;

use super::super::super::{ContainerName, EngineError};
use super::super::create::nano_cpus;
use super::super::{DockerEngine, QUESTION, errors};
use super::require;

/// More memory than any machine has: the Engine has no word for taking a limit back. 0 means "as it was" to it, and so
/// does -1 for swap.
const NO_LIMIT_BYTES: i64 = 1 << 60;

/// About 11 ms, so only if something differs.
pub(in super::super) async fn fit(
    engine: &DockerEngine,
    container: &ContainerName,
    resources: &Resources,
) -> Result<(), EngineError> {
    let held = require(engine, container).await?;
    if held.resources == *resources {
        return Ok(());
    }
    let all_cpus = if resources.cpus.is_none() && held.resources.cpus.is_some() {
        let info = engine.limited("info", QUESTION, engine.client().info()).await?;
        info.ncpu
    } else {
        None
    };
    let call = engine.client().update_container(container.as_str(), change(&held.resources, resources, all_cpus));
    engine.limited("update", QUESTION, call).await.map_err(|error| errors::gone(error, container))?;
    if let Some(held) = engine.shared.supervised.held().get_mut(container.as_str()) {
        held.resources = *resources;
    }
    Ok(())
}

/// What leads from one to the other. `all_cpus`: how many the Engine has.
fn change(from: &Resources, to: &Resources, all_cpus: Option<i64>) -> ContainerUpdateBody {
    let mut change = ContainerUpdateBody::default();
    if from.memory_bytes != to.memory_bytes {
        let memory = to.memory_bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
        change.memory = Some(memory.unwrap_or(NO_LIMIT_BYTES));
        // With swap included, as when a container is made.
        change.memory_swap = change.memory;
    }
    if from.cpus != to.cpus {
        // As many as there are is no limit.
        change.nano_cpus = to.cpus.map(nano_cpus).or_else(|| all_cpus.map(|all| all.saturating_mul(1_000_000_000)));
    }
    if from.pids != to.pids {
        change.pids_limit = Some(to.pids.map_or(-1, i64::from));
    }
    change
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_changed() {
        let tight = Resources { memory_bytes: Some(64 << 20), cpus: Some(0.5), pids: Some(7) };
        let free = Resources::default();
        let on = change(&free, &tight, None);
        assert_eq!((on.memory, on.memory_swap), (Some(64 << 20), Some(64 << 20)));
        assert_eq!((on.nano_cpus, on.pids_limit), (Some(500_000_000), Some(7)));
        let off = change(&tight, &free, Some(2));
        assert_eq!((off.memory, off.memory_swap), (Some(NO_LIMIT_BYTES), Some(NO_LIMIT_BYTES)));
        assert_eq!((off.nano_cpus, off.pids_limit), (Some(2_000_000_000), Some(-1)));
        let pids = change(&tight, &Resources { pids: Some(8), ..tight }, None);
        assert_eq!((pids.memory, pids.nano_cpus, pids.pids_limit), (None, None, Some(8)));
    }
}
