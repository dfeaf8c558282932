//! Who goes next: weighted fair shares of slot-time.
//!
//! Start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queueing", SIGCOMM 1996) on slot-milliseconds, once
//! over the tenants of a pool and once over each tenant's runs there. Everybody has an account of the slot-time that
//! they received, divided by their weight; of those with work waiting whoever received least goes next. Two things
//! differ from packets:
//!
//! * how long a step will take is not known. An attempt is *paid for* when it is dispatched, by what its tenant's
//!   attempts took lately; again and again while it runs longer than that; and what was paid too much is given back
//!   when it ends. So who has attempts running is charged for them as time goes by (stride scheduling would charge all
//!   of them alike);
//! * who comes back from idleness begins where the others are: at what the last one chosen had consumed when it was
//!   chosen, or at the least that any of those who wait has received. What was not used while away is not credit; and
//!   what was paid in advance counts only as far as its time went by, because the rest may be given back.
//!
//! Pools are apart: a slot of one is of no use to who waits for another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use longshore_protocol::{PoolName, RunId};

use super::effect::JobQueue;
use super::input::Millis;
use super::order::Order;

/// What a tenant's first attempts are thought to take, ms; and the least that any is paid for, so that of many that go
/// out at one moment each counts. A second: steps of a build take longer, and are paid for as they do.
const FIRST_PAY_MS: u64 = 1_000;

/// Received milliseconds are counted in thousandths, so that they can be divided by weights up to a thousand.
const SCALE: u64 = 1_000;

/// How much more a run may have received than another of its tenant and still go on in its parked containers, in
/// slot-milliseconds. A minute: a small run is carried out from end to end, so that of a thousand small ones not a
/// thousand containers are parked; a large one has received more at once.
const AHEAD_MS: u64 = 60_000;

/// Whether one run received so much less than another of its tenant that it goes before that one's parked containers.
pub(super) fn is_behind(one: u64, other: u64) -> bool {
    one.saturating_add(AHEAD_MS * SCALE) < other
}

/// Weights are whole numbers up to this.
pub const WEIGHT_MAX: u32 = 1_000;

/// Everybody's accounts, by pool.
#[derive(Debug, Default)]
pub(super) struct Shares {
    pools: BTreeMap<PoolName, Pool>,
    /// What was paid for each attempt that is not over.
    bills: BTreeMap<(RunId, usize), Bill>,
    /// Attempts with an owner, by when what was paid for them is used up.
    due: BTreeSet<(Millis, RunId, usize)>,
}

#[derive(Debug, Default)]
struct Pool {
    tenants: BTreeMap<Arc<str>, Tenant>,
    /// What the last tenant chosen had consumed then; no more than anybody who waits, where something was given back
    /// to them since.
    reached: u64,
}

#[derive(Debug)]
struct Tenant {
    weight: u64,
    account: Account,
    /// What its attempts take, a moving average, ms.
    usual_ms: u64,
    /// INVARIANT: one per run that waits here, or for which an attempt was paid here and that is not settled.
    runs: BTreeMap<RunId, Account>,
    /// As the pool's, of its runs.
    reached: u64,
    /// Runs of which jobs wait in the pool's queue that nobody has claimed.
    queued: Order<RunId, u64>,
}

/// What somebody received, how many steps of theirs wait, how many jobs in the pool's queue.
#[derive(Debug, Default)]
struct Account {
    received: u64,
    waiting: usize,
    queued: usize,
    /// Attempts that are not over.
    open: usize,
    /// What was paid for these, ms.
    paid_ms: u64,
    /// How many of them have an owner, and the sum of the moments since when.
    owned: u64,
    owned_since: u64,
}

impl Account {
    /// What was received by now, of what is paid in advance only the time that went by.
    fn consumed(&self, now: Millis, weight: u64) -> u64 {
        let gone_by = (self.owned * now).saturating_sub(self.owned_since);
        self.received.saturating_sub(self.paid_ms.saturating_sub(gone_by) * SCALE / weight)
    }

    fn opened(&mut self, paid_ms: u64) {
        self.open += 1;
        self.paid_ms += paid_ms;
    }

    fn owned(&mut self, at: Millis) {
        self.owned += 1;
        self.owned_since += at;
    }

    fn closed(&mut self, bill: &Bill) {
        // Of a run that was forgotten meanwhile, and opened again, the account is younger than the bill.
        self.open = self.open.saturating_sub(1);
        self.paid_ms = self.paid_ms.saturating_sub(bill.paid_ms);
        if let Some(at) = bill.accepted_at {
            self.owned = self.owned.saturating_sub(1);
            self.owned_since = self.owned_since.saturating_sub(at);
        }
    }
}

#[derive(Debug)]
struct Bill {
    pool: PoolName,
    tenant: Arc<str>,
    paid_ms: u64,
    accepted_at: Option<Millis>,
    /// Nobody has claimed it, and its job is in the pool's queue.
    queued: bool,
}

