//! How lines travel and are stored: those that differ only in their bytes share one object.
//!
//! What a line says besides its bytes takes as much room as the line itself, and a busy step writes hundreds of them in
//! a millisecond. So `{…, "text": "a"}, {…, "text": "b"}` becomes `{…, "texts": ["a", "b"]}`: each has the stream, the
//! time and the ending that are said, and begins where the one before it ended.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use schemars::JsonSchema;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::{Error as _, SerializeMap as _, SerializeSeq as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Ending, Line, LineData, Stream};

/// Lines, none or more, as one object: all of `text`, or one of anything else.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a>(&'a [Line]);

/// Some lines as the fewest runs.
pub fn runs(lines: &[Line]) -> impl Iterator<Item = Run<'_>> {
    lines.chunk_by(|before, next| next.continues(before)).map(Run)
}

/// Reads a run back, behind the lines that are in `lines`.
pub fn read_run(json: &[u8], lines: &mut Vec<Line>) -> Result<(), serde_json::Error> {
    let mut json = serde_json::Deserializer::from_slice(json);
    Into(lines).deserialize(&mut json)?;
    json.end()
}

impl Line {
    /// Whether it can share an object with the line before it.
    pub fn continues(&self, before: &Self) -> bool {
        // What may be text is looked at last, because that takes longest.
        (self.stream, self.at_ms, self.ending) == (before.stream, before.at_ms, before.ending)
            && self.offset == before.end()
            && is_text(before)
            && is_text(self)
    }
}

fn is_text(line: &Line) -> bool {
    std::str::from_utf8(&line.data.0).is_ok()
}

impl Serialize for Run<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some(first) = self.0.first() else { return serializer.serialize_map(Some(0))?.end() };
        let mut map = serializer.serialize_map(Some(5))?;
        map.serialize_entry("stream", &first.stream)?;
        map.serialize_entry("offset", &first.offset)?;
        map.serialize_entry("at_ms", &first.at_ms)?;
        map.serialize_entry("ending", &first.ending)?;
        match (self.0, std::str::from_utf8(&first.data.0)) {
            ([_], Ok(text)) => map.serialize_entry("text", text)?,
            ([_], Err(_)) => map.serialize_entry("base64", &BASE64.encode(&first.data.0))?,
            (lines, _) => map.serialize_entry("texts", &Texts(lines))?,
        }
        map.end()
    }
}

struct Texts<'a>(&'a [Line]);

impl Serialize for Texts<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut texts = serializer.serialize_seq(Some(self.0.len()))?;
        for line in self.0 {
            // INVARIANT: a run of several lines holds text only.
            texts.serialize_element(std::str::from_utf8(&line.data.0).map_err(S::Error::custom)?)?;
        }
        texts.end()
    }
}

/// Appends what a run holds.
struct Into<'a>(&'a mut Vec<Line>);

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Field {
    Stream,
    Offset,
    AtMs,
    Ending,
    Text,
    Texts,
    Base64,
    /// P1
    #[serde(other)]
    Unknown,
}

enum Data {
    One(Vec<u8>),
    Several(Vec<String>),
}

impl<'de> DeserializeSeed<'de> for Into<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Into<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("some lines of output")
    }

    /// By hand: serde reads a flattened form into a tree of values first, which takes longer than all the rest.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut stream, mut offset, mut at_ms, mut ending, mut data) = (None, None, None, None, None);
        while let Some(field) = map.next_key()? {
            match field {
                Field::Stream => stream = Some(map.next_value::<Stream>()?),
                Field::Offset => offset = Some(map.next_value::<u64>()?),
                Field::AtMs => at_ms = Some(map.next_value::<u64>()?),
                Field::Ending => ending = Some(map.next_value::<Ending>()?),
                Field::Text => data = Some(Data::One(map.next_value::<String>()?.into_bytes())),
                Field::Texts => data = Some(Data::Several(map.next_value()?)),
                Field::Base64 => {
                    let text: String = map.next_value()?;
                    data = Some(Data::One(BASE64.decode(text).map_err(A::Error::custom)?));
                }
                Field::Unknown => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        let stream = stream.ok_or_else(|| A::Error::missing_field("stream"))?;
        let mut offset = offset.ok_or_else(|| A::Error::missing_field("offset"))?;
        let at_ms = at_ms.ok_or_else(|| A::Error::missing_field("at_ms"))?;
        let ending = ending.ok_or_else(|| A::Error::missing_field("ending"))?;
        let mut push = |data: Vec<u8>| {
            let bytes = data.len() as u64 + u64::from(ending == Ending::Newline);
            self.0.push(Line { stream, offset, at_ms, ending, data: LineData(data) });
            // No stream is so long: a sender that says so is no reason to end.
            offset = offset.saturating_add(bytes);
        };
        match data.ok_or_else(|| A::Error::missing_field("text"))? {
            Data::One(data) => push(data),
            Data::Several(texts) => texts.into_iter().map(String::into_bytes).for_each(push),
        }
        Ok(())
    }
}

