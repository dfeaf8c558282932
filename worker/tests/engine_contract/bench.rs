//! An Engine and an owner of the test's own: what a test makes is removed at its end.

use std::sync::atomic::{AtomicU32, Ordering};

use longshore_protocol::job::{Network, Resources};
use longshore_protocol::output::Stream;
use longshore_protocol::{Attempt, ExecutionId, Fence, RunId, SnapshotId, WorkerId};
use longshore_worker::engine::{ContainerName, ContainerSpec, Engine, EngineError, Exit, Running};
use uuid::Uuid;

/// The image of every test: busybox, with `PATH=/usr/bin:/bin`.
pub const IMAGE: &str = "longshore-test/busybox:latest";

pub struct Bench<E: Engine> {
    pub engine: E,
    owner: WorkerId,
    used: AtomicU32,
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

    pub fn code(&self) -> u8 {
        self.exit.as_ref().unwrap_or_else(|error| panic!("{error}: {self:?}")).code
    }
}

impl<E: Engine> Bench<E> {
    pub fn new(engine: E) -> Self {
        let owner = format!("Test-{}", Uuid::new_v4().simple()).parse().unwrap();
        Self { engine, owner, used: AtomicU32::new(0) }
    }

    pub fn fence(&self) -> Fence {
        let used = self.used.fetch_add(1, Ordering::Relaxed).to_string();
        let execution = ExecutionId::of_step(RunId::new(), &used.as_str().into());
        Fence { execution, attempt: Attempt::FIRST, owner: self.owner.clone() }
    }

    pub fn snapshot(&self) -> SnapshotId {
        SnapshotId::ephemeral(&self.fence())
    }

    /// A container to be, that runs a script.
    pub fn spec(&self, script: &str) -> ContainerSpec {
        ContainerSpec {
            name: ContainerName::of(&self.fence()),
            image: IMAGE.to_owned(),
            argv: ["/bin/sh", "-e", "-c", script].map(str::to_owned).to_vec(),
            env: Vec::new(),
            workdir: None,
            user: None,
            resources: Resources::default(),
            network: Network::None,
        }
    }

    /// Makes the image exist and the container with it.
    pub async fn create(&self, spec: &ContainerSpec) -> ContainerName {
        if spec.image == IMAGE {
            self.engine.ensure_image(IMAGE).await.unwrap();
        }
        self.engine.create(spec).await.unwrap();
        spec.name.clone()
    }

    /// Creates, starts and reads to the end. The container stays.
    pub async fn run(&self, spec: &ContainerSpec) -> Ran {
        let name = self.create(spec).await;
        read(self.engine.start(&name).await.unwrap()).await
    }

    pub async fn run_script(&self, script: &str) -> Ran {
        self.run(&self.spec(script)).await
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

    pub async fn containers(&self) -> Vec<ContainerName> {
        let all = self.engine.containers().await.unwrap();
        all.into_iter().filter(|name| name.owner() == self.owner).collect()
    }

    pub async fn snapshots(&self) -> Vec<SnapshotId> {
        let prefix = format!("longshore/{}:", self.owner.as_str().to_ascii_lowercase());
        let all = self.engine.snapshots().await.unwrap();
        all.into_iter().filter(|snapshot| snapshot.as_str().starts_with(&prefix)).collect()
    }

    /// Removes what the test made; what is left afterwards fails it.
    pub async fn clean(self) {
        for name in self.containers().await {
            self.engine.destroy(&name).await.unwrap();
        }
        for snapshot in self.snapshots().await {
            self.engine.remove_snapshot(&snapshot).await.unwrap();
        }
        assert_eq!(self.containers().await, []);
        assert_eq!(self.snapshots().await, []);
    }
}

pub async fn read(mut running: Running) -> Ran {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let Some((stream, piece)) = running.output.recv().await {
        assert!(!piece.is_empty() && piece.len() <= 64 * 1024);
        match stream {
            Stream::Stdout => stdout.extend_from_slice(&piece),
            Stream::Stderr => stderr.extend_from_slice(&piece),
        }
    }
    Ran { stdout, stderr, exit: running.exit.await.unwrap() }
}

/// Reads until the command has written this.
pub async fn read_until(running: &mut Running, text: &str) {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(text) {
        let (_, piece) = running.output.recv().await.unwrap_or_else(|| panic!("ended after {seen:?}"));
        seen.extend_from_slice(&piece);
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
