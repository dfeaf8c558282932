//! Who leads, and that nobody else writes (P21).

use std::time::Duration;

use futures_util::future::join_all;
use longshore_coordinator::store::StoreError;
use longshore_coordinator::store::batch::Batch;
use longshore_coordinator::store::epoch::LAPSE_MS;
use longshore_coordinator::store::recover::Counters;
use longshore_protocol::Epoch;
use tokio::time::Instant;

use super::rows::{entries, heard, message};
use super::{Place, signed_in};

const LAPSE: Duration = Duration::from_millis(LAPSE_MS);

/// The clock of a store is looked at this often.
const LOOK: Duration = Duration::from_millis(50);

/// P21.
pub async fn p21_one_of_two_takes_the_epoch_and_the_other_only_after_it_is_given_back(place: &impl Place) {
    let (first, second) = (signed_in(place).await, signed_in(place).await);
    let epoch = first.take_epoch("first").await.unwrap().expect("nobody leads");
    assert_eq!(epoch, Epoch(1));
    assert_eq!(second.take_epoch("second").await.unwrap(), None);
    first.commit(epoch, &Batch::default()).await.unwrap();
    assert_eq!(second.take_epoch("second").await.unwrap(), None);
    first.release_epoch(epoch).await.unwrap();
    assert_eq!(second.take_epoch("second").await.unwrap(), Some(Epoch(2)));
    assert_eq!(first.take_epoch("first").await.unwrap(), None);
}

/// P21: each time that the epoch is free, whoever tries.
pub async fn p21_of_many_who_try_at_once_one_takes_the_epoch(place: &impl Place) {
    let mut stores = Vec::new();
    for _ in 0..4 {
        stores.push(signed_in(place).await);
    }
    for round in 1..=10 {
        let taken = join_all(stores.iter().map(|store| store.take_epoch("one of them"))).await;
        let taken: Vec<Epoch> = taken.into_iter().filter_map(|taken| taken.unwrap()).collect();
        assert_eq!(taken, [Epoch(round)]);
        stores[0].release_epoch(Epoch(round)).await.unwrap();
    }
}

/// P21: whatever the callers' clocks say.
pub async fn p21_an_epoch_that_is_not_renewed_lapses_by_the_stores_clock(place: &impl Place) {
    let (dead, heir) = (place.open().await, place.open().await);
    let epoch = dead.take_epoch("dead").await.unwrap().expect("nobody leads");
    place.pass(LAPSE / 2).await;
    // What `pass` counts begins behind the renewal, whose answer may be late; this counts that too, on a clock that is moved on as well.
    let begun = Instant::now();
    dead.renew_epoch(epoch).await.unwrap_or_else(|error| panic!("nobody else tried: {error}"));
    let mut passed = Duration::ZERO;
    let taken = loop {
        passed += place.pass(LOOK).await;
        if let Some(taken) = heir.take_epoch("heir").await.unwrap() {
            break taken;
        }
        assert!(passed < LAPSE * 10, "it never lapses");
    };
    assert_eq!(taken, Epoch(2));
    let passed = passed.max(begun.elapsed());
    assert!(passed >= LAPSE, "it lapsed after {passed:?}");
}

/// P21: every kind of writing, and all at once. Frozen all that time, it goes on as if nothing had happened.
pub async fn p21_a_stale_leader_writes_nothing(place: &impl Place) {
    let (stale, active) = (signed_in(place).await, signed_in(place).await);
    let old = stale.take_epoch("stale").await.unwrap().unwrap();
    stale.commit(old, &entries(vec![heard(1, 1)])).await.unwrap();
    stale.release_epoch(old).await.unwrap();
    let new = active.take_epoch("active").await.unwrap().unwrap();
    let batch =
        Batch { entries: vec![heard(2, 2)], outbox: vec![message(1)], outbox_done: vec![1], ..Batch::default() };
    let refused = stale.commit(old, &batch).await.unwrap_err();
    assert!(matches!(refused, StoreError::Deposed(epoch) if epoch == old), "{refused}");
    assert!(matches!(stale.renew_epoch(old).await, Err(StoreError::Deposed(_))));
    active.renew_epoch(new).await.unwrap();
    assert_eq!(active.counters().await.unwrap(), Counters { seq: 1, change: 0, outbox: 0 });
    // Giving back what is no longer its own takes it from nobody.
    stale.release_epoch(old).await.unwrap();
    active.commit(new, &batch).await.unwrap();
    assert_eq!(stale.take_epoch("stale").await.unwrap(), None);
}

/// P21: what fences is that another took over, not that time went by.
pub async fn p21_a_leader_that_stalled_goes_on_if_nobody_took_over(place: &impl Place) {
    let (store, heir) = (place.open().await, signed_in(place).await);
    let epoch = store.take_epoch("stalled").await.unwrap().unwrap();
    place.pass(LAPSE + LOOK).await;
    store.commit(epoch, &entries(vec![heard(1, 1)])).await.unwrap();
    // And has renewed it by that.
    assert_eq!(heir.take_epoch("heir").await.unwrap(), None);
}
