//! One table under one snapshot, read over both tiers.
//!
//! A view at S of a table whose published cut is X reads:
//! - S ≥ X: the files of `current`, minus deletion vectors, minus masked rows; staged files committed at or before S; the
//!   newest row-tier version of each key in (X, S].
//! - S < X: rows of `current` and of staged files with `_tx_from ≤ S`, minus rows masked at or before S; rows of `history`
//!   with `_tx_from ≤ S < _tx_to`; nothing of the row tier.
//!
//! A transaction's own writes lie on top: its row buffer, its staged files, and masks over everything below.
//!
//! # Invariants
//! - VIEW-1 moving rows between tiers never changes an answer (`tests/placement.rs`).
//! - VIEW-2 a view pins what it reads: the publication, its masks, and row-tier versions above its cut.
//! - VIEW-3 a transaction sees what it wrote once, however rows have moved since (`own_writes_are_seen_once_while_rows_move`).

use std::collections::HashMap;
use std::ops::{Bound, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray, UInt8Array,
    UInt32Array, UInt64Array,
};
use arrow::compute::{filter_record_batch, interleave_record_batch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit, UInt8Type, UInt32Type};
use base::{CommitTs, FileId, RowKey};
use codec::{KeyCodec, RowCodec, StoredSchema};
use columns::{ColumnStore, CompareOp, DatasetPin, FileMeta, Role, RowFilter, ZoneColumn, passing};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use rows::{RowOp, Version};

use crate::mask::FileMask;
use crate::sequencer::Predecessor;
use crate::state::{Published, Table};
use crate::store::Core;
use crate::writes::{RowsOfFiles, TableWrites, encoded};
use crate::{Error, Result};

/// Rows of one file that a partition takes at least, when files are split.
const PARTITION_ROWS_MIN: u32 = 64 * 1024;

/// System columns that a scan appends, in this order, after the columns asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SystemColumns {
    /// `_tx_from`, `Timestamp(µs, UTC)`; NULL for a transaction's own rows.
    pub tx_from: bool,
    /// `_tx_to`, `Timestamp(µs, UTC)`; NULL while the version is open.
    pub tx_to: bool,
    /// `_op`, `UInt8`: 0 insert, 1 update.
    pub op: bool,
    /// `_file UInt64` and `_offset UInt32`: what [`Locator`] holds.
    pub locator: bool,
}

/// What a scan returns.
#[derive(Clone, Debug)]
pub struct ScanSpec {
    /// Positions of columns in the schema, in output order.
    pub columns: Vec<usize>,
    /// System columns.
    pub system: SystemColumns,
    /// What may be skipped; rows that do not match may still be returned.
    pub zones: Option<ZoneFilter>,
    /// What rows must pass, all of it; positions count `columns`. [`TableView::get`] returns rows whether they pass or not.
    pub filters: Vec<Arc<dyn RowFilter>>,
    /// Rows per batch at most.
    pub batch_rows: usize,
    /// Rows at most, per partition.
    pub limit: Option<usize>,
}

impl ScanSpec {
    /// All rows of some columns.
    pub fn new(columns: Vec<usize>) -> Self {
        Self {
            columns,
            system: SystemColumns::default(),
            zones: None,
            filters: Vec::new(),
            batch_rows: 8192,
            limit: None,
        }
    }
}

/// A conjunction of conditions that every wanted row meets.
#[derive(Clone, Debug, Default)]
pub struct ZoneFilter {
    /// All of these hold.
    pub conditions: Vec<ZoneCondition>,
}

/// One condition on one column.
#[derive(Clone, Debug)]
pub struct ZoneCondition {
    /// Position in the schema.
    pub column: usize,
    /// The comparison.
    pub op: ZoneOp,
    /// The literals, each a one-row array of the column's type; none for the NULL tests.
    pub values: Vec<ArrayRef>,
}

/// Comparisons that statistics can answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneOp {
    /// `=`
    Eq,
    /// `<`
    Lt,
    /// `<=`
    LtEq,
    /// `>`
    Gt,
    /// `>=`
    GtEq,
    /// `IN`
    In,
    /// `IS NULL`
    IsNull,
    /// `IS NOT NULL`
    IsNotNull,
}

/// Where a scanned row lies, as the locator columns say it. Handed back with an update or delete of the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locator {
    /// The file, or [`Locator::ROW_TIER`].
    pub file: FileId,
    /// The physical row in that file.
    pub offset: u32,
}

impl Locator {
    /// The row lies in the row tier or in the transaction's own buffer.
    pub const ROW_TIER: FileId = FileId(0);

    /// Reads the locator columns of a scanned batch, its last two.
    pub fn read(batch: &RecordBatch) -> Result<Vec<Locator>> {
        let bad = || Error::Invalid("the batch has no locator columns".into());
        let at = batch.num_columns().checked_sub(2).ok_or_else(bad)?;
        let files = batch.column(at).as_primitive_opt::<arrow::datatypes::UInt64Type>().ok_or_else(bad)?;
        let offsets = batch.column(at + 1).as_primitive_opt::<UInt32Type>().ok_or_else(bad)?;
        Ok(files
            .values()
            .iter()
            .zip(offsets.values())
            .map(|(&file, &offset)| Locator { file: FileId(file), offset })
            .collect())
    }
}

/// A row that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where.
    pub locator: Locator,
    /// Not after this moment; [`CommitTs::MAX`] for a transaction's own row.
    pub ts: CommitTs,
}

/// How many rows a view has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowCount {
    /// The number.
    pub rows: usize,
    /// Whether it is exact.
    pub exact: bool,
}

