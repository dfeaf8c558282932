//! One attempt's output on disk (P16): runs of lines, each in a frame of its own, appended and never changed.
//!
//! A frame is `length u32, check u32, payload`, little-endian; the payload is `kind u8, ending u8, offset u64,
//! at_ms u64, bytes`. A frame that a crash tore is known by its check and cut off. A kind says the stream, and whether
//! the run is the command's or our own; two more count what was left out (P15), so that a restarted worker knows how far
//! the *command's* output was read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use longshore_protocol::output::{Ending, Offsets, RUN_BYTES_MAX, Run, Stream};

/// Below the state directory.
pub(crate) const DIR: &str = "spool";

const HEADER_BYTES: usize = 8;
const META_BYTES: usize = 18;
const FRAME_BYTES_MAX: usize = HEADER_BYTES + META_BYTES + RUN_BYTES_MAX;

/// How much is read at once: some messages' worth, and more than the largest frame, so that every read advances.
pub(crate) const READ_BYTES: usize = 512 * 1024;
const _: () = assert!(READ_BYTES > FRAME_BYTES_MAX);

const STDOUT: u8 = 1;
const STDERR: u8 = 2;
/// Of our own, on standard error.
const NOTE: u8 = 3;
const STDOUT_MISSING: u8 = 4;
const STDERR_MISSING: u8 = 5;

/// Whose words a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Words {
    Commands,
    /// Only on standard error.
    Ours,
}

/// Appends a run's frame to `out`.
pub(crate) fn encode(run: &Run, words: Words, out: &mut Vec<u8>) {
    let kind = match (words, run.stream) {
        (Words::Commands, Stream::Stdout) => STDOUT,
        (Words::Commands, Stream::Stderr) => STDERR,
        (Words::Ours, _) => NOTE,
    };
    let ending = match run.ending {
        Ending::Newline => 1,
        Ending::Split => 2,
        Ending::Eof => 3,
    };
    frame(kind, ending, run.offset, run.at_ms, &run.bytes, out);
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
    let length = u32::try_from(out.len() - start - HEADER_BYTES).expect("INVARIANT: a run has RUN_BYTES_MAX at most");
    let check = check(&out[start + HEADER_BYTES..]);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4..start + HEADER_BYTES].copy_from_slice(&check);
}

/// Runs that were read, and where the next one starts.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    /// In order.
    pub(crate) runs: Vec<Run>,
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
            What::Run(run, words) => {
                chunk.noted += if words == Words::Ours { run.bytes.len() as u64 } else { 0 };
                chunk.runs.push(run);
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

/// What a crash tears is not made to deceive, so this is no cryptographic hash, which was the largest part of a worker's
/// work on output. Each word of eight bytes goes in by a step that can be undone, so two
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
    Run(Run, Words),
    Missing(Stream, u64),
}

fn decode(bytes: &[u8]) -> Decoded {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Decoded::Short };
    let [a, b, c, d, expected @ ..] = *header;
    let Ok(length) = usize::try_from(u32::from_le_bytes([a, b, c, d])) else { return Decoded::Torn };
    if !(META_BYTES..=META_BYTES + RUN_BYTES_MAX).contains(&length) {
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
    let bytes = payload[META_BYTES..].to_vec();
    framed(What::Run(Run { stream, offset: number(2), at_ms: number(10), ending, bytes }, words))
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
        for run in &chunk.runs {
            *found.offsets.of_mut(run.stream) = run.end();
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

    fn run(offset: u64, bytes: &[u8]) -> Run {
        Run { stream: Stream::Stdout, offset, at_ms: 9, ending: Ending::Newline, bytes: bytes.to_vec() }
    }

    fn spool(runs: &[Run]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for run in runs {
            encode(run, Words::Commands, &mut bytes);
        }
        bytes
    }

    #[test]
    fn p16_a_tail_torn_anywhere_is_cut_and_the_rest_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let runs = [run(0, b"one\n"), run(4, b"\xff\0\n"), run(7, b"thr\nee\n")];
        let bytes = spool(&runs);
        let ends: Vec<usize> = (0..=3).map(|n| spool(&runs[..n]).len()).collect();
        for cut in 0..=bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let whole = ends.iter().rposition(|end| *end <= cut).unwrap();
            let Recovered { bytes: length, offsets, .. } = recover(&path).unwrap();
            assert_eq!(length, ends[whole] as u64, "cut at {cut}");
            assert_eq!(offsets.stdout, runs[..whole].last().map_or(0, Run::end));
            let chunk = read(&File::open(&path).unwrap(), 0, length).unwrap();
            assert_eq!(chunk.runs, runs[..whole]);
        }
    }

    #[test]
    fn p16_a_changed_byte_is_not_taken_for_output() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let runs = [run(0, b"one\n"), run(4, b"two\n")];
        let second = spool(&runs[..1]).len();
        for at in second..spool(&runs).len() {
            let mut bytes = spool(&runs);
            bytes[at] ^= 0x40;
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(recover(&path).unwrap().bytes, second as u64, "byte {at}");
        }
    }

    #[test]
    fn p16_what_was_read_of_the_command_is_known_again_also_behind_our_words_and_what_was_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let mut bytes = spool(&[run(0, b"out\n")]);
        let stderr = |offset, bytes: &[u8]| Run { stream: Stream::Stderr, ..run(offset, bytes) };
        encode(&stderr(0, b"err\n"), Words::Commands, &mut bytes);
        encode_missing(Stream::Stdout, 100, &mut bytes);
        encode(&stderr(4, b"ours\n"), Words::Ours, &mut bytes);
        encode_missing(Stream::Stdout, 250, &mut bytes);
        std::fs::write(&path, &bytes).unwrap();
        let found = recover(&path).unwrap();
        assert_eq!(found.offsets, Offsets { stdout: 4, stderr: 9 });
        assert_eq!(found.read(), Offsets { stdout: 254, stderr: 4 });
        let chunk = read(&File::open(&path).unwrap(), 0, found.bytes).unwrap();
        assert_eq!((chunk.runs.len(), chunk.next, chunk.torn), (3, found.bytes, false));
    }

    #[test]
    fn p14_a_long_spool_is_read_in_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let long = [vec![b'x'; RUN_BYTES_MAX - 1], vec![b'\n']].concat();
        let runs: Vec<Run> = (0..40).map(|n| run(n * RUN_BYTES_MAX as u64, &long)).collect();
        let bytes = spool(&runs);
        std::fs::write(&path, &bytes).unwrap();
        let file = File::open(&path).unwrap();
        let (mut position, mut seen) = (0, Vec::new());
        while position < bytes.len() as u64 {
            let chunk = read(&file, position, bytes.len() as u64).unwrap();
            assert!(!chunk.torn && chunk.next > position);
            position = chunk.next;
            seen.extend(chunk.runs);
        }
        assert_eq!(seen, runs);
        assert_eq!(recover(&path).unwrap().offsets.stdout, 40 * RUN_BYTES_MAX as u64);
    }
}
