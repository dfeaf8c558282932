//! Five thousand schedules with every `make test`; `make test-sim` carries out a hundred thousand.

use longshore_sim::many::carry_out;

/// Without optimisation one takes some tens of ms. Seeds from far behind those of `make test-sim`.
const SCHEDULES: u64 = 5_000;
const FIRST: u64 = 1_000_000;

#[test]
fn every_promise_holds_under_every_schedule_of_faults() {
    let total = carry_out(FIRST, SCHEDULES);
    for failed in &total.failed {
        println!("{}", failed.story());
    }
    assert!(
        total.failed.is_empty(),
        "broken in seeds {:?}",
        total.failed.iter().map(|failed| failed.seed).collect::<Vec<_>>()
    );
    assert_eq!(total.twice, SCHEDULES / 50, "every 50th came to the same trace twice");
    let never: Vec<_> = total.kinds().filter(|(_, count)| *count == 0).collect();
    assert!(never.is_empty(), "faults that never struck: {never:?}");
}
