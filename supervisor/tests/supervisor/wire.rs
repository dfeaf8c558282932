//! What is not of the protocol, and frames themselves.

use std::io::Write;

use longshore_supervisor::wire::{
    Decoder, FRAME_BYTES_MAX, FromSupervisor, Inject, Output, Started, State, Status, Stop, Stream, SupervisorHello,
    ToSupervisor, VERSION, WireError, WorkerHello, encode, encode_inject_data,
};

use crate::sandbox::{Sandbox, sh};

#[test]
fn garbage_costs_the_connection_and_nothing_else() {
    let sandbox = Sandbox::start();
    sandbox.fifo("/tmp/go");
    let (mut worker, _) = sandbox.accept();
    worker.start(&sh("1", "read x </tmp/go; echo whole; exit 3"));
    drop(worker);
    let frame = |kind: u8, payload: &[u8]| {
        let mut bytes = u32::try_from(payload.len() + 1).unwrap().to_le_bytes().to_vec();
        bytes.push(kind);
        bytes.extend(payload);
        bytes
    };
    let mut again = Vec::new();
    encode(&ToSupervisor::Hello(WorkerHello { version: VERSION, orphan_ms: 60_000 }), &mut again).unwrap();
    for garbage in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(), // a length beyond any frame
        vec![0; 64],
        frame(2, b"{\"id\":"),
        frame(3, b"[]"),
        frame(4, &[0xff; 100]),
        again,
    ] {
        let (mut worker, hello) = sandbox.accept();
        assert!(matches!(hello.state, State::Running(_)));
        worker.stream.write_all(&garbage).unwrap();
        assert!(worker.try_next().is_none(), "{garbage:?}");
    }
    // A kind that is not known, and fields that are not, are as nothing.
    let (mut worker, _) = sandbox.accept();
    worker.stream.write_all(&frame(200, b"from the future")).unwrap();
    worker.stream.write_all(&frame(4, br#"{"id":"2","grace_ms":0,"mood":"bad"}"#)).unwrap();
    sandbox.tell("/tmp/go");
    let result = worker.finish();
    assert_eq!((result.text().as_str(), result.exit.status), ("whole\n", Status::Code(3)));
}

#[test]
fn whoever_does_not_begin_with_a_hello_of_this_version_is_not_heard() {
    let mut sandbox = Sandbox::start();
    let stop = ToSupervisor::Stop(Stop { id: "1".to_owned(), grace_ms: 0 });
    let other = ToSupervisor::Hello(WorkerHello { version: VERSION + 1, orphan_ms: 1 });
    for message in [stop, other, ToSupervisor::InjectEnd, ToSupervisor::Run(sh("1", "true"))] {
        let mut worker = sandbox.accept_silent();
        assert!(matches!(worker.next(), FromSupervisor::Hello(_)));
        worker.send(&message);
        assert!(worker.try_next().is_none(), "{message:?}");
    }
    // But for the end: a worker of another version gives the container up.
    let mut worker = sandbox.accept_silent();
    worker.send(&ToSupervisor::End);
    assert_eq!(sandbox.exit_status().code(), Some(0));
}

fn bytes_of(messages: &[FromSupervisor]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in messages {
        encode(message, &mut bytes).unwrap();
    }
    bytes
}

#[test]
fn frames_are_put_together_however_they_are_cut() {
    let messages = [
        FromSupervisor::Hello(SupervisorHello { version: 1, pid: 1, state: State::Idle, clean: true }),
        FromSupervisor::Started(Started { id: "a\"b".to_owned(), pid: 7 }),
        FromSupervisor::Output(Output {
            id: "a\"b".to_owned(),
            stream: Stream::Stderr,
            at_ms: u64::MAX,
            offset: 1 << 40,
            bytes: (0..=255).collect(),
        }),
        FromSupervisor::Injected,
    ];
    let bytes = bytes_of(&messages);
    for size in [1, 2, 3, 7, 64, bytes.len()] {
        let mut decoder = Decoder::<FromSupervisor>::new();
        let mut seen = Vec::new();
        for piece in bytes.chunks(size) {
            seen.extend(decoder.push(piece).map(Result::unwrap));
        }
        assert_eq!(seen, messages, "{size}");
    }
    // What was not asked of one push comes with the next.
    let mut decoder = Decoder::<FromSupervisor>::new();
    let first = decoder.push(&bytes).next();
    let rest: Vec<FromSupervisor> = decoder.push(&[]).map(Result::unwrap).collect();
    assert_eq!((first.unwrap().unwrap(), rest.as_slice()), (messages[0].clone(), &messages[1..]));
}

#[test]
fn an_error_stays_an_error() {
    let mut decoder = Decoder::<FromSupervisor>::new();
    let bytes = bytes_of(&[FromSupervisor::Injected]);
    let bad: Vec<u8> = [&[2, 0, 0, 0, 68, 9][..], &bytes].concat();
    assert!(matches!(decoder.push(&bad).next(), Some(Err(WireError::Cut { kind: 68 }))));
    assert!(matches!(decoder.push(&bytes).next(), Some(Err(WireError::Cut { kind: 68 }))));
}

#[test]
fn what_is_too_long_is_not_sent() {
    let mut out = b"before".to_vec();
    let inject = Inject { target: "/".repeat(FRAME_BYTES_MAX), user: None };
    assert!(matches!(encode(&ToSupervisor::Inject(inject), &mut out), Err(WireError::TooLong { .. })));
    assert!(encode_inject_data(&vec![0; FRAME_BYTES_MAX], &mut out).is_err());
    assert_eq!(out, b"before");
    encode_inject_data(&vec![7; FRAME_BYTES_MAX - 1], &mut out).unwrap();
    let mut decoder = Decoder::<ToSupervisor>::new();
    let message = decoder.push(&out[6..]).next().unwrap().unwrap();
    assert_eq!(message, ToSupervisor::InjectData(vec![7; FRAME_BYTES_MAX - 1]));
}
