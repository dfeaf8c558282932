//! Who and what is meant.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;
use uuid::Uuid;

/// What a newtype of a text can say of itself. The text is kept in place up to 23 bytes, and shared by its copies from
/// there on: the coordinator holds, copies and compares millions, and each that lies elsewhere is a miss of the
/// processor's caches.
macro_rules! text {
    ($name:ident) => {
        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// Makes a newtype of any text.
macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(#[schemars(with = "String")] SmolStr);

        text!($name);

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }
    };
}

/// Makes one whose text must match a small alphabet, because it travels in queue names, container names and paths.
macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "SmolStr", into = "SmolStr")]
        #[schemars(with = "String")]
        pub struct $name(SmolStr);

        text!($name);

        impl $name {
            /// The most characters one may have.
            pub const LEN_MAX: usize = $max;
        }

        impl TryFrom<SmolStr> for $name {
            type Error = InvalidName;

            fn try_from(text: SmolStr) -> Result<Self, InvalidName> {
                let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
                let fits = !text.is_empty() && text.len() <= Self::LEN_MAX;
                if fits && text.chars().all(allowed) && !text.starts_with('-') {
                    Ok(Self(text))
                } else {
                    Err(InvalidName { what: $what, text: text.into(), len_max: Self::LEN_MAX })
                }
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::try_from(SmolStr::from(text))
            }
        }

        impl From<$name> for SmolStr {
            fn from(name: $name) -> SmolStr {
                name.0
            }
        }
    };
}

/// A name that would not survive in a queue name, a container name or a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}: use 1 to {len_max} letters, digits, '-' and '_', not starting with '-'")]
pub struct InvalidName {
    /// Which kind of name was meant.
    pub what: &'static str,
    /// What was given.
    pub text: String,
    /// The most characters one may have.
    pub len_max: usize,
}

/// One submitted pipeline. The client chooses it (UUID v7) and sends it again on a retry: one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct RunId(pub Uuid);

impl RunId {
    /// A new id, ordered by time.
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl Default for RunId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for RunId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

/// The carrying-out of one step's command on one parent.
///
/// Today each step has its own, so it follows from the run and the step; nothing but
/// [`ExecutionId::of_step`] may rely on that, because later steps with the same key will share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct ExecutionId(pub Uuid);

impl ExecutionId {
    /// The execution of one step of one run: the same on every replay, which is why it is no random id.
    pub fn of_step(run: RunId, step: &StepName) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"longshore execution 1");
        hasher.update(run.0.as_bytes());
        hasher.update(step.as_str().as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }

    /// The `n`-th (from 1) remaking of what an execution left (P20): an execution of its own kind, so that its
    /// fence, its log and its retries are its own.
    pub fn of_remake(original: Self, n: u32) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"longshore remake 1");
        hasher.update(original.0.as_bytes());
        hasher.update(&n.to_le_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }

    /// 32 hex digits: for container names and tags, which allow no more than they must.
    pub fn to_hex(self) -> String {
        self.0.simple().to_string()
    }
}

impl fmt::Display for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ExecutionId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

/// The n-th try of an execution, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Attempt(pub u32);

impl Attempt {
    /// The first try.
    pub const FIRST: Self = Self(1);

    /// The try after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

name_type! {
    /// One process beside one Docker Engine. It is on that process's disk and outlives its restarts.
    WorkerId, "worker id", 64
}

name_type! {
    /// A named set of workers that read one queue.
    PoolName, "pool name", 64
}

impl Default for PoolName {
    fn default() -> Self {
        Self(SmolStr::new_static("default"))
    }
}

text_type! {
    /// The id that a Docker Engine gives itself (`/info`, field `ID`): workers beside one Engine share its snapshots.
    EngineId
}

text_type! {
    /// A step's name within its run, as people see it: `test`, or `test[target=test64]` out of a matrix.
    StepName
}

/// One start of a worker (P10). The counter orders the starts of one disk; the random part tells a
/// cloned disk's start from the original's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Incarnation {
    /// Grows by one with each start of the same disk, from 1.
    pub start: u64,
    /// Chosen anew at each start.
    pub nonce: u64,
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.start, self.nonce)
    }
}

/// The reign of one coordinator (P21). Higher is newer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A hash of the run, in every routing key from the first day, so that a fleet can grow past one coordinator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Shard(pub u16);

impl Shard {
    /// How many shards there are today.
    pub const COUNT: u16 = 1;

    /// The shard that a run belongs to.
    #[expect(clippy::modulo_one, reason = "there is one shard today")]
    pub fn of(run: RunId) -> Self {
        let hash = blake3::hash(run.0.as_bytes());
        let word = u16::from_le_bytes([hash.as_bytes()[0], hash.as_bytes()[1]]);
        Self(word % Self::COUNT)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What every claim to speak for an attempt must carry (P12). Only the current attempt's owner changes anything.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Fence {
    /// What is carried out.
    pub execution: ExecutionId,
    /// Which try of it.
    pub attempt: Attempt,
    /// The worker whose claim the coordinator journalled (P5).
    pub owner: WorkerId,
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.execution, self.attempt, self.owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_break_a_queue_or_a_path_are_refused() {
        for bad in ["", "a b", "a/b", "a.b", "-a", "ü", "*", "#", &"x".repeat(65)] {
            assert!(bad.parse::<WorkerId>().is_err(), "{bad:?}");
        }
        assert_eq!("w-1_a".parse::<WorkerId>().unwrap().as_str(), "w-1_a");
        let error = "a b".parse::<PoolName>().unwrap_err();
        assert!(error.to_string().contains("pool name"), "{error}");
    }

    #[test]
    fn an_execution_follows_from_run_and_step() {
        let run = RunId::new();
        let id = |name: &str| ExecutionId::of_step(run, &name.into());
        assert_eq!(id("build"), id("build"));
        assert_ne!(id("build"), id("test"));
        assert_ne!(id("build"), ExecutionId::of_step(RunId::new(), &"build".into()));
    }
}
