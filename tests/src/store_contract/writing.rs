//! A batch is one transaction, and committed means that it stays (P3).

use futures_util::{FutureExt, pin_mut};
use longshore_coordinator::core::view::StepPhase;
use longshore_coordinator::store::StoreError;
use longshore_coordinator::store::batch::Batch;
use longshore_coordinator::store::recover::Counters;
use longshore_protocol::RunId;

use super::rows::{claim, entries, heard, message, new_log, outbox, run_row, settled, step_row};
use super::{Place, signed_in};

/// P3.
pub async fn p3_a_batch_is_written_whole_or_not_at_all(place: &impl Place) {
    let store = place.open().await;
    let epoch = store.take_epoch("t").await.unwrap().unwrap();
    store.commit(epoch, &outbox(vec![message(1)])).await.unwrap();
    // The journal entry is fine, the outbox row's id is taken.
    let torn = Batch { entries: vec![heard(1, 1)], outbox: vec![message(1)], ..Batch::default() };
    assert!(matches!(store.commit(epoch, &torn).await, Err(StoreError::Failed(_))));
    assert_eq!(store.counters().await.unwrap(), Counters { seq: 0, change: 0, outbox: 1 });
    // The failure is over: the same connection, or the next, goes on.
    store.commit(epoch, &entries(vec![heard(1, 1)])).await.unwrap();
    assert_eq!(store.counters().await.unwrap(), Counters { seq: 1, change: 0, outbox: 1 });
}

/// P3: whoever opens it next, here another process would, finds what was answered, and nothing else.
pub async fn p3_what_was_committed_outlives_a_crash(place: &impl Place) {
    let (store, heir) = (place.open().await, signed_in(place).await);
    let epoch = store.take_epoch("t").await.unwrap().unwrap();
    store
        .commit(epoch, &Batch { entries: vec![heard(1, 1)], outbox: vec![message(1)], ..Batch::default() })
        .await
        .unwrap();
    store.commit(epoch, &Batch { entries: vec![heard(2, 2)], outbox_done: vec![1], ..Batch::default() }).await.unwrap();
    // Made and never polled: nothing of it was asked for.
    drop(store.commit(epoch, &entries(vec![heard(3, 3)])));
    place.crash(store).await;
    assert_eq!(heir.take_epoch("heir").await.unwrap(), None, "a crash gives nothing back: it lapses");
    let store = place.open().await;
    assert_eq!(store.counters().await.unwrap(), Counters { seq: 2, change: 0, outbox: 0 });
    store.commit(epoch, &entries(vec![heard(3, 3)])).await.unwrap();
}

/// P3: at whichever await its caller goes away.
pub async fn p3_a_commit_that_is_dropped_on_its_way_wrote_all_or_nothing(place: &impl Place) {
    let mut store = place.open().await;
    let mut epoch = store.take_epoch("t").await.unwrap().unwrap();
    let mut seq = 0;
    for polls in 1..=20 {
        let next = seq + 1;
        let run = RunId::new();
        let batch = Batch {
            entries: vec![settled(next, run)],
            runs: vec![run_row(next, run, false)],
            outbox: vec![message(polls)],
            ..Batch::default()
        };
        {
            let commit = store.commit(epoch, &batch);
            pin_mut!(commit);
            for _ in 0..polls {
                if commit.as_mut().now_or_never().is_some() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        place.crash(store).await;
        store = place.open().await;
        // What was on its way may still arrive; once the next epoch is taken, nothing does.
        store.release_epoch(epoch).await.unwrap();
        epoch = store.take_epoch("t").await.unwrap().expect("it was released");
        let Counters { seq: found, change, outbox } = store.counters().await.unwrap();
        assert!(found == seq || found == next, "{found} after {seq}, polled {polls} times");
        let whole = found == next;
        assert_eq!(change, found, "polled {polls} times");
        assert_eq!(store.entries_of(run).await.unwrap().len(), usize::from(whole), "polled {polls} times");
        assert_eq!(outbox == polls, whole, "polled {polls} times");
        seq = found;
    }
}

/// As a run of ten thousand steps is taken: more rows than fit one statement of any database.
pub async fn a_batch_of_thousands_of_rows_is_one_batch(place: &impl Place) {
    const ROWS: u64 = 3_000;
    let store = place.open().await;
    let epoch = store.take_epoch("t").await.unwrap().unwrap();
    let run = RunId::new();
    let batch = Batch {
        entries: (1..=ROWS).map(|seq| settled(seq, run)).collect(),
        runs: vec![run_row(ROWS + 1, run, false)],
        steps: (0..ROWS).map(|n| step_row(n + 1, run, usize::try_from(n).unwrap(), StepPhase::Waiting)).collect(),
        logs: (0..ROWS).map(|_| new_log(&claim(run))).collect(),
        ..Batch::default()
    };
    store.commit(epoch, &batch).await.unwrap();
    assert_eq!(store.entries_of(run).await.unwrap().len() as u64, ROWS);
    let found = store.run(run).await.unwrap().unwrap();
    assert_eq!((found.view.steps.len() as u64, found.change), (ROWS, ROWS + 1));
    assert_eq!(store.open_logs().await.unwrap().len() as u64, ROWS);
    // Rewritten where they stand, not a second time.
    let steps = (0..ROWS).map(|n| step_row(ROWS + 2 + n, run, usize::try_from(n).unwrap(), StepPhase::Queued));
    store.commit(epoch, &Batch { steps: steps.collect(), ..Batch::default() }).await.unwrap();
    let found = store.run(run).await.unwrap().unwrap();
    assert_eq!(found.view.steps.len() as u64, ROWS);
    assert!(found.view.steps.iter().all(|step| step.phase == StepPhase::Queued));
}

/// P1: what a database would rather not keep: quotes, other alphabets, bytes that are no text, none at all.
pub async fn p1_bytes_and_text_come_back_as_they_were(place: &impl Place) {
    let store = place.open().await;
    let epoch = store.take_epoch("t").await.unwrap().unwrap();
    let mut odd = message(1);
    odd.body = (0..=255).collect();
    odd.to.routing_key = String::from("it's \"one\" \\ $1 ? ü 漢 🚢 \u{7f}");
    let mut empty = message(2);
    empty.body = Vec::new();
    store.commit(epoch, &outbox(vec![odd.clone(), empty.clone()])).await.unwrap();
    assert_eq!(store.outbox_after(0, 9).await.unwrap(), [odd, empty]);
    let run = RunId::new();
    let mut row = run_row(1, run, false);
    row.summary.name = String::from("a name with a NUL \u{0} in it");
    store.commit(epoch, &Batch { runs: vec![row], ..Batch::default() }).await.unwrap();
    let (found, _) = store.summary(run).await.unwrap().unwrap();
    assert_eq!(found.name, "a name with a NUL \u{0} in it");
}
