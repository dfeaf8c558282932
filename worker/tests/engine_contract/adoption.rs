//! P10, P16: a worker that is killed, and what its next incarnation finds.

use std::time::Duration;

use longshore_protocol::output::{Offsets, Stream};
use longshore_worker::Boot;
use longshore_worker::engine::{
    Adopted, Cleaned, CommandLease, ContainerName, Engine, EngineError, ExitStatus, Running,
};
use tokio::time::timeout;

use crate::bench::{Bench, FOR_EVER, PATIENCE, create, read, read_until};

/// 2.7 MB: more than a supervisor keeps, so that a command whose output nobody takes is in the middle of it.
const LINES: usize = 400_000;

fn at(stdout: usize) -> Offsets {
    Offsets { stdout: stdout as u64, stderr: 0 }
}

/// Takes some more of standard output, as a worker whose disk is behind by some bytes, and the acknowledgement by some
/// more. Answers what is on the disk.
async fn spool_some(running: &mut Running, from: usize) -> Vec<u8> {
    const BEHIND: usize = 1000;
    let mut read = Vec::new();
    while read.len() < 300_000 {
        let piece = running.output.recv().await.unwrap();
        assert_eq!(piece.stream, Stream::Stdout);
        read.extend_from_slice(&piece.bytes);
        running.spooled.send_replace(at(from + read.len().saturating_sub(2 * BEHIND)));
    }
    read.truncate(read.len() - BEHIND);
    read
}

pub async fn p10_a_command_is_adopted_in_the_middle_of_its_output<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec(&format!("seq {LINES}; echo end >&2; exit 7"));
    let (name, attempt) = (spec.name.clone(), spec.command.attempt.clone());
    let mut spooled = bench
        .before_its_death(|engine| async move {
            create(&engine, &spec).await;
            let mut running = engine.start(&spec.name, &spec.command).await.unwrap();
            spool_some(&mut running, 0).await
        })
        .await;
    // Another one is killed as well.
    let (container, known, have) = (name.clone(), attempt.clone(), spooled.len());
    let more = bench
        .before_its_death(move |engine| async move {
            match engine.adopt(&container, at(have)).await.unwrap() {
                Adopted::Command { attempt, mut running, .. } => {
                    assert_eq!(attempt, known);
                    spool_some(&mut running, have).await
                }
                Adopted::Idle => panic!("the command is not known any more"),
            }
        })
        .await;
    spooled.extend(more);

    let (ran, running) = bench.adopt_command(&name, &attempt, at(spooled.len())).await;
    let rest = read(running).await;
    spooled.extend(&rest.stdout);
    let whole: String = (1..=LINES).map(|n| n.to_string() + "\n").collect();
    assert!(spooled == whole.as_bytes(), "every number once, in order: {} of {}", spooled.len(), whole.len());
    assert_eq!((rest.stderr.as_slice(), rest.code()), (&b"end\n"[..], 7));
    assert!(rest.exit.unwrap().ran.unwrap() >= ran, "from its start on");
    bench.clean().await;
}

/// P16: the exit is kept for whoever has it not on disk.
pub async fn p16_an_exit_that_nobody_heard_is_found<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec("echo one; echo two >&2; exit 5");
    let (name, attempt) = (spec.name.clone(), spec.command.attempt.clone());
    bench
        .before_its_death(|engine| async move {
            create(&engine, &spec).await;
            let running = engine.start(&spec.name, &spec.command).await.unwrap();
            // Heard, and not written down: as good as not heard.
            assert_eq!(running.exit.await.unwrap().unwrap().status, ExitStatus::Code(5));
        })
        .await;
    let (_, running) = bench.adopt_command(&name, &attempt, Offsets::default()).await;
    let ran = read(running).await;
    assert_eq!((ran.stdout.as_slice(), ran.stderr.as_slice(), ran.code()), (&b"one\n"[..], &b"two\n"[..], 5));
    // Only the next command, or a cleaning, makes it forget.
    assert_eq!(bench.engine.clean(&name).await.unwrap(), Cleaned::Ready);
    assert_eq!(bench.run_in(&name, "echo next").await.text(), "next\n");
    bench.clean().await;
}

