//! The task against a supervisor that the test plays: what a real one does too seldom.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bollard::{API_DEFAULT_VERSION, Docker};
use longshore_protocol::output::Offsets;
use longshore_supervisor::wire::{
    self, CannotStart, Decoder, Ended, Exited, FromSupervisor, Inject, Progress, Run, Started, State, SupervisorHello,
    ToSupervisor, VERSION, Whose,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::super::super::super::{Adopted, EngineError, ErrorClass, ExitStatus, Running};
use super::super::away::Identity;
use super::super::link::{Ask, Link, Opening};
use super::Task;

/// Nobody listens there: an Engine that is away.
const NO_ENGINE: &str = "http://127.0.0.1:1";

struct Rig {
    dir: TempDir,
    link: Link,
}

impl Rig {
    fn new(opening: Opening) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("sock")).unwrap();
        let (link, asks, lost): (Link, mpsc::Receiver<Ask>, Arc<OnceLock<EngineError>>) = Link::new();
        let identity = Identity {
            container: "c".to_owned(),
            // The supervisor of these tests is this process.
            pid: i32::try_from(std::process::id()).unwrap(),
            client: Docker::connect_with_http(NO_ENGINE, 5, API_DEFAULT_VERSION).unwrap(),
            orphan: Duration::from_mins(10),
        };
        tokio::spawn(Task::new(identity, listener, asks, opening).run(CancellationToken::new(), lost));
        Self { dir, link }
    }

    /// A container that was just made, and its supervisor.
    async fn opened() -> (Self, Played) {
        let (answer, opened) = oneshot::channel();
        let rig = Self::new(Opening::New(answer));
        let played = rig.connect(State::Idle).await;
        opened.await.unwrap().unwrap();
        (rig, played)
    }

    async fn connect(&self, state: State) -> Played {
        let mut played = self.connect_silently().await;
        played.say(FromSupervisor::Hello(SupervisorHello { version: VERSION, pid: 1, state, clean: true })).await;
        assert!(matches!(played.hear().await, ToSupervisor::Hello(hello) if hello.orphan_ms == 600_000));
        played
    }

    async fn connect_silently(&self) -> Played {
        let stream = UnixStream::connect(self.dir.path().join("sock")).await.unwrap();
        Played { stream, decoder: Decoder::new() }
    }

    /// Asks for a command, and does not wait for the answer.
    async fn run(&self) -> oneshot::Receiver<Result<Running, EngineError>> {
        let run = Run {
            id: "a".to_owned(),
            argv: vec!["x".to_owned()],
            env: Vec::new(),
            workdir: None,
            user: None,
            limit_ms: 1000,
            lease: None,
            volumes: Vec::new(),
        };
        let (answer, running) = oneshot::channel();
        self.link.ask(Ask::Run(run, answer)).await.unwrap();
        running
    }

    async fn stop(&self, grace: Duration) -> oneshot::Receiver<Result<(), EngineError>> {
        let (answer, stopped) = oneshot::channel();
        self.link.ask(Ask::Stop(grace, answer)).await.unwrap();
        stopped
    }
}

struct Played {
    stream: UnixStream,
    decoder: Decoder<ToSupervisor>,
}

impl Played {
    async fn say(&mut self, message: FromSupervisor) {
        let mut frame = Vec::new();
        wire::encode(&message, &mut frame).unwrap();
        self.stream.write_all(&frame).await.unwrap();
    }

    async fn write(&mut self, offset: u64, text: &str) {
        let (id, bytes) = ("a".to_owned(), text.as_bytes().to_vec());
        let output = wire::Output { id, stream: wire::Stream::Stdout, at_ms: 0, offset, bytes };
        self.say(FromSupervisor::Output(output)).await;
    }

    async fn exit(&mut self, stdout: u64) {
        self.say(FromSupervisor::Exited(Exited { id: "a".to_owned(), exit: exit(stdout) })).await;
    }

    async fn start(&mut self) {
        assert!(matches!(self.hear().await, ToSupervisor::Run(run) if run.id == "a"));
        self.say(FromSupervisor::Started(Started { id: "a".to_owned(), pid: 2 })).await;
    }

    async fn hear(&mut self) -> ToSupervisor {
        loop {
            if let Some(message) = self.decoder.pop() {
                return message.unwrap();
            }
            let mut bytes = [0; 4096];
            let read = self.stream.read(&mut bytes).await.unwrap();
            assert!(read > 0, "the worker has hung up");
            let _ = self.decoder.push(&bytes[..read]);
        }
    }

