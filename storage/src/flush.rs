//! The compactor: moves row-tier versions into the column tier, folds masks into deletion vectors, merges small files of
//! `current` and of `history`, removes what nobody reads any more.
//!
//! # A flush
//! 1. Choose the cut X, and from then on remember every key written (`since_cut`).
//! 2. Adopt staged files committed at or before X as fragments of `current`.
//! 3. Write closed versions (superseded in the row tier, or columnar rows masked at or before X) to `history`, commit it.
//! 4. Write the newest row-tier versions as a key-sorted file; commit it together with deletion vectors for the masks.
//! 5. Publish through the log: readers switch, rows leave the row tier, masks up to X go.
//!
//! # What goes, and when
//! - Dataset versions, and files that no version names: when no view reads a publication that needs them. Whatever is
//!   neither published nor read nor the newest goes, so that no kind of version has to be kept account of.
//! - Versions and files that a crash or a failed flush left behind: after a start or the next attempt, table by table,
//!   in the background.
//! - A dropped table: its history stays readable for `dropped_retention_ms`. Then a `Forget` entry in the log takes its
//!   files out of the state; they are removed when the last view that reads them is gone.
//!
//! # Invariants
//! - FLUSH-1 a crash before step 5 leaves the published state untouched: opening the store puts the datasets back
//!   (`tests/crash.rs`, failpoints `flush.*`).
//! - FLUSH-2 after step 5 no mask entry at or before X remains.
//! - FLUSH-3 a row that is superseded while the flush runs is masked in its new file from the publication on.
//! - FLUSH-4 merging `history` changes no answer about the past (`tests/placement.rs`), and few files of it stay small
//!   (`history_is_merged`).
//! - FLUSH-5 the files of a dropped table go, and not before its last reader
//!   (`files_of_a_dropped_table_go_after_its_last_reader`).
//! - FLUSH-6 a flush or a merge that has begun ends, whoever stops waiting for it: it is a task of its own
//!   ([`Core::to_the_end`]), and once its publication is on its way, only that ends the collection of `since_cut`
//!   (`tests/cancelled.rs`: `a_flush_whose_caller_goes_is_finished`).
//! - FLUSH-7 of a table that comes to rest, few versions and only published files stay
//!   (`versions_and_files_that_nobody_reads_go`).
//!
//! # Failure
//! Any error leaves the published state as it was. Before the next attempt, whatever reached the datasets and was not
//! published is undone, as it is after a crash (`a_flush_that_fails_is_undone_before_the_next`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, UInt8Array};
use arrow::compute::interleave_record_batch;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, UInt8Type, UInt32Type};
use base::{BoxError, CommitTs, DatasetVersion, FileId, RowAddress, RowKey, TableId};
use bytes::Bytes;
use codec::{KeyCodec, RowCodec, StoredSchema};
use columns::{ColumnStore, Commit, FileMeta, Role, ScanSpec, SystemColumns, WriteSpec};
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use roaring::RoaringBitmap;
use rows::{RowOp, RowTier};
use tokio::sync::oneshot;

use crate::command::Publish;
use crate::mask::Masks;
use crate::sequencer::Order;
use crate::state::{Prepared, Published, Relocation, State, Table};
use crate::store::Core;
use crate::{Error, Result, StoreOptions};

/// Rows decoded or fetched at a time.
const BATCH_ROWS: usize = 64 * 1024;
/// Above this share of a file's rows, closed rows are read by a scan rather than one by one.
const SCAN_SHARE: u64 = 16;
/// Files with fewer rows than this are merged with others.
const SMALL_FILE_ROWS: u32 = 256 * 1024;
/// Rows that one merge takes at most.
const MERGE_ROWS: u64 = 1 << 20;
/// Closed rows gathered before a history file is written.
const HISTORY_ROWS_IN_MEMORY: usize = 1 << 20;

/// What background work remembers.
#[derive(Debug, Default)]
pub(crate) struct Compactor {
    /// The newest version of each dataset; its content is that of the published version, unless it is in `unpublished`.
    heads: Mutex<HashMap<(TableId, Role), DatasetVersion>>,
    /// Datasets with a commit that is not published, or whose outcome is not known.
    unpublished: Mutex<HashSet<(TableId, Role)>>,
    /// Flushes and merges run one at a time.
    busy: tokio::sync::Mutex<()>,
    last: Mutex<HashMap<TableId, tokio::time::Instant>>,
    /// Tables with versions that no view reads any more, and whether files have gone with them.
    stale: Mutex<HashMap<TableId, bool>>,
    /// Files that the running flush or merge has written; afterwards, those of attempts that failed.
    written: Mutex<Vec<(TableId, FileMeta)>>,
    /// Tables that may have versions and files of a crash, or of a flush that failed.
    unswept: Mutex<Vec<TableId>>,
    /// While this is not zero, nothing is removed from the column tier: somebody copies it.
    pub(crate) holds: AtomicU64,
    /// Tables that an inspection could not put together.
    pub(crate) damaged: Mutex<HashSet<TableId>>,
}

