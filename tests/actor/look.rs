//! Everything that a step can see of the one before it, as lines that are the same in every container that gives the
//! same view: names of this container and of this run are replaced, times of today are "recent".

use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{act, sys};

pub fn everything() {
    let host = sys::hostname();
    process(&host);
    left_behind();
    limits();
    mounts();
    for file in ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"] {
        let text = fs::read_to_string(file).unwrap_or_else(|error| sys::name(&error));
        println!("file {file} {:?}", text.replace(&host, "HOST"));
    }
    walk(Path::new("/"), &recent(), true);
    walk(Path::new("/dev"), &recent(), false);
}

fn process(host: &str) {
    println!(
        "user {:?} cwd {:?} umask {:o} nice {}",
        sys::ids(),
        std::env::current_dir().ok(),
        sys::mask(),
        sys::nice()
    );
    println!("leader {} oom {}", sys::parent_leads(), read("/proc/self/oom_score_adj"));
    let mut env: Vec<_> = std::env::vars().collect();
    env.sort();
    for (name, value) in env {
        // Which run and where it is are the only words in which the two may differ.
        let value = if name == "LONGSHORE_RUN" { "RUN".to_owned() } else { value.replace(host, "HOST") };
        println!("env {name}={value}");
    }
    let told = [
        "Groups",
        "SigBlk",
        "SigIgn",
        "SigCgt",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp:",
    ];
    for line in read("/proc/self/status").lines().filter(|line| told.iter().any(|word| line.starts_with(word))) {
        println!("status {line}");
    }
    for fd in numbers("/proc/self/fd") {
        // The one through which the directory was read is closed again.
        let Ok(target) = fs::read_link(format!("/proc/self/fd/{fd}")) else { continue };
        println!("fd {fd} {}", target.to_string_lossy().split(':').next().unwrap_or_default());
    }
    print!("{}", read("/proc/self/limits"));
}

/// Processes, IPC objects and what is bound.
fn left_behind() {
    let mut names: Vec<_> = numbers("/proc").iter().map(|pid| read(&format!("/proc/{pid}/comm"))).collect();
    names.sort();
    println!("processes {names:?}");
    for kind in ["shm", "msg", "sem"] {
        println!("sysv {kind} {}", read(&format!("/proc/sysvipc/{kind}")).lines().count().saturating_sub(1));
    }
    let port = TcpListener::bind(("127.0.0.1", act::PORT)).map(drop);
    println!("port {}", port.map_or_else(|error| sys::name(&error), |()| "free".to_owned()));
    let name = SocketAddr::from_abstract_name(act::ABSTRACT).and_then(|name| UnixListener::bind_addr(&name)).map(drop);
    println!("abstract {}", name.map_or_else(|error| sys::name(&error), |()| "free".to_owned()));
    println!("tcp {}", read("/proc/net/tcp").lines().count().saturating_sub(1));
    let sockets = read("/proc/net/unix");
    // Those without a name are the supervisors' own, and their other ends bear the name that the worker bound.
    let named = sockets.lines().skip(1).filter_map(|line| line.split_whitespace().nth(7));
    let named = named.filter(|name| !(name.starts_with("/proc/self/fd/") && name.ends_with("/sock")));
    println!("unix {:?}", named.collect::<Vec<_>>());
}

/// Of the container, in both versions of control groups.
fn limits() {
    let files = [
        "memory/memory.limit_in_bytes",
        "memory/memory.memsw.limit_in_bytes",
        "pids/pids.max",
        "cpu/cpu.cfs_quota_us",
        "memory.max",
        "memory.swap.max",
        "pids.max",
        "cpu.max",
    ];
    for file in files {
        let limit = read(&format!("/sys/fs/cgroup/{file}"));
        println!("limit {file} {}", if limits_nothing(file, &limit) { "none" } else { &limit });
    }
}

