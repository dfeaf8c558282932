//! Network namespaces that are kept for containers to come: making one is half of a container's start
//! (`docs/decisions/namespaces.md`).
//!
//! Each is held by a small container of the worker's own, `longshore.<worker>.net.<n>`, in which a supervisor waits and
//! nothing ever runs. A step's container joins it, one at a time, from its creation to its removal, parked time
//! included; containers of one tenant only, all its life. It is given out again only after the last one ended in
//! order and left nothing in it ([`tables`]); what is in any doubt is removed and made anew.
//!
//! Nobody waits for one: a container that finds none gets its own.
//!
//! - [`take`](Namespaces::take) and [`give_back`](Namespaces::give_back): a step's container comes and goes;
//! - [`first`](Namespaces::first) and [`fill`](Namespaces::fill) adopt, make and remove them in the background, one at
//!   a time: [`holder`];
//! - [`record`]: what must be known of one after the worker was killed.

mod counted;
mod holder;
mod record;
mod tables;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

pub(crate) use self::counted::NAMESPACE_METRICS;
use self::counted::{ASKED, DISCARDED, KEPT, MADE, REUSED};
use self::tables::{Process, Sockets};
use super::super::{ContainerName, Duty, EngineError};
use super::DockerEngine;
use longshore_protocol::process::blocking;

/// After making or removing one, rest this many times as long as it took: a third of one of the Engine's four lanes is
/// what steps' own starts are slowed down by.
const REST: u32 = 2;

/// Holders that died meanwhile (an Engine that was restarted) are noticed after this at the latest; mostly by whoever
/// would have got one.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// An Engine that fails to make one is asked again after this, doubling up to the cap.
const AGAIN_FIRST: Duration = Duration::from_millis(500);
const AGAIN_MAX: Duration = Duration::from_secs(30);

/// What a Docker Engine keeps for one worker. Empty until the worker has begun.
#[derive(Default)]
pub(super) struct Namespaces {
    state: Mutex<State>,
    /// Something is to be made or removed.
    changed: Notify,
    /// Held while one is made or removed: the end comes between two of those.
    working: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    holders: BTreeMap<u32, Holder>,
    /// Where their records are. `None` before `first` and after `end`.
    records: Option<PathBuf>,
    /// The worker has left: none is made any more, whoever is still finding out whether they work.
    ended: bool,
    /// Greater than every number that was ever used: a name never comes back.
    next: u32,
}

/// One namespace, by its container.
struct Holder {
    /// The Engine's id of the container.
    id: String,
    /// Its first process.
    process: Process,
    /// The sockets that are in it while nobody uses it: the supervisor's connection, and the Engine's own.
    own: Sockets,
    /// Whom it belongs to. `None`: nobody yet.
    tenant: Option<String>,
    standing: Standing,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    Free,
    /// By the container of this name.
    Used(String),
    /// The container that used it is gone; what it left is being looked at.
    Looking,
    /// To be removed, and why.
    Useless(&'static str),
}

impl Namespaces {
    /// The network of a container of this name and tenant, if one is ready. It is the container's until
    /// [`give_back`](Self::give_back).
    pub(super) async fn take(&self, tenant: &str, container: &ContainerName) -> Option<String> {
        // A dead one is found out by looking at it: then the next is tried.
        loop {
            let Some((number, process, records)) = self.choose(tenant, container) else {
                metrics::counter!(ASKED, "result" => "none").increment(1);
                return None;
            };
            // From here on until it is given back in order it is not to be had, also not after a crash.
            let lives = blocking(move || record::erase(&records, number).is_ok() && process.lives()).await;
            self.count();
            let mut state = self.state();
            let holder = state.holders.get_mut(&number)?;
            if lives {
                metrics::counter!(ASKED, "result" => "kept").increment(1);
                return Some(format!("container:{}", holder.id));
            }
            self.useless(holder, "dead");
        }
    }

    /// Marks the best one as used: one that its tenant has already, else one that nobody has.
    fn choose(&self, tenant: &str, container: &ContainerName) -> Option<(u32, Process, PathBuf)> {
        let mut state = self.state();
        let records = state.records.clone()?;
        let mut free: Vec<_> =
            state.holders.iter_mut().filter(|(_, holder)| holder.standing == Standing::Free).collect();
        let of = |owner: Option<&str>| free.iter().position(|(_, holder)| holder.tenant.as_deref() == owner);
        let Some(chosen) = of(Some(tenant)).or_else(|| of(None)) else {
            // What is free is another tenant's. One of them becomes this one's, by being made anew.
            if let Some((_, holder)) = free.first_mut() {
                self.useless(holder, "tenant");
            }
            return None;
        };
        let (number, holder) = free.swap_remove(chosen);
        holder.standing = Standing::Used(container.to_string());
        holder.tenant = Some(tenant.to_owned());
        Some((*number, holder.process, records))
    }

