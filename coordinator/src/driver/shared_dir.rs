//! Coordinators of one database have one directory as well: blobs and sealed logs lie there, and are missing after a
//! takeover where each has its own.

use std::io::ErrorKind;
use std::path::Path;

use longshore_protocol::process::random;
use tokio::fs::OpenOptions;
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use super::CoordinatorError;
use crate::store::postgres::PostgresStore;

/// In the directory: a random text, which the database knows as well.
const MARKER: &str = "shared-by";

/// Refuses a directory that is not the one that the database's first coordinator had.
pub(super) async fn check(store: &PostgresStore, dir: &Path) -> Result<(), CoordinatorError> {
    let mine = marker(dir).await.map_err(|error| CoordinatorError::Directory { dir: dir.to_owned(), error })?;
    if store.shared_marker(&mine).await? == mine {
        return Ok(());
    }
    Err(CoordinatorError::OtherDirectory { dir: dir.to_owned() })
}

/// Reads the directory's marker, which is made by whoever comes first.
async fn marker(dir: &Path) -> std::io::Result<String> {
    tokio::fs::create_dir_all(dir).await?;
    let file = dir.join(MARKER);
    match tokio::fs::read_to_string(&file).await {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        found => return found,
    }
    // Whole under another name, then linked: a crash leaves nothing half written, and of two one is first.
    let mine = Uuid::from_u64_pair(random(), random()).to_string();
    let draft = dir.join(format!("{MARKER}.{mine}"));
    let mut new = OpenOptions::new().write(true).create_new(true).open(&draft).await?;
    new.write_all(mine.as_bytes()).await?;
    new.sync_all().await?;
    let linked = tokio::fs::hard_link(&draft, &file).await;
    tokio::fs::remove_file(&draft).await?;
    match linked {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => tokio::fs::read_to_string(&file).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_comes_first_marks_a_directory_and_all_read_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = tokio::join!(marker(dir.path()), marker(dir.path()));
        let one = one.unwrap();
        assert_eq!(one, other.unwrap());
        assert_eq!(one, marker(dir.path()).await.unwrap());
        assert_ne!(one, marker(&dir.path().join("another")).await.unwrap());
    }
}
