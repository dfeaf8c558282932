//! Image references, as Docker reads them: `alpine` is `docker.io/library/alpine:latest`.

use std::fmt;

/// The registry of a reference that names none. Docker's own default, which users write by not writing it.
const DEFAULT_REGISTRY: &str = "docker.io";

/// What a reference means, every part written out. Never all tags of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Reference {
    /// `docker.io`, `registry.example:5000`.
    pub(super) registry: String,
    /// `library/alpine`.
    repository: String,
    version: Version,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Version {
    Tag(String),
    /// `sha256:…`. A tag beside it says nothing more.
    Digest(String),
}

impl Reference {
    /// Reads one as a user wrote it. The error says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => (named, Some(check_digest(digest)?)),
            None => (text, None),
        };
        // A colon behind the last slash begins a tag; one before it, a port.
        let name_at = named.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match named[name_at..].find(':') {
            Some(colon) => (&named[..name_at + colon], Some(check_tag(&named[name_at + colon + 1..])?)),
            None => (named, None),
        };
        let (registry, repository) = match name.split_once('/') {
            // Docker's rule: what holds a dot or a colon, is `localhost` or has capitals, is a host.
            Some((host, path)) if is_host(host) => (host, path.to_owned()),
            _ => (DEFAULT_REGISTRY, name.to_owned()),
        };
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        let official = registry == DEFAULT_REGISTRY && !repository.contains('/');
        let repository = if official { format!("library/{repository}") } else { repository };
        check_repository(&repository)?;
        let version = match (digest, tag) {
            (Some(digest), _) => Version::Digest(digest.to_owned()),
            (None, Some(tag)) => Version::Tag(tag.to_owned()),
            (None, None) => Version::Tag("latest".to_owned()),
        };
        Ok(Self { registry: registry.to_owned(), repository, version })
    }

    /// Registry and repository: what the pull call names `fromImage`.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Tag or digest: what the pull call names `tag`. Left out, it would mean every tag there is.
    pub(super) fn version(&self) -> &str {
        match &self.version {
            Version::Tag(text) | Version::Digest(text) => text,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(f, "{}/{}:{tag}", self.registry, self.repository),
            Version::Digest(digest) => write!(f, "{}/{}@{digest}", self.registry, self.repository),
        }
    }
}

/// Whether this is the id of an image that is here, `sha256:` or not: nothing that could be pulled.
pub(super) fn is_image_id(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    hex.len() == 64 && is_hex(hex)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_host(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':']) || part.bytes().any(|b| b.is_ascii_uppercase())
}

fn check_digest(digest: &str) -> Result<&str, String> {
    match digest.split_once(':') {
        Some(("sha256", hex)) if hex.len() == 64 && is_hex(hex) => Ok(digest),
        Some(("sha512", hex)) if hex.len() == 128 && is_hex(hex) => Ok(digest),
        _ => Err(format!("{digest:?} is not a digest (sha256: and 64 hex digits)")),
    }
}

fn check_tag(tag: &str) -> Result<&str, String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let starts_well = tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    if starts_well && tag.len() <= 128 && tag.bytes().all(good) {
        Ok(tag)
    } else {
        Err(format!("{tag:?} is not a tag (up to 128 letters, digits, '_', '.' and '-')"))
    }
}

fn check_repository(repository: &str) -> Result<(), String> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'.' | b'-');
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let part_is_good = |part: &str| edge(part.bytes().next()) && edge(part.bytes().last()) && part.bytes().all(good);
    if repository.len() <= 255 && repository.split('/').all(part_is_good) {
        Ok(())
    } else {
        Err(format!("{repository:?} is not a repository's name (lower-case letters, digits, '.', '_', '-', '/')"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_written_out_as_docker_does() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (written, meant) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
            ("index.docker.io/library/alpine", "docker.io/library/alpine:latest"),
            ("someone/tool:v1", "docker.io/someone/tool:v1"),
            ("localhost/tool", "localhost/tool:latest"),
            ("localhost:5000/tool", "localhost:5000/tool:latest"),
            ("127.0.0.1:5000/a/b/c:x", "127.0.0.1:5000/a/b/c:x"),
            ("registry.example/tool", "registry.example/tool:latest"),
            (&format!("alpine@{digest}"), &format!("docker.io/library/alpine@{digest}")),
            (&format!("r.example:1/t:tag@{digest}"), &format!("r.example:1/t@{digest}")),
        ] {
            let reference = Reference::parse(written).unwrap();
            assert_eq!(reference.to_string(), meant);
            assert!(!reference.version().is_empty(), "an empty version would pull every tag");
            assert_eq!(Reference::parse(meant).unwrap(), reference);
        }
    }

    #[test]
    fn what_is_no_reference_is_told() {
        for bad in [
            "",
            ":",
            "a:",
            "a b",
            "Alpine",
            "a//b",
            "/a",
            "a@",
            "a@sha256:12",
            "a:b:c",
            "-a",
            "a/",
            "r.example/",
            "a:-x",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_images_id_is_told_from_a_name() {
        assert!(is_image_id(&format!("sha256:{}", "0a".repeat(32))));
        assert!(is_image_id(&"0a".repeat(32)));
        assert!(!is_image_id("alpine") && !is_image_id("0a0a"));
    }
}
