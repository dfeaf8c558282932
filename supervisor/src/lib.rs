//! What a worker and the supervisor of a container say to each other.
//!
//! The supervisor itself is this crate's binary (`src/main.rs`): process 1 of a container, a static program that
//! starts commands, ends them, and keeps what the worker has not acknowledged. The library is only their
//! [`wire`], so that a worker links nothing else of it.

#![forbid(unsafe_code)]

pub mod wire;
