//! Exclusive attempts (P18): when one may be started, and until when it may run (`docs/decisions/exclusive.md`).
//!
//! All of it is counted from when this worker *sent* what the coordinator is known to have heard, by the clock that
//! the supervisors count with: whatever was stopped or slow since then has used up time, and never gained any.

use std::time::Duration;

use longshore_protocol::breach::{self, Breach};
use longshore_protocol::broker::Broker;
use longshore_protocol::job::Job;
use longshore_protocol::lease::{DEAD_BEFORE_END, GRACE_MAX, LEASE_MIN, VOID_BEFORE_END};
use longshore_protocol::outcome::GO_VOID;
use longshore_protocol::process::watch;
use longshore_protocol::{InfraStage, Outcome};

use crate::clock::Boot;
use crate::context::Context;
use crate::engine::{CommandLease, ContainerName, Engine, Way};
use crate::job::{End, Task};
use crate::tidy;

/// What a worker may count on for one attempt. Of one that is not exclusive nobody asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leased {
    /// When it was first told that it is held: by its `accepted`, or by the `hello` of a later incarnation.
    asked: Option<Boot>,
    /// The coordinator said `go`, in time.
    go: bool,
    /// When the last of what the coordinator has heard was sent.
    heard: Option<Boot>,
}

impl Leased {
    /// It is about to be told. What is sent again counts from the first time: nobody knows which of them was heard.
    pub(crate) fn ask(&mut self, now: Boot) {
        self.asked.get_or_insert(now);
    }

    /// The coordinator's `go`. One that comes too late may be older than the end of the lease (void).
    pub(crate) fn go(&mut self, now: Boot, lease: Duration) {
        if let Some(asked) = self.asked.filter(|asked| now < void(*asked, lease)) {
            self.go = true;
            self.heard = self.heard.max(Some(asked));
        }
    }

    /// A heartbeat that was sent then was heard.
    pub(crate) fn heard(&mut self, sent: Boot, now: Boot) {
        if sent <= now {
            self.heard = self.heard.max(Some(sent));
        }
    }

    /// By when nothing of it may run any more.
    fn dead_by(&self, lease: Duration) -> Option<Boot> {
        Some(self.heard?.after(lease).before(DEAD_BEFORE_END))
    }

    /// Whether its command may be started now, and by when it is to be dead then.
    fn may_start(&self, now: Boot, lease: Duration) -> Option<Boot> {
        let in_time = self.go && self.heard.is_some_and(|heard| now < void(heard, lease));
        self.dead_by(lease).filter(|_| in_time)
    }
}

fn void(sent: Boot, lease: Duration) -> Boot {
    sent.after(lease).before(VOID_BEFORE_END)
}

/// Refuses an exclusive step where nobody could end it in time.
pub(crate) async fn possible<B: Broker, E: Engine>(context: &Context<B, E>, job: &Job) -> Result<(), End> {
    if !job.spec.exclusive {
        return Ok(());
    }
    let refused = |reason: String| Err(End::infra(InfraStage::Prepare, reason));
    let lease = context.config.lease;
    if lease < LEASE_MIN {
        let (lease, min) = (lease.as_secs(), LEASE_MIN.as_secs());
        return refused(format!(
            "an exclusive step needs a lease of at least {min} s, and this fleet's is {lease} s: start its \
             coordinators and workers with `--lease {min}` or more"
        ));
    }
    match context.engine.way().await {
        Ok(Way::Supervised) => Ok(()),
        Ok(Way::Direct { because }) => refused(format!(
            "an exclusive step needs the supervisor, which ends it in time, and worker {} cannot use it: {because}. \
             `longshore doctor` on its host says more; or give the step a `pool` of workers that can",
            context.id
        )),
        Err(error) => {
            context.noticed(&error);
            refused(error.to_string())
        }
    }
}

