//! Who is asked to carry out an attempt, and what the job says.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use longshore_protocol::job::{Base, Job, Keep, Source, StepSpec};
use longshore_protocol::outcome::SNAPSHOT_LOST;
use longshore_protocol::{PoolName, RunId, Shard, SnapshotId, WorkerId};

use super::decide::{Core, Step};
use super::effect::{Effect, JobQueue};
use super::entry::{Entry, Origin};
use super::input::Millis;
use super::state::{Run, Stage, Worker};
use crate::pipeline::{Parent, SnapshotRule};

/// Where a step's next attempt can go.
enum Placed {
    /// To this queue, to start from this.
    At(JobQueue, Base),
    /// Nowhere yet: its parent's files are with workers that are away, and nobody is there who could make them again.
    Nowhere,
    /// Nowhere, because its parent's files are not there; why, where the state still counts on them.
    Lost(Option<String>),
    /// Nowhere, and no remake would help. In words, for people.
    Never(String),
}

impl Core {
    /// Puts a step's next attempt on a queue; or ends it, where no worker can have what it needs; or has its parent's
    /// files made again.
    pub(super) fn dispatch(&mut self, id: RunId, index: usize, now: Millis, out: &mut Step) {
        let run = &self.state.runs[&id];
        let step = &run.steps[index];
        let (execution, attempt) = (step.execution, step.last().next());
        let (queue, base) = match self.place(run, index) {
            Placed::At(queue, base) => (queue, base),
            Placed::Nowhere => {
                self.stranded.insert((id, index));
                return;
            }
            Placed::Lost(reason) => return self.make_again(id, index, reason, now, out),
            Placed::Never(reason) => return self.end_before_begin(id, index, reason, now, out),
        };
        let spec = match spec_of(run, index) {
            Ok(spec) => spec,
            Err(reason) => return self.end_before_begin(id, index, reason, now, out),
        };
        let origin = Origin::from(&base);
        let job = Box::new(Job {
            run: id,
            step: run.planned(index).name.clone(),
            execution,
            attempt,
            shard: Shard::of(id),
            epoch: self.epoch,
            tenant: run.tenant.clone(),
            spec,
            base,
            keep: keep_of(run, index),
            dispatched_at_ms: now,
        });
        self.commit(Entry::Dispatched { run: id, execution, attempt, queue: queue.clone(), base: origin }, now, out);
        out.effects.push(Effect::Dispatch { queue, job });
    }

    /// The queue, and what to start from.
    fn place(&self, run: &Run, index: usize) -> Placed {
        let planned = run.planned(index);
        let pool = &planned.spec.pool;
        let serves = |worker: &Worker| worker.alive && worker.hello.pool == *pool;
        let Some(parent) = run.parent(index) else {
            let Parent::Image(image) = &planned.parent else { unreachable!("a step without a parent has an image") };
            let base = Base::Image { reference: image.clone() };
            // Where its key's snapshot is, there is nothing to run.
            let key = planned.cache_key.as_ref().map(|key| SnapshotId::cached(&run.tenant, key));
            let cached = key.and_then(|key| self.freest(|id, worker| serves(worker) && self.reports(id, &key)));
            return Placed::At(cached.map_or_else(|| JobQueue::Pool(pool.clone()), JobQueue::Worker), base);
        };
        let Some(left) = run.kept(parent) else { return Placed::Lost(None) };
        if left.snapshot.is_none() && left.parked.is_none() {
            return Placed::Lost(Some("a step went on in its container".to_owned())); // P19
        }
        let is_owner = |id: &WorkerId, worker: &Worker| *id == left.worker && worker.hello.engine == left.engine;
        let has = |id: &WorkerId, worker: &Worker| match &left.snapshot {
            Some(snapshot) => worker.hello.engine == left.engine || self.reports(id, snapshot),
            None => is_owner(id, worker),
        };
        let fits = |id: &WorkerId, worker: &Worker| serves(worker) && has(id, worker);
        let Some(freest) = self.freest(fits) else { return self.out_of_reach(run, parent, pool) };
        // To go on in the parked container costs least; but not as much as waiting for a slot while another has one.
        let owner = self.state.workers.get_key_value(&left.worker).filter(|(id, worker)| {
            let parked = left.parked.is_some() && is_owner(id, worker) && serves(worker);
            parked && (self.spare(id, worker) > 0 || self.spare(&freest, &self.state.workers[&freest]) <= 0)
        });
        let worker = owner.map_or(freest, |(id, _)| id.clone());
        let (execution, attempt, snapshot) = (left.execution, left.attempt, left.snapshot.clone());
        Placed::At(JobQueue::Worker(worker), Base::Parent { execution, attempt, snapshot })
    }

    /// Nobody who could carry out the step has its parent's files. They are only given up where somebody is there who
    /// could make them again: until then whoever has them may be the first to return.
    fn out_of_reach(&self, run: &Run, parent: usize, pool: &PoolName) -> Placed {
        let alive = |pool: &PoolName| {
            let workers = self.state.workers.values();
            let engines = workers.filter(|worker| worker.alive && worker.hello.pool == *pool);
            engines.map(|worker| &worker.hello.engine).collect::<BTreeSet<_>>()
        };
        let makers_pool = &run.planned(parent).spec.pool;
        let (makers, takers) = (alive(makers_pool), alive(pool));
        if makers.is_empty() || takers.is_empty() {
            return Placed::Nowhere;
        }
        let name = run.log_name(parent);
        let engine = run.kept(parent).map(|left| left.engine.to_string()).unwrap_or_default();
        let reason = format!("no worker of pool {pool} is beside Engine {engine}, where {name} left its files");
        if makers.is_disjoint(&takers) {
            // Wherever it would be made again, nobody of the child's pool is beside it.
            return Placed::Never(format!("{SNAPSHOT_LOST}: {reason}"));
        }
        Placed::Lost(Some(reason))
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
    let of = run.original(index);
    let planned = run.planned(index);
    match (&planned.cache_key, planned.snapshot) {
        (Some(key), _) => Keep::Cached { id: SnapshotId::cached(&run.tenant, key) },
        (None, SnapshotRule::Always) => Keep::Always,
        (None, SnapshotRule::Auto) => match run.steps[of].children {
            0 => Keep::Nothing,
            1 if only_child_goes_on(run, of) => Keep::Live,
            _ => Keep::Snapshot,
        },
    }
}

/// Whether a step's one child can go on in its container, and needs its files once. Of another pool, it may be sent
/// to another worker; with another network it does not fit a parked container, which would be kept in vain; and what
/// the user's rule may try again needs the files again. Other limits are changed in place.
fn only_child_goes_on(run: &Run, parent: usize) -> bool {
    let mut children = run.children_of(parent).filter(|child| run.steps[*child].stage != Stage::Settled);
    let Some(child) = children.next() else { return false };
    let (from, to) = (run.planned(parent), run.planned(child));
    let once = to.retry.max == 0 || run.steps[child].remake_of.is_some();
    once && from.spec.pool == to.spec.pool && from.spec.network == to.spec.network
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
