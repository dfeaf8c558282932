//! Jobs that nobody has claimed yet, per queue, and when one counts as gone (P6).

use std::collections::{BTreeMap, BTreeSet};

use longshore_protocol::WorkerId;

use super::effect::JobQueue;
use super::state::Key;

/// Every queue with a dispatched job that nobody has claimed.
#[derive(Debug, Default)]
pub(super) struct Queues {
    /// Of the next job: the order of dispatch is the order in the queue.
    next: u64,
    /// INVARIANT: a queue stands here only while it holds a job.
    watches: BTreeMap<JobQueue, Watch>,
    /// INVARIANT: the exact reverse of the queues' contents.
    places: BTreeMap<Key, (JobQueue, u64)>,
    /// To whose queues jobs are still under way: their deadlines stand.
    pub(super) under_way: BTreeSet<WorkerId>,
}

#[derive(Debug, Default)]
struct Watch {
    jobs: BTreeMap<u64, Waiting>,
    /// Pool queues: those that may be gone, by the tick since when, so that the oldest is found at once.
    suspects: BTreeSet<(u64, u64)>,
    /// Worker queues: ticks in which the worker reported a free slot while a job waited here.
    free_ticks: u64,
    /// Worker queues: the last job claimed out of it, and `free_ticks` then. Jobs behind it have no older claim
    /// to that slot than this; jobs before it were overtaken.
    claimed: Option<(u64, u64)>,
}

#[derive(Debug)]
struct Waiting {
    key: Key,
    /// Pool queues: the tick of its dispatch. Worker queues: `free_ticks` then.
    since: u64,
    /// Pool queues: since which tick it may be gone.
    suspect: Option<u64>,
}

impl Watch {
    fn suspect(&mut self, number: u64, tick: u64) {
        if let Some(job) = self.jobs.get_mut(&number)
            && job.suspect.is_none()
        {
            job.suspect = Some(tick);
            self.suspects.insert((tick, number));
        }
    }
}

impl Queues {
    /// A job was dispatched.
    pub(super) fn put(&mut self, queue: JobQueue, key: Key, tick: u64) {
        let number = self.next;
        self.next += 1;
        let watch = self.watches.entry(queue.clone()).or_default();
        let since = if matches!(queue, JobQueue::Pool(_)) { tick } else { watch.free_ticks };
        watch.jobs.insert(number, Waiting { key, since, suspect: None });
        self.places.insert(key, (queue, number));
    }

    /// A job is of no more interest: it was ended. Returns where it was.
    pub(super) fn remove(&mut self, key: Key) -> Option<(JobQueue, u64)> {
        let (queue, number) = self.places.remove(&key)?;
        let watch = self.watches.get_mut(&queue).expect("a place names a queue that is watched");
        let job = watch.jobs.remove(&number).expect("a place names a job of its queue");
        if let Some(tick) = job.suspect {
            watch.suspects.remove(&(tick, number));
        }
        if watch.jobs.is_empty() {
            self.watches.remove(&queue);
        }
        Some((queue, number))
    }

    /// P6: a job was claimed, so what was published to its queue before it should have been too.
    pub(super) fn claimed(&mut self, key: Key, tick: u64) {
        let Some((queue, number)) = self.remove(key) else { return };
        let Some(watch) = self.watches.get_mut(&queue) else { return };
        if matches!(queue, JobQueue::Worker(_)) {
            if watch.claimed.is_none_or(|(last, _)| last < number) {
                watch.claimed = Some((number, watch.free_ticks));
            }
            return;
        }
        // Each job becomes a suspect once, so that a claim costs what it changes: the jobs before it that are
        // suspects already were so since an earlier claim, and stand at the front.
        let overtaken: Vec<u64> = watch
            .jobs
            .range(..number)
            .rev()
            .take_while(|(_, job)| job.suspect.is_none())
            .map(|(number, _)| *number)
            .collect();
        for number in overtaken {
            watch.suspect(number, tick);
        }
    }

    /// P6: a pool's queue was looked at. RabbitMQ says 0 as well where a quorum queue does not answer it within 250 ms
    /// (`rabbit_quorum_queue:stat` of 3.10): the next look that sees all of them takes that back.
    pub(super) fn looked_at(&mut self, queue: &JobQueue, messages: u32, tick: u64) {
        let Some(watch) = self.watches.get_mut(queue) else { return };
        if messages == 0 {
            // What was dispatched in this very tick may not have been there yet when somebody looked.
            let before: Vec<u64> =
                watch.jobs.iter().filter(|(_, job)| job.since < tick).map(|(number, _)| *number).collect();
            for number in before {
                watch.suspect(number, tick);
            }
        } else if messages as usize >= watch.jobs.len() {
            // All of them may be there: jobs given back, or published late.
            watch.suspects.clear();
            for job in watch.jobs.values_mut() {
                job.suspect = None;
            }
        }
    }

    /// A tick in which a worker reported a free slot: the jobs in its queue that have waited too long for it.
    pub(super) fn free_tick(&mut self, worker: &WorkerId, deadline: u64) -> Vec<Key> {
        let Some(watch) = self.watches.get_mut(&JobQueue::Worker(worker.clone())) else { return Vec::new() };
        if self.under_way.contains(worker) {
            return Vec::new();
        }
        watch.free_ticks += 1;
        // In the order of dispatch nobody waits longer than who stands before, so the first that is in time
        // ends the search.
        let overdue = |number: u64, job: &Waiting| {
            let since = match watch.claimed {
                Some((claimed, then)) if number > claimed => job.since.max(then),
                _ => job.since,
            };
            watch.free_ticks - since >= deadline
        };
        watch.jobs.iter().take_while(|(number, job)| overdue(**number, job)).map(|(_, job)| job.key).collect()
    }

    /// The jobs of pools that were suspects for a whole deadline.
    pub(super) fn overdue(&self, tick: u64, deadline: u64) -> Vec<Key> {
        let pools = self.watches.values();
        pools
            .flat_map(|watch| {
                let due = watch.suspects.iter().take_while(move |(since, _)| tick - since >= deadline);
                due.map(|(_, number)| watch.jobs[number].key)
            })
            .collect()
    }

    /// How many jobs stand before one in its queue, and since which tick that one may be gone.
    pub(super) fn line(&self, key: Key) -> Option<(u64, Option<u64>)> {
        let (queue, number) = self.places.get(&key)?;
        let watch = self.watches.get(queue)?;
        let before = watch.jobs.range(..number).filter(|(_, job)| job.suspect.is_none()).count() as u64;
        Some((before, watch.jobs.get(number)?.suspect))
    }

    /// The jobs in a worker's queue.
    pub(super) fn of_worker(&self, worker: &WorkerId) -> Vec<Key> {
        let watch = self.watches.get(&JobQueue::Worker(worker.clone()));
        watch.map(|watch| watch.jobs.values().map(|job| job.key).collect()).unwrap_or_default()
    }

    /// How many jobs of a queue nobody has claimed.
    pub(super) fn waiting_in(&self, queue: &JobQueue) -> usize {
        self.watches.get(queue).map_or(0, |watch| watch.jobs.len())
    }

    /// Pool queues with jobs that nobody has claimed.
    pub(super) fn pools(&self) -> Vec<JobQueue> {
        self.watches.keys().filter(|queue| matches!(queue, JobQueue::Pool(_))).cloned().collect()
    }
}
