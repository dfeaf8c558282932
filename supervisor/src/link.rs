//! The connection to the worker: made by path each time, because a socket that is bound again is a new file.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use longshore_supervisor::wire::{Decoder, FromSupervisor, ToSupervisor, WireError, encode};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send, socket_with,
};

use crate::clock;

/// A worker that restarts is back in some 100 ms.
const RETRY_MS_MIN: u64 = 20;
/// With none there for long: a thousand looks before the orphan's end, which cost nothing.
const RETRY_MS_MAX: u64 = 500;

/// How much is encoded ahead of the socket, whose own buffer is about 200 KiB: enough that neither waits.
pub(crate) const AHEAD_BYTES_MAX: usize = 256 * 1024;

/// A worker that asks and does not read its answers is not heard any further with this much waiting for it.
const ANSWERS_BYTES_MAX: usize = 1 << 20;

/// What one read takes: more than a frame of a tar that was made with 64 KiB pieces.
const READ_BYTES: usize = 128 * 1024;

/// Why a connection is given up. Another one follows.
#[derive(Debug)]
pub(crate) enum Lost {
    /// The worker closed it, or has gone.
    Closed,
    /// What came is not of this protocol, or not at its time.
    Garbage,
}

impl From<WireError> for Lost {
    fn from(_: WireError) -> Self {
        Self::Garbage
    }
}

struct Connection {
    socket: OwnedFd,
    decoder: Decoder<ToSupervisor>,
    out: Vec<u8>,
    /// How much of `out` is sent.
    out_sent: usize,
    /// The worker's hello has come, of our version.
    greeted: bool,
}

/// Connected, or about to be again.
pub(crate) struct Link {
    path: PathBuf,
    connection: Option<Connection>,
    retry_at_ms: u64,
    pause_ms: u64,
    scratch: Vec<u8>,
}

impl Link {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, connection: None, retry_at_ms: 0, pause_ms: RETRY_MS_MIN, scratch: vec![0; READ_BYTES] }
    }

    /// When to try again; `None` while connected.
    pub(crate) fn retry_at_ms(&self) -> Option<u64> {
        self.connection.is_none().then_some(self.retry_at_ms)
    }

    /// Tries, if it is time; tells whether there is a new connection.
    pub(crate) fn connect(&mut self, now_ms: u64) -> bool {
        if self.connection.is_some() || now_ms < self.retry_at_ms {
            return false;
        }
        let Ok(socket) = self.try_connect() else {
            self.wait();
            return false;
        };
        let decoder = Decoder::new();
        self.connection = Some(Connection { socket, decoder, out: Vec::new(), out_sent: 0, greeted: false });
        true
    }

    fn try_connect(&self) -> io::Result<OwnedFd> {
        // Not to block on a listener that does not accept.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(&self.path)?)?;
        Ok(socket)
    }

    fn wait(&mut self) {
        self.retry_at_ms = clock::boot_ms() + self.pause_ms;
        self.pause_ms = (self.pause_ms * 2).min(RETRY_MS_MAX);
    }

    /// Gives the connection up.
    pub(crate) fn close(&mut self) {
        self.connection = None;
        self.wait();
    }

    pub(crate) fn is_greeted(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.greeted)
    }

    /// The other side has said hello.
    pub(crate) fn greet(&mut self) {
        self.pause_ms = RETRY_MS_MIN;
        if let Some(connection) = &mut self.connection {
            connection.greeted = true;
        }
    }

    /// What to poll for: the socket, whether to read, whether to write.
    pub(crate) fn interest(&self) -> Option<(BorrowedFd<'_>, bool, bool)> {
        let connection = self.connection.as_ref()?;
        let waiting = connection.out.len() - connection.out_sent;
        Some((connection.socket.as_fd(), waiting < ANSWERS_BYTES_MAX, waiting > 0))
    }

    /// How much more may be encoded ahead.
    pub(crate) fn has_room(&self) -> bool {
        self.connection.as_ref().is_some_and(|c| c.greeted && c.out.len() - c.out_sent < AHEAD_BYTES_MAX)
    }

    /// To encode into, with the words of `wire`.
    pub(crate) fn out(&mut self) -> Option<&mut Vec<u8>> {
        self.connection.as_mut().map(|connection| &mut connection.out)
    }

    /// Puts a message behind what waits already. Without a connection it is dropped: the next hello says as much.
    pub(crate) fn send(&mut self, message: &FromSupervisor) {
        if let Some(connection) = &mut self.connection {
            // All of them are short: what could be too long is a reason, and those are cut where they are made.
            let _ = encode(message, &mut connection.out);
        }
    }

    /// Writes what the socket takes.
    pub(crate) fn flush(&mut self) -> Result<(), Lost> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        while connection.out_sent < connection.out.len() {
            match send(&connection.socket, &connection.out[connection.out_sent..], SendFlags::NOSIGNAL) {
                Ok(sent) => connection.out_sent += sent,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return Err(Lost::Closed),
            }
        }
        if connection.out_sent == connection.out.len() {
            connection.out.clear();
            connection.out_sent = 0;
        } else if connection.out_sent >= AHEAD_BYTES_MAX {
            connection.out.drain(..connection.out_sent);
            connection.out_sent = 0;
        }
        Ok(())
    }

    /// Reads once; the messages are then to be had from [`Self::pop`]. `false`: nothing was there.
    pub(crate) fn read(&mut self) -> Result<bool, Lost> {
        let Some(connection) = &mut self.connection else { return Err(Lost::Closed) };
        match recv(&connection.socket, &mut self.scratch[..], RecvFlags::empty()) {
            Ok((_, 0)) => Err(Lost::Closed),
            Ok((_, read)) => {
                connection.decoder.push(&self.scratch[..read]);
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(_) => Err(Lost::Closed),
        }
    }

    /// The next message that was read.
    pub(crate) fn pop(&mut self) -> Result<Option<ToSupervisor>, Lost> {
        let Some(connection) = &mut self.connection else { return Ok(None) };
        Ok(connection.decoder.pop().transpose()?)
    }
}
