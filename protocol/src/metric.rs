//! One table of metrics per process: described, touched and documented from the same place.

/// What a metric counts, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations in buckets; in seconds or bytes.
    Histogram,
}

/// One metric, as `docs/metrics.md` lists it.
#[derive(Clone, Copy, Debug)]
pub struct MetricDoc {
    /// With the unit last, as Prometheus wants it.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: MetricKind,
    /// One sentence.
    pub help: &'static str,
    /// Each label with every value known from the start; an empty list of values where they are open.
    pub labels: &'static [(&'static str, &'static [&'static str])],
}

/// Describes every metric, and touches every one whose label values are known, so that the first
/// scrape shows it at zero: the exporter prints nothing for a metric not yet touched.
pub fn describe_and_touch(table: &[MetricDoc]) {
    for metric in table {
        match metric.kind {
            MetricKind::Counter => metrics::describe_counter!(metric.name, metric.help),
            MetricKind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            MetricKind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
        for labels in combinations(metric.labels) {
            match metric.kind {
                MetricKind::Counter => metrics::counter!(metric.name, labels).increment(0),
                MetricKind::Gauge => metrics::gauge!(metric.name, labels).increment(0.0),
                MetricKind::Histogram => drop(metrics::histogram!(metric.name, labels)),
            }
        }
    }
}

/// Every combination of the labels' known values; none if a label is open.
fn combinations(labels: &[(&'static str, &'static [&'static str])]) -> Vec<Vec<metrics::Label>> {
    labels.iter().fold(vec![Vec::new()], |combinations, (name, values)| {
        combinations
            .iter()
            .flat_map(|labels| {
                values.iter().map(move |value| {
                    let mut labels: Vec<metrics::Label> = labels.clone();
                    labels.push(metrics::Label::from_static_parts(name, value));
                    labels
                })
            })
            .collect()
    })
}
