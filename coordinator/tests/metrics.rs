//! Every metric that is documented is exported, and the reverse.

#![allow(clippy::unwrap_used)] // a test's helper that fails has failed its test

mod support;

use std::collections::BTreeSet;
use std::sync::OnceLock;

use longshore_coordinator::metrics::METRICS;
use longshore_protocol::metric::{MetricKind, describe_and_touch};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use support::{CHAIN, Fleet, ScriptedWorker};

static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();

fn families(text: &str) -> BTreeSet<(String, String)> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.filter_map(|line| line.split_once(' ')).map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

#[tokio::test]
async fn what_is_documented_is_exported_and_the_reverse() {
    let recorder = PrometheusBuilder::new().set_buckets(&[0.01, 1.0]).unwrap().install_recorder().unwrap();
    describe_and_touch(METRICS);
    HANDLE.set(recorder).ok().unwrap();
    let fleet = Fleet::start_with(|config| config.metrics = HANDLE.get().cloned()).await;
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let run = fleet.submitted(CHAIN).await;
    worker.raw(&worker.topology.events(support::SHARD), b"garbage".to_vec()).await;
    for _ in 0..2 {
        let job = worker.next_job().await;
        worker.carry_out(&job).await;
    }
    fleet.settled(run).await;
    // P1: counted, by what its queue is for; by a task of its own, which nothing else waits for.
    let text = support::patiently("the dead letter's count", async {
        loop {
            let text = String::from_utf8(fleet.text("/metrics").await).unwrap();
            if text.lines().any(|line| line == "longshore_dead_letters_total{queue=\"events\"} 1") {
                break text;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let documented: BTreeSet<_> = METRICS
        .iter()
        .map(|metric| {
            let kind = match metric.kind {
                MetricKind::Counter => "counter",
                MetricKind::Gauge => "gauge",
                MetricKind::Histogram => "histogram",
            };
            (metric.name.to_owned(), kind.to_owned())
        })
        .collect();
    assert_eq!(families(&text), documented);
    let value =
        |series: &str| text.lines().find_map(|line| line.strip_prefix(series)).unwrap_or_else(|| panic!("no {series}"));
    assert_eq!(value("longshore_runs_total{outcome=\"passed\"} "), "1");
    assert_eq!(value("longshore_steps_total{outcome=\"passed\"} "), "2");
    assert_eq!(value("longshore_queue_to_start_seconds_count "), "2");
    assert_eq!(value("longshore_output_bytes_total{stream=\"stdout\"} "), "31");
    assert_eq!(value("longshore_leader "), "1");
    for metric in METRICS {
        let unit = metric.name.rsplit('_').next().unwrap();
        match metric.kind {
            MetricKind::Counter => assert_eq!(unit, "total", "{}", metric.name),
            MetricKind::Gauge | MetricKind::Histogram => assert_ne!(unit, "total", "{}", metric.name),
        }
    }
}
