//! The Docker Engine, through its API.
//!
//! 1. [`connect`] finds it and agrees on a version;
//! 2. [`image`] makes an image exist: [`reference`], [`credentials`];
//! 3. [`create`] what a step is given, and what not (`docs/containers.md`);
//! 4. [`inject`] streams files into a created container, owned by whom [`owner`] finds;
//! 5. [`run`] attaches, starts, and reports output and exit;
//! 6. [`stop`] ends what runs, and removes it;
//! 7. [`snapshot`] commits, lists and removes what steps left.
//!
//! Every call passes through [`DockerEngine::limited`]: a time limit with a reason, and errors by class.

mod connect;
mod create;
mod credentials;
mod errors;
mod image;
mod inject;
mod owner;
mod reference;
mod run;
mod snapshot;
mod stop;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bollard::Docker;
use bollard::models::{ContainerInspectResponse, ImageInspect};
use longshore_protocol::{EngineId, SnapshotId};
use tokio::io::AsyncRead;
use tokio::sync::Semaphore;

use super::{Committed, ContainerName, ContainerSpec, Engine, EngineError, EngineInfo, ImageId, Running};

/// A question about one thing: answered from memory in milliseconds. A host that swaps or has a hundred
/// containers starting has been seen to take seconds, never this long.
const QUESTION: Duration = Duration::from_secs(30);

/// Pulls at once: the daemon fetches three layers of each in parallel already. The worker gates starts and commits.
const PULLS_MAX: usize = 3;

/// A Docker Engine. Clones share its connection and the pulls under way.
#[derive(Clone)]
pub struct DockerEngine {
    shared: Arc<Shared>,
}

struct Shared {
    client: Docker,
    /// As it was asked for: for error messages.
    address: String,
    /// Where Docker's own `config.json` lies.
    config_dir: PathBuf,
    pulls: image::Pulls,
    /// Waiting for it does not count towards a pull's time limit, and nothing that is here waits.
    pull_gate: Semaphore,
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
        let call = self.client().inspect_container(container.as_str(), None);
        self.limited("inspect", QUESTION, call).await.map_err(|error| errors::gone(error, container))
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
            id: EngineId(info.id.unwrap_or_default()),
            version: info.server_version.unwrap_or_default(),
            api_version: format!("{}.{}", version.major_version, version.minor_version),
            storage_driver: info.driver.unwrap_or_default(),
            data_root: info.docker_root_dir.unwrap_or_default(),
        })
    }

    async fn ensure_image(&self, reference: &str) -> Result<ImageId, EngineError> {
        image::ensure(self, reference).await
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<(), EngineError> {
        create::create(self, spec).await
    }

    async fn inject(
        &self,
        container: &ContainerName,
        target: &str,
        tar: impl AsyncRead + Send + Unpin + 'static,
    ) -> Result<(), EngineError> {
        inject::inject(self, container, target, tar).await
    }

    async fn start(&self, container: &ContainerName) -> Result<Running, EngineError> {
        run::start(self, container).await
    }

    async fn stop(&self, container: &ContainerName, grace: Duration) -> Result<(), EngineError> {
        stop::stop(self, container, grace).await
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
