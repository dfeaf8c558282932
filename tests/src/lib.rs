//! A fleet of real processes for the end-to-end tests, which read like sentences:
//!
//! ```text
//! let fleet = Fleet::new().worker("one", 1).worker("two", 2).start().await;
//! let run = fleet.submit(PIPELINE).await;
//! run.settles(RunOutcome::Passed).await;
//! fleet.checks_out().await;
//! ```
//!
//! [`fleet`] starts and kills processes ([`builder`] says which are wanted), [`run`] follows a run, [`check`] is the
//! checker that every one of them runs at its end: settled once, no line missing, no container and no process left.
//! [`services`] finds RabbitMQ and Docker, [`engine`] asks Docker about what Longshore did, [`actor`] makes images whose
//! steps can do and see everything, [`dice`] chooses. [`own`] are services that a test may kill. [`store_contract`] is
//! what every store must keep, [`pair`] two coordinators on one [`postgres`] behind one address ([`front`]).

pub mod actor;
pub mod builder;
pub mod check;
pub mod dice;
pub mod engine;
pub mod fleet;
pub mod front;
mod logs;
pub mod own;
pub mod pair;
pub mod postgres;
pub mod process;
pub mod run;
#[path = "../services.rs"]
pub mod services;
pub mod store_contract;

pub use builder::FleetBuilder;
pub use dice::Dice;
pub use fleet::Fleet;
pub use run::Run;
