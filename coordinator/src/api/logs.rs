//! Logs: raw bytes, or lines as server-sent events that a client can resume exactly.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::sse::KeepAlive;
use axum::response::{IntoResponse, Response, Sse};
use bytes::Bytes;
use futures_util::stream;
use longshore_protocol::output::Ending;
use longshore_protocol::{Attempt, ExecutionId, RunId, StepName};
use serde::Deserialize;

use super::auth::Asker;
use super::events::{Wake, last_event_id, sse};
use super::types::LogEvent;
use super::{ApiError, ApiState};
use crate::core::view::{AttemptView, RemakeView, StepPhase, StepView};
use crate::logs::read::{LogReader, Place};
use crate::logs::seal::ChunkError;
use crate::store::log_rows::Selection;
use crate::store::{Store, StoreError};

/// Of raw bytes about so many are sent at once.
const PIECE_BYTES: usize = 64 * 1024;

/// Which lines.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Wanted {
    /// Of one step; without it, of all.
    step: Option<StepName>,
    /// Of one try of it; without it, of all.
    attempt: Option<Attempt>,
    /// From this line on, counted from 1, of one try of one step: the newest, if none is named.
    from: Option<u64>,
    /// The last so many that are there now.
    tail: Option<u64>,
    /// What comes later, too.
    #[serde(default)]
    follow: bool,
}

/// SSE if the client accepts `text/event-stream`, else `text/plain` with the bytes as they were.
pub(super) async fn logs(
    State(state): State<Arc<ApiState>>,
    Extension(asker): Extension<Asker>,
    run: Result<Path<RunId>, PathRejection>,
    wanted: Result<Query<Wanted>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (Path(run), Query(wanted)) = (run?, wanted?);
    state.run_of(&asker, run).await?;
    // Before the first look at the store, so that nothing is committed in between unseen.
    let wake = if wanted.follow { Wake::new(&state, run) } else { None };
    let one_step = wanted.step.is_some();
    let (reader, selection) = reader(&state, run, &wanted, last_event_id(&headers)?).await?;
    let until = Until { store: state.store.clone(), selection, step: wanted.step };
    let lines = Lines { reader, wake, until, last: Place::default(), next: VecDeque::new(), over: false };
    let events = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    if events.is_some_and(|accept| accept.contains("text/event-stream")) {
        let events = stream::unfold(lines, async |mut lines| {
            let (place, event) = lines.next().await?;
            Some((Ok::<_, Infallible>(sse(&place.to_string(), &event)), lines))
        });
        return Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response());
    }
    let bytes = stream::unfold(lines, move |mut lines| async move {
        let (_, event) = lines.next().await?;
        let mut piece = Vec::new();
        raw(event, one_step, &mut piece);
        // What is here already goes with it: a frame for each line would take most of the time.
        while piece.len() < PIECE_BYTES
            && let Some((_, event)) = lines.here()
        {
            raw(event, one_step, &mut piece);
        }
        Some((Ok::<_, Infallible>(Bytes::from(piece)), lines))
    });
    Ok(([(CONTENT_TYPE, "text/plain; charset=utf-8")], Body::from_stream(bytes)).into_response())
}

async fn reader(
    state: &ApiState,
    run: RunId,
    wanted: &Wanted,
    seen: Option<Place>,
) -> Result<(LogReader, Selection), ApiError> {
    let mut selection = Selection { run, execution: None, attempt: wanted.attempt };
    let mut newest = Attempt::FIRST;
    match &wanted.step {
        Some(step) => {
            let wanted = wanted_log(&*state.store, run, step).await?.ok_or(ApiError::NotFound("step"))?;
            selection.execution = Some(wanted.execution);
            newest = wanted.attempts.last().map_or(newest, |attempt| attempt.attempt);
        }
        None if wanted.attempt.is_some() || wanted.from.is_some() => {
            return Err(ApiError::BadRequest("attempt and from are of one step: name it with step".to_owned()));
        }
        None => {}
    }
    if let (Some(_), None) = (wanted.from, wanted.attempt) {
        selection.attempt = Some(newest);
    }
    let reader = LogReader::new(state.store.clone(), state.chunks.clone(), selection.clone());
    let reader = match (seen, wanted.from, wanted.tail, selection.execution, selection.attempt) {
        // A client that was cut off asks with the same address: where it was outranks where it began.
        (Some(seen), ..) => reader.behind(seen),
        (None, Some(_), Some(_), ..) => {
            return Err(ApiError::BadRequest("from and tail: say one of them".to_owned()));
        }
        (None, Some(n), None, Some(execution), Some(attempt)) => reader.from_line(execution, attempt, n.max(1)).await?,
        (None, None, Some(tail), ..) => reader.tail(tail).await?,
        _ => reader,
    };
    Ok((reader, selection))
}

