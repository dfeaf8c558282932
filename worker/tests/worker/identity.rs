//! P10: who a worker is across starts, and what it takes over.

use std::path::Path;
use std::time::Duration;

use longshore_protocol::control::Control;
use longshore_protocol::event::{Event, Phase};
use longshore_protocol::job::{Network, Resources};
use longshore_protocol::output::{Offsets, Stream};
use longshore_protocol::{Attempt, ExecutionId, Fence, Outcome, WorkerId};
use longshore_worker::engine::fake::FakeEngine;
use longshore_worker::engine::{CommandSpec, ContainerName, ContainerSpec, Engine as _};
use longshore_worker::{Config, WorkerError};

use crate::fleet::{Fleet, claim, claims};
use crate::process::Process;
use crate::tap::{Mode, Tap};

#[tokio::test]
async fn p10_a_second_process_on_the_same_directory_is_refused() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let error = fleet.start_with(fleet.config()).await.err().unwrap();
    assert!(matches!(error, WorkerError::Locked { .. }), "{error}");
    assert!(error.to_string().contains(&fleet.state().display().to_string()), "{error}");
    worker.stop().await;
}

#[tokio::test]
async fn p10_each_start_is_an_incarnation_of_the_same_worker() {
    let mut fleet = Fleet::new().await;
    let (first, _) = fleet.started().await;
    let (id, incarnation) = (first.id.clone(), first.incarnation);
    first.stop().await;
    let (second, _) = fleet.started().await;
    assert_eq!(second.id, id);
    assert_eq!(second.incarnation.start, incarnation.start + 1);
    assert_ne!(second.incarnation.nonce, incarnation.nonce);
    second.crash().await;
    let (third, _) = fleet.started().await;
    assert_eq!(third.incarnation.start, incarnation.start + 2);
    third.stop().await;
}

#[tokio::test]
async fn p10_a_cloned_disk_shows_by_its_incarnation() {
    let mut fleet = Fleet::new().await;
    let (first, _) = fleet.started().await;
    first.stop().await;
    let clone = fleet.dir.path().join("clone");
    copy(&fleet.state(), &clone);
    let (original, _) = fleet.started().await;
    let cloned = fleet.start_with(Config { state_dir: clone, ..fleet.config() }).await.unwrap();
    assert_eq!(cloned.id, original.id);
    assert_eq!(cloned.incarnation.start, original.incarnation.start);
    assert_ne!(cloned.incarnation.nonce, original.incarnation.nonce, "this is how the coordinator tells");
    cloned.stop().await;
    original.stop().await;
}

#[tokio::test]
async fn p10_an_id_stays_with_its_engine() {
    let mut fleet = Fleet::new().await;
    let (first, _) = fleet.started().await;
    first.stop().await;
    let tap = Tap::new(fleet.broker.another());
    let error = Process::start(fleet.config(), tap, FakeEngine::new("other")).await.err().unwrap();
    assert!(matches!(error, WorkerError::OtherEngine { .. }), "{error}");
}

#[tokio::test]
async fn p10_what_ended_is_listed_and_sent_again_under_new_numbers() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    worker.tap.set(".output", Mode::Hold);
    let job = fleet.job("a", "echo one; echo two >&2; exit 3");
    let told = fleet.carry_out(&job).await;
    // Its output was never published: it is on the disk alone.
    worker.crash().await;

    let (worker, hello) = fleet.started().await;
    assert_eq!(claims(&hello.records), [claim(&job)]);
    assert_eq!(hello.records[0].phase, Phase::Finished(Box::new(told.clone())));
    let again = fleet.message().await;
    assert_eq!((again.number, again.incarnation), (2, worker.incarnation));
    assert_eq!(again.event, Event::Finished(told.clone()));
    let log = fleet.log(&claim(&job), Offsets::default(), told.output).await;
    assert_eq!((log.text(Stream::Stdout).as_str(), log.text(Stream::Stderr).as_str()), ("one\n", "two\n"));

    fleet.control(&worker, Control::Settled { claim: claim(&job) }).await;
    fleet.holds_nothing(&worker).await;
    worker.stop().await;
    let (worker, hello) = fleet.started().await;
    assert_eq!(hello.records, []);
    worker.stop().await;
}

#[tokio::test]
async fn p10_a_finished_that_nobody_heard_is_told_by_the_next_incarnation() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let job = fleet.job("a", "await go; exit 4");
    fleet.running(&job).await;
    worker.tap.set(".events", Mode::Hold);
    fleet.engine.raise("go");
    worker.tap.holds("\"finished\"").await;
    worker.crash().await;

    let (worker, hello) = fleet.started().await;
    let Phase::Finished(finished) = &hello.records[0].phase else { panic!("{hello:?}") };
    assert_eq!(finished.outcome, Outcome::Failed { exit: 4 });
    worker.stop().await;
}

#[tokio::test]
async fn sweeping_leaves_what_others_own() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let own = worker.id.clone();
    worker.stop().await;
    let names: Vec<ContainerName> = [own.as_str(), "other"].into_iter().map(container).collect();
    fleet.engine.ensure_image("base").await.unwrap();
    for name in &names {
        let spec = ContainerSpec {
            name: name.clone(),
            image: "base:latest".to_owned(),
            command: CommandSpec {
                attempt: "another".to_owned(),
                argv: vec!["true".to_owned()],
                env: Vec::new(),
                workdir: None,
                user: None,
                limit: Duration::from_mins(1),
                lease: None,
            },
            resources: Resources::default(),
            network: Network::None,
            tenant: "default".to_owned(),
        };
        fleet.engine.create(&spec).await.unwrap();
    }
    let (worker, _) = fleet.started().await;
    assert_eq!(fleet.containers().await, [names[1].to_string()]);
    worker.stop().await;
}

fn container(owner: &str) -> ContainerName {
    let owner: WorkerId = owner.parse().unwrap();
    let execution = ExecutionId::of_step(longshore_protocol::RunId::new(), &"old".into());
    ContainerName::of(&Fence { execution, attempt: Attempt::FIRST, owner })
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
