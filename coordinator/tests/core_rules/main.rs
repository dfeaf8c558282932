//! The protocol's rules as the core keeps them, one by one. How they hold together under faults is shown by
//! `core_schedules`.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the message")]

mod bench;
mod claims;
mod leases;
mod logs;
mod order;
mod placement;
mod promises;
