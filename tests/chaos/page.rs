//! The table as a page of the documentation.

use std::fmt::Write as _;

use longshore_tests::check::run_command;
use longshore_tests::services;

use crate::table::{Entry, Told};

/// Its marks are replaced, and nothing else of it changes from run to run.
const PAGE: &str = include_str!("page.md");

/// Writes `docs/chaos.md`, of all rows.
pub(crate) fn write(entries: &[Entry]) {
    let page = PAGE.replace("{{table}}", markdown(entries).trim_end()).replace("{{machine}}", &machine());
    std::fs::write(services::root().join("docs/chaos.md"), page).expect("the page can be written");
}

fn markdown(entries: &[Entry]) -> String {
    let mut text = String::from(
        "| row | fault | steps | settled | carried out again | lines lost | containers left | seconds to recover | proof that it bit |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for entry in entries {
        let Told { steps, settled, again, lost, left, proof, .. } = &entry.told;
        let (name, fault, recovered) = (entry.row.name, entry.row.fault, entry.recovered());
        let _ = writeln!(
            text,
            "| `{name}` | {fault} | {steps} | {settled} | {again} | {lost} | {left} | {recovered} | {proof} |"
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
    let broker = run_command("dpkg-query", &["-W", "-f", "${Version}", "rabbitmq-server"]);
    let engine = run_command("dockerd", &["--version"]);
    format!(
        "{cores} cores of {}, Linux {}; RabbitMQ {broker}; {}",
        model.map_or("an unknown processor", |(_, model)| model),
        kernel.trim(),
        engine.trim(),
    )
}
