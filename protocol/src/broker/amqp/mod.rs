//! The broker of a fleet: RabbitMQ over AMQP 0-9-1.
//!
//! - `link` keeps one connection up, for ever; a broker has two of them (P2);
//! - `probe` looks who answers, before a connection is made;
//! - `declare` makes queues exist, and exist again;
//! - `publish` sends batches and waits for their confirms;
//! - `consume` receives, across lost connections.

mod consume;
mod declare;
mod link;
mod probe;
mod publish;

use std::sync::Arc;

use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::uri::AMQPUri;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

pub use consume::{AmqpAcker, AmqpConsumer};
pub use probe::ServerInfo;

use super::{Broker, BrokerError, Consumer, ConsumerKind, Outgoing, PublishError};
use crate::topology::Queue;
use declare::Declared;
use link::{Link, Session};
use publish::Publisher;

/// Seconds. What a frozen process had prefetched comes back after two to three of them, as RabbitMQ counts, and that is
/// to be less than 10 s (P21).
const HEARTBEAT_SECS: u16 = 3;

/// The largest AMQP frame: RabbitMQ's own default, said beforehand. Left to be negotiated, lapin makes its four rings of
/// 32 frames small and grows them, which writes every page: 16 MiB of an idle worker. Not less than RabbitMQ's: headers
/// must fit one frame, and a stranger's that did not would end the connection of whoever consumes them (P1).
const FRAME_BYTES_MAX: u32 = 128 * 1024;

/// RabbitMQ. A clone shares the connections.
///
/// Lapin's own recovery is not used: it replays what each *open* channel declared and forgets the
/// rest, does not bring back a consumer that the server cancelled, and where a server accepts
/// connections without answering it waits without end.
#[derive(Clone)]
pub struct AmqpBroker {
    inner: Arc<Inner>,
}

struct Inner {
    /// Under a memory alarm the broker stops reading a connection that published, acks included (P2).
    publishing: Link,
    /// Consumes, and does everything else that is no publishing.
    consuming: Link,
    publisher: Publisher,
    declared: Arc<Declared>,
    /// Ends the consumers; the links outlive them, so that they can say goodbye.
    consumers_stop: CancellationToken,
    consumers: TaskTracker,
    links_stop: CancellationToken,
    links: TaskTracker,
    /// A broker that is dropped without `close` does not leave its tasks behind.
    _guards: [DropGuard; 2],
}

impl AmqpBroker {
    /// Never waits: connects in the background, and goes on trying for ever, also where it is refused.
    ///
    /// `uri` is `amqp://user:password@host:port/vhost` (`%2f` is the vhost `/`), or `amqps://`.
    /// `connection_name` is shown in the broker's own list of connections. A URI that cannot be
    /// understood is `Refused`. Must be called within a tokio runtime.
    pub fn new(uri: &str, connection_name: &str) -> Result<Self, BrokerError> {
        let uri = parse_uri(uri)?;
        let links_stop = CancellationToken::new();
        let consumers_stop = CancellationToken::new();
        let declared = Arc::new(Declared::default());
        let links = TaskTracker::new();
        let link = |what: &str| {
            let (link, keeper) = Link::new(uri.clone(), format!("{connection_name} {what}"), Arc::clone(&declared));
            links.spawn(keeper.run(links_stop.clone()));
            link
        };
        let publishing = link("publishing");
        let consuming = link("consuming");
        Ok(Self {
            inner: Arc::new(Inner {
                publisher: Publisher::new(publishing.clone()),
                publishing,
                consuming,
                declared,
                consumers: TaskTracker::new(),
                links,
                _guards: [consumers_stop.clone().drop_guard(), links_stop.clone().drop_guard()],
                consumers_stop,
                links_stop,
            }),
        })
    }

    /// Tries once whether a broker answers there and takes the credentials, for `longshore doctor`.
    /// `Lost` where nobody answers, `Refused` where the URI or the credentials are wrong.
    pub async fn probe(uri: &str) -> Result<ServerInfo, BrokerError> {
        let uri = parse_uri(uri)?;
        let session = Session::open(&uri, "longshore probe", 0).await?;
        let info = session.server.clone();
        session.close().await;
        Ok(info)
    }
}

impl std::fmt::Debug for AmqpBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the URI: it holds the password.
        f.debug_struct("AmqpBroker").field("connected", &self.connected()).finish_non_exhaustive()
    }
}

impl Broker for AmqpBroker {
    async fn declare(&self, queues: &[Queue]) -> Result<(), BrokerError> {
        loop {
            let session = self.inner.consuming.session().await?;
            match self.inner.declared.declare(&session, queues).await {
                // Declaring twice is declaring once, so nobody needs to hear of this.
                Err(BrokerError::Lost { .. }) => session.pause().await,
                done => return done,
            }
        }
    }

    async fn publish(&self, messages: Vec<Outgoing>) -> Result<(), PublishError> {
        self.inner.publisher.publish(&messages).await
    }

    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Consumer, BrokerError> {
        let consumer = AmqpConsumer::start(Arc::clone(&self.inner), queue.clone(), prefetch.max(1)).await?;
        Ok(Consumer(ConsumerKind::Amqp(consumer)))
    }

