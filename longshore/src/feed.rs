//! Everything that happens in a run: its events and its output lines, merged into one bounded channel.

use longshore_coordinator::api::types::{LogEvent, LogLine, Missing, RunEvent};
use longshore_coordinator::core::view::{RunSummary, RunView, StepView};
use longshore_protocol::{Attempt, RunId, StepName};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::client::{Client, ClientError, LogQuery};
use crate::sse::{EventStream, Next};

/// Some screens of lines. A slow terminal holds the streams back, and they the coordinator's readers only.
const UPDATES_MAX: usize = 1_024;

/// One thing that happened.
#[derive(Debug)]
pub(crate) enum Update {
    /// Everything as it is now: the first one of a run's events.
    View(Box<RunView>),
    Step(Box<StepView>),
    Run(RunSummary),
    Line(LogLine),
    Gap {
        step: StepName,
        attempt: Attempt,
        gap: Missing,
        text: String,
    },
    /// The run is settled and its logs are closed. Lines may still be under way.
    EventsEnd,
    /// No line follows.
    LogsEnd,
}

/// How a run stood before somebody went on with it: none of that is news.
#[derive(Clone, Debug)]
pub(crate) struct Since {
    pub(crate) view: RunView,
    /// Of its changes, and so of its logs.
    pub(crate) place: String,
}

impl Since {
    /// As it stands now.
    pub(crate) async fn now(client: &Client, run: RunId) -> Result<Self, ClientError> {
        let mut events = client.events(run);
        loop {
            let Next::Frame(frame) = events.next().await? else { continue };
            let unreadable = |reason: String| ClientError::Answer { reason };
            let event = serde_json::from_str(&frame.data).map_err(|error| unreadable(error.to_string()))?;
            let (RunEvent::View { view }, Some(change)) = (event, frame.id) else {
                return Err(unreadable("the first event is not the run's view".to_owned()));
            };
            // Nothing of the change itself is a line.
            return Ok(Self { view, place: format!("{change}-0") });
        }
    }

    /// What is carried out anew, as the run stands now, is news again.
    pub(crate) fn but_for_what_changed(mut self, now: &RunView) -> Self {
        for (known, now) in self.view.steps.iter_mut().zip(&now.steps) {
            // What was made again of one that passed (P20) changes nothing for it.
            if (&known.outcome, known.attempts.len()) != (&now.outcome, now.attempts.len()) {
                known.outcome = None;
            }
        }
        self
    }
}

/// Follows one run until both of its streams have ended.
pub(crate) struct Feed {
    updates: mpsc::Receiver<Result<Update, ClientError>>,
    open: u8,
    // Dropped with the feed: both tasks end.
    _tasks: JoinSet<()>,
}

impl Feed {
    /// Of the logs only what comes behind a [place](Since::place), if one is given.
    pub(crate) fn open(client: &Client, run: RunId, logs_behind: Option<String>) -> Self {
        let (sender, updates) = mpsc::channel(UPDATES_MAX);
        let mut tasks = JoinSet::new();
        tasks.spawn(pump(client.events(run), sender.clone(), of_run));
        let query = LogQuery { follow: true, ..LogQuery::default() };
        tasks.spawn(pump(client.logs(run, &query).behind(logs_behind), sender, of_log));
        Self { updates, open: 2, _tasks: tasks }
    }

    /// Waits for what happened since, in order. Empty once both streams have ended. May be dropped while it waits.
    pub(crate) async fn next(&mut self) -> Result<Vec<Update>, ClientError> {
        if self.open == 0 {
            return Ok(Vec::new());
        }
        let mut batch = Vec::new();
        self.updates.recv_many(&mut batch, UPDATES_MAX).await;
        let updates = batch.into_iter().collect::<Result<Vec<_>, _>>()?;
        let ends = updates.iter().filter(|update| matches!(update, Update::EventsEnd | Update::LogsEnd)).count();
        self.open -= u8::try_from(ends).expect("there are two streams, and each ends once");
        Ok(updates)
    }
}

/// An update, and whether it is the stream's last one.
type Taken = (Update, bool);

async fn pump<T: DeserializeOwned>(
    mut stream: EventStream,
    updates: mpsc::Sender<Result<Update, ClientError>>,
    take: fn(T) -> Taken,
) {
    loop {
        let taken = match next_of(&mut stream).await {
            Ok(event) => take(event),
            Err(error) => {
                let _ = updates.send(Err(error)).await;
                return;
            }
        };
        let (update, last) = taken;
        if updates.send(Ok(update)).await.is_err() || last {
            return;
        }
    }
}

/// The next event of a stream. A stream that ends without its `end` was cut off: it is asked for again.
pub(crate) async fn next_of<T: DeserializeOwned>(stream: &mut EventStream) -> Result<T, ClientError> {
    loop {
        if let Next::Frame(frame) = stream.next().await? {
            return serde_json::from_str(&frame.data)
                .map_err(|error| ClientError::Answer { reason: format!("{error} in {:?}", shortened(&frame.data)) });
        }
    }
}

/// Enough to see what it was.
fn shortened(data: &str) -> &str {
    &data[..data.floor_char_boundary(200)]
}

fn of_run(event: RunEvent) -> Taken {
    match event {
        RunEvent::View { view } => (Update::View(Box::new(view)), false),
        RunEvent::Step { step } => (Update::Step(Box::new(step)), false),
        RunEvent::Run { run } => (Update::Run(run), false),
        RunEvent::End => (Update::EventsEnd, true),
    }
}

fn of_log(event: LogEvent) -> Taken {
    match event {
        LogEvent::Line(line) => (Update::Line(line), false),
        LogEvent::Gap { step, attempt, gap, text } => (Update::Gap { step, attempt, gap, text }, false),
        LogEvent::End => (Update::LogsEnd, true),
    }
}
