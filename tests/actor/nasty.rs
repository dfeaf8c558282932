//! Commands that do not want to end, or want too much: what a step must be ended and judged in spite of.

use std::io::Write as _;
use std::time::{Duration, Instant};

use crate::sys;

/// `None`: no such verb.
pub fn run(verb: &str, args: &[&str]) -> Option<u8> {
    let number = |at: usize| args[at].parse::<u64>().expect("a number");
    let code = |at: usize| args[at].parse::<u8>().expect("an exit code");
    match (verb, args.len()) {
        ("count", 2) => count(number(0), Duration::from_millis(number(1))),
        ("fill", 0) => fill(),
        ("fill-in-child", 1) => {
            if sys::forked().expect("the first child") == sys::Side::Child {
                fill();
            }
            wait_for_a_child();
            return Some(code(0));
        }
        ("fork-until-refused", 1) => {
            println!("refused after {}", if forks() > 0 { "some" } else { "none" });
            return Some(code(0));
        }
        ("bomb", 0) => bomb(),
        ("stubborn", 0) => stubborn(),
        ("stop-yourself", 0) => drop(sys::send(sys::pid(), sys::SIGSTOP)),
        ("kill-everything", 0) => drop(sys::send(-1, sys::SIGKILL)),
        ("kill-init", 1) => {
            println!("{}", sys::send(1, sys::SIGKILL).map_or_else(|error| sys::name(&error), |()| "sent".to_owned()));
            return Some(code(0));
        }
        ("pour", 1) => pour(number(0)),
        _ => return None,
    }
    Some(0)
}

/// A number every so often, with who says it, from 1.
fn count(last: u64, every: Duration) {
    let began = Instant::now();
    let pid = sys::pid();
    let mut out = std::io::stdout();
    for number in 1..=last {
        // By the clock, not by pauses: a step that was held up on its pipe catches up.
        let due = every * u32::try_from(number).expect("a test counts to thousands");
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        writeln!(out, "{pid} {number}").expect("standard output");
    }
}

/// Takes memory, and uses it, until the kernel says no.
fn fill() -> ! {
    let mut taken = Vec::new();
    loop {
        taken.push(vec![1_u8; 1 << 20]);
    }
}

fn wait_for_a_child() {
    unsafe extern "C" {
        fn wait(status: *mut i32) -> i32;
    }
    let mut status = 0;
    unsafe { wait(&raw mut status) };
}

/// Children that stay, until there can be no more of them.
fn forks() -> u32 {
    let mut made = 0;
    loop {
        match sys::forked() {
            Err(_) => return made,
            Ok(sys::Side::Parent) => made += 1,
            Ok(sys::Side::Child) => sleep_for_ever(),
        }
    }
}

/// Everybody who is there makes more of them, for ever, deaf to TERM.
fn bomb() -> ! {
    sys::ignore(sys::SIGTERM);
    loop {
        if sys::forked().is_err() {
            // Room may come again: somebody may be killed.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Itself, a child in its own session and that one's child: all deaf to TERM.
fn stubborn() -> ! {
    sys::ignore(sys::SIGTERM);
    println!("stubborn");
    for _ in 0..2 {
        if sys::forked().expect("a child") == sys::Side::Child {
            sys::new_session();
        }
    }
    sleep_for_ever()
}

fn sleep_for_ever() -> ! {
    loop {
        std::thread::sleep(Duration::from_hours(1));
    }
}

/// So many bytes without a newline.
fn pour(bytes: u64) {
    let piece = [b'x'; 65_536];
    let mut out = std::io::stdout().lock();
    let mut left = bytes;
    while left > 0 {
        let now = usize::try_from(left.min(65_536)).expect("at most 64 KiB");
        out.write_all(&piece[..now]).expect("standard output");
        left -= now as u64;
    }
    out.flush().expect("standard output");
}
