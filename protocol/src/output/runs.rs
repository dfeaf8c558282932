//! How output travels and is stored: bytes of one stream that were read at one time, several lines as they stood.
//!
//! What a line says besides its bytes takes as much room as the line itself, and a busy step writes hundreds of them in
//! a millisecond. So nobody between the command's pipe and the reader of a log takes lines apart: they are carried as
//! they came, and counted by their newlines.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use schemars::JsonSchema;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Ending, LINE_BYTES_MAX, Line, LineData, Stream};

/// The most that one run holds: the longest line and its newline, or shorter ones that together are no longer.
pub const RUN_BYTES_MAX: usize = LINE_BYTES_MAX + 1;

/// About what is said of a run besides its bytes, as JSON and in memory.
const OVERHEAD_BYTES: usize = 96;

/// Some lines of a stream, one behind the other; at least one.
///
/// As JSON its bytes are `text` where they are UTF-8, and `base64` where they are not (P1) or that is shorter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which stream.
    pub stream: Stream,
    /// Of its first byte, in the stream.
    pub offset: u64,
    /// When the end of each line was read, ms since the Unix epoch, by the worker's clock.
    pub at_ms: u64,
    /// How its last line ended. The others ended in a newline.
    ///
    /// INVARIANT: it is [`Ending::Newline`] if, and only if, the last byte is one.
    pub ending: Ending,
    /// The stream's own bytes, newlines included. INVARIANT: not empty.
    pub bytes: Vec<u8>,
}

impl Run {
    /// The offset behind its last byte.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.bytes.len() as u64)
    }

    /// What it takes of a bound: its bytes, and what is said of them. Without that, many short ones would have no bound.
    pub fn weight(&self) -> usize {
        self.bytes.len() + OVERHEAD_BYTES
    }

    /// How many lines it holds.
    pub fn count(&self) -> u64 {
        let newlines = memchr::memchr_iter(b'\n', &self.bytes).count() as u64;
        newlines + u64::from(self.ending != Ending::Newline)
    }

    /// Its lines, each on its own.
    pub fn lines(&self) -> impl Iterator<Item = Line> + '_ {
        let mut offset = self.offset;
        self.bytes.split_inclusive(|byte| *byte == b'\n').map(move |bytes| {
            let (data, ending) = match bytes {
                [data @ .., b'\n'] => (data, Ending::Newline),
                data => (data, self.ending),
            };
            let line = Line { stream: self.stream, offset, at_ms: self.at_ms, ending, data: LineData(data.to_vec()) };
            offset = line.end();
            line
        })
    }

    /// What of it lies behind an offset that is within it or behind it.
    pub fn behind(mut self, offset: u64) -> Option<Self> {
        if self.end() <= offset {
            return None;
        }
        let known = usize::try_from(offset.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        self.bytes.drain(..known.min(self.bytes.len()));
        self.offset = self.offset.max(offset);
        Some(self)
    }
}

impl From<Line> for Run {
    fn from(line: Line) -> Self {
        let Line { stream, offset, at_ms, ending, data: LineData(mut bytes) } = line;
        bytes.extend((ending == Ending::Newline).then_some(b'\n'));
        Self { stream, offset, at_ms, ending, bytes }
    }
}

impl Serialize for Run {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(5))?;
        map.serialize_entry("stream", &self.stream)?;
        map.serialize_entry("offset", &self.offset)?;
        map.serialize_entry("at_ms", &self.at_ms)?;
        map.serialize_entry("ending", &self.ending)?;
        match std::str::from_utf8(&self.bytes) {
            Ok(text) if !is_long_as_text(text) => map.serialize_entry("text", text)?,
            _ => map.serialize_entry("base64", &BASE64.encode(&self.bytes))?,
        }
        map.end()
    }
}

/// Whether base64 is shorter. A control character takes six bytes in JSON: a step that prints zeros would have six times
/// the messages that its output is bounded to (P15).
fn is_long_as_text(text: &str) -> bool {
    let controls = text.bytes().filter(|byte| *byte < b' ' && !b"\n\r\t".contains(byte)).count();
    5 * controls > text.len() / 3
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Field {
    Stream,
    Offset,
    AtMs,
    Ending,
    Text,
    Base64,
    /// P1
    #[serde(other)]
    Unknown,
}

impl<'de> Deserialize<'de> for Run {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RunVisitor)
    }
}

struct RunVisitor;

