//! The controller behind a gate: pure, it sees how long calls took, and says how many there may be at once.

use std::time::Duration;

/// A step upwards stays only if it brought at least this share of what it would bring were nothing in the way: from
/// n to n + 1 that is n⁻¹. Where adding one makes all others slower by as much as it brings, the knee is passed.
const WORTH: f64 = 0.3;

/// After a try that was not worth it, so many windows pass before the next, then twice as many, up to the bound. At
/// its bound one window in 33 is spent on a try, and a machine that has become faster or slower is noticed within
/// some minutes of full load.
const REST_FIRST: u32 = 2;
const REST_MAX: u32 = 32;

/// Finds the number of calls at once beyond which more of them bring no more a second.
///
/// A gate that is full completes `limit / latency` calls a second (Little's law), so the latency of the calls that met
/// it full tells the throughput of the limit that they met. After each window of such calls the throughput is compared
/// with that of the window before: one step up is kept if it paid, one step down if it cost next to nothing; else
/// it is taken back, and the controller rests. Only neighbours in time are compared, so a machine that has become
/// slower altogether is not mistaken for a limit that is too high.
#[derive(Debug)]
pub(super) struct Limit {
    now: usize,
    max: usize,
    /// How many calls make a window.
    window: usize,
    times: Vec<Duration>,
    /// What is being tried: the limit and the throughput before it.
    tried_from: Option<(usize, f64)>,
    /// Windows until the next try.
    resting: u32,
    rest: u32,
    /// Whether the next try goes up.
    upwards: bool,
    /// Overload was met, and no call has ended well since.
    halved: bool,
}

impl Limit {
    /// `first` ≥ 1 at first, never more than `max`.
    pub(super) fn new(first: usize, max: usize, window: usize) -> Self {
        let times = Vec::with_capacity(window);
        Self {
            now: first,
            max,
            window,
            times,
            tried_from: None,
            resting: 0,
            rest: REST_FIRST,
            upwards: true,
            halved: false,
        }
    }

    pub(super) fn now(&self) -> usize {
        self.now
    }

    /// A call took so long, from its entry at a full gate to its end at a full gate, at this limit.
    pub(super) fn took(&mut self, time: Duration) {
        self.halved = false;
        self.times.push(time);
        if self.times.len() < self.window {
            return;
        }
        let throughput = self.now as f64 / middle_mean(&mut self.times).as_secs_f64().max(f64::MIN_POSITIVE);
        self.times.clear();
        self.judge(throughput);
    }

    fn judge(&mut self, throughput: f64) {
        let Some((from, before)) = self.tried_from.take() else {
            if self.resting > 0 {
                self.resting -= 1;
            } else {
                self.attempt(throughput);
            }
            return;
        };
        // What a proportional change would be: n⁻¹ upwards, -n⁻¹ downwards.
        let proportional = (self.now as f64 - from as f64) / from as f64;
        if throughput >= before * (1.0 + WORTH * proportional) {
            // Onwards in the same direction, as long as it pays.
            self.rest = REST_FIRST;
            self.attempt(throughput);
        } else {
            self.now = from;
            self.upwards = !self.upwards;
            self.resting = self.rest;
            self.rest = (self.rest * 2).min(REST_MAX);
        }
    }

    /// Takes a step, up or down in turn; at a bound the other way.
    fn attempt(&mut self, throughput: f64) {
        if self.now == 1 {
            self.upwards = true;
        } else if self.now == self.max {
            self.upwards = false;
        }
        let next = if self.upwards { self.now + 1 } else { self.now - 1 };
        self.tried_from = Some((self.now, throughput));
        self.now = next.clamp(1, self.max);
    }

    /// The Engine could not keep up: half, at once, and once for all calls that failed together.
    pub(super) fn overloaded(&mut self) {
        if self.halved {
            return;
        }
        self.halved = true;
        self.now = (self.now / 2).max(1);
        self.times.clear();
        self.tried_from = None;
        self.upwards = true;
        self.rest = REST_FIRST;
        self.resting = REST_FIRST;
    }
}

