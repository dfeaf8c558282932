//! Chains of commits that are longer than overlay2 is deep. These look behind the trait, by a client of their own.

#![allow(clippy::unwrap_used)] // a panic is how a test fails
#![allow(unreachable_pub)] // `services` is written for every test that includes it

#[path = "../../tests/services.rs"]
mod services;

use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;

use bollard::Docker;
use bollard::models::{ContainerConfig, ContainerCreateBody, HealthConfig, ImageConfig};
use bollard::query_parameters::{
    CommitContainerOptionsBuilder, CreateContainerOptionsBuilder, ListContainersOptionsBuilder,
    ListImagesOptionsBuilder, UploadToContainerOptionsBuilder,
};
use futures_util::TryStreamExt;
use longshore_protocol::{Attempt, ExecutionId, Fence, RunId, SnapshotId, WorkerId};
use longshore_worker::engine::docker::DockerEngine;
use longshore_worker::engine::{ContainerName, Engine};
use uuid::Uuid;

const IMAGE: &str = "longshore-test/busybox:latest";

/// What a worker promises: overlay2's own bound is 125.
const DEPTH_MAX: usize = 100;

/// A worker of the test's own, and its Engine seen from both sides.
struct Bench {
    engine: DockerEngine,
    client: Docker,
    worker: WorkerId,
}

async fn address() -> String {
    tokio::task::spawn_blocking(|| services::env("LONGSHORE_TEST_DOCKER_1")).await.unwrap()
}

async fn bench() -> Bench {
    let address = address().await;
    let client = Docker::connect_with_unix(&address, 600, bollard::API_DEFAULT_VERSION).unwrap();
    Bench {
        engine: DockerEngine::connect(Some(&address)).await.unwrap(),
        client: client.negotiate_version().await.unwrap(),
        worker: format!("Flat-{}", Uuid::new_v4().simple()).parse().unwrap(),
    }
}

/// What is made with a container before it is committed.
enum Change<'a> {
    /// It is never started.
    Nothing,
    /// A script is run in it, as root.
    Script(&'a str),
    /// A tar is unpacked at its root.
    Files(Vec<u8>),
}

impl Bench {
    fn fence(&self) -> Fence {
        let execution = ExecutionId::of_step(RunId::new(), &"step".into());
        Fence { execution, attempt: Attempt::FIRST, owner: self.worker.clone() }
    }

    async fn container(&self, image: &str, change: Change<'_>) -> ContainerName {
        let name = ContainerName::of(&self.fence());
        let script = if let Change::Script(script) = change { script } else { "" };
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            entrypoint: Some(["/bin/sh", "-e", "-c", script].map(str::to_owned).to_vec()),
            user: Some("0".to_owned()),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptionsBuilder::new().name(name.as_str()).build();
        self.client.create_container(Some(options), body).await.unwrap();
        match change {
            Change::Nothing => {}
            Change::Files(tar) => {
                let options = UploadToContainerOptionsBuilder::new().path("/").build();
                let body = bollard::body_full(tar.into());
                self.client.upload_to_container(name.as_str(), Some(options), body).await.unwrap();
            }
            Change::Script(_) => {
                self.client.start_container(name.as_str(), None).await.unwrap();
                let ended = self.client.wait_container(name.as_str(), None);
                let ended: Vec<_> = ended.try_collect().await.unwrap_or_else(|error| panic!("{script}: {error}"));
                assert_eq!(ended.first().map(|ended| ended.status_code), Some(0), "{script}");
            }
        }
        name
    }

    /// One link of a chain; its parent is not needed any more.
    async fn link(&self, parent: &str, change: Change<'_>) -> SnapshotId {
        let name = self.container(parent, change).await;
        let snapshot = SnapshotId::ephemeral(&self.fence());
        self.engine.commit(&name, &snapshot).await.unwrap();
        self.engine.destroy(&name).await.unwrap();
        snapshot
    }

    async fn depth(&self, image: &str) -> usize {
        self.client.inspect_image(image).await.unwrap().root_fs.unwrap().layers.unwrap().len()
    }

    async fn config(&self, image: &str) -> ImageConfig {
        let mut config = self.client.inspect_image(image).await.unwrap().config.unwrap();
        // The Engine keeps these as sets, and tells them in any order.
        for set in [&mut config.volumes, &mut config.exposed_ports] {
            set.as_mut().unwrap().sort_unstable();
        }
        config
    }

