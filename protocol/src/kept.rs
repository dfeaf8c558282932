//! What is kept by name: snapshots on Engines, blobs in the coordinator's store.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{Fence, InvalidName};

/// A committed snapshot as an Engine knows it: an image reference, for instance
/// `longshore/w1f0…:3c5e…-2` (ephemeral, unique per attempt) or `longshore/cache:9b1d…` (under a key).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct SnapshotId(pub String);

impl SnapshotId {
    /// The ephemeral snapshot that an attempt leaves: the fence is its name.
    pub fn ephemeral(fence: &Fence) -> Self {
        // Repository names are lower case; worker ids need not be.
        let owner = fence.owner.as_str().to_ascii_lowercase();
        Self(format!("longshore/{owner}:{}-{}", fence.execution.to_hex(), fence.attempt))
    }

    /// The snapshot kept under a user's cache key. Tenants do not see each other's.
    pub fn cached(tenant: &str, key: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"longshore cache 1");
        hasher.update(&(tenant.len() as u64).to_le_bytes());
        hasher.update(tenant.as_bytes());
        hasher.update(key.as_bytes());
        Self(format!("longshore/cache:{}", &hasher.finalize().to_hex()[..40]))
    }

    /// The image reference.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The blake3 hash of a blob's bytes, 64 hex digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct BlobHash(String);

impl BlobHash {
    /// The hash of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).to_hex().to_string())
    }

    /// The hash that an incremental hasher ended with.
    pub fn finish(hasher: &blake3::Hasher) -> Self {
        Self(hasher.finalize().to_hex().to_string())
    }

    /// 64 hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for BlobHash {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            Ok(Self(text))
        } else {
            Err(InvalidName { what: "blob hash (64 lower-case hex digits)", text, len_max: 64 })
        }
    }
}

impl FromStr for BlobHash {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::try_from(text.to_owned())
    }
}

impl From<BlobHash> for String {
    fn from(hash: BlobHash) -> String {
        hash.0
    }
}

impl fmt::Display for BlobHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_do_not_share_cache_snapshots() {
        assert_ne!(SnapshotId::cached("a", "bk"), SnapshotId::cached("ab", "k"));
    }
}
