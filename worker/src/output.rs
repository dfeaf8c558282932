//! From the command's pipes to the disk: cut into lines, written, and only then known to anybody (P16).

use std::io;
use std::path::Path;

use bytes::Bytes;
use longshore_protocol::output::{Line, Offsets, Stream};
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::attempts::Spooled;
use crate::clock::now_ms;
use crate::disk::spool::encode;
use crate::engine::OUTPUT_PIECES_MAX;
use crate::lines::LineSplitter;
use crate::metrics::{OUTPUT_BYTES, SPOOL_BYTES};

/// One attempt's output on its way to the disk.
pub(crate) struct Spool {
    file: File,
    spooled: watch::Sender<Spooled>,
    splitters: [(Stream, LineSplitter); 2],
    /// Final once [`finish`](Self::finish) has returned.
    offsets: Offsets,
    /// P15: of output, and of the spool's file, whichever is reached first.
    bytes_max: u64,
    taken: u64,
    /// P15: what came after that.
    missing: Offsets,
}

impl Spool {
    /// An empty spool; what was there before is dropped.
    pub(crate) async fn create(path: &Path, spooled: watch::Sender<Spooled>, bytes_max: u64) -> io::Result<Self> {
        let file = File::create(path).await?;
        let splitters = [Stream::Stdout, Stream::Stderr].map(|stream| (stream, LineSplitter::new(stream)));
        Ok(Self {
            file,
            spooled,
            splitters,
            offsets: Offsets::default(),
            bytes_max,
            taken: 0,
            missing: Offsets::default(),
        })
    }

    /// Spools what the command writes until both streams have ended, or until `enough`: then what is already
    /// here is still taken.
    pub(crate) async fn drain(
        &mut self,
        mut output: mpsc::Receiver<(Stream, Bytes)>,
        enough: CancellationToken,
    ) -> io::Result<()> {
        let mut pieces = Vec::with_capacity(OUTPUT_PIECES_MAX);
        loop {
            tokio::select! {
                biased;
                // Everything that waits goes to the disk in one write.
                count = output.recv_many(&mut pieces, OUTPUT_PIECES_MAX) => {
                    if count == 0 {
                        return Ok(());
                    }
                    self.take(&mut pieces).await?;
                }
                () = enough.cancelled(), if !output.is_closed() => {
                    // Its Engine is lost: no more comes, and the sender may never say so.
                    output.close();
                }
            }
        }
    }

    async fn take(&mut self, pieces: &mut Vec<(Stream, Bytes)>) -> io::Result<()> {
        let at_ms = now_ms();
        let mut lines = Vec::new();
        for (stream, bytes) in pieces.drain(..) {
            metrics::counter!(OUTPUT_BYTES, "stream" => stream.word()).increment(bytes.len() as u64);
            let full = self.spooled.borrow().bytes >= self.bytes_max;
            let room = if full { 0 } else { self.bytes_max - self.taken.min(self.bytes_max) };
            let (fits, beyond) = bytes.split_at(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            self.taken += fits.len() as u64;
            self.splitter(stream).push(at_ms, fits, &mut lines);
            *self.missing.of_mut(stream) += beyond.len() as u64;
        }
        self.append(&lines).await
    }

    /// Puts a line of our own into the log, on standard error: why it ended as it did.
    pub(crate) async fn note(&mut self, text: &str) -> io::Result<()> {
        let at_ms = now_ms();
        let mut lines = Vec::new();
        let splitter = self.splitter(Stream::Stderr);
        // Not onto the end of a line that the command left open.
        splitter.finish(at_ms, &mut lines);
        splitter.push(at_ms, format!("longshore: {text}\n").as_bytes(), &mut lines);
        self.append(&lines).await
    }

    /// Ends both streams and makes sure that all of it is on the disk. Answers the final offsets (P14).
    pub(crate) async fn finish(&mut self) -> io::Result<Offsets> {
        let at_ms = now_ms();
        let mut lines = Vec::new();
        for (_, splitter) in &mut self.splitters {
            splitter.finish(at_ms, &mut lines);
        }
        self.append(&lines).await?;
        if self.missing.total() > 0 {
            // P15: a marker in place, never a changed verdict. The streams go on behind it.
            let Offsets { stdout, stderr } = self.missing;
            self.note(&format!("the output was too long: {stdout} bytes of stdout and {stderr} of stderr are missing"))
                .await?;
        }
        // A worker that crashes leaves what it wrote; a host that loses its power only what was synced. Once is
        // enough: until it is finished, an attempt does not survive its host anyway.
        self.file.sync_data().await?;
        Ok(self.offsets)
    }

    /// What is on the disk of each stream.
    pub(crate) fn written(&self) -> Offsets {
        self.offsets
    }

    async fn append(&mut self, lines: &[Line]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let mut frames = Vec::new();
        for line in lines {
            encode(line, &mut frames);
            *self.offsets.of_mut(line.stream) = line.end();
        }
        self.file.write_all(&frames).await?;
        self.file.flush().await?;
        metrics::gauge!(SPOOL_BYTES).increment(frames.len() as f64);
        // P16: nobody reads further than this.
        self.spooled.send_modify(|spooled| spooled.bytes += frames.len() as u64);
        Ok(())
    }

    fn splitter(&mut self, stream: Stream) -> &mut LineSplitter {
        match stream {
            Stream::Stdout => &mut self.splitters[0].1,
            Stream::Stderr => &mut self.splitters[1].1,
        }
    }
}
