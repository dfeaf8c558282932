//! Two clocks: one for what lasts, one for what people read.

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Since the host's start, with the time that it slept (P17).
pub(crate) fn boot_ms() -> u64 {
    millis(clock_gettime(ClockId::Boottime))
}

/// Since 1970.
pub(crate) fn wall_ms() -> u64 {
    millis(clock_gettime(ClockId::Realtime))
}

fn millis(time: Timespec) -> u64 {
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(time.tv_sec) * 1000 + part(time.tv_nsec) / 1_000_000
}
