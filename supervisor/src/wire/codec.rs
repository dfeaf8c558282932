//! Frames: messages to bytes and back.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{FromSupervisor, Output, Stream, ToSupervisor};

/// The longest frame. The kernel takes at most 2 MiB of arguments and environment for one program; quoted as
/// JSON that is below this, or is mostly control characters.
pub const FRAME_BYTES_MAX: usize = 4 << 20;

/// The most bytes of output in one frame: what one read of a pipe gives.
pub const OUTPUT_BYTES_MAX: usize = 64 * 1024;

/// The length, and the kind behind it.
const HEAD_BYTES: usize = 5;

/// What cannot be sent, or be understood. A connection on which that happens is closed.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Longer than [`FRAME_BYTES_MAX`]: a `Run` whose command the kernel would not take either, or garbage.
    #[error("a frame of {bytes} bytes; at most {FRAME_BYTES_MAX} are allowed")]
    TooLong {
        /// With its kind.
        bytes: usize,
    },
    /// Shorter than its kind needs.
    #[error("a frame of kind {kind} is cut")]
    Cut {
        /// Its kind; 0 if even that is missing.
        kind: u8,
    },
    /// Not the JSON that its kind needs.
    #[error("a frame of kind {kind} is not understood: {error}")]
    Json {
        /// Its kind.
        kind: u8,
        /// Why not.
        error: serde_json::Error,
    },
}

/// One of the two directions.
pub trait Message: Sized + sealed::Sealed {
    /// Writes the payload and tells the kind.
    #[doc(hidden)]
    fn write(&self, out: &mut Vec<u8>) -> Result<u8, WireError>;
    /// Reads one; `None` if the kind is not known.
    #[doc(hidden)]
    fn read(kind: u8, payload: &[u8]) -> Result<Option<Self>, WireError>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::ToSupervisor {}
    impl Sealed for super::FromSupervisor {}
}

/// Numbers on the wire: never used for anything else again.
mod kind {
    pub(super) const WORKER_HELLO: u8 = 1;
    pub(super) const RUN: u8 = 2;
    pub(super) const ACKED: u8 = 3;
    pub(super) const STOP: u8 = 4;
    pub(super) const INJECT: u8 = 5;
    pub(super) const INJECT_DATA: u8 = 6;
    pub(super) const INJECT_END: u8 = 7;
    pub(super) const CLEAN: u8 = 8;
    pub(super) const END: u8 = 9;
    pub(super) const EXTEND: u8 = 10;

    pub(super) const SUPERVISOR_HELLO: u8 = 65;
    pub(super) const STARTED: u8 = 66;
    pub(super) const CANNOT_START: u8 = 67;
    pub(super) const OUTPUT: u8 = 68;
    pub(super) const EXITED: u8 = 69;
    pub(super) const INJECTED: u8 = 70;
    pub(super) const INJECT_FAILED: u8 = 71;
    pub(super) const CLEANED: u8 = 72;
}

/// Appends a message's frame. On an error `out` is as it was.
pub fn encode<M: Message>(message: &M, out: &mut Vec<u8>) -> Result<(), WireError> {
    let start = out.len();
    framed(out, start, |out| message.write(out)).inspect_err(|_| out.truncate(start))
}

/// Appends [`ToSupervisor::InjectData`] without owning the bytes, of which a frame takes at most
/// [`FRAME_BYTES_MAX`] less one.
pub fn encode_inject_data(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), WireError> {
    let start = out.len();
    let write = |out: &mut Vec<u8>| {
        out.extend_from_slice(bytes);
        Ok(kind::INJECT_DATA)
    };
    framed(out, start, write).inspect_err(|_| out.truncate(start))
}

