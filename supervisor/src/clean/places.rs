//! Directories that no snapshot keeps: declared VOLUMEs, tmpfs (with `/dev/shm`), message queues.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, Stat};
use rustix::process::{Gid, Uid};

use crate::files;
use crate::mounts::Mount;

/// With all below them: the Engine's own, not a command's to write, and not ours to empty.
const NOT_OURS: [&str; 3] = ["/dev/longshore", "/proc", "/sys"];

/// These themselves: the files, whatever they lie on, and the nodes, which `dev` sees to.
const NOT_SCRATCH: [&str; 2] = ["/", "/dev"];

/// As they were when the first command came.
pub(super) struct Places(Vec<Place>);

struct Place {
    path: PathBuf,
    /// Opened once: a command may move the links on the way to it, not the mount.
    directory: OwnedFd,
    stat: Stat,
    /// Why emptying it does not give what a new container would have there.
    spoilt: Option<&'static str>,
}

impl Places {
    pub(super) fn take(volumes: &[String], mounts: &[Mount]) -> Self {
        let mounted = mounts.iter().filter(|mount| is_scratch(mount)).map(|mount| mount.at.clone());
        let mut paths: Vec<PathBuf> = volumes.iter().map(PathBuf::from).chain(mounted).collect();
        paths.sort_unstable();
        paths.dedup();
        Self(paths.into_iter().filter_map(|path| Place::take(path, mounts)).collect())
    }

    /// Empties each, and gives it back its mode and owner.
    pub(super) fn restore(&self, volumes: &[String]) -> Result<(), String> {
        let mut result = Ok(());
        for place in &self.0 {
            let restored = place.restore().map_err(|reason| format!("{}: {reason}", place.path.display()));
            result = result.and(restored);
        }
        let unknown = volumes.iter().find(|volume| !self.0.iter().any(|place| place.path == Path::new(volume)));
        result.and(unknown.map_or(Ok(()), |volume| Err(format!("the volume {volume} was not there at the start"))))
    }
}

/// A whole tmpfs of the container's own (not a file that hides something, as `/proc/kcore` has), or its queues.
fn is_scratch(mount: &Mount) -> bool {
    let ours = !NOT_OURS.iter().any(|other| mount.at.starts_with(other))
        && !NOT_SCRATCH.iter().any(|other| mount.at == Path::new(other));
    let whole = mount.root == Path::new("/") && mount.at.is_dir();
    ours && whole && !mount.read_only && matches!(mount.kind.as_str(), "tmpfs" | "mqueue")
}

impl Place {
    fn take(path: PathBuf, mounts: &[Mount]) -> Option<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&path, flags, Mode::empty()).ok()?;
        let stat = rustix::fs::fstat(&directory).ok()?;
        let holds_mount = |mount: &Mount| mount.at != path && mount.at.starts_with(&path);
        let spoilt = if mounts.iter().any(holds_mount) {
            Some("another mount lies in it")
        } else if files::is_empty(directory.as_fd()) != Ok(true) {
            Some("it had content at the start, which a new container would have again")
        } else {
            None
        };
        Some(Self { path, directory, stat, spoilt })
    }

    fn restore(&self) -> Result<(), String> {
        if let Some(reason) = self.spoilt {
            return Err(reason.to_owned());
        }
        files::empty(&self.directory)?;
        let owner = (Some(Uid::from_raw(self.stat.st_uid)), Some(Gid::from_raw(self.stat.st_gid)));
        let now = rustix::fs::fstat(&self.directory).map_err(|error| error.to_string())?;
        let told = |error: rustix::io::Errno| error.to_string();
        if (now.st_uid, now.st_gid) != (self.stat.st_uid, self.stat.st_gid) {
            rustix::fs::fchown(&self.directory, owner.0, owner.1).map_err(told)?;
        }
        if now.st_mode != self.stat.st_mode {
            rustix::fs::fchmod(&self.directory, Mode::from_raw_mode(self.stat.st_mode & 0o7777)).map_err(told)?;
        }
        Ok(())
    }
}
