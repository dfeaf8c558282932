//! The protocol's rules as the core keeps them, one by one. How they hold together under faults is shown by
//! `core_schedules`.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the message")]

mod bench;
mod checkpoints;
mod claims;
mod exclusive;
mod fair_share;
mod groups;
mod leases;
mod lineage;
mod logs;
mod model;
mod old_journal;
mod order;
mod parked;
mod placement;
mod promises;
mod retry;
mod step_cancel;
mod timeouts;
mod why;