impl<'de> Visitor<'de> for RunVisitor {
    type Value = Run;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("some lines of output")
    }

    /// By hand: serde reads a flattened form into a tree of values first, which takes longer than all the rest.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Run, A::Error> {
        let (mut stream, mut offset, mut at_ms, mut ending, mut bytes) = (None, None, None, None, None);
        while let Some(field) = map.next_key()? {
            match field {
                Field::Stream => stream = Some(map.next_value()?),
                Field::Offset => offset = Some(map.next_value()?),
                Field::AtMs => at_ms = Some(map.next_value()?),
                Field::Ending => ending = Some(map.next_value()?),
                Field::Text => bytes = Some(map.next_value::<String>()?.into_bytes()),
                Field::Base64 => {
                    bytes = Some(BASE64.decode(map.next_value::<String>()?).map_err(A::Error::custom)?);
                }
                Field::Unknown => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        let run = Run {
            stream: stream.ok_or_else(|| A::Error::missing_field("stream"))?,
            offset: offset.ok_or_else(|| A::Error::missing_field("offset"))?,
            at_ms: at_ms.ok_or_else(|| A::Error::missing_field("at_ms"))?,
            ending: ending.ok_or_else(|| A::Error::missing_field("ending"))?,
            bytes: bytes.ok_or_else(|| A::Error::missing_field("text"))?,
        };
        match run.bytes.last() {
            None => Err(A::Error::custom("a run without a byte")),
            Some(last) if (*last == b'\n') != (run.ending == Ending::Newline) => {
                Err(A::Error::custom("the last byte is a newline if, and only if, that is how the run ended"))
            }
            Some(_) => Ok(run),
        }
    }
}

/// A run, for the schema.
#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(dead_code)] // what is written and read is above
pub(super) struct RunForm {
    /// Which stream.
    stream: Stream,
    /// Of the first byte, in the stream.
    offset: u64,
    /// When the end of each line was read, ms since the Unix epoch, by the worker's clock.
    at_ms: u64,
    /// How the last line ended; the others ended in a newline. `newline` if, and only if, the last byte is one.
    ending: Ending,
    /// The stream's own bytes, newlines included; at least one.
    #[serde(flatten)]
    data: super::LineDataForm,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(offset: u64, bytes: &[u8], ending: Ending) -> Run {
        Run { stream: Stream::Stderr, offset, at_ms: 1, ending, bytes: bytes.to_vec() }
    }

    #[test]
    fn p1_bytes_come_back_as_they_were() {
        for bytes in
            [&b"\n"[..], b"a\n\nb\n", "\u{2603}\"\\\n".as_bytes(), b"\xff\xfe\n", b"half \xe2\n", b"\0\r\x1b\n"]
        {
            let run = run(7, bytes, Ending::Newline);
            let json = serde_json::to_string(&run).unwrap();
            assert_eq!(serde_json::from_str::<Run>(&json).unwrap(), run, "{json}");
        }
        assert!(serde_json::to_string(&run(0, b"\xff", Ending::Eof)).unwrap().contains("base64"));
        // P15
        let zeros = run(0, &[0; 3000], Ending::Eof);
        let json = serde_json::to_string(&zeros).unwrap();
        assert!(json.len() < 5000, "{}", json.len());
        assert_eq!(serde_json::from_str::<Run>(&json).unwrap(), zeros);
    }

    #[test]
    fn p1_a_run_is_read_in_any_order_and_refused_without_one_of_its_fields() {
        let whole = run(3, b"a\nb\n", Ending::Newline);
        let text = r#"{"text":"a\nb\n","later":{"x":[1]},"ending":"newline","at_ms":1,"offset":3,"stream":"stderr"}"#;
        assert_eq!(serde_json::from_str::<Run>(text).unwrap(), whole);
        for field in ["stream", "offset", "at_ms", "ending", "text"] {
            let less = text.replace(&format!("\"{field}\""), "\"other\"");
            assert!(serde_json::from_str::<Run>(&less).is_err(), "{less}");
        }
        for wrong in [text.replace("b\\n", "b"), text.replace("newline", "eof"), text.replace("a\\nb\\n", "")] {
            assert!(serde_json::from_str::<Run>(&wrong).is_err(), "{wrong}");
        }
        let far = serde_json::from_str::<Run>(&text.replace(":3,", &format!(":{},", u64::MAX))).unwrap();
        assert_eq!(far.end(), u64::MAX, "nobody is ended by an offset");
    }

    #[test]
    fn p14_lines_are_the_runs_bytes_again() {
        for (bytes, ending, count) in [
            (&b"\n"[..], Ending::Newline, 1),
            (b"a\n\nb\n", Ending::Newline, 3),
            (b"a\nb", Ending::Eof, 2),
            (b"x", Ending::Split, 1),
        ] {
            let run = run(10, bytes, ending);
            let lines: Vec<Line> = run.lines().collect();
            assert_eq!((lines.len() as u64, run.count()), (count, count));
            assert_eq!(lines.last().unwrap().ending, ending);
            let mut end = run.offset;
            let mut again = Vec::new();
            for line in lines {
                assert_eq!(line.offset, end);
                end = line.end();
                again.extend(Run::from(line).bytes);
            }
            assert_eq!((again.as_slice(), end), (bytes, run.end()));
        }
    }

    #[test]
    fn p14_what_is_known_is_cut_off() {
        let whole = run(10, b"ab\ncd\n", Ending::Newline);
        assert_eq!(whole.clone().behind(4), Some(whole.clone()));
        assert_eq!(whole.clone().behind(10), Some(whole.clone()));
        assert_eq!(whole.clone().behind(11), Some(run(11, b"b\ncd\n", Ending::Newline)));
        assert_eq!(whole.clone().behind(15), Some(run(15, b"\n", Ending::Newline)));
        assert_eq!(whole.behind(16), None);
    }
}
