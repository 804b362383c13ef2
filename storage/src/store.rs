//! The store: opening, snapshots, transactions, background work.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use base::{CommitTs, FileId, TableId};
use codec::StoredSchema;
use columns::{ColumnOptions, ColumnStore};
use parking_lot::Mutex;
use runtime::Runtime;
use tokio::sync::oneshot;

use crate::checkpoint::{self, Machine, Watchers};
use crate::flush::Compactor;
use crate::folder::Folder;
use crate::locks::Locks;
use crate::sequencer::{Order, Sequencer};
use crate::state::{State, Table};
use crate::timekeeper::Timekeeper;
use crate::transaction::Transaction;
use crate::view::TableView;
use crate::{BeginOptions, Error, OnFatal, Result, StoreOptions, StoreStats, TableInfo};

/// Numbers taken from a durable counter at a time.
const FILE_IDS_AT_ONCE: u64 = 4096;
/// As above, for hidden row keys.
const ROW_IDS_AT_ONCE: u64 = 1 << 20;
/// Flushes that background work makes before it looks at anything else.
const FLUSHES_AT_ONCE: usize = 64;
/// Bytes of one table that are flushed rather than written to a checkpoint.
const CHECKPOINT_TABLE_BYTES: usize = 1 << 20;
/// How often background work looks around.
const BACKGROUND_PERIOD: Duration = Duration::from_millis(100);

/// The door to stored data. Cheap to clone; the last clone dropped does not close the store, [`Store::shutdown`] does.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) core: Arc<Core>,
}

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) options: StoreOptions,
    pub(crate) runtime: Runtime,
    pub(crate) state: Arc<State>,
    pub(crate) columns: ColumnStore,
    pub(crate) raft: raft::Raft,
    pub(crate) journal: journal::Journal,
    pub(crate) sequencer: Sequencer,
    pub(crate) locks: Locks,
    pub(crate) compactor: Compactor,
    /// Running transactions: order number → snapshot.
    pub(crate) running: Mutex<BTreeMap<u64, CommitTs>>,
    file_ids: tokio::sync::Mutex<std::ops::Range<u64>>,
    row_ids: tokio::sync::Mutex<std::ops::Range<u64>>,
    pub(crate) counters: Counters,
    /// Where work goes that nobody waits for, or that goes on when nobody waits any more.
    pub(crate) tasks: tokio::runtime::Handle,
    closing: AtomicBool,
    /// Becomes true when nothing is ordered any more.
    stopped: tokio::sync::watch::Sender<bool>,
    background: Mutex<Option<tokio::task::JoinHandle<()>>>,
    folder: Mutex<Option<Folder>>,
    /// The id of the database.
    pub(crate) cluster: String,
    pub(crate) watchers: Watchers,
    /// Whether writes are refused because the disk is almost full.
    disk_low: AtomicBool,
    /// Why the last flush failed, if it did.
    flush_failure: Mutex<Option<String>>,
    /// Held while a backup runs.
    pub(crate) backing_up: Arc<tokio::sync::Mutex<()>>,
}

/// Figures for metrics and tests.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) row_tier_rows: Arc<AtomicU64>,
    pub(crate) column_rows: Arc<AtomicU64>,
    pub(crate) flushes: AtomicU64,
    pub(crate) merges: AtomicU64,
    /// Those that transactions found before their commit was ordered; the sequencer counts its own.
    pub(crate) conflicts: AtomicU64,
}

