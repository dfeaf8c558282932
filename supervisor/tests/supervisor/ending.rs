//! TERM, grace, KILL; limits, orphans, memory.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::time::Duration;

use longshore_supervisor::wire::{EndedBy, Extend, FromSupervisor, Lease, Run, Status, Stop, ToSupervisor};
use rustix::time::{ClockId, clock_gettime};

use crate::sandbox::{Sandbox, Worker, sh};

/// Longer than any test.
const HOUR_MS: u64 = 3_600_000;

/// Until TERM: enough for a shell to have set its trap.
const AWAY_MS: u64 = 5_000;

/// Without a word of the worker's: enough for a command to be ended, and for that to be told.
const ORPHAN: Duration = Duration::from_secs(3);

fn stop(worker: &mut Worker, id: &str, grace_ms: u64) {
    worker.send(&ToSupervisor::Stop(Stop { id: id.to_owned(), grace_ms }));
}

/// Waits for the first line of output.
fn ready(worker: &mut Worker) {
    match worker.next() {
        FromSupervisor::Output(output) => assert_eq!(output.bytes, b"ready\n"),
        other => panic!("{other:?}"),
    }
}

fn exited(worker: &mut Worker) -> (Status, EndedBy) {
    loop {
        match worker.next() {
            FromSupervisor::Output(_) => {}
            FromSupervisor::Exited(exited) => return (exited.exit.status, exited.exit.by),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn term_reaches_the_whole_tree_and_may_be_obeyed() {
    let sandbox = Sandbox::start();
    sandbox.fifo("/tmp/heard");
    let (mut worker, _) = sandbox.accept();
    let script = "
        setsid sh -c 'trap \"echo daemon >/tmp/heard; exit\" TERM; echo >/tmp/heard; while :; do sleep 1000 & wait; done' &
        trap 'wait; exit 7' TERM
        echo ready
        while :; do wait; done";
    worker.start(&sh("1", script));
    ready(&mut worker);
    assert_eq!(sandbox.hear("/tmp/heard"), "\n");
    stop(&mut worker, "another", 0); // is not this one's business
    stop(&mut worker, "1", HOUR_MS);
    assert_eq!(sandbox.hear("/tmp/heard"), "daemon\n");
    assert_eq!(exited(&mut worker), (Status::Code(7), EndedBy::Stopped));
}

#[test]
fn who_ignores_term_is_killed_after_the_grace() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    let script = "trap '' TERM; sh -c 'while :; do sleep 1000; done' & echo ready; while :; do sleep 1000; done";
    worker.start(&sh("1", script));
    ready(&mut worker);
    stop(&mut worker, "1", 50);
    assert_eq!(exited(&mut worker), (Status::Signal(9), EndedBy::Stopped));
}

#[test]
fn a_second_stop_shortens_the_grace_and_never_lengthens_it() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    let script = "trap '' TERM; echo ready; while :; do sleep 1000; done";
    worker.start(&sh("1", script));
    ready(&mut worker);
    stop(&mut worker, "1", HOUR_MS);
    stop(&mut worker, "1", 20);
    stop(&mut worker, "1", HOUR_MS);
    assert_eq!(exited(&mut worker), (Status::Signal(9), EndedBy::Stopped));
    assert_eq!(worker.clean(), None);
    // Without any grace there is no TERM, whatever it would have done.
    worker.start(&sh("2", "trap 'exit 0' TERM; echo ready; while :; do sleep 1000; done"));
    ready(&mut worker);
    stop(&mut worker, "2", 0);
    assert_eq!(exited(&mut worker), (Status::Signal(9), EndedBy::Stopped));
}

#[test]
fn a_stop_after_the_end_says_nothing() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    assert_eq!(worker.run(&sh("1", "exit 3")).exit.by, EndedBy::Itself);
    stop(&mut worker, "1", 0);
    assert_eq!(worker.clean(), None);
    assert_eq!(worker.script("echo fine"), "fine\n");
}

#[test]
fn p17_a_command_ends_at_its_limit() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    worker.start(&Run { limit_ms: 50, ..sh("1", "trap '' TERM; while :; do sleep 1000; done") });
    assert_eq!(exited(&mut worker), (Status::Signal(9), EndedBy::Limit));
    assert_eq!(worker.clean(), None);
    assert_eq!(worker.script("echo fine"), "fine\n");
}

#[test]
fn p17_a_worker_that_does_nothing_after_the_limit_is_none() {
    let mut sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept_for(ORPHAN);
    worker.start(&Run { limit_ms: 50, ..sh("1", "sleep 1000") });
    assert_eq!(exited(&mut worker), (Status::Signal(9), EndedBy::Limit));
    assert!(worker.try_next().is_none());
    assert_eq!(sandbox.exit_status().code(), Some(75));
}

