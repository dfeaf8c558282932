//! YAML or JSON text to a tree whose nodes know where they stand.
//!
//! We build the tree from the parser's events ourselves (`docs/decisions/yaml.md`): a reader that stops at the first
//! thing it dislikes cannot show all mistakes at once, and one that makes a number of `3.10` has lost the zero.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle};

use super::bounds::FILE_BYTES_MAX;
use super::mistake::{Mistake, Mistakes, Span};

/// The schema nests five deep; more is a mistake or an attack on the stack.
const DEPTH_MAX: usize = 32;

/// What the copies made for aliases may hold, as text and 64 bytes a node: sixteen times the largest file. Nine
/// levels of nine aliases each ("a billion laughs") end here.
const ALIASED_BYTES_MAX: usize = 16 * 1024 * 1024;

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) span: Span,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    /// `plain`: written without quotes, so that it may mean a number, a boolean or nothing. The text is as written:
    /// `3.10` stays that.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    /// INVARIANT: no key twice.
    Map(Vec<Entry>),
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_span: Span,
    pub(super) node: Node,
}

impl Node {
    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.node)
    }

    pub(super) fn items(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    pub(super) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// A scalar's text.
    pub(super) fn text(&self) -> &str {
        match &self.value {
            Value::Scalar { text, .. } => text,
            _ => "",
        }
    }

    /// Where to point when the node as a whole is meant: a mapping's first key rather than all of its lines.
    pub(super) fn head(&self) -> Span {
        match &self.value {
            Value::Map(entries) => entries.first().map_or(self.span.clone(), |entry| entry.key_span.clone()),
            Value::List(items) => items.first().map_or(self.span.clone(), Node::head),
            Value::Scalar { .. } => self.span.clone(),
        }
    }

    /// Where the value under `key` stands, or the node itself.
    pub(super) fn place(&self, key: &str) -> Span {
        self.get(key).map_or_else(|| self.head(), Node::head)
    }

    /// What it is, in the words of a message.
    pub(super) fn kind(&self) -> &'static str {
        match &self.value {
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
            Value::Scalar { text, plain: true } => match text.as_str() {
                "" | "~" | "null" | "Null" | "NULL" => "nothing",
                "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => "a boolean",
                // Rust also reads `inf` and `nan`, which are words to everyone else.
                text if text.contains(|c: char| c.is_ascii_digit()) && text.parse::<f64>().is_ok() => "a number",
                _ => "a string",
            },
            Value::Scalar { .. } => "a string",
        }
    }

    fn height(&self) -> usize {
        1 + match &self.value {
            Value::Scalar { .. } => 0,
            Value::List(items) => items.iter().map(Node::height).max().unwrap_or(0),
            Value::Map(entries) => entries.iter().map(|entry| entry.node.height()).max().unwrap_or(0),
        }
    }

    fn cost(&self) -> usize {
        64 + match &self.value {
            Value::Scalar { text, .. } => text.len(),
            Value::List(items) => items.iter().map(Node::cost).sum(),
            Value::Map(entries) => entries.iter().map(|entry| entry.key.len() + entry.node.cost()).sum(),
        }
    }
}

/// `None` only with a mistake noted.
pub(super) fn parse(text: &str, mistakes: &mut Mistakes) -> Option<Node> {
    if text.len() > FILE_BYTES_MAX {
        let bytes = text.len();
        mistakes.note(
            Mistake::new(format!("the file is too large: {bytes} bytes, at most {FILE_BYTES_MAX} are read"))
                .help("files belong under `sources`, long scripts into a file of their own"),
        );
        return None;
    }
    // YAML forbids tabs in indentation, JSON does not. In JSON a raw tab is never part of a string, so that a blank
    // in its place changes neither the meaning nor an offset.
    let is_json = text.trim_start().starts_with('{') && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
    let blanked = if is_json && text.contains('\t') { Some(text.replace('\t', " ")) } else { None };
    let mut options = granit_parser::Options::default();
    options.set_emit_comments(false);
    let parser = Parser::new_from_str_with_options(blanked.as_deref().unwrap_or(text), options);
    let mut reader = Reader { parser, anchors: HashMap::new(), aliased_bytes: 0, duplicates: Vec::new() };
    let root = reader.document();
    reader.duplicates.into_iter().for_each(|duplicate| mistakes.note(duplicate));
    root.map_err(|mistake| mistakes.note(*mistake)).ok()
}

/// Boxed, because it is large and rare.
type Read<T> = Result<T, Box<Mistake>>;

struct Reader<'t> {
    parser: Parser<'t, granit_parser::StrInput<'t>>,
    /// Finished nodes by anchor id; one that is still open is not here, so that no node can hold itself.
    anchors: HashMap<usize, Node>,
    aliased_bytes: usize,
    /// Told without ending the reading.
    duplicates: Vec<Mistake>,
}

