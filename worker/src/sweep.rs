//! Removes containers that nobody speaks for any more: of the last incarnation at the start, and whatever could not be
//! removed in its time.
//!
//! Only containers whose name says that they are this worker's. Never what others own (promise 7).

use std::collections::HashSet;

use longshore_protocol::broker::Broker;

use crate::context::Context;
use crate::engine::{ContainerName, Engine};
use crate::job;
use crate::metrics::CONTAINERS_SWEPT;

/// Removes what is left. What cannot be removed now is looked for again later.
pub(crate) async fn sweep<B: Broker, E: Engine>(context: &Context<B, E>) {
    let found = match context.engine.containers().await {
        Ok(found) => found,
        Err(error) => {
            context.noticed(&error);
            return tracing::warn!(%error, "leftover containers could not be looked for");
        }
    };
    // After the listing: a container is made only for an attempt that is already in the table.
    let wanted: HashSet<ContainerName> =
        context.attempts.running().iter().map(|claim| ContainerName::of(&context.fence(claim))).collect();
    for container in found {
        if container.owner() == context.id && !wanted.contains(&container) {
            tracing::info!(%container, "a leftover container is removed");
            job::remove(context, &container).await;
            metrics::counter!(CONTAINERS_SWEPT).increment(1);
        }
    }
}
