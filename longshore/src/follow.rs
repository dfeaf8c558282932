//! Shows a run until it is settled, and what Ctrl-C means meanwhile.

use std::future::pending;
use std::time::Duration;

use longshore_coordinator::core::view::{RunOutcome, RunView};
use longshore_protocol::{RunId, StepName};
use tokio::time::{MissedTickBehavior, interval};

use crate::cli::Output;
use crate::client::Client;
use crate::embedded::Embedded;
use crate::failure::{EXIT_CANCELLED, EXIT_INFRA, Failure};
use crate::feed::{Feed, Since, Update};
use crate::render::json::JsonProgress;
use crate::render::progress::Progress;
use crate::render::screen;
use crate::render::style::Style;
use crate::signals::Interrupts;

/// The spinner's pace; seconds are shown in tenths.
const TICK: Duration = Duration::from_millis(100);

/// Shows a run, as text or as JSON.
enum Show {
    Text(Box<Progress>),
    Json(JsonProgress),
}

/// Whose run it is.
pub(crate) enum Whose<'a> {
    /// Carried out in this process: Ctrl-C cancels it.
    Ours(&'a mut Embedded),
    /// A fleet's: it goes on without us.
    Fleets,
}

/// Follows a run to its end; the answer is the exit code.
pub(crate) async fn follow(
    client: &Client,
    run: RunId,
    output: Output,
    whose: Whose<'_>,
    interrupts: &mut Interrupts,
) -> Result<u8, Failure> {
    follow_since(client, run, output, whose, interrupts, None).await
}

/// As [`follow`]; of what was so `since` then, nothing is told but in the end.
pub(crate) async fn follow_since(
    client: &Client,
    run: RunId,
    output: Output,
    mut whose: Whose<'_>,
    interrupts: &mut Interrupts,
    since: Option<Since>,
) -> Result<u8, Failure> {
    let (known, place) = since.map(|Since { view, place }| (view, place)).unzip();
    let mut show = Show::new(output, known);
    let mut feed = Feed::open(client, run, place);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut unheard: Option<Failure> = None;
    loop {
        let told = tokio::select! {
            biased;
            () = interrupts.next() => {
                if let Some(exit_code) = interrupted(client, run, &whose, interrupts.taken()).await? {
                    return Ok(exit_code);
                }
                Ok(())
            }
            failure = whose.broken() => return Err(failure),
            updates = feed.next() => {
                let updates = updates?;
                if updates.is_empty() {
                    break;
                }
                show.tell(updates, unheard.is_some())
            }
            _ = ticks.tick(), if show.wants_ticks() => show.tick(unheard.is_some()),
        };
        match told {
            Ok(()) => {}
            // Nobody reads any more, or the disk is full. A fleet's run goes on; ours would go on for nobody.
            Err(failure) if matches!(whose, Whose::Ours(_)) => {
                unheard = Some(failure);
                client.cancel(run).await?;
            }
            Err(failure) => return Err(failure),
        }
    }
    match unheard {
        None => show.finish(run)?,
        // A reader that has gone knows: the run's outcome is all that is left to tell.
        Some(Failure::Pipe) => {}
        Some(failure) => return Err(failure),
    }
    Ok(show.view().and_then(|view| view.summary.outcome).map_or(EXIT_INFRA, RunOutcome::exit_code))
}

impl Whose<'_> {
    async fn broken(&mut self) -> Failure {
        match self {
            Self::Ours(embedded) => embedded.broken().await,
            Self::Fleets => pending().await,
        }
    }
}

/// The n-th Ctrl-C: the first cancels, the second kills, the third leaves everything to the next run's sweep.
async fn interrupted(client: &Client, run: RunId, whose: &Whose<'_>, nth: u32) -> Result<Option<u8>, Failure> {
    match (whose, nth) {
        (Whose::Fleets, _) => {
            screen::say(&format!(
                "longshore: the run goes on; `longshore watch {run}` follows it, `longshore cancel {run}` ends it"
            ));
            Ok(Some(EXIT_CANCELLED))
        }
        (Whose::Ours(_), 1) => {
            screen::say("longshore: cancelling; the steps are given their time to end, Ctrl-C again kills them");
            client.cancel(run).await?;
            Ok(None)
        }
        (Whose::Ours(embedded), 2) => {
            screen::say("longshore: killing what still runs");
            embedded.hurry();
            Ok(None)
        }
        (Whose::Ours(_), _) => Ok(Some(EXIT_CANCELLED)),
    }
}

impl Show {
    fn new(output: Output, known: Option<RunView>) -> Self {
        match output {
            Output::Text => Self::Text(Box::new(Progress::new(Style::detect()).since(known))),
            Output::Json => Self::Json(JsonProgress::default()),
        }
    }

    fn tell(&mut self, updates: Vec<Update>, silent: bool) -> Result<(), Failure> {
        let told = match self {
            Self::Text(progress) => progress.tell(updates),
            Self::Json(progress) => progress.tell(updates),
        };
        if silent { Ok(()) } else { told.map_err(Failure::from) }
    }

    fn tick(&mut self, silent: bool) -> Result<(), Failure> {
        self.tell(Vec::new(), silent)
    }

    fn wants_ticks(&self) -> bool {
        match self {
            Self::Text(progress) => progress.wants_ticks(),
            Self::Json(_) => false,
        }
    }

    fn finish(&mut self, run: RunId) -> Result<(), Failure> {
        // A shell would read the brackets of a matrix step.
        let hint = |step: &StepName| format!("longshore logs {run} '{step}'");
        match self {
            Self::Text(progress) => progress.finish(hint)?,
            Self::Json(progress) => progress.finish()?,
        }
        Ok(())
    }

    fn view(&self) -> Option<&RunView> {
        match self {
            Self::Text(progress) => progress.view(),
            Self::Json(progress) => progress.view(),
        }
    }
}
