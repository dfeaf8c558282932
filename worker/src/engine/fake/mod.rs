//! An Engine without Docker, for tests and benches: the same answers, in the same classes of error, in no time.
//!
//! Containers have files (in memory), commands are interpreted ([`shell`] lists the language), snapshots copy the
//! files. It passes the contract suite that Docker passes. Its registry has every image, but those whose repository
//! ends in `missing`.
//!
//! Its machine is the runtime that it was made in: commands and their supervisors run there, in that runtime's time
//! (so a paused clock works), and survive whoever started them. A worker that dies is one whose own runtime ends:
//! what it had begun with [`Engine::begin`] is orphaned then (P17), and its next incarnation may adopt it (P10).
//! `faults` has what a test may ask for beyond the trait.

mod container;
mod faults;
mod files;
mod machine;
mod parser;
mod programs;
mod run;
mod shell;
mod state;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longshore_protocol::job::Resources;
use longshore_protocol::output::Offsets;
use longshore_protocol::{EngineId, SnapshotId};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::runtime::Handle;

use self::container::{Container, Image, Phase, lock};
pub use self::faults::Hold;
use self::run::Run;
use self::shell::Process;
use self::state::{OnDuty, State};
use super::injected::{self, InjectError, Owner, Placement};
use super::{
    Adopted, Cleaned, CommandSpec, Committed, ContainerName, ContainerSpec, Created, Duty, Engine, EngineError,
    EngineInfo, ImageId, Running, Way,
};
use crate::clock::Boot;

/// See the [module](self). Clones are the same Engine, in the hands of the same process.
#[derive(Clone, Debug)]
pub struct FakeEngine {
    state: Arc<Mutex<State>>,
    /// `None` if it was made outside of any runtime: then commands run where they are started.
    machine: Option<Handle>,
    /// Whether whoever holds this handle is dead.
    cut: Arc<AtomicBool>,
}

impl Default for FakeEngine {
    fn default() -> Self {
        Self::new("fake")
    }
}

