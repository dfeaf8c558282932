//! What both brokers promise. The fake passes what the real one passes: an untested fake lies.
//!
//! Every test of `contract/` runs against RabbitMQ and against memory; what can only go wrong on a
//! network is in `contract/outage.rs`.

// Modules of one test are nobody's interface.
#![allow(unreachable_pub)]
// A panic is how a test says no, in its helpers too.
#![allow(clippy::unwrap_used)]

mod contract;
#[path = "../../tests/services.rs"]
mod services;

/// Makes each function a test of either broker.
macro_rules! contract {
    ($($module:ident: $($name:ident),+;)+) => {
        mod memory {
            $($(
                #[tokio::test]
                async fn $name() {
                    let broker = longshore_protocol::broker::memory::MemoryBroker::new();
                    crate::contract::run(broker, crate::contract::$module::$name).await;
                }
            )+)+
        }

        mod amqp {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let broker = crate::contract::amqp_broker();
                    crate::contract::run(broker, crate::contract::$module::$name).await;
                }
            )+)+
        }
    };
}

contract! {
    publishing:
        p2_what_is_confirmed_is_there,
        p2_what_was_returned_is_not_published,
        p2_an_exchange_that_does_not_exist_is_an_address_at_which_nobody_is,
        p2_batches_at_once_do_not_take_each_others_returns,
        p9_a_batch_keeps_its_order,
        p1_bytes_and_headers_arrive_as_they_were,
        an_empty_batch_is_published;
    consuming:
        p4_prefetch_bounds_what_is_unacknowledged,
        p4_cancel_gives_back_what_nobody_took,
        p4_a_delivery_outlives_its_consumer,
        given_back_comes_again_marked,
        what_was_not_acked_comes_back_when_the_connection_ends,
        what_was_dropped_without_a_word_comes_back_when_the_consumer_ends,
        two_consumers_share,
        next_may_be_dropped_while_it_waits,
        p4_a_consumer_that_was_given_up_while_it_was_made_holds_nothing,
        after_close_everything_says_so;
    queues:
        p1_garbage_is_dead_lettered_and_the_consumer_goes_on,
        p1_garbage_is_dead_lettered_however_much_of_it_there_is,
        p1_garbage_is_dead_lettered_though_somebody_deleted_the_dead_letters,
        a_job_that_was_returned_too_often_is_dead_lettered,
        results_are_returned_without_limit,
        p7_heartbeats_expire_and_are_not_dead_lettered,
        p6_waiting_counts_what_nobody_has,
        declaring_twice_and_at_once_is_declaring_once,
        what_was_declared_otherwise_is_refused_with_the_mend,
        a_deleted_queue_takes_nothing_more,
        a_queue_that_somebody_else_deleted_comes_back;
}
