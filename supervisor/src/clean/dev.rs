//! `/dev`: a tmpfs of the container's own, with nodes that the runtime made.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::files;
use crate::mounts::{self, Mount};

/// What was there before the first command.
pub(super) struct Listing {
    /// `None`: `/dev` is not a file system of its own, so what lies in it are the image's files.
    directory: Option<Directory>,
    nodes: BTreeMap<CString, Node>,
}

struct Directory {
    opened: OwnedFd,
    mode: u32,
    owner: (u32, u32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    mode: u32,
    device: u64,
    owner: (u32, u32),
    points_at: Option<CString>,
}

impl Listing {
    pub(super) fn take(mounts: &[Mount]) -> Self {
        let own = mounts.iter().any(|mount| mount.at == Path::new("/dev") && mount.kind == "tmpfs");
        let none = Self { directory: None, nodes: BTreeMap::new() };
        if !own || !mounts::is_mount_point(mounts, Path::new("/dev")) {
            return none;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(opened) = rustix::fs::open("/dev", flags, Mode::empty()) else { return none };
        let Ok(stat) = rustix::fs::fstat(&opened) else { return none };
        let nodes = list(&opened).unwrap_or_default();
        Self { directory: Some(Directory { opened, mode: stat.st_mode, owner: (stat.st_uid, stat.st_gid) }), nodes }
    }

    /// Removes what is foreign, and puts back what can be.
    pub(super) fn restore(&self) -> Result<(), String> {
        let Some(Directory { opened: directory, mode, owner }) = &self.directory else { return Ok(()) };
        let (uid, gid) = (Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)));
        rustix::fs::fchown(directory, uid, gid)
            .and_then(|()| rustix::fs::fchmod(directory, Mode::from_raw_mode(mode & 0o7777)))
            .map_err(|error| format!("/dev: {error}"))?;
        let told = |name: &CString, reason: &dyn std::fmt::Display| format!("/dev/{}: {reason}", files::shown(name));
        let mut now = list(directory).map_err(|error| format!("/dev: {error}"))?;
        for (name, node) in &now {
            let kept = self.nodes.get(name).is_some_and(|known| known.is_same_thing(node));
            if !kept {
                files::remove(directory, name).map_err(|reason| told(name, &reason))?;
            }
        }
        now.retain(|name, node| self.nodes.get(name).is_some_and(|known| known.is_same_thing(node)));
        for (name, known) in &self.nodes {
            match (now.get(name), &known.points_at) {
                (Some(found), _) if found == known => {}
                (Some(_), Some(_)) => {} // a link's owner and mode say nothing
                (Some(_), None) => known.restore(directory, name).map_err(|error| told(name, &error))?,
                (None, Some(points_at)) => {
                    rustix::fs::symlinkat(points_at, directory, name).map_err(|error| told(name, &error))?;
                }
                (None, None) => return Err(told(name, &"was removed, and cannot be made again")),
            }
        }
        Ok(())
    }
}

impl Node {
    /// The same but for mode and owner.
    fn is_same_thing(&self, other: &Self) -> bool {
        let kind = |node: &Self| FileType::from_raw_mode(node.mode);
        (kind(self), self.device, &self.points_at) == (kind(other), other.device, &other.points_at)
    }

    fn restore(&self, directory: impl AsFd, name: &CString) -> Result<(), Errno> {
        let (uid, gid) = (Some(Uid::from_raw(self.owner.0)), Some(Gid::from_raw(self.owner.1)));
        rustix::fs::chownat(&directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        rustix::fs::chmodat(&directory, name, Mode::from_raw_mode(self.mode & 0o7777), AtFlags::empty())
    }
}

fn list(directory: impl AsFd) -> Result<BTreeMap<CString, Node>, Errno> {
    let mut nodes = BTreeMap::new();
    for entry in Dir::read_from(&directory)? {
        let name = entry?.file_name().to_owned();
        if files::is_dots(&name) {
            continue;
        }
        let stat = rustix::fs::statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        let points_at = if is_link {
            Some(rustix::fs::readlinkat(&directory, OsStr::from_bytes(name.to_bytes()), [])?)
        } else {
            None
        };
        let node = Node { mode: stat.st_mode, device: stat.st_rdev, owner: (stat.st_uid, stat.st_gid), points_at };
        nodes.insert(name, node);
    }
    Ok(nodes)
}
