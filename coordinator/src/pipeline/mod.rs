//! The pipeline file: what a user writes, and the [`Pipeline`] it resolves to.
//!
//! Read in this order:
//!
//! 1. [`raw`] the keys a file may hold: one set of types, from which the JSON schema is made and into which
//!    every file is read;
//! 2. [`tree`] YAML or JSON text to nodes that know where they stand in the file;
//! 3. [`shape`] a tree against the schema: unknown keys, wrong kinds of values;
//! 4. [`names`] which step each `from` and `needs` means, and cycles; [`matrix`] one step to its instances;
//!    [`template`] `${{ … }}` in their texts; [`step`] one step ([`waiting`]: how it waits), [`resolve`] all of it together, within [`bounds`];
//! 5. [`model`] what comes out ([`retry`]: when it is tried again), and what [`validate()`] checks of it again on a server;
//! 6. [`meant`](mod@meant) which steps somebody means who types a name;
//! 7. [`mistake`] how all of them say what is wrong; [`show`] what `longshore plan` prints.
//!
//! A stage goes on after a mistake where it can, so that a user sees all of them at once.

#![deny(clippy::disallowed_methods)] // pure: see clippy.toml
#![allow(rustdoc::private_intra_doc_links, reason = "the reading order is for whoever reads the sources")]

mod bounds;
mod matrix;
mod meant;
mod mistake;
mod model;
mod names;
mod raw;
mod resolve;
mod retry;
mod shape;
mod show;
mod step;
mod template;
mod tree;
mod units;
mod validate;
mod waiting;

use serde::Deserialize;

pub use bounds::{FILE_BYTES_MAX, STEPS_MAX};
pub use meant::meant;
pub use mistake::{Mistake, PipelineErrors};
pub use model::{Blob, Concurrency, Parent, Pipeline, PlannedStep, SnapshotRule, SourceDir};
pub use raw::json_schema;
pub use retry::{Retry, RetryOn};
pub use show::{to_dot, to_text};
pub use units::duration_text;
pub use validate::validate;

use mistake::Mistakes;

/// Reads a pipeline file, YAML or JSON, and resolves it: defaults and environments merged, matrices expanded,
/// templates rendered, steps in a topological order. It touches nothing but `text`; `file_name` is for messages.
///
/// # Errors
/// Everything that is wrong with the file, as far as it can be told in one go, each with its place.
pub fn parse(file_name: &str, text: &str) -> Result<Pipeline, PipelineErrors> {
    let mut mistakes = Mistakes::default();
    let pipeline = read(text, &mut mistakes);
    match pipeline {
        Some(pipeline) if mistakes.is_empty() => Ok(pipeline),
        _ => Err(mistakes.into_errors(file_name, text)),
    }
}

/// `None` only with a mistake noted.
fn read(text: &str, mistakes: &mut Mistakes) -> Option<Pipeline> {
    let root = tree::parse(text, mistakes)?;
    let value = shape::shape(&root, mistakes);
    mistakes.end_of_shape();
    let value = value?;
    let raw = match raw::RawPipeline::deserialize(value) {
        Ok(raw) => raw,
        // The shape was checked against the schema of these very types, so this is a key whose type and schema
        // disagree: still the file's place and the reader's words, never a panic.
        Err(error) => {
            mistakes.note(Mistake::new(error.to_string()).at(root.head(), "in this file"));
            return None;
        }
    };
    let pipeline = resolve::resolve(&raw, &root, text, mistakes)?;
    if mistakes.is_empty()
        && let Err(message) = validate(&pipeline)
    {
        // Templates can make texts longer than the file had them; and a server would refuse it anyway.
        mistakes.note(Mistake::new(message).at(root.place("steps"), "of these"));
    }
    Some(pipeline)
}
