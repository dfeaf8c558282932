//! What the worker's disk says of a kept network namespace: that it is empty, and whose it is.
//!
//! A record is there only while nobody uses the namespace: it is erased before a container joins, and written again
//! when the last one was seen to have left nothing. So a worker that is killed at any instruction finds none for a
//! namespace in doubt. Nothing is synced: a crash of the machine ends the namespaces as well.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

fn path(dir: &Path, number: u32) -> PathBuf {
    dir.join(number.to_string())
}

/// Says that the namespace of this container is empty. Blocking.
pub(super) fn write(dir: &Path, number: u32, id: &str, tenant: Option<&str>) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    // Under its name only when it is whole.
    let meanwhile = dir.join(format!("{number}.new"));
    let mut file = fs::File::create(&meanwhile)?;
    let tenant = tenant.map_or("nobody".to_owned(), |tenant| format!("tenant {tenant}"));
    write!(file, "{id}\n{tenant}")?;
    fs::rename(meanwhile, path(dir, number))
}

/// Says nothing of it any more. Blocking.
pub(super) fn erase(dir: &Path, number: u32) -> io::Result<()> {
    match fs::remove_file(path(dir, number)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The same of all. Blocking.
pub(super) fn erase_all(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whose it is, if it is known to be empty; the inner `None`: nobody's yet. Blocking.
#[expect(clippy::option_option, reason = "not known, and known to be nobody's, are two answers")]
pub(super) fn read(dir: &Path, number: u32, id: &str) -> Option<Option<String>> {
    let text = fs::read_to_string(path(dir, number)).ok()?;
    let (of, tenant) = text.split_once('\n')?;
    if of != id {
        return None; // another container's, of the same number
    }
    match tenant.split_once(' ') {
        None if tenant == "nobody" => Some(None),
        Some(("tenant", tenant)) => Some(Some(tenant.to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_record_of_the_same_container_counts() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("net");
        assert_eq!(read(&dir, 1, "id"), None);
        erase(&dir, 1).unwrap();
        erase_all(&dir).unwrap();

        write(&dir, 1, "id", None).unwrap();
        assert_eq!(read(&dir, 1, "id"), Some(None));
        assert_eq!(read(&dir, 1, "another"), None);
        write(&dir, 1, "id", Some("nobody two\nlines")).unwrap();
        assert_eq!(read(&dir, 1, "id"), Some(Some("nobody two\nlines".to_owned())));
        for torn in ["", "id", "id\n", "id\ntena"] {
            fs::write(path(&dir, 1), torn).unwrap();
            assert_eq!(read(&dir, 1, "id"), None, "{torn:?}");
        }

        erase(&dir, 1).unwrap();
        assert_eq!(read(&dir, 1, "id"), None);
        write(&dir, 2, "id", None).unwrap();
        erase_all(&dir).unwrap();
        assert_eq!(read(&dir, 2, "id"), None);
    }
}
