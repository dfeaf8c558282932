//! Two ways to one API: HTTP to a coordinator, or a call of its router in this process.

use std::net::IpAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{BoxStream, StreamExt};
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use tokio::fs::File;
use tokio_util::io::ReaderStream;
use tower::ServiceExt;

/// A TCP connection on a working network is there at once or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A coordinator answers a question at once, a submit after a commit; and waits for its lead for 5 s.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);

/// Longer answers than a run of 10,000 steps with all its attempts are somebody's mistake.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Where requests go.
#[derive(Clone, Debug)]
pub(crate) enum Transport {
    /// A coordinator's HTTP server.
    Http { client: reqwest::Client, base: Url, token: Option<HeaderValue> },
    /// A coordinator's or a past run's router: no port is opened.
    Local(Router),
}

/// One request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// With the query, from `/v1` on.
    pub(crate) path: String,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) payload: Payload,
}

/// What a request carries.
#[derive(Debug)]
pub(crate) enum Payload {
    Nothing,
    Json(Vec<u8>),
    /// Streamed from where the file stands, so many bytes.
    File(File, u64),
}

/// An answer whose body has not been read.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: BoxStream<'static, Result<Bytes, String>>,
}

/// Why there is no coordinator to talk to at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransportError {
    #[error("{url:?} is no address of a coordinator: {reason}")]
    Address { url: String, reason: String },
    #[error("the token holds characters that a header cannot carry")]
    Token,
    #[error("no coordinator answers at {url}: {reason}")]
    Unreachable { url: String, reason: String },
}

impl Request {
    pub(crate) fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), headers: Vec::new(), payload: Payload::Nothing }
    }

    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    #[must_use]
    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    #[must_use]
    pub(crate) fn payload(mut self, payload: Payload) -> Self {
        self.payload = payload;
        self
    }
}

impl Transport {
    /// To a coordinator over HTTP. Nothing is sent yet.
    pub(crate) fn http(address: &str, token: Option<&str>) -> Result<Self, TransportError> {
        let wrong = |reason: String| TransportError::Address { url: without_userinfo(address), reason };
        let base = Url::parse(address).map_err(|error| wrong(error.to_string()))?;
        if !base.username().is_empty() || base.password().is_some() {
            // It would stand in every message, and a coordinator takes a token.
            return Err(wrong(
                "it holds a user or a password; give a token with --token or LONGSHORE_TOKEN".to_owned(),
            ));
        }
        if base.scheme() != "http" {
            return Err(wrong("it must begin with http:// (put TLS into a proxy in front)".to_owned()));
        }
        let token = token.map(bearer).transpose()?;
        let mut builder = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT);
        if is_loopback(&base) {
            // A proxy cannot reach this machine's loopback.
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| wrong(error.to_string()))?;
        Ok(Self::Http { client, base, token })
    }

    /// Sends a request. An answer of any status is an answer.
    pub(crate) async fn send(&self, request: Request) -> Result<Answer, TransportError> {
        match self {
            Self::Http { client, base, token } => send_http(client, base, token.as_ref(), request).await,
            Self::Local(router) => Ok(send_local(router.clone(), request).await),
        }
    }
}

impl Answer {
    /// The whole body.
    pub(crate) async fn bytes(mut self) -> Result<Bytes, String> {
        let mut all = BytesMut::new();
        while let Some(piece) = self.body.next().await {
            all.extend_from_slice(&piece?);
            if all.len() > ANSWER_BYTES_MAX {
                return Err(format!("the answer has more than {ANSWER_BYTES_MAX} bytes"));
            }
        }
        Ok(all.freeze())
    }
}

fn bearer(token: &str) -> Result<HeaderValue, TransportError> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| TransportError::Token)?;
    value.set_sensitive(true);
    Ok(value)
}

/// An address may be no address at all: what stands before an `@` in it is not repeated, whatever it is.
fn without_userinfo(address: &str) -> String {
    match (address.find("://"), address.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}…{}", &address[..scheme + 3], &address[at..]),
        (_, Some(at)) => format!("…{}", &address[at..]),
        (_, None) => address.to_owned(),
    }
}

fn is_loopback(base: &Url) -> bool {
    let host = base.host_str().unwrap_or_default();
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || literal.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

async fn send_http(
    client: &reqwest::Client,
    base: &Url,
    token: Option<&HeaderValue>,
    request: Request,
) -> Result<Answer, TransportError> {
    let unreachable = |reason: String| TransportError::Unreachable { url: base.to_string(), reason };
    let url = format!("{}{}", base.as_str().trim_end_matches('/'), request.path);
    let mut builder = client.request(request.method, url);
    for (name, value) in request.headers {
        builder = builder.header(name, value);
    }
    if let Some(token) = token {
        builder = builder.header(AUTHORIZATION, token.clone());
    }
    let is_upload = matches!(request.payload, Payload::File(..));
    builder = match request.payload {
        Payload::Nothing => builder,
        Payload::Json(json) => builder.header(CONTENT_TYPE, "application/json").body(json),
        Payload::File(file, bytes) => {
            builder.header(CONTENT_LENGTH, bytes).body(reqwest::Body::wrap_stream(ReaderStream::new(file)))
        }
    };
    // An upload takes as long as it takes.
    let response = if is_upload {
        builder.send().await
    } else {
        let answered = tokio::time::timeout(ANSWER_TIMEOUT, builder.send()).await;
        answered.map_err(|_| unreachable(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())))?
    };
    let response = response.map_err(|error| unreachable(innermost(&error)))?;
    let status = response.status();
    let body = response.bytes_stream().map(|piece| piece.map_err(|error| innermost(&error))).boxed();
    Ok(Answer { status, body })
}

async fn send_local(router: Router, request: Request) -> Answer {
    let mut message = axum::http::Request::builder().method(request.method).uri(request.path);
    for (name, value) in request.headers {
        message = message.header(name, value);
    }
    let message = match request.payload {
        Payload::Nothing => message.body(Body::empty()),
        Payload::Json(json) => message.header(CONTENT_TYPE, "application/json").body(Body::from(json)),
        Payload::File(file, bytes) => {
            message.header(CONTENT_LENGTH, bytes).body(Body::from_stream(ReaderStream::new(file)))
        }
    };
    let message = message.expect("our own paths and headers are well formed");
    let response = match router.oneshot(message).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let (parts, body) = response.into_parts();
    let body = body.into_data_stream().map(|piece| piece.map_err(|error| error.to_string())).boxed();
    Answer { status: parts.status, body }
}

/// The cause that says most: `Connection refused`, where the outer ones say that a request failed.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_an_address_is_refused_and_not_repeated() {
        for address in ["http://u:s3cret@host:7420", "https://u:s3cret@host", "u:s3cret@host", "http://u:s3cret@[bad"] {
            let error = Transport::http(address, None).unwrap_err().to_string();
            assert!(!error.contains("s3cret") && error.contains('@'), "{error}");
        }
        assert!(Transport::http("http://[::1]:7420", None).is_ok());
    }
}
