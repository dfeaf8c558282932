//! What is in another process's network namespace, by what the kernel tells everybody in `/proc/<pid>/net`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use longshore_protocol::process::blocking;

/// The kernel takes sockets apart after their processes' end, and the worker's own end of a supervisor's connection is
/// closed by a task: some milliseconds, on a machine that is not busy. A namespace that is not empty after this is not
/// waited for.
const SETTLE: Duration = Duration::from_secs(2);
/// From the first look to the second; then doubling.
const SETTLE_STEP: Duration = Duration::from_millis(10);

/// The kernel's tables of sockets of which a namespace that nobody uses has none: one heading, then a line for each.
/// Those of protocols that this kernel has not are not there.
const EMPTY: [&str; 13] = [
    "tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6", "icmp", "icmp6", "packet", "sctp/eps", "mptcp",
];

/// Those of [`EMPTY`] that every kernel has: if they are not there, something else is wrong.
const SURE: [&str; 2] = ["tcp", "udp"];

/// Those of [`EMPTY`] for which the kernel walks the table of the whole machine's connections, up to half a million
/// buckets: 5 ms each, against 0.3 ms for all the others together. They are left out where [`Counts`] leave no room for
/// anything in them.
const LARGE: [&str; 2] = ["tcp", "tcp6"];

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
        let (until, mut pause) = (Instant::now() + SETTLE, SETTLE_STEP);
        loop {
            let found = blocking(move || self.sockets()).await;
            let gone = found.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
            if gone || found.as_ref().is_ok_and(&enough) || Instant::now() >= until {
                return found;
            }
            sleep(pause).await;
            pause *= 2;
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
    // Before what they are compared with: nothing runs here that could make a socket, so there are only fewer later,
    // and each that is counted now and not accounted for afterwards has the tables read.
    let counts = Counts::read(net)?;
    let unix = fs::read_to_string(net.join("unix"))?;
    // A name that is no file's stays taken in its namespace.
    if unix.lines().skip(1).any(|line| line.split_ascii_whitespace().nth(7).is_some_and(|path| path.starts_with('@'))) {
        return Err(io::Error::other("there is an abstract local socket"));
    }
    let unix = unix.lines().skip(1).count() as u64;
    let no_tcp = counts.tcp == 0 && counts.used <= unix + netlink(net)?;
    for table in EMPTY.into_iter().filter(|table| !(no_tcp && LARGE.contains(table))) {
        match fs::read_to_string(net.join(table)) {
            Ok(lines) if lines.lines().count() <= 1 => {}
            Ok(_) => return Err(io::Error::other(format!("there are sockets in {table}"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !SURE.contains(&table) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Sockets { used: counts.used, unix })
}

/// What the kernel counts without walking any table.
struct Counts {
    /// Sockets of every kind, those too that have no table: of TCP whatever holds a port, a request that a listener
    /// has not answered included, because it keeps that listener; all but `TIME_WAIT`.
    used: u64,
    /// Of TCP: those that have a port, and `TIME_WAIT`.
    tcp: u64,
}

impl Counts {
    fn read(net: &Path) -> io::Result<Self> {
        let sockstat = fs::read_to_string(net.join("sockstat"))?;
        let sockstat6 = match fs::read_to_string(net.join("sockstat6")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(), // a kernel without IPv6
            read => read?,
        };
        let known = |count: Option<u64>| count.ok_or_else(|| invalid("sockstat"));
        let used = known(count(&sockstat, "sockets:", "used"))?;
        let tcp = known(count(&sockstat, "TCP:", "inuse"))? + known(count(&sockstat, "TCP:", "tw"))?;
        let tcp6 = if sockstat6.is_empty() { 0 } else { known(count(&sockstat6, "TCP6:", "inuse"))? };
        Ok(Self { used, tcp: tcp + tcp6 })
    }
}

/// A number in lines such as `TCP: inuse 0 orphan 0 tw 0`.
fn count(text: &str, line: &str, name: &str) -> Option<u64> {
    let mut words = text.lines().find_map(|text| text.strip_prefix(line))?.split_ascii_whitespace();
    words.find(|word| *word == name)?;
    words.next()?.parse().ok()
}

/// Netlink sockets of processes: an Engine keeps one in each namespace that it makes. The kernel's own are numbered 0,
/// and are not among those that it counts as used.
fn netlink(net: &Path) -> io::Result<u64> {
    let table = fs::read_to_string(net.join("netlink"))?;
    let ports = table.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().nth(2));
    Ok(ports.filter(|port| *port != "0").count() as u64)
}

fn invalid(file: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{file} is not in the form that is known"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADING: &str = "  sl  local_address rem_address   st\n";
    const UNIX: &str = "Num       RefCount Protocol Flags    Type St Inode Path\n";

    const NETLINK: &str = "sk               Eth Pid        Groups   Rmem\n0000000054 0   0          00000000 0\n";

    /// As the kernel shows an idle holder's: a supervisor's two ends, and an Engine's question.
    fn idle() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for table in ["tcp", "tcp6", "udp", "raw", "icmp"] {
            fs::write(dir.path().join(table), HEADING).unwrap();
        }
        let unix = format!("{UNIX}0: 3 0 0 0001 03 17\n0: 3 0 0 0001 03 18 /proc/self/fd/9/sock\n");
        fs::write(dir.path().join("unix"), unix).unwrap();
        fs::write(dir.path().join("netlink"), format!("{NETLINK}000000007b 0   25902      00000000 0\n")).unwrap();
        count_used(dir.path(), 3, "TCP: inuse 0 orphan 4 tw 0", "TCP6: inuse 0");
        dir
    }

    fn count_used(net: &Path, used: u64, tcp: &str, tcp6: &str) {
        fs::write(net.join("sockstat"), format!("sockets: used {used}\n{tcp} alloc 8 mem 0\nUDP: inuse 0\n")).unwrap();
        fs::write(net.join("sockstat6"), format!("{tcp6}\nUDP6: inuse 0\n")).unwrap();
    }

    #[test]
    fn an_idle_holder_is_empty_and_any_socket_in_any_table_is_seen() {
        let dir = idle();
        let own = sockets(dir.path()).unwrap();
        assert_eq!(own, Sockets { used: 3, unix: 2 });
        for table in ["udp6", "udplite", "raw6", "icmp6", "packet"] {
            let dir = idle();
            fs::write(dir.path().join(table), format!("{HEADING}0: 0100007F:0050 00000000:0000 07\n")).unwrap();
            assert!(sockets(dir.path()).is_err(), "{table}");
        }
    }

    #[test]
    fn any_count_that_is_not_accounted_for_has_the_large_tables_read() {
        let none = ("TCP: inuse 0 orphan 0 tw 0", "TCP6: inuse 0");
        let one = "TCP: inuse 1 orphan 0 tw 0";
        // TIME_WAIT belongs to no process any more and is not among those that are used.
        let waiting = "TCP: inuse 0 orphan 0 tw 1";
        for (used, tcp, tcp6) in
            [(3, one, none.1), (3, waiting, none.1), (3, none.0, "TCP6: inuse 1"), (4, none.0, none.1)]
        {
            for table in LARGE {
                let dir = idle();
                fs::write(dir.path().join(table), format!("{HEADING}0: 0100007F:0050 00000000:0000 06\n")).unwrap();
                assert!(sockets(dir.path()).is_ok(), "{table} is not read while the counts say that it is empty");
                count_used(dir.path(), used, tcp, tcp6);
                assert!(sockets(dir.path()).is_err(), "{used} {tcp} {tcp6}: {table}");
                // The counts alone are no verdict: they are compared with those of the holder when it was new.
                fs::write(dir.path().join(table), HEADING).unwrap();
                assert_eq!(sockets(dir.path()).unwrap(), Sockets { used, unix: 2 });
            }
        }
    }

    /// Of the kernel itself: whatever its tables show in this test's own namespace, its counts show as well.
    #[test]
    fn what_the_kernel_lists_it_counts() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let counts = Counts::read(Path::new("/proc/self/net")).unwrap();
        assert!(counts.used > 0 && counts.tcp > 0);
        drop(listener);
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
        for missing in ["udp", "unix", "netlink", "sockstat"] {
            let dir = idle();
            fs::remove_file(dir.path().join(missing)).unwrap();
            assert!(sockets(dir.path()).is_err(), "{missing}");
        }
        let dir = idle();
        count_used(dir.path(), 4, "TCP: inuse 0 orphan 0 tw 0", "TCP6: inuse 0");
        fs::remove_file(dir.path().join("tcp")).unwrap();
        assert!(sockets(dir.path()).is_err(), "what must be read and cannot be");
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
