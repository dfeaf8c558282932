//! The Docker Engine, through its API.
//!
//! 1. [`connect`] finds it and agrees on a version;
//! 2. [`image`] makes an image exist: [`reference`], [`credentials`];
//! 3. [`create`] what a step is given, and what not (`docs/containers.md`);
//! 4. [`supervised`] runs commands by a supervisor that is their container's first process: where that works
//!    (`docs/containers.md`), and where it does not:
//!    - [`inject`] streams files into a created container, owned by whom [`owner`] finds;
//!    - [`run`] attaches, starts, and reports output and exit;
//! 5. [`namespaces`] keeps network namespaces for containers to come;
//! 6. [`stop`] ends what runs, and removes it;
//! 7. [`snapshot`] commits, lists and removes what steps left, [`flatten`] what became too deep.
//!
//! Every call passes through [`DockerEngine::limited`]: a time limit with a reason, and errors by class.

mod connect;
mod create;
mod credentials;
mod errors;
mod flatten;
mod image;
mod inject;
mod namespaces;
mod owner;
mod reference;
mod run;
mod snapshot;
mod stop;
mod supervised;

pub(crate) use namespaces::NAMESPACE_METRICS;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bollard::Docker;
use bollard::models::{ContainerInspectResponse, ImageInspect};
use longshore_protocol::job::Resources;
use longshore_protocol::output::Offsets;
use longshore_protocol::{EngineId, SnapshotId};
use tokio::io::AsyncRead;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Adopted, Cleaned, CommandSpec, Committed, ContainerName, ContainerSpec, Created, Duty, Engine, EngineError,
    EngineInfo, ImageId, Running, Way,
};
use crate::clock::Boot;

/// A question about one thing: answered from memory in milliseconds. A host that swaps or has a hundred
/// containers starting has been seen to take seconds, never this long.
const QUESTION: Duration = Duration::from_secs(30);

/// A Docker Engine. Clones share its connection, the pulls under way and the containers' supervisors. When the last
/// clone goes, so do the connections to those: the containers go on, to be adopted by another.
#[derive(Clone)]
pub struct DockerEngine {
    shared: Arc<Shared>,
    /// Ends [`Shared::life`]. What runs in the background has none, or it would keep itself alive.
    _handle: Option<Arc<DropGuard>>,
}

struct Shared {
    client: Docker,
    /// As it was asked for: for error messages.
    address: String,
    /// Where Docker's own `config.json` lies.
    config_dir: PathBuf,
    pulls: image::Pulls,
    supervised: supervised::Supervised,
    namespaces: namespaces::Namespaces,
    leftovers: snapshot::Leftovers,
    /// Until the last handle goes: what runs in the background ends with it.
    life: CancellationToken,
}

impl DockerEngine {
    /// Finds an Engine: at `address`, else at `$DOCKER_HOST`, else at `/var/run/docker.sock`; and agrees with it
    /// on a version of the API, 1.41 or later. `unix://` and `tcp://` are spoken.
    pub async fn connect(address: Option<&str>) -> Result<Self, EngineError> {
        connect::connect(address).await
    }

    fn client(&self) -> &Docker {
        &self.shared.client
    }

