//! What a test may do to a fake Engine that nobody does to a real one.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use longshore_protocol::job::Resources;
use longshore_protocol::process::watch;

use super::container::{Image, Phase};
use super::files::{Files, Node};
use super::{FakeEngine, State, gone};
use crate::engine::{ContainerName, EngineError};

/// What waits for the calls of one method (by its name in [`Engine`](crate::engine::Engine)).
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) errors: HashMap<&'static str, VecDeque<EngineError>>,
    pub(super) unfit: VecDeque<String>,
    pub(super) calls: HashMap<&'static str, u64>,
    pub(super) holds: HashMap<&'static str, Gate>,
    pub(super) durations: HashMap<&'static str, Duration>,
}

/// The calls that came to it, and whether they may pass.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate {
    came: watch::Sender<u64>,
    open: watch::Sender<bool>,
}

impl Gate {
    pub(super) async fn pass(&self) {
        self.came.send_modify(|came| *came += 1);
        // It cannot be closed: this holds the sender.
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }
}

/// Calls of one method wait until this is dropped.
#[derive(Debug)]
pub struct Hold {
    engine: FakeEngine,
    operation: &'static str,
    gate: Gate,
}

impl Hold {
    /// Waits until a call waits here.
    pub async fn reached(&self) {
        let _ = self.gate.came.subscribe().wait_for(|came| *came > 0).await;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.engine.lock().faults.holds.remove(self.operation);
        self.gate.open.send_replace(true);
    }
}

impl FakeEngine {
    /// The same Engine in the hands of another process.
    #[must_use]
    pub fn another(&self) -> Self {
        Self { cut: Arc::default(), ..self.clone() }
    }

    /// The process that holds this handle is killed: no call of it, or of its clones, does or answers anything any more.
    /// A runtime that ends is not enough of a kill: what waits for a thread of it is told that it failed, and acts on
    /// that in its last moment.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }

    /// The next call of this method (by its name in [`Engine`](crate::engine::Engine)) fails so and changes nothing;
    /// faults for one method come in the order of their asking. `exit` is the next answer of a
    /// [`Running::exit`](crate::engine::Running::exit).
    pub fn fail_next(&self, operation: &'static str, error: EngineError) {
        self.lock().faults.errors.entry(operation).or_default().push_back(error);
    }

    /// The next [`clean`](crate::engine::Engine::clean) finds something that it cannot take away.
    pub fn unfit_next(&self, because: impl Into<String>) {
        self.lock().faults.unfit.push_back(because.into());
    }

    /// From now on calls of this method wait, until the answer is dropped.
    #[must_use]
    pub fn hold(&self, operation: &'static str) -> Hold {
        let gate = Gate::default();
        self.lock().faults.holds.insert(operation, gate.clone());
        Hold { engine: self.clone(), operation, gate }
    }

    /// No fault that was asked for strikes any more.
    pub fn heal(&self) {
        let faults = &mut self.lock().faults;
        faults.errors.clear();
        faults.unfit.clear();
    }

    /// From now on each call of this method takes so long, in tokio's time.
    pub fn takes(&self, operation: &'static str, duration: Duration) {
        self.lock().faults.durations.insert(operation, duration);
    }

    /// How often this method was called.
    pub fn calls(&self, operation: &str) -> u64 {
        self.lock().faults.calls.get(operation).copied().unwrap_or(0)
    }

    /// Everything that runs ends, supervisors included, and every exit is [`EngineError::Unreachable`]: what a daemon
    /// that dies without `live-restore` does. The containers stay, and it answers again at once.
    pub fn crash(&self) {
        let mut state = self.lock();
        let state = &mut *state;
        for container in state.containers.values_mut() {
            if container.running().is_some() || !container.direct {
                let died = EngineError::Unreachable { address: "fake".into(), reason: "the Engine died".into() };
                container.die(died);
            }
        }
    }

    /// A container ends as if somebody had killed it from outside, parked or not.
    pub fn kill(&self, name: &ContainerName) {
        if let Some(container) = self.lock().containers.get_mut(name) {
            container.die(gone(name));
        }
    }

    /// Waits until a container's command has ended.
    pub async fn ended(&self, name: &ContainerName) {
        let run = self.running(name);
        if let Some(run) = run {
            run.over().await;
        }
    }

    /// So much time passes for a container's command, ended or not, in no time.
    pub fn pass(&self, name: &ContainerName, time: Duration) {
        if let Some(Phase::Command(run)) = self.lock().containers.get(name).map(|container| &container.phase) {
            run.skip(time);
        }
    }

    /// Commands that `await` this flag go on, also those to come.
    pub fn raise(&self, flag: &str) {
        let flags = self.lock().flags.clone();
        flags.send_modify(|flags| {
            flags.insert(flag.to_owned());
        });
    }

    /// From now on no supervisor works here.
    pub fn refuse_supervisors(&self, because: impl Into<String>) {
        self.lock().no_supervisors = Some(because.into());
    }

    /// How many images were pulled.
    pub fn pulls(&self) -> u64 {
        self.lock().pulls
    }

    /// The limits of a container, if it is here.
    pub fn limits(&self, name: &ContainerName) -> Option<Resources> {
        self.lock().containers.get(name).map(|container| container.spec.resources)
    }

    /// Whether a container is here in which a command, or a supervisor, runs.
    pub fn is_alive(&self, name: &ContainerName) -> bool {
        let state = self.lock();
        let alive = |container: &super::container::Container| match container.phase {
            Phase::Dead => false,
            _ => !container.direct || container.running().is_some(),
        };
        state.containers.get(name).is_some_and(alive)
    }

    /// The attempts whose commands run.
    pub fn commands(&self) -> Vec<String> {
        let state = self.lock();
        state.containers.values().filter_map(|container| Some(container.running()?.attempt.clone())).collect()
    }

    /// An image with these files (path and content) and declared VOLUMEs: it need not be pulled.
    pub fn add_image(&self, reference: &str, files: &[(&str, &str)], volumes: &[&str]) {
        let mut state = self.lock();
        let mut image = Image { files: State::root_files(), volumes: Vec::new() };
        for (path, content) in files {
            let path = Files::resolve("", path);
            image.files.make_dirs(path.rsplit_once('/').map_or("", |(parent, _)| parent));
            image.files.put(path, Node::File(content.to_string().into()));
        }
        image.volumes = volumes.iter().map(|path| Files::resolve("", path)).collect();
        state.add_image(reference.to_owned(), image);
    }
}
