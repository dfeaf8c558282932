//! The loop: one thread, one poll.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;

use longshore_supervisor::wire::{
    CannotStart, Clean, Cleaned, Exited, FromSupervisor, Inject, InjectFailed, OUTPUT_BYTES_MAX, Run, Started, State,
    SupervisorHello, ToSupervisor, VERSION, Whose, encode_output,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::clean::Before;
use crate::clock;
use crate::command::{Command, STREAMS};
use crate::incoming::Incoming;
use crate::link::{Link, Lost};
use crate::oom::OomCounter;
use crate::sys::{self, Reaped, Signals};
use crate::unpack::{self, Owner};
use crate::users;

/// Poll counts time that the host sleeps not; deadlines do. So it wakes up this often to look.
const LOOK_MS_MAX: u64 = 60_000;

/// While processes that are not our children (an `exec` through the Engine) are to die: nobody tells their end.
const SETTLE_MS: u64 = 10;

/// A reason names a path, which may be long.
const REASON_BYTES_MAX: usize = 4096;

/// How the supervisor ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// The worker said so.
    Ended,
    /// P17: there is no worker any more.
    Orphaned,
}

pub(crate) struct Supervisor {
    link: Link,
    signals: Signals,
    oom: OomCounter,
    before: Before,
    command: Option<Command>,
    /// The last one that did not start.
    refused: Option<CannotStart>,
    clean: bool,
    orphan_ms: u64,
    /// Since when there is no worker; `None` while there is one.
    alone_since_ms: Option<u64>,
    scratch: Vec<u8>,
    deferred: VecDeque<ToSupervisor>,
    over: Option<Over>,
}

impl Supervisor {
    pub(crate) fn new(socket: PathBuf, orphan_ms: u64) -> io::Result<Self> {
        Ok(Self {
            link: Link::new(socket),
            signals: Signals::new()?,
            oom: OomCounter::find(),
            before: Before::take(),
            command: None,
            refused: None,
            clean: true,
            orphan_ms,
            alone_since_ms: Some(clock::boot_ms()),
            scratch: vec![0; OUTPUT_BYTES_MAX],
            deferred: VecDeque::new(),
            over: None,
        })
    }

    /// Until the container is to end.
    pub(crate) fn run(mut self) -> Over {
        let over = loop {
            if let Some(over) = self.turn() {
                break over;
            }
        };
        // Nobody is told of a failure: the container is given up.
        let _ = self.before.restore_shared();
        sys::signal_all(libc::SIGKILL);
        over
    }

    fn turn(&mut self) -> Option<Over> {
        if self.link.connect(clock::boot_ms()) {
            let hello = self.hello();
            self.link.send(&FromSupervisor::Hello(hello));
        }
        let ready = self.wait();
        self.reap();
        for which in 0..STREAMS.len() {
            if let (true, Some(command)) = (ready.streams[which], &mut self.command) {
                command.read(which, &mut self.scratch);
            }
        }
        // One read a turn: a worker that speaks without end does not keep the streams waiting.
        if ready.link && self.hear().is_err() {
            self.lose();
        }
        let now_ms = clock::boot_ms();
        if let Some(command) = &mut self.command {
            command.settle(now_ms, &self.oom);
        }
        self.send_output();
        if self.link.flush().is_err() {
            // The worker may have said something before it went.
            while matches!(self.hear(), Ok(true)) {}
            self.lose();
        }
        let orphaned = self.orphan_at_ms().is_some_and(|at| now_ms >= at);
        self.over.or(orphaned.then_some(Over::Orphaned))
    }

