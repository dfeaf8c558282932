//! A broker with a network in between that a seed steers. It keeps the contract of [`Broker`]: it passes the suite that
//! RabbitMQ passes (`tests/contracts.rs`).

mod consumer;
mod server;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use longshore_protocol::broker::{Broker, BrokerError, Consumer, Outgoing, PublishError};
use longshore_protocol::process::simulated::Process;
use longshore_protocol::topology::Queue;
use tokio::time::sleep;

use self::consumer::{Attachment, SimConsumer};
pub use self::server::Kind;
use self::server::{Server, lost};
use crate::world::{World, digest, elsewhere, lock};

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
        let arrived = messages.iter().take(usize::try_from(arrived).unwrap_or_default());
        let returned = elsewhere(self.shared.process.as_ref(), || self.take(arrived));
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
                Ok(Attachment::new(self.clone(), id))
            })
            .await?;
        Ok(Consumer::simulated(Box::new(SimConsumer::new(queue.name.clone(), attachment))))
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
