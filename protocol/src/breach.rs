//! Rules that are broken on purpose, so that it is seen that the simulator would notice.
//!
//! Each is named where its rule is kept: `if breach::is(Breach::…)`. Without the feature `breach` that is `false` when it
//! is compiled, and nothing of it is in the program; with it, one of them at a time is chosen when a schedule begins.

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Breach {
    /// P2: what the broker returned counts as published.
    ReturnedIsPublished,
    /// P3: effects are published before their transaction is committed.
    EffectsBeforeCommit,
    /// P3: what a predecessor left in the outbox is not carried out.
    NoOutbox,
    /// P4: a job is acked before its `accepted` is confirmed.
    AckedBeforeAccepted,
    /// P5: a later `accepted` takes over.
    SecondTakesOver,
    /// P6: a job that is gone is not missed.
    GoneIsWaitedFor,
    /// P7: what a heartbeat lacks is lost, whatever was heard since it was sent.
    NotHeldAtOnce,
    /// P8: silence is counted by the clock on the wall.
    LeaseByWallClock,
    /// P8: who begins to lead grants nobody a lease.
    NoFreshLease,
    /// P9: a number that is missing is not noticed.
    GapIgnored,
    /// P10: an incarnation is believed when a later one has joined.
    OldIncarnationHeard,
    /// P11: the end of a lease dispatches again what is over.
    LeaseEndsWhatIsOver,
    /// P12: there is no owner in the fence.
    NoOwnerInFence,
    /// P12: anybody's output is stored.
    StaleOutputStored,
    /// P13: a run that is cancelled leaves its attempts running.
    CancelledGoesOn,
    /// P14: output is put behind what is there, wherever it belongs.
    OffsetsIgnored,
    /// P16: the supervisor hears that output is spooled before it is.
    AckedBeforeSpooled,
    /// P17: a new incarnation leaves its predecessor's containers alone.
    NothingIsSwept,
    /// P18: an exclusive step is started without the coordinator's word, and without a lease.
    ExclusiveUnleased,
    /// P19: a parent is still committed when a child has taken its container.
    ConsumedIsParents,
    /// P20: a remaking that fails changes the outcome.
    RemakeChangesOutcome,
    /// P21: a transaction does not look whose epoch it is.
    EpochNotChecked,
    /// P22: who commands is not asked.
    OldEpochObeyed,
}

/// Whether this rule is broken.
#[cfg(not(feature = "breach"))]
#[inline]
#[must_use]
pub const fn is(_: Breach) -> bool {
    false
}

#[cfg(feature = "breach")]
pub use chosen::{ALL, MARK, choose, is};

#[cfg(feature = "breach")]
mod chosen {
    use std::cell::Cell;

    use super::Breach;

    /// In every program that can break a rule, and in no other: `make lint` looks for it.
    pub static MARK: &str = "longshore-can-break-its-rules";

    /// Each of them.
    pub const ALL: [Breach; 23] = [
        Breach::ReturnedIsPublished,
        Breach::EffectsBeforeCommit,
        Breach::NoOutbox,
        Breach::AckedBeforeAccepted,
        Breach::SecondTakesOver,
        Breach::GoneIsWaitedFor,
        Breach::NotHeldAtOnce,
        Breach::LeaseByWallClock,
        Breach::NoFreshLease,
        Breach::GapIgnored,
        Breach::OldIncarnationHeard,
        Breach::LeaseEndsWhatIsOver,
        Breach::NoOwnerInFence,
        Breach::StaleOutputStored,
        Breach::CancelledGoesOn,
        Breach::OffsetsIgnored,
        Breach::AckedBeforeSpooled,
        Breach::NothingIsSwept,
        Breach::ExclusiveUnleased,
        Breach::ConsumedIsParents,
        Breach::RemakeChangesOutcome,
        Breach::EpochNotChecked,
        Breach::OldEpochObeyed,
    ];

    thread_local! {
        static CHOSEN: Cell<Option<Breach>> = const { Cell::new(None) };
    }

    /// From now on this one is committed on this thread, or none.
    pub fn choose(breach: Option<Breach>) {
        CHOSEN.set(breach);
    }

    /// Whether this rule is broken.
    #[must_use]
    pub fn is(breach: Breach) -> bool {
        CHOSEN.get() == Some(breach)
    }
}
