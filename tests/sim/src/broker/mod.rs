//! A broker with a network in between that a seed steers. It keeps the contract of [`Broker`]: it passes the suite that
//! RabbitMQ passes (`tests/contracts.rs`).

mod server;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use longshore_protocol::broker::simulated::{Answer, Deliveries};
use longshore_protocol::broker::{Broker, BrokerError, Consumer, Delivery, Outgoing, PublishError};
use longshore_protocol::job::Job;
use longshore_protocol::process::simulated::Process;
use longshore_protocol::topology::Queue;
use longshore_protocol::wire;
use tokio::time::{Instant, sleep, sleep_until};

pub use self::server::Kind;
use self::server::{Server, lost};
use crate::world::{World, digest, lock};

/// A message is under way for less than this, in ms: as in a data centre, so that nothing is at once.
const LATENCY_MS: u64 = 3;

/// A delayed one: less than a lease, more than a heartbeat's resend.
const DELAY_MS: u64 = 2_000;

/// The broker gives a client up that does not answer: after two to three heartbeats of 3 s (P21).
const HEARTBEAT_MS: [u64; 2] = [6_000, 9_000];

/// Packets that get lost are sent again so often.
const RETRANSMIT: Duration = Duration::from_millis(200);

/// Clients reconnect with a backoff of at most 3 s (P8).
const RECONNECT_MS: [u64; 2] = [50, 3_000];

/// The broker and its wires.
#[derive(Clone, Debug)]
pub struct SimBroker {
    server: Arc<Mutex<Server>>,
    world: World,
}

/// One process's two connections to it.
#[derive(Clone, Debug)]
pub struct SimClient {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    broker: SimBroker,
    id: u64,
    process: Option<Process>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.broker.lock().remove(self.id);
    }
}

impl SimBroker {
    /// Without any queue.
    pub fn new(world: World) -> Self {
        let dice = world.dice().fork();
        Self { server: Arc::new(Mutex::new(Server::new(dice, LATENCY_MS))), world }
    }

    /// Connections of a process; of nobody's that can be killed without one.
    pub fn client(&self, process: Option<Process>) -> SimClient {
        let id = self.lock().client();
        SimClient { shared: Arc::new(Shared { broker: self.clone(), id, process }) }
    }

    fn lock(&self) -> MutexGuard<'_, Server> {
        lock(&self.server)
    }

    /// The connections of a client end, and it reconnects when it can.
    pub fn cut(&self, client: u64, kind: Kind) {
        self.lock().disconnect(client, kind);
        let broker = self.clone();
        tokio::spawn(async move {
            loop {
                let wait = broker.world.dice().between(RECONNECT_MS[0], RECONNECT_MS[1]);
                sleep(Duration::from_millis(wait)).await;
                if broker.lock().connection(client, kind).is_some() || broker.lock().connect(client, kind) {
                    return;
                }
            }
        });
    }

    /// A process is dead: its host says so to the broker.
    pub fn gone(&self, client: u64) {
        self.lock().remove(client);
    }

    /// What a client sends, and what it is sent, gets through or not. What does not lasts two heartbeats, then the
    /// connections are given up.
    pub fn partition(&self, client: u64, hears: bool, speaks: bool) {
        if let Some(state) = self.lock().clients.get_mut(&client) {
            (state.hears, state.speaks) = (hears, speaks);
            state.changed.notify_waiters();
        }
        if !hears || !speaks {
            self.give_up(client);
        }
    }

    /// Its process is stopped, or goes on.
    pub fn absent(&self, client: u64, absent: bool) {
        if let Some(state) = self.lock().clients.get_mut(&client) {
            state.absent = absent;
        }
        if absent {
            self.give_up(client);
        }
    }

    fn give_up(&self, client: u64) {
        let broker = self.clone();
        tokio::spawn(async move {
            let wait = broker.world.dice().between(HEARTBEAT_MS[0], HEARTBEAT_MS[1]);
            sleep(Duration::from_millis(wait)).await;
            let unanswered = {
                let server = broker.lock();
                server.clients.get(&client).is_some_and(|client| client.absent || !client.hears || !client.speaks)
            };
            if unanswered {
                broker.cut(client, Kind::Publishing);
                broker.cut(client, Kind::Consuming);
            }
        });
    }

    /// It stops: every connection ends, what is in its queues stays.
    pub fn stop(&self) {
        self.lock().down = true;
        let clients: Vec<u64> = self.lock().clients.keys().copied().collect();
        for client in clients {
            self.cut(client, Kind::Publishing);
            self.cut(client, Kind::Consuming);
        }
    }

    /// It answers again.
    pub fn start(&self) {
        self.lock().down = false;
    }

    /// From now on a delivery is on its way for up to so many ms, one behind the other: a consumer is told of
    /// `2_000 / ms` a second, and of any number where it is at once.
    pub fn deliver_within(&self, ms: u64) {
        self.lock().late_ms = ms;
    }

    /// Somebody empties queues of one kind: `events`, say.
    pub fn purge(&self, kind: &str) {
        self.lock().purge(kind);
    }

    /// Somebody deletes them.
    pub fn delete_all(&self, kind: &str) {
        self.lock().delete_all(kind);
    }

    /// Its memory is full, or no longer: nothing is read from connections that publish.
    pub fn alarm(&self, alarm: bool) {
        self.lock().alarm = alarm;
    }
}

