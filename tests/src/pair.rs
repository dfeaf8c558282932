//! Two coordinators on one Postgres, of which one leads and one stands by (P21), behind one address.

use std::time::Duration;

use longshore_protocol::Epoch;
use reqwest::Client;
use tempfile::TempDir;

use crate::builder::{LEASE_SECS, free_address, free_prefix};
use crate::front::{Front, LOOK};
use crate::postgres::Database;
use crate::process::{Process, within_patience};
use crate::services;

/// Both of them.
#[derive(Debug)]
pub struct Pair {
    pub(crate) prefix: String,
    pub(crate) amqp: String,
    pub(crate) address: String,
    pub(crate) database: Database,
    seats: [Seat; 2],
    front: Front,
    /// What is not in the database: both have it.
    shared: TempDir,
}

/// Where one of them is.
#[derive(Debug)]
struct Seat {
    address: String,
    process: Option<Process>,
}

impl Pair {
    /// Starts both; one of them leads.
    ///
    /// # Panics
    /// If they cannot be started.
    pub async fn start() -> Self {
        Self::start_on(Database::create().await).await
    }

    /// The same on a database that is there.
    ///
    /// # Panics
    /// If they cannot be started.
    pub async fn start_on(database: Database) -> Self {
        let (prefix, amqp, address) = (free_prefix(), services::env("LONGSHORE_TEST_AMQP"), free_address());
        let seats = [(); 2].map(|()| Seat { address: free_address(), process: None });
        let front = Front::open(&address, seats.iter().map(|seat| seat.address.clone()).collect()).await;
        let shared = tempfile::tempdir().expect("a directory");
        let mut pair = Self { prefix, amqp, address, database, seats, front, shared };
        for seat in 0..2 {
            pair.start_seat(seat);
        }
        pair.leader().await;
        for seat in 0..2 {
            pair.process(seat).says("longshore coordinator: listens on").await;
        }
        pair
    }

    /// Starts one of them, for the first time or again.
    pub fn start_seat(&mut self, seat: usize) {
        let shared = self.shared.path().display().to_string();
        let lease = LEASE_SECS.to_string();
        let args = [
            ["coordinator", "--listen", &self.seats[seat].address, "--state", &shared],
            ["--database", self.database.address(), "--amqp", &self.amqp, "--prefix"],
        ];
        let mut args: Vec<String> = args.as_flattened().iter().map(|word| (*word).to_owned()).collect();
        args.extend([self.prefix.clone(), "--lease".to_owned(), lease]);
        self.seats[seat].process = Some(Process::start(&format!("coordinator {seat}"), &args));
    }

    /// The process of one of them.
    ///
    /// # Panics
    /// If it does not run.
    pub fn process(&mut self, seat: usize) -> &mut Process {
        self.seats[seat].process.as_mut().expect("it runs")
    }

    /// Where one of them itself is reached.
    pub fn address_of(&self, seat: usize) -> &str {
        &self.seats[seat].address
    }

    /// The database of both.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Which of them leads, as soon as one is ready.
    ///
    /// # Panics
    /// If none is for longer than [`PATIENCE`](crate::process::PATIENCE).
    pub async fn leader(&self) -> usize {
        let mut ready = self.front.ready();
        let leads = within_patience(ready.wait_for(Option::is_some)).await.expect("one of them leads");
        leads.expect("it looks for as long as the pair lives").expect("waited for")
    }

    /// Waits until none of them leads.
    ///
    /// # Panics
    /// If one does for longer than [`PATIENCE`](crate::process::PATIENCE).
    pub async fn nobody_leads(&self) {
        let mut ready = self.front.ready();
        let none = within_patience(ready.wait_for(Option::is_none)).await.expect("none of them leads");
        none.expect("it looks for as long as the pair lives");
    }

    /// Waits until another than this one leads.
    ///
    /// # Panics
    /// If none does for longer than [`PATIENCE`](crate::process::PATIENCE).
    pub async fn heir_of(&self, old: usize) -> usize {
        let mut ready = self.front.ready();
        let other = |ready: &Option<usize>| ready.is_some_and(|ready| ready != old);
        let leads = within_patience(ready.wait_for(other)).await.expect("the other one takes over");
        leads.expect("it looks for as long as the pair lives").expect("waited for")
    }

    /// Waits until one of them itself says that it is ready and does not lead, and knows who does.
    ///
    /// # Panics
    /// If it does not for longer than [`PATIENCE`](crate::process::PATIENCE).
    pub async fn stands_by(&self, seat: usize) {
        let http = Client::builder().no_proxy().build().expect("no TLS to set up");
        let url = format!("http://{}/readyz", self.address_of(seat));
        let said = async {
            let mut look = tokio::time::interval(LOOK);
            loop {
                look.tick().await;
                // One that was started a moment ago does not listen yet.
                let Ok(answer) = http.get(&url).send().await else { continue };
                let ready = answer.status().is_success();
                let what: serde_json::Value = answer.json().await.expect("JSON");
                if ready && what["leading"] == false && what["leader"] == true {
                    return;
                }
            }
        };
        assert!(within_patience(said).await.is_some(), "coordinator {seat} does not stand by");
    }

    /// kill -9.
    ///
    /// # Panics
    /// If it does not run.
    pub async fn kill(&mut self, seat: usize) {
        self.seats[seat].process.take().expect("it runs").kill().await;
    }

    /// Sends one of them a signal: `STOP`, `CONT`.
    ///
    /// # Panics
    /// If it does not run.
    pub async fn signal(&mut self, seat: usize, name: &str) {
        self.process(seat).signal(name).await;
    }

    /// The epoch of the moment.
    ///
    /// # Panics
    /// If the database does not answer.
    pub async fn epoch(&self) -> Epoch {
        let mut connection = self.database.connect().await;
        let epoch = sqlx::query_as("SELECT epoch FROM epoch").fetch_one(&mut connection).await;
        let (epoch,): (i64,) = epoch.expect("the epoch is a table of the store's");
        Epoch(u64::try_from(epoch).expect("it counts up from 0"))
    }

    /// The rows that were journalled under an epoch, and those of them that came behind the first of a later one.
    ///
    /// # Panics
    /// If the database does not answer.
    pub async fn rows_of(&self, epoch: Epoch) -> (i64, i64) {
        let mut connection = self.database.connect().await;
        sqlx::query_as(
            "SELECT COUNT(*), COUNT(*) FILTER (WHERE seq > (SELECT MIN(seq) FROM journal WHERE epoch > $1)) \
             FROM journal WHERE epoch = $1",
        )
        .bind(i64::try_from(epoch.0).expect("a small number"))
        .fetch_one(&mut connection)
        .await
        .expect("the journal is a table of the store's")
    }

    /// How long one may hold what the other waits for.
    pub const LEASE: Duration = Duration::from_secs(LEASE_SECS as u64);
}
