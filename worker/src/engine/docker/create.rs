//! What a step is given, and what not: `docs/containers.md` says why, and its table is this file.

use std::time::Duration;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, ImageConfig, RestartPolicy,
    RestartPolicyNameEnum,
};
use bollard::query_parameters::CreateContainerOptionsBuilder;
use longshore_protocol::job::{Network, Resources};

use super::super::{ContainerSpec, Created, EngineError, Way};
use super::{DockerEngine, supervised};

/// Makes a layer's directories; slow where the disk is.
const CREATE: Duration = Duration::from_mins(1);

/// What a build needs of root's power, within its own container: to unpack, own, switch user and end what it
/// started. Everything else is dropped.
const CAPABILITIES: [&str; 11] = [
    "AUDIT_WRITE",      // su and sudo by root log a session, or fail
    "CHOWN",            // unpack archives, `make install`
    "DAC_OVERRIDE",     // root reads and writes what others own, as builds expect
    "FOWNER",           // chmod and utime on what others own
    "FSETID",           // keep setuid bits when such a file is written
    "KILL",             // end what runs as another user in the same container; the supervisor does
    "NET_BIND_SERVICE", // tests that serve on a port below 1024
    "SETFCAP",          // packages whose files carry capabilities; nobody gains by them here
    "SETGID",           // change user: package managers, test suites
    "SETUID",           // the same; the supervisor becomes the step's user by these two
    "SYS_CHROOT",       // chroot: package managers, sshd's tests
];

/// Makes a step's container, by the way that works here.
pub(super) async fn create(engine: &DockerEngine, spec: &ContainerSpec) -> Result<Created, EngineError> {
    if spec.command.argv.is_empty() {
        let reason = "an empty command".to_owned();
        return Err(EngineError::CannotStart { reason, exit: None });
    }
    let image = engine
        .inspect_image(&spec.image)
        .await?
        .ok_or_else(|| EngineError::NoImage { reference: spec.image.clone(), reason: "it is not here".to_owned() })?;
    match supervised::way(engine).await {
        Way::Supervised => supervised::create(engine, spec, &image).await,
        Way::Direct { .. } => {
            let body = direct_body(spec, image.config.as_ref());
            send(engine, spec.name.as_str(), body).await.map_err(|error| refused(error, spec))?;
            Ok(Created { volumes: supervised::volumes(image.config.as_ref()) })
        }
    }
}

/// The call itself.
pub(super) async fn send(engine: &DockerEngine, name: &str, body: ContainerCreateBody) -> Result<(), EngineError> {
    let options = CreateContainerOptionsBuilder::new().name(name).build();
    let call = engine.client().create_container(Some(options), body);
    let created = engine.limited("create", CREATE, call).await?;
    for warning in created.warnings {
        tracing::warn!(container = name, warning, "the Engine does not keep to everything that was asked");
    }
    Ok(())
}

/// Why a step's container was not created.
pub(super) fn refused(error: EngineError, spec: &ContainerSpec) -> EngineError {
    match error {
        EngineError::Refused { operation: "create", status, reason } => match status {
            409 if reason.contains("is already in use") => EngineError::Exists { name: spec.name.to_string() },
            404 => EngineError::NoImage { reference: spec.image.clone(), reason },
            // The Engine looks at the working directory when it creates, at everything else when it starts.
            _ if reason.contains("is not a directory") => EngineError::CannotStart { reason, exit: None },
            _ => EngineError::Refused { operation: "create", status, reason },
        },
        error => error,
    }
}

/// A container whose process is the step's command.
fn direct_body(spec: &ContainerSpec, image: Option<&ImageConfig>) -> ContainerCreateBody {
    let command = &spec.command;
    ContainerCreateBody {
        // All of it as the entrypoint, and no command: an empty entrypoint can be put back by a commit,
        // an empty command cannot.
        entrypoint: Some(command.argv.clone()),
        env: Some(command.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        working_dir: command.workdir.clone(),
        user: command.user.clone(),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        host_config: Some(HostConfig { network_mode: Some(own_network(spec.network)), ..host_config(&spec.resources) }),
        ..bare_body(spec, image)
    }
}

/// A container whose process is a supervisor's to be: nothing of the command is in it. `joined`: the network of
/// another container that it is to be in.
pub(super) fn supervised_body(
    spec: &ContainerSpec,
    image: Option<&ImageConfig>,
    joined: Option<String>,
) -> ContainerCreateBody {
    let network_mode = joined.unwrap_or_else(|| own_network(spec.network));
    let host_config = HostConfig { network_mode: Some(network_mode), ..host_config(&spec.resources) };
    ContainerCreateBody { host_config: Some(host_config), ..bare_body(spec, image) }
}

fn bare_body(spec: &ContainerSpec, image: Option<&ImageConfig>) -> ContainerCreateBody {
    // An image's health check would run beside the step. Silenced only where there is one: what stands here would be
    // inherited by every snapshot.
    let watched = image.is_some_and(|config| config.healthcheck.is_some());
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        healthcheck: watched.then(|| HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }),
        tty: Some(false),
        open_stdin: Some(false), // standard input is /dev/null
        attach_stdin: Some(false),
        ..Default::default()
    }
}

fn own_network(network: Network) -> String {
    match network {
        Network::None => "none".to_owned(),
        Network::Bridge => "bridge".to_owned(),
    }
}

/// What every container of ours has, but for its network.
pub(super) fn host_config(resources: &Resources) -> HostConfig {
    let memory = resources.memory_bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    HostConfig {
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(CAPABILITIES.map(str::to_owned).to_vec()),
        memory,
        memory_swap: memory, // with swap included: no swap
        nano_cpus: resources.cpus.map(nano_cpus),
        pids_limit: resources.pids.map(i64::from),
        init: Some(false),
        // The worker has the output; a second copy on the Engine's disk is nobody's.
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        auto_remove: Some(false), // it is committed first
        ..Default::default()
    }
}

/// Cores to the Engine's billionths. More than the host has is refused by the Engine, in its words.
#[expect(clippy::cast_possible_truncation, reason = "a float becomes the nearest integer there is")]
pub(super) fn nano_cpus(cores: f64) -> i64 {
    (cores * 1e9).round() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_part_of_the_memory_and_no_limit_means_none() {
        let resources = Resources { memory_bytes: Some(64 << 20), cpus: Some(0.25), pids: Some(10) };
        let limited = host_config(&resources);
        assert_eq!((limited.memory, limited.memory_swap), (Some(64 << 20), Some(64 << 20)));
        assert_eq!((limited.nano_cpus, limited.pids_limit), (Some(250_000_000), Some(10)));
        let free = host_config(&Resources::default());
        assert_eq!((free.memory, free.nano_cpus, free.pids_limit), (None, None, None));
    }
}
