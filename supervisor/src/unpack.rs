//! A tar into the container's own file system, in constant memory but for the names of its links and directories.
//!
//! Below the target nothing follows a symbolic link: every directory is opened by itself, from the target
//! downwards. The rules are those of `docs/containers.md`.

use std::collections::HashSet;
use std::ffi::{CString, OsStr};
use std::fs::DirBuilder;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use longshore_supervisor::wire::{InjectFailed, Whose};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use tar::{Archive, Entry, EntryType};

use crate::files;

/// One write of a file's content.
const COPY_BYTES: usize = 128 * 1024;

/// PAX records of extended attributes begin so.
const ATTRIBUTE_RECORD: &str = "SCHILY.xattr.";
/// The one that outlives a commit.
const CAPABILITY: &str = "security.capability";

/// Whose everything becomes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Unpacks below `target`. Reads the input to its very end. On a failure part of it may be there.
pub(crate) fn unpack(target: &str, owner: Owner, input: impl Read) -> Result<(), InjectFailed> {
    let directory = make_target(target, owner)?;
    let mut unpacking = Unpacking {
        target: directory,
        owner,
        links: HashSet::new(),
        times: Vec::new(),
        parent: None,
        buffer: vec![0; COPY_BYTES],
    };
    let mut archive = Archive::new(Source { inner: input, saw_end: false });
    for entry in archive.entries().map_err(|error| bad_input(&error))? {
        unpacking.entry(&mut entry.map_err(|error| bad_input(&error))?)?;
    }
    let mut rest = archive.into_inner();
    if rest.saw_end {
        // A tar ends in blocks of zeros. Without them it was cut between two entries, and nobody could tell.
        return Err(failed(Whose::Input, "the tar ends without its end mark"));
    }
    while rest.read(&mut unpacking.buffer).map_err(|error| bad_input(&error))? > 0 {}
    unpacking.finish()
}

fn failed(whose: Whose, reason: impl Into<String>) -> InjectFailed {
    InjectFailed { reason: reason.into(), whose }
}

fn bad_input(error: &io::Error) -> InjectFailed {
    failed(Whose::Input, error.to_string())
}

/// Tells whether the input's end was come to.
struct Source<R> {
    inner: R,
    saw_end: bool,
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        self.saw_end |= read == 0 && !into.is_empty();
        Ok(read)
    }
}

