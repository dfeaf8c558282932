//! Rebuilds runs from the journal, entry by entry with the core's checks, and compares them with what people are shown.
//!
//! Read-only, and safe beside a coordinator that leads: a batch writes journal and read tables in one transaction, and
//! a run is read in one. A run that is done is rebuilt like any other: its journal stays.

use std::path::Path;
use std::sync::Arc;

use longshore_protocol::RunId;
use serde::Serialize;
use serde_json::{Value, json};

use crate::core::view::RunView;
use crate::core::{Core, CoreConfig};
use crate::store::recover::JournalRow;
use crate::store::sqlite::SqliteStore;
use crate::store::{Store, StoreError};

/// Runs listed at a time.
const PAGE: u32 = 1_000;

/// What the journal of a run, or of the workers, came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Replayed {
    /// Of which run; `None`: of the workers.
    pub run: Option<RunId>,
    /// The pipeline's name.
    pub name: String,
    /// How many entries were folded.
    pub entries: usize,
    /// How it compares.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// How a journal compares with the read tables.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// They say the same.
    Same,
    /// An entry cannot follow those before it.
    Illegal {
        /// Its number in the journal.
        seq: u64,
        /// Which rule it breaks.
        why: String,
    },
    /// They say different things.
    Differs {
        /// The first of them.
        differences: Vec<Difference>,
    },
}

/// One thing that is shown otherwise than the journal has it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// `run`, or a step's name; and which field of it.
    pub what: String,
    /// What the journal adds up to.
    pub journal: Value,
    /// What the read table holds.
    pub table: Value,
}

/// More of one run tell nothing new.
const DIFFERENCES_MAX: usize = 10;

/// Replays a store.
#[derive(Debug)]
pub struct Replay {
    store: Arc<dyn Store>,
}

impl Replay {
    /// Opens a file to read.
    pub fn open(store_file: &Path) -> Result<Self, StoreError> {
        Ok(Self::of(Arc::new(SqliteStore::open_to_read(store_file)?)))
    }

    /// Of any store.
    pub fn of(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// The runs in it, newest first.
    pub async fn runs(&self) -> Result<Vec<RunId>, StoreError> {
        let mut runs: Vec<RunId> = Vec::new();
        loop {
            let page = self.store.list_runs(None, runs.last().copied(), PAGE).await?;
            let last = page.len() < PAGE as usize;
            runs.extend(page.into_iter().map(|summary| summary.run));
            if last {
                return Ok(runs);
            }
        }
    }

    /// What concerns no run: who joined, was lost and heard.
    pub async fn workers(&self) -> Result<Replayed, StoreError> {
        let rows = self.store.journal_of_workers().await?;
        let mut core = Core::new(CoreConfig::default());
        let verdict = fold(&mut core, &rows).err().unwrap_or(Verdict::Same);
        Ok(Replayed { run: None, name: "workers".to_owned(), entries: rows.len(), verdict })
    }

    /// One run; `None` if it is not there.
    pub async fn run(&self, run: RunId) -> Result<Option<Replayed>, StoreError> {
        let Some((rows, shown)) = self.store.journal_and_view(run).await? else { return Ok(None) };
        let entries = rows.iter().filter(|row| row.entry.run().is_some()).count();
        let name = shown.view.summary.name.clone();
        let mut core = Core::new(CoreConfig::default());
        let verdict = match fold(&mut core, &rows) {
            Err(illegal) => illegal,
            Ok(()) => compared(&core, run, &shown.view, shown.done),
        };
        Ok(Some(Replayed { run: Some(run), name, entries, verdict }))
    }

    /// Lets go of the file.
    pub async fn close(self) {
        self.store.close().await;
    }
}

fn fold(core: &mut Core, rows: &[JournalRow]) -> Result<(), Verdict> {
    for JournalRow { seq, at_ms, entry } in rows {
        if let Err(illegal) = core.replay(entry, *at_ms) {
            return Err(Verdict::Illegal { seq: *seq, why: illegal.to_string() });
        }
    }
    Ok(())
}

fn compared(core: &Core, run: RunId, shown: &RunView, done: bool) -> Verdict {
    let Some(rebuilt) = core.run_view(run) else {
        let table = Value::String(shown.summary.name.clone());
        let difference = Difference { what: "run".to_owned(), journal: Value::Null, table };
        return Verdict::Differs { differences: vec![difference] };
    };
    let mut differences = Vec::new();
    fields("run", &json_of(&rebuilt.summary), &json_of(&shown.summary), &mut differences);
    // What stands beside the summary.
    let whole = |done: bool, view: &RunView| json!({ "done": done, "steps": view.steps.len() });
    fields("run", &whole(core.is_done(run), &rebuilt), &whole(done, shown), &mut differences);
    for (rebuilt, shown) in rebuilt.steps.iter().zip(&shown.steps) {
        if rebuilt != shown {
            fields(rebuilt.step.as_str(), &json_of(rebuilt), &json_of(shown), &mut differences);
        }
    }
    differences.truncate(DIFFERENCES_MAX);
    if differences.is_empty() { Verdict::Same } else { Verdict::Differs { differences } }
}

fn json_of(view: &impl Serialize) -> Value {
    serde_json::to_value(view).expect("views have string keys and no failing serializers")
}

/// Which fields of two objects differ.
fn fields(of: &str, journal: &Value, table: &Value, differences: &mut Vec<Difference>) {
    let (Value::Object(journal), Value::Object(table)) = (journal, table) else { return };
    let missing = table.keys().filter(|name| !journal.contains_key(*name));
    for name in journal.keys().chain(missing) {
        let (ours, theirs) = (journal.get(name).unwrap_or(&Value::Null), table.get(name).unwrap_or(&Value::Null));
        if ours != theirs {
            let what = format!("{of}: {name}");
            differences.push(Difference { what, journal: ours.clone(), table: theirs.clone() });
        }
    }
}