/// Whose log was asked for by name.
struct WantedLog {
    execution: ExecutionId,
    phase: StepPhase,
    attempts: Vec<AttemptView>,
}

/// A step by its name, or a remake by its own (P20): `build~1`.
async fn wanted_log(store: &dyn Store, run: RunId, name: &StepName) -> Result<Option<WantedLog>, StoreError> {
    if let Some(view) = store.step(run, name).await? {
        let StepView { execution, phase, attempts, .. } = view;
        return Ok(Some(WantedLog { execution, phase, attempts }));
    }
    let Some((of, _)) = name.as_str().rsplit_once('~') else { return Ok(None) };
    let Some(view) = store.step(run, &of.into()).await? else { return Ok(None) };
    let remake = view.remakes.into_iter().find(|remake| remake.name == *name);
    Ok(remake.map(|RemakeView { execution, phase, attempts, .. }| WantedLog { execution, phase, attempts }))
}

/// Says when nothing more can come.
struct Until {
    store: Arc<dyn Store>,
    selection: Selection,
    step: Option<StepName>,
}

impl Until {
    async fn over(&self) -> Result<bool, ChunkError> {
        let run = self.selection.run;
        if self.store.summary(run).await?.is_none_or(|(_, done)| done) {
            return Ok(true);
        }
        let Some(step) = &self.step else { return Ok(false) };
        let Some(log) = wanted_log(&*self.store, run, step).await? else { return Ok(true) };
        let closed = match self.selection.attempt {
            Some(wanted) => log.attempts.iter().any(|attempt| attempt.attempt == wanted && attempt.log_closed),
            None => log.phase == StepPhase::Settled && log.attempts.iter().all(|attempt| attempt.log_closed),
        };
        Ok(closed)
    }
}

struct Lines {
    reader: LogReader,
    wake: Option<Wake>,
    until: Until,
    last: Place,
    next: VecDeque<(Place, LogEvent)>,
    over: bool,
}

impl Lines {
    async fn next(&mut self) -> Option<(Place, LogEvent)> {
        loop {
            if let Some(next) = self.here() {
                return Some(next);
            }
            if self.over {
                return None;
            }
            if let Err(error) = self.look().await {
                // The status is sent already: the stream ends, and the client asks again.
                tracing::warn!(%error, run = %self.until.selection.run, "a stream of lines was cut");
                return None;
            }
        }
    }

    /// The next one, if it was read already.
    fn here(&mut self) -> Option<(Place, LogEvent)> {
        let (place, event) = self.next.pop_front()?;
        self.last = place;
        Some((place, event))
    }

    async fn look(&mut self) -> Result<(), ChunkError> {
        // Asked before the lines are read: what is over then can have no line that this look misses.
        let over = self.wake.is_none() || self.until.over().await?;
        self.next.extend(self.reader.next_page().await?);
        if self.next.is_empty() {
            if over {
                self.next.push_back((self.last, LogEvent::End));
                self.over = true;
            } else if let Some(wake) = &mut self.wake {
                self.over = !wake.wait().await;
            }
        }
        Ok(())
    }
}

/// An event as plain text: the stream's own bytes, or every line behind its step's name.
fn raw(event: LogEvent, one_step: bool, out: &mut Vec<u8>) {
    let mut named = |step: &StepName, words: &[u8]| {
        if !one_step {
            out.extend(format!("{step} | ").into_bytes());
        }
        out.extend(words);
    };
    let ended = match event {
        LogEvent::Line(line) => {
            named(&line.step, &line.data.0);
            // Of several steps, the pieces of a long line stand alone: others may come in between.
            line.ending == Ending::Newline || !one_step
        }
        LogEvent::Gap { step, text, .. } => {
            named(&step, text.as_bytes());
            true
        }
        LogEvent::End => false,
    };
    if ended {
        out.push(b'\n');
    }
}
