//! The broker itself: queues, bindings, consumers, and the two connections of each client. Nothing here waits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use longshore_protocol::broker::{BrokerError, Outgoing};
use longshore_protocol::topology::{Queue, QueueKind};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::dice::Dice;

/// Which of a client's connections (P2): one that published is not read under a memory alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Publishing,
    Consuming,
}

/// One process's two connections.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each may be so or not, whatever the others are")]
pub struct Client {
    /// Which connection of each kind it is now; `None` while there is none.
    pub connections: BTreeMap<Kind, Option<u64>>,
    /// Whether what it sends arrives, and what it is sent.
    pub hears: bool,
    pub speaks: bool,
    /// Its process was stopped, or its host is gone: nobody answers the broker.
    pub absent: bool,
    pub closed: bool,
    /// A connection came or went, or a direction opened.
    pub changed: Arc<Notify>,
}

#[derive(Debug)]
pub struct Entry {
    pub body: Arc<Vec<u8>>,
    pub headers: BTreeMap<String, String>,
    since: Instant,
    pub returns: u32,
}

#[derive(Debug)]
struct QueueState {
    declared: Queue,
    ready: VecDeque<Entry>,
}

#[derive(Debug)]
pub struct ConsumerState {
    pub client: u64,
    pub queue: String,
    prefetch: usize,
    served: u64,
    /// Delivered and not acked. INVARIANT: at most `prefetch`.
    pub unacked: BTreeMap<u64, Entry>,
    /// Those of them that nobody has taken, and when each is there.
    pub inbox: VecDeque<(u64, Instant)>,
    pub open: bool,
    pub gone: bool,
    pub news: Arc<Notify>,
}

/// All of it.
#[derive(Debug)]
pub struct Server {
    queues: BTreeMap<String, QueueState>,
    bindings: BTreeMap<(String, String), BTreeSet<String>>,
    pub consumers: BTreeMap<u64, ConsumerState>,
    /// INVARIANT: the consumers of each queue, each behind what it was served last: whoever waits longest is first.
    turns: BTreeMap<String, BTreeSet<(u64, u64)>>,
    pub clients: BTreeMap<u64, Client>,
    last: u64,
    /// Whether it answers at all.
    pub down: bool,
    /// It reads nothing from connections that published.
    pub alarm: bool,
    /// A delivery is on its way for less than so many ms.
    pub late_ms: u64,
    pub dice: Dice,
}

pub fn lost(reason: &str) -> BrokerError {
    BrokerError::Lost { reason: reason.to_owned() }
}

/// No client's number.
const NOBODY: u64 = u64::MAX;

/// Of which kind a queue is, by its name: `jobs`, say.
pub fn kind(queue: &str) -> Option<&str> {
    queue.split('.').nth(1)
}

impl Server {
    pub fn new(dice: Dice, late_ms: u64) -> Self {
        Self {
            queues: BTreeMap::new(),
            bindings: BTreeMap::new(),
            consumers: BTreeMap::new(),
            turns: BTreeMap::new(),
            clients: BTreeMap::new(),
            last: 0,
            down: false,
            alarm: false,
            late_ms,
            dice,
        }
    }

    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    pub fn client(&mut self) -> u64 {
        let id = self.number();
        let connections = [(Kind::Publishing, Some(self.number())), (Kind::Consuming, Some(self.number()))];
        let client = Client {
            connections: connections.into_iter().collect(),
            hears: true,
            speaks: true,
            absent: false,
            closed: false,
            changed: Arc::default(),
        };
        self.clients.insert(id, client);
        id
    }

    /// Makes the connection anew, if it can be made.
    pub fn connect(&mut self, client: u64, kind: Kind) -> bool {
        let number = self.number();
        let down = self.down;
        let Some(state) = self.clients.get_mut(&client) else { return true };
        if down || state.closed || state.absent || !state.hears || !state.speaks {
            return state.closed;
        }
        state.connections.insert(kind, Some(number));
        state.changed.notify_waiters();
        if kind == Kind::Consuming {
            let its = self.consumers.values().filter(|consumer| consumer.client == client && consumer.open);
            for queue in its.map(|consumer| consumer.queue.clone()).collect::<BTreeSet<_>>() {
                self.deliver(&queue);
            }
        }
        true
    }

    /// The connection is gone: what was delivered on it comes back (P4).
    pub fn disconnect(&mut self, client: u64, kind: Kind) {
        let Some(state) = self.clients.get_mut(&client) else { return };
        if state.connections.insert(kind, None).flatten().is_none() {
            return;
        }
        state.changed.notify_waiters();
        if kind == Kind::Consuming {
            let mut back = Vec::new();
            for consumer in self.consumers.values_mut().filter(|consumer| consumer.client == client) {
                consumer.inbox.clear();
                back.push((consumer.queue.clone(), std::mem::take(&mut consumer.unacked)));
                consumer.news.notify_one();
            }
            self.let_go(|consumer| consumer.client == client && !consumer.open);
            for (queue, entries) in back {
                self.take_back(&queue, entries.into_values());
            }
        }
    }

