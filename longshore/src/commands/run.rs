//! `longshore run FILE`: a fleet of one, for one run.

use longshore_protocol::RunId;

use crate::cli::{Output, RunArgs};
use crate::embedded::{Embedded, Sitting, default_slots, find_engine};
use crate::failure::{EXIT_CANCELLED, Failure};
use crate::file::{self, Prepared};
use crate::follow::{Whose, follow};
use crate::render::screen;
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
    let mut interrupts = Interrupts::catch()?;
    let slots = args.slots.unwrap_or_else(default_slots);
    let sitting = Sitting::first(&state, run, &prepared.pipeline, &found.info.id)?;
    let mut embedded = Embedded::start(state, run, sitting, found, slots).await?;
    let done = carry_out(&mut embedded, run, prepared, output, &mut interrupts).await;
    end(embedded, &mut interrupts).await;
    done
}

/// Leaves nothing behind, if it is given the time.
pub(super) async fn end(embedded: Embedded, interrupts: &mut Interrupts) {
    // Whoever asks a third time, or while the end takes its time, does not wait: an Engine may never answer.
    let leaves = async {
        if interrupts.taken() < LEAVE_AT {
            interrupts.next().await;
        }
    };
    tokio::select! {
        biased;
        () = leaves => screen::say("longshore: leaving; the next `longshore run` removes what is left"),
        () = embedded.close() => {}
    }
}

/// The first Ctrl-C cancels, the second kills.
const LEAVE_AT: u32 = 3;

async fn carry_out(
    embedded: &mut Embedded,
    run: RunId,
    prepared: Prepared,
    output: Output,
    interrupts: &mut Interrupts,
) -> Result<u8, Failure> {
    let client = embedded.client().clone();
    let pipeline = tokio::select! {
        () = interrupts.next() => {
            screen::say("longshore: cancelled; nothing was submitted");
            return Ok(EXIT_CANCELLED);
        }
        pipeline = prepared.upload(&client) => pipeline?,
    };
    client.submit(run, &pipeline).await?;
    follow(&client, run, output, Whose::Ours(embedded), interrupts).await
}