/// What is known of one column's values.
#[derive(Clone, Debug, Default)]
pub struct ColumnStatistics {
    /// The least value, one row.
    pub min: Option<ArrayRef>,
    /// The greatest value, one row.
    pub max: Option<ArrayRef>,
    /// NULLs.
    pub null_count: Option<usize>,
    /// Distinct values, estimated.
    pub distinct: Option<usize>,
    /// Whether min, max and NULLs are exact.
    pub exact: bool,
}

/// A share of a view's rows.
#[derive(Clone, Debug)]
pub struct Partition {
    files: Vec<(usize, Range<u32>)>,
    row_tier: bool,
    rows: usize,
}

impl Partition {
    /// About how many rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

/// One table under one snapshot. Cheap to clone; holds what it reads until the last clone is dropped.
#[derive(Clone, Debug)]
pub struct TableView {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    schema: Arc<StoredSchema>,
    table: Arc<Table>,
    columns: ColumnStore,
    at: CommitTs,
    published: Arc<Published>,
    own: Option<TableWrites>,
    /// Rows that own writes supersede.
    own_masks: RowsOfFiles,
    files: Vec<ViewFile>,
    pins: tokio::sync::OnceCell<Pins>,
    statistics: tokio::sync::OnceCell<Vec<Arc<columns::FileStats>>>,
    /// Keeps row-tier versions above the cut.
    row_pin: Option<rows::Pin>,
    row_tier_rows: Arc<AtomicU64>,
    column_rows: Arc<AtomicU64>,
}

#[derive(Debug, Clone, Default)]
struct Pins {
    current: Option<Arc<DatasetPin>>,
    history: Option<Arc<DatasetPin>>,
}

#[derive(Debug)]
struct ViewFile {
    meta: Arc<FileMeta>,
    mask: Option<Arc<FileMask>>,
    /// Written by this transaction.
    own: bool,
}

/// Where a found row comes from.
enum Source {
    Row { row: bytes::Bytes, ts: Option<CommitTs>, update: bool },
    File { file: usize, offset: u32 },
}

impl TableView {
    pub(crate) fn new(
        core: &Arc<Core>,
        schema: &Arc<StoredSchema>,
        at: CommitTs,
        mut own: Option<TableWrites>,
    ) -> Self {
        let table = core.state.table_or_new(schema.table);
        let (published, masks, row_pin, recent) = {
            let inner = table.inner.read();
            // Where publications up to this one have put the rows that own writes supersede.
            let recent = own.as_ref().and_then(|own| own.to_follow(&inner));
            let published = Arc::clone(&inner.published);
            // Truncation follows publication, so that versions above the published cut are all there.
            let pin = (at >= published.cut).then(|| table.rows.pin(published.cut).ok()).flatten();
            (published, Arc::clone(&inner.masks), pin, recent)
        };
        let truncated = own.as_ref().is_some_and(|own| own.truncated);
        let mut files = Vec::new();
        if !truncated {
            let visible = |meta: &&Arc<FileMeta>| meta.min_ts <= at;
            for meta in published.live_files().filter(visible) {
                files.push(ViewFile { meta: Arc::clone(meta), mask: masks.get(&meta.file).cloned(), own: false });
            }
            if at < published.cut {
                for meta in published.history.iter().filter(|meta| meta.may_be_visible(at)) {
                    files.push(ViewFile { meta: Arc::clone(meta), mask: None, own: false });
                }
            }
        }
        for meta in own.iter().flat_map(|own| own.staged.iter()) {
            files.push(ViewFile { meta: Arc::clone(meta), mask: None, own: true });
        }
        if let (Some(own), Some(recent)) = (&mut own, recent) {
            own.follow(&recent);
        }
        let own_masks = own.as_ref().map_or_else(RowsOfFiles::new_sync, |own| own.superseded().clone());
        Self {
            inner: Arc::new(Inner {
                schema: Arc::clone(schema),
                table,
                columns: core.columns.clone(),
                at,
                published,
                own,
                own_masks,
                files,
                pins: tokio::sync::OnceCell::new(),
                statistics: tokio::sync::OnceCell::new(),
                row_pin,
                row_tier_rows: Arc::clone(&core.counters.row_tier_rows),
                column_rows: Arc::clone(&core.counters.column_rows),
            }),
        }
    }

    /// The table's definition.
    pub fn schema(&self) -> &Arc<StoredSchema> {
        &self.inner.schema
    }

    /// The snapshot.
    pub fn at(&self) -> CommitTs {
        self.inner.at
    }

    /// The Arrow schema of what a scan yields.
    pub fn scan_schema(&self, spec: &ScanSpec) -> SchemaRef {
        scan_schema(&self.inner.schema, spec)
    }

