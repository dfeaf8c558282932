//! What queues promise, each kind its own.

use std::time::Duration;

use longshore_protocol::broker::{BrokerError, PublishError, QUEUE_HEADER, REASON_HEADER, dead_letter};
use longshore_protocol::heartbeat::HeartbeatMessage;
use longshore_protocol::ids::Epoch;
use longshore_protocol::topology::{QueueKind, Topology};
use longshore_protocol::{Shard, wire};

use super::{Place, Site, messages, take, text};

pub async fn p1_garbage_is_dead_lettered_and_the_consumer_goes_on<B: Site>(place: &Place<B>) {
    let heartbeats = place.declare(place.topology.heartbeats(Shard(0))).await;
    let letters = place.dead_letters().await;
    let good = HeartbeatMessage::Tick { epoch: Epoch(1), number: 1 };
    let good = String::from_utf8(wire::encode(&good)).unwrap();
    place.publish(&heartbeats, &["\u{1}garbage", r#"{"v":99}"#, &good]).await;

    let mut consumer = place.broker.consume(&heartbeats, 1).await.unwrap();
    for _ in 0..2 {
        let delivery = consumer.next().await.unwrap();
        let reason = wire::decode::<HeartbeatMessage>(&delivery.body).unwrap_err();
        dead_letter(&place.broker, &place.topology, delivery, &reason).await.unwrap();
    }
    let delivery = consumer.next().await.unwrap();
    wire::decode::<HeartbeatMessage>(&delivery.body).unwrap();
    delivery.ack().await.unwrap();

    let mut consumer = place.broker.consume(&letters, 10).await.unwrap();
    for (body, reason) in [("\u{1}garbage", "not a message"), (r#"{"v":99}"#, "version 99")] {
        let letter = consumer.next().await.unwrap();
        assert_eq!(text(&letter), body);
        assert!(letter.headers[REASON_HEADER].contains(reason), "{:?}", letter.headers);
        assert_eq!(letter.headers[QUEUE_HEADER], heartbeats.name);
        letter.ack().await.unwrap();
    }
}

/// What a reason quotes of a message does not fit a header.
pub async fn p1_garbage_is_dead_lettered_however_much_of_it_there_is<B: Site>(place: &Place<B>) {
    let events = place.events().await;
    let letters = place.dead_letters().await;
    let body = format!(r#"{{"v":1,"type":"{}"}}"#, "\u{e4}".repeat(200_000));
    let mut garbage = messages(&events, &[&body]);
    garbage[0].headers.insert("x-large".to_owned(), "x".repeat(100_000));
    place.broker.publish(garbage).await.unwrap();
    let delivery = place.broker.consume(&events, 1).await.unwrap().next().await.unwrap();
    let reason = wire::decode::<HeartbeatMessage>(&delivery.body).unwrap_err();
    assert!(reason.to_string().len() > 200_000);
    dead_letter(&place.broker, &place.topology, delivery, &reason).await.unwrap();
    let letter = place.broker.consume(&letters, 1).await.unwrap().next().await.unwrap();
    assert!(text(&letter) == body, "the body is kept whole");
    assert!(letter.headers[REASON_HEADER].starts_with("not understood: unknown variant"), "{:?}", letter.headers);
    assert_eq!(letter.headers[QUEUE_HEADER], events.name);
    letter.ack().await.unwrap();
}

pub async fn p1_garbage_is_dead_lettered_though_somebody_deleted_the_dead_letters<B: Site>(place: &Place<B>) {
    let events = place.events().await;
    let letters = place.dead_letters().await;
    place.publish(&events, &["garbage"]).await;
    place.broker.delete(&letters).await.unwrap();
    let delivery = place.broker.consume(&events, 1).await.unwrap().next().await.unwrap();
    let reason = wire::decode::<HeartbeatMessage>(&delivery.body).unwrap_err();
    dead_letter(&place.broker, &place.topology, delivery, &reason).await.unwrap();
    let letter = place.broker.consume(&letters, 1).await.unwrap().next().await.unwrap();
    assert_eq!(text(&letter), "garbage");
    letter.ack().await.unwrap();
}

pub async fn a_job_that_was_returned_too_often_is_dead_lettered<B: Site>(place: &Place<B>) {
    let letters = place.dead_letters().await;
    let mut jobs = place.topology.pool_jobs(Shard(0), &"limited".parse().unwrap());
    jobs.kind = QueueKind::Quorum { delivery_limit: Some(2) };
    let jobs = place.declare(jobs).await;
    let mut consumer = place.broker.consume(&jobs, 1).await.unwrap();
    let mut dead = place.broker.consume(&letters, 1).await.unwrap();
    place.publish(&jobs, &["poison"]).await;
    let mut deliveries = 0;
    let letter = loop {
        tokio::select! {
            delivery = consumer.next() => {
                deliveries += 1;
                delivery.unwrap().give_back().await.unwrap();
            }
            letter = dead.next() => break letter.unwrap(),
        }
    };
    assert_eq!(deliveries, 3, "a limit of 2: out once, and twice again");
    assert_eq!(text(&letter), "poison");
    assert!(!letter.headers.contains_key(REASON_HEADER), "the broker gives none");
    letter.ack().await.unwrap();
    // What comes behind it is not held up.
    place.publish(&jobs, &["next"]).await;
    assert_eq!(take(&mut consumer).await, "next");
}

/// More returns than the limit of 20 that newer brokers have where none is asked for.
pub async fn results_are_returned_without_limit<B: Site>(place: &Place<B>) {
    let events = place.events().await;
    place.publish(&events, &["result"]).await;
    let mut consumer = place.broker.consume(&events, 1).await.unwrap();
    for _ in 0..30 {
        consumer.next().await.unwrap().give_back().await.unwrap();
    }
    assert_eq!(take(&mut consumer).await, "result");
}

pub async fn p7_heartbeats_expire_and_are_not_dead_lettered<B: Site>(place: &Place<B>) {
    let letters = place.dead_letters().await;
    let short = Topology::new(letters.exchange.clone(), Duration::from_millis(200));
    let heartbeats = place.declare(short.heartbeats(Shard(0))).await;
    place.publish(&heartbeats, &["1", "2"]).await;
    place.until_waiting(&heartbeats, 0).await;
    assert_eq!(place.broker.waiting(&letters).await.unwrap(), 0);
    let mut consumer = place.broker.consume(&heartbeats, 10).await.unwrap();
    place.publish(&heartbeats, &["3"]).await;
    assert_eq!(take(&mut consumer).await, "3");
}

pub async fn p6_waiting_counts_what_nobody_has<B: Site>(place: &Place<B>) {
    let jobs = place.jobs().await;
    assert_eq!(place.broker.waiting(&jobs).await.unwrap(), 0);
    place.publish(&jobs, &["1", "2", "3"]).await;
    place.until_waiting(&jobs, 3).await;
    let mut consumer = place.broker.consume(&jobs, 1).await.unwrap();
    let first = consumer.next().await.unwrap();
    place.until_waiting(&jobs, 2).await;
    consumer.cancel().await;
    first.ack().await.unwrap();
    place.until_waiting(&jobs, 2).await;
    let nobodys = place.topology.pool_jobs(Shard(0), &"nobody".parse().unwrap());
    assert_eq!(place.broker.waiting(&nobodys).await.unwrap(), 0);
}

pub async fn declaring_twice_and_at_once_is_declaring_once<B: Site>(place: &Place<B>) {
    let others: Vec<B> = (0..4).map(|_| place.broker.another()).collect();
    let queues = [place.topology.dead_letters(), place.topology.events(Shard(0)), place.topology.heartbeats(Shard(0))];
    let all = others.iter().map(|broker| broker.declare(&queues));
    for declared in futures_util::future::join_all(all).await {
        declared.unwrap();
    }
    for queue in queues {
        place.declare(queue).await;
    }
    let events = place.events().await;
    place.publish(&events, &["1"]).await;
    place.events().await;
    // Declaring does not empty, nor bind twice.
    place.until_waiting(&events, 1).await;
    for broker in others {
        broker.close().await;
    }
}

pub async fn what_was_declared_otherwise_is_refused_with_the_mend<B: Site>(place: &Place<B>) {
    let mut jobs = place.jobs().await;
    jobs.kind = QueueKind::Quorum { delivery_limit: Some(7) };
    match place.broker.declare(std::slice::from_ref(&jobs)).await {
        Err(BrokerError::Refused { reason }) => {
            assert!(reason.contains(&jobs.name) && reason.contains("delete it"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    // The broker is none the worse for it.
    let events = place.events().await;
    place.publish(&events, &["1"]).await;
}

pub async fn a_deleted_queue_takes_nothing_more<B: Site>(place: &Place<B>) {
    let jobs = place.jobs().await;
    let mut consumer = place.broker.consume(&jobs, 1).await.unwrap();
    place.publish(&jobs, &["1", "2"]).await;
    assert_eq!(take(&mut consumer).await, "1");
    place.broker.delete(&jobs).await.unwrap();
    while let Some(delivery) = consumer.next().await {
        drop(delivery); // "2" may have been on its way.
    }
    let published = place.broker.publish(messages(&jobs, &["3"])).await;
    assert!(matches!(published, Err(PublishError::Returned { index: 0, .. })), "{published:?}");
    assert_eq!(place.broker.waiting(&jobs).await.unwrap(), 0);
    place.broker.delete(&jobs).await.unwrap();
    // And it can exist again.
    let jobs = place.jobs().await;
    place.publish(&jobs, &["4"]).await;
}

pub async fn a_queue_that_somebody_else_deleted_comes_back<B: Site>(place: &Place<B>) {
    let control = place.declare(place.topology.control(&"w1".parse().unwrap())).await;
    let mut consumer = place.broker.consume(&control, 1).await.unwrap();
    let other = place.broker.another();
    other.delete(&control).await.unwrap();
    // Nobody is told when it is there again, so it is tried.
    loop {
        match other.publish(messages(&control, &["hello"])).await {
            Ok(()) => break,
            Err(PublishError::Returned { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(take(&mut consumer).await, "hello");
    other.close().await;
}
