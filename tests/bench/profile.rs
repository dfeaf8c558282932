//! A profile of one run, made while it runs: who used the processors, and in which functions.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Instant;

use tokio::process::{Child, Command};

use crate::failure::{Failure, Result};
use crate::proc;
use crate::stand::Stand;

/// Samples a second on each processor: prime, so that nothing that beats in tens hides between them.
const FREQUENCY: &str = "199";

/// Rows of the table of functions; what is below half a percent explains nothing.
const PERCENT_MIN: &str = "0.5";

/// What [`proc::cpu_seconds`] tells.
type Times = BTreeMap<(u32, u64), (String, f64)>;

/// A profile that is being made.
pub(crate) struct Profile {
    name: &'static str,
    file: PathBuf,
    samples: PathBuf,
    perf: Option<Child>,
    cpu: Times,
    busy: f64,
    began: Instant,
}

impl Profile {
    pub(crate) fn begin(stand: &Stand, name: &'static str) -> Result<Self> {
        let dir = stand.dir.join("profiles");
        std::fs::create_dir_all(&dir)?;
        let samples = dir.join(format!("{name}.perf"));
        // All of the machine: dockerd, containerd, runc, the broker and the disk are part of every answer. Where perf
        // is not to be had, processor time by process has to do.
        let perf = Command::new("perf")
            .args(["record", "--quiet", "--all-cpus", "--freq", FREQUENCY, "--output"])
            .arg(&samples)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .ok();
        let file = dir.join(format!("{name}.txt"));
        Ok(Self {
            name,
            file,
            samples,
            perf,
            cpu: proc::cpu_seconds(),
            busy: proc::busy_seconds(),
            began: Instant::now(),
        })
    }

    /// Writes it; `account` is what the row itself says of where its time went.
    pub(crate) async fn end(self, account: &str) -> Result<PathBuf> {
        let wall = self.began.elapsed().as_secs_f64();
        let (after, busy) = (proc::cpu_seconds(), proc::busy_seconds() - self.busy);
        let mut text =
            format!("{}: one more run of ours, {wall:.2} s with its setting up and clearing away\n", self.name);
        if !account.is_empty() {
            let _ = write!(text, "\nwhere the time went, by the row's own account\n{account}\n");
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let _ = write!(text, "\nprocessor time by command (of {wall:.2} s x {cores} cores)\n");
        text += &used(&self.cpu, &after, busy);
        text += &match self.perf {
            Some(perf) => functions(perf, &self.samples).await?,
            None => "\nno perf on this machine: functions are not told apart\n".to_owned(),
        };
        std::fs::write(&self.file, text)?;
        Ok(self.file)
    }
}

/// A line a command, the busiest first. What is left of `busy`, all that the processors did, was of processes that came
/// and went meanwhile, runc and the Engine's helpers above all.
fn used(before: &Times, after: &Times, busy: f64) -> String {
    let mut spent: BTreeMap<&str, f64> = BTreeMap::new();
    for (process, (command, seconds)) in after {
        let earlier = before.get(process).map_or(0.0, |(_, earlier)| *earlier);
        *spent.entry(command).or_default() += seconds - earlier;
    }
    let others = busy - spent.values().sum::<f64>();
    spent.insert("(short-lived processes, interrupts)", others);
    let mut spent: Vec<_> = spent.into_iter().filter(|(_, seconds)| *seconds >= 0.01).collect();
    spent.sort_by(|a, b| b.1.total_cmp(&a.1));
    spent.iter().fold(String::new(), |mut text, (command, seconds)| {
        let _ = writeln!(text, "{seconds:>9.2} s  {command}");
        text
    })
}

/// Perf's columns are as wide as their widest entry, and those of branch counters, which few machines have, are dashes.
fn row(line: &str) -> String {
    let mut words = line.split_whitespace();
    let (share, command, object) = (words.next(), words.next(), words.next());
    let symbol: Vec<&str> = words.filter(|word| *word != "-").collect();
    let [share, command, object] = [share, command, object].map(Option::unwrap_or_default);
    format!("{share:>7}  {command:<18} {object:<24} {}", symbol.join(" "))
}

async fn functions(mut perf: Child, samples: &std::path::Path) -> Result<String> {
    if let Some(pid) = perf.id() {
        // INT is how perf is told that it has seen enough.
        Command::new("kill").args(["-INT", &pid.to_string()]).status().await?;
    }
    perf.wait().await?;
    let report = Command::new("perf")
        .args(["report", "--stdio", "--quiet", "--sort", "comm,dso,symbol", "--percent-limit", PERCENT_MIN, "--input"])
        .arg(samples)
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|e| Failure::from(e).during("perf report"))?;
    let _ = std::fs::remove_file(samples);
    let lines = String::from_utf8_lossy(&report.stdout);
    let lines = lines.lines().filter(|line| !line.trim().is_empty());
    let table: Vec<String> = lines.map(row).collect();
    if table.is_empty() {
        return Ok("\nperf saw nothing: functions are not told apart\n".to_owned());
    }
    Ok(format!("\nfunctions, by perf, all processors, {FREQUENCY} Hz\n{}\n", table.join("\n")))
}