    /// Splits the rows into at most about `target` shares of similar size; at least one.
    pub fn partitions(&self, target: usize) -> Vec<Partition> {
        let inner = &self.inner;
        let target = target.max(1);
        let total: u64 = inner.files.iter().map(|file| u64::from(file.meta.rows)).sum();
        let row_tier_rows = inner.row_tier_rows_estimate();
        let share = u32::try_from(total.div_ceil(target as u64)).unwrap_or(u32::MAX).max(PARTITION_ROWS_MIN);
        // Pieces begin at multiples of the least share, which are zone boundaries too.
        let share = share.div_ceil(PARTITION_ROWS_MIN).saturating_mul(PARTITION_ROWS_MIN);
        let mut pieces: Vec<(usize, Range<u32>)> = Vec::new();
        for (at, file) in inner.files.iter().enumerate() {
            let mut start = 0;
            while start < file.meta.rows {
                let end = start.saturating_add(share).min(file.meta.rows);
                pieces.push((at, start..end));
                start = end;
            }
        }
        let mut partitions: Vec<Partition> =
            (0..target).map(|_| Partition { files: Vec::new(), row_tier: false, rows: 0 }).collect();
        for piece in pieces {
            // The emptiest share takes the next piece; shares keep file order inside.
            if let Some(least) = partitions.iter_mut().min_by_key(|partition| partition.rows) {
                least.rows += (piece.1.end - piece.1.start) as usize;
                least.files.push(piece);
            }
        }
        partitions.retain(|partition| !partition.files.is_empty());
        if row_tier_rows > 0 || partitions.is_empty() {
            if partitions.len() < target || partitions.is_empty() {
                partitions.push(Partition { files: Vec::new(), row_tier: true, rows: row_tier_rows });
            } else if let Some(least) = partitions.iter_mut().min_by_key(|partition| partition.rows) {
                least.row_tier = true;
                least.rows += row_tier_rows;
            }
        }
        partitions
    }

    /// The share that consists of the chosen files.
    pub(crate) fn files_where(&self, chosen: impl Fn(&FileMeta) -> bool) -> Partition {
        let files = self.inner.files.iter().enumerate().filter(|(_, file)| chosen(&file.meta));
        let files: Vec<(usize, Range<u32>)> = files.map(|(at, file)| (at, 0..file.meta.rows)).collect();
        let rows = files.iter().map(|(_, range)| range.len()).sum();
        Partition { files, row_tier: false, rows }
    }

    /// Reads one share.
    pub fn scan(&self, partition: &Partition, spec: &ScanSpec) -> BoxStream<'static, Result<RecordBatch>> {
        let view = self.clone();
        let spec = spec.clone();
        let limit = spec.limit;
        let rows = partition.row_tier.then(|| {
            let (view, spec) = (view.clone(), spec.clone());
            view.scan_rows((Bound::Unbounded, Bound::Unbounded), spec)
        });
        let files = stream::iter(partition.files.clone())
            .map(move |(file, range)| view.clone().scan_file(file, Some(range), spec.clone()))
            .flatten();
        let all = stream::iter(rows).flatten().chain(files);
        limited(all.boxed(), limit)
    }

    /// Rows whose key lies in a range, over all tiers, in key order. Meant for narrow ranges: the result is gathered and
    /// sorted.
    pub fn scan_range(
        &self,
        range: (Bound<RowKey>, Bound<RowKey>),
        spec: &ScanSpec,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        let view = self.clone();
        let spec = spec.clone();
        let limit = spec.limit;
        let gathered = async move {
            // Key columns come along for sorting and are projected away.
            let wanted = spec.columns.len();
            let mut wide = spec.clone();
            wide.limit = None;
            wide.columns.extend(view.inner.schema.key.iter().copied());
            let schema = scan_schema(&view.inner.schema, &wide);
            let mut batches: Vec<RecordBatch> =
                view.clone().scan_rows(range.clone(), wide.clone()).try_collect().await?;
            for (at, file) in view.inner.files.iter().enumerate() {
                let below = match &range.1 {
                    Bound::Included(end) => file.meta.min_key <= *end,
                    Bound::Excluded(end) => file.meta.min_key < *end,
                    Bound::Unbounded => true,
                };
                let above = match &range.0 {
                    Bound::Included(start) => file.meta.max_key >= *start,
                    Bound::Excluded(start) => file.meta.max_key > *start,
                    Bound::Unbounded => true,
                };
                if below && above {
                    let of_file: Vec<RecordBatch> =
                        view.clone().scan_file(at, None, wide.clone()).try_collect().await?;
                    batches.extend(of_file);
                }
            }
            let codec = KeyCodec::new(&view.inner.schema)?;
            let mut order: Vec<(RowKey, usize, usize)> = Vec::new();
            let keys_at = wanted..wanted + view.inner.schema.key.len();
            for (number, batch) in batches.iter().enumerate() {
                let keys = codec.keys_of_columns(&batch.columns()[keys_at.clone()])?;
                for (row, key) in keys.into_iter().enumerate() {
                    if std::ops::RangeBounds::contains(&range, &key) {
                        order.push((key, number, row));
                    }
                }
            }
            order.sort_unstable();
            let indices: Vec<(usize, usize)> = order.into_iter().map(|(_, batch, row)| (batch, row)).collect();
            let sorted = if batches.is_empty() {
                RecordBatch::new_empty(schema)
            } else {
                interleave_record_batch(&batches.iter().collect::<Vec<_>>(), &indices)?
            };
            let keep: Vec<usize> = (0..sorted.num_columns()).filter(|at| !keys_at.contains(at)).collect();
            Ok(sorted.project(&keep)?)
        };
        limited(stream::once(gathered).try_filter(|batch| std::future::ready(batch.num_rows() > 0)).boxed(), limit)
    }

