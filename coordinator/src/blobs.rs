//! Packed source directories: files named by the blake3 hash of their bytes, `ab/abcdef…`.
//!
//! A worker beside the coordinator reads the directory itself; others fetch over HTTP.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use longshore_protocol::BlobHash;
use longshore_protocol::process::blocking;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

/// An upload that was cut off leaves a file. Nothing is uploaded for longer than this, so what is
/// older belongs to nobody; processes share the directory, so what is younger may be another's.
const ABANDONED: Duration = Duration::from_hours(24);

/// The directory of uploads under way, inside the blob directory: a rename must not cross file systems.
const INCOMING: &str = "incoming";

/// Why a blob was not taken or not found.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The bytes are not what their name says.
    #[error("the bytes received hash to {found}, not to {wanted}")]
    Mismatch {
        /// The name.
        wanted: BlobHash,
        /// What came.
        found: BlobHash,
    },
    /// More than is allowed.
    #[error("the blob is larger than {bytes_max} bytes")]
    TooLarge {
        /// The bound.
        bytes_max: u64,
    },
    /// The sender went away.
    #[error("the upload was cut off: {0}")]
    CutOff(String),
    /// The disk's own word.
    #[error("the blob directory failed: {0}")]
    Io(#[from] io::Error),
}

/// Makes the directory of uploads under way, and removes those that were abandoned.
fn sweep(incoming: &Path) -> io::Result<()> {
    std::fs::create_dir_all(incoming)?;
    for entry in std::fs::read_dir(incoming)? {
        let entry = entry?;
        // Another process may remove it at the same time: then it is gone, which is what is wanted.
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        if age.is_some_and(|age| age > ABANDONED) {
            drop(std::fs::remove_file(entry.path()));
        }
    }
    Ok(())
}

/// The blobs of one directory.
#[derive(Clone, Debug)]
pub struct Blobs {
    dir: PathBuf,
    bytes_max: u64,
}

impl Blobs {
    /// Makes the directory and removes abandoned uploads. A blob has at most `bytes_max` bytes.
    pub async fn open(dir: &Path, bytes_max: u64) -> Result<Self, BlobError> {
        let incoming = dir.join(INCOMING);
        blocking(move || sweep(&incoming)).await?;
        Ok(Self { dir: dir.to_owned(), bytes_max })
    }

    /// The blobs of a directory that nothing is put into.
    pub fn open_to_read(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), bytes_max: 0 }
    }

    /// Where a blob is, or would be.
    pub fn path(&self, hash: &BlobHash) -> PathBuf {
        self.dir.join(&hash.as_str()[..2]).join(hash.as_str())
    }

    /// Its size in bytes; `None` if it is not here.
    pub async fn size(&self, hash: &BlobHash) -> Result<Option<u64>, BlobError> {
        match tokio::fs::metadata(self.path(hash)).await {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens one to read, with its size; `None` if it is not here.
    pub async fn read(&self, hash: &BlobHash) -> Result<Option<(File, u64)>, BlobError> {
        match File::open(self.path(hash)).await {
            Ok(file) => {
                let bytes = file.metadata().await?.len();
                Ok(Some((file, bytes)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes one in constant memory. It stands under its name only whole, on disk and with the right
    /// hash; `false` if it was there before.
    pub async fn put<E: std::fmt::Display>(
        &self,
        hash: &BlobHash,
        mut bytes: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<bool, BlobError> {
        if self.size(hash).await?.is_some() {
            return Ok(false);
        }
        let (incoming, mut file) = Incoming::create(&self.dir).await?;
        let mut hasher = blake3::Hasher::new();
        let mut size = 0;
        while let Some(chunk) = bytes.next().await {
            let chunk = chunk.map_err(|error| BlobError::CutOff(error.to_string()))?;
            size += chunk.len() as u64;
            if size > self.bytes_max {
                return Err(BlobError::TooLarge { bytes_max: self.bytes_max });
            }
            hasher.update(&chunk);
            file.write_all(&chunk).await?;
        }
        let found = BlobHash::finish(&hasher);
        if found != *hash {
            return Err(BlobError::Mismatch { wanted: hash.clone(), found });
        }
        incoming.place(file, &self.path(hash)).await?;
        Ok(true)
    }
}

/// A file under way, in the directory for these: nobody sees half of it under its name. Removed when
/// it is dropped without having been [placed](Self::place), also with the request it came by.
pub(crate) struct Incoming(PathBuf);

impl Incoming {
    /// A new one, to be written.
    pub(crate) async fn create(blob_dir: &Path) -> io::Result<(Self, File)> {
        let dir = blob_dir.join(INCOMING);
        tokio::fs::create_dir_all(&dir).await?;
        let incoming = Self(dir.join(uuid::Uuid::new_v4().to_string()));
        let file = File::create_new(&incoming.0).await?;
        Ok((incoming, file))
    }

    /// Gives it its name. When this returns it is on disk, with its name and the directory that holds it.
    pub(crate) async fn place(self, mut file: File, place: &Path) -> io::Result<()> {
        file.flush().await?;
        file.sync_all().await?;
        let parent = place.parent().unwrap_or(place);
        tokio::fs::create_dir_all(parent).await?;
        tokio::fs::rename(&self.0, place).await?;
        File::open(parent).await?.sync_all().await?;
        // It may have been made just now.
        File::open(parent.parent().unwrap_or(parent)).await?.sync_all().await
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // One that was placed is not here any more; what stays behind is removed by a later start.
        drop(std::fs::remove_file(&self.0));
    }
}
