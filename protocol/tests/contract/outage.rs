//! What can only go wrong on a network: outages, refusals, and a broker that says nothing.

use std::process::Command;
use std::time::Duration;

use futures_util::FutureExt;
use longshore_protocol::broker::amqp::AmqpBroker;
use longshore_protocol::broker::{Broker, BrokerError, PublishError};
use longshore_protocol::topology::Queue;

use crate::contract::{Place, messages, take, text, within};
use crate::proxy::{Proxy, Way};
use crate::{amqp_broker, amqp_uri};

/// The test broker's address without scheme, credentials and vhost, and the same with another host.
fn target() -> String {
    let uri = amqp_uri();
    let host = uri.rsplit('@').next().unwrap();
    host.trim_start_matches("amqp://").split('/').next().unwrap().to_owned()
}

fn through(proxy: &Proxy) -> String {
    amqp_uri().replace(&target(), &format!("127.0.0.1:{}", proxy.port()))
}

/// A broker behind a proxy, and one that is not, to see what really is.
struct Outage {
    proxy: Proxy,
    far: AmqpBroker,
    near: Place<AmqpBroker>,
}

impl Outage {
    async fn new(way: Way) -> Self {
        let proxy = Proxy::start(target(), way).await;
        let far = AmqpBroker::new(&through(&proxy), "contract behind a proxy").unwrap();
        Self { proxy, far, near: Place::new(amqp_broker()) }
    }

    async fn end(self) {
        // First, or its consumers would declare again what is deleted.
        self.far.close().await;
        self.near.clear().await;
        self.near.broker.close().await;
    }

