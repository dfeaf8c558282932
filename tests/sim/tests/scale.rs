//! What `make bench` measures among a million steps, in little: that it comes to anything. And a fleet that is too large
//! for its coordinator.

use std::time::Duration;

use longshore_sim::many::scratch;
use longshore_sim::scale::{behind, measure};

#[test]
fn a_fleet_without_faults_breaks_no_promise_and_its_coordinator_is_timed() {
    let dir = scratch();
    let scaled = measure(20, 2_000, dir.path());
    assert!(scaled.steps >= 2_000 / 16, "{scaled:?}");
    assert!(!scaled.coordinator.is_zero(), "{scaled:?}");
}

/// P8: heartbeats that are in their queue for a lease are dropped there, always those of the same workers where all send
/// theirs at the same moment. What is heard in between says nothing about them.
#[test]
fn p8_a_coordinator_that_is_behind_ends_no_lease() {
    let dir = scratch();
    assert_eq!(behind(100, Duration::from_mins(10), dir.path()), Vec::<String>::new());
}
