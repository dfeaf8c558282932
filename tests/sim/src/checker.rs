//! What must hold of every schedule at its end. It knows the plan, the journal, the logs and the Engines, and nothing of
//! what is in anybody's memory.

use std::collections::{BTreeMap, BTreeSet};

use longshore_coordinator::core::entry::{End, Entry, LogGap};
use longshore_coordinator::core::{Core, CoreConfig};
use longshore_coordinator::store::log_rows::{Selection, StoredContent};
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::output::{Offsets, Stream};
use longshore_protocol::{Attempt, ExecutionId, Fence, Outcome, SnapshotId, StepName, WorkerId};

use crate::plan::{Plan, RunPlan, StepPlan};
use crate::store::Tables;

/// Everything that is wrong with what is in the store, in words.
pub fn check(plan: &Plan, tables: &Tables) -> Vec<String> {
    let mut checker = Checker { plan, tables, wrong: Vec::new(), tries: BTreeMap::new(), settled: BTreeMap::new() };
    checker.journal();
    checker.steps();
    checker.logs();
    checker.replay();
    checker.wrong
}

type Key = (ExecutionId, Attempt);

#[derive(Default)]
struct Try {
    owners: Vec<WorkerId>,
    end: Option<End>,
    closed: Option<LogGap>,
}

struct Checker<'a> {
    plan: &'a Plan,
    tables: &'a Tables,
    wrong: Vec<String>,
    tries: BTreeMap<Key, Try>,
    settled: BTreeMap<ExecutionId, Outcome>,
}

