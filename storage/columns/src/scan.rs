//! Reading rows: scans of one file, and rows by number.
//!
//! A scan first settles which physical rows it wants: the ranges asked for, less the zones that cannot match, less the
//! rows that the deletion vector or the caller's mask hides. Long hidden runs are not read at all. Scattered hidden rows
//! are read and filtered out, batch by batch, because thousands of tiny ranges cost more than that; only when hidden rows
//! are very few are they cut out as ranges.
//!
//! # Invariants
//! - SCAN-1 a scan returns exactly the wanted rows, once, in physical order: `tests::scans_match_a_model`.
//! - SCAN-2 batches have the schema of [`ScanSpec::output_schema`], whatever the file lacks:
//!   `tests::columns_added_later_read_their_default`.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, UInt32Array};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{DataType, SchemaRef};
use codec::StoredSchema;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use lance_io::ReadBatchParams;
use roaring::RoaringBitmap;

use crate::blocks::{Cursor, Rows, RowsStream};
use crate::read::{OpenFile, Shape, output_schema};
use crate::{BATCH_ROWS, ColumnStore, DatasetPin, Error, FileMeta, Result, RowFilter, ZoneFilter};

/// Name of the column that holds `_tx_from` (Int64).
pub const TX_FROM_COLUMN: &str = "_tx_from";
/// Name of the column that holds `_tx_to` (Int64).
pub const TX_TO_COLUMN: &str = "_tx_to";
/// Name of the column that holds `_op` (UInt8: 0 insert, 1 update).
pub const OP_COLUMN: &str = "_op";
/// Name of the column that holds physical row numbers (UInt32).
pub const OFFSET_COLUMN: &str = "_offset";

/// Hidden runs of at least so many rows are not read.
const RUN_ROWS: u32 = 512;
/// When less than one in so many rows is hidden, hidden rows are cut out as ranges.
const SPARSE: u64 = 400;

/// The system columns a scan returns, in this order, after the table's columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SystemColumns {
    /// `_tx_from`, Int64.
    pub tx_from: bool,
    /// `_tx_to`, Int64; `i64::MAX` for rows of `current`.
    pub tx_to: bool,
    /// `_op`, UInt8.
    pub op: bool,
}

/// What a scan of one file returns.
#[derive(Clone, Debug)]
pub struct ScanSpec {
    /// Positions of columns in the [`StoredSchema`], in output order.
    pub columns: Vec<usize>,
    /// Those of `columns` (by position in the schema; Utf8 only) to return in dictionary form, see [`dictionary_type`].
    /// Free for columns that the file stores so ([`FileStats::is_dictionary`](crate::FileStats::is_dictionary)).
    pub dictionary: Vec<usize>,
    /// System columns to append.
    pub system: SystemColumns,
    /// Whether to append `_offset`, UInt32.
    pub offsets: bool,
    /// Physical rows to read, ascending and disjoint; `None` for all.
    pub ranges: Option<Vec<Range<u32>>>,
    /// Rows to leave out, on top of the pinned version's deletion vector.
    pub mask: Option<Arc<RoaringBitmap>>,
    /// What may be skipped.
    pub zones: Option<ZoneFilter>,
    /// What rows must pass, all of it, tested in this order.
    pub filters: Vec<Arc<dyn RowFilter>>,
    /// Rows per batch at most.
    pub batch_rows: u32,
    /// Batches that are read ahead.
    pub prefetch: usize,
}

impl ScanSpec {
    /// All rows of some columns.
    pub fn columns(columns: Vec<usize>) -> Self {
        Self {
            columns,
            dictionary: Vec::new(),
            system: SystemColumns::default(),
            offsets: false,
            ranges: None,
            mask: None,
            zones: None,
            filters: Vec::new(),
            batch_rows: BATCH_ROWS,
            prefetch: 2,
        }
    }

    /// The schema of the batches. Fields are named `c{id}` and carry the schema's nullability.
    pub fn output_schema(&self, schema: &StoredSchema) -> SchemaRef {
        output_schema(schema, &self.columns, &self.dictionary, self.system, self.offsets)
    }
}

/// The type of a string column in dictionary form.
pub fn dictionary_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

/// The batches of a scan, in physical order, none empty.
pub type ScanStream = BoxStream<'static, Result<RecordBatch>>;

impl ColumnStore {
    /// Reads one file. The deletion vector of the pinned version is applied to a committed file; a staged file (or
    /// `pin` = `None`) has none. Nothing is read before the stream is polled.
    pub fn scan_file(
        &self,
        pin: Option<&Arc<DatasetPin>>,
        meta: &FileMeta,
        schema: &Arc<StoredSchema>,
        spec: ScanSpec,
    ) -> ScanStream {
        let (store, pin, meta, schema) = (self.clone(), pin.cloned(), meta.clone(), schema.clone());
        let started = async move { store.start_scan(pin.as_deref(), &meta, &schema, spec).await };
        stream::once(started).try_flatten().boxed()
    }