    /// Whether this container uses one.
    pub(super) fn is_used_by(&self, container: &ContainerName) -> bool {
        let used = Standing::Used(container.to_string());
        self.state().holders.values().any(|holder| holder.standing == used)
    }

    /// A container is gone from the Engine. `in_order`: nothing ran in it any more before it went, and what it shares
    /// with its holder's container besides the network (`/etc/hosts` and its like) is as it was. Does nothing for one
    /// that used none.
    pub(super) async fn give_back(&self, container: &ContainerName, in_order: bool) {
        let used = Standing::Used(container.to_string());
        let looked_at = {
            let mut state = self.state();
            let records = state.records.clone();
            let Some((number, holder)) = state.holders.iter_mut().find(|(_, holder)| holder.standing == used) else {
                return;
            };
            match (records, holder.tenant.clone()) {
                (Some(records), Some(tenant)) if in_order => {
                    holder.standing = Standing::Looking;
                    Some((*number, holder.id.clone(), holder.process, holder.own, records, tenant))
                }
                // Without a tenant it was found in use: nobody knows by whom before.
                _ => {
                    self.useless(holder, if in_order { "unknown" } else { "disorder" });
                    None
                }
            }
        };
        let Some((number, id, process, own, records, tenant)) = looked_at else { return };
        // What cannot be looked at is not known to be empty.
        let is_empty = |found: &Sockets| found.is_within(own);
        let empty = process.settled(is_empty).await.is_ok_and(|found| is_empty(&found));
        let recorded = empty && blocking(move || record::write(&records, number, &id, Some(&tenant))).await.is_ok();
        let mut state = self.state();
        let Some(holder) = state.holders.get_mut(&number) else { return };
        if recorded {
            holder.standing = Standing::Free;
            metrics::counter!(REUSED).increment(1);
        } else {
            self.useless(holder, if empty { "unknown" } else { "sockets" });
        }
        drop(state);
        self.count();
    }

    /// Makes sure that there is one, by which it is known that containers like these work here: one that is there
    /// already, or a new one.
    pub(super) async fn first(&self, engine: &DockerEngine) -> Result<(), EngineError> {
        let Some(duty) = engine.shared.supervised.duty() else { return Ok(()) };
        let records = duty.dir.join("net");
        let _working = self.working.lock().await;
        let found = holder::list(engine, &duty.worker).await?;
        {
            let mut state = self.state();
            if state.ended {
                return Ok(());
            }
            let highest = found.iter().map(|found| found.number + 1).max().unwrap_or(1);
            state.next = state.next.max(highest);
            state.records = Some(records);
        }
        for found in found {
            if self.state().holders.contains_key(&found.number) {
                return Ok(()); // an earlier try found it
            }
            let adopted = self.adopt(engine, duty, found).await;
            if adopted {
                return Ok(());
            }
        }
        self.make(engine, duty).await
    }

    /// Keeps as many as there shall be. Ends with [`end`](Self::end), or when it is dropped.
    pub(super) async fn fill(&self, engine: &DockerEngine) {
        let Some(duty) = engine.shared.supervised.duty() else { return };
        let mut again = AGAIN_FIRST;
        let mut adopting = true;
        loop {
            let began = Instant::now();
            let worked = {
                let _working = self.working.lock().await;
                if self.state().records.is_none() {
                    return;
                }
                if adopting { self.adopt_all(engine, duty).await.map(|()| true) } else { self.work(engine, duty).await }
            };
            self.count();
            match worked {
                Ok(true) => {
                    adopting = false;
                    again = AGAIN_FIRST;
                    tokio::time::sleep(began.elapsed() * REST).await;
                }
                Ok(false) => {
                    let changed = tokio::time::timeout(LOOK_EVERY, self.changed.notified()).await;
                    if changed.is_err() {
                        self.look().await;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, wait_ms = again.as_millis(), "no network namespace could be kept ready");
                    tokio::time::sleep(again).await;
                    again = (again * 2).min(AGAIN_MAX);
                }
            }
        }
    }

    /// One piece of work, if there is any.
    async fn work(&self, engine: &DockerEngine, duty: &Duty) -> Result<bool, EngineError> {
        let (useless, missing) = {
            let mut state = self.state();
            let surplus = state.holders.len().saturating_sub(duty.namespaces);
            let free = state.holders.values_mut().rev().filter(|holder| holder.standing == Standing::Free);
            for holder in free.take(surplus) {
                self.useless(holder, "surplus");
            }
            let mut holders = state.holders.iter();
            let useless = holders.find(|(_, holder)| matches!(holder.standing, Standing::Useless(_)));
            (useless.map(|(number, _)| *number), state.holders.len() < duty.namespaces)
        };
        if let Some(number) = useless {
            self.remove(engine, duty, number).await?;
        } else if missing {
            self.make(engine, duty).await?;
        }
        Ok(useless.is_some() || missing)
    }