impl SimClient {
    /// What it is connected to.
    pub fn broker(&self) -> &SimBroker {
        &self.shared.broker
    }

    /// For whoever lets faults strike it.
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    fn lock(&self) -> MutexGuard<'_, Server> {
        self.shared.broker.lock()
    }

    fn world(&self) -> &World {
        &self.shared.broker.world
    }

    async fn point(&self) {
        if let Some(process) = &self.shared.process {
            process.point().await;
        }
    }

    /// A message's way. It may take longer.
    async fn travel(&self) {
        let mut ms = self.world().dice().below(LATENCY_MS + 1);
        if self.world().strikes("message delayed", |noise| noise.delayed) {
            ms = self.world().dice().below(DELAY_MS);
        }
        if ms > 0 {
            sleep(Duration::from_millis(ms)).await;
        }
    }

    /// The connection that there is, or the next one.
    async fn connected(&self, kind: Kind) -> Result<u64, BrokerError> {
        loop {
            let changed = {
                let server = self.lock();
                if server.is_closed(self.id()) {
                    return Err(BrokerError::Closed);
                }
                if let Some(connection) = server.connection(self.id(), kind) {
                    return Ok(connection);
                }
                let changed = server.clients.get(&self.id()).map(|client| Arc::clone(&client.changed));
                changed.expect("INVARIANT: a client that is not closed is known").notified_owned()
            };
            changed.await;
        }
    }

    fn is_lost(&self, kind: Kind, connection: u64) -> bool {
        self.lock().connection(self.id(), kind) != Some(connection)
    }

    /// A question and its answer, on a connection that may end meanwhile.
    async fn exchange<T>(
        &self,
        kind: Kind,
        act: impl FnOnce(&mut Server) -> Result<T, BrokerError>,
    ) -> Result<T, BrokerError> {
        self.point().await;
        let connection = self.connected(kind).await?;
        self.travel().await;
        self.passes(kind, connection, Self::speaks).await?;
        let answer = act(&mut self.lock())?;
        self.travel().await;
        self.passes(kind, connection, Self::hears).await?;
        Ok(answer)
    }

    /// What is sent is sent again and again until the wire lets it through, or the connection is given up.
    async fn passes(&self, kind: Kind, connection: u64, open: fn(&Self) -> bool) -> Result<(), BrokerError> {
        while !self.is_lost(kind, connection) {
            if open(self) {
                return Ok(());
            }
            sleep(RETRANSMIT).await;
        }
        let closed = self.lock().is_closed(self.id());
        Err(if closed { BrokerError::Closed } else { lost("it was reset") })
    }

    fn speaks(&self) -> bool {
        self.lock().clients.get(&self.id()).is_some_and(|client| client.speaks)
    }

    fn hears(&self) -> bool {
        self.lock().clients.get(&self.id()).is_some_and(|client| client.hears)
    }

    async fn arrive(&self, messages: &[Outgoing]) -> Result<(), PublishError> {
        let connection = self.connected(Kind::Publishing).await?;
        self.travel().await;
        // A full broker reads nothing; it is looked at again ten times a second.
        while self.lock().alarm && !self.is_lost(Kind::Publishing, connection) {
            sleep(Duration::from_millis(100)).await;
        }
        self.passes(Kind::Publishing, connection, Self::speaks).await?;
        let torn = self.world().strikes("message lost before its confirm", |noise| noise.publish_lost);
        let arrived = if torn { self.world().dice().below(messages.len() as u64) } else { messages.len() as u64 };
        let returned = self.elsewhere(|| self.take(messages.iter().take(usize::try_from(arrived).unwrap_or_default())));
        if torn || self.world().strikes("confirm lost", |noise| noise.confirm_lost) {
            self.shared.broker.cut(self.id(), Kind::Publishing);
        }
        self.point().await;
        self.travel().await;
        self.passes(Kind::Publishing, connection, Self::hears).await?;
        returned.map_or(Ok(()), Err)
    }

    /// What the broker does with messages that have arrived. Answers which one it returned first.
    fn take<'a>(&self, messages: impl Iterator<Item = &'a Outgoing>) -> Option<PublishError> {
        let mut returned = None;
        for (index, message) in messages.enumerate() {
            // A heartbeat tells of the disk's free bytes, which are the machine's and not the seed's.
            let heartbeat = message.to.exchange.ends_with(".heartbeats");
            let number = if heartbeat { 0 } else { digest(&message.body) };
            self.world().note("publish", number, || {
                format!("{} → {} {}", self.name(), message.to.routing_key, String::from_utf8_lossy(&message.body))
            });
            if self.lock().publish(message) {
                self.world().published(message);
            } else if returned.is_none() {
                returned = Some(PublishError::Returned { index, address: message.to.clone() });
            }
            if self.world().strikes("message repeated", |noise| noise.repeated) {
                self.lock().publish(message);
            }
        }
        returned
    }

    /// Done by the broker.
    fn elsewhere<T>(&self, act: impl FnOnce() -> T) -> T {
        match &self.shared.process {
            Some(process) => process.elsewhere(act),
            None => act(),
        }
    }

    fn name(&self) -> &str {
        self.shared.process.as_ref().map_or("somebody", |process| process.name())
    }
}

