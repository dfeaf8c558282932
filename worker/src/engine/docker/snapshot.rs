//! Snapshots: images named `longshore/…`, committed from containers in which nothing runs.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bollard::models::{ContainerConfig, ImageConfig};
use bollard::query_parameters::{
    CommitContainerOptionsBuilder, ListImagesOptionsBuilder, RemoveImageOptionsBuilder, TagImageOptionsBuilder,
};
use longshore_protocol::SnapshotId;
use tokio::time::Instant;

use super::super::{Committed, ContainerName, EngineError};
use super::{DockerEngine, QUESTION, errors, flatten, supervised};

/// About 6 ms a MB and 50 ms, measured: ten minutes are some hundred GB, and a disk that is slower than that
/// shall not hold a slot for longer.
const COMMIT: Duration = Duration::from_mins(10);

/// Removing an image removes its layers from the disk.
const REMOVE: Duration = Duration::from_mins(2);

/// The name of a snapshot that was removed while a container still used it: it hides it from everybody, and
/// says that the last container's end is the image's as well. No snapshot can be called so.
const LEFTOVER: &str = "longshore-removed";

/// Whoever removes a container takes leftovers' names away meanwhile, also this one while it is not the image's only
/// name yet (seen with tests side by side). That it happens so often in a row is not to be expected.
const HIDING_TRIES: u32 = 5;

/// How often the Engine is asked for leftovers that this process knows nothing of: another worker's beside it, which
/// also asks. Not for each container that goes: a listing of 400 images took 0.3 s of a busy Engine.
const LEFTOVERS_EVERY: Duration = Duration::from_mins(1);

/// What the Engine gives a process whose image sets no PATH.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) async fn commit(
    engine: &DockerEngine,
    container: &ContainerName,
    snapshot: &SnapshotId,
) -> Result<Committed, EngineError> {
    let refused = |status, reason: String| EngineError::Refused { operation: "commit", status, reason };
    let inspected = engine.inspect(container).await?;
    let running = match supervised::runs(engine, container).await {
        Some(runs) => runs?,
        None => inspected.state.and_then(|state| state.running) == Some(true),
    };
    if running {
        return Err(refused(400, format!("{container} still runs")));
    }
    let parent_id = inspected.image.unwrap_or_default();
    let parent = engine.inspect_image(&parent_id).await?.ok_or_else(|| EngineError::NoImage {
        reference: parent_id.clone(),
        reason: format!("the image of {container} is gone"),
    })?;
    let name =
        snapshot.as_str().rsplit_once(':').ok_or_else(|| refused(400, format!("{snapshot} is no snapshot's name")))?;
    let replaced = engine.inspect_image(snapshot.as_str()).await?.and_then(|image| image.id);

    let flat = flatten::needed(&parent);
    let made = if flat {
        flatten::commit(engine, container, &parent, name).await
    } else {
        let own = parent.config.clone().unwrap_or_default();
        let config = put_back(own, &inspected.config.unwrap_or_default());
        call_commit(engine, container.as_str(), config, name).await.map_err(|error| errors::gone(error, container))
    };
    let made = made?;

    if let Some(replaced) = replaced.filter(|replaced| *replaced != made) {
        // The name went over to the new image; without one, nobody would ever remove the old.
        if let Err(error) = remove_if_unnamed(engine, &replaced).await {
            tracing::warn!(%snapshot, image = replaced, %error, "the snapshot that was replaced is still here");
        }
    }
    let size = engine.inspect_image(&made).await.ok().flatten().and_then(|image| image.size);
    // A flat one shares nothing with its parent: all of it was written.
    let before = if flat { Some(0) } else { parent.size };
    let bytes = size.zip(before).map(|(all, before)| u64::try_from(all - before).unwrap_or(0));
    Ok(Committed { bytes })
}

/// The call itself; answers with the image's id.
pub(super) async fn call_commit(
    engine: &DockerEngine,
    container: &str,
    config: ContainerConfig,
    (repository, tag): (&str, &str),
) -> Result<String, EngineError> {
    let options = CommitContainerOptionsBuilder::new().container(container).repo(repository).tag(tag);
    // Nothing that writes runs in it: no process at all, or none but a supervisor that waits for its next command, whose
    // only files are its socket and itself, both in a mount. Freezing it would cost 10 ms and stop its answering.
    let options = options.pause(false).build();
    let call = engine.client().commit_container(options, config);
    engine.limited("commit", COMMIT, call).await.map(|made| made.id)
}

