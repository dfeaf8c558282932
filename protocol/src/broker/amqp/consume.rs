//! Receiving, across lost connections.

use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::Channel;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::link::{BACKOFF_MAX, GOODBYE_TIMEOUT, Session, backoff, lost};
use super::{Inner, short};
use crate::broker::{Acker, BrokerError, Delivery};
use crate::topology::{Queue, QueueKind};

/// How long one look at a quorum queue without a leader takes: an election takes a second. Less than the 30 s after which
/// RabbitMQ itself gives up on one and ends the connection, or no look would ever come to its end.
const LEADER_PATIENCE_SECS: u32 = 16;
/// So many looks in a row before it is deleted: together they are longer than RabbitMQ's own patience.
const LEADER_LOOKS: u32 = 2;

/// One consumer, on whatever connection there is at the moment.
pub struct AmqpConsumer {
    inbox: Arc<Inbox>,
    /// Ends the task, also when the consumer is dropped.
    stop: DropGuard,
    task: JoinHandle<()>,
    /// As long as somebody consumes, the connections stay.
    _broker: Arc<Inner>,
}

impl AmqpConsumer {
    /// Consumes as soon as there is a connection. Dropped while it waits, it leaves nothing behind.
    pub(super) async fn start(broker: Arc<Inner>, queue: Queue, prefetch: u16) -> Result<Self, BrokerError> {
        let (link, declared) = (broker.consuming.clone(), Arc::clone(&broker.declared));
        let feed = Feed { link, declared, queue, prefetch, making: Mutex::default() };
        let stop = broker.consumers_stop.child_token();
        let guard = stop.clone().drop_guard();
        let inbox = Arc::new(Inbox::default());
        let (told, consumes) = oneshot::channel();
        let task = broker.consumers.spawn(feed.start(told, Arc::clone(&inbox), stop));
        match consumes.await {
            Ok(Ok(())) => Ok(Self { inbox, stop: guard, task, _broker: broker }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(BrokerError::Closed),
        }
    }

    pub(in crate::broker) async fn next(&self) -> Option<Delivery> {
        self.inbox.next().await
    }

    pub(in crate::broker) async fn cancel(self) {
        self.stop.disarm().cancel();
        if let Err(error) = self.task.await {
            // Only a panic: nobody else holds the task.
            tracing::error!(%error, "a consumer's task failed");
        }
    }
}

impl std::fmt::Debug for AmqpConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AmqpConsumer").finish_non_exhaustive()
    }
}

/// What was delivered and not yet taken. Bounded by the prefetch: the broker sends no more.
#[derive(Default)]
struct Inbox {
    state: Mutex<InboxState>,
    /// At most one waits: `next` takes the consumer mutably.
    news: Notify,
}

#[derive(Default)]
struct InboxState {
    deliveries: VecDeque<Delivery>,
    ended: bool,
}

impl Inbox {
    async fn next(&self) -> Option<Delivery> {
        loop {
            {
                let mut state = self.lock();
                if let Some(delivery) = state.deliveries.pop_front() {
                    return Some(delivery);
                }
                if state.ended {
                    return None;
                }
            }
            // A notification between the look and the wait is kept for us.
            self.news.notified().await;
        }
    }

    fn put(&self, delivery: Delivery) {
        self.lock().deliveries.push_back(delivery);
        self.news.notify_one();
    }

    fn take_all(&self) -> VecDeque<Delivery> {
        std::mem::take(&mut self.lock().deliveries)
    }