    /// Its process is gone for good.
    pub fn remove(&mut self, client: u64) {
        self.disconnect(client, Kind::Publishing);
        self.disconnect(client, Kind::Consuming);
        if let Some(state) = self.clients.get_mut(&client) {
            state.closed = true;
            state.changed.notify_waiters();
        }
        for consumer in self.consumers.values_mut().filter(|consumer| consumer.client == client) {
            consumer.gone = true;
            consumer.news.notify_one();
        }
        self.let_go(|consumer| consumer.client == client);
    }

    fn let_go(&mut self, gone: impl Fn(&ConsumerState) -> bool) {
        for (id, consumer) in self.consumers.extract_if(.., |_, consumer| gone(consumer)) {
            no_turn(&mut self.turns, id, &consumer);
        }
    }

    pub fn connection(&self, client: u64, kind: Kind) -> Option<u64> {
        self.clients.get(&client)?.connections.get(&kind).copied().flatten()
    }

    pub fn is_closed(&self, client: u64) -> bool {
        self.clients.get(&client).is_none_or(|client| client.closed)
    }

    pub fn declare(&mut self, queue: &Queue) -> Result<(), BrokerError> {
        if let Some(there) = self.queues.get(&queue.name)
            && (there.declared.kind != queue.kind || there.declared.dead_letters != queue.dead_letters)
        {
            let reason = format!(
                "queue {} exists and was declared otherwise ({:?}, {:?}); delete it when it is empty, or give this \
                 fleet another prefix",
                queue.name, there.declared.kind, there.declared.dead_letters
            );
            return Err(BrokerError::Refused { reason });
        }
        self.queues
            .entry(queue.name.clone())
            .or_insert_with(|| QueueState { declared: queue.clone(), ready: VecDeque::new() });
        let address = (queue.exchange.clone(), queue.routing_key.clone());
        self.bindings.entry(address).or_default().insert(queue.name.clone());
        Ok(())
    }

    /// Whether it was routed; else it is returned (P2).
    pub fn publish(&mut self, message: &Outgoing) -> bool {
        let address = (message.to.exchange.clone(), message.to.routing_key.clone());
        let names: Vec<String> = self.bindings.get(&address).into_iter().flatten().cloned().collect();
        let body = Arc::new(message.body.clone());
        for name in &names {
            if let Some(queue) = self.queues.get_mut(name) {
                let (body, headers) = (Arc::clone(&body), message.headers.clone());
                queue.ready.push_back(Entry { body, headers, since: Instant::now(), returns: 0 });
            }
            self.deliver(name);
        }
        !names.is_empty()
    }

    pub fn consume(&mut self, client: u64, queue: &str, prefetch: usize) -> u64 {
        let id = self.number();
        let consumer = ConsumerState {
            client,
            queue: queue.to_owned(),
            prefetch,
            served: 0,
            unacked: BTreeMap::new(),
            inbox: VecDeque::new(),
            open: true,
            gone: false,
            news: Arc::default(),
        };
        self.turns.entry(queue.to_owned()).or_default().insert((consumer.served, id));
        self.consumers.insert(id, consumer);
        self.deliver(queue);
        id
    }

    pub fn waiting(&mut self, queue: &str) -> u32 {
        let Some(queue) = self.queues.get_mut(queue) else { return 0 };
        queue.expire();
        u32::try_from(queue.ready.len()).unwrap_or(u32::MAX)
    }

    pub fn purge(&mut self, kind: &str) {
        for (name, queue) in &mut self.queues {
            if self::kind(name) == Some(kind) {
                queue.ready.clear();
            }
        }
    }

    /// Whoever consumes one declares it again (see [`Self::delete`]).
    pub fn delete_all(&mut self, kind: &str) {
        let names: Vec<String> = self.queues.keys().filter(|name| self::kind(name) == Some(kind)).cloned().collect();
        for name in names {
            self.delete(NOBODY, &name);
        }
    }

    /// Whether a message like that waits in a queue of this kind, or is in a consumer's hands.
    pub fn has(&self, kind: &str, like: impl Fn(&[u8]) -> bool) -> bool {
        let of_kind = |name: &str| self::kind(name) == Some(kind);
        let waiting = self.queues.iter().filter(|(name, _)| of_kind(name)).flat_map(|(_, queue)| &queue.ready);
        let held = self.consumers.values().filter(|consumer| of_kind(&consumer.queue));
        waiting.chain(held.flat_map(|consumer| consumer.unacked.values())).any(|entry| like(&entry.body))
    }

