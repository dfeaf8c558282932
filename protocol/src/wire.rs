//! JSON with a version (P1).

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version of every message. It grows when an old reader would misunderstand, not when a field is added.
pub const VERSION: u32 = 1;

/// How [`encode`] begins. Whoever begins so need not be looked through for its version first: a megabyte of output takes
/// a millisecond.
const BEGINNING: &[u8] = br#"{"v":1,"#;
const _: () = assert!(VERSION == 1, "BEGINNING says it as well");

/// No message of ours comes near; a larger body is somebody's mistake or attack.
pub const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Why a body could not be read. Its text goes into the dead letter's `x-longshore-reason` header.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// Larger than [`BODY_BYTES_MAX`].
    #[error("{bytes} bytes, at most {BODY_BYTES_MAX} are read")]
    TooLarge {
        /// Of the body.
        bytes: usize,
    },
    /// Not JSON, or not an object with a number `v`.
    #[error("not a message: {0}")]
    NotAMessage(serde_json::Error),
    /// Written by another Longshore.
    #[error("version {found}, this Longshore reads {VERSION}")]
    Version {
        /// What it says.
        found: u64,
    },
    /// The right version, the wrong shape.
    #[error("not understood: {0}")]
    Shape(serde_json::Error),
}

#[derive(Serialize)]
struct Outgoing<'a, M> {
    v: u32,
    #[serde(flatten)]
    message: &'a M,
}

#[derive(Deserialize)]
struct Version {
    v: u64,
}

/// A message as it travels.
pub fn encode<M: Serialize>(message: &M) -> Vec<u8> {
    serde_json::to_vec(&Outgoing { v: VERSION, message }).expect("messages have string keys and no failing serializers")
}

/// A message that arrived. Unknown fields are ignored.
pub fn decode<M: DeserializeOwned>(body: &[u8]) -> Result<M, Unreadable> {
    if body.len() > BODY_BYTES_MAX {
        return Err(Unreadable::TooLarge { bytes: body.len() });
    }
    if body.starts_with(BEGINNING) {
        return serde_json::from_slice(body).map_err(Unreadable::Shape);
    }
    let Version { v } = serde_json::from_slice(body).map_err(Unreadable::NotAMessage)?;
    if v != u64::from(VERSION) {
        return Err(Unreadable::Version { found: v });
    }
    serde_json::from_slice(body).map_err(Unreadable::Shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heartbeat::HeartbeatMessage;
    use crate::ids::Epoch;

    const TICK: HeartbeatMessage = HeartbeatMessage::Tick { epoch: Epoch(3), number: 9 };

    #[test]
    fn p1_unknown_fields_are_ignored() {
        let body = br#"{"v":1,"type":"tick","epoch":3,"number":9,"since":"later"}"#;
        assert_eq!(decode::<HeartbeatMessage>(body).unwrap(), TICK);
        assert_eq!(decode::<HeartbeatMessage>(&encode(&TICK)).unwrap(), TICK);
    }

    #[test]
    fn p1_what_cannot_be_read_says_why() {
        let reason = |body: &[u8]| decode::<HeartbeatMessage>(body).unwrap_err().to_string();
        assert!(reason(b"\xff garbage").contains("not a message"));
        assert!(reason(br#"{"v":2,"type":"tick"}"#).contains("version 2"));
        assert!(reason(br#"{"v":1,"type":"tock"}"#).contains("not understood"));
        assert!(reason(&vec![b' '; BODY_BYTES_MAX + 1]).contains("at most"));
    }
}
