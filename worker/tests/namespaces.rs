//! Kept network namespaces on a real Engine, seen from behind the trait (`docs/decisions/namespaces.md`).

#![allow(clippy::unwrap_used)] // a panic is how a test fails
#![allow(unreachable_pub)] // `services` is written for every test that includes it

#[path = "../../tests/services.rs"]
mod services;

use std::collections::HashMap;
use std::time::Duration;

use bollard::query_parameters::{KillContainerOptions, ListContainersOptionsBuilder};
use bollard::{API_DEFAULT_VERSION, Docker};
use longshore_protocol::job::{Network, Resources};
use longshore_protocol::output::Offsets;
use longshore_protocol::{Attempt, ExecutionId, Fence, RunId, WorkerId};
use longshore_worker::engine::docker::DockerEngine;
use longshore_worker::engine::{CommandSpec, ContainerName, ContainerSpec, Duty, Engine, ExitStatus, Way};
use tempfile::TempDir;
use uuid::Uuid;

const IMAGE: &str = "longshore-test/busybox:latest";

/// Containers that ask one after the other until one is joined: each takes a tenth of a second at least, and a holder
/// is made in three.
const TRIES: usize = 100;

/// A worker that keeps one namespace.
struct Rig {
    engine: DockerEngine,
    docker: Docker,
    worker: WorkerId,
    dir: TempDir,
}

async fn address() -> String {
    tokio::task::spawn_blocking(|| services::env("LONGSHORE_TEST_DOCKER_1")).await.unwrap()
}

impl Rig {
    async fn new() -> Self {
        let docker = Docker::connect_with_unix(&address().await, 60, API_DEFAULT_VERSION).unwrap();
        let worker: WorkerId = format!("Net-{}", Uuid::new_v4().simple()).parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let engine = DockerEngine::connect(Some(&address().await)).await.unwrap();
        let rig = Self { engine, docker: docker.negotiate_version().await.unwrap(), worker, dir };
        rig.begin().await;
        rig
    }

    async fn begin(&self) {
        let (worker, dir) = (self.worker.clone(), self.dir.path().to_owned());
        let duty = Duty { worker, dir, namespaces: 1, direct: false, orphan: Duration::from_mins(10) };
        self.engine.begin(duty).await.unwrap();
        // Known by the first holder.
        assert_eq!(self.engine.way().await.unwrap(), Way::Supervised);
    }

    /// Another process of the same worker. The former one's connections have ended before it begins.
    async fn restart(&mut self) {
        self.engine = DockerEngine::connect(Some(&address().await)).await.unwrap();
        self.begin().await;
    }

    async fn create(&self, tenant: &str) -> ContainerName {
        let execution = ExecutionId::of_step(RunId::new(), &"step".into());
        let name = ContainerName::of(&Fence { execution, attempt: Attempt::FIRST, owner: self.worker.clone() });
        let spec = ContainerSpec {
            name: name.clone(),
            image: IMAGE.to_owned(),
            command: sh("unused"),
            resources: Resources::default(),
            network: Network::None,
            tenant: tenant.to_owned(),
        };
        self.engine.create(&spec).await.unwrap();
        name
    }

    /// The id of the holder that a container has joined; `None` if it has a network of its own.
    async fn joined(&self, container: &ContainerName) -> Option<String> {
        let inspected = self.docker.inspect_container(container.as_str(), None).await.unwrap();
        let mode = inspected.host_config.unwrap().network_mode.unwrap();
        mode.strip_prefix("container:").map(str::to_owned)
    }

    /// What a script prints that passes.
    async fn run(&self, container: &ContainerName, script: &str) -> String {
        let mut running = self.engine.start(container, &sh(script)).await.unwrap();
        let mut text = Vec::new();
        while let Some(piece) = running.output.recv().await {
            text.extend_from_slice(&piece.bytes);
            running.spooled.send_modify(|upto| *upto.of_mut(piece.stream) += piece.bytes.len() as u64);
        }
        let text = String::from_utf8(text).unwrap();
        assert_eq!(running.exit.await.unwrap().unwrap().status, ExitStatus::Code(0), "{script}: {text}");
        text
    }

    /// The first container of a tenant's that joins one, and which.
    async fn until_joined(&self, tenant: &str) -> (ContainerName, String) {
        for _ in 0..TRIES {
            let container = self.create(tenant).await;
            if let Some(holder) = self.joined(&container).await {
                return (container, holder);
            }
            self.engine.destroy(&container).await.unwrap();
        }
        panic!("no container of {tenant}'s has joined a kept namespace");
    }

