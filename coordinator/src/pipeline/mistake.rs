//! How every stage says what is wrong with a file: words, a place, and a mend.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode};

/// Bytes of the file.
pub(super) type Span = Range<usize>;

/// More are not read by anybody, and most of them would follow from the first ones.
const SHOWN_MAX: usize = 20;

/// One thing that is wrong with a pipeline file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    message: String,
    labels: Vec<(Span, String)>,
    help: Option<String>,
    follows: bool,
}

impl Mistake {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), labels: Vec::new(), help: None, follows: false }
    }

    /// Adds a place. The first one is where the mistake stands.
    pub(super) fn at(mut self, span: Span, label: impl Into<String>) -> Self {
        self.labels.push((span, label.into()));
        self
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// "Did you mean", if a known word is near enough to `word`.
    pub(super) fn nearest<'a>(self, word: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        match nearest(word, known) {
            Some(near) => self.help(format!("did you mean `{near}`?")),
            None => self,
        }
    }

    /// Something is missing, which may be so only because of another mistake in the same file.
    pub(super) fn follows(mut self) -> Self {
        self.follows = true;
        self
    }

    /// Where it stands, byte offset from 0; `None` if it is about the file as a whole.
    pub fn offset(&self) -> Option<usize> {
        self.labels.first().map(|(span, _)| span.start)
    }
}

/// The known word that a user who wrote `word` most likely meant.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Nobody meant a short word by a long one, and comparing takes time and memory by the product of the lengths.
    let lower = Some(word).filter(|word| word.len() <= 300)?.to_lowercase();
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate))
        // About a third of the letters: beyond that a suggestion is a guess.
        .filter(|(distance, candidate)| {
            let allowed = match candidate.chars().count() {
                0..=3 => 1,
                4..=8 => 2,
                _ => 3,
            };
            *distance <= allowed
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Mistake {}

impl Diagnostic for Mistake {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let labels =
            self.labels.iter().map(|(span, label)| LabeledSpan::new(Some(label.clone()), span.start, span.len()));
        Some(Box::new(labels))
    }
}

/// The mistakes found so far.
#[derive(Debug, Default)]
pub(super) struct Mistakes {
    found: Vec<Mistake>,
    /// By message and place.
    seen: HashSet<(String, Option<usize>)>,
    /// Whether something stood in the file that was not understood, so that what is missing may be just that.
    not_understood: bool,
}

impl Mistakes {
    /// Once each: what stands in `defaults` or in a matrix step would otherwise be told once an instance.
    pub(super) fn note(&mut self, mistake: Mistake) {
        let dropped = self.not_understood && mistake.follows;
        if !dropped && self.seen.insert((mistake.message.clone(), mistake.offset())) {
            self.found.push(mistake);
        }
    }

    /// The file was read as far as it was understood. From here on, and of what was found so far, nothing is told
    /// that may follow from what was not.
    pub(super) fn end_of_shape(&mut self) {
        self.not_understood = self.found.iter().any(|mistake| !mistake.follows);
        if self.not_understood {
            self.found.retain(|mistake| !mistake.follows);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(super) fn into_errors(self, file_name: &str, text: &str) -> PipelineErrors {
        let mut mistakes = self.found;
        mistakes.sort_by_key(Mistake::offset);
        for (span, _) in mistakes.iter_mut().flat_map(|mistake| &mut mistake.labels) {
            *span = one_line(text, span);
        }
        let left_out = mistakes.len().saturating_sub(SHOWN_MAX);
        mistakes.truncate(SHOWN_MAX);
        PipelineErrors { source: NamedSource::new(file_name, Arc::from(text)), mistakes, left_out }
    }
}

/// A span within the text and within its first line, so that a whole block is not underlined.
fn one_line(text: &str, span: &Span) -> Span {
    let start = text.floor_char_boundary(span.start.min(text.len()));
    let end = text.floor_char_boundary(span.end.clamp(start, text.len()));
    let line = text[start..end].split('\n').next().unwrap_or_default().trim_end();
    start..start + line.len()
}

/// Everything that is wrong with a pipeline file. Never empty.
///
/// As a [`Diagnostic`] it shows the lines of the file. `{}` is one line: the first mistake with its place, and how
/// many there are. `{:#}` is plain text, a line a mistake, for where no report can be drawn.
#[derive(Debug)]
pub struct PipelineErrors {
    source: NamedSource<Arc<str>>,
    /// INVARIANT: at least one, in the order of the file.
    mistakes: Vec<Mistake>,
    left_out: usize,
}

impl PipelineErrors {
    /// In the order of the file; at most 20.
    pub fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }

    /// Line and column of a mistake, both from 1, columns in characters.
    pub fn place(&self, mistake: &Mistake) -> Option<(usize, usize)> {
        let before = self.source.inner().get(..mistake.offset()?)?;
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Some((line, column))
    }

    fn write_line(&self, f: &mut fmt::Formatter<'_>, mistake: &Mistake) -> fmt::Result {
        f.write_str(self.source.name())?;
        if let Some((line, column)) = self.place(mistake) {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {mistake}")
    }
}

impl fmt::Display for PipelineErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            for (n, mistake) in self.mistakes.iter().enumerate() {
                f.write_str(if n > 0 { "\n" } else { "" })?;
                self.write_line(f, mistake)?;
                if let Some(help) = &mistake.help {
                    write!(f, " ({help})")?;
                }
            }
            if self.left_out > 0 {
                write!(f, "\n{}: and {} more", self.source.name(), self.left_out)?;
            }
            return Ok(());
        }
        match self.mistakes.as_slice() {
            [only] => self.write_line(f, only),
            [first, ..] => {
                let count = self.mistakes.len() + self.left_out;
                write!(f, "{count} mistakes in {}", self.source.name())?;
                if self.left_out > 0 {
                    write!(f, " ({SHOWN_MAX} are shown)")?;
                }
                match self.place(first) {
                    Some((line, _)) => write!(f, ", the first in line {line}: {first}"),
                    None => write!(f, ", the first: {first}"),
                }
            }
            [] => write!(f, "{} cannot be read", self.source.name()),
        }
    }
}

impl std::error::Error for PipelineErrors {}

impl Diagnostic for PipelineErrors {
    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.source)
    }

    // The report's own line says the first mistake, so that its place and mend belong to it; the others follow.

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.mistakes.first()?.help()
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.mistakes.first()?.labels()
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        let rest = self.mistakes.get(1..).filter(|rest| !rest.is_empty())?;
        Some(Box::new(rest.iter().map(|mistake| mistake as &dyn Diagnostic)))
    }
}