    fn end(&self) {
        self.lock().ended = true;
        self.news.notify_one();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, InboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fills an inbox.
struct Feed {
    link: super::Link,
    declared: Arc<super::Declared>,
    queue: Queue,
    prefetch: u16,
    /// On which a consumer is being made. Lapin and the broker keep it with its consumer, and what that is given, unless
    /// whoever gives that up closes it.
    making: Mutex<Option<Channel>>,
}

/// One consumer on one channel.
struct Subscription {
    session: Arc<Session>,
    channel: Channel,
    deliveries: lapin::Consumer,
}

enum Stopped {
    /// We did it.
    Here,
    /// The connection, the channel or the queue went away.
    There,
}

impl Feed {
    /// Runs from the first subscription on, of which it tells.
    async fn start(self, told: oneshot::Sender<Result<(), BrokerError>>, inbox: Arc<Inbox>, stop: CancellationToken) {
        match self.unless_stopped(&stop, self.subscribe()).await {
            Some(Ok(first)) => {
                // Where nobody listens any more, `stop` is cancelled, and the consumer with it.
                let _ = told.send(Ok(()));
                self.run(first, inbox, stop).await;
            }
            Some(Err(error)) => drop(told.send(Err(error))),
            None => {}
        }
    }

    /// Runs until `stop`, or until the queue is one that we deleted.
    async fn run(self, first: Subscription, inbox: Arc<Inbox>, stop: CancellationToken) {
        let mut subscription = Some(first);
        while let Some(current) = subscription.take() {
            match self.forward(current, &inbox, &stop).await {
                Stopped::Here => break,
                // The broker delivers them again; handed out now, they could not be acked.
                Stopped::There => drop(inbox.take_all()),
            }
            subscription = self.unless_stopped(&stop, self.subscribe_again()).await.flatten();
        }
        inbox.end();
    }

    /// The next subscription; `None` if there is to be none.
    async fn subscribe_again(&self) -> Option<Subscription> {
        let mut pauses = backoff();
        let mut warned = false;
        loop {
            if !self.declared.contains(&self.queue.name) {
                return None;
            }
            match self.subscribe().await {
                Ok(subscription) => return Some(subscription),
                Err(BrokerError::Closed) => return None,
                Err(error) if !warned => {
                    warned = true;
                    tracing::warn!(queue = self.queue.name, %error, "cannot consume; trying again until it works");
                }
                Err(_) => {}
            }
            tokio::time::sleep(pauses.next().unwrap_or(BACKOFF_MAX)).await;
        }
    }

    /// Waits for a connection and consumes on it. Loses connections without a word, but refusals with.
    async fn subscribe(&self) -> Result<Subscription, BrokerError> {
        let name = short(&self.queue.name)?;
        let mut looks = 0;
        loop {
            let session = self.link.session().await?;
            match self.declared.declare(&session, std::slice::from_ref(&self.queue)).await {
                Err(BrokerError::Lost { .. }) => {
                    session.pause().await;
                    continue;
                }
                other => other?,
            }
            let Some(made) = self.make(&session, &name, &mut looks).await else {
                looks = 0;
                self.make_anew(&session).await;
                continue;
            };
            // It is the subscription's now, or of no use.
            *self.making() = None;
            match made {
                Ok((channel, deliveries)) => return Ok(Subscription { session, channel, deliveries }),
                // RabbitMQ's own giving up is one of them: the looks before it count.
                Err(error) => session.wait_out(&error, &format!("cannot consume from {name}")).await?,
            }
        }
    }

    /// Makes a consumer. `None` if the queue has no leader, after enough looks at it.
    async fn make(
        &self,
        session: &Session,
        name: &ShortString,
        looks: &mut u32,
    ) -> Option<lapin::Result<(Channel, lapin::Consumer)>> {
        let is_led = matches!(self.queue.kind, QueueKind::Quorum { .. });
        let mut made = pin!(session.run(async {
            let channel = session.channel().await?;
            *self.making() = Some(channel.clone());
            // Of the consumer, not of the channel: quorum queues refuse the latter.
            channel.basic_qos(self.prefetch, BasicQosOptions { global: false }).await?;
            let consume = BasicConsumeOptions::default();
            let deliveries = channel.basic_consume(name.clone(), "".into(), consume, FieldTable::default()).await?;
            Ok((channel, deliveries))
        }));
        loop {
            tokio::select! {
                biased;
                made = &mut made => return Some(made),
                () = leader_patience(), if is_led => {
                    *looks += 1;
                    if *looks == LEADER_LOOKS {
                        return None;
                    }
                }
            }
        }
    }

    /// A queue that has no leader and gets none: RabbitMQ 3.10 leaves it so when it is killed within a moment of the
    /// queue's making (`docs/decisions/leaderless-queues.md`). What is in it cannot be had, and nobody can put more into
    /// it. Made anew, it is like one that was lost with the broker's disk: every rule holds without its messages.
    async fn make_anew(&self, session: &Session) {
        tracing::error!(queue = self.queue.name, "the queue has no leader: it is deleted and made anew");
        let anew = session.on_own_channel(async |channel| {
            channel.queue_delete(self.queue.name.as_str().into(), QueueDeleteOptions::default()).await
        });
        if let Err(error) = anew.await {
            tracing::warn!(queue = self.queue.name, %error, "a queue without a leader could not be deleted");
            // Perhaps somebody else was faster, which ends the connection of who waits for it. Else the next try sees.
            session.pause().await;
        }
        self.give_up().await;
    }

    /// What a subscribing comes to. It is not cut off in the middle: lapin keeps a consumer of which nobody was told, with
    /// its channel and what it is given. Only where the broker is away or does not answer in time; then it is given up.
    async fn unless_stopped<T>(&self, stop: &CancellationToken, subscribing: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            subscribed = subscribing => return Some(subscribed),
            () = async { stop.cancelled().await; tokio::time::sleep(GOODBYE_TIMEOUT).await } => {}
        }
        self.give_up().await;
        None
    }

    /// Closes the channel on which a consumer was being made, if there is one. The answer stands behind the consumer's,
    /// which a slow queue holds up; that the channel ends does not depend on our hearing it.
    async fn give_up(&self) {
        let making = self.making().take();
        if let Some(channel) = making {
            let closing = channel.close(200, "given up".into());
            if tokio::time::timeout(GOODBYE_TIMEOUT, closing).await.is_err() {
                tracing::debug!(queue = self.queue.name, "a channel that was given up is closed later");
            }
        }
    }

    fn making(&self) -> std::sync::MutexGuard<'_, Option<Channel>> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves deliveries into the inbox until one of the two sides has enough.
    async fn forward(&self, mut from: Subscription, inbox: &Inbox, stop: &CancellationToken) -> Stopped {
        let queue: Arc<str> = self.queue.name.as_str().into();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    if tokio::time::timeout(GOODBYE_TIMEOUT, from.cancel(inbox)).await.is_err() {
                        tracing::debug!(%queue, "no cancel-ok in time: the channel's end does the same");
                    }
                    return Stopped::Here;
                }
                () = from.session.ended.cancelled() => return Stopped::There,
                delivery = from.deliveries.next() => match delivery {
                    Some(Ok(delivery)) => inbox.put(from.ours(&queue, delivery)),
                    Some(Err(_)) | None => return Stopped::There,
                },
            }
        }
    }
}

