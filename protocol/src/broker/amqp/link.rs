//! One connection that is kept up.

use std::sync::Arc;
use std::time::Duration;

use backon::BackoffBuilder;
use futures_util::StreamExt;
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, Event};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::address;
use super::declare::Declared;
use super::probe::{self, ServerInfo};
use crate::broker::BrokerError;

/// The longest pause between two tries to connect (P8).
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(3);
/// The first one. A broker that only dropped us takes us again at once.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// For one try, the handshake included. RabbitMQ's own handshake timeout is 10 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For a goodbye. What a broker does not hear in that time it learns from the closed socket.
pub(super) const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a connection's state is looked at: lapin tells of most ends by an event, not of all.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// AMQP's reply codes that we tell apart.
pub(super) const NOT_FOUND: u16 = 404;
pub(super) const PRECONDITION_FAILED: u16 = 406;
const ACCESS_REFUSED: u16 = 403;
const NOT_ALLOWED: u16 = 530;

/// Hands out the connection of the moment.
#[derive(Clone)]
pub(super) struct Link {
    state: watch::Receiver<State>,
}

/// The task behind a [`Link`].
pub(super) struct Keeper {
    uri: AMQPUri,
    name: String,
    declared: Arc<Declared>,
    state: watch::Sender<State>,
}

#[derive(Clone)]
enum State {
    /// A refusal is an outage like another: a user or vhost may be made, an authentication service started,
    /// after us. [`AmqpBroker::probe`](super::AmqpBroker::probe) tells the two apart.
    Down,
    Up(Arc<Session>),
    Closed,
}

/// One connection, from its handshake to its end.
pub(super) struct Session {
    connection: Connection,
    /// Which one: a later one has a higher number.
    pub(super) number: u64,
    /// Who is at the other end.
    pub(super) server: ServerInfo,
    /// Set when it is known to be over. Lapin answers what was under way with an error; who waits
    /// for this as well does not depend on it.
    pub(super) ended: CancellationToken,
}

impl Link {
    /// A link, and the task that must run for it.
    pub(super) fn new(uri: AMQPUri, name: String, declared: Arc<Declared>) -> (Self, Keeper) {
        let (sender, receiver) = watch::channel(State::Down);
        (Self { state: receiver }, Keeper { uri, name, declared, state: sender })
    }

    /// The connection, as soon as there is one.
    pub(super) async fn session(&self) -> Result<Arc<Session>, BrokerError> {
        let mut state = self.state.clone();
        let settled = state.wait_for(|state| !matches!(state, State::Down)).await;
        match settled.as_deref() {
            Ok(State::Up(session)) => Ok(Arc::clone(session)),
            Ok(State::Closed | State::Down) | Err(_) => Err(BrokerError::Closed),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(&*self.state.borrow(), State::Up(_))
    }
}

impl Keeper {
    /// Keeps the connection up until `stop`, then closes it.
    pub(super) async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.keep_up()).await;
        let last = self.state.send_replace(State::Closed);
        if let State::Up(session) = last {
            session.ended.cancel();
            session.close().await;
        }
    }

    async fn keep_up(&self) {
        let mut number = 0;
        loop {
            number += 1;
            let session = self.connect(number).await;
            if number > 1 {
                tracing::info!(connection = self.name, "connected to the broker again");
            }
            self.state.send_replace(State::Up(Arc::clone(&session)));
            let reason = session.over().await;
            session.ended.cancel();
            self.state.send_replace(State::Down);
            tracing::warn!(connection = self.name, reason, "lost the connection to the broker");
        }
    }

    /// Tries until it succeeds. Warns once.
    async fn connect(&self, number: u64) -> Arc<Session> {
        let mut pauses = backoff();
        let mut warned = number > 1; // The loss itself was the warning.
        loop {
            let error = match self.open(number).await {
                Ok(session) => return session,
                Err(error) => error,
            };
            if !warned {
                warned = true;
                let (connection, broker, reason) = (&self.name, address(&self.uri), error.reason());
                tracing::warn!(connection, broker, reason, "cannot connect to the broker; trying again until it works");
            }
            tokio::time::sleep(pauses.next().unwrap_or(BACKOFF_MAX)).await;
        }
    }

    /// A connection on which everything exists that was ever declared.
    async fn open(&self, number: u64) -> Result<Arc<Session>, BrokerError> {
        let session = Arc::new(Session::open(&self.uri, &self.name, number).await?);
        let restored = tokio::select! {
            restored = self.declared.restore(&session) => restored,
            // Nobody else looks yet, and an answer that never comes would keep us here for ever.
            reason = session.over() => Err(BrokerError::Lost { reason }),
        };
        match restored {
            Ok(()) => Ok(session),
            Err(error) => {
                session.close().await;
                Err(error)
            }
        }
    }
}

