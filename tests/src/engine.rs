//! An Engine as its own command line sees it: what Longshore did is looked at by somebody else's eyes.

use std::path::Path;
use std::process::{Command, Output};

/// Runs `docker ARGS` against the Engine at that address; answers with what it printed.
///
/// # Panics
/// If it fails.
pub fn docker(engine: &str, args: &[&str]) -> String {
    let output = try_docker(engine, args);
    let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    assert!(output.status.success(), "docker {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// As [`docker`], and failing is an answer.
///
/// # Panics
/// If there is no `docker`.
pub fn try_docker(engine: &str, args: &[&str]) -> Output {
    // The client that came with Debian's Engine: newer ones, earlier in the PATH, refuse old Engines.
    let debian = Path::new("/usr/bin/docker");
    let client = if debian.exists() { debian } else { Path::new("docker") };
    let mut command = Command::new(client);
    // No settings of whoever runs the tests: a context would win over the address.
    command.env_remove("DOCKER_CONTEXT").env("DOCKER_HOST", engine).args(args);
    command.output().unwrap_or_else(|e| panic!("docker: {e}"))
}

/// The containers on an Engine whose names begin like this, running or not.
pub fn named(engine: &str, prefix: &str) -> Vec<String> {
    let names = docker(engine, &["ps", "--all", "--no-trunc", "--format", "{{.Names}}"]);
    names.lines().filter(|name| name.starts_with(prefix)).map(str::to_owned).collect()
}

/// Those of them that run.
pub fn running(engine: &str, prefix: &str) -> Vec<String> {
    let names = docker(engine, &["ps", "--no-trunc", "--format", "{{.Names}}"]);
    names.lines().filter(|name| name.starts_with(prefix)).map(str::to_owned).collect()
}

/// Whether a container's name is that of a holder of a network namespace, which belongs to a worker and to no attempt.
pub fn is_holder(name: &str) -> bool {
    name.strip_prefix("longshore.").and_then(|rest| rest.split('.').nth(1)) == Some("net")
}

/// How many layers an image has.
///
/// # Panics
/// If there is no such image.
pub fn depth(engine: &str, image: &str) -> usize {
    let layers = docker(engine, &["image", "inspect", "--format", "{{len .RootFS.Layers}}", image]);
    layers.parse().expect("a number of layers")
}

/// The references of the images in one repository.
pub fn images(engine: &str, repository: &str) -> Vec<String> {
    let list = docker(engine, &["image", "ls", "--format", "{{.Repository}}:{{.Tag}}", repository]);
    list.lines().map(str::to_owned).collect()
}
