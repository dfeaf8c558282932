//! The supervised way on a real Engine: what the suite for all Engines cannot ask, because it looks behind the trait.

#![allow(clippy::unwrap_used)] // a panic is how a test fails
#![allow(unreachable_pub)] // `services` is written for every test that includes it

#[path = "../../tests/services.rs"]
mod services;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, DownloadFromContainerOptionsBuilder,
    KillContainerOptions, RemoveImageOptions,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::TryStreamExt;
use longshore_protocol::job::{Network, Resources};
use longshore_protocol::output::{Offsets, Stream};
use longshore_protocol::{Attempt, ExecutionId, Fence, RunId, WorkerId};
use longshore_worker::engine::docker::DockerEngine;
use longshore_worker::engine::{
    Adopted, Cleaned, CommandSpec, ContainerName, ContainerSpec, Duty, Engine, EngineError, Exit, ExitStatus, Running,
    Way,
};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use uuid::Uuid;

const BUSYBOX: &str = "longshore-test/busybox:latest";

/// An image with USER tester, WORKDIR /home/tester, ENV, ENTRYPOINT and CMD.
const CONFIGURED: &str = "longshore-test/configured:latest";

/// Engines and a worker's directory of the test's own.
struct Rig {
    engine: DockerEngine,
    docker: Docker,
    worker: WorkerId,
    dir: TempDir,
}

impl Rig {
    async fn new() -> Self {
        let docker = Docker::connect_with_unix(&address().await, 60, API_DEFAULT_VERSION).unwrap();
        let docker = docker.negotiate_version().await.unwrap();
        let worker: WorkerId = format!("Test-{}", Uuid::new_v4().simple()).parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let engine = connect(&worker, dir.path().to_owned()).await;
        Self { engine, docker, worker, dir }
    }

    /// Another process of the same worker, which speaks to its supervisors from now on.
    async fn restart(&mut self) {
        self.engine = connect(&self.worker, self.dir.path().to_owned()).await;
    }

    fn name(&self) -> ContainerName {
        let execution = ExecutionId::of_step(RunId::new(), &"step".into());
        ContainerName::of(&Fence { execution, attempt: Attempt::FIRST, owner: self.worker.clone() })
    }

    fn own_dir(&self, container: &ContainerName) -> PathBuf {
        self.dir.path().join("c").join(container.as_str().splitn(3, '.').nth(2).unwrap())
    }

    async fn create(&self, image: &str) -> ContainerName {
        let name = self.name();
        let spec = ContainerSpec {
            name: name.clone(),
            image: image.to_owned(),
            command: sh("unused"),
            resources: Resources::default(),
            network: Network::None,
            tenant: "default".to_owned(),
        };
        self.engine.create(&spec).await.unwrap();
        name
    }

    async fn run(&self, container: &ContainerName, command: &CommandSpec) -> Ran {
        read(self.engine.start(container, command).await.unwrap()).await
    }

    /// Whatever the test made goes.
    async fn clean(self) {
        let own = |name: &ContainerName| name.owner() == self.worker;
        for name in self.engine.containers().await.unwrap().into_iter().filter(own) {
            self.engine.destroy(&name).await.unwrap();
        }
        self.engine.end().await;
        assert!(!self.engine.containers().await.unwrap().iter().any(own));
        assert_eq!(fs::read_dir(self.dir.path().join("c")).unwrap().count(), 0, "a container's directory is left");
    }
}

async fn address() -> String {
    tokio::task::spawn_blocking(|| services::env("LONGSHORE_TEST_DOCKER_1")).await.unwrap()
}

async fn connect(worker: &WorkerId, dir: PathBuf) -> DockerEngine {
    let engine = DockerEngine::connect(Some(&address().await)).await.unwrap();
    let duty = Duty { worker: worker.clone(), dir, namespaces: 1, direct: false, orphan: Duration::from_mins(10) };
    engine.begin(duty).await.unwrap();
    assert_eq!(engine.way().await.unwrap(), Way::Supervised);
    engine
}

fn command(argv: &[&str]) -> CommandSpec {
    CommandSpec {
        attempt: format!("attempt-{}", Uuid::new_v4().simple()),
        argv: argv.iter().map(|&word| word.to_owned()).collect(),
        env: Vec::new(),
        workdir: None,
        user: None,
        limit: Duration::from_hours(1),
        lease: None,
    }
}

