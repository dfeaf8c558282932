//! `longshore cancel RUN [STEP]`: asks for the end of a fleet's run, or of some steps of it.

use std::fmt::Write as _;

use longshore_coordinator::core::view::StepView;
use longshore_protocol::RunId;

use super::steps::no_such_step;
use crate::cli::{CancelArgs, Output};
use crate::client::{Client, ClientError};
use crate::failure::Failure;
use crate::render::{json, screen};
use crate::runs::{self, Runs};

pub(crate) async fn run(args: &CancelArgs, output: Output) -> Result<u8, Failure> {
    let client = runs::fleet(&args.remote)?;
    let run = Runs::Fleet(client.clone()).find(&args.run).await?;
    match &args.step {
        None => cancel_run(&client, run, output).await?,
        Some(step) => cancel_steps(&client, run, step, output).await?,
    }
    Ok(0)
}

async fn cancel_run(client: &Client, run: RunId, output: Output) -> Result<(), Failure> {
    client.cancel(run).await?;
    // What became of it: a run that was settled already stays as it was.
    let summary = client.run(run).await?.summary;
    let text = match (output, summary.outcome) {
        (Output::Json, _) => json::run(&summary, false),
        (Output::Text, Some(outcome)) => format!("{run} is settled: {outcome}\n"),
        (Output::Text, None) => format!("{run} is being cancelled\n"),
    };
    Ok(screen::print(text.as_bytes())?)
}

async fn cancel_steps(client: &Client, run: RunId, wanted: &str, output: Output) -> Result<(), Failure> {
    let steps = match client.cancel_steps(run, wanted).await {
        Ok(steps) => steps,
        Err(ClientError::Name { .. }) => return Err(no_such_step(wanted, &client.run(run).await?)),
        Err(ClientError::Refused { status, .. }) if status == reqwest::StatusCode::NOT_FOUND => {
            return Err(no_such_step(wanted, &client.run(run).await?));
        }
        Err(error) => return Err(error.into()),
    };
    let mut text = String::new();
    for step in &steps {
        match output {
            Output::Json => text.push_str(&json::text("step", step)),
            Output::Text => {
                let _ = writeln!(text, "{}", words(step));
            }
        }
    }
    Ok(screen::print(text.as_bytes())?)
}

fn words(step: &StepView) -> String {
    let name = &step.step;
    match &step.outcome {
        Some(outcome) => format!("{name} is settled: {outcome}"),
        None => format!("{name} is being cancelled"),
    }
}