impl Broker for SimClient {
    async fn declare(&self, queues: &[Queue]) -> Result<(), BrokerError> {
        self.exchange(Kind::Consuming, |server| queues.iter().try_for_each(|queue| server.declare(queue))).await
    }

    async fn publish(&self, messages: Vec<Outgoing>) -> Result<(), PublishError> {
        self.point().await;
        self.arrive(&messages).await
    }

    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Consumer, BrokerError> {
        // At once, so that whoever gives up before the answer is there holds nothing.
        let attachment = self
            .exchange(Kind::Consuming, |server| {
                server.declare(queue)?;
                let id = server.consume(self.id(), &queue.name, prefetch.max(1).into());
                Ok(Arc::new(Attachment { client: self.clone(), id }))
            })
            .await?;
        Ok(Consumer::simulated(Box::new(SimConsumer { queue: queue.name.clone(), attachment })))
    }

    async fn waiting(&self, queue: &Queue) -> Result<u32, BrokerError> {
        self.exchange(Kind::Consuming, |server| Ok(server.waiting(&queue.name))).await
    }

    async fn delete(&self, queue: &Queue) -> Result<(), BrokerError> {
        self.exchange(Kind::Consuming, |server| {
            server.delete(self.id(), &queue.name);
            Ok(())
        })
        .await
    }

    fn connected(&self) -> bool {
        let server = self.lock();
        server.connection(self.id(), Kind::Publishing).is_some()
            && server.connection(self.id(), Kind::Consuming).is_some()
    }

    async fn close(&self) {
        self.lock().remove(self.id());
    }
}

/// Everything that a consumer delivered and that is still held, and itself: when the last goes, the rest goes back.
#[derive(Debug)]
struct Attachment {
    client: SimClient,
    id: u64,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.client.lock().detach(self.id);
    }
}

#[derive(Debug)]
struct SimConsumer {
    queue: String,
    attachment: Arc<Attachment>,
}