/// For serde's `with`: lines as an array of runs.
pub(super) mod lines {
    use super::{Deserializer, Into, Line, SeqAccess, Serializer, Visitor, fmt, runs};

    pub(in crate::output) fn serialize<S: Serializer>(lines: &[Line], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(runs(lines))
    }

    pub(in crate::output) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Line>, D::Error> {
        struct Runs;

        impl<'de> Visitor<'de> for Runs {
            type Value = Vec<Line>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("lines of output")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut runs: A) -> Result<Vec<Line>, A::Error> {
                let mut lines = Vec::new();
                while runs.next_element_seed(Into(&mut lines))?.is_some() {}
                Ok(lines)
            }
        }

        deserializer.deserialize_seq(Runs)
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
    /// When the end of each was read, ms since the Unix epoch, by the worker's clock.
    at_ms: u64,
    /// How each ended.
    ending: Ending,
    #[serde(flatten)]
    data: RunDataForm,
}

/// The bytes of a run without the newlines.
#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(dead_code)] // what is written and read is above
enum RunDataForm {
    /// Of one line, where they are UTF-8.
    Text(String),
    /// Of several lines, one behind the other.
    Texts(Vec<String>),
    /// Of one line in base64, where they are not UTF-8.
    Base64(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(offset: u64, data: &[u8], ending: Ending) -> Line {
        Line { stream: Stream::Stdout, offset, at_ms: 1, ending, data: LineData(data.to_vec()) }
    }

    fn json(lines: &[Line]) -> Vec<String> {
        runs(lines).map(|run| serde_json::to_string(&run).unwrap()).collect()
    }

    fn read(json: &[String]) -> Vec<Line> {
        let mut lines = Vec::new();
        for run in json {
            read_run(run.as_bytes(), &mut lines).unwrap();
        }
        lines
    }

    #[test]
    fn p14_lines_come_back_as_they_were_however_they_were_put_together() {
        let newline = Ending::Newline;
        let others = |change: fn(&mut Line)| {
            let mut lines = vec![line(0, b"one", newline), line(4, b"", newline)];
            change(&mut lines[1]);
            lines
        };
        let alone = [
            others(|line| line.stream = Stream::Stderr),
            others(|line| line.at_ms = 2),
            others(|line| line.offset = 5),
            others(|line| line.ending = Ending::Eof),
            others(|line| line.data.0 = b"\xff".to_vec()),
        ];
        for lines in alone {
            assert_eq!(json(&lines).len(), 2, "{lines:?}");
            assert_eq!(read(&json(&lines)), lines);
        }
        let together = [line(0, b"one", newline), line(4, b"", newline), line(5, "\u{2603}\"".as_bytes(), newline)];
        assert_eq!(json(&together).len(), 1);
        assert_eq!(read(&json(&together)), together);
        let pieces = [line(7, b"one", Ending::Split), line(10, b"two", Ending::Split)];
        assert_eq!(json(&pieces).len(), 1);
        assert_eq!(read(&json(&pieces)), pieces);
    }

    #[test]
    fn p1_a_run_is_read_in_any_order_and_refused_without_one_of_its_fields() {
        let whole = [line(3, b"a", Ending::Newline), line(5, b"b", Ending::Newline)];
        let text = r#"{"texts":["a","b"],"later":{"x":[1]},"ending":"newline","at_ms":1,"offset":3,"stream":"stdout"}"#;
        assert_eq!(read(&[text.to_owned()]), whole);
        for field in ["stream", "offset", "at_ms", "ending", "texts"] {
            let less = text.replace(&format!("\"{field}\""), "\"other\"");
            assert!(read_run(less.as_bytes(), &mut Vec::new()).is_err(), "{less}");
        }
        let far = text.replace(":3,", &format!(":{},", u64::MAX));
        assert!(read_run(far.as_bytes(), &mut Vec::new()).is_ok(), "nobody is ended by an offset");
    }
}