fn sh(script: &str) -> CommandSpec {
    command(&["/bin/sh", "-e", "-c", script])
}

#[derive(Debug)]
struct Ran {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    exit: Result<Exit, EngineError>,
}

impl Ran {
    fn text(&self) -> String {
        assert!(self.stderr.is_empty(), "{}", String::from_utf8_lossy(&self.stderr));
        String::from_utf8(self.stdout.clone()).unwrap()
    }

    fn status(&self) -> ExitStatus {
        self.exit.as_ref().unwrap_or_else(|error| panic!("{error}")).status
    }
}

/// As a spool does it: what came is acknowledged.
async fn read(mut running: Running) -> Ran {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let Some(piece) = running.output.recv().await {
        let into = if piece.stream == Stream::Stdout { &mut stdout } else { &mut stderr };
        into.extend_from_slice(&piece.bytes);
        running.spooled.send_modify(|upto| *upto.of_mut(piece.stream) += piece.bytes.len() as u64);
    }
    Ran { stdout, stderr, exit: running.exit.await.unwrap() }
}

/// Reads until standard output has so many lines; tells what came, none of it acknowledged.
async fn read_lines(running: &mut Running, lines: usize) -> Vec<u8> {
    let mut read = Vec::new();
    while memchr::memchr_iter(b'\n', &read).count() < lines {
        read.extend_from_slice(&running.output.recv().await.unwrap().bytes);
    }
    read
}

/// An image that holds one file, `/busybox`: a static program, and neither a shell nor any directory.
async fn bare_image(rig: &Rig) -> String {
    let donor = rig.create(BUSYBOX).await;
    let options = DownloadFromContainerOptionsBuilder::new().path("/bin/busybox").build();
    let download = rig.docker.download_from_container(donor.as_str(), Some(options));
    let archive: Vec<u8> = download.map_ok(|chunk| chunk.to_vec()).try_concat().await.unwrap();
    rig.engine.destroy(&donor).await.unwrap();
    let mut program = Vec::new();
    let mut archive = tar::Archive::new(archive.as_slice());
    archive.entries().unwrap().next().unwrap().unwrap().read_to_end(&mut program).unwrap();

    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(program.len() as u64);
    builder.append_data(&mut header, "busybox", program.as_slice()).unwrap();
    let tag = Uuid::new_v4().simple().to_string();
    let options = CreateImageOptionsBuilder::new().from_src("-").repo("longshore-test/bare").tag(&tag).build();
    let body = bollard::body_full(builder.into_inner().unwrap().into());
    rig.docker.create_image(Some(options), Some(body), None).try_collect::<Vec<_>>().await.unwrap();
    format!("longshore-test/bare:{tag}")
}

#[tokio::test]
async fn an_image_needs_neither_a_shell_nor_a_libc() {
    let rig = Rig::new().await;
    let image = bare_image(&rig).await;
    let name = rig.create(&image).await;
    let ran = rig.run(&name, &command(&["/busybox", "echo", "alone"])).await;
    assert_eq!((ran.text().as_str(), ran.status()), ("alone\n", ExitStatus::Code(0)));
    // And tells a program that is not there from one that fails.
    assert_eq!(rig.engine.clean(&name).await.unwrap(), Cleaned::Ready);
    let error = rig.engine.start(&name, &command(&["/bin/sh"])).await.unwrap_err();
    assert!(matches!(error, EngineError::CannotStart { exit: Some(127), .. }), "{error:?}");
    assert_eq!(rig.run(&name, &command(&["/busybox", "false"])).await.status(), ExitStatus::Code(1));
    let docker = rig.docker.clone();
    rig.clean().await;
    docker.remove_image(&image, None::<RemoveImageOptions>, None).await.unwrap();
}

