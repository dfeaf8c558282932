//! Processes that are stopped, and what the kernel says of them.

use std::time::Duration;

use longshore_tests::check::run_command;

/// Whether the kernel says that a process is stopped by a signal.
pub(crate) fn is_stopped(pid: u32) -> bool {
    state(pid) == Some('T')
}

/// Whether there is no such process any more, or nothing of it but what its parent has not looked at yet.
pub(crate) fn is_gone(pid: u32) -> bool {
    matches!(state(pid), None | Some('Z'))
}

fn state(pid: u32) -> Option<char> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("State:\t")?.chars().next())
}

/// Sends a signal to a process that is not ours: a service.
pub(crate) fn send(pid: u32, name: &str) {
    run_command("kill", &["-s", name, &pid.to_string()]);
}

/// The fault's own length: nothing is waited for, and no event would end it.
pub(crate) async fn lasts(secs: u32) {
    tokio::time::sleep(Duration::from_secs(secs.into())).await;
}