/// The target and what is missing above it, which becomes the owner's. Links on the way are followed: the root is
/// the container's own.
fn make_target(target: &str, owner: Owner) -> Result<OwnedFd, InjectFailed> {
    let refused = |why: String| failed(Whose::Refused, format!("{target}: {why}"));
    if !target.starts_with('/') {
        return Err(refused("is not absolute".to_owned()));
    }
    let clean = relative(Path::new(target.trim_start_matches('/'))).ok_or_else(|| refused("contains '..'".into()))?;
    let mut path = PathBuf::from("/");
    for component in clean.components() {
        path.push(component);
        match std::fs::metadata(&path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(refused(format!("{} is no directory", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = DirBuilder::new().mode(0o755).create(&path);
                made.and_then(|()| std::os::unix::fs::lchown(&path, Some(owner.uid), Some(owner.gid))).map_err(
                    |error| {
                        let whose =
                            if error.kind() == io::ErrorKind::AlreadyExists { Whose::Refused } else { Whose::Io };
                        failed(whose, format!("{} cannot be made: {error}", path.display()))
                    },
                )?;
            }
            Err(error) => return Err(refused(error.to_string())),
        }
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| failed(Whose::Io, format!("{target}: {error}")))
}

/// Without `.` and doubled slashes; `None` where it would leave the directory that it is relative to.
fn relative(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(clean)
}

struct Unpacking {
    target: OwnedFd,
    owner: Owner,
    /// Symbolic links that this tar made: what lies "below" one lies wherever it points.
    links: HashSet<PathBuf>,
    /// A directory's time is set last: every entry made in it changes it.
    times: Vec<(PathBuf, i64)>,
    /// The last one that was opened: entries of one directory follow each other.
    parent: Option<(PathBuf, OwnedFd)>,
    buffer: Vec<u8>,
}

impl Unpacking {
    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), InjectFailed> {
        let shown = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let refuse = |why: &str| failed(Whose::Refused, format!("the entry {shown:?} {why}"));
        let io_failed = |error: Errno| match error {
            // The entry's own fault: what it needs as a directory is none, or a link.
            Errno::NOTDIR | Errno::LOOP => refuse("lies below what is no directory"),
            Errno::NAMETOOLONG => refuse("has too long a name"),
            error => failed(Whose::Io, format!("the entry {shown:?}: {error}")),
        };
        let written = entry.path().map_err(|error| bad_input(&error))?.into_owned();
        let path = relative(&written).ok_or_else(|| refuse("leads out of the target"))?;
        if path.ancestors().skip(1).any(|parent| self.links.contains(parent)) {
            return Err(refuse("lies below a symbolic link of the same tar"));
        }
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(()); // says something of entries that follow; what counts of it is read with them
        }
        let Some(name) = path.file_name() else {
            // The target itself: made above if it was missing, and left as it is if not.
            return if kind.is_dir() { Ok(()) } else { Err(refuse("has no name")) };
        };
        let name = c_string(name).ok_or_else(|| refuse("has a zero byte in its name"))?;
        let mode = Mode::from_raw_mode(entry.header().mode().map_err(|error| bad_input(&error))? & 0o7777);
        let mtime = i64::try_from(entry.header().mtime().unwrap_or(0)).unwrap_or(0);

        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let attributes = attributes(entry)?;
                let parent = self.open_parent(&path).map_err(io_failed)?;
                let mut file = std::fs::File::from(create(&parent, &name, io_failed)?);
                self.copy(entry, &mut file, &shown)?;
                self.links.remove(&path);
                // The owner first: a change of it takes the set-user-id bit and the capability away.
                self.own(&file).map_err(io_failed)?;
                rustix::fs::fchmod(&file, mode).map_err(io_failed)?;
                set_attributes(&file, &attributes).map_err(io_failed)?;
                files::set_mtime(&file, mtime, 0).map_err(io_failed)
            }
            EntryType::Directory => {
                let attributes = attributes(entry)?;
                let parent = self.open_parent(&path).map_err(io_failed)?;
                let made = match rustix::fs::mkdirat(&parent, &name, Mode::RWXU) {
                    Err(Errno::EXIST) if !is_directory(&parent, &name) => {
                        replace(&parent, &name)?;
                        rustix::fs::mkdirat(&parent, &name, Mode::RWXU)
                    }
                    Err(Errno::EXIST) => Ok(()), // merged; mode and owner are the entry's
                    made => made,
                };
                made.map_err(io_failed)?;
                self.links.remove(&path);
                let directory = files::open_dir(&parent, &name).map_err(io_failed)?;
                self.own(&directory).map_err(io_failed)?;
                rustix::fs::fchmod(&directory, mode).map_err(io_failed)?;
                set_attributes(&directory, &attributes).map_err(io_failed)?;
                self.times.push((path.clone(), mtime));
                self.parent = Some((path, directory));
                Ok(())
            }
            EntryType::Symlink => {
                let points_at = link_name(entry).ok_or_else(|| refuse("is a link to nothing"))?;
                let parent = self.open_parent(&path).map_err(io_failed)?;
                replace(&parent, &name)?;
                // As it was written: wherever it points, it is followed in the container only.
                rustix::fs::symlinkat(&points_at, &parent, &name).map_err(io_failed)?;
                let (uid, gid) = self.ids();
                rustix::fs::chownat(&parent, &name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(io_failed)?;
                let times = files::mtime(mtime, 0);
                rustix::fs::utimensat(&parent, &name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(io_failed)?;
                self.links.insert(path);
                Ok(())
            }
            EntryType::Link => {
                let to = link_name(entry).ok_or_else(|| refuse("is a link to nothing"))?;
                let to = relative(&to).ok_or_else(|| refuse("is a hard link out of the target"))?;
                if to.ancestors().skip(1).any(|parent| self.links.contains(parent)) {
                    return Err(refuse("is a hard link to what lies below a symbolic link"));
                }
                let to_name = to.file_name().and_then(c_string).ok_or_else(|| refuse("is a hard link to nothing"))?;
                let no_target = |error| match error {
                    Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::PERM => {
                        refuse("is a hard link to what is no file of the target")
                    }
                    error => io_failed(error),
                };
                let from = files::open_parent(&self.target, &to).map_err(no_target)?;
                let parent = self.open_parent(&path).map_err(io_failed)?;
                if to != path {
                    rustix::fs::statat(&from, &to_name, AtFlags::SYMLINK_NOFOLLOW).map_err(no_target)?;
                    replace(&parent, &name)?;
                    rustix::fs::linkat(&from, &to_name, &parent, &name, AtFlags::empty()).map_err(no_target)?;
                }
                // A second name of a link is one, too.
                if self.links.contains(&to) {
                    self.links.insert(path);
                } else {
                    self.links.remove(&path);
                }
                Ok(())
            }
            EntryType::Fifo => {
                let parent = self.open_parent(&path).map_err(io_failed)?;
                replace(&parent, &name)?;
                self.links.remove(&path);
                rustix::fs::mknodat(&parent, &name, FileType::Fifo, Mode::RUSR, 0).map_err(io_failed)?;
                let (uid, gid) = self.ids();
                rustix::fs::chownat(&parent, &name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(io_failed)?;
                rustix::fs::chmodat(&parent, &name, mode, AtFlags::empty()).map_err(io_failed)?;
                let times = files::mtime(mtime, 0);
                rustix::fs::utimensat(&parent, &name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(io_failed)
            }
            EntryType::Block | EntryType::Char => Err(refuse("is a device")),
            _ => Err(refuse("is of an unknown kind")),
        }
    }

    fn ids(&self) -> (Option<Uid>, Option<Gid>) {
        (Some(Uid::from_raw(self.owner.uid)), Some(Gid::from_raw(self.owner.gid)))
    }

    fn own(&self, file: impl AsFd) -> Result<(), Errno> {
        let (uid, gid) = self.ids();
        rustix::fs::fchown(file, uid, gid)
    }

    /// The directory that an entry lies in, made if missing.
    fn open_parent(&mut self, path: &Path) -> Result<OwnedFd, Errno> {
        let parent = path.parent().unwrap_or(Path::new(""));
        if let Some((known, directory)) = &self.parent
            && known == parent
        {
            return directory.try_clone().map_err(|_| Errno::MFILE);
        }
        let mut directory = files::open_dir(&self.target, ".")?;
        for component in parent.components() {
            let name = component.as_os_str();
            directory = match files::open_dir(&directory, name) {
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o755))?;
                    let made = files::open_dir(&directory, name)?;
                    self.own(&made)?;
                    made
                }
                opened => opened?,
            };
        }
        let kept = directory.try_clone().map_err(|_| Errno::MFILE)?;
        self.parent = Some((parent.to_owned(), kept));
        Ok(directory)
    }

    fn copy<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        file: &mut std::fs::File,
        shown: &str,
    ) -> Result<(), InjectFailed> {
        let mut missing = entry.size();
        loop {
            let read = match entry.read(&mut self.buffer) {
                Ok(0) if missing == 0 => return Ok(()),
                Ok(0) => return Err(failed(Whose::Input, format!("the tar ends within the entry {shown:?}"))),
                Ok(read) => read,
                Err(error) => return Err(bad_input(&error)),
            };
            missing = missing.saturating_sub(read as u64);
            file.write_all(&self.buffer[..read])
                .map_err(|error| failed(Whose::Io, format!("the entry {shown:?}: {error}")))?;
        }
    }

    /// The directories' own times: what was made in them is made.
    fn finish(self) -> Result<(), InjectFailed> {
        for (path, mtime) in self.times {
            // Another entry may have put something else there since.
            let Ok(parent) = files::open_parent(&self.target, &path) else { continue };
            let Some(directory) = path.file_name().and_then(|name| files::open_dir(&parent, name).ok()) else {
                continue;
            };
            let failed = |error: Errno| failed(Whose::Io, format!("the time of {}: {error}", path.display()));
            files::set_mtime(directory, mtime, 0).map_err(failed)?;
        }
        Ok(())
    }
}

