//! Builds the supervisor, which the worker carries in its binary: static, for whatever image it comes to.
//!
//! Cargo can hand one package's binary to another only in its nightly form, so this runs cargo itself.

use std::env;
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The package and its binary, as `supervisor/Cargo.toml` names them.
const PACKAGE: &str = "longshore-supervisor";

/// Of the workspace's `Cargo.toml`: small, and without the tables for unwinding.
const PROFILE: &str = "supervisor";

fn main() {
    let here = PathBuf::from(var("CARGO_MANIFEST_DIR"));
    let root = here.parent().expect("the worker's crate lies under the workspace's root");
    // What the binary is made of. The lock file too: a dependency that was mended must get into it. If nothing that
    // concerns it has changed, the cargo below is done in a blink.
    for source in ["supervisor/src", "supervisor/Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    assert_eq!(var("CARGO_CFG_TARGET_OS"), "linux", "a worker runs on Linux: its supervisor is a Linux program");

    let target = var("TARGET").into_string().expect("target triples are ASCII");
    let dir = Path::new(&var("OUT_DIR")).join("supervisor");
    let status = cargo(root, &target, &dir).status().expect("cargo runs this, so cargo can be run");
    assert!(status.success(), "building the supervisor failed ({status}); cargo has said above why");

    let binary = dir.join(&target).join(PROFILE).join(PACKAGE);
    println!("cargo::rustc-env=LONGSHORE_SUPERVISOR={}", binary.display());
    let bytes = std::fs::read(&binary).expect("cargo has just built it");
    println!("cargo::rustc-env=LONGSHORE_SUPERVISOR_NAME=supervisor-{:016x}", hash(&bytes));
}

/// Tells one version from another. Not of cryptographic strength: nobody chooses these bytes but we.
fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

fn cargo(root: &Path, target: &str, dir: &Path) -> Command {
    let mut cargo = Command::new(var("CARGO"));
    cargo.current_dir(root).arg("build").args(["--locked", "--package", PACKAGE, "--bin", PACKAGE]);
    cargo.args(["--profile", PROFILE]);
    // Named although it may be the host: otherwise the flags below would be those of macros and build scripts too,
    // which cannot be static.
    cargo.args(["--target", target]);
    // Its own, or it would wait for ever for the lock of the cargo that waits for it.
    cargo.arg("--target-dir").arg(dir).env("CARGO_BUILD_BUILD_DIR", dir);
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    // These would count before RUSTFLAGS, or are for our caller's crates: clippy wraps the compiler of a workspace.
    for name in ["CARGO_ENCODED_RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_RUSTFLAGS", "CARGO_BUILD_TARGET"] {
        cargo.env_remove(name);
    }
    cargo.env_remove(format!("CARGO_TARGET_{}_RUSTFLAGS", target.to_uppercase().replace(['-', '.'], "_")));
    cargo
}

fn var(name: &str) -> OsString {
    env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name} for build scripts"))
}
