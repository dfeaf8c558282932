//! Who is asked to carry out an attempt, and what the job says.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use longshore_protocol::job::{Base, Job, Keep, Source, StepSpec};
use longshore_protocol::outcome::SNAPSHOT_LOST;
use longshore_protocol::{EngineId, PoolName, RunId, Shard, SnapshotId, WorkerId};

use super::decide::{Core, Step};
use super::effect::{Effect, JobQueue};
use super::entry::{CacheLook, Entry, Origin};
use super::input::Millis;
use super::ready::Lane;
use super::state::{Run, Stage};
use crate::pipeline::SnapshotRule;

/// Where a step's next attempt can go.
enum Fit {
    /// To any worker of its pool.
    Pool(Base),
    /// To these alone, whose Engines have what it needs.
    Beside(Beside),
    /// Nowhere yet: its parent's files are with workers that are away, and nobody is there who could make them again.
    Nowhere,
    /// Nowhere, because its parent's files are not there; why, where the state still counts on them.
    Lost(Option<String>),
    /// Nowhere, and no remake would help. In words, for people.
    Never(String),
}

struct Beside {
    workers: Vec<WorkerId>,
    /// The one among them in whose parked container it could go on.
    owner: Option<WorkerId>,
    lane: Lane,
    base: Base,
}

impl Core {
    /// In which lane a step waits for room. `None`: in none; what follows from that is seen to.
    pub(super) fn lane(&mut self, id: RunId, index: usize, now: Millis, out: &mut Step) -> Option<Lane> {
        let run = &self.state.runs[&id];
        match self.fit(run, index) {
            Fit::Pool(_) => return Some(Lane::Pool(run.planned(index).spec.pool.clone())),
            Fit::Beside(Beside { lane, .. }) => return Some(lane),
            Fit::Nowhere => {
                self.stranded.insert((id, index));
            }
            Fit::Lost(reason) => self.make_again(id, index, reason, now, out),
            Fit::Never(reason) => self.end_before_begin(id, index, reason, now, out),
        }
        None
    }

