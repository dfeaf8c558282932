//! Which faults a schedule has, and which bounds the core has under them.

use longshore_coordinator::core::CoreConfig;

use crate::dice::Dice;

/// Which faults a schedule has, each so many times in a thousand chances.
pub(crate) struct Faults {
    pub(crate) lose: u64,
    pub(crate) double: u64,
    pub(crate) vanish: u64,
    pub(crate) crash: u64,
    pub(crate) freeze: u64,
    pub(crate) coordinator: u64,
    pub(crate) stall: u64,
    pub(crate) cancel: u64,
}

impl Faults {
    pub(crate) const NONE: Self =
        Self { lose: 0, double: 0, vanish: 0, crash: 0, freeze: 0, coordinator: 0, stall: 0, cancel: 0 };

    /// Each kind is there or not, so that schedules differ in kind and not in degree alone.
    pub(crate) fn thrown(dice: &mut Dice) -> Self {
        let mut some = |most: u64| if dice.permille(500) { dice.next() % most } else { 0 };
        Self {
            lose: some(200),
            double: some(200),
            vanish: some(60),
            crash: some(40),
            freeze: some(40),
            coordinator: some(12),
            stall: some(500),
            cancel: some(20),
        }
    }
}

/// What nothing but a fault can exceed, however slowly the dice let the world go on.
pub(crate) fn patient() -> CoreConfig {
    CoreConfig { lease_ticks: 1_000, accept_deadline_ticks: 1_000, ..config() }
}

/// Small bounds, so that leases end and backoffs pass within a few dozen rounds.
pub(crate) fn config() -> CoreConfig {
    CoreConfig {
        lease_ticks: 6,
        accept_deadline_ticks: 5,
        infra_retries: 3,
        lost_max: 3,
        remakes_max: 3,
        infra_backoff_ms: 1_000,
        infra_backoff_max_ms: 4_000,
        resend_ticks: 2,
        weights: std::collections::BTreeMap::new(),
    }
}