    /// Everything that can be told of the files that a child of this image would find.
    async fn tree(&self, image: &str) -> BTreeMap<String, String> {
        let name = self.container(image, Change::Nothing).await;
        let tar: Vec<u8> = self
            .client
            .export_container(name.as_str())
            .try_fold(Vec::new(), |mut all, piece| async move {
                all.extend_from_slice(&piece);
                Ok(all)
            })
            .await
            .unwrap();
        self.engine.destroy(&name).await.unwrap();
        let mut tree = BTreeMap::new();
        let mut archive = tar::Archive::new(&tar[..]);
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let header = entry.header().clone();
            // The Engine lays files into every container as it makes it.
            let engines = ["dev/", "etc/", ".dockerenv"].contains(&path.as_str())
                || ["dev/", "etc/mtab", "etc/host", "etc/resolv"].iter().any(|prefix| path.starts_with(prefix));
            // What the scripts write is as old as the test.
            let mtime = header.mtime().unwrap();
            let mtime = if engines || mtime > 1_700_000_000 { "recent".to_owned() } else { mtime.to_string() };
            let link = entry.link_name().unwrap().map(|link| link.display().to_string());
            let extensions = entry.pax_extensions().unwrap().into_iter().flatten().map(|record| {
                let record = record.unwrap();
                format!("{}={:?}", record.key().unwrap(), record.value_bytes())
            });
            // Of a hard link, which of the names is the file and which the link is the order of the tar's.
            let extensions: Vec<String> = extensions.filter(|record| record.starts_with("SCHILY.xattr")).collect();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let told = format!(
                "{:?} {:o} {}:{} {mtime} {link:?} {extensions:?} {}",
                header.entry_type(),
                header.mode().unwrap(),
                header.uid().unwrap(),
                header.gid().unwrap(),
                blake(&content),
            );
            tree.insert(path, told);
        }
        tree
    }

    /// What flattening leaves under any of its names: nothing.
    async fn litter(&self) -> Vec<String> {
        let prefix = format!("longshore.{}.", self.worker);
        let filters = HashMap::from([("name", vec![prefix.as_str()])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let containers = self.client.list_containers(Some(options)).await.unwrap();
        let containers = containers.into_iter().flat_map(|container| container.names.unwrap_or_default());
        let images = format!("longshore-flat/{}", self.worker.as_str().to_lowercase());
        let filters = HashMap::from([("reference", vec![images.as_str()])]);
        let options = ListImagesOptionsBuilder::new().filters(&filters).build();
        let images = self.client.list_images(Some(options)).await.unwrap();
        containers.chain(images.into_iter().flat_map(|image| image.repo_tags)).collect()
    }
}

/// Long contents by their first bytes and length would do as well; it must only differ where they do.
fn blake(content: &[u8]) -> String {
    format!(
        "{} bytes {:x}",
        content.len(),
        content.iter().fold(0_u64, |sum, byte| {
            sum.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(u64::from(*byte) + 1)
        })
    )
}

/// A file with a capability, as a package's installer leaves it, and two names of one file.
fn packaged() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let header = |kind, size| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o4755);
        header.set_mtime(1_234_567_890);
        header.set_uid(7);
        header.set_gid(8);
        header.set_size(size);
        header
    };
    // VFS_CAP_REVISION_2 with CAP_NET_RAW permitted and effective.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    tar.append_pax_extensions([("SCHILY.xattr.security.capability", &capability[..])]).unwrap();
    tar.append_data(&mut header(tar::EntryType::Regular, 4), "usr/bin/ping", &b"ping"[..]).unwrap();
    // A link to that one would lose it: the Engine gives links an owner too, and the kernel takes capabilities from
    // whatever gets another owner.
    tar.append_data(&mut header(tar::EntryType::Regular, 4), "usr/bin/pang", &b"pang"[..]).unwrap();
    tar.append_link(&mut header(tar::EntryType::Link, 0), "usr/bin/pong", "usr/bin/pang").unwrap();
    tar.into_inner().unwrap()
}

/// A file that each of a chain's commits writes anew: a commit of nothing at all is no layer.
fn padding(commit: u32) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let content = commit.to_string();
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o600);
    header.set_mtime(1_234_567_890);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, "padding", content.as_bytes()).unwrap();
    tar.into_inner().unwrap()
}

