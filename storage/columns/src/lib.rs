#![doc = include_str!("../README.md")]

mod blocks;
mod bloom;
mod cache;
mod clean;
mod commit;
mod error;
mod filter;
mod local;
mod lookup;
mod meta;
mod physical;
mod read;
mod row_filter;
mod scan;
mod sketch;
mod stats;
mod store;
mod sums;
mod transfer;
mod verify;
mod wire;
mod write;

pub use clean::Swept;
pub use commit::{Commit, Committed, DatasetPin, Latest};
pub use error::{Error, Result};
pub use filter::{CompareOp, ZoneColumn, ZoneFilter, ZonePredicate, ZoneTest};
pub use meta::{FileMeta, FileState, Role, TxFrom};
pub use row_filter::{RowFilter, passing};
pub use scan::{
    OFFSET_COLUMN, OP_COLUMN, ScanSpec, ScanStream, SystemColumns, TX_FROM_COLUMN, TX_TO_COLUMN, dictionary_type,
};
pub use sketch::DistinctSketch;
pub use stats::{ColumnStats, FileStats};
pub use store::{ColumnOptions, ColumnStore, ObjectInfo};
pub use transfer::{Depot, Digest};
pub use verify::Finding;
pub use write::{KeyOrder, WriteSpec};

/// Rows in one zone, the unit of pruning and of key look-ups.
pub const ZONE_ROWS: u32 = 8 * 1024;
/// Rows in one batch of a scan.
pub const BATCH_ROWS: u32 = 64 * 1024;
/// Rows in one data file, at most, unless the writer says otherwise.
pub const FILE_ROWS: u32 = 1024 * 1024;

#[cfg(test)]
mod tests;