/// Appends [`FromSupervisor::Output`] without owning the bytes, which may lie in two parts (a ring's).
/// An id beyond 255 bytes is cut: a `Run` with such a one is refused.
pub fn encode_output(
    id: &str,
    stream: Stream,
    at_ms: u64,
    offset: u64,
    parts: [&[u8]; 2],
    out: &mut Vec<u8>,
) -> Result<(), WireError> {
    let start = out.len();
    let write = |out: &mut Vec<u8>| {
        out.push(match stream {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        });
        out.extend_from_slice(&at_ms.to_le_bytes());
        out.extend_from_slice(&offset.to_le_bytes());
        let id_len = u8::try_from(id.len()).unwrap_or(u8::MAX);
        out.push(id_len);
        out.extend_from_slice(&id.as_bytes()[..usize::from(id_len)]);
        for part in parts {
            out.extend_from_slice(part);
        }
        Ok(kind::OUTPUT)
    };
    framed(out, start, write).inspect_err(|_| out.truncate(start))
}

fn framed(
    out: &mut Vec<u8>,
    start: usize,
    write: impl FnOnce(&mut Vec<u8>) -> Result<u8, WireError>,
) -> Result<(), WireError> {
    out.extend_from_slice(&[0; HEAD_BYTES]);
    let kind = write(out)?;
    let bytes = out.len() - start - HEAD_BYTES + 1;
    let length = u32::try_from(bytes).ok().filter(|_| bytes <= FRAME_BYTES_MAX);
    let length = length.ok_or(WireError::TooLong { bytes })?;
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4] = kind;
    Ok(())
}

/// Puts frames together again from pieces cut anywhere. Holds at most one frame, and what came with its end.
#[derive(Debug)]
pub struct Decoder<M> {
    buffer: Vec<u8>,
    /// How much of the buffer is done with.
    taken: usize,
    message: PhantomData<M>,
}

impl<M> Default for Decoder<M> {
    fn default() -> Self {
        Self { buffer: Vec::new(), taken: 0, message: PhantomData }
    }
}

impl<M: Message> Decoder<M> {
    /// For a new connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what was read, and gives the messages that are complete. What is not asked of the iterator comes
    /// with the next push, or from [`Self::pop`]. After an error there is only that error.
    pub fn push(&mut self, bytes: &[u8]) -> Decoded<'_, M> {
        if self.taken > 0 {
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
        self.buffer.extend_from_slice(bytes);
        Decoded { decoder: self }
    }

    /// The next message that is complete already.
    pub fn pop(&mut self) -> Option<Result<M, WireError>> {
        loop {
            let rest = &self.buffer[self.taken..];
            let length = u32::from_le_bytes(*rest.first_chunk::<4>()?);
            let bytes = usize::try_from(length).unwrap_or(usize::MAX);
            if bytes > FRAME_BYTES_MAX {
                return Some(Err(WireError::TooLong { bytes }));
            }
            if bytes == 0 {
                return Some(Err(WireError::Cut { kind: 0 }));
            }
            let frame = rest.get(4..4 + bytes)?;
            // A frame in error is not taken: it is the same error each time.
            let message = match M::read(frame[0], &frame[1..]) {
                Ok(message) => message,
                Err(error) => return Some(Err(error)),
            };
            self.taken += 4 + bytes;
            // P1: one of a kind that is not known is passed over.
            if let Some(message) = message {
                return Some(Ok(message));
            }
        }
    }
}

/// What [`Decoder::push`] gives.
#[derive(Debug)]
pub struct Decoded<'a, M> {
    decoder: &'a mut Decoder<M>,
}

impl<M: Message> Iterator for Decoded<'_, M> {
    type Item = Result<M, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.decoder.pop()
    }
}

fn json(kind: u8, payload: &impl Serialize, out: &mut Vec<u8>) -> Result<u8, WireError> {
    serde_json::to_writer(out, payload).map_err(|error| WireError::Json { kind, error })?;
    Ok(kind)
}

fn from_json<T: DeserializeOwned>(kind: u8, payload: &[u8]) -> Result<T, WireError> {
    serde_json::from_slice(payload).map_err(|error| WireError::Json { kind, error })
}

impl Message for ToSupervisor {
    fn write(&self, out: &mut Vec<u8>) -> Result<u8, WireError> {
        match self {
            Self::Hello(hello) => json(kind::WORKER_HELLO, hello, out),
            Self::Run(run) => json(kind::RUN, run, out),
            Self::Acked(acked) => json(kind::ACKED, acked, out),
            Self::Extend(extend) => json(kind::EXTEND, extend, out),
            Self::Stop(stop) => json(kind::STOP, stop, out),
            Self::Inject(inject) => json(kind::INJECT, inject, out),
            Self::InjectData(bytes) => {
                out.extend_from_slice(bytes);
                Ok(kind::INJECT_DATA)
            }
            Self::InjectEnd => Ok(kind::INJECT_END),
            Self::Clean(clean) => json(kind::CLEAN, clean, out),
            Self::End => Ok(kind::END),
        }
    }

