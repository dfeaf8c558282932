//! Which fleet is wanted.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Client;

use crate::fleet::{Fleet, Member, Place};
use crate::pair::Pair;
use crate::postgres::Database;
use crate::services;

/// Lease of the tests' fleets, in seconds: short, so that a lost worker is given up soon, and long enough for
/// a machine whose two cores compile something else at the same time.
pub const LEASE_SECS: u32 = 10;

/// A fleet to be.
#[derive(Debug, Default)]
pub struct FleetBuilder {
    workers: Vec<Wanted>,
    amqp: Option<String>,
    lease_secs: Option<u32>,
    pair: Option<OfPair>,
}

/// What a fleet takes from the coordinators that it did not start itself.
#[derive(Debug)]
struct OfPair {
    prefix: String,
    amqp: String,
    address: String,
    database: Database,
}

/// A worker to be.
#[derive(Debug)]
struct Wanted {
    name: String,
    docker: String,
    slots: u32,
    args: Vec<String>,
    place: Option<Place>,
    amqp: Option<String>,
}

impl FleetBuilder {
    /// With a worker of that name beside Engine 1 or 2, with two slots.
    #[must_use]
    pub fn worker(self, name: &str, engine: u8) -> Self {
        let docker = services::env(&format!("LONGSHORE_TEST_DOCKER_{engine}"));
        self.worker_at(name, &docker, 2)
    }

    /// With a worker beside an Engine of the test's own.
    #[must_use]
    pub fn worker_at(mut self, name: &str, docker: &str, slots: u32) -> Self {
        let (name, docker) = (name.to_owned(), docker.to_owned());
        self.workers.push(Wanted { name, docker, slots, args: Vec::new(), place: None, amqp: None });
        self
    }

    /// The worker that was named last is told this besides.
    ///
    /// # Panics
    /// If none was.
    #[must_use]
    pub fn with(mut self, args: &[&str]) -> Self {
        let last = self.workers.last_mut().expect("a worker is named before what it is told");
        last.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// The worker that was named last runs there.
    ///
    /// # Panics
    /// If none was.
    #[must_use]
    pub fn at(mut self, place: Place) -> Self {
        self.workers.last_mut().expect("a worker is named before its place").place = Some(place);
        self
    }

    /// The worker that was named last reaches the broker by this address.
    ///
    /// # Panics
    /// If none was.
    #[must_use]
    pub fn through(mut self, uri: &str) -> Self {
        self.workers.last_mut().expect("a worker is named before its way").amqp = Some(uri.to_owned());
        self
    }

    /// On another broker than the tests' common one.
    #[must_use]
    pub fn amqp(mut self, uri: &str) -> Self {
        self.amqp = Some(uri.to_owned());
        self
    }

    /// With coordinators that are started and ended apart from it.
    #[must_use]
    pub fn coordinated_by(mut self, pair: &Pair) -> Self {
        let Pair { prefix, amqp, address, database, .. } = pair;
        let (prefix, amqp, address) = (prefix.clone(), amqp.clone(), address.clone());
        self.pair = Some(OfPair { prefix, amqp, address, database: database.clone() });
        self
    }

    /// With another lease than the tests' common one.
    #[must_use]
    pub fn lease_secs(mut self, lease_secs: u32) -> Self {
        self.lease_secs = Some(lease_secs);
        self
    }

    /// A fleet of which nothing runs yet.
    ///
    /// # Panics
    /// If a directory or a port cannot be had.
    pub fn prepare(self) -> Fleet {
        let dir = tempfile::tempdir().expect("a directory");
        let workers = self.workers.into_iter().map(|wanted| {
            let Wanted { name, docker, slots, args, place, amqp } = wanted;
            let state = dir.path().join(&name);
            (name, Member { docker, state, slots, metrics: free_address(), args, place, amqp, process: None })
        });
        let mut database = None;
        let (prefix, amqp, address) = if let Some(OfPair { prefix, amqp, address, database: theirs }) = self.pair {
            database = Some(theirs);
            (prefix, amqp, address)
        } else {
            let amqp = self.amqp.unwrap_or_else(|| services::env("LONGSHORE_TEST_AMQP"));
            (free_prefix(), amqp, free_address())
        };
        Fleet {
            prefix,
            amqp,
            lease_secs: self.lease_secs.unwrap_or(LEASE_SECS),
            address,
            database,
            coordinator: None,
            workers: workers.collect(),
            http: Client::builder().no_proxy().build().expect("no TLS to set up"),
            runs: std::sync::Mutex::default(),
            dir,
        }
    }

    /// The fleet, every process of it ready.
    pub async fn start(self) -> Fleet {
        let mut fleet = self.prepare();
        fleet.start().await;
        fleet
    }
}

/// What the names of one fleet's queues begin with: fleets of tests share a broker.
pub(crate) fn free_prefix() -> String {
    format!("t{}", &uuid::Uuid::new_v4().simple().to_string()[..12])
}

/// An address on loopback that nobody listens on: chosen once, so that a process started again has its old one. Below
/// Linux's ephemeral range (from 32768): a port from there could be an outgoing connection's while its process is away.
///
/// Not given out again for five minutes, whoever listens when: `free_port` in scripts/lib/common.sh notes what it gives
/// out at the same place.
pub(crate) fn free_address() -> String {
    let given = ports_given_out();
    let ports = std::iter::repeat_with(|| 20_000 + uuid::Uuid::new_v4().as_u128() % 12_000);
    let mut free = ports.take(10_000).filter_map(|port| {
        let noted = fs::File::create_new(given.join(port.to_string()));
        if let Err(error) = noted {
            assert!(error.kind() == ErrorKind::AlreadyExists, "{}: {error}", given.display());
            return None;
        }
        let address = format!("127.0.0.1:{port}");
        TcpListener::bind(&address).is_ok().then_some(address)
    });
    free.next().unwrap_or_else(|| panic!("no port is free: {} notes those that were given out", given.display()))
}

/// A directory with a file for each port that was given out in the last five minutes.
fn ports_given_out() -> PathBuf {
    let user = fs::metadata("/proc/self").expect("a /proc").uid();
    let given = std::env::temp_dir().join(format!("longshore-ports-{user}"));
    fs::create_dir_all(&given).unwrap_or_else(|error| panic!("{}: {error}", given.display()));
    for note in fs::read_dir(&given).into_iter().flatten().flatten() {
        let age = note.metadata().and_then(|note| note.modified()).ok().and_then(|noted| noted.elapsed().ok());
        if age.is_some_and(|age| age > Duration::from_mins(5)) {
            let _ = fs::remove_file(note.path());
        }
    }
    given
}
