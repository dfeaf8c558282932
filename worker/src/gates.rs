//! How many calls of a kind go to the Engine at once, apart from the slots: too many make all of them slower. What is
//! too many depends on the machine, so each gate finds out while it is in use (`docs/decisions/gates.md`).
//!
//! [`limit`] is the controller: pure, it sees how long calls took. [`Gate`] lets callers through by it.

mod limit;

use std::sync::{Mutex, MutexGuard, PoisonError};

use longshore_protocol::metric::{MetricDoc, MetricKind};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use self::limit::Limit;
use crate::engine::EngineError;

/// The gates that the worker's flow passes. Pulls have theirs behind the Engine: only there it is known whether an
/// image has to be fetched at all.
#[derive(Debug)]
pub(crate) struct Gates {
    /// Create and start.
    pub(crate) start: Gate,
    /// Commits.
    pub(crate) commit: Gate,
    /// Batches of output on their way: each holds some MiB at most while it is encoded. Memory, not time: it is fixed.
    pub(crate) output: Semaphore,
}

impl Default for Gates {
    fn default() -> Self {
        Self { start: Gate::starts(), commit: Gate::commits(), output: Semaphore::new(4) }
    }
}

/// Lets through as many as its [`Limit`] says. The others wait in the order in which they came.
#[derive(Debug)]
pub(crate) struct Gate {
    name: &'static str,
    places: Semaphore,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limit: Limit,
    inside: usize,
    /// Places that are to be taken away when who has them leaves: the limit went down meanwhile.
    owed: usize,
}

impl Gate {
    /// Starts of containers: best at 4 at once on the reference machine, 8.4 a second with a network namespace to be
    /// made and 15.3 without. The bound: on sixteen cores as many still gain, and a daemon's locks are met then.
    pub(crate) fn starts() -> Self {
        Self::new("start", Limit::new(4, 16, 16))
    }

    /// Commits: best 2 at once on the reference machine (32 a second). Each is a process of the Engine's that packs
    /// files; eight of them keep any disk busy.
    pub(crate) fn commits() -> Self {
        Self::new("commit", Limit::new(2, 8, 16))
    }

    /// Pulls: the Engine fetches three layers of each at once already. They are few and long, so fewer of them must
    /// do to judge by.
    pub(crate) fn pulls() -> Self {
        Self::new("pull", Limit::new(3, 8, 6))
    }

    fn new(name: &'static str, limit: Limit) -> Self {
        let places = Semaphore::new(limit.now());
        Self { name, places, state: Mutex::new(State { limit, inside: 0, owed: 0 }) }
    }

    /// Waits for a place. Its time begins when there is one.
    pub(crate) async fn enter(&self) -> Permit<'_> {
        let came = Instant::now();
        let place = self.places.acquire().await.expect("INVARIANT: no gate is ever closed");
        metrics::histogram!(GATE_WAIT_SECONDS, "gate" => self.name).record(came.elapsed());
        let mut state = self.lock();
        state.inside += 1;
        let limit = state.limit.now();
        metrics::gauge!(GATE_LIMIT, "gate" => self.name).set(limit as f64);
        // Only at a full gate does a call's time say anything about the limit.
        let asked_at = (state.inside >= limit).then_some(limit);
        drop(state);
        Permit { gate: self, place: Some(place), entered: Instant::now(), asked_at }
    }

    /// How many it lets through now.
    #[cfg(test)]
    pub(crate) fn limit(&self) -> usize {
        self.lock().limit.now()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place behind a gate. Dropped without [`done`](Self::done) it is given back, and its time is not looked at: what
/// was given up tells nothing.
#[derive(Debug)]
pub(crate) struct Permit<'a> {
    gate: &'a Gate,
    place: Option<SemaphorePermit<'a>>,
    entered: Instant,
    /// The limit that it found reached when it entered.
    asked_at: Option<usize>,
}

