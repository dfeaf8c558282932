//! From the command's pipes to the disk: cut into lines, written, and only then known to anybody (P16).

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use longshore_protocol::breach::{self, Breach};
use longshore_protocol::output::{Offsets, RUN_BYTES_MAX, Run, Stream};
use longshore_protocol::process::watch;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::attempts::Spooled;
use crate::clock::now_ms;
use crate::disk::spool::{Place, Words, encode, encode_missing};
use crate::engine::{OUTPUT_PIECES_MAX, Piece};
use crate::lines::LineSplitter;
use crate::metrics::{OUTPUT_BYTES, SPOOL_BYTES};
use crate::spools::Share;
use longshore_protocol::process::blocking;

/// How many bytes of frames are written at once.
const FRAMES_BYTES: usize = 1024 * 1024;

/// What the last piece before a write may add: with what was left of the one before it, two runs at most.
const FRAMES_OF_A_PIECE_BYTES_MAX: usize = 2 * (RUN_BYTES_MAX + 64);

/// One attempt's output on its way to the disk.
pub(crate) struct Spool {
    path: PathBuf,
    /// Made with the first line: a file that is made and removed again was half of what a step cost that writes none.
    file: Option<Arc<File>>,
    spooled: watch::Sender<Spooled>,
    splitters: [(Stream, LineSplitter); 2],
    /// INVARIANT: of what is in the file whole. Final once [`finish`](Self::finish) has returned.
    written: Place,
    /// What it will be when the frames on their way are there.
    ahead: Place,
    frames: Vec<u8>,
    /// A write failed, perhaps half-way: nothing may stand behind it.
    broken: bool,
    /// Something was written since the last sync.
    unsynced: bool,
    bounds: Bounds,
    /// Its part of the room for all spools.
    share: Arc<Share>,
    /// Bytes of the command's output.
    taken: u64,
}

/// P15: how much output there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Bytes of the spool that are not given back to the disk.
    pub(crate) held: u64,
    /// Bytes of the command's output, in all.
    pub(crate) taken: u64,
}

impl Spool {
    /// An empty spool; what was there before is dropped.
    pub(crate) async fn create(
        path: &Path,
        spooled: watch::Sender<Spooled>,
        share: Arc<Share>,
        bounds: Bounds,
    ) -> io::Result<Self> {
        let before = path.to_owned();
        blocking(move || if before.try_exists()? { std::fs::remove_file(before) } else { Ok(()) }).await?;
        Ok(Self::of(path, None, Place::default(), spooled, share, bounds))
    }

    /// P10: goes on behind what an earlier incarnation wrote.
    pub(crate) async fn resume(
        path: &Path,
        found: Place,
        spooled: watch::Sender<Spooled>,
        share: Arc<Share>,
        bounds: Bounds,
    ) -> io::Result<Self> {
        let there = (found.position > 0).then(|| path.to_owned());
        let open = |path| File::options().append(true).open(path);
        let file = blocking(move || there.map(open).transpose()).await?;
        Ok(Self::of(path, file, found, spooled, share, bounds))
    }

    fn of(
        path: &Path,
        file: Option<File>,
        found: Place,
        spooled: watch::Sender<Spooled>,
        share: Arc<Share>,
        bounds: Bounds,
    ) -> Self {
        let splitter = |stream| (stream, LineSplitter::from(stream, found.offsets.of(stream)));
        // Once something was left out, nothing more is taken: a log has one hole at most, at its end.
        let taken = if found.missing.total() > 0 { bounds.taken } else { found.read().total() };
        Self {
            path: path.to_owned(),
            file: file.map(Arc::new),
            spooled,
            splitters: [Stream::Stdout, Stream::Stderr].map(splitter),
            written: found,
            ahead: found,
            frames: Vec::new(),
            broken: false,
            unsynced: false,
            bounds,
            share,
            taken,
        }
    }

