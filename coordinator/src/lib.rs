//! The coordinator: takes pipelines, dispatches jobs to workers, settles steps.
//!
//! The way of a step, one place per verb, in this order:
//!
//! 1. submit: [`api`] takes a run over HTTP, [`pipeline`] says what a pipeline is;
//! 2. plan, dispatch, settle: [`core`], pure: inputs in, journal entries and effects out;
//! 3. [`driver`] is the one writer: a batch of inputs → core → one transaction → effects → acks;
//! 4. [`store`] journal, read tables, outbox, epoch (P3, P21); [`logs`] every output line (P14); [`blobs`] sources.
//!
//! Beside them [`why`] tells, from the journal, why a step is as it is, and [`replay`] whether
//! what people are shown is what it says.
//!
//! The clock is a value: only [`driver`] and [`api`] read one.

pub mod api;
pub mod blobs;
pub mod core;
pub mod driver;
pub mod logs;
pub mod metrics;
pub mod pipeline;
pub mod replay;
pub mod store;
pub mod why;

pub use driver::{Config, Coordinator, CoordinatorError, Past, StateLocation, Tokens, past, reader};
