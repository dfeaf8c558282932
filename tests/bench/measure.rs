//! How a row is measured: set up once, then ours and the baseline in turn.

use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;
use std::time::Instant;

use futures_util::FutureExt as _;

use crate::failure::{Failure, Result};
use crate::figure::{Entry, Figure, Pair};
use crate::profile::Profile;
use crate::stand::Stand;

/// Something that is measured beside its baseline. It may give several figures at once, a rate and a size say.
///
/// Both sides are set up before the first run and idle while the other one is measured: what they share is the
/// machine's mood, which is what taking them in turn is for.
pub(crate) trait Row: Sized {
    /// What [`ours`](Self::ours) and [`baseline`](Self::baseline) answer with, in this order.
    const FIGURES: &'static [Figure];

    /// Starts what is needed.
    async fn set_up(stand: &Stand) -> Result<Self>;

    /// One run of ours.
    async fn ours(&mut self) -> Result<Vec<f64>>;

    /// One run of the baseline.
    async fn baseline(&mut self) -> Result<Vec<f64>>;

    /// How the baseline is set up, what was tried for it included.
    fn settings(&self) -> String;

    /// Where the time of the last run of ours went, as far as it says itself. Goes into a profile.
    fn account(&self) -> String {
        String::new()
    }

    /// Ends what was started.
    async fn finish(self) -> Result<()>;
}

/// Runs a row to its end. The harness of the tests panics where something does not answer: of one row, that.
pub(crate) async fn measure<R: Row>(stand: &Stand, runs: usize) -> Result<Vec<Entry>> {
    let measured = AssertUnwindSafe(in_turn::<R>(stand, runs)).catch_unwind().await;
    measured.unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().cloned();
        let words = words.or_else(|| panic.downcast_ref::<&str>().map(|words| (*words).to_owned()));
        Err(Failure::new(words.unwrap_or_else(|| "it panicked".to_owned())))
    })
}

async fn in_turn<R: Row>(stand: &Stand, runs: usize) -> Result<Vec<Entry>> {
    let began = Instant::now();
    let mut row = R::set_up(stand).await?;
    // Page cache, connections, the allocators' arenas: the first run of either side pays for them.
    row.ours().await.map_err(|failure| failure.during("warming up"))?;
    row.baseline().await.map_err(|failure| failure.during("warming up the baseline"))?;
    let mut pairs: Vec<Vec<Pair>> = vec![Vec::new(); R::FIGURES.len()];
    for run in 1..=runs {
        let values = row.ours().await?;
        let baselines = row.baseline().await?;
        let mut shown = String::new();
        for (at, figure) in R::FIGURES.iter().enumerate() {
            let (Some(&value), Some(&baseline)) = (values.get(at), baselines.get(at)) else {
                return Err(Failure::new(format!("{} was not measured", figure.name)));
            };
            pairs[at].push(Pair { value, baseline });
            let _ = write!(shown, "  {} {value:.3} | {baseline:.3} {}", figure.name, figure.unit);
        }
        eprintln!("  run {run}/{runs}:{shown}");
    }
    let settings = row.settings();
    let measured = R::FIGURES.iter().zip(pairs).map(|(figure, runs)| Entry::of(figure, runs, &settings));
    let mut entries: Vec<Entry> = measured.collect();
    if entries.iter().any(|entry| !entry.holds) {
        // Made in this run, of one more run of the same: a picture of what was just measured.
        let profile = Profile::begin(stand, R::FIGURES[0].name)?;
        let ran = row.ours().await;
        let file = profile.end(&row.account()).await?;
        ran?;
        for entry in entries.iter_mut().filter(|entry| !entry.holds) {
            entry.profile = Some(file.display().to_string());
        }
    }
    row.finish().await?;
    eprintln!("  {:.0} s", began.elapsed().as_secs_f64());
    Ok(entries)
}
