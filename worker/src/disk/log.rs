//! One file to which records are appended (P9, P16, P19): frames with a check, several in one write, and one fsync for
//! all that wait for it at the same time.
//!
//! A file per record costs a write, an fsync, a rename and the directory's fsync (0.64 ms on the reference machine),
//! one after the other for each; this costs 0.22 ms, shared by however many attempts are at the same point.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::records::{Entry, Records};
use super::{UNFINISHED, check};
use crate::error::WorkerError;

/// Below the state directory.
pub(super) const NAME: &str = "records.log";

/// `length u32, check u32`, little-endian, then the entry.
const HEADER_BYTES: usize = 8;

/// Larger than any job, which the broker would not carry: a length beyond it is no length.
const ENTRY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The file is written anew when it is so much larger than what is in it, and not before it has this size: then a
/// rewriting of some ms happens once in thousands of attempts.
const REWRITE_FACTOR: u64 = 4;
const REWRITE_BYTES_MIN: u64 = 1024 * 1024;

/// How much a record must survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durable {
    /// The worker: the kernel has it when it is answered. Enough for whatever is over when its host goes down, because
    /// no container outlives that.
    Process,
    /// The host: on the disk when it is answered.
    Host,
}

/// The worker's records, on disk and as they are.
#[derive(Clone, Debug)]
pub(crate) struct RecordLog {
    queue: Arc<Mutex<Queue>>,
    file: Arc<tokio::sync::Mutex<LogFile>>,
}

/// What was told and is not in the file yet. Bounded by who waits for an answer.
#[derive(Debug, Default)]
struct Queue {
    /// INVARIANT: all that was queued is in here, in order.
    records: Records,
    frames: Vec<u8>,
    to_disk: bool,
    waiting: Vec<oneshot::Sender<io::Result<()>>>,
}

#[derive(Debug)]
struct LogFile {
    dir: PathBuf,
    file: File,
    bytes: u64,
    /// When to write it anew.
    bytes_max: u64,
    /// A write failed, perhaps half-way: nothing may stand behind it, so the next one is of everything.
    broken: bool,
}

impl RecordLog {
    /// Reads what is there, and begins a file with just that. What a crash tore is cut off.
    pub(super) fn open(dir: &Path) -> Result<Self, WorkerError> {
        let path = dir.join(NAME);
        let failed = |source| WorkerError::State { path: path.clone(), source };
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read.map_err(failed)?,
        };
        let mut records = Records::default();
        let mut rest = &bytes[..];
        while let Some((payload, behind)) = next_frame(rest) {
            // No crash of ours leaves a whole frame of something else: another version wrote here, or the disk fails.
            let bad = |error: longshore_protocol::wire::Unreadable| WorkerError::BadState {
                path: path.clone(),
                reason: error.to_string(),
            };
            records.apply(longshore_protocol::wire::decode(payload).map_err(bad)?);
            rest = behind;
        }
        if !rest.is_empty() {
            tracing::warn!(bytes = rest.len(), "the end of the records was torn by a crash and is cut off");
        }
        let whole = frames(&records);
        let file = replace(dir, &whole).map_err(failed)?;
        let bytes = whole.len() as u64;
        let file = LogFile { dir: dir.to_owned(), file, bytes, bytes_max: bytes_max(bytes), broken: false };
        let queue = Queue { records, ..Queue::default() };
        Ok(Self { queue: Arc::new(Mutex::new(queue)), file: Arc::new(tokio::sync::Mutex::new(file)) })
    }

    /// What is in it.
    pub(crate) fn records(&self) -> Records {
        self.queue().records.clone()
    }

    /// Adds an entry; it is in the file when this returns `Ok`. After an error it may be there all the same. Dropped
    /// while it waits, it leaves the entry to whoever comes next.
    pub(crate) async fn add(&self, entry: Entry, durable: Durable) -> io::Result<()> {
        let (answer, mut answered) = oneshot::channel();
        {
            let mut queue = self.queue();
            frame(&entry, &mut queue.frames);
            queue.to_disk |= durable == Durable::Host;
            queue.records.apply(entry);
            queue.waiting.push(answer);
        }
        let mut file = Arc::clone(&self.file).lock_owned().await;
        // Whoever had the file may have taken this entry along.
        if let Ok(answer) = answered.try_recv() {
            return answer;
        }
        let queue = Arc::clone(&self.queue);
        longshore_protocol::process::blocking(move || file.write(&queue)).await;
        answered.await.unwrap_or_else(|_| Err(io::Error::other("the records are closed")))
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LogFile {
    /// Writes what is queued, and answers all who wait for it.
    fn write(&mut self, queue: &Mutex<Queue>) {
        let (bytes, to_disk, waiting, whole) = {
            let mut queue = lock(queue);
            let appended = std::mem::take(&mut queue.frames);
            let whole = self.broken || self.bytes + appended.len() as u64 > self.bytes_max;
            // Everything includes what was queued: taken under the same lock.
            let bytes = if whole { frames(&queue.records) } else { appended };
            (bytes, std::mem::take(&mut queue.to_disk), std::mem::take(&mut queue.waiting), whole)
        };
        let written = if whole { self.replace(&bytes) } else { self.append(&bytes, to_disk) };
        self.broken = written.is_err();
        for waiting in waiting {
            let answer =
                written.as_ref().map(|&()| ()).map_err(|error| io::Error::new(error.kind(), error.to_string()));
            // Whoever does not wait any more wanted it written all the same.
            let _ = waiting.send(answer);
        }
    }

    fn append(&mut self, frames: &[u8], to_disk: bool) -> io::Result<()> {
        self.file.write_all(frames)?;
        self.bytes += frames.len() as u64;
        if to_disk { self.file.sync_data() } else { Ok(()) }
    }

    fn replace(&mut self, whole: &[u8]) -> io::Result<()> {
        self.file = replace(&self.dir, whole)?;
        self.bytes = whole.len() as u64;
        self.bytes_max = bytes_max(self.bytes);
        Ok(())
    }
}

fn bytes_max(whole: u64) -> u64 {
    (whole * REWRITE_FACTOR).max(REWRITE_BYTES_MIN)
}

/// A new file in the place of the old one: after a crash there is one of them, whole.
fn replace(dir: &Path, whole: &[u8]) -> io::Result<File> {
    let unfinished = dir.join(format!("{NAME}{UNFINISHED}"));
    let mut file = File::create(&unfinished)?;
    file.write_all(whole)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, dir.join(NAME))?;
    // The rename itself is on disk only with its directory.
    File::open(dir)?.sync_all()?;
    Ok(file)
}

