//! Rewrites a tar on its way into a container: beneath a target, owned by one user, nothing outside.
//!
//! Constant memory whatever the tar holds, but for the names of its symbolic links. Blocking: run it on a
//! thread of its own. Both Engines use it, so that both refuse the same.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use tar::{Archive, Builder, Entry, EntryType, Header};

/// Whose the files become, in numbers of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: u64,
    pub(super) gid: u64,
}

/// Where the entries go.
#[derive(Clone, Debug)]
pub(super) struct Placement {
    /// The target without its leading `/`; empty for the root itself.
    pub(super) target: PathBuf,
    /// Directories that are to be made first, the outermost first; neither of them has a leading `/`. Others are
    /// there already, and an entry of theirs would change their mode and owner.
    pub(super) missing: Vec<PathBuf>,
    pub(super) owner: Owner,
}

/// Why a tar was not injected.
#[derive(Debug, thiserror::Error)]
pub(super) enum InjectError {
    /// The bytes could not be read, or are no tar.
    #[error("{0}")]
    Input(io::Error),
    /// Nobody takes the output any more: the other side says why.
    #[error("{0}")]
    Output(io::Error),
    /// An entry that has no business in a directory of sources.
    #[error("the entry {entry:?} {why}")]
    Refused { entry: String, why: &'static str },
}

/// The components of a target: absolute, and without `..`.
pub(super) fn target_path(target: &str) -> Result<PathBuf, String> {
    if !target.starts_with('/') {
        return Err(format!("{target:?} is not absolute"));
    }
    relative(Path::new(target.trim_start_matches('/'))).ok_or_else(|| format!("{target:?} contains '..'"))
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

/// Copies a tar from `input` to `output`, rewritten. Reads `input` to its very end, so that a reader that
/// checks a hash there is heard.
pub(super) fn rewrite(input: impl Read, output: impl Write, placement: &Placement) -> Result<(), InjectError> {
    let mut archive = Archive::new(Source { inner: input, saw_end: false });
    let mut builder = Builder::new(output);
    for directory in &placement.missing {
        let mut header = header(EntryType::Directory, 0o755, 0, 0, placement.owner);
        builder.append_data(&mut header, directory, io::empty()).map_err(InjectError::Output)?;
    }
    let mut links = HashSet::new();
    for entry in archive.entries().map_err(InjectError::Input)? {
        append(entry.map_err(InjectError::Input)?, &mut builder, &mut links, placement)?;
    }
    let mut rest = archive.into_inner();
    if rest.saw_end {
        // A tar ends in blocks of zeros. Without them it was cut between two entries, and nobody could tell.
        let cut = io::Error::new(io::ErrorKind::UnexpectedEof, "the tar ends without its end mark");
        return Err(InjectError::Input(cut));
    }
    io::copy(&mut rest, &mut io::sink()).map_err(InjectError::Input)?;
    builder.into_inner().and_then(|mut output| output.flush()).map_err(InjectError::Output)
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

fn append<R: Read, W: Write>(
    mut entry: Entry<'_, R>,
    builder: &mut Builder<W>,
    links: &mut HashSet<PathBuf>,
    placement: &Placement,
) -> Result<(), InjectError> {
    let shown = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
    let refuse = |why| InjectError::Refused { entry: shown.clone(), why };
    let written = entry.path().map_err(InjectError::Input)?.into_owned();
    let path = relative(&written).ok_or_else(|| refuse("leads out of the target"))?;
    // What lies "below" a link that this tar made lies wherever the link points.
    if path.ancestors().skip(1).any(|parent| links.contains(parent)) {
        return Err(refuse("lies below a symbolic link of the same tar"));
    }
    let kind = entry.header().entry_type();
    if path.as_os_str().is_empty() {
        // The root itself: made above if it was missing, and left as it is if not.
        return if kind.is_dir() { Ok(()) } else { Err(refuse("has no name")) };
    }
    let mode = entry.header().mode().map_err(InjectError::Input)? & 0o7777;
    let mtime = entry.header().mtime().unwrap_or(0);
    let placed = placement.target.join(&path);
    let size = entry.size();
    let attributes = extended_attributes(&mut entry)?;
    let new = |kind, size| header(kind, mode, mtime, size, placement.owner);

    // A link that is replaced by something else is none any more.
    links.remove(&path);
    let append_attributes = |builder: &mut Builder<W>| {
        let pairs = attributes.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        if attributes.is_empty() { Ok(()) } else { builder.append_pax_extensions(pairs) }
    };
    match kind {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            append_attributes(builder).map_err(InjectError::Output)?;
            // The builder cannot tell whose fault a failed copy is; the reader can.
            let mut data = Noting { inner: &mut entry, error: None };
            let appended = builder.append_data(&mut new(EntryType::Regular, size), &placed, &mut data);
            match (appended, data.error) {
                (Ok(()), _) => Ok(()),
                (Err(_), Some(error)) => Err(InjectError::Input(error)),
                (Err(error), None) => Err(InjectError::Output(error)),
            }
        }
        EntryType::Directory => {
            append_attributes(builder).map_err(InjectError::Output)?;
            let appended = builder.append_data(&mut new(EntryType::Directory, 0), &placed, io::empty());
            appended.map_err(InjectError::Output)
        }
        EntryType::Symlink => {
            let target = link_name(&entry).ok_or_else(|| refuse("is a link to nothing"))?;
            links.insert(path);
            // As it was written: wherever it points, it is followed in the container only.
            builder.append_link(&mut new(EntryType::Symlink, 0), &placed, &target).map_err(InjectError::Output)
        }
        EntryType::Link => {
            let target = link_name(&entry).ok_or_else(|| refuse("is a link to nothing"))?;
            let target = relative(&target).ok_or_else(|| refuse("is a hard link out of the target"))?;
            if target.ancestors().skip(1).any(|parent| links.contains(parent)) {
                return Err(refuse("is a hard link to what lies below a symbolic link"));
            }
            let target = placement.target.join(target);
            builder.append_link(&mut new(EntryType::Link, 0), &placed, &target).map_err(InjectError::Output)
        }
        // Says something about entries that follow; what counts of it was read with them.
        EntryType::XGlobalHeader => Ok(()),
        EntryType::Fifo => {
            let appended = builder.append_data(&mut new(EntryType::Fifo, 0), &placed, io::empty());
            appended.map_err(InjectError::Output)
        }
        EntryType::Block | EntryType::Char => Err(refuse("is a device")),
        _ => Err(refuse("is of an unknown kind")),
    }
}

fn link_name<R: Read>(entry: &Entry<'_, R>) -> Option<PathBuf> {
    let name = entry.link_name_bytes();
    name.map(|bytes| Path::new(std::ffi::OsStr::from_bytes(&bytes)).to_owned())
}

/// `security.capability` and its like, which tar keeps in PAX records.
fn extended_attributes<R: Read>(entry: &mut Entry<'_, R>) -> Result<Vec<(String, Vec<u8>)>, InjectError> {
    let Some(extensions) = entry.pax_extensions().map_err(InjectError::Input)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for extension in extensions {
        let extension = extension.map_err(InjectError::Input)?;
        if let Ok(key) = extension.key()
            && key.starts_with("SCHILY.xattr.")
        {
            found.push((key.to_owned(), extension.value_bytes().to_vec()));
        }
    }
    Ok(found)
}

fn header(kind: EntryType, mode: u32, mtime: u64, size: u64, owner: Owner) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(mtime);
    header.set_size(size);
    header.set_uid(owner.uid);
    header.set_gid(owner.gid);
    header
}

/// Keeps the first error of a reader.
struct Noting<R> {
    inner: R,
    error: Option<io::Error>,
}

impl<R: Read> Read for Noting<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.inner.read(into).inspect_err(|error| self.error = Some(io::Error::new(error.kind(), error.to_string())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placement(target: &str) -> Placement {
        Placement { target: target_path(target).unwrap(), missing: vec!["w".into()], owner: Owner { uid: 7, gid: 8 } }
    }

    /// A tar of raw entries: names as they are, even those that a builder would refuse.
    fn tar_of(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (name, kind, data) in entries {
            let mut header = header(*kind, 0o640, 5, 0, Owner { uid: 0, gid: 0 });
            let content = if matches!(kind, EntryType::Regular) { data.as_bytes() } else { b"" };
            header.set_size(content.len() as u64);
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            if !matches!(kind, EntryType::Regular) {
                header.as_mut_bytes()[157..157 + data.len()].copy_from_slice(data.as_bytes());
            }
            header.set_cksum();
            builder.append(&header, content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn rewritten(tar: &[u8]) -> Result<Vec<(String, String)>, InjectError> {
        let mut out = Vec::new();
        rewrite(tar, &mut out, &placement("/w/src"))?;
        let mut archive = Archive::new(out.as_slice());
        let entries = archive.entries().unwrap().map(Result::unwrap).map(|entry| {
            assert_eq!((entry.header().uid().unwrap(), entry.header().gid().unwrap()), (7, 8));
            let link = entry.link_name().unwrap().map(|link| link.display().to_string()).unwrap_or_default();
            (entry.path().unwrap().display().to_string(), link)
        });
        Ok(entries.collect())
    }

    fn names(tar: &[u8]) -> Vec<String> {
        rewritten(tar).unwrap().into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn entries_go_beneath_the_target() {
        let tar = tar_of(&[
            ("./", EntryType::Directory, ""),
            ("./a", EntryType::Regular, "x"),
            ("d//./b", EntryType::Regular, ""),
            ("l", EntryType::Symlink, "../../etc"),
            ("h", EntryType::Link, "./a"),
        ]);
        let entries = rewritten(&tar).unwrap();
        let pair = |name: &str, link: &str| (name.to_owned(), link.to_owned());
        let expected = [pair("w", ""), pair("w/src/a", ""), pair("w/src/d/b", "")];
        assert_eq!(entries[..3], expected.map(|(name, link)| (name, link)));
        assert_eq!(entries[3..], [pair("w/src/l", "../../etc"), pair("w/src/h", "w/src/a")]);
    }

    #[test]
    fn what_leads_out_of_the_target_is_refused() {
        for bad in [
            &[("/etc/passwd", EntryType::Regular, "x")][..],
            &[("../x", EntryType::Regular, "x")],
            &[("a/../../x", EntryType::Regular, "x")],
            &[("h", EntryType::Link, "/etc/passwd")],
            &[("h", EntryType::Link, "../../etc/passwd")],
            &[("l", EntryType::Symlink, "/etc"), ("l/passwd", EntryType::Regular, "x")],
            &[("l", EntryType::Symlink, "/etc"), ("h", EntryType::Link, "l/passwd")],
            &[("sda", EntryType::Block, "")],
            &[("tty", EntryType::Char, "")],
        ] {
            let error = rewritten(&tar_of(bad)).unwrap_err();
            assert!(matches!(error, InjectError::Refused { .. }), "{bad:?}: {error}");
        }
    }

    #[test]
    fn long_names_long_links_and_attributes_survive() {
        let long = format!("{}/file", ["directory-with-a-name"; 12].join("/"));
        let link = format!("elsewhere/{long}");
        let mut builder = Builder::new(Vec::new());
        let owner = Owner { uid: 0, gid: 0 };
        builder.append_pax_extensions([("SCHILY.xattr.security.capability", &b"\x01\0\xff"[..])]).unwrap();
        builder.append_data(&mut header(EntryType::Regular, 0o644, 0, 3, owner), &long, &b"abc"[..]).unwrap();
        builder.append_link(&mut header(EntryType::Symlink, 0o777, 0, 0, owner), "l", &link).unwrap();
        // The same name in the other tradition, PAX.
        builder.append_pax_extensions([("path", format!("pax/{long}").as_bytes())]).unwrap();
        let mut short = header(EntryType::Regular, 0o644, 0, 0, owner);
        short.set_path("cut").unwrap();
        short.set_cksum();
        builder.append(&short, io::empty()).unwrap();
        let tar = builder.into_inner().unwrap();

        let mut out = Vec::new();
        rewrite(tar.as_slice(), &mut out, &placement("/w")).unwrap();
        let mut archive = Archive::new(out.as_slice());
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let attributes = extended_attributes(&mut entry).unwrap();
            let link = entry.link_name().unwrap().map(|link| link.display().to_string());
            seen.push((entry.path().unwrap().display().to_string(), link, attributes.len()));
        }
        assert_eq!(
            seen[1..],
            [(format!("w/{long}"), None, 1), ("w/l".to_owned(), Some(link), 0), (format!("w/pax/{long}"), None, 0)]
        );
    }

    #[test]
    fn a_tar_that_was_cut_is_told() {
        let whole = tar_of(&[("a", EntryType::Regular, &"x".repeat(2000)), ("b", EntryType::Regular, "y")]);
        assert_eq!(names(&whole), ["w", "w/src/a", "w/src/b"]);
        for cut in [100, 512, 700, 512 + 2048, 512 + 2048 + 100, 512 + 2048 + 512 + 512] {
            let error = rewritten(&whole[..cut]).unwrap_err();
            assert!(matches!(error, InjectError::Input(_)), "{cut}: {error}");
        }
        assert!(matches!(rewritten(b"").unwrap_err(), InjectError::Input(_)));
    }

    #[test]
    fn the_input_is_read_to_its_very_end() {
        /// Fails where a checking reader would: at the end, behind the last byte.
        struct Checked<'a>(&'a [u8]);
        impl Read for Checked<'_> {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                if self.0.is_empty() { Err(io::Error::other("the hash is wrong")) } else { self.0.read(into) }
            }
        }
        let tar = tar_of(&[("a", EntryType::Regular, "x")]);
        let error = rewrite(Checked(&tar), io::sink(), &placement("/w")).unwrap_err();
        assert!(error.to_string().contains("hash"), "{error}");
    }

    #[test]
    fn targets_are_absolute() {
        assert_eq!(target_path("/a//b/./c/").unwrap(), Path::new("a/b/c"));
        assert_eq!(target_path("/").unwrap(), Path::new(""));
        assert!(target_path("a").is_err() && target_path("/a/../b").is_err() && target_path("").is_err());
    }
}
