//! What the API reads of logs (P14).

use longshore_coordinator::core::entry::LogGap;
use longshore_coordinator::store::batch::{Batch, ChunkRow, LogRow, RowContent};
use longshore_coordinator::store::log_rows::{RowPlace, Selection, StoredContent};
use longshore_protocol::output::Offsets;
use longshore_protocol::{Attempt, RunId};

use super::Place;
use super::rows::{claim, lines, log_end, log_row, new_log, run_row};

/// P14: of a run, of one step, of one try of it.
pub async fn p14_rows_come_in_the_order_of_storing_across_the_logs_of_a_run(place: &impl Place) {
    let store = place.open().await;
    let epoch = store.take_epoch("t").await.unwrap().unwrap();
    let run = RunId::new();
    let (one, two) = (claim(run), claim(run));
    let again = longshore_protocol::event::Claim { attempt: Attempt(2), ..one.clone() };
    let gap = LogGap::Bytes { missing: Offsets { stdout: 7, stderr: 0 } };
    let batch = Batch {
        runs: vec![run_row(1, run, false)],
        logs: [&one, &two, &again].map(new_log).into(),
        log_rows: vec![
            log_row(2, &one, 1, 0, "a\n"),
            log_row(3, &two, 1, 0, "b\nc\n"),
            LogRow { change: 4, claim: one.clone(), first_line: 2, content: RowContent::Gap(gap) },
            log_row(5, &again, 1, 0, "d\n"),
        ],
        log_ends: vec![log_end(&one, 2, 1, true), log_end(&two, 4, 2, false), log_end(&again, 2, 1, false)],
        ..Batch::default()
    };
    store.commit(epoch, &batch).await.unwrap();
    let read = async |execution, attempt, from, limit| -> Vec<u64> {
        let of = Selection { run, execution, attempt };
        let rows = store.log_rows(&of, from, limit).await.unwrap();
        rows.into_iter().map(|row| row.change).collect()
    };
    assert_eq!(read(None, None, 0, 10).await, [2, 3, 4, 5]);
    assert_eq!(read(None, None, 3, 2).await, [3, 4]);
    assert_eq!(read(Some(one.execution), None, 0, 10).await, [2, 4, 5]);
    assert_eq!(read(Some(one.execution), Some(Attempt(2)), 0, 10).await, [5]);
    let of_one = Selection { run, execution: Some(one.execution), attempt: Some(Attempt(1)) };
    let rows = store.log_rows(&of_one, 0, 10).await.unwrap();
    assert!(matches!(&rows[0].content, StoredContent::Open(runs) if *runs == [lines(0, "a\n")]));
    assert!(matches!(rows[1].content, StoredContent::Gap(found) if found == gap));
    assert_eq!((rows[1].step.as_str(), rows[1].first_line, rows[1].lines), ("s0", 2, 0));
    let before: Vec<u64> =
        store.rows_before(&of_one, 4, 10).await.unwrap().into_iter().map(|place| place.change).collect();
    assert_eq!(before, [2]);
    let of_run = Selection { run, execution: None, attempt: None };
    let newest: Vec<u64> =
        store.rows_before(&of_run, u64::MAX, 2).await.unwrap().into_iter().map(|place| place.change).collect();
    assert_eq!(newest, [5, 4]);
}

/// P14: a reader sees its rows' bytes or the chunk, and never neither. Written again after a crash it is the same.
pub async fn p14_a_sealed_chunk_takes_the_place_of_its_rows(place: &impl Place) {
    let store = place.open().await;
    let epoch = store.take_epoch("t").await.unwrap().unwrap();
    let run = RunId::new();
    let one = claim(run);
    let batch = Batch {
        runs: vec![run_row(1, run, false)],
        logs: vec![new_log(&one)],
        log_rows: vec![
            log_row(2, &one, 1, 0, "a\n"),
            log_row(3, &one, 2, 2, "b\nc\n"),
            log_row(4, &one, 4, 6, "d\n"),
            log_row(5, &one, 5, 8, "e\n"),
        ],
        log_ends: vec![log_end(&one, 10, 5, false)],
        ..Batch::default()
    };
    store.commit(epoch, &batch).await.unwrap();
    let chunk = |first_line, lines, stdout| ChunkRow {
        claim: one.clone(),
        first_line,
        lines,
        before: Offsets { stdout, stderr: 0 },
        bytes: 9,
    };
    for _ in 0..2 {
        store.commit(epoch, &Batch { chunks: vec![chunk(1, 1, 0), chunk(2, 3, 2)], ..Batch::default() }).await.unwrap();
    }
    assert_eq!(store.chunks(one.execution, one.attempt).await.unwrap(), [(1, 1), (2, 3)]);
    let of = Selection { run, execution: None, attempt: None };
    let rows = store.log_rows(&of, 0, 10).await.unwrap();
    let sealed_in = |content: &StoredContent| match content {
        StoredContent::Sealed { chunk } => Some(*chunk),
        StoredContent::Open(_) | StoredContent::Gap(_) => None,
    };
    let found: Vec<Option<u64>> = rows.iter().map(|row| sealed_in(&row.content)).collect();
    assert_eq!(found, [Some(1), Some(2), Some(2), None]);
}

/// Any line of a million opens at once.
pub async fn a_row_is_found_by_its_line(place: &impl Place) {
    let store = place.open().await;
    let epoch = store.take_epoch("t").await.unwrap().unwrap();
    let run = RunId::new();
    let one = claim(run);
    let batch = Batch {
        runs: vec![run_row(1, run, false)],
        logs: vec![new_log(&one)],
        log_rows: vec![log_row(2, &one, 1, 0, "a\nb\n"), log_row(3, &one, 3, 4, "c\nd\n")],
        log_ends: vec![log_end(&one, 8, 4, false)],
        ..Batch::default()
    };
    store.commit(epoch, &batch).await.unwrap();
    let find = async |line| store.row_of_line(one.execution, one.attempt, line).await.unwrap();
    let (first, second) =
        (RowPlace { change: 2, first_line: 1, lines: 2 }, RowPlace { change: 3, first_line: 3, lines: 2 });
    assert_eq!((find(1).await, find(2).await), (Some(first), Some(first)));
    assert_eq!((find(3).await, find(99).await), (Some(second), Some(second)));
    assert_eq!(store.row_of_line(claim(run).execution, one.attempt, 1).await.unwrap(), None);
}