#[test]
fn p17_without_a_worker_it_kills_the_tree_and_ends() {
    let mut sandbox = Sandbox::start();
    sandbox.fifo("/tmp/alive");
    let (mut worker, _) = sandbox.accept_for(Duration::from_millis(200));
    let (says, up) = std::sync::mpsc::channel();
    // The pipe's end is heard when the last process that holds it is gone.
    worker
        .start(&sh("1", "exec 3>/tmp/alive; trap '' TERM; (sleep 1000 &); echo up >&3; while :; do sleep 1000; done"));
    let path = sandbox.path("/tmp/alive");
    let alive = std::thread::spawn(move || {
        let mut lines = BufReader::new(File::open(path).unwrap()).lines().map(Result::unwrap);
        says.send(lines.next()).unwrap();
        lines.count()
    });
    // Not before it has begun: then it would be killed without a word.
    assert_eq!(up.recv().unwrap().as_deref(), Some("up"));
    drop(worker);
    sandbox.unbind();
    assert_eq!(alive.join().unwrap(), 0);
    assert_eq!(sandbox.exit_status().code(), Some(75));
}

#[test]
fn p17_a_connection_without_a_hello_is_no_worker() {
    let mut sandbox = Sandbox::start();
    let (worker, _) = sandbox.accept_for(Duration::from_secs(2));
    drop(worker);
    let mut silent = sandbox.accept_silent();
    assert!(matches!(silent.next(), FromSupervisor::Hello(_)));
    assert!(silent.try_next().is_none());
    assert_eq!(sandbox.exit_status().code(), Some(75));
}

/// The host's, which is the container's.
fn boot_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap() * 1000 + u64::try_from(now.tv_nsec).unwrap() / 1_000_000
}

fn extend(worker: &mut Worker, id: &str, dead_by_ms: u64) {
    worker.send(&ToSupervisor::Extend(Extend { id: id.to_owned(), dead_by_ms }));
}

fn leased(id: &str, script: &str, dead_by_ms: u64, grace_ms: u64) -> Run {
    Run { lease: Some(Lease { dead_by_ms, grace_ms }), ..sh(id, script) }
}

#[test]
fn p18_an_exclusive_command_is_terminated_before_its_lease_ends_and_dead_by_then() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    let polite = "trap 'exit 7' TERM; echo ready; while :; do sleep 1000 & wait; done";
    let dead_by_ms = boot_ms() + HOUR_MS;
    worker.start(&leased("1", polite, dead_by_ms, HOUR_MS - AWAY_MS));
    ready(&mut worker);
    assert_eq!(exited(&mut worker), (Status::Code(7), EndedBy::Lease));
    assert!(boot_ms() >= dead_by_ms - HOUR_MS + AWAY_MS, "not before its time");
    assert_eq!(worker.clean(), None);

    let dead_by_ms = boot_ms() + AWAY_MS + 100;
    worker.start(&leased("2", "trap '' TERM; sh -c 'while :; do sleep 1000; done' & sleep 1000", dead_by_ms, 100));
    assert_eq!(exited(&mut worker), (Status::Signal(9), EndedBy::Lease));
    assert!(boot_ms() >= dead_by_ms, "the grace is its own");
    assert_eq!(worker.clean(), None);
    assert_eq!(worker.script("echo fine"), "fine\n");
}

#[test]
fn p18_the_timer_is_moved_on_and_never_back() {
    let sandbox = Sandbox::start();
    sandbox.fifo("/tmp/go");
    let (mut worker, _) = sandbox.accept();
    let dead_by_ms = boot_ms() + AWAY_MS;
    worker.start(&leased("1", "echo ready; read x </tmp/go; exit 3", dead_by_ms, 0));
    extend(&mut worker, "another", 0);
    extend(&mut worker, "1", dead_by_ms + HOUR_MS);
    extend(&mut worker, "1", dead_by_ms);
    extend(&mut worker, "1", 0);
    ready(&mut worker);
    // Nothing is told at a time at which nothing happens, but a second command is refused only while the first one runs.
    while boot_ms() < dead_by_ms + 100 {
        worker.send(&ToSupervisor::Run(sh("2", "true")));
        assert!(matches!(worker.next(), FromSupervisor::CannotStart(_)), "it was ended");
    }
    sandbox.tell("/tmp/go");
    assert_eq!(exited(&mut worker), (Status::Code(3), EndedBy::Itself));
}

