//! The worker's metrics: one table, from which they are described, touched and documented.

use longshore_protocol::Outcome;
use longshore_protocol::broker::DEAD_LETTERS_METRIC;
use longshore_protocol::metric::{MetricDoc, MetricKind, describe_and_touch};

use crate::checkpoint::Cause;
use crate::engine::docker::NAMESPACE_METRICS;
use crate::gates::{GATE_LIMIT_METRIC, GATE_WAIT_BUCKETS, GATE_WAIT_METRIC};

pub(crate) const COMMIT_SECONDS: &str = "longshore_worker_commit_seconds";
pub(crate) const RETRIES: &str = "longshore_worker_retries_total";
pub(crate) const PHASE_SECONDS: &str = "longshore_worker_phase_seconds";
pub(crate) const STEPS: &str = "longshore_worker_steps_total";
pub(crate) const SLOTS: &str = "longshore_worker_slots";
pub(crate) const SLOTS_FREE: &str = "longshore_worker_slots_free";
pub(crate) const QUEUE_TO_START_SECONDS: &str = "longshore_worker_queue_to_start_seconds";
pub(crate) const FENCED: &str = "longshore_worker_fenced_total";
pub(crate) const OUTPUT_BYTES: &str = "longshore_worker_output_bytes_total";
pub(crate) const IMAGE_PULLS: &str = "longshore_worker_image_pulls_total";
pub(crate) const SPOOL_BYTES: &str = "longshore_worker_spool_bytes";
pub(crate) const CLAIMS: &str = "longshore_worker_claims_total";
pub(crate) const HEARTBEATS_DROPPED: &str = "longshore_worker_heartbeats_dropped_total";
pub(crate) const CONTAINERS_SWEPT: &str = "longshore_worker_containers_swept_total";
pub(crate) const PARKED: &str = "longshore_worker_parked";
pub(crate) const PARENTS: &str = "longshore_worker_parents_total";
pub(crate) const COMMITS: &str = "longshore_worker_commits_total";
pub(crate) const COMMITS_AVOIDED: &str = "longshore_worker_commits_avoided_total";
pub(crate) const ADOPTED: &str = "longshore_worker_adopted_total";
pub(crate) const TIDYING: &str = "longshore_worker_tidying";
pub(crate) const BROKER_CONNECTED: &str = "longshore_worker_broker_connected";
pub(crate) const ENGINE_REACHABLE: &str = "longshore_worker_engine_reachable";

/// The calls that are tried again: the values of `operation`.
pub(crate) const OPERATIONS: [&str; 11] = [
    "begin",
    "adopt",
    "fit",
    "ensure_image",
    "snapshot_exists",
    "create",
    "inject",
    "stop",
    "commit",
    "remove_container",
    "remove_snapshot",
];

/// The values of `what`: what became of an attempt or a parked container that an earlier incarnation left (P10).
pub(crate) const ADOPTIONS: [&str; 8] =
    ["followed", "ended", "taken", "prepared_again", "handed_back", "lost", "parked", "parked_lost"];

/// The values of `kind`: what made a control message stale (P22).
pub(crate) const FENCES: [&str; 3] = ["worker", "incarnation", "epoch"];

