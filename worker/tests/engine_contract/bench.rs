//! An Engine and an owner of the test's own: what a test makes is removed at its end.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use longshore_protocol::job::{Network, Resources};
use longshore_protocol::output::{Offsets, Stream};
use longshore_protocol::{Attempt, ExecutionId, Fence, RunId, SnapshotId, WorkerId};
use longshore_worker::engine::{
    Adopted, CommandSpec, ContainerName, ContainerSpec, Created, Duty, Engine, EngineError, Exit, ExitStatus, Running,
};
use tokio::sync::OnceCell;
use uuid::Uuid;

/// The image of most tests: busybox, with `PATH=/usr/bin:/bin`.
pub const IMAGE: &str = "longshore-test/busybox:latest";

/// Longer than any test: whoever waits for its end has failed.
pub const FOR_EVER: Duration = Duration::from_hours(1);

/// Only a test that fails waits so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Files by path, with their content.
pub type Paths = &'static [(&'static str, &'static str)];
pub type Volumes = &'static [&'static str];

pub type Connect<E> = Arc<dyn Fn() -> Later<E> + Send + Sync>;

/// What the tests need of an Engine beyond the trait.
pub struct Kit<E> {
    /// Another handle of the same Engine, as a worker's next incarnation makes it.
    pub connect: Connect<E>,
    /// Makes an image exist with these files and declared VOLUMEs, and answers with its reference.
    pub image: Arc<dyn Fn(Paths, Volumes) -> Later<String> + Send + Sync>,
    /// Whatever is there in a worker's name, by whichever name.
    pub left_of: Arc<dyn Fn(WorkerId) -> Later<Vec<String>> + Send + Sync>,
    /// Whether a supervisor is to be done without.
    pub direct: bool,
}

pub struct Bench<E: Engine> {
    pub engine: E,
    pub duty: Duty,
    kit: Kit<E>,
    begun: OnceCell<()>,
    used: AtomicU32,
    _dir: tempfile::TempDir,
}

/// What a command wrote and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit: Result<Exit, EngineError>,
}

impl Ran {
    pub fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap()
    }

    pub fn status(&self) -> ExitStatus {
        self.exit.as_ref().unwrap_or_else(|error| panic!("{error}: {self:?}")).status
    }

    pub fn code(&self) -> u8 {
        match self.status() {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal(signal) => panic!("ended by signal {signal}: {self:?}"),
        }
    }
}

impl<E: Engine> Bench<E> {
    pub async fn new(kit: Kit<E>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let worker = format!("Test-{}", Uuid::new_v4().simple()).parse().unwrap();
        let orphan = Duration::from_mins(10);
        let duty = Duty { worker, dir: dir.path().to_owned(), namespaces: 1, direct: kit.direct, orphan };
        Self { engine: (kit.connect)().await, duty, kit, begun: OnceCell::new(), used: AtomicU32::new(0), _dir: dir }
    }

    /// Takes up the work on [`Self::engine`], which is then the worker's present incarnation.
    pub async fn begun(&self) -> &E {
        self.begun.get_or_init(async || self.engine.begin(self.duty.clone()).await.unwrap()).await;
        &self.engine
    }

    pub fn fence(&self) -> Fence {
        let used = self.used.fetch_add(1, Ordering::Relaxed).to_string();
        let execution = ExecutionId::of_step(RunId::new(), &used.as_str().into());
        Fence { execution, attempt: Attempt::FIRST, owner: self.duty.worker.clone() }
    }

    pub fn snapshot(&self) -> SnapshotId {
        SnapshotId::ephemeral(&self.fence())
    }

    /// A command to be, that runs a script.
    pub fn command(&self, script: &str) -> CommandSpec {
        CommandSpec {
            attempt: self.fence().to_string(),
            argv: ["/bin/sh", "-e", "-c", script].map(str::to_owned).to_vec(),
            env: Vec::new(),
            workdir: None,
            user: None,
            limit: FOR_EVER,
            lease: None,
        }
    }

    /// A container to be, that runs a script.
    pub fn spec(&self, script: &str) -> ContainerSpec {
        ContainerSpec {
            name: ContainerName::of(&self.fence()),
            image: IMAGE.to_owned(),
            command: self.command(script),
            resources: Resources::default(),
            network: Network::None,
            tenant: "test".to_owned(),
        }
    }

    /// The same, made from something else.
    pub fn spec_on(&self, image: &str, script: &str) -> ContainerSpec {
        ContainerSpec { image: image.to_owned(), ..self.spec(script) }
    }

    /// An image with these files and declared VOLUMEs.
    pub async fn image(&self, files: Paths, volumes: Volumes) -> String {
        (self.kit.image)(files, volumes).await
    }

    /// Makes the image exist and the container with it.
    pub async fn create(&self, spec: &ContainerSpec) -> Created {
        create(self.begun().await, spec).await
    }

    /// Starts the command that the container was made for.
    pub async fn start(&self, spec: &ContainerSpec) -> Running {
        self.engine.start(&spec.name, &spec.command).await.unwrap()
    }

