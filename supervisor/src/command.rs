//! The one command that runs, or ran last: its pipes, what it wrote, and how it ends.

use std::os::fd::{AsFd, OwnedFd};

use longshore_supervisor::wire::{
    CannotStart, Ended, EndedBy, Exit, Lease, Offsets, Progress, Run, State, Status, Stop, Stream, Usage, Whose,
};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::clock;
use crate::oom::OomCounter;
use crate::prepare;
use crate::ring::Ring;
use crate::sys;

/// A process that KILL does not end at once is in a call of the kernel's, and will see it there. Another one may have
/// come through the Engine.
const KILL_AGAIN_MS: u64 = 100;

/// One stream's pipe and what was read from it.
#[derive(Default)]
pub(crate) struct Source {
    /// `None`: it has ended.
    pub(crate) pipe: Option<OwnedFd>,
    pub(crate) ring: Ring,
}

impl Source {
    /// How much may be read. When nobody is left who could write, all of it: it is a pipe's fill at most, and the exit
    /// shall not wait for a worker that waits for it.
    pub(crate) fn room(&self, alone: bool) -> usize {
        if alone { usize::MAX } else { self.ring.room() }
    }
}

/// From its start until the container is cleaned.
pub(crate) struct Command {
    pub(crate) id: String,
    pid: u32,
    started_ms: u64,
    /// P17: until when it may run by itself.
    limit_at_ms: u64,
    /// P18: until when it may run at all. `None` also once that has ended it.
    lease: Option<Lease>,
    /// When one of the two ended it.
    timed_out_ms: Option<u64>,
    /// From TERM to KILL; after it, when to try again.
    kill_at_ms: Option<u64>,
    killed: bool,
    by: EndedBy,
    /// Standard output, standard error.
    pub(crate) sources: [Source; 2],
    /// How its first process ended. From then on everything else is killed.
    main: Option<Status>,
    /// When that was, counted from its start.
    ran_ms: u64,
    /// Nothing else runs any more.
    alone: bool,
    usage: Usage,
    oom_before: Option<u64>,
    /// Set once: both streams have ended, and nothing runs.
    pub(crate) exit: Option<Exit>,
    /// On this connection.
    pub(crate) exit_sent: bool,
}

pub(crate) const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

