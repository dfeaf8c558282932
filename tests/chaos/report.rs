//! The last result of every row, kept from run to run: single rows can be run again for better figures, and the page has
//! all of them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use longshore_tests::services;

use crate::rows::{ROWS, Row};
use crate::table::{Entry, Told};

/// By the rows' names; only of those that passed.
#[derive(Debug)]
pub(crate) struct Report(BTreeMap<String, Told>);

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
                None => self.0.insert(entry.row.name.to_owned(), entry.told.clone()),
                Some(_) => self.0.remove(entry.row.name),
            };
        }
        let text = serde_json::to_string_pretty(&self.0).expect("counts and words are JSON");
        std::fs::create_dir_all(file().parent().expect("it lies in a directory")).expect("a directory");
        std::fs::write(file(), text + "\n").expect("the report can be written");
    }

    /// Every row's, in the table's order; `None` while one has not passed.
    pub(crate) fn whole(&self) -> Option<Vec<Entry>> {
        let entry = |row: &'static Row| {
            let told = self.0.get(row.name)?.clone();
            Some(Entry { row, told, failure: None })
        };
        ROWS.iter().map(entry).collect()
    }
}

fn file() -> PathBuf {
    services::target_dir().join("chaos/report.json")
}