impl FakeEngine {
    /// An empty Engine with this id.
    pub fn new(id: impl Into<String>) -> Self {
        let state = State { id: id.into(), ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), machine: Handle::try_current().ok(), cut: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what waits for the calls of this operation.
    async fn enter(&self, operation: &'static str) -> Result<MutexGuard<'_, State>, EngineError> {
        #[cfg(feature = "simulated")]
        if let Some(process) = longshore_protocol::process::simulated::current() {
            process.point().await;
        }
        if self.cut.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let (gate, duration) = {
            let faults = &mut self.lock().faults;
            *faults.calls.entry(operation).or_default() += 1;
            (faults.holds.get(operation).cloned(), faults.durations.get(operation).copied())
        };
        if let Some(gate) = gate {
            gate.pass().await;
        }
        if let Some(duration) = duration {
            tokio::time::sleep(duration).await;
        }
        let mut state = self.lock();
        match state.faults.errors.get_mut(operation).and_then(VecDeque::pop_front) {
            Some(fault) => Err(fault),
            None => Ok(state),
        }
    }

    /// A container's command, if something of it runs.
    fn running(&self, name: &ContainerName) -> Option<Arc<Run>> {
        self.lock().containers.get(name)?.running().cloned()
    }
}

fn gone(name: &ContainerName) -> EngineError {
    EngineError::Gone { name: name.to_string() }
}

fn conflict(operation: &'static str, reason: String) -> EngineError {
    EngineError::Refused { operation, status: 409, reason }
}

impl Engine for FakeEngine {
    async fn info(&self) -> Result<EngineInfo, EngineError> {
        let state = self.enter("info").await?;
        Ok(EngineInfo {
            id: EngineId::from(state.id.clone()),
            version: "fake".to_owned(),
            api_version: "1.41".to_owned(),
            storage_driver: "memory".to_owned(),
            data_root: "/".to_owned(),
        })
    }

    async fn begin(&self, duty: Duty) -> Result<(), EngineError> {
        let mut state = self.enter("begin").await?;
        state.made += 1;
        let (worker, incarnation) = (duty.worker.clone(), state.made);
        self.watch_over(&duty, incarnation);
        let way = match (&state.no_supervisors, duty.direct) {
            (Some(because), _) => Way::Direct { because: because.clone() },
            (None, true) => Way::Direct { because: "it was asked for".to_owned() },
            (None, false) => Way::Supervised,
        };
        state.way.send_replace(Some(way));
        state.duties.insert(worker, OnDuty { duty, incarnation });
        Ok(())
    }

    async fn way(&self) -> Result<Way, EngineError> {
        let mut way = self.enter("way").await?.way.subscribe();
        let way = way.wait_for(Option::is_some).await.ok().and_then(|way| way.clone());
        way.ok_or_else(|| EngineError::Unreachable { address: "fake".into(), reason: "it was dropped".into() })
    }

    async fn end(&self) {
        // Nothing is kept here; a fault that waits for it strikes nobody.
        drop(self.enter("end").await);
    }

    async fn ensure_image(&self, reference: &str) -> Result<ImageId, EngineError> {
        let mut state = self.enter("ensure_image").await?;
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
        state.pulls += 1;
        let image = Image { files: State::root_files(), volumes: Vec::new() };
        Ok(ImageId(state.add_image(key, image)))
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<Created, EngineError> {
        let mut state = self.enter("create").await?;
        if spec.command.argv.is_empty() {
            return Err(EngineError::CannotStart { reason: "an empty command".to_owned(), exit: None });
        }
        let no_image = || EngineError::NoImage { reference: spec.image.clone(), reason: "it is not here".to_owned() };
        let base = state.image(&spec.image).ok_or_else(no_image)?.clone();
        if state.containers.contains_key(&spec.name) {
            return Err(EngineError::Exists { name: spec.name.to_string() });
        }
        let owner = spec.name.owner();
        let direct = state.no_supervisors.is_some() || state.duties.get(&owner).is_some_and(|on| on.duty.direct);
        let volumes = base.volumes.iter().map(|path| format!("/{path}")).collect();
        let container = Container::new(spec.clone(), base, direct, state.incarnation(&owner));
        state.containers.insert(spec.name.clone(), container);
        Ok(Created { volumes })
    }

    async fn inject(
        &self,
        container: &ContainerName,
        _user: Option<&str>, // files have no owners here
        target: &str,
        mut tar: impl AsyncRead + Send + Unpin + 'static,
    ) -> Result<(), EngineError> {
        let files = {
            let mut state = self.enter("inject").await?;
            let found = state.container(container)?;
            if found.running().is_some() {
                return Err(conflict("inject", format!("a command runs in {container}")));
            }
            Arc::clone(&found.files)
        };
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

    async fn start(&self, name: &ContainerName, command: &CommandSpec) -> Result<Running, EngineError> {
        let mut state = self.enter("start").await?;
        let fault = state.faults.errors.get_mut("exit").and_then(VecDeque::pop_front);
        let flags = state.flags.subscribe();
        let container = state.container(name)?;
        match container.phase {
            Phase::Idle => {}
            Phase::Dead => return Err(gone(name)),
            Phase::Command(_) | Phase::Unfit => {
                return Err(conflict("start", format!("{name} was started before, and not cleaned")));
            }
        }
        if command.lease.is_some_and(|lease| container.direct || lease.term_at() <= Boot::now()) {
            return Err(conflict("start", format!("nobody could keep the lease of a command in {name}")));
        }
        let command = if container.direct { container.spec.command.clone() } else { command.clone() };
        let run = Run::new(command.attempt.clone(), container.direct, command.lease);
        let process = Process::new(&command, container.direct, Arc::clone(&container.files), Arc::clone(&run), flags)?;
        container.phase = Phase::Command(Arc::clone(&run));
        drop(state);
        let running = run.link(Offsets::default(), fault);
        self.carry_out(name, &command, &run, process);
        Ok(running)
    }

    async fn extend(&self, name: &ContainerName, dead_by: Boot) -> Result<(), EngineError> {
        let mut state = self.enter("extend").await?;
        if let Phase::Command(run) = &state.supervised(name, "extend")?.phase {
            run.extend(dead_by);
        }
        Ok(())
    }

    async fn stop(&self, container: &ContainerName, grace: Duration) -> Result<(), EngineError> {
        drop(self.enter("stop").await?);
        let Some(run) = self.running(container) else { return Ok(()) };
        if !grace.is_zero() {
            run.term.send_replace(true);
            if tokio::time::timeout(grace, run.over()).await.is_ok() {
                return Ok(());
            }
        }
        run.kill.cancel();
        run.over().await;
        Ok(())
    }

    async fn clean(&self, name: &ContainerName) -> Result<Cleaned, EngineError> {
        let mut state = self.enter("clean").await?;
        let fault = state.faults.unfit.pop_front();
        let container = state.supervised(name, "clean")?;
        if container.running().is_some() {
            return Err(conflict("clean", format!("a command runs in {name}")));
        }
        container.clean();
        let filled = container.filled_volume().map(|path| format!("its image has files in the VOLUME /{path}"));
        if let Some(because) = fault.or(filled) {
            container.phase = Phase::Unfit;
            return Ok(Cleaned::Unfit { because });
        }
        container.phase = Phase::Idle;
        Ok(Cleaned::Ready)
    }

    async fn fit(&self, name: &ContainerName, resources: &Resources) -> Result<(), EngineError> {
        let mut state = self.enter("fit").await?;
        let container = state.supervised(name, "fit")?;
        container.spec.resources = *resources;
        container.show_limits();
        Ok(())
    }

    async fn adopt(&self, name: &ContainerName, have: Offsets) -> Result<Adopted, EngineError> {
        let mut state = self.enter("adopt").await?;
        let fault = state.faults.errors.get_mut("exit").and_then(VecDeque::pop_front);
        let incarnation = state.incarnation(&name.owner());
        let container = state.supervised(name, "adopt")?;
        let adopted = match &container.phase {
            Phase::Idle => Adopted::Idle,
            Phase::Command(run) if run.reaches_back_to(have) => {
                let (attempt, ran) = (run.attempt.clone(), run.ran());
                Adopted::Command { attempt, ran, running: run.link(have, fault) }
            }
            Phase::Command(_) => {
                return Err(conflict("adopt", format!("the output of {name} is not here from {have:?} on")));
            }
            Phase::Unfit => return Err(conflict("adopt", format!("{name} is not fit for another command"))),
            Phase::Dead => return Err(gone(name)),
        };
        container.incarnation = incarnation;
        Ok(adopted)
    }

    async fn commit(&self, name: &ContainerName, snapshot: &SnapshotId) -> Result<Committed, EngineError> {
        let mut state = self.enter("commit").await?;
        let container = state.container(name)?;
        if container.running().is_some() {
            let reason = format!("{name} still runs");
            return Err(EngineError::Refused { operation: "commit", status: 400, reason });
        }
        let files = container.handed_on();
        let bytes = files.bytes_beyond(&container.base.files);
        let image = Image { files, volumes: container.base.volumes.clone() };
        state.add_image(snapshot.as_str().to_owned(), image);
        Ok(Committed { bytes: Some(bytes) })
    }

    async fn snapshot_exists(&self, snapshot: &SnapshotId) -> Result<bool, EngineError> {
        Ok(self.enter("snapshot_exists").await?.tags.contains_key(snapshot.as_str()))
    }

    async fn snapshots(&self) -> Result<Vec<SnapshotId>, EngineError> {
        let state = self.enter("snapshots").await?;
        let snapshots = state.tags.iter().filter(|(tag, _)| tag.starts_with("longshore/"));
        let mut snapshots: Vec<_> = snapshots.map(|(tag, (_, made))| (*made, SnapshotId(tag.clone()))).collect();
        snapshots.sort_by_key(|(made, _)| std::cmp::Reverse(*made));
        Ok(snapshots.into_iter().map(|(_, snapshot)| snapshot).collect())
    }

    async fn remove_snapshot(&self, snapshot: &SnapshotId) -> Result<(), EngineError> {
        let mut state = self.enter("remove_snapshot").await?;
        if let Some((id, _)) = state.tags.remove(snapshot.as_str()) {
            state.images.remove(&id); // its containers hold their own
        }
        Ok(())
    }

    async fn destroy(&self, container: &ContainerName) -> Result<(), EngineError> {
        drop(self.enter("destroy").await?);
        if let Some(run) = self.running(container) {
            run.kill.cancel();
            run.over().await;
        }
        self.lock().containers.remove(container);
        Ok(())
    }

    async fn containers(&self) -> Result<Vec<ContainerName>, EngineError> {
        Ok(self.enter("containers").await?.containers.keys().cloned().collect())
    }
}