impl Shares {
    /// A step waits for a slot of this pool.
    pub(super) fn waits(&mut self, pool: &PoolName, tenant: &Arc<str>, weight: u32, run: RunId) {
        let pool = self.pools.entry(pool.clone()).or_default();
        if pool.tenant(tenant, weight).account.waiting == 0 {
            let waiting = pool.tenants.values().filter(|tenant| tenant.account.waiting > 0);
            let least = waiting.map(|tenant| tenant.account.received).min().unwrap_or(0);
            let start = least.max(pool.reached);
            let account = &mut pool.tenant(tenant, weight).account;
            account.received = account.received.max(start);
        }
        let tenant = pool.tenant(tenant, weight);
        tenant.account.waiting += 1;
        let run = tenant.runs.entry(run).or_default();
        if run.waiting == 0 {
            run.received = run.received.max(tenant.reached);
        }
        run.waiting += 1;
    }

    /// It waits no longer.
    pub(super) fn waits_no_more(&mut self, pool: &PoolName, tenant: &str, run: RunId) {
        let Some(tenant) = self.pools.get_mut(pool).and_then(|pool| pool.tenants.get_mut(tenant)) else { return };
        tenant.account.waiting -= 1;
        if let Some(run) = tenant.runs.get_mut(&run) {
            run.waiting -= 1;
        }
    }

    /// What a tenant received here; among those who received the same, whoever has less under way goes first.
    pub(super) fn of_tenant(&self, pool: &PoolName, tenant: &str) -> (u64, usize) {
        let tenant = self.pools.get(pool).and_then(|pool| pool.tenants.get(tenant));
        tenant.map_or((0, 0), Tenant::received)
    }

    /// What each of a tenant's runs received here.
    pub(super) fn of_runs(&self, pool: &PoolName, tenant: &str) -> impl Fn(RunId) -> u64 {
        let tenant = self.pools.get(pool).and_then(|pool| pool.tenants.get(tenant));
        move |run| tenant.and_then(|tenant| tenant.runs.get(&run)).map_or(0, |run| run.received)
    }

    /// An attempt was dispatched: it is paid for in advance.
    pub(super) fn dispatched(
        &mut self,
        step: (RunId, usize),
        queue: &JobQueue,
        pool: &PoolName,
        (tenant, weight): (&Arc<str>, u32),
        at: Millis,
    ) {
        let queued = matches!(queue, JobQueue::Pool(_));
        let of_pool = self.pools.entry(pool.clone()).or_default();
        let of_tenant = of_pool.tenant(tenant, weight);
        let paid_ms = of_tenant.usual_ms;
        let before = of_tenant.account.consumed(at, of_tenant.weight);
        let run = of_tenant.runs.entry(step.0).or_default();
        of_tenant.reached = of_tenant.reached.max(run.consumed(at, 1));
        run.opened(paid_ms);
        if queued {
            of_tenant.account.queued += 1;
            run.queued += 1;
            of_tenant.queued.insert(&step.0);
        }
        of_tenant.account.opened(paid_ms);
        of_pool.reached = of_pool.reached.max(before);
        self.pay(pool, tenant, step.0, paid_ms);
        let bill = Bill { pool: pool.clone(), tenant: Arc::clone(tenant), paid_ms, accepted_at: None, queued };
        self.bills.insert(step, bill);
    }

    /// It has an owner: from here on its time counts.
    pub(super) fn accepted(&mut self, step: (RunId, usize), at: Millis) {
        self.left_queue(step);
        let Some(bill) = self.bills.get_mut(&step) else { return };
        bill.accepted_at = Some(at);
        self.due.insert((at + bill.paid_ms, step.0, step.1));
        let (pool, tenant) = (bill.pool.clone(), Arc::clone(&bill.tenant));
        self.each_account(&pool, &tenant, step.0, |account| account.owned(at));
    }

    fn left_queue(&mut self, step: (RunId, usize)) {
        let Some(bill) = self.bills.get_mut(&step).filter(|bill| bill.queued) else { return };
        bill.queued = false;
        let pool = self.pools.get_mut(&bill.pool).expect("a bill is of a pool");
        let tenant = pool.tenants.get_mut(&bill.tenant).expect("a bill is a tenant's");
        tenant.account.queued -= 1;
        let run = tenant.runs.get_mut(&step.0).expect("a run with a bill has an account");
        run.queued -= 1;
        if run.queued == 0 {
            tenant.queued.remove(&step.0);
        }
    }

