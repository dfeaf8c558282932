//! The worker: one process beside one container Engine. It claims jobs and carries them out.
//!
//! The way of a step on a worker, one file per verb, in this order:
//!
//! 1. [`claim`] takes a job from the broker (P4, P5);
//! 2. [`prepare`] makes its container of an image or a snapshot, or goes on in its parent's; limits, sources;
//! 3. [`exec`] runs the command;
//! 4. [`snapshot`] keeps the files of a step that passed: what [`checkpoint`] asks for;
//! 5. [`report`] numbers and sends what happened (P9).
//!
//! [`job`] shows prepare → exec → snapshot → report on one screen. Output takes a way of its own: [`output`] cuts it
//! into [`lines`] and spools it (P16), for which `spools` has room (P15), [`pump`] sends what is spooled (P14), at its `pace`.
//!
//! Around them: [`attempts`] those the worker speaks for, `exclusive` when one may start and how long it may run (P18), [`parked`] the containers in which children can go on (P19),
//! [`tidy`] what is done behind a step, [`disk`] what must survive a crash, [`adopt`] what a predecessor left (P10) and
//! [`sweep`] what of it nobody speaks for, [`heartbeat`] what is (P7), [`control`] what should be (P22), [`probe`] whether the Engine answers,
//! [`retry`] what is tried again, [`blobs`] where sources come from, [`metrics`] and [`http`] for whoever watches, and
//! [`engine`]: Docker, or a fake of it. [`context`] is what all of these share; [`worker`] starts and ends them.

pub mod adopt;
pub mod attempts;
pub mod blobs;
pub mod checkpoint;
pub mod claim;
mod clock;
pub mod config;
pub mod context;
pub mod control;
pub mod disk;
pub mod engine;
pub mod error;
mod exclusive;
pub mod exec;
pub mod gates;
pub mod heartbeat;
pub mod http;
pub mod job;
pub mod lines;
pub mod metrics;
pub mod output;
mod pace;
pub mod parked;
pub mod prepare;
pub mod probe;
pub mod pump;
pub mod report;
pub mod retry;
pub mod snapshot;
mod spools;
pub mod sweep;
pub mod tidy;
pub mod worker;

pub use clock::Boot;
pub use config::{BlobSource, Config};
pub use error::WorkerError;
pub use metrics::{BUCKETS, METRICS};
pub use worker::Worker;
