//! Services of one test's own, beside those that all share.

use std::path::PathBuf;

use crate::check::run_command;
use crate::services;

/// Services of one test's own, which it may kill.
#[derive(Debug)]
pub struct OwnServices {
    dir: PathBuf,
    path: String,
}

impl OwnServices {
    /// None of them runs yet.
    ///
    /// # Panics
    /// If there is no directory for them.
    pub fn prepare(name: &str) -> Self {
        let dir = services::target_dir().join(format!("test-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        Self { path: dir.display().to_string(), dir }
    }

    /// The Engine's disk is to be a small one, of memory.
    pub fn on_a_disk_of(&self, size: &str) {
        run_command("mount", &["-t", "tmpfs", "-o", &format!("size={size},mode=755"), "longshore-test", &self.path]);
    }

    /// Their directory, as it is told to `scripts/services.sh`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Starts them, for as long as this process lives.
    pub fn up(&self, only: &str) {
        let pid = std::process::id().to_string();
        services::script(&["up", &self.path, "--only", only, "--while", &pid]);
    }

    /// A line of their `env`.
    pub fn env(&self, name: &str) -> String {
        services::read_env(&self.dir)[name].clone()
    }
}

impl Drop for OwnServices {
    fn drop(&mut self) {
        // Not asserted: a test that fails already must be seen to fail for its own reason.
        let script = services::root().join("scripts/services.sh");
        let _ = std::process::Command::new(script).args(["down", &self.path]).status();
        let _ = std::process::Command::new("umount").args(["--quiet", &self.path]).status();
        // What is left are the logs, which a failed test's reader wants.
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// Makes the tests' base image on an Engine.
///
/// # Panics
/// If it cannot be made.
pub fn base_image(docker: &str) {
    let script = services::root().join("scripts/base-image.sh");
    let status = std::process::Command::new(script).arg("test").env("DOCKER_HOST", docker).status();
    assert!(status.expect("the script starts").success(), "no base image on {docker}");
}