/// A row on its way to a file.
struct OutRow {
    row: Bytes,
    from: CommitTs,
    to: CommitTs,
    op: u8,
}

impl Compactor {
    /// Brings the column tier and the masks in line with what the log says, before anything is served.
    pub(crate) async fn recover(state: &Arc<State>, columns: &ColumnStore) -> Result<Self> {
        let compactor = Self::default();
        for table in state.all_tables() {
            for role in Role::ALL {
                compactor.undo_unpublished(&table, role, columns).await?;
            }
            rebuild_masks(&table, columns).await?;
            if table.schema().is_some() {
                compactor.unswept.lock().push(table.id);
            }
        }
        let known = state.all_tables().iter().map(|table| table.id).collect();
        let deleted = columns.delete_unknown_tables(&known).await.map_err(Error::part)?;
        if !deleted.is_empty() {
            tracing::info!(tables = deleted.len(), "removed files of tables that were never committed");
        }
        Ok(compactor)
    }

    /// As [`Compactor::recover`], but the column tier stays as it is. Tables whose masks cannot be looked up, because a file
    /// is damaged, are remembered.
    pub(crate) async fn inspect(state: &Arc<State>, columns: &ColumnStore) -> Self {
        let compactor = Self::default();
        for table in state.all_tables() {
            if let Err(error) = rebuild_masks(&table, columns).await {
                tracing::debug!(table_id = table.id.0, %error, "the rows in memory cannot be matched with damaged files");
                compactor.damaged.lock().insert(table.id);
            }
        }
        compactor
    }

    /// Makes the content of the published version that of the newest one.
    async fn undo_unpublished(&self, table: &Table, role: Role, columns: &ColumnStore) -> Result<()> {
        let published = table.published();
        let version = published.version_of(role);
        let Some(newest) = columns.newest_version(table.id, role).await.map_err(Error::part)? else { return Ok(()) };
        let head = if newest > version {
            tracing::info!(table_id = table.id.0, %role, "undoing a commit that was not published");
            columns.restore(table.id, role, newest, version).await.map_err(Error::part)?
        } else {
            newest
        };
        self.set_head(table.id, role, head);
        Ok(())
    }

    /// Gives the files of attempts that failed to the next sweep. With `busy` held.
    fn release_written(&self, columns: &ColumnStore) {
        for (table, meta) in self.written.lock().drain(..) {
            columns.release(table, &[meta]);
            let mut unswept = self.unswept.lock();
            if !unswept.contains(&table) {
                unswept.push(table);
            }
        }
    }

    /// Undoes what an earlier attempt left. With `busy` held.
    async fn start_over(&self, table: &Table, columns: &ColumnStore) -> Result<()> {
        self.release_written(columns);
        for role in Role::ALL {
            if self.unpublished.lock().contains(&(table.id, role)) {
                self.undo_unpublished(table, role, columns).await?;
                self.unpublished.lock().remove(&(table.id, role));
                self.unswept.lock().push(table.id);
            }
        }
        Ok(())
    }

    /// Whether a table should be flushed now, whatever its age.
    pub(crate) fn is_urgent(&self, table: &Table, options: &StoreOptions, row_tier: &RowTier) -> bool {
        let bytes = table.rows.bytes();
        bytes >= options.flush_bytes || row_tier.bytes() > options.row_tier_bytes / 2 && bytes > 0
    }

    /// Whether a table should be flushed now.
    pub(crate) fn is_due(&self, table: &Table, options: &StoreOptions, row_tier: &RowTier) -> bool {
        if options.flush_interval_ms == 0 {
            return false;
        }
        let published = table.published();
        if table.newest() <= published.cut && published.staged.is_empty() {
            return false;
        }
        if self.is_urgent(table, options, row_tier) {
            return true;
        }
        let now = tokio::time::Instant::now();
        let mut last = self.last.lock();
        let since = *last.entry(table.id).or_insert(now);
        now.duration_since(since) >= Duration::from_millis(options.flush_interval_ms)
    }

    fn head(&self, table: TableId, role: Role) -> DatasetVersion {
        self.heads.lock().get(&(table, role)).copied().unwrap_or_default()
    }

    fn set_head(&self, table: TableId, role: Role, version: DatasetVersion) {
        self.heads.lock().insert((table, role), version);
    }
}

