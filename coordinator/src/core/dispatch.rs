//! Who is asked to carry out an attempt, and what the job says.

use std::cmp::Reverse;

use longshore_protocol::event::Phases;
use longshore_protocol::job::{Base, Job, Keep, Source, StepSpec};
use longshore_protocol::outcome::{InfraStage, Outcome};
use longshore_protocol::output::Offsets;
use longshore_protocol::{RunId, Shard, SnapshotId, WorkerId};

use super::decide::{Core, Step};
use super::effect::{Effect, JobQueue};
use super::entry::{End, Entry};
use super::input::Millis;
use super::state::{Run, Worker};
use crate::pipeline::{Parent, SnapshotRule};

impl Core {
    /// Puts a step's next attempt on a queue; or ends it, where no worker can have what it needs.
    pub(super) fn dispatch(&mut self, id: RunId, index: usize, now: Millis, out: &mut Step) {
        let run = &self.state.runs[&id];
        let step = &run.steps[index];
        let (execution, attempt) = (step.execution, step.last().next());
        let placed = self.place(run, index).and_then(|(queue, base)| Ok((queue, base, spec_of(run, index)?)));
        let (queue, base, spec) = match placed {
            Ok(placed) => placed,
            Err(reason) => {
                let end = End::Finished {
                    outcome: Outcome::infra(InfraStage::Prepare, reason),
                    cached: false,
                    output: Offsets::default(),
                    snapshot: None,
                    phases: Phases::default(),
                };
                self.commit(Entry::Ended { run: id, execution, attempt, end }, now, out);
                return;
            }
        };
        let job = Box::new(Job {
            run: id,
            step: run.planned(index).name.clone(),
            execution,
            attempt,
            shard: Shard::of(id),
            epoch: self.epoch,
            tenant: run.tenant.clone(),
            spec,
            base: base.clone(),
            keep: keep_of(run, index),
            dispatched_at_ms: now,
        });
        self.commit(Entry::Dispatched { run: id, execution, attempt, queue: queue.clone(), base }, now, out);
        out.effects.push(Effect::Dispatch { queue, job });
    }

    /// The queue and what to start from. The error is for people.
    fn place(&self, run: &Run, index: usize) -> Result<(JobQueue, Base), String> {
        let planned = run.planned(index);
        let pool = &planned.spec.pool;
        let serves = |worker: &Worker| worker.alive && worker.hello.pool == *pool;
        let Some(parent) = run.graph.parent[index] else {
            let Parent::Image(image) = &planned.parent else { unreachable!("a step without a parent has an image") };
            let base = Base::Image { reference: image.clone() };
            // Where its key's snapshot is, there is nothing to run.
            let key = planned.cache_key.as_ref().map(|key| SnapshotId::cached(&run.tenant, key));
            let cached = key.and_then(|key| self.freest(|id, worker| serves(worker) && self.reports(id, &key)));
            return Ok((cached.map_or_else(|| JobQueue::Pool(pool.clone()), JobQueue::Worker), base));
        };
        let Some(left) = &run.steps[parent].left else {
            return Err(format!("snapshot_lost: {} left none", run.planned(parent).name));
        };
        let beside = |id: &WorkerId, worker: &Worker| {
            serves(worker) && (worker.hello.engine == left.engine || self.reports(id, &left.snapshot))
        };
        match self.freest(beside) {
            Some(worker) => Ok((JobQueue::Worker(worker), Base::Snapshot { id: left.snapshot.clone() })),
            None => Err(format!(
                "snapshot_lost: no worker of pool {pool} is beside Engine {}, where {} left its files",
                left.engine,
                run.planned(parent).name
            )),
        }
    }

    fn reports(&self, worker: &WorkerId, snapshot: &SnapshotId) -> bool {
        self.fleet.seen.get(worker).is_some_and(|seen| seen.cached.contains(snapshot))
    }

    /// Of the workers that fit, the one with the most slots to spare; of several, the first by id.
    fn freest(&self, fits: impl Fn(&WorkerId, &Worker) -> bool) -> Option<WorkerId> {
        let workers = self.state.workers.iter().filter(|(id, worker)| fits(id, worker));
        workers.min_by_key(|(id, worker)| Reverse(self.spare(id, worker))).map(|(id, _)| id.clone())
    }

    /// Slots that neither an attempt nor a job under way to it will take. Negative: how many wait in line.
    fn spare(&self, id: &WorkerId, worker: &Worker) -> i64 {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        // What is claimed already may be newer than the last heartbeat, and that may know of a full disk.
        let unowned = i64::from(worker.hello.slots) - count(worker.owned.len());
        let reported = self.fleet.seen.get(id).and_then(|seen| seen.slots_free).map_or(unowned, i64::from);
        unowned.min(reported) - count(self.fleet.queues.waiting_for(id))
    }
}

/// What must exist when a step has passed.
fn keep_of(run: &Run, index: usize) -> Keep {
    let planned = run.planned(index);
    match (&planned.cache_key, planned.snapshot) {
        (Some(key), _) => Keep::Cached { id: SnapshotId::cached(&run.tenant, key) },
        (None, SnapshotRule::Always) => Keep::Always,
        (None, SnapshotRule::Auto) if run.graph.children[index] > 0 => Keep::Snapshot,
        (None, SnapshotRule::Auto) => Keep::Nothing,
    }
}

/// The step with its packed sources. The error is for people.
fn spec_of(run: &Run, index: usize) -> Result<StepSpec, String> {
    let planned = run.planned(index);
    let mut spec = planned.spec.clone();
    for source in &planned.sources {
        let Some((blob, bytes)) = &source.blob else { return Err(format!("{} was never uploaded", source.path)) };
        spec.sources.push(Source { blob: blob.clone(), bytes: *bytes, target: source.target.clone() });
    }
    Ok(spec)
}
