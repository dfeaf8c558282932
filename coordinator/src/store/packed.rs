//! Output as rows and chunks hold it: before each run a line of JSON that says what it is, then its bytes as they were.
//! So a person can read a chunk with `zstdcat`.
//!
//! What is long is compressed before it is stored: the database writes all of it twice, and a chunk is its rows' bytes
//! one behind the other, because several zstd frames in a row are one stream again.

use longshore_protocol::output::{Ending, Run, Stream};
use serde::{Deserialize, Serialize};

use super::StoreError;

/// Shorter rows stay as they are: one line of a quiet step, which alone would hardly become shorter. A chunk packs
/// those that stand beside each other together.
const PACKED_BYTES_MIN: usize = 4 * 1024;

/// Packs some 400 MB/s here, to a fifth of its size; zstd's own default takes twice as long for a tenth less.
const LEVEL: i32 = 1;

/// How a zstd frame begins; text never does.
const FRAME: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// What a run says besides its bytes.
#[derive(Serialize, Deserialize)]
struct Head {
    stream: Stream,
    offset: u64,
    at_ms: u64,
    ending: Ending,
    bytes: usize,
}

/// Runs as a row holds them.
pub fn pack(runs: &[Run]) -> Vec<u8> {
    let mut text = Vec::with_capacity(runs.iter().map(|run| run.bytes.len() + 96).sum());
    for Run { stream, offset, at_ms, ending, bytes } in runs {
        let head = Head { stream: *stream, offset: *offset, at_ms: *at_ms, ending: *ending, bytes: bytes.len() };
        serde_json::to_writer(&mut text, &head).expect("a Vec takes every write, a head has string keys");
        text.push(b'\n');
        text.extend_from_slice(bytes);
    }
    if text.len() < PACKED_BYTES_MIN {
        return text;
    }
    // It fails for want of memory only; text is as good.
    compress(&text).unwrap_or(text)
}

/// The reverse of [`pack`], also of several behind each other.
pub fn unpack(data: &[u8]) -> Result<Vec<Run>, StoreError> {
    let unpacked;
    let mut rest = if is_packed(data) {
        unpacked = zstd::decode_all(data).map_err(unreadable)?;
        unpacked.as_slice()
    } else {
        data
    };
    let mut runs = Vec::new();
    while let Some(end) = memchr::memchr(b'\n', rest) {
        let Head { stream, offset, at_ms, ending, bytes } = serde_json::from_slice(&rest[..end]).map_err(unreadable)?;
        let Some((run, behind)) = rest[end + 1..].split_at_checked(bytes) else {
            return Err(unreadable(format!("{bytes} bytes of output are announced and are not there")));
        };
        runs.push(Run { stream, offset, at_ms, ending, bytes: run.to_vec() });
        rest = behind;
    }
    if rest.is_empty() { Ok(runs) } else { Err(unreadable("it ends within a run")) }
}

/// A chunk in the making.
#[derive(Debug, Default)]
pub struct Chunk {
    frames: Vec<u8>,
    /// Rows that are not packed, and stand at the end.
    text: Vec<u8>,
}

impl Chunk {
    /// Puts a row behind the others, packed or not.
    pub fn push(&mut self, row: &[u8]) -> Result<(), StoreError> {
        if !is_packed(row) {
            self.text.extend_from_slice(row);
            return Ok(());
        }
        self.pack_text()?;
        self.frames.extend_from_slice(row);
        Ok(())
    }

    /// All of it, packed.
    pub fn finish(mut self) -> Result<Vec<u8>, StoreError> {
        self.pack_text()?;
        Ok(self.frames)
    }

    fn pack_text(&mut self) -> Result<(), StoreError> {
        if !self.text.is_empty() {
            self.frames.extend(compress(&self.text)?);
            self.text.clear();
        }
        Ok(())
    }
}

fn is_packed(data: &[u8]) -> bool {
    data.starts_with(&FRAME)
}

fn compress(text: &[u8]) -> Result<Vec<u8>, StoreError> {
    let compressed = zstd::bulk::Compressor::new(LEVEL).and_then(|mut compressor| {
        // What a disk has changed is found out when it is read.
        compressor.include_checksum(true)?;
        compressor.compress(text)
    });
    compressed.map_err(unreadable)
}

fn unreadable(why: impl Into<Box<dyn std::error::Error>>) -> StoreError {
    StoreError::Unreadable { what: "a log", why: why.into().to_string() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a panic is how a test fails

    use super::*;

    fn run(offset: u64, bytes: &[u8]) -> Run {
        Run { stream: Stream::Stderr, offset, at_ms: 5, ending: Ending::Newline, bytes: bytes.to_vec() }
    }

    #[test]
    fn p1_rows_and_chunks_give_back_every_byte() {
        let long = b"a line of some length\n".repeat(1000);
        let rows = [vec![run(0, b"one\n"), run(4, b"\xff\0{\n\n")], vec![run(9, b"x\n")], vec![run(11, &long)], vec![]];
        let mut chunk = Chunk::default();
        let mut all = Vec::new();
        for row in rows.iter().chain(&rows[..1]) {
            let packed = pack(row);
            assert_eq!(unpack(&packed).unwrap(), *row);
            chunk.push(&packed).unwrap();
            all.extend(row.clone());
        }
        let chunk = chunk.finish().unwrap();
        assert!(chunk.len() < long.len() / 4, "packed: {}", chunk.len());
        assert_eq!(unpack(&chunk).unwrap(), all);
        for at in 0..chunk.len() * 8 {
            let mut damaged = chunk.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            // Some bits say how large a window whoever unpacks it needs.
            let read = unpack(&damaged);
            assert!(read.as_ref().map_or(true, |read| *read == all), "bit {at}: {read:?}");
        }
    }

    #[test]
    fn p1_what_is_no_row_is_refused() {
        let whole = pack(&[run(0, b"one\ntwo\n")]);
        for cut in 1..whole.len() {
            assert!(unpack(&whole[..cut]).is_err(), "cut at {cut}");
        }
        assert!(unpack(&FRAME).is_err());
        assert!(unpack(b"{}\n").is_err());
    }
}
