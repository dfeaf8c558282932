//! Batches, confirmed and not returned (P2).

use std::sync::{Mutex, PoisonError};

use futures_util::future::join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use tokio::sync::Semaphore;

use super::link::{Link, NOT_FOUND, Session, code, explain};
use super::short;
use crate::broker::{BrokerError, Outgoing, PublishError};

/// How many batches are under way at once. More would only queue up behind the one socket; the
/// broker allows 2,047 channels on a connection.
const BATCHES_MAX: usize = 32;

/// RabbitMQ: written to disk before it is confirmed.
const PERSISTENT: u8 = 2;

pub(super) struct Publisher {
    link: Link,
    permits: Semaphore,
    /// Channels in confirm mode on which nothing is under way, with their session's number. One
    /// batch has a channel to itself: lapin ties a returned message to whichever confirm comes next
    /// on its channel, which among several batches would be the wrong one.
    idle: Mutex<Vec<(u64, Channel)>>,
}

impl Publisher {
    pub(super) fn new(link: Link) -> Self {
        Self { link, permits: Semaphore::new(BATCHES_MAX), idle: Mutex::default() }
    }

    pub(super) async fn publish(&self, messages: &[Outgoing]) -> Result<(), PublishError> {
        if messages.is_empty() {
            return Ok(());
        }
        let ready = messages.iter().enumerate().map(Ready::new).collect::<Result<Vec<_>, _>>()?;
        let _permit = self.permits.acquire().await.map_err(|_| BrokerError::Closed)?;
        let (session, channel) = loop {
            let session = self.link.session().await?;
            match self.channel(&session).await {
                Ok(channel) => break (session, channel),
                // Nothing was sent, so nothing is in doubt: the next connection will do. This one may be over, and
                // its keeper not know it yet.
                Err(error) => session.wait_out(&error, "the user must be allowed to open a channel").await?,
            }
        };
        let outcome = tokio::select! {
            biased;
            outcome = send(&channel, &ready) => outcome,
            () = session.ended.cancelled() => {
                Err(BrokerError::Lost { reason: "it ended before everything was confirmed".to_owned() }.into())
            }
        };
        if channel.status().connected() && !matches!(outcome, Err(PublishError::Broker(_))) {
            self.lock().push((session.number, channel));
        }
        outcome
    }

    /// One in confirm mode that is ours alone.
    async fn channel(&self, session: &Session) -> lapin::Result<Channel> {
        {
            let mut idle = self.lock();
            idle.retain(|(number, channel)| *number == session.number && channel.status().connected());
            if let Some((_, channel)) = idle.pop() {
                return Ok(channel);
            }
        }
        let channel = session.channel().await?;
        session.run(channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(channel)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(u64, Channel)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A message in lapin's words.
struct Ready<'a> {
    message: &'a Outgoing,
    exchange: ShortString,
    routing_key: ShortString,
    properties: BasicProperties,
}

impl<'a> Ready<'a> {
    fn new((index, message): (usize, &'a Outgoing)) -> Result<Self, BrokerError> {
        let mut headers = FieldTable::default();
        for (key, text) in &message.headers {
            headers.insert(short(key)?, AMQPValue::LongString(LongString::from(text.as_str())));
        }
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_content_type("application/json".into())
            // Which one it was, if it is returned.
            .with_message_id(short(&index.to_string())?)
            .with_headers(headers);
        Ok(Self {
            message,
            exchange: short(&message.to.exchange)?,
            routing_key: short(&message.to.routing_key)?,
            properties,
        })
    }

    async fn send(&self, channel: &Channel) -> lapin::Result<PublisherConfirm> {
        let mandatory = BasicPublishOptions { mandatory: true, ..Default::default() };
        let (exchange, key) = (self.exchange.clone(), self.routing_key.clone());
        channel.basic_publish(exchange, key, mandatory, &self.message.body, self.properties.clone()).await
    }
}

/// Sends all, then waits for all.
async fn send(channel: &Channel, batch: &[Ready<'_>]) -> Result<(), PublishError> {
    let mut confirms = Vec::with_capacity(batch.len());
    for ready in batch {
        confirms.push(ready.send(channel).await.map_err(|error| not_sent(batch, &error))?);
    }
    let mut returned: Option<usize> = None;
    let mut rejected: Option<usize> = None;
    let mut failed = None;
    for (index, confirm) in join_all(confirms).await.into_iter().enumerate() {
        let first = |so_far: Option<usize>, index: usize| Some(so_far.map_or(index, |so_far| so_far.min(index)));
        match confirm {
            // A confirm of several at once hands out what was returned in any order: the message
            // itself says which one it is.
            Ok(Confirmation::Ack(Some(message)) | Confirmation::Nack(Some(message))) => {
                let which = message.properties.message_id().as_ref().and_then(|id| id.as_str().parse().ok());
                returned = first(returned, which.unwrap_or(index));
            }
            Ok(Confirmation::Ack(None)) => {}
            Ok(Confirmation::Nack(None) | Confirmation::NotRequested) => rejected = first(rejected, index),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    match (failed, returned, rejected) {
        (Some(error), ..) => Err(not_sent(batch, &error)),
        (None, Some(index), _) => Err(PublishError::Returned { index, address: batch[index].message.to.clone() }),
        (None, None, Some(index)) => Err(PublishError::Rejected { index }),
        (None, None, None) => Ok(()),
    }
}

/// An exchange that does not exist closes the channel; to us it is an address at which nobody is.
fn not_sent(batch: &[Ready<'_>], error: &lapin::Error) -> PublishError {
    let text = error.to_string();
    let missing = |ready: &Ready<'_>| text.contains(&format!("'{}'", ready.message.to.exchange));
    match (code(error), batch.iter().position(missing)) {
        (Some(NOT_FOUND), Some(index)) => PublishError::Returned { index, address: batch[index].message.to.clone() },
        _ => explain(error, "the user must be allowed to write to the exchange").into(),
    }
}
