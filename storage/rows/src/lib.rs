//! The row tier: the versions of rows that are newer than their table's published cut, in memory, in key order.
//!
//! The state machine applies commits ([`TableRows::apply`]); snapshots read ([`TableRows::get`], [`TableRows::scan`]); the flush
//! takes everything up to a cut ([`TableRows::drain_view`]) and, once the column tier has published it, lets go of it
//! ([`TableRows::truncate`]).
//!
//! # How it works
//! ```text
//! RowTier ── table 1000: TableRows ── k:0001 → [ts 12 put] [ts 40 put] [ts 77 delete]
//!    │                                k:0002 → [ts 40 put]
//!    └─ bytes, limit, waiting writers
//!
//! get(k:0001, at 50)            → ts 40
//! scan(.., at 50, above 12)     → k:0001 ts 40, k:0002 ts 40
//! drain_view(upto 40)           → k:0001 [12, 40], k:0002 [40]
//! truncate(upto 40)             → k:0001 → [ts 77 delete]
//! ```
//! Versions are immutable, and each carries its commit timestamp, so a reader at timestamp `S` needs no lock across its steps: what
//! is committed later does not concern it. What would concern it is a truncation beyond the cut it started from; a [`Pin`] on that
//! cut holds truncation back for as long as the reader runs. The order of the keys is kept by pages of keys (`map`).
//!
//! # Invariants
//! - ROWS-1 reads at a timestamp that is fully applied give the same answer however writers go on
//!   (`tests::readers_are_consistent_while_writers_apply`).
//! - ROWS-2 get, scan, drain and truncate agree with a map of version lists (`tests::agrees_with_the_model`).
//! - ROWS-3 no lock is held between two chunks of a scan, a drain or a truncation, and none while memory is freed: a scan that stays
//!   open lets commits and truncations pass (`tests::agrees_with_the_model`).
//! - ROWS-4 versions above a pin are never removed; truncation that was held back is made up for when the pin goes
//!   (`tests::pins_hold_truncation_back`).
//! - ROWS-5 the counters are exact, and zero when all is truncated (`tests::agrees_with_the_model`).
//! - ROWS-6 admitted bytes never exceed the limit; whoever waits longest is admitted first
//!   (`tier::tests::writers_wait_for_room_in_order`). Applying never fails and never waits: what is in the log is done.
//!
//! # Failure
//! [`Error::Truncated`] tells a reader that its cut is outdated: take a new view and read again. [`Error::Full`] and
//! [`Error::TooLarge`] name the limit.
//!
//! # Not here
//! Durability: the journal and the column tier hold everything that is here. Conflict checks and the meaning of rows: `storage`.

mod chain;
mod error;
mod map;
mod scan;
mod table;
mod tier;

#[cfg(test)]
mod tests;

pub use chain::{RowOp, Version};
pub use error::{Error, Result};
pub use scan::{Chains, Drain, Scan};
pub use table::{Counts, Pin, TableRows, Truncation};
pub use tier::{Reservation, RowTier, RowTierOptions};
