//! All queues behind one lock, never held across an await.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::queue::{Entry, Message, QueueState};
use crate::broker::{BrokerError, Outgoing, declared_otherwise};
use crate::topology::{Address, Queue};

/// How long a publisher waits for room before it is told `Rejected`. It ends what would otherwise
/// be a deadlock: in one process whoever publishes may be the one for whom a full queue waits.
pub(super) const ROOM_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Server {
    state: Mutex<State>,
    /// Something was acked, or went some other way.
    room: Notify,
    room_timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ConsumerId(u64);

#[derive(Debug, Default)]
struct State {
    queues: HashMap<String, QueueState>,
    bindings: HashMap<Address, BTreeSet<String>>,
    /// In the order of their beginning, so that what they return has an order too.
    consumers: BTreeMap<ConsumerId, ConsumerState>,
    connections: BTreeSet<u64>,
    /// Of connections, consumers and deliveries.
    last_number: u64,
}

#[derive(Debug)]
struct ConsumerState {
    connection: u64,
    queue: String,
    prefetch: usize,
    /// When something was last delivered: whoever waits longest is next.
    served: u64,
    /// Delivered and not acked, in order. INVARIANT: at most `prefetch`.
    unacked: BTreeMap<u64, Entry>,
    /// Those of them that nobody has taken yet.
    inbox: VecDeque<u64>,
    status: Status,
    news: Arc<Notify>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// Gets deliveries.
    Open,
    /// Gets no more; what it has can be acked.
    Cancelled,
    /// Its queue was deleted by its own connection.
    QueueGone,
}

/// What became of a message.
pub(super) enum Taken {
    Routed,
    Returned(Address),
    Rejected,
}

/// One delivery.
pub(super) struct Given {
    pub(super) tag: u64,
    pub(super) message: Arc<Message>,
    pub(super) redelivered: bool,
}

impl Server {
    /// [`ROOM_TIMEOUT`] is what a process uses.
    pub(super) fn new(room_timeout: Duration) -> Self {
        Self { state: Mutex::default(), room: Notify::new(), room_timeout }
    }

    pub(super) fn connect(&self) -> u64 {
        let mut state = self.lock();
        let number = state.next_number();
        state.connections.insert(number);
        number
    }

    pub(super) fn is_open(&self, connection: u64) -> bool {
        self.lock().connections.contains(&connection)
    }

    pub(super) fn declare(&self, connection: u64, queue: &Queue) -> Result<(), BrokerError> {
        let mut state = self.lock_open(connection)?;
        match state.queues.get(&queue.name) {
            Some(there) if there.declared.kind != queue.kind => {
                return Err(declared_otherwise(&queue.name, &format!("{:?}", there.declared.kind)));
            }
            Some(there) if there.declared.dead_letters != queue.dead_letters => {
                return Err(declared_otherwise(&queue.name, &format!("{:?}", there.declared.dead_letters)));
            }
            Some(_) => {}
            None => {
                state.queues.insert(queue.name.clone(), QueueState::new(queue.clone()));
            }
        }
        state.bindings.entry(queue.address()).or_default().insert(queue.name.clone());
        Ok(())
    }

    /// Waits for room, but not for ever.
    pub(super) async fn publish(&self, connection: u64, outgoing: Outgoing) -> Result<Taken, BrokerError> {
        let Outgoing { to, body, headers } = outgoing;
        let message = Arc::new(Message { body, headers });
        let started = Instant::now();
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            // Before the look, so that what is acked between the two wakes us.
            room.as_mut().enable();
            if let Some(taken) = self.lock_open(connection)?.route(&to, &message) {
                return Ok(taken);
            }
            let left = self.room_timeout.saturating_sub(started.elapsed());
            if tokio::time::timeout(left, room).await.is_err() {
                return Ok(Taken::Rejected);
            }
        }
    }

    pub(super) fn consume(&self, connection: u64, queue: &str, prefetch: usize) -> Result<ConsumerId, BrokerError> {
        let mut state = self.lock_open(connection)?;
        let id = ConsumerId(state.next_number());
        let consumer = ConsumerState {
            connection,
            queue: queue.to_owned(),
            prefetch,
            served: 0,
            unacked: BTreeMap::new(),
            inbox: VecDeque::new(),
            status: Status::Open,
            news: Arc::default(),
        };
        state.consumers.insert(id, consumer);
        state.deliver(queue);
        Ok(id)
    }

    pub(super) async fn next(&self, id: ConsumerId) -> Option<Given> {
        loop {
            let news = {
                let mut state = self.lock();
                let consumer = state.consumers.get_mut(&id)?;
                if let Some(tag) = consumer.inbox.pop_front() {
                    let entry = &consumer.unacked[&tag];
                    let (message, redelivered) = (Arc::clone(&entry.message), entry.returns > 0);
                    return Some(Given { tag, message, redelivered });
                }
                if consumer.status != Status::Open {
                    return None;
                }
                Arc::clone(&consumer.news)
            };
            // One waits at most, and a notification between the look and the wait is kept for it.
            news.notified().await;
        }
    }

    pub(super) fn ack(&self, id: ConsumerId, tag: u64) -> Result<(), BrokerError> {
        let mut state = self.lock();
        let Some((queue, entry)) = state.settle(id, tag)? else { return Ok(()) };
        if let Some(queue) = state.queues.get_mut(&queue) {
            queue.forget(&entry);
        }
        state.deliver(&queue);
        self.room.notify_waiters();
        Ok(())
    }

    pub(super) fn give_back(&self, id: ConsumerId, tag: u64) -> Result<(), BrokerError> {
        let mut state = self.lock();
        let Some((queue, entry)) = state.settle(id, tag)? else { return Ok(()) };
        state.take_back(&queue, [entry]);
        self.room.notify_waiters();
        Ok(())
    }

    pub(super) fn waiting(&self, connection: u64, queue: &str) -> Result<u32, BrokerError> {
        let mut state = self.lock_open(connection)?;
        let waiting = state.queues.get_mut(queue).map_or(0, |queue| queue.len(Instant::now()));
        Ok(u32::try_from(waiting).unwrap_or(u32::MAX))
    }

    pub(super) fn delete(&self, connection: u64, queue: &str) -> Result<(), BrokerError> {
        let mut state = self.lock_open(connection)?;
        let mut wanted = false;
        for consumer in state.consumers.values_mut().filter(|consumer| consumer.queue == queue) {
            consumer.unacked.clear();
            consumer.inbox.clear();
            if consumer.connection == connection {
                consumer.status = Status::QueueGone;
                consumer.news.notify_one();
            } else {
                wanted |= consumer.status == Status::Open;
            }
        }
        let gone = state.queues.remove(queue);
        for bound in state.bindings.values_mut() {
            bound.remove(queue);
        }
        if wanted && let Some(gone) = gone {
            // Others' consumers declare it again.
            state.bindings.entry(gone.declared.address()).or_default().insert(queue.to_owned());
            state.queues.insert(queue.to_owned(), QueueState::new(gone.declared));
        }
        self.room.notify_waiters();
        Ok(())
    }

    /// No more deliveries; what nobody has taken goes back.
    pub(super) fn cancel(&self, id: ConsumerId) {
        let mut state = self.lock();
        let Some(consumer) = state.consumers.get_mut(&id) else { return };
        if consumer.status == Status::Open {
            consumer.status = Status::Cancelled;
        }
        let back = std::mem::take(&mut consumer.inbox);
        let back: Vec<Entry> = back.iter().filter_map(|tag| consumer.unacked.remove(tag)).collect();
        let queue = consumer.queue.clone();
        state.take_back(&queue, back);
        self.room.notify_waiters();
    }

    /// Nobody holds anything of the consumer any more: everything goes back.
    pub(super) fn detach(&self, id: ConsumerId) {
        self.lock().remove(id);
        self.room.notify_waiters();
    }

    pub(super) fn close(&self, connection: u64) {
        let mut state = self.lock();
        state.connections.remove(&connection);
        let its: Vec<ConsumerId> = state
            .consumers
            .iter()
            .filter(|(_, consumer)| consumer.connection == connection)
            .map(|(id, _)| *id)
            .collect();
        // First all are gone, then things go back: not to one another.
        let removed: Vec<ConsumerState> = its.iter().filter_map(|id| state.consumers.remove(id)).collect();
        for consumer in removed {
            consumer.news.notify_one();
            state.take_back(&consumer.queue, consumer.unacked.into_values());
        }
        // Publishers of that connection wait for room as well.
        self.room.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_open(&self, connection: u64) -> Result<MutexGuard<'_, State>, BrokerError> {
        let state = self.lock();
        if state.connections.contains(&connection) { Ok(state) } else { Err(BrokerError::Closed) }
    }
}

