//! The calls that the standard library lacks. The C library is linked statically, so the image needs none.

use std::ffi::{CString, c_char, c_int, c_long, c_uint, c_void};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

#[repr(C)]
struct Timespec {
    secs: i64,
    nanos: c_long,
}

unsafe extern "C" {
    fn fork() -> c_int;
    fn setsid() -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn getpid() -> c_int;
    fn getppid() -> c_int;
    fn getsid(pid: c_int) -> c_int;
    fn getuid() -> c_uint;
    fn getgid() -> c_uint;
    fn signal(signal: c_int, handler: usize) -> usize;
    fn umask(mask: c_uint) -> c_uint;
    fn mkfifo(path: *const c_char, mode: c_uint) -> c_int;
    fn utimensat(dir: c_int, path: *const c_char, times: *const Timespec, flags: c_int) -> c_int;
    fn lsetxattr(path: *const c_char, name: *const c_char, value: *const c_void, size: usize, flags: c_int) -> c_int;
    fn lgetxattr(path: *const c_char, name: *const c_char, value: *mut c_void, size: usize) -> isize;
    fn shmget(key: c_int, size: usize, flags: c_int) -> c_int;
    fn msgget(key: c_int, flags: c_int) -> c_int;
    fn semget(key: c_int, count: c_int, flags: c_int) -> c_int;
    fn setuid(uid: c_uint) -> c_int;
    fn gethostname(name: *mut c_char, len: usize) -> c_int;
    fn getpriority(which: c_int, who: c_uint) -> c_int;
    fn _exit(code: c_int) -> !;
}

pub const SIGKILL: c_int = 9;
pub const SIGTERM: c_int = 15;
pub const SIGSTOP: c_int = 19;
const SIG_IGN: usize = 1;
const AT_FDCWD: c_int = -100;
const AT_SYMLINK_NOFOLLOW: c_int = 0x100;
const IPC_CREAT: c_int = 0o1000;

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no NUL in a test's path")
}

fn done(code: c_int) -> io::Result<()> {
    if code == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Who goes on after a fork.
#[derive(PartialEq, Eq)]
pub enum Side {
    Parent,
    Child,
}

/// There is one thread only, so the child may do whatever it likes.
pub fn forked() -> io::Result<Side> {
    match unsafe { fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        _ => Ok(Side::Parent),
    }
}

pub fn leave(code: u8) -> ! {
    unsafe { _exit(code.into()) }
}

pub fn new_session() {
    unsafe { setsid() };
}

pub fn send(pid: i32, which: c_int) -> io::Result<()> {
    done(unsafe { kill(pid, which) })
}

pub fn pid() -> i32 {
    unsafe { getpid() }
}

/// Whether the parent leads this process's session.
pub fn parent_leads() -> bool {
    unsafe { getsid(0) == getppid() }
}

pub fn ids() -> (u32, u32) {
    unsafe { (getuid(), getgid()) }
}

pub fn become_user(uid: u32) -> io::Result<()> {
    done(unsafe { setuid(uid) })
}

pub fn ignore(which: c_int) {
    unsafe { signal(which, SIG_IGN) };
}

pub fn mask() -> u32 {
    unsafe {
        let mask = umask(0);
        umask(mask);
        mask
    }
}

pub fn nice() -> i32 {
    unsafe { getpriority(0, 0) }
}

pub fn hostname() -> String {
    let mut name = [0_u8; 256];
    unsafe { gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    let len = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    String::from_utf8_lossy(&name[..len]).into_owned()
}

pub fn fifo(path: &Path, mode: u32) -> io::Result<()> {
    done(unsafe { mkfifo(c(path).as_ptr(), mode) })
}

/// Of the entry itself, not of what a symbolic link leads to.
pub fn set_mtime(path: &Path, secs: i64, nanos: i64) -> io::Result<()> {
    let times = [Timespec { secs, nanos }, Timespec { secs, nanos }];
    done(unsafe { utimensat(AT_FDCWD, c(path).as_ptr(), times.as_ptr(), AT_SYMLINK_NOFOLLOW) })
}

pub fn set_attribute(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let name = CString::new(name).expect("no NUL in a name");
    done(unsafe { lsetxattr(c(path).as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) })
}

pub fn attribute(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    let name = CString::new(name).expect("no NUL in a name");
    let mut value = vec![0_u8; 1024];
    let len = unsafe { lgetxattr(c(path).as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(len).map_err(|_| io::Error::last_os_error())?);
    Ok(value)
}

/// One object of each kind of System V IPC, kept after this process's end.
pub fn sysv(key: i32, mode: i32) -> io::Result<()> {
    unsafe {
        done(shmget(key, 4096, IPC_CREAT | mode))?;
        done(msgget(key, IPC_CREAT | mode))?;
        done(semget(key, 1, IPC_CREAT | mode))
    }
}

/// An error by a name that does not depend on the C library's words.
pub fn name(error: &io::Error) -> String {
    let known = match error.raw_os_error() {
        Some(1) => "EPERM",
        Some(2) => "ENOENT",
        Some(11) => "EAGAIN",
        Some(13) => "EACCES",
        Some(16) => "EBUSY",
        Some(17) => "EEXIST",
        Some(18) => "EXDEV",
        Some(20) => "ENOTDIR",
        Some(21) => "EISDIR",
        Some(26) => "ETXTBSY",
        Some(30) => "EROFS",
        Some(39) => "ENOTEMPTY",
        Some(40) => "ELOOP",
        Some(61) => "ENODATA",
        Some(95) => "EOPNOTSUPP",
        Some(98) => "EADDRINUSE",
        _ => return error.to_string(),
    };
    known.to_owned()
}
