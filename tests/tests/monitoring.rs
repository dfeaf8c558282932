//! What the processes export, what the documentation says they export, and what the dashboard asks for.

use std::collections::BTreeSet;
use std::time::Duration;

use longshore_coordinator::core::view::RunOutcome;
use longshore_protocol::metric::MetricDoc;
use longshore_tests::check::run_command;
use longshore_tests::process::within_patience;
use longshore_tests::{Fleet, services};
use serde_json::Value;

/// A bit of everything: passes, a failure, a retry, a commit, output on both streams.
const VARIED: &str = r#"
name: varied
defaults: {image: "longshore-test/busybox:latest", keep_going: true}
steps:
  - name: root
    snapshot: always
    run: |
      echo out
      echo err >&2
  - name: child
    from: root
    run: cat /etc/passwd
  - name: again
    retry: 1
    run: test "$LONGSHORE_ATTEMPT" = 2
  - name: fails
    run: exit 3
"#;

#[tokio::test]
async fn every_panel_of_the_dashboard_has_data_and_every_metric_is_documented() {
    let fleet = Fleet::new().worker("one", 1).worker("two", 2).start().await;
    let prometheus = Prometheus::scraping(&fleet);
    // A rate needs a scrape from before what it counts.
    prometheus.answers("every target is scraped", "sum(up) == 3").await;
    fleet.submit(VARIED).await.settles(RunOutcome::Failed).await;

    for (panel, query) in dashboard_queries() {
        prometheus.answers(&panel, &query).await;
    }

    let coordinator = scrape(&fleet.url("/metrics")).await;
    let worker = scrape(&format!("http://{}/metrics", fleet.worker_metrics("one"))).await;
    assert_eq!(coordinator, names(longshore_coordinator::metrics::METRICS), "the coordinator's metrics");
    assert_eq!(worker, names(longshore_worker::metrics::METRICS), "the worker's metrics");
    fleet.checks_out().await;
}

#[test]
fn docs_metrics_md_is_the_tables_that_the_processes_describe_themselves_with() {
    let file = services::root().join("docs/metrics.md");
    let text = std::fs::read_to_string(&file).expect("docs/metrics.md");
    for (title, table) in
        [("Coordinator", longshore_coordinator::metrics::METRICS), ("Worker", longshore_worker::metrics::METRICS)]
    {
        let rows: Vec<String> = table.iter().map(row).collect();
        let section = text.split("\n## ").find(|section| section.starts_with(title)).expect("one section a process");
        let documented: Vec<&str> = section.lines().filter(|line| line.starts_with("| `")).collect();
        assert_eq!(documented.join("\n"), rows.join("\n"), "the table under \"{title}\" of docs/metrics.md");
    }
}

#[test]
fn alert_rules_are_valid_and_ask_for_metrics_that_exist() {
    let rules = services::root().join("charts/longshore/files/alerts.yaml");
    run_command("promtool", &["check", "rules", &rules.display().to_string()]);
    let known: BTreeSet<String> = names(longshore_coordinator::metrics::METRICS)
        .union(&names(longshore_worker::metrics::METRICS))
        .cloned()
        .collect();
    let text = std::fs::read_to_string(&rules).expect("readable");
    let queries = dashboard_queries().into_iter().map(|(_, query)| query).chain([text]);
    for query in queries {
        for name in metrics_named_in(&query) {
            assert!(known.contains(&name), "{name} in {query}");
        }
    }
}

/// A row of `docs/metrics.md`.
fn row(metric: &MetricDoc) -> String {
    let label = |(name, values): &(&str, &[&str])| {
        if values.is_empty() { format!("`{name}`") } else { format!("`{name}`: {}", values.join(", ")) }
    };
    let labels: Vec<_> = metric.labels.iter().map(label).collect();
    let kind = format!("{:?}", metric.kind).to_lowercase();
    format!("| `{}` | {kind} | {} | {} |", metric.name, labels.join("; "), metric.help)
}

fn names(table: &[MetricDoc]) -> BTreeSet<String> {
    table.iter().map(|metric| metric.name.to_owned()).collect()
}

/// Nothing here is reached by a proxy.
fn http() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().expect("no TLS to set up")
}

/// The metrics on a page, histograms by their own name.
async fn scrape(url: &str) -> BTreeSet<String> {
    let page = http().get(url).send().await.expect("metrics are served").text().await.expect("text");
    page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).map(str::to_owned).collect()
}

/// Every `longshore_…` in a query, without what Prometheus appends to a histogram's name.
fn metrics_named_in(query: &str) -> BTreeSet<String> {
    let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let metrics = words.filter(|word| word.starts_with("longshore_"));
    let base = |word: &str| {
        ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word).to_owned()
    };
    metrics.map(base).collect()
}

/// Each panel's title and query, with Grafana's variables filled in.
fn dashboard_queries() -> Vec<(String, String)> {
    let file = services::root().join("charts/longshore/files/dashboard.json");
    let dashboard: Value = serde_json::from_slice(&std::fs::read(file).expect("readable")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("a dashboard has panels");
    let queries = panels.iter().flat_map(|panel| {
        let title = panel["title"].as_str().unwrap_or_default();
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        targets.into_iter().map(move |target| {
            let query = target["expr"].as_str().expect("a target has a query");
            (title.to_owned(), query.replace("$__rate_interval", "1m").replace("$instance", ".*"))
        })
    });
    let queries: Vec<_> = queries.collect();
    assert!(queries.len() >= 6, "the dashboard has panels with queries");
    queries
}

/// Debian's Prometheus, on a directory and a port of its own.
struct Prometheus {
    address: String,
    _process: tokio::process::Child,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    fn scraping(fleet: &Fleet) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let targets = [fleet.address().to_owned(), fleet.worker_metrics("one"), fleet.worker_metrics("two")];
        let config = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: longshore, static_configs: [{{targets: {targets:?}}}]}}]\n"
        );
        let file = dir.path().join("prometheus.yml");
        std::fs::write(&file, config).expect("writable");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        drop(listener);
        let process = tokio::process::Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("prometheus is installed by scripts/setup.sh test");
        Self { address, _process: process, _dir: dir }
    }

    /// Waits until a query has data: rates need a second scrape.
    async fn answers(&self, panel: &str, query: &str) {
        let (http, url) = (http(), format!("http://{}/api/v1/query", self.address));
        let poll = async {
            let mut interval = tokio::time::interval(Duration::from_millis(250));
            loop {
                interval.tick().await;
                let Ok(response) = http.get(&url).query(&[("query", query)]).send().await else {
                    continue; // it is still starting
                };
                let answer: Value = response.json().await.unwrap_or_default();
                assert_ne!(answer["status"], "error", "{panel}: {query}: {answer}");
                // NaN is what a quantile of no observations gives: a panel would be empty.
                let has_data = |sample: &Value| sample["value"][1].as_str().is_some_and(|value| value != "NaN");
                if answer["data"]["result"].as_array().is_some_and(|samples| samples.iter().any(has_data)) {
                    return;
                }
            }
        };
        assert!(within_patience(poll).await.is_some(), "the panel {panel:?} has no data: {query}");
    }
}