    async fn start_scan(
        &self,
        pin: Option<&DatasetPin>,
        meta: &FileMeta,
        schema: &StoredSchema,
        spec: ScanSpec,
    ) -> Result<ScanStream> {
        let deleted = match pin {
            Some(pin) => self.deleted_rows(pin, meta).await?,
            None => None,
        };
        let mask = match (deleted, spec.mask) {
            (Some(deleted), Some(mask)) => Some(Arc::new(&*deleted | &*mask)),
            (deleted, mask) => deleted.or(mask),
        };
        let mut ranges = spec.ranges.unwrap_or_else(|| vec![0..meta.rows]);
        if let Some(filter) = spec.zones.filter(|filter| !filter.predicates.is_empty()) {
            let stats = self.stats(schema.table, meta).await?;
            ranges = intersect(&ranges, &stats.prune(meta, &filter));
        }
        let (ranges, mask) = settle(ranges, mask, meta.rows);
        if ranges.is_empty() {
            return Ok(stream::empty().boxed());
        }
        let file = self.open_file(schema.table, meta).await?;
        let shape =
            Arc::new(Shape::new(&file, meta, schema, &spec.columns, &spec.dictionary, spec.system, spec.offsets)?);
        let fields: Arc<[String]> = shape.fields.clone().into();
        let filters: Arc<[Arc<dyn RowFilter>]> = spec.filters.into();
        let batch_rows = spec.batch_rows.max(1);
        if shape.fields.is_empty() {
            return Ok(constant_batches(shape, ranges, mask, filters, batch_rows));
        }
        let finish = move |rows: Rows| {
            let Rows { span, read } = rows;
            let keep = mask.as_deref().and_then(|mask| keep(&span, mask));
            let rows = read.num_rows();
            let keep = shape.select(Some(&read), rows, keep, &filters)?;
            shape.finish(Some(read), || offsets(&span), rows, keep.as_ref())
        };
        let read = if batch_rows >= self.inner.options.column_block_rows && self.inner.options.column_cache_bytes > 0 {
            self.read_blocks(file, fields, ranges, meta.rows)
        } else {
            self.read_ranges(&file, &fields, ranges, batch_rows).await?
        };
        let batches = read
            .map(move |reading| {
                let finish = finish.clone();
                async move { finish(reading?.await?) }
            })
            .buffered(spec.prefetch.max(1))
            .try_filter(|batch| std::future::ready(batch.num_rows() > 0));
        Ok(batches.boxed())
    }

    /// Reads ranges of rows and keeps nothing.
    async fn read_ranges(
        &self,
        file: &OpenFile,
        fields: &[String],
        ranges: Vec<Range<u32>>,
        batch_rows: u32,
    ) -> Result<RowsStream> {
        let wide: Arc<[Range<u64>]> = ranges.iter().map(|range| u64::from(range.start)..u64::from(range.end)).collect();
        let tasks = self.read_fields(file, fields, ReadBatchParams::Ranges(wide), batch_rows, true).await?;
        let mut cursor = Cursor::new(ranges);
        let read = tasks.map(move |task| {
            let span = cursor.next(task.num_rows);
            let rows: BoxFuture<'static, Result<Rows>> =
                Box::pin(async move { Ok(Rows { span, read: task.task.await? }) });
            Ok(rows)
        });
        Ok(read.boxed())
    }

    /// Reads rows by physical row number, in the order asked for, which need not ascend and may repeat. Deletion vectors
    /// are not applied: the caller knows that it wants these rows.
    pub async fn take(
        &self,
        meta: &FileMeta,
        schema: &Arc<StoredSchema>,
        offsets: &[u32],
        columns: &[usize],
        system: SystemColumns,
    ) -> Result<RecordBatch> {
        let mut sorted = offsets.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        if let Some(last) = sorted.last().filter(|last| **last >= meta.rows) {
            return Err(Error::InvalidInput(format!(
                "row {last} asked of file {}, which has {}",
                meta.path, meta.rows
            )));
        }
        let file = self.open_file(schema.table, meta).await?;
        let shape = Shape::new(&file, meta, schema, columns, &[], system, false)?;
        let read = if shape.fields.is_empty() || sorted.is_empty() {
            None
        } else {
            match self.kept_rows(&file, &shape.fields, &sorted)? {
                Some(kept) => Some(kept),
                None => Some(self.read_rows(&file, &shape.fields, &sorted).await?),
            }
        };
        if sorted.is_empty() {
            return Ok(RecordBatch::new_empty(shape.output));
        }
        let rows = shape.finish(read, Vec::new, sorted.len(), None)?;
        if sorted == offsets {
            return Ok(rows);
        }
        let places = offsets.iter().map(|offset| sorted.partition_point(|other| other < offset) as u32);
        Ok(take_record_batch(&rows, &UInt32Array::from_iter_values(places))?)
    }

    /// Reads rows by ascending row number, as stored.
    async fn read_rows(&self, file: &OpenFile, fields: &[String], rows: &[u32]) -> Result<RecordBatch> {
        let params = ReadBatchParams::Indices(UInt32Array::from(rows.to_vec()));
        self.read_whole(file, fields, params, rows.len() as u32).await
    }