    /// Spools what the command writes until both streams have ended, or until `enough`: then what is already here is
    /// still taken. `read` is told how much of the command's output is here for good (P16): whole lines. If the command
    /// `waits` while the spool is full, then until that is cancelled, because the command has ended: what is on its way
    /// is bounded then. Only a supervisor's may: an Engine whose output is not taken holds up others
    /// (`docs/containers.md`).
    pub(crate) async fn drain(
        &mut self,
        mut output: mpsc::Receiver<Piece>,
        read: &watch::Sender<Offsets>,
        waits: Option<&CancellationToken>,
        enough: CancellationToken,
    ) -> io::Result<()> {
        let mut pieces = Vec::with_capacity(OUTPUT_PIECES_MAX);
        self.spooled.send_modify(|spooled| spooled.waits = waits.is_some());
        loop {
            tokio::select! {
                biased;
                // Everything that waits goes to the disk in one write.
                count = output.recv_many(&mut pieces, OUTPUT_PIECES_MAX) => {
                    if count == 0 {
                        return Ok(());
                    }
                    self.take(&mut pieces, read, waits).await?;
                }
                () = enough.cancelled(), if !output.is_closed() => {
                    // Its Engine is lost: no more comes, and the sender may never say so.
                    output.close();
                }
            }
        }
    }

