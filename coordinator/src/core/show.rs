//! The state as people see it.

use longshore_protocol::RunId;

use super::decide::Core;
use super::entry::End;
use super::state::{Run, Stage, Step, Try};
use super::view::{AttemptView, RemakeView, RunSummary, RunView, StepPhase, StepView, WorkerView};

impl Core {
    /// A run with its steps; `None` if it is unknown or was forgotten.
    pub fn run_view(&self, run: RunId) -> Option<RunView> {
        let state = self.state.runs.get(&run)?;
        let steps = (0..state.pipeline.steps.len()).map(|index| step_view(state, index)).collect();
        Some(RunView { summary: summary(run, state), steps })
    }

    /// One step of a run, by its index in the pipeline.
    pub fn step_view(&self, run: RunId, index: usize) -> Option<StepView> {
        let run = self.state.runs.get(&run)?;
        (index < run.pipeline.steps.len()).then(|| step_view(run, index))
    }

    /// A run without its steps.
    pub fn run_summary(&self, run: RunId) -> Option<RunSummary> {
        self.state.runs.get(&run).map(|state| summary(run, state))
    }

    /// Every worker ever heard of, by id.
    pub fn workers(&self) -> Vec<WorkerView> {
        let workers = self.state.workers.iter();
        let view = workers.map(|(id, worker)| {
            let seen = self.fleet.seen.get(id);
            WorkerView {
                worker: id.clone(),
                host: worker.hello.host.clone(),
                engine: worker.hello.engine.clone(),
                pool: worker.hello.pool.clone(),
                version: worker.hello.version.clone(),
                slots: worker.hello.slots,
                slots_free: seen.and_then(|seen| seen.slots_free).unwrap_or(0),
                alive: worker.alive,
                silent_ticks: u32::try_from(self.fleet.silence(id)).unwrap_or(u32::MAX),
                snapshots: seen.map_or(0, |seen| seen.snapshots),
                parked: seen.map_or(0, |seen| seen.parked),
                disk_free_bytes: seen.and_then(|seen| seen.disk_free_bytes),
            }
        });
        view.collect()
    }
}

fn summary(id: RunId, run: &Run) -> RunSummary {
    RunSummary {
        run: id,
        name: run.pipeline.name.clone(),
        tenant: run.tenant.to_string(),
        submitted_at_ms: run.submitted_at,
        settled_at_ms: run.settled_at,
        retried_at_ms: run.retried_at,
        retries: run.retries,
        outcome: run.outcome,
        cancelling: (run.cancelled || run.timed_out) && run.outcome.is_none(),
        steps: u32::try_from(run.pipeline.steps.len()).unwrap_or(u32::MAX),
        steps_settled: run.tally.settled,
    }
}

fn step_view(run: &Run, index: usize) -> StepView {
    let step = &run.steps[index];
    let passed = step.attempts.last().and_then(|attempt| attempt.end.as_ref());
    StepView {
        step: run.planned(index).name.clone(),
        execution: step.execution,
        phase: phase(step),
        outcome: step.outcome.clone(),
        cancelling: step.cancelled && step.outcome.is_none(),
        cached: matches!(passed, Some(End::Finished { cached: true, .. })),
        attempts: attempt_views(step),
        remakes: step.remakes.iter().map(|remake| remake_view(run, *remake)).collect(),
    }
}

fn remake_view(run: &Run, index: usize) -> RemakeView {
    let step = &run.steps[index];
    RemakeView {
        name: run.log_name(index),
        execution: step.execution,
        because: step.lost.clone(),
        phase: phase(step),
        outcome: step.outcome.clone(),
        attempts: attempt_views(step),
    }
}

fn attempt_views(step: &Step) -> Vec<AttemptView> {
    (1..).zip(&step.attempts).map(|(number, attempt)| attempt_view(number, attempt)).collect()
}

fn phase(step: &Step) -> StepPhase {
    match (step.stage, step.attempts.last()) {
        (Stage::Settled, _) => StepPhase::Settled,
        (Stage::Current, Some(Try { started_at: Some(_), .. })) => StepPhase::Running,
        (Stage::Current, Some(Try { owner: Some(_), .. })) => StepPhase::Preparing,
        (Stage::Current, _) => StepPhase::Queued,
        (Stage::Waiting { .. } | Stage::Over, _) => StepPhase::Waiting,
    }
}

fn attempt_view(number: u32, attempt: &Try) -> AttemptView {
    let (snapshot, output, phases, usage) = match &attempt.end {
        Some(End::Finished { snapshot, output, phases, usage, .. }) => {
            (snapshot.clone(), Some(*output), Some(*phases), *usage)
        }
        _ => (None, None, None, None),
    };
    AttemptView {
        attempt: longshore_protocol::Attempt(number),
        worker: attempt.owner.clone(),
        container: attempt.container.clone(),
        dispatched_at_ms: attempt.dispatched_at,
        accepted_at_ms: attempt.accepted_at,
        started_at_ms: attempt.started_at,
        ended_at_ms: attempt.ended_at,
        outcome: attempt.outcome(),
        snapshot,
        output,
        parked: matches!(attempt.end, Some(End::Finished { parked: true, .. })),
        phases,
        usage,
        // Where nobody claimed it, there is no log that could grow.
        log_closed: attempt.log.is_some() || (attempt.end.is_some() && attempt.owner.is_none()),
    }
}