fn frames(records: &Records) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in records.entries() {
        frame(&entry, &mut bytes);
    }
    bytes
}

fn frame(entry: &Entry, out: &mut Vec<u8>) {
    let payload = longshore_protocol::wire::encode(entry);
    let length = u32::try_from(payload.len()).expect("INVARIANT: a job came in a message, which is smaller");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&check(&payload));
    out.extend_from_slice(&payload);
}

/// The next frame's payload, and what is behind it; `None` where no whole one stands.
fn next_frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    let [a, b, c, d, expected @ ..] = *header;
    let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).ok().filter(|length| *length <= ENTRY_BYTES_MAX)?;
    let (payload, rest) = rest.split_at_checked(length)?;
    (check(payload) == expected).then_some((payload, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::records::tests::{claimed, finished};

    fn filled(dir: &Path) -> Vec<u8> {
        std::fs::read(dir.join(NAME)).unwrap()
    }

    #[tokio::test]
    async fn p9_what_was_added_is_there_after_a_crash_at_any_byte() {
        let dir = tempfile::tempdir().unwrap();
        let log = RecordLog::open(dir.path()).unwrap();
        let mut states = vec![(0, log.records())];
        for entry in [claimed("a"), claimed("b"), finished("a"), Entry::Forgotten { claim: finished("a").claim() }] {
            log.add(entry, Durable::Host).await.unwrap();
            states.push((filled(dir.path()).len(), log.records()));
        }
        drop(log);
        let bytes = filled(dir.path());
        for length in 0..=bytes.len() {
            std::fs::write(dir.path().join(NAME), &bytes[..length]).unwrap();
            let found = RecordLog::open(dir.path()).unwrap().records();
            let (_, expected) = states.iter().rev().find(|(whole, _)| *whole <= length).unwrap();
            assert_eq!(found, *expected, "cut at {length}");
        }
    }

    #[tokio::test]
    async fn p9_a_changed_byte_ends_the_log_before_its_entry() {
        let dir = tempfile::tempdir().unwrap();
        let log = RecordLog::open(dir.path()).unwrap();
        log.add(claimed("a"), Durable::Process).await.unwrap();
        let (first, expected) = (filled(dir.path()).len(), log.records());
        log.add(claimed("b"), Durable::Process).await.unwrap();
        let bytes = filled(dir.path());
        for at in first..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x40;
            std::fs::write(dir.path().join(NAME), &changed).unwrap();
            assert_eq!(RecordLog::open(dir.path()).unwrap().records(), expected, "byte {at}");
        }
    }

    #[tokio::test]
    async fn a_long_log_is_written_anew_and_holds_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let log = RecordLog::open(dir.path()).unwrap();
        log.add(claimed("kept"), Durable::Process).await.unwrap();
        let mut largest = 0;
        for n in 0..4_000 {
            let name = n.to_string();
            log.add(claimed(&name), Durable::Process).await.unwrap();
            log.add(Entry::Forgotten { claim: claimed(&name).claim() }, Durable::Process).await.unwrap();
            largest = largest.max(filled(dir.path()).len() as u64);
        }
        assert!((REWRITE_BYTES_MIN / 2..=REWRITE_BYTES_MIN).contains(&largest), "{largest}");
        assert_eq!(RecordLog::open(dir.path()).unwrap().records(), log.records());
        assert_eq!(log.records().open().count(), 1);
    }

    #[tokio::test]
    async fn many_at_once_share_their_writes_and_all_are_answered() {
        let dir = tempfile::tempdir().unwrap();
        let log = RecordLog::open(dir.path()).unwrap();
        let names: Vec<String> = (0..200).map(|n| n.to_string()).collect();
        let adding = names.iter().map(|name| log.add(claimed(name), Durable::Host));
        assert!(futures_util::future::join_all(adding).await.iter().all(Result::is_ok));
        assert_eq!(RecordLog::open(dir.path()).unwrap().records().open().count(), 200);
    }

    #[tokio::test]
    async fn after_a_failed_write_nothing_stands_behind_the_hole() {
        let dir = tempfile::tempdir().unwrap();
        let log = RecordLog::open(dir.path()).unwrap();
        log.add(claimed("a"), Durable::Host).await.unwrap();
        // A disk that takes no more, and then takes some again.
        log.file.lock().await.file = File::options().write(true).open("/dev/full").unwrap();
        log.add(claimed("b"), Durable::Host).await.unwrap_err();
        log.add(Entry::Forgotten { claim: claimed("b").claim() }, Durable::Host).await.unwrap();
        log.add(claimed("c"), Durable::Host).await.unwrap();
        let found = RecordLog::open(dir.path()).unwrap().records();
        assert_eq!(found, log.records());
        assert_eq!(found.open().count(), 2);
    }
}
