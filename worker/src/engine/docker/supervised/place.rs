//! The supervisor on the worker's disk: its binary, and for each container a directory that is mounted there.
//!
//! ```text
//! DIR/supervisor-<hash>        the binary of this version
//! DIR/c/<short>/supervisor     the same file again: a container sees its own directory only
//! DIR/c/<short>/sock           while a worker listens
//! ```

use std::collections::HashSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Static, and for this machine's kind: made by `build.rs`.
static BINARY: &[u8] = include_bytes!(env!("LONGSHORE_SUPERVISOR"));

/// What its file is called, by a hash of what it holds. Made by `build.rs` too: to look at all of it at each start would
/// hold a megabyte of an idle worker's memory.
const NAME: &str = env!("LONGSHORE_SUPERVISOR_NAME");

/// Everybody may execute it: user namespaces make of a container's root somebody else.
const EXECUTABLE: u32 = 0o555;

/// The container's own directory: everybody finds what is in it, the worker alone changes it.
const OWN: u32 = 0o755;

/// The directory of those directories: none of its users needs its list.
const ALL: u32 = 0o711;

/// Everybody may connect: who it is tells the kernel (`SO_PEERCRED`), not the mode.
const SOCKET: u32 = 0o666;

/// Where it all lies.
#[derive(Debug)]
pub(super) struct Place {
    binary: PathBuf,
    containers: PathBuf,
}

impl Place {
    /// Unpacks the binary unless it is there. Blocking.
    pub(super) fn begin(dir: &Path) -> io::Result<Self> {
        let containers = dir.join("c");
        fs::create_dir_all(&containers)?;
        fs::set_permissions(&containers, Permissions::from_mode(ALL))?;
        // Named by what it holds: another version's worker does not change what this one's containers run.
        let binary = dir.join(NAME);
        let whole =
            |found: fs::Metadata| found.len() == BINARY.len() as u64 && found.permissions().mode() & 0o555 == 0o555;
        if !fs::metadata(&binary).is_ok_and(whole) {
            write_whole(&binary, &dir.join(format!("{NAME}.new")))?;
        }
        forget_others(dir, NAME);
        Ok(Self { binary, containers })
    }

    /// What is mounted into the container of this name.
    pub(super) fn dir(&self, container: &str) -> PathBuf {
        self.containers.join(short(container))
    }

    /// Makes a container's directory. Whatever an older container of this name has there is left alone. Blocking.
    pub(super) fn make(&self, container: &str) -> io::Result<()> {
        let dir = self.dir(container);
        fs::create_dir_all(&dir)?;
        fs::set_permissions(&dir, Permissions::from_mode(OWN))
    }

    /// Puts the binary into a container's directory, and listens there: the container is new. Blocking.
    pub(super) fn fill(&self, container: &str) -> io::Result<UnixListener> {
        let dir = self.dir(container);
        let binary = dir.join("supervisor");
        // One that a crash left behind may be another version's.
        remove_if_there(&binary)?;
        if fs::hard_link(&self.binary, &binary).is_err() {
            // A file system without links, or with too many of this file.
            write_whole(&binary, &dir.join("supervisor.new"))?;
        }
        self.listen(container)
    }

