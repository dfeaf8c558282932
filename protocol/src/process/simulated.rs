//! A process that a simulator has in its hands: killed or stopped at any await, with a clock and dice of its own.
//!
//! Every future of it is wrapped, and says while it is polled whose it is. A thread's futures only: one schedule is one
//! thread.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;

thread_local! {
    static CURRENT: RefCell<Option<Process>> = const { RefCell::new(None) };
    static OUTSIDE: RefCell<Option<Process>> = const { RefCell::new(None) };
}

/// What happens at a point where a process acts on the world outside: asked before and after each.
pub type Points = Arc<dyn Fn(&Process) + Send + Sync>;

/// One process. Clones are the same.
#[derive(Clone)]
pub struct Process(Arc<State>);

struct State {
    name: String,
    dead: AtomicBool,
    frozen: AtomicBool,
    /// When the world began, in the runtime's time, and what the clock on the wall showed then.
    began: Instant,
    wall_began_ms: AtomicI64,
    dice: AtomicU64,
    tasks: Mutex<Vec<AbortHandle>>,
    /// Who was to be polled while it was frozen.
    asleep: Mutex<Vec<Waker>>,
    points: Points,
    /// The epoch of the last command that it obeyed.
    obeyed: AtomicU64,
    /// Whether the time that its futures take is added up, and that time in ns.
    timed: AtomicBool,
    busy_ns: AtomicU64,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Process").field(&self.0.name).finish()
    }
}

impl Process {
    /// One that begins now, with `wall_ms` on its clock and everything random drawn from `seed`.
    pub fn new(name: impl Into<String>, wall_ms: u64, seed: u64, points: Points) -> Self {
        Self(Arc::new(State {
            name: name.into(),
            dead: AtomicBool::default(),
            frozen: AtomicBool::default(),
            began: Instant::now(),
            wall_began_ms: AtomicI64::new(i64::try_from(wall_ms).unwrap_or(i64::MAX)),
            dice: AtomicU64::new(seed),
            tasks: Mutex::default(),
            asleep: Mutex::default(),
            points,
            obeyed: AtomicU64::default(),
            timed: AtomicBool::default(),
            busy_ns: AtomicU64::default(),
        }))
    }

