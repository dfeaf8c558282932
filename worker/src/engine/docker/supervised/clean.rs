//! Takes away what no step hands on to the next in one container.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use longshore_supervisor::wire::Clean;
use tokio::time::timeout;

use super::super::super::{Cleaned, ContainerName, EngineError};
use super::super::DockerEngine;
use super::link::Ask;
use super::require;
use longshore_protocol::process::blocking;

/// It removes what a step left in volumes and memory: at worst a slow `rm -r`.
const CLEAN: Duration = Duration::from_mins(2);

/// So many fit into a frame whatever their names, and nobody leaves more.
const SOCKETS_MAX: usize = 500;

pub(in super::super) async fn clean(engine: &DockerEngine, container: &ContainerName) -> Result<Cleaned, EngineError> {
    let held = require(engine, container).await?;
    let upper = held.upper.clone();
    let sockets = match upper {
        Some(upper) => blocking(move || sockets(&upper).ok()).await,
        None => None,
    };
    let clean = Clean { volumes: held.image.volumes.clone(), sockets };
    let call = held.link.call(|answer| Ask::Clean(clean, answer));
    timeout(CLEAN, call).await.unwrap_or(Err(EngineError::Slow { operation: "clean", limit: CLEAN }))
}

/// The sockets in a container's own layer, by their paths in the container. An error (the layer is not visible here, or
/// not to this user) means that the supervisor has to search its whole root for them.
///
/// Nothing runs in the container that could change the layer meanwhile, and links are not followed. What is told is
/// looked at again by the supervisor before it removes it.
fn sockets(upper: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(upper.join(&directory))? {
            let entry = entry?;
            let kind = entry.file_type()?; // from the directory itself: no look at the file
            let path = directory.join(entry.file_name());
            if kind.is_dir() {
                directories.push(path);
            } else if kind.is_socket() {
                let path = path.to_str().ok_or_else(|| io::Error::other("a name that JSON has no form for"))?;
                found.push(format!("/{path}"));
                if found.len() > SOCKETS_MAX {
                    return Err(io::Error::other("too many sockets to list"));
                }
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn sockets_are_found_and_links_not_followed() {
        let elsewhere = tempfile::tempdir().unwrap();
        let _outside = UnixListener::bind(elsewhere.path().join("outside")).unwrap();
        let upper = tempfile::tempdir().unwrap();
        fs::create_dir_all(upper.path().join("a/b")).unwrap();
        fs::write(upper.path().join("a/file"), "").unwrap();
        let _inside = UnixListener::bind(upper.path().join("a/b/sock")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), upper.path().join("link")).unwrap();
        assert_eq!(sockets(upper.path()).unwrap(), ["/a/b/sock"]);
        assert!(sockets(&upper.path().join("nowhere")).is_err());
    }
}
