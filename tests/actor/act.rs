//! What a step may do to what the next one sees. Each verb answers with a word for the log.

use std::fs;
use std::io::{self, Write as _};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

use crate::sys;

/// Where a daemon that was left listens: the next step must find both free.
pub const PORT: u16 = 8080;
pub const ABSTRACT: &str = "left-by-a-step";

/// `None`: no such verb with so many arguments.
pub fn run(verb: &str, args: &[&str]) -> Option<io::Result<String>> {
    let done = |result: io::Result<()>| Some(result.map(|()| "done".to_owned()));
    match (verb, args) {
        ("write", [path, text, mode]) => done(write(Path::new(path), text, octal(mode))),
        ("append", [path, text]) => done(append(Path::new(path), text)),
        ("cat", [path]) => Some(fs::read_to_string(path).map(|text| text.trim_end().to_owned())),
        ("big", [path, bytes]) => done(big(Path::new(path), number(bytes))),
        ("rm", [path]) => done(remove(Path::new(path))),
        ("dir", [path, mode]) => done(fs::create_dir(path).and_then(|()| chmod(Path::new(path), octal(mode)))),
        ("tree", [path, file]) => done(tree(Path::new(path), file)),
        ("symlink", [path, target]) => done(std::os::unix::fs::symlink(target, path)),
        ("fifo", [path, mode]) => {
            done(sys::fifo(Path::new(path), 0o600).and_then(|()| chmod(Path::new(path), octal(mode))))
        }
        ("pair", [one, other]) => done(pair(Path::new(one), Path::new(other))),
        ("same", [one, other]) => Some(same(Path::new(one), Path::new(other))),
        ("rename", [from, to]) => Some(rename(Path::new(from), Path::new(to))),
        ("rename-dir", [from, to]) => done(fs::rename(from, to)),
        ("chmod", [path, mode]) => done(chmod(Path::new(path), octal(mode))),
        ("chown", [path, uid, gid]) => {
            let id = |text: &str| Some(u32::try_from(number(text)).expect("an id"));
            done(std::os::unix::fs::lchown(path, id(uid), id(gid)))
        }
        ("touch", [path, secs, nanos]) => done(sys::set_mtime(Path::new(path), signed(secs), signed(nanos))),
        ("nanos", [path]) => {
            Some(fs::symlink_metadata(path).map(|data| format!("{}.{:09}", data.mtime(), data.mtime_nsec())))
        }
        ("capability", [path]) => done(sys::set_attribute(Path::new(path), "security.capability", &NET_BIND_SERVICE)),
        ("set-attribute", [path, name, value]) => done(sys::set_attribute(Path::new(path), name, value.as_bytes())),
        ("attribute", [path, name]) => {
            Some(sys::attribute(Path::new(path), name).map(|value| String::from_utf8_lossy(&value).into_owned()))
        }
        ("acl", [path]) => done(sys::set_attribute(Path::new(path), "system.posix_acl_access", &TESTER_MAY_READ)),
        ("has-acl", [path]) => Some(
            sys::attribute(Path::new(path), "system.posix_acl_access").map(|value| format!("{} bytes", value.len())),
        ),
        ("socket", [path]) => done(UnixListener::bind(path).map(drop)),
        ("socket-in", [dir, secs]) => done(socket_in(Path::new(dir), signed(secs))),
        ("names", [dir]) => done(names(Path::new(dir))),
        ("sysv", [uid]) => done(sysv(u32::try_from(number(uid)).expect("an id"))),
        ("daemon", [mark]) => done(daemon(mark)),
        _ => None,
    }
}

/// `cap_net_bind_service=ep`, revision 2 of the kernel's format.
const NET_BIND_SERVICE: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// `u::rw,u:1000:r,g::r,m::r,o::-`, version 2 of the kernel's format: tag, permissions, id.
const TESTER_MAY_READ: [u8; 44] = [
    2, 0, 0, 0, //
    1, 0, 6, 0, 255, 255, 255, 255, //
    2, 0, 4, 0, 0xe8, 3, 0, 0, //
    4, 0, 4, 0, 255, 255, 255, 255, //
    16, 0, 4, 0, 255, 255, 255, 255, //
    32, 0, 0, 0, 255, 255, 255, 255,
];

fn octal(text: &str) -> u32 {
    u32::from_str_radix(text, 8).expect("a mode")
}

fn number(text: &str) -> u64 {
    text.parse().expect("a number")
}

fn signed(text: &str) -> i64 {
    text.parse().expect("a number")
}

fn chmod(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    writeln!(opened(path, fs::OpenOptions::new().write(true).create(true).truncate(true))?, "{text}")?;
    chmod(path, mode)
}