    /// Until the worker hangs up.
    async fn until_left(mut self) {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).await.unwrap();
    }
}

fn exit(stdout: u64) -> wire::Exit {
    wire::Exit {
        status: wire::Status::Code(4),
        oom_killed: false,
        ran_ms: 9,
        usage: wire::Usage::default(),
        offsets: wire::Offsets { stdout, stderr: 0 },
        by: wire::EndedBy::Itself,
    }
}

fn progress(from: u64, have: u64) -> Progress {
    let offsets = |stdout| wire::Offsets { stdout, stderr: 0 };
    Progress { id: "a".to_owned(), pid: 2, ran_ms: 5, from: offsets(from), have: offsets(have) }
}

/// What a spool would have, and the exit.
async fn read(mut running: Running) -> (String, Result<ExitStatus, EngineError>) {
    let mut text = Vec::new();
    while let Some(piece) = running.output.recv().await {
        text.extend_from_slice(&piece.bytes);
        running.spooled.send_replace(Offsets { stdout: text.len() as u64, stderr: 0 });
    }
    (String::from_utf8(text).unwrap(), running.exit.await.unwrap().map(|exit| exit.status))
}

#[tokio::test]
async fn p16_a_lost_connection_loses_nothing_and_doubles_nothing() {
    let (rig, mut played) = Rig::opened().await;
    let running = rig.run().await;
    played.start().await;
    let running = running.await.unwrap().unwrap();
    let much = "x".repeat(70_000);
    let upto = much.len() as u64;
    running.spooled.send_replace(Offsets { stdout: upto, stderr: 0 });
    played.write(0, &much).await;
    played.write(upto, "def").await;
    // It is acknowledged as far as it is on the disk, and no further.
    let ToSupervisor::Acked(acked) = played.hear().await else { panic!("an acknowledgement comes first") };
    assert_eq!(acked.upto.stdout, upto);
    drop(played);

    let mut played = rig.connect(State::Running(progress(upto, upto + 5))).await;
    // A supervisor that did not hear the first one hears it again.
    assert_eq!(played.hear().await, ToSupervisor::Acked(acked));
    played.write(upto, "defgh").await;
    drop(played);
    let ended = Ended { progress: progress(upto, upto + 7), exit: exit(upto + 7) };
    let mut played = rig.connect(State::Ended(ended)).await;
    played.write(upto, "defghij").await;
    played.exit(upto + 7).await;
    let (text, status) = read(running).await;
    assert_eq!((text, status.unwrap()), (much + "defghij", ExitStatus::Code(4)));
}

