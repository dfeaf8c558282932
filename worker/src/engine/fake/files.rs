//! A container's files, in memory.

use std::collections::BTreeMap;
use std::io::Read;

use bytes::Bytes;

/// What lies at a path. Symbolic links are kept and not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    File(Bytes),
    Dir,
    Link(String),
}

/// Paths without a leading slash; `""` is the root and always a directory. Copies share their files' bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Files(BTreeMap<String, Node>);

impl Files {
    /// Without `.`, `..` and doubled slashes, relative to `dir`.
    pub(super) fn resolve(dir: &str, path: &str) -> String {
        let mut parts: Vec<&str> = Vec::new();
        let base = if path.starts_with('/') { "" } else { dir };
        for part in base.split('/').chain(path.split('/')) {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        parts.join("/")
    }

    pub(super) fn get(&self, path: &str) -> Option<&Node> {
        if path.is_empty() { Some(&Node::Dir) } else { self.0.get(path) }
    }

    pub(super) fn is_dir(&self, path: &str) -> bool {
        self.get(path) == Some(&Node::Dir)
    }

    /// Puts it there, in place of what was; `false` if its directory does not exist.
    pub(super) fn put(&mut self, path: String, node: Node) -> bool {
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        if path.is_empty() || !self.is_dir(parent) {
            return false;
        }
        if node != Node::Dir {
            self.remove(&path);
        }
        self.0.insert(path, node);
        true
    }

    /// With everything below it.
    pub(super) fn remove(&mut self, path: &str) -> bool {
        let below = format!("{path}/");
        let before = self.0.len();
        self.0.retain(|known, _| known != path && !known.starts_with(&below));
        self.0.len() < before
    }

    pub(super) fn make_dirs(&mut self, path: &str) {
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for end in ends.filter(|end| *end > 0) {
            self.0.entry(path[..end].to_owned()).or_insert(Node::Dir);
        }
    }

    /// Unpacks a tar whose entries are relative to the root.
    pub(super) fn unpack(&mut self, tar: &[u8]) -> std::io::Result<()> {
        let mut archive = tar::Archive::new(tar);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = Self::resolve("", &entry.path()?.to_string_lossy());
            self.make_dirs(path.rsplit_once('/').map_or("", |(parent, _)| parent));
            let link = entry.link_name()?.map(|link| link.to_string_lossy().into_owned()).unwrap_or_default();
            let node = match entry.header().entry_type() {
                tar::EntryType::Directory => Node::Dir,
                tar::EntryType::Symlink => Node::Link(link),
                tar::EntryType::Link => match self.get(&Self::resolve("", &link)) {
                    Some(node) => node.clone(),
                    None => return Err(std::io::Error::other(format!("a hard link to {link}, which is not there"))),
                },
                _ => {
                    let mut bytes = Vec::new();
                    entry.read_to_end(&mut bytes)?;
                    Node::File(bytes.into())
                }
            };
            self.put(path, node);
        }
        Ok(())
    }

    /// What lies below a directory, and is not it.
    pub(super) fn below<'a>(&'a self, dir: &str) -> impl Iterator<Item = (&'a String, &'a Node)> {
        let prefix = format!("{dir}/");
        self.0.range(prefix.clone()..).take_while(move |(path, _)| path.starts_with(&prefix))
    }

    /// Makes a path, and all below it, what it is elsewhere.
    pub(super) fn restore(&mut self, path: &str, from: &Self) {
        self.remove(path);
        if let Some(node) = from.0.get(path) {
            self.0.insert(path.to_owned(), node.clone());
        }
        let below: Vec<_> = from.below(path).map(|(path, node)| (path.clone(), node.clone())).collect();
        self.0.extend(below);
    }

    /// How many bytes lie in files that `base` has not, or has otherwise.
    pub(super) fn bytes_beyond(&self, base: &Self) -> u64 {
        let changed = self.0.iter().filter(|(path, node)| base.0.get(*path) != Some(*node));
        changed.map(|(_, node)| if let Node::File(bytes) = node { bytes.len() as u64 } else { 0 }).sum()
    }
}
