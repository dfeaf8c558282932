//! What is done behind a step that is over: its container is removed, or cleaned for the next one. Off every step's
//! way, but bounded and awaited.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longshore_protocol::broker::Broker;
use longshore_protocol::process::Tasks;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::context::Context;
use crate::engine::{ContainerName, Engine, EngineError};
use crate::metrics::{PHASE_SECONDS, TIDYING};

/// How many containers may wait for their removal for each slot. Beyond it a slot waits: an Engine that removes more
/// slowly than it starts must not be buried.
const TIDYING_PER_SLOT: usize = 2;

/// The containers of this worker that somebody speaks for, and the work behind those who are done.
pub(crate) struct Tidying {
    /// INVARIANT: a container is in here before it is made, and until its removal begins: whatever else bears the
    /// worker's name is swept.
    in_use: Mutex<BTreeSet<ContainerName>>,
    tasks: Tasks,
    room: Arc<Semaphore>,
}

impl Tidying {
    pub(crate) fn new(slots: u32) -> Self {
        let room = Arc::new(Semaphore::new(slots as usize * TIDYING_PER_SLOT));
        Self { in_use: Mutex::default(), tasks: Tasks::new(), room }
    }

    /// Somebody speaks for it.
    pub(crate) fn uses(&self, container: &ContainerName) {
        self.lock().insert(container.clone());
    }

    /// Whether somebody does.
    pub(crate) fn is_used(&self, container: &ContainerName) -> bool {
        self.lock().contains(container)
    }

    /// Does work behind the steps. Waits while there is too much of it.
    pub(crate) async fn later(&self, work: impl Future<Output = ()> + Send + 'static) {
        let room = Arc::clone(&self.room).acquire_owned().await;
        let room = room.expect("INVARIANT: the room is never closed");
        metrics::gauge!(TIDYING).increment(1.0);
        self.tasks.spawn(async move {
            work.await;
            metrics::gauge!(TIDYING).decrement(1.0);
            drop(room);
        });
    }

    /// Does work behind whoever starts it, who knows that there is not much of it.
    pub(crate) fn at_once(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(work);
    }

    /// Does work that is not given up when whoever asks for it is.
    pub(crate) async fn whole(&self, work: impl Future<Output = ()> + Send + 'static) {
        if let Err(panic) = self.tasks.spawn(work).await {
            tracing::error!(%panic, "something was not tidied up");
        }
    }

    /// Waits until all of it is done. No more may come.
    pub(crate) async fn done(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<ContainerName>> {
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes a container; whether it is gone now. One that cannot be removed now is left to the sweep.
pub(crate) async fn remove<B: Broker, E: Engine>(context: &Context<B, E>, container: &ContainerName) -> bool {
    context.tidying.lock().remove(container);
    let began = Instant::now();
    match context.retrying("remove_container", || context.engine.destroy(container)).await {
        Ok(()) | Err(EngineError::Gone { .. }) => {
            metrics::histogram!(PHASE_SECONDS, "phase" => "remove").record(began.elapsed());
            true
        }
        Err(error) => {
            tracing::warn!(%container, %error, "a container could not be removed yet");
            false
        }
    }
}

/// Removes a container behind its step.
pub(crate) async fn remove_later<B: Broker, E: Engine>(context: &Arc<Context<B, E>>, container: ContainerName) {
    let removing = Arc::clone(context);
    context
        .tidying
        .later(async move {
            remove(&removing, &container).await;
        })
        .await;
}