impl Checker<'_> {
    fn wrong(&mut self, how: String) {
        self.wrong.push(how);
    }

    /// Promise 1, and P5, P11, P14, P21 as the journal tells of them.
    fn journal(&mut self) {
        let mut verdicts = BTreeSet::new();
        let mut in_group: BTreeSet<Key> = BTreeSet::new();
        let grouped: BTreeSet<ExecutionId> = self.plan.runs.iter().flat_map(RunPlan::grouped).collect();
        for (seq, row) in &self.tables.journal {
            if row.by != row.epoch {
                self.wrong.push(format!("#{seq} was written by epoch {} when epoch {} led (P21)", row.by, row.epoch));
            }
            match &row.entry {
                Entry::Accepted { execution, attempt, worker, .. } => {
                    let of = self.tries.entry((*execution, *attempt)).or_default();
                    of.owners.push(worker.clone());
                    if of.owners.len() > 1 {
                        self.wrong.push(format!("#{seq} {execution} {attempt} has a second owner (P5)"));
                    }
                }
                Entry::Ended { execution, attempt, end, .. } => {
                    in_group.remove(&(*execution, *attempt));
                    let of = self.tries.entry((*execution, *attempt)).or_default();
                    if self.plan.is_quiet() && !matches!(end, End::Finished { .. } | End::Withdrawn) {
                        self.wrong.push(format!("#{seq} {execution} {attempt} is {end:?} without a fault"));
                    }
                    if of.end.replace(end.clone()).is_some() {
                        self.wrong.push(format!("#{seq} {execution} {attempt} is over twice (P11)"));
                    }
                }
                Entry::LogClosed { execution, attempt, gap, .. } => {
                    let of = self.tries.entry((*execution, *attempt)).or_default();
                    if of.closed.replace(*gap).is_some() {
                        self.wrong.push(format!("#{seq} the log of {execution} {attempt} is closed twice (P14)"));
                    }
                }
                Entry::Dispatched { execution, attempt, .. } if grouped.contains(execution) => {
                    if !in_group.is_empty() {
                        self.wrong.push(format!("#{seq} {execution} is dispatched beside {in_group:?} of its group"));
                    }
                    in_group.insert((*execution, *attempt));
                }
                Entry::Dispatched { execution, .. } if self.settled.contains_key(execution) => {
                    self.wrong.push(format!("#{seq} {execution} is dispatched after it was settled (P11)"));
                }
                Entry::Settled { execution, outcome, .. }
                    if self.settled.insert(*execution, outcome.clone()).is_some() =>
                {
                    self.wrong.push(format!("#{seq} {execution} is settled twice (promise 1)"));
                }
                Entry::RunSettled { run, .. } if !verdicts.insert(*run) => {
                    self.wrong.push(format!("#{seq} {run} is settled twice (promise 1)"));
                }
                _ => {}
            }
        }
        for run in &self.plan.runs {
            if !verdicts.contains(&run.id) {
                self.wrong(format!("{} was taken and never settled (promise 4)", run.id));
            }
        }
    }

    /// Promise 2: a verdict is one that the command can have given.
    fn steps(&mut self) {
        for run in &self.plan.runs {
            let Some(state) = self.tables.run(run.id) else { continue };
            for view in &state.view.steps {
                let Some(step) = run.steps.iter().find(|step| step.name == view.step.as_str()) else { continue };
                let execution = ExecutionId::of_step(run.id, &StepName::from(step.name.as_str()));
                let Some(settled) = self.settled.get(&execution).cloned() else { continue };
                if view.outcome.as_ref() != Some(&settled) {
                    self.wrong(format!(
                        "{} of {} is shown as {:?}, settled as {settled}",
                        step.name, run.id, view.outcome
                    ));
                }
                self.verdict(run, step, &settled, None);
                let tries: Vec<_> = self
                    .tries
                    .range((execution, Attempt(0))..=(execution, Attempt(u32::MAX)))
                    .map(|((_, attempt), of)| (*attempt, of.end.clone(), of.owners.last().cloned()))
                    .collect();
                let last = tries.iter().rev().find_map(|(_, end, _)| end.clone());
                if settled == Outcome::Passed && !matches!(&last, Some(End::Finished { outcome: Outcome::Passed, .. }))
                {
                    self.wrong(format!(
                        "{} of {} is settled as passed, and its last attempt ended with {last:?}",
                        step.name, run.id
                    ));
                }
                for (attempt, end, owner) in tries {
                    if let Some(End::Finished { outcome, cached, snapshot, .. }) = end {
                        let of_owner = |snapshot: &SnapshotId| {
                            let fence = Fence { execution, attempt, owner: owner.clone()? };
                            Some(step.cached || *snapshot == SnapshotId::ephemeral(&fence))
                        };
                        if snapshot.as_ref().is_some_and(|snapshot| of_owner(snapshot) != Some(true)) {
                            self.wrong(format!(
                                "{} of {}, attempt {attempt}: {snapshot:?} is not its owner's (P12)",
                                step.name, run.id
                            ));
                        }
                        if owner.is_none() && !outcome.is_infra() {
                            self.wrong(format!(
                                "{} of {}, attempt {attempt}: {outcome} of nobody's (P12)",
                                step.name, run.id
                            ));
                        }
                        if !(cached && step.cached) {
                            self.verdict(run, step, &outcome, Some(attempt));
                        }
                    }
                }
            }
        }
    }

    fn verdict(&mut self, run: &RunPlan, step: &StepPlan, outcome: &Outcome, attempt: Option<Attempt>) {
        let fails = |attempt: Attempt| attempt.0 <= step.fails;
        let in_time = step.runs_ms < step.timeout_s * 1_000;
        let others_failed = run.steps.iter().any(|other| {
            let execution = ExecutionId::of_step(run.id, &StepName::from(other.name.as_str()));
            other.name != step.name && self.settled.get(&execution).is_some_and(|outcome| !outcome.is_passed())
        });
        let right = match outcome {
            Outcome::Passed => attempt.is_none_or(|attempt| !fails(attempt)),
            Outcome::Failed { exit } => *exit == step.code && step.fails > 0 && attempt.is_none_or(fails),
            Outcome::TimedOut => !in_time,
            Outcome::Cancelled { by: CancelledBy::User } => run.cancelled_ms.is_some(),
            Outcome::Cancelled { by: CancelledBy::RunTimeout } => run.timeout_s.is_some(),
            Outcome::Cancelled { .. } | Outcome::Skipped { .. } => {
                others_failed || run.cancelled_ms.is_some() || run.timeout_s.is_some()
            }
            // P16: what the supervisor was told to forget is on the disk.
            Outcome::Infra { reason, .. } => !self.plan.is_quiet() && !reason.contains("is not here from"),
            Outcome::Signaled { .. } | Outcome::OomKilled => false,
        };
        if !right {
            let which = attempt.map_or_else(|| "settled".to_owned(), |attempt| format!("attempt {attempt}"));
            self.wrong(format!(
                "{} of {}, {which}: {outcome} is not what its command said (promise 2)",
                step.name, run.id
            ));
        }
    }

    /// Promise 3: every line once and in order, or the log says how much is missing.
    fn logs(&mut self) {
        for run in &self.plan.runs {
            let Some(state) = self.tables.run(run.id) else { continue };
            for view in &state.view.steps {
                let Some(at) = run.steps.iter().position(|step| step.name == view.step.as_str()) else { continue };
                let remakes = view.remakes.iter().map(|remake| (remake.execution, &remake.attempts));
                for (execution, attempts) in std::iter::once((view.execution, &view.attempts)).chain(remakes) {
                    for attempt in attempts {
                        self.log(run, at, (execution, attempt.attempt));
                    }
                }
            }
        }
    }

    fn log(&mut self, run: &RunPlan, at: usize, key: Key) {
        let name = format!("{} of {}, {} attempt {}", run.steps[at].name, run.id, key.0.to_hex(), key.1);
        let Some(of) = self.tries.get(&key) else { return };
        let (end, closed, owner) = (of.end.clone(), of.closed, of.owners.first().cloned());
        let selection = Selection { run: run.id, execution: Some(key.0), attempt: Some(key.1) };
        let rows = match self.tables.log_rows(&selection, 0, u32::MAX) {
            Ok(rows) => rows,
            Err(error) => return self.wrong(format!("{name}: {error}")),
        };
        let mut stored = [Vec::new(), Vec::new()];
        for row in rows {
            let StoredContent::Open(runs) = row.content else { continue };
            for line in runs {
                let stream = &mut stored[usize::from(line.stream == Stream::Stderr)];
                if line.offset != stream.len() as u64 {
                    self.wrong.push(format!(
                        "{name}: {:?} goes on at {} behind {}",
                        line.stream,
                        line.offset,
                        stream.len()
                    ));
                }
                stream.extend(line.bytes);
            }
        }
        let [stdout, stderr] = stored.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let expected = run.expected(at, owner.as_ref());
        if !expected.stdout.starts_with(&stdout) {
            self.wrong(format!("{name}: its output is {stdout:?}, which is no beginning of {:?}", expected.stdout));
        }
        let own: String = stderr.split_inclusive('\n').filter(|line| line.starts_with(&run.steps[at].name)).collect();
        if !expected.stderr.starts_with(&own) {
            self.wrong(format!("{name}: its errors are {own:?}, which is no beginning of {:?}", expected.stderr));
        }
        let have = Offsets { stdout: stdout.len() as u64, stderr: stderr.len() as u64 };
        match (&end, closed) {
            (Some(End::Finished { outcome, cached, output, .. }), Some(gap)) => {
                let missing = Offsets {
                    stdout: output.stdout.saturating_sub(have.stdout),
                    stderr: output.stderr.saturating_sub(have.stderr),
                };
                let said = match gap {
                    LogGap::None => Offsets::default(),
                    LogGap::Bytes { missing } => missing,
                    LogGap::EndUnknown => return self.wrong(format!("{name}: finished with an unknown end")),
                };
                if said != missing {
                    self.wrong(format!("{name}: {missing:?} bytes are missing and {said:?} are said to be (P14)"));
                }
                let whole = matches!(outcome, Outcome::Passed | Outcome::Failed { .. })
                    && !cached
                    && said == Offsets::default();
                if whole && (stdout != expected.stdout || own != expected.stderr) {
                    self.wrong(format!("{name}: lines are missing without a gap: {stdout:?} and {own:?} (promise 3)"));
                }
                if self.plan.is_quiet() && said != Offsets::default() {
                    self.wrong(format!("{name}: {said:?} bytes are lost without a fault"));
                }
            }
            (Some(End::Finished { .. } | End::Lost { .. }), None) if !self.tries[&key].owners.is_empty() => {
                self.wrong(format!("{name}: its log is never closed (P14)"));
            }
            _ => {}
        }
    }

    /// The journal says all that is shown.
    fn replay(&mut self) {
        let mut core = Core::new(CoreConfig { lease_ticks: crate::stage::LEASE_TICKS, ..CoreConfig::default() });
        for (seq, row) in &self.tables.journal {
            if let Err(illegal) = core.replay(&row.entry, row.at_ms) {
                return self.wrong(format!("#{seq} cannot be replayed: {illegal}"));
            }
        }
        for run in self.plan.runs.iter().map(|run| run.id) {
            let shown = self.tables.run(run).map(|state| state.view);
            let replayed = core.run_view(run);
            if shown != replayed {
                self.wrong(format!("{run} is shown as {shown:#?} and its journal says {replayed:#?}"));
            }
        }
    }
}

