//! A database of a test's own, so that tests run side by side.

use std::str::FromStr as _;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection};

use crate::services;

/// A new database on the tests' server. It goes with the server's directory.
#[derive(Clone, Debug)]
pub struct Database {
    address: String,
}

impl Database {
    /// Makes one.
    ///
    /// # Panics
    /// If the server does not let it be made.
    pub async fn create() -> Self {
        Self::create_on(&services::env("LONGSHORE_TEST_POSTGRES")).await
    }

    /// Makes one on another server, which the test may kill.
    ///
    /// # Panics
    /// If the server does not let it be made.
    pub async fn create_on(server: &str) -> Self {
        let (server, _) = server.rsplit_once('/').expect("an address ends with a database");
        let name = format!("t{}", uuid::Uuid::new_v4().simple());
        let mut connection = connect(&format!("{server}/postgres")).await;
        // Its name is ours: hexadecimal digits.
        let create = AssertSqlSafe(format!("CREATE DATABASE {name}"));
        sqlx::raw_sql(create).execute(&mut connection).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        connection.close().await.ok();
        Self { address: format!("{server}/{name}") }
    }

    /// Its address, user and password included.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The entries of a run's journal, in order.
    ///
    /// # Panics
    /// If the server does not answer.
    pub async fn journal_entries(&self, run: &str) -> Vec<serde_json::Value> {
        let mut connection = self.connect().await;
        let rows: Vec<(String,)> = sqlx::query_as("SELECT entry FROM journal WHERE run = $1 ORDER BY seq")
            .bind(run)
            .fetch_all(&mut connection)
            .await
            .expect("the journal is a table of the store's");
        rows.iter().map(|(entry,)| serde_json::from_str(entry).expect("an entry is JSON")).collect()
    }

    /// A connection to it that the store knows nothing of.
    ///
    /// # Panics
    /// If the server does not answer.
    pub async fn connect(&self) -> PgConnection {
        connect(&self.address).await
    }
}

async fn connect(address: &str) -> PgConnection {
    let options = PgConnectOptions::from_str(address).unwrap_or_else(|e| panic!("the tests' Postgres: {e}"));
    options.connect().await.unwrap_or_else(|e| panic!("the tests' Postgres: {e}"))
}
