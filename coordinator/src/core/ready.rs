//! The steps that could be dispatched and are not, because there is no room: beside the state, never journalled, made
//! again when a coordinator begins to lead.
//!
//! They wait in *lanes*, by where they can go, so that a lane without room is passed over whole, however many steps
//! wait in it. Within a lane: tenant, priority, run, step; a choice looks at the first of each.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use longshore_protocol::{EngineId, PoolName, RunId, WorkerId};

use super::order::Order;
use super::share::Shares;

/// Where steps can go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lane {
    /// To one worker: only there stand the files they go on with, in a parked container.
    Worker(PoolName, WorkerId),
    /// To any worker of the pool beside this Engine, which has the files.
    Engine(PoolName, EngineId),
    /// To any worker of the pool.
    Pool(PoolName),
}

impl Lane {
    pub(super) fn pool(&self) -> &PoolName {
        let (Self::Worker(pool, _) | Self::Engine(pool, _) | Self::Pool(pool)) = self;
        pool
    }
}

/// Every step that waits for room.
#[derive(Debug, Default)]
pub(super) struct Ready {
    /// INVARIANT: none is empty.
    lanes: BTreeMap<Lane, Waiting>,
    /// Which lane each step waits in. INVARIANT: the exact reverse of the lanes' contents.
    places: BTreeMap<RunId, BTreeMap<u32, Arc<Lane>>>,
    /// Lanes that may have become able to go on. Workers' first: what goes on in a parked container frees it.
    touched: BTreeSet<Lane>,
}

#[derive(Debug)]
struct Waiting {
    lane: Arc<Lane>,
    steps: usize,
    /// Of a pool's lane, in which all of its tenants may wait; in the others few do, and are looked at one by one.
    order: Order<Arc<str>, (u64, usize)>,
    /// INVARIANT: none is empty.
    tenants: BTreeMap<Arc<str>, BTreeMap<Reverse<i32>, Level>>,
}

/// The runs of one tenant and one priority.
#[derive(Debug, Default)]
struct Level {
    order: Order<RunId, u64>,
    /// INVARIANT: none is empty.
    runs: BTreeMap<RunId, BTreeSet<Place>>,
}

/// Deeper steps first: a chain that was begun is ended before others go on, so that its parked container is freed.
/// Otherwise as the pipeline has them.
type Place = (Reverse<u32>, u32);

/// A step, and by what it is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReadyStep {
    pub(super) tenant: Arc<str>,
    pub(super) priority: i32,
    pub(super) run: RunId,
    pub(super) step: usize,
    pub(super) depth: u32,
}

impl ReadyStep {
    fn place(&self) -> Place {
        (Reverse(self.depth), index(self.step))
    }
}

fn index(step: usize) -> u32 {
    u32::try_from(step).expect("steps are counted in 32 bits")
}

impl Ready {
    /// Where a step waits.
    pub(super) fn lane_of(&self, run: RunId, step: usize) -> Option<&Arc<Lane>> {
        self.places.get(&run)?.get(&index(step))
    }

    pub(super) fn put(&mut self, lane: Lane, step: &ReadyStep) {
        let waiting = self.lanes.entry(lane).or_insert_with_key(|lane| Waiting {
            lane: Arc::new(lane.clone()),
            steps: 0,
            order: Order::default(),
            tenants: BTreeMap::new(),
        });
        waiting.steps += 1;
        self.places.entry(step.run).or_default().insert(index(step.step), Arc::clone(&waiting.lane));
        waiting.order.insert(&step.tenant);
        let levels = waiting.tenants.entry(Arc::clone(&step.tenant)).or_default();
        let level = levels.entry(Reverse(step.priority)).or_default();
        level.order.insert(&step.run);
        level.runs.entry(step.run).or_default().insert(step.place());
        let lane = Lane::clone(&waiting.lane);
        self.touched.insert(lane);
    }

