//! P4: what is delivered, and what becomes of it.

use std::time::Duration;

use futures_util::FutureExt;
use longshore_protocol::broker::{BrokerError, PublishError};

use super::{Place, Site, messages, take, text};

pub async fn p4_prefetch_bounds_what_is_unacknowledged<B: Site>(place: &Place<B>) {
    let jobs = place.jobs().await;
    place.publish(&jobs, &["1", "2", "3"]).await;
    let mut consumer = place.broker.consume(&jobs, 2).await.unwrap();
    let first = consumer.next().await.unwrap();
    let _second = consumer.next().await.unwrap();
    place.until_waiting(&jobs, 1).await;
    assert!(consumer.next().now_or_never().is_none());
    first.ack().await.unwrap();
    assert_eq!(take(&mut consumer).await, "3");
}

pub async fn p4_cancel_gives_back_what_nobody_took<B: Site>(place: &Place<B>) {
    let jobs = place.jobs().await;
    place.publish(&jobs, &["1", "2", "3"]).await;
    let mut consumer = place.broker.consume(&jobs, 10).await.unwrap();
    let taken = consumer.next().await.unwrap();
    place.until_waiting(&jobs, 0).await;
    consumer.cancel().await;
    place.publish(&jobs, &["4"]).await;
    place.until_waiting(&jobs, 3).await;
    taken.ack().await.unwrap();

    let mut other = place.broker.consume(&jobs, 1).await.unwrap();
    let mut rest = Vec::new();
    for _ in 0..3 {
        let delivery = other.next().await.unwrap();
        rest.push((text(&delivery).to_owned(), delivery.redelivered));
        delivery.ack().await.unwrap();
    }
    let rest: Vec<(&str, bool)> = rest.iter().map(|(body, redelivered)| (body.as_str(), *redelivered)).collect();
    assert_eq!(rest, [("2", true), ("3", true), ("4", false)]);
}

pub async fn p4_a_delivery_outlives_its_consumer<B: Site>(place: &Place<B>) {
    let jobs = place.jobs().await;
    place.publish(&jobs, &["1", "2"]).await;
    let mut consumer = place.broker.consume(&jobs, 2).await.unwrap();
    let taken = consumer.next().await.unwrap();
    place.until_waiting(&jobs, 0).await;
    drop(consumer);
    place.until_waiting(&jobs, 1).await;
    taken.ack().await.unwrap();
    let mut other = place.broker.consume(&jobs, 1).await.unwrap();
    assert_eq!(take(&mut other).await, "2");
    place.publish(&jobs, &["3"]).await;
    assert_eq!(take(&mut other).await, "3", "the first was acked, although its consumer was gone");
}

pub async fn given_back_comes_again_marked<B: Site>(place: &Place<B>) {
    let jobs = place.jobs().await;
    place.publish(&jobs, &["1"]).await;
    let mut consumer = place.broker.consume(&jobs, 1).await.unwrap();
    let first = consumer.next().await.unwrap();
    assert!(!first.redelivered);
    first.give_back().await.unwrap();
    let second = consumer.next().await.unwrap();
    assert_eq!((text(&second), second.redelivered), ("1", true));
    second.ack().await.unwrap();
}

pub async fn what_was_not_acked_comes_back_when_the_connection_ends<B: Site>(place: &Place<B>) {
    let events = place.events().await;
    place.publish(&events, &["1", "2"]).await;
    let frozen = place.broker.another();
    let mut consumer = frozen.consume(&events, 10).await.unwrap();
    let taken = consumer.next().await.unwrap();
    place.until_waiting(&events, 0).await;
    frozen.close().await;
    assert!(matches!(taken.ack().await, Err(BrokerError::Lost { .. })));
    assert!(consumer.next().await.is_none());

    let mut consumer = place.broker.consume(&events, 10).await.unwrap();
    for body in ["1", "2"] {
        let delivery = consumer.next().await.unwrap();
        assert_eq!((text(&delivery), delivery.redelivered), (body, true));
    }
}

pub async fn what_was_dropped_without_a_word_comes_back_when_the_consumer_ends<B: Site>(place: &Place<B>) {
    let events = place.events().await;
    place.publish(&events, &["1"]).await;
    let mut consumer = place.broker.consume(&events, 1).await.unwrap();
    drop(consumer.next().await.unwrap());
    assert_eq!(place.broker.waiting(&events).await.unwrap(), 0);
    consumer.cancel().await;
    place.until_waiting(&events, 1).await;
}

pub async fn two_consumers_share<B: Site>(place: &Place<B>) {
    let jobs = place.jobs().await;
    let other = place.broker.another();
    let mut one = place.broker.consume(&jobs, 1).await.unwrap();
    let mut two = other.consume(&jobs, 1).await.unwrap();
    place.publish(&jobs, &["a", "b", "c"]).await;
    let (first, second) = (one.next().await.unwrap(), two.next().await.unwrap());
    let mut both = [text(&first), text(&second)];
    both.sort_unstable();
    assert_eq!(both, ["a", "b"]);
    second.ack().await.unwrap();
    assert_eq!(take(&mut two).await, "c");
    first.ack().await.unwrap();
    other.close().await;
}

pub async fn next_may_be_dropped_while_it_waits<B: Site>(place: &Place<B>) {
    let events = place.events().await;
    let mut consumer = place.broker.consume(&events, 1).await.unwrap();
    for number in 0..100 {
        let body = number.to_string();
        place.publish(&events, &[&body]).await;
        // Waited for again and again rather than once.
        let delivery = loop {
            if let Ok(delivery) = tokio::time::timeout(Duration::from_millis(1), consumer.next()).await {
                break delivery.unwrap();
            }
        };
        assert_eq!(text(&delivery), body);
        delivery.ack().await.unwrap();
    }
}

pub async fn after_close_everything_says_so<B: Site>(place: &Place<B>) {
    let events = place.events().await;
    let broker = place.broker.another();
    let mut consumer = broker.consume(&events, 1).await.unwrap();
    broker.publish(messages(&events, &["1"])).await.unwrap();
    assert!(broker.connected());
    let waiting = tokio::spawn(async move { consumer.next().await.is_some() && consumer.next().await.is_none() });
    place.until_waiting(&events, 0).await;
    broker.close().await;
    waiting.await.unwrap();
    assert!(!broker.connected());
    let closed = |result| assert!(matches!(result, Err(BrokerError::Closed)), "{result:?}");
    closed(broker.declare(std::slice::from_ref(&events)).await);
    closed(broker.waiting(&events).await.map(drop));
    closed(broker.delete(&events).await);
    closed(broker.consume(&events, 1).await.map(drop));
    let published = broker.publish(messages(&events, &["2"])).await;
    assert!(matches!(published, Err(PublishError::Broker(BrokerError::Closed))), "{published:?}");
    broker.close().await;
}

/// At every moment of its making: each try is given up a little later than the one before.
pub async fn p4_a_consumer_that_was_given_up_while_it_was_made_holds_nothing<B: Site>(place: &Place<B>) {
    let events = place.events().await;
    place.publish(&events, &["1"]).await;
    for tenths in 0..200 {
        let given_up = Duration::from_micros(tenths * 100);
        drop(tokio::time::timeout(given_up, place.broker.consume(&events, 1)).await);
    }
    let mut consumer = place.broker.consume(&events, 1).await.unwrap();
    assert_eq!(take(&mut consumer).await, "1");
}
