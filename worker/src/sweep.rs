//! Removes containers that nobody speaks for any more: what the last incarnation left and this one did not adopt, and
//! whatever could not be removed in its time.
//!
//! Only containers whose name says that they are this worker's. Never what others own (promise 7).

use longshore_protocol::breach::{self, Breach};
use longshore_protocol::broker::Broker;

use crate::context::Context;
use crate::engine::Engine;
use crate::metrics::CONTAINERS_SWEPT;
use crate::tidy;

/// Removes what is left. What cannot be removed now is looked for again later.
pub(crate) async fn sweep<B: Broker, E: Engine>(context: &Context<B, E>) {
    if breach::is(Breach::NothingIsSwept) {
        return;
    }
    let found = match context.engine.containers().await {
        Ok(found) => found,
        Err(error) => {
            context.noticed(&error);
            return tracing::warn!(%error, "leftover containers could not be looked for");
        }
    };
    for container in found {
        // Asked after the listing: a container is in use before it is made.
        if container.owner() == context.id && !context.tidying.is_used(&container) {
            tracing::info!(%container, "a leftover container is removed");
            tidy::remove(context, &container).await;
            metrics::counter!(CONTAINERS_SWEPT).increment(1);
        }
    }
}
