//! The store by itself: who may write (P21), what a new leader reads, what lists show.

#![allow(clippy::unwrap_used)] // a test's helper that fails has failed its test

use std::path::PathBuf;

use longshore_coordinator::core::effect::JobQueue;
use longshore_coordinator::core::entry::Entry;
use longshore_coordinator::core::view::RunSummary;
use longshore_coordinator::store::batch::{Batch, EntryRow, OutboxAbout, OutboxRow, RunRow};
use longshore_coordinator::store::recover::Counters;
use longshore_coordinator::store::{Store, StoreError};
use longshore_protocol::event::Claim;
use longshore_protocol::topology::Address;
use longshore_protocol::{Attempt, Epoch, ExecutionId, Incarnation, PoolName, RunId};
use tempfile::TempDir;

struct Dir(TempDir);

impl Dir {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("state.db")
    }

    async fn open(&self) -> Store {
        Store::open(&self.file()).await.unwrap()
    }
}

fn heard(seq: u64, number: u64) -> EntryRow {
    let entry = Entry::Heard { worker: "w1".parse().unwrap(), incarnation: Incarnation { start: 1, nonce: 1 }, number };
    EntryRow { seq, at_ms: seq, entry }
}

fn row(id: i64) -> OutboxRow {
    let claim = Claim { run: RunId::new(), execution: ExecutionId(uuid::Uuid::now_v7()), attempt: Attempt(1) };
    let about = OutboxAbout::Job { queue: JobQueue::Pool(PoolName::default()), claim };
    let to = Address { exchange: "jobs".to_owned(), routing_key: "pool".to_owned() };
    OutboxRow { id, about, to, body: vec![0, 255, u8::try_from(id).unwrap()] }
}

#[tokio::test]
async fn p21_one_of_two_takes_the_epoch_and_the_other_only_after_it_is_given_back() {
    let dir = Dir::new();
    let (first, second) = (dir.open().await, dir.open().await);
    let epoch = first.take_epoch("first").await.unwrap().expect("nobody leads");
    assert_eq!(epoch, Epoch(1));
    assert_eq!(second.take_epoch("second").await.unwrap(), None);
    first.commit(epoch, &Batch::default()).await.unwrap();
    assert_eq!(second.take_epoch("second").await.unwrap(), None);
    first.release_epoch(epoch).await.unwrap();
    assert_eq!(second.take_epoch("second").await.unwrap(), Some(Epoch(2)));
    assert_eq!(first.take_epoch("first").await.unwrap(), None);
}

#[tokio::test]
async fn p21_an_epoch_that_is_not_renewed_lapses_by_the_stores_clock() {
    let dir = Dir::new();
    let (dead, heir) = (dir.open().await, dir.open().await);
    assert_eq!(dead.take_epoch("dead").await.unwrap(), Some(Epoch(1)));
    let begun = std::time::Instant::now();
    let mut look = tokio::time::interval(std::time::Duration::from_millis(50));
    let taken = loop {
        look.tick().await;
        if let Some(epoch) = heir.take_epoch("heir").await.unwrap() {
            break epoch;
        }
        assert!(begun.elapsed().as_secs() < 30, "it never lapses");
    };
    assert_eq!(taken, Epoch(2));
    assert!(begun.elapsed().as_millis() >= 2_900, "after {:?}", begun.elapsed());
}

