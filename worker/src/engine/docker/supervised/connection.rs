//! One connection of a supervisor's: frames in, frames out.

use std::io;

use longshore_supervisor::wire::{self, Decoder, FromSupervisor, ToSupervisor, WireError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// One read: as much as one frame of output holds, with its head.
const READ_BYTES: usize = wire::OUTPUT_BYTES_MAX + 512;

/// What may wait to be written before no more is asked to be: enough that a tar's chunks keep the socket busy.
const WAITING_BYTES_MAX: usize = 256 * 1024;

/// Either side, of its own, so that one is read while the other is written.
pub(super) struct Connection {
    incoming: Incoming,
    outgoing: Outgoing,
    /// Whether its hello was heard: before that it is not known what to say.
    pub(super) greeted: bool,
}

struct Incoming {
    socket: OwnedReadHalf,
    decoder: Decoder<FromSupervisor>,
    buffer: Box<[u8]>,
}

struct Outgoing {
    socket: OwnedWriteHalf,
    /// Frames to be written, and how much of them is.
    waiting: Vec<u8>,
    written: usize,
}

/// What a connection has done.
pub(super) enum Exchanged {
    Received(Vec<FromSupervisor>),
    Sent,
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> Self {
        let (read, write) = stream.into_split();
        let buffer = vec![0; READ_BYTES].into_boxed_slice();
        Self {
            incoming: Incoming { socket: read, decoder: Decoder::new(), buffer },
            outgoing: Outgoing { socket: write, waiting: Vec::new(), written: 0 },
            greeted: false,
        }
    }

    /// Puts a frame behind those that wait.
    pub(super) fn say(&mut self, message: &ToSupervisor) -> Result<(), WireError> {
        wire::encode(message, &mut self.outgoing.waiting)
    }

    /// The same for a piece of a tar.
    pub(super) fn say_data(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        wire::encode_inject_data(bytes, &mut self.outgoing.waiting)
    }

    /// Whether everything was written.
    pub(super) fn is_idle(&self) -> bool {
        self.outgoing.waiting.is_empty()
    }

    /// Whether more may be put behind it.
    pub(super) fn has_room(&self) -> bool {
        self.outgoing.waiting.len() - self.outgoing.written < WAITING_BYTES_MAX
    }

    /// Reads if `wants_more`, and writes what waits, whichever goes first. An error is the connection's end, and so
    /// is a frame that is not understood. May be dropped at its await.
    pub(super) async fn exchange(&mut self, wants_more: bool) -> io::Result<Exchanged> {
        tokio::select! {
            received = self.incoming.receive(), if wants_more => received.map(Exchanged::Received),
            sent = self.outgoing.send() => sent.map(|()| Exchanged::Sent),
        }
    }
}

impl Incoming {
    async fn receive(&mut self) -> io::Result<Vec<FromSupervisor>> {
        let read = self.socket.read(&mut self.buffer).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.decoder.push(&self.buffer[..read]).collect::<Result<_, _>>().map_err(io::Error::other)
    }
}

impl Outgoing {
    /// Writes some of what waits; for ever if nothing does.
    async fn send(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return std::future::pending().await;
        }
        self.written += self.socket.write(&self.waiting[self.written..]).await?;
        if self.written == self.waiting.len() {
            self.waiting.clear();
            self.written = 0;
        } else if self.written >= WAITING_BYTES_MAX {
            // A tar that comes faster than it is unpacked never leaves the buffer empty: it would hold all of it.
            self.waiting.drain(..self.written);
            self.written = 0;
        }
        Ok(())
    }
}