/// The mean of the middle half: neither one stuck call nor a mix of two kinds makes it jump.
fn middle_mean(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    let quarter = times.len() / 4;
    let middle = &times[quarter..times.len() - quarter];
    middle.iter().sum::<Duration>() / u32::try_from(middle.len()).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use super::*;

    /// A server with `cores` of which every call takes one for `service`, and on which each call beyond them makes
    /// all of them slower by `contention`. Its clients fill every place at once.
    struct Server {
        cores: usize,
        service: f64,
        contention: f64,
        seed: u64,
    }

    impl Server {
        fn new(cores: usize, contention: f64, seed: u64) -> Self {
            Self { cores, service: 0.1, contention, seed }
        }

        /// Evenly between 0 and 1 (a linear congruential generator with Knuth's MMIX constants).
        fn random(&mut self) -> f64 {
            self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.seed >> 33) as f64 / f64::from(1_u32 << 31)
        }

        /// How long a call takes among `inside`: 20 % up or down, and one in fifty takes ten times as long.
        fn latency(&mut self, inside: usize) -> f64 {
            let beyond = inside.saturating_sub(self.cores) as f64;
            let queue = (inside as f64 / self.cores as f64).max(1.0) * (1.0 + self.contention * beyond);
            let stuck = if self.random() < 0.02 { 10.0 } else { 1.0 };
            self.service * queue * (0.8 + 0.4 * self.random()) * stuck
        }

        /// The limits after each of `calls` calls.
        fn run(&mut self, limit: &mut Limit, calls: usize) -> Vec<usize> {
            let mut ends: BinaryHeap<Reverse<(u64, u64, usize)>> = BinaryHeap::new();
            let nanos = |seconds: f64| u64::try_from(Duration::from_secs_f64(seconds).as_nanos()).unwrap();
            let (mut now, mut limits) = (0, Vec::with_capacity(calls));
            while limits.len() < calls {
                while ends.len() < limit.now() {
                    let took = nanos(self.latency(limit.now()));
                    ends.push(Reverse((now + took, took, limit.now())));
                }
                let Reverse((end, took, entered_at)) = ends.pop().unwrap();
                now = end;
                if entered_at == limit.now() && ends.len() + 1 >= limit.now() {
                    limit.took(Duration::from_nanos(took));
                }
                limits.push(limit.now());
            }
            limits
        }
    }

    fn share(limits: &[usize], wanted: impl Fn(usize) -> bool) -> f64 {
        limits.iter().filter(|limit| wanted(**limit)).count() as f64 / limits.len() as f64
    }

    #[test]
    fn it_finds_the_knee_from_below_and_from_above_and_stays() {
        for cores in [1, 2, 4, 8] {
            for contention in [0.0, 0.05] {
                for first in [1, 4, 16] {
                    for seed in 1..=20 {
                        let mut limit = Limit::new(first, 16, 16);
                        let mut server = Server::new(cores, contention, seed);
                        server.run(&mut limit, 3_000);
                        let limits = server.run(&mut limit, 10_000);
                        let near = share(&limits, |n| n + 1 >= cores && n <= cores + cores / 2 + 2);
                        let told = format!("{cores} cores, {contention}, from {first}, seed {seed}");
                        assert!(near > 0.8, "{told}: {near:.2} of the time near the knee");
                        let changes = limits.windows(2).filter(|pair| pair[0] != pair[1]).count();
                        assert!(changes < 200, "{told}: {changes} changes in 10,000 calls");
                    }
                }
            }
        }
    }

    #[test]
    fn it_follows_a_machine_that_changes() {
        for seed in 1..=20 {
            let mut limit = Limit::new(4, 16, 16);
            let mut server = Server::new(8, 0.02, seed);
            server.run(&mut limit, 5_000);
            server.cores = 2;
            server.run(&mut limit, 15_000);
            let down = server.run(&mut limit, 2_000);
            assert!(share(&down, |n| n <= 5) > 0.8, "seed {seed}: {:?}", down.last());
            server.cores = 8;
            server.run(&mut limit, 20_000);
            let up = server.run(&mut limit, 2_000);
            assert!(share(&up, |n| n >= 6) > 0.8, "seed {seed}: {:?}", up.last());
        }
    }

    #[test]
    fn a_slower_machine_alone_changes_nothing() {
        // Every call takes twice as long from one moment on, at any limit: a full disk's garbage collection, say.
        let mut limit = Limit::new(4, 16, 16);
        let mut server = Server::new(4, 0.05, 7);
        server.run(&mut limit, 5_000);
        server.service *= 2.0;
        let limits = server.run(&mut limit, 3_000);
        assert!(limits.iter().all(|n| (2..=7).contains(n)), "{limits:?}");
    }

    #[test]
    fn overload_halves_once_and_it_recovers() {
        let mut limit = Limit::new(8, 16, 16);
        let failed_together = 8;
        for _ in 0..failed_together {
            limit.overloaded();
        }
        assert_eq!(limit.now(), 4);
        let mut server = Server::new(8, 0.0, 3);
        server.run(&mut limit, 200); // some are answered, then it fails again
        let before = limit.now();
        limit.overloaded();
        assert_eq!(limit.now(), (before / 2).max(1));
        server.run(&mut limit, 10_000);
        assert!(limit.now() >= 6, "{limit:?}");
    }

    #[test]
    fn it_never_leaves_its_bounds() {
        for (first, max) in [(1, 1), (2, 2), (3, 3)] {
            let mut limit = Limit::new(first, max, 6);
            let limits = Server::new(16, 0.0, 5).run(&mut limit, 2_000);
            assert!(limits.iter().all(|n| (1..=max).contains(n)));
            (0..5).for_each(|_| limit.overloaded());
            assert!(limit.now() >= 1);
        }
    }

    #[test]
    fn the_middle_is_not_moved_by_one_stuck_call() {
        let ms = |times: &[u64]| middle_mean(&mut times.iter().copied().map(Duration::from_millis).collect::<Vec<_>>());
        assert_eq!(ms(&[10, 20, 30, 10_000]), Duration::from_millis(25));
        assert_eq!(ms(&[7]), Duration::from_millis(7));
    }
}