impl<'t> Reader<'t> {
    fn document(&mut self) -> Read<Node> {
        loop {
            match self.next()? {
                (Event::DocumentStart(..), _) => break,
                (Event::StreamEnd, span) => {
                    let help = "a pipeline has at least a `name` and `steps`";
                    return Err(Box::new(Mistake::new("the file is empty").at(span, "nothing here").help(help)));
                }
                _ => {}
            }
        }
        let first = self.next()?;
        let root = self.node(first, 0)?;
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(root),
                (Event::DocumentStart(..), span) => {
                    let mistake = Mistake::new("a file holds one pipeline").at(span, "a second document begins here");
                    return Err(Box::new(mistake));
                }
                _ => {}
            }
        }
    }

    fn next(&mut self) -> Read<(Event<'t>, Span)> {
        match self.parser.next() {
            Some(Ok((event, span))) => {
                let offset = |marker: granit_parser::Marker| marker.byte_offset().unwrap_or_default();
                Ok((event, offset(span.start)..offset(span.end)))
            }
            Some(Err(error)) => {
                let at = error.marker().byte_offset().unwrap_or_default();
                Err(Box::new(Mistake::new(format!("this is not YAML: {}", error.info())).at(at..at + 1, "here")))
            }
            // After the stream's end, which every caller stops at.
            None => Ok((Event::StreamEnd, 0..0)),
        }
    }

    fn node(&mut self, (event, span): (Event<'t>, Span), depth: usize) -> Read<Node> {
        check_depth(depth, &span)?;
        let (id, tag, node) = match event {
            Event::Scalar(text, style, id, tag) => {
                let value = Value::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain };
                (id, tag, Node { span, value })
            }
            Event::SequenceStart(_, id, tag) => (id, tag, self.list(span, depth)?),
            Event::MappingStart(_, id, tag) => (id, tag, self.map(span, depth)?),
            Event::Alias(id) => return self.alias(id, span, depth),
            _ => return Err(Box::new(Mistake::new("this is not YAML: a value is missing").at(span, "here"))),
        };
        if tag.is_some() {
            let mistake = Mistake::new("tags (`!…`) mean nothing here").at(node.head(), "of this value");
            return Err(Box::new(mistake.help("quotes make a string of anything")));
        }
        if id != 0 {
            self.anchors.insert(id, node.clone());
            self.pay(&node)?;
        }
        Ok(node)
    }

    fn list(&mut self, start: Span, depth: usize) -> Read<Node> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, end) => {
                    return Ok(Node { span: start.start..end.end.max(start.end), value: Value::List(items) });
                }
                event => items.push(self.node(event, depth + 1)?),
            }
        }
    }

    fn map(&mut self, start: Span, depth: usize) -> Read<Node> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen: HashMap<String, Span> = HashMap::new();
        loop {
            let key = match self.next()? {
                (Event::MappingEnd, end) => {
                    return Ok(Node { span: start.start..end.end.max(start.end), value: Value::Map(entries) });
                }
                event => self.node(event, depth + 1)?,
            };
            let Value::Scalar { text, .. } = key.value else {
                return Err(Box::new(Mistake::new("a key must be a string").at(key.span, "this is none")));
            };
            let value = self.next()?;
            let node = self.node(value, depth + 1)?;
            if let Some(first) = seen.get(&text) {
                let mistake = Mistake::new(format!("the key `{text}` stands here twice"));
                self.duplicates.push(mistake.at(key.span, "again").at(first.clone(), "first here"));
                continue;
            }
            seen.insert(text.clone(), key.span.clone());
            entries.push(Entry { key: text, key_span: key.span, node });
        }
    }

    fn alias(&mut self, id: usize, span: Span, depth: usize) -> Read<Node> {
        let Some(node) = self.anchors.get(&id).cloned() else {
            return Err(Box::new(Mistake::new("an alias within its own anchor").at(span, "would hold itself")));
        };
        // A copy is as deep as its original: else a chain of aliases would nest without end.
        check_depth(depth + node.height() - 1, &span)?;
        self.pay(&node).map_err(|mistake| Box::new(mistake.at(span.clone(), "with this one")))?;
        Ok(Node { span, ..node })
    }

    fn pay(&mut self, node: &Node) -> Read<()> {
        self.aliased_bytes += node.cost();
        if self.aliased_bytes > ALIASED_BYTES_MAX {
            let mib = ALIASED_BYTES_MAX / 1024 / 1024;
            return Err(Box::new(Mistake::new(format!("the file's aliases expand to more than {mib} MiB"))));
        }
        Ok(())
    }
}

fn check_depth(depth: usize, span: &Span) -> Read<()> {
    if depth > DEPTH_MAX {
        let message = format!("nested more than {DEPTH_MAX} deep");
        return Err(Box::new(Mistake::new(message).at(span.clone(), "here")));
    }
    Ok(())
}