    /// By id: what the worker holds.
    async fn holders(&self) -> HashMap<String, String> {
        let prefix = format!("longshore.{}.net.", self.worker);
        let filters = HashMap::from([("name", vec![prefix.as_str()])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let found = self.docker.list_containers(Some(options)).await.unwrap();
        let name = |names: Option<Vec<String>>| names.unwrap().remove(0);
        found.into_iter().map(|container| (container.id.unwrap(), name(container.names))).collect()
    }

    /// The end in order of a worker whose containers are gone.
    async fn clean(self) {
        let own = self.engine.containers().await.unwrap().into_iter().filter(|name| name.owner() == self.worker);
        for name in own {
            self.engine.destroy(&name).await.unwrap();
        }
        self.engine.end().await;
        assert_eq!(self.holders().await, HashMap::new());
    }
}

fn sh(script: &str) -> CommandSpec {
    CommandSpec {
        attempt: format!("attempt-{}", Uuid::new_v4().simple()),
        argv: ["/bin/sh", "-e", "-c", script].map(str::to_owned).to_vec(),
        env: Vec::new(),
        workdir: None,
        user: None,
        limit: Duration::from_mins(2),
        lease: None,
    }
}

/// Serves one connection and takes it, both over before the script goes on. The server has nothing to say and closes at
/// once, which is what leaves a `TIME_WAIT` at its port; a client that sees that before it has read its own input sends
/// nothing, and is served again.
const SERVE: &str = "rm -f /got; until [ -s /got ]; do nc -l -p 99 > /got & \
                     until echo sent | nc 127.0.0.1 99 2>/dev/null; do :; done; wait; done; cat /got";

#[tokio::test]
async fn one_container_at_a_time_has_a_namespace_and_the_next_finds_it_as_new() {
    let rig = Rig::new().await;
    let (first, holder) = rig.until_joined("a").await;
    assert!(rig.holders().await.contains_key(&holder));
    assert_eq!(rig.run(&first, "cat /proc/sys/net/ipv4/tcp_max_tw_buckets").await, "0\n");
    rig.engine.clean(&first).await.unwrap();
    assert_eq!(rig.run(&first, &format!("echo 127.0.0.9 forged > /etc/hosts; {SERVE}")).await, "sent\n");

    let beside = rig.create("a").await;
    assert_eq!(rig.joined(&beside).await, None, "it is in use");

    // Not cleaned by anybody: whoever removes it sees to that.
    rig.engine.destroy(&first).await.unwrap();
    let second = rig.create("a").await;
    assert_eq!(rig.joined(&second).await.as_ref(), Some(&holder), "given out again");
    let hosts = rig.run(&second, "cat /etc/hosts").await;
    assert!(hosts.contains("localhost") && !hosts.contains("forged"), "{hosts}");
    rig.engine.clean(&second).await.unwrap();
    assert_eq!(rig.run(&second, SERVE).await, "sent\n", "the port is free");
    rig.clean().await;
}

#[tokio::test]
async fn another_tenant_gets_one_that_was_made_anew() {
    let rig = Rig::new().await;
    let (container, holder) = rig.until_joined("a").await;
    rig.engine.destroy(&container).await.unwrap();
    let other = rig.create("b").await;
    assert_eq!(rig.joined(&other).await, None, "what is free is another tenant's");
    let (_, anew) = rig.until_joined("b").await;
    assert_ne!(anew, holder);
    assert!(!rig.holders().await.contains_key(&holder));
    rig.clean().await;
}

#[tokio::test]
async fn one_whose_container_was_removed_in_mid_command_is_empty_or_made_anew() {
    let rig = Rig::new().await;
    let (container, _) = rig.until_joined("a").await;
    let serving = "echo forged > /etc/hosts; nc -l -p 99 & echo up; wait";
    let mut running = rig.engine.start(&container, &sh(serving)).await.unwrap();
    assert_eq!(running.output.recv().await.unwrap().bytes, "up\n");
    rig.engine.destroy(&container).await.unwrap();
    let (next, _) = rig.until_joined("a").await;
    assert!(!rig.run(&next, "cat /etc/hosts").await.contains("forged"));
    rig.engine.clean(&next).await.unwrap();
    assert_eq!(rig.run(&next, SERVE).await, "sent\n");
    rig.clean().await;
}

#[tokio::test]
async fn one_that_died_is_replaced() {
    let rig = Rig::new().await;
    let (container, holder) = rig.until_joined("a").await;
    rig.engine.destroy(&container).await.unwrap();
    rig.docker.kill_container(&holder, None::<KillContainerOptions>).await.unwrap();
    // Nobody fails because of it: the next container has its own network, or a new one.
    let (next, anew) = rig.until_joined("a").await;
    assert_ne!(anew, holder);
    assert_eq!(rig.run(&next, "echo works").await, "works\n");
    rig.clean().await;
}

#[tokio::test]
async fn p10_the_next_process_takes_up_what_is_free_and_makes_anew_what_was_in_use() {
    let mut rig = Rig::new().await;
    let (container, holder) = rig.until_joined("a").await;
    rig.engine.destroy(&container).await.unwrap();
    rig.restart().await;
    let (container, adopted) = rig.until_joined("a").await;
    assert_eq!(adopted, holder, "it was known to be empty, and whose it is");

    // Now it is in use when the process goes.
    rig.restart().await;
    rig.engine.adopt(&container, Offsets::default()).await.unwrap();
    assert_eq!(rig.run(&container, "echo works").await, "works\n");
    rig.engine.destroy(&container).await.unwrap();
    let (_, anew) = rig.until_joined("a").await;
    assert_ne!(anew, holder, "nobody knows any more whose it was");
    rig.clean().await;
}