/// The Engine has no word that takes a limit away again: an exbibyte of memory, or all processors there are, limit as
/// little.
fn limits_nothing(file: &str, limit: &str) -> bool {
    let processors = read("/proc/cpuinfo").lines().filter(|line| line.starts_with("processor")).count() as i64;
    match limit.split(' ').next().unwrap_or_default().parse::<i64>() {
        Ok(micros) if file.starts_with("cpu") => micros < 0 || micros >= processors * 100_000,
        Ok(number) => number >= 1 << 60,
        Err(_) => limit.starts_with("max"),
    }
}

fn mounts() {
    let table = read("/proc/self/mountinfo");
    let mut mounts: Vec<_> = table
        .lines()
        .filter_map(|line| {
            let (mine, fs) = line.split_once(" - ")?;
            let mut mine = mine.split(' ').skip(4);
            Some(format!("mount {} {} {}", mine.next()?, mine.next()?, fs.split(' ').next()?))
        })
        .collect();
    mounts.sort();
    println!("{}", mounts.join("\n"));
}

/// From when on a time says no more than "this step" or "the one before": half a day ago, which is later than every
/// time that a test sets in the past.
fn recent() -> std::ops::Range<i64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let now = i64::try_from(now).expect("before the year 292277026596");
    now - 43_200..now + 43_200
}

/// Every entry below a directory, in order. `files`: as section 7 of the design page lists what is handed on; else
/// (in `/dev`, which is made anew for every container) without times.
fn walk(dir: &Path, recent: &std::ops::Range<i64>, files: bool) {
    for name in entries(dir) {
        let path = dir.join(&name);
        let shown = path.to_string_lossy().into_owned();
        if ["/proc", "/sys", "/dev/longshore"].contains(&shown.as_str()) {
            continue;
        }
        let Ok(data) = fs::symlink_metadata(&path) else { continue };
        let kind = data.file_type();
        let detail = if kind.is_symlink() {
            format!("link to {:?}", fs::read_link(&path).unwrap_or_default())
        } else if kind.is_file() {
            content(&path)
        } else if kind.is_dir() {
            "directory".to_owned()
        } else if kind.is_fifo() {
            "pipe".to_owned()
        } else if kind.is_socket() {
            "socket".to_owned()
        } else {
            format!("device {:x}", data.rdev())
        };
        let time = match data.mtime() {
            _ if !files || made_by_docker(&shown) => "-".to_owned(),
            secs if recent.contains(&secs) => "recent".to_owned(),
            secs => secs.to_string(),
        };
        let capability = sys::attribute(&path, "security.capability").map(|bytes| format!(" capability {bytes:?}"));
        println!(
            "{shown:?} {detail} {:o} {}:{} {time}{}",
            data.mode() & 0o7777,
            data.uid(),
            data.gid(),
            capability.unwrap_or_default()
        );
        if kind.is_dir() && shown != "/dev" {
            walk(&path, recent, files);
        }
    }
}

/// Mount points: the Engine makes them for each container.
fn made_by_docker(path: &str) -> bool {
    ["/.dockerenv", "/dev", "/etc", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/mtab"].contains(&path)
        || path.starts_with("/volume") && !path[1..].contains('/')
}

/// Length and a hash (FNV-1a) are enough to see a difference; a short text says more.
fn content(path: &Path) -> String {
    if ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"].contains(&path.to_string_lossy().as_ref()) {
        return "mounted".to_owned();
    }
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => return sys::name(&error),
    };
    if let Ok(text) = std::str::from_utf8(&bytes)
        && text.len() < 80
    {
        return format!("{text:?}");
    }
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    format!("{} bytes {hash:016x}", bytes.len())
}

fn entries(dir: &Path) -> Vec<std::ffi::OsString> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    names.sort();
    names
}

/// Of the entries those that are numbers.
fn numbers(dir: &str) -> Vec<u32> {
    entries(Path::new(dir)).iter().filter_map(|name| name.to_str()?.parse().ok()).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|error| sys::name(&error), |text| text.trim_end().to_owned())
}
