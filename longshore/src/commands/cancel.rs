//! `longshore cancel RUN`: asks for a fleet's run's end.

use crate::cli::{CancelArgs, Output};
use crate::failure::Failure;
use crate::render::{json, screen};
use crate::runs::{self, Runs};

pub(crate) async fn run(args: &CancelArgs, output: Output) -> Result<u8, Failure> {
    let client = runs::fleet(&args.remote)?;
    let run = Runs::Fleet(client.clone()).find(&args.run).await?;
    client.cancel(run).await?;
    // What became of it: a run that was settled already stays as it was.
    let summary = client.run(run).await?.summary;
    match output {
        Output::Json => screen::print(json::run(&summary, false).as_bytes())?,
        Output::Text => {
            let words = match summary.outcome {
                Some(outcome) => format!("{run} is settled: {outcome}\n"),
                None => format!("{run} is being cancelled\n"),
            };
            screen::print(words.as_bytes())?;
        }
    }
    Ok(0)
}
