//! What `make bench` measures among a million steps, in little: that it comes to anything.

use longshore_sim::many::scratch;
use longshore_sim::scale::measure;

#[test]
fn a_fleet_without_faults_breaks_no_promise_and_its_coordinator_is_timed() {
    let dir = scratch();
    let scaled = measure(20, 2_000, dir.path());
    assert!(scaled.steps >= 2_000 / 16, "{scaled:?}");
    assert!(!scaled.coordinator.is_zero(), "{scaled:?}");
}
