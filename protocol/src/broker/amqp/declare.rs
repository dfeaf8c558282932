//! Queues, their exchanges and bindings.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, LongString};
use lapin::{Channel, ExchangeKind};

use super::link::{PRECONDITION_FAILED, Session, code, explain, lost};
use super::short;
use crate::broker::{BrokerError, declared_otherwise};
use crate::topology::{Queue, QueueKind};

/// From this version on a quorum queue has a delivery limit of 20 unless it asks for none, with -1.
/// Before, it has none unless it asks for one; and 3.10 takes -1 for a limit, which loses a message
/// at its first return (tried with 3.10.8). So the version decides, and never a try.
const LIMITED_BY_DEFAULT_SINCE: u32 = 4;

/// What was declared, to be declared again on every new connection: a broker that lost its disk is
/// then like a new one.
#[derive(Default)]
pub(super) struct Declared {
    /// By name. Bounded by the number of queues a process uses.
    queues: Mutex<BTreeMap<String, Queue>>,
}

impl Declared {
    /// Makes them exist. What exists already and is the same is left as it is.
    pub(super) async fn declare(&self, session: &Session, queues: &[Queue]) -> Result<(), BrokerError> {
        let channel = session.channel().await.map_err(|error| lost(&error))?;
        for queue in queues {
            session
                .run(declare_one(&channel, queue, session.server.major())?)
                .await
                .map_err(|error| refusal(queue, &error))?;
            self.lock().insert(queue.name.clone(), queue.clone());
        }
        session.run(channel.close(200, "done".into())).await.map_err(|error| lost(&error))
    }

    /// Makes everything exist that was declared before. What has been declared otherwise since then
    /// is somebody's mistake, which must not keep us from the other queues.
    pub(super) async fn restore(&self, session: &Session) -> Result<(), BrokerError> {
        let queues: Vec<Queue> = self.lock().values().cloned().collect();
        for queue in queues {
            match self.declare(session, std::slice::from_ref(&queue)).await {
                Err(error @ BrokerError::Refused { .. }) => tracing::warn!(%error, "a queue is not as it was declared"),
                other => other?,
            }
        }
        Ok(())
    }

    /// No longer to be declared again.
    pub(super) fn forget(&self, queue: &str) {
        self.lock().remove(queue);
    }

    pub(super) fn contains(&self, queue: &str) -> bool {
        self.lock().contains_key(queue)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `Err` at once if a name does not fit.
fn declare_one(
    channel: &Channel,
    queue: &Queue,
    server_major: u32,
) -> Result<impl Future<Output = lapin::Result<()>>, BrokerError> {
    let (name, exchange, key) = (short(&queue.name)?, short(&queue.exchange)?, short(&queue.routing_key)?);
    let arguments = arguments(queue, server_major);
    Ok(async move {
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        channel.exchange_declare(exchange.clone(), ExchangeKind::Direct, durable, FieldTable::default()).await?;
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(name.clone(), durable, arguments).await?;
        channel.queue_bind(name, exchange, key, QueueBindOptions::default(), FieldTable::default()).await
    })
}

fn arguments(queue: &Queue, server_major: u32) -> FieldTable {
    let text = |text: &str| LongString::from(text).into();
    let mut arguments = FieldTable::default();
    match &queue.kind {
        QueueKind::Quorum { delivery_limit } => {
            arguments.insert("x-queue-type".into(), text("quorum"));
            match delivery_limit {
                Some(limit) => {
                    arguments.insert("x-delivery-limit".into(), i64::from(*limit).into());
                }
                None if server_major >= LIMITED_BY_DEFAULT_SINCE => {
                    arguments.insert("x-delivery-limit".into(), (-1_i64).into());
                }
                None => {}
            }
        }
        QueueKind::Expiring { ttl } => {
            let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
            arguments.insert("x-message-ttl".into(), ttl_ms.into());
        }
    }
    if let Some(letters) = &queue.dead_letters {
        // The default exchange reaches every queue by its name.
        arguments.insert("x-dead-letter-exchange".into(), text(""));
        arguments.insert("x-dead-letter-routing-key".into(), text(letters));
    }
    arguments
}

fn refusal(queue: &Queue, error: &lapin::Error) -> BrokerError {
    if code(error) == Some(PRECONDITION_FAILED) {
        declared_otherwise(&queue.name, &error.to_string())
    } else {
        explain(error, &format!("the user must be allowed to configure, read and write {}", queue.name))
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::AMQPValue;

    use super::*;
    use crate::ids::Shard;
    use crate::topology::Topology;

    #[test]
    fn results_have_no_limit_where_there_would_be_one_by_default() {
        let events = Topology::new("t", std::time::Duration::from_secs(30)).events(Shard(0));
        let limit = |major| arguments(&events, major).inner().get("x-delivery-limit").cloned();
        assert_eq!(limit(3), None);
        assert_eq!(limit(4), Some(AMQPValue::LongLongInt(-1)));
    }
}
