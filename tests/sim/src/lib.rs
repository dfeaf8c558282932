//! The simulator: the real coordinator and the real workers in a world that a seed makes, on one thread.
//!
//! 1. [`plan`] a schedule as a value: runs, machines, faults, all drawn from a seed;
//! 2. [`schedule`] carries it out and comes to a [`Report`](schedule::Report); [`stage`] has the machines and what
//!    befalls them;
//! 3. [`world`] the dice and the trace; [`broker`], [`store`] what is simulated, beside the worker's own fake Engine;
//! 4. [`checker`] what must hold at the end;
//! 5. [`shrink`] makes a schedule that fails shorter; [`many`] carries out thousands;
//! 6. [`scale`] measures a fleet of thousands of workers.
//!
//! Why it is built so: `docs/decisions/simulator.md`.

#![allow(missing_docs, unreachable_pub, reason = "a test's inside, and nobody's interface: names and comments say it")]

pub mod broker;
pub mod checker;
pub mod dice;
pub mod many;
pub mod plan;
pub mod scale;
pub mod schedule;
pub mod shrink;
pub mod stage;
pub mod store;
pub mod world;
