//! A snapshot as one layer: the container's whole tree, instead of one layer more on all those below it.
//!
//! overlay2 stops at 125 layers. Before a chain of commits comes there, its next snapshot is made flat:
//! `export → a sieve → import`, one stream in constant memory that touches no disk but the Engine's; then a container of
//! the imported image, never started, is committed, because a commit can give an image every part of a configuration
//! and an import cannot (`docs/decisions/flatten.md`).

mod sieve;

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::errors::Error as ClientError;
use bollard::models::{ContainerCreateBody, ContainerInspectResponse, ImageInspect};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, InspectContainerOptionsBuilder,
    ListContainersOptionsBuilder, ListImagesOptionsBuilder,
};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, Stream, StreamExt, TryStreamExt};
use longshore_protocol::WorkerId;

use self::sieve::{Entry, Sieve, SieveError};
use super::super::{ContainerName, EngineError};
use super::{DockerEngine, QUESTION, errors, snapshot, stop};
use longshore_protocol::process::blocking;

/// How many layers a snapshot has at most. overlay2's own bound is 125, other drivers' are no lower, and a user's
/// image built on a snapshot may want some.
const LAYERS_MAX: usize = 100;

/// A tree of 100 GB at the 75 MB a second that an export makes.
const FLATTEN: Duration = Duration::from_mins(30);

/// What of a tree an import needs besides its files: directories, and the Engine's own list of all of it.
const ROOM_EXTRA: u64 = 8;

/// Whether a commit on this image would make one that is too deep.
pub(super) fn needed(image: &ImageInspect) -> bool {
    let layers = image.root_fs.as_ref().and_then(|root| root.layers.as_ref()).map_or(0, Vec::len);
    layers + 1 > LAYERS_MAX
}

/// Commits a container as one layer. On an error nothing of it is left that [`sweep`] would not find.
pub(super) async fn commit(
    engine: &DockerEngine,
    container: &ContainerName,
    image: &ImageInspect,
    (repository, tag): (&str, &str),
) -> Result<String, EngineError> {
    let names = Names::of(container);
    tracing::info!(%container, snapshot = %format_args!("{repository}:{tag}"), "flattening");
    // What an earlier try left that could not remove it.
    names.remove(engine).await?;
    let made = async {
        let created = room(engine, container).await?;
        import(engine, container, &names, image, created).await?;
        names.create(engine).await?;
        let inspected = engine.limited("inspect", QUESTION, engine.client().inspect_container(&names.container, None));
        let config = inspected.await?.config.unwrap_or_default();
        let config = snapshot::put_back(image.config.clone().unwrap_or_default(), &config);
        snapshot::call_commit(engine, &names.container, config, (repository, tag)).await
    };
    let made = made.await;
    let removed = names.remove(engine).await;
    match (&made, removed) {
        (Ok(_), Err(error)) => tracing::warn!(%container, %error, "what a snapshot was flattened by is still here"),
        (Err(_), Err(error)) => tracing::info!(%container, %error, "half of a flattened snapshot is still here"),
        (_, Ok(())) => {}
    }
    made
}

/// What is here while a container is flattened. Named so that its worker finds it after a crash.
struct Names {
    container: String,
    repository: String,
    tag: String,
}

impl Names {
    fn of(container: &ContainerName) -> Self {
        let fence = container.as_str().splitn(3, '.').nth(2).unwrap_or_default().replace('.', "-");
        let worker = container.owner();
        Self { container: format!("{}{fence}", prefix(&worker)), repository: repository(&worker), tag: fence }
    }

    fn image(&self) -> String {
        format!("{}:{}", self.repository, self.tag)
    }

