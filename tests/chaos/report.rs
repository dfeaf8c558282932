//! The last result of every row, kept from run to run: single rows can be run again, and the page has all of them and
//! says which those are.

use std::collections::BTreeMap;
use std::path::PathBuf;

use longshore_tests::services;
use serde::{Deserialize, Serialize};

use crate::rows::{ROWS, Row};
use crate::table::{Entry, Told};

/// By the rows' names; only of those that passed.
#[derive(Debug)]
pub(crate) struct Report(BTreeMap<String, Last>);

#[derive(Debug, Serialize, Deserialize)]
struct Last {
    told: Told,
    /// How many rows ran in one go with it, itself included.
    together: usize,
}

/// Every row has passed.
#[derive(Debug)]
pub(crate) struct Whole {
    /// In the table's order.
    pub(crate) entries: Vec<Entry>,
    /// Those that ran again, apart from the run of all.
    pub(crate) apart: Vec<&'static str>,
}

impl Report {
    /// As the runs before left it.
    pub(crate) fn read() -> Self {
        let text = std::fs::read_to_string(file()).unwrap_or_else(|_| "{}".to_owned());
        // One of an older form is as good as none.
        Self(serde_json::from_str(&text).unwrap_or_default())
    }

    /// Takes in what a run found.
    pub(crate) fn take(&mut self, entries: &[Entry]) {
        for entry in entries {
            match entry.failure {
                None => {
                    let last = Last { told: entry.told.clone(), together: entries.len() };
                    self.0.insert(entry.row.name.to_owned(), last)
                }
                Some(_) => self.0.remove(entry.row.name),
            };
        }
        let text = serde_json::to_string_pretty(&self.0).expect("counts and words are JSON");
        std::fs::create_dir_all(file().parent().expect("it lies in a directory")).expect("a directory");
        std::fs::write(file(), text + "\n").expect("the report can be written");
    }

    /// `None` while one has not passed.
    pub(crate) fn whole(&self) -> Option<Whole> {
        let entry = |row: &'static Row| {
            let told = self.0.get(row.name)?.told.clone();
            Some(Entry { row, told, failure: None })
        };
        let entries = ROWS.iter().map(entry).collect::<Option<Vec<_>>>()?;
        let apart = ROWS.iter().map(|row| row.name).filter(|name| self.0[*name].together < ROWS.len()).collect();
        Some(Whole { entries, apart })
    }
}

fn file() -> PathBuf {
    services::target_dir().join("chaos/report.json")
}
