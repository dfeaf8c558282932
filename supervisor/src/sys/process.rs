//! Signals and children.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use longshore_supervisor::wire::{Status, Usage};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

/// `SIGCHLD` as something to poll. Nothing else is taken: for process 1 the kernel ignores every signal from
/// within the container that has no handler, so a step cannot end the supervisor.
pub(crate) struct Signals(OwnedFd);

impl Signals {
    /// Blocks the signal, and opens the descriptor. The child of a fork unblocks it again.
    pub(crate) fn new() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set that the two others then use; the mask is a valid set.
        let fd = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
            libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
            libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it was just opened, and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Takes what has come, so that the descriptor is quiet until the next one.
    pub(crate) fn drain(&self) {
        let mut info = [0_u8; size_of::<libc::signalfd_siginfo>() * 4];
        while rustix::io::read(&self.0, &mut info).is_ok_and(|read| read > 0) {}
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One look at the children.
pub(crate) enum Reaped {
    /// One has ended, and is no zombie any more.
    Child { pid: u32, status: Status, usage: Usage },
    /// None has ended.
    None,
}

/// Takes one child that has ended, whichever.
pub(crate) fn reap() -> Reaped {
    wait4(-1, libc::WNOHANG)
}

/// Waits for a child that is about to end.
pub(crate) fn wait_for(pid: u32) {
    wait4(libc::pid_t::try_from(pid).unwrap_or(libc::pid_t::MAX), 0);
}

fn wait4(which: libc::pid_t, options: libc::c_int) -> Reaped {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    let pid = loop {
        // SAFETY: both point to memory of the right type that lives through the call.
        let pid = unsafe { libc::wait4(which, &raw mut status, options, usage.as_mut_ptr()) };
        if pid >= 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            break pid;
        }
    };
    let Ok(pid @ 1..) = u32::try_from(pid) else { return Reaped::None };
    // SAFETY: zeroed is a valid value of plain numbers, whether or not the kernel wrote over it.
    let usage = unsafe { usage.assume_init() };
    // Without WUNTRACED and WCONTINUED there are only these two.
    let status = if libc::WIFSIGNALED(status) {
        Status::Signal(u8::try_from(libc::WTERMSIG(status)).unwrap_or(u8::MAX))
    } else {
        Status::Code(u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(u8::MAX))
    };
    let usage = Usage {
        user_ms: millis(usage.ru_utime),
        system_ms: millis(usage.ru_stime),
        max_rss_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
    };
    Reaped::Child { pid, status, usage }
}

fn millis(time: libc::timeval) -> u64 {
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(time.tv_sec) * 1000 + part(time.tv_usec) / 1000
}

/// Sends a signal to every process of the container but this one; tells whether there was any, zombies
/// included. The kernel does it in one go: no fork escapes.
pub(crate) fn signal_all(signal: libc::c_int) -> bool {
    // SAFETY: kill takes numbers only. -1 means the own process id namespace, as this is its first process:
    // `main` makes sure of that.
    let sent = unsafe { libc::kill(-1, signal) };
    sent == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// Keeps this process's memory and descriptors from processes of the same user, which the step's may be.
pub(crate) fn hide() {
    // Cannot fail with this value.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Descriptors that this process was started with are not for those that it starts.
pub(crate) fn close_on_exec_all() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse::<libc::c_int>().ok()) else { continue };
        if fd > 2 {
            // SAFETY: a number and a flag; of a descriptor that is not open the kernel says EBADF. The one that
            // reads this directory has the flag already.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}
