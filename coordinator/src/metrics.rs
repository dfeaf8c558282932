//! What the coordinator counts. Taken from journal entries once they are committed, never on replay.

use longshore_protocol::broker::DEAD_LETTERS_METRIC;
use longshore_protocol::metric::{MetricDoc, MetricKind};
use longshore_protocol::{Outcome, PoolName};

use crate::core::Waited;
use crate::core::entry::{End, Entry, RetryCause};
use crate::core::view::{AttemptView, StepPhase};

/// Every metric of the coordinator, as `docs/metrics.md` lists them.
pub const METRICS: &[MetricDoc] = &[
    counter(
        "longshore_runs_total",
        "Runs settled, by outcome.",
        &[("outcome", &["passed", "failed", "timed_out", "infra", "cancelled"])],
    ),
    gauge("longshore_runs_open", "Runs that are not settled.", &[]),
    counter("longshore_steps_total", "Steps settled, by outcome.", &[("outcome", &Outcome::WORDS)]),
    gauge("longshore_steps_open", "Steps that are not settled, by what they are doing.", &[("phase", &PHASES)]),
    gauge(
        "longshore_steps_ready",
        "Steps that wait for their turn or for a worker, by pool; of pools that never had a worker together as `(no worker)`.",
        &[("pool", &[])],
    ),
    histogram(
        "longshore_ready_to_dispatch_seconds",
        "From when an attempt could have been dispatched until it was: its turn, a slot or its concurrency group.",
        &[],
    ),
    histogram("longshore_dispatch_to_accept_seconds", "From an attempt's dispatch to its worker's claim.", &[]),
    counter("longshore_steps_cached_total", "Attempts that passed because their cache key's snapshot was there.", &[]),
    histogram(
        "longshore_queue_to_start_seconds",
        "From an attempt's dispatch to its command's start, by the coordinator's clock.",
        &[],
    ),
    histogram(
        "longshore_phase_seconds",
        "Time attempts spent in each of the worker's verbs, as reported.",
        &[("phase", &["prepare", "exec", "snapshot"])],
    ),
    counter(
        "longshore_retries_total",
        "Executions carried out again, by cause.",
        &[("cause", &["infra", "gone", "user", "lineage", "handed_back", "go_void"])],
    ),
    counter(
        "longshore_lefts_lost_total",
        "Times that what a step left was gone when a later step needed it (P20).",
        &[],
    ),
    counter("longshore_remakes_total", "Times that what a step left was made again (P20).", &[]),
    counter("longshore_leases_ended_total", "Workers whose lease ended.", &[]),
    counter(
        "longshore_fenced_total",
        "Stale messages, or parts of one, that were thrown away (P12).",
        &[("kind", &["accepted", "started", "finished", "record", "incarnation", "output"])],
    ),
    counter("longshore_event_repeats_total", "Events that came again and were ignored (P9).", &[]),
    counter("longshore_output_bytes_total", "Bytes of output stored.", &[("stream", &["stdout", "stderr"])]),
    counter(
        "longshore_output_early_total",
        "Output messages that overtook their claim and are asked for again (P12).",
        &[],
    ),
    counter("longshore_output_gaps_total", "Output messages that came with something before them missing (P14).", &[]),
    counter("longshore_log_chunks_total", "Log chunks sealed.", &[]),
    DEAD_LETTERS_METRIC,
    counter(
        "longshore_returned_total",
        "Messages that no queue took, by what they were.",
        &[("kind", &["job", "control"])],
    ),
    gauge("longshore_workers", "Workers known, by whether their lease holds.", &[("state", &["alive", "lost"])]),
    gauge("longshore_slots", "Slots of the workers that are alive.", &[("state", &["free", "busy"])]),
    histogram("longshore_store_commit_seconds", "Time of one transaction, its fsync included.", &[]),
    histogram("longshore_store_batch_inputs", "Inputs that one transaction carried.", &[]),
    gauge("longshore_outbox_rows", "Messages not yet confirmed by the broker (P3).", &[]),
    gauge("longshore_leader", "1 while this process leads, 0 while it stands by (P21).", &[]),
    gauge("longshore_broker_connected", "1 while there is a connection to the broker.", &[]),
];

