//! P15: how much of the disk all spools of a worker take together.
//!
//! Each step has some room that is its own; beyond that all of them share a bound, and who finds no room waits in line.
//! What a step has stored is given back sooner while somebody waits, so that the line moves.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longshore_protocol::process::watch;
use tokio::sync::Semaphore;

/// What is counted: a piece of output, as it is read.
const UNIT_BYTES: u64 = 64 * 1024;

/// What each step may hold whatever the others do: as much as may be on its way to the coordinator (P15), so that who
/// waits always has something under way whose arrival makes room.
pub(crate) const OWN_BYTES: u64 = 8 * 1024 * 1024;

/// All spools together, where nothing is said: this share of what is free when the worker starts. The rest is the
/// Engine's, and everybody else's.
const SHARE_OF_FREE: u64 = 4;

/// Beside one step, this much must fit, or it would wait for each of its lines.
const SHARED_BYTES_MIN: u64 = 64 * 1024 * 1024;

/// The room that all share.
#[derive(Debug)]
pub(crate) struct Spools {
    /// In units, fair: whoever came first is served first, however much the next one wants.
    room: Semaphore,
    units: u32,
    /// How many wait in line.
    waiting: watch::Sender<u32>,
}

impl Spools {
    /// For a state directory; `bytes_max`, or a share of what is free there now.
    pub(crate) fn new(dir: &Path, bytes_max: Option<u64>) -> Arc<Self> {
        let free = || rustix::fs::statvfs(dir).map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        Self::of(bytes_max.unwrap_or_else(|| (free() / SHARE_OF_FREE).max(SHARED_BYTES_MIN)))
    }

    pub(crate) fn of(bytes: u64) -> Arc<Self> {
        // What a semaphore counts to is far more than any disk.
        let units = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX);
        let units = units.min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        Arc::new(Self { room: Semaphore::new(units as usize), units, waiting: watch::Sender::new(0) })
    }

    /// One step's share of it; nothing yet.
    pub(crate) fn share(self: &Arc<Self>) -> Arc<Share> {
        Arc::new(Share { of: Arc::clone(self), units: Mutex::new(0) })
    }

    /// Moves on when somebody begins to wait, or stops.
    pub(crate) fn waiting(&self) -> watch::Receiver<u32> {
        self.waiting.subscribe()
    }
}

/// What one step has of it. Given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    of: Arc<Spools>,
    /// Taken from the room, beyond what is its own.
    units: Mutex<u32>,
}

/// What so many bytes of one step take of the room.
fn units_for(bytes: u64) -> u32 {
    u32::try_from(bytes.saturating_sub(OWN_BYTES).div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

impl Share {
    /// Makes room for so many bytes in all, if there is any and nobody waits for it.
    pub(crate) fn try_cover(&self, bytes: u64) -> bool {
        let mut units = self.lock();
        let more = units_for(bytes).saturating_sub(*units);
        let Ok(permits) = self.of.room.try_acquire_many(more) else { return false };
        permits.forget();
        *units += more;
        true
    }

    /// Waits in line for it. Of a step there is one that waits.
    pub(crate) async fn cover(&self, bytes: u64) {
        let _waiting = Waiting::begin(&self.of.waiting);
        let wanted = units_for(bytes);
        if wanted > self.of.units {
            // More than there is at all: in the line it would hold up everybody, in vain. What it gives back itself helps.
            return std::future::pending().await;
        }
        let more = wanted.saturating_sub(*self.lock());
        // It is never closed. Meanwhile less may have come to be held: what is too much is given back with that.
        if let Ok(permits) = self.of.room.acquire_many(more).await {
            permits.forget();
            *self.lock() += more;
        }
    }

    /// No more than so many bytes are held now.
    pub(crate) fn shrink(&self, bytes: u64) {
        let mut units = self.lock();
        let less = units.saturating_sub(units_for(bytes));
        *units -= less;
        self.of.room.add_permits(less as usize);
    }

    /// Somebody, of this worker's steps, waits for room.
    pub(crate) fn is_scarce(&self) -> bool {
        *self.of.waiting.borrow() > 0
    }

    /// See [`Spools::waiting`].
    pub(crate) fn waiting(&self) -> watch::Receiver<u32> {
        self.of.waiting()
    }

    fn lock(&self) -> MutexGuard<'_, u32> {
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let units = *self.lock();
        self.of.room.add_permits(units as usize);
    }
}

/// One in line, until it is dropped.
struct Waiting<'a>(&'a watch::Sender<u32>);

impl<'a> Waiting<'a> {
    fn begin(waiting: &'a watch::Sender<u32>) -> Self {
        waiting.send_modify(|waiting| *waiting += 1);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn p15_each_step_has_room_of_its_own_and_all_share_the_rest() {
        let spools = Spools::of(4 * MIB);
        let [first, second] = [spools.share(), spools.share()];
        assert!(first.try_cover(OWN_BYTES + 4 * MIB));
        assert!(second.try_cover(OWN_BYTES), "that is its own");
        assert!(!second.try_cover(OWN_BYTES + 1));
        first.shrink(OWN_BYTES + 3 * MIB);
        assert!(second.try_cover(OWN_BYTES + MIB) && !second.try_cover(OWN_BYTES + MIB + 1));
        drop(first);
        assert!(second.try_cover(OWN_BYTES + 4 * MIB));
        assert!(!second.try_cover(OWN_BYTES + 4 * MIB + 1), "one alone has all of it, and no more");
    }

    #[test]
    fn p15_who_waits_first_is_served_first() {
        let spools = Spools::of(2 * MIB);
        let shares = [spools.share(), spools.share(), spools.share()];
        assert!(shares[0].try_cover(OWN_BYTES + 2 * MIB) && !shares[0].is_scarce());
        let mut much = Box::pin(shares[1].cover(OWN_BYTES + 2 * MIB));
        assert!(much.as_mut().now_or_never().is_none());
        let mut little = Box::pin(shares[2].cover(OWN_BYTES + 1));
        assert!(little.as_mut().now_or_never().is_none());
        assert_eq!(*spools.waiting().borrow(), 2);
        // There is room for the little one only: it does not overtake.
        shares[0].shrink(OWN_BYTES + MIB);
        assert!(!shares[0].try_cover(OWN_BYTES + 2 * MIB) && little.as_mut().now_or_never().is_none());
        shares[0].shrink(0);
        assert!(much.as_mut().now_or_never().is_some() && little.as_mut().now_or_never().is_none());
        shares[1].shrink(0);
        assert!(little.as_mut().now_or_never().is_some());
        drop((much, little));
        assert!(!shares[0].is_scarce());
    }

    #[test]
    fn p15_who_wants_more_than_there_is_holds_nobody_up() {
        let spools = Spools::of(2 * MIB);
        let [greedy, other] = [spools.share(), spools.share()];
        let mut in_vain = Box::pin(greedy.cover(OWN_BYTES + 3 * MIB));
        assert!(in_vain.as_mut().now_or_never().is_none() && other.is_scarce());
        assert!(other.try_cover(OWN_BYTES + 2 * MIB));
        drop(in_vain);
        assert!(!other.is_scarce());
    }
}
