//! Makes a schedule that fails shorter, for as long as it still fails.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::plan::{Plan, RunPlan};
use crate::schedule;
use crate::world::Noise;

/// Looks for a shorter one no longer than this: where nothing settles any more, each takes a while.
const LOOKS_FOR: Duration = Duration::from_secs(10);

/// The shortest schedule that was found to fail as well.
pub fn shrink(plan: &Plan, dir: &Path) -> Plan {
    let mut shortest = plan.clone();
    let began = Instant::now();
    loop {
        let smaller = candidates(&shortest).into_iter().find(|candidate| {
            began.elapsed() < LOOKS_FOR && !schedule::run(candidate, dir, false).violations.is_empty()
        });
        match smaller {
            Some(smaller) => shortest = smaller,
            None => return shortest,
        }
    }
}

/// Everything that is one thing less, the largest things first.
fn candidates(plan: &Plan) -> Vec<Plan> {
    let mut all = Vec::new();
    let mut with = |change: &dyn Fn(&mut Plan)| {
        let mut candidate = plan.clone();
        change(&mut candidate);
        all.push(candidate);
    };
    if plan.runs.len() > 1 {
        for run in 0..plan.runs.len() {
            with(&|plan| {
                plan.runs.remove(run);
            });
        }
    }
    for fault in 0..plan.faults.len() {
        with(&|plan| {
            plan.faults.remove(fault);
        });
    }
    for kind in kinds() {
        if *kind(&mut plan.noise.clone()) > 0 {
            with(&|plan| *kind(&mut plan.noise) = 0);
        }
    }
    for run in 0..plan.runs.len() {
        for step in (0..plan.runs[run].steps.len()).rev().filter(|_| plan.runs[run].steps.len() > 1) {
            with(&|plan| plan.runs[run].without(step));
        }
        if plan.runs[run].cancelled_ms.is_some() || plan.runs[run].timeout_s.is_some() {
            with(&|plan| (plan.runs[run].cancelled_ms, plan.runs[run].timeout_s) = (None, None));
        }
    }
    if plan.coordinators > 1 && !plan.faults.iter().any(|(_, fault)| fault.kind().starts_with("coordinator")) {
        with(&|plan| plan.coordinators = 1);
    }
    for run in 0..plan.runs.len() {
        for step in 0..plan.runs[run].steps.len() {
            let planned = &plan.runs[run].steps[step];
            if planned.exclusive || planned.grouped {
                with(&|plan| {
                    let step = &mut plan.runs[run].steps[step];
                    (step.exclusive, step.grouped) = (false, false);
                });
            }
            let planned = &plan.runs[run].steps[step];
            if planned.cached || planned.always || planned.retries > 0 || planned.lines > 0 || planned.errors > 0 {
                with(&|plan| {
                    let step = &mut plan.runs[run].steps[step];
                    (step.cached, step.always, step.retries, step.lines, step.errors) = (false, false, 0, 0, 0);
                });
            }
        }
    }
    all
}

/// Each kind of noise.
fn kinds() -> [fn(&mut Noise) -> &mut u64; 9] {
    [
        |noise| &mut noise.publish_lost,
        |noise| &mut noise.confirm_lost,
        |noise| &mut noise.repeated,
        |noise| &mut noise.ack_lost,
        |noise| &mut noise.delayed,
        |noise| &mut noise.commit_failed,
        |noise| &mut noise.commit_unanswered,
        |noise| &mut noise.commit_slow,
        |noise| &mut noise.killed,
    ]
}

impl RunPlan {
    /// One step less; what went on from it starts anew.
    fn without(&mut self, at: usize) {
        self.steps.remove(at);
        for step in &mut self.steps {
            step.from = step.from.filter(|from| *from != at).map(|from| from - usize::from(from > at));
            step.needs.retain(|needed| *needed != at);
            for needed in &mut step.needs {
                *needed -= usize::from(*needed > at);
            }
        }
    }
}

/// A schedule in words.
pub fn words(plan: &Plan) -> String {
    let mut lines = vec![format!("{} coordinators, workers with slots {:?}", plan.coordinators, plan.workers)];
    for run in &plan.runs {
        let cancelled = run.cancelled_ms.map(|ms| format!(", cancelled at {ms} ms")).unwrap_or_default();
        lines.push(format!("run {} submitted at {} ms{cancelled}", run.id, run.submitted_ms));
        lines.extend(run.steps.iter().map(|step| format!("  {step:?}")));
    }
    if plan.noise != Noise::default() {
        lines.push(format!("{:?}", plan.noise));
    }
    lines.extend(plan.faults.iter().map(|(at, fault)| format!("at {at} ms {fault:?}")));
    lines.join("\n")
}