    /// The rows of these keys that exist, in the order of `keys`.
    pub async fn get(&self, keys: &[RowKey], spec: &ScanSpec) -> Result<RecordBatch> {
        let found = self.locate(keys).await?;
        let mut batches: Vec<RecordBatch> = Vec::new();
        let mut indices: Vec<Option<(usize, usize)>> = vec![None; keys.len()];
        let mut from_rows: Vec<(usize, bytes::Bytes, Option<CommitTs>, bool)> = Vec::new();
        let mut from_files: HashMap<usize, Vec<(usize, u32)>> = HashMap::new();
        for (at, source) in found.into_iter().enumerate() {
            match source {
                None => {}
                Some(Source::Row { row, ts, update }) => from_rows.push((at, row, ts, update)),
                Some(Source::File { file, offset }) => from_files.entry(file).or_default().push((at, offset)),
            }
        }
        if !from_rows.is_empty() {
            for (row, (at, ..)) in from_rows.iter().enumerate() {
                indices[*at] = Some((batches.len(), row));
            }
            let rows = from_rows.into_iter().map(|(at, row, ts, update)| DecodeRow {
                row,
                ts,
                closed: self.closed_in_rows(&keys[at], ts, spec),
                update,
            });
            batches.push(self.decode_rows(rows.collect(), spec)?);
        }
        for (file, wanted) in from_files {
            let offsets: Vec<u32> = wanted.iter().map(|(_, offset)| *offset).collect();
            for (row, (at, _)) in wanted.iter().enumerate() {
                indices[*at] = Some((batches.len(), row));
            }
            batches.push(self.take(file, &offsets, spec).await?);
        }
        if batches.is_empty() {
            return Ok(RecordBatch::new_empty(self.scan_schema(spec)));
        }
        let order: Vec<(usize, usize)> = indices.into_iter().flatten().collect();
        if batches.len() == 1 && order.iter().enumerate().all(|(at, (_, row))| at == *row) {
            return Ok(batches.remove(0));
        }
        if batches[0].num_columns() == 0 {
            let options = RecordBatchOptions::new().with_row_count(Some(order.len()));
            return Ok(RecordBatch::try_new_with_options(self.scan_schema(spec), vec![], &options)?);
        }
        Ok(interleave_record_batch(&batches.iter().collect::<Vec<_>>(), &order)?)
    }

    /// Which of these keys exist, and where.
    pub async fn find(&self, keys: &[RowKey]) -> Result<Vec<Option<Found>>> {
        let mut result = vec![None; keys.len()];
        for (at, source) in self.locate(keys).await?.into_iter().enumerate() {
            match source {
                None => {}
                Some(Source::Row { ts, .. }) => {
                    let locator = Locator { file: Locator::ROW_TIER, offset: 0 };
                    result[at] = Some(Found { locator, ts: ts.unwrap_or(CommitTs::MAX) });
                }
                Some(Source::File { file, offset }) => {
                    let view_file = &self.inner.files[file];
                    let locator = Locator { file: view_file.meta.file, offset };
                    let ts = if view_file.own { Some(CommitTs::MAX) } else { view_file.meta.constant_tx_from() };
                    result[at] = Some(Found { locator, ts: ts.unwrap_or(view_file.meta.max_ts) });
                }
            }
        }
        Ok(result)
    }

    /// How many rows the view has. Exact when nothing lies in the row tier and no row is masked.
    pub fn row_count(&self) -> RowCount {
        let inner = &self.inner;
        let mut exact = true;
        let mut rows: i64 = 0;
        for file in &inner.files {
            if file.meta.role == Role::History || file.meta.max_ts > inner.at && !file.own {
                exact = false;
            }
            rows += i64::from(file.meta.live_rows());
            if let Some(mask) = &file.mask {
                exact = false;
                rows -= i64::try_from(mask.len()).unwrap_or(i64::MAX);
            }
            if let Some(mask) = inner.own_masks.get(&file.meta.file) {
                exact = false;
                rows -= i64::try_from(mask.len()).unwrap_or(i64::MAX);
            }
        }
        let in_rows = inner.row_tier_rows_estimate();
        exact &= in_rows == 0;
        rows += i64::try_from(in_rows).unwrap_or(i64::MAX);
        RowCount { rows: usize::try_from(rows).unwrap_or(0), exact }
    }

    /// Reads the statistics of all files, once, so that [`TableView::column_statistics`] can answer.
    pub async fn load_statistics(&self) -> Result<()> {
        let inner = &self.inner;
        inner
            .statistics
            .get_or_try_init(|| async {
                let mut all = Vec::with_capacity(inner.files.len());
                for file in inner.files.iter().filter(|file| file.meta.role == Role::Current) {
                    all.push(inner.columns.stats(inner.schema.table, &file.meta).await.map_err(Error::part)?);
                }
                Ok::<_, Error>(all)
            })
            .await?;
        Ok(())
    }

    /// What the files' statistics say of a column; nothing before [`TableView::load_statistics`].
    pub fn column_statistics(&self, position: usize) -> ColumnStatistics {
        let inner = &self.inner;
        let Some(files) = inner.statistics.get() else { return ColumnStatistics::default() };
        let Some(column) = inner.schema.columns.get(position) else { return ColumnStatistics::default() };
        let count = self.row_count();
        let mut merged = ColumnStatistics { exact: count.exact, null_count: Some(0), ..ColumnStatistics::default() };
        let mut sketch: Option<columns::DistinctSketch> = None;
        for stats in files {
            let Some(of_file) = stats.column(column.id) else { return ColumnStatistics::default() };
            merged.exact &= of_file.exact;
            merged.null_count = merged.null_count.map(|nulls| nulls + usize::try_from(of_file.nulls).unwrap_or(0));
            merged.min = merge_bound(merged.min.take(), of_file.min.clone(), true);
            merged.max = merge_bound(merged.max.take(), of_file.max.clone(), false);
            match &mut sketch {
                Some(sketch) => sketch.merge(&of_file.distinct),
                None => sketch = Some(of_file.distinct.clone()),
            }
        }
        let estimate = sketch.map_or(0, |sketch| sketch.estimate());
        let estimate = usize::try_from(estimate).unwrap_or(usize::MAX);
        merged.distinct = (estimate > 0).then(|| estimate.min(count.rows.max(1)));
        merged
    }

