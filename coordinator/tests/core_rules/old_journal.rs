//! A journal that was begun before containers were parked is replayed, and its run goes on.

use longshore_coordinator::core::entry::Entry;
use longshore_protocol::event::{Claim, Event};
use longshore_protocol::{Attempt, ExecutionId, Outcome};
use serde_json::json;

use crate::bench::{Bench, Told, claim, finished, from, plain};

/// What version 0.1.0 wrote of a chain whose parent had passed and whose child was claimed.
fn written(run: longshore_protocol::RunId) -> Vec<serde_json::Value> {
    let (s, t) = (claim(run, "s", 1).execution, claim(run, "t", 1).execution);
    let snapshot = format!("longshore/a:{}-1", s.to_hex());
    let pipeline = longshore_coordinator::pipeline::Pipeline {
        name: "p".to_owned(),
        timeout_ms: None,
        steps: vec![plain("s"), from("t", "s")],
    };
    let incarnation = json!({ "start": 1, "nonce": 100 });
    let hello = json!({ "engine": "e", "pool": "default", "slots": 1, "version": "0", "host": "h", "records": [] });
    let passed = json!({
        "kind": "finished", "outcome": { "kind": "passed" }, "cached": false,
        "output": { "stdout": 0, "stderr": 0 }, "snapshot": snapshot,
        "phases": { "prepare_ms": 1, "exec_ms": 1, "snapshot_ms": 1 }
    });
    let own = json!({ "kind": "worker", "name": "a" });
    let pool = json!({ "kind": "pool", "name": "default" });
    let image = json!({ "kind": "image", "reference": "base" });
    let from_snapshot = json!({ "kind": "snapshot", "id": snapshot });
    let of = |kind: &str, execution: ExecutionId, more: serde_json::Value| {
        let mut entry = json!({ "type": kind, "run": run, "execution": execution, "attempt": 1 });
        entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        entry
    };
    let settled = json!({ "type": "settled", "run": run, "execution": s, "outcome": { "kind": "passed" } });
    vec![
        json!({ "type": "joined", "worker": "a", "incarnation": incarnation, "hello": hello }),
        json!({ "type": "heard", "worker": "a", "incarnation": incarnation, "number": 3 }),
        json!({ "type": "submitted", "run": run, "tenant": "t", "pipeline": pipeline }),
        of("dispatched", s, json!({ "queue": pool, "base": image })),
        of("accepted", s, json!({ "worker": "a", "number": 2 })),
        of("ended", s, json!({ "end": passed })),
        settled,
        of("dispatched", t, json!({ "queue": own, "base": from_snapshot })),
        of("accepted", t, json!({ "worker": "a", "number": 3 })),
    ]
}

#[test]
fn a_journal_of_before_parked_containers_goes_on() {
    let run = longshore_protocol::RunId::new();
    for lost in [false, true] {
        let mut bench = Bench::new();
        bench.journal =
            written(run).into_iter().map(|line| (serde_json::from_value::<Entry>(line).unwrap(), 1)).collect();
        bench.restart();
        bench.knows("a", "e", 1, 3);
        let t = Claim { run, execution: ExecutionId::of_step(run, &"t".into()), attempt: Attempt(1) };
        if lost {
            // P20: the snapshot that the old line names is the parent's, and is made again.
            let step = bench.not_found("a", &t);
            assert_eq!(step.words()[2..5], ["left_lost", "log_closed", "retried"]);
            assert_eq!(step.jobs()[0].1.execution, ExecutionId::of_remake(claim(run, "s", 1).execution, 1));
        } else {
            let step = bench.event("a", Event::Finished(finished(&t, Outcome::Passed)));
            assert!(step.has("run_settled") && step.has("snapshot_dropped"));
        }
    }
}
