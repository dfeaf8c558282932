//! Server-sent events, resumed where they broke off.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt};
use reqwest::header::{ACCEPT, HeaderName, HeaderValue};
use tokio::time::timeout;

use crate::client::{Client, ClientError};
use crate::transport::Request;

/// The first wait before a broken stream is asked for again.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// A person looks at the screen: nobody waits longer than this for a coordinator that is back.
const BACKOFF_MAX: Duration = Duration::from_secs(3);
/// The server sends a comment every 15 s: a stream that is silent for longer is dead, whatever TCP believes.
const SILENCE_MAX: Duration = Duration::from_mins(1);
/// An event carries at most a whole run or one line of 64 KiB; more is not our server.
const FRAME_BYTES_MAX: usize = 256 * 1024 * 1024;

/// One event as it travelled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) id: Option<String>,
    /// `message` where the server named none.
    pub(crate) event: String,
    pub(crate) data: String,
}

/// What a stream gave.
#[derive(Debug)]
pub(crate) enum Next {
    Frame(Frame),
    /// It ended in order. Asked again, it goes on behind the last event: a coordinator that
    /// stops ends its streams in order too.
    End,
}

/// A stream of events that reconnects by itself, for ever, once it had been there.
pub(crate) struct EventStream {
    client: Client,
    path: String,
    last_id: Option<String>,
    body: Option<BoxStream<'static, Result<Bytes, String>>>,
    parser: Parser,
    ready: VecDeque<Frame>,
    was_there: bool,
    failures: u32,
}

impl EventStream {
    pub(crate) fn new(client: Client, path: String) -> Self {
        Self {
            client,
            path,
            last_id: None,
            body: None,
            parser: Parser::default(),
            ready: VecDeque::new(),
            was_there: false,
            failures: 0,
        }
    }

    /// Only what comes behind an event of this id.
    #[must_use]
    pub(crate) fn behind(mut self, id: Option<String>) -> Self {
        self.last_id = id;
        self
    }

