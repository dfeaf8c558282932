//! Output, cut into lines exactly.
//!
//! One [`LineSplitter`] per stream. What it hands out depends on the stream's bytes alone, never on how the
//! Engine cut them into pieces: lines put one behind the other are the stream again (P14).

use longshore_protocol::output::{Ending, LINE_BYTES_MAX, Line, LineData, Stream};

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

    /// Takes the stream's next bytes, cut anywhere, and appends the lines that they complete to `out`.
    /// `at_ms` is when they were read, ms since the Unix epoch.
    pub fn push(&mut self, at_ms: u64, mut bytes: &[u8], out: &mut Vec<Line>) {
        while !bytes.is_empty() {
            let room = LINE_BYTES_MAX + 1 - self.partial.len();
            let window = &bytes[..bytes.len().min(room)];
            if let Some(newline) = memchr::memchr(b'\n', window) {
                self.partial.extend_from_slice(&window[..newline]);
                bytes = &bytes[newline + 1..];
                self.emit(at_ms, self.partial.len(), Ending::Newline, out);
            } else {
                self.partial.extend_from_slice(window);
                bytes = &bytes[window.len()..];
                if self.partial.len() > LINE_BYTES_MAX {
                    self.emit(at_ms, char_boundary(&self.partial), Ending::Split, out);
                }
            }
        }
    }

    /// The stream has ended: a last line without a newline arrives as well. A stream that ended in a
    /// newline, or that was empty, gives no further line.
    pub fn finish(&mut self, at_ms: u64, out: &mut Vec<Line>) {
        if !self.partial.is_empty() {
            self.emit(at_ms, self.partial.len(), Ending::Eof, out);
        }
    }

    /// How many bytes of the stream were pushed: at its end, the final offset.
    pub fn bytes_read(&self) -> u64 {
        self.offset + self.partial.len() as u64
    }

    /// Hands out the first `len` bytes of `partial`; the rest begins the next line.
    fn emit(&mut self, at_ms: u64, len: usize, ending: Ending, out: &mut Vec<Line>) {
        let rest = self.partial.split_off(len);
        let data = std::mem::replace(&mut self.partial, rest);
        let line = Line { stream: self.stream, offset: self.offset, at_ms, ending, data: LineData(data) };
        self.offset = line.end();
        out.push(line);
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
