//! The table as a page of the documentation.

use std::fmt::Write as _;

use longshore_tests::check::run_command;
use longshore_tests::services;

use crate::report::Whole;
use crate::table::{Entry, Told};

/// Its marks are replaced, and nothing else of it changes from run to run.
const PAGE: &str = include_str!("page.md");

/// Writes `docs/chaos.md`, of all rows.
pub(crate) fn write(Whole { entries, apart }: &Whole) {
    let page = PAGE
        .replace("{{runs}}", &runs(entries.len(), apart))
        .replace("{{table}}", markdown(entries).trim_end())
        .replace("{{machine}}", &machine());
    std::fs::write(services::root().join("docs/chaos.md"), page).expect("the page can be written");
}

/// What ran together: a fault in a row of its own shows nothing of what the rows before it left.
fn runs(rows: usize, apart: &[&str]) -> String {
    let names = apart.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match apart.len() {
        0 => format!("all {rows} rows in one go."),
        some if some < rows => format!("{} rows in one go; apart from it {names}.", rows - some),
        _ => format!("{rows} rows, in several goes."),
    }
}

fn markdown(entries: &[Entry]) -> String {
    let mut text = String::from(
        "| row | fault | steps | settled | carried out again | lines lost | containers left | seconds to recover | limit | proof that it bit |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    for entry in entries {
        let Told { steps, settled, again, lost, left, proof, .. } = &entry.told;
        let (name, fault) = (entry.row.name, entry.row.fault);
        let (recovered, limit) = (entry.recovered(), entry.limit());
        let _ = writeln!(
            text,
            "| `{name}` | {fault} | {steps} | {settled} | {again} | {lost} | {left} | {recovered} | {limit} | {proof} |"
        );
    }
    text
}

/// What all of it ran on.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let model = read("/proc/cpuinfo");
    let model = model.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    let version = |package| run_command("dpkg-query", &["-W", "-f", "${Version}", package]);
    let (broker, store) = (version("rabbitmq-server"), version("postgresql"));
    let engine = run_command("dockerd", &["--version"]);
    format!(
        "{cores} cores of {}, Linux {}; RabbitMQ {broker}; Postgres {store}; {}",
        model.map_or("an unknown processor", |(_, model)| model),
        kernel.trim(),
        engine.trim(),
    )
}
