//! What a process asks of its host apart from disk and network: tasks, the time of day, random numbers, and a thread
//! that may wait. Worker and coordinator take them here and nowhere else, so that the simulator can stop a process at
//! any await, set its clock, and steer its dice (`docs/decisions/simulator.md`).
//!
//! Durations are measured with [`tokio::time::Instant`], which follows a paused clock.

#[cfg(feature = "simulated")]
pub mod simulated;
#[cfg(feature = "simulated")]
pub mod watch;
#[cfg(not(feature = "simulated"))]
pub use tokio::sync::watch;

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// Starts a task of this process.
pub fn spawn<F>(task: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    #[cfg(feature = "simulated")]
    return simulated::spawn(task);
    #[cfg(not(feature = "simulated"))]
    tokio::spawn(task)
}

/// Tasks that somebody waits for: a [`TaskTracker`] of this process.
#[derive(Clone, Debug, Default)]
pub struct Tasks(TaskTracker);

impl Tasks {
    /// Without any.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts one. Dropping the answer does not end it.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        spawn(self.0.track_future(task))
    }

    /// No more are to come: [`wait`](Self::wait) may answer.
    pub fn close(&self) {
        self.0.close();
    }

    /// Waits until it is closed and all of them have ended.
    pub async fn wait(&self) {
        self.0.wait().await;
    }
}

/// Milliseconds since the Unix epoch; 0 on a host whose clock is before it. For stamps that people read, and for
/// waiting between tries: it may jump, so nothing that must hold is measured with it (P8).
pub fn wall_ms() -> u64 {
    #[cfg(feature = "simulated")]
    if let Some(ms) = simulated::wall_ms() {
        return ms;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// 64 random bits: a UUID holds 122 of them, with fixed ones in between.
pub fn random() -> u64 {
    #[cfg(feature = "simulated")]
    if let Some(drawn) = simulated::random() {
        return drawn;
    }
    let hash = blake3::hash(Uuid::new_v4().as_bytes());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}

/// P22: this process obeys a command of that epoch. Only a simulator listens.
#[inline]
pub fn obeys(epoch: crate::Epoch) {
    #[cfg(feature = "simulated")]
    simulated::obeys(epoch);
    #[cfg(not(feature = "simulated"))]
    let _ = epoch;
}

/// Does work that waits for the disk or takes long, off the threads that must not wait, and answers here. A panic goes
/// on here.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    #[cfg(feature = "simulated")]
    if let Some(process) = simulated::current() {
        return process.blocking(work).await;
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}
