//! `longshore plan FILE`: what a file means, without running it.

use longshore_coordinator::pipeline;

use crate::cli::{Output, PlanArgs, PlanFormat};
use crate::failure::Failure;
use crate::file;
use crate::render::{json, screen};

pub(crate) fn run(args: &PlanArgs, output: Output) -> Result<u8, Failure> {
    let pipeline = file::read(&args.file)?;
    match (args.format, output) {
        (PlanFormat::Text, Output::Text) => screen::print(pipeline::to_text(&pipeline).as_bytes())?,
        (PlanFormat::Text, Output::Json) => json::line("pipeline", &pipeline)?,
        (PlanFormat::Dot, _) => screen::print(pipeline::to_dot(&pipeline).as_bytes())?,
        (PlanFormat::Json, _) => {
            let text = serde_json::to_string_pretty(&pipeline)
                .map_err(|error| Failure::infra(format!("the plan cannot be written as JSON: {error}")))?;
            screen::print(format!("{text}\n").as_bytes())?;
        }
    }
    Ok(0)
}