/// Every kind of change that a layer has a word for.
fn changes() -> Vec<Change<'static>> {
    vec![
        Change::Script(
            "mkdir -p /d/sub /volume /opaque; echo a > /d/sub/a; ln /d/sub/a /d/hard; ln -s sub/a /d/soft
             echo gone > /gone; echo x > /opaque/old; mkfifo /d/fifo; echo v > /volume/v; chmod 1777 /d; chown 5:6 /d/hard
             touch -d '2001-02-03 04:05:06' /d/soft /d/sub/a; echo long > /d/$(printf %0120d 1)",
        ),
        Change::Files(packaged()),
        Change::Script("rm /gone; rm -r /d/sub; echo file > /d/sub; rm -r /opaque; mkdir /opaque; echo y > /opaque/new"),
        Change::Script("rm /usr/bin/pong; mv /d/hard /d/harder; rm /etc/group; echo 127.0.0.2 x > /etc/hosts"),
    ]
}

/// The test's image with everything set that an image can have set.
async fn configured(bench: &Bench) -> SnapshotId {
    let name = bench.container(IMAGE, Change::Nothing).await;
    let list = |items: &[&str]| Some(items.iter().map(|item| (*item).to_owned()).collect());
    let config = ContainerConfig {
        user: Some("tester:tester".to_owned()),
        working_dir: Some("/home/tester".to_owned()),
        env: list(&["PATH=/usr/bin:/bin", "QUOTED=a \"b\" $c", "EMPTY="]),
        entrypoint: list(&["/bin/echo", "two words"]),
        cmd: list(&["a", "b c"]),
        exposed_ports: list(&["80/tcp", "53/udp"]),
        volumes: list(&["/volume", "/nowhere"]),
        labels: Some(HashMap::from([("org.example".to_owned(), "with \"quotes\"".to_owned())])),
        on_build: list(&["RUN echo built"]),
        shell: list(&["/bin/ash", "-c"]),
        stop_signal: Some("SIGINT".to_owned()),
        healthcheck: Some(HealthConfig {
            test: list(&["CMD", "true"]),
            interval: Some(5_000_000_000),
            retries: Some(4),
            ..HealthConfig::default()
        }),
        ..ContainerConfig::default()
    };
    let snapshot = SnapshotId::ephemeral(&bench.fence());
    let (repository, tag) = snapshot.as_str().rsplit_once(':').unwrap();
    let options = CommitContainerOptionsBuilder::new().container(name.as_str()).repo(repository).tag(tag).build();
    bench.client.commit_container(options, config).await.unwrap();
    bench.engine.destroy(&name).await.unwrap();
    snapshot
}

#[tokio::test]
async fn a_chain_of_130_commits_never_is_deeper_than_100_and_keeps_every_file() {
    let bench = bench().await;
    let base = configured(&bench).await;
    let (mut short, mut long) = (base.clone(), base.clone());
    for change in changes() {
        short = bench.link(short.as_str(), change).await;
    }
    short = bench.link(short.as_str(), Change::Files(padding(0))).await;
    let (mut deepest, mut flattened, mut before) = (0, 0, 0);
    let mut changes = changes().into_iter();
    for commit in (0..130).rev() {
        // One change in the middle of every thirty commits, so that some are below the flat layer and some above.
        let change = if commit % 30 == 15 { changes.next() } else { None };
        let parent = long;
        long = bench.link(parent.as_str(), change.unwrap_or_else(|| Change::Files(padding(commit)))).await;
        if parent != base {
            bench.engine.remove_snapshot(&parent).await.unwrap();
        }
        let depth = bench.depth(long.as_str()).await;
        deepest = deepest.max(depth);
        flattened += usize::from(depth < before);
        before = depth;
    }
    assert!(changes.next().is_none(), "all of them were made");
    assert!(
        flattened >= 1 && (DEPTH_MAX - 5..=DEPTH_MAX).contains(&deepest),
        "{deepest} deep, flattened {flattened} times"
    );
    let (expected, found) = (bench.tree(short.as_str()).await, bench.tree(long.as_str()).await);
    for path in expected.keys().chain(found.keys()) {
        assert_eq!(found.get(path), expected.get(path), "{path}");
    }
    assert!(found["usr/bin/ping"].contains("security.capability") && found.contains_key("d/harder"), "{found:?}");
    assert_eq!(bench.config(long.as_str()).await, bench.config(base.as_str()).await);
    assert_eq!(bench.litter().await, Vec::<String>::new());
    for snapshot in [long, short, base] {
        bench.engine.remove_snapshot(&snapshot).await.unwrap();
    }
}
