//! A step that prints as fast as it can, beside 50 quiet ones: whether they notice.
//!
//! Fifty steps run through three parts of one run, on one fleet. At first nothing stands beside them. Then a step does
//! that writes lines into `/dev/null` as fast as it can: the baseline. Then one that prints the same lines, for a
//! minute: ours. A command that never rests takes processor time, printing or not, and on a machine of two cores every
//! process feels that, whatever we do; what is promised is that its *output* is not felt. Both ratios are in the table:
//! the one to a busy step is judged, the one to no step at all is shown. The noise comes last, because what it left in
//! its worker's spool is sent for some time after it.
//!
//! Medians are judged: of results there are some twenty in a part, and the 99th percentile of those is the one that the
//! machine disturbed most. It stands beside each.
//!
//! Where the broker reached an alarm, or a line of the noisy log is another than it should be, nothing was measured.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use longshore_coordinator::core::view::{RunView, StepPhase};
use longshore_protocol::RunId;
use longshore_tests::Fleet;

use crate::drive::{self, now_ms};
use crate::failure::{Failure, Result};
use crate::figure::{Figure, Goal};
use crate::measure::Row;
use crate::overhear::{Heard, overhear};
use crate::probe::Probe;
use crate::stand::{self, IMAGE, INSIDE, Stand};

const QUIET: usize = 50;

/// The parts of a run.
#[derive(Clone, Copy)]
struct Parts {
    /// Nothing beside the quiet ones: 150 heartbeats and 1,500 lines a run.
    alone: Duration,
    /// A busy step: twice that.
    busy: Duration,
    /// A minute of noise.
    noise: Duration,
}

const PARTS: Parts =
    Parts { alone: Duration::from_secs(15), busy: Duration::from_secs(30), noise: Duration::from_mins(1) };

/// Enough for page caches, connections and the allocators' arenas.
const WARMING_UP: Parts =
    Parts { alone: Duration::from_secs(5), busy: Duration::from_secs(5), noise: Duration::from_secs(5) };

/// The quiet ones end one after the other, so that each result is one among others' lines: from this many seconds after
/// their start on, evenly, until the noise is over.
const FIRST_ENDS_SECS: usize = 5;

/// Fifty containers take some seconds; on a machine that does something else, many.
const STARTS_MAX: Duration = Duration::from_mins(2);

/// Whether they run is seen early enough so.
const LOOK: Duration = Duration::from_millis(200);

const LEASE: Duration = Duration::from_secs(30);

pub(crate) struct Noisy {
    fleet: Fleet,
    /// How often the probe has joined it.
    joined: u64,
    /// The broker's, in which it says each alarm.
    log: PathBuf,
    parts: Parts,
    /// Of the last run, in the figures' order.
    baseline: Vec<f64>,
    last: Option<RunView>,
    noise: String,
}

/// Of heartbeats, results and lines, ms: median and 99th percentile each.
type Latencies = [[f64; 2]; 3];

const fn judged(name: &'static str, says: &'static str) -> Figure {
    let baseline = "the same beside a step that is as busy and prints nothing";
    let goal = Goal::RatioAtMost(1.2);
    Figure { name, says, unit: "ms", baseline, goal, limit: None }
}

const fn shown(name: &'static str, says: &'static str, baseline: &'static str) -> Figure {
    Figure { name, says, unit: "ms", baseline, goal: Goal::Shown, limit: None }
}

const P99: &str = "the same, 99th percentile";
const BUSY: &str = "the same beside a step that is as busy and prints nothing";
const ALONE_P50: &str = "the same, median, beside nothing at all";
const NOTHING: &str = "the same beside nothing";

