//! What a step is given, and what not: `docs/containers.md` says why, and its table is this file.

use std::time::Duration;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, RestartPolicy, RestartPolicyNameEnum,
};
use bollard::query_parameters::CreateContainerOptionsBuilder;
use longshore_protocol::job::{Network, Resources};

use super::super::{ContainerSpec, EngineError};
use super::DockerEngine;

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
    "KILL",             // end what runs as another user in the same container
    "NET_BIND_SERVICE", // tests that serve on a port below 1024
    "SETFCAP",          // packages whose files carry capabilities; nobody gains by them here
    "SETGID",           // change user: package managers, test suites
    "SETUID",           // the same
    "SYS_CHROOT",       // chroot: package managers, sshd's tests
];

pub(super) async fn create(engine: &DockerEngine, spec: &ContainerSpec) -> Result<(), EngineError> {
    if spec.argv.is_empty() {
        let reason = "an empty command".to_owned();
        return Err(EngineError::CannotStart { reason, exit: None });
    }
    let image = engine
        .inspect_image(&spec.image)
        .await?
        .ok_or_else(|| EngineError::NoImage { reference: spec.image.clone(), reason: "it is not here".to_owned() })?;
    // Only where there is one to silence: what stands here would be inherited by every snapshot.
    let watched = image.config.is_some_and(|config| config.healthcheck.is_some());
    let options = CreateContainerOptionsBuilder::new().name(spec.name.as_str()).build();
    let call = engine.client().create_container(Some(options), body(spec, watched));
    let created = engine.limited("create", CREATE, call).await.map_err(|error| match error {
        EngineError::Refused { status: 409, reason, .. } if reason.contains("is already in use") => {
            EngineError::Exists { name: spec.name.to_string() }
        }
        EngineError::Refused { status: 404, reason, .. } => {
            EngineError::NoImage { reference: spec.image.clone(), reason }
        }
        // The Engine looks at the working directory when it creates, at everything else when it starts.
        EngineError::Refused { reason, .. } if reason.contains("is not a directory") => {
            EngineError::CannotStart { reason, exit: None }
        }
        error => error,
    })?;
    for warning in created.warnings {
        tracing::warn!(container = %spec.name, warning, "the Engine does not keep to everything that was asked");
    }
    Ok(())
}

fn body(spec: &ContainerSpec, silence_healthcheck: bool) -> ContainerCreateBody {
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        // All of it as the entrypoint, and no command: an empty entrypoint can be put back by a commit,
        // an empty command cannot.
        entrypoint: Some(spec.argv.clone()),
        env: Some(spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        working_dir: spec.workdir.clone(),
        user: spec.user.clone(),
        // An image's health check would run beside the step.
        healthcheck: silence_healthcheck
            .then(|| HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }),
        tty: Some(false),
        open_stdin: Some(false), // standard input is /dev/null
        attach_stdin: Some(false),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        host_config: Some(host_config(&spec.resources, spec.network)),
        ..Default::default()
    }
}

fn host_config(resources: &Resources, network: Network) -> HostConfig {
    let memory = resources.memory_bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    HostConfig {
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(CAPABILITIES.map(str::to_owned).to_vec()),
        memory,
        memory_swap: memory, // with swap included: no swap
        nano_cpus: resources.cpus.map(nano_cpus),
        pids_limit: resources.pids.map(i64::from),
        network_mode: Some(match network {
            Network::None => "none".to_owned(),
            Network::Bridge => "bridge".to_owned(),
        }),
        init: Some(false),
        // The worker is attached and keeps the output; a second copy on the Engine's disk is nobody's.
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        auto_remove: Some(false), // it is committed first
        ..Default::default()
    }
}

/// Cores to the Engine's billionths. More than the host has is refused by the Engine, in its words.
#[expect(clippy::cast_possible_truncation, reason = "a float becomes the nearest integer there is")]
fn nano_cpus(cores: f64) -> i64 {
    (cores * 1e9).round() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_part_of_the_memory_and_no_limit_means_none() {
        let resources = Resources { memory_bytes: Some(64 << 20), cpus: Some(0.25), pids: Some(10) };
        let limited = host_config(&resources, Network::None);
        assert_eq!((limited.memory, limited.memory_swap), (Some(64 << 20), Some(64 << 20)));
        assert_eq!((limited.nano_cpus, limited.pids_limit), (Some(250_000_000), Some(10)));
        let free = host_config(&Resources::default(), Network::Bridge);
        assert_eq!((free.memory, free.nano_cpus, free.pids_limit), (None, None, None));
    }
}
