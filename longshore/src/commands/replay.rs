//! `longshore replay [RUN]`: rebuilds runs from the journal, and compares them with what people are shown.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use longshore_coordinator::replay::{Replay, Replayed, Verdict};
use longshore_protocol::RunId;

use crate::cli::{Output, ReplayArgs};
use crate::failure::Failure;
use crate::render::style::{Colour, Style, counted};
use crate::render::{json, screen};
use crate::runs::pick;
use crate::state::StateDir;

/// Some run is not what its journal says.
const EXIT_DIFFERS: u8 = 1;

pub(crate) async fn run(args: &ReplayArgs, output: Output) -> Result<u8, Failure> {
    let dir = match &args.state {
        Some(dir) => dir.clone(),
        None => StateDir::path()?,
    };
    let stores = stores(&dir, args.run.as_deref())?;
    let mut shown = Shown { output, style: Style::detect(), same: 0, differ: 0 };
    for store in &stores {
        let replay = Replay::open(store).map_err(|error| unreadable(store, &error))?;
        let replayed = replay_store(&replay, args.run.as_deref(), &mut shown).await;
        replay.close().await;
        replayed?;
    }
    shown.end()?;
    Ok(if shown.differ == 0 { 0 } else { EXIT_DIFFERS })
}

/// What coordinators of a Postgres leave in the directory that they share (`driver/shared_dir.rs`): in a coordinator's
/// directory, or in the state directory around that.
const MARKERS: [&str; 2] = ["blobs/shared-by", "coordinator/blobs/shared-by"];

/// A coordinator's directory has one store; a state directory one for each run, and perhaps a coordinator's.
fn stores(dir: &Path, run: Option<&str>) -> Result<Vec<PathBuf>, Failure> {
    let coordinators = [dir.join("coordinator.db"), dir.join("coordinator").join("coordinator.db")];
    let mut found: Vec<PathBuf> = coordinators.into_iter().filter(|store| store.is_file()).collect();
    let mut runs: Vec<RunId> = std::fs::read_dir(dir.join("runs"))
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".db")?.parse().ok())
        .collect();
    runs.sort_unstable_by(|a, b| b.cmp(a));
    if let Some(marker) = MARKERS.iter().map(|marker| dir.join(marker)).find(|marker| marker.is_file()) {
        let which = marker.ancestors().nth(2).unwrap_or(dir).display();
        let words = format!("the journal of {which} is in Postgres, which is not replayed yet");
        if found.is_empty() && runs.is_empty() {
            return Err(Failure::input(words));
        }
        screen::say(&format!("longshore: {words}"));
    }
    if found.is_empty() && runs.is_empty() {
        return Err(Failure::input(format!("there is no journal in {}", dir.display()))
            .mend("name the coordinator's directory, or a state directory, with --state"));
    }
    // One run is in its own store, if it has one; a coordinator's may have it otherwise.
    let meant = run.map(|run| pick(run, &runs)).transpose();
    match meant {
        Ok(Some(run)) => return Ok(vec![dir.join("runs").join(format!("{run}.db"))]),
        Err(failure) if found.is_empty() => return Err(failure),
        Err(_) => {}
        Ok(None) => found.extend(runs.iter().map(|run| dir.join("runs").join(format!("{run}.db")))),
    }
    Ok(found)
}

async fn replay_store(replay: &Replay, run: Option<&str>, shown: &mut Shown) -> Result<(), Failure> {
    let failed = |error: longshore_coordinator::store::StoreError| Failure::infra(error.to_string());
    let runs = replay.runs().await.map_err(failed)?;
    if let Some(name) = run {
        let run = pick(name, &runs)?;
        let replayed = replay.run(run).await.map_err(failed)?;
        return replayed.map_or(Ok(()), |replayed| shown.tell(&replayed));
    }
    shown.tell(&replay.workers().await.map_err(failed)?)?;
    for run in runs {
        if let Some(replayed) = replay.run(run).await.map_err(failed)? {
            shown.tell(&replayed)?;
        }
    }
    Ok(())
}

fn unreadable(store: &Path, error: &longshore_coordinator::store::StoreError) -> Failure {
    Failure::input(format!("{} cannot be read: {error}", store.display()))
}

struct Shown {
    output: Output,
    style: Style,
    same: u64,
    differ: u64,
}

impl Shown {
    fn tell(&mut self, replayed: &Replayed) -> Result<(), Failure> {
        let same = replayed.verdict == Verdict::Same;
        if same {
            self.same += 1;
        } else {
            self.differ += 1;
        }
        let text = match self.output {
            Output::Json => json::text("replayed", replayed),
            // Of the workers there is only something to say where it is wrong.
            Output::Text if replayed.run.is_none() && same => return Ok(()),
            Output::Text => words(replayed, self.style),
        };
        Ok(screen::print(text.as_bytes())?)
    }

    fn end(&self) -> Result<(), Failure> {
        if self.output == Output::Text && self.differ > 0 {
            let words = format!(
                "{} not what the journal says\n",
                if self.differ == 1 { "1 is".to_owned() } else { format!("{} are", self.differ) }
            );
            screen::print(self.style.paint(Colour::Red, &words).as_bytes())?;
        }
        Ok(())
    }
}

fn words(replayed: &Replayed, style: Style) -> String {
    let of = replayed.run.map_or_else(|| "the workers".to_owned(), |run| format!("{run}  {}", replayed.name));
    let entries = counted(u64::try_from(replayed.entries).unwrap_or(u64::MAX), "entry").replace("entrys", "entries");
    match &replayed.verdict {
        Verdict::Same => {
            format!("{of}  {}  {}\n", style.paint(Colour::Green, "same"), style.paint(Colour::Dim, &entries))
        }
        Verdict::Illegal { seq, why } => {
            format!("{of}  {}\n    entry {seq}: {why}\n", style.paint(Colour::Red, "illegal"))
        }
        Verdict::Differs { differences } => {
            let mut text = format!("{of}  {}\n", style.paint(Colour::Red, "differs"));
            for difference in differences {
                let _ = writeln!(text, "    {}", difference.what);
                let _ = writeln!(text, "        journal  {}", difference.journal);
                let _ = writeln!(text, "        shown    {}", difference.table);
            }
            text
        }
    }
}