/// The pauses between tries.
pub(super) fn backoff() -> impl Iterator<Item = Duration> {
    backon::ExponentialBuilder::default()
        .with_min_delay(BACKOFF_MIN)
        .with_max_delay(BACKOFF_MAX)
        .without_max_times()
        .with_jitter()
        .build()
        // Jitter comes on top of the greatest delay.
        .map(|pause| pause.min(BACKOFF_MAX))
}

impl Session {
    pub(super) async fn open(uri: &AMQPUri, name: &str, number: u64) -> Result<Self, BrokerError> {
        let both = async {
            let server = probe::ask(uri).await.map_err(|error| BrokerError::Lost { reason: error.to_string() })?;
            let properties = ConnectionProperties::default()
                .with_connection_name(name.into())
                .with_client_property("product".into(), "Longshore".into())
                .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
            let connection = Connection::connect_uri(uri.clone(), properties)
                .await
                .map_err(|error| explain(&error, "check user, password and vhost of the broker's address"))?;
            Ok(Self { connection, number, server, ended: CancellationToken::new() })
        };
        tokio::time::timeout(CONNECT_TIMEOUT, both)
            .await
            .unwrap_or_else(|_| Err(BrokerError::Lost { reason: format!("no answer in {CONNECT_TIMEOUT:?}") }))
    }

    /// Waits until it is over; why.
    async fn over(&self) -> String {
        let mut events = std::pin::pin!(self.connection.events_listener());
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            let mut reason = None;
            tokio::select! {
                event = events.next() => match event {
                    Some(Event::Error(error)) => reason = Some(error.to_string()),
                    Some(Event::ConnectionBlocked(alarm)) => {
                        tracing::warn!(alarm, "the broker has stopped reading what we publish");
                    }
                    Some(Event::ConnectionUnblocked) => tracing::info!("the broker reads again what we publish"),
                    _ => {}
                },
                _ = look.tick() => {}
            }
            // An error may be a channel's own.
            if !self.connection.status().connected() {
                return reason.unwrap_or_else(|| "closed".to_owned());
            }
        }
    }

    pub(super) async fn close(&self) {
        // A connection that is gone already says so, and that is as good.
        let goodbye = self.connection.close(200, "goodbye".into());
        if let Ok(Err(error)) = tokio::time::timeout(GOODBYE_TIMEOUT, goodbye).await {
            tracing::debug!(%error, "could not say goodbye to the broker");
        }
    }

    /// What lapin answers; an error also when the connection ends and lapin does not say so.
    pub(super) async fn run<T>(&self, answer: impl Future<Output = lapin::Result<T>>) -> lapin::Result<T> {
        tokio::select! {
            biased;
            answer = answer => answer,
            () = self.ended.cancelled() => Err(lapin::ErrorKind::InvalidConnectionState(lapin::ConnectionState::Error).into()),
        }
    }

    pub(super) async fn channel(&self) -> lapin::Result<Channel> {
        self.run(self.connection.create_channel()).await
    }

    /// For what the broker answers by closing the channel when it does not like it.
    pub(super) async fn on_own_channel<T>(
        &self,
        what: impl AsyncFnOnce(&Channel) -> lapin::Result<T>,
    ) -> lapin::Result<T> {
        let channel = self.channel().await?;
        let answer = self.run(what(&channel)).await;
        if answer.is_ok() {
            // Not left to its drop, so that a caller in a loop does not outrun the closing.
            self.run(channel.close(200, "done".into())).await?;
        }
        answer
    }

    /// After an error of something that may be tried again: `Err` if that is in vain, else pauses.
    pub(super) async fn wait_out(&self, error: &lapin::Error, mend: &str) -> Result<(), BrokerError> {
        let error = explain(error, mend);
        if let BrokerError::Lost { .. } = error {
            self.pause().await;
            return Ok(());
        }
        Err(error)
    }

    /// Waits for its end, but not long: a channel may be lost without its connection. That another
    /// try follows is then no busy loop.
    pub(super) async fn pause(&self) {
        let _ = tokio::time::timeout(BACKOFF_MIN, self.ended.cancelled()).await;
    }
}

/// The code with which the broker closed a channel or connection.
pub(super) fn code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

/// Ours for lapin's: refused where another try is in vain. `mend` says what could be done then.
pub(super) fn explain(error: &lapin::Error, mend: &str) -> BrokerError {
    match code(error) {
        Some(ACCESS_REFUSED | PRECONDITION_FAILED | NOT_ALLOWED) => {
            BrokerError::Refused { reason: format!("{error}; {mend}") }
        }
        _ => lost(error),
    }
}

/// Ours for lapin's, where only the connection or channel can be at fault.
pub(super) fn lost(error: &lapin::Error) -> BrokerError {
    BrokerError::Lost { reason: error.to_string() }
}
