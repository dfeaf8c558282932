//! Who leads (P21).

/// A reign lapses after this long without a transaction, by the store's clock. Long enough for a
/// slow disk's fsync, short enough that a fleet hardly notices.
pub const LAPSE_MS: u64 = 3_000;

/// How often an idle leader touches the row: three times within [`LAPSE_MS`].
pub const RENEW: std::time::Duration = std::time::Duration::from_secs(1);
