//! What goes wrong between worker, Engine and containers, on a real Engine.

use std::sync::Arc;
use std::time::Duration;

use bollard::query_parameters::{KillContainerOptionsBuilder, TopOptionsBuilder, WaitContainerOptions};
use futures_util::StreamExt;
use longshore_protocol::output::Offsets;
use longshore_worker::engine::docker::DockerEngine;
use longshore_worker::engine::{Cleaned, ContainerName, Engine, EngineError, ErrorClass, ExitStatus};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::bench::{Bench, Connect, FOR_EVER, Kit, PATIENCE, create, read, read_until};
use crate::docker_kit::{address, behind, both_ways, kit, supervised as bench};

/// Docker behind a door that can be shut: whatever passes there of one kind of call is cut off then.
struct Door {
    bench: Bench<DockerEngine>,
    shut: tokio::sync::watch::Sender<&'static str>,
    _dir: tempfile::TempDir,
}

async fn door(direct: bool) -> Door {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("docker.sock");
    let address = address().await;
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
                    biased;
                    _ = told.wait_for(|kind| line.contains(kind)) => {}
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                }
            });
        }
    });
    let address = format!("unix://{}", path.display());
    let connect: Connect<DockerEngine> = Arc::new(move || {
        let address = address.clone();
        Box::pin(async move { DockerEngine::connect(Some(&address)).await.unwrap() })
    });
    let bench = Bench::new(Kit { connect, ..kit(direct) }).await;
    Door { bench, shut, _dir: dir }
}

#[tokio::test]
async fn an_engine_that_breaks_off_gives_no_exit_code_and_is_told_at_once() {
    for call in ["/wait", "/attach"] {
        let Door { bench, shut, _dir } = door(true).await;
        // Quiet: nothing but the connection tells that anything is wrong.
        let spec = bench.spec("echo up; sleep 3600");
        bench.create(&spec).await;
        let mut running = bench.start(&spec).await;
        read_until(&mut running, "up\n").await;
        shut.send_replace(call);
        let ran = timeout(PATIENCE, read(running)).await.expect("at once");
        assert!(matches!(ran.exit, Err(EngineError::Unreachable { .. })), "{call}: {ran:?}");
        shut.send_replace("nothing");
        bench.clean().await;
    }
}

/// Between worker and supervisor stands no Engine.
#[tokio::test]
async fn an_engine_that_breaks_off_is_nothing_to_a_supervised_command() {
    let Door { bench, shut, _dir } = door(false).await;
    let spec = bench.spec("trap 'echo down; exit 4' TERM; echo up; sleep 3600 & wait");
    bench.create(&spec).await;
    let mut running = bench.start(&spec).await;
    read_until(&mut running, "up\n").await;
    shut.send_replace("/"); // in every call
    bench.engine.info().await.unwrap_err();
    timeout(PATIENCE, bench.engine.stop(&spec.name, FOR_EVER)).await.expect("at once").unwrap();
    let ran = timeout(PATIENCE, read(running)).await.expect("at once");
    assert_eq!((ran.text().as_str(), ran.code()), ("down\n", 4));
    shut.send_replace("nothing");
    bench.clean().await;
}

#[tokio::test]
async fn a_command_that_closes_its_output_goes_on_and_its_exit_code_counts() {
    for bench in both_ways().await {
        let ran = bench.run_script("echo up; exec >&- 2>&-; sleep 1; exit 4").await;
        assert_eq!((ran.text().as_str(), ran.code()), ("up\n", 4));
        bench.clean().await;
    }
}

/// Whatever it is that a person, or the host, does to a container: it is the fleet's fault, and told at once.
#[tokio::test]
async fn a_container_that_is_killed_from_outside_is_told_at_once() {
    let bench = bench().await;
    let (running, parked) = (bench.spec("echo up; sleep 3600"), bench.spec("true"));
    bench.create(&running).await;
    let mut started = bench.start(&running).await;
    read_until(&mut started, "up\n").await;
    bench.run(&parked).await;
    assert_eq!(bench.engine.clean(&parked.name).await.unwrap(), Cleaned::Ready);
    let kill = KillContainerOptionsBuilder::new().signal("KILL").build();
    for name in [&running.name, &parked.name] {
        behind().await.kill_container(name.as_str(), Some(kill.clone())).await.unwrap();
    }
    let ran = timeout(PATIENCE, read(started)).await.expect("at once");
    let error = ran.exit.expect_err("nobody can tell how it would have ended");
    assert_eq!(error.class(), ErrorClass::Host, "{error:?}");
    timeout(PATIENCE, bench.engine.start(&parked.name, &parked.command)).await.expect("at once").unwrap_err();
    bench.clean().await;
}

/// Ignores TERM, in several generations; one of them in a session of its own.
const TREE: &str = "trap '' TERM; (trap '' TERM; setsid sleep 3601 &); sh -c 'trap \"\" TERM; sleep 3602; :' & ";

/// Everything that a command started is gone when it was stopped, whatever it did to get away; also when it ended.
#[tokio::test]
async fn nothing_of_a_tree_is_left() {
    let bench = bench().await;
    let processes = async |name: &ContainerName| {
        let options = TopOptionsBuilder::new().ps_args("-eo pid,args").build();
        let top = behind().await.top_processes(name.as_str(), Some(options)).await.unwrap();
        top.processes.unwrap_or_default()
    };
    let spec = bench.spec(&format!("{TREE} echo up; wait; sleep 3600"));
    bench.create(&spec).await;
    let mut running = bench.start(&spec).await;
    read_until(&mut running, "up\n").await;
    bench.engine.stop(&spec.name, Duration::from_millis(100)).await.unwrap();
    assert_eq!(processes(&spec.name).await.len(), 1, "its supervisor");
    assert_eq!(read(running).await.status(), ExitStatus::Signal(9));

    assert_eq!(bench.engine.clean(&spec.name).await.unwrap(), Cleaned::Ready);
    let ran = timeout(PATIENCE, bench.run_in(&spec.name, &format!("{TREE} echo left; exit 3"))).await.expect("at once");
    assert_eq!((ran.text().as_str(), ran.code()), ("left\n", 3));
    assert_eq!(processes(&spec.name).await.len(), 1, "its supervisor");
    bench.clean().await;
}

/// P17: a worker that never comes back leaves nothing that runs.
#[tokio::test]
async fn p17_what_nobody_adopts_ends_itself() {
    let mut bench = bench().await;
    // It counts from a supervisor's start, of which the worker hears only after the Engine's answer.
    bench.duty.orphan = Duration::from_secs(5);
    let (running, idle) = (bench.spec("trap '' TERM; echo up; sleep 3600"), bench.spec("true"));
    let (first, second) = (running.clone(), idle.clone());
    bench
        .before_its_death(|engine| async move {
            create(&engine, &second).await;
            create(&engine, &first).await;
            let mut started = engine.start(&first.name, &first.command).await.unwrap();
            read_until(&mut started, "up\n").await;
        })
        .await;
    for spec in [&running, &idle] {
        let client = behind().await;
        let mut ended = client.wait_container(spec.name.as_str(), None::<WaitContainerOptions>);
        // An exit code other than 0 is an error of that call: that there is an answer counts.
        timeout(PATIENCE, ended.next()).await.expect("it ends itself").unwrap().ok();
        let error = bench.adopt(&spec.name, Offsets::default()).await.unwrap_err();
        assert!(matches!(error, EngineError::Gone { .. }), "{error:?}");
    }
    bench.clean().await;
}
