//! P2: published is what was confirmed and not returned.

use std::collections::BTreeMap;

use longshore_protocol::broker::{Outgoing, PublishError};
use longshore_protocol::topology::Address;

use super::{Place, Site, messages, take};

pub async fn p2_what_is_confirmed_is_there<B: Site>(place: &Place<B>) {
    let events = place.events().await;
    place.publish(&events, &["one"]).await;
    place.until_waiting(&events, 1).await;
    let mut consumer = place.broker.consume(&events, 1).await.unwrap();
    let delivery = consumer.next().await.unwrap();
    assert_eq!((delivery.body.as_slice(), delivery.redelivered), (&b"one"[..], false));
    assert_eq!(delivery.queue(), events.name);
    delivery.ack().await.unwrap();
}

pub async fn p2_what_was_returned_is_not_published<B: Site>(place: &Place<B>) {
    let events = place.events().await;
    let nobody = Address { routing_key: "nobody".to_owned(), ..events.address() };
    let mut batch = messages(&events, &["0", "1", "2", "3"]);
    batch[1].to = nobody.clone();
    batch[3].to = nobody.clone();
    match place.broker.publish(batch).await {
        Err(PublishError::Returned { index: 1, address }) => assert_eq!(address, nobody),
        other => panic!("{other:?}"),
    }
    let mut consumer = place.broker.consume(&events, 10).await.unwrap();
    assert_eq!([take(&mut consumer).await, take(&mut consumer).await], ["0", "2"]);
    place.publish(&events, &["after"]).await;
    assert_eq!(take(&mut consumer).await, "after");
}

pub async fn p2_an_exchange_that_does_not_exist_is_an_address_at_which_nobody_is<B: Site>(place: &Place<B>) {
    let events = place.events().await;
    let nowhere = Address { exchange: format!("{}-nowhere", events.exchange), ..events.address() };
    let mut batch = messages(&events, &["0", "1"]);
    batch[1].to = nowhere.clone();
    match place.broker.publish(batch).await {
        Err(PublishError::Returned { index: 1, address }) => assert_eq!(address, nowhere),
        other => panic!("{other:?}"),
    }
    place.publish(&events, &["after"]).await;
}

pub async fn p2_batches_at_once_do_not_take_each_others_returns<B: Site>(place: &Place<B>) {
    let events = place.events().await;
    let batches = (0..40).map(|number| {
        let mut batch = messages(&events, &["0", "1", "2"]);
        if number % 2 == 1 {
            batch[2].to.routing_key = format!("nobody-{number}");
        }
        let broker = place.broker.clone();
        async move {
            match (number % 2, broker.publish(batch).await) {
                (0, Ok(())) => {}
                (1, Err(PublishError::Returned { index: 2, address })) => {
                    assert_eq!(address.routing_key, format!("nobody-{number}"));
                }
                other => panic!("batch {number}: {other:?}"),
            }
        }
    });
    futures_util::future::join_all(batches).await;
    place.until_waiting(&events, 20 * 3 + 20 * 2).await;
}

pub async fn p9_a_batch_keeps_its_order<B: Site>(place: &Place<B>) {
    let events = place.events().await;
    let numbers: Vec<String> = (0..600).map(|number| number.to_string()).collect();
    let bodies: Vec<&str> = numbers.iter().map(String::as_str).collect();
    for batch in bodies.chunks(250) {
        place.publish(&events, batch).await;
    }
    let mut consumer = place.broker.consume(&events, 50).await.unwrap();
    for number in &bodies {
        assert_eq!(take(&mut consumer).await, *number);
    }
}

pub async fn p1_bytes_and_headers_arrive_as_they_were<B: Site>(place: &Place<B>) {
    let events = place.events().await;
    let large: Vec<u8> = (0..1024 * 1024).map(|i: u32| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
    let headers =
        BTreeMap::from([("x-one".to_owned(), "snow \u{2603}".to_owned()), ("x-two".to_owned(), String::new())]);
    let batch = vec![
        Outgoing { to: events.address(), body: large.clone(), headers: headers.clone() },
        Outgoing::new(events.address(), Vec::new()),
    ];
    place.broker.publish(batch).await.unwrap();
    let mut consumer = place.broker.consume(&events, 10).await.unwrap();
    let first = consumer.next().await.unwrap();
    assert!(first.body == large, "a large body was changed");
    assert_eq!(first.headers, headers);
    let second = consumer.next().await.unwrap();
    assert_eq!((second.body.len(), second.headers.len()), (0, 0));
}

pub async fn an_empty_batch_is_published<B: Site>(place: &Place<B>) {
    place.broker.publish(Vec::new()).await.unwrap();
}
