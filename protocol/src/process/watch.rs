//! [`tokio::sync::watch`], as far as it is used here, with waiters that are woken in the order in which they began to
//! wait. Tokio spreads them over eight lists by chance, so that a schedule would not come to the same trace twice.

use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::Notify;

/// A value, and who waits for its changes.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

#[derive(Debug)]
struct Shared<T> {
    state: RwLock<State<T>>,
    changed: Notify,
    /// The last receiver went.
    deserted: Notify,
}

#[derive(Debug)]
struct State<T> {
    value: T,
    version: u64,
    senders: usize,
    receivers: usize,
}

impl<T> Shared<T> {
    fn read(&self) -> RwLockReadGuard<'_, State<T>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<T>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Changes the value.
#[derive(Debug)]
pub struct Sender<T>(Arc<Shared<T>>);

/// Looks at the value, and waits for its changes.
#[derive(Debug)]
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

/// The value, which does not change while this is held.
#[derive(Debug)]
pub struct Ref<'a, T>(RwLockReadGuard<'a, State<T>>);

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

/// Nobody is left who could change the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the value will not change any more")]
pub struct Closed;

impl<T> Sender<T> {
    /// Of a value that nobody looks at yet.
    pub fn new(value: T) -> Self {
        let state = State { value, version: 0, senders: 1, receivers: 0 };
        Self(Arc::new(Shared { state: RwLock::new(state), changed: Notify::new(), deserted: Notify::new() }))
    }

    /// One more who looks; the value as it is has been seen.
    pub fn subscribe(&self) -> Receiver<T> {
        let mut state = self.0.write();
        state.receivers += 1;
        let seen = state.version;
        drop(state);
        Receiver { shared: Arc::clone(&self.0), seen }
    }

    /// The value.
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.0.read())
    }

    /// Changes it in place.
    pub fn send_modify(&self, change: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            change(value);
            true
        });
    }

    /// The same, and nobody is woken where this answers that nothing changed.
    pub fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        let mut state = self.0.write();
        let changed = change(&mut state.value);
        state.version += u64::from(changed);
        drop(state);
        if changed {
            self.0.changed.notify_waiters();
        }
        changed
    }

    /// Puts another in its place, and answers with the one before.
    pub fn send_replace(&self, value: T) -> T {
        let mut value = value;
        self.send_modify(|current| std::mem::swap(current, &mut value));
        value
    }

    /// Whether nobody looks any more.
    pub fn is_closed(&self) -> bool {
        self.0.read().receivers == 0
    }

    /// Waits until nobody does.
    pub async fn closed(&self) {
        loop {
            let mut deserted = std::pin::pin!(self.0.deserted.notified());
            deserted.as_mut().enable();
            if self.is_closed() {
                return;
            }
            deserted.await;
        }
    }
}

impl<T: Default> Default for Sender<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.write().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.write();
        state.senders -= 1;
        let last = state.senders == 0;
        drop(state);
        if last {
            self.0.changed.notify_waiters();
        }
    }
}

impl<T> Receiver<T> {
    /// The value.
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.shared.read())
    }

    /// The value, which has been seen with that.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let state = self.shared.read();
        self.seen = state.version;
        Ref(state)
    }

    /// As it is now it has been seen.
    pub fn mark_unchanged(&mut self) {
        self.seen = self.shared.read().version;
    }

    /// Waits for one that has not been seen.
    ///
    /// # Errors
    /// There will be none.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            let mut changed = std::pin::pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            {
                let state = self.shared.read();
                if state.version != self.seen {
                    self.seen = state.version;
                    return Ok(());
                }
                if state.senders == 0 {
                    return Err(Closed);
                }
            }
            changed.await;
        }
    }

    /// Waits for one like that; the value as it is may be.
    ///
    /// # Errors
    /// There will be none.
    pub async fn wait_for(&mut self, mut like: impl FnMut(&T) -> bool) -> Result<Ref<'_, T>, Closed> {
        loop {
            let mut changed = std::pin::pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            let closed = {
                let state = self.shared.read();
                self.seen = state.version;
                if like(&state.value) {
                    return Ok(Ref(state));
                }
                state.senders == 0
            };
            if closed {
                return Err(Closed);
            }
            changed.await;
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.shared.write().receivers += 1;
        Self { shared: Arc::clone(&self.shared), seen: self.seen }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.shared.write();
        state.receivers -= 1;
        let last = state.receivers == 0;
        drop(state);
        if last {
            self.shared.deserted.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "in a test a panic is the message")]

    use super::*;

    #[tokio::test]
    async fn a_change_is_seen_once_and_an_end_is_told() {
        let (sender, mut receiver) = channel(1);
        assert_eq!(*receiver.borrow(), 1);
        sender.send_replace(2);
        receiver.changed().await.unwrap();
        assert_eq!(*receiver.borrow_and_update(), 2);
        assert!(!sender.send_if_modified(|_| false));
        let late = async {
            tokio::task::yield_now().await;
            sender.send_modify(|value| *value += 5);
        };
        let (found, ()) = tokio::join!(receiver.wait_for(|value| *value > 6), late);
        assert_eq!(*found.unwrap(), 7);
        let other = receiver.clone();
        drop(receiver);
        assert!(!sender.is_closed());
        let (mut last, clone) = (other.clone(), sender.clone());
        drop((other, sender));
        clone.send_replace(9);
        drop(clone);
        assert_eq!(last.changed().await, Ok(()), "what was changed before the end");
        assert_eq!((last.changed().await, *last.borrow()), (Err(Closed), 9));
    }

    #[tokio::test]
    async fn whoever_waited_first_is_woken_first() {
        let (sender, receiver) = channel(0);
        let (woken, mut order) = tokio::sync::mpsc::unbounded_channel();
        for n in 0..32 {
            let (mut receiver, woken) = (receiver.clone(), woken.clone());
            tokio::spawn(async move {
                receiver.changed().await.unwrap();
                woken.send(n).unwrap();
            });
        }
        tokio::task::yield_now().await;
        sender.send_replace(1);
        for n in 0..32 {
            assert_eq!(order.recv().await, Some(n));
        }
    }

    #[tokio::test]
    async fn when_nobody_looks_any_more_the_sender_hears_of_it() {
        let (sender, receiver) = channel(());
        let ((), ()) = tokio::join!(sender.closed(), async {
            tokio::task::yield_now().await;
            drop(receiver);
        });
    }
}