    pub fn delete(&mut self, client: u64, queue: &str) {
        let mut wanted = false;
        for (_, id) in self.turns.get(queue).into_iter().flatten() {
            let Some(consumer) = self.consumers.get_mut(id) else { continue };
            consumer.unacked.clear();
            consumer.inbox.clear();
            if consumer.client == client {
                consumer.open = false;
                consumer.gone = true;
                consumer.news.notify_one();
            } else {
                wanted |= consumer.open;
            }
        }
        let gone = self.queues.remove(queue);
        for bound in self.bindings.values_mut() {
            bound.remove(queue);
        }
        if wanted && let Some(gone) = gone {
            // Others' consumers declare it again; it was declared so before.
            let _ = self.declare(&gone.declared);
        }
    }

    /// An unacknowledged message, out of its consumer's hands. `None` if its queue was deleted.
    pub fn settle(&mut self, consumer: u64, tag: u64) -> Option<(String, Entry)> {
        let state = self.consumers.get_mut(&consumer)?;
        let entry = state.unacked.remove(&tag)?;
        Some((state.queue.clone(), entry))
    }

    /// No more deliveries; what nobody took goes back.
    pub fn cancel(&mut self, consumer: u64) {
        let Some(state) = self.consumers.get_mut(&consumer) else { return };
        state.open = false;
        let inbox = std::mem::take(&mut state.inbox);
        let back: Vec<Entry> = inbox.iter().filter_map(|(tag, _)| state.unacked.remove(tag)).collect();
        let queue = state.queue.clone();
        self.take_back(&queue, back);
    }

    /// Nobody holds anything of it any more.
    pub fn detach(&mut self, consumer: u64) {
        if let Some(state) = self.consumers.remove(&consumer) {
            no_turn(&mut self.turns, consumer, &state);
            self.take_back(&state.queue, state.unacked.into_values());
        }
    }

    pub fn take_back(&mut self, name: &str, entries: impl IntoIterator<Item = Entry>) {
        let mut too_often = Vec::new();
        let mut letters = None;
        if let Some(queue) = self.queues.get_mut(name) {
            letters.clone_from(&queue.declared.dead_letters);
            let limit = match queue.declared.kind {
                QueueKind::Quorum { delivery_limit } => delivery_limit.unwrap_or(u32::MAX),
                QueueKind::Expiring { .. } => u32::MAX,
            };
            let entries: Vec<Entry> = entries.into_iter().collect();
            for mut entry in entries.into_iter().rev() {
                entry.returns += 1;
                if entry.returns > limit { too_often.push(entry) } else { queue.ready.push_front(entry) }
            }
        }
        self.deliver(name);
        if let Some(letters) = letters {
            if let Some(queue) = self.queues.get_mut(&letters) {
                queue.ready.extend(too_often);
            }
            self.deliver(&letters);
        }
    }

    /// Hands out what waits to consumers that have room, in turn.
    pub fn deliver(&mut self, name: &str) {
        let now = Instant::now();
        while let Some(queue) = self.queues.get_mut(name) {
            queue.expire();
            if queue.ready.is_empty() {
                return;
            }
            let clients = &self.clients;
            let reached = |consumer: &ConsumerState| {
                let connection =
                    clients.get(&consumer.client).and_then(|client| client.connections.get(&Kind::Consuming));
                connection.is_some_and(Option::is_some)
            };
            let takes = |id: &u64| self.consumers.get(id).is_some_and(|it| it.has_room() && reached(it));
            let Some(turns) = self.turns.get_mut(name) else { return };
            let Some(turn) = turns.iter().find(|(_, id)| takes(id)).copied() else { return };
            let Some(entry) = queue.ready.pop_front() else { return };
            self.last += 1;
            let tag = self.last;
            let late = Duration::from_millis(self.dice.below(self.late_ms + 1));
            let (_, id) = turn;
            turns.remove(&turn);
            turns.insert((tag, id));
            if let Some(consumer) = self.consumers.get_mut(&id) {
                let there = consumer.inbox.back().map_or(now, |(_, before)| now.max(*before)) + late;
                consumer.served = tag;
                consumer.unacked.insert(tag, entry);
                consumer.inbox.push_back((tag, there));
                consumer.news.notify_one();
            }
        }
    }
}

impl QueueState {
    fn expire(&mut self) {
        if let QueueKind::Expiring { ttl } = self.declared.kind {
            while self.ready.front().is_some_and(|entry| entry.since.elapsed() >= ttl) {
                self.ready.pop_front();
            }
        }
    }
}

impl ConsumerState {
    fn has_room(&self) -> bool {
        self.open && self.unacked.len() < self.prefetch
    }
}

/// A consumer that goes is served no more.
fn no_turn(turns: &mut BTreeMap<String, BTreeSet<(u64, u64)>>, id: u64, consumer: &ConsumerState) {
    if let Some(turns) = turns.get_mut(&consumer.queue) {
        turns.remove(&(consumer.served, id));
    }
}
