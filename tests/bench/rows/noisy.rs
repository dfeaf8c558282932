//! A step that prints as fast as it can, beside 50 quiet ones: whether they notice.
//!
//! Ours is with it, the baseline the same without it. That the noisy log is complete, and that the broker never reached
//! an alarm, are no figures: where they do not hold, nothing was measured.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use longshore_coordinator::core::view::{RunView, StepPhase};
use longshore_protocol::RunId;
use longshore_tests::Fleet;
use reqwest::Client;
use tokio::process::Command;

use crate::drive;
use crate::failure::{Failure, Result};
use crate::figure::{Figure, Goal};
use crate::measure::Row;
use crate::overhear::{now_ms, overhear};
use crate::probe::Probe;
use crate::stand::{self, IMAGE, INSIDE, Stand, said};

const QUIET: usize = 50;

/// A minute of noise.
const NOISE: Duration = Duration::from_mins(1);

/// The quiet ones end one after the other while it lasts, so that each result is one among others' lines: from this
/// many seconds after their start on, evenly.
const FIRST_ENDS_SECS: usize = 8;

/// Fifty containers take some seconds; on a machine that does something else, many.
const STARTS_MAX: Duration = Duration::from_mins(2);

const LEASE: Duration = Duration::from_secs(30);

pub(crate) struct Noisy {
    fleet: Fleet,
    probe: Probe,
    rabbitmqctl: String,
    last: Option<RunView>,
    noise: String,
}

const fn figure(name: &'static str, says: &'static str) -> Figure {
    let baseline = "the same without the noisy step";
    Figure { name, says, unit: "ms", baseline, goal: Goal::RatioAtMost(1.2), limit: None }
}

impl Row for Noisy {
    const FIGURES: &'static [Figure] = &[
        figure(
            "noisy-heartbeat-p50",
            "beside a step that prints as fast as it can: a heartbeat until it is answered, median",
        ),
        figure("noisy-heartbeat-p99", "the same, 99th percentile"),
        figure(
            "noisy-result-p50",
            "beside it: the end of one of 50 quiet steps until a follower knows its result, median",
        ),
        figure("noisy-result-p99", "the same, 99th percentile"),
        figure("noisy-line-p50", "beside it: a line of a quiet step until a follower has it, median"),
        figure("noisy-line-p99", "the same, 99th percentile"),
    ];

    async fn set_up(stand: &Stand) -> Result<Self> {
        let rabbitmqctl = std::env::var("LONGSHORE_TEST_RABBITMQCTL")
            .map_err(|_| Failure::new("LONGSHORE_TEST_RABBITMQCTL is not set: use `make bench`"))?;
        let slots = u32::try_from(QUIET + 1).unwrap_or(u32::MAX);
        let fleet = stand.fleet(slots).await;
        let probe = Probe::join(&fleet, LEASE).await?;
        Ok(Self { fleet, probe, rabbitmqctl, last: None, noise: String::new() })
    }

    async fn ours(&mut self) -> Result<Vec<f64>> {
        self.measured(true).await
    }

    async fn baseline(&mut self) -> Result<Vec<f64>> {
        self.measured(false).await
    }

    fn settings(&self) -> String {
        format!(
            "{QUIET} steps on one worker that print a line twice a second and end one after the other; {} s, by the clock \
             of one host; heartbeats ten a second, of a worker that has nothing else to do",
            NOISE.as_secs()
        )
    }

    fn account(&self) -> String {
        let mut text = format!("{}\n", self.noise);
        if let Some(view) = &self.last {
            let _ = write!(text, "{}", drive::account(view));
        }
        text
    }

    async fn finish(self) -> Result<()> {
        self.probe.leave(&self.fleet).await?;
        stand::end(self.fleet).await;
        Ok(())
    }
}