    /// The next event. An error is final: the first try found nobody, or the server refuses.
    pub(crate) async fn next(&mut self) -> Result<Next, ClientError> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                self.last_id = frame.id.clone().or(self.last_id.take());
                self.failures = 0;
                return Ok(Next::Frame(frame));
            }
            let Some(body) = &mut self.body else {
                self.connect().await?;
                continue;
            };
            let piece = timeout(SILENCE_MAX, body.next()).await;
            match piece.unwrap_or_else(|_| Some(Err("it was silent for too long".to_owned()))) {
                Some(Ok(piece)) => self.ready.extend(self.parser.push(&piece)),
                Some(Err(reason)) => {
                    tracing::debug!(reason, "a stream broke off");
                    self.body = None;
                    self.failures += 1;
                }
                None => {
                    self.body = None;
                    self.failures += 1;
                    return Ok(Next::End);
                }
            }
        }
    }

    /// Whether the next event is here already: whoever prints may gather until it is not.
    pub(crate) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    async fn connect(&mut self) -> Result<(), ClientError> {
        if self.failures > 0 {
            tokio::time::sleep(backoff(self.failures)).await;
        }
        let mut request = Request::get(self.path.clone()).header(ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(id) = self.last_id.as_deref().and_then(|id| HeaderValue::from_str(id).ok()) {
            request = request.header(HeaderName::from_static("last-event-id"), id);
        }
        match self.client.send(request).await {
            Ok(answer) => {
                // What was cut off in the middle is sent again.
                self.parser = Parser::default();
                self.was_there = true;
                self.body = Some(answer.body);
                Ok(())
            }
            Err(error) if self.was_there && error.is_transient() => {
                tracing::debug!(%error, "a stream could not be resumed yet");
                self.failures += 1;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// Doubles with each failure, up to the cap.
fn backoff(failures: u32) -> Duration {
    BACKOFF_FIRST.saturating_mul(1 << failures.min(16).saturating_sub(1)).min(BACKOFF_MAX)
}

/// Cuts bytes into events, wherever the network had cut them.
#[derive(Debug, Default)]
struct Parser {
    line: Vec<u8>,
    after_return: bool,
    frame: Frame,
    has_data: bool,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) -> Vec<Frame> {
        let mut frames = Vec::new();
        for &byte in bytes {
            // A line ends in \n, \r or \r\n.
            let second_half = byte == b'\n' && std::mem::take(&mut self.after_return);
            if second_half {
                continue;
            }
            self.after_return = byte == b'\r';
            if matches!(byte, b'\n' | b'\r') {
                let line = std::mem::take(&mut self.line);
                frames.extend(self.line(&line));
            } else if self.line.len() < FRAME_BYTES_MAX {
                self.line.push(byte);
            }
        }
        frames
    }

    fn line(&mut self, line: &[u8]) -> Option<Frame> {
        if line.is_empty() {
            let mut frame = std::mem::take(&mut self.frame);
            if frame.event.is_empty() {
                "message".clone_into(&mut frame.event);
            }
            return std::mem::take(&mut self.has_data).then_some(frame);
        }
        let text = String::from_utf8_lossy(line);
        let (field, value) = text.split_once(':').unwrap_or((&text, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if self.has_data {
                    self.frame.data.push('\n');
                }
                self.has_data = true;
                self.frame.data.push_str(value);
            }
            "event" => value.clone_into(&mut self.frame.event),
            "id" => self.frame.id = Some(value.to_owned()),
            // Comments (an empty field) keep the connection alive; `retry` is ours to decide.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] =
        b": hello\n\nid: 7\nevent: step\ndata: {\"a\":1}\n\ndata: one\r\ndata:two\r\n\r\nid: 9\n\nevent: run\rdata\r\r";

    fn expected() -> Vec<Frame> {
        let frame = |id: Option<&str>, event: &str, data: &str| Frame {
            id: id.map(str::to_owned),
            event: event.to_owned(),
            data: data.to_owned(),
        };
        vec![frame(Some("7"), "step", "{\"a\":1}"), frame(None, "message", "one\ntwo"), frame(None, "run", "")]
    }

    #[test]
    fn events_arrive_whole_wherever_the_bytes_were_cut() {
        for size in 1..=STREAM.len() {
            let mut parser = Parser::default();
            let frames: Vec<Frame> = STREAM.chunks(size).flat_map(|piece| parser.push(piece)).collect();
            assert_eq!(frames, expected(), "pieces of {size} bytes");
        }
    }

    #[test]
    fn the_backoff_grows_to_its_cap_and_stays() {
        assert_eq!(backoff(1), BACKOFF_FIRST);
        assert_eq!(backoff(2), BACKOFF_FIRST * 2);
        assert_eq!(backoff(100), BACKOFF_MAX);
    }

    mod resumed {
        use std::sync::{Arc, Mutex};

        use axum::Router;
        use axum::body::Body;
        use axum::http::HeaderMap;
        use axum::routing::get;
        use futures_util::stream;

        use super::super::*;
        use crate::transport::Transport;

        /// Two events a connection, then it breaks off (the first time) or ends (after that).
        fn serve(headers: &HeaderMap, asked: &Mutex<Vec<Option<String>>>) -> Body {
            let last = headers.get("last-event-id").map(|id| id.to_str().unwrap().to_owned());
            asked.lock().unwrap().push(last.clone());
            let from: u64 = last.map_or(0, |id| id.parse().unwrap());
            let event = |n: u64| Ok::<_, std::io::Error>(Bytes::from(format!("id: {n}\ndata: {n}\n\n")));
            let mut pieces = vec![event(from + 1), event(from + 2)];
            if from == 0 {
                pieces.push(Ok(Bytes::from_static(b"id: 3\ndata: cut in the mid")));
                pieces.push(Err(std::io::Error::other("the connection was lost")));
            }
            Body::from_stream(stream::iter(pieces))
        }

        #[tokio::test]
        async fn behind_the_last_whole_event_without_loss_or_repeat() {
            let asked = Arc::new(Mutex::new(Vec::new()));
            let seen = Arc::clone(&asked);
            let router = Router::new().route("/events", get(async move |headers: HeaderMap| serve(&headers, &seen)));
            let client = Client::new(Transport::Local(router));
            let mut events = EventStream::new(client, "/events".to_owned());
            let mut data = Vec::new();
            while let Next::Frame(frame) = events.next().await.unwrap() {
                data.push(frame.data);
            }
            assert_eq!(data, ["1", "2", "3", "4"]);
            assert_eq!(*asked.lock().unwrap(), [None, Some("2".to_owned())]);
        }
    }
}
