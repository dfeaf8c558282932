//! What only the leader can do, asked of one that stands by: it is passed on, so that any address of a fleet is as good
//! as another.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderName, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::{ApiError, ApiState, BODY_BYTES_MAX};

/// A request that was passed on stays where it came to: two that each take the other for the leader would pass it to and
/// fro.
const PASSED_ON: HeaderName = HeaderName::from_static("x-longshore-passed-on");

/// Of the request's headers: who asks, and what the body is.
const KEPT: [HeaderName; 2] = [AUTHORIZATION, CONTENT_TYPE];

/// A leader on a working network is there at once.
const CONNECT: Duration = Duration::from_secs(2);

/// Two leases of the epoch (P21): a leader that says nothing for so long is none. It waits for its own lead for 5 s.
const ANSWER: Duration = Duration::from_secs(10);

/// Passes requests on to whoever leads.
#[derive(Clone, Debug)]
pub(crate) struct Passing {
    client: reqwest::Client,
    /// Our own address: what the store says of whoever leads may be what we said before.
    own: String,
}

impl Passing {
    /// For a coordinator that is reached at `own`.
    pub(crate) fn new(own: String) -> Self {
        // Within a site, and to whoever the store names: neither a proxy's business nor another's.
        let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        let client = client.connect_timeout(CONNECT).build().expect("no TLS to set up");
        Self { client, own }
    }

    /// Whether that is our own address.
    pub(super) fn is_own(&self, leader: &str) -> bool {
        self.own == leader
    }
}

/// Behind the question who asks: nobody without a token has a body read here. Whoever leads asks again.
pub(super) async fn pass_on(State(state): State<Arc<ApiState>>, request: Request, next: Next) -> Response {
    let wanted = request.method() == Method::POST || request.uri().path() == "/v1/workers";
    if !wanted || request.headers().contains_key(PASSED_ON) {
        return next.run(request).await;
    }
    let Some((passing, leader)) = state.leader_elsewhere().await else { return next.run(request).await };
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_BYTES_MAX).await else {
        return ApiError::TooLarge(format!("a request has at most {BODY_BYTES_MAX} bytes")).into_response();
    };
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut passed = passing.client.request(parts.method.clone(), format!("{}{path}", leader.trim_end_matches('/')));
    for name in KEPT {
        if let Some(value) = parts.headers.get(&name) {
            passed = passed.header(name, value);
        }
    }
    let passed = passed.header(PASSED_ON, "1").body(body.clone());
    match tokio::time::timeout(ANSWER, passed.send()).await {
        Ok(Ok(answer)) => answered(answer),
        // Nobody is there any more: we may be the next to lead, which the request then waits for.
        Ok(Err(error)) if error.is_connect() => {
            tracing::warn!(leader, %error, "the coordinator that leads cannot be reached");
            next.run(Request::from_parts(parts, Body::from(body))).await
        }
        // It may have been carried out.
        Ok(Err(error)) => unheard(&leader, &error.to_string()),
        Err(_) => unheard(&leader, "no answer in time"),
    }
}

/// For whoever runs the fleet: a wrong `--advertise`, or a firewall between coordinators.
fn unheard(leader: &str, reason: &str) -> Response {
    tracing::warn!(leader, reason, "a request could not be passed on to the coordinator that leads");
    ApiError::NotLeading.into_response()
}

fn answered(answer: reqwest::Response) -> Response {
    let mut response = Response::builder().status(answer.status());
    if let Some(kind) = answer.headers().get(CONTENT_TYPE) {
        response = response.header(CONTENT_TYPE, kind);
    }
    response.body(Body::from_stream(answer.bytes_stream())).expect("a status and a header of an answer's")
}
