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

/// Between messages that share a body. JSON as we write it has none in it.
const BETWEEN: u8 = b'\n';

/// How large a body is made by [`share`]: one frame of RabbitMQ's, so that one of them is never cut up on its way.
const SHARED_BYTES_MAX: usize = 120 * 1024;

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

/// Puts a message behind what a body holds, to be read by [`decode_all`]: what a broker does is per body, and costs it
/// more than a body costs us. `false`, and nothing done, where that would make the body large.
pub fn share(body: &mut Vec<u8>, message: &[u8]) -> bool {
    let fits = body.len() + 1 + message.len() <= SHARED_BYTES_MAX;
    if fits {
        body.push(BETWEEN);
        body.extend_from_slice(message);
    }
    fits
}

/// The messages that arrived in one body, in order: a line each, and most bodies have one. All of them or none: what is
/// acknowledged is the body.
pub fn decode_all<M: DeserializeOwned>(body: &[u8]) -> Result<Vec<M>, Unreadable> {
    if body.len() > BODY_BYTES_MAX {
        return Err(Unreadable::TooLarge { bytes: body.len() });
    }
    body.split(|byte| *byte == BETWEEN).map(decode).collect()
}

/// Those of a body's messages that can be read, in order, and why another one cannot: for what is harmless when it comes
/// twice, so that what stands beside an unreadable message is heard all the same.
pub fn decode_some<M: DeserializeOwned>(body: &[u8]) -> (Vec<M>, Option<Unreadable>) {
    if body.len() > BODY_BYTES_MAX {
        return (Vec::new(), Some(Unreadable::TooLarge { bytes: body.len() }));
    }
    let (mut messages, mut unreadable) = (Vec::new(), None);
    for line in body.split(|byte| *byte == BETWEEN) {
        match decode(line) {
            Ok(message) => messages.push(message),
            Err(reason) => unreadable = unreadable.or(Some(reason)),
        }
    }
    (messages, unreadable)
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
    fn p1_messages_that_share_a_body_are_read_all_or_none() {
        let tick = |number| HeartbeatMessage::Tick { epoch: Epoch(3), number };
        let mut body = encode(&tick(1));
        assert_eq!(decode_all::<HeartbeatMessage>(&body).unwrap(), [tick(1)]);
        let mut expected = vec![tick(1)];
        while share(&mut body, &encode(&tick(7))) {
            expected.push(tick(7));
        }
        assert_eq!(decode_all::<HeartbeatMessage>(&body).unwrap(), expected);
        assert!(expected.len() > 1_000 && body.len() <= SHARED_BYTES_MAX, "{}", expected.len());
        body.extend_from_slice(b"\n{\"v\":2}");
        let reason = decode_all::<HeartbeatMessage>(&body).unwrap_err().to_string();
        assert!(reason.contains("version 2"), "{reason}");
        assert!(decode_all::<HeartbeatMessage>(b"").is_err());
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
