//! How long the supervisor takes, without an Engine around it. As root:
//!
//! ```text
//! cargo run --release -p longshore-supervisor --example latency -- PATH/TO/longshore-supervisor
//! ```

#![allow(clippy::unwrap_used, reason = "a measurement that cannot be made is none")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use longshore_supervisor::wire::{Acked, FromSupervisor, Offsets, ToSupervisor};

#[allow(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../tests/supervisor/sandbox.rs"]
mod sandbox;

use sandbox::{Sandbox, Worker, command};

/// What the tests' own is; here it comes as an argument.
const BINARY: &str = "";

/// Enough for a median that is the same twice.
const RUNS: u32 = 500;

fn main() {
    let binary = PathBuf::from(std::env::args_os().nth(1).expect("the path of the supervisor"));
    let sandbox = Sandbox::start_binary(&binary, &[]);
    let (mut worker, _) = sandbox.accept();
    let [mut started, mut ended, mut cleaned] = [const { Vec::new() }; 3];
    for run in 0..RUNS {
        let run = command(&run.to_string(), &["/usr/bin/true"]);
        let begin = Instant::now();
        worker.start(&run);
        started.push(begin.elapsed());
        worker.finish();
        ended.push(begin.elapsed());
        let begin = Instant::now();
        assert_eq!(worker.clean(), None);
        cleaned.push(begin.elapsed());
    }
    print("Run to Started, which comes after execve", started);
    print("Run to Exited of /usr/bin/true", ended);
    print("Clean to Cleaned, with a search for sockets", cleaned);
    throughput(&mut worker);
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!("{what}: p50 {:.2} ms, p95 {:.2} ms", at(50), at(95));
}

fn throughput(worker: &mut Worker) {
    let megabytes = 1000_u32;
    let begin = Instant::now();
    worker.start(&command("throughput", &["/usr/bin/head", "-c", &format!("{megabytes}MB"), "/dev/zero"]));
    let mut upto = Offsets::default();
    loop {
        match worker.next() {
            FromSupervisor::Output(output) => {
                upto.stdout += output.bytes.len() as u64;
                worker.send(&ToSupervisor::Acked(Acked { id: output.id, upto }));
            }
            FromSupervisor::Exited(_) => break,
            other => panic!("{other:?}"),
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!("output: {:.0} MB/s", f64::from(megabytes) / seconds);
}
