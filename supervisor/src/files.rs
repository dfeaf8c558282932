//! Walking and removing without following links, and without a bound on depth.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

/// How many names of a directory are held at once: some tens of KiB.
const NAMES_MAX: usize = 512;

/// Opens a directory to work in. The last component may not be a link.
pub(crate) fn open_dir(at: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

/// A directory on the way to a file, nothing on it a link.
pub(crate) fn open_parent(root: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    let mut directory = open_dir(root, ".")?;
    for component in path.parent().into_iter().flat_map(Path::components) {
        match component {
            Component::Normal(name) => directory = open_dir(&directory, name)?,
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(Errno::INVAL),
        }
    }
    Ok(directory)
}

/// The entries of a directory, at most `NAMES_MAX` of them, without `.` and `..`.
fn some_names(directory: impl AsFd) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !is_dots(entry.file_name()) {
            names.push(entry.file_name().to_owned());
        }
        if names.len() == NAMES_MAX {
            break;
        }
    }
    Ok(names)
}

pub(crate) fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// Whether there is nothing in it.
pub(crate) fn is_empty(directory: impl AsFd) -> Result<bool, Errno> {
    Ok(some_names(directory)?.is_empty())
}

/// Removes everything in a directory; `Err` names what stays, a mount point for instance.
///
/// A tree of any depth takes the same memory: a directory that is not empty is moved up to `directory` first, and
/// emptied there.
pub(crate) fn empty(directory: impl AsFd) -> Result<(), String> {
    let directory = directory.as_fd();
    let mut moved = 0_u64;
    let told = |name: &CStr, error: Errno| format!("{}: {error}", name.to_string_lossy());
    loop {
        let names = some_names(directory).map_err(|error| error.to_string())?;
        if names.is_empty() {
            return Ok(());
        }
        for name in names {
            // Until it is gone: each time some of its entries are.
            while let Err(error) = remove_shallow(directory, &name) {
                if error != Errno::NOTEMPTY {
                    return Err(told(&name, error));
                }
                let below = open_dir(directory, &name).map_err(|error| told(&name, error))?;
                for inner in some_names(&below).map_err(|error| told(&name, error))? {
                    match remove_shallow(&below, &inner) {
                        Err(Errno::NOTEMPTY) => {
                            move_up(&below, &inner, directory, &mut moved).map_err(|error| told(&inner, error))?;
                        }
                        removed => removed.map_err(|error| told(&inner, error))?,
                    }
                }
            }
        }
    }
}

/// Removes one name, with all below it if it is a directory.
pub(crate) fn remove(directory: impl AsFd, name: &CStr) -> Result<(), String> {
    let directory = directory.as_fd();
    let told = |error: Errno| format!("{}: {error}", name.to_string_lossy());
    match remove_shallow(directory, name) {
        Err(Errno::NOTEMPTY) => {
            let below = open_dir(directory, name).map_err(told)?;
            empty(&below)?;
            remove_shallow(directory, name).map_err(told)
        }
        removed => removed.map_err(told),
    }
}

/// A file, or an empty directory.
fn remove_shallow(directory: impl AsFd, name: &CStr) -> Result<(), Errno> {
    let directory = directory.as_fd();
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        // What unlink says of a directory: Linux, POSIX.
        Err(Errno::ISDIR | Errno::PERM) => match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOENT) => Ok(()),
            Err(Errno::EXIST) => Err(Errno::NOTEMPTY),
            Err(Errno::NOTDIR) => Err(Errno::PERM),
            removed => removed,
        },
        Err(Errno::NOENT) => Ok(()),
        removed => removed,
    }
}

fn move_up(from: impl AsFd, name: &CStr, to: impl AsFd, moved: &mut u64) -> Result<(), Errno> {
    loop {
        *moved += 1;
        let unused = format!(".longshore-removed-{moved}");
        match rustix::fs::renameat_with(&from, name, &to, unused, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            renamed => return renamed,
        }
    }
}

/// Removes one file of a directory and leaves the directory's own time as it was.
pub(crate) fn unlink_unseen(directory: impl AsFd, name: impl rustix::path::Arg) -> Result<(), Errno> {
    let before = rustix::fs::fstat(&directory)?;
    rustix::fs::unlinkat(&directory, name, AtFlags::empty())?;
    set_mtime(directory, before.st_mtime, i64::try_from(before.st_mtime_nsec).unwrap_or(0))
}

/// Of an open file; the time of access stays.
pub(crate) fn set_mtime(file: impl AsFd, seconds: i64, nanos: i64) -> Result<(), Errno> {
    rustix::fs::futimens(file, &mtime(seconds, nanos))
}

pub(crate) fn mtime(seconds: i64, nanos: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos },
    }
}

/// For names in messages.
pub(crate) fn shown(name: &CStr) -> String {
    OsStr::from_bytes(name.to_bytes()).to_string_lossy().into_owned()
}
