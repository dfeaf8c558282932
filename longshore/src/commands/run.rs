//! `longshore run FILE`: a fleet of one, for one run.

use longshore_protocol::RunId;

use crate::cli::{Output, RunArgs};
use crate::embedded::{Embedded, default_slots, find_engine};
use crate::failure::Failure;
use crate::file::{self, Prepared};
use crate::follow::{Whose, follow};
use crate::signals::Interrupts;
use crate::state::StateDir;

pub(crate) async fn run(args: RunArgs, output: Output) -> Result<u8, Failure> {
    let pipeline = file::read(&args.file)?;
    // Neither leaves anything behind, and each may take a while.
    let (found, prepared) =
        tokio::join!(find_engine(args.docker.as_deref()), file::prepare(pipeline, &args.file, args.name));
    let (prepared, found) = (prepared?, found?);
    let state = StateDir::open()?;
    let run = RunId::new();
    let interrupts = Interrupts::catch()?;
    let slots = args.slots.unwrap_or_else(default_slots);
    let mut embedded = Embedded::start(state, run, &prepared.pipeline, found, slots).await?;
    let done = carry_out(&mut embedded, run, prepared, output, interrupts).await;
    embedded.close().await;
    done
}

async fn carry_out(
    embedded: &mut Embedded,
    run: RunId,
    prepared: Prepared,
    output: Output,
    interrupts: Interrupts,
) -> Result<u8, Failure> {
    let client = embedded.client().clone();
    let pipeline = prepared.upload(&client).await?;
    client.submit(run, &pipeline).await?;
    follow(&client, run, output, Whose::Ours(embedded), interrupts).await
}