fn append(path: &Path, text: &str) -> io::Result<()> {
    writeln!(opened(path, fs::OpenOptions::new().append(true))?, "{text}")
}

/// Without blocking: a named pipe that nobody reads would hold the step up.
fn opened(path: &Path, how: &mut fs::OpenOptions) -> io::Result<fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    const O_NONBLOCK: i32 = 0o4000;
    how.custom_flags(O_NONBLOCK).open(path)
}

/// Not compressible by leaving out holes, and the same each time.
fn big(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = io::BufWriter::new(opened(path, fs::OpenOptions::new().write(true).create(true).truncate(true))?);
    let mut state = 1_u64;
    for _ in 0..bytes / 8 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        file.write_all(&state.to_le_bytes())?;
    }
    file.flush()
}

/// Whatever it is; nothing there is fine.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(data) if data.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    }
}

/// What stood there goes; a new directory with one file takes its place: opaque, where there was one before.
fn tree(path: &Path, file: &str) -> io::Result<()> {
    remove(path)?;
    fs::create_dir_all(path)?;
    write(&path.join(file), file, 0o644)
}

fn pair(one: &Path, other: &Path) -> io::Result<()> {
    remove(one)?;
    remove(other)?;
    write(one, "one of two names", 0o644)?;
    fs::hard_link(one, other)
}

fn same(one: &Path, other: &Path) -> io::Result<String> {
    let (one, other) = (fs::symlink_metadata(one)?, fs::symlink_metadata(other)?);
    Ok(if one.ino() == other.ino() { "one file" } else { "two files" }.to_owned())
}

/// Not of a directory: that is one of the documented differences, and `rename-dir` shows it.
fn rename(from: &Path, to: &Path) -> io::Result<String> {
    if fs::symlink_metadata(from)?.is_dir() {
        return Ok("left alone: a directory".to_owned());
    }
    fs::rename(from, to).map(|()| "done".to_owned())
}

/// A socket in a directory whose mtime was set after that.
fn socket_in(dir: &Path, secs: i64) -> io::Result<()> {
    let socket = dir.join("socket");
    remove(&socket)?;
    drop(UnixListener::bind(&socket)?);
    sys::set_mtime(dir, secs, 0)
}

/// Names that somebody's tar, JSON or shell could get wrong.
fn names(dir: &Path) -> io::Result<()> {
    let long = "l".repeat(255);
    let names: [&[u8]; 7] = [
        b"\xff\xfe",
        b"two\nlines",
        long.as_bytes(),
        b"ends with a space ",
        b"-rf",
        "ümläut ☃".as_bytes(),
        b"back\\slash",
    ];
    for name in names {
        let path = dir.join(std::ffi::OsStr::from_bytes(name));
        write(&path, "odd", 0o644)?;
    }
    let mut deep = dir.to_owned();
    for _ in 0..30 {
        deep.push("a-directory-far-down");
    }
    fs::create_dir_all(&deep)?;
    write(&deep.join("file"), "deep", 0o600)
}

fn sysv(uid: u32) -> io::Result<()> {
    // In a child: the owner stays who it is.
    let (mut said, tell) = io::pipe()?;
    if sys::forked()? == sys::Side::Child {
        let made =
            sys::become_user(uid).and_then(|()| sys::sysv(0x10_0000 + i32::try_from(uid).expect("small"), 0o600));
        let word = made.map_or_else(|error| sys::name(&error), |()| "done".to_owned());
        let _ = { &tell }.write_all(word.as_bytes());
        sys::leave(0);
    }
    drop(tell);
    let mut word = String::new();
    io::Read::read_to_string(&mut said, &mut word)?;
    if word == "done" { Ok(()) } else { Err(io::Error::other(word)) }
}

/// Forks twice into a session of its own and stays, deaf to TERM, holding a port, an abstract name and the step's own
/// output. Answers when it holds them.
fn daemon(mark: &str) -> io::Result<()> {
    let (mut holds, tell) = io::pipe()?;
    if sys::forked()? == sys::Side::Child {
        sys::new_session();
        if sys::forked()? == sys::Side::Parent {
            sys::leave(0);
        }
        sys::ignore(sys::SIGTERM);
        let port = TcpListener::bind(("127.0.0.1", PORT));
        let name = SocketAddr::from_abstract_name(ABSTRACT).and_then(|name| UnixListener::bind_addr(&name));
        let _ = { &tell }.write_all(mark.as_bytes());
        drop(tell);
        loop {
            // Both listeners stay open.
            std::thread::park();
            let _ = (&port, &name);
        }
    }
    drop(tell);
    io::Read::read(&mut holds, &mut [0; 64]).map(drop)
}
