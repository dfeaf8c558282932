//! An Engine without Docker, for tests and benches: the same answers, in the same classes of error, in no time.
//!
//! Containers have files (in memory), commands are interpreted ([`shell`] lists the language), snapshots copy the
//! files. It passes the contract suite that Docker passes. Time is tokio's, so a paused clock works. Its registry has
//! every image, but those whose repository ends in `missing`. Faults are asked for: [`FakeEngine::fail_next`],
//! [`FakeEngine::crash`].

mod files;
mod parser;
mod shell;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use longshore_protocol::{EngineId, SnapshotId};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use self::files::Files;
use self::shell::{Ended, Process};
use super::injected::{self, InjectError, Owner, Placement};
use super::{
    Committed, ContainerName, ContainerSpec, Engine, EngineError, EngineInfo, Exit, ImageId, OUTPUT_PIECES_MAX, Running,
};

/// See the [module](self). Clones are the same Engine.
#[derive(Clone, Debug)]
pub struct FakeEngine {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    id: String,
    /// Grows with everything that is made: ids and the order of snapshots follow from it.
    made: u64,
    pulls: u64,
    images: BTreeMap<String, Image>,
    /// Reference to image id, with the number of its making.
    tags: BTreeMap<String, (String, u64)>,
    containers: BTreeMap<ContainerName, Container>,
    faults: HashMap<&'static str, VecDeque<EngineError>>,
    /// Cancelled by a crash and made anew: everything that runs watches the one that it was started under.
    alive: CancellationToken,
}

#[derive(Clone, Debug)]
struct Image {
    files: Files,
}

#[derive(Debug)]
struct Container {
    spec: ContainerSpec,
    base: Image,
    files: Arc<Mutex<Files>>,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Created,
    Started {
        term: watch::Sender<bool>,
        kill: CancellationToken,
        /// Turns true when nothing runs any more.
        ended: watch::Receiver<bool>,
    },
}

impl Default for FakeEngine {
    fn default() -> Self {
        Self::new("fake")
    }
}

