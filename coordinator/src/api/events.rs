//! What changes in a run, as server-sent events. The id of each is its change's number, so that
//! `Last-Event-ID` goes on exactly behind it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures_util::{Stream, stream};
use longshore_protocol::RunId;
use longshore_protocol::process::watch;
use tokio_util::sync::CancellationToken;

use super::auth::Asker;
use super::types::RunEvent;
use super::{ApiError, ApiState};
use crate::store::runs::Changed;
use crate::store::{Store, StoreError};

/// Where another process leads, nobody wakes us: then the store is looked at this often.
const LOOK: Duration = Duration::from_secs(1);

/// Waits until something of a run was committed.
pub(super) struct Wake {
    committed: watch::Receiver<()>,
    leading: watch::Receiver<bool>,
    closing: CancellationToken,
}

impl Wake {
    /// To be made before the first look at the store ([`Feed::subscribe`](crate::driver::feed::Feed::subscribe)).
    /// `None` for a past run's file, which does not change.
    pub(super) fn new(state: &ApiState, run: RunId) -> Option<Self> {
        let live = state.live.as_ref()?;
        let committed = live.feed.subscribe(run);
        Some(Self { committed, leading: live.leading.clone(), closing: live.closing.clone() })
    }

    /// `false` when the process ends: the client connects again and goes on where it was.
    pub(super) async fn wait(&mut self) -> bool {
        let leading = *self.leading.borrow();
        tokio::select! {
            biased;
            () = self.closing.cancelled() => false,
            committed = self.committed.changed() => committed.is_ok(),
            _ = self.leading.changed() => true,
            () = tokio::time::sleep(LOOK), if !leading => true,
        }
    }
}

/// The last id that a client has seen, if it has seen one.
pub(super) fn last_event_id<T: std::str::FromStr>(headers: &HeaderMap) -> Result<Option<T>, ApiError> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|text| text.parse().ok());
    parsed.map(Some).ok_or_else(|| ApiError::BadRequest("Last-Event-ID is none that was given here".to_owned()))
}

/// Starts with the whole view, or behind `Last-Event-ID`; ends after the run is settled and its logs are closed.
pub(super) async fn follow(
    State(state): State<Arc<ApiState>>,
    Extension(asker): Extension<Asker>,
    run: Result<Path<RunId>, PathRejection>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let Path(run) = run?;
    state.run_of(&asker, run).await?;
    let wake = Wake::new(&state, run);
    let mut follower = Follower { store: state.store.clone(), run, wake, seen: 0, next: VecDeque::new(), over: false };
    if let Some(seen) = last_event_id(&headers)? {
        follower.seen = seen;
    } else {
        let state = state.store.run(run).await?.ok_or(ApiError::NotFound("run"))?;
        follower.seen = state.change;
        follower.next.push_back((state.change, RunEvent::View { view: state.view }));
    }
    let events = stream::unfold(follower, async |mut follower| {
        let (id, event) = follower.next().await?;
        Some((Ok(sse(&id.to_string(), &event)), follower))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

/// An event with its id.
pub(super) fn sse<T: serde::Serialize>(id: &str, event: &T) -> Event {
    // JSON of our own types has no line breaks and always serializes.
    Event::default().id(id).json_data(event).expect("our types have string keys and no failing serializers")
}

struct Follower {
    store: Arc<dyn Store>,
    run: RunId,
    wake: Option<Wake>,
    seen: u64,
    next: VecDeque<(u64, RunEvent)>,
    over: bool,
}

impl Follower {
    async fn next(&mut self) -> Option<(u64, RunEvent)> {
        loop {
            if let Some(event) = self.next.pop_front() {
                return Some(event);
            }
            if self.over {
                return None;
            }
            match self.look().await {
                Ok(true) => {}
                Ok(false) => match &mut self.wake {
                    Some(wake) => self.over = !wake.wait().await,
                    None => self.over = true,
                },
                Err(error) => {
                    // The status is sent already: the stream ends, and the client asks again.
                    tracing::warn!(%error, run = %self.run, "a stream of events was cut");
                    return None;
                }
            }
        }
    }

    /// Whether there is something to send.
    async fn look(&mut self) -> Result<bool, StoreError> {
        let (changes, done) = self.store.changes_after(self.run, self.seen).await?;
        for (change, what) in changes {
            self.seen = change;
            let event = match what {
                Changed::Run(run) => RunEvent::Run { run },
                Changed::Step(step) => RunEvent::Step { step },
            };
            self.next.push_back((change, event));
        }
        if done {
            self.next.push_back((self.seen, RunEvent::End));
            self.over = true;
        }
        Ok(!self.next.is_empty())
    }
}