/// The configuration with which a commit gives back the image's own.
///
/// The Engine merges what is sent with what the *container* was created with: an empty field takes the
/// container's, and maps and environments are united. So every field says what it must become.
pub(super) fn put_back(image: ImageConfig, container: &ContainerConfig) -> ContainerConfig {
    let own = |image: Option<String>, container: Option<&String>, neutral: &str| {
        let image = image.filter(|value| !value.is_empty());
        // "None" cannot be sent where the container has one: what has the same effect stands for it.
        image.or_else(|| container.filter(|value| !value.is_empty()).map(|_| neutral.to_owned()))
    };
    ContainerConfig {
        user: own(image.user, container.user.as_ref(), "0"),
        working_dir: own(image.working_dir, container.working_dir.as_ref(), "/"),
        env: Some(environment(image.env.unwrap_or_default(), container.env.as_deref().unwrap_or_default())),
        // An empty list stays empty; none at all would take the container's, which is the step's command.
        entrypoint: Some(image.entrypoint.unwrap_or_default()),
        cmd: image.cmd,
        healthcheck: image.healthcheck,
        exposed_ports: image.exposed_ports,
        volumes: image.volumes,
        labels: image.labels,
        on_build: image.on_build,
        shell: image.shell,
        stop_signal: image.stop_signal,
        ..Default::default()
    }
}

/// The image's environment, and every name that the step added *without a value*: this keeps the merge from
/// adding name and value, and means "not set" to every Engine that starts a container of it.
fn environment(image: Vec<String>, container: &[String]) -> Vec<String> {
    let name_of = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let known: HashSet<String> = image.iter().map(|entry| name_of(entry)).collect();
    let added = container.iter().map(|entry| name_of(entry)).filter(|name| !known.contains(name));
    // Not setting PATH would take the Engine's default from the next step too.
    let added = added.map(|name| if name == "PATH" { DEFAULT_PATH.to_owned() } else { name });
    let added: Vec<String> = added.collect();
    image.into_iter().chain(added).collect()
}

pub(super) async fn list(engine: &DockerEngine) -> Result<Vec<SnapshotId>, EngineError> {
    let filters = HashMap::from([("reference", vec!["longshore/*"])]);
    let options = ListImagesOptionsBuilder::new().filters(&filters).build();
    let mut found = engine.limited("list images", QUESTION, engine.client().list_images(Some(options))).await?;
    found.sort_by_key(|image| std::cmp::Reverse(image.created));
    let tags = found.into_iter().flat_map(|image| image.repo_tags);
    Ok(tags.filter(|tag| is_snapshot(tag)).map(SnapshotId).collect())
}

/// Whether a name has one of the forms of [`SnapshotId`]: `longshore/cache:<hash>`, or `longshore/<owner>:<execution>-
/// <attempt>`. What somebody else called `longshore/…` is not ours to report or remove.
fn is_snapshot(tag: &str) -> bool {
    let Some((repository, version)) = tag.strip_prefix("longshore/").and_then(|rest| rest.rsplit_once(':')) else {
        return false;
    };
    let is_hex = |text: &str, len| text.len() == len && text.bytes().all(|b| b.is_ascii_hexdigit());
    let ephemeral = version.split_once('-').is_some_and(|(id, n)| is_hex(id, 32) && n.parse::<u32>().is_ok());
    !repository.contains('/') && (ephemeral || repository == "cache" && is_hex(version, 40))
}

/// Removes the name, and the image with it unless something still needs that.
pub(super) async fn remove(engine: &DockerEngine, snapshot: &SnapshotId) -> Result<(), EngineError> {
    for _ in 0..HIDING_TRIES {
        match remove_image(engine, snapshot.as_str()).await {
            // The container may have ended before the other name was there to be found.
            Ok(_) => return remove_leftovers(engine).await,
            Err(EngineError::Refused { status: 409, .. }) => {} // a container uses it
            Err(error) => return Err(error),
        }
        let image = engine.inspect_image(snapshot.as_str()).await?;
        let Some(id) = image.and_then(|image| image.id) else { return Ok(()) };
        // Now it is one name of two, which the Engine gives up without asking who uses the image.
        name_leftover(engine, &id).await?;
    }
    remove_image(engine, snapshot.as_str()).await?;
    remove_leftovers(engine).await
}

/// The removed snapshots that something still needed when they were last tried: each was given a name by
/// [`name_leftover`].
#[derive(Default)]
pub(super) struct Leftovers(Mutex<Known>);

#[derive(Default)]
struct Known {
    names: BTreeSet<String>,
    listed: Option<Instant>,
}

