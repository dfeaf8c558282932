//! How things are called in a sentence.

use longshore_protocol::{Outcome, WorkerId};

use crate::core::effect::JobQueue;
use crate::core::input::Millis;

/// `0.4 s`, `12 s`, `3 min 05 s`, `1 h 02 min`.
pub(super) fn time(ms: Millis) -> String {
    let secs = (ms + 500) / 1_000;
    match secs {
        0..10 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        10..60 => format!("{secs} s"),
        60..3_600 => format!("{} min {:02} s", secs / 60, secs % 60),
        _ => format!("{} h {:02} min", secs / 3_600, secs % 3_600 / 60),
    }
}

/// `a`, `a and b`, `a, b and c`; of more than eight the first ones and how many more.
pub(super) fn list<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    /// A line of a terminal.
    const NAMED: usize = 8;
    let mut names: Vec<String> = all.into_iter().map(|one| one.to_string()).collect();
    let more = names.len().saturating_sub(NAMED);
    if more > 0 {
        names.truncate(NAMED);
        return format!("{} and {more} more", names.join(", "));
    }
    let last = names.pop().unwrap_or_default();
    if names.is_empty() { last } else { format!("{} and {last}", names.join(", ")) }
}

/// An embedded run's worker has an id that says nothing to anybody.
pub(super) fn worker(id: &WorkerId) -> String {
    let text = id.as_str();
    let embedded = text.len() == 50 && text.starts_with('e') && text.as_bytes()[17] == b'-';
    if embedded { "this machine's worker".to_owned() } else { format!("worker {text}") }
}

pub(super) fn queue(queue: &JobQueue) -> String {
    match queue {
        JobQueue::Pool(pool) => format!("the queue of pool {pool}"),
        JobQueue::Worker(id) => format!("the queue of {}", worker(id)),
    }
}

/// `failed with exit status 1`, behind "it".
pub(super) fn ended(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Passed => "passed".to_owned(),
        Outcome::Failed { exit } => format!("failed with exit status {exit}"),
        Outcome::Signaled { signal } => format!("was ended by signal {signal}"),
        Outcome::TimedOut => "ran past its timeout".to_owned(),
        Outcome::OomKilled => "was out of memory".to_owned(),
        Outcome::Cancelled { by } => format!("was cancelled by {by}"),
        Outcome::Skipped { because } => format!("was skipped because of {because}"),
        Outcome::Infra { stage, reason } => format!("could not be carried out ({stage}): {reason}"),
    }
}

/// `once`, `twice`, `3 times`.
pub(super) fn times(count: u32) -> String {
    match count {
        1 => "once".to_owned(),
        2 => "twice".to_owned(),
        _ => format!("{count} times"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_lists_read_well() {
        let of = [(0, "0.0 s"), (1_250, "1.2 s"), (12_345, "12 s"), (185_000, "3 min 05 s"), (3_720_000, "1 h 02 min")];
        for (ms, text) in of {
            assert_eq!(time(ms), text);
        }
        assert_eq!(list(["a"]), "a");
        assert_eq!(list(["a", "b", "c"]), "a, b and c");
        assert_eq!(list(1..=10), "1, 2, 3, 4, 5, 6, 7, 8 and 2 more");
    }
}