impl FakeEngine {
    /// An empty Engine with this id.
    pub fn new(id: impl Into<String>) -> Self {
        let state = State {
            id: id.into(),
            made: 0,
            pulls: 0,
            images: BTreeMap::new(),
            tags: BTreeMap::new(),
            containers: BTreeMap::new(),
            faults: HashMap::new(),
            alive: CancellationToken::new(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// The next call of this method (by its name in [`Engine`]) fails so and changes nothing; faults for one
    /// method come in the order of their asking. `exit` is the next answer of a [`Running::exit`].
    pub fn fail_next(&self, operation: &'static str, error: EngineError) {
        self.lock().faults.entry(operation).or_default().push_back(error);
    }

    /// Everything that runs ends, and its exit is [`EngineError::Unreachable`]: what a daemon that dies does. The
    /// containers stay, and it answers again at once.
    pub fn crash(&self) {
        std::mem::take(&mut self.lock().alive).cancel();
    }

    /// How many images were pulled.
    pub fn pulls(&self) -> u64 {
        self.lock().pulls
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the fault that waits for this operation.
    fn enter(&self, operation: &'static str) -> Result<MutexGuard<'_, State>, EngineError> {
        let mut state = self.lock();
        match state.faults.get_mut(operation).and_then(VecDeque::pop_front) {
            Some(fault) => Err(fault),
            None => Ok(state),
        }
    }

    /// What ends a started container, and tells of its end; `None` if it does not run.
    fn running(&self, name: &ContainerName) -> Option<(watch::Sender<bool>, CancellationToken, watch::Receiver<bool>)> {
        match &self.lock().containers.get(name)?.phase {
            Phase::Started { term, kill, ended } if !*ended.borrow() => {
                Some((term.clone(), kill.clone(), ended.clone()))
            }
            _ => None,
        }
    }
}

impl State {
    fn container(&self, name: &ContainerName) -> Result<&Container, EngineError> {
        self.containers.get(name).ok_or_else(|| gone(name))
    }

    fn image(&self, reference: &str) -> Option<&Image> {
        let id = self.tags.get(reference).map_or(reference, |(id, _)| id);
        self.images.get(id)
    }

    fn next_id(&mut self) -> String {
        self.made += 1;
        format!("sha256:{}", blake3::hash(format!("{}/{}", self.id, self.made).as_bytes()).to_hex())
    }
}

fn gone(name: &ContainerName) -> EngineError {
    EngineError::Gone { name: name.to_string() }
}

fn lock(files: &Mutex<Files>) -> MutexGuard<'_, Files> {
    files.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine for FakeEngine {
    async fn info(&self) -> Result<EngineInfo, EngineError> {
        let state = self.enter("info")?;
        Ok(EngineInfo {
            id: EngineId(state.id.clone()),
            version: "fake".to_owned(),
            api_version: "1.41".to_owned(),
            storage_driver: "memory".to_owned(),
            data_root: "/".to_owned(),
        })
    }

    async fn ensure_image(&self, reference: &str) -> Result<ImageId, EngineError> {
        let mut state = self.enter("ensure_image")?;
        let no_image =
            |reason: &str| EngineError::NoImage { reference: reference.to_owned(), reason: reason.to_owned() };
        if reference.starts_with("sha256:") {
            let here = state.images.contains_key(reference);
            return here.then(|| ImageId(reference.to_owned())).ok_or_else(|| no_image("no image of this id is here"));
        }
        let tagged = reference.rfind('/').map_or(reference, |slash| &reference[slash..]).contains(':');
        let key = if tagged { reference.to_owned() } else { format!("{reference}:latest") };
        if let Some((id, _)) = state.tags.get(&key) {
            return Ok(ImageId(id.clone()));
        }
        let repository = key.rsplit_once(':').map_or("", |(repository, _)| repository);
        if repository.ends_with("missing") || repository.starts_with("longshore/") {
            return Err(no_image("manifest unknown"));
        }
        let id = state.next_id();
        let made = state.made;
        let mut files = Files::default();
        for dir in ["bin", "dev", "etc", "root", "tmp"] {
            files.make_dirs(dir);
        }
        state.images.insert(id.clone(), Image { files });
        state.tags.insert(key, (id.clone(), made));
        state.pulls += 1;
        Ok(ImageId(id))
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<(), EngineError> {
        let mut state = self.enter("create")?;
        if spec.argv.is_empty() {
            return Err(EngineError::CannotStart { reason: "an empty command".to_owned(), exit: None });
        }
        let no_image = || EngineError::NoImage { reference: spec.image.clone(), reason: "it is not here".to_owned() };
        let base = state.image(&spec.image).ok_or_else(no_image)?.clone();
        if state.containers.contains_key(&spec.name) {
            return Err(EngineError::Exists { name: spec.name.to_string() });
        }
        let files = Arc::new(Mutex::new(base.files.clone()));
        let container = Container { spec: spec.clone(), base, files, phase: Phase::Created };
        state.containers.insert(spec.name.clone(), container);
        Ok(())
    }

    async fn inject(
        &self,
        container: &ContainerName,
        target: &str,
        mut tar: impl AsyncRead + Send + Unpin + 'static,
    ) -> Result<(), EngineError> {
        let files = self.enter("inject")?.container(container)?.files.clone();
        let refused = |reason| EngineError::Refused { operation: "inject", status: 400, reason };
        let target = injected::target_path(target).map_err(refused)?;
        let mut bytes = Vec::new();
        let read = tar.read_to_end(&mut bytes).await;
        read.map_err(|error| EngineError::Input { reason: error.to_string() })?;
        let placement = Placement { missing: vec![target.clone()], target, owner: Owner { uid: 0, gid: 0 } };
        let missing = placement.missing.iter().filter(|path| !path.as_os_str().is_empty()).cloned().collect();
        let mut rewritten = Vec::new();
        let answer = injected::rewrite(bytes.as_slice(), &mut rewritten, &Placement { missing, ..placement });
        match answer.and_then(|()| lock(&files).unpack(&rewritten).map_err(InjectError::Output)) {
            Ok(()) => Ok(()),
            Err(error @ InjectError::Refused { .. }) => Err(refused(error.to_string())),
            Err(InjectError::Input(error)) => Err(EngineError::Input { reason: error.to_string() }),
            Err(error) => Err(EngineError::Refused { operation: "inject", status: 500, reason: error.to_string() }),
        }
    }

    async fn start(&self, name: &ContainerName) -> Result<Running, EngineError> {
        let mut state = self.enter("start")?;
        let alive = state.alive.clone();
        let fault = state.faults.get_mut("exit").and_then(VecDeque::pop_front);
        let container = state.containers.get_mut(name).ok_or_else(|| gone(name))?;
        if matches!(container.phase, Phase::Started { .. }) {
            let reason = format!("{name} was started before");
            return Err(EngineError::Refused { operation: "start", status: 409, reason });
        }
        let (term, term_rx) = watch::channel(false);
        let (ended_tx, ended) = watch::channel(false);
        let (output_tx, output) = mpsc::channel::<(_, Bytes)>(OUTPUT_PIECES_MAX);
        let (exit_tx, exit) = oneshot::channel();
        let kill = CancellationToken::new();
        let process = Process::new(&container.spec, container.files.clone(), output_tx, term_rx, kill.clone())?;
        container.phase = Phase::Started { term, kill, ended };
        drop(state);
        tokio::spawn(async move {
            let crashed =
                || EngineError::Unreachable { address: "fake".to_owned(), reason: "the Engine died".to_owned() };
            let answer = tokio::select! {
                biased;
                () = alive.cancelled() => Err(crashed()),
                ended = process.run() => Ok(match ended {
                    Ended::Exited(code) => Exit { code, oom_killed: false },
                    Ended::Killed => Exit { code: 128 + 9, oom_killed: false },
                    Ended::OomKilled => Exit { code: 128 + 9, oom_killed: true },
                }),
            };
            ended_tx.send_replace(true);
            // The caller may have let go of it.
            let _ = exit_tx.send(fault.map_or(answer, Err));
        });
        Ok(Running { output, exit })
    }

    async fn stop(&self, container: &ContainerName, grace: Duration) -> Result<(), EngineError> {
        drop(self.enter("stop")?);
        let Some((term, kill, mut ended)) = self.running(container) else { return Ok(()) };
        if !grace.is_zero() {
            term.send_replace(true);
            if tokio::time::timeout(grace, ended.wait_for(|ended| *ended)).await.is_ok() {
                return Ok(());
            }
        }
        kill.cancel();
        // An error means that the sender is gone, and the process with it.
        let _ = ended.wait_for(|ended| *ended).await;
        Ok(())
    }

    async fn commit(&self, name: &ContainerName, snapshot: &SnapshotId) -> Result<Committed, EngineError> {
        let mut state = self.enter("commit")?;
        let container = state.container(name)?;
        if matches!(&container.phase, Phase::Started { ended, .. } if !*ended.borrow()) {
            let reason = format!("{name} still runs");
            return Err(EngineError::Refused { operation: "commit", status: 400, reason });
        }
        let files = lock(&container.files).clone();
        let bytes = files.bytes_beyond(&container.base.files);
        let id = state.next_id();
        let made = state.made;
        state.images.insert(id.clone(), Image { files });
        let replaced = state.tags.insert(snapshot.as_str().to_owned(), (id, made));
        if let Some((id, _)) = replaced {
            state.images.remove(&id);
        }
        Ok(Committed { bytes: Some(bytes) })
    }

    async fn snapshot_exists(&self, snapshot: &SnapshotId) -> Result<bool, EngineError> {
        Ok(self.enter("snapshot_exists")?.tags.contains_key(snapshot.as_str()))
    }

    async fn snapshots(&self) -> Result<Vec<SnapshotId>, EngineError> {
        let state = self.enter("snapshots")?;
        let snapshots = state.tags.iter().filter(|(tag, _)| tag.starts_with("longshore/"));
        let mut snapshots: Vec<_> = snapshots.map(|(tag, (_, made))| (*made, SnapshotId(tag.clone()))).collect();
        snapshots.sort_by_key(|(made, _)| std::cmp::Reverse(*made));
        Ok(snapshots.into_iter().map(|(_, snapshot)| snapshot).collect())
    }

    async fn remove_snapshot(&self, snapshot: &SnapshotId) -> Result<(), EngineError> {
        let mut state = self.enter("remove_snapshot")?;
        if let Some((id, _)) = state.tags.remove(snapshot.as_str()) {
            state.images.remove(&id); // its containers hold their own
        }
        Ok(())
    }

    async fn destroy(&self, container: &ContainerName) -> Result<(), EngineError> {
        drop(self.enter("destroy")?);
        if let Some((_, kill, mut ended)) = self.running(container) {
            kill.cancel();
            // An error means that the sender is gone, and the process with it.
            let _ = ended.wait_for(|ended| *ended).await;
        }
        self.lock().containers.remove(container);
        Ok(())
    }

    async fn containers(&self) -> Result<Vec<ContainerName>, EngineError> {
        Ok(self.enter("containers")?.containers.keys().cloned().collect())
    }
}
