//! What a worker shows to whoever watches it.

use longshore_protocol::event::Event;
use longshore_worker::{Config, METRICS};
use metrics_exporter_prometheus::PrometheusBuilder;

use crate::fleet::Fleet;

#[tokio::test]
async fn health_readiness_and_metrics_are_served() {
    let mut fleet = Fleet::new().await;
    // The one recorder of this test process: other tests' workers write into it too.
    let metrics_render = Some(PrometheusBuilder::new().install_recorder().unwrap());
    let any = "127.0.0.1:0".parse().unwrap();
    let config = Config { metrics_listen: Some(any), metrics_render, ..fleet.config() };
    let worker = fleet.start_with(config).await.unwrap();
    let address = worker.listens_on.unwrap();
    assert!(matches!(fleet.event().await, Event::Hello(_)));
    fleet.carry_out(&fleet.job("a", "true")).await;

    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let page = async |path: &str| {
        let answer = http.get(format!("http://{address}{path}")).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(page("/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(page("/readyz").await, (200, "ready\n".to_owned()));
    let (status, text) = page("/metrics").await;
    assert_eq!(status, 200);
    for metric in METRICS {
        assert!(text.contains(&format!("# HELP {}", metric.name)), "{} is not in\n{text}", metric.name);
    }
    // Whoever connects and says nothing does not keep it from stopping.
    let silent = tokio::net::TcpStream::connect(address).await.unwrap();
    assert_eq!(page("/healthz").await.0, 200, "accepted in order: the silent one was as well");
    worker.stop().await;
    drop(silent);
}
