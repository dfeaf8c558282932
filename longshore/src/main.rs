//! `longshore`: the one binary. It parses the command line, builds what the command needs, and runs it.
//!
//! [`cli`] is what may be typed, [`commands`] does it, one file per command. Below them: [`client`] speaks the
//! coordinator's API over a [`transport`] and [`sse`], [`feed`] and [`follow`] watch a run, [`render`] shows it;
//! [`sources`] packs what goes into steps; [`embedded`] is coordinator and worker in this process, over the
//! [`state`] directory; [`runs`] finds past runs there or on a fleet; [`server`] is what the two daemons share.

mod cli;
mod client;
mod commands;
mod embedded;
mod failure;
mod feed;
mod file;
mod follow;
mod render;
mod runs;
mod server;
mod signals;
mod sources;
mod sse;
mod state;
mod transport;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command, LogFormat, Output};
use crate::failure::Failure;
use crate::render::screen::LogWriter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.output == Output::Json;
    init_log(&cli.command);
    let done = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::infra(format!("no threads can be started: {error}")))
        .and_then(|runtime| {
            let done = runtime.block_on(commands::carry_out(cli));
            // What is left belongs to nobody: a read of stdin, say, that cannot be called off.
            runtime.shutdown_background();
            done
        });
    match done {
        Ok(exit_code) => ExitCode::from(exit_code),
        Err(failure) => {
            let exit_code = failure.exit_code();
            failure.report(json);
            ExitCode::from(exit_code)
        }
    }
}

/// To stderr; `LONGSHORE_LOG` says what (`debug`, `longshore_worker=debug,info`, …). Servers say more by default.
fn init_log(command: &Command) {
    let (default, format) = match command {
        Command::Coordinator(args) => ("info", args.fleet.log_format),
        Command::Worker(args) => ("info", args.fleet.log_format),
        _ => ("warn", LogFormat::Text),
    };
    let filter = EnvFilter::try_from_env("LONGSHORE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(LogWriter).with_ansi(ansi);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}