    /// Listens in a container's directory, instead of whoever did. Blocking.
    pub(super) fn listen(&self, container: &str) -> io::Result<UnixListener> {
        // A socket's path holds 107 bytes, a directory's any number: so the directory is opened, and named by its number.
        let dir = File::open(self.dir(container))?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/sock", dir.as_raw_fd()));
        remove_if_there(&path)?;
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(SOCKET))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// Removes a container's directory: the container is gone. Blocking.
    pub(super) fn forget(&self, container: &str) -> io::Result<()> {
        match fs::remove_dir_all(self.dir(container)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The directories that are there, by their short names. Blocking.
    pub(super) fn listed(&self) -> io::Result<HashSet<String>> {
        let names = fs::read_dir(&self.containers)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    }

    /// Removes those of `listed` that belong to none of `containers`. Blocking.
    pub(super) fn keep(&self, listed: &HashSet<String>, containers: &[String]) {
        let kept: HashSet<&str> = containers.iter().map(|name| short(name)).collect();
        for name in listed.iter().filter(|name| !kept.contains(name.as_str())) {
            if let Err(error) = fs::remove_dir_all(self.containers.join(name)) {
                tracing::debug!(name, %error, "the directory of a container that is gone is still here");
            }
        }
    }
}

/// A container's name without what all of one worker's have in common, `longshore.<worker>.`.
fn short(container: &str) -> &str {
    container.splitn(3, '.').nth(2).unwrap_or(container)
}

/// Whole or not at all, also after a crash of the machine.
fn write_whole(path: &Path, meanwhile: &Path) -> io::Result<()> {
    remove_if_there(meanwhile)?;
    let mut file = File::create_new(meanwhile)?;
    file.write_all(BINARY)?;
    file.set_permissions(Permissions::from_mode(EXECUTABLE))?;
    file.sync_all()?;
    drop(file); // what is open for writing is not executed
    fs::rename(meanwhile, path)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Other versions' binaries: containers that run them have names of their own for the file.
fn forget_others(dir: &Path, kept: &str) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with("supervisor-") && name != kept) {
            // It costs a megabyte, nothing more.
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_is_unpacked_once_and_a_torn_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::begin(dir.path()).unwrap();
        assert_eq!(fs::read(&place.binary).unwrap(), BINARY);
        let first = fs::metadata(&place.binary).unwrap().modified().unwrap();
        fs::write(dir.path().join("supervisor-0000"), b"another version's").unwrap();
        let again = Place::begin(dir.path()).unwrap();
        assert_eq!(fs::metadata(&again.binary).unwrap().modified().unwrap(), first);
        assert!(!dir.path().join("supervisor-0000").exists());

        fs::remove_file(&place.binary).unwrap();
        fs::write(&place.binary, &BINARY[..1000]).unwrap();
        let mended = Place::begin(dir.path()).unwrap();
        assert_eq!(fs::read(mended.binary).unwrap(), BINARY);
    }

    #[test]
    fn the_supervisor_is_static_and_small() {
        // The goal of the design: 1.5 MB in every worker, and in no image.
        assert!(BINARY.len() <= 1_500_000, "{} bytes", BINARY.len());
        assert_eq!(&BINARY[..4], b"\x7fELF");
        // PT_INTERP, an entry of type 3 in the table of segments, would name a loader that no image need have.
        let word = |at: usize, len: usize| {
            BINARY[at..at + len].iter().rev().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte))
        };
        let (table, size, count) = (word(32, 8), word(54, 2), word(56, 2));
        assert!(count > 0 && (0..count).all(|n| word(table + n * size, 4) != 3));
    }

    #[test]
    fn a_socket_can_be_bound_under_a_path_that_none_could_have() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        let place = Place::begin(&deep).unwrap();
        let name = "longshore.w.0123456789abcdef0123456789abcdef.1";
        // And again, as after a crash.
        for _ in 0..2 {
            place.make(name).unwrap();
            drop(place.fill(name).unwrap());
        }
        drop(place.listen(name).unwrap());
        let own = place.dir(name);
        assert!(own.ends_with("c/0123456789abcdef0123456789abcdef.1"), "{own:?}");
        assert_eq!(fs::metadata(own.join("sock")).unwrap().permissions().mode() & 0o777, SOCKET);

        place.make("longshore.w.net.1").unwrap();
        let listed = place.listed().unwrap();
        place.keep(&listed, &["longshore.w.net.1".to_owned()]);
        assert!(!own.exists() && place.dir("longshore.w.net.1").exists());
        place.forget("longshore.w.net.1").unwrap();
        place.forget("longshore.w.net.1").unwrap();
        assert_eq!(place.listed().unwrap().len(), 0);
    }
}