impl Noisy {
    async fn measured(&mut self, noisy: bool) -> Result<Vec<f64>> {
        let Self { fleet, probe, rabbitmqctl, .. } = self;
        let began = Instant::now();
        let quiet = drive::submit(fleet, &quiet_ones()).await?;
        let measuring = async {
            all_run(fleet, quiet).await?;
            let noise = if noisy { Some((drive::submit(fleet, &noisy_one()).await?, Instant::now())) } else { None };
            if let Some((run, _)) = noise {
                all_run(fleet, run).await?;
            }
            let (from, until) = (now_ms(), Instant::now() + NOISE);
            let heartbeats = probe.measure(until);
            // In the middle of it; on both sides, because to ask costs processor time as well.
            let alarms = async {
                tokio::time::sleep(NOISE / 2).await;
                no_alarm(rabbitmqctl).await
            };
            let (heartbeats, ()) = tokio::try_join!(heartbeats, alarms)?;
            Ok::<_, Failure>((from, now_ms(), heartbeats, noise))
        };
        let (heard, (from, to, heartbeats, noise)) = tokio::try_join!(overhear(fleet, quiet), measuring)?;
        let ran = drive::ends(fleet, quiet, began).await?;
        no_alarm(rabbitmqctl).await?;
        if let Some((run, began)) = noise {
            let ran = drive::ends(fleet, run, began).await?;
            let bytes = complete(fleet, &ran.view).await?;
            let rate = bytes as f64 / 1e6 / NOISE.as_secs_f64();
            self.noise = format!("the noisy step: {bytes} bytes, {rate:.1} MB/s, every line there");
            eprintln!("  {}", self.noise);
        }
        self.last = Some(ran.view);
        let during = |times: Vec<(f64, f64)>| -> Vec<f64> {
            let during = times.into_iter().filter(|(printed, _)| (from..to).contains(printed));
            during.map(|(printed, seen)| (seen - printed).max(0.0)).collect()
        };
        let mut figures = Vec::new();
        for samples in [heartbeats, during(heard.results()), during(heard.lines)] {
            figures.extend([percentile(samples.clone(), 50)?, percentile(samples, 99)?]);
        }
        Ok(figures)
    }
}

fn quiet_ones() -> String {
    let mut pipeline = "name: quiet\nsteps:\n".to_owned();
    let span = usize::try_from(NOISE.as_secs()).unwrap_or_default();
    for n in 0..QUIET {
        let secs = FIRST_ENDS_SECS + n * span / QUIET;
        let _ = writeln!(pipeline, "  - {{name: q{n}, image: \"{IMAGE}\", command: [{INSIDE}, beat, \"{secs}\"]}}");
    }
    pipeline
}

/// More than it can print: none of it is to be left out.
fn noisy_one() -> String {
    let secs = NOISE.as_secs();
    format!(
        "name: noisy\nsteps:\n  - {{name: noisy, image: \"{IMAGE}\", output_max: 1024GiB, command: [{INSIDE}, count, \"{secs}\"]}}\n"
    )
}

/// Waits until every step's command runs, or has run.
async fn all_run(fleet: &Fleet, run: RunId) -> Result<()> {
    let began = Instant::now();
    loop {
        let view = drive::view(fleet, run).await?;
        if view.steps.iter().all(|step| matches!(step.phase, StepPhase::Running | StepPhase::Settled)) {
            return Ok(());
        }
        if began.elapsed() > STARTS_MAX {
            return Err(Failure::new("the steps do not start"));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn no_alarm(rabbitmqctl: &str) -> Result<()> {
    let alarms = said(Command::new(rabbitmqctl).args(["--silent", "eval", "rabbit_alarm:get_alarms()."])).await?;
    if alarms.trim() == "[]" { Ok(()) } else { Err(Failure::new(format!("the broker's alarms: {alarms}"))) }
}

/// Reads the noisy log: every number once, in order, and as many bytes as its worker counted.
async fn complete(fleet: &Fleet, view: &RunView) -> Result<u64> {
    let attempt = drive::last(view.steps.first().ok_or_else(|| Failure::new("a run without steps"))?)?;
    let counted = attempt.output.map(|output| output.total()).unwrap_or_default();
    let http = Client::builder().no_proxy().build()?;
    let url = fleet.url(&format!("/v1/runs/{}/logs?step=noisy&attempt=1", view.summary.run));
    let mut log = http.get(url).send().await?.error_for_status()?;
    let (mut bytes, mut lines, mut rest) = (0_u64, 0_u64, Vec::new());
    while let Some(chunk) = log.chunk().await? {
        bytes += chunk.len() as u64;
        rest.extend_from_slice(&chunk);
        let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        for line in rest[..whole].split_inclusive(|byte| *byte == b'\n') {
            let number = str::from_utf8(line).ok().and_then(|line| line.get(..12)?.parse::<u64>().ok());
            if number != Some(lines) || line.len() != 100 {
                return Err(Failure::new(format!(
                    "line {lines} of the noisy log is {:?}",
                    String::from_utf8_lossy(line)
                )));
            }
            lines += 1;
        }
        rest.drain(..whole);
    }
    if bytes != counted || !rest.is_empty() || lines == 0 {
        return Err(Failure::new(format!("the noisy log has {bytes} bytes of {counted}, {lines} lines")));
    }
    Ok(bytes)
}

fn percentile(mut samples: Vec<f64>, percent: usize) -> Result<f64> {
    samples.sort_by(f64::total_cmp);
    let at = (samples.len() * percent / 100).min(samples.len().saturating_sub(1));
    samples.get(at).copied().ok_or_else(|| Failure::new("nothing was heard"))
}