impl Row for Noisy {
    const FIGURES: &'static [Figure] = &[
        judged(
            "noisy-heartbeat-p50",
            "beside a step that prints as fast as it can: a heartbeat until it is answered, median",
        ),
        shown("noisy-heartbeat-p99", P99, BUSY),
        shown("noisy-heartbeat-alone", ALONE_P50, NOTHING),
        judged(
            "noisy-result-p50",
            "beside it: the end of one of 50 quiet steps until a follower knows its result, median",
        ),
        shown("noisy-result-p99", P99, BUSY),
        shown("noisy-result-alone", ALONE_P50, NOTHING),
        judged("noisy-line-p50", "beside it: a line of a quiet step until a follower has it, median"),
        shown("noisy-line-p99", P99, BUSY),
        shown("noisy-line-alone", ALONE_P50, NOTHING),
        Figure {
            name: "noisy-log",
            says: "what is stored of the minute's noise, every line in its place",
            unit: "MB",
            baseline: "what its step says it printed",
            goal: Goal::RatioAtLeast(1.0),
            limit: None,
        },
    ];

    async fn set_up(stand: &Stand) -> Result<Self> {
        let rabbitmqctl = std::env::var("LONGSHORE_TEST_RABBITMQCTL")
            .map_err(|_| Failure::new("LONGSHORE_TEST_RABBITMQCTL is not set: use `make bench`"))?;
        // To ask the broker costs a second of processor time, and misses what was between two questions.
        let log = PathBuf::from(rabbitmqctl).with_file_name("log").join("rabbitmq.log");
        let slots = u32::try_from(QUIET + 1).unwrap_or(u32::MAX);
        let fleet = stand.fleet(slots).await;
        let (parts, baseline) = (WARMING_UP, Vec::new());
        Ok(Self { fleet, joined: 0, log, parts, baseline, last: None, noise: String::new() })
    }

    async fn ours(&mut self) -> Result<Vec<f64>> {
        let figures = self.measured().await;
        self.parts = PARTS;
        figures
    }

    /// It was a part of the same run.
    async fn baseline(&mut self) -> Result<Vec<f64>> {
        Ok(std::mem::take(&mut self.baseline))
    }

    fn settings(&self) -> String {
        format!(
            "{QUIET} steps on one worker that print a line twice a second and end one after the other; {} s beside \
             nothing, {} s beside a busy step, {} s beside one that prints; by the clock of one host; heartbeats ten a \
             second, of a worker that has nothing else to do; alarm of the broker seen: no; {}",
            PARTS.alone.as_secs(),
            PARTS.busy.as_secs(),
            PARTS.noise.as_secs(),
            self.noise
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
        stand::end(self.fleet).await;
        Ok(())
    }
}

/// In the order of the row's.
fn figures(beside: &Latencies, alone: [f64; 3], log: f64) -> Vec<f64> {
    let each = beside.iter().zip(alone).flat_map(|([p50, p99], alone)| [*p50, *p99, alone]);
    each.chain([log]).collect()
}

impl Noisy {
    /// One run of the quiet ones, and what they felt beside the noise. Keeps what is its baseline.
    async fn measured(&mut self) -> Result<Vec<f64>> {
        self.joined += 1;
        let Self { fleet, joined, parts, .. } = &*self;
        let parts = *parts;
        let began = Instant::now();
        let quiet = drive::submit(fleet, &quiet_ones(parts)).await?;
        let measuring = async {
            all_run(fleet, quiet).await?;
            let mut probe = Probe::join(fleet, LEASE, *joined).await?;
            let alone = during(&mut probe, parts.alone).await?;
            let busy = begin(fleet, "burn", parts.busy).await?;
            let beside_busy = during(&mut probe, parts.busy).await?;
            drive::ends(fleet, busy, Instant::now()).await?;
            let noisy = begin(fleet, "count", parts.noise).await?;
            let beside_noise = during(&mut probe, parts.noise).await?;
            probe.leave(fleet).await?;
            Ok::<_, Failure>(([alone, beside_busy, beside_noise], noisy))
        };
        let (heard, (felt, noisy)) = tokio::try_join!(overhear(fleet, quiet), measuring)?;
        let quiet = drive::ends(fleet, quiet, began).await?;
        let noisy = drive::ends(fleet, noisy, Instant::now()).await?;
        self.last = Some(quiet.view);
        let [printed, stored] = self.complete(&noisy.view).await?;
        self.no_alarm()?;
        let [alone, beside_busy, beside_noise] = felt.map(|part| part.latencies(&heard));
        let (alone, beside_noise) = (alone?.map(|[p50, _]| p50), beside_noise?);
        self.baseline = figures(&beside_busy?, alone, printed);
        Ok(figures(&beside_noise, beside_noise.map(|[p50, _]| p50), stored))
    }

