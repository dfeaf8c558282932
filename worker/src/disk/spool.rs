//! One attempt's output on disk (P16): lines, each in a frame of its own, appended and never changed.
//!
//! A frame is `length u32, check u32, payload`, little-endian; the payload is `kind u8, ending u8, offset u64,
//! at_ms u64, data`. A frame that a crash tore is known by its check and cut off. A kind says the stream, and whether the line is the command's or our own; two more count what was
//! left out (P15), so that a restarted worker knows how far the *command's* output was read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use longshore_protocol::output::{Ending, LINE_BYTES_MAX, Line, LineData, Offsets, Stream};

/// Below the state directory.
pub(crate) const DIR: &str = "spool";

const HEADER_BYTES: usize = 8;
const META_BYTES: usize = 18;
const FRAME_BYTES_MAX: usize = HEADER_BYTES + META_BYTES + LINE_BYTES_MAX;

/// How much is read at once: some messages' worth, and more than the largest frame, so that every read advances.
pub(crate) const READ_BYTES: usize = 512 * 1024;
const _: () = assert!(READ_BYTES > FRAME_BYTES_MAX);

const STDOUT: u8 = 1;
const STDERR: u8 = 2;
/// A line of our own, on standard error.
const NOTE: u8 = 3;
const STDOUT_MISSING: u8 = 4;
const STDERR_MISSING: u8 = 5;

/// Whose words a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Words {
    Commands,
    /// Only on standard error.
    Ours,
}

/// Appends a line's frame to `out`.
pub(crate) fn encode(line: &Line, words: Words, out: &mut Vec<u8>) {
    let kind = match (words, line.stream) {
        (Words::Commands, Stream::Stdout) => STDOUT,
        (Words::Commands, Stream::Stderr) => STDERR,
        (Words::Ours, _) => NOTE,
    };
    let ending = match line.ending {
        Ending::Newline => 1,
        Ending::Split => 2,
        Ending::Eof => 3,
    };
    frame(kind, ending, line.offset, line.at_ms, &line.data.0, out);
}

/// Appends how many bytes of a stream were left out so far.
pub(crate) fn encode_missing(stream: Stream, bytes: u64, out: &mut Vec<u8>) {
    let kind = match stream {
        Stream::Stdout => STDOUT_MISSING,
        Stream::Stderr => STDERR_MISSING,
    };
    frame(kind, 0, bytes, 0, &[], out);
}

fn frame(kind: u8, ending: u8, offset: u64, at_ms: u64, data: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    out.extend_from_slice(&[kind, ending]);
    out.extend_from_slice(&offset.to_le_bytes());
    out.extend_from_slice(&at_ms.to_le_bytes());
    out.extend_from_slice(data);
    let length = u32::try_from(out.len() - start - HEADER_BYTES).expect("INVARIANT: a line has LINE_BYTES_MAX at most");
    let check = check(&out[start + HEADER_BYTES..]);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4..start + HEADER_BYTES].copy_from_slice(&check);
}

/// Lines that were read, and where the next one starts.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    /// In order.
    pub(crate) lines: Vec<Line>,
    /// How many bytes of them are our own words.
    noted: u64,
    /// The last counts of what was left out.
    missing: Offsets,
    /// Behind the last whole frame.
    pub(crate) next: u64,
    /// Whether something that is no frame stands there, not merely the end.
    pub(crate) torn: bool,
}

