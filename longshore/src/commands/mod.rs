//! One file per command.

mod cancel;
mod coordinator;
mod doctor;
mod logs;
mod ls;
mod plan;
mod replay;
mod retry;
mod run;
mod schema;
mod show;
mod steps;
mod submit;
mod watch;
mod why;
mod worker;
mod workers;

use crate::cli::{Cli, Command};
use crate::failure::Failure;

/// Does what was asked for. The exit code of a command that did it: its run's outcome, where it has one.
pub(crate) async fn carry_out(cli: Cli) -> Result<u8, Failure> {
    let output = cli.output;
    match cli.command {
        Command::Run(args) => Box::pin(run::run(args, output)).await,
        Command::Plan(args) => plan::run(&args, output),
        Command::Schema => schema::run(),
        Command::Submit(args) => submit::run(args, output).await,
        Command::Watch(args) => watch::run(&args, output).await,
        Command::Logs(args) => logs::run(args, output).await,
        Command::Show(args) => show::run(&args, output).await,
        Command::Ls(args) => ls::run(&args, output).await,
        Command::Why(args) => why::run(&args, output).await,
        Command::Retry(args) => Box::pin(retry::run(args, output)).await,
        Command::Cancel(args) => cancel::run(&args, output).await,
        Command::Replay(args) => replay::run(&args, output).await,
        Command::Workers(args) => workers::run(&args, output).await,
        Command::Doctor(args) => Box::pin(doctor::run(&args, output)).await,
        Command::Coordinator(args) => Box::pin(coordinator::run(args)).await,
        Command::Worker(args) => Box::pin(worker::run(args)).await,
    }
}
