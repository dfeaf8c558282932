//! How much of a lease an exclusive step may use (P18). Both sides count with these: the coordinator, who answers, and
//! the worker, who starts and ends.
//!
//! Everything is counted from when a worker sent what the coordinator answered, which is before the coordinator heard
//! it and granted the lease again. A lease is a count of ticks, so it may end up to two seconds short of its length: the
//! first of them may be on its way already, and the last one comes at its beginning. The rest of the time below is for
//! the command's own end, and for a host under load.

use std::time::Duration;

/// So long before the end of the lease a `go` is void, and a command is not started any more. It is also where TERM is
/// sent, at the earliest.
pub const VOID_BEFORE_END: Duration = Duration::from_secs(10);

/// So long before the end of the lease nothing of the command runs any more: KILL is sent. Two seconds are the ticks',
/// three are for the kernel to end a large tree, and for timers that fire late.
pub const DEAD_BEFORE_END: Duration = Duration::from_secs(5);

/// What is left between TERM and KILL at most, whatever the step's own grace is.
pub const GRACE_MAX: Duration = VOID_BEFORE_END.saturating_sub(DEAD_BEFORE_END);

/// The shortest lease with which exclusive steps are carried out: two heartbeats, of which six are sent in a lease, fit
/// into what is left of it before a `go` is void.
pub const LEASE_MIN: Duration = Duration::from_secs(15);

const _: () = assert!(LEASE_MIN.as_secs() >= VOID_BEFORE_END.as_secs() + LEASE_MIN.as_secs() / 3);