/// Every metric of a worker.
pub const METRICS: &[MetricDoc] = &[
    DEAD_LETTERS_METRIC,
    MetricDoc {
        name: COMMIT_SECONDS,
        kind: MetricKind::Histogram,
        help: "Time that the Engine took for a commit that succeeded, retries not counted.",
        labels: &[],
    },
    MetricDoc {
        name: RETRIES,
        kind: MetricKind::Counter,
        help: "Calls to the Engine that failed and were tried again.",
        labels: &[("operation", &OPERATIONS)],
    },
    MetricDoc {
        name: PHASE_SECONDS,
        kind: MetricKind::Histogram,
        help: "Time that a step spent in each phase on its worker.",
        labels: &[("phase", &["prepare", "exec", "snapshot", "remove"])],
    },
    MetricDoc {
        name: STEPS,
        kind: MetricKind::Counter,
        help: "Attempts that ended on this worker, by outcome; abandoned ones are not counted.",
        labels: &[("outcome", &Outcome::WORDS)],
    },
    MetricDoc { name: SLOTS, kind: MetricKind::Gauge, help: "Steps that the worker carries out at once.", labels: &[] },
    MetricDoc {
        name: SLOTS_FREE,
        kind: MetricKind::Gauge,
        help: "Slots without a step; 0 while the Engine does not answer.",
        labels: &[],
    },
    MetricDoc {
        name: QUEUE_TO_START_SECONDS,
        kind: MetricKind::Histogram,
        help: "From the coordinator's dispatch to the start of the command, by the two clocks.",
        labels: &[],
    },
    MetricDoc {
        name: FENCED,
        kind: MetricKind::Counter,
        help: "Control messages that were ignored, because they addressed somebody else or came from a former leader.",
        labels: &[("kind", &FENCES)],
    },
    MetricDoc {
        name: OUTPUT_BYTES,
        kind: MetricKind::Counter,
        help: "Bytes that commands wrote, as they were read.",
        labels: &[("stream", &["stdout", "stderr"])],
    },
    MetricDoc {
        name: IMAGE_PULLS,
        kind: MetricKind::Counter,
        help: "Images that steps asked for, by whether they could be had; one that the Engine has already counts.",
        labels: &[("result", &["ok", "failed"])],
    },
    MetricDoc {
        name: SPOOL_BYTES,
        kind: MetricKind::Gauge,
        help: "Bytes of output on the worker's disk that are not settled yet.",
        labels: &[],
    },
    MetricDoc {
        name: CLAIMS,
        kind: MetricKind::Counter,
        help: "Jobs that were delivered, by what became of them.",
        labels: &[("result", &["accepted", "duplicate", "unreadable", "failed"])],
    },
    MetricDoc {
        name: HEARTBEATS_DROPPED,
        kind: MetricKind::Counter,
        help: "Heartbeats that were not sent, because the broker was away.",
        labels: &[],
    },
    MetricDoc {
        name: CONTAINERS_SWEPT,
        kind: MetricKind::Counter,
        help: "Containers without an attempt that were removed.",
        labels: &[],
    },
    MetricDoc {
        name: PARKED,
        kind: MetricKind::Gauge,
        help: "Containers that wait for a child to go on in them.",
        labels: &[],
    },
    MetricDoc {
        name: PARENTS,
        kind: MetricKind::Counter,
        help: "Steps that go on with another one's files, by where those were found.",
        labels: &[("found", &["parked", "snapshot", "lost"])],
    },
    MetricDoc {
        name: COMMITS,
        kind: MetricKind::Counter,
        help: "Commits that were made, by why.",
        labels: &[("cause", &Cause::WORDS)],
    },
    MetricDoc {
        name: COMMITS_AVOIDED,
        kind: MetricKind::Counter,
        help: "Parked containers that were gone on in without ever having been committed as they were.",
        labels: &[],
    },
    MetricDoc {
        name: ADOPTED,
        kind: MetricKind::Counter,
        help: "What the worker's last incarnation left, by what became of it at the start.",
        labels: &[("what", &ADOPTIONS)],
    },
    MetricDoc {
        name: TIDYING,
        kind: MetricKind::Gauge,
        help: "Containers being removed, or made ready for the next step, behind their steps.",
        labels: &[],
    },
    MetricDoc {
        name: BROKER_CONNECTED,
        kind: MetricKind::Gauge,
        help: "1 while there is a connection to the broker.",
        labels: &[],
    },
    MetricDoc { name: ENGINE_REACHABLE, kind: MetricKind::Gauge, help: "1 while the Engine answers.", labels: &[] },
    GATE_LIMIT_METRIC,
    GATE_WAIT_METRIC,
    NAMESPACE_METRICS[0],
    NAMESPACE_METRICS[1],
    NAMESPACE_METRICS[2],
    NAMESPACE_METRICS[3],
    NAMESPACE_METRICS[4],
];

/// Bounds of the histograms, for the recorder that the process installs: without them it prints summaries.
pub const BUCKETS: &[(&str, &[f64])] = &[
    // A commit takes 50 ms and 6 ms a megabyte on the reference machine; its own limit is 10 min.
    (COMMIT_SECONDS, &[0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0]),
    // From a removal (6 ms) to a build of hours.
    (
        PHASE_SECONDS,
        &[0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0],
    ),
    // From a free slot and a warm image (0.3 s) to an hour in a pool's queue.
    GATE_WAIT_BUCKETS,
    (QUEUE_TO_START_SECONDS, &[0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0]),
];

/// Describes every metric and shows it at zero.
pub(crate) fn start(slots: u32) {
    describe_and_touch(METRICS);
    metrics::gauge!(SLOTS).set(f64::from(slots));
    metrics::gauge!(SLOTS_FREE).set(f64::from(slots));
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};

    use super::*;

    #[test]
    fn every_metric_is_exported_from_the_first_scrape_and_histograms_have_buckets() {
        let mut builder = PrometheusBuilder::new();
        for (name, bounds) in BUCKETS {
            builder = builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), bounds).unwrap();
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || start(3));
        let page = handle.render();
        for metric in METRICS {
            let sample = match metric.kind {
                MetricKind::Histogram => format!("{}_bucket", metric.name),
                MetricKind::Counter | MetricKind::Gauge => metric.name.to_owned(),
            };
            assert!(page.lines().any(|line| line.starts_with(&sample)), "{sample} is not in\n{page}");
            assert_eq!(metric.kind == MetricKind::Counter, metric.name.ends_with("_total"), "{}", metric.name);
        }
        assert!(page.contains("longshore_worker_slots 3"), "{page}");
    }
}
