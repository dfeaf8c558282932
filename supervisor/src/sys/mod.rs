//! The system calls that have no safe form. The one place in Longshore where `unsafe` is allowed.

#![allow(unsafe_code)]

mod exec;
mod ipc;
mod process;

pub(crate) use exec::{ExecPlan, SpawnError, spawn};
pub(crate) use ipc::{IpcKind, remove_ipc};
pub(crate) use process::{Reaped, Signals, close_on_exec_all, hide, reap, signal_all};