impl State {
    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// `None` if a queue is full.
    fn route(&mut self, to: &Address, message: &Arc<Message>) -> Option<Taken> {
        let now = Instant::now();
        let names: Vec<String> = self.bindings.get(to).into_iter().flatten().cloned().collect();
        if names.is_empty() {
            return Some(Taken::Returned(to.clone()));
        }
        let bytes = message.bytes();
        if !names.iter().all(|name| self.queues.get_mut(name).is_none_or(|queue| queue.has_room(bytes, now))) {
            return None;
        }
        for name in &names {
            if let Some(queue) = self.queues.get_mut(name) {
                queue.put(Arc::clone(message), now);
            }
            self.deliver(name);
        }
        Some(Taken::Routed)
    }

    /// Hands out what waits to consumers that have room, in turn.
    fn deliver(&mut self, name: &str) {
        let now = Instant::now();
        while let Some(queue) = self.queues.get_mut(name) {
            let next = self
                .consumers
                .iter()
                .filter(|(_, consumer)| consumer.queue == name && consumer.has_room())
                .min_by_key(|(_, consumer)| consumer.served)
                .map(|(id, _)| *id);
            let Some(id) = next else { return };
            let Some(entry) = queue.take(now) else { return };
            let tag = self.next_number();
            if let Some(consumer) = self.consumers.get_mut(&id) {
                consumer.served = tag;
                consumer.unacked.insert(tag, entry);
                consumer.inbox.push_back(tag);
                consumer.news.notify_one();
            }
        }
    }

