//! The door to stored data: [`Store`], [`Snapshot`], [`Transaction`], [`TableView`].
//!
//! The commit log is the truth and everything else is a fold over it: `journal` keeps the log, `raft` orders it, `rows` holds
//! what is new, `columns` what is old. This crate joins them: it sequences commits ([`sequencer`]), applies them ([`state`]),
//! moves rows from memory to Lance ([`flush`]) and reads both tiers as one ([`TableView`]).
//!
//! # How it works
//! A transaction reads at a snapshot and buffers its writes. Commit sends them to the sequencer, which checks that no row was
//! written since the snapshot (first committer wins), stamps the transaction and proposes one log entry for everything that
//! waits. When the entry is durable it is applied to the row tier, and the commit is acknowledged. A flush later writes row
//! versions up to a cut to Lance, and a `Publish` entry in the same log makes readers switch.
//!
//! # Invariants
//! - STORE-1 an acknowledged commit survives a crash (`tests/crash.rs`).
//! - STORE-2 a snapshot at S gives one answer for ever, wherever its rows lie (`tests/placement.rs`).
//! - STORE-3 of two transactions that wrote one row, one fails (`tests/transactions.rs`).
//! - STORE-4 a view keeps what it saw: publications, masks and row-tier versions are pinned by it.
//!
//! # Failure
//! A failed fsync or a log entry that cannot be read stops the store; see [`Error`] for everything else.
//!
//! # Not here
//! SQL, types beyond Arrow's, policies.

mod backup;
mod bulk;
mod checkpoint;
mod command;
mod error;
mod flush;
mod folder;
mod locks;
mod mask;
mod options;
mod sealed;
mod sequencer;
mod state;
mod store;
#[cfg(test)]
mod testing;
mod timekeeper;
mod transaction;
mod validate;
mod verify;
mod view;
mod writes;

pub use backup::{BackupReport, OnProgress, Progress};
pub use base::RequestId;
pub use bulk::BulkWriter;
pub use codec::{self, KeyCodec, RowCodec, StoredColumn, StoredSchema};
pub use columns::{RowFilter, passing};
pub use error::{Error, Result};
pub use options::{OnFatal, StoreOptions};
pub use store::{Snapshot, Store};
pub use transaction::{SavepointId, Transaction};
pub use verify::{Problem, Verified, listing};
pub use view::{
    ColumnStatistics, Found, Locator, Partition, RowCount, ScanSpec, SystemColumns, TableView, ZoneCondition,
    ZoneFilter, ZoneOp,
};

/// Who commits, and why: kept with the transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransactionHeader {
    /// The user.
    pub principal: String,
    /// Where the data comes from, if the client says so.
    pub source: Option<String>,
    /// Which pipeline run this belongs to, if the client says so.
    pub pipeline: Option<String>,
    /// The statement, without literals.
    pub statement: Option<String>,
}

/// How a transaction begins.
#[derive(Clone, Debug, Default)]
pub struct BeginOptions {
    /// Refuse writes.
    pub read_only: bool,
    /// Makes a retried commit return the first outcome.
    pub request: Option<RequestId>,
    /// Who commits, and why.
    pub header: TransactionHeader,
    /// Overrides [`StoreOptions::lock_timeout_ms`].
    pub lock_timeout_ms: Option<u64>,
}

/// Counters since the store was opened.
#[derive(Clone, Debug, Default)]
pub struct StoreStats {
    /// Bytes in the row tier.
    pub row_tier_bytes: usize,
    /// Their limit.
    pub row_tier_limit_bytes: usize,
    /// Transactions applied.
    pub commits: u64,
    /// Log entries that carried them.
    pub groups: u64,
    /// Times a transaction met a row that another had committed since its snapshot: in a statement or at its commit.
    pub conflicts: u64,
    /// Times a statement waited for a row lock.
    pub lock_waits: u64,
    /// Statements that gave up because transactions waited for each other.
    pub deadlocks: u64,
    /// Synchronisations of the journal.
    pub fsyncs: u64,
    /// Flushes published.
    pub flushes: u64,
    /// Merges published.
    pub merges: u64,
    /// Bytes of log kept.
    pub log_bytes: u64,
    /// Whether writes are refused because the disk is almost full.
    pub disk_low: bool,
    /// Rows that scans took from the row tier.
    pub rows_scanned_row_tier: u64,
    /// Rows that scans took from the column tier.
    pub rows_scanned_columns: u64,
    /// The newest commit.
    pub last_commit: base::CommitTs,
}

/// What is stored of one table.
#[derive(Clone, Debug, Default)]
pub struct TableInfo {
    /// Rows with versions in the row tier.
    pub rows_in_row_tier: usize,
    /// Their bytes.
    pub row_tier_bytes: usize,
    /// Files of `current`.
    pub files: usize,
    /// Files of large transactions not yet adopted.
    pub staged_files: usize,
    /// Bytes of both.
    pub column_bytes: u64,
    /// Rows of both, without deleted ones.
    pub column_rows: u64,
    /// Files of `history`.
    pub history_files: usize,
    /// Closed versions.
    pub history_rows: u64,
    /// Their bytes.
    pub history_bytes: u64,
    /// Everything up to here is in the column tier.
    pub cut: base::CommitTs,
    /// The newest commit that touched the table.
    pub newest: base::CommitTs,
    /// Version of the `current` dataset.
    pub current_version: u64,
    /// Version of the `history` dataset.
    pub history_version: u64,
}
