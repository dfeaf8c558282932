//! RabbitMQ, two Docker Engines and a registry for a test: those that `LONGSHORE_TEST_*` name, else
//! ones started here, which end with this process. Never skipped: what cannot be had fails the test.
//!
//! Crates include this file by `#[path]`, so that no test code is in a shipped crate.

#![allow(dead_code)] // each includer uses its part

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The value of a `LONGSHORE_TEST_*` name. Starts the services when the environment does not name it.
/// Blocks for up to half a minute then.
///
/// # Panics
/// If the services cannot be started: their script has said why.
pub fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        let started = own_services();
        started.get(name).unwrap_or_else(|| panic!("scripts/services.sh names no {name}")).clone()
    })
}

/// Where the services keep their files, `env` among them: process ids change there when one is started again.
pub fn dir() -> PathBuf {
    PathBuf::from(env("LONGSHORE_TEST_DIR"))
}

/// Runs `scripts/services.sh` with these arguments.
///
/// # Panics
/// If it fails.
pub fn script(args: &[&str]) {
    let script = root().join("scripts/services.sh");
    // The services' own variables would make it take what runs instead of starting some.
    let clean = std::env::vars().filter(|(name, _)| name.starts_with("LONGSHORE_TEST_")).map(|(name, _)| name);
    let mut command = Command::new(&script);
    clean.for_each(|name| {
        command.env_remove(name);
    });
    let status = command.args(args).status().unwrap_or_else(|e| panic!("{}: {e}", script.display()));
    assert!(status.success(), "{} {args:?}: {status}; what it printed above says why", script.display());
}

/// The lines of a `DIR/env`.
///
/// # Panics
/// If there is none.
pub fn read_env(dir: &Path) -> BTreeMap<String, String> {
    let file = dir.join("env");
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    text.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// The checkout.
pub fn root() -> &'static Path {
    // CARGO_MANIFEST_DIR is the including crate's: every crate lies directly under the root.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a crate of the workspace lies under its root")
}

/// Where builds go: for directories of tests' own that should not be in the system's.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

fn own_services() -> &'static BTreeMap<String, String> {
    static STARTED: OnceLock<BTreeMap<String, String>> = OnceLock::new();
    STARTED.get_or_init(|| {
        let dir = target_dir().join("test-services");
        let pid = std::process::id().to_string();
        // One set for all test processes of this checkout; it goes down when the last of them has ended.
        script(&["up", &dir.display().to_string(), "--while", &pid]);
        read_env(&dir)
    })
}
