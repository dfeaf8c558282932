//! `longshore coordinator`: plans runs, dispatches jobs, settles steps.

use std::collections::BTreeMap;
use std::fs;
use std::future::pending;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use longshore_coordinator::core::{CoreConfig, WEIGHT_MAX};
use longshore_coordinator::store::postgres::PostgresAddress;
use longshore_coordinator::{Config, Coordinator, CoordinatorError, StateLocation, Tokens};
use longshore_protocol::Shard;
use longshore_protocol::broker::Broker;
use longshore_protocol::broker::amqp::AmqpBroker;
use longshore_protocol::process::watch;
use longshore_protocol::topology::Topology;
use tokio::time::timeout;

use crate::cli::CoordinatorArgs;
use crate::failure::Failure;
use crate::render::screen;
use crate::server;
use crate::state::{StateDir, private_dir, unusable};

/// In lists of connections, and before what it says.
const NAME: &str = "longshore coordinator";

/// Who takes a lead that nobody has takes it at once; that of one who was killed lapses after 3 s (P21).
const LEAD_SOON: Duration = Duration::from_secs(1);

/// Until refused queues are looked at again: somebody must mend them.
const DECLARE_WAIT: Duration = Duration::from_secs(3);

/// Whom the runs of the one `--token` are charged to.
const TENANT: &str = "default";

pub(crate) async fn run(args: CoordinatorArgs) -> Result<u8, Failure> {
    let metrics = server::install_metrics(longshore_coordinator::metrics::METRICS, &[])?;
    let shutdown = server::shutdown(None)?;
    let (tokens, weights) = tokens(args.token.as_deref(), args.tokens.as_deref())?;
    let dir = match args.state {
        Some(dir) => dir,
        None => StateDir::path()?.join("coordinator"),
    };
    let uri = args.database.as_deref().filter(|uri| !uri.is_empty());
    let advertise = advertised(args.advertise, args.listen, uri.is_some())?;
    private_dir(&dir).map_err(|error| unusable(&dir, &error))?;
    let store = match uri {
        Some(uri) => StateLocation::Postgres(database(uri)?),
        None => StateLocation::Sqlite(dir.join("coordinator.db")),
    };
    let broker = server::broker(&args.fleet, NAME)?;
    let lease = Duration::from_secs(args.fleet.lease.into());
    let topology = Topology::new(args.fleet.prefix.clone(), lease);
    let config = Config {
        listen: Some(args.listen),
        advertise,
        tokens,
        // A tick is a second (P8).
        core: CoreConfig { lease_ticks: args.fleet.lease, weights, ..CoreConfig::default() },
        metrics: Some(metrics),
        ..Config::new(args.fleet.prefix.clone(), store, dir.join("blobs"))
    };
    // What is wrong with us is said at once; what is wrong with the broker may mend itself.
    let coordinator = Coordinator::open(config, broker.clone()).await.map_err(|error| refused(&error))?;
    let address = coordinator.local_addr().unwrap_or(args.listen);
    screen::say(&format!("{NAME}: listens on http://{address}"));
    // As /readyz says it. Its API answers meanwhile: what is away comes back without a restart.
    let ready = leads(coordinator.leading(), broker.clone(), topology);
    let ready = async move {
        ready.await;
        format!("on http://{address}")
    };
    let announced =
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(server::announce(args.fleet.amqp, NAME, ready)));
    let done = coordinator.run(shutdown.clone()).await;
    shutdown.cancel();
    broker.close().await;
    let _ = announced.await;
    done.map(|()| 0).map_err(|error| refused(&error))
}

/// Waits until it leads and its queues exist.
async fn leads(mut leading: watch::Receiver<bool>, broker: AmqpBroker, topology: Topology) {
    if timeout(LEAD_SOON, leading.wait_for(|leading| *leading)).await.is_err() {
        screen::say(&format!("{NAME}: standing by: another coordinator leads, or led a moment ago"));
    }
    // Any number of times, by anyone. Its own consumers say what is refused, and go on trying.
    while leading.wait_for(|leading| *leading).await.is_ok() {
        if broker.declare(&topology.of_coordinator(Shard(0))).await.is_ok() {
            return;
        }
        tokio::time::sleep(DECLARE_WAIT).await;
    }
    pending::<()>().await;
}