/// Waits until a command may be started: `None` for one that need not wait.
///
/// A `go` that came in time holds for as long as heartbeats are answered, as the timer of what runs does: to prepare a
/// step may take longer than a lease.
pub(crate) async fn cleared<B: Broker, E: Engine>(
    context: &Context<B, E>,
    task: &mut Task,
) -> Result<Option<CommandLease>, End> {
    if !task.job.spec.exclusive || breach::is(Breach::ExclusiveUnleased) {
        return Ok(None);
    }
    let lease = context.config.lease;
    let mut stop = task.attempt.stop.clone();
    let mut leased = task.attempt.leased.subscribe();
    loop {
        let known = *leased.borrow_and_update();
        if let Some(dead_by) = known.may_start(Boot::now(), lease) {
            let grace = Duration::from_millis(task.job.spec.grace_ms).min(GRACE_MAX);
            return Ok(Some(CommandLease { dead_by, grace }));
        }
        let void = known.asked.filter(|_| !known.go).map(|asked| void(asked, lease));
        if void.is_some_and(|void| void <= Boot::now()) {
            task.note("the step was not begun: the coordinator's `go` did not come in time").await;
            return Err(End::infra(InfraStage::Claim, GO_VOID));
        }
        let voided = async {
            match void {
                Some(void) => tokio::time::sleep(void.away()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            reason = stop.requested() => return Err(End::stopped(reason, InfraStage::Exec)),
            // The attempt's table holds the sender for as long as somebody waits here.
            _ = leased.changed() => {}
            () = voided => {}
        }
    }
}

/// Moves the supervisor's timer on, with every heartbeat that was answered. Never returns.
pub(crate) async fn extend<B: Broker, E: Engine>(
    context: &Context<B, E>,
    container: &ContainerName,
    mut leased: watch::Receiver<Leased>,
) {
    let mut told = None;
    loop {
        let dead_by = leased.borrow_and_update().dead_by(context.config.lease);
        if let Some(dead_by) = dead_by.filter(|_| dead_by > told) {
            // What does not arrive is said again with the next one, if that still is in time.
            if let Err(error) = context.engine.extend(container, dead_by).await {
                tracing::warn!(%container, %error, "the lease of an exclusive step could not be extended");
            }
            told = Some(dead_by);
        }
        if leased.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// How a command ended that was ended for its lease. Whatever it made of TERM, it is not what it would have come to.
pub(crate) fn out_of_lease() -> Outcome {
    let reason = "the coordinator did not answer for so long that the step was ended before its worker's lease";
    Outcome::infra(InfraStage::Lease, reason)
}

/// Removes a container in which an attempt may still run. Of an exclusive one nothing is told (P11) before it is sure that
/// nothing does: where the Engine cannot say so, the supervisor's timer can, which never is further away than a lease.
pub(crate) async fn remove<B: Broker, E: Engine>(context: &Context<B, E>, job: &Job, container: &ContainerName) {
    let removed = tidy::remove(context, container).await;
    if !removed && job.spec.exclusive {
        let lease = context.config.lease;
        tracing::warn!(%container, seconds = lease.as_secs(), "waits until an exclusive step's timer has ended it");
        tokio::time::sleep(lease).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(30);

    fn at(secs: u64) -> Boot {
        Boot(1_000_000 + secs * 1000)
    }

    #[test]
    fn p18_a_go_is_void_ten_seconds_before_the_lease_that_its_accepted_began() {
        for (comes, counts) in [(0, true), (19, true), (20, false), (300, false)] {
            let mut leased = Leased::default();
            leased.go(at(0), LEASE);
            assert_eq!(leased, Leased::default(), "nobody asked for it");
            leased.ask(at(0));
            leased.ask(at(comes)); // sent again
            leased.go(at(comes), LEASE);
            assert_eq!(leased.may_start(at(comes), LEASE), counts.then(|| at(25)), "after {comes} s");
        }
    }

    #[test]
    fn p18_what_was_heard_is_counted_from_its_sending_and_moves_nothing_back() {
        let mut leased = Leased::default();
        leased.ask(at(0));
        leased.heard(at(2), at(3));
        assert_eq!(leased.may_start(at(3), LEASE), None, "an answered heartbeat is no go");
        leased.go(at(4), LEASE);
        leased.heard(at(10), at(18));
        leased.heard(at(5), at(19));
        leased.heard(at(50), at(20)); // nobody's
        assert_eq!(leased.dead_by(LEASE), Some(at(35)));
        assert_eq!(leased.may_start(at(29), LEASE), Some(at(35)));
        assert_eq!(leased.may_start(at(30), LEASE), None, "it waits for the next one");
        leased.heard(at(40), at(41));
        assert_eq!(leased.may_start(at(41), LEASE), Some(at(65)));
    }
}