    fn own(&self) -> Option<&TableWrites> {
        self.inner.own.as_ref()
    }

    async fn pins(&self) -> Result<&Pins> {
        let inner = &self.inner;
        inner
            .pins
            .get_or_try_init(|| async {
                let mut pins = Pins::default();
                let id = inner.schema.table;
                if !inner.published.current.is_empty() {
                    let version = inner.published.current_version;
                    pins.current = Some(inner.columns.pin(id, Role::Current, version).await.map_err(Error::part)?);
                }
                if inner.files.iter().any(|file| file.meta.role == Role::History) {
                    let version = inner.published.history_version;
                    pins.history = Some(inner.columns.pin(id, Role::History, version).await.map_err(Error::part)?);
                }
                Ok(pins)
            })
            .await
    }

    /// Finds keys: own writes first, then the row tier, then files.
    async fn locate(&self, keys: &[RowKey]) -> Result<Vec<Option<Source>>> {
        let inner = &self.inner;
        let mut found: Vec<Option<Source>> = Vec::with_capacity(keys.len());
        let mut open: Vec<usize> = Vec::new();
        let truncated = self.own().is_some_and(|own| own.truncated);
        for (at, key) in keys.iter().enumerate() {
            if let Some(write) = self.own().and_then(|own| own.rows.get(key)) {
                found.push(match &write.op {
                    RowOp::Put { row, update } => Some(Source::Row { row: row.clone(), ts: None, update: *update }),
                    RowOp::Delete => None,
                });
                continue;
            }
            let hidden = truncated || self.own().is_some_and(|own| own.hidden.contains(key));
            let version = if hidden || inner.row_pin.is_none() {
                None
            } else {
                inner.table.rows.get(key, inner.at).filter(|version| version.ts > inner.published.cut)
            };
            match version {
                Some(Version { ts, op: RowOp::Put { row, update } }) => {
                    found.push(Some(Source::Row { row, ts: Some(ts), update }));
                }
                // A large transaction may have removed the row here and written its successor to a staged file.
                Some(_) | None => {
                    found.push(None);
                    open.push(at);
                }
            }
        }
        for (number, file) in inner.files.iter().enumerate() {
            if open.is_empty() {
                break;
            }
            let candidates: Vec<usize> = open
                .iter()
                .copied()
                .filter(|&at| file.meta.min_key <= keys[at] && keys[at] <= file.meta.max_key)
                .collect();
            if candidates.is_empty() {
                continue;
            }
            let wanted: Vec<RowKey> = candidates.iter().map(|&at| keys[at].clone()).collect();
            if !file.meta.key_sorted {
                let positions = self.search_unsorted(number, &wanted).await?;
                for (at, offset) in candidates.iter().zip(positions) {
                    if let Some(offset) = offset {
                        found[*at] = Some(Source::File { file: number, offset });
                    }
                }
            } else {
                let offsets = inner.columns.lookup(&file.meta, &inner.schema, &wanted).await.map_err(Error::part)?;
                let hits: Vec<(usize, u32)> =
                    candidates.iter().zip(offsets).filter_map(|(at, offset)| Some((*at, offset?))).collect();
                let visible = self.visible(number, &hits.iter().map(|(_, offset)| *offset).collect::<Vec<_>>()).await?;
                for ((at, offset), visible) in hits.into_iter().zip(visible) {
                    if visible {
                        found[at] = Some(Source::File { file: number, offset });
                    }
                }
            }
            open.retain(|&at| found[at].is_none());
        }
        Ok(found)
    }

    /// Whether rows of a file are visible in this view.
    async fn visible(&self, file: usize, offsets: &[u32]) -> Result<Vec<bool>> {
        let inner = &self.inner;
        let view_file = &inner.files[file];
        if offsets.is_empty() {
            return Ok(Vec::new());
        }
        let deleted = match (&view_file.meta.state, view_file.meta.role) {
            (columns::FileState::Committed { .. }, role) => {
                let pins = self.pins().await?;
                let pin = if role == Role::Current { &pins.current } else { &pins.history };
                match pin {
                    Some(pin) => inner.columns.deleted_rows(pin, &view_file.meta).await.map_err(Error::part)?,
                    None => None,
                }
            }
            (columns::FileState::Staged, _) => None,
        };
        let own_mask = inner.own_masks.get(&view_file.meta.file);
        let mut visible: Vec<bool> = offsets
            .iter()
            .map(|&offset| {
                let closed = view_file.mask.as_ref().and_then(|mask| mask.closed_at(offset));
                !deleted.as_ref().is_some_and(|deleted| deleted.contains(offset))
                    && closed.is_none_or(|ts| ts > inner.at)
                    && !own_mask.is_some_and(|mask| mask.contains(offset))
            })
            .collect();
        if view_file.needs_time_check(inner.at) {
            let system = columns::SystemColumns { tx_from: true, tx_to: true, op: false };
            let times =
                inner.columns.take(&view_file.meta, &inner.schema, offsets, &[], system).await.map_err(Error::part)?;
            let from = times.column(0).as_primitive::<Int64Type>();
            let to = times.column(1).as_primitive::<Int64Type>();
            for (row, visible) in visible.iter_mut().enumerate() {
                *visible &= from.value(row) <= inner.at.0 && inner.at.0 < to.value(row);
            }
        }
        Ok(visible)
    }