#[tokio::test]
async fn what_was_not_heard_is_said_again() {
    let (rig, mut played) = Rig::opened().await;
    let running = rig.run().await;
    assert!(matches!(played.hear().await, ToSupervisor::Run(_)));
    drop(played);
    let mut played = rig.connect(State::Idle).await;
    played.start().await;
    let running = running.await.unwrap().unwrap();

    let stopped = rig.stop(Duration::ZERO).await;
    assert!(matches!(played.hear().await, ToSupervisor::Stop(stop) if stop.grace_ms == 0 && stop.id == "a"));
    drop(played);
    let mut played = rig.connect(State::Running(progress(0, 0))).await;
    assert!(matches!(played.hear().await, ToSupervisor::Stop(_)));
    played.exit(0).await;
    stopped.await.unwrap().unwrap();
    assert_eq!(read(running).await.1.unwrap(), ExitStatus::Code(4));
    // What has ended needs no stop.
    rig.stop(Duration::ZERO).await.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stop_does_not_wait_for_whoever_reads() {
    let (rig, mut played) = Rig::opened().await;
    let running = rig.run().await;
    played.start().await;
    let running = running.await.unwrap().unwrap();
    let stopped = rig.stop(Duration::ZERO).await;
    // Far more pieces than wait for a reader.
    for offset in 0..100 {
        played.write(offset, "x").await;
    }
    played.exit(100).await;
    stopped.await.unwrap().unwrap();
    let (text, status) = read(running).await;
    assert_eq!((text.len(), status.unwrap()), (100, ExitStatus::Code(4)));
}

#[tokio::test]
async fn an_exit_without_all_of_the_output_is_none() {
    let (rig, mut played) = Rig::opened().await;
    let running = rig.run().await;
    played.start().await;
    let running = running.await.unwrap().unwrap();
    played.write(0, "abc").await;
    played.exit(4).await;
    let (_, status) = read(running).await;
    assert!(status.unwrap_err().to_string().contains("4 and 0 bytes"));
}

#[tokio::test]
async fn whose_fault_a_start_is() {
    let (rig, mut played) = Rig::opened().await;
    for (whose, class) in [(Whose::Refused, ErrorClass::Request), (Whose::Io, ErrorClass::Retry)] {
        let running = rig.run().await;
        assert!(matches!(played.hear().await, ToSupervisor::Run(_)));
        let cannot = CannotStart { id: "a".to_owned(), exit: Some(127), reason: "no".to_owned(), whose };
        played.say(FromSupervisor::CannotStart(cannot)).await;
        let error = running.await.unwrap().unwrap_err();
        assert_eq!(error.class(), class, "{error}");
    }
}

#[tokio::test]
async fn an_injection_whose_connection_was_lost_may_be_tried_again() {
    let (rig, mut played) = Rig::opened().await;
    let (answer, injected) = oneshot::channel();
    rig.link.ask(Ask::Inject(Inject { target: "/t".to_owned(), user: None }, answer)).await.unwrap();
    assert!(matches!(played.hear().await, ToSupervisor::Inject(_)));
    drop(played);
    assert_eq!(injected.await.unwrap().unwrap_err().class(), ErrorClass::Retry);
}

#[tokio::test]
async fn a_supervisor_of_another_version_is_given_up() {
    let (answer, opened) = oneshot::channel();
    let rig = Rig::new(Opening::New(answer));
    let mut played = rig.connect_silently().await;
    let hello = SupervisorHello { version: VERSION + 1, pid: 1, state: State::Idle, clean: true };
    played.say(FromSupervisor::Hello(hello)).await;
    assert!(opened.await.unwrap().unwrap_err().to_string().contains("version"));
    played.until_left().await;
    // And whoever asks later is told the same.
    let (answer, _) = oneshot::channel();
    assert!(rig.link.ask(Ask::End(answer)).await.unwrap_err().to_string().contains("version"));
}

#[tokio::test]
async fn garbage_ends_the_connection_and_nothing_else() {
    let (rig, mut played) = Rig::opened().await;
    let running = rig.run().await;
    played.start().await;
    let running = running.await.unwrap().unwrap();
    played.stream.write_all(&[0xff; 64]).await.unwrap();
    played.until_left().await;
    let mut played = rig.connect(State::Running(progress(0, 0))).await;
    played.exit(0).await;
    assert_eq!(read(running).await.1.unwrap(), ExitStatus::Code(4));
}

#[tokio::test]
async fn p10_what_was_acknowledged_and_is_not_here_cannot_be_adopted() {
    let (answer, adopted) = oneshot::channel();
    let rig = Rig::new(Opening::Adopt(Offsets { stdout: 4, stderr: 0 }, answer));
    let _played = rig.connect(State::Running(progress(5, 9))).await;
    assert!(adopted.await.unwrap().unwrap_err().to_string().contains("not all here"));

    let (answer, adopted) = oneshot::channel();
    let rig = Rig::new(Opening::Adopt(Offsets { stdout: 4, stderr: 0 }, answer));
    let mut played = rig.connect(State::Ended(Ended { progress: progress(2, 6), exit: exit(6) })).await;
    let Adopted::Command { attempt, ran, running } = adopted.await.unwrap().unwrap() else { panic!("it has run") };
    assert_eq!((attempt.as_str(), ran), ("a", Duration::from_millis(5)));
    played.write(2, "cdef").await;
    let (text, status) = read(running).await;
    assert_eq!((text.as_str(), status.unwrap()), ("ef", ExitStatus::Code(4)));
}

#[tokio::test]
async fn when_the_last_handle_goes_so_does_the_connection() {
    let (rig, mut played) = Rig::opened().await;
    let running = rig.run().await;
    played.start().await;
    let running = running.await.unwrap().unwrap();
    drop(rig.link);
    played.until_left().await;
    // Who waits for the command does not wait for ever.
    assert_eq!(running.exit.await.unwrap().unwrap_err().class(), ErrorClass::Retry);
}