    async fn make(&self, engine: &DockerEngine, duty: &Duty) -> Result<(), EngineError> {
        let (number, records) = {
            let mut state = self.state();
            let Some(records) = state.records.clone() else { return Ok(()) };
            state.next += 1;
            (state.next - 1, records)
        };
        let made = holder::make(engine, &duty.worker, number).await?;
        let id = made.id.clone();
        // Without its record it is as good as any other until this worker ends; then it is made anew.
        if let Err(error) = blocking(move || record::write(&records, number, &id, None)).await {
            tracing::warn!(number, %error, "the record of a network namespace could not be written");
        }
        self.state().holders.insert(number, made);
        metrics::counter!(MADE).increment(1);
        Ok(())
    }

    async fn remove(&self, engine: &DockerEngine, duty: &Duty, number: u32) -> Result<(), EngineError> {
        holder::remove(engine, &holder::name(&duty.worker, number)).await?;
        let records = {
            let mut state = self.state();
            state.holders.remove(&number);
            state.records.clone()
        };
        if let Some(records) = records {
            let erased = blocking(move || record::erase(&records, number)).await;
            // It names a container that is gone, whose number does not come back.
            let _ = erased.inspect_err(|error| tracing::debug!(number, %error, "a record is still here"));
        }
        Ok(())
    }

    /// All that an earlier incarnation left.
    async fn adopt_all(&self, engine: &DockerEngine, duty: &Duty) -> Result<(), EngineError> {
        let found = holder::list(engine, &duty.worker).await?;
        let new = found.into_iter().filter(|found| !self.state().holders.contains_key(&found.number));
        let adopting: Vec<_> = new.map(|found| self.adopt(engine, duty, found)).collect();
        futures_util::future::join_all(adopting).await;
        Ok(())
    }

    /// Takes up one holder that is there; one that is of no use is noted as such.
    async fn adopt(&self, engine: &DockerEngine, duty: &Duty, found: holder::Found) -> bool {
        let Some(records) = self.state().records.clone() else { return false };
        let number = found.number;
        let mut holder = holder::adopt(engine, &duty.worker, found).await;
        let id = holder.id.clone();
        let tenant = blocking(move || record::read(&records, number, &id)).await;
        match (&holder.standing, tenant) {
            (Standing::Free, Some(tenant)) => holder.tenant = tenant,
            (Standing::Free, None) => holder.standing = Standing::Useless("unknown"),
            _ => {}
        }
        let adopted = !matches!(holder.standing, Standing::Useless(_));
        tracing::debug!(number, standing = ?holder.standing, "found a kept network namespace");
        self.state().holders.insert(number, holder);
        adopted
    }

    /// Notices those that died.
    async fn look(&self) {
        let free = |holder: &Holder| holder.standing == Standing::Free;
        let looked_at: Vec<_> = self
            .state()
            .holders
            .iter()
            .filter(|(_, holder)| free(holder))
            .map(|(n, holder)| (*n, holder.process))
            .collect();
        let dead =
            blocking(move || looked_at.into_iter().filter(|(_, process)| !process.lives()).collect::<Vec<_>>()).await;
        let mut state = self.state();
        for (number, _) in dead {
            if let Some(holder) = state.holders.get_mut(&number).filter(|holder| free(holder)) {
                self.useless(holder, "dead");
            }
        }
    }

    /// Removes all of them, and keeps none from now on.
    pub(super) async fn end(&self, engine: &DockerEngine) {
        {
            let mut state = self.state();
            state.records = None;
            state.ended = true;
        }
        self.changed.notify_one();
        let Some(duty) = engine.shared.supervised.duty() else { return };
        let _working = self.working.lock().await;
        self.state().holders.clear();
        self.count();
        let records = duty.dir.join("net");
        // Listed, not remembered: one that could not be removed earlier goes as well.
        let removed = async {
            let found = holder::list(engine, &duty.worker).await?;
            let names = found.iter().map(|found| holder::name(&duty.worker, found.number));
            let removing: Vec<_> = names.map(|name| async move { holder::remove(engine, &name).await }).collect();
            futures_util::future::join_all(removing).await.into_iter().collect::<Result<(), _>>()
        };
        if let Err(error) = removed.await {
            // They end themselves when nobody has spoken to them for long enough (P17).
            tracing::warn!(%error, "kept network namespaces are still here");
        }
        let erased = blocking(move || record::erase_all(&records)).await;
        let _ = erased.inspect_err(|error| tracing::debug!(%error, "records of network namespaces are still here"));
    }

    fn useless(&self, holder: &mut Holder, because: &'static str) {
        holder.standing = Standing::Useless(because);
        metrics::counter!(DISCARDED, "because" => because).increment(1);
        self.changed.notify_one();
    }

    fn count(&self) {
        let state = self.state();
        let free = state.holders.values().filter(|holder| holder.standing == Standing::Free).count();
        let used = state.holders.values().filter(|holder| matches!(holder.standing, Standing::Used(_))).count();
        metrics::gauge!(KEPT, "state" => "free").set(free as f64);
        metrics::gauge!(KEPT, "state" => "used").set(used as f64);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