const PHASES: [&str; 4] = ["waiting", "queued", "preparing", "running"];

type Labels = &'static [(&'static str, &'static [&'static str])];

const fn counter(name: &'static str, help: &'static str, labels: Labels) -> MetricDoc {
    MetricDoc { name, kind: MetricKind::Counter, help, labels }
}

const fn gauge(name: &'static str, help: &'static str, labels: Labels) -> MetricDoc {
    MetricDoc { name, kind: MetricKind::Gauge, help, labels }
}

const fn histogram(name: &'static str, help: &'static str, labels: Labels) -> MetricDoc {
    MetricDoc { name, kind: MetricKind::Histogram, help, labels }
}

/// The label of a phase; `None` for a settled step, which is not open.
pub(crate) fn phase_word(phase: StepPhase) -> Option<&'static str> {
    match phase {
        StepPhase::Waiting => Some("waiting"),
        StepPhase::Queued => Some("queued"),
        StepPhase::Preparing => Some("preparing"),
        StepPhase::Running => Some("running"),
        StepPhase::Settled => None,
    }
}

/// Counts what a committed entry says.
pub(crate) fn entry_committed(entry: &Entry) {
    match entry {
        Entry::RunSettled { outcome, .. } => {
            metrics::counter!("longshore_runs_total", "outcome" => outcome.to_string()).increment(1);
        }
        Entry::Settled { outcome, .. } => {
            metrics::counter!("longshore_steps_total", "outcome" => outcome.word()).increment(1);
        }
        Entry::Retried { because, .. } => {
            let cause = match because {
                RetryCause::Infra => "infra",
                RetryCause::Gone => "gone",
                RetryCause::User => "user",
                RetryCause::Lineage => "lineage",
                RetryCause::HandedBack => "handed_back",
                RetryCause::GoVoid => "go_void",
            };
            metrics::counter!("longshore_retries_total", "cause" => cause).increment(1);
        }
        Entry::LeftLost { .. } => metrics::counter!("longshore_lefts_lost_total").increment(1),
        Entry::RemakeBegun { .. } => metrics::counter!("longshore_remakes_total").increment(1),
        Entry::LeaseEnded { .. } => metrics::counter!("longshore_leases_ended_total").increment(1),
        Entry::Ended { end: End::Finished { cached, phases, .. }, .. } => {
            if *cached {
                metrics::counter!("longshore_steps_cached_total").increment(1);
            }
            let verbs = [("prepare", phases.prepare_ms), ("exec", phases.exec_ms), ("snapshot", phases.snapshot_ms)];
            // A verb that took no time was not reached: a step that failed is not snapshotted.
            for (verb, ms) in verbs.into_iter().filter(|(_, ms)| *ms > 0) {
                metrics::histogram!("longshore_phase_seconds", "phase" => verb).record(seconds(ms));
            }
        }
        _ => {}
    }
}

/// Observes how long an attempt waited for its turn, or for its claim.
pub(crate) fn attempt_waited(waited: &Waited) {
    match waited {
        Waited::Ready(ms) => metrics::histogram!("longshore_ready_to_dispatch_seconds").record(seconds(*ms)),
        Waited::Queued(ms) => metrics::histogram!("longshore_dispatch_to_accept_seconds").record(seconds(*ms)),
    }
}

/// Shows how many steps wait in a pool.
pub(crate) fn steps_ready(pool: Option<&PoolName>, steps: usize) {
    let pool = pool.map_or_else(|| "(no worker)".to_owned(), ToString::to_string);
    metrics::gauge!("longshore_steps_ready", "pool" => pool).set(steps as f64);
}

/// Observes how long an attempt waited for its command's start.
pub(crate) fn attempt_started(attempt: &AttemptView) {
    if let Some(started) = attempt.started_at_ms {
        let waited = started.saturating_sub(attempt.dispatched_at_ms);
        metrics::histogram!("longshore_queue_to_start_seconds").record(seconds(waited));
    }
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}
