//! What a new leader reads.

use longshore_coordinator::core::entry::Entry;
use longshore_coordinator::store::batch::{Batch, ChunkRow, OutboxRow};
use longshore_coordinator::store::recover::Counters;
use longshore_protocol::RunId;
use longshore_protocol::output::Offsets;

use super::Place;
use super::rows::{
    claim, entries, heard, log_end, log_row, lost, message, new_log, outbox, run_row, settled, step_row,
};

/// P3: whatever is left is carried out in the order in which it was decided.
pub async fn p3_the_outbox_comes_back_in_order_and_as_it_was(place: &impl Place) {
    let rows: Vec<OutboxRow> = (1..=5).map(message).collect();
    let store = place.open().await;
    let epoch = store.take_epoch("t").await.unwrap().unwrap();
    store.commit(epoch, &outbox(rows.clone())).await.unwrap();
    store.commit(epoch, &Batch { outbox_done: vec![2], ..Batch::default() }).await.unwrap();
    store.close().await;
    let store = place.open().await;
    let left = store.outbox_after(0, 3).await.unwrap();
    assert_eq!(left, [rows[0].clone(), rows[2].clone(), rows[3].clone()]);
    assert_eq!(store.outbox_after(4, 3).await.unwrap(), rows[4..]);
    assert_eq!(store.outbox_rows().await.unwrap(), 4);
}

/// No number is given twice, whichever table the newest one is in.
pub async fn the_writer_goes_on_counting_where_the_last_one_ended(place: &impl Place) {
    let store = place.open().await;
    assert_eq!(store.counters().await.unwrap(), Counters { seq: 0, change: 0, outbox: 0 });
    let epoch = store.take_epoch("t").await.unwrap().unwrap();
    let (run, waiting) = (RunId::new(), longshore_coordinator::core::view::StepPhase::Waiting);
    let claim = claim(run);
    let at = async |batch: Batch| {
        store.commit(epoch, &batch).await.unwrap();
        store.counters().await.unwrap()
    };
    let counters = |seq, change, outbox| Counters { seq, change, outbox };
    assert_eq!(at(entries(vec![heard(7, 1)])).await, counters(7, 0, 0));
    assert_eq!(at(outbox(vec![message(3), message(9)])).await, counters(7, 0, 9));
    assert_eq!(at(Batch { runs: vec![run_row(4, run, false)], ..Batch::default() }).await, counters(7, 4, 9));
    assert_eq!(at(Batch { steps: vec![step_row(5, run, 0, waiting)], ..Batch::default() }).await, counters(7, 5, 9));
    let logs = Batch {
        logs: vec![new_log(&claim)],
        log_rows: vec![log_row(6, &claim, 1, 0, "x\n")],
        log_ends: vec![log_end(&claim, 2, 1, false)],
        ..Batch::default()
    };
    assert_eq!(at(logs).await, counters(7, 6, 9));
    // Of the outbox only what is left counts: its ids may be given again.
    assert_eq!(at(Batch { outbox_done: vec![9], ..Batch::default() }).await, counters(7, 6, 3));
}

/// Beyond what is open nobody asks for a run's past, so a new leader does not read it.
pub async fn of_runs_only_open_ones_are_replayed(place: &impl Place) {
    let store = place.open().await;
    let epoch = store.take_epoch("t").await.unwrap().unwrap();
    let (open, done) = (RunId::new(), RunId::new());
    let batch = Batch {
        entries: vec![settled(1, done), settled(2, open), lost(3)],
        runs: vec![run_row(1, open, false), run_row(2, done, true)],
        ..Batch::default()
    };
    store.commit(epoch, &batch).await.unwrap();
    let replayed = store.entries_to_replay().await.unwrap();
    assert!(
        matches!(&replayed[..], [(2, Entry::RunSettled { run, .. }), (3, Entry::LeaseEnded { .. })] if *run == open)
    );
    assert_eq!(store.entries_of(done).await.unwrap().len(), 1);
    let known = async |run| store.is_known(run).await.unwrap();
    assert_eq!((known(open).await, known(done).await, known(RunId::new()).await), (true, true, false));
}

