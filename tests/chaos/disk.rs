//! Small disks, and filling them.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use longshore_tests::check::run_command;

/// Written at once. Small, so that less than this is left.
const PIECE: [u8; 4096] = [0; 4096];

/// How often what was given back is taken again.
const AGAIN_MS: u64 = 20;

/// A file system of a row's own, in memory, until it is dropped.
pub(crate) struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Of that size, at a directory that it makes.
    pub(crate) fn at(dir: &Path, size: &str) -> Self {
        std::fs::create_dir_all(dir).expect("a directory");
        let options = format!("size={size},mode=700");
        run_command("mount", &["-t", "tmpfs", "-o", &options, "longshore-chaos", &dir.display().to_string()]);
        Self { at: dir.to_owned() }
    }

    /// Fills it to its last page, and what is given back meanwhile again, for so long. How many bytes that took.
    pub(crate) async fn is_full_for(&self, secs: u32) -> u64 {
        let mut bytes = self.fill();
        let mut again = tokio::time::interval(Duration::from_millis(AGAIN_MS));
        for _ in 0..u64::from(secs) * 1000 / AGAIN_MS {
            again.tick().await;
            bytes += self.fill();
        }
        bytes
    }

    fn fill(&self) -> u64 {
        let mut file = File::options().create(true).append(true).open(self.ballast()).expect("a file");
        let mut bytes = 0;
        loop {
            match file.write(&PIECE) {
                Ok(written) => bytes += written as u64,
                Err(error) if error.kind() == ErrorKind::StorageFull => return bytes,
                Err(error) => panic!("{}: {error}", self.at.display()),
            }
        }
    }

    /// Whether nobody could write to it now.
    pub(crate) fn is_full(&self) -> bool {
        let file = self.at.join("one-more");
        let full = std::fs::write(&file, PIECE).is_err_and(|error| error.kind() == ErrorKind::StorageFull);
        // It may have been made and be empty.
        let _ = std::fs::remove_file(file);
        full
    }

    /// Gives the room back.
    pub(crate) fn free(&self) {
        std::fs::remove_file(self.ballast()).expect("it was filled");
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a row that failed may leave a process there, which ends a moment later.
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.at).status();
    }
}
