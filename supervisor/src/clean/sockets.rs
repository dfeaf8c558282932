//! Socket files: a commit does not keep them, so a container that goes on must not have them either.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use longshore_supervisor::wire::Clean;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::files;
use crate::mounts;

/// Those that are listed, or all of the root file system. The times of their directories stay: in a container made
/// from the commit they are what they were, too.
pub(super) fn remove(clean: &Clean) -> Result<(), String> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/", flags, Mode::empty()).map_err(|error| format!("/: {error}"))?;
    match &clean.sockets {
        Some(listed) => listed.iter().try_for_each(|path| {
            remove_listed(root.as_fd(), Path::new(path)).map_err(|error| format!("the socket {path}: {error}"))
        }),
        None => search(root.as_fd()),
    }
}

/// What is no socket, or is not there any more, was named by mistake, and stays.
fn remove_listed(root: impl AsFd, path: &Path) -> Result<(), Errno> {
    let Some(name) = path.file_name() else { return Ok(()) };
    let found = files::open_parent(root, path).and_then(|parent| {
        let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok((parent, FileType::from_raw_mode(stat.st_mode)))
    });
    match found {
        Ok((parent, FileType::Socket)) => files::unlink_unseen(parent, name),
        Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
        Err(error) => Err(error),
    }
}

/// One look at every directory of the root's own file system, nothing that is mounted in it. Nothing else runs, so a path that was made of
/// directories leads through directories.
fn search(root: impl AsFd) -> Result<(), String> {
    let root = root.as_fd();
    // By name, not by device: a part of the same file system may be mounted.
    let mounted: HashSet<PathBuf> = mounts::read().into_iter().map(|mount| mount.at).collect();
    let mut pending = vec![PathBuf::from(".")];
    while let Some(path) = pending.pop() {
        let is_root = path == Path::new(".");
        if !is_root && mounted.contains(&Path::new("/").join(path.strip_prefix(".").unwrap_or(&path))) {
            continue;
        }
        // A path beyond the kernel's limit is an error too: what lies there cannot be known.
        look_into(root, &path, &mut pending).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

fn look_into(root: impl AsFd, path: &Path, pending: &mut Vec<PathBuf>) -> Result<(), Errno> {
    let directory = files::open_dir(root, path)?;
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if files::is_dots(name) {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                FileType::from_raw_mode(rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode)
            }
            known => known,
        };
        match kind {
            FileType::Directory => pending.push(path.join(OsStr::from_bytes(name.to_bytes()))),
            FileType::Socket => files::unlink_unseen(&directory, name)?,
            _ => {}
        }
    }
    Ok(())
}
