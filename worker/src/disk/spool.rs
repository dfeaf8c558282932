//! One attempt's output on disk (P16): runs of lines, each in a frame of its own, appended and never changed. Only its
//! beginning is given back to the disk when it is stored elsewhere (P15): then the first frame says where the next is.
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
use rustix::fs::FallocateFlags;

/// Below the state directory.
pub(crate) const DIR: &str = "spool";

const HEADER_BYTES: usize = 8;
const META_BYTES: usize = 18;
pub(crate) const FRAME_BYTES_MAX: usize = HEADER_BYTES + META_BYTES + RUN_BYTES_MAX;

/// How much is read at once: some messages' worth, and more than the largest frame, so that every read advances.
pub(crate) const READ_BYTES: usize = 512 * 1024;
const _: () = assert!(READ_BYTES > FRAME_BYTES_MAX);

const STDOUT: u8 = 1;
const STDERR: u8 = 2;
/// Of our own, on standard error.
const NOTE: u8 = 3;
const STDOUT_MISSING: u8 = 4;
const STDERR_MISSING: u8 = 5;
/// All before a place is gone, the frames that stood here included.
const START: u8 = 6;
const START_BYTES: usize = HEADER_BYTES + META_BYTES + 40;

/// No spool grows by so much while the file system is asked.
const FAR_BYTES: u64 = 1024 * 1024 * 1024;

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
    /// Behind the last whole frame.
    pub(crate) next: Place,
    /// Whether something that is no frame stands there, not merely the end.
    pub(crate) torn: bool,
}

/// Reads whole frames from a place on, at most [`READ_BYTES`] and not beyond position `to`.
pub(crate) fn read(file: &File, from: Place, to: u64) -> io::Result<Chunk> {
    let wanted = usize::try_from(to.saturating_sub(from.position)).unwrap_or(READ_BYTES).min(READ_BYTES);
    let mut bytes = vec![0; wanted];
    let filled = read_at(file, &mut bytes, from.position)?;
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
        chunk.next.position += length as u64;
        rest = &rest[length..];
        match what {
            What::Run(run, words) => {
                chunk.next.pass(&run, words);
                chunk.runs.push(run);
            }
            What::Missing(stream, bytes) => *chunk.next.missing.of_mut(stream) = bytes,
            // Only the first frame is one, and what follows it is somewhere else.
            What::Start(place) => {
                chunk.next = place;
                return Ok(chunk);
            }
        }
    }
    // Every whole read holds a whole frame: one that holds none ends in half of one.
    chunk.torn |= chunk.next == from && filled > 0;
    Ok(chunk)
}

fn read_at(file: &File, bytes: &mut [u8], from: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], from + filled as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

/// P15: gives what stands before a place back to the disk: it is stored elsewhere. `false` where the file system cannot.
pub(crate) fn free(path: &Path, place: Place) -> io::Result<bool> {
    debug_assert!(place.position >= START_BYTES as u64);
    let file = File::options().write(true).open(path)?;
    // Asked where nothing is, far behind the end: once the beginning says that it is gone, it must be.
    match punch(&file, file.metadata()?.len() + FAR_BYTES, 1) {
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(false),
        asked => asked?,
    }
    let mut numbers = Vec::with_capacity(40);
    let Place { position, offsets, noted, missing } = place;
    for number in [offsets.stdout, offsets.stderr, noted, missing.stdout, missing.stderr] {
        numbers.extend(number.to_le_bytes());
    }
    let mut start = Vec::with_capacity(START_BYTES);
    frame(START, 0, position, 0, &numbers, &mut start);
    file.write_all_at(&start, 0)?;
    // Before anything is gone: of a finished attempt the rest must be found also after a power loss.
    file.sync_data()?;
    punch(&file, START_BYTES as u64, position - START_BYTES as u64)?;
    Ok(true)
}

fn punch(file: &File, from: u64, bytes: u64) -> rustix::io::Result<()> {
    rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, bytes)
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
    Start(Place),
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
        START if HEADER_BYTES + length == START_BYTES => {
            let [stdout, stderr, noted, missing_stdout, missing_stderr] =
                [0, 8, 16, 24, 32].map(|at| number(META_BYTES + at));
            let (offsets, missing) =
                (Offsets { stdout, stderr }, Offsets { stdout: missing_stdout, stderr: missing_stderr });
            return framed(What::Start(Place { position: number(2), offsets, noted, missing }));
        }
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

/// A place between two frames of a spool, and what stands before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// In the file.
    pub(crate) position: u64,
    /// How far each stream of the log goes.
    pub(crate) offsets: Offsets,
    /// How much of standard error is our own.
    pub(crate) noted: u64,
    /// How much of each stream was left out (P15).
    pub(crate) missing: Offsets,
}

impl Place {
    /// Goes behind a run, but for its frame's length.
    pub(crate) fn pass(&mut self, run: &Run, words: Words) {
        *self.offsets.of_mut(run.stream) = run.end();
        self.noted += if words == Words::Ours { run.bytes.len() as u64 } else { 0 };
    }

    /// How much of the command's own output is in the log, or was left out of it for good.
    pub(crate) fn read(&self) -> Offsets {
        let Self { offsets, noted, missing, .. } = self;
        Offsets { stdout: offsets.stdout + missing.stdout, stderr: offsets.stderr - noted + missing.stderr }
    }
}

/// Cuts off what a crash tore. Answers where it begins, which is the file's beginning if nothing was given back, and
/// where it ends.
pub(crate) fn recover(path: &Path) -> io::Result<[Place; 2]> {
    let file = match File::options().read(true).write(true).open(path) {
        // It is made with the first line.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok([Place::default(); 2]),
        file => file?,
    };
    let length = file.metadata()?.len();
    let start = start(&file)?;
    let mut end = start;
    while end.position < length {
        let chunk = read(&file, end, length)?;
        end = chunk.next;
        if chunk.torn {
            file.set_len(end.position)?;
            file.sync_all()?;
            break;
        }
    }
    Ok([start, end])
}

/// Where the first frame stands that was not given back.
fn start(file: &File) -> io::Result<Place> {
    let mut bytes = [0; START_BYTES];
    let filled = read_at(file, &mut bytes, 0)?;
    match decode(&bytes[..filled]) {
        Decoded::Frame(What::Start(place), _) => Ok(place),
        _ => Ok(Place::default()),
    }
}

#[cfg(test)]
mod tests;
