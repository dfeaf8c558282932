//! `docs/protocol.md` shows every message as it really is.

// A panic is how a test says no, in its helpers too.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use longshore_protocol::control::{Control, ControlMessage};
use longshore_protocol::event::{Event, EventMessage, Phase};
use longshore_protocol::heartbeat::HeartbeatMessage;
use longshore_protocol::job::{Base, Command, Job, Keep, Network};
use longshore_protocol::outcome::{CancelledBy, InfraStage, Outcome};
use longshore_protocol::output::{Ending, OutputMessage, Stream};
use longshore_protocol::{ExecutionId, wire};
use serde::Serialize;
use serde::de::DeserializeOwned;

const PAGE: &str = include_str!("../../docs/protocol.md");

/// Variants by name, as `Enum::Variant`.
type Seen = BTreeSet<&'static str>;

/// For each enum a function that names a value's variant, and the list of all names. The match is
/// exhaustive: a new variant does not compile until it is written here, and then wants an example.
macro_rules! variants {
    ($($function:ident: $enum:ident { $($variant:ident),+ })+) => {
        $(
            fn $function(value: &$enum) -> &'static str {
                match value {
                    $($enum::$variant { .. } => concat!(stringify!($enum), "::", stringify!($variant)),)+
                }
            }
        )+

        fn all() -> Seen {
            [$($(concat!(stringify!($enum), "::", stringify!($variant)),)+)+].into()
        }
    };
}

variants! {
    base: Base { Image, Parent }
    keep: Keep { Nothing, Live, Snapshot, Always, Cached }
    command: Command { Script, Argv }
    network: Network { None, Bridge }
    event: Event { Hello, Accepted, Started, Finished, Records }
    phase: Phase { Preparing, Running, Snapshotting, Finished }
    outcome: Outcome { Passed, Failed, Signaled, TimedOut, OomKilled, Cancelled, Skipped, Infra }
    cancelled_by: CancelledBy { User, Sibling, RunTimeout }
    stage: InfraStage { Queue, Claim, Prepare, Exec, Snapshot, Lease }
    heartbeat: HeartbeatMessage { Heartbeat, Tick }
    stream: Stream { Stdout, Stderr }
    ending: Ending { Newline, Split, Eof }
    control: Control { Abandon, Go, Heard, Cancel, Settled, Sync, Resend, Stored, Release, RemoveSnapshot, Refused }
}

/// The type and the text of every example.
fn examples() -> impl Iterator<Item = (&'static str, &'static str)> {
    PAGE.split("\n```json ").skip(1).map(|rest| {
        let (kind, rest) = rest.split_once('\n').expect("a block has a first line");
        let (body, _) = rest.split_once("\n```").expect("a block has an end");
        (kind.trim(), body)
    })
}

/// Reads an example as its type and compares what is written again: nothing was dropped, and
/// nothing filled in.
fn read<M: Serialize + DeserializeOwned>(body: &str) -> M {
    let message = wire::decode::<M>(body.as_bytes()).unwrap_or_else(|error| panic!("{error}\n{body}"));
    let again: serde_json::Value = serde_json::from_slice(&wire::encode(&message)).unwrap();
    assert_eq!(again, serde_json::from_str::<serde_json::Value>(body).unwrap());
    message
}

fn see_outcome(value: &Outcome, seen: &mut Seen) {
    seen.insert(outcome(value));
    match value {
        Outcome::Cancelled { by } => seen.insert(cancelled_by(by)),
        Outcome::Infra { stage: which, .. } => seen.insert(stage(which)),
        _ => false,
    };
}

fn see_phase(value: &Phase, seen: &mut Seen) {
    seen.insert(phase(value));
    if let Phase::Finished(finished) = value {
        see_outcome(&finished.outcome, seen);
    }
}

fn see_event(message: &EventMessage, seen: &mut Seen) {
    seen.insert(event(&message.event));
    match &message.event {
        Event::Finished(finished) => see_outcome(&finished.outcome, seen),
        Event::Hello(hello) => hello.records.iter().for_each(|record| see_phase(&record.phase, seen)),
        Event::Records { records } => records.iter().for_each(|record| see_phase(&record.phase, seen)),
        Event::Accepted(_) | Event::Started(_) => {}
    }
}

fn see_job(job: &Job, seen: &mut Seen) {
    seen.extend([base(&job.base), keep(&job.keep), command(&job.spec.command), network(&job.spec.network)]);
    assert_eq!(job.execution, ExecutionId::of_step(job.run, &job.step), "the example's execution is its step's");
}

fn see_output(message: &OutputMessage, body: &str, seen: &mut Seen) {
    for run in &message.runs {
        seen.extend([stream(&run.stream), ending(&run.ending)]);
    }
    for pair in message.runs.windows(2).filter(|pair| pair[0].stream == pair[1].stream) {
        assert_eq!(pair[0].end(), pair[1].offset, "runs of a stream follow one another");
    }
    seen.extend(body.contains("\"text\"").then_some("LineData::text"));
    seen.extend(body.contains("\"base64\"").then_some("LineData::base64"));
}

#[test]
fn every_message_has_an_example_that_can_be_read() {
    let mut seen = Seen::new();
    for (kind, body) in examples() {
        match kind {
            "Job" => see_job(&read(body), &mut seen),
            "EventMessage" => see_event(&read(body), &mut seen),
            "HeartbeatMessage" => {
                seen.insert(heartbeat(&read(body)));
            }
            "OutputMessage" => see_output(&read(body), body, &mut seen),
            "ControlMessage" => {
                let message: ControlMessage = read(body);
                seen.insert(control(&message.control));
                if let Control::Cancel { by, .. } = &message.control {
                    seen.insert(cancelled_by(by));
                }
            }
            other => panic!("no message is called {other:?}"),
        }
    }
    let mut wanted = all();
    wanted.extend(["LineData::text", "LineData::base64"]);
    wanted.remove("InfraStage::Queue"); // decided by the coordinator: nobody sends it
    let missing: Vec<_> = wanted.difference(&seen).copied().collect();
    assert!(missing.is_empty(), "docs/protocol.md has no example of {missing:?}");
}

/// Adds a field to every object, at any depth; but the environment's names are the user's, and where one of several
/// forms is named by the only field there is (`command`, `by`), another field would be another form.
fn add(value: &mut serde_json::Value, name: &str) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.iter_mut().for_each(|(name, value)| add(value, name));
            if !matches!(name, "env" | "command" | "by") {
                fields.insert("since_then".to_owned(), serde_json::json!([1, { "x": null }]));
            }
        }
        serde_json::Value::Array(values) => values.iter_mut().for_each(|value| add(value, name)),
        _ => {}
    }
}

#[test]
fn p1_every_example_survives_what_a_newer_sender_adds() {
    for (kind, body) in examples() {
        let mut more: serde_json::Value = serde_json::from_str(body).unwrap();
        add(&mut more, "");
        let more = more.to_string();
        let understood = match kind {
            "Job" => wire::decode::<Job>(more.as_bytes()).is_ok(),
            "EventMessage" => wire::decode::<EventMessage>(more.as_bytes()).is_ok(),
            "HeartbeatMessage" => wire::decode::<HeartbeatMessage>(more.as_bytes()).is_ok(),
            "OutputMessage" => wire::decode::<OutputMessage>(more.as_bytes()).is_ok(),
            _ => wire::decode::<ControlMessage>(more.as_bytes()).is_ok(),
        };
        assert!(understood, "{more}");
    }
}
