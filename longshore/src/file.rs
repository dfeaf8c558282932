//! A pipeline file and the sources that it names.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use longshore_coordinator::pipeline::{self, FILE_BYTES_MAX, Pipeline};

use crate::client::Client;
use crate::failure::Failure;
use crate::render::screen;
use crate::render::style::{bytes, counted};
use crate::sources::{Packed, SourceError, Sources};

/// A pipeline that can be submitted once its sources are uploaded.
pub(crate) struct Prepared {
    pub(crate) pipeline: Pipeline,
    sources: Sources,
}

/// Reads a pipeline file; `-` is stdin.
pub(crate) fn read(path: &Path) -> Result<Pipeline, Failure> {
    let name = path.display().to_string();
    let wrong = |error: std::io::Error| match error.kind() {
        ErrorKind::IsADirectory => Failure::input(format!("{name} is a directory")).mend("name a pipeline file in it"),
        _ => Failure::input(format!("{name} cannot be read: {error}")),
    };
    let mut text = Vec::new();
    // One byte more than is allowed: the parser then says what is too much.
    let limit = FILE_BYTES_MAX as u64 + 1;
    if name == "-" {
        std::io::stdin().take(limit).read_to_end(&mut text).map_err(wrong)?;
    } else {
        File::open(path).and_then(|file| file.take(limit).read_to_end(&mut text)).map_err(wrong)?;
    }
    let text = String::from_utf8(text).map_err(|_| Failure::input(format!("{name} is not UTF-8 text")))?;
    Ok(pipeline::parse(&name, &text)?)
}

/// Renames the pipeline if asked to, and packs its sources. Nothing has been submitted when it fails.
pub(crate) async fn prepare(mut pipeline: Pipeline, file: &Path, name: Option<String>) -> Result<Prepared, Failure> {
    if let Some(name) = name {
        pipeline.name = name;
        pipeline::validate(&pipeline).map_err(|wrong| Failure::input(format!("--name: {wrong}")))?;
    }
    let base = file.parent().map_or_else(PathBuf::new, Path::to_owned);
    let packing = tokio::task::spawn_blocking(move || {
        let sources = Sources::pack(&mut pipeline, &base)?;
        Ok::<_, SourceError>(Prepared { pipeline, sources })
    });
    let prepared = packing
        .await
        .map_err(|error| Failure::infra(format!("the sources cannot be packed: {error}")))?
        .map_err(|error| Failure::input(format!("{error}; nothing was submitted")))?;
    for (path, packed) in prepared.sources.iter() {
        note(path, packed);
    }
    Ok(prepared)
}

impl Prepared {
    /// Uploads what is not there yet.
    pub(crate) async fn upload(self, client: &Client) -> Result<Pipeline, Failure> {
        self.sources.upload(client).await?;
        Ok(self.pipeline)
    }
}

/// What people want to know of a pack, on stderr: stdout is the run's.
fn note(path: &Path, packed: &Packed) {
    tracing::info!(
        path = %path.display(), hash = %packed.hash, bytes = packed.bytes, entries = packed.entries, "packed a source"
    );
    // Else a forgotten build directory shows only as a slow start.
    if packed.bytes >= WORTH_SAYING_BYTES {
        let entries = counted(packed.entries, "file");
        screen::say(&format!("longshore: packed {}: {entries}, {}", path.display(), bytes(packed.bytes)));
    }
    if !packed.skipped.is_empty() {
        let first: Vec<String> = packed.skipped.iter().take(NAMED_MAX).map(|path| path.display().to_string()).collect();
        let count = packed.skipped.len();
        screen::say(&format!(
            "longshore: left out of {}: {count} that are no files, directories or links ({})",
            path.display(),
            first.join(", ")
        ));
    }
}

/// About a second of packing.
const WORTH_SAYING_BYTES: u64 = 100_000_000;

/// Enough to see which ones they are.
const NAMED_MAX: usize = 3;