#[tokio::test]
async fn p21_a_stale_leader_can_write_nothing() {
    let dir = Dir::new();
    let (stale, active) = (dir.open().await, dir.open().await);
    let old = stale.take_epoch("stale").await.unwrap().unwrap();
    stale.commit(old, &Batch { entries: vec![heard(1, 1)], ..Batch::default() }).await.unwrap();
    stale.release_epoch(old).await.unwrap();
    let new = active.take_epoch("active").await.unwrap().unwrap();
    // Frozen all that time, it goes on as if nothing had happened: every kind of row, and all at once.
    let batch = Batch { entries: vec![heard(2, 2)], outbox: vec![row(1)], outbox_done: vec![1], ..Batch::default() };
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

#[tokio::test]
async fn p3_a_batch_is_written_whole_or_not_at_all() {
    let dir = Dir::new();
    let store = dir.open().await;
    let epoch = store.take_epoch("t").await.unwrap().unwrap();
    store.commit(epoch, &Batch { outbox: vec![row(1)], ..Batch::default() }).await.unwrap();
    // The journal entry is fine, the outbox row's id is taken.
    let torn = Batch { entries: vec![heard(1, 1)], outbox: vec![row(1)], ..Batch::default() };
    assert!(matches!(store.commit(epoch, &torn).await, Err(StoreError::Database(_))));
    assert_eq!(store.counters().await.unwrap(), Counters { seq: 0, change: 0, outbox: 1 });
}

#[tokio::test]
async fn the_outbox_comes_back_in_order_and_as_it_was() {
    let dir = Dir::new();
    let rows: Vec<OutboxRow> = (1..=5).map(row).collect();
    let store = dir.open().await;
    let epoch = store.take_epoch("t").await.unwrap().unwrap();
    store.commit(epoch, &Batch { outbox: rows.clone(), ..Batch::default() }).await.unwrap();
    store.commit(epoch, &Batch { outbox_done: vec![2], ..Batch::default() }).await.unwrap();
    store.close().await;
    let store = dir.open().await;
    let left = store.outbox_after(0, 3).await.unwrap();
    assert_eq!(left, [rows[0].clone(), rows[2].clone(), rows[3].clone()]);
    assert_eq!(store.outbox_after(4, 3).await.unwrap(), rows[4..]);
}

#[tokio::test]
async fn of_a_workers_heard_entries_only_the_newest_is_replayed() {
    let dir = Dir::new();
    let store = dir.open().await;
    let epoch = store.take_epoch("t").await.unwrap().unwrap();
    let lost = EntryRow { seq: 3, at_ms: 3, entry: Entry::LeaseEnded { worker: "w1".parse().unwrap() } };
    let entries = vec![heard(1, 1), heard(2, 2), lost, heard(4, 3)];
    store.commit(epoch, &Batch { entries, ..Batch::default() }).await.unwrap();
    let replayed = store.entries_to_replay().await.unwrap();
    assert_eq!(replayed.len(), 2);
    assert!(matches!(replayed[0], (3, Entry::LeaseEnded { .. })));
    assert!(matches!(replayed[1], (4, Entry::Heard { number: 3, .. })));
}

#[tokio::test]
async fn runs_are_listed_newest_first_page_by_page() {
    let dir = Dir::new();
    let store = dir.open().await;
    let epoch = store.take_epoch("t").await.unwrap().unwrap();
    let row = |change: u64| {
        let summary = RunSummary {
            run: RunId::new(),
            name: format!("n{change}"),
            tenant: "default".to_owned(),
            // Two at the same moment: the id decides.
            submitted_at_ms: change / 2,
            settled_at_ms: None,
            outcome: None,
            cancelling: false,
            steps: 1,
            steps_settled: 0,
        };
        RunRow { change, summary, pipeline_hash: "h".to_owned(), done: false }
    };
    let runs: Vec<RunRow> = (1..=5).map(row).collect();
    let ids: Vec<RunId> = runs.iter().rev().map(|row| row.summary.run).collect();
    store.commit(epoch, &Batch { runs, ..Batch::default() }).await.unwrap();
    let of_tenant = async |tenant| store.list_runs(Some(tenant), None, 10).await.unwrap().len();
    assert_eq!((of_tenant("default").await, of_tenant("other").await), (5, 0));
    let list = async |before, limit| -> Vec<RunId> {
        store.list_runs(None, before, limit).await.unwrap().into_iter().map(|run| run.run).collect()
    };
    assert_eq!(list(None, 10).await, ids);
    assert_eq!(list(None, 2).await, ids[..2]);
    assert_eq!(list(Some(ids[1]), 10).await, ids[2..]);
    assert_eq!(store.counters().await.unwrap().change, 5);
}

#[tokio::test]
async fn a_store_that_is_not_there_is_not_made_by_looking() {
    let dir = Dir::new();
    assert!(matches!(Store::open_to_read(&dir.file()), Err(StoreError::Missing(_))));
    assert!(!dir.file().exists());
}
