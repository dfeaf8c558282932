//! What only a real Engine can show. These look behind the trait, by a client of their own.

use std::collections::HashMap;
use std::io::Cursor;
use std::time::SystemTime;

use bollard::models::ImageConfig;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, EventsOptionsBuilder, PushImageOptionsBuilder, RemoveContainerOptionsBuilder,
    RemoveImageOptions, TagImageOptionsBuilder,
};
use futures_util::{StreamExt, TryStreamExt, future};
use longshore_protocol::job::{Network, Resources};
use longshore_worker::engine::docker::DockerEngine;
use longshore_worker::engine::{Cleaned, Engine, EngineError, ErrorClass};
use uuid::Uuid;

use crate::bench::{IMAGE, read, tar_of};
use crate::docker_kit::{behind, both_ways, supervised as bench};
use crate::services;

/// An image with USER tester, WORKDIR /home/tester, ENV, ENTRYPOINT and CMD.
const CONFIGURED: &str = "longshore-test/configured:latest";

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
    bench.clean().await;
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
    for bench in both_ways().await {
        for image in [CONFIGURED, IMAGE] {
            let original = config_of(image).await;
            let mut base = image.to_owned();
            for link in 0..2 {
                let mut spec = bench.spec_on(&base, "echo $TOKEN > /tmp/t");
                let env = [("TOKEN", format!("secret-{link}")), ("PATH", "/bin:/usr/bin".to_owned())];
                spec.command.env = env.map(|(name, value)| (name.to_owned(), value)).to_vec();
                spec.command.user = Some("1000:1000".to_owned());
                spec.command.workdir = Some("/tmp".to_owned());
                assert_eq!(bench.run(&spec).await.code(), 0);
                let snapshot = bench.snapshot();
                bench.engine.commit(&spec.name, &snapshot).await.unwrap();
                kept_as(&config_of(snapshot.as_str()).await, &original);
                base = snapshot.0;
            }
        }
        bench.clean().await;
    }
}

/// The image's own configuration, and no trace of a step's or of a supervisor's.
fn kept_as(kept: &ImageConfig, original: &ImageConfig) {
    let own = |value: &Option<String>, neutral: &str| value.clone().filter(|v| v != neutral).unwrap_or_default();
    assert_eq!(own(&kept.user, "0"), own(&original.user, "0"));
    assert_eq!(own(&kept.working_dir, "/"), own(&original.working_dir, "/"));
    let list = |value: &Option<Vec<String>>| value.clone().unwrap_or_default();
    assert_eq!(list(&kept.entrypoint), list(&original.entrypoint));
    assert_eq!(list(&kept.cmd), list(&original.cmd));
    // A name without a value is the one way to keep a step's variable out of what the Engine merges.
    let env: Vec<String> = list(&kept.env).into_iter().filter(|entry| entry != "TOKEN").collect();
    assert_eq!(env, list(&original.env));
    assert_eq!(kept.labels.clone().unwrap_or_default(), original.labels.clone().unwrap_or_default());
    assert_eq!(kept.healthcheck, original.healthcheck);
    assert_eq!(kept.volumes.clone().unwrap_or_default(), original.volumes.clone().unwrap_or_default());
}