impl Permit<'_> {
    /// The call was answered; all calls through this gate are alike.
    pub(crate) fn done<T>(self, answer: &Result<T, EngineError>) {
        self.done_work(answer, 1.0);
    }

    /// The call was answered, and was so much work, where an ordinary one is 1: a commit of many bytes takes longer
    /// on any Engine, and says nothing about too many at once.
    pub(crate) fn done_work<T>(mut self, answer: &Result<T, EngineError>, work: f64) {
        let took = self.entered.elapsed();
        let mut state = self.gate.lock();
        let before = state.limit.now();
        match answer {
            Ok(_) if self.asked_at == Some(before) && state.inside >= before => {
                state.limit.took(took.div_f64(work.max(f64::MIN_POSITIVE)));
            }
            Err(error) if is_overload(error) => state.limit.overloaded(),
            _ => {}
        }
        let after = state.limit.now();
        if after > before {
            let forgiven = state.owed.min(after - before);
            state.owed -= forgiven;
            self.gate.places.add_permits(after - before - forgiven);
        } else {
            let surplus = before - after;
            state.owed += surplus - self.gate.places.forget_permits(surplus);
        }
        if after != before {
            tracing::debug!(gate = self.gate.name, before, after, "another limit");
            metrics::gauge!(GATE_LIMIT, "gate" => self.gate.name).set(after as f64);
        }
        drop(state);
        self.leave();
    }

    fn leave(&mut self) {
        let Some(place) = self.place.take() else { return };
        let mut state = self.gate.lock();
        state.inside -= 1;
        if state.owed > 0 {
            state.owed -= 1;
            place.forget();
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// What an Engine says, or does not say, that has too much to do. A wrong request fails at any limit.
fn is_overload(error: &EngineError) -> bool {
    matches!(error, EngineError::Slow { .. } | EngineError::Refused { status: 429 | 500.., .. })
}

const GATES: (&str, &[&str]) = ("gate", &["start", "commit", "pull"]);

const GATE_LIMIT: &str = "longshore_worker_gate_limit";
const GATE_WAIT_SECONDS: &str = "longshore_worker_gate_wait_seconds";

/// Of each gate.
pub(crate) const GATE_LIMIT_METRIC: MetricDoc = MetricDoc {
    name: GATE_LIMIT,
    kind: MetricKind::Gauge,
    help: "How many calls of a kind may be with the Engine at once, as found by measuring; 0 before the first.",
    labels: &[GATES],
};

/// Of each gate.
pub(crate) const GATE_WAIT_METRIC: MetricDoc = MetricDoc {
    name: GATE_WAIT_SECONDS,
    kind: MetricKind::Histogram,
    help: "Time that calls waited for their turn with the Engine.",
    labels: &[GATES],
};

/// From no wait at all to a pull's turn behind others.
pub(crate) const GATE_WAIT_BUCKETS: (&str, &[f64]) =
    (GATE_WAIT_SECONDS, &[0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0]);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt as _;

    use super::*;

    fn gate(first: usize) -> Gate {
        Gate::new("start", Limit::new(first, 16, 4))
    }

    fn overload() -> Result<(), EngineError> {
        Err(EngineError::Slow { operation: "create", limit: std::time::Duration::from_secs(1) })
    }

    #[tokio::test]
    async fn no_more_than_the_limit_are_inside_and_the_next_enters_when_one_leaves() {
        let gate = gate(2);
        let first = gate.enter().await;
        let second = gate.enter().await;
        assert!(gate.enter().now_or_never().is_none());
        first.done(&Ok(()));
        let third = gate.enter().now_or_never().expect("a place is free");
        drop(second); // given up
        drop(gate.enter().now_or_never().expect("a place is free"));
        drop(third);
        assert_eq!((gate.lock().inside, gate.places.available_permits()), (0, 2));
    }

    #[tokio::test]
    async fn a_limit_that_went_down_takes_the_places_of_those_inside() {
        let gate = gate(4);
        let mut inside = Vec::new();
        for _ in 0..4 {
            inside.push(gate.enter().await);
        }
        inside.pop().unwrap().done(&overload());
        assert_eq!(gate.limit(), 2);
        assert!(gate.enter().now_or_never().is_none(), "three are inside");
        inside.pop().unwrap().done(&Ok(()));
        assert!(gate.enter().now_or_never().is_none(), "two are inside");
        inside.pop().unwrap().done(&Ok(()));
        assert!(gate.enter().now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_refused_request_is_no_overload() {
        let gate = gate(4);
        let reason = String::new();
        gate.enter().await.done::<()>(&Err(EngineError::NoImage { reference: String::new(), reason }));
        assert_eq!(gate.limit(), 4);
    }

    #[tokio::test]
    async fn under_load_places_and_limit_stay_in_step() {
        let gate = Arc::new(gate(3));
        let mut callers = Vec::new();
        for caller in 0..32_u32 {
            let gate = Arc::clone(&gate);
            callers.push(tokio::spawn(async move {
                for call in 0..50 {
                    let permit = gate.enter().await;
                    tokio::task::yield_now().await;
                    match (caller + call) % 7 {
                        0 => drop(permit),
                        1 => permit.done(&overload()),
                        _ => permit.done_work(&Ok(()), 2.0),
                    }
                }
            }));
        }
        for caller in callers {
            caller.await.unwrap();
        }
        let state = gate.lock();
        assert_eq!((state.inside, state.owed), (0, 0));
        assert_eq!(gate.places.available_permits(), state.limit.now());
    }
}