    /// Finds keys in a file that is not sorted by key (`history`), by reading its key columns.
    async fn search_unsorted(&self, file: usize, keys: &[RowKey]) -> Result<Vec<Option<u32>>> {
        let inner = &self.inner;
        let wanted: HashMap<&RowKey, usize> = keys.iter().enumerate().map(|(at, key)| (key, at)).collect();
        let mut spec = ScanSpec::new(inner.schema.key.clone());
        spec.system.locator = true;
        let codec = KeyCodec::new(&inner.schema)?;
        let mut result = vec![None; keys.len()];
        let mut batches = self.clone().scan_file(file, None, spec);
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            let locators = Locator::read(&batch)?;
            for (row, key) in codec.keys_of_columns(&batch.columns()[..inner.schema.key.len()])?.iter().enumerate() {
                if let Some(&at) = wanted.get(key) {
                    result[at] = Some(locators[row].offset);
                }
            }
        }
        Ok(result)
    }

    async fn take(&self, file: usize, offsets: &[u32], spec: &ScanSpec) -> Result<RecordBatch> {
        let inner = &self.inner;
        let view_file = &inner.files[file];
        inner.column_rows.fetch_add(offsets.len() as u64, Ordering::Relaxed);
        let system = view_file.system_columns(spec);
        let batch = inner
            .columns
            .take(&view_file.meta, &inner.schema, offsets, &spec.columns, system)
            .await
            .map_err(Error::part)?;
        let offsets = UInt32Array::from(offsets.to_vec());
        self.finish_file_batch(view_file, batch, spec, system, Some(offsets))
    }

    /// Reads the visible rows of one file.
    fn scan_file(
        self,
        file: usize,
        range: Option<Range<u32>>,
        spec: ScanSpec,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        let start = async move {
            let inner = Arc::clone(&self.inner);
            let view_file = &inner.files[file];
            let mut mask = view_file.mask.as_ref().map(|mask| mask.rows_at(inner.at)).unwrap_or_default();
            if let Some(own) = inner.own_masks.get(&view_file.meta.file) {
                mask |= own.as_ref();
            }
            let system = view_file.system_columns(&spec);
            let time_check = view_file.needs_time_check(inner.at);
            let mut read = columns::ScanSpec::columns(spec.columns.clone());
            read.system = system;
            if time_check {
                read.system.tx_from = true;
                read.system.tx_to = true;
            }
            read.offsets = spec.system.locator || spec.system.tx_to && view_file.mask.is_some();
            read.ranges = range.map(|range| vec![range]);
            read.mask = (!mask.is_empty()).then(|| Arc::new(mask));
            read.zones = spec.zones.as_ref().map(|zones| column_zones(&inner.schema, zones));
            if !time_check {
                read.filters = spec.filters.clone();
            }
            if let Some(limit) = spec.limit {
                read.batch_rows = read.batch_rows.min(u32::try_from(limit.max(1024)).unwrap_or(u32::MAX));
            }
            let pin = match (view_file.meta.state, view_file.meta.role) {
                (columns::FileState::Staged, _) => None,
                (columns::FileState::Committed { .. }, Role::Current) => self.pins().await?.current.clone(),
                (columns::FileState::Committed { .. }, Role::History) => self.pins().await?.history.clone(),
            };
            let offsets_read = read.offsets;
            let columns_read = spec.columns.len();
            let read_system = read.system;
            let batches = inner.columns.scan_file(pin.as_ref(), &view_file.meta, &inner.schema, read);
            let view = self.clone();
            let finished = batches.map(move |batch| {
                let mut batch = batch.map_err(Error::part)?;
                let view_file = &view.inner.files[file];
                if time_check {
                    let from = batch.column(columns_read).as_primitive::<Int64Type>();
                    let to = batch.column(columns_read + 1).as_primitive::<Int64Type>();
                    let at = view.inner.at.0;
                    let visible: BooleanArray =
                        from.values().iter().zip(to.values()).map(|(&from, &to)| Some(from <= at && at < to)).collect();
                    // Rows of another time must not reach the filters.
                    batch = passing(filter_record_batch(&batch, &visible)?, &spec.filters).map_err(Error::part)?;
                }
                view.inner.column_rows.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
                let offsets =
                    offsets_read.then(|| batch.column(batch.num_columns() - 1).as_primitive::<UInt32Type>().clone());
                view.finish_file_batch(view_file, batch, &spec, read_system, offsets)
            });
            Ok::<_, Error>(finished.try_filter(|batch| std::future::ready(batch.num_rows() > 0)))
        };
        stream::once(start).try_flatten().boxed()
    }

    /// Turns a batch of the column tier into the form that scans promise.
    fn finish_file_batch(
        &self,
        file: &ViewFile,
        batch: RecordBatch,
        spec: &ScanSpec,
        read: columns::SystemColumns,
        offsets: Option<UInt32Array>,
    ) -> Result<RecordBatch> {
        let rows = batch.num_rows();
        let mut arrays: Vec<ArrayRef> = batch.columns()[..spec.columns.len()].to_vec();
        let mut next = spec.columns.len();
        let mut system = |present: bool| {
            present.then(|| {
                let array = Arc::clone(batch.column(next));
                next += 1;
                array
            })
        };
        let from = system(read.tx_from);
        let to = system(read.tx_to);
        let op = system(read.op);
        if spec.system.tx_from {
            arrays.push(match from {
                Some(from) if !file.own => timestamps(from.as_primitive::<Int64Type>().iter()),
                Some(_) | None => timestamps(std::iter::repeat_n(None, rows)),
            });
        }
        if spec.system.tx_to {
            let stored = to.as_ref().map(|to| to.as_primitive::<Int64Type>().clone());
            arrays.push(timestamps((0..rows).map(|row| {
                let masked = match (&file.mask, &offsets) {
                    (Some(mask), Some(offsets)) => mask.closed_at(offsets.value(row)).map(|ts| ts.0),
                    _ => None,
                };
                masked.or_else(|| stored.as_ref().map(|to| to.value(row)).filter(|&to| to != i64::MAX))
            })));
        }
        if spec.system.op {
            arrays.push(match op {
                Some(op) => Arc::new(op.as_primitive::<UInt8Type>().clone()) as ArrayRef,
                None => Arc::new(UInt8Array::from(vec![0; rows])),
            });
        }
        if spec.system.locator {
            arrays.push(Arc::new(UInt64Array::from_iter_values(std::iter::repeat_n(file.meta.file.0, rows))));
            arrays.push(match offsets {
                Some(offsets) => Arc::new(offsets),
                None => return Err(Error::Invalid("a locator was asked for without offsets".into())),
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(self.scan_schema(spec), arrays, &options)?)
    }

    /// Reads the row tier and the transaction's own buffer.
    fn scan_rows(
        self,
        range: (Bound<RowKey>, Bound<RowKey>),
        spec: ScanSpec,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        let inner = Arc::clone(&self.inner);
        let truncated = self.own().is_some_and(|own| own.truncated);
        let scan = if inner.row_pin.is_none() || truncated {
            None
        } else {
            match inner.table.rows.scan(range.clone(), inner.at, inner.published.cut) {
                Ok(scan) => Some(scan.live_only()),
                Err(error) => return stream::once(async move { Err(Error::part(error)) }).boxed(),
            }
        };
        let chunk_rows = spec.batch_rows.max(1);
        let filters = spec.filters.clone();
        let view = self.clone();
        let stored_spec = spec.clone();
        let stored = stream::unfold((scan, view), move |(mut scan, view)| {
            let spec = stored_spec.clone();
            async move {
                let chunk = scan.as_mut()?.next_chunk(chunk_rows)?;
                view.inner.row_tier_rows.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                let own = view.own();
                let mut rows = Vec::with_capacity(chunk.len());
                for (key, version) in chunk {
                    let replaced = own.is_some_and(|own| own.rows.contains_key(&key) || own.hidden.contains(&key));
                    if let (false, RowOp::Put { row, update }) = (replaced, version.op) {
                        let closed = view.closed_in_rows(&key, Some(version.ts), &spec);
                        rows.push(DecodeRow { row, ts: Some(version.ts), closed, update });
                    }
                }
                let batch = view.decode_rows(rows, &spec);
                Some((batch, (scan, view)))
            }
        });
        let view = self.clone();
        let own_rows: Vec<DecodeRow> = self
            .own()
            .map(|own| {
                own.rows
                    .range(range)
                    .filter_map(|(_, write)| {
                        let update = write.predecessor != Predecessor::Nothing;
                        encoded(&write.op).map(|row| DecodeRow { row: row.clone(), ts: None, closed: None, update })
                    })
                    .collect()
            })
            .unwrap_or_default();
        let own = stream::iter(own_rows.chunks(chunk_rows).map(<[_]>::to_vec).collect::<Vec<_>>())
            .map(move |rows| view.decode_rows(rows, &spec));
        stored
            .chain(own)
            .map(move |batch| passing(batch?, &filters).map_err(Error::part))
            .try_filter(|batch| std::future::ready(batch.num_rows() > 0))
            .boxed()
    }

    /// When a row-tier version was superseded, if the scan asks for it.
    fn closed_in_rows(&self, key: &RowKey, ts: Option<CommitTs>, spec: &ScanSpec) -> Option<CommitTs> {
        let ts = ts.filter(|_| spec.system.tx_to)?;
        self.inner.table.rows.versions(key).iter().map(|version| version.ts).find(|next| *next > ts)
    }

    fn decode_rows(&self, rows: Vec<DecodeRow>, spec: &ScanSpec) -> Result<RecordBatch> {
        let codec = RowCodec::new(Arc::clone(&self.inner.schema))?;
        let count = rows.len();
        let bytes: Vec<bytes::Bytes> = rows.iter().map(|row| row.row.clone()).collect();
        let mut arrays = codec.decode(&bytes, &spec.columns)?.columns().to_vec();
        if spec.system.tx_from {
            arrays.push(timestamps(rows.iter().map(|row| row.ts.map(|ts| ts.0))));
        }
        if spec.system.tx_to {
            arrays.push(timestamps(rows.iter().map(|row| row.closed.map(|ts| ts.0))));
        }
        if spec.system.op {
            arrays.push(Arc::new(UInt8Array::from_iter_values(rows.iter().map(|row| u8::from(row.update)))));
        }
        if spec.system.locator {
            arrays.push(Arc::new(UInt64Array::from_iter_values(std::iter::repeat_n(Locator::ROW_TIER.0, count))));
            arrays.push(Arc::new(UInt32Array::from_iter_values(std::iter::repeat_n(0, count))));
        }
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        Ok(RecordBatch::try_new_with_options(self.scan_schema(spec), arrays, &options)?)
    }
}

#[derive(Clone)]
struct DecodeRow {
    row: bytes::Bytes,
    ts: Option<CommitTs>,
    closed: Option<CommitTs>,
    update: bool,
}

impl Inner {
    fn row_tier_rows_estimate(&self) -> usize {
        let own = self.own.as_ref().map_or(0, |own| own.rows.size());
        let truncated = self.own.as_ref().is_some_and(|own| own.truncated);
        let shared = if self.row_pin.is_none() || truncated { 0 } else { self.table.rows.len() };
        shared + own
    }
}

impl ViewFile {
    /// Whether rows must be compared with the snapshot one by one.
    fn needs_time_check(&self, at: CommitTs) -> bool {
        !self.own && (self.meta.role == Role::History || self.meta.max_ts > at)
    }

    fn system_columns(&self, spec: &ScanSpec) -> columns::SystemColumns {
        columns::SystemColumns {
            // An uncommitted file has no commit timestamp to read.
            tx_from: spec.system.tx_from && !self.own,
            tx_to: spec.system.tx_to && self.meta.role == Role::History,
            op: spec.system.op,
        }
    }
}

fn scan_schema(schema: &StoredSchema, spec: &ScanSpec) -> SchemaRef {
    let mut fields: Vec<Arc<Field>> =
        spec.columns.iter().map(|&position| Arc::clone(&schema.arrow().fields()[position])).collect();
    let timestamp = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    if spec.system.tx_from {
        fields.push(Arc::new(Field::new("_tx_from", timestamp.clone(), true)));
    }
    if spec.system.tx_to {
        fields.push(Arc::new(Field::new("_tx_to", timestamp, true)));
    }
    if spec.system.op {
        fields.push(Arc::new(Field::new("_op", DataType::UInt8, false)));
    }
    if spec.system.locator {
        fields.push(Arc::new(Field::new("_file", DataType::UInt64, false)));
        fields.push(Arc::new(Field::new("_offset", DataType::UInt32, false)));
    }
    Arc::new(Schema::new(fields))
}

fn timestamps(values: impl Iterator<Item = Option<i64>>) -> ArrayRef {
    Arc::new(values.collect::<TimestampMicrosecondArray>().with_timezone("UTC"))
}

fn column_zones(schema: &StoredSchema, zones: &ZoneFilter) -> columns::ZoneFilter {
    let mut filter = columns::ZoneFilter::all();
    for condition in &zones.conditions {
        let Some(column) = schema.columns.get(condition.column) else { continue };
        let column = ZoneColumn::Column(column.id);
        let literal = condition.values.first().cloned();
        filter = match (condition.op, literal) {
            (ZoneOp::Eq, Some(value)) => filter.and_compare(column, CompareOp::Eq, value),
            (ZoneOp::Lt, Some(value)) => filter.and_compare(column, CompareOp::Lt, value),
            (ZoneOp::LtEq, Some(value)) => filter.and_compare(column, CompareOp::Le, value),
            (ZoneOp::Gt, Some(value)) => filter.and_compare(column, CompareOp::Gt, value),
            (ZoneOp::GtEq, Some(value)) => filter.and_compare(column, CompareOp::Ge, value),
            (ZoneOp::In, Some(_)) => {
                let values: Vec<&dyn Array> = condition.values.iter().map(AsRef::as_ref).collect();
                match arrow::compute::concat(&values) {
                    Ok(values) => filter.and_in(column, values),
                    Err(_) => filter,
                }
            }
            (ZoneOp::IsNull, _) => filter.and_null(column, true),
            (ZoneOp::IsNotNull, _) => filter.and_null(column, false),
            (ZoneOp::Eq | ZoneOp::Lt | ZoneOp::LtEq | ZoneOp::Gt | ZoneOp::GtEq | ZoneOp::In, None) => filter,
        };
    }
    filter
}

/// The lesser (or greater) of two one-row arrays; `None` where they cannot be compared.
fn merge_bound(known: Option<ArrayRef>, new: Option<ArrayRef>, least: bool) -> Option<ArrayRef> {
    let (Some(known), Some(new)) = (known.clone(), new.clone()) else { return known.or(new) };
    let compare = arrow::array::make_comparator(&new, &known, arrow::compute::SortOptions::default()).ok()?;
    let new_is_less = compare(0, 0).is_lt();
    Some(if new_is_less == least { new } else { known })
}

/// Cuts a stream off after `limit` rows.
fn limited(
    batches: BoxStream<'static, Result<RecordBatch>>,
    limit: Option<usize>,
) -> BoxStream<'static, Result<RecordBatch>> {
    let Some(limit) = limit else { return batches };
    batches
        .scan(limit, |left, batch| {
            let batch = match batch {
                _ if *left == 0 => return std::future::ready(None),
                Ok(batch) if batch.num_rows() > *left => Ok(batch.slice(0, *left)),
                other => other,
            };
            if let Ok(batch) = &batch {
                *left -= batch.num_rows();
            }
            std::future::ready(Some(batch))
        })
        .boxed()
}

impl TableView {
    /// Whether any row may have a key in this range, judged without reading.
    pub(crate) fn may_hold_keys(&self, least: &RowKey, greatest: &RowKey) -> bool {
        let inner = &self.inner;
        if inner.files.iter().any(|file| file.meta.min_key <= *greatest && *least <= file.meta.max_key) {
            return true;
        }
        let range = (Bound::Included(least.clone()), Bound::Included(greatest.clone()));
        if self.own().is_some_and(|own| own.rows.range(range.clone()).next().is_some()) {
            return true;
        }
        inner.row_pin.is_some()
            && inner
                .table
                .rows
                .scan(range, inner.at, inner.published.cut)
                .map_or(true, |mut scan| scan.next_chunk(1).is_some())
    }
}
