//! Who writes to stdout, so that lines and the live part of a terminal do not tear each other.

use std::io::{self, Write};
use std::sync::OnceLock;

use indicatif::{MultiProgress, ProgressDrawTarget};
use tracing_subscriber::fmt::MakeWriter;

/// The live part, once there is one: logs on stderr must step around it.
static LIVE: OnceLock<MultiProgress> = OnceLock::new();

/// Redraws a second: below what the eye sees as jumps, above what a slow connection suffers from.
const REDRAWS_PER_SEC: u8 = 10;

/// Puts the live part on stdout.
pub(crate) fn go_live() -> MultiProgress {
    LIVE.get_or_init(|| MultiProgress::with_draw_target(ProgressDrawTarget::stdout_with_hz(REDRAWS_PER_SEC))).clone()
}

/// Writes to stdout, above the live part if there is one, and flushes.
pub(crate) fn print(bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    around(|| {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()
    })
}

/// Writes a line for people to stderr, above the live part if there is one.
pub(crate) fn say(line: &str) {
    // One that nobody reads is no reason to die, as `eprintln!` would.
    around(|| drop(writeln!(io::stderr(), "{line}")));
}

fn around<R>(write: impl FnOnce() -> R) -> R {
    match LIVE.get() {
        Some(live) => live.suspend(write),
        None => write(),
    }
}

/// Stderr for the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        around(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl MakeWriter<'_> for LogWriter {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}
