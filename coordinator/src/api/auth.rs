//! Who asks: a bearer token, each of a tenant.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::uri::Authority;
use axum::middleware::Next;
use axum::response::Response;
use longshore_protocol::RunId;

use super::{ApiError, ApiState};
use crate::core::view::RunSummary;

/// Whom a run is charged to where no tokens are set.
const DEFAULT_TENANT: &str = "default";

/// Who asks.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    /// Whom the asker's runs are charged to.
    pub(super) tenant: String,
    /// Where no tokens are set, whoever reaches the API may use all of it.
    sees_all: bool,
}

impl Asker {
    /// The only tenant whose runs are shown; `None` for all.
    pub(super) fn only(&self) -> Option<&str> {
        (!self.sees_all).then_some(self.tenant.as_str())
    }

    fn sees(&self, run: &RunSummary) -> bool {
        self.only().is_none_or(|tenant| tenant == run.tenant)
    }
}

impl ApiState {
    /// A run as the list shows it, and whether it is done. Another tenant's run is one that does not
    /// exist: to be asked before anything else of a run is read or changed.
    pub(super) async fn run_of(&self, asker: &Asker, run: RunId) -> Result<(RunSummary, bool), ApiError> {
        let found = self.store.summary(run).await?;
        found.filter(|(run, _)| asker.sees(run)).ok_or(ApiError::NotFound("run"))
    }
}

/// Lets through whoever shows a token, and notes the tenant.
pub(super) async fn check(
    State(state): State<Arc<ApiState>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let asker = if state.tokens.is_empty() {
        if !names_this_machine(request.headers()) {
            return Err(ApiError::ForeignHost);
        }
        Asker { tenant: DEFAULT_TENANT.to_owned(), sees_all: true }
    } else {
        let token = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(bearer);
        let tenant = token.and_then(|token| state.tokens.tenant(token)).ok_or(ApiError::Unauthorized)?;
        Asker { tenant: tenant.to_owned(), sees_all: false }
    };
    request.extensions_mut().insert(asker);
    Ok(next.run(request).await)
}

/// The scheme's name is read in any case (RFC 9110, 11.1).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// Without a token only loopback is listened on, which a web page in the user's browser reaches as
/// well when its own name is made to resolve to 127.0.0.1: then the name is still in `Host`. An
/// address cannot be rebound, and a call within the process has no such header.
fn names_this_machine(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST) else { return true };
    let Some(authority) = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()) else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rebound_name_is_told_from_this_machine() {
        let names = |host: &'static str| names_this_machine(&[(HOST, host.parse().unwrap())].into_iter().collect());
        for ours in ["localhost", "LocalHost:7420", "127.0.0.1:7420", "[::1]:7420", "10.0.0.1"] {
            assert!(names(ours), "{ours}");
        }
        for foreign in ["evil.example", "evil.example:7420", "localhost.evil.example", "127.0.0.1.evil.example", ""] {
            assert!(!names(foreign), "{foreign}");
        }
        assert!(names_this_machine(&HeaderMap::new()));
    }
}