impl Store {
    /// Opens a data folder, creating it when it is absent or empty, and recovers everything that was acknowledged.
    ///
    /// Fails with [`Error::Folder`] when another process has it open or it is not ours, and with [`Error::Corrupt`] when
    /// stored bytes are damaged.
    pub async fn open(runtime: Runtime, mut options: StoreOptions) -> Result<Store> {
        let folder = Folder::open(&runtime, &options.data)?;
        let (journal, recovered) = {
            let mut settings = journal::JournalOptions::default();
            settings.segment_bytes = options.segment_bytes;
            settings.low_water_bytes = options.low_water_bytes;
            journal::Journal::open(Arc::clone(&runtime.disk), &options.data.join("journal"), settings)
                .map_err(Error::part)?
        };
        // Rows that do not spill must fit into one log entry and leave the row tier room for others.
        let unspilled_max = (journal.max_entry_bytes() / 8 * 7).min(options.row_tier_bytes / 4);
        options.transaction_spill_bytes = options.transaction_spill_bytes.min(unspilled_max);
        let row_tier = Arc::new(rows::RowTier::new(rows::RowTierOptions::with_limit(options.row_tier_bytes)));
        let state = Arc::new(State::new(row_tier));
        let marker = checkpoint::load(&runtime, &options.data, &state)?;
        let url = options.columns_location();
        let mut column_options = ColumnOptions::new(folder.cluster(), folder.epoch());
        column_options.disk = Arc::clone(&runtime.disk);
        column_options.inspect = options.inspect;
        // Decoded keys and statistics get most: they answer lookups without reading.
        column_options.metadata_cache_bytes = options.cache_bytes / 4;
        column_options.key_cache_bytes = options.cache_bytes / 4;
        column_options.stats_cache_bytes = options.cache_bytes / 8;
        let columns = ColumnStore::open(&url, column_options).await.map_err(Error::part)?;
        let watchers = Watchers::default();
        let machine = Arc::new(Machine::new(
            Arc::clone(&state),
            runtime.clone(),
            options.data.clone(),
            marker,
            Arc::clone(&watchers),
        ));
        let mut raft_options = raft::RaftOptions::single(1);
        raft_options.on_fatal = options.on_fatal.clone().map(|OnFatal(tell)| tell);
        let raft = raft::Raft::open(journal.clone(), recovered, machine, raft_options).await.map_err(Error::part)?;
        state.check()?;
        let compactor = if options.inspect {
            Compactor::inspect(&state, &columns).await
        } else {
            Compactor::recover(&state, &columns).await?
        };
        let jump_max = (options.clock_jump_ms > 0).then(|| Duration::from_millis(options.clock_jump_ms));
        let clock = Timekeeper::new(Arc::clone(&runtime.clock), jump_max, state.last())?;
        let sequencer = Sequencer::start(Arc::clone(&state), raft.clone(), clock)?;
        let core = Arc::new(Core {
            options,
            runtime,
            state,
            columns,
            raft,
            journal,
            sequencer,
            locks: Locks::default(),
            compactor,
            running: Mutex::default(),
            file_ids: tokio::sync::Mutex::new(0..0),
            row_ids: tokio::sync::Mutex::new(0..0),
            counters: Counters::default(),
            tasks: tokio::runtime::Handle::current(),
            closing: AtomicBool::new(false),
            stopped: tokio::sync::watch::Sender::new(false),
            background: Mutex::new(None),
            cluster: folder.cluster(),
            folder: Mutex::new(Some(folder)),
            watchers,
            disk_low: AtomicBool::new(false),
            flush_failure: Mutex::default(),
            backing_up: Arc::default(),
        });
        let store = Store { core };
        if store.core.options.inspect {
            return Ok(store);
        }
        let weak = Arc::downgrade(&store.core);
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(BACKGROUND_PERIOD).await;
                let Some(core) = weak.upgrade() else { break };
                if core.closing.load(Ordering::Acquire) {
                    break;
                }
                core.background_step().await;
            }
        });
        *store.core.background.lock() = Some(task);
        Ok(store)
    }

    /// The newest visible commit.
    pub fn now(&self) -> CommitTs {
        self.core.state.last()
    }

    /// A snapshot of everything acknowledged so far.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { core: Arc::clone(&self.core), at: self.core.state.last() }
    }

    /// A snapshot at a moment. A moment after the last commit, but not after the clock, is closed first: no later commit
    /// can be stamped at or before it, so that the answer is repeatable, across restarts too.
    pub async fn snapshot_at(&self, at: CommitTs) -> Result<Snapshot> {
        if at > self.core.state.last() {
            if at > self.core.runtime.clock.now() {
                return Err(Error::FutureTime { requested: at });
            }
            let (reply, done) = oneshot::channel();
            self.core.sequencer.send(Order::Tick { ts: at, reply })?;
            done.await.map_err(|_| Error::Unavailable("the store is closing".into()))??;
        }
        Ok(Snapshot { core: Arc::clone(&self.core), at })
    }

    /// Begins a transaction at the newest snapshot.
    pub async fn begin(&self, options: BeginOptions) -> Result<Transaction> {
        if self.core.closing.load(Ordering::Acquire) {
            return Err(Error::Unavailable("the store is closing".into()));
        }
        Ok(Transaction::begin(Arc::clone(&self.core), options))
    }

    /// The first of `count` consecutive numbers of a durable counter. Counters begin at 1; numbers are never handed out
    /// twice and may be lost.
    pub async fn allocate(&self, counter: &str, count: u64) -> Result<u64> {
        self.core.allocate(counter, count).await
    }

    /// Moves everything committed so far into the column tier: one table, or all. When the future is dropped, the table
    /// that it was at is finished.
    pub async fn flush(&self, table: Option<TableId>) -> Result<()> {
        let tables = match table {
            Some(id) => self.core.state.table(id).into_iter().collect(),
            None => self.core.state.all_tables(),
        };
        for table in tables {
            let core = Arc::clone(&self.core);
            self.core.to_the_end(async move { core.flush_table(&table).await }).await?;
        }
        Ok(())
    }

    /// Merges the small files of a table, whatever their number. Goes on when the future is dropped.
    pub async fn merge(&self, table: TableId) -> Result<()> {
        let Some(table) = self.core.state.table(table) else { return Ok(()) };
        let core = Arc::clone(&self.core);
        self.core.to_the_end(async move { core.merge_table(&table, 2).await }).await
    }

    /// Writes a checkpoint and drops the log before it. Goes on when the future is dropped.
    pub async fn checkpoint(&self) -> Result<()> {
        self.core.checkpoint().await
    }

    /// Stops background work, writes a checkpoint and closes the log. Commits after this fail.
    pub async fn shutdown(&self) -> Result<()> {
        if self.core.closing.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let task = self.core.background.lock().take();
        if let Some(task) = task {
            let _ = task.await;
        }
        let checkpoint = self.checkpoint().await;
        let sequencer = Arc::clone(&self.core);
        let _ = tokio::task::spawn_blocking(move || sequencer.sequencer.stop()).await;
        // A flush that nobody waits for must not reach into a column tier that the next start has taken.
        self.core.stopped.send_replace(true);
        self.core.raft.shutdown().await.map_err(Error::part)?;
        // The folder is free from here on, whoever still holds a handle.
        self.core.folder.lock().take();
        checkpoint
    }

    /// The newest definition of a table.
    pub fn definition(&self, table: TableId) -> Option<Arc<StoredSchema>> {
        self.core.state.table(table)?.schema()
    }

    /// What is stored of a table, for metrics, tests and `lattice.tables`; `None` for a table that was never defined.
    pub fn table_info(&self, table: TableId) -> Option<TableInfo> {
        let table = self.core.state.table(table)?;
        table.schema()?;
        let published = table.published();
        Some(TableInfo {
            rows_in_row_tier: table.rows.len(),
            row_tier_bytes: table.rows.bytes(),
            files: published.current.len(),
            staged_files: published.staged.len(),
            column_bytes: published.live_files().map(|meta| meta.bytes).sum(),
            column_rows: published.live_files().map(|meta| u64::from(meta.live_rows())).sum(),
            history_files: published.history.len(),
            history_rows: published.history.iter().map(|meta| u64::from(meta.rows)).sum(),
            history_bytes: published.history.iter().map(|meta| meta.bytes).sum(),
            cut: published.cut,
            newest: table.newest(),
            current_version: published.current_version.0,
            history_version: published.history_version.0,
        })
    }

    /// Counters since the store was opened.
    pub fn stats(&self) -> StoreStats {
        let core = &self.core;
        let sequencer = core.sequencer.stats();
        let journal = core.journal.stats();
        StoreStats {
            row_tier_bytes: core.state.row_tier.bytes(),
            row_tier_limit_bytes: core.options.row_tier_bytes,
            commits: core.state.commits.load(Ordering::Relaxed),
            groups: sequencer.groups.load(Ordering::Relaxed),
            conflicts: sequencer.conflicts.load(Ordering::Relaxed) + core.counters.conflicts.load(Ordering::Relaxed),
            lock_waits: core.locks.waits.load(Ordering::Relaxed),
            deadlocks: core.locks.deadlocks.load(Ordering::Relaxed),
            fsyncs: journal.syncs,
            flushes: core.counters.flushes.load(Ordering::Relaxed),
            merges: core.counters.merges.load(Ordering::Relaxed),
            log_bytes: core.log_bytes(),
            disk_low: core.journal.free_space_low(),
            rows_scanned_row_tier: core.counters.row_tier_rows.load(Ordering::Relaxed),
            rows_scanned_columns: core.counters.column_rows.load(Ordering::Relaxed),
            last_commit: core.state.last(),
        }
    }
}