/// Over when a leader was waited for long enough, by the seconds in which this process ran: one that was stopped has not
/// heard yet what came meanwhile.
async fn leader_patience() {
    for _ in 0..LEADER_PATIENCE_SECS {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

impl Subscription {
    /// Waits for cancel-ok (P4), and then returns what nobody has taken: it is not the cancel that does so.
    async fn cancel(&mut self, inbox: &Inbox) {
        let tag = self.deliveries.tag();
        if self.session.run(self.channel.basic_cancel(tag, BasicCancelOptions::default())).await.is_err() {
            return; // The channel is gone, and with it everything was returned.
        }
        for delivery in inbox.take_all() {
            let _ = delivery.give_back().await; // Fails only with the channel: see above.
        }
        // Ends behind what was under way when the broker heard of it.
        while let Some(Ok(delivery)) = self.deliveries.next().await {
            let _ = delivery.acker.nack(BACK_TO_THE_QUEUE).await;
        }
    }

    fn ours(&self, queue: &Arc<str>, delivery: lapin::message::Delivery) -> Delivery {
        let headers = delivery.properties.headers().as_ref().map(texts).unwrap_or_default();
        let acker =
            AmqpAcker { acker: delivery.acker, session: Arc::clone(&self.session), _channel: self.channel.clone() };
        Delivery {
            body: delivery.data,
            headers,
            redelivered: delivery.redelivered,
            queue: Arc::clone(queue),
            acker: Acker::Amqp(acker),
        }
    }
}

/// The headers that are strings. The broker's own (`x-death`) are tables, and nobody here reads them.
fn texts(headers: &FieldTable) -> BTreeMap<String, String> {
    let text = |value: &AMQPValue| match value {
        AMQPValue::LongString(text) => Some(text.to_string()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    };
    headers.inner().iter().filter_map(|(key, value)| Some((key.to_string(), text(value)?))).collect()
}

const BACK_TO_THE_QUEUE: BasicNackOptions = BasicNackOptions { multiple: false, requeue: true };

/// Acks on the channel that delivered.
pub struct AmqpAcker {
    acker: lapin::Acker,
    session: Arc<Session>,
    /// A channel ends with its last handle: it must outlive its consumer for as long as something
    /// that it delivered may be acked (P4 cancels before it acks).
    _channel: Channel,
}

impl AmqpAcker {
    pub(in crate::broker) async fn ack(self) -> Result<(), BrokerError> {
        told(self.session.run(self.acker.ack(BasicAckOptions::default())).await)
    }

    pub(in crate::broker) async fn give_back(self) -> Result<(), BrokerError> {
        told(self.session.run(self.acker.nack(BACK_TO_THE_QUEUE)).await)
    }
}

fn told(answer: lapin::Result<bool>) -> Result<(), BrokerError> {
    match answer {
        Ok(true) => Ok(()),
        Ok(false) => Err(BrokerError::Lost { reason: "its channel is gone".to_owned() }),
        Err(error) => Err(lost(&error)),
    }
}

impl std::fmt::Debug for AmqpAcker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AmqpAcker").field("acker", &self.acker).finish_non_exhaustive()
    }
}
