//! fork and exec. Everything that needs memory is prepared before: the child calls only what POSIX allows
//! between the two (async-signal-safe functions).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;

use super::process::wait_for;

/// A program, ready to be executed.
#[derive(Debug)]
pub(crate) struct ExecPlan {
    /// Paths to try, in order.
    pub(crate) programs: Vec<CString>,
    /// The programs come from `PATH`: one that is not there is no error as long as there is another.
    pub(crate) searched: bool,
    pub(crate) argv: Vec<CString>,
    pub(crate) env: Vec<CString>,
    pub(crate) workdir: CString,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// Why nothing was started.
#[derive(Debug)]
pub(crate) enum SpawnError {
    /// No process could be made.
    Fork(io::Error),
    /// The working directory cannot be entered.
    Workdir(io::Error),
    /// The new process could not become what it was to be.
    Setup(io::Error),
    /// No program could be executed.
    Exec(io::Error),
}

/// What the child was at when it failed; on the pipe, before the error's number.
const AT_SETUP: i32 = 1;
const AT_WORKDIR: i32 = 2;
const AT_EXEC: i32 = 3;

/// The highest signal of Linux, the real-time ones included.
const SIGNAL_MAX: libc::c_int = 64;

/// Prepared memory that the child reads.
struct Child<'a> {
    plan: &'a ExecPlan,
    argv: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
    stdio: [RawFd; 3],
    errors: RawFd,
}

/// Starts it, in a session of its own, and returns when the program is executed: the pipe for errors closes by
/// itself then.
pub(crate) fn spawn(plan: &ExecPlan, stdio: [BorrowedFd<'_>; 3]) -> Result<u32, SpawnError> {
    let (reader, writer) = close_on_exec_pipe().map_err(SpawnError::Fork)?;
    let child = Child {
        plan,
        argv: pointers(&plan.argv),
        env: pointers(&plan.env),
        stdio: stdio.map(|fd| fd.as_raw_fd()),
        errors: writer.as_raw_fd(),
    };
    // SAFETY: this process has one thread, so the child's memory is whole; it runs only `become_program`.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: this is the child of a fork, and `child` was made before it.
        unsafe { become_program(&child) }
    }
    let Ok(pid) = u32::try_from(pid) else { return Err(SpawnError::Fork(io::Error::last_os_error())) };
    drop(writer);
    let mut said = [0; 8];
    let mut filled = 0;
    while let Ok(read @ 1..) = rustix::io::retry_on_intr(|| rustix::io::read(&reader, &mut said[filled..])) {
        filled += read;
    }
    if filled < said.len() {
        return Ok(pid); // closed by execve; or it was killed before, and is a command that ended by a signal
    }
    wait_for(pid);
    let (at, errno) = said.split_at(4);
    let number = |bytes: &[u8]| i32::from_ne_bytes(bytes.try_into().unwrap_or_default());
    let error = io::Error::from_raw_os_error(number(errno));
    Err(match number(at) {
        AT_WORKDIR => SpawnError::Workdir(error),
        AT_EXEC => SpawnError::Exec(error),
        _ => SpawnError::Setup(error),
    })
}

fn close_on_exec_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// Does not return: executes the program, or says why not and exits.
///
/// # Safety
/// Only in the child of a fork. The pointers in `child` must be alive.
unsafe fn become_program(child: &Child<'_>) -> ! {
    // SAFETY: calls of the kernel with numbers and with pointers into `child`; no memory is taken, no lock, and
    // the error's number is read from this thread's own place.
    unsafe {
        let at = enter(child);
        let error = *libc::__errno_location();
        let mut said = [0_u8; 8];
        said[..4].copy_from_slice(&at.to_ne_bytes());
        said[4..].copy_from_slice(&error.to_ne_bytes());
        // Eight bytes go into an empty pipe at once.
        libc::write(child.errors, said.as_ptr().cast(), said.len());
        libc::_exit(127)
    }
}

/// Returns only on a failure: what it was at. `errno` says the rest.
///
/// # Safety
/// As [`become_program`].
unsafe fn enter(child: &Child<'_>) -> i32 {
    let plan = child.plan;
    // SAFETY: as said in `become_program`; every pointer is to a string or array that ends as the call expects.
    unsafe {
        libc::setsid();
        // The parent's mask and dispositions are not the command's (SIGPIPE is ignored there).
        // By the kernel's own call: the C library's keeps two signals to itself.
        let default = [0_usize; 4]; // handler (SIG_DFL), flags, restorer, mask
        for signal in 1..=SIGNAL_MAX {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), ptr::null::<usize>(), size_of::<u64>());
        }
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        // Under a user namespace the files of a hidden process belong to the host's root. What is shown is only a
        // copy of the supervisor, for as long as it takes to execute the program.
        libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
        if reset_oom_score() < 0 {
            return AT_SETUP;
        }
        libc::umask(0o022);
        for (target, source) in (0..).zip(child.stdio) {
            if libc::dup2(source, target) < 0 {
                return AT_SETUP;
            }
        }
        // As root: a user who may not look into a directory may have been put into it.
        if libc::chdir(plan.workdir.as_ptr()) < 0 {
            return AT_WORKDIR;
        }
        if libc::setgroups(plan.groups.len(), plan.groups.as_ptr()) < 0
            || libc::setresgid(plan.gid, plan.gid, plan.gid) < 0
            || libc::setresuid(plan.uid, plan.uid, plan.uid) < 0
        {
            return AT_SETUP;
        }
        if plan.uid != 0 && drop_capabilities() < 0 {
            return AT_SETUP;
        }
        let mut denied = false;
        for program in &plan.programs {
            libc::execve(program.as_ptr(), child.argv.as_ptr(), child.env.as_ptr());
            match *libc::__errno_location() {
                libc::EACCES => denied = true,
                libc::ENOENT | libc::ENOTDIR if plan.searched => {}
                _ => return AT_EXEC,
            }
        }
        // As a shell: what is there and may not be executed is the reason, if nothing better was found.
        *libc::__errno_location() = if denied { libc::EACCES } else { libc::ENOENT };
        AT_EXEC
    }
}

/// The supervisor is the last that the kernel is to take; the command is not. Raising the score is allowed to
/// everybody; a score that is not below zero is the Engine's choice, and stays.
///
/// # Safety
/// As [`become_program`].
unsafe fn reset_oom_score() -> libc::c_int {
    let mut first = 0_u8;
    // SAFETY: a string that ends in a zero, and buffers of the lengths that are given.
    unsafe {
        let fd = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        if fd < 0 {
            return -1;
        }
        let read = libc::read(fd, (&raw mut first).cast(), 1);
        let done = read == 1 && (first != b'-' || libc::pwrite(fd, c"0".as_ptr().cast(), 1, 0) == 1);
        libc::close(fd);
        if done { 0 } else { -1 }
    }
}

/// Changing the user clears the permitted and effective sets; some runtimes leave an inheritable one.
///
/// # Safety
/// As [`become_program`].
unsafe fn drop_capabilities() -> libc::c_int {
    /// `_LINUX_CAPABILITY_VERSION_3`
    const VERSION: u32 = 0x2008_0522;
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let header = Header { version: VERSION, pid: 0 };
    let sets = [0_u32; 6]; // two of {effective, permitted, inheritable}
    // SAFETY: the kernel reads a header and, for this version, two sets of three words.
    unsafe {
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
        let done = libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr());
        -libc::c_int::from(done != 0)
    }
}
