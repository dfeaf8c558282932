//! What only a real Engine can show. These look behind the trait, by a client of their own.

use std::collections::HashMap;
use std::io::Cursor;
use std::time::{Duration, SystemTime};

use bollard::Docker;
use bollard::models::ImageConfig;
use bollard::query_parameters::{
    EventsOptionsBuilder, PushImageOptionsBuilder, RemoveImageOptions, TagImageOptionsBuilder,
};
use futures_util::{StreamExt, TryStreamExt, future};
use longshore_protocol::job::{Network, Resources};
use longshore_worker::engine::docker::DockerEngine;
use longshore_worker::engine::{Engine, EngineError, ErrorClass, Exit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use uuid::Uuid;

use crate::bench::{Bench, IMAGE, read, read_until, tar_of};
use crate::{docker_engine, services};

/// An image with USER tester, WORKDIR /home/tester, ENV, ENTRYPOINT and CMD.
const CONFIGURED: &str = "longshore-test/configured:latest";

async fn bench() -> Bench<DockerEngine> {
    Bench::new(docker_engine().await)
}

async fn behind() -> Docker {
    let address = tokio::task::spawn_blocking(|| services::env("LONGSHORE_TEST_DOCKER_1")).await.unwrap();
    Docker::connect_with_unix(&address, 60, bollard::API_DEFAULT_VERSION).unwrap().negotiate_version().await.unwrap()
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_told_with_the_mend() {
    for address in ["unix:///nonexistent/docker.sock", "tcp://127.0.0.1:1"] {
        let error = DockerEngine::connect(Some(address)).await.err().unwrap();
        assert_eq!(error.class(), ErrorClass::Retry);
        let text = error.to_string();
        assert!(text.contains(address) && text.contains("is dockerd running?"), "{text}");
    }
    let error = DockerEngine::connect(Some("ssh://host")).await.err().unwrap();
    assert!(error.to_string().contains("unix://"), "{error}");
}

/// The image of the tests under a new name in the registry, and no more on the Engine.
async fn pushed() -> String {
    let registry = tokio::task::spawn_blocking(|| services::env("LONGSHORE_TEST_REGISTRY")).await.unwrap();
    let repository = format!("{registry}/engine-contract/{}", Uuid::new_v4().simple());
    let client = behind().await;
    let options = TagImageOptionsBuilder::new().repo(&repository).tag("v1").build();
    client.tag_image(IMAGE, Some(options)).await.unwrap();
    let options = PushImageOptionsBuilder::new().tag("v1").build();
    client.push_image(&repository, Some(options), None).try_for_each(|_| future::ok(())).await.unwrap();
    let reference = format!("{repository}:v1");
    client.remove_image(&reference, None::<RemoveImageOptions>, None).await.unwrap();
    reference
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test]
async fn twenty_who_ask_for_an_image_make_one_pull() {
    let bench = bench().await;
    let reference = pushed().await;
    let since = unix_now() - 1;
    let asked = (0..20).map(|_| bench.engine.ensure_image(&reference));
    let ids: Vec<_> = future::join_all(asked).await.into_iter().map(Result::unwrap).collect();
    assert!(ids.windows(2).all(|pair| pair[0] == pair[1]));

    let client = behind().await;
    let filters = HashMap::from([("type", vec!["image"]), ("event", vec!["pull"])]);
    let until = (unix_now() + 1).to_string();
    let options = EventsOptionsBuilder::new().since(&since.to_string()).until(&until).filters(&filters).build();
    let pulls = client.events(Some(options)).filter(|event| {
        let actor = event.as_ref().unwrap().actor.clone();
        future::ready(actor.and_then(|actor| actor.id).as_deref() == Some(reference.as_str()))
    });
    assert_eq!(pulls.count().await, 1);
    client.remove_image(&reference, None::<RemoveImageOptions>, None).await.unwrap();
}

#[tokio::test]
async fn a_missing_tag_is_told_in_the_registrys_words() {
    let bench = bench().await;
    let reference = pushed().await.replace(":v1", ":v2");
    let error = bench.engine.ensure_image(&reference).await.unwrap_err();
    let EngineError::NoImage { reference: told, reason } = &error else { panic!("{error:?}") };
    assert_eq!(*told, reference);
    assert!(reason.contains("manifest unknown"), "{reason}");
    // Nobody there is another matter: it may come back.
    let error = bench.engine.ensure_image("127.0.0.1:1/nobody:v1").await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Retry, "{error:?}");
}

async fn config_of(image: &str) -> ImageConfig {
    behind().await.inspect_image(image).await.unwrap().config.unwrap()
}

#[tokio::test]
async fn a_chain_of_commits_keeps_the_images_own_configuration() {
    let bench = bench().await;
    for image in [CONFIGURED, IMAGE] {
        let original = config_of(image).await;
        let mut base = image.to_owned();
        for link in 0..2 {
            let mut spec = bench.spec("echo $TOKEN > /tmp/t");
            spec.image = base;
            spec.env = vec![("TOKEN".into(), format!("secret-{link}")), ("PATH".into(), "/bin:/usr/bin".into())];
            spec.user = Some("1000:1000".to_owned());
            spec.workdir = Some("/tmp".to_owned());
            assert_eq!(bench.run(&spec).await.code(), 0);
            let snapshot = bench.snapshot();
            bench.engine.commit(&spec.name, &snapshot).await.unwrap();
            let kept = config_of(snapshot.as_str()).await;
            let own =
                |value: &Option<String>, neutral: &str| value.clone().filter(|v| v != neutral).unwrap_or_default();
            assert_eq!(own(&kept.user, "0"), own(&original.user, "0"));
            assert_eq!(own(&kept.working_dir, "/"), own(&original.working_dir, "/"));
            let list = |value: &Option<Vec<String>>| value.clone().unwrap_or_default();
            assert_eq!(list(&kept.entrypoint), list(&original.entrypoint));
            assert_eq!(list(&kept.cmd), list(&original.cmd));
            let expected: Vec<_> = list(&original.env).into_iter().chain(["TOKEN".to_owned()]).collect();
            assert_eq!(list(&kept.env), expected);
            assert_eq!(kept.labels.unwrap_or_default(), original.labels.clone().unwrap_or_default());
            assert_eq!(kept.healthcheck, original.healthcheck);
            base = snapshot.0;
        }
    }
    bench.clean().await;
}

#[tokio::test]
async fn limits_and_hardening_are_the_kernels() {
    let bench = bench().await;
    let mut spec = bench.spec(
        "cd /sys/fs/cgroup
         cat memory/memory.limit_in_bytes memory.max 2>/dev/null
         cat pids/pids.max pids.max 2>/dev/null
         cat cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 cpu.max
         grep -E 'NoNewPrivs|CapEff' /proc/self/status
         ls /sys/class/net"
            .replace("2>/dev/null\n", "2>/dev/null || :\n")
            .as_str(),
    );
    spec.resources = Resources { memory_bytes: Some(64 << 20), cpus: Some(0.5), pids: Some(77) };
    let ran = bench.run(&spec).await;
    let words: Vec<String> = ran.text().split_whitespace().map(str::to_owned).collect();
    // Capabilities by bit: AUDIT_WRITE 29, CHOWN 0, DAC_OVERRIDE 1, FOWNER 3, FSETID 4, KILL 5, NET_BIND_SERVICE 10,
    // SETFCAP 31, SETGID 6, SETUID 7, SYS_CHROOT 18.
    let capabilities: u64 = [0, 1, 3, 4, 5, 6, 7, 10, 18, 29, 31].iter().map(|bit| 1 << bit).sum();
    let capabilities = format!("{capabilities:016x}");
    assert_eq!(words, ["67108864", "77", "50000", "CapEff:", &capabilities, "NoNewPrivs:", "1", "lo"], "{ran:?}");

    let config = behind().await.inspect_container(spec.name.as_str(), None).await.unwrap();
    let host = config.host_config.unwrap();
    assert_eq!((host.memory_swap, host.init, host.auto_remove), (Some(64 << 20), Some(false), Some(false)));
    assert_eq!(host.log_config.unwrap().typ.as_deref(), Some("none"));
    assert_eq!(config.config.unwrap().labels.unwrap_or_default(), HashMap::new());

    let mut bridged = bench.spec("ls /sys/class/net");
    bridged.network = Network::Bridge;
    assert!(bench.run(&bridged).await.text().contains("eth0"));
    bench.clean().await;
}

#[tokio::test]
async fn an_oom_kill_is_told_from_a_kill() {
    let bench = bench().await;
    let mut spec = bench.spec("exec tail /dev/zero"); // keeps the last line, which never ends
    spec.resources.memory_bytes = Some(16 << 20);
    let ran = bench.run(&spec).await;
    assert_eq!(ran.exit.unwrap(), Exit { code: 137, oom_killed: true });
    bench.clean().await;
}

#[tokio::test]
async fn injected_files_belong_to_the_steps_user_and_nothing_else_changes() {
    let bench = bench().await;
    let script = "cd /; stat -c '%U %a %n' /home /home/tester /home/tester/deep /home/tester/deep/er/f /tmp /tmp/sub";
    let mut spec = bench.spec(script);
    spec.image = CONFIGURED.to_owned(); // its own USER is tester
    let name = bench.create(&spec).await;
    let tar = tar_of(&[("./", ""), ("f", "x")]);
    bench.engine.inject(&name, "/home/tester/deep/er", Cursor::new(tar)).await.unwrap();
    bench.engine.inject(&name, "/tmp", Cursor::new(tar_of(&[("./", ""), ("sub/", "")]))).await.unwrap();
    let ran = read(bench.engine.start(&name).await.unwrap()).await;
    let expected = "root 755 /home\ntester 755 /home/tester\ntester 755 /home/tester/deep\n\
                    tester 640 /home/tester/deep/er/f\nroot 1777 /tmp\ntester 750 /tmp/sub\n";
    assert_eq!(ran.text(), expected, "{ran:?}");
    bench.clean().await;
}

#[tokio::test]
async fn a_user_who_is_not_there_cannot_be_started() {
    let bench = bench().await;
    let mut spec = bench.spec("true");
    spec.user = Some("nosuch".to_owned());
    let name = bench.create(&spec).await;
    for error in [
        bench.engine.start(&name).await.unwrap_err(),
        bench.engine.inject(&name, "/x", Cursor::new(tar_of(&[]))).await.unwrap_err(),
    ] {
        assert!(matches!(error, EngineError::CannotStart { exit: None, .. }), "{error:?}");
    }
    bench.clean().await;
}

#[tokio::test]
async fn a_removed_snapshot_leaves_no_image_behind() {
    let bench = bench().await;
    let snapshot = bench.committed("echo kept > /file").await;
    let mut spec = bench.spec("cat /file");
    spec.image = snapshot.0.clone();
    let name = bench.create(&spec).await;
    let client = behind().await;
    let id = client.inspect_image(snapshot.as_str()).await.unwrap().id.unwrap();
    bench.engine.remove_snapshot(&snapshot).await.unwrap();
    client.inspect_image(&id).await.unwrap();
    // A child that was committed from it needs it as well, until that is removed.
    let child = bench.snapshot();
    bench.engine.commit(&name, &child).await.unwrap();
    bench.engine.destroy(&name).await.unwrap();
    bench.engine.remove_snapshot(&child).await.unwrap();
    assert!(client.inspect_image(&id).await.is_err());
}

/// Docker behind a door that can be shut: whatever passes there of one kind of call is cut off then.
struct Door {
    engine: DockerEngine,
    shut: tokio::sync::watch::Sender<&'static str>,
    _dir: tempfile::TempDir,
}

async fn door() -> Door {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("docker.sock");
    let address = tokio::task::spawn_blocking(|| services::env("LONGSHORE_TEST_DOCKER_1")).await.unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let shut = tokio::sync::watch::Sender::new("nothing");
    let told = shut.subscribe();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (address, mut told) = (address.clone(), told.clone());
            tokio::spawn(async move {
                let mut far = UnixStream::connect(address.strip_prefix("unix://").unwrap()).await.unwrap();
                let mut head = vec![0; 4096];
                let count = near.read(&mut head).await.unwrap();
                let line = String::from_utf8_lossy(&head[..count]).lines().next().unwrap_or_default().to_owned();
                far.write_all(&head[..count]).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    _ = told.wait_for(|kind| line.contains(kind)) => {}
                }
            });
        }
    });
    let engine = DockerEngine::connect(Some(&format!("unix://{}", path.display()))).await.unwrap();
    Door { engine, shut, _dir: dir }
}

#[tokio::test]
async fn an_engine_that_breaks_off_gives_no_exit_code_and_is_told_at_once() {
    for call in ["/wait", "/attach"] {
        let door = door().await;
        let bench = Bench::new(door.engine.clone());
        // Quiet: nothing but the connection tells that anything is wrong.
        let name = bench.create(&bench.spec("echo up; sleep 3600")).await;
        let mut running = bench.engine.start(&name).await.unwrap();
        read_until(&mut running, "up\n").await;
        door.shut.send_replace(call);
        let ran = tokio::time::timeout(Duration::from_secs(20), read(running)).await.expect("at once");
        assert!(matches!(ran.exit, Err(EngineError::Unreachable { .. })), "{call}: {ran:?}");
        bench.clean().await;
    }
}

#[tokio::test]
async fn a_command_that_closes_its_output_goes_on_and_its_exit_code_counts() {
    let bench = bench().await;
    let ran = bench.run_script("echo up; exec >&- 2>&-; sleep 1; exit 4").await;
    assert_eq!((ran.text().as_str(), ran.code()), ("up\n", 4));
    bench.clean().await;
}
