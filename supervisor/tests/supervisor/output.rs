//! Every byte once, in order, whatever the worker does.

use std::io::Write;

use longshore_supervisor::wire::{Acked, Exit, FromSupervisor, Offsets, Output, Status, Stream, ToSupervisor, encode};

use crate::sandbox::{Sandbox, Worker, command, progress, sh};

/// As in `src/ring.rs`.
const RING_BYTES_MAX: usize = 1 << 20;

fn ack(worker: &mut Worker, id: &str, stdout: usize) {
    let upto = Offsets { stdout: stdout as u64, stderr: 0 };
    worker.send(&ToSupervisor::Acked(Acked { id: id.to_owned(), upto }));
}

/// Asks for something that is refused at once: whatever was on its way before has come when the answer has.
fn drain(worker: &mut Worker, taken: &mut Vec<Output>) {
    worker.send(&ToSupervisor::Run(sh("ping", "true")));
    loop {
        match worker.next() {
            FromSupervisor::Output(output) => taken.push(output),
            FromSupervisor::CannotStart(cannot) if cannot.id == "ping" => return,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn p16_behind_a_full_buffer_the_command_blocks() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    let size = 3 * RING_BYTES_MAX;
    worker.start(&sh("1", &format!("head -c {size} /dev/zero; echo end >&2")));
    let mut taken = Vec::new();
    let len = |taken: &[Output]| taken.iter().map(|output| output.bytes.len()).sum::<usize>();
    while len(&taken) < RING_BYTES_MAX {
        match worker.next() {
            FromSupervisor::Output(output) => taken.push(output),
            other => panic!("{other:?}"),
        }
    }
    // Nothing more, and not the other stream's either: the command is in the middle of a write.
    drain(&mut worker, &mut taken);
    drain(&mut worker, &mut taken);
    assert_eq!(len(&taken), RING_BYTES_MAX);
    assert!(taken.iter().all(|output| output.stream == Stream::Stdout));
    // Room for as much as was acknowledged, to the byte.
    ack(&mut worker, "1", 100_000);
    while len(&taken) < RING_BYTES_MAX + 100_000 {
        drain(&mut worker, &mut taken);
    }
    drain(&mut worker, &mut taken);
    assert_eq!(len(&taken), RING_BYTES_MAX + 100_000);
    let mut stdout = len(&taken);
    let mut stderr = Vec::new();
    loop {
        ack(&mut worker, "1", stdout);
        match worker.next() {
            FromSupervisor::Output(output) if output.stream == Stream::Stdout => stdout += output.bytes.len(),
            FromSupervisor::Output(output) => stderr.extend(output.bytes),
            FromSupervisor::Exited(exited) => {
                assert_eq!(exited.exit.offsets, Offsets { stdout: size as u64, stderr: 4 });
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((stdout, stderr.as_slice()), (size, &b"end\n"[..]));
}

#[test]
fn the_exit_does_not_wait_for_acknowledgements() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    // More than the buffer holds, and no more than it and a pipe: the command is not kept from its end, and a worker
    // that acknowledges lines waits for the end of this one.
    let size = RING_BYTES_MAX + 60_000;
    worker.start(&sh("1", &format!("head -c {size} /dev/zero; exit 6")));
    let mut taken = 0;
    let exit = loop {
        match worker.next() {
            FromSupervisor::Output(output) => taken += output.bytes.len(),
            FromSupervisor::Exited(exited) => break exited.exit,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((taken, exit.offsets.stdout, exit.status), (size, size as u64, Status::Code(6)));
}

/// `SplitMix64`: enough to choose by.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

#[test]
fn p16_a_worker_that_comes_and_goes_has_every_byte_once() {
    let seed = 20_261_124;
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    worker.start(&sh("1", "seq 1 400000; seq 400001 400100 >&2"));
    let mut on_disk = [Vec::new(), Vec::new()]; // what was acknowledged, or is about to be
    let mut connections = 1;
    let exit: Exit = 'connections: loop {
        // Some frames, then it ends without a word: in the middle of a frame, as like as not.
        for _ in 0..=random.below(12) {
            match worker.next() {
                FromSupervisor::Output(output) => {
                    let bytes = &mut on_disk[usize::from(output.stream == Stream::Stderr)];
                    assert_eq!(output.offset, bytes.len() as u64, "connection {connections}");
                    bytes.extend(output.bytes);
                    // Not every one: a worker writes several before it flushes.
                    if random.below(3) == 0 {
                        let upto = Offsets { stdout: on_disk[0].len() as u64, stderr: on_disk[1].len() as u64 };
                        worker.send(&ToSupervisor::Acked(Acked { id: "1".to_owned(), upto }));
                    }
                }
                FromSupervisor::Exited(exited) => break 'connections exited.exit,
                other => panic!("{other:?}"),
            }
        }
        drop(worker);
        if random.below(2) == 0 {
            sandbox.rebind();
        }
        let hello;
        (worker, hello) = sandbox.accept();
        connections += 1;
        let progress = progress(&hello.state);
        assert!(progress.from.stdout <= on_disk[0].len() as u64, "bytes are lost");
        // What its last acknowledgement did not reach, it has read for nothing.
        on_disk[0].truncate(usize::try_from(progress.from.stdout).unwrap());
        on_disk[1].truncate(usize::try_from(progress.from.stderr).unwrap());
    };
    let numbers = |from: u32, to: u32| (from..=to).flat_map(|n| format!("{n}\n").into_bytes()).collect::<Vec<u8>>();
    assert_eq!(exit.status, Status::Code(0));
    assert!(on_disk[0] == numbers(1, 400_000) && on_disk[1] == numbers(400_001, 400_100));
    assert!(connections > 5, "{connections} connections are no test");
}

#[test]
fn p16_what_is_acknowledged_first_on_a_new_connection_does_not_come() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    worker.start(&sh("1", "printf 0123456789"));
    loop {
        if let FromSupervisor::Exited(_) = worker.next() {
            break; // nothing acknowledged
        }
    }
    drop(worker);
    let mut worker = sandbox.accept_silent();
    let mut bytes = Vec::new();
    encode(
        &ToSupervisor::Hello(longshore_supervisor::wire::WorkerHello {
            version: longshore_supervisor::wire::VERSION,
            orphan_ms: 60_000,
        }),
        &mut bytes,
    )
    .unwrap();
    let upto = Offsets { stdout: 7, stderr: 0 };
    encode(&ToSupervisor::Acked(Acked { id: "1".to_owned(), upto }), &mut bytes).unwrap();
    worker.stream.write_all(&bytes).unwrap();
    let FromSupervisor::Hello(hello) = worker.next() else { panic!("no hello") };
    assert_eq!((progress(&hello.state).from.stdout, progress(&hello.state).have.stdout), (0, 10));
    match worker.next() {
        FromSupervisor::Output(output) => assert_eq!((output.offset, output.bytes.as_slice()), (7, &b"789"[..])),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_megabyte_without_a_newline_comes_in_pieces() {
    let sandbox = Sandbox::start();
    let (mut worker, _) = sandbox.accept();
    let result = worker.run(&sh("1", "head -c 5000000 /dev/zero | tr '\\0' x"));
    assert_eq!(result.stdout.len(), 5_000_000);
    assert!(result.stdout.iter().all(|byte| *byte == b'x'));
}

#[test]
fn a_worker_that_stops_reading_loses_nothing() {
    let sandbox = Sandbox::start();
    sandbox.fifo("/tmp/blocked");
    let (mut worker, _) = sandbox.accept();
    // Less than the buffer, so that the command gets on; more than the socket's, so that the supervisor cannot.
    worker.start(&sh("1", "head -c 1000000 /dev/zero; echo >/tmp/blocked; exit 6"));
    assert_eq!(sandbox.hear("/tmp/blocked"), "\n");
    let result = worker.finish();
    assert_eq!((result.stdout.len(), result.exit.status), (1_000_000, Status::Code(6)));
}

#[test]
fn a_worker_that_asks_without_listening_is_not_heard_further() {
    let sandbox = Sandbox::start();
    sandbox.fifo("/tmp/go");
    let (mut worker, _) = sandbox.accept();
    worker.start(&sh("1", "read x </tmp/go; exit 6"));
    let mut ask = Vec::new();
    encode(&ToSupervisor::Run(command("other", &["true"])), &mut ask).unwrap();
    let batch = ask.repeat(100);
    worker.stream.set_nonblocking(true).unwrap();
    let (mut asked, mut rest) = (0_usize, batch.as_slice());
    let mut refusals = 0;
    // Until it takes no more for as long as it takes to answer elsewhere.
    while refusals < 3 {
        let Ok(written) = worker.stream.write(rest) else {
            refusals += 1;
            let mut fds = [rustix::event::PollFd::new(&worker.stream, rustix::event::PollFlags::OUT)];
            let half_a_second = rustix::event::Timespec { tv_sec: 0, tv_nsec: 500_000_000 };
            let _ = rustix::event::poll(&mut fds, Some(&half_a_second));
            continue;
        };
        (rest, refusals) = (&rest[written..], 0);
        if rest.is_empty() {
            (asked, rest) = (asked + 100, batch.as_slice());
        }
        assert!(asked < 1_000_000, "its memory has no bound");
    }
    worker.stream.set_nonblocking(false).unwrap();
    let whole = asked + (batch.len() - rest.len()) / ask.len();
    for _ in 0..whole {
        assert!(matches!(worker.next(), FromSupervisor::CannotStart(_)));
    }
    sandbox.tell("/tmp/go");
    drop(worker);
    let (mut worker, _) = sandbox.accept();
    assert_eq!(worker.finish().exit.status, Status::Code(6));
}