    /// For tasks that end with the last handle.
    fn background(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), _handle: None }
    }

    /// One call with its limit. The client's own limit is out of the way: it knows only one for all calls.
    async fn limited<T>(
        &self,
        operation: &'static str,
        limit: Duration,
        call: impl Future<Output = Result<T, bollard::errors::Error>>,
    ) -> Result<T, EngineError> {
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(errors::from_client(&self.shared.address, operation, error)),
            Err(_) => Err(EngineError::Slow { operation, limit }),
        }
    }

    async fn inspect(&self, container: &ContainerName) -> Result<ContainerInspectResponse, EngineError> {
        self.inspect_name(container.as_str()).await
    }

    async fn inspect_name(&self, container: &str) -> Result<ContainerInspectResponse, EngineError> {
        let call = self.client().inspect_container(container, None);
        self.limited("inspect", QUESTION, call).await.map_err(|error| errors::none_of(error, container))
    }

    /// An image by id or reference, as it is here; `None` if it is not.
    async fn inspect_image(&self, reference: &str) -> Result<Option<ImageInspect>, EngineError> {
        match self.limited("inspect image", QUESTION, self.client().inspect_image(reference)).await {
            Ok(image) => Ok(Some(image)),
            Err(EngineError::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Engine for DockerEngine {
    async fn info(&self) -> Result<EngineInfo, EngineError> {
        let info = self.limited("info", QUESTION, self.client().info()).await?;
        let version = self.client().client_version();
        Ok(EngineInfo {
            id: EngineId::from(info.id.unwrap_or_default()),
            version: info.server_version.unwrap_or_default(),
            api_version: format!("{}.{}", version.major_version, version.minor_version),
            storage_driver: info.driver.unwrap_or_default(),
            data_root: info.docker_root_dir.unwrap_or_default(),
        })
    }

    async fn ensure_image(&self, reference: &str) -> Result<ImageId, EngineError> {
        image::ensure(self, reference).await
    }

    async fn begin(&self, duty: Duty) -> Result<(), EngineError> {
        supervised::begin(self, duty).await;
        Ok(())
    }

    async fn way(&self) -> Result<Way, EngineError> {
        Ok(supervised::way(self).await)
    }

    async fn end(&self) {
        self.shared.namespaces.end(self).await;
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<Created, EngineError> {
        create::create(self, spec).await
    }

    async fn inject(
        &self,
        container: &ContainerName,
        user: Option<&str>,
        target: &str,
        tar: impl AsyncRead + Send + Unpin + 'static,
    ) -> Result<(), EngineError> {
        match supervised::inject(self, container, user, target, tar).await {
            Ok(answer) => answer,
            Err(tar) => inject::inject(self, container, user, target, tar).await,
        }
    }

    async fn start(&self, container: &ContainerName, command: &CommandSpec) -> Result<Running, EngineError> {
        match supervised::start(self, container, command).await {
            Some(answer) => answer,
            None if command.lease.is_some() => {
                let reason = "without a supervisor nobody could keep the lease of a command".to_owned();
                Err(EngineError::Refused { operation: "start", status: 409, reason })
            }
            None => run::start(self, container).await,
        }
    }

    async fn extend(&self, container: &ContainerName, dead_by: Boot) -> Result<(), EngineError> {
        supervised::extend(self, container, dead_by).await
    }

    async fn stop(&self, container: &ContainerName, grace: Duration) -> Result<(), EngineError> {
        supervised::stop(self, container, grace).await
    }

    async fn clean(&self, container: &ContainerName) -> Result<Cleaned, EngineError> {
        supervised::clean(self, container).await
    }

    async fn fit(&self, container: &ContainerName, resources: &Resources) -> Result<(), EngineError> {
        supervised::fit(self, container, resources).await
    }

    async fn adopt(&self, container: &ContainerName, have: Offsets) -> Result<Adopted, EngineError> {
        supervised::adopt(self, container, have).await
    }

    async fn commit(&self, container: &ContainerName, snapshot: &SnapshotId) -> Result<Committed, EngineError> {
        snapshot::commit(self, container, snapshot).await
    }

    async fn snapshot_exists(&self, snapshot: &SnapshotId) -> Result<bool, EngineError> {
        Ok(self.inspect_image(snapshot.as_str()).await?.is_some())
    }

    async fn snapshots(&self) -> Result<Vec<SnapshotId>, EngineError> {
        snapshot::list(self).await
    }

    async fn remove_snapshot(&self, snapshot: &SnapshotId) -> Result<(), EngineError> {
        snapshot::remove(self, snapshot).await
    }

    async fn destroy(&self, container: &ContainerName) -> Result<(), EngineError> {
        stop::destroy(self, container).await
    }

    async fn containers(&self) -> Result<Vec<ContainerName>, EngineError> {
        stop::list(self).await
    }
}
