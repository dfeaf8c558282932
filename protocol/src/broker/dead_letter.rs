//! What happens to a message that cannot be read (P1).

use super::{Broker, Delivery, Outgoing, PublishError};
use crate::metric::{MetricDoc, MetricKind};
use crate::topology::Topology;
use crate::wire::Unreadable;

/// The header of a dead letter that says why it is one. The broker's own dead letters lack it:
/// `basic.reject` carries no reason, which is why we publish ours ourselves.
pub const REASON_HEADER: &str = "x-longshore-reason";

/// The header of a dead letter that names the queue in which it could not be read.
pub const QUEUE_HEADER: &str = "x-longshore-queue";

/// What [`dead_letter`] counts, for the table of metrics of whoever consumes.
pub const DEAD_LETTERS_METRIC: MetricDoc = MetricDoc {
    name: "longshore_dead_letters_total",
    kind: MetricKind::Counter,
    help: "Messages that could not be read and were moved to the dead letters, by what the queue is for",
    labels: &[("queue", &Topology::PURPOSES)],
};

/// What is wrong with a message may quote it (an unknown `type`, say), as long as that is. AMQP has all headers of a
/// message in one frame, 128 KiB with RabbitMQ; a larger one would be refused, and the consumer wedged after all.
const REASON_BYTES_MAX: usize = 1024;

/// Of the headers that it came with: they and ours must fit one frame.
const HEADERS_BYTES_MAX: usize = 64 * 1024;

/// Moves a delivery that cannot be read to the dead letters, so that it never wedges its consumer (P1).
///
/// Published with the reason and confirmed, then acked: a crash between leaves it in both queues,
/// never in none. On an error it is back in its queue.
pub async fn dead_letter<B: Broker>(
    broker: &B,
    topology: &Topology,
    mut delivery: Delivery,
    reason: &Unreadable,
) -> Result<(), PublishError> {
    let queue = delivery.queue().to_owned();
    let reason = shortened(reason.to_string());
    tracing::warn!(queue, reason, "dead-lettered");
    let mut letter = Outgoing::new(topology.dead_letters().address(), std::mem::take(&mut delivery.body));
    letter.headers = std::mem::take(&mut delivery.headers);
    if letter.headers.iter().map(|(key, text)| key.len() + text.len()).sum::<usize>() > HEADERS_BYTES_MAX {
        letter.headers.clear();
    }
    letter.headers.insert(REASON_HEADER.to_owned(), reason);
    let purpose = topology.purpose(&queue);
    letter.headers.insert(QUEUE_HEADER.to_owned(), queue);
    if let Err(error) = publish(broker, topology, letter).await {
        // Kept, it would hold one of its consumer's places for as long as the connection lasts.
        if let Err(error) = delivery.give_back().await {
            tracing::debug!(%error, "its connection is gone, and gave it back");
        }
        return Err(error);
    }
    metrics::counter!(DEAD_LETTERS_METRIC.name, "queue" => purpose).increment(1);
    Ok(delivery.ack().await?)
}

/// Somebody may have deleted the queue: it is declared again then.
async fn publish<B: Broker>(broker: &B, topology: &Topology, letter: Outgoing) -> Result<(), PublishError> {
    match broker.publish(vec![letter.clone()]).await {
        Err(PublishError::Returned { .. }) => {
            broker.declare(&[topology.dead_letters()]).await?;
            broker.publish(vec![letter]).await
        }
        done => done,
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > REASON_BYTES_MAX {
        text.truncate(text.floor_char_boundary(REASON_BYTES_MAX));
        text.push('…');
    }
    text
}
