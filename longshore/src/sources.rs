//! Directories of the submitter's: packed once, named by their content, uploaded if nobody has them.
//!
//! A pack is a tar that the same files always give: entries sorted by name, owner 0:0, modes and whole seconds
//! of modification times kept (a build tool compares them). It never leaves its tree: a symbolic link is stored
//! as a link, wherever it points. What a `.longshoreignore` names (the syntax of `.gitignore`) stays out.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use ignore::WalkBuilder;
use longshore_coordinator::pipeline::Pipeline;
use longshore_protocol::BlobHash;
use tar::{Builder, EntryType, Header};

use crate::client::Client;
use crate::failure::Failure;

/// What a source directory may hold to keep files out of its pack.
const IGNORE_FILE: &str = ".longshoreignore";

/// Fewer, larger calls of the kernel; one buffer for each of the two directions.
const BUFFER_BYTES: usize = 256 * 1024;

/// A packed directory.
#[derive(Debug)]
pub(crate) struct Packed {
    /// Of the tar.
    pub(crate) hash: BlobHash,
    /// Of the tar.
    pub(crate) bytes: u64,
    /// How many files, directories and links are in it.
    pub(crate) entries: u64,
    /// What was left out although nothing asked for it: sockets, pipes and devices.
    pub(crate) skipped: Vec<PathBuf>,
    /// Without a name, so that nothing is left if we are killed. Stands at its start.
    file: File,
}

/// Why a directory could not be packed. All of them the submitter's to mend.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("the source directory {} does not exist", path.display())]
    Missing { path: PathBuf },
    #[error("the source {} is not a directory", path.display())]
    NotADirectory { path: PathBuf },
    #[error("{}: {error}", path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{} changed its size while it was packed", path.display())]
    Changed { path: PathBuf },
    #[error("the source directory cannot be walked: {0}")]
    Walk(ignore::Error),
    #[error("the pack cannot be written to {}: {error}", dir.display())]
    Spool { dir: PathBuf, error: io::Error },
}

/// A pipeline's source directories, packed: one pack per directory, however many steps name it.
#[derive(Debug)]
pub(crate) struct Sources {
    packed: BTreeMap<PathBuf, Packed>,
}

impl Sources {
    /// Packs every source directory of the pipeline, whose paths are relative to `base`, and fills in their blobs.
    /// Blocks on the disk.
    pub(crate) fn pack(pipeline: &mut Pipeline, base: &Path) -> Result<Self, SourceError> {
        let mut packed: BTreeMap<PathBuf, Packed> = BTreeMap::new();
        for source in pipeline.steps.iter_mut().flat_map(|step| &mut step.sources) {
            let path = real_path(&base.join(&source.path))?;
            if !packed.contains_key(&path) {
                packed.insert(path.clone(), pack(&path)?);
            }
            let found = &packed[&path];
            source.blob = Some((found.hash.clone(), found.bytes));
        }
        Ok(Self { packed })
    }

    /// Path and pack of each.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Path, &Packed)> {
        self.packed.iter().map(|(path, packed)| (path.as_path(), packed))
    }

    /// Uploads what the blob store does not have.
    pub(crate) async fn upload(self, client: &Client) -> Result<(), Failure> {
        for packed in self.packed.into_values() {
            if !client.has_blob(&packed.hash).await? {
                client.put_blob(&packed.hash, tokio::fs::File::from_std(packed.file), packed.bytes).await?;
            }
        }
        Ok(())
    }
}

/// Follows links on the way to the directory itself, never inside it.
fn real_path(path: &Path) -> Result<PathBuf, SourceError> {
    match path.canonicalize() {
        Ok(real) if real.is_dir() => Ok(real),
        Ok(_) => Err(SourceError::NotADirectory { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(SourceError::Missing { path: path.to_owned() }),
        Err(error) => Err(SourceError::Unreadable { path: path.to_owned(), error }),
    }
}

/// Packs one directory into a file without a name, in constant memory, and hashes it on the way.
fn pack(dir: &Path) -> Result<Packed, SourceError> {
    let spool = |error| SourceError::Spool { dir: std::env::temp_dir(), error };
    let file = tempfile::tempfile().map_err(spool)?;
    let mut tar = Builder::new(BufWriter::with_capacity(BUFFER_BYTES, Hashing::new(file)));
    let (mut entries, mut skipped) = (0, Vec::new());
    for entry in walk(dir) {
        let entry = entry.map_err(SourceError::Walk)?;
        let Ok(name) = entry.path().strip_prefix(dir) else { continue };
        if name.as_os_str().is_empty() {
            continue; // The directory itself: its target in the container has its own mode.
        }
        match append(&mut tar, entry.path(), name)? {
            Appended::Yes => entries += 1,
            Appended::Special => skipped.push(name.to_owned()),
        }
    }
    let hashing = tar
        .into_inner()
        .and_then(|buffered| buffered.into_inner().map_err(io::IntoInnerError::into_error))
        .map_err(spool)?;
    let (mut file, hash, bytes) = hashing.finish();
    file.seek(SeekFrom::Start(0)).map_err(spool)?;
    Ok(Packed { hash, bytes, entries, skipped, file })
}

/// Every file below, in the order of names, but what the ignore files name. Other tools' ignore files mean
/// other things: what git does not keep may well be what a build needs.
fn walk(dir: &Path) -> ignore::Walk {
    WalkBuilder::new(dir)
        .standard_filters(false)
        .follow_links(false)
        .add_custom_ignore_filename(IGNORE_FILE)
        .sort_by_file_name(Ord::cmp)
        .build()
}

enum Appended {
    Yes,
    Special,
}

fn append<W: Write>(tar: &mut Builder<W>, path: &Path, name: &Path) -> Result<Appended, SourceError> {
    let unreadable = |error| SourceError::Unreadable { path: path.to_owned(), error };
    let metadata = path.symlink_metadata().map_err(unreadable)?;
    let kind = metadata.file_type();
    let mut header = header(&metadata);
    if kind.is_symlink() {
        header.set_entry_type(EntryType::Symlink);
        let target = path.read_link().map_err(unreadable)?;
        tar.append_link(&mut header, name, target).map_err(unreadable)?;
    } else if kind.is_dir() {
        header.set_entry_type(EntryType::Directory);
        tar.append_data(&mut header, name, io::empty()).map_err(unreadable)?;
    } else if kind.is_file() {
        header.set_entry_type(EntryType::Regular);
        header.set_size(metadata.len());
        let file = File::open(path).map_err(unreadable)?;
        let mut content = Exactly { reader: BufReader::with_capacity(BUFFER_BYTES, file), left: metadata.len() };
        tar.append_data(&mut header, name, &mut content).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => SourceError::Changed { path: path.to_owned() },
            _ => unreadable(error),
        })?;
    } else {
        debug_assert!(kind.is_socket() || kind.is_fifo() || kind.is_block_device() || kind.is_char_device());
        return Ok(Appended::Special);
    }
    Ok(Appended::Yes)
}

fn header(metadata: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(0);
    header.set_gid(0);
    // Times before 1970 do not fit the field.
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_size(0);
    header
}

/// So many bytes and no others: the header, written before, says how many there are.
struct Exactly<R> {
    reader: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let read = self.reader.read(&mut buffer[..wanted])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// Hashes and counts what it passes on.
struct Hashing<W> {
    inner: W,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: blake3::Hasher::new(), bytes: 0 }
    }

    fn finish(self) -> (W, BlobHash, u64) {
        (self.inner, BlobHash::finish(&self.hasher), self.bytes)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(data)?;
        self.hasher.update(&data[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
#[path = "sources_tests.rs"]
mod tests;