/// Looks up which columnar rows the row tier's versions supersede.
async fn rebuild_masks(table: &Arc<Table>, columns: &ColumnStore) -> Result<()> {
    table.needs_masks.store(false, Ordering::Release);
    let (published, _) = table.pin();
    let Some(schema) = table.schema() else { return Ok(()) };
    if table.rows.is_empty() || published.current.is_empty() && published.staged.is_empty() {
        return Ok(());
    }
    let pin = if published.current.is_empty() {
        None
    } else {
        Some(columns.pin(table.id, Role::Current, published.current_version).await.map_err(Error::part)?)
    };
    let mut drain = table.rows.drain_view(CommitTs::MAX);
    while let Some(chains) = drain.next_chunk(BATCH_ROWS) {
        for meta in published.live_files() {
            let born = meta.constant_tx_from().unwrap_or(published.cut);
            let superseded: Vec<(RowKey, CommitTs)> = chains
                .iter()
                .filter(|(key, _)| meta.min_key <= **key && **key <= meta.max_key)
                .filter_map(|(key, versions)| {
                    let ts = versions.iter().map(|version| version.ts).find(|ts| *ts > born && *ts > published.cut)?;
                    Some((key.clone(), ts))
                })
                .collect();
            if superseded.is_empty() {
                continue;
            }
            let keys: Vec<RowKey> = superseded.iter().map(|(key, _)| key.clone()).collect();
            let offsets = columns.lookup(meta, &schema, &keys).await.map_err(Error::part)?;
            let deleted = match &pin {
                Some(pin) if matches!(meta.state, columns::FileState::Committed { .. }) => {
                    columns.deleted_rows(pin, meta).await.map_err(Error::part)?
                }
                Some(_) | None => None,
            };
            for ((_, ts), offset) in superseded.into_iter().zip(offsets) {
                let Some(offset) = offset else { continue };
                if !deleted.as_ref().is_some_and(|deleted| deleted.contains(offset)) {
                    table.mask_row(RowAddress { file: meta.file, offset }, ts);
                }
            }
        }
    }
    Ok(())
}

/// Removes files that neither the published state nor a reader needs.
async fn sweep(table: &Table, columns: &ColumnStore, also: &[Arc<Published>]) -> Result<()> {
    let published = table.published();
    let all = || also.iter().chain(std::iter::once(&published));
    for role in Role::ALL {
        let files = all().flat_map(|published| published.files_of(role).1);
        let keep: HashSet<String> = files.map(|meta| meta.path.clone()).collect();
        columns.sweep(table.id, role, &keep).await.map_err(Error::part)?;
    }
    Ok(())
}

/// Ends the collection of `since_cut` when a flush fails before its publication is on its way. From then on the
/// publication needs it, whatever becomes of the flush.
struct CutGuard<'a> {
    table: &'a Table,
    armed: bool,
}

impl Drop for CutGuard<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.table.forget_cut();
        }
    }
}

impl Core {
    /// Flushes one table. The future must not be dropped before it ends (FLUSH-6).
    pub(crate) async fn flush_table(&self, table: &Arc<Table>) -> Result<()> {
        let _one = self.compactor.busy.lock().await;
        self.compactor.last.lock().insert(table.id, tokio::time::Instant::now());
        let Some(schema) = table.schema() else { return Ok(()) };
        self.compactor.start_over(table, &self.columns).await?;
        let (cut, published, masks) = {
            let mut inner = table.inner.write();
            let cut = self.state.last().max(table.newest());
            let published = Arc::clone(&inner.published);
            if table.newest() <= published.cut && published.staged.is_empty() {
                return Ok(());
            }
            inner.since_cut = Some(Vec::new());
            (cut, published, Arc::clone(&inner.masks))
        };
        let mut guard = CutGuard { table, armed: true };
        runtime::failpoint_hit("flush.cut");

        let mut files: Vec<FileMeta> = published.current.iter().map(|meta| FileMeta::clone(meta)).collect();
        let adopted: Vec<FileMeta> = published.staged.iter().map(|meta| FileMeta::clone(meta)).collect();
        let adopted_ids: Vec<FileId> = adopted.iter().map(|meta| meta.file).collect();
        let mut current_version = published.current_version;
        if !adopted.is_empty() {
            let committed = self
                .commit_files(table.id, Role::Current, Commit { add: adopted, files: &files, ..Commit::default() }, cut)
                .await?;
            current_version = committed.version;
            files = committed.files;
            runtime::failpoint_hit("flush.adopted");
        }

        let mut prepared = Prepared::default();
        let mut fresh: Vec<OutRow> = Vec::new();
        let mut fresh_keys: Vec<RowKey> = Vec::new();
        let mut closed: Vec<OutRow> = Vec::new();
        let mut drain = table.rows.drain_view(cut);
        while let Some(chains) = drain.next_chunk(BATCH_ROWS) {
            for (key, versions) in chains.iter() {
                let unpublished: Vec<_> = versions.iter().filter(|version| version.ts > published.cut).collect();
                for (at, version) in unpublished.iter().enumerate() {
                    let RowOp::Put { row, update } = &version.op else { continue };
                    let op = u8::from(*update);
                    match unpublished.get(at + 1) {
                        Some(next) => {
                            closed.push(OutRow { row: row.clone(), from: version.ts, to: next.ts, op });
                        }
                        None => {
                            fresh.push(OutRow { row: row.clone(), from: version.ts, to: CommitTs::MAX, op });
                            fresh_keys.push(key.clone());
                        }
                    }
                }
                if let Some(newest) = unpublished.last() {
                    prepared.flushed.push((key.clone(), newest.ts));
                }
            }
        }
        drop(drain);

        let (history, history_version) =
            self.write_history(table, &schema, &published, &files, &masks, current_version, closed, cut).await?;
        let mut delete: BTreeMap<FileId, RoaringBitmap> = BTreeMap::new();
        for meta in &files {
            if let Some(mask) = masks.get(&meta.file) {
                let rows = mask.rows_at(cut);
                if !rows.is_empty() {
                    delete.insert(meta.file, rows);
                }
            }
        }
        let mut written = Vec::new();
        if !fresh.is_empty() {
            let rows = fresh.len();
            let batches = encoded_batches(&schema, Role::Current, fresh)?;
            written = self.write(&schema, Role::Current, rows, stream::iter(batches), WriteSpec::stored()).await?;
            let mut rest = fresh_keys.as_slice();
            for meta in &written {
                let (of_file, after) = rest.split_at((meta.rows as usize).min(rest.len()));
                prepared.keys.push((meta.file, of_file.to_vec()));
                rest = after;
            }
        }
        runtime::failpoint_hit("flush.files_written");
        if !written.is_empty() || !delete.is_empty() {
            let commit = Commit { add: written, delete, files: &files, ..Commit::default() };
            let committed = self.commit_files(table.id, Role::Current, commit, cut).await?;
            current_version = committed.version;
            files = committed.files;
        }
        runtime::failpoint_hit("flush.committed");
        let publish =
            difference(table.id, &published, files, cut, current_version, history, history_version, &adopted_ids);
        drop(published);
        guard.armed = false;
        self.publish(publish, prepared).await?;
        runtime::failpoint_hit("flush.published");
        self.counters.flushes.fetch_add(1, Ordering::Relaxed);
        self.reclaim(table);
        Ok(())
    }

