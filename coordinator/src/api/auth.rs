//! Who asks: a bearer token, each of a tenant.

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::Response;

use super::{ApiError, ApiState};

/// Whom a run is charged to where no tokens are set.
const DEFAULT_TENANT: &str = "default";

/// Whom the asker's runs are charged to.
#[derive(Clone, Debug)]
pub(super) struct Tenant(pub(super) String);

/// Lets through whoever shows a token, and notes the tenant.
pub(super) async fn check(
    State(state): State<ApiState>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let tenant = if state.tokens.is_empty() {
        DEFAULT_TENANT.to_owned()
    } else {
        let token = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(bearer);
        token.and_then(|token| state.tokens.tenant(token)).ok_or(ApiError::Unauthorized)?.to_owned()
    };
    request.extensions_mut().insert(Tenant(tenant));
    Ok(next.run(request).await)
}

/// The scheme's name is read in any case (RFC 9110, 11.1).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}