#[tokio::test]
async fn an_images_user_directory_and_environment_are_the_steps() {
    let rig = Rig::new().await;
    let image = rig.docker.inspect_image(CONFIGURED).await.unwrap().config.unwrap();
    let name = rig.create(CONFIGURED).await;
    let ran = rig.run(&name, &sh("id -un; pwd; grep CapEff /proc/self/status; env")).await;
    let text = ran.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], image.user.unwrap());
    assert_eq!(lines[1], image.working_dir.unwrap());
    assert_eq!(lines[2], "CapEff:\t0000000000000000");
    for entry in image.env.unwrap() {
        assert!(lines.contains(&entry.as_str()), "{entry} is not in {text}");
    }
    // What the step says stands above it.
    assert_eq!(rig.engine.clean(&name).await.unwrap(), Cleaned::Ready);
    let mut command = sh("id -u; pwd; echo $MARK");
    command.user = Some("0".to_owned());
    command.workdir = Some("/made/here".to_owned());
    command.env = vec![("MARK".to_owned(), "step".to_owned())];
    assert_eq!(rig.run(&name, &command).await.text(), "0\n/made/here\nstep\n");
    rig.clean().await;
}

#[tokio::test]
async fn nothing_of_the_supervisor_is_among_the_containers_files() {
    let rig = Rig::new().await;
    let name = rig.create(BUSYBOX).await;
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o640);
    header.set_size(3);
    tar.append_data(&mut header, "injected", &b"abc"[..]).unwrap();
    let tar = std::io::Cursor::new(tar.into_inner().unwrap());
    rig.engine.inject(&name, Some("12:34"), "/src", tar).await.unwrap();
    assert_eq!(
        rig.run(&name, &sh("stat -c '%a %u:%g' /src/injected; cat /src/injected")).await.text(),
        "640 12:34\nabc"
    );
    let changes = rig.docker.container_changes(name.as_str()).await.unwrap().unwrap_or_default();
    let paths: BTreeSet<String> = changes.into_iter().map(|change| change.path).collect();
    assert_eq!(paths, BTreeSet::from(["/src".to_owned(), "/src/injected".to_owned()]));
    rig.clean().await;
}

#[tokio::test]
async fn p10_a_container_with_a_read_only_root_is_adopted_and_works() {
    let rig = Rig::new().await;
    let name = rig.name();
    // As the Engine would make it, but for the root.
    let own = rig.own_dir(&name);
    fs::create_dir_all(&own).unwrap();
    let binaries = fs::read_dir(rig.dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let mut binaries = binaries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("supervisor-"));
    fs::copy(binaries.next().unwrap(), own.join("supervisor")).unwrap();
    let mount = Mount {
        typ: Some(MountType::BIND),
        source: Some(own.display().to_string()),
        target: Some("/dev/longshore".to_owned()),
        read_only: Some(true),
        ..Default::default()
    };
    let body = ContainerCreateBody {
        image: Some(BUSYBOX.to_owned()),
        entrypoint: Some(vec!["/dev/longshore/supervisor".to_owned(), "/dev/longshore/sock".to_owned()]),
        host_config: Some(HostConfig {
            readonly_rootfs: Some(true),
            network_mode: Some("none".to_owned()),
            mounts: Some(vec![mount]),
            ..Default::default()
        }),
        ..Default::default()
    };
    let options = CreateContainerOptionsBuilder::new().name(name.as_str()).build();
    rig.docker.create_container(Some(options), body).await.unwrap();
    rig.docker.start_container(name.as_str(), None).await.unwrap();

    assert!(matches!(rig.engine.adopt(&name, Offsets::default()).await.unwrap(), Adopted::Idle));
    let ran =
        rig.run(&name, &sh("echo x > /dev/shm/x && cat /dev/shm/x; if echo y > /y; then exit 9; fi 2>/dev/null")).await;
    assert_eq!((ran.text().as_str(), ran.status()), ("x\n", ExitStatus::Code(0)));
    assert_eq!(rig.engine.clean(&name).await.unwrap(), Cleaned::Ready);
    assert_eq!(rig.run(&name, &sh("ls /dev/shm")).await.text(), "");
    rig.clean().await;
}