#[test]
fn p18_what_is_being_ended_is_not_extended() {
    let sandbox = Sandbox::start();
    sandbox.fifo("/tmp/heard");
    let (mut worker, _) = sandbox.accept();
    let script = "trap 'echo >/tmp/heard' TERM; echo ready; while :; do sleep 1000 & wait; done";
    // The grace is what its trap has to be heard.
    worker.start(&leased("1", script, boot_ms() + 2 * AWAY_MS, AWAY_MS));
    ready(&mut worker);
    assert_eq!(sandbox.hear("/tmp/heard"), "\n");
    extend(&mut worker, "1", boot_ms() + HOUR_MS);
    assert_eq!(exited(&mut worker), (Status::Signal(9), EndedBy::Lease));
}

#[test]
fn p18_nothing_is_started_behind_the_end_of_its_lease() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    worker.send(&ToSupervisor::Run(leased("1", "echo never", boot_ms() + 100, 200)));
    match worker.next() {
        FromSupervisor::CannotStart(cannot) => {
            assert_eq!((cannot.exit, cannot.reason.as_str()), (None, "its lease has ended"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(worker.script("echo fine"), "fine\n");
}

#[test]
fn p18_the_timer_holds_without_a_worker_and_for_the_next_one() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    let dead_by_ms = boot_ms() + AWAY_MS + 100;
    worker.start(&leased("1", "trap '' TERM; echo ready; while :; do sleep 1000; done", dead_by_ms, 100));
    ready(&mut worker);
    drop(worker);
    // Whoever takes it up next hears how it ended, and did not change when.
    let (mut next, _) = sandbox.accept();
    assert_eq!(exited(&mut next), (Status::Signal(9), EndedBy::Lease));
    assert!(boot_ms() >= dead_by_ms);
    assert_eq!(next.clean(), None);
}

#[test]
fn p17_a_worker_that_does_nothing_after_the_lease_is_none() {
    let mut sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept_for(ORPHAN);
    worker.start(&leased("1", "sleep 1000", boot_ms() + AWAY_MS, 0));
    assert_eq!(exited(&mut worker), (Status::Signal(9), EndedBy::Lease));
    assert!(worker.try_next().is_none());
    assert_eq!(sandbox.exit_status().code(), Some(75));
}

#[test]
fn end_ends_everything_at_once() {
    let mut sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    worker.start(&sh("1", "trap '' TERM; (sleep 1000 &); echo ready; while :; do sleep 1000; done"));
    ready(&mut worker);
    worker.send(&ToSupervisor::End);
    drop(worker); // even if nobody waits for it
    assert_eq!(sandbox.exit_status().code(), Some(0));
}

#[test]
fn elsewhere_than_as_process_1_it_refuses() {
    let status = std::process::Command::new(crate::BINARY).arg("/nowhere").status();
    assert_eq!(status.unwrap().code(), Some(64));
}

/// A memory cgroup of the test's own, of either version; removed when dropped.
struct Memory(PathBuf);

impl Memory {
    fn limited(bytes: u64) -> Self {
        let v1 = PathBuf::from("/sys/fs/cgroup/memory");
        let is_v1 = v1.is_dir();
        let parent = if is_v1 { v1 } else { PathBuf::from("/sys/fs/cgroup") };
        if !is_v1 {
            fs::write(parent.join("cgroup.subtree_control"), "+memory").expect("root's memory controller");
        }
        let own = parent.join(format!("longshore-test-{}", std::process::id()));
        fs::create_dir(&own).unwrap();
        let limit = if is_v1 { "memory.limit_in_bytes" } else { "memory.max" };
        fs::write(own.join(limit), bytes.to_string()).unwrap();
        // Without swap, or the hog would only be slow.
        let swap = if is_v1 { ("memory.memsw.limit_in_bytes", bytes) } else { ("memory.swap.max", 0) };
        let _ = fs::write(own.join(swap.0), swap.1.to_string());
        Self(own)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn an_oom_kill_is_told_of_the_command_that_had_it() {
    let memory = Memory::limited(48 << 20);
    let mut sandbox = Sandbox::start_with(&[format!("cgroup={}", memory.0.display())]);
    let (mut worker, _) = sandbox.accept();
    // `tail` keeps its last line, which has no end here.
    let hog = "head -c 500000000 /dev/zero | tail -n 1 >/dev/null";
    let own = worker.run(&sh("1", &format!("exec sh -c '{hog}'")));
    assert!(own.exit.oom_killed && own.exit.status != Status::Code(0), "{own:?}");
    assert_eq!(worker.clean(), None);
    // A kill that the command took as a matter of course is no failure.
    let survived = worker.run(&sh("2", &format!("{hog}; exit 0")));
    assert!(!survived.exit.oom_killed, "{survived:?}");
    assert_eq!(worker.clean(), None);
    // Nor is it one of the next command's.
    let next = worker.run(&sh("3", "exit 1"));
    assert!(!next.exit.oom_killed, "{next:?}");
    worker.send(&ToSupervisor::End);
    sandbox.exit_status();
}