/// Reads whole frames from position `from` on, at most [`READ_BYTES`] and not beyond `to`.
pub(crate) fn read(file: &File, from: u64, to: u64) -> io::Result<Chunk> {
    let wanted = usize::try_from(to.saturating_sub(from)).unwrap_or(READ_BYTES).min(READ_BYTES);
    let mut bytes = vec![0; wanted];
    let mut filled = 0;
    while filled < wanted {
        match file.read_at(&mut bytes[filled..], from + filled as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    let mut rest = &bytes[..filled];
    let mut chunk = Chunk { next: from, ..Chunk::default() };
    while !rest.is_empty() {
        let (what, length) = match decode(rest) {
            Decoded::Frame(what, length) => (what, length),
            Decoded::Torn => {
                chunk.torn = true;
                break;
            }
            Decoded::Short => break,
        };
        match what {
            What::Line(line, words) => {
                chunk.noted += if words == Words::Ours { line.end() - line.offset } else { 0 };
                chunk.lines.push(line);
            }
            What::Missing(stream, bytes) => *chunk.missing.of_mut(stream) = bytes,
        }
        chunk.next += length as u64;
        rest = &rest[length..];
    }
    // Every whole read holds a whole frame: one that holds none ends in half of one.
    chunk.torn |= chunk.next == from && filled > 0;
    Ok(chunk)
}

/// What a crash tears is not made to deceive, so this is no cryptographic hash, which for lines of a hundred bytes was the
/// largest part of a worker's work on output. Each word of eight bytes goes in by a step that can be undone, so two
/// payloads of one length that differ in one word never come to the same 64 bits.
fn check(payload: &[u8]) -> [u8; 4] {
    // Odd, with its bits well spread: the golden ratio's.
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |sum: u64, word: u64| (sum ^ word).wrapping_mul(SPREAD).rotate_left(29);
    let (words, rest) = payload.as_chunks::<8>();
    let sum = words.iter().fold(payload.len() as u64, |sum, word| mix(sum, u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let sum = mix(mix(sum, u64::from_le_bytes(last)), SPREAD);
    let [a, b, c, d, ..] = (sum ^ (sum >> 32)).to_le_bytes();
    [a, b, c, d]
}

enum Decoded {
    Frame(What, usize),
    Short,
    Torn,
}

enum What {
    Line(Line, Words),
    Missing(Stream, u64),
}

fn decode(bytes: &[u8]) -> Decoded {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Decoded::Short };
    let [a, b, c, d, expected @ ..] = *header;
    let Ok(length) = usize::try_from(u32::from_le_bytes([a, b, c, d])) else { return Decoded::Torn };
    if !(META_BYTES..=META_BYTES + LINE_BYTES_MAX).contains(&length) {
        return Decoded::Torn;
    }
    let Some(payload) = rest.get(..length) else { return Decoded::Short };
    if check(payload) != expected {
        return Decoded::Torn;
    }
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&payload[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let framed = |what| Decoded::Frame(what, HEADER_BYTES + length);
    let (stream, words) = match payload[0] {
        STDOUT => (Stream::Stdout, Words::Commands),
        STDERR => (Stream::Stderr, Words::Commands),
        NOTE => (Stream::Stderr, Words::Ours),
        STDOUT_MISSING => return framed(What::Missing(Stream::Stdout, number(2))),
        STDERR_MISSING => return framed(What::Missing(Stream::Stderr, number(2))),
        _ => return Decoded::Torn,
    };
    let ending = match payload[1] {
        1 => Ending::Newline,
        2 => Ending::Split,
        3 => Ending::Eof,
        _ => return Decoded::Torn,
    };
    let data = LineData(payload[META_BYTES..].to_vec());
    framed(What::Line(Line { stream, offset: number(2), at_ms: number(10), ending, data }, words))
}

/// What a spool holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// Bytes of frames.
    pub(crate) bytes: u64,
    /// How far each stream of the log goes.
    pub(crate) offsets: Offsets,
    /// How much of standard error is our own.
    pub(crate) noted: u64,
    /// How much of each stream was left out (P15).
    pub(crate) missing: Offsets,
}

impl Recovered {
    /// How much of the command's own output is in the log, or was left out of it for good.
    pub(crate) fn read(&self) -> Offsets {
        let Self { offsets, noted, missing, .. } = self;
        Offsets { stdout: offsets.stdout + missing.stdout, stderr: offsets.stderr - noted + missing.stderr }
    }
}

/// Cuts off what a crash tore, and says what is left.
pub(crate) fn recover(path: &Path) -> io::Result<Recovered> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    let length = file.metadata()?.len();
    let mut found = Recovered::default();
    while found.bytes < length {
        let chunk = read(&file, found.bytes, length)?;
        for line in &chunk.lines {
            *found.offsets.of_mut(line.stream) = line.end();
        }
        found.noted += chunk.noted;
        for stream in [Stream::Stdout, Stream::Stderr] {
            let missing = found.missing.of_mut(stream);
            *missing = chunk.missing.of(stream).max(*missing);
        }
        found.bytes = chunk.next;
        if chunk.torn {
            file.set_len(found.bytes)?;
            file.sync_all()?;
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(offset: u64, data: &[u8]) -> Line {
        let data = LineData(data.to_vec());
        Line { stream: Stream::Stdout, offset, at_ms: 9, ending: Ending::Newline, data }
    }

    fn spool(lines: &[Line]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for line in lines {
            encode(line, Words::Commands, &mut bytes);
        }
        bytes
    }

    #[test]
    fn p16_a_tail_torn_anywhere_is_cut_and_the_rest_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let lines = [line(0, b"one"), line(4, b"\xff\0"), line(7, b"three")];
        let bytes = spool(&lines);
        let ends: Vec<usize> = (0..=3).map(|n| spool(&lines[..n]).len()).collect();
        for cut in 0..=bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let whole = ends.iter().rposition(|end| *end <= cut).unwrap();
            let Recovered { bytes: length, offsets, .. } = recover(&path).unwrap();
            assert_eq!(length, ends[whole] as u64, "cut at {cut}");
            assert_eq!(offsets.stdout, lines[..whole].last().map_or(0, Line::end));
            let chunk = read(&File::open(&path).unwrap(), 0, length).unwrap();
            assert_eq!(chunk.lines, lines[..whole]);
        }
    }

    #[test]
    fn p16_a_changed_byte_is_not_taken_for_output() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let lines = [line(0, b"one"), line(4, b"two")];
        let second = spool(&lines[..1]).len();
        for at in second..spool(&lines).len() {
            let mut bytes = spool(&lines);
            bytes[at] ^= 0x40;
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(recover(&path).unwrap().bytes, second as u64, "byte {at}");
        }
    }

    #[test]
    fn p16_what_was_read_of_the_command_is_known_again_also_behind_our_words_and_what_was_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let mut bytes = spool(&[line(0, b"out")]);
        let stderr = |offset, data: &[u8]| Line { stream: Stream::Stderr, ..line(offset, data) };
        encode(&stderr(0, b"err"), Words::Commands, &mut bytes);
        encode_missing(Stream::Stdout, 100, &mut bytes);
        encode(&stderr(4, b"ours"), Words::Ours, &mut bytes);
        encode_missing(Stream::Stdout, 250, &mut bytes);
        std::fs::write(&path, &bytes).unwrap();
        let found = recover(&path).unwrap();
        assert_eq!(found.offsets, Offsets { stdout: 4, stderr: 9 });
        assert_eq!(found.read(), Offsets { stdout: 254, stderr: 4 });
        let chunk = read(&File::open(&path).unwrap(), 0, found.bytes).unwrap();
        assert_eq!((chunk.lines.len(), chunk.next, chunk.torn), (3, found.bytes, false));
    }

    #[test]
    fn p14_a_long_spool_is_read_in_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let lines: Vec<Line> =
            (0..40).map(|n| line(n * (LINE_BYTES_MAX as u64 + 1), &vec![b'x'; LINE_BYTES_MAX])).collect();
        let bytes = spool(&lines);
        std::fs::write(&path, &bytes).unwrap();
        let file = File::open(&path).unwrap();
        let (mut position, mut seen) = (0, Vec::new());
        while position < bytes.len() as u64 {
            let chunk = read(&file, position, bytes.len() as u64).unwrap();
            assert!(!chunk.torn && chunk.next > position);
            position = chunk.next;
            seen.extend(chunk.lines);
        }
        assert_eq!(seen, lines);
        assert_eq!(recover(&path).unwrap().offsets.stdout, 40 * (LINE_BYTES_MAX as u64 + 1));
    }
}