impl Core {
    /// Does work in a task of its own: whoever drops the future that waits for it stops waiting, not the work. Steps
    /// that belong together, such as a flush and its publication, are so never cut in two by a cancelled statement.
    /// Only the end of the store cuts them, after the last entry of the log is applied, and the next start undoes what
    /// is left.
    pub(crate) async fn to_the_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let mut stopped = self.stopped.subscribe();
        let task = self.tasks.spawn(async move {
            tokio::select! {
                biased;
                done = work => done,
                Ok(_) = stopped.wait_for(|stopped| *stopped) => Err(Error::Unavailable("the store is closing".into())),
            }
        });
        task.await.unwrap_or_else(|error| Err(Error::Unavailable(format!("background work stopped: {error}"))))
    }

    /// Writes a checkpoint and drops the log before it. Two at once would write one file, so a cancelled one is
    /// finished before the next begins.
    pub(crate) async fn checkpoint(&self) -> Result<()> {
        let raft = self.raft.clone();
        self.to_the_end(async move { raft.checkpoint().await.map(|_| ()).map_err(Error::part) }).await
    }

    /// Bytes of the journal's segments.
    fn log_bytes(&self) -> u64 {
        self.journal.stats().segments as u64 * self.options.segment_bytes
    }

    /// Waits for room in the row tier, at most the stall timeout.
    pub(crate) async fn row_tier_room(&self, bytes: usize) -> Result<rows::Reservation> {
        let timeout = Duration::from_millis(self.options.write_stall_timeout_ms);
        match tokio::time::timeout(timeout, self.state.row_tier.reserve(bytes)).await {
            Ok(reservation) => reservation.map_err(Error::part),
            Err(_) => Err(Error::Stalled {
                limit_bytes: self.options.row_tier_bytes,
                waited_ms: self.options.write_stall_timeout_ms,
                cause: self.why_stalled(),
            }),
        }
    }

    /// Why the row tier stays full.
    fn why_stalled(&self) -> String {
        let url = self.columns.url();
        if let Some(failure) = self.flush_failure.lock().as_ref() {
            return format!("rows cannot move to the column tier {url}: {failure}");
        }
        let held = |table: Arc<Table>| Some((table.rows.bytes(), table.id, table.rows.held_back()?));
        match self.state.all_tables().into_iter().filter_map(held).max() {
            Some((bytes, table, since)) => format!(
                "{bytes} bytes of table {table} have moved to the column tier, but stay in memory for a statement or a result \
                 that has been read since {} s ago: let it end, or cancel it (see lattice.queries)",
                since.elapsed().as_secs()
            ),
            None => format!("rows do not move to the column tier {url} as fast as they come, or it cannot be reached"),
        }
    }

    pub(crate) async fn allocate(&self, counter: &str, count: u64) -> Result<u64> {
        let (reply, done) = oneshot::channel();
        self.sequencer.send(Order::Allocate { counter: counter.to_owned(), count, reply })?;
        done.await.map_err(|_| Error::Unavailable("the store is closing".into()))?
    }

    async fn take_ids(
        &self,
        pool: &tokio::sync::Mutex<std::ops::Range<u64>>,
        counter: &str,
        count: u64,
        at_once: u64,
    ) -> Result<u64> {
        let mut range = pool.lock().await;
        if range.end - range.start < count {
            let take = count.max(at_once);
            let first = self.allocate(counter, take).await?;
            *range = first..first + take;
        }
        let first = range.start;
        range.start += count;
        Ok(first)
    }

    /// File ids, unique for ever; the first of `count`.
    pub(crate) async fn next_files(&self, count: u64) -> Result<FileId> {
        Ok(FileId(self.take_ids(&self.file_ids, "lattice.files", count, FILE_IDS_AT_ONCE).await?))
    }

    /// Hidden row keys for rows that go through the row tier; the first of `count`.
    pub(crate) async fn next_row_ids(&self, count: u64) -> Result<u64> {
        self.take_ids(&self.row_ids, "lattice.rows", count, ROW_IDS_AT_ONCE).await
    }

    async fn background_step(&self) {
        self.look_at_disk();
        self.prune_recent();
        self.flush_due().await;
        for table in self.state.all_tables() {
            if self.closing.load(Ordering::Acquire) {
                return;
            }
            if self.options.flush_interval_ms > 0
                && let Err(error) = self.merge_table(&table, self.options.merge_files).await
            {
                tracing::error!(table_id = table.id.0, %error, "a merge failed; it is tried again");
            }
            self.drop_old_versions(&table).await;
            if let Err(error) = self.expire_table(&table).await {
                tracing::warn!(table_id = table.id.0, %error, "a dropped table keeps its files; they are removed later");
            }
        }
        self.bound_log().await;
        if let Err(error) = self.sweep_one().await {
            tracing::warn!(%error, "files of a crash stay until the next start");
        }
    }

    /// Flushes the tables whose time has come, the largest first. One that is written to all the time may come again and
    /// again before the others; the log is kept short all the same.
    async fn flush_due(&self) {
        let mut done: HashSet<TableId> = HashSet::new();
        // Merges and the rest of the background work get their turn too.
        for _ in 0..FLUSHES_AT_ONCE {
            let due = |table: &Arc<Table>| {
                !done.contains(&table.id) && self.compactor.is_due(table, &self.options, &self.state.row_tier)
            };
            let next = self.state.all_tables().into_iter().filter(due).max_by_key(|table| table.rows.bytes());
            let Some(table) = next.filter(|_| !self.closing.load(Ordering::Acquire)) else { return };
            let urgent = self.compactor.is_urgent(&table, &self.options, &self.state.row_tier);
            let flushed = self.flush_table(&table).await;
            *self.flush_failure.lock() = flushed.as_ref().err().map(ToString::to_string);
            match flushed {
                Ok(()) if urgent => {}
                Ok(()) => {
                    done.insert(table.id);
                }
                Err(error) => {
                    done.insert(table.id);
                    tracing::error!(table_id = table.id.0, %error, "a flush failed; it is tried again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
            self.drop_old_versions(&table).await;
            self.bound_log().await;
        }
    }

    /// Cuts the log when it has grown too long. What tables still hold in memory goes into the checkpoint, so that none of
    /// them keeps the log; those that hold much are flushed before, so that the checkpoint stays small.
    async fn bound_log(&self) {
        if self.log_bytes() <= self.options.log_max_bytes {
            return;
        }
        for table in self.state.all_tables() {
            if self.options.flush_interval_ms > 0
                && table.rows.bytes() >= CHECKPOINT_TABLE_BYTES
                && let Err(error) = self.flush_table(&table).await
            {
                tracing::error!(table_id = table.id.0, %error, "a flush failed; it is tried again");
            }
        }
        if let Err(error) = self.checkpoint().await {
            tracing::error!(%error, "a checkpoint failed; it is tried again");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Asking makes the journal try again, so that writes go on by themselves once there is room.
    fn look_at_disk(&self) {
        let low = self.journal.free_space_low();
        if low != self.disk_low.swap(low, Ordering::AcqRel) {
            let folder = self.options.data.display();
            if low {
                let low_water_bytes = self.options.low_water_bytes;
                tracing::warn!(%folder, low_water_bytes, "the disk is almost full: writes are refused until space is freed");
            } else {
                tracing::info!(%folder, "the disk has room again: writes go on");
            }
        }
    }

    /// Fails for a table whose history is gone.
    pub(crate) fn check_readable(&self, table: TableId, at: CommitTs) -> Result<()> {
        match self.state.table(table).and_then(|table| table.forgotten()) {
            Some(dropped) => Err(Error::ExpiredTime { requested: at, oldest: dropped }),
            None => Ok(()),
        }
    }

    /// Forgets publications that no running transaction can need to find its rows again, and the oldest ones when all
    /// of them together take too much memory.
    fn prune_recent(&self) {
        let oldest = self.running.lock().keys().next().copied().unwrap_or(u64::MAX);
        let tables = self.state.all_tables();
        let mut remembered: Vec<(u64, usize, &Arc<Table>)> = Vec::new();
        for table in &tables {
            if table.inner.read().recent.is_empty() {
                continue;
            }
            let mut inner = table.inner.write();
            while inner.recent.front().is_some_and(|(_, order, _)| *order < oldest) {
                inner.recent.pop_front();
            }
            remembered.extend(inner.recent.iter().map(|(_, order, prepared)| (*order, prepared.bytes, table)));
        }
        let mut bytes: usize = remembered.iter().map(|(_, bytes, _)| bytes).sum();
        if bytes <= self.options.recent_bytes {
            return;
        }
        remembered.sort_unstable_by_key(|(order, ..)| *order);
        for (order, of_it, table) in remembered {
            if bytes <= self.options.recent_bytes {
                break;
            }
            bytes -= of_it;
            let mut inner = table.inner.write();
            if inner.recent.pop_front_if(|(_, first, _)| *first == order).is_some() {
                // A transaction began before this publication if its number is less.
                inner.forgotten = order;
            }
        }
    }
}

/// Everything committed at or before a moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    core: Arc<Core>,
    at: CommitTs,
}

impl Snapshot {
    /// The moment.
    pub fn ts(&self) -> CommitTs {
        self.at
    }

    /// One table at this moment. A table that has never been written is empty.
    ///
    /// Fails with [`Error::ExpiredTime`] when the table was dropped so long ago that its history is gone.
    pub fn table(&self, schema: &Arc<StoredSchema>) -> Result<TableView> {
        self.core.check_readable(schema.table, self.at)?;
        Ok(TableView::new(&self.core, schema, self.at, None))
    }
}