    /// It waits no more. Answers where it did.
    pub(super) fn remove(&mut self, step: &ReadyStep) -> Option<Arc<Lane>> {
        let of_run = self.places.get_mut(&step.run)?;
        let lane = of_run.remove(&index(step.step))?;
        if of_run.is_empty() {
            self.places.remove(&step.run);
        }
        let waiting = self.lanes.get_mut(&*lane).expect("a place names a lane");
        waiting.steps -= 1;
        let levels = waiting.tenants.get_mut(&step.tenant).expect("a place names its tenant's lane");
        let level = levels.get_mut(&Reverse(step.priority)).expect("a step keeps its priority");
        let steps = level.runs.get_mut(&step.run).expect("a place names its run's lane");
        steps.remove(&step.place());
        if steps.is_empty() {
            level.order.remove(&step.run);
            level.runs.remove(&step.run);
        }
        if level.runs.is_empty() {
            levels.remove(&Reverse(step.priority));
        }
        if levels.is_empty() {
            waiting.order.remove(&step.tenant);
            waiting.tenants.remove(&step.tenant);
        }
        if waiting.tenants.is_empty() {
            self.lanes.remove(&*lane);
        }
        Some(lane)
    }

    /// Whose turn it is in a lane.
    pub(super) fn first(&mut self, lane: &Lane, shares: &Shares) -> Option<ReadyStep> {
        let waiting = self.lanes.get_mut(lane)?;
        let received = |tenant: &Arc<str>| shares.of_tenant(lane.pool(), tenant);
        let tenant = match lane {
            Lane::Pool(_) => waiting.order.first(received)?,
            Lane::Worker(..) | Lane::Engine(..) => {
                waiting.tenants.keys().min_by_key(|tenant| received(tenant))?.clone()
            }
        };
        self.first_of(lane, &tenant, shares)
    }

    /// Which of a tenant's steps it is.
    pub(super) fn first_of(&mut self, lane: &Lane, tenant: &Arc<str>, shares: &Shares) -> Option<ReadyStep> {
        let levels = self.lanes.get_mut(lane)?.tenants.get_mut(tenant)?;
        let mut level = levels.first_entry()?;
        let Reverse(priority) = *level.key();
        let Level { order, runs } = level.get_mut();
        let of_runs = shares.of_runs(lane.pool(), tenant);
        let run = match lane {
            Lane::Pool(_) => order.first(|run| of_runs(*run))?,
            Lane::Worker(..) | Lane::Engine(..) => *runs.keys().min_by_key(|run| of_runs(**run))?,
        };
        let &(Reverse(depth), step) = runs.get(&run)?.first()?;
        Some(ReadyStep { tenant: Arc::clone(tenant), priority, run, step: step as usize, depth })
    }

    /// A tenant, for this run, was given back what was paid too much: it may be their turn sooner.
    pub(super) fn look_again(&mut self, pool: &PoolName, tenant: &Arc<str>, run: RunId) {
        let Some(waiting) = self.lanes.get_mut(&Lane::Pool(pool.clone())) else { return };
        waiting.order.look_again(tenant);
        for level in waiting.tenants.get_mut(tenant).into_iter().flat_map(BTreeMap::values_mut) {
            level.order.look_again(&run);
        }
    }

    /// How many steps wait in a lane.
    pub(super) fn waiting_in(&self, lane: &Lane) -> usize {
        self.lanes.get(lane).map_or(0, |waiting| waiting.steps)
    }

    /// How many steps wait in each pool, wherever they can go.
    pub(super) fn by_pool(&self) -> BTreeMap<&PoolName, usize> {
        let mut pools = BTreeMap::new();
        for (lane, waiting) in &self.lanes {
            *pools.entry(lane.pool()).or_default() += waiting.steps;
        }
        pools
    }

    /// A lane may be able to go on: there may be room, or its turn.
    pub(super) fn touch(&mut self, lane: Lane) {
        if self.lanes.contains_key(&lane) {
            self.touched.insert(lane);
        }
    }

    pub(super) fn next_touched(&mut self) -> Option<Lane> {
        self.touched.pop_first()
    }

    /// All that waits in a lane, to be placed anew: it does not lead anywhere any more.
    pub(super) fn all_in(&self, lane: &Lane) -> Vec<(RunId, usize)> {
        let tenants = self.lanes.get(lane).into_iter().flat_map(|waiting| waiting.tenants.values());
        let runs = tenants.flat_map(BTreeMap::values).flat_map(|level| &level.runs);
        runs.flat_map(|(run, steps)| steps.iter().map(|(_, step)| (*run, *step as usize))).collect()
    }
}