impl Command {
    pub(crate) fn start(run: &Run, oom: &OomCounter) -> Result<Self, CannotStart> {
        let plan = prepare::prepare(run)?;
        let io = |error: std::io::Error| CannotStart {
            id: run.id.clone(),
            exit: None,
            reason: format!("no pipe could be made: {error}"),
            whose: Whose::Io,
        };
        let null = prepare::dev_null().map_err(io)?;
        let (out, out_end) = pipe().map_err(io)?;
        let (err, err_end) = pipe().map_err(io)?;
        let oom_before = oom.read();
        let stdio = [null.as_fd(), out_end.as_fd(), err_end.as_fd()];
        // Before it runs, so that it never ran for longer than is told.
        let now = clock::boot_ms();
        let pid = sys::spawn(&plan, stdio).map_err(|error| prepare::explain(run, &error))?;
        let source = |pipe| Source { pipe: Some(pipe), ring: Ring::default() };
        Ok(Self {
            id: run.id.clone(),
            pid,
            started_ms: now,
            limit_at_ms: now.saturating_add(run.limit_ms),
            lease: run.lease,
            timed_out_ms: None,
            kill_at_ms: None,
            killed: false,
            by: EndedBy::Itself,
            sources: [source(out), source(err)],
            main: None,
            ran_ms: 0,
            alone: false,
            usage: Usage::default(),
            oom_before,
            exit: None,
            exit_sent: false,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// What a hello says of it.
    pub(crate) fn state(&self) -> State {
        let of = |f: fn(&Ring) -> u64| Offsets { stdout: f(&self.sources[0].ring), stderr: f(&self.sources[1].ring) };
        let progress = Progress {
            id: self.id.clone(),
            pid: self.pid,
            ran_ms: clock::boot_ms().saturating_sub(self.started_ms),
            from: of(Ring::from),
            have: of(Ring::have),
        };
        match self.exit {
            None => State::Running(progress),
            Some(exit) => State::Ended(Ended { progress, exit }),
        }
    }

    /// Reads one pipe once.
    pub(crate) fn read(&mut self, which: usize, scratch: &mut [u8]) {
        let source = &mut self.sources[which];
        let Some(pipe) = &source.pipe else { return };
        let room = source.room(self.alone).min(scratch.len());
        if room == 0 {
            return;
        }
        match rustix::io::read(pipe, &mut scratch[..room]) {
            Ok(0) => source.pipe = None,
            Ok(read) => source.ring.push(&scratch[..read], clock::wall_ms()),
            // Nobody is left who could write: an end of the pipe lies in a socket's queue, for ever perhaps.
            Err(Errno::AGAIN) if self.alone => source.pipe = None,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => source.pipe = None,
        }
    }

    /// TERM to all at once, KILL to all after the grace.
    pub(crate) fn stop(&mut self, stop: &Stop) {
        self.terminate(EndedBy::Stopped, clock::boot_ms().saturating_add(stop.grace_ms), stop.grace_ms);
    }

    /// P18: its worker is believed for longer.
    pub(crate) fn extend(&mut self, dead_by_ms: u64) {
        if let Some(lease) = &mut self.lease {
            lease.dead_by_ms = lease.dead_by_ms.max(dead_by_ms);
        }
    }

    fn terminate(&mut self, by: EndedBy, kill_at_ms: u64, grace_ms: u64) {
        if self.main.is_some() || self.killed {
            return;
        }
        if self.by == EndedBy::Itself {
            self.by = by;
        }
        if self.kill_at_ms.is_none() && grace_ms > 0 {
            sys::signal_all(libc::SIGTERM);
        }
        self.kill_at_ms = Some(self.kill_at_ms.map_or(kill_at_ms, |known| known.min(kill_at_ms)));
    }

    /// A child of this process has ended: the command's first one, or one whose parent ended before it.
    pub(crate) fn reaped(&mut self, pid: u32, status: Status, usage: Usage) {
        if self.exit.is_some() {
            return;
        }
        self.usage.user_ms += usage.user_ms;
        self.usage.system_ms += usage.system_ms;
        self.usage.max_rss_bytes = self.usage.max_rss_bytes.max(usage.max_rss_bytes);
        if pid == self.pid {
            self.main = Some(status);
            self.ran_ms = clock::boot_ms().saturating_sub(self.started_ms);
        }
    }

    /// Whether it only remains to kill what it left behind.
    pub(crate) fn is_settling(&self) -> bool {
        self.main.is_some() && !self.alone
    }

    /// Whether only what lies in its pipes remains.
    pub(crate) fn is_draining(&self) -> bool {
        self.alone && self.exit.is_none()
    }

    /// When something is to be done though nothing was heard.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        if self.main.is_some() {
            return None;
        }
        let own = [Some(self.limit_at_ms), self.lease.map(|lease| lease.term_at_ms())];
        let own = own.into_iter().flatten().filter(|_| !self.killed);
        own.chain(self.kill_at_ms).min()
    }

    /// What is due of the deadlines.
    fn keep_time(&mut self, now_ms: u64) {
        if let Some(lease) = self.lease.filter(|lease| now_ms >= lease.term_at_ms()) {
            // P18: from here on nothing lengthens it.
            self.lease = None;
            self.timed_out_ms.get_or_insert(now_ms);
            self.terminate(EndedBy::Lease, lease.dead_by_ms, lease.grace_ms);
        }
        let limited = !self.killed && now_ms >= self.limit_at_ms;
        if limited || self.kill_at_ms.is_some_and(|at| now_ms >= at) {
            // P17. A worker that is there would have stopped it before.
            if self.by == EndedBy::Itself {
                self.by = EndedBy::Limit;
                self.timed_out_ms.get_or_insert(now_ms);
            }
            sys::signal_all(libc::SIGKILL);
            self.killed = true;
            self.kill_at_ms = Some(now_ms + KILL_AGAIN_MS);
        }
    }

    /// What time and the ends of processes bring about. Every child that has ended was reaped before this.
    pub(crate) fn settle(&mut self, now_ms: u64, oom: &OomCounter) {
        if self.main.is_none() {
            self.keep_time(now_ms);
            return;
        }
        if !self.alone {
            self.alone = !sys::signal_all(libc::SIGKILL);
        }
        let Some(status) = self.main else { return };
        if self.exit.is_none() && self.alone && self.sources.iter().all(|source| source.pipe.is_none()) {
            let grew = matches!((self.oom_before, oom.read()), (Some(before), Some(now)) if now > before);
            let [stdout, stderr] = &self.sources;
            self.exit = Some(Exit {
                status,
                oom_killed: grew && status != Status::Code(0),
                ran_ms: self.ran_ms,
                usage: self.usage,
                offsets: Offsets { stdout: stdout.ring.have(), stderr: stderr.ring.have() },
                by: self.by,
            });
        }
    }

    /// P17: its time ended it. If no worker does anything about it until then, there is none that works.
    pub(crate) fn forsaken_at_ms(&self, orphan_ms: u64) -> Option<u64> {
        self.timed_out_ms.map(|at| at.saturating_add(orphan_ms))
    }

    /// For a new connection.
    pub(crate) fn rewind(&mut self) {
        self.exit_sent = false;
        self.sources.iter_mut().for_each(|source| source.ring.rewind());
    }

    /// The stream whose next piece was read first.
    pub(crate) fn next_to_send(&self) -> Option<usize> {
        let at = |which: usize| self.sources[which].ring.next().map(|piece| piece.at_ms);
        match (at(0), at(1)) {
            (Some(out), Some(err)) => Some(usize::from(err < out)),
            (Some(_), None) => Some(0),
            (None, Some(_)) => Some(1),
            (None, None) => None,
        }
    }
}

/// The reading end does not block; the writing end, which is the command's, does.
fn pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::NONBLOCK)?;
    Ok((reader, writer))
}
