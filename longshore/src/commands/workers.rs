//! `longshore workers`: who carries out steps on a fleet.

use longshore_coordinator::core::view::WorkerView;

use crate::cli::{Output, WorkersArgs};
use crate::failure::Failure;
use crate::render::style::{Colour, Style, bytes};
use crate::render::table::{Align, Table};
use crate::render::{json, screen};
use crate::runs;

pub(crate) async fn run(args: &WorkersArgs, output: Output) -> Result<u8, Failure> {
    let workers = runs::fleet(&args.remote)?.workers().await?;
    let text = match output {
        Output::Json => workers.iter().map(|worker| json::text("worker", worker)).collect(),
        Output::Text if workers.is_empty() => {
            "no worker has said hello; start one with `longshore worker`\n".to_owned()
        }
        Output::Text => table(&workers, Style::detect()),
    };
    screen::print(text.as_bytes())?;
    Ok(0)
}

fn table(workers: &[WorkerView], style: Style) -> String {
    let mut table = Table::new([
        ("worker", Align::Left),
        ("host", Align::Left),
        ("pool", Align::Left),
        ("state", Align::Left),
        ("free", Align::Right),
        ("snapshots", Align::Right),
        ("parked", Align::Right),
        ("disk free", Align::Right),
        ("version", Align::Left),
    ]);
    for worker in workers {
        let state = if worker.alive {
            style.paint(Colour::Green, "alive")
        } else {
            style.paint(Colour::Red, &format!("lost, silent for {} ticks", worker.silent_ticks))
        };
        table.row([
            worker.worker.to_string(),
            worker.host.clone(),
            worker.pool.to_string(),
            state,
            format!("{}/{}", worker.slots_free, worker.slots),
            worker.snapshots.to_string(),
            worker.parked.to_string(),
            worker.disk_free_bytes.map(bytes).unwrap_or_default(),
            worker.version.clone(),
        ]);
    }
    table.render()
}