pub async fn p10_an_adopted_command_is_stopped<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec("trap 'echo bye; exit 5' TERM\necho up\nsleep 3600 & wait\necho not reached");
    let (name, attempt) = (spec.name.clone(), spec.command.attempt.clone());
    bench
        .before_its_death(|engine| async move {
            create(&engine, &spec).await;
            let mut running = engine.start(&spec.name, &spec.command).await.unwrap();
            read_until(&mut running, "up\n").await;
        })
        .await;
    let (_, running) = bench.adopt_command(&name, &attempt, at(3)).await;
    bench.engine.stop(&name, FOR_EVER).await.unwrap();
    let ran = read(running).await;
    assert_eq!((ran.text().as_str(), ran.code()), ("bye\n", 5));
    bench.clean().await;
}

/// Made and not started, or parked: a command may be started in both.
pub async fn p10_an_idle_container_is_adopted<E: Engine>(bench: Bench<E>) {
    let (made, parked) = (bench.spec("echo made"), bench.spec("echo parked > /f"));
    let (first, second) = (made.clone(), parked.clone());
    bench
        .before_its_death(|engine| async move {
            create(&engine, &first).await;
            create(&engine, &second).await;
            assert_eq!(read(engine.start(&second.name, &second.command).await.unwrap()).await.code(), 0);
            assert_eq!(engine.clean(&second.name).await.unwrap(), Cleaned::Ready);
        })
        .await;
    for spec in [&made, &parked] {
        let adopted = bench.adopt(&spec.name, Offsets::default()).await.unwrap();
        assert!(matches!(adopted, Adopted::Idle), "{adopted:?}");
    }
    assert_eq!(read(bench.start(&made).await).await.text(), "made\n");
    assert_eq!(bench.run_in(&parked.name, "cat /f").await.text(), "parked\n");
    bench.clean().await;
}

pub async fn p10_what_is_gone_is_not_adopted<E: Engine>(bench: Bench<E>) {
    let nowhere = ContainerName::of(&bench.fence());
    let error = timeout(PATIENCE, bench.adopt(&nowhere, Offsets::default())).await.unwrap().unwrap_err();
    assert!(matches!(error, EngineError::Gone { .. }), "{error:?}");
    bench.clean().await;
}

/// P17: nobody comes back, and the timer of the last command ends the container.
pub async fn p17_a_command_past_its_limit_ends_without_its_worker<E: Engine>(bench: Bench<E>) {
    let mut spec = bench.spec("trap '' TERM; echo up; sleep 3600");
    let limit = Duration::from_secs(1);
    spec.command.limit = limit;
    let name = spec.name.clone();
    bench
        .before_its_death(|engine| async move {
            create(&engine, &spec).await;
            drop(engine.start(&spec.name, &spec.command).await.unwrap());
        })
        .await;
    // Nobody is there who could be told that it is over.
    tokio::time::sleep(limit).await;
    // Found dead, or in its last moment: how it ended is not told as its own.
    match timeout(PATIENCE, bench.adopt(&name, Offsets::default())).await.unwrap() {
        Ok(Adopted::Command { running, .. }) => match timeout(PATIENCE, read(running)).await.unwrap().exit {
            Ok(exit) => assert_eq!(exit.status, ExitStatus::Signal(9)),
            Err(error) => assert!(matches!(error, EngineError::Gone { .. }), "{error:?}"),
        },
        Ok(Adopted::Idle) => panic!("a command was started"),
        Err(error) => assert!(matches!(error, EngineError::Gone { .. }), "{error:?}"),
    }
    bench.clean().await;
}

/// P18: the timer is the supervisor's. Whoever comes next hears how it ended.
pub async fn p18_a_lease_ends_without_a_worker<E: Engine>(bench: Bench<E>) {
    let mut spec = bench.spec("trap '' TERM; echo up; sleep 3600");
    let (name, attempt) = (spec.name.clone(), spec.command.attempt.clone());
    let dead_by = bench
        .before_its_death(|engine| async move {
            create(&engine, &spec).await;
            // Made behind the container, which takes its time.
            let dead_by = Boot::now().after(Duration::from_secs(6));
            spec.command.lease = Some(CommandLease { dead_by, grace: Duration::from_secs(3) });
            let mut running = engine.start(&spec.name, &spec.command).await.unwrap();
            read_until(&mut running, "up\n").await;
            dead_by
        })
        .await;
    let (_, running) = bench.adopt_command(&name, &attempt, at(3)).await;
    let exit = timeout(PATIENCE, read(running)).await.expect("it is ended").exit.unwrap();
    assert_eq!((exit.status, exit.out_of_lease), (ExitStatus::Signal(9), true));
    assert!(Boot::now() >= dead_by);
    bench.clean().await;
}