    /// An unacknowledged message and its queue. `None` if the queue was deleted meanwhile: there is
    /// nothing left to ack, which is no fault.
    fn settle(&mut self, id: ConsumerId, tag: u64) -> Result<Option<(String, Entry)>, BrokerError> {
        let gone = || BrokerError::Lost { reason: "the connection it was delivered by was closed".to_owned() };
        let consumer = self.consumers.get_mut(&id).ok_or_else(gone)?;
        Ok(consumer.unacked.remove(&tag).map(|entry| (consumer.queue.clone(), entry)))
    }

    fn take_back(&mut self, name: &str, entries: impl IntoIterator<Item = Entry>) {
        let mut too_often = Vec::new();
        let mut letters = None;
        if let Some(queue) = self.queues.get_mut(name) {
            too_often.extend(entries.into_iter().filter_map(|entry| queue.take_back(entry)));
            letters.clone_from(&queue.declared.dead_letters);
        }
        self.deliver(name);
        let Some(letters) = letters else { return };
        for message in too_often {
            self.dead_letter(&letters, message);
        }
    }

    /// As RabbitMQ does it: without waiting, and without a promise. Where the dead letters are full,
    /// the oldest of them makes room.
    fn dead_letter(&mut self, letters: &str, message: Arc<Message>) {
        let now = Instant::now();
        let Some(queue) = self.queues.get_mut(letters) else { return };
        while !queue.has_room(message.bytes(), now) {
            let Some(oldest) = queue.take(now) else { break };
            tracing::warn!(queue = letters, "full: its oldest message is dropped");
            queue.forget(&oldest);
        }
        queue.put(message, now);
        self.deliver(letters);
    }

    fn remove(&mut self, id: ConsumerId) {
        if let Some(consumer) = self.consumers.remove(&id) {
            self.take_back(&consumer.queue, consumer.unacked.into_values());
        }
    }
}

impl ConsumerState {
    fn has_room(&self) -> bool {
        self.status == Status::Open && self.unacked.len() < self.prefetch
    }
}
