//! `make bench`: Longshore beside what people use today, on this machine, in one run.
//!
//! [`rows`] are what is measured; [`measure`] runs each in turn with its baseline; [`figure`] says what is wanted of it
//! and whether it holds; [`report`] writes `target/bench/report.json`, a table and `docs/benchmarks.md`; [`profile`]
//! shows why a goal does not hold. Baselines are [`naive`] (the Engine's API in a loop), [`celery`], and the `docker`
//! program of the [`stand`], which is what every row stands on. [`drive`] submits and watches runs,
//! [`overhear`] notes when what is said of them is heard, and [`probe`] how soon a heartbeat is.

mod celery;
mod drive;
mod failure;
mod figure;
mod measure;
mod naive;
mod options;
mod overhear;
mod probe;
mod proc;
mod profile;
mod report;
mod rows;
mod stand;

use std::process::ExitCode;
use std::time::Instant;

use crate::failure::Result;
use crate::options::{Options, USAGE};
use crate::rows::Name;
use crate::rows::{noop, scale};
use crate::stand::Stand;

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == noop::WORKERS_COMMAND) {
        return ended(noop::workers(&args[1..]).await.map(|()| Vec::new()));
    }
    if args.first().is_some_and(|arg| arg == scale::COMMAND) {
        return ended(scale::said(&args[1..]).map(|()| Vec::new()));
    }
    match Options::parse(args) {
        Ok(Options::List) => {
            list();
            ExitCode::SUCCESS
        }
        Ok(Options::Run { rows, runs }) => ended(Box::pin(run(&rows, runs)).await),
        Err(words) => {
            eprintln!("{words}\n\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn list() {
    for name in Name::ALL {
        for figure in name.figures() {
            println!("{:<14} {:<28} {}; beside {}", name.word(), figure.name, figure.says, figure.baseline);
        }
    }
}

/// Everything that makes the report worthless, said; none of it: success.
fn ended(complaints: Result<Vec<String>>) -> ExitCode {
    let complaints = complaints.unwrap_or_else(|failure| vec![failure.to_string()]);
    for complaint in &complaints {
        eprintln!("longshore-bench: {complaint}");
    }
    if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run(rows: &[Name], runs: usize) -> Result<Vec<String>> {
    let began = Instant::now();
    let stand = Stand::find().await?;
    let (mut entries, mut complaints) = (Vec::new(), Vec::new());
    for (number, row) in (1..).zip(rows) {
        eprintln!("[{number}/{}] {} (ours | baseline)", rows.len(), row.word());
        match row.measure(&stand, runs).await {
            Ok(measured) => entries.extend(measured),
            Err(failure) => {
                eprintln!("  {failure}");
                complaints.push(format!("{}: not measured: {failure}", row.word()));
            }
        }
    }
    complaints.extend(entries.iter().flat_map(figure::Entry::complaints));
    let file = stand.dir.join("report.json");
    report::write_json(&file, &entries)?;
    println!("\n{}", report::table(&entries));
    let machine = stand.machine().await?;
    println!("{machine}");
    // Some rows only, or holes in the table: that is no page to read from.
    if rows == Name::ALL && complaints.is_empty() {
        report::write_page(&entries, &machine, runs)?;
        eprintln!("wrote docs/benchmarks.md");
    }
    eprintln!("wrote {}; took {:.0} s", file.display(), began.elapsed().as_secs_f64());
    Ok(complaints)
}