/// Where the others reach this one, if it has others. "Every address" is nobody's.
fn advertised(given: Option<String>, listen: SocketAddr, shared: bool) -> Result<Option<String>, Failure> {
    let own = || (!listen.ip().is_unspecified()).then(|| format!("http://{listen}"));
    let advertise = given.filter(|url| !url.is_empty()).or_else(own);
    if advertise.is_none() && shared {
        let unknown = format!("the other coordinators of the database do not know this one by {listen}");
        return Err(Failure::input(unknown)
            .mend("say with --advertise http://HOST:PORT or LONGSHORE_ADVERTISE where they reach it"));
    }
    Ok(advertise)
}

/// What is wrong with an address is said without it: it holds a password (promise 8).
pub(crate) fn database(uri: &str) -> Result<PostgresAddress, Failure> {
    uri.parse().map_err(|reason: String| Failure::input(format!("--database or LONGSHORE_DATABASE: {reason}")))
}

/// Its own text names the mend.
fn refused(error: &CoordinatorError) -> Failure {
    match error {
        CoordinatorError::OpenToAnybody { .. }
        | CoordinatorError::Listen { .. }
        | CoordinatorError::OtherDirectory { .. } => Failure::input(error.to_string()),
        _ => Failure::infra(error.to_string()),
    }
}

/// The tokens, and the weights of tenants that are not 1.
fn tokens(token: Option<&str>, file: Option<&Path>) -> Result<(Tokens, BTreeMap<String, u32>), Failure> {
    let mut weights = BTreeMap::new();
    let mut all: Vec<(String, String)> = token
        .filter(|token| !token.is_empty())
        .map(|token| (token.to_owned(), TENANT.to_owned()))
        .into_iter()
        .collect();
    if let Some(file) = file {
        let text = fs::read_to_string(file)
            .map_err(|error| Failure::input(format!("the tokens in {} cannot be read: {error}", file.display())))?;
        all.extend(read_tokens(file, &text, &mut weights)?);
    }
    Ok((Tokens::new(all), weights))
}

/// A token, a space, a tenant, and perhaps the tenant's weight; empty lines and those that begin with `#` mean nothing.
fn read_tokens(file: &Path, text: &str, weights: &mut BTreeMap<String, u32>) -> Result<Vec<(String, String)>, Failure> {
    let mut tokens = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let place = || format!("line {} of {}", index + 1, file.display());
        let words: Vec<&str> = line.split_whitespace().collect();
        // The line itself is a secret (promise 8).
        let (token, tenant, weight) = match words[..] {
            [] => continue,
            [first, ..] if first.starts_with('#') => continue,
            [token, tenant] => (token, tenant, None),
            [token, tenant, weight] => (token, tenant, Some(weight)),
            _ => return Err(Failure::input(format!("{} is not a token, a tenant and perhaps `weight=N`", place()))),
        };
        tokens.push((token.to_owned(), tenant.to_owned()));
        let Some(weight) = weight else { continue };
        let number = weight.strip_prefix("weight=").and_then(|number| number.parse().ok());
        let Some(number) = number.filter(|number| (1..=WEIGHT_MAX).contains(number)) else {
            let message = format!("{}: behind the tenant stands `weight=N`, N from 1 to {WEIGHT_MAX}", place());
            return Err(Failure::input(message));
        };
        if weights.insert(tenant.to_owned(), number).is_some_and(|before| before != number) {
            return Err(Failure::input(format!("{}: tenant {tenant} has another weight above", place())));
        }
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_and_a_bad_line_is_not_repeated() {
        let file = Path::new("tokens");
        let mut weights = BTreeMap::new();
        let text = "# ours\n\ns3cret red\n  t0ken   blue weight=3 \nan0ther blue\n";
        let read = read_tokens(file, text, &mut weights).unwrap();
        let pair = |token: &str, tenant: &str| (token.to_owned(), tenant.to_owned());
        assert_eq!(read, [pair("s3cret", "red"), pair("t0ken", "blue"), pair("an0ther", "blue")]);
        assert_eq!(weights, BTreeMap::from([("blue".to_owned(), 3)]));
        for (bad, says) in [
            ("ok red\ns3cret\n", "perhaps `weight=N`"),
            ("ok red\ns3cret red 3\n", "`weight=N`"),
            ("ok red\ns3cret red weight=0\n", "from 1 to 1000"),
            ("ok red weight=2\ns3cret red weight=3\n", "another weight"),
        ] {
            let (message, _) = read_tokens(file, bad, &mut BTreeMap::new()).unwrap_err().words();
            assert!(message.contains("line 2") && message.contains(says), "{message}");
            assert!(!message.contains("s3cret"), "{message}");
        }
    }
}