#[tokio::test]
async fn limits_and_hardening_are_the_kernels() {
    for bench in both_ways().await {
        let mut spec = bench.spec(
            "cd /sys/fs/cgroup
             cat memory/memory.limit_in_bytes memory.max 2>/dev/null || :
             cat pids/pids.max pids.max 2>/dev/null || :
             cat cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 cpu.max
             grep -E 'NoNewPrivs|CapEff' /proc/self/status
             cat /proc/self/oom_score_adj
             ls /sys/class/net",
        );
        spec.resources = Resources { memory_bytes: Some(64 << 20), cpus: Some(0.5), pids: Some(77) };
        let ran = bench.run(&spec).await;
        let words: Vec<String> = ran.text().split_whitespace().map(str::to_owned).collect();
        // Capabilities by bit: AUDIT_WRITE 29, CHOWN 0, DAC_OVERRIDE 1, FOWNER 3, FSETID 4, KILL 5,
        // NET_BIND_SERVICE 10, SETFCAP 31, SETGID 6, SETUID 7, SYS_CHROOT 18.
        let bits: u64 = [0, 1, 3, 4, 5, 6, 7, 10, 18, 29, 31].iter().map(|bit| 1 << bit).sum();
        let bits = format!("{bits:016x}");
        let expected = ["67108864", "77", "50000", "CapEff:", &bits, "NoNewPrivs:", "1", "0", "lo"];
        assert_eq!(words, expected, "{ran:?}");

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
}

#[tokio::test]
async fn an_oom_kill_is_told_from_a_kill() {
    for bench in both_ways().await {
        let mut spec = bench.spec("exec tail /dev/zero"); // keeps the last line, which never ends
        spec.resources.memory_bytes = Some(16 << 20);
        let ran = bench.run(&spec).await;
        assert_eq!(ran.status(), bench.killed());
        assert!(ran.exit.unwrap().oom_killed);
        bench.clean().await;
    }
}

#[tokio::test]
async fn injected_files_belong_to_the_steps_user_and_nothing_else_changes() {
    for bench in both_ways().await {
        let script =
            "cd /; stat -c '%U %a %n' /home /home/tester /home/tester/deep /home/tester/deep/er/f /tmp /tmp/sub";
        let spec = bench.spec_on(CONFIGURED, script); // its own USER is tester
        bench.create(&spec).await;
        let tar = tar_of(&[("./", ""), ("f", "x")]);
        bench.engine.inject(&spec.name, None, "/home/tester/deep/er", Cursor::new(tar)).await.unwrap();
        let tar = tar_of(&[("./", ""), ("sub/", "")]);
        bench.engine.inject(&spec.name, Some("tester"), "/tmp", Cursor::new(tar)).await.unwrap();
        let ran = read(bench.start(&spec).await).await;
        let expected = "root 755 /home\ntester 755 /home/tester\ntester 755 /home/tester/deep\n\
                        tester 640 /home/tester/deep/er/f\nroot 1777 /tmp\ntester 750 /tmp/sub\n";
        assert_eq!(ran.text(), expected, "{ran:?}");
        bench.clean().await;
    }
}

#[tokio::test]
async fn a_user_who_is_not_there_cannot_be_started() {
    for bench in both_ways().await {
        let mut spec = bench.spec("true");
        spec.command.user = Some("nosuch".to_owned());
        bench.create(&spec).await;
        let tar = Cursor::new(tar_of(&[]));
        let error = bench.engine.start(&spec.name, &spec.command).await.unwrap_err();
        assert!(matches!(error, EngineError::CannotStart { exit: None, .. }), "{error:?}");
        let error = bench.engine.inject(&spec.name, Some("nosuch"), "/x", tar).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Request, "{error:?}");
        assert!(error.to_string().contains("nosuch"), "{error}");
        bench.clean().await;
    }
}

#[tokio::test]
async fn a_removed_snapshot_leaves_no_image_behind() {
    for bench in both_ways().await {
        let snapshot = bench.committed("echo kept > /file").await;
        let spec = bench.spec_on(snapshot.as_str(), "cat /file");
        bench.create(&spec).await;
        let client = behind().await;
        let id = client.inspect_image(snapshot.as_str()).await.unwrap().id.unwrap();
        bench.engine.remove_snapshot(&snapshot).await.unwrap();
        client.inspect_image(&id).await.unwrap();
        // A child that was committed from it needs it as well, until that is removed.
        let child = bench.snapshot();
        bench.engine.commit(&spec.name, &child).await.unwrap();
        bench.engine.destroy(&spec.name).await.unwrap();
        bench.engine.remove_snapshot(&child).await.unwrap();
        assert!(client.inspect_image(&id).await.is_err());
        bench.clean().await;
    }
}

/// What a supervisor is mounted on, and what files are injected by, leaves no trace in an image.
#[tokio::test]
async fn a_commit_has_the_steps_files_alone() {
    let bench = bench().await;
    let before = bench.committed("true").await;
    let spec = bench.spec("echo x > /of-the-step");
    bench.create(&spec).await;
    bench.engine.inject(&spec.name, None, "/injected", Cursor::new(tar_of(&[("f", "x")]))).await.unwrap();
    assert_eq!(read(bench.start(&spec).await).await.code(), 0);
    assert_eq!(bench.engine.clean(&spec.name).await.unwrap(), Cleaned::Ready);
    let after = bench.snapshot();
    bench.engine.commit(&spec.name, &after).await.unwrap();
    let (before, after) = (paths_of(before.as_str()).await, paths_of(after.as_str()).await);
    let new: Vec<_> = after.iter().filter(|path| !before.contains(path)).collect();
    assert_eq!(new, ["injected/", "injected/f", "of-the-step"]);
    assert!(before.iter().all(|path| !path.contains("longshore")), "{before:?}");
    bench.clean().await;
}

/// Every path in an image, in order: of a container of it that never ran.
async fn paths_of(image: &str) -> Vec<String> {
    let client = behind().await;
    let name = format!("test-{}", Uuid::new_v4().simple());
    let options = CreateContainerOptionsBuilder::new().name(&name).build();
    let body = bollard::models::ContainerCreateBody {
        image: Some(image.to_owned()),
        cmd: Some(vec!["none".to_owned()]),
        ..Default::default()
    };
    client.create_container(Some(options), body).await.unwrap();
    let chunks: Vec<bytes::Bytes> = client.export_container(&name).try_collect().await.unwrap();
    let options = RemoveContainerOptionsBuilder::new().force(true).build();
    client.remove_container(&name, Some(options)).await.unwrap();
    let mut archive = tar::Archive::new(Cursor::new(chunks.concat()));
    let entries = archive.entries().unwrap().map(Result::unwrap);
    let mut paths: Vec<_> = entries.map(|entry| entry.path().unwrap().display().to_string()).collect();
    paths.sort();
    paths
}