    /// Merges small files of a table once there are `least` of them, in either dataset. The future must not be dropped
    /// before it ends (FLUSH-6).
    pub(crate) async fn merge_table(&self, table: &Arc<Table>, least: usize) -> Result<()> {
        self.merge_current(table, least).await?;
        self.merge_history(table, least).await
    }

    async fn merge_current(&self, table: &Arc<Table>, least: usize) -> Result<()> {
        let small = |published: &Published| -> Vec<FileMeta> {
            let mut rows = 0_u64;
            published
                .current
                .iter()
                .filter(|meta| meta.rows < SMALL_FILE_ROWS || meta.live_rows() < meta.rows / 2)
                .take_while(|meta| {
                    rows += u64::from(meta.rows);
                    rows <= MERGE_ROWS
                })
                .map(|meta| FileMeta::clone(meta))
                .collect()
        };
        if small(&table.published()).len() < least.max(1) {
            return Ok(());
        }
        let _one = self.compactor.busy.lock().await;
        let Some(schema) = table.schema() else { return Ok(()) };
        self.compactor.start_over(table, &self.columns).await?;
        let (published, _) = table.pin();
        // A merge keeps the cut: masks after it are carried over by the relocation, those before it are folded already.
        let sources = small(&published);
        if sources.len() < least.max(1) {
            return Ok(());
        }
        let pin = self.columns.pin(table.id, Role::Current, published.current_version).await.map_err(Error::part)?;
        let codec = KeyCodec::new(&schema)?;
        let all: Vec<usize> = (0..schema.columns.len()).collect();
        let mut batches: Vec<RecordBatch> = Vec::new();
        let mut order: Vec<(RowKey, usize, usize)> = Vec::new();
        let mut origin: Vec<(FileId, Vec<u32>)> = Vec::new();
        for meta in &sources {
            let mut spec = ScanSpec::columns(all.clone());
            spec.system = SystemColumns { tx_from: true, tx_to: false, op: true };
            spec.offsets = true;
            let mut scan = self.columns.scan_file(Some(&pin), meta, &schema, spec);
            while let Some(batch) = scan.next().await {
                let batch = batch.map_err(Error::part)?;
                let offsets = batch.column(batch.num_columns() - 1).as_primitive::<UInt32Type>();
                origin.push((meta.file, offsets.values().to_vec()));
                let rows = batch.project(&(0..batch.num_columns() - 1).collect::<Vec<_>>())?;
                for (row, key) in codec.keys(&rows.project(&all)?)?.into_iter().enumerate() {
                    order.push((key, batches.len(), row));
                }
                batches.push(rows);
            }
        }
        order.sort_unstable();
        let mut prepared = Prepared::default();
        for meta in &sources {
            prepared.moved.insert(meta.file, Relocation { rows: vec![None; meta.rows as usize] });
        }
        let written = if order.is_empty() {
            Vec::new()
        } else {
            let references: Vec<RecordBatch> = batches;
            let indices: Vec<(usize, usize)> = order.iter().map(|(_, batch, row)| (*batch, *row)).collect();
            let chunks: Vec<Vec<(usize, usize)>> = indices.chunks(BATCH_ROWS).map(<[_]>::to_vec).collect();
            let sorted = stream::iter(chunks.into_iter().map(move |chunk| -> Result<RecordBatch, BoxError> {
                Ok(interleave_record_batch(&references.iter().collect::<Vec<_>>(), &chunk)?)
            }));
            self.write(&schema, Role::Current, order.len(), sorted, WriteSpec::stored()).await?
        };
        let mut at = 0_usize;
        for meta in &written {
            for offset in 0..meta.rows {
                if let Some((_, batch, row)) = order.get(at) {
                    let (file, offsets) = &origin[*batch];
                    if let Some(moved) = prepared.moved.get_mut(file) {
                        moved.rows[offsets[*row] as usize] = Some(RowAddress { file: meta.file, offset });
                    }
                }
                at += 1;
            }
        }
        runtime::failpoint_hit("merge.files_written");
        let files: Vec<FileMeta> = published.current.iter().map(|meta| FileMeta::clone(meta)).collect();
        let remove = sources.iter().map(|meta| meta.file).collect();
        let commit = Commit { add: written, remove, files: &files, ..Commit::default() };
        let committed = self.commit_files(table.id, Role::Current, commit, published.cut).await?;
        runtime::failpoint_hit("merge.committed");
        let publish = difference(
            table.id,
            &published,
            committed.files,
            published.cut,
            committed.version,
            Vec::new(),
            published.history_version,
            &[],
        );
        drop((published, pin));
        match self.publish(publish, prepared).await {
            Ok(()) => {
                self.counters.merges.fetch_add(1, Ordering::Relaxed);
                self.reclaim(table);
                Ok(())
            }
            // A large transaction masked rows of a merged file meanwhile: it is tried again later, from the start.
            Err(Error::WriteConflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Merges small files of `history`. Rows of neighbours in closing time come together, ordered by when they began, so
    /// that a moment's rows still lie in few files and few zones of them.
    async fn merge_history(&self, table: &Arc<Table>, least: usize) -> Result<()> {
        let small = |published: &Published| -> Vec<FileMeta> {
            let mut files: Vec<FileMeta> = published
                .history
                .iter()
                .filter(|meta| meta.rows < SMALL_FILE_ROWS)
                .map(|meta| FileMeta::clone(meta))
                .collect();
            files.sort_by_key(|meta| (meta.min_closed, meta.file));
            let mut rows = 0_u64;
            let taken = files.iter().take_while(|meta| {
                rows += u64::from(meta.rows);
                rows <= MERGE_ROWS
            });
            let taken = taken.count();
            files.truncate(taken);
            files
        };
        let least = least.max(2);
        if small(&table.published()).len() < least {
            return Ok(());
        }
        let _one = self.compactor.busy.lock().await;
        let Some(schema) = table.schema() else { return Ok(()) };
        self.compactor.start_over(table, &self.columns).await?;
        let published = table.published();
        let sources = small(&published);
        if sources.len() < least {
            return Ok(());
        }
        let pin = self.columns.pin(table.id, Role::History, published.history_version).await.map_err(Error::part)?;
        let from_column = schema.columns.len();
        let mut batches: Vec<RecordBatch> = Vec::new();
        let mut order: Vec<(i64, usize, usize)> = Vec::new();
        for meta in &sources {
            let mut spec = ScanSpec::columns((0..schema.columns.len()).collect());
            spec.system = SystemColumns { tx_from: true, tx_to: true, op: true };
            let mut scan = self.columns.scan_file(Some(&pin), meta, &schema, spec);
            while let Some(batch) = scan.next().await {
                let batch = batch.map_err(Error::part)?;
                let from = batch.column(from_column).as_primitive::<Int64Type>();
                order.extend(from.values().iter().enumerate().map(|(row, &from)| (from, batches.len(), row)));
                batches.push(batch);
            }
        }
        order.sort_unstable();
        let rows = order.len();
        let chunks: Vec<Vec<(usize, usize)>> = order
            .chunks(BATCH_ROWS)
            .map(|chunk| chunk.iter().map(|(_, batch, row)| (*batch, *row)).collect())
            .collect();
        let sorted = stream::iter(chunks.into_iter().map(move |chunk| -> Result<RecordBatch, BoxError> {
            Ok(interleave_record_batch(&batches.iter().collect::<Vec<_>>(), &chunk)?)
        }));
        let mut spec = WriteSpec::stored();
        spec.order = columns::KeyOrder::Any;
        let written = self.write(&schema, Role::History, rows, sorted, spec).await?;
        runtime::failpoint_hit("merge.history_written");
        let files: Vec<FileMeta> = published.history.iter().map(|meta| FileMeta::clone(meta)).collect();
        let new: HashSet<FileId> = written.iter().map(|meta| meta.file).collect();
        let removed: Vec<FileId> = sources.iter().map(|meta| meta.file).collect();
        let commit = Commit { add: written, remove: removed.clone(), files: &files, ..Commit::default() };
        let committed = self.commit_files(table.id, Role::History, commit, published.cut).await?;
        runtime::failpoint_hit("merge.history_committed");
        let publish = Publish {
            table: table.id,
            cut: published.cut,
            current_version: published.current_version,
            history_version: committed.version,
            current: Vec::new(),
            removed,
            history: committed.files.into_iter().filter(|meta| new.contains(&meta.file)).collect(),
        };
        drop((published, pin));
        self.publish(publish, Prepared::default()).await?;
        self.counters.merges.fetch_add(1, Ordering::Relaxed);
        self.reclaim(table);
        Ok(())
    }

    /// Forgets a dropped table when its time is over, and removes its files when nobody reads them.
    pub(crate) async fn expire_table(&self, table: &Arc<Table>) -> Result<()> {
        let dropped = table.inner.read().dropped;
        let Some(dropped) = dropped else { return Ok(()) };
        if table.forgotten().is_none() {
            let retention = i64::try_from(self.options.dropped_retention_ms).unwrap_or(i64::MAX).saturating_mul(1000);
            if self.runtime.clock.now().0.saturating_sub(dropped.0) < retention {
                return Ok(());
            }
            // Who began before the drop still has the table.
            if self.running.lock().values().any(|snapshot| *snapshot < dropped) {
                return Ok(());
            }
            let (reply, done) = oneshot::channel();
            self.sequencer.send(Order::Forget { table: table.id, reply })?;
            done.await.map_err(|_| Error::Unavailable("the store is closing".into()))??;
        }
        if table.files_removed.load(Ordering::Acquire) {
            return Ok(());
        }
        let _one = self.compactor.busy.lock().await;
        self.reclaim(table);
        // A backup may have listed the files before the table was dropped.
        if !table.retired().is_empty() || self.compactor.holds.load(Ordering::Acquire) > 0 {
            return Ok(());
        }
        table.rows.truncate(CommitTs::MAX);
        self.compactor.stale.lock().remove(&table.id);
        self.columns.delete_table(table.id).await.map_err(Error::part)?;
        self.compactor.heads.lock().retain(|(id, _), _| *id != table.id);
        self.compactor.unpublished.lock().retain(|(id, _)| *id != table.id);
        table.files_removed.store(true, Ordering::Release);
        Ok(())
    }

    /// Removes what a crash left of one table; false when there is no such table left.
    pub(crate) async fn sweep_one(&self) -> Result<bool> {
        let Some(id) = self.compactor.unswept.lock().pop() else { return Ok(false) };
        let Some(table) = self.state.table(id).filter(|table| table.schema().is_some()) else { return Ok(true) };
        if !self.clean(&table, true).await? {
            self.compactor.unswept.lock().push(id);
            return Ok(false);
        }
        Ok(true)
    }

    async fn commit_files(
        &self,
        table: TableId,
        role: Role,
        mut commit: Commit<'_>,
        cut: CommitTs,
    ) -> Result<columns::Committed> {
        commit.properties.insert("lattice.cut".into(), cut.to_string());
        let expected = self.compactor.head(table, role);
        self.compactor.unpublished.lock().insert((table, role));
        let committed = self.columns.commit(table, role, expected, commit).await.map_err(Error::part)?;
        self.compactor.set_head(table, role, committed.version);
        Ok(committed)
    }

    async fn publish(&self, publish: Publish, mut prepared: Prepared) -> Result<()> {
        prepared.weigh();
        let table = publish.table;
        let (reply, done) = oneshot::channel();
        let order = Order::Publish { publish: Box::new(publish), prepared: Arc::new(prepared), reply };
        self.sequencer.send(order).inspect_err(|_| self.state.table_or_new(table).forget_cut())?;
        done.await.map_err(|_| Error::Unavailable("the store is closing".into()))??;
        self.compactor.unpublished.lock().retain(|(id, _)| *id != table);
        self.compactor.written.lock().clear();
        Ok(())
    }

    /// Lets go of what was kept for views that are gone, in memory at once, on the disk later.
    fn reclaim(&self, table: &Arc<Table>) {
        let free = table.reclaim();
        if free.is_empty() {
            return;
        }
        let now = table.published();
        let lost_files = free.iter().any(|old| {
            old.live_files().any(|meta| now.file(meta.file).is_none())
                || old.history.iter().any(|meta| now.history.iter().all(|kept| kept.file != meta.file))
        });
        *self.compactor.stale.lock().entry(table.id).or_default() |= lost_files;
    }

    /// Drops dataset versions and files that no view reads any more.
    pub(crate) async fn drop_old_versions(&self, table: &Arc<Table>) {
        self.reclaim(table);
        let Some(files) = self.compactor.stale.lock().remove(&table.id) else { return };
        match self.clean(table, files).await {
            Ok(true) => {}
            Ok(false) => *self.compactor.stale.lock().entry(table.id).or_default() |= files,
            Err(error) => {
                tracing::warn!(table_id = table.id.0, %error, "old versions and files stay until the table's next flush");
            }
        }
    }

    /// Removes the versions of a table that are neither published nor the newest nor read by a view, whatever they came
    /// from: publications, adopted files, attempts that were undone, the undoing itself. Then the files that no version
    /// has any more, if there are some. False if it has to wait because somebody writes or copies the datasets.
    async fn clean(&self, table: &Arc<Table>, files: bool) -> Result<bool> {
        let Ok(_one) = self.compactor.busy.try_lock() else { return Ok(false) };
        // A backup that begins from here on reads what is published now, and that stays.
        if self.compactor.holds.load(Ordering::Acquire) > 0 {
            return Ok(false);
        }
        self.compactor.release_written(&self.columns);
        let published = table.published();
        let read = table.retired();
        for role in Role::ALL {
            // Of an attempt that was neither published nor undone it is not known what it has left.
            if self.compactor.unpublished.lock().contains(&(table.id, role)) {
                continue;
            }
            let keep = read.iter().chain([&published]).map(|publication| publication.version_of(role)).collect();
            let head = self.compactor.head(table.id, role);
            self.columns.drop_versions(table.id, role, head, &keep).await.map_err(Error::part)?;
        }
        if files {
            sweep(table, &self.columns, &read).await?;
        }
        Ok(true)
    }

    /// Writes the closed versions of a cut; returns the new files and the dataset's version.
    async fn write_history(
        &self,
        table: &Arc<Table>,
        schema: &Arc<StoredSchema>,
        published: &Published,
        files: &[FileMeta],
        masks: &Masks,
        current_version: DatasetVersion,
        closed: Vec<OutRow>,
        cut: CommitTs,
    ) -> Result<(Vec<FileMeta>, DatasetVersion)> {
        let mut written = Vec::new();
        let mut waiting: Vec<RecordBatch> = if closed.is_empty() {
            Vec::new()
        } else {
            encoded_batches(schema, Role::History, closed)?.collect::<Result<_, _>>().map_err(decoded)?
        };
        for meta in files {
            let Some(mask) = masks.get(&meta.file) else { continue };
            let entries = mask.entries(CommitTs::ZERO..=cut);
            if entries.is_empty() {
                continue;
            }
            waiting.extend(self.closed_rows(table.id, schema, meta, current_version, &entries).await?);
            if waiting.iter().map(RecordBatch::num_rows).sum::<usize>() >= HISTORY_ROWS_IN_MEMORY {
                written.extend(self.write_history_files(schema, std::mem::take(&mut waiting)).await?);
            }
        }
        written.extend(self.write_history_files(schema, waiting).await?);
        if written.is_empty() {
            return Ok((Vec::new(), published.history_version));
        }
        runtime::failpoint_hit("flush.history_written");
        let known: Vec<FileMeta> = published.history.iter().map(|meta| FileMeta::clone(meta)).collect();
        let new: HashSet<FileId> = written.iter().map(|meta| meta.file).collect();
        let commit = Commit { add: written, files: &known, ..Commit::default() };
        let committed = self.commit_files(table.id, Role::History, commit, cut).await?;
        runtime::failpoint_hit("flush.history_committed");
        let added = committed.files.into_iter().filter(|meta| new.contains(&meta.file)).collect();
        Ok((added, committed.version))
    }

    /// Reads columnar rows that were superseded, with `_tx_from`, `_op` and `_tx_to`.
    async fn closed_rows(
        &self,
        table: TableId,
        schema: &Arc<StoredSchema>,
        meta: &FileMeta,
        current_version: DatasetVersion,
        entries: &[(u32, CommitTs)],
    ) -> Result<Vec<RecordBatch>> {
        let all: Vec<usize> = (0..schema.columns.len()).collect();
        let system = SystemColumns { tx_from: true, tx_to: false, op: true };
        let mut batches = Vec::new();
        if (entries.len() as u64) * SCAN_SHARE >= u64::from(meta.rows) {
            let closed: HashMap<u32, CommitTs> = entries.iter().copied().collect();
            let mut skip = RoaringBitmap::new();
            skip.insert_range(0..meta.rows);
            for (offset, _) in entries {
                skip.remove(*offset);
            }
            let mut spec = ScanSpec::columns(all);
            spec.system = system;
            spec.offsets = true;
            spec.mask = Some(Arc::new(skip));
            let pin = match meta.state {
                columns::FileState::Committed { .. } => {
                    Some(self.columns.pin(table, Role::Current, current_version).await.map_err(Error::part)?)
                }
                columns::FileState::Staged => None,
            };
            let mut scan = self.columns.scan_file(pin.as_ref(), meta, schema, spec);
            while let Some(batch) = scan.next().await {
                let batch = batch.map_err(Error::part)?;
                let offsets = batch.column(batch.num_columns() - 1).as_primitive::<UInt32Type>();
                let to: Vec<CommitTs> =
                    offsets.values().iter().map(|offset| closed.get(offset).copied().unwrap_or_default()).collect();
                let rows = batch.project(&(0..batch.num_columns() - 1).collect::<Vec<_>>())?;
                batches.extend(history_batch(schema, &rows, &to)?);
            }
        } else {
            for chunk in entries.chunks(BATCH_ROWS) {
                let offsets: Vec<u32> = chunk.iter().map(|(offset, _)| *offset).collect();
                let to: Vec<CommitTs> = chunk.iter().map(|(_, ts)| *ts).collect();
                let rows = self.columns.take(meta, schema, &offsets, &all, system).await.map_err(Error::part)?;
                batches.extend(history_batch(schema, &rows, &to)?);
            }
        }
        Ok(batches)
    }

    async fn write_history_files(
        &self,
        schema: &Arc<StoredSchema>,
        batches: Vec<RecordBatch>,
    ) -> Result<Vec<FileMeta>> {
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        if rows == 0 {
            return Ok(Vec::new());
        }
        let mut spec = WriteSpec::stored();
        spec.order = columns::KeyOrder::Any;
        self.write(schema, Role::History, rows, stream::iter(batches.into_iter().map(Ok)), spec).await
    }

    /// Writes batches to files.
    async fn write<S>(
        &self,
        schema: &Arc<StoredSchema>,
        role: Role,
        rows: usize,
        batches: S,
        spec: WriteSpec,
    ) -> Result<Vec<FileMeta>>
    where
        S: futures::Stream<Item = Result<RecordBatch, BoxError>> + Send,
    {
        let first = self.next_files(rows.div_ceil(1 << 18) as u64 + 2).await?;
        let mut next = first.0;
        let next_file = move || {
            let file = FileId(next);
            next += 1;
            file
        };
        let written = self.columns.write_files(schema, role, next_file, batches, spec).await.map_err(Error::part)?;
        self.compactor.written.lock().extend(written.iter().map(|meta| (schema.table, meta.clone())));
        Ok(written)
    }
}

fn decoded(error: BoxError) -> Error {
    Error::Corrupt(format!("cannot decode rows of the row tier: {error}"))
}

/// Decodes rows into the batches of a file.
fn encoded_batches(
    schema: &Arc<StoredSchema>,
    role: Role,
    rows: Vec<OutRow>,
) -> Result<impl Iterator<Item = Result<RecordBatch, BoxError>> + Send + use<>> {
    let codec = RowCodec::new(Arc::clone(schema))?;
    let all: Vec<usize> = (0..schema.columns.len()).collect();
    let arrow = system_schema(schema, role);
    let mut rows = rows.into_iter();
    let chunks = std::iter::from_fn(move || {
        let chunk: Vec<OutRow> = rows.by_ref().take(BATCH_ROWS).collect();
        (!chunk.is_empty()).then_some(chunk)
    });
    Ok(chunks.map(move |chunk| {
        let bytes: Vec<Bytes> = chunk.iter().map(|row| row.row.clone()).collect();
        let mut arrays: Vec<ArrayRef> = codec.decode(&bytes, &all)?.columns().to_vec();
        arrays.push(Arc::new(Int64Array::from_iter_values(chunk.iter().map(|row| row.from.0))));
        arrays.push(Arc::new(UInt8Array::from_iter_values(chunk.iter().map(|row| row.op))));
        if role == Role::History {
            arrays.push(Arc::new(Int64Array::from_iter_values(chunk.iter().map(|row| row.to.0))));
        }
        Ok(RecordBatch::try_new(Arc::clone(&arrow), arrays)?)
    }))
}

/// The fields of a file: the table's columns, then the system columns.
fn system_schema(schema: &StoredSchema, role: Role) -> Arc<Schema> {
    let mut fields: Vec<Arc<Field>> = schema.arrow().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(columns::TX_FROM_COLUMN, DataType::Int64, false)));
    fields.push(Arc::new(Field::new(columns::OP_COLUMN, DataType::UInt8, false)));
    if role == Role::History {
        fields.push(Arc::new(Field::new(columns::TX_TO_COLUMN, DataType::Int64, false)));
    }
    Arc::new(Schema::new(fields))
}

/// Closes rows; those that were superseded by their own transaction never existed for anyone and are left out.
fn history_batch(schema: &StoredSchema, rows: &RecordBatch, to: &[CommitTs]) -> Result<Option<RecordBatch>> {
    let count = schema.columns.len();
    let from = rows.column(count).as_primitive::<Int64Type>();
    let op = rows.column(count + 1).as_primitive::<UInt8Type>();
    let mut arrays: Vec<ArrayRef> = rows.columns()[..count].to_vec();
    arrays.push(Arc::new(from.clone()));
    arrays.push(Arc::new(op.clone()));
    arrays.push(Arc::new(Int64Array::from_iter_values(to.iter().map(|ts| ts.0))));
    let batch = RecordBatch::try_new(system_schema(schema, Role::History), arrays)?;
    let existed: arrow::array::BooleanArray =
        from.values().iter().zip(to).map(|(from, to)| Some(*from < to.0)).collect();
    let batch = arrow::compute::filter_record_batch(&batch, &existed)?;
    Ok((batch.num_rows() > 0).then_some(batch))
}

/// What changed between the published files and those of a new version.
fn difference(
    table: TableId,
    published: &Published,
    files: Vec<FileMeta>,
    cut: CommitTs,
    current_version: DatasetVersion,
    history: Vec<FileMeta>,
    history_version: DatasetVersion,
    adopted: &[FileId],
) -> Publish {
    let old: HashMap<FileId, &Arc<FileMeta>> = published.current.iter().map(|meta| (meta.file, meta)).collect();
    let now: HashSet<FileId> = files.iter().map(|meta| meta.file).collect();
    let removed = published
        .current
        .iter()
        .map(|meta| meta.file)
        .chain(adopted.iter().copied())
        .filter(|file| !now.contains(file))
        .collect();
    let current = files.into_iter().filter(|meta| old.get(&meta.file).is_none_or(|known| ***known != *meta)).collect();
    Publish { table, cut, current_version, history_version, current, removed, history }
}
