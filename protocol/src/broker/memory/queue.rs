//! One queue: pure state, without consumers and locks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

use super::QUEUE_BYTES_MAX;
use crate::topology::{Queue, QueueKind};

/// A message as it was published.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) body: Vec<u8>,
    pub(super) headers: BTreeMap<String, String>,
}

impl Message {
    /// What it costs to keep, roughly: the headers are ours and short.
    pub(super) fn bytes(&self) -> usize {
        self.body.len() + self.headers.iter().map(|(key, text)| key.len() + text.len()).sum::<usize>()
    }
}

/// A message in a queue, or delivered out of it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) message: Arc<Message>,
    /// How often it came back. Above 0 it is delivered as redelivered.
    pub(super) returns: u32,
    expires: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct QueueState {
    pub(super) declared: Queue,
    /// What came back goes out before what never went, as quorum queues do it.
    returned: VecDeque<Entry>,
    ready: VecDeque<Entry>,
    /// Of everything that was published and not acked, delivered or not.
    bytes: usize,
}

impl QueueState {
    pub(super) fn new(declared: Queue) -> Self {
        Self { declared, returned: VecDeque::new(), ready: VecDeque::new(), bytes: 0 }
    }

    /// Whether a message of that size may come in. One that is larger than the queue may, alone.
    pub(super) fn has_room(&mut self, bytes: usize, now: Instant) -> bool {
        self.expire(now);
        self.bytes == 0 || self.bytes + bytes <= QUEUE_BYTES_MAX
    }

    pub(super) fn put(&mut self, message: Arc<Message>, now: Instant) {
        self.bytes += message.bytes();
        let expires = match self.declared.kind {
            QueueKind::Expiring { ttl } => Some(now + ttl),
            QueueKind::Quorum { .. } => None,
        };
        self.ready.push_back(Entry { message, returns: 0, expires });
    }

    /// The next one out. It still counts, until it is [forgotten](Self::forget).
    pub(super) fn take(&mut self, now: Instant) -> Option<Entry> {
        self.expire(now);
        self.returned.pop_front().or_else(|| self.ready.pop_front())
    }

    /// Takes one back; `Some` if that was once too often, and it is to be dead-lettered.
    pub(super) fn take_back(&mut self, mut entry: Entry) -> Option<Arc<Message>> {
        entry.returns += 1;
        if let QueueKind::Quorum { delivery_limit: Some(limit) } = self.declared.kind
            && entry.returns > limit
        {
            self.forget(&entry);
            return Some(entry.message);
        }
        self.returned.push_back(entry);
        None
    }

    /// It was acked, or went elsewhere.
    pub(super) fn forget(&mut self, entry: &Entry) {
        self.bytes = self.bytes.saturating_sub(entry.message.bytes());
    }

    /// How many wait.
    pub(super) fn len(&mut self, now: Instant) -> usize {
        self.expire(now);
        self.returned.len() + self.ready.len()
    }

    /// Messages expire at the head only, as RabbitMQ's do: what stands behind one that lives, waits.
    /// Nobody needs a timer for it, because whoever looks at the queue comes by here first.
    fn expire(&mut self, now: Instant) {
        for entries in [&mut self.returned, &mut self.ready] {
            let expired = |entry: &mut Entry| entry.expires.is_some_and(|at| at <= now);
            while let Some(entry) = entries.pop_front_if(expired) {
                self.bytes = self.bytes.saturating_sub(entry.message.bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn queue(kind: QueueKind) -> QueueState {
        QueueState::new(Queue {
            name: "q".to_owned(),
            kind,
            exchange: "x".to_owned(),
            routing_key: "k".to_owned(),
            dead_letters: None,
        })
    }

    fn message(bytes: usize) -> Arc<Message> {
        Arc::new(Message { body: vec![0; bytes], headers: BTreeMap::new() })
    }

    #[test]
    fn every_way_out_gives_its_bytes_back() {
        let mut queue = queue(QueueKind::Expiring { ttl: Duration::from_secs(30) });
        let now = Instant::now();
        queue.put(message(10), now);
        queue.put(message(20), now);
        queue.put(message(30), now + Duration::from_secs(1));
        let taken = queue.take(now).unwrap();
        assert_eq!(queue.bytes, 60, "what is delivered is still kept");
        assert!(queue.take_back(taken).is_none());
        assert_eq!(queue.len(now + Duration::from_secs(30)), 1);
        assert_eq!(queue.bytes, 30);
        let last = queue.take(now).unwrap();
        queue.forget(&last);
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn a_message_larger_than_the_queue_gets_in_alone() {
        let mut queue = queue(QueueKind::Quorum { delivery_limit: None });
        let now = Instant::now();
        assert!(queue.has_room(QUEUE_BYTES_MAX + 1, now));
        queue.put(message(QUEUE_BYTES_MAX + 1), now);
        assert!(!queue.has_room(1, now));
    }
}