/// What a command writes.
pub struct Expected {
    pub stdout: String,
    pub stderr: String,
}

impl RunPlan {
    fn chosen(&self, of: impl Fn(&StepPlan) -> bool) -> impl Iterator<Item = ExecutionId> {
        self.steps
            .iter()
            .filter(move |step| of(step))
            .map(|step| ExecutionId::of_step(self.id, &StepName::from(step.name.as_str())))
    }

    /// Its steps of the concurrency group.
    pub fn grouped(&self) -> impl Iterator<Item = ExecutionId> {
        self.chosen(|step| step.grouped)
    }

    /// Its exclusive steps.
    pub fn exclusive(&self) -> impl Iterator<Item = ExecutionId> {
        self.chosen(|step| step.exclusive)
    }

    /// What the step's command writes in whole.
    pub fn expected(&self, at: usize, owner: Option<&WorkerId>) -> Expected {
        let step = &self.steps[at];
        let name = &step.name;
        let host = owner.map(|owner| format!("{owner}\n")).unwrap_or_default();
        let mut stdout = format!("{host}{name} begins\n");
        let mut lineage = Vec::new();
        let mut from = step.from;
        while let Some(parent) = from {
            lineage.push(format!("{}\n", self.steps[parent].name));
            from = self.steps[parent].from;
        }
        stdout.extend(lineage.into_iter().rev());
        stdout.extend((0..step.lines).map(|line| format!("{name} {line}\n")));
        stdout.extend([name.as_str(), " ends\n"]);
        let errors: Vec<String> = (0..step.errors).map(|line| format!("{name} error {line}\n")).collect();
        let stderr = errors.concat();
        Expected { stdout, stderr }
    }
}

/// The snapshots that stay: those that a cache keeps, and of `snapshot: always`, which are for people.
pub fn is_kept(plan: &Plan, snapshot: &str) -> bool {
    let always = plan.runs.iter().any(|run| {
        let names = run.steps.iter().filter(|step| step.always).map(|step| StepName::from(step.name.as_str()));
        names.into_iter().any(|name| snapshot.contains(&ExecutionId::of_step(run.id, &name).to_hex()))
    });
    always || is_cached(plan, snapshot)
}

fn is_cached(plan: &Plan, snapshot: &str) -> bool {
    let keys = plan.runs.iter().flat_map(|run| {
        run.steps
            .iter()
            .filter(|step| step.cached)
            .map(|step| SnapshotId::cached("default", &format!("{}-{}", run.id, step.name)).to_string())
    });
    keys.into_iter().any(|key| key == snapshot)
}
