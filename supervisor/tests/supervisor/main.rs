//! The supervisor as process 1 of namespaces of its own, spoken to as a worker does.

#![allow(clippy::unwrap_used, reason = "in a test and its helpers a panic is the report")]

mod cleaning;
mod commands;
mod ending;
mod injecting;
mod output;
mod sandbox;
mod starting;
mod wire;

/// Built by Cargo for these tests.
const BINARY: &str = env!("CARGO_BIN_EXE_longshore-supervisor");
