//! System V objects: they outlive the processes that made them.

use std::io;

use super::process::hide;

/// Which table of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IpcKind {
    SharedMemory,
    MessageQueue,
    Semaphores,
}

/// Removes one. The kernel allows it to the owner and the maker, by the effective user id, and to nobody else who
/// lacks `CAP_SYS_ADMIN`: so this process becomes the owner for the moment.
pub(crate) fn remove_ipc(kind: IpcKind, id: i32, owner: u32) -> io::Result<()> {
    const UNCHANGED: libc::uid_t = libc::uid_t::MAX;
    // SAFETY: numbers only; the saved user id stays root's, so that the way back is open.
    if unsafe { libc::setresuid(UNCHANGED, owner, UNCHANGED) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: IPC_RMID reads and writes no memory of ours.
    let removed = unsafe {
        match kind {
            IpcKind::SharedMemory => libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()),
            IpcKind::MessageQueue => libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()),
            IpcKind::Semaphores => libc::semctl(id, 0, libc::IPC_RMID),
        }
    };
    let result = if removed < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: as above.
    let back = unsafe { libc::setresuid(UNCHANGED, 0, UNCHANGED) };
    hide(); // a change of the user sets it to what the host's administrator prefers
    if back < 0 { Err(io::Error::last_os_error()) } else { result }
}
