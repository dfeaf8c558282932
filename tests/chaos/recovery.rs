//! How long it took until all was well again, and whether that is as promised.

use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Seconds are judged, but a row only fails beyond so many times its limit: the machine may do something else meanwhile.
/// Counts are exact.
pub(crate) const LENIENCE: f64 = 10.0;

/// From this load on, of a minute, seconds say little: twice as many processes want to run as the smallest machine that
/// this is for has cores.
const LOADED: f64 = 4.0;

/// From the fault's end, or from the fault where nobody mends it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Recovery {
    pub(crate) secs: f64,
    /// The machine's, in the minute before.
    load: f64,
}

impl Recovery {
    /// All is well now.
    pub(crate) fn since(then: Instant) -> Self {
        let secs = then.elapsed().as_secs_f64();
        let load = std::fs::read_to_string("/proc/loadavg").expect("the kernel tells its load");
        let load = load.split(' ').next().and_then(|minute| minute.parse().ok()).expect("a number");
        Self { secs, load }
    }

    /// Whether it took longer than promised.
    pub(crate) fn misses(&self, limit_secs: f64) -> bool {
        self.secs > limit_secs
    }

    /// Whether it took so much longer that no other work of the machine's excuses it.
    pub(crate) fn fails(&self, limit_secs: f64) -> bool {
        self.secs > limit_secs * LENIENCE
    }

    /// For the table: one that misses its limit is marked, and so is a machine that did much else.
    pub(crate) fn words(&self, limit_secs: Option<f64>) -> String {
        let mark = if limit_secs.is_some_and(|limit| self.misses(limit)) { "!" } else { "" };
        let load = if self.load > LOADED { format!(" (load {:.1})", self.load) } else { String::new() };
        format!("{:.1}{mark}{load}", self.secs)
    }
}
