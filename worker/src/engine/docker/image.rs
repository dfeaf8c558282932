//! Makes an image exist here: looked up, and pulled once however many ask.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bollard::models::CreateImageInfo;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::future::{BoxFuture, FutureExt, Shared};
use futures_util::stream::StreamExt;

use super::super::{EngineError, ImageId};
use super::reference::{Reference, is_image_id};
use super::{DockerEngine, credentials, errors};
use crate::gates::Gate;

/// A pull that says nothing for so long is stuck. How long it takes in all depends on the image and the line,
/// but its progress is told several times a second.
const PULL_SILENCE: Duration = Duration::from_mins(5);

/// Everybody who asked for an image while it was on its way gets the same answer, a failure too.
type Pull = Shared<BoxFuture<'static, Result<ImageId, EngineError>>>;

/// A pull of so many bytes takes twice as long as one of none: half a second of questions to a registry, and 70 MB
/// a second, both as measured on the reference machine.
const PULL_BYTES: f64 = 35e6;

/// The pulls under way.
pub(super) struct Pulls {
    /// By written-out reference.
    under_way: Mutex<HashMap<String, Pull>>,
    /// Waiting for it does not count towards a pull's time limit, and nothing that is here waits.
    gate: Gate,
}

impl Default for Pulls {
    fn default() -> Self {
        Self { under_way: Mutex::default(), gate: Gate::pulls() }
    }
}

pub(super) async fn ensure(engine: &DockerEngine, text: &str) -> Result<ImageId, EngineError> {
    let no_image = |reason: String| EngineError::NoImage { reference: text.to_owned(), reason };
    if is_image_id(text) {
        let here = engine.inspect_image(text).await?.and_then(|image| image.id);
        return here
            .map(ImageId)
            .ok_or_else(|| no_image("no image of this id is here, and ids cannot be pulled".into()));
    }
    let reference = Reference::parse(text).map_err(no_image)?;
    if let Some(id) = look_up(engine, &reference).await? {
        return Ok(id);
    }
    // In the user's words, not ours: each caller may have written it differently.
    join_pull(engine, reference).await.map_err(|error| match error {
        EngineError::NoImage { reason, .. } => no_image(reason),
        error => error,
    })
}

async fn look_up(engine: &DockerEngine, reference: &Reference) -> Result<Option<ImageId>, EngineError> {
    Ok(engine.inspect_image(&reference.to_string()).await?.and_then(|image| image.id).map(ImageId))
}

/// Joins the pull of this reference, or begins it.
async fn join_pull(engine: &DockerEngine, reference: Reference) -> Result<ImageId, EngineError> {
    let key = reference.to_string();
    let pull = {
        let mut under_way = engine.shared.pulls.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = || {
            // A task of its own: it goes on when the step that asked first is cancelled.
            let task = tokio::spawn(pull_and_forget(engine.clone(), reference));
            async move { task.await.unwrap_or_else(|error| Err(died(&error))) }.boxed().shared()
        };
        under_way.entry(key).or_insert_with(begin).clone()
    };
    pull.await
}

fn died(error: &tokio::task::JoinError) -> EngineError {
    EngineError::Refused { operation: "pull", status: 500, reason: format!("the pull ended early: {error}") }
}

async fn pull_and_forget(engine: DockerEngine, reference: Reference) -> Result<ImageId, EngineError> {
    let answer = pull_unless_here(&engine, &reference).await;
    let mut under_way = engine.shared.pulls.under_way.lock().unwrap_or_else(PoisonError::into_inner);
    under_way.remove(&reference.to_string());
    answer
}