impl SimConsumer {
    async fn take(&self) -> Option<Delivery> {
        let Attachment { client, id } = &*self.attachment;
        loop {
            let (news, there) = {
                let mut server = client.lock();
                let consumer = server.consumers.get_mut(id)?;
                match consumer.inbox.front().copied() {
                    Some((tag, there)) if there <= Instant::now() && client_hears(&server, client.id()) => {
                        let consumer = server.consumers.get_mut(id)?;
                        consumer.inbox.pop_front();
                        let entry = &consumer.unacked[&tag];
                        let (body, headers, returns) = (entry.body.to_vec(), entry.headers.clone(), entry.returns);
                        let connection = server.connection(client.id(), Kind::Consuming)?;
                        let attachment = Arc::clone(&self.attachment);
                        let answer = Box::new(SimAnswer { attachment, tag, connection });
                        return Some(Delivery::simulated(&self.queue, body, headers, returns > 0, answer));
                    }
                    there => {
                        let consumer = server.consumers.get(id)?;
                        if !consumer.open && there.is_none() {
                            return None;
                        }
                        (Arc::clone(&consumer.news), there.map(|(_, there)| there))
                    }
                }
            };
            match there {
                None => news.notified().await,
                // There, and not heard: until the connection is given up, or the wire is mended.
                Some(there) if there <= Instant::now() => {
                    let changed = client.lock().clients.get(&client.id()).map(|client| Arc::clone(&client.changed))?;
                    tokio::select! {
                        biased;
                        () = changed.notified() => {}
                        () = news.notified() => {}
                        () = sleep(Duration::from_millis(100)) => {}
                    }
                }
                Some(there) => sleep_until(there).await,
            }
        }
    }
}

fn client_hears(server: &Server, client: u64) -> bool {
    server.clients.get(&client).is_some_and(|client| client.hears)
}

impl Deliveries for SimConsumer {
    fn next(&mut self) -> BoxFuture<'_, Option<Delivery>> {
        self.take().boxed()
    }

    fn cancel(self: Box<Self>) -> BoxFuture<'static, ()> {
        async move {
            let client = &self.attachment.client;
            client.point().await;
            if let Ok(connection) = client.connected(Kind::Consuming).await {
                client.travel().await;
                // Where the connection is lost, nothing is delivered any more either.
                let _ = client.passes(Kind::Consuming, connection, |client| client.speaks() && client.hears()).await;
            }
            client.lock().cancel(self.attachment.id);
        }
        .boxed()
    }
}

impl Drop for SimConsumer {
    fn drop(&mut self) {
        self.attachment.client.lock().cancel(self.attachment.id);
    }
}

#[derive(Debug)]
struct SimAnswer {
    attachment: Arc<Attachment>,
    tag: u64,
    connection: u64,
}

impl SimAnswer {
    /// Whether it arrives. An answer is written and not waited for: what is lost on its way is not noticed here.
    async fn send(&self) -> Result<bool, BrokerError> {
        let client = &self.attachment.client;
        client.point().await;
        if client.is_lost(Kind::Consuming, self.connection) {
            return Err(lost("the connection it was delivered by was reset"));
        }
        if !client.speaks() || client.world().strikes("ack lost", |noise| noise.ack_lost) {
            client.shared.broker.cut(client.id(), Kind::Consuming);
            return Ok(false);
        }
        Ok(true)
    }

    /// The broker lets go of the message.
    fn acked(&self) {
        let mut server = self.attachment.client.lock();
        let Some((queue, entry)) = server.settle(self.attachment.id, self.tag) else { return };
        if server::kind(&queue) == Some("jobs") {
            let same = |job: &Job, body: &[u8]| {
                let other = wire::decode::<Job>(body).ok();
                other.is_some_and(|other| (other.execution, other.attempt) == (job.execution, job.attempt))
            };
            let another = |job: &Job| server.has("jobs", |body| same(job, body));
            self.attachment.client.world().acked(&entry.body, entry.returns > 0, another);
        }
        server.deliver(&queue);
    }
}

impl Answer for SimAnswer {
    fn ack(self: Box<Self>) -> BoxFuture<'static, Result<(), BrokerError>> {
        async move {
            if self.send().await? {
                self.attachment.client.elsewhere(|| self.acked());
            }
            Ok(())
        }
        .boxed()
    }

    fn give_back(self: Box<Self>) -> BoxFuture<'static, Result<(), BrokerError>> {
        async move {
            if self.send().await? {
                let mut server = self.attachment.client.lock();
                if let Some((queue, entry)) = server.settle(self.attachment.id, self.tag) {
                    server.take_back(&queue, [entry]);
                }
            }
            Ok(())
        }
        .boxed()
    }
}