impl Leftovers {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is time to ask the Engine; whoever is told so does.
    fn is_listing_due(&self) -> bool {
        let mut known = self.known();
        let due = known.listed.is_none_or(|listed| listed.elapsed() >= LEFTOVERS_EVERY);
        if due {
            known.listed = Some(Instant::now());
        }
        due
    }
}

/// Gives an image the name by which the end of its last container finds it.
async fn name_leftover(engine: &DockerEngine, image_id: &str) -> Result<(), EngineError> {
    let tag = image_id.trim_start_matches("sha256:");
    let options = TagImageOptionsBuilder::new().repo(LEFTOVER).tag(tag).build();
    match engine.limited("tag", QUESTION, engine.client().tag_image(image_id, Some(options))).await {
        Ok(()) => {
            engine.shared.leftovers.known().names.insert(format!("{LEFTOVER}:{tag}"));
            Ok(())
        }
        // Gone between the two calls: the container has ended.
        Err(EngineError::Refused { status: 404, .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes the removed snapshots that nothing needs any more. Called when a container or a snapshot has gone: either
/// may have been the last that needed one. Those whose worker died before it came here are found by a listing, the
/// first of each process and one a minute.
pub(super) async fn remove_leftovers(engine: &DockerEngine) -> Result<(), EngineError> {
    let leftovers = &engine.shared.leftovers;
    if leftovers.is_listing_due() {
        let filters = HashMap::from([("reference", vec![LEFTOVER])]);
        let options = ListImagesOptionsBuilder::new().filters(&filters).build();
        let found = engine.limited("list images", QUESTION, engine.client().list_images(Some(options))).await?;
        leftovers.known().names.extend(found.into_iter().flat_map(|image| image.repo_tags));
    }
    let names = leftovers.known().names.clone();
    for name in names {
        match remove_image(engine, &name).await {
            Ok(_) => drop(leftovers.known().names.remove(&name)),
            Err(EngineError::Refused { status: 409, .. }) => {} // still in use
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn remove_if_unnamed(engine: &DockerEngine, image_id: &str) -> Result<(), EngineError> {
    let Some(image) = engine.inspect_image(image_id).await? else { return Ok(()) };
    if image.repo_tags.is_some_and(|tags| !tags.is_empty()) {
        return Ok(());
    }
    match remove_image(engine, image_id).await {
        Err(EngineError::Refused { status: 409, .. }) => name_leftover(engine, image_id).await, // in use
        other => other.map(drop),
    }
}

/// Whether there was one. Parents without a name go with it.
pub(super) async fn remove_image(engine: &DockerEngine, reference: &str) -> Result<bool, EngineError> {
    let options = RemoveImageOptionsBuilder::new().force(false).noprune(false).build();
    match engine.limited("remove image", REMOVE, engine.client().remove_image(reference, Some(options), None)).await {
        Ok(_) => Ok(true),
        Err(EngineError::Refused { status: 404, .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_step_set_is_named_without_its_value() {
        let image = vec!["PATH=/usr/bin".to_owned(), "A=1".to_owned()];
        let step = ["PATH=/evil".to_owned(), "A=2".to_owned(), "TOKEN=secret".to_owned()];
        assert_eq!(environment(image.clone(), &step), ["PATH=/usr/bin", "A=1", "TOKEN"]);
        assert_eq!(environment(Vec::new(), &["PATH=/x".to_owned()]), [DEFAULT_PATH]);
        // A second commit in a chain changes nothing more.
        assert_eq!(environment(vec!["TOKEN".to_owned()], &["TOKEN=again".to_owned()]), ["TOKEN"]);
    }

    #[test]
    fn only_names_of_our_form_are_snapshots() {
        let cached = SnapshotId::cached("default", "key");
        let ephemeral = format!("longshore/w-1:{}-12", "0a".repeat(16));
        assert!(is_snapshot(cached.as_str()) && is_snapshot(&ephemeral));
        for other in ["longshore/base:bookworm", "longshore/w-1:latest", "alpine:latest", "longshore/cache:v1"] {
            assert!(!is_snapshot(other), "{other}");
        }
    }

    #[test]
    fn what_the_image_has_not_is_sent_as_its_equal() {
        let container =
            ContainerConfig { user: Some("me".into()), working_dir: Some("/w".into()), ..Default::default() };
        let sent = put_back(ImageConfig::default(), &container);
        assert_eq!((sent.user.as_deref(), sent.working_dir.as_deref()), (Some("0"), Some("/")));
        assert_eq!((sent.entrypoint, sent.cmd), (Some(Vec::new()), None));
        let sent = put_back(ImageConfig::default(), &ContainerConfig::default());
        assert_eq!((sent.user, sent.working_dir), (None, None));
    }
}
