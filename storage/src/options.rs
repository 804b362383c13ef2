//! What can be set.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// Is told once, with the reason, when the log cannot be written any more. Nothing becomes durable afterwards: the process
/// should end.
#[derive(Clone)]
pub struct OnFatal(pub Arc<dyn Fn(&str) + Send + Sync>);

impl fmt::Debug for OnFatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnFatal")
    }
}

/// How a store is laid out and bounded. Every limit is in bytes or milliseconds, as its name says.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Local folder of the journal, the checkpoint and the lock.
    pub data: PathBuf,
    /// URL or folder of the column tier; `None` for `{data}/columns`.
    pub columns_url: Option<String>,
    /// Bytes the row tier may hold before writers wait for the flush.
    pub row_tier_bytes: usize,
    /// Bytes a transaction may hold in memory before it spills its rows to staged files.
    pub transaction_spill_bytes: usize,
    /// How often a table with unflushed rows is flushed; 0 turns the timer off.
    pub flush_interval_ms: u64,
    /// Unflushed bytes of one table that cause a flush before its time.
    pub flush_bytes: usize,
    /// How long a statement waits for a row lock.
    pub lock_timeout_ms: u64,
    /// How long a writer waits for room in the row tier before it is refused.
    pub write_stall_timeout_ms: u64,
    /// Bytes of log that cause a checkpoint.
    pub log_max_bytes: u64,
    /// Bytes of one journal segment.
    pub segment_bytes: u64,
    /// Bytes for decoded data and metadata of the column tier.
    pub cache_bytes: usize,
    /// Bytes remembered of flushes and merges for the transactions that began before them: which keys were written, and
    /// where rows have gone. What is beyond is forgotten, the oldest first, and transactions that would need it fail.
    pub recent_bytes: usize,
    /// Small files of one table that cause a merge.
    pub merge_files: usize,
    /// How long the history of a dropped table can be read; its files are removed afterwards.
    pub dropped_retention_ms: u64,
    /// With less free space than this on the disk of `data`, writes are refused and what is left is for flushes.
    pub low_water_bytes: u64,
    /// How far ahead the wall clock may jump before its time is refused; 0 for any distance.
    pub clock_jump_ms: u64,
    /// Only look: the column tier is left as it is, and background work rests. The disk should be one that forgets what is
    /// written ([`runtime::OverlayDisk`]), since a start writes to the log.
    pub inspect: bool,
    /// Who is told that the log has failed.
    pub on_fatal: Option<OnFatal>,
}

impl StoreOptions {
    /// Defaults for a data folder.
    pub fn new(data: PathBuf) -> Self {
        Self {
            data,
            columns_url: None,
            row_tier_bytes: 256 << 20,
            transaction_spill_bytes: 64 << 20,
            flush_interval_ms: 5_000,
            flush_bytes: 32 << 20,
            lock_timeout_ms: 10_000,
            write_stall_timeout_ms: 30_000,
            log_max_bytes: 256 << 20,
            segment_bytes: 64 << 20,
            cache_bytes: 1 << 30,
            recent_bytes: 512 << 20,
            merge_files: 8,
            dropped_retention_ms: 7 * 24 * 3_600_000,
            low_water_bytes: 256 << 20,
            clock_jump_ms: 3_600_000,
            inspect: false,
            on_fatal: None,
        }
    }

    /// Where the column tier lies.
    pub fn columns_location(&self) -> String {
        self.columns_url.clone().unwrap_or_else(|| self.data.join("columns").to_string_lossy().into_owned())
    }
}
