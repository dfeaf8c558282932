//! The three files that the Engine writes and mounts over the image's.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::mounts::{self, Mount};

const FILES: [&str; 3] = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

/// The Engine's are some hundred bytes; with ten thousand extra hosts, half of this. A longer one cannot have been
/// its own, and is cut to it when it is compared.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// As they were at the start. Those that are no mounts are files like any other.
pub(super) struct Files(Vec<Known>);

struct Known {
    path: PathBuf,
    bytes: Vec<u8>,
    mode: u32,
    owner: (u32, u32),
}

impl Files {
    pub(super) fn take(mounts: &[Mount]) -> Self {
        let mounted = FILES.iter().map(Path::new).filter(|path| mounts::is_mount_point(mounts, path));
        Self(mounted.filter_map(|path| Known::take(path).ok()).collect())
    }

    /// Written in place: a mount cannot be replaced.
    pub(super) fn restore(&self) -> Result<(), String> {
        let mut result = Ok(());
        for file in &self.0 {
            // One that cannot be put back does not keep the others from it.
            result = result.and(file.restore().map_err(|error| format!("{}: {error}", file.path.display())));
        }
        result
    }
}

impl Known {
    fn take(path: &Path) -> io::Result<Self> {
        let mut bytes = Vec::new();
        let file = File::open(path)?;
        let about = file.metadata()?;
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(Self { path: path.to_owned(), bytes, mode: about.mode() & 0o7777, owner: (about.uid(), about.gid()) })
    }

    fn restore(&self) -> io::Result<()> {
        let now = Self::take(&self.path)?;
        if now.owner != self.owner {
            std::os::unix::fs::lchown(&self.path, Some(self.owner.0), Some(self.owner.1))?;
        }
        if now.mode != self.mode || now.owner != self.owner {
            fs::set_permissions(&self.path, Permissions::from_mode(self.mode))?;
        }
        if now.bytes != self.bytes || fs::metadata(&self.path)?.len() != self.bytes.len() as u64 {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).truncate(true).custom_flags(libc::O_NOFOLLOW).open(&self.path)?;
            file.write_all(&self.bytes)?;
        }
        Ok(())
    }
}
