//! The open end of a log becomes chunks: files that do not change any more, with an index in the store.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use longshore_protocol::event::Claim;
use longshore_protocol::output::{Offsets, Run};
use longshore_protocol::process::blocking;
use longshore_protocol::{Attempt, ExecutionId, RunId};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

use crate::blobs::Incoming;
use crate::store::batch::ChunkRow;
use crate::store::packed::{Chunk, unpack};
use crate::store::{Store, StoreError};

/// About the size of a chunk before it is compressed: it is unpacked in some milliseconds, and a
/// log of 1 GiB has a thousand of them.
pub const CHUNK_BYTES: u64 = 1024 * 1024;

/// Logs sealed at once: each holds its open end in memory, and one of the store's connections while it
/// reads it. Of a fleet's logs hundreds may be due at the same moment.
const SEALS_MAX: usize = 2;

/// What is to be sealed: lines of one log that are committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealOrder {
    /// Whose.
    pub claim: Claim,
    /// The first line that is in no chunk.
    pub first_line: u64,
    /// Behind the last one that was written.
    pub end_line: u64,
    /// Offsets before the first line.
    pub before: Offsets,
}

/// What a chunk took out of the open end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Offsets behind its last line.
    pub after: Offsets,
    /// Of output, by [its weight](Run::weight).
    pub raw_bytes: u64,
}

/// What sealing or opening a chunk may meet.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// The store's word.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The disk's.
    #[error("the chunk {file} failed: {error}")]
    Io {
        /// Which one.
        file: PathBuf,
        /// In the system's words.
        error: std::io::Error,
    },
    /// It is gone or damaged: opened again, it would be so again.
    #[error("the chunk {file} is lost: {why}")]
    Lost {
        /// Which one.
        file: PathBuf,
        /// In words.
        why: String,
    },
}

/// The files of the sealed chunks: `logs/RUN/EXECUTION-ATTEMPT-LINE.zst` in the blob directory.
#[derive(Clone, Debug)]
pub struct ChunkFiles {
    blob_dir: PathBuf,
    seals: Arc<Semaphore>,
}

impl ChunkFiles {
    /// The files beside the blobs of a directory.
    pub fn in_blobs(dir: &Path) -> Self {
        Self { blob_dir: dir.to_owned(), seals: Arc::new(Semaphore::new(SEALS_MAX)) }
    }

    fn file(&self, run: RunId, execution: ExecutionId, attempt: Attempt, first_line: u64) -> PathBuf {
        self.logs().join(run.to_string()).join(format!("{}-{attempt}-{first_line}.zst", execution.to_hex()))
    }

    fn logs(&self) -> PathBuf {
        self.blob_dir.join("logs")
    }

    /// Seals as many whole chunks as there are; what is shorter stays open. They count once their
    /// rows are written; sealed again after a crash between, they are the same files.
    pub async fn seal(&self, store: &dyn Store, order: &SealOrder) -> Result<Vec<(ChunkRow, Sealed)>, ChunkError> {
        // Nobody closes it; without it a seal would only be one more at once.
        let _permit = self.seals.acquire().await.ok();
        let rows = store.open_rows(&order.claim, order.first_line, order.end_line).await?;
        let mut chunks = Vec::new();
        let (mut rows_of_chunk, mut lines, mut raw_bytes) = (Chunk::default(), 0, 0);
        let mut first_line = order.first_line;
        let (mut before, mut after) = (order.before, order.before);
        for row in rows {
            for run in unpack(&row)? {
                lines += run.count();
                raw_bytes += run.weight() as u64;
                *after.of_mut(run.stream) = run.end();
            }
            rows_of_chunk.push(&row)?;
            if raw_bytes >= CHUNK_BYTES {
                let file = self.file(order.claim.run, order.claim.execution, order.claim.attempt, first_line);
                let bytes = self.write(&file, std::mem::take(&mut rows_of_chunk).finish()?).await?;
                let chunk = ChunkRow { claim: order.claim.clone(), first_line, lines, before, bytes };
                chunks.push((chunk, Sealed { after, raw_bytes }));
                first_line += lines;
                (lines, raw_bytes) = (0, 0);
                before = after;
            }
        }
        Ok(chunks)
    }

    /// Writes a file that is on disk, its name included, when this returns its size. It
    /// has its name when it is whole: a leader that is deposed and does not know it yet may write it again.
    async fn write(&self, file: &Path, packed: Vec<u8>) -> Result<u64, ChunkError> {
        let written = async {
            let (incoming, mut open) = Incoming::create(&self.blob_dir).await?;
            open.write_all(&packed).await?;
            incoming.place(open, file).await?;
            Ok(packed.len() as u64)
        };
        written.await.map_err(|error| ChunkError::Io { file: file.to_owned(), error })
    }

    /// All that a chunk holds.
    pub async fn open(
        &self,
        run: RunId,
        execution: ExecutionId,
        attempt: Attempt,
        first_line: u64,
    ) -> Result<Vec<Run>, ChunkError> {
        let file = self.file(run, execution, attempt, first_line);
        let logs = self.logs();
        let unpack = move || {
            let packed = match std::fs::read(&file) {
                Ok(packed) => packed,
                // Where there is no log at all, a share is not mounted.
                Err(error) if error.kind() == ErrorKind::NotFound && logs.is_dir() => {
                    return Err(ChunkError::Lost { file, why: error.to_string() });
                }
                Err(error) => return Err(ChunkError::Io { file, error }),
            };
            unpack(&packed).map_err(|error| ChunkError::Lost { file, why: error.to_string() })
        };
        // Unpacking takes milliseconds of processor time: not on a thread that others wait for.
        blocking(unpack).await
    }
}
