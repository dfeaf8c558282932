//! What a step waits for at this moment.

use super::standing::Standing;
use super::tale::Tale;
use super::words::{self, list, time};
use crate::core::WaitsFor;
use crate::core::present::{Present, Reach};
use crate::core::view::StepPhase;

/// In sentences; nothing once the step is settled. Without the live core: what the journal alone says.
pub(super) fn now(tale: &Tale<'_>, present: Option<&Present>) -> Vec<String> {
    let mut now = Vec::new();
    match tale.phase() {
        StepPhase::Settled => return now,
        StepPhase::Waiting => waiting(tale, present, &mut now),
        StepPhase::Queued => queued(tale, present, &mut now),
        StepPhase::Preparing | StepPhase::Running => at_work(tale, present, &mut now),
    }
    if tale.cancelled_at().is_some() && !matches!(tale.phase(), StepPhase::Waiting) {
        now.push("its end was asked for: it is over when its worker says so, or when that one's lease ends".to_owned());
    }
    now
}

fn waiting(tale: &Tale<'_>, present: Option<&Present>, now: &mut Vec<String>) {
    let before = tale.waits_for();
    if !before.is_empty() {
        let each = before.iter().map(|(name, standing)| format!("{name}, which {}", does(standing)));
        now.push(format!("it waits for {}", list(each)));
        return;
    }
    if let Some(remake) = tale.remake_of_parent() {
        now.push(format!("it waits for {remake}, which makes its parent's files again"));
        return;
    }
    if let Some(Present { reach: Some(reach), .. }) = present {
        now.push(out_of_reach(tale, reach));
        return;
    }
    if let Some(waits) = present.and_then(|present| in_line(present.waits.as_ref()?)) {
        now.push(waits);
        return;
    }
    if let Some(until) = tale.backoff_until {
        let left = present.map(|present| until.saturating_sub(present.now_ms)).filter(|left| *left > 0);
        now.push(match left {
            Some(left) => format!("it is tried again in {}", time(left)),
            None => "it is tried again when its wait is over".to_owned(),
        });
    }
}

/// It could begin, and its turn has not come.
fn in_line(waits: &WaitsFor) -> Option<String> {
    let others = |n: usize| match n {
        0 => String::new(),
        1 => "; one other stands before it".to_owned(),
        n => format!("; {n} others stand before it"),
    };
    Some(match waits {
        WaitsFor::Group { group, max, held_by, before } => {
            let held = list(held_by.iter().map(|(run, step)| format!("{step} of run {run}")));
            let held = if held.is_empty() { "nobody at this moment".to_owned() } else { held };
            let may = if *max == 1 { "one step".to_owned() } else { format!("{max} steps") };
            format!(
                "it waits for concurrency group {group}, of which {may} may be under way; it is held by {held}{}",
                others(*before)
            )
        }
        WaitsFor::Worker { pool } => format!("no worker of pool {pool} is alive: start one, or name another pool"),
        WaitsFor::Turn { pool, slots: 0, .. } => format!("no worker of pool {pool} takes steps at this moment"),
        WaitsFor::Turn { pool, slots, waiting, priority, .. } => {
            let with = waiting.saturating_sub(1);
            let with = if with == 1 { "one other step".to_owned() } else { format!("{with} others") };
            format!(
                "it waits for its turn: the {slots} slots of pool {pool} and their queues are taken, {with} want the same, \
                 and its priority is {priority}"
            )
        }
        WaitsFor::Steps(_)
        | WaitsFor::Backoff { .. }
        | WaitsFor::Remake { .. }
        | WaitsFor::Files { .. }
        | WaitsFor::Claim(_) => return None,
    })
}

/// P20: its parent's files are there, but nobody is beside them.
fn out_of_reach(tale: &Tale<'_>, reach: &Reach) -> String {
    let parent = tale.parent_name().map(ToString::to_string).unwrap_or_default();
    let Reach { engine, worker, alive } = reach;
    let left = format!("what {parent} left stands on Engine {engine}, where {} kept it", words::worker(worker));
    let pool = tale.pool();
    if *alive {
        format!("{left}; no worker of pool {pool} is beside it, and none is there that could make it again")
    } else {
        format!(
            "{left}, which is away; it goes on when that one is back, or another of pool {pool} that could make it again"
        )
    }
}

fn queued(tale: &Tale<'_>, present: Option<&Present>, now: &mut Vec<String>) {
    let Some(attempt) = &tale.attempt else { return };
    let queue = words::queue(attempt.queue);
    let Some(present) = present else {
        now.push(format!("attempt {} is on {queue}, and nobody has claimed it", attempt.number));
        return;
    };
    let since = time(present.now_ms.saturating_sub(attempt.dispatched_at));
    let place = match present.queue_before {
        Some(0) => ", first in line".to_owned(),
        Some(1) => ", behind one other".to_owned(),
        Some(n) => format!(", behind {n} others"),
        None => String::new(),
    };
    now.push(format!("attempt {} has been on {queue} for {since}{place}", attempt.number));
    let pool = tale.pool();
    now.push(match (present.workers, present.slots_free) {
        (0, _) => format!("no worker of pool {pool} is alive: start one, or name another pool"),
        (1, 0) => format!("the one worker of pool {pool} has no free slot"),
        (n, 0) => format!("none of the {n} workers of pool {pool} has a free slot"),
        (n, free) => format!("pool {pool} has {} alive, with {} free", counted(n, "worker"), counted(free, "slot")),
    });
    if let Some(ticks) = present.gone_in_ticks {
        now.push(format!(
            "it left its queue and nobody has claimed it: in {ticks} s it is taken for gone, and sent anew"
        ));
    }
}

fn at_work(tale: &Tale<'_>, present: Option<&Present>, now: &mut Vec<String>) {
    let Some(attempt) = &tale.attempt else { return };
    let owner = attempt.owner.map(words::worker).unwrap_or_default();
    let does = if tale.phase() == StepPhase::Running { "its command runs" } else { "its container is being made" };
    now.push(format!("attempt {}: {does} at {owner}", attempt.number));
    if tale.is_exclusive() && tale.phase() == StepPhase::Preparing {
        now.push(
            "it is exclusive: its command begins only on the coordinator's go, which it waits for (P18)".to_owned(),
        );
    }
    let Some(present) = present else { return };
    // A heartbeat comes every few seconds: less silence than two of them says nothing.
    if present.owner_silent_ticks * 3 > present.lease_ticks {
        let left = present.lease_ticks.saturating_sub(present.owner_silent_ticks);
        now.push(format!(
            "{owner} was not heard of for {} s: in {left} s its lease ends, and the attempt with it",
            present.owner_silent_ticks
        ));
    }
    if present.output_full {
        now.push(
            "its output fills what may stand on its worker's disk: it waits on its pipe until more is stored"
                .to_owned(),
        );
    }
}

/// What a step does that another waits for, behind "which".
fn does(standing: &Standing<'_>) -> String {
    match (standing.phase, standing.outcome) {
        (StepPhase::Settled, Some(outcome)) => words::ended(outcome),
        (StepPhase::Running, _) => "runs".to_owned(),
        (StepPhase::Preparing, _) => "is being prepared".to_owned(),
        (StepPhase::Queued, _) => "is in a queue".to_owned(),
        (StepPhase::Waiting | StepPhase::Settled, _) => "has not begun".to_owned(),
    }
}

fn counted(n: u32, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}