fn c_string(name: &OsStr) -> Option<CString> {
    CString::new(name.as_bytes()).ok()
}

fn is_directory(parent: impl AsFd, name: &CString) -> bool {
    let found = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    found.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// A new file. What has the name already is rare, and looked for only then: in a union of directories that is the
/// dearer half.
fn create(
    parent: impl AsFd,
    name: &CString,
    io_failed: impl Fn(Errno) -> InjectFailed,
) -> Result<OwnedFd, InjectFailed> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(&parent, name, flags, Mode::RUSR | Mode::WUSR);
    match open() {
        Err(Errno::EXIST) => {
            replace(&parent, name)?;
            open().map_err(io_failed)
        }
        opened => opened.map_err(io_failed),
    }
}

/// What has the name goes, a directory with all below it: as the Engine does it.
fn replace(parent: impl AsFd, name: &CString) -> Result<(), InjectFailed> {
    files::remove(parent, name).map_err(|reason| failed(Whose::Io, format!("cannot be replaced: {reason}")))
}

fn link_name<R: Read>(entry: &Entry<'_, R>) -> Option<PathBuf> {
    let name = entry.link_name_bytes()?;
    (!name.is_empty() && !name.contains(&0)).then(|| Path::new(OsStr::from_bytes(&name)).to_owned())
}

/// From the entry's PAX records.
fn attributes<R: Read>(entry: &mut Entry<'_, R>) -> Result<Vec<(String, Vec<u8>)>, InjectFailed> {
    let Some(records) = entry.pax_extensions().map_err(|error| bad_input(&error))? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for record in records {
        let record = record.map_err(|error| bad_input(&error))?;
        if let Some(name) = record.key().ok().and_then(|key| key.strip_prefix(ATTRIBUTE_RECORD)) {
            found.push((name.to_owned(), record.value_bytes().to_vec()));
        }
    }
    Ok(found)
}

/// A capability must be kept; another attribute is where the file system and the container's power allow it, as the
/// Engine does it.
fn set_attributes(file: impl AsFd, attributes: &[(String, Vec<u8>)]) -> Result<(), Errno> {
    for (name, value) in attributes {
        match rustix::fs::fsetxattr(&file, name.as_str(), value, XattrFlags::empty()) {
            Err(Errno::NOTSUP | Errno::PERM) if name != CAPABILITY => {}
            set => set?,
        }
    }
    Ok(())
}