    /// A container to be committed, and nothing else: it has a command because the Engine asks for one.
    async fn create(&self, engine: &DockerEngine) -> Result<(), EngineError> {
        let body = ContainerCreateBody {
            image: Some(self.image()),
            entrypoint: Some(vec!["never".to_owned()]),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptionsBuilder::new().name(&self.container).build();
        engine.limited("create", QUESTION, engine.client().create_container(Some(options), body)).await.map(drop)
    }

    /// The container, and the imported image's name: the image stays as long as the snapshot, as its parent.
    async fn remove(&self, engine: &DockerEngine) -> Result<(), EngineError> {
        stop::remove(engine, &self.container).await?;
        snapshot::remove_image(engine, &self.image()).await.map(drop)
    }
}

fn prefix(worker: &WorkerId) -> String {
    format!("longshore.{worker}.flat.")
}

fn repository(worker: &WorkerId) -> String {
    // Repository names are lower case; worker ids need not be.
    format!("longshore-flat/{}", worker.as_str().to_ascii_lowercase())
}

/// Removes what a crash left of flattenings by this worker.
pub(super) async fn sweep(engine: &DockerEngine, worker: &WorkerId) -> Result<(), EngineError> {
    let prefix = prefix(worker);
    let filters = HashMap::from([("name", vec![prefix.as_str()])]);
    let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    let found = engine.limited("list containers", QUESTION, engine.client().list_containers(Some(options))).await?;
    for name in found.into_iter().flat_map(|container| container.names.unwrap_or_default()) {
        let name = name.trim_start_matches('/');
        // The filter is a pattern, in which a dot fits anything.
        if name.starts_with(&prefix) {
            stop::remove(engine, name).await?;
        }
    }
    let repository = repository(worker);
    let filters = HashMap::from([("reference", vec![repository.as_str()])]);
    let options = ListImagesOptionsBuilder::new().filters(&filters).build();
    let found = engine.limited("list images", QUESTION, engine.client().list_images(Some(options))).await?;
    for name in found.into_iter().flat_map(|image| image.repo_tags) {
        snapshot::remove_image(engine, &name).await?;
    }
    Ok(())
}

/// Whether the Engine's disk has room for the tree once more, if the disk can be seen from here; and when the container
/// was created, in seconds since the Unix epoch.
async fn room(engine: &DockerEngine, container: &ContainerName) -> Result<u64, EngineError> {
    let options = InspectContainerOptionsBuilder::new().size(true).build();
    let call = engine.client().inspect_container(container.as_str(), Some(options));
    // It counts every file: no question of milliseconds.
    let inspected = engine.limited("size", FLATTEN, call).await.map_err(|error| errors::gone(error, container))?;
    let size = inspected.size_root_fs.and_then(|size| u64::try_from(size).ok()).unwrap_or_default();
    if let Some(free) = free_bytes(&inspected).await
        && free < size + size / ROOM_EXTRA
    {
        let reason = format!("{free} bytes are free, and the flat snapshot of {container} takes {size}");
        return Err(EngineError::DiskFull { reason });
    }
    created(engine, inspected.id.as_deref().unwrap_or(container.as_str())).await
}

/// Free where the container's files lie. `None` if that is not to be seen from here: another host, or a mount
/// namespace of its own.
async fn free_bytes(inspected: &ContainerInspectResponse) -> Option<u64> {
    let upper = inspected.graph_driver.as_ref()?.data.get("UpperDir")?.clone();
    let stat = blocking(move || rustix::fs::statvfs(Path::new(&upper))).await.ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// A listing tells it as a number, an inspection as text.
async fn created(engine: &DockerEngine, id: &str) -> Result<u64, EngineError> {
    let filters = HashMap::from([("id", vec![id])]);
    let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    let found = engine.limited("list containers", QUESTION, engine.client().list_containers(Some(options))).await?;
    let created = found.into_iter().next().and_then(|container| container.created);
    Ok(created.and_then(|created| u64::try_from(created).ok()).unwrap_or(u64::MAX))
}

async fn import(
    engine: &DockerEngine,
    container: &ContainerName,
    names: &Names,
    image: &ImageInspect,
    created: u64,
) -> Result<(), EngineError> {
    let broken = Arc::new(Mutex::new(None));
    let tree = export(engine, container, created, Arc::clone(&broken));
    let options = CreateImageOptionsBuilder::new().from_src("-").repo(&names.repository).tag(&names.tag);
    let options = options.platform(&platform(image)).build();
    let mut progress = engine.client().create_image(Some(options), Some(bollard::body_try_stream(tree)), None);
    let importing = async {
        while progress.try_next().await?.is_some() {}
        Ok(())
    };
    let imported = engine.limited("flatten", FLATTEN, importing).await;
    // What broke the tree off is the reason; that the Engine did not like its end is the consequence.
    let broken = broken.lock().unwrap_or_else(PoisonError::into_inner).take();
    broken.map_or(imported, Err)
}

fn platform(image: &ImageInspect) -> String {
    let parts = [&image.os, &image.architecture, &image.variant];
    let parts: Vec<&str> =
        parts.into_iter().filter_map(|part| part.as_deref()).filter(|part| !part.is_empty()).collect();
    parts.join("/")
}

/// The container's tree as a tar, without what the Engine lays into every container. An error is put into `broken`, and
/// breaks the stream.
fn export(
    engine: &DockerEngine,
    container: &ContainerName,
    created: u64,
    broken: Arc<Mutex<Option<EngineError>>>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let address = engine.shared.address.clone();
    let tree = engine.client().export_container(container.as_str()).boxed();
    let sieve = Sieve::new(move |entry: Entry<'_>| is_engines_own(&entry, created));
    let next = |mut passing: Passing<_>| async move {
        let answer = passing.next().await;
        match answer {
            Ok(piece) => Ok(piece.map(|piece| (piece, passing))),
            Err(error) => {
                passing.broken.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                Err(io::Error::other("the export broke off"))
            }
        }
    };
    stream::try_unfold(Passing { tree, sieve, address, broken }, next)
}

struct Passing<F> {
    tree: BoxStream<'static, Result<Bytes, ClientError>>,
    sieve: Sieve<F>,
    address: String,
    broken: Arc<Mutex<Option<EngineError>>>,
}

impl<F: FnMut(Entry<'_>) -> bool> Passing<F> {
    /// The next piece that is not empty; `None` at the end of a whole tar.
    async fn next(&mut self) -> Result<Option<Bytes>, EngineError> {
        let bad_tar = |error: SieveError| EngineError::Refused {
            operation: "export",
            status: 500,
            reason: format!("what the Engine exported is not a whole tar: {error}"),
        };
        while let Some(piece) = self.tree.next().await {
            let piece = piece.map_err(|error| errors::from_client(&self.address, "export", error))?;
            let passed = self.sieve.pass(piece).map_err(bad_tar)?;
            if !passed.is_empty() {
                return Ok(Some(passed.freeze()));
            }
        }
        // An Engine that fails in the middle ends its answer like a whole one.
        self.sieve.finish().map_err(bad_tar).map(|()| None)
    }
}

/// Whether the Engine laid this into the container when it made it, below the mounts that every container has: a commit
/// does not have it. What an image or a step laid there looks otherwise, or is older than the container.
fn is_engines_own(entry: &Entry<'_>, created: u64) -> bool {
    let form = match entry.path {
        b".dockerenv" | b"dev/console" | b"etc/hostname" | b"etc/hosts" | b"etc/resolv.conf" => {
            entry.kind == b'0' && entry.size == 0 && entry.mode == 0o755
        }
        b"etc/mtab" => entry.kind == b'2' && entry.link == b"/proc/mounts",
        b"dev/pts" | b"dev/shm" => entry.kind == b'5' && entry.mode == 0o755,
        _ => false,
    };
    form && entry.mtime >= created
}

#[cfg(test)]
mod tests {
    use bollard::models::ImageInspectRootFs;

    use super::*;

    #[test]
    fn only_what_the_engine_made_with_the_container_is_its_own() {
        let file = Entry { path: b"etc/hosts", kind: b'0', size: 0, link: b"", mode: 0o755, mtime: 100 };
        assert!(is_engines_own(&file, 100));
        assert!(!is_engines_own(&file, 101), "older than the container: the image's");
        assert!(!is_engines_own(&Entry { size: 1, ..file }, 100));
        assert!(!is_engines_own(&Entry { mode: 0o644, ..file }, 100));
        assert!(!is_engines_own(&Entry { path: b"etc/passwd", ..file }, 100));
        let link = Entry { path: b"etc/mtab", kind: b'2', link: b"/proc/mounts", ..file };
        assert!(is_engines_own(&link, 100) && !is_engines_own(&Entry { link: b"../proc/mounts", ..link }, 100));
        let dir = Entry { path: b"dev/shm", kind: b'5', ..file };
        assert!(is_engines_own(&dir, 100) && !is_engines_own(&Entry { path: b"dev", ..dir }, 100));
    }

    #[test]
    fn a_commit_that_would_make_too_many_layers_is_flat() {
        let of = |layers: usize| ImageInspect {
            root_fs: Some(ImageInspectRootFs { typ: "layers".to_owned(), layers: Some(vec![String::new(); layers]) }),
            ..ImageInspect::default()
        };
        assert!(!needed(&ImageInspect::default()) && !needed(&of(LAYERS_MAX - 1)));
        assert!(needed(&of(LAYERS_MAX)) && needed(&of(120)));
    }

    #[test]
    fn half_of_a_flattening_is_found_by_its_workers_name() {
        let container = ContainerName::parse("longshore.W-1.0123456789abcdef0123456789abcdef.7").unwrap();
        let names = Names::of(&container);
        assert_eq!(names.container, "longshore.W-1.flat.0123456789abcdef0123456789abcdef-7");
        assert!(names.container.starts_with(&prefix(&container.owner())));
        assert!(ContainerName::parse(&names.container).is_none(), "it is no attempt's");
        assert_eq!(names.image(), "longshore-flat/w-1:0123456789abcdef0123456789abcdef-7");
    }
}
