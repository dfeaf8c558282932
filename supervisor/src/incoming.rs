//! A tar on its way in: frames of the worker's, as something to read.

use std::collections::VecDeque;
use std::io::{self, Read};

use longshore_supervisor::wire::ToSupervisor;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::link::Link;

/// Messages that may come while a tar does: acknowledgements of the last output. More is not of this protocol.
const DEFERRED_MAX: usize = 1024;

/// A tar's bytes, as the worker sends them.
pub(crate) struct Incoming<'a> {
    link: &'a mut Link,
    deferred: &'a mut VecDeque<ToSupervisor>,
    current: Vec<u8>,
    at: usize,
    ended: bool,
    /// P17: a worker that says nothing for so long is none.
    patience_ms: u64,
}

impl Read for Incoming<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.current.len() && !self.ended {
            self.fill()?;
        }
        let len = into.len().min(self.current.len() - self.at);
        into[..len].copy_from_slice(&self.current[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

impl<'a> Incoming<'a> {
    pub(crate) fn new(link: &'a mut Link, deferred: &'a mut VecDeque<ToSupervisor>, patience_ms: u64) -> Self {
        Self { link, deferred, current: Vec::new(), at: 0, ended: false, patience_ms }
    }

    fn fill(&mut self) -> io::Result<()> {
        let gone = |_| io::Error::new(io::ErrorKind::ConnectionAborted, "the worker has gone");
        match self.link.pop().map_err(gone)? {
            Some(ToSupervisor::InjectData(bytes)) => (self.current, self.at) = (bytes, 0),
            Some(ToSupervisor::InjectEnd) => self.ended = true,
            Some(message) => {
                self.deferred.push_back(message);
                // An end is not put off until a tar is over.
                let last = matches!(self.deferred.back(), Some(ToSupervisor::End));
                if last || self.deferred.len() > DEFERRED_MAX {
                    self.ended = true;
                }
            }
            None => {
                if !self.link.read().map_err(gone)? {
                    self.wait()?;
                }
            }
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<()> {
        let Some((socket, ..)) = self.link.interest() else { return Err(io::ErrorKind::NotConnected.into()) };
        let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
        let seconds = i64::try_from(self.patience_ms / 1000 + 1).unwrap_or(i64::MAX);
        match poll(&mut fds, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::TimedOut, "the worker says nothing any more")),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
