//! The pure core: decides what to dispatch, retry, cancel, skip and settle.
//!
//! It does no I/O, reads no clock and draws no random number. Three layers:
//!
//! * `decide`, from [`Core::apply`]: an [`Input`](input::Input) (a worker's event, a heartbeat, a tick, a user's
//!   wish) becomes journal [entries](entry::Entry): stale ones are fenced here. `hear` is for events (P5, P9 to
//!   P12), `beat` for heartbeats and ticks (P6 to P8), `exclusive` for what is said to owners of exclusive attempts
//!   (P18), `output` for logs (P14);
//! * `state`, the fold of the journal: [`State::apply`] (in `fold`) changes it by one entry and rejects an entry
//!   that cannot follow: replay and live run the same function;
//! * `follow`: looks at what changed and adds what follows from it (settle, retry, skip; `dispatch`), as entries
//!   again, until nothing follows. So every decision is in the journal, and replay decides nothing. `lineage` says
//!   what becomes of what a step left: who goes on with it, when it is let go of, when it is made again (P19, P20).
//!
//! Whose turn it is, is decided beside the state: `refill` puts on a queue what it has `room` for, of the steps that
//! are `ready`, by fair `share` and within `groups`; what it puts there is an entry.
//!
//! What is not journalled lives in `fleet`: silence counted in ticks (P8), free slots, reported snapshots; with
//! `watch` for jobs that nobody has claimed, and `spool` for stored output. Everything concluded from it is an
//! entry. `show` makes the views, `waits` says
//! what a step waits for. An input costs what it changes: nothing scans a run but what concerns all of it.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)] // pure: see clippy.toml

mod beat;
mod config;
mod deadline;
mod decide;
mod dispatch;
pub mod effect;
pub mod entry;
mod exclusive;
mod fleet;
mod fold;
mod follow;
mod graph;
mod groups;
mod hear;
pub mod input;
mod left;
mod lineage;
mod order;
mod output;
mod plan;
pub mod present;
mod ready;
mod refill;
pub mod retry;
mod room;
mod share;
mod show;
mod spool;
mod state;
pub mod view;
mod waits;
mod watch;

pub use config::CoreConfig;
pub use decide::{Core, Fenced, OutputFence, Step};
pub use fold::Illegal;
pub use retry::NotRetried;
pub use share::WEIGHT_MAX;
pub use state::State;
pub(crate) use waits::Waited;
pub use waits::WaitsFor;