    async fn take(
        &mut self,
        pieces: &mut Vec<Piece>,
        read: &watch::Sender<Offsets>,
        waits: Option<&CancellationToken>,
    ) -> io::Result<()> {
        let mut runs = Vec::new();
        for Piece { stream, at_ms, bytes } in pieces.drain(..) {
            metrics::counter!(OUTPUT_BYTES, "stream" => stream.word()).increment(bytes.len() as u64);
            if self.taken < self.bounds.taken && !self.has_room() {
                self.write().await?;
                read.send_replace(self.written.read());
                if !self.is_room(waits).await {
                    self.taken = self.taken.max(self.bounds.taken);
                }
            }
            let room = self.bounds.taken.saturating_sub(self.taken);
            let (fits, beyond) = bytes.split_at(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            self.taken += fits.len() as u64;
            self.splitter(stream).push(at_ms, fits, &mut runs);
            if !beyond.is_empty() {
                // What is left out comes behind everything that was read before it.
                self.splitter(stream).finish(at_ms, &mut runs);
            }
            self.frame(&mut runs, Words::Commands);
            if !beyond.is_empty() {
                *self.ahead.missing.of_mut(stream) += beyond.len() as u64;
            }
            if breach::is(Breach::AckedBeforeSpooled) {
                read.send_replace(self.ahead.read());
                tokio::time::sleep(std::time::Duration::from_millis(5)).await; // until that is heard
            }
            if self.frames.len() >= FRAMES_BYTES {
                self.write().await?;
                read.send_replace(self.written.read());
            }
        }
        self.write().await?;
        read.send_replace(self.written.read());
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.ahead_held() >= self.bounds.held
    }

    /// What it holds once the frames on their way are there.
    fn ahead_held(&self) -> u64 {
        self.spooled.borrow().held() + self.frames.len() as u64
    }

    /// Whether a piece more may come, by its own bound and by that of all spools.
    fn has_room(&self) -> bool {
        !self.is_full() && self.share.try_cover(self.ahead_held() + FRAMES_OF_A_PIECE_BYTES_MAX as u64)
    }

    /// Whether there is room in a spool that was full. Waits for some as long as it may.
    async fn is_room(&self, waits: Option<&CancellationToken>) -> bool {
        let Some(enough) = waits else { return self.has_room() };
        // P15: `why` says so.
        self.spooled.send_modify(|spooled| spooled.full = true);
        let room = self.until_room(enough).await;
        self.spooled.send_modify(|spooled| spooled.full = false);
        room
    }

    async fn until_room(&self, enough: &CancellationToken) -> bool {
        let mut spooled = self.spooled.subscribe();
        // What it wants does not change while it waits, so it keeps its place in the line.
        let mut covered = std::pin::pin!(self.share.cover(self.ahead_held() + FRAMES_OF_A_PIECE_BYTES_MAX as u64));
        // What it gives back itself may be enough, whoever stands in line before it.
        while !enough.is_cancelled() && !self.has_room() {
            if spooled.borrow_and_update().kept {
                return false;
            }
            let is_full = self.is_full();
            tokio::select! {
                biased;
                changed = spooled.changed() => if changed.is_err() { break },
                () = &mut covered, if !is_full => break,
                () = enough.cancelled() => {}
            }
        }
        true
    }

    /// Puts a line of our own into the log, on standard error: why it ended as it did.
    pub(crate) async fn note(&mut self, text: &str) -> io::Result<()> {
        let at_ms = now_ms();
        let mut runs = Vec::new();
        let splitter = self.splitter(Stream::Stderr);
        // Not onto the end of a line that the command left open.
        splitter.finish(at_ms, &mut runs);
        self.frame(&mut runs, Words::Commands);
        self.splitter(Stream::Stderr).push(at_ms, format!("longshore: {text}\n").as_bytes(), &mut runs);
        self.frame(&mut runs, Words::Ours);
        self.write().await
    }

    /// The command will write no more: what it left without a newline is written as well.
    pub(crate) async fn close(&mut self) -> io::Result<()> {
        let at_ms = now_ms();
        let mut runs = Vec::new();
        for (_, splitter) in &mut self.splitters {
            splitter.finish(at_ms, &mut runs);
        }
        self.frame(&mut runs, Words::Commands);
        self.write().await
    }

    /// Ends both streams and makes sure that all of it is on the disk. Answers the final offsets (P14).
    pub(crate) async fn finish(&mut self) -> io::Result<Offsets> {
        self.close().await?;
        if self.written.missing.total() > 0 {
            // P15: a marker in place, never a changed verdict. The streams go on behind it.
            let Offsets { stdout, stderr } = self.written.missing;
            self.note(&format!("the output was too long: {stdout} bytes of stdout and {stderr} of stderr are missing"))
                .await?;
        }
        // A worker that crashes leaves what it wrote; a host that loses its power only what was synced. Once is
        // enough: until it is finished, an attempt does not survive its host anyway.
        if self.unsynced
            && let Some(file) = self.file.clone()
        {
            blocking(move || file.sync_data()).await?;
            self.unsynced = false;
        }
        Ok(self.written.offsets)
    }

    /// What is on the disk of each stream.
    pub(crate) fn written(&self) -> Offsets {
        self.written.offsets
    }

    fn frame(&mut self, runs: &mut Vec<Run>, words: Words) {
        for run in runs.drain(..) {
            encode(&run, words, &mut self.frames);
            self.ahead.pass(&run, words);
        }
    }

    async fn write(&mut self) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("an earlier write of the output failed"));
        }
        // Once for all that was left out meanwhile: it stands behind what was read before it.
        for stream in [Stream::Stdout, Stream::Stderr] {
            let missing = self.ahead.missing.of(stream);
            if missing != self.written.missing.of(stream) {
                encode_missing(stream, missing, &mut self.frames);
            }
        }
        if self.frames.is_empty() {
            return Ok(());
        }
        debug_assert!(self.frames.len() <= FRAMES_BYTES + FRAMES_OF_A_PIECE_BYTES_MAX);
        // Also if this is dropped half-way.
        (self.broken, self.unsynced) = (true, true);
        // Not kept for the next ones: a hundred quiet steps hold nothing.
        let (file, path, frames) = (self.file.clone(), self.path.clone(), std::mem::take(&mut self.frames));
        let bytes = frames.len() as u64;
        let written = move || {
            let file = file.map_or_else(|| File::create(path).map(Arc::new), Ok)?;
            (&*file).write_all(&frames)?;
            Ok::<_, io::Error>(file)
        };
        self.file = Some(blocking(written).await?);
        self.broken = false;
        self.ahead.position += bytes;
        self.written = self.ahead;
        metrics::gauge!(SPOOL_BYTES).increment(bytes as f64);
        // P16: nobody reads further than this.
        self.spooled.send_modify(|spooled| spooled.bytes += bytes);
        Ok(())
    }

    fn splitter(&mut self, stream: Stream) -> &mut LineSplitter {
        match stream {
            Stream::Stdout => &mut self.splitters[0].1,
            Stream::Stderr => &mut self.splitters[1].1,
        }
    }
}

#[cfg(test)]
mod tests;