    /// Puts a step's next attempt on a queue that has room: it is its turn. Where that has changed since it became
    /// ready, it is looked at anew.
    pub(super) fn dispatch(&mut self, id: RunId, index: usize, now: Millis, out: &mut Step) {
        let run = &self.state.runs[&id];
        let step = &run.steps[index];
        let (execution, attempt) = (step.execution, step.last().next());
        let pool = &run.planned(index).spec.pool;
        let placed = match self.fit(run, index) {
            Fit::Pool(base) if self.pool_takes(pool) => Some((JobQueue::Pool(pool.clone()), base)),
            Fit::Beside(beside) => self.choose(pool, &beside).map(|worker| (JobQueue::Worker(worker), beside.base)),
            _ => None,
        };
        let Some((queue, base)) = placed else {
            self.wait_no_more(id, index);
            self.dirty.insert((id, index));
            return;
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
            tenant: run.tenant.to_string(),
            spec,
            base,
            keep: keep_of(run, index),
            dispatched_at_ms: now,
        });
        let cache = self.look_for_key(run, index);
        let queued = queue.clone();
        self.commit(Entry::Dispatched { run: id, execution, attempt, queue: queued, base: origin, cache }, now, out);
        out.effects.push(Effect::Dispatch { queue, job });
    }

    /// Who can carry it out, and what to start from.
    fn fit(&self, run: &Run, index: usize) -> Fit {
        let planned = run.planned(index);
        let pool = &planned.spec.pool;
        let Some(parent) = run.parent(index) else {
            let Some(image) = &planned.image else { unreachable!("a step without a parent has an image") };
            let base = Base::Image { reference: image.clone() };
            // Where its key's snapshot is, there is nothing to run.
            let key = planned.cache_key.as_ref().map(|key| SnapshotId::cached(&run.tenant, key));
            let mut workers = key.map(|key| self.beside(pool, None, &key)).unwrap_or_default();
            // Of those that take steps: the others are no reason to wait, when any worker will do.
            workers.retain(|worker| self.room.of_worker(worker).is_some_and(|slots| slots.slots > 0));
            return match self.lane_beside(pool, &workers) {
                Some(lane) => Fit::Beside(Beside { workers, owner: None, lane, base }),
                None => Fit::Pool(base),
            };
        };
        let Some(left) = run.kept(parent) else { return Fit::Lost(None) };
        if left.snapshot.is_none() && left.parked.is_none() {
            return Fit::Lost(Some("a step went on in its container".to_owned())); // P19
        }
        let owner =
            self.room.of_worker(&left.worker).filter(|slots| slots.pool == *pool && slots.engine == left.engine);
        let owner = owner.map(|_| left.worker.clone());
        let (workers, lane) = match &left.snapshot {
            Some(snapshot) => {
                let workers = self.beside(pool, Some(&left.engine), snapshot);
                let lane = self.lane_beside(pool, &workers);
                (workers, lane)
            }
            None => (
                owner.clone().into_iter().collect(),
                owner.as_ref().map(|owner| Lane::Worker(pool.clone(), owner.clone())),
            ),
        };
        let Some(lane) = lane else { return self.out_of_reach(run, parent, pool) };
        let (execution, attempt, snapshot) = (left.execution, left.attempt, left.snapshot.clone());
        let base = Base::Parent { execution, attempt, snapshot };
        Fit::Beside(Beside { workers, owner: owner.filter(|_| left.parked.is_some()), lane, base })
    }

    /// The workers of a pool beside an Engine, or beside one where a worker reported this snapshot.
    fn beside(&self, pool: &PoolName, engine: Option<&EngineId>, snapshot: &SnapshotId) -> Vec<WorkerId> {
        let reporters = self.fleet.cached_by.get(snapshot).into_iter().flatten();
        let reported = reporters.filter_map(|worker| self.room.of_worker(worker)).map(|slots| &slots.engine);
        let engines: BTreeSet<&EngineId> = engine.into_iter().chain(reported).collect();
        let workers = engines.into_iter().flat_map(|engine| self.room.beside(engine));
        workers.filter(|worker| self.room.of_worker(worker).is_some_and(|slots| slots.pool == *pool)).cloned().collect()
    }

    /// Where they are waited for: beside the Engine of the freest.
    fn lane_beside(&self, pool: &PoolName, workers: &[WorkerId]) -> Option<Lane> {
        let freest = self.freest(workers.iter())?;
        Some(Lane::Engine(pool.clone(), self.room.of_worker(&freest)?.engine.clone()))
    }

    /// Of those that have room. To go on in the parked container costs least; but not as much as waiting for a slot
    /// while another has one.
    fn choose(&self, pool: &PoolName, beside: &Beside) -> Option<WorkerId> {
        let freest = self.freest(beside.workers.iter().filter(|worker| self.worker_takes(pool, worker)))?;
        let owner = beside.owner.clone().filter(|owner| self.worker_takes(pool, owner));
        let owner = owner.filter(|owner| self.spare(owner) > 0 || self.spare(&freest) <= 0);
        Some(owner.unwrap_or(freest))
    }

    /// Nobody who could carry out the step has its parent's files. They are only given up where somebody is there who
    /// could make them again: until then whoever has them may be the first to return.
    fn out_of_reach(&self, run: &Run, parent: usize, pool: &PoolName) -> Fit {
        let alive = |pool: &PoolName| {
            let workers = self.state.workers.values();
            let engines = workers.filter(|worker| worker.alive && worker.hello.pool == *pool);
            engines.map(|worker| &worker.hello.engine).collect::<BTreeSet<_>>()
        };
        let makers_pool = &run.planned(parent).spec.pool;
        let (makers, takers) = (alive(makers_pool), alive(pool));
        if makers.is_empty() || takers.is_empty() {
            return Fit::Nowhere;
        }
        let name = run.log_name(parent);
        let engine = run.kept(parent).map(|left| left.engine.to_string()).unwrap_or_default();
        let reason = format!("no worker of pool {pool} is beside Engine {engine}, where {name} left its files");
        if makers.is_disjoint(&takers) {
            // Wherever it would be made again, nobody of the child's pool is beside it.
            return Fit::Never(format!("{SNAPSHOT_LOST}: {reason}"));
        }
        Fit::Lost(Some(reason))
    }

    /// Who could have what is kept under the step's key, for the journal: that is why nothing was found, if it is not.
    fn look_for_key(&self, run: &Run, index: usize) -> Option<CacheLook> {
        /// A journal's entry is no list of the fleet.
        const NAMED: usize = 8;
        let planned = run.planned(index);
        let key = SnapshotId::cached(&run.tenant, planned.cache_key.as_ref()?);
        let pool = &planned.spec.pool;
        let serve = self.state.workers.iter().filter(|(_, worker)| worker.alive && worker.hello.pool == *pool);
        let asked: Vec<&WorkerId> = serve.map(|(id, _)| id).collect();
        let has = self.fleet.cached_by.get(&key);
        let count = |workers: usize| u32::try_from(workers).unwrap_or(u32::MAX);
        let is_silent = |id: &WorkerId| self.fleet.seen.get(id).is_none_or(|seen| seen.slots_free.is_none());
        let named = |ids: &mut dyn Iterator<Item = &&WorkerId>| ids.take(NAMED).map(|id| (*id).clone()).collect();
        Some(CacheLook {
            asked: count(asked.len()),
            named: named(&mut asked.iter()),
            silent: count(asked.iter().filter(|id| is_silent(id)).count()),
            has: named(&mut asked.iter().filter(|id| has.is_some_and(|has| has.contains(**id)))),
        })
    }

    /// The one with the most slots to spare; of several, the first by id.
    fn freest<'a>(&self, workers: impl Iterator<Item = &'a WorkerId>) -> Option<WorkerId> {
        workers.min_by_key(|worker| (Reverse(self.spare(worker)), *worker)).cloned()
    }

    /// Slots that neither an attempt nor a job under way to it will take. Negative: how many wait in line.
    fn spare(&self, id: &WorkerId) -> i64 {
        let Some(slots) = self.room.of_worker(id) else { return i64::MIN };
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        // What is claimed already may be newer than the last heartbeat, and that may know of a full disk.
        let unowned = count(slots.slots) - count(slots.owned);
        let reported = self.fleet.seen.get(id).and_then(|seen| seen.slots_free).map_or(unowned, i64::from);
        unowned.min(reported) - count(slots.queued)
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
            // P18: what only stands in a container may be lost, and would have to be made again.
            _ if planned.spec.exclusive => Keep::Snapshot,
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
    let mut spec = planned.whole_spec();
    for source in &planned.sources {
        let Some((blob, bytes)) = &source.blob else { return Err(format!("{} was never uploaded", source.path)) };
        spec.sources.push(Source { blob: blob.clone(), bytes: *bytes, target: source.target.clone() });
    }
    Ok(spec)
}
