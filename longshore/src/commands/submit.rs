//! `longshore submit FILE`: the same file, to a fleet.

use crate::cli::{Output, SubmitArgs};
use crate::failure::Failure;
use crate::file;
use crate::follow::{Whose, follow};
use crate::render::{json, screen};
use crate::runs;
use crate::signals::Interrupts;

pub(crate) async fn run(args: SubmitArgs, output: Output) -> Result<u8, Failure> {
    let pipeline = file::read(&args.file)?;
    let client = runs::fleet(&args.remote)?;
    let prepared = file::prepare(pipeline, &args.file, args.name).await?;
    let pipeline = prepared.upload(&client).await?;
    let run = args.run_id.unwrap_or_default();
    client.submit(run, &pipeline).await?;
    if args.watch {
        return follow(&client, run, output, Whose::Fleets, &mut Interrupts::catch()?).await;
    }
    match output {
        Output::Text => screen::print(format!("{run}\n").as_bytes())?,
        Output::Json => json::line("submitted", &serde_json::json!({ "run": run }))?,
    }
    Ok(0)
}