    /// Reads the noisy log: every number once, in order. Answers how many MB its step
    /// says that it printed, and how many are here.
    async fn complete(&mut self, view: &RunView) -> Result<[f64; 2]> {
        let url = self.fleet.url(&format!("/v1/runs/{}/logs?step=other&attempt=1", view.summary.run));
        let mut log = drive::http()?.get(url).send().await?.error_for_status()?;
        let (mut lines, mut printed, mut rest) = (0_u64, None, Vec::new());
        while let Some(chunk) = log.chunk().await? {
            rest.extend_from_slice(&chunk);
            let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            for line in rest[..whole].split_inclusive(|byte| *byte == b'\n') {
                let text = str::from_utf8(line).unwrap_or_default();
                if let Some(bytes) = text.strip_prefix("printed ") {
                    printed = Some(bytes.trim_end().parse::<u64>()?);
                } else if line.len() == LINE && text.get(..12).and_then(|n| n.parse().ok()) == Some(lines) {
                    lines += 1;
                } else {
                    return Err(Failure::new(format!("line {lines} of the noisy log is {text:?}")));
                }
            }
            rest.drain(..whole);
        }
        let printed = printed.filter(|bytes| *bytes > 0 && rest.is_empty());
        let printed = printed.ok_or_else(|| Failure::new("the noisy log has no end"))?;
        let stored = lines * LINE as u64;
        let missing = printed.saturating_sub(stored);
        let rate = printed as f64 / 1e6 / self.parts.noise.as_secs_f64();
        self.noise = format!(
            "bytes of the last noisy log: {printed} printed, {stored} stored, {missing} missing, {rate:.1} MB/s"
        );
        eprintln!("  alarm seen: no; {}", self.noise);
        Ok([printed, stored].map(|bytes| bytes as f64 / 1e6))
    }

    /// The broker says each alarm in its log, and its log is of this benchmark alone.
    fn no_alarm(&self) -> Result<()> {
        let log = std::fs::read_to_string(&self.log).map_err(|e| Failure::from(e).during("the broker's log"))?;
        match log.lines().find(|line| line.contains("alarm set")) {
            Some(alarm) => Err(Failure::new(format!("the broker reached an alarm: {alarm}"))),
            None => Ok(()),
        }
    }
}

/// What the helper's lines are long.
const LINE: usize = 100;

/// A part of a run, by the wall clock, and how long heartbeats took in it.
struct Part {
    from: f64,
    to: f64,
    heartbeats: Vec<f64>,
}

async fn during(probe: &mut Probe, time: Duration) -> Result<Part> {
    let from = now_ms();
    let heartbeats = probe.measure(Instant::now() + time).await?;
    Ok(Part { from, to: now_ms(), heartbeats })
}

impl Part {
    /// Of what was printed in it.
    fn latencies(&self, heard: &Heard) -> Result<Latencies> {
        let took = |times: &[(f64, f64)]| -> Vec<f64> {
            let of_part = times.iter().filter(|(printed, _)| (self.from..self.to).contains(printed));
            of_part.map(|(printed, seen)| (seen - printed).max(0.0)).collect()
        };
        let [mut heartbeats, mut results, mut lines] =
            [self.heartbeats.clone(), took(&heard.results()), took(&heard.lines)];
        let both = |samples: &mut [f64]| Ok::<_, Failure>([percentile(samples, 50)?, percentile(samples, 99)?]);
        Ok([both(&mut heartbeats)?, both(&mut results)?, both(&mut lines)?])
    }
}

fn quiet_ones(parts: Parts) -> String {
    let mut pipeline = "name: quiet\nsteps:\n".to_owned();
    let span = usize::try_from((parts.alone + parts.busy + parts.noise).as_secs()).unwrap_or_default();
    for n in 0..QUIET {
        let secs = FIRST_ENDS_SECS + n * span / QUIET;
        let _ = writeln!(pipeline, "  - {{name: q{n}, image: \"{IMAGE}\", command: [{INSIDE}, beat, \"{secs}\"]}}");
    }
    pipeline
}

/// Starts a step that does something as fast as it can. `output_max` is more than it can print: none of it is to be left
/// out.
async fn begin(fleet: &Fleet, act: &str, time: Duration) -> Result<RunId> {
    let secs = time.as_secs();
    let pipeline = format!(
        "name: other\nsteps:\n  - {{name: other, image: \"{IMAGE}\", output_max: 1024GiB, command: [{INSIDE}, {act}, \"{secs}\"]}}\n"
    );
    let run = drive::submit(fleet, &pipeline).await?;
    all_run(fleet, run).await?;
    Ok(run)
}

/// Waits until every step's command runs, or has run.
async fn all_run(fleet: &Fleet, run: RunId) -> Result<()> {
    drive::until("the steps start", LOOK, STARTS_MAX, async || {
        let view = drive::view(fleet, run).await?;
        let run = view.steps.iter().all(|step| matches!(step.phase, StepPhase::Running | StepPhase::Settled));
        Ok(run.then_some(()))
    })
    .await
}

fn percentile(samples: &mut [f64], percent: usize) -> Result<f64> {
    samples.sort_by(f64::total_cmp);
    let at = (samples.len() * percent / 100).min(samples.len().saturating_sub(1));
    samples.get(at).copied().ok_or_else(|| Failure::new("nothing was heard"))
}
