//! `longshore retry RUN`: what did not pass of a run is tried again; one that was interrupted goes on where it was.

use longshore_coordinator::api::types::RunEvent;
use longshore_coordinator::core::retry::Missed;
use longshore_coordinator::core::view::RunOutcome;
use longshore_protocol::RunId;

use super::run::end;
use crate::cli::{Only, Output, RetryArgs};
use crate::client::Client;
use crate::embedded::{Embedded, Sitting, default_slots, find_engine, still_going};
use crate::failure::{EXIT_CANCELLED, Failure};
use crate::feed::{Since, next_of};
use crate::follow::{Whose, follow_since};
use crate::render::style::counted;
use crate::render::{json, screen};
use crate::runs::Runs;
use crate::signals::Interrupts;
use crate::state::StateDir;

pub(crate) async fn run(args: RetryArgs, output: Output) -> Result<u8, Failure> {
    let runs = Runs::open(&args.remote)?;
    let run = runs.find(&args.run).await?;
    let only = args.only.iter().map(|only| missed(*only)).collect();
    let client = runs.client(run)?;
    match runs {
        Runs::Fleet(_) => on_fleet(&client, run, only, args.watch, output).await,
        Runs::Here(state) => Box::pin(here(state, run, only, &client, &args, output)).await,
    }
}

fn missed(only: Only) -> Missed {
    match only {
        Only::Failed => Missed::Failed,
        Only::Infra => Missed::Infra,
        Only::Missing => Missed::Missing,
    }
}

async fn on_fleet(client: &Client, run: RunId, only: Vec<Missed>, watch: bool, output: Output) -> Result<u8, Failure> {
    let since = Since::now(client, run).await?;
    let summary = client.retry(run, only).await?;
    if watch {
        let since = since.but_for_what_changed(&client.run(run).await?);
        return follow_since(client, run, output, Whose::Fleets, &mut Interrupts::catch()?, Some(since)).await;
    }
    let text = match output {
        Output::Json => json::run(&summary, false),
        Output::Text => {
            let left = u64::from(summary.steps - summary.steps_settled);
            format!("{run} goes on with {}; `longshore watch {run}` follows it\n", counted(left, "step"))
        }
    };
    screen::print(text.as_bytes())?;
    Ok(0)
}

/// In this process, as `longshore run` does.
async fn here(
    state: StateDir,
    run: RunId,
    only: Vec<Missed>,
    reader: &Client,
    args: &RetryArgs,
    output: Output,
) -> Result<u8, Failure> {
    // Told before anything is started.
    if state.is_held(run) {
        return Err(still_going(run));
    }
    let since = Since::now(reader, run).await?;
    if since.view.summary.outcome == Some(RunOutcome::Passed) {
        return Err(Failure::input(format!("there is nothing to try again: every step of run {run} passed")));
    }
    let (store, worker) = (state.store(run), state.owner(run));
    let past = longshore_coordinator::past(&store, run, &worker);
    let (found, past) = tokio::join!(find_engine(args.docker.as_deref()), past);
    let unreadable = |why: String| Failure::infra(format!("the store of run {run} cannot be read: {why}"));
    let past = past.map_err(|error| unreadable(error.to_string()))?;
    let past = past.ok_or_else(|| unreadable("it holds no pipeline".to_owned()))?;
    let found = found?;
    let sitting = Sitting::again(&state, &past, &since.view, &found.info.id)?;
    let mut interrupts = Interrupts::catch()?;
    let slots = args.slots.unwrap_or_else(default_slots);
    let mut embedded = Embedded::start(state, run, sitting, found, slots).await?;
    let done = carry_out(&mut embedded, run, only, since, output, &mut interrupts).await;
    end(embedded, &mut interrupts).await;
    done
}

async fn carry_out(
    embedded: &mut Embedded,
    run: RunId,
    only: Vec<Missed>,
    mut since: Since,
    output: Output,
    interrupts: &mut Interrupts,
) -> Result<u8, Failure> {
    let client = embedded.client().clone();
    let summary = &since.view.summary;
    // One that was being cancelled when its process ended is cancelled first: nothing of it would be carried out.
    if summary.outcome.is_none() && summary.cancelling {
        tokio::select! {
            biased;
            () = interrupts.next() => return Ok(EXIT_CANCELLED),
            failure = embedded.broken() => return Err(failure),
            settled = settled(&client, run) => settled?,
        }
        since = Since::now(&client, run).await?;
    }
    if since.view.summary.outcome.is_some() {
        client.retry(run, only).await?;
        since = since.but_for_what_changed(&client.run(run).await?);
    }
    follow_since(&client, run, output, Whose::Ours(embedded), interrupts, Some(since)).await
}

async fn settled(client: &Client, run: RunId) -> Result<(), Failure> {
    let mut events = client.events(run);
    while !matches!(next_of::<RunEvent>(&mut events).await?, RunEvent::End) {}
    Ok(())
}
