//! What every [`Store`] must keep, as one suite: SQLite, Postgres and the simulated one pass the same rules.
//!
//! * [`leading`] one leads, by the store's own clock, and nobody else writes (P21);
//! * [`writing`] a batch is whole or not at all, and what was committed outlives a crash (P3);
//! * [`recovering`] what a new leader reads;
//! * [`reading`] what the API reads of runs; [`logs`] of logs.
//!
//! [`store_contract!`](crate::store_contract) makes a test of each.

#![allow(clippy::unwrap_used)] // a panic is how a test fails

pub mod leading;
pub mod logs;
pub mod reading;
pub mod recovering;
pub mod rows;
pub mod writing;

use std::sync::Arc;
use std::time::Duration;

use longshore_coordinator::store::Store;
use longshore_protocol::Epoch;

/// One implementation under test: the place where a store's data is, of which several processes may hold it open.
pub trait Place {
    /// Opens it, as another process would. What is new is made by the first.
    fn open(&self) -> impl Future<Output = Arc<dyn Store>> + Send;

    /// The process that opened it is gone at this instant: it closes nothing.
    fn crash(&self, store: Arc<dyn Store>) -> impl Future<Output = ()> + Send;

    /// So much time, or more, goes by on the store's own clock: the answer says how much.
    fn pass(&self, time: Duration) -> impl Future<Output = Duration> + Send;
}

/// Opens it and signs in as well, which may take a good part of the time after which an epoch lapses.
pub(crate) async fn signed_in(place: &impl Place) -> Arc<dyn Store> {
    let store = place.open().await;
    // Nobody's: nothing changes by it.
    store.release_epoch(Epoch(1_000)).await.unwrap();
    store
}

/// Makes a test of each rule of the suite, on the place that the expression makes.
#[macro_export]
macro_rules! store_contract {
    ($place:expr) => {
        $crate::store_contract!(@each $place;
            leading::p21_one_of_two_takes_the_epoch_and_the_other_only_after_it_is_given_back,
            leading::p21_of_many_who_try_at_once_one_takes_the_epoch,
            leading::p21_an_epoch_that_is_not_renewed_lapses_by_the_stores_clock,
            leading::p21_a_stale_leader_writes_nothing,
            leading::p21_a_leader_that_stalled_goes_on_if_nobody_took_over,
            writing::p3_a_batch_is_written_whole_or_not_at_all,
            writing::p3_what_was_committed_outlives_a_crash,
            writing::p3_a_commit_that_is_dropped_on_its_way_wrote_all_or_nothing,
            writing::a_batch_of_thousands_of_rows_is_one_batch,
            writing::p1_bytes_and_text_come_back_as_they_were,
            recovering::p3_the_outbox_comes_back_in_order_and_as_it_was,
            recovering::the_writer_goes_on_counting_where_the_last_one_ended,
            recovering::of_runs_only_open_ones_are_replayed,
            recovering::a_run_that_is_done_is_recalled_with_what_became_of_the_workers_meanwhile,
            recovering::p9_of_a_workers_heard_entries_only_the_newest_stays,
            recovering::p14_open_logs_come_back_with_what_is_stored_of_them,
            reading::runs_are_listed_newest_first_page_by_page,
            reading::a_run_is_read_with_its_steps_and_what_changed_since,
            reading::a_repeated_submit_is_told_from_another,
            logs::p14_rows_come_in_the_order_of_storing_across_the_logs_of_a_run,
            logs::p14_a_sealed_chunk_takes_the_place_of_its_rows,
            logs::a_row_is_found_by_its_line,
        );
    };
    (@each $place:expr; $($module:ident::$rule:ident),+ $(,)?) => {
        $(
            #[tokio::test]
            async fn $rule() {
                $crate::store_contract::$module::$rule(&$place).await;
            }
        )+
    };
}
