//! The epoch's row (P21).

use longshore_protocol::Epoch;

use super::super::LOCKED;
use super::{Connection, SqlStore};
use crate::store::epoch::LAPSE_MS;
use crate::store::{StoreError, count, sql};

// The store's own clock, in ms, is the one expression that each database spells otherwise. A row renewed in the future
// was written before that clock was set back: its holder would have renewed it since.
const TAKE: &str = concat!(
    "UPDATE epoch SET epoch = epoch + 1, holder = $2, renewed_at_ms = ",
    now_ms!(),
    " WHERE id = 1 AND epoch = $1 AND ABS(",
    now_ms!(),
    " - renewed_at_ms) >= $3"
);
const HOLDER: &str =
    concat!("SELECT holder FROM epoch WHERE id = 1 AND ABS(", now_ms!(), " - renewed_at_ms) < $1 AND epoch > 0");
const TOUCH: &str = concat!("UPDATE epoch SET renewed_at_ms = ", now_ms!(), " WHERE epoch = $1");

impl SqlStore {
    /// Takes the epoch if it has lapsed. `None`: somebody leads.
    pub(super) async fn take_epoch(&self, holder: &str) -> Result<Option<Epoch>, StoreError> {
        // Not over the readers' connections: whoever stands by must not wait behind those who look at runs.
        let (seen,): (i64,) = sqlx::query_as("SELECT epoch FROM epoch WHERE id = 1").fetch_one(&self.writer).await?;
        let taken = sqlx::query(TAKE).bind(seen).bind(holder).bind(sql(LAPSE_MS)).execute(&self.writer).await;
        match taken {
            Ok(taken) => Ok((taken.rows_affected() == 1).then(|| Epoch(count(seen) + 1))),
            // By whoever leads, whose transaction takes long.
            Err(error) if is_locked(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Touches the row and writes nothing else, while a leader has nothing to write.
    pub(super) async fn answers(&self) -> Result<Option<String>, StoreError> {
        let holder: Option<(String,)> =
            sqlx::query_as(HOLDER).bind(sql(LAPSE_MS)).fetch_optional(&self.readers).await?;
        Ok(holder.map(|(holder,)| holder))
    }

    pub(super) async fn renew_epoch(&self, epoch: Epoch) -> Result<(), StoreError> {
        touch(&mut *self.writer.acquire().await?, epoch).await
    }

    /// Gives the epoch back, so that whoever stands by need not wait for it to lapse.
    pub(super) async fn release_epoch(&self, epoch: Epoch) -> Result<(), StoreError> {
        sqlx::query("UPDATE epoch SET renewed_at_ms = 0 WHERE epoch = $1")
            .bind(sql(epoch.0))
            .execute(&self.writer)
            .await?;
        Ok(())
    }
}

fn is_locked(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == LOCKED)
}

/// P21: touching the row on condition of its epoch is what fences; a plain read would not.
pub(super) async fn touch(connection: &mut Connection, epoch: Epoch) -> Result<(), StoreError> {
    let touched = sqlx::query(TOUCH).bind(sql(epoch.0)).execute(connection).await?.rows_affected();
    if touched == 1 { Ok(()) } else { Err(StoreError::Deposed(epoch)) }
}
