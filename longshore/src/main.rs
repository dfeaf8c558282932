//! `longshore`: the one binary. It parses the command line, builds what the command needs, and runs it.
//!
//! [`cli`] is what may be typed, [`commands`] does it, one file per command. Below them: [`client`] speaks the
//! coordinator's API over a [`transport`] and [`sse`], [`feed`] and [`follow`] watch a run, [`render`] shows it; [`last_words`] what a failed step said last;
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
mod last_words;
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
    let done = init_log(&cli.command)
        .and_then(|()| {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
            runtime.map_err(|error| Failure::infra(format!("no threads can be started: {error}")))
        })
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
fn init_log(command: &Command) -> Result<(), Failure> {
    let (default, format) = match command {
        Command::Coordinator(args) => ("info", args.fleet.log_format),
        Command::Worker(args) => ("info", args.fleet.log_format),
        // A disk that kept a statement waiting is not the affair of whoever runs a pipeline.
        _ => ("warn,sqlx=error", LogFormat::Text),
    };
    let wanted = std::env::var("LONGSHORE_LOG").unwrap_or_default();
    // An empty variable is how a shell unsets it for one command.
    let filter = log_filter(if wanted.is_empty() { default } else { &wanted })?;
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr())
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(LogWriter).with_ansi(ansi);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

/// Lapin is silent unless it is asked for by name: it logs outages, of which `longshore_protocol` tells, as errors,
/// and the whole body of every message that is returned.
fn log_filter(wanted: &str) -> Result<EnvFilter, Failure> {
    EnvFilter::builder().parse(format!("lapin=off,{wanted}")).map_err(|error| {
        Failure::input(format!("LONGSHORE_LOG is no filter: {error}"))
            .mend("write it as a level, or as `longshore_worker=debug,info`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lapin_is_silent_unless_it_is_named() {
        let lapins = |wanted: &str| {
            let filter = log_filter(wanted).unwrap().to_string();
            let directives = filter.split(',').filter(|directive| directive.starts_with("lapin"));
            directives.map(str::to_owned).collect::<Vec<_>>()
        };
        for wanted in ["info", "trace", "longshore_worker=debug,info", "[span]=debug"] {
            assert_eq!(lapins(wanted), ["lapin=off"], "{wanted}");
        }
        assert_eq!(lapins("info,lapin=warn"), ["lapin=warn"]);
        assert!(lapins("lapin::channel=debug").contains(&"lapin::channel=debug".to_owned()));
        assert!(log_filter("longshore=loud").is_err());
    }
}