    /// Creates, starts and reads to the end. The container stays.
    pub async fn run(&self, spec: &ContainerSpec) -> Ran {
        self.create(spec).await;
        read(self.start(spec).await).await
    }

    pub async fn run_script(&self, script: &str) -> Ran {
        self.run(&self.spec(script)).await
    }

    /// Runs another script in a container that is ready for it.
    pub async fn run_in(&self, container: &ContainerName, script: &str) -> Ran {
        read(self.engine.start(container, &self.command(script)).await.unwrap()).await
    }

    /// Runs a script on the image and commits what it left.
    pub async fn committed(&self, script: &str) -> SnapshotId {
        let spec = self.spec(script);
        let ran = self.run(&spec).await;
        assert_eq!(ran.code(), 0, "{ran:?}");
        let snapshot = self.snapshot();
        self.engine.commit(&spec.name, &snapshot).await.unwrap();
        self.engine.destroy(&spec.name).await.unwrap();
        snapshot
    }

    /// What a kill looks like here: only a supervisor can tell it from an exit.
    pub fn killed(&self) -> ExitStatus {
        if self.duty.direct { ExitStatus::Code(137) } else { ExitStatus::Signal(9) }
    }

    /// Does something as an incarnation of the worker that is killed right after it: its tasks and its connections end
    /// with it. Not after [`Self::begun`]: a worker has one incarnation at a time.
    pub async fn before_its_death<T, F>(&self, act: impl FnOnce(E) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        assert!(!self.begun.initialized(), "the next incarnation has begun");
        let (connect, duty) = (Arc::clone(&self.kit.connect), self.duty.clone());
        let life = tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let done = runtime.block_on(async {
                let engine = connect().await;
                engine.begin(duty).await.unwrap();
                act(engine).await
            });
            runtime.shutdown_timeout(PATIENCE);
            done
        });
        life.await.unwrap()
    }

    /// Takes up a container again.
    pub async fn adopt(&self, container: &ContainerName, have: Offsets) -> Result<Adopted, EngineError> {
        self.begun().await.adopt(container, have).await
    }

    /// Takes up a container in which this command runs, or ran.
    pub async fn adopt_command(&self, container: &ContainerName, known: &str, have: Offsets) -> (Duration, Running) {
        match self.adopt(container, have).await.unwrap() {
            Adopted::Command { attempt, ran, running } => {
                assert_eq!(attempt, known);
                (ran, running)
            }
            Adopted::Idle => panic!("the command is not known any more"),
        }
    }

    pub async fn containers(&self) -> Vec<ContainerName> {
        let all = self.engine.containers().await.unwrap();
        all.into_iter().filter(|name| name.owner() == self.duty.worker).collect()
    }

    pub async fn snapshots(&self) -> Vec<SnapshotId> {
        let prefix = format!("longshore/{}:", self.duty.worker.as_str().to_ascii_lowercase());
        let all = self.engine.snapshots().await.unwrap();
        all.into_iter().filter(|snapshot| snapshot.as_str().starts_with(&prefix)).collect()
    }

    /// Removes what the test made; what is left afterwards fails it.
    pub async fn clean(self) {
        self.begun().await;
        for name in self.containers().await {
            self.engine.destroy(&name).await.unwrap();
        }
        for snapshot in self.snapshots().await {
            self.engine.remove_snapshot(&snapshot).await.unwrap();
        }
        assert_eq!(self.containers().await, []);
        assert_eq!(self.snapshots().await, []);
        self.engine.end().await;
        assert_eq!((self.kit.left_of)(self.duty.worker.clone()).await, Vec::<String>::new());
    }
}

/// Makes the image exist and the container with it.
pub async fn create<E: Engine>(engine: &E, spec: &ContainerSpec) -> Created {
    if spec.image == IMAGE {
        engine.ensure_image(IMAGE).await.unwrap();
    }
    engine.create(spec).await.unwrap()
}

/// Reads to the end, and acknowledges what was read, as a worker does that spools it.
pub async fn read(mut running: Running) -> Ran {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let Some(piece) = running.output.recv().await {
        assert!(!piece.bytes.is_empty() && piece.bytes.len() <= 64 * 1024);
        running.spooled.send_modify(|spooled| *spooled.of_mut(piece.stream) += piece.bytes.len() as u64);
        match piece.stream {
            Stream::Stdout => stdout.extend_from_slice(&piece.bytes),
            Stream::Stderr => stderr.extend_from_slice(&piece.bytes),
        }
    }
    Ran { stdout, stderr, exit: running.exit.await.unwrap() }
}

/// Reads until the command has written this, and acknowledges nothing of it.
pub async fn read_until(running: &mut Running, text: &str) {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(text) {
        let piece = running.output.recv().await.unwrap_or_else(|| panic!("ended after {seen:?}"));
        seen.extend_from_slice(&piece.bytes);
    }
}

/// A tar of files (a path that ends in `/` is a directory).
pub fn tar_of(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in entries {
        let mut header = tar::Header::new_gnu();
        let dir = path.ends_with('/');
        header.set_entry_type(if dir { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_mode(if dir { 0o750 } else { 0o640 });
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}
