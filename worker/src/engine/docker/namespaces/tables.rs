//! What is in another process's network namespace, by what the kernel tells everybody in `/proc/<pid>/net`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::blocking::blocking;

/// The kernel takes sockets apart after their processes' end, and the worker's own end of a supervisor's connection is
/// closed by a task: some milliseconds. A namespace that is not empty after this is not waited for.
const SETTLE: Duration = Duration::from_millis(500);
const SETTLE_STEP: Duration = Duration::from_millis(10);

/// The kernel's tables of sockets of which a namespace that nobody uses has none: one heading, then a line for each.
/// Those of protocols that this kernel has not are not there.
const EMPTY: [&str; 13] = [
    "tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6", "icmp", "icmp6", "packet", "sctp/eps", "mptcp",
];

/// Those of [`EMPTY`] that every kernel has: if they are not there, something else is wrong.
const SURE: [&str; 2] = ["tcp", "udp"];

/// A process that may end, and whose number may then be another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pid: u32,
    /// In the kernel's ticks since it booted.
    started: u64,
}

/// How many sockets of any kind a namespace has, and of the local kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sockets {
    used: u64,
    unix: u64,
}

impl Sockets {
    /// Whether there are no more than these.
    pub(super) fn is_within(self, own: Self) -> bool {
        self.used <= own.used && self.unix <= own.unix
    }
}

impl Process {
    /// One that is not there.
    pub(super) const NONE: Self = Self { pid: 0, started: 0 };

    /// The process that has this number now. Blocking.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        Ok(Self { pid, started: started(&directory(pid))? })
    }

    /// Whether it is still there. Blocking.
    pub(super) fn lives(self) -> bool {
        started(&directory(self.pid)).is_ok_and(|started| started == self.started)
    }

    /// What is in its network namespace, as soon as that is `enough`, or when there was time enough for what was just
    /// connected or closed; as [`sockets`](Self::sockets).
    pub(super) async fn settled(self, enough: impl Fn(&Sockets) -> bool) -> io::Result<Sockets> {
        let until = Instant::now() + SETTLE;
        loop {
            let found = blocking(move || self.sockets()).await;
            if found.as_ref().is_ok_and(&enough) || Instant::now() >= until {
                return found;
            }
            sleep(SETTLE_STEP).await;
        }
    }

    /// What is in its network namespace; an error if it is more than a supervisor's and an Engine's own, or cannot be
    /// seen. Blocking.
    fn sockets(self) -> io::Result<Sockets> {
        let sockets = sockets(&directory(self.pid).join("net"))?;
        // Looked at afterwards: then all of it was this one's.
        if self.lives() { Ok(sockets) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

fn directory(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

/// When a process was started: the 22nd field, counted behind the name, which may hold anything.
fn started(process: &Path) -> io::Result<u64> {
    let stat = fs::read_to_string(process.join("stat"))?;
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
    // A process that has ended has no namespaces, although its parent may not have asked for it yet.
    if matches!(fields.next(), None | Some("Z" | "X")) {
        return Err(io::ErrorKind::NotFound.into());
    }
    fields.nth(18).and_then(|field| field.parse().ok()).ok_or_else(|| invalid("stat"))
}

fn sockets(net: &Path) -> io::Result<Sockets> {
    for table in EMPTY {
        match fs::read_to_string(net.join(table)) {
            Ok(lines) if lines.lines().count() <= 1 => {}
            Ok(_) => return Err(io::Error::other(format!("there are sockets in {table}"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !SURE.contains(&table) => {}
            Err(error) => return Err(error),
        }
    }
    let unix = fs::read_to_string(net.join("unix"))?;
    // A name that is no file's stays taken in its namespace.
    if unix.lines().skip(1).any(|line| line.split_ascii_whitespace().nth(7).is_some_and(|path| path.starts_with('@'))) {
        return Err(io::Error::other("there is an abstract local socket"));
    }
    let unix = unix.lines().skip(1).count() as u64;
    // Every kind, those too that have no table.
    let sockstat = fs::read_to_string(net.join("sockstat"))?;
    let used = sockstat.lines().find_map(|line| line.strip_prefix("sockets: used "));
    let used = used.and_then(|used| used.trim().parse().ok()).ok_or_else(|| invalid("sockstat"))?;
    Ok(Sockets { used, unix })
}

fn invalid(file: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{file} is not in the form that is known"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADING: &str = "  sl  local_address rem_address   st\n";
    const UNIX: &str = "Num       RefCount Protocol Flags    Type St Inode Path\n";

    /// As the kernel shows an idle holder's.
    fn idle() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for table in ["tcp", "tcp6", "udp", "raw", "icmp"] {
            fs::write(dir.path().join(table), HEADING).unwrap();
        }
        let unix = format!("{UNIX}0: 3 0 0 0001 03 17\n0: 3 0 0 0001 03 18 /proc/self/fd/9/sock\n");
        fs::write(dir.path().join("unix"), unix).unwrap();
        fs::write(dir.path().join("sockstat"), "sockets: used 3\nTCP: inuse 0 orphan 4 tw 0\n").unwrap();
        dir
    }

    #[test]
    fn an_idle_holder_is_empty_and_any_socket_in_any_table_is_seen() {
        let dir = idle();
        let own = sockets(dir.path()).unwrap();
        assert_eq!(own, Sockets { used: 3, unix: 2 });
        for table in ["tcp", "tcp6", "udp6", "udplite", "raw6", "icmp6", "packet"] {
            let dir = idle();
            // TIME_WAIT, say: it belongs to no process any more.
            fs::write(dir.path().join(table), format!("{HEADING}0: 0100007F:0050 00000000:0000 06\n")).unwrap();
            assert!(sockets(dir.path()).is_err(), "{table}");
        }
    }

    #[test]
    fn more_than_its_own_is_more_and_less_is_not() {
        let own = Sockets { used: 3, unix: 2 };
        assert!(own.is_within(own) && Sockets { used: 1, unix: 0 }.is_within(own));
        assert!(!Sockets { used: 4, unix: 2 }.is_within(own) && !Sockets { used: 3, unix: 3 }.is_within(own));
    }

    #[test]
    fn an_abstract_name_is_seen_and_what_cannot_be_read_is_not_empty() {
        let dir = idle();
        fs::write(dir.path().join("unix"), format!("{UNIX}0: 2 0 10000 0001 01 17 @name\n")).unwrap();
        assert!(sockets(dir.path()).is_err());
        for missing in ["tcp", "unix", "sockstat"] {
            let dir = idle();
            fs::remove_file(dir.path().join(missing)).unwrap();
            assert!(sockets(dir.path()).is_err(), "{missing}");
        }
        let dir = idle();
        fs::write(dir.path().join("sockstat"), "another form").unwrap();
        assert!(sockets(dir.path()).is_err());
    }

    #[test]
    fn a_process_is_told_from_a_later_one_of_its_number() {
        let own = Process::of(std::process::id()).unwrap();
        assert!(own.lives() && own.sockets().is_err(), "the test's own namespace has sockets");
        assert!(!Process { started: own.started + 1, ..own }.lives());
        let dir = tempfile::tempdir().unwrap();
        let stat = |state: &str| format!("12 (a ) (b) {state} 1 1 1 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 777 9 9\n");
        fs::write(dir.path().join("stat"), stat("S")).unwrap();
        assert_eq!(started(dir.path()).unwrap(), 777);
        fs::write(dir.path().join("stat"), stat("Z")).unwrap();
        assert!(started(dir.path()).is_err());
    }
}
