//! A worker between a scripted coordinator and a fake Engine: one file per thing that must hold.

#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod fleet;
mod process;
#[allow(unreachable_pub)] // other crates include it as a module of theirs
#[path = "../../../tests/services.rs"]
mod services;
mod tap;

mod adoption;
mod claims;
mod control;
mod exclusive;
mod http;
mod identity;
mod keeping;
mod parked_adoption;
mod parking;
mod real;
mod reports;
mod steps;