    /// Whether in the pool's queue a job waits of somebody who received less: another tenant, or another run of the
    /// same one.
    pub(super) fn less_is_queued(&mut self, pool: &PoolName, tenant: &str, run: RunId) -> bool {
        let received = self.of_tenant(pool, tenant);
        let Some(pool) = self.pools.get_mut(pool) else { return false };
        let less =
            |(other, of): (&Arc<str>, &Tenant)| &**other != tenant && of.account.queued > 0 && of.received() < received;
        if pool.tenants.iter().any(less) {
            return true;
        }
        let Some(Tenant { runs, queued, .. }) = pool.tenants.get_mut(tenant) else { return false };
        let of_run = |run: &RunId| runs.get(run).map_or(0, |run| run.received);
        queued.first(of_run).is_some_and(|first| first != run && is_behind(of_run(&first), of_run(&run)))
    }

    /// Pays for attempts that have used up what was paid. A quarter more each time: so an attempt costs a few dozen
    /// payments however long it runs, and is never paid for more than a quarter too much.
    pub(super) fn go_by(&mut self, now: Millis) {
        while let Some(&(at, run, step)) = self.due.first() {
            if at > now {
                break;
            }
            self.due.pop_first();
            let Some(bill) = self.bills.get_mut(&(run, step)) else { continue };
            let elapsed = now.saturating_sub(bill.accepted_at.unwrap_or(now));
            let more = elapsed.saturating_sub(bill.paid_ms) + (elapsed / 4).max(FIRST_PAY_MS);
            bill.paid_ms += more;
            let until = bill.accepted_at.unwrap_or(now) + bill.paid_ms;
            let (pool, tenant) = (bill.pool.clone(), Arc::clone(&bill.tenant));
            self.due.insert((until, run, step));
            self.pay(&pool, &tenant, run, more);
            self.each_account(&pool, &tenant, run, |account| account.paid_ms += more);
        }
    }

    /// It is over: what was paid too much is given back.
    pub(super) fn ended(&mut self, step: (RunId, usize), at: Millis) {
        self.left_queue(step);
        let Some(bill) = self.bills.remove(&step) else { return };
        let took = bill.accepted_at.map(|accepted| {
            self.due.remove(&(accepted + bill.paid_ms, step.0, step.1));
            at.saturating_sub(accepted)
        });
        self.each_account(&bill.pool, &bill.tenant, step.0, |account| account.closed(&bill));
        let Some(tenant) = self.pools.get_mut(&bill.pool).and_then(|pool| pool.tenants.get_mut(&bill.tenant)) else {
            return;
        };
        if let Some(took) = took {
            // An eighth each time: a dozen attempts say what the next ones take.
            tenant.usual_ms = (tenant.usual_ms * 7 + took.max(FIRST_PAY_MS)) / 8;
        }
        let took = took.unwrap_or(0);
        if took > bill.paid_ms {
            let more = took - bill.paid_ms;
            self.pay(&bill.pool, &bill.tenant, step.0, more);
        } else {
            let back = bill.paid_ms - took;
            tenant.account.received = tenant.account.received.saturating_sub(back * SCALE / tenant.weight);
            if let Some(run) = tenant.runs.get_mut(&step.0) {
                run.received = run.received.saturating_sub(back * SCALE);
                if run.waiting > 0 {
                    tenant.reached = tenant.reached.min(run.received);
                }
            }
            tenant.queued.look_again(&step.0);
            let received = tenant.account.received;
            if tenant.account.waiting > 0
                && let Some(pool) = self.pools.get_mut(&bill.pool)
            {
                pool.reached = pool.reached.min(received);
            }
        }
    }

    /// A run is settled: nothing of it will wait any more.
    pub(super) fn forget(&mut self, run: RunId) {
        for tenant in self.pools.values_mut().flat_map(|pool| pool.tenants.values_mut()) {
            tenant.runs.remove(&run);
        }
    }

    /// What is kept of a tenant in all, and of its run.
    fn each_account(&mut self, pool: &PoolName, tenant: &str, run: RunId, change: impl Fn(&mut Account)) {
        let Some(tenant) = self.pools.get_mut(pool).and_then(|pool| pool.tenants.get_mut(tenant)) else { return };
        change(&mut tenant.account);
        if let Some(run) = tenant.runs.get_mut(&run) {
            change(run);
        }
    }

    fn pay(&mut self, pool: &PoolName, tenant: &str, run: RunId, ms: u64) {
        let Some(tenant) = self.pools.get_mut(pool).and_then(|pool| pool.tenants.get_mut(tenant)) else { return };
        tenant.account.received += ms * SCALE / tenant.weight;
        tenant.runs.entry(run).or_default().received += ms * SCALE;
    }
}

impl Tenant {
    fn received(&self) -> (u64, usize) {
        (self.account.received, self.account.open)
    }
}

impl Pool {
    fn tenant(&mut self, tenant: &Arc<str>, weight: u32) -> &mut Tenant {
        self.tenants.entry(Arc::clone(tenant)).or_insert_with(|| Tenant {
            weight: u64::from(weight.clamp(1, WEIGHT_MAX)),
            account: Account::default(),
            usual_ms: FIRST_PAY_MS,
            runs: BTreeMap::new(),
            reached: 0,
            queued: Order::default(),
        })
    }
}