    /// Polls, for as long as nothing is due.
    fn wait(&self) -> Ready {
        let streams: [_; 2] = std::array::from_fn(|which| {
            // Not polled while full: an end of the stream would be told again and again.
            let command = self.command.as_ref()?;
            let source = &command.sources[which];
            source.pipe.as_ref().filter(|_| source.room(command.is_draining()) > 0)
        });
        // What a command that is gone has left in its pipes is read at once.
        let at_once = self.command.as_ref().is_some_and(Command::is_draining) && streams.iter().any(Option::is_some);
        let timeout_ms = if at_once { 0 } else { self.timeout_ms() };

        let mut fds = Vec::with_capacity(4); // no heap would do, but a poll costs more
        fds.push(PollFd::new(&self.signals, PollFlags::IN));
        if let Some((socket, read, write)) = self.link.interest() {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, read);
            flags.set(PollFlags::OUT, write);
            fds.push(PollFd::from_borrowed_fd(socket, flags));
        }
        let link_at = (fds.len() == 2).then_some(1);
        let streams_at = streams.map(|pipe| {
            let pipe = pipe?;
            fds.push(PollFd::new(pipe, PollFlags::IN));
            Some(fds.len() - 1)
        });
        let part = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let timeout = Timespec { tv_sec: part(timeout_ms / 1000), tv_nsec: part(timeout_ms % 1000) * 1_000_000 };
        // An error is a signal that came between, or no memory: either way there is another turn.
        let _ = poll(&mut fds, Some(&timeout));
        let is_ready = |at: Option<usize>| at.is_some_and(|at| !fds[at].revents().is_empty());
        if is_ready(Some(0)) {
            self.signals.drain();
        }
        let spoken = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
        Ready {
            link: link_at.is_some_and(|at| fds[at].revents().intersects(spoken)),
            streams: streams_at.map(|at| is_ready(at) || at.is_some() && at_once),
        }
    }

    fn timeout_ms(&self) -> u64 {
        let now_ms = clock::boot_ms();
        let mut at_ms = now_ms + LOOK_MS_MAX;
        let mut due = |deadline: Option<u64>| at_ms = deadline.map_or(at_ms, |deadline| at_ms.min(deadline));
        due(self.link.retry_at_ms());
        due(self.orphan_at_ms());
        if let Some(command) = &self.command {
            due(command.deadline_ms());
            due(command.is_settling().then_some(now_ms + SETTLE_MS));
        }
        at_ms.saturating_sub(now_ms)
    }

    /// P17, in both of its forms: no worker, or one that does not see to a command that the limit ended.
    fn orphan_at_ms(&self) -> Option<u64> {
        let alone = self.alone_since_ms.map(|since| since.saturating_add(self.orphan_ms));
        let forsaken = self.command.as_ref().and_then(|command| command.forsaken_at_ms(self.orphan_ms));
        alone.into_iter().chain(forsaken).min()
    }

    fn reap(&mut self) {
        while let Reaped::Child { pid, status, usage } = sys::reap() {
            if let Some(command) = &mut self.command {
                command.reaped(pid, status, usage);
            }
        }
    }

    fn hello(&self) -> SupervisorHello {
        let state = match (&self.command, &self.refused) {
            (_, Some(refused)) => State::CannotStart(refused.clone()),
            (Some(command), None) => command.state(),
            (None, None) => State::Idle,
        };
        SupervisorHello { version: VERSION, pid: std::process::id(), state, clean: self.clean }
    }

    fn lose(&mut self) {
        self.link.close();
        self.deferred.clear();
        self.alone_since_ms.get_or_insert_with(clock::boot_ms);
    }

    /// Reads what the worker said, and does it; whether there was anything.
    fn hear(&mut self) -> Result<bool, Lost> {
        let any = self.link.read()?;
        // What follows an error means nothing; what came before it is done.
        while let (None, Some(message)) = (self.over, self.next_message()?) {
            self.handle(message)?;
        }
        Ok(any)
    }

    fn next_message(&mut self) -> Result<Option<ToSupervisor>, Lost> {
        match self.deferred.pop_front() {
            Some(message) => Ok(Some(message)),
            None => self.link.pop(),
        }
    }

    fn handle(&mut self, message: ToSupervisor) -> Result<(), Lost> {
        if !self.link.is_greeted() {
            return match message {
                ToSupervisor::Hello(hello) if hello.version == VERSION => {
                    self.orphan_ms = hello.orphan_ms;
                    self.alone_since_ms = None;
                    self.link.greet();
                    if let Some(command) = &mut self.command {
                        command.rewind();
                    }
                    Ok(())
                }
                // The one thing that a worker of another version may say.
                ToSupervisor::End => {
                    self.over = Some(Over::Ended);
                    Ok(())
                }
                _ => Err(Lost::Garbage),
            };
        }
        match message {
            ToSupervisor::Hello(_) => return Err(Lost::Garbage),
            ToSupervisor::Run(run) => self.start(&run),
            ToSupervisor::Acked(acked) => {
                if let Some(command) = self.command.as_mut().filter(|command| command.id == acked.id) {
                    command.sources[0].ring.ack(acked.upto.stdout);
                    command.sources[1].ring.ack(acked.upto.stderr);
                }
            }
            ToSupervisor::Extend(extend) => {
                if let Some(command) = self.command.as_mut().filter(|command| command.id == extend.id) {
                    command.extend(extend.dead_by_ms);
                }
            }
            ToSupervisor::Stop(stop) => {
                if let Some(command) = self.command.as_mut().filter(|command| command.id == stop.id) {
                    command.stop(&stop);
                }
            }
            ToSupervisor::Inject(inject) => {
                let answer = match self.inject(&inject) {
                    Ok(()) => FromSupervisor::Injected,
                    Err(mut failed) => {
                        shorten(&mut failed.reason);
                        FromSupervisor::InjectFailed(failed)
                    }
                };
                self.link.send(&answer);
            }
            // Of a tar that has failed already.
            ToSupervisor::InjectData(_) | ToSupervisor::InjectEnd => {}
            ToSupervisor::Clean(clean) => {
                let mut unfit = self.clean_up(&clean).err();
                unfit.iter_mut().for_each(shorten);
                self.link.send(&FromSupervisor::Cleaned(Cleaned { unfit }));
            }
            ToSupervisor::End => self.over = Some(Over::Ended),
        }
        Ok(())
    }

    /// Whether a command is not at its end yet.
    fn is_busy(&self) -> bool {
        self.command.as_ref().is_some_and(|command| command.exit.is_none())
    }

    fn start(&mut self, run: &Run) {
        // Sent again by a worker that did not hear the answer: it hears the same one.
        if let Some(command) = self.command.as_ref().filter(|command| command.id == run.id) {
            let started = Started { id: run.id.clone(), pid: command.pid() };
            return self.link.send(&FromSupervisor::Started(started));
        }
        let busy = if self.is_busy() {
            Some("another command runs here")
        } else if !self.clean {
            Some("the container was not cleaned since its last command")
        } else if run.lease.is_some_and(|lease| clock::boot_ms() >= lease.term_at_ms()) {
            // P18: whoever asked may have been stopped between its own look at the clock and this.
            Some("its lease has ended")
        } else {
            None
        };
        if let Some(reason) = busy {
            // Says nothing of the one that runs, which a hello goes on to tell of.
            let reason = reason.to_owned();
            let cannot = CannotStart { id: run.id.clone(), exit: None, reason, whose: Whose::Io };
            return self.link.send(&FromSupervisor::CannotStart(cannot));
        }
        self.before.note_places(&run.volumes);
        match Command::start(run, &self.oom) {
            Ok(command) => {
                let started = Started { id: run.id.clone(), pid: command.pid() };
                self.link.send(&FromSupervisor::Started(started));
                (self.command, self.refused, self.clean) = (Some(command), None, false);
            }
            Err(mut cannot) => {
                shorten(&mut cannot.reason);
                self.link.send(&FromSupervisor::CannotStart(cannot.clone()));
                (self.command, self.refused) = (None, Some(cannot));
            }
        }
    }

    fn clean_up(&mut self, clean: &Clean) -> Result<(), String> {
        if self.is_busy() {
            return Err("a command runs here".to_owned());
        }
        self.before.restore(clean, &self.signals)?;
        (self.command, self.refused, self.clean) = (None, None, true);
        Ok(())
    }

    /// Blocks until the tar's end: nothing runs meanwhile.
    fn inject(&mut self, inject: &Inject) -> Result<(), InjectFailed> {
        if self.is_busy() {
            let reason = "a command runs here".to_owned();
            return Err(InjectFailed { reason, whose: Whose::Io });
        }
        let user = inject.user.as_deref().unwrap_or_default();
        let refused = |reason| InjectFailed { reason, whose: Whose::Refused };
        let identity = users::find(user).map_err(refused)?;
        let owner = Owner { uid: identity.uid, gid: identity.gid };
        let patience_ms = self.orphan_ms;
        let incoming = Incoming::new(&mut self.link, &mut self.deferred, patience_ms);
        unpack::unpack(&inject.target, owner, incoming)
    }

    fn send_output(&mut self) {
        let Some(command) = &mut self.command else { return };
        while self.link.has_room()
            && let Some(which) = command.next_to_send()
        {
            let ring = &mut command.sources[which].ring;
            let (Some(piece), Some(out)) = (ring.next(), self.link.out()) else { return };
            let sent = piece.len();
            // A piece is far below the longest frame.
            let _ = encode_output(&command.id, STREAMS[which], piece.at_ms, piece.offset, piece.parts, out);
            ring.sent(sent);
        }
        if let Some(exit) = command.exit.filter(|_| !command.exit_sent)
            && self.link.has_room()
            && command.next_to_send().is_none()
        {
            command.exit_sent = true;
            self.link.send(&FromSupervisor::Exited(Exited { id: command.id.clone(), exit }));
        }
    }
}

struct Ready {
    link: bool,
    streams: [bool; 2],
}

fn shorten(reason: &mut String) {
    if reason.len() > REASON_BYTES_MAX {
        reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
    }
}