#[tokio::test]
async fn nobody_else_speaks_for_a_supervisor() {
    let rig = Rig::new().await;
    let name = rig.create(BUSYBOX).await;
    assert_eq!(rig.run(&name, &sh("mkfifo /gate")).await.status(), ExitStatus::Code(0));
    assert_eq!(rig.engine.clean(&name).await.unwrap(), Cleaned::Ready);
    let mut running = rig.engine.start(&name, &sh("echo up; read line < /gate; echo \"$line\"; exit 7")).await.unwrap();
    assert_eq!(read_lines(&mut running, 1).await, b"up\n");

    // Whoever may connect is hung up on, without a word, if it is not the container's first process.
    for _ in 0..3 {
        let mut stranger = UnixStream::connect(rig.own_dir(&name).join("sock")).await.unwrap();
        let mut heard = Vec::new();
        stranger.read_to_end(&mut heard).await.unwrap();
        assert!(heard.is_empty(), "{heard:?}");
    }
    let pid = rig.docker.inspect_container(name.as_str(), None).await.unwrap().state.unwrap().pid.unwrap();
    let gate = PathBuf::from(format!("/proc/{pid}/root/gate"));
    tokio::task::spawn_blocking(move || fs::write(gate, "on\n")).await.unwrap().unwrap();
    let ran = read(running).await;
    assert_eq!((ran.stdout.as_slice(), ran.status()), (&b"on\n"[..], ExitStatus::Code(7)));
    rig.clean().await;
}

#[tokio::test]
async fn p10_p16_another_process_goes_on_where_the_first_was() {
    let mut rig = Rig::new().await;
    let name = rig.create(BUSYBOX).await;
    // Several times what a supervisor and the pipes hold.
    let count = sh("i=0; while [ $i -lt 1000000 ]; do echo $i; i=$((i+1)); done; exit 3");
    let mut running = rig.engine.start(&name, &count).await.unwrap();
    let first = read_lines(&mut running, 1000).await;
    // Of what was read, only so much had come to the disk.
    let kept = 2000;
    running.spooled.send_replace(Offsets { stdout: kept, stderr: 0 });
    drop(running);
    rig.restart().await;

    let have = Offsets { stdout: kept, stderr: 0 };
    let Adopted::Command { attempt, running, .. } = rig.engine.adopt(&name, have).await.unwrap() else {
        panic!("it runs");
    };
    assert_eq!(attempt, count.attempt);
    let rest = read(running).await;
    assert_eq!(rest.status(), ExitStatus::Code(3));
    let all = [&first[..usize::try_from(kept).unwrap()], &rest.stdout].concat();
    let expected = (0..1_000_000).map(|n| n.to_string() + "\n").collect::<String>();
    assert!(all == expected.as_bytes(), "{} bytes, {} expected", all.len(), expected.len());

    // Its end is known to whoever comes until the container is clean.
    rig.restart().await;
    let have = Offsets { stdout: all.len() as u64, stderr: 0 };
    let Adopted::Command { running, .. } = rig.engine.adopt(&name, have).await.unwrap() else { panic!("it has run") };
    assert_eq!(read(running).await.status(), ExitStatus::Code(3));
    assert_eq!(rig.engine.clean(&name).await.unwrap(), Cleaned::Ready);
    rig.restart().await;
    assert!(matches!(rig.engine.adopt(&name, Offsets::default()).await.unwrap(), Adopted::Idle));
    rig.clean().await;
}

#[tokio::test]
async fn a_container_that_dies_is_told_at_once() {
    let rig = Rig::new().await;
    let name = rig.create(BUSYBOX).await;
    let mut running = rig.engine.start(&name, &sh("echo up; exec sleep 1000")).await.unwrap();
    assert_eq!(read_lines(&mut running, 1).await, b"up\n");
    rig.docker.kill_container(name.as_str(), None::<KillContainerOptions>).await.unwrap();
    let error = read(running).await.exit.unwrap_err();
    assert!(error.to_string().contains("has ended, with 137"), "{error}");
    // What comes after it finds nothing that runs.
    rig.engine.stop(&name, Duration::from_secs(1)).await.unwrap();
    rig.engine.clean(&name).await.unwrap_err();
    let error = rig.engine.adopt(&name, Offsets::default()).await.unwrap_err();
    assert!(matches!(error, EngineError::Gone { .. }), "{error}");
    rig.clean().await;
}

