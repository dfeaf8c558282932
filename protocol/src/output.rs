//! Every output line, counted in bytes (P14).
//!
//! A stream is a sequence of bytes from offset 0. It travels and is stored in [`Run`]s, some lines as they stood. A
//! [`Line`], which is what people ask for, covers `data`, plus the newline if it ended in one. Runs, or lines, put one
//! behind the other are the stream's bytes again, exactly.

mod runs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::event::Claim;
use crate::ids::{Incarnation, WorkerId};

pub use runs::{RUN_BYTES_MAX, Run};

/// The longest line that travels whole; a longer one is split and its pieces are marked ([`Ending::Split`]).
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// How many bytes of output one message carries at most. RabbitMQ moves 64 KiB messages at 200–370 MB/s here, and larger
/// ones no faster; but each costs its sender and its reader some wake-ups, which of 64 KiB were half of their work.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// How much of an attempt's output may be on its way beyond what the coordinator said to be stored (P15): a step that
/// prints as fast as it can must not fill the broker.
pub const WINDOW_BYTES: u64 = 8 * 1024 * 1024;

/// The least that an attempt may have on its way: a message.
pub const WINDOW_BYTES_MIN: u64 = MESSAGE_BYTES_MAX as u64;

/// After how much the coordinator says it again: a quarter of the smallest window, so that whoever writes at the speed of
/// the store never waits. At most once a transaction, and what comes fast comes in large ones.
pub const STORED_EVERY_BYTES: u64 = WINDOW_BYTES_MIN / 4;

/// How much of it may be on its way where so many attempts are carried out beside each other (P15): they go the same
/// way, and whatever one of them has on it is what the lines of the others wait behind.
pub fn window_bytes(attempts: usize) -> u64 {
    (WINDOW_BYTES / u64::try_from(attempts.max(1)).unwrap_or(u64::MAX)).max(WINDOW_BYTES_MIN)
}

/// Some output of one attempt, in the order in which it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OutputMessage {
    /// Who speaks.
    pub worker: WorkerId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// Which attempt. With the worker it is the fence.
    pub claim: Claim,
    /// Contiguous per stream within a message.
    #[schemars(with = "Vec<runs::RunForm>")]
    pub runs: Vec<Run>,
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// For labels and tables.
    pub fn word(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// One line, or a marked piece of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Which stream.
    pub stream: Stream,
    /// Of its first byte, in the stream.
    pub offset: u64,
    /// When its end was read, ms since the Unix epoch, by the worker's clock.
    pub at_ms: u64,
    /// How it ended.
    pub ending: Ending,
    /// Its bytes without the newline.
    pub data: LineData,
}

/// How a line ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// In a newline byte, which is not in the data.
    Newline,
    /// Cut after [`LINE_BYTES_MAX`] bytes; the next line of the stream goes on where it stopped.
    Split,
    /// With the stream, without a newline.
    Eof,
}

/// A line's bytes as they were. As JSON UTF-8 is `text`, anything else `base64` (P1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineData(pub Vec<u8>);

impl Serialize for LineData {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(Some(1))?;
        match std::str::from_utf8(&self.0) {
            Ok(text) => map.serialize_entry("text", text)?,
            Err(_) => map.serialize_entry("base64", &BASE64.encode(&self.0))?,
        }
        map.end()
    }
}

/// The two forms in which a line's bytes travel. Derived from, never built by hand.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum LineDataForm {
    /// The bytes, where they are UTF-8.
    Text(String),
    /// The bytes in base64, where they are not.
    Base64(String),
}

impl<'de> Deserialize<'de> for LineData {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match LineDataForm::deserialize(deserializer)? {
            LineDataForm::Text(text) => Ok(Self(text.into_bytes())),
            LineDataForm::Base64(text) => BASE64.decode(text).map(Self).map_err(serde::de::Error::custom),
        }
    }
}

impl JsonSchema for LineData {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "LineData".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        LineDataForm::json_schema(generator)
    }
}

impl Line {
    /// The offset behind its last byte, the newline included.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.data.0.len() as u64 + u64::from(self.ending == Ending::Newline))
    }
}

/// How many bytes of each stream: read, sent, or stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Offsets {
    /// Of standard output.
    pub stdout: u64,
    /// Of standard error.
    pub stderr: u64,
}

impl Offsets {
    /// Of one stream.
    pub fn of(&self, stream: Stream) -> u64 {
        match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        }
    }

    /// Of one stream, to change.
    pub fn of_mut(&mut self, stream: Stream) -> &mut u64 {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// Of both.
    pub fn total(&self) -> u64 {
        self.stdout.saturating_add(self.stderr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(data: &[u8]) -> Line {
        Line { stream: Stream::Stderr, offset: 7, at_ms: 1, ending: Ending::Newline, data: LineData(data.to_vec()) }
    }

    #[test]
    fn p1_bytes_come_back_as_they_were() {
        for data in [&b""[..], b"plain", "snowman \u{2603}".as_bytes(), b"\xff\xfe", b"half \xe2\x98", b"\0\r\n\x1b"] {
            let data = LineData(data.to_vec());
            let json = serde_json::to_string(&data).unwrap();
            assert_eq!(serde_json::from_str::<LineData>(&json).unwrap(), data, "{json}");
        }
        assert!(serde_json::to_string(&LineData(b"\xff".to_vec())).unwrap().contains("base64"));
    }

    #[test]
    fn p14_an_offset_counts_the_newline() {
        assert_eq!(line(b"abc").end(), 11);
        assert_eq!(Line { ending: Ending::Split, ..line(b"abc") }.end(), 10);
    }
}
