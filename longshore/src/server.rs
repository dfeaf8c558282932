//! What the two daemons share: metrics, the broker at their start, signals.

use std::time::Duration;

use longshore_protocol::broker::amqp::{AmqpBroker, shown_address};
use longshore_protocol::metric::{MetricDoc, describe_and_touch};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

use crate::cli::FleetArgs;
use crate::failure::Failure;
use crate::render::screen;
use crate::signals::Interrupts;

/// The first wait before RabbitMQ is asked again; it doubles.
const BROKER_BACKOFF_FIRST: Duration = Duration::from_millis(250);
/// P8: reconnects for ever, backoff capped at 3 s.
const BROKER_BACKOFF_MAX: Duration = Duration::from_secs(3);

/// For histograms of seconds that name none of their own: from a millisecond to ten minutes.
const SECONDS: &[f64] =
    &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];

/// For histograms of bytes: from a page to a large image.
const BYTES: &[f64] = &[4096.0, 65_536.0, 1_048_576.0, 16_777_216.0, 268_435_456.0, 4_294_967_296.0];

/// For histograms of counts: batches and the like.
const COUNTS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// Installs the process's one recorder and shows every metric of the table at zero. Without buckets it would print
/// summaries, which nobody can add up.
pub(crate) fn install_metrics(table: &[MetricDoc], buckets: &[(&str, &[f64])]) -> Result<PrometheusHandle, Failure> {
    let failed = |error| Failure::infra(format!("metrics cannot be recorded: {error}"));
    let mut builder = PrometheusBuilder::new().set_buckets(COUNTS).map_err(failed)?;
    for (suffix, bounds) in [("_seconds", SECONDS), ("_bytes", BYTES)] {
        builder = builder.set_buckets_for_metric(Matcher::Suffix(suffix.to_owned()), bounds).map_err(failed)?;
    }
    for (name, bounds) in buckets {
        builder = builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), bounds).map_err(failed)?;
    }
    let handle = builder.install_recorder().map_err(failed)?;
    describe_and_touch(table);
    Ok(handle)
}

/// How often what was recorded is folded into the histograms that are kept: memory stays bounded unscraped.
const UPKEEP: Duration = Duration::from_secs(5);

/// Folds what was recorded, until `shutdown`.
pub(crate) async fn upkeep(metrics: PrometheusHandle, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(UPKEEP);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        metrics.run_upkeep();
    }
}

/// The broker, which need not be there yet.
pub(crate) fn broker(args: &FleetArgs, name: &str) -> Result<AmqpBroker, Failure> {
    // It says how to write an address, and never what it holds.
    AmqpBroker::new(&args.amqp, name).map_err(|error| Failure::input(error.reason()))
}

/// Says what the start waits for, and then that it is `ready`: what that future gives stands behind the word.
pub(crate) async fn announce(amqp: String, name: &'static str, ready: impl Future<Output = String>) {
    broker_answers(&amqp, name).await;
    let words = ready.await;
    screen::say(&format!("{name}: ready {words}"));
}

/// Waits until RabbitMQ answers, and says so where it does not.
async fn broker_answers(amqp: &str, name: &str) {
    let mut wait = BROKER_BACKOFF_FIRST;
    let mut said = String::new();
    while let Err(error) = AmqpBroker::probe(amqp).await {
        if said != error.reason() {
            error.reason().clone_into(&mut said);
            let address = shown_address(amqp).unwrap_or_default();
            let line =
                format!("{name}: no broker yet: waiting for RabbitMQ at {address}, tried again every 3 s ({said})");
            screen::say(&line);
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(BROKER_BACKOFF_MAX);
    }
}

/// Cancelled by the first signal. Who may still be busy then has a second one `hurry` it. The one after that ends the
/// process at once: what is on disk is good (promise 4).
pub(crate) fn shutdown(hurry: Option<CancellationToken>) -> Result<CancellationToken, Failure> {
    let mut interrupts = Interrupts::catch()?;
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    // Ends with the process.
    tokio::spawn(async move {
        interrupts.next().await;
        token.cancel();
        if let Some(hurry) = hurry {
            screen::say("longshore: stopping once what runs is over; a second signal hands it back at once");
            interrupts.next().await;
            hurry.cancel();
        }
        screen::say("longshore: stopping; another signal ends at once");
        interrupts.next().await;
        std::process::exit(i32::from(crate::failure::EXIT_CANCELLED));
    });
    Ok(shutdown)
}