async fn pull_unless_here(engine: &DockerEngine, reference: &Reference) -> Result<ImageId, EngineError> {
    let permit = engine.shared.pulls.gate.enter().await;
    // An earlier pull may have ended between the caller's look and its joining.
    if let Some(id) = look_up(engine, reference).await? {
        return Ok(id);
    }
    let pulled = pull(engine, reference).await;
    let work = pulled.as_ref().map_or(1.0, |bytes| 1.0 + *bytes as f64 / PULL_BYTES);
    permit.done_work(&pulled, work);
    pulled?;
    look_up(engine, reference).await?.ok_or_else(|| EngineError::Refused {
        operation: "pull",
        status: 500,
        reason: format!("{reference} was pulled and is not here: was it removed in the same moment?"),
    })
}

/// Pulls one tag or digest; answers with how many bytes came. Errors are found inside the answer as well, which began
/// with 200.
async fn pull(engine: &DockerEngine, reference: &Reference) -> Result<u64, EngineError> {
    let found = credentials::find(&engine.shared.config_dir, &reference.registry).await;
    let authenticated = found.is_some();
    let client = match found {
        // The client's own header is in the wrong base64 alphabet for some passwords.
        Some(credentials) => engine.client().clone().with_request_modifier(move |mut request| {
            if let Ok(value) = credentials.header().parse() {
                request.headers_mut().insert("X-Registry-Auth", value);
            }
            request
        }),
        None => engine.client().clone(),
    };
    tracing::info!(image = %reference, authenticated, "pulling");
    let options = CreateImageOptionsBuilder::new().from_image(&reference.name()).tag(reference.version()).build();
    let mut progress = client.create_image(Some(options), None, None);
    let mut layers = HashMap::new();
    loop {
        match tokio::time::timeout(PULL_SILENCE, progress.next()).await {
            Ok(None) => return Ok(layers.values().sum()),
            Ok(Some(Ok(told))) => layers.extend(downloaded(told)),
            Ok(Some(Err(error))) => {
                let error = errors::from_client(&engine.shared.address, "pull", error);
                return Err(classify(error, reference));
            }
            Err(_) => return Err(EngineError::Slow { operation: "pull", limit: PULL_SILENCE }),
        }
    }
}

/// A layer that is on its way, and how big it is as it travels.
fn downloaded(told: CreateImageInfo) -> Option<(String, u64)> {
    let total = told.progress_detail.filter(|_| told.status.as_deref() == Some("Downloading"))?.total?;
    Some((told.id?, u64::try_from(total).ok()?))
}

/// Tells "there is no such image, or not for you" from a registry that has a bad moment. The Engine passes the
/// registry's words on with statuses of its own.
fn classify(error: EngineError, reference: &Reference) -> EngineError {
    let EngineError::Refused { operation, status, reason } = error else { return error };
    let said = reason.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if says(&["toomanyrequests", "too many requests"]) {
        return EngineError::Refused { operation, status: 429, reason };
    }
    let missing = status == 404
        || says(&["manifest unknown", "not found", "does not exist", "no matching manifest", "name unknown"])
        || says(&["unauthorized", "access denied", "denied:", "no basic auth credentials", "authentication required"]);
    if missing {
        EngineError::NoImage { reference: reference.to_string(), reason }
    } else {
        EngineError::Refused { operation, status, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ErrorClass;

    #[test]
    fn a_missing_image_is_told_from_a_registry_in_trouble() {
        let reference = Reference::parse("r.example/a").unwrap();
        let class = |status, reason: &str| {
            let error = EngineError::Refused { operation: "pull", status, reason: reason.to_owned() };
            classify(error, &reference).class()
        };
        assert_eq!(class(404, "manifest for r.example/a:latest not found: manifest unknown"), ErrorClass::Request);
        assert_eq!(class(500, "pull access denied for a, repository does not exist"), ErrorClass::Request);
        assert_eq!(class(500, "Get \"https://r/v2/\": unauthorized: authentication required"), ErrorClass::Request);
        assert_eq!(class(500, "dial tcp 127.0.0.1:1: connect: connection refused"), ErrorClass::Retry);
        assert_eq!(class(500, "toomanyrequests: You have reached your pull rate limit"), ErrorClass::Retry);
    }
}
