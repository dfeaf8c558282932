//! A fleet of real processes for the end-to-end tests, which read like sentences:
//!
//! ```text
//! let fleet = Fleet::new().worker("one", 1).worker("two", 2).start().await;
//! let run = fleet.submit(PIPELINE).await;
//! run.settles(RunOutcome::Passed).await;
//! fleet.checks_out().await;
//! ```
//!
//! [`fleet`] starts and kills processes, [`run`] follows a run, [`check`] is the checker that every one of them
//! runs at its end: settled once, no line missing, no container left. [`services`] finds RabbitMQ and Docker.

pub mod check;
pub mod fleet;
pub mod process;
pub mod run;
#[path = "../services.rs"]
pub mod services;

pub use fleet::Fleet;
pub use run::Run;
