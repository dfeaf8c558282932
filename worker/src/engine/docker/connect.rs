//! Finds the Engine and agrees on a version.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bollard::{ClientVersion, Docker};
use tokio_util::sync::CancellationToken;

use super::super::EngineError;
use super::{DockerEngine, Shared, errors, image, namespaces, snapshot, supervised};

/// Where Docker listens unless told otherwise.
const DEFAULT_ADDRESS: &str = "unix:///var/run/docker.sock";

/// Docker 20.10's: the oldest that the tests run against. It has everything that is asked of an Engine here.
const OLDEST: ClientVersion = ClientVersion { major_version: 1, minor_version: 41 };

/// Connecting and one question: a user waits for this at a prompt.
const CONNECT: Duration = Duration::from_secs(10);

/// The client's own limit, which is one for all calls. [`DockerEngine::limited`] sets each call's.
const OUT_OF_THE_WAY_SECS: u64 = 7 * 24 * 3600;

pub(super) async fn connect(address: Option<&str>) -> Result<DockerEngine, EngineError> {
    let from_environment = env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
    let address = address.map(str::to_owned).or(from_environment).unwrap_or_else(|| DEFAULT_ADDRESS.to_owned());
    let wrong = |reason: &str| EngineError::Unreachable { address: address.clone(), reason: reason.to_owned() };

    let client = if address.starts_with("unix://") || address.starts_with('/') {
        Docker::connect_with_unix(&address, OUT_OF_THE_WAY_SECS, bollard::API_DEFAULT_VERSION)
    } else if address.starts_with("tcp://") || address.starts_with("http://") {
        if env::var("DOCKER_TLS_VERIFY").is_ok_and(|value| !value.is_empty()) {
            return Err(wrong(
                "DOCKER_TLS_VERIFY is set, and TLS to an Engine is not spoken: use a socket or a tunnel",
            ));
        }
        Docker::connect_with_http(&address, OUT_OF_THE_WAY_SECS, bollard::API_DEFAULT_VERSION)
    } else {
        return Err(wrong("only unix:// and tcp:// addresses are spoken"));
    };
    let client = client.map_err(|error| absent(&address, &error))?;
    let client = match tokio::time::timeout(CONNECT, client.negotiate_version()).await {
        Ok(negotiated) => negotiated.map_err(|error| errors::from_client(&address, "connect", error))?,
        Err(_) => return Err(EngineError::Slow { operation: "connect", limit: CONNECT }),
    };
    let version = client.client_version();
    if version < OLDEST {
        return Err(EngineError::Refused {
            operation: "connect",
            status: 400,
            reason: format!(
                "its API is version {}.{}, at least {}.{} (Docker 20.10) is needed",
                version.major_version, version.minor_version, OLDEST.major_version, OLDEST.minor_version
            ),
        });
    }
    let life = CancellationToken::new();
    let handle = Some(Arc::new(life.clone().drop_guard()));
    let shared = Shared {
        client,
        address,
        config_dir: config_dir(),
        pulls: image::Pulls::default(),
        supervised: supervised::Supervised::default(),
        namespaces: namespaces::Namespaces::default(),
        leftovers: snapshot::Leftovers::default(),
        life,
    };
    Ok(DockerEngine { shared: Arc::new(shared), _handle: handle })
}

/// The client looks for the socket's file before it connects, and says less about it than the kernel.
fn absent(address: &str, error: &bollard::errors::Error) -> EngineError {
    match error {
        bollard::errors::Error::SocketNotFoundError(_) => {
            errors::unreachable(address, &std::io::Error::from_raw_os_error(rustix::io::Errno::NOENT.raw_os_error()))
        }
        error => errors::unreachable(address, error),
    }
}

/// Where the `docker` command keeps its settings, credentials among them.
fn config_dir() -> PathBuf {
    let from_home = || env::var_os("HOME").map_or_else(PathBuf::new, |home| Path::new(&home).join(".docker"));
    env::var_os("DOCKER_CONFIG").filter(|dir| !dir.is_empty()).map_or_else(from_home, PathBuf::from)
}