    fn read(kind: u8, payload: &[u8]) -> Result<Option<Self>, WireError> {
        Ok(Some(match kind {
            kind::WORKER_HELLO => Self::Hello(from_json(kind, payload)?),
            kind::RUN => Self::Run(from_json(kind, payload)?),
            kind::ACKED => Self::Acked(from_json(kind, payload)?),
            kind::EXTEND => Self::Extend(from_json(kind, payload)?),
            kind::STOP => Self::Stop(from_json(kind, payload)?),
            kind::INJECT => Self::Inject(from_json(kind, payload)?),
            kind::INJECT_DATA => Self::InjectData(payload.to_vec()),
            kind::INJECT_END => Self::InjectEnd,
            kind::CLEAN => Self::Clean(from_json(kind, payload)?),
            kind::END => Self::End,
            _ => return Ok(None),
        }))
    }
}

impl Message for FromSupervisor {
    fn write(&self, out: &mut Vec<u8>) -> Result<u8, WireError> {
        match self {
            Self::Hello(hello) => json(kind::SUPERVISOR_HELLO, hello, out),
            Self::Started(started) => json(kind::STARTED, started, out),
            Self::CannotStart(cannot) => json(kind::CANNOT_START, cannot, out),
            Self::Output(output) => {
                // The same bytes as `encode_output`, less the head that is written around this.
                let mut framed = Vec::with_capacity(HEAD_BYTES + 32 + output.id.len() + output.bytes.len());
                let parts = [output.bytes.as_slice(), &[]];
                encode_output(&output.id, output.stream, output.at_ms, output.offset, parts, &mut framed)?;
                out.extend_from_slice(&framed[HEAD_BYTES..]);
                Ok(kind::OUTPUT)
            }
            Self::Exited(exited) => json(kind::EXITED, exited, out),
            Self::Injected => Ok(kind::INJECTED),
            Self::InjectFailed(failed) => json(kind::INJECT_FAILED, failed, out),
            Self::Cleaned(cleaned) => json(kind::CLEANED, cleaned, out),
        }
    }

    fn read(kind: u8, payload: &[u8]) -> Result<Option<Self>, WireError> {
        Ok(Some(match kind {
            kind::SUPERVISOR_HELLO => Self::Hello(from_json(kind, payload)?),
            kind::STARTED => Self::Started(from_json(kind, payload)?),
            kind::CANNOT_START => Self::CannotStart(from_json(kind, payload)?),
            kind::OUTPUT => Self::Output(read_output(payload).ok_or(WireError::Cut { kind })?),
            kind::EXITED => Self::Exited(from_json(kind, payload)?),
            kind::INJECTED => Self::Injected,
            kind::INJECT_FAILED => Self::InjectFailed(from_json(kind, payload)?),
            kind::CLEANED => Self::Cleaned(from_json(kind, payload)?),
            _ => return Ok(None),
        }))
    }
}

/// `stream u8 | at_ms u64 LE | offset u64 LE | id length u8 | id | bytes`.
fn read_output(payload: &[u8]) -> Option<Output> {
    let (stream, rest) = payload.split_first()?;
    let stream = match stream {
        1 => Stream::Stdout,
        2 => Stream::Stderr,
        _ => return None,
    };
    let (at_ms, rest) = rest.split_first_chunk()?;
    let (offset, rest) = rest.split_first_chunk()?;
    let (id_len, rest) = rest.split_first()?;
    let (id, bytes) = rest.split_at_checked(usize::from(*id_len))?;
    let id = std::str::from_utf8(id).ok()?.to_owned();
    let (at_ms, offset) = (u64::from_le_bytes(*at_ms), u64::from_le_bytes(*offset));
    (!bytes.is_empty()).then(|| Output { id, stream, at_ms, offset, bytes: bytes.to_vec() })
}
