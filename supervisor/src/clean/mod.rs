//! What lies between two commands in one container: a command sees its parent's *files*, as it would in a container
//! that was made from them.

mod dev;
mod etc;
mod ipc;
mod places;
mod sockets;

use longshore_supervisor::wire::Clean;

use crate::clock;
use crate::mounts;
use crate::sys::{self, Reaped, Signals};

/// From KILL to gone: longer only in a call of the kernel's that cannot be broken off.
const KILL_MS_MAX: u64 = 10_000;

/// How often to look for processes that are not our children (an `exec` through the Engine).
const LOOK_MS: i64 = 10;

/// How things were before the first command.
pub(crate) struct Before {
    dev: dev::Listing,
    etc: etc::Files,
    /// Taken when the first command comes, which says what volumes there are.
    places: Option<places::Places>,
}

impl Before {
    /// At the supervisor's start.
    pub(crate) fn take() -> Self {
        let mounts = mounts::read();
        Self { dev: dev::Listing::take(&mounts), etc: etc::Files::take(&mounts), places: None }
    }

    /// Before a command runs.
    pub(crate) fn note_places(&mut self, volumes: &[String]) {
        self.places.get_or_insert_with(|| places::Places::take(volumes, &mounts::read()));
    }

    /// Puts back what may belong to others too: with a network that is joined, these files are its first container's.
    pub(crate) fn restore_shared(&self) -> Result<(), String> {
        self.etc.restore()
    }

    /// All of it. `Err`: why no other command may go on here. What can be removed is, also after a failure.
    pub(crate) fn restore(&mut self, clean: &Clean, signals: &Signals) -> Result<(), String> {
        kill_all(signals)?;
        self.note_places(&clean.volumes);
        let places = self.places.as_ref().map_or(Ok(()), |places| places.restore(&clean.volumes));
        places.and(self.dev.restore()).and(ipc::remove_all()).and(self.etc.restore()).and(sockets::remove(clean))
    }
}

/// Until nothing else runs, zombies included.
fn kill_all(signals: &Signals) -> Result<(), String> {
    let give_up_at = clock::boot_ms() + KILL_MS_MAX;
    while sys::signal_all(libc::SIGKILL) {
        while matches!(sys::reap(), Reaped::Child { .. }) {}
        if !sys::signal_all(libc::SIGKILL) {
            break;
        }
        if clock::boot_ms() > give_up_at {
            return Err("a process cannot be killed".to_owned());
        }
        let mut fds = [rustix::event::PollFd::new(signals, rustix::event::PollFlags::IN)];
        let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: LOOK_MS * 1_000_000 };
        let _ = rustix::event::poll(&mut fds, Some(&timeout));
        signals.drain();
    }
    Ok(())
}