#[tokio::test]
async fn limits_are_changed_in_the_kernel() {
    let rig = Rig::new().await;
    let name = rig.create(BUSYBOX).await;
    let look = sh("cd /sys/fs/cgroup
        cat memory/memory.limit_in_bytes 2>/dev/null || cat memory.max
        cat pids/pids.max 2>/dev/null || cat pids.max
        cat cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 cpu.max");
    let free = rig.run(&name, &look).await.text();
    let tight = Resources { memory_bytes: Some(64 << 20), cpus: Some(0.5), pids: Some(77) };
    rig.engine.clean(&name).await.unwrap();
    rig.engine.fit(&name, &tight).await.unwrap();
    assert_eq!(rig.run(&name, &look).await.text(), "67108864\n77\n50000\n");
    rig.engine.clean(&name).await.unwrap();
    rig.engine.fit(&name, &Resources::default()).await.unwrap();
    let freed = rig.run(&name, &look).await.text();
    let [before, after] = [&free, &freed].map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
    assert_eq!(before[1], after[1]);
    // More memory than there is, and all of the processors.
    assert!(after[0] == "max" || after[0].parse::<u64>().unwrap() >= 1 << 60, "{}", after[0]);
    assert!(before[2].parse::<i64>().is_ok_and(|quota| quota <= 0) || before[2] == "max", "{}", before[2]);
    let cpus = rig.docker.info().await.unwrap().ncpu.unwrap();
    assert_eq!(after[2], (cpus * 100_000).to_string());
    rig.clean().await;
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test]
async fn p16_a_gigabyte_passes_and_nothing_grows() {
    const BYTES: u64 = 1_000_000_000;
    let rig = Rig::new().await;
    let name = rig.create(BUSYBOX).await;
    let mut running = rig.engine.start(&name, &sh(&format!("head -c {BYTES} /dev/zero"))).await.unwrap();
    let (before, mut peak, mut seen) = (resident(), 0, 0);
    while let Some(piece) = running.output.recv().await {
        assert!(piece.bytes.iter().all(|byte| *byte == 0) && piece.bytes.len() <= 64 * 1024);
        seen += piece.bytes.len() as u64;
        running.spooled.send_replace(Offsets { stdout: seen, stderr: 0 });
        if seen % (64 << 20) < piece.bytes.len() as u64 {
            peak = peak.max(resident());
        }
    }
    assert_eq!((seen, running.exit.await.unwrap().unwrap().status), (BYTES, ExitStatus::Code(0)));
    // Other tests of this process grow beside it: a twentieth would be as telling.
    assert!(peak.saturating_sub(before) < BYTES / 10, "{before} bytes before, {peak} at the worst");
    rig.clean().await;
}

#[tokio::test]
async fn without_a_reader_a_command_blocks_and_can_be_stopped() {
    let rig = Rig::new().await;
    let name = rig.create(BUSYBOX).await;
    let mut running = rig.engine.start(&name, &sh("echo up; exec cat /dev/zero")).await.unwrap();
    let up = running.output.recv().await.unwrap();
    assert!(up.bytes.starts_with(b"up\n"));
    // Nothing is acknowledged and nobody reads on; TERM ends it all the same.
    rig.engine.stop(&name, Duration::from_secs(20)).await.unwrap();
    let ran = read(running).await;
    assert_eq!(ran.status(), ExitStatus::Signal(15));
    assert!(ran.stdout.len() < 8 << 20, "{} bytes", ran.stdout.len());
    rig.clean().await;
}

#[tokio::test]
async fn a_directory_that_cannot_be_executed_from_is_told_and_the_direct_way_taken() {
    let dir = tempfile::tempdir().unwrap();
    let engine = DockerEngine::connect(Some(&address().await)).await.unwrap();
    // Not a directory at all: nothing can be unpacked below it.
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let worker: WorkerId = format!("Test-{}", Uuid::new_v4().simple()).parse().unwrap();
    let duty = Duty { worker, dir: file, namespaces: 0, direct: false, orphan: Duration::from_mins(10) };
    engine.begin(duty).await.unwrap();
    let Way::Direct { because } = engine.way().await.unwrap() else { panic!("it cannot work") };
    assert!(because.contains("cannot be unpacked in"), "{because}");
    engine.end().await;
}
