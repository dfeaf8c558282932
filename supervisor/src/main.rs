//! The supervisor: process 1 of a container. `docs/decisions/supervisor.md` says why it is as it is.
//!
//! Read [`supervisor`], the loop, first; it hears the worker through [`link`], starts a [`command`] that was
//! [`prepare`]d, keeps its output in a [`ring`], [`unpack`]s tars, and makes the container [`clean`] for the next
//! command. One thread, for ever: when a step has filled the process table, nothing here needs a new entry to end it.

mod clean;
mod clock;
mod command;
mod files;
mod incoming;
mod link;
mod mounts;
mod oom;
mod prepare;
mod ring;
mod supervisor;
mod sys;
mod unpack;
mod users;

use std::process::ExitCode;

use longshore_supervisor::wire::ORPHAN_MS_DEFAULT;
use supervisor::{Over, Supervisor};

/// Called in a wrong way (`EX_USAGE`).
const EXIT_USAGE: u8 = 64;
/// The kernel gives not even what it needs to begin (`EX_OSERR`).
const EXIT_SYSTEM: u8 = 71;
/// P17, for whoever looks at a container that has ended without its worker (`EX_TEMPFAIL`).
const EXIT_ORPHANED: u8 = 75;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (socket, orphan, more) = (arguments.next(), arguments.next(), arguments.next());
    // P17: also for one whose worker dies before it ever spoke.
    let orphan_ms = orphan.map_or(Some(ORPHAN_MS_DEFAULT), |orphan| orphan.to_str()?.parse().ok());
    let (Some(socket), Some(orphan_ms), None) = (socket, orphan_ms, more) else {
        eprintln!("usage: longshore-supervisor SOCKET [ORPHAN_MS], as process 1 of a container");
        return ExitCode::from(EXIT_USAGE);
    };
    if std::process::id() != 1 {
        // It kills "every process" often. Elsewhere than in a container those would be the host's.
        eprintln!("longshore-supervisor is not process 1: refused");
        return ExitCode::from(EXIT_USAGE);
    }
    sys::hide();
    // What it makes has the modes that it says, less what Docker's default takes.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    match sys::close_on_exec_all().and_then(|()| Supervisor::new(socket.into(), orphan_ms)) {
        Ok(supervisor) => match supervisor.run() {
            Over::Ended => ExitCode::SUCCESS,
            Over::Orphaned => ExitCode::from(EXIT_ORPHANED),
        },
        Err(error) => {
            eprintln!("longshore-supervisor: {error}");
            ExitCode::from(EXIT_SYSTEM)
        }
    }
}
