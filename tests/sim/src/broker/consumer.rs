//! The consuming side of a client: deliveries, and the answers to them.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use longshore_protocol::broker::simulated::{Answer, Deliveries};
use longshore_protocol::broker::{BrokerError, Delivery};
use longshore_protocol::job::Job;
use longshore_protocol::wire;
use tokio::time::{Instant, sleep, sleep_until};

use super::SimClient;
use super::server::{self, Kind, Server, lost};
use crate::world::elsewhere;

/// Everything that a consumer delivered and that is still held, and itself: when the last goes, the rest goes back.
#[derive(Debug)]
pub(super) struct Attachment {
    client: SimClient,
    id: u64,
}

impl Attachment {
    /// Of the server's consumer with this number, which is the client's.
    pub(super) fn new(client: SimClient, id: u64) -> Arc<Self> {
        Arc::new(Self { client, id })
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.client.lock().detach(self.id);
    }
}

/// A consumer of one queue. Dropped, it is cancelled, and what it delivered may still be answered.
#[derive(Debug)]
pub(super) struct SimConsumer {
    queue: String,
    attachment: Arc<Attachment>,
}

impl SimConsumer {
    pub(super) fn new(queue: String, attachment: Arc<Attachment>) -> Self {
        Self { queue, attachment }
    }

    async fn take(&self) -> Option<Delivery> {
        let Attachment { client, id } = &*self.attachment;
        loop {
            let (news, there) = {
                let mut server = client.lock();
                let consumer = server.consumers.get_mut(id)?;
                match consumer.inbox.front().copied() {
                    Some((tag, there)) if there <= Instant::now() && client_hears(&server, client.id()) => {
                        let consumer = server.consumers.get_mut(id)?;
                        consumer.inbox.pop_front();
                        let entry = &consumer.unacked[&tag];
                        let (body, headers, returns) = (entry.body.to_vec(), entry.headers.clone(), entry.returns);
                        let connection = server.connection(client.id(), Kind::Consuming)?;
                        let attachment = Arc::clone(&self.attachment);
                        let answer = Box::new(SimAnswer { attachment, tag, connection });
                        return Some(Delivery::simulated(&self.queue, body, headers, returns > 0, answer));
                    }
                    there => {
                        let consumer = server.consumers.get(id)?;
                        if !consumer.open && there.is_none() {
                            return None;
                        }
                        (Arc::clone(&consumer.news), there.map(|(_, there)| there))
                    }
                }
            };
            match there {
                None => news.notified().await,
                // There, and not heard: until the connection is given up, or the wire is mended.
                Some(there) if there <= Instant::now() => {
                    let changed = client.lock().clients.get(&client.id()).map(|client| Arc::clone(&client.changed))?;
                    tokio::select! {
                        biased;
                        () = changed.notified() => {}
                        () = news.notified() => {}
                        () = sleep(Duration::from_millis(100)) => {}
                    }
                }
                Some(there) => sleep_until(there).await,
            }
        }
    }
}

fn client_hears(server: &Server, client: u64) -> bool {
    server.clients.get(&client).is_some_and(|client| client.hears)
}

impl Deliveries for SimConsumer {
    fn next(&mut self) -> BoxFuture<'_, Option<Delivery>> {
        self.take().boxed()
    }

    fn cancel(self: Box<Self>) -> BoxFuture<'static, ()> {
        async move {
            let client = &self.attachment.client;
            client.point().await;
            if let Ok(connection) = client.connected(Kind::Consuming).await {
                client.travel().await;
                // Where the connection is lost, nothing is delivered any more either.
                let _ = client.passes(Kind::Consuming, connection, |client| client.speaks() && client.hears()).await;
            }
            client.lock().cancel(self.attachment.id);
        }
        .boxed()
    }
}

impl Drop for SimConsumer {
    fn drop(&mut self) {
        self.attachment.client.lock().cancel(self.attachment.id);
    }
}

#[derive(Debug)]
struct SimAnswer {
    attachment: Arc<Attachment>,
    tag: u64,
    connection: u64,
}

impl SimAnswer {
    /// Whether it arrives. An answer is written and not waited for: what is lost on its way is not noticed here.
    async fn send(&self) -> Result<bool, BrokerError> {
        let client = &self.attachment.client;
        client.point().await;
        if client.is_lost(Kind::Consuming, self.connection) {
            return Err(lost("the connection it was delivered by was reset"));
        }
        if !client.speaks() || client.world().strikes("ack lost", |noise| noise.ack_lost) {
            client.shared.broker.cut(client.id(), Kind::Consuming);
            return Ok(false);
        }
        Ok(true)
    }

    /// The broker lets go of the message.
    fn acked(&self) {
        let mut server = self.attachment.client.lock();
        let Some((queue, entry)) = server.settle(self.attachment.id, self.tag) else { return };
        if server::kind(&queue) == Some("jobs") {
            let same = |job: &Job, body: &[u8]| {
                let other = wire::decode::<Job>(body).ok();
                other.is_some_and(|other| (other.execution, other.attempt) == (job.execution, job.attempt))
            };
            let another = |job: &Job| server.has("jobs", |body| same(job, body));
            self.attachment.client.world().acked(&entry.body, entry.returns > 0, another);
        }
        server.deliver(&queue);
    }
}

impl Answer for SimAnswer {
    fn ack(self: Box<Self>) -> BoxFuture<'static, Result<(), BrokerError>> {
        async move {
            if self.send().await? {
                elsewhere(self.attachment.client.shared.process.as_ref(), || self.acked());
            }
            Ok(())
        }
        .boxed()
    }

    fn give_back(self: Box<Self>) -> BoxFuture<'static, Result<(), BrokerError>> {
        async move {
            if self.send().await? {
                let mut server = self.attachment.client.lock();
                if let Some((queue, entry)) = server.settle(self.attachment.id, self.tag) {
                    server.take_back(&queue, [entry]);
                }
            }
            Ok(())
        }
        .boxed()
    }
}
