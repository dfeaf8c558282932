//! What is counted of kept namespaces.

use longshore_protocol::metric::{MetricDoc, MetricKind};

pub(super) const KEPT: &str = "longshore_worker_namespaces";
pub(super) const ASKED: &str = "longshore_worker_namespaces_asked_total";
pub(super) const MADE: &str = "longshore_worker_namespaces_made_total";
pub(super) const REUSED: &str = "longshore_worker_namespaces_reused_total";
pub(super) const DISCARDED: &str = "longshore_worker_namespaces_discarded_total";

/// Of what is kept here, for the worker's table.
pub(crate) const NAMESPACE_METRICS: [MetricDoc; 5] = [
    MetricDoc {
        name: KEPT,
        kind: MetricKind::Gauge,
        help: "Network namespaces that are kept for containers.",
        labels: &[("state", &["free", "used"])],
    },
    MetricDoc {
        name: ASKED,
        kind: MetricKind::Counter,
        help: "Containers that could have joined a kept network namespace, by whether one was ready.",
        labels: &[("result", &["kept", "none"])],
    },
    MetricDoc { name: MADE, kind: MetricKind::Counter, help: "Network namespaces made to be kept.", labels: &[] },
    MetricDoc {
        name: REUSED,
        kind: MetricKind::Counter,
        help: "Kept network namespaces that a container left empty, so that another may have them.",
        labels: &[],
    },
    MetricDoc {
        name: DISCARDED,
        kind: MetricKind::Counter,
        help: "Kept network namespaces that are not given out again, by why.",
        labels: &[("because", &["sockets", "disorder", "tenant", "dead", "unknown", "surplus"])],
    },
];