    /// Reads a few rows, as stored.
    pub(crate) async fn read_whole(
        &self,
        file: &OpenFile,
        fields: &[String],
        params: ReadBatchParams,
        rows: u32,
    ) -> Result<RecordBatch> {
        let tasks = self.read_fields(file, fields, params, rows.max(1), false).await?;
        let mut batches: Vec<RecordBatch> = tasks.then(|task| task.task).try_collect().await?;
        match (batches.pop(), batches.is_empty()) {
            (Some(only), true) => Ok(only),
            (Some(last), false) => {
                batches.push(last);
                Ok(concat_batches(&batches[0].schema(), &batches)?)
            }
            (None, _) => Err(Error::corrupt("data file", "no rows were returned")),
        }
    }
}

/// The parts that two ascending lists of ranges share.
fn intersect(left: &[Range<u32>], right: &[Range<u32>]) -> Vec<Range<u32>> {
    let (mut a, mut b) = (0, 0);
    let mut shared = Vec::new();
    while let (Some(x), Some(y)) = (left.get(a), right.get(b)) {
        let (start, end) = (x.start.max(y.start), x.end.min(y.end));
        if start < end {
            shared.push(start..end);
        }
        if x.end <= y.end { a += 1 } else { b += 1 }
    }
    shared
}

/// Decides what is read: ranges to read, and the mask that is left to filter by.
fn settle(
    ranges: Vec<Range<u32>>,
    mask: Option<Arc<RoaringBitmap>>,
    rows: u32,
) -> (Vec<Range<u32>>, Option<Arc<RoaringBitmap>>) {
    let bounded = ranges
        .into_iter()
        .map(|range| range.start.min(rows)..range.end.min(rows))
        .filter(|range| range.start < range.end);
    let ranges: Vec<Range<u32>> = bounded.collect();
    let Some(mask) = mask else { return (ranges, None) };
    let wanted: u64 = ranges.iter().map(|range| u64::from(range.end - range.start)).sum();
    let hidden: u64 = ranges.iter().map(|range| mask.range_cardinality(range.clone())).sum();
    if hidden == 0 {
        return (ranges, None);
    }
    let shortest = if hidden * SPARSE < wanted { 1 } else { RUN_ROWS };
    let mut left = Vec::new();
    for range in ranges {
        let mut start = range.start;
        for run in runs(&mask, &range) {
            if run.end - run.start >= shortest {
                if start < run.start {
                    left.push(start..run.start);
                }
                start = run.end;
            }
        }
        if start < range.end {
            left.push(start..range.end);
        }
    }
    (left, (shortest > 1).then_some(mask))
}

/// The runs of consecutive rows of a mask within a range.
fn runs<'a>(mask: &'a RoaringBitmap, range: &Range<u32>) -> impl Iterator<Item = Range<u32>> + 'a {
    let mut rows = mask.range(range.clone());
    let mut next = rows.next();
    std::iter::from_fn(move || {
        let start = next?;
        let mut end = start + 1;
        loop {
            next = rows.next();
            if next != Some(end) {
                return Some(start..end);
            }
            end += 1;
        }
    })
}

fn offsets(span: &[Range<u32>]) -> Vec<u32> {
    span.iter().cloned().flatten().collect()
}

/// Which rows of a span stay; `None` when all do.
fn keep(span: &[Range<u32>], mask: &RoaringBitmap) -> Option<BooleanArray> {
    if span.iter().all(|range| mask.range_cardinality(range.clone()) == 0) {
        return None;
    }
    let rows = span.iter().map(|range| (range.end - range.start) as usize).sum();
    let mut bits = vec![u8::MAX; usize::div_ceil(rows, 8)];
    let mut before = 0;
    for range in span {
        for row in mask.range(range.clone()) {
            let at = before + (row - range.start) as usize;
            bits[at / 8] &= !(1 << (at % 8));
        }
        before += (range.end - range.start) as usize;
    }
    Some(BooleanArray::new(BooleanBuffer::new(bits.into(), 0, rows), None))
}

/// Batches for which nothing needs to be read.
fn constant_batches(
    shape: Arc<Shape>,
    ranges: Vec<Range<u32>>,
    mask: Option<Arc<RoaringBitmap>>,
    filters: Arc<[Arc<dyn RowFilter>]>,
    batch_rows: u32,
) -> ScanStream {
    let mut cursor = Cursor::new(ranges);
    let batches = std::iter::from_fn(move || {
        let span = cursor.next(batch_rows);
        let rows: usize = span.iter().map(|range| (range.end - range.start) as usize).sum();
        if rows == 0 {
            return None;
        }
        let keep = mask.as_deref().and_then(|mask| keep(&span, mask));
        let selected = shape.select(None, rows, keep, &filters);
        Some(selected.and_then(|keep| shape.finish(None, || offsets(&span), rows, keep.as_ref())))
    });
    stream::iter(batches).try_filter(|batch| std::future::ready(batch.num_rows() > 0)).boxed()
}

/// A column of rows that a caller handed in.
pub(crate) fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    batch.column_by_name(name).ok_or_else(|| Error::InvalidInput(format!("rows lack the column {name}")))
}
