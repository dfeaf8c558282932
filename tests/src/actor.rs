//! Images with the program that the tests' steps do everything with (`tests/actor`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use crate::engine::{docker, try_docker};
use crate::services;

/// What an image has besides busybox and the actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Nothing.
    Plain,
    /// A VOLUME in which the image has nothing: `/volume`.
    Volume,
    /// A VOLUME in which the image has files, which Docker copies into each new one: `/volume`.
    FilledVolume,
}

/// An image with the actor in it, on that Engine; made if it is not there.
///
/// # Panics
/// If it cannot be made.
pub fn image(engine: &str, flavour: Flavour) -> String {
    // One at a time: two tests at once would both make it.
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);

    let tag = match flavour {
        Flavour::Plain => "plain",
        Flavour::Volume => "volume",
        Flavour::FilledVolume => "filled-volume",
    };
    let tag = format!("longshore-test/actor:{tag}-{}", version());
    if try_docker(engine, &["image", "inspect", &tag]).status.success() {
        return tag;
    }
    let base = ["create", "--network", "none", "longshore-test/busybox:latest", "true"];
    let container = docker(engine, &base);
    let root = tempfile::tempdir().expect("a directory");
    std::fs::create_dir_all(root.path().join("usr/bin")).expect("a directory");
    std::fs::copy(binary(), root.path().join("usr/bin/actor")).expect("the actor is built");
    if flavour == Flavour::FilledVolume {
        std::fs::create_dir_all(root.path().join("volume/sub")).expect("a directory");
        std::fs::write(root.path().join("volume/of-the-image"), "of the image\n").expect("a file");
        std::fs::write(root.path().join("volume/sub/too"), "of the image too\n").expect("a file");
    }
    docker(engine, &["cp", &format!("{}/.", root.path().display()), &format!("{container}:/")]);
    let mut commit = vec!["commit", "--change", "CMD [\"sh\"]"];
    if flavour != Flavour::Plain {
        commit.extend(["--change", "VOLUME [\"/volume\"]"]);
    }
    commit.extend([container.as_str(), tag.as_str()]);
    docker(engine, &commit);
    docker(engine, &["rm", &container]);
    tag
}

/// Eight hex digits of the program's hash: an image of another version is another image.
fn version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| {
        let bytes = std::fs::read(binary()).expect("the actor is built");
        longshore_protocol::BlobHash::of(&bytes).as_str()[..8].to_owned()
    })
}

/// The program, built now if its sources are newer.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let sources = services::root().join("tests/actor");
        let dir = services::target_dir().join("test-actor");
        std::fs::create_dir_all(&dir).expect("a directory");
        let built = dir.join("actor");
        let changed = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
        let newest = std::fs::read_dir(&sources).expect("the actor's sources").flatten();
        let newest = newest.filter_map(|file| changed(&file.path())).max();
        if changed(&built) > newest {
            return built;
        }
        // Under a name of this process's own, then renamed: another test may be copying the old one.
        let fresh = dir.join(format!("actor-{}", std::process::id()));
        let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        rustc.current_dir(services::root()).args(["--edition", "2024", "--target", &target, "-o"]).arg(&fresh);
        // Static, so that it runs in an image with another C library or none; small, since it is in every commit's base.
        rustc.args(["-O", "-C", "target-feature=+crt-static", "-C", "panic=abort", "-C", "strip=symbols"]);
        let status = rustc.arg(sources.join("main.rs")).status().expect("rustc is there");
        assert!(status.success(), "the actor cannot be built: {status}");
        std::fs::rename(&fresh, &built).expect("one directory");
        built
    })
}