    async fn waiting(&self, queue: &Queue) -> Result<u32, BrokerError> {
        let name = short(&queue.name)?;
        loop {
            let session = self.inner.consuming.session().await?;
            // A channel of its own: the broker closes it when the queue does not exist.
            let answer = session
                .on_own_channel(async |channel| {
                    let passive = QueueDeclareOptions { passive: true, ..Default::default() };
                    channel.queue_declare(name.clone(), passive, FieldTable::default()).await
                })
                .await;
            match answer {
                Ok(queue) => return Ok(queue.message_count()),
                Err(error) if link::code(&error) == Some(link::NOT_FOUND) => return Ok(0),
                Err(error) => session.wait_out(&error, &format!("cannot look at queue {name}")).await?,
            }
        }
    }

    async fn delete(&self, queue: &Queue) -> Result<(), BrokerError> {
        let name = short(&queue.name)?;
        // First, so that our own consumers of it end instead of making it again.
        self.inner.declared.forget(&queue.name);
        loop {
            let session = self.inner.consuming.session().await?;
            let answer = session
                .on_own_channel(async |channel| channel.queue_delete(name.clone(), QueueDeleteOptions::default()).await)
                .await;
            match answer {
                Ok(_) => return Ok(()),
                Err(error) if link::code(&error) == Some(link::NOT_FOUND) => return Ok(()),
                Err(error) => session.wait_out(&error, &format!("cannot delete queue {name}")).await?,
            }
        }
    }

    fn connected(&self) -> bool {
        self.inner.publishing.is_up() && self.inner.consuming.is_up()
    }

    async fn close(&self) {
        self.inner.consumers_stop.cancel();
        self.inner.consumers.close();
        self.inner.consumers.wait().await;
        self.inner.links_stop.cancel();
        self.inner.links.close();
        self.inner.links.wait().await;
    }
}

/// Where a URI leads, for people: without user and password, and without the vhost `/`.
/// `None` for one that cannot be understood.
pub fn shown_address(uri: &str) -> Option<String> {
    parse_uri(uri).ok().map(|uri| address(&uri))
}

fn address(uri: &AMQPUri) -> String {
    let (host, port) = (&uri.authority.host, uri.authority.port);
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let vhost = if uri.vhost == "/" { String::new() } else { format!("/{}", uri.vhost) };
    format!("{}://{host}:{port}{vhost}", uri.scheme)
}

/// The parser's words may hold the URI and with it the password: we say our own.
fn parse_uri(text: &str) -> Result<AMQPUri, BrokerError> {
    let mut uri: AMQPUri = text.parse().map_err(|_| BrokerError::Refused {
        reason: "the broker's address cannot be understood; write it as amqp://user:password@host:5672/%2f \
                 and percent-encode what is not a letter or a digit in user, password and vhost"
            .to_owned(),
    })?;
    uri.query.heartbeat = Some(HEARTBEAT_SECS);
    uri.query.frame_max.get_or_insert(FRAME_BYTES_MAX);
    // The parser knows names only, and takes localhost for an IPv6 address.
    if let Some(host) = ipv6_literal(text) {
        host.clone_into(&mut uri.authority.host);
    }
    Ok(uri)
}

/// What stands between `[` and `]` as the host of a URI that was found to be one.
fn ipv6_literal(uri: &str) -> Option<&str> {
    let (_, rest) = uri.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    Some(host.strip_prefix('[')?.split_once(']')?.0)
}

/// AMQP's names have at most 255 bytes; lapin panics on a longer one.
fn short(text: &str) -> Result<ShortString, BrokerError> {
    ShortString::try_new(text).map_err(|_| BrokerError::Refused {
        reason: format!("{text:?} is too long for a name in AMQP, which may have 255 bytes; use a shorter prefix"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_address_is_refused_with_the_mend_and_without_the_password() {
        for wrong in ["", "localhost", "http://u:secret@host", "amqp:u:secret", "amqp://u:secret@host:port"] {
            let error = parse_uri(wrong).unwrap_err();
            assert!(matches!(&error, BrokerError::Refused { reason } if reason.contains("amqp://user")), "{error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn an_ipv6_address_is_not_taken_for_localhost() {
        for (text, host, shown) in [
            ("amqp://[::1]:5673", "::1", "amqp://[::1]:5673"),
            ("amqps://u:p%40[@[2001:db8::2]/v", "2001:db8::2", "amqps://[2001:db8::2]:5671/v"),
            ("amqp://u:p@10.0.0.1/%2f", "10.0.0.1", "amqp://10.0.0.1:5672"),
            ("amqp://u:p@rabbit", "rabbit", "amqp://rabbit:5672"),
        ] {
            assert_eq!(parse_uri(text).unwrap().authority.host, host, "{text}");
            assert_eq!(shown_address(text).as_deref(), Some(shown), "{text}");
        }
        assert!(parse_uri("amqp://[::1").is_err());
    }

    #[test]
    fn p21_the_heartbeat_is_ours_whatever_the_address_says() {
        assert_eq!(parse_uri("amqp://localhost?heartbeat=600").unwrap().query.heartbeat, Some(3));
    }

    #[test]
    fn a_name_too_long_is_refused_and_does_not_panic() {
        assert!(matches!(short(&"q".repeat(256)), Err(BrokerError::Refused { .. })));
        assert!(short(&"q".repeat(255)).is_ok());
    }
}