    /// For people.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Starts a task of it, from outside.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        let handle = tokio::spawn(Confined { process: self.clone(), task: Box::pin(task) });
        let mut tasks = lock(&self.0.tasks);
        // Those that have ended are let go of when the list has doubled.
        if tasks.len() == tasks.capacity() {
            tasks.retain(|task| !task.is_finished());
        }
        tasks.push(handle.abort_handle());
        handle
    }

    /// SIGKILL: nothing of it is polled again, and its futures are dropped. What their drop would do to the world, the
    /// world must refuse: it is told by [`is_dead`](Self::is_dead).
    pub fn kill(&self) {
        self.0.dead.store(true, Ordering::Relaxed);
        for task in lock(&self.0.tasks).drain(..) {
            task.abort();
        }
    }

    /// Whether it was killed.
    pub fn is_dead(&self) -> bool {
        self.0.dead.load(Ordering::Relaxed)
    }

    /// SIGSTOP.
    pub fn freeze(&self) {
        self.0.frozen.store(true, Ordering::Relaxed);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.0.frozen.store(false, Ordering::Relaxed);
        for waker in lock(&self.0.asleep).drain(..) {
            waker.wake();
        }
    }

    /// Whether it is stopped.
    pub fn is_frozen(&self) -> bool {
        self.0.frozen.load(Ordering::Relaxed)
    }

    /// Somebody sets its clock, forth or back.
    pub fn set_clock_by(&self, ms: i64) {
        self.0.wall_began_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// What its clock shows.
    pub fn wall_ms(&self) -> u64 {
        let passed = i64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(i64::MAX);
        let shown = self.0.wall_began_ms.load(Ordering::Relaxed).saturating_add(passed);
        u64::try_from(shown).unwrap_or(0)
    }

    /// P22: the epoch of the last command that it obeyed.
    pub fn obeyed(&self) -> u64 {
        self.0.obeyed.load(Ordering::Relaxed)
    }

    /// From now on, the time that this thread spends in its futures is added up.
    pub fn time(&self) {
        self.0.timed.store(true, Ordering::Relaxed);
    }

    /// What it has come to, of the real time.
    pub fn busy(&self) -> Duration {
        Duration::from_nanos(self.0.busy_ns.load(Ordering::Relaxed))
    }

    /// Does what is done elsewhere, on the broker's machine say, and only happens in a future of its own.
    pub fn elsewhere<T>(&self, act: impl FnOnce() -> T) -> T {
        if !self.0.timed.load(Ordering::Relaxed) {
            return act();
        }
        let began = std::time::Instant::now();
        let done = act();
        self.0.busy_ns.fetch_sub(nanos(began), Ordering::Relaxed);
        done
    }

    fn random(&self) -> u64 {
        // The step of SplitMix64 (Steele, Lea, Flood 2014).
        let drawn = self.0.dice.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mut z = drawn.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// It is about to act on the world, or just has: the simulator may kill or stop it here, and then it gets no
    /// further.
    pub async fn point(&self) {
        (self.0.points)(self);
        if self.is_dead() {
            std::future::pending::<()>().await;
        }
        if self.is_frozen() {
            // Polled again once it is thawed.
            tokio::task::yield_now().await;
        }
    }

    pub(super) async fn blocking<T>(&self, work: impl FnOnce() -> T) -> T {
        self.point().await;
        let done = work();
        self.point().await;
        done
    }
}

/// Whose future is being polled on this thread.
pub fn current() -> Option<Process> {
    CURRENT.with_borrow(Clone::clone)
}

/// Whose clock and dice count where nobody's future is polled: what runs in an Engine is no process of ours.
pub fn outside(process: Option<Process>) {
    OUTSIDE.set(process);
}

/// The clock of every host since its start: nobody sets it, and nobody sleeps here.
pub fn boot_ms() -> Option<u64> {
    let outside = OUTSIDE.with_borrow(Clone::clone)?;
    // Long before the world: what is told from a moment before it began must not come out as zero.
    Some(1_000_000_000 + u64::try_from(outside.0.began.elapsed().as_millis()).unwrap_or(u64::MAX))
}

fn somebody() -> Option<Process> {
    current().or_else(|| OUTSIDE.with_borrow(Clone::clone))
}

pub(super) fn spawn<F>(task: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    match current() {
        Some(process) => process.spawn(task),
        None => tokio::spawn(task),
    }
}

pub(super) fn wall_ms() -> Option<u64> {
    somebody().map(|process| process.wall_ms())
}

pub(super) fn random() -> Option<u64> {
    somebody().map(|process| process.random())
}

pub(super) fn obeys(epoch: crate::Epoch) {
    if let Some(process) = current() {
        process.0.obeyed.store(epoch.0, Ordering::Relaxed);
        (process.0.points)(&process);
    }
}

/// A future of a process.
struct Confined<F> {
    process: Process,
    task: Pin<Box<F>>,
}

impl<F: Future> Future for Confined<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if self.process.is_dead() {
            return Poll::Pending; // it was aborted as well
        }
        if self.process.is_frozen() {
            lock(&self.process.0.asleep).push(context.waker().clone());
            return Poll::Pending;
        }
        let _whose = Whose::set(self.process.clone());
        if !self.process.0.timed.load(Ordering::Relaxed) {
            return self.task.as_mut().poll(context);
        }
        let began = std::time::Instant::now();
        let polled = self.task.as_mut().poll(context);
        self.process.0.busy_ns.fetch_add(nanos(began), Ordering::Relaxed);
        polled
    }
}

fn nanos(began: std::time::Instant) -> u64 {
    u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// While it lives, this thread's futures are that process's.
struct Whose(Option<Process>);

impl Whose {
    fn set(process: Process) -> Self {
        Self(CURRENT.replace(Some(process)))
    }
}

impl Drop for Whose {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
