//! Output, cut into lines exactly.
//!
//! One [`LineSplitter`] per stream. It hands out runs of whole lines. What lines there are depends on the stream's bytes
//! alone, never on how the Engine cut them into pieces: put one behind the other they are the stream again (P14).

use longshore_protocol::output::{Ending, LINE_BYTES_MAX, Run, Stream};

/// Cuts one stream into lines.
#[derive(Debug)]
pub struct LineSplitter {
    stream: Stream,
    /// Where `partial` begins in the stream.
    offset: u64,
    /// INVARIANT between calls: holds no newline and at most [`LINE_BYTES_MAX`] bytes. One byte more
    /// proves that the line is too long; until then a newline may still make it fit.
    partial: Vec<u8>,
}

impl LineSplitter {
    /// At the beginning of a stream.
    pub fn new(stream: Stream) -> Self {
        Self::from(stream, 0)
    }

    /// At a place in a stream where a line begins, or goes on.
    pub fn from(stream: Stream, offset: u64) -> Self {
        Self { stream, offset, partial: Vec::new() }
    }

    /// Takes the stream's next bytes, cut anywhere, and appends the lines that they complete to `out`, in as few runs as
    /// hold them. `at_ms` is when they were read, ms since the Unix epoch.
    pub fn push(&mut self, at_ms: u64, mut bytes: &[u8], out: &mut Vec<Run>) {
        while !bytes.is_empty() {
            // If there is a newline in the window, the line that began before it is short enough; and those between two
            // newlines of the window are as well.
            let room = LINE_BYTES_MAX + 1 - self.partial.len();
            let window = &bytes[..bytes.len().min(room)];
            let taken = memchr::memrchr(b'\n', window).map_or(window.len(), |newline| newline + 1);
            self.partial.extend_from_slice(&window[..taken]);
            bytes = &bytes[taken..];
            if self.partial.last() == Some(&b'\n') {
                self.emit(at_ms, self.partial.len(), Ending::Newline, out);
            } else if self.partial.len() > LINE_BYTES_MAX {
                self.emit(at_ms, char_boundary(&self.partial), Ending::Split, out);
            }
        }
    }

    /// The stream has ended: a last line without a newline arrives as well. A stream that ended in a
    /// newline, or that was empty, gives no further line.
    pub fn finish(&mut self, at_ms: u64, out: &mut Vec<Run>) {
        if !self.partial.is_empty() {
            self.emit(at_ms, self.partial.len(), Ending::Eof, out);
        }
    }

    /// How many bytes of the stream were pushed: at its end, the final offset.
    pub fn bytes_read(&self) -> u64 {
        self.offset + self.partial.len() as u64
    }

    /// Hands out the first `len` bytes of `partial`; the rest begins the next line.
    fn emit(&mut self, at_ms: u64, len: usize, ending: Ending, out: &mut Vec<Run>) {
        let rest = self.partial.split_off(len);
        let bytes = std::mem::replace(&mut self.partial, rest);
        let run = Run { stream: self.stream, offset: self.offset, at_ms, ending, bytes };
        self.offset = run.end();
        out.push(run);
    }
}

/// Where to cut a line of more than [`LINE_BYTES_MAX`] bytes: there, or up to three bytes before where a
/// UTF-8 character would be torn, so that text stays text. Looks at nothing behind the cut: how much of
/// that is known yet depends on how the Engine cut the stream.
fn char_boundary(line: &[u8]) -> usize {
    for back in 1..=3 {
        let at = LINE_BYTES_MAX - back;
        let char_len = match line[at] {
            0x80..=0xBF => continue, // inside a character: its first byte is further back
            0xC0..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xFF => 4,
            _ => 1,
        };
        return if char_len > back { at } else { LINE_BYTES_MAX };
    }
    LINE_BYTES_MAX // four continuation bytes in a row are no UTF-8 anyway
}