    async fn publish_until_confirmed(&self, queue: &Queue, body: &str) {
        while let Err(error) = self.far.publish(messages(queue, &[body])).await {
            assert!(matches!(error, PublishError::Broker(BrokerError::Lost { .. })), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_comes_up_late_is_waited_for() {
    within(async {
        let outage = Outage::new(Way::Cut).await;
        outage.proxy.until_tried(2).await;
        assert!(!outage.far.connected());
        let events = outage.near.topology.events(longshore_protocol::Shard(0));
        let (far, queue) = (outage.far.clone(), events.clone());
        let early = tokio::spawn(async move {
            far.declare(std::slice::from_ref(&queue)).await.unwrap();
            far.publish(messages(&queue, &["early"])).await.unwrap();
            far.consume(&queue, 1).await.unwrap().next().await.unwrap().ack().await.unwrap();
        });
        outage.proxy.until_tried(outage.proxy.tried() + 1).await;
        outage.proxy.set(Way::Open);
        early.await.unwrap();
        assert!(outage.far.connected());
        outage.near.declare(events).await; // To be deleted.
        outage.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_consumer_goes_on_after_an_outage() {
    within(async {
        let outage = Outage::new(Way::Open).await;
        let events = outage.near.events().await;
        let mut consumer = outage.far.consume(&events, 2).await.unwrap();
        outage.near.publish(&events, &["1", "2", "3"]).await;
        let held = consumer.next().await.unwrap();
        outage.near.until_waiting(&events, 1).await;

        let tried = outage.proxy.tried();
        outage.proxy.set(Way::Cut);
        // The broker has noticed when everything waits again; and while it is cut, nobody gets anything.
        outage.near.until_waiting(&events, 3).await;
        outage.proxy.until_tried(tried + 1).await;
        outage.near.publish(&events, &["4"]).await;
        outage.proxy.set(Way::Open);

        // Of two connections that were cut, the consumer's may be noticed last: then "2" is here from before.
        let mut first = consumer.next().await.unwrap();
        if !first.redelivered {
            first = consumer.next().await.unwrap();
        }
        assert!(matches!(held.ack().await, Err(BrokerError::Lost { .. })));
        assert_eq!((text(&first), first.redelivered), ("1", true));
        first.ack().await.unwrap();
        for (body, redelivered) in [("2", true), ("3", false), ("4", false)] {
            let delivery = consumer.next().await.unwrap();
            assert_eq!((text(&delivery), delivery.redelivered), (body, redelivered));
            delivery.ack().await.unwrap();
        }
        outage.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_what_an_outage_left_in_doubt_can_be_sent_again() {
    within(async {
        let outage = Outage::new(Way::Open).await;
        let events = outage.near.events().await;
        outage.publish_until_confirmed(&events, "before").await;
        // Frozen first, so that the batch is under way for certain when the cut comes.
        outage.proxy.set(Way::Frozen);
        let far = outage.far.clone();
        let mut doubtful = Box::pin(far.publish(messages(&events, &["doubtful"])));
        assert!(doubtful.as_mut().now_or_never().is_none());
        outage.proxy.set(Way::Cut);
        let answer = doubtful.await;
        assert!(matches!(answer, Err(PublishError::Broker(BrokerError::Lost { .. }))), "{answer:?}");
        // What is published in the outage waits for its end.
        let (far, batch) = (outage.far.clone(), messages(&events, &["during"]));
        let during = tokio::spawn(async move { far.publish(batch).await });
        outage.proxy.until_tried(outage.proxy.tried() + 1).await;
        outage.proxy.set(Way::Open);
        during.await.unwrap().unwrap();
        outage.publish_until_confirmed(&events, "after").await;

        let mut consumer = outage.near.broker.consume(&events, 10).await.unwrap();
        let mut seen = vec![take(&mut consumer).await];
        while seen.last().unwrap() != "after" {
            seen.push(take(&mut consumer).await);
        }
        seen.retain(|body| body != "doubtful");
        assert_eq!(seen, ["before", "during", "after"]);
        outage.end().await;
    })
    .await;
}

/// The heartbeat of 3 s finds out what no closed socket tells (P21): this test takes its time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p21_a_connection_that_went_silent_is_replaced() {
    within(async {
        let outage = Outage::new(Way::Open).await;
        let events = outage.near.events().await;
        let mut consumer = outage.far.consume(&events, 1).await.unwrap();
        outage.near.publish(&events, &["1"]).await;
        let held = consumer.next().await.unwrap();
        let tried = outage.proxy.tried();
        outage.proxy.set(Way::Frozen);
        // The broker gives up: what a frozen process had prefetched comes back.
        outage.near.until_waiting(&events, 1).await;
        // And so does the frozen one, which tries again.
        outage.proxy.until_tried(tried + 1).await;
        outage.proxy.set(Way::Open);
        let again = consumer.next().await.unwrap();
        assert_eq!((text(&again), again.redelivered), ("1", true));
        assert!(held.ack().await.is_err());
        again.ack().await.unwrap();
        outage.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_the_server_closes_is_opened_again() {
    within(async {
        let name = format!("contract-{}", longshore_protocol::RunId::new());
        let place = Place::new(AmqpBroker::new(&amqp_uri(), &name).unwrap());
        let events = place.events().await;
        let mut consumer = place.broker.consume(&events, 1).await.unwrap();
        place.publish(&events, &["1"]).await;
        let held = consumer.next().await.unwrap();
        assert_eq!(
            tokio::task::spawn_blocking(move || close_connections(&name)).await.unwrap(),
            2,
            "P2: two connections"
        );
        let again = consumer.next().await.unwrap();
        assert!(again.redelivered);
        assert!(matches!(held.ack().await, Err(BrokerError::Lost { .. })));
        again.ack().await.unwrap();
        while let Err(error) = place.broker.publish(messages(&events, &["2"])).await {
            assert!(matches!(error, PublishError::Broker(BrokerError::Lost { .. })), "{error}");
        }
        assert_eq!(take(&mut consumer).await, "2");
        place.clear().await;
        place.broker.close().await;
    })
    .await;
}

/// `docs/decisions/leaderless-queues.md`; this test takes as long as a leader is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p9_a_queue_that_gets_no_leader_is_made_anew_and_the_others_go_on() {
    within(async {
        let place = Place::new(amqp_broker());
        let events = place.events().await;
        let letters = place.topology.dead_letters();
        place.declare(letters.clone()).await;
        let mut beside = place.broker.consume(&letters, 1).await.unwrap();
        // Its one member answers nothing any more, as one that waits for a leader for ever.
        member(&events, "suspend").await;

        let mut consumer = place.broker.consume(&events, 1).await.unwrap();
        while place.broker.publish(messages(&events, &["anew"])).await.is_err() {}
        assert_eq!(take(&mut consumer).await, "anew");
        while place.broker.publish(messages(&letters, &["beside"])).await.is_err() {}
        assert_eq!(take(&mut beside).await, "beside");
        place.clear().await;
        place.broker.close().await;
    })
    .await;
}

/// The queue answers only when nobody wants that consumer any more: it must not be there then, and hold a job.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_consumer_that_was_given_up_while_its_queue_was_slow_takes_nothing() {
    within(async {
        let (place, other) = (Place::new(amqp_broker()), amqp_broker());
        let events = place.events().await;
        member(&events, "suspend").await;
        let asked = tokio::time::timeout(Duration::from_secs(1), place.broker.consume(&events, 1)).await;
        assert!(asked.is_err(), "a queue that answers nothing");
        // Longer than its making is waited for. There is nothing to see of that until the queue answers.
        tokio::time::sleep(Duration::from_secs(3)).await;
        member(&events, "resume").await;
        let mut consumer = other.consume(&events, 10).await.unwrap();
        place.publish(&events, &["1", "2", "3"]).await;
        let mut taken = Vec::new();
        while taken.len() < 3 {
            taken.push(take(&mut consumer).await);
        }
        taken.sort();
        assert_eq!(taken, ["1", "2", "3"]);
        consumer.cancel().await;
        place.clear().await;
        place.broker.close().await;
        other.close().await;
    })
    .await;
}

/// Suspends or resumes a quorum queue's one member.
async fn member(queue: &Queue, what: &str) {
    let call = format!("sys:{what}(whereis(binary_to_atom(<<\"%2F_{}\">>))).", queue.name);
    tokio::task::spawn_blocking(move || rabbitmqctl(&["eval", &call])).await.unwrap();
}

/// Asks the broker's node itself, as an operator would.
fn rabbitmqctl(arguments: &[&str]) -> String {
    let control = crate::services::env("LONGSHORE_TEST_RABBITMQCTL");
    let output = Command::new(control).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// How many they were.
fn close_connections(name: &str) -> usize {
    let run = rabbitmqctl;
    let list = run(&["-q", "list_connections", "pid", "client_properties"]);
    let ours: Vec<&str> =
        list.lines().filter(|line| line.contains(name)).filter_map(|line| line.split('\t').next()).collect();
    for pid in &ours {
        run(&["-q", "close_connection", pid, "by a test"]);
    }
    ours.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probe_says_who_answers_or_what_is_wrong() {
    within(async {
        let info = AmqpBroker::probe(&amqp_uri()).await.unwrap();
        assert_eq!(info.product, "RabbitMQ");
        assert!(info.version.split('.').count() >= 3, "{info:?}");

        let cut = Proxy::start(target(), Way::Cut).await;
        assert!(matches!(AmqpBroker::probe(&through(&cut)).await, Err(BrokerError::Lost { .. })));
        assert!(matches!(AmqpBroker::probe("http://localhost").await, Err(BrokerError::Refused { .. })));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_credentials_are_said_and_not_shown() {
    within(async {
        for wrong in [format!("amqp://nobody:wrong-secret@{}", target()), format!("{}/no-such-vhost", amqp_uri())] {
            let broker = AmqpBroker::new(&wrong, "contract refused").unwrap();
            let error = AmqpBroker::probe(&wrong).await.unwrap_err();
            assert!(matches!(error, BrokerError::Refused { .. }), "{error}");
            assert!(error.to_string().contains("check user, password and vhost"), "{error}");
            assert!(!error.to_string().contains("wrong-secret"), "{error}");
            assert!(!broker.connected());
            assert!(!format!("{broker:?}").contains("secret"));
            broker.close().await;
        }
    })
    .await;
}
