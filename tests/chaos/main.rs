//! `make test-chaos`: a fleet under faults, on the real thing.
//!
//! A [`rows`]' entry is one fault. Each stands on the services of the [`stand`], starts a fleet of its own as a
//! [`scene`], gives it a [`load`] before, during and after the fault, does the fault ([`broker`], [`net`], [`disk`],
//! [`signal`]) and proves that it bit; what is left is counted at the end, and [`table`] prints it;
//! [`report`] keeps every row's last result for the [`page`].
//!
//! Without arguments, as within `make test`, the quick rows run. `LONGSHORE_CHAOS_ROWS` names others: `all`, `list`, or
//! names with commas between. Arguments are those of any test: words, one of which a row's name must contain.

mod broker;
mod disk;
mod load;
mod net;
mod page;
mod recovery;
mod report;
mod rows;
mod scene;
mod signal;
mod stand;
mod table;

use std::process::ExitCode;
use std::time::Instant;

use crate::report::Report;
use crate::rows::{ROWS, Row};
use crate::stand::Stand;
use crate::table::Entry;

fn main() -> ExitCode {
    let wanted = std::env::var("LONGSHORE_CHAOS_ROWS").unwrap_or_default();
    // Options are the test harness's: `--nocapture`, say.
    let words: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if wanted == "list" {
        for row in ROWS {
            println!("{:<24} {}{}", row.name, row.fault, if row.quick { " (quick)" } else { "" });
        }
        return ExitCode::SUCCESS;
    }
    match choose(&wanted, &words) {
        Ok(rows) => run(&rows, !wanted.is_empty()),
        Err(unknown) => {
            eprintln!("chaos: no row is named {unknown}; `scripts/chaos.sh --list` names them");
            ExitCode::from(2)
        }
    }
}

/// The rows that are meant, in the table's order; `Err` with a name that no row has.
fn choose(wanted: &str, words: &[String]) -> Result<Vec<&'static Row>, String> {
    let names: Vec<&str> = wanted.split(',').filter(|name| !name.is_empty()).collect();
    if let Some(unknown) = names.iter().find(|name| **name != "all" && ROWS.iter().all(|row| row.name != **name)) {
        return Err((*unknown).to_owned());
    }
    let named = |row: &&Row| match names[..] {
        [] => row.quick,
        ["all"] => true,
        _ => names.contains(&row.name),
    };
    let filtered = |row: &&Row| words.is_empty() || words.iter().any(|word| row.name.contains(word.as_str()));
    Ok(ROWS.iter().filter(named).filter(filtered).collect())
}

fn run(rows: &[&'static Row], named: bool) -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let began = Instant::now();
    let mut entries = Vec::new();
    for (number, row) in (1..).zip(rows) {
        eprintln!("[{number}/{}] {}: {}", rows.len(), row.name, row.fault);
        let stand = Stand::find();
        // In a task of its own: whatever is wrong panics, and is that row's result.
        let told = runtime.block_on(async { tokio::spawn((row.act)(stand)).await });
        let entry = Entry::of(row, told);
        eprintln!("{}", entry.line());
        for more in entry.failure.iter().flat_map(|failure| failure.lines().skip(1)) {
            eprintln!("  {more}");
        }
        entries.push(entry);
    }
    println!("\n{}", table::table(&entries));
    let failed = entries.iter().filter(|entry| entry.failure.is_some()).count();
    // The quick rows within `make test` are no run to read figures from.
    if named {
        let mut report = Report::read();
        report.take(&entries);
        if let Some(whole) = report.whole() {
            page::write(&whole);
            eprintln!("wrote docs/chaos.md");
        }
    }
    eprintln!("took {:.0} s", began.elapsed().as_secs_f64());
    println!("{} passed, {failed} failed", entries.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