/// What concerns other runs, how far workers were heard, and what they did later are no part of it.
pub async fn a_run_that_is_done_is_recalled_with_what_became_of_the_workers_meanwhile(place: &impl Place) {
    let store = place.open().await;
    let epoch = store.take_epoch("t").await.unwrap().unwrap();
    let (run, other) = (RunId::new(), RunId::new());
    let batch = Batch {
        entries: vec![lost(1), settled(2, other), heard(3, 1), settled(4, run), lost(5)],
        runs: vec![run_row(1, run, true), run_row(2, other, true)],
        ..Batch::default()
    };
    store.commit(epoch, &batch).await.unwrap();
    let recalled = store.entries_to_recall(run).await.unwrap();
    assert_eq!(recalled.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [1, 4]);
    let (rows, shown) = store.journal_and_view(run).await.unwrap().unwrap();
    assert_eq!(rows.iter().map(|row| (row.at_ms, row.entry.clone())).collect::<Vec<_>>(), recalled);
    assert_eq!((rows[1].seq, shown.view.summary.run, shown.done), (4, run, true));
    assert!(store.journal_and_view(RunId::new()).await.unwrap().is_none());
    let workers = store.journal_of_workers().await.unwrap();
    assert_eq!(workers.iter().map(|row| row.seq).collect::<Vec<_>>(), [1, 3, 5]);
}

/// P9.
pub async fn p9_of_a_workers_heard_entries_only_the_newest_stays(place: &impl Place) {
    let store = place.open().await;
    let epoch = store.take_epoch("t").await.unwrap().unwrap();
    store.commit(epoch, &entries(vec![heard(1, 1), heard(2, 2), lost(3), heard(4, 3)])).await.unwrap();
    let replayed = store.entries_to_replay().await.unwrap();
    assert_eq!(replayed.len(), 2);
    assert!(matches!(replayed[0], (3, Entry::LeaseEnded { .. })));
    assert!(matches!(replayed[1], (4, Entry::Heard { number: 3, .. })));
    let kept = store.journal_of_workers().await.unwrap();
    assert_eq!(kept.iter().map(|row| row.seq).collect::<Vec<_>>(), [3, 4], "a fleet is heard with every batch");
}

/// P14: those of runs that are over, and those that were closed, do not.
pub async fn p14_open_logs_come_back_with_what_is_stored_of_them(place: &impl Place) {
    let store = place.open().await;
    let epoch = store.take_epoch("t").await.unwrap().unwrap();
    let (open, done) = (RunId::new(), RunId::new());
    let (silent, half, closed, over) = (claim(open), claim(open), claim(open), claim(done));
    let batch = Batch {
        runs: vec![run_row(1, open, false), run_row(2, done, true)],
        logs: [&silent, &half, &closed, &over].map(new_log).into(),
        log_rows: vec![log_row(3, &half, 1, 0, "one\ntwo\n"), log_row(4, &half, 3, 8, "three\n")],
        log_ends: vec![log_end(&half, 14, 3, false), log_end(&closed, 0, 0, true)],
        ..Batch::default()
    };
    store.commit(epoch, &batch).await.unwrap();
    let chunk = ChunkRow { claim: half.clone(), first_line: 1, lines: 2, before: Offsets::default(), bytes: 9 };
    store.commit(epoch, &Batch { chunks: vec![chunk], ..Batch::default() }).await.unwrap();
    let mut logs = store.open_logs().await.unwrap();
    logs.sort_by_key(|log| log.lines);
    let [first, second] = &logs[..] else { panic!("{logs:?}") };
    assert_eq!((&first.claim, first.stored, first.open_from), (&silent, Offsets::default(), 1));
    assert_eq!((&second.claim, second.lines, second.open_from), (&half, 3, 3));
    assert_eq!((second.stored.stdout, second.open_before.stdout), (14, 8));
    assert!(second.open_bytes > 0);
    assert_eq!(store.open_rows(&half, 1, u64::MAX).await.unwrap().len(), 1, "the sealed one's bytes are gone");
    assert_eq!(store.open_rows(&half, 1, 3).await.unwrap().len(), 0);
}
