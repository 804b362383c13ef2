//! Decoded columns kept in memory.
//!
//! Decoding is most of what a scan of a local file costs, so columns that were decoded once are kept, block by block, in
//! the compact form in which the file stores them. A block is a fixed range of physical rows of one field of one file.
//! Files never change, so a block never goes stale; masks are applied to what comes out of here.
//!
//! A scan that wants less than half of a block that is not kept reads just what it wants and keeps nothing.
//!
//! # Invariants
//! - BLOCKS-1 a scan returns the same whether blocks are kept or not: `tests::scans_match_a_model` runs on both.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, BooleanBufferBuilder, MutableArrayData, RecordBatch, make_array};
use arrow::compute::{filter_record_batch, interleave};
use arrow::datatypes::{Field, Schema};
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use lance_io::ReadBatchParams;
use object_store::path::Path;

use crate::read::OpenFile;
use crate::{ColumnStore, Error, Result};

/// Blocks that are read in one go.
const GROUP_BLOCKS: usize = 16;

/// A file, a field of it by position, and a block.
pub(crate) type BlockKey = (u128, u32, u32);

/// What a file is called in a [`BlockKey`].
pub(crate) fn file_key(path: &Path) -> u128 {
    xxhash_rust::xxh3::xxh3_128(path.as_ref().as_bytes())
}

/// Rows of one file, as stored.
pub(crate) struct Rows {
    /// The physical rows that `read` holds, without gaps between those of one range.
    pub(crate) span: Vec<Range<u32>>,
    pub(crate) read: RecordBatch,
}

/// Reads that are under way, in order.
pub(crate) type RowsStream = BoxStream<'static, Result<BoxFuture<'static, Result<Rows>>>>;

/// One block and what is wanted of it.
struct Block {
    number: u32,
    rows: Range<u32>,
    wanted: Vec<Range<u32>>,
    kept: Vec<Option<ArrayRef>>,
    /// Whether it is read as a whole, and kept.
    whole: bool,
}

/// Blocks that are read alike.
struct Group {
    blocks: Vec<Block>,
}

impl ColumnStore {
    /// Reads ranges of rows through the kept blocks.
    pub(crate) fn read_blocks(
        &self,
        file: Arc<OpenFile>,
        fields: Arc<[String]>,
        ranges: Vec<Range<u32>>,
        rows: u32,
    ) -> RowsStream {
        let planner = Planner {
            store: self.clone(),
            file: file.clone(),
            fields: fields.clone(),
            ranges: ranges.into(),
            rows,
            next: None,
        };
        let store = self.clone();
        // Groups are planned one at a time, so that a long scan holds few kept blocks.
        stream::iter(planner)
            .then(move |group| store.clone().read_group(file.clone(), fields.clone(), group))
            .try_flatten()
            .boxed()
    }

    /// Rows by ascending row number, if all blocks they need are kept.
    pub(crate) fn kept_rows(&self, file: &OpenFile, fields: &[String], rows: &[u32]) -> Result<Option<RecordBatch>> {
        let size = self.inner.options.column_block_rows;
        let mut numbers: Vec<u32> = rows.iter().map(|row| row / size).collect();
        numbers.dedup();
        let mut places = Vec::with_capacity(rows.len());
        let mut block = 0;
        for row in rows {
            while numbers[block] < row / size {
                block += 1;
            }
            places.push((block, (row % size) as usize));
        }
        let mut arrays = Vec::with_capacity(fields.len());
        let mut described = Vec::with_capacity(fields.len());
        for name in fields {
            let Some(field) = file.position(name) else { return Ok(None) };
            let kept: Option<Vec<ArrayRef>> =
                numbers.iter().map(|number| self.inner.blocks.get(&(file.key, field, *number))).collect();
            let Some(kept) = kept else { return Ok(None) };
            let kept: Vec<&dyn Array> = kept.iter().map(AsRef::as_ref).collect();
            let array = match places.as_slice() {
                [(_, row)] => kept[0].slice(*row, 1),
                places => interleave(&kept, places)?,
            };
            described.push(Field::new(name, array.data_type().clone(), true));
            arrays.push(array);
        }
        Ok(Some(RecordBatch::try_new(Arc::new(Schema::new(described)), arrays)?))
    }

    async fn read_group(self, file: Arc<OpenFile>, fields: Arc<[String]>, group: Group) -> Result<RowsStream> {
        let Some(first) = group.blocks.first() else { return Ok(stream::empty().boxed()) };
        let missing: Vec<usize> = (0..fields.len()).filter(|&at| first.kept[at].is_none()).collect();
        if missing.is_empty() {
            let ready = group.blocks.into_iter().map(move |block| {
                let fields = fields.clone();
                let rows: BoxFuture<'static, Result<Rows>> = Box::pin(async move { block.finish(&fields, Vec::new()) });
                Ok(rows)
            });
            return Ok(stream::iter(ready).boxed());
        }
        let names: Vec<String> = missing.iter().map(|&at| fields[at].clone()).collect();
        let batch_rows = self.inner.options.column_block_rows;
        let wanted: Vec<Range<u32>> = if first.whole {
            group.blocks.iter().map(|block| block.rows.clone()).collect()
        } else {
            group.blocks.iter().flat_map(|block| block.wanted.clone()).collect()
        };
        let wide: Arc<[Range<u64>]> = wanted.iter().map(|range| u64::from(range.start)..u64::from(range.end)).collect();
        let whole = first.whole;
        let tasks = self.read_fields(&file, &names, ReadBatchParams::Ranges(wide), batch_rows, true).await?;
        if !whole {
            let mut cursor = Cursor::new(wanted);
            let read = tasks.map(move |task| {
                let span = cursor.next(task.num_rows);
                let rows: BoxFuture<'static, Result<Rows>> =
                    Box::pin(async move { Ok(Rows { span, read: task.task.await? }) });
                Ok(rows)
            });
            return Ok(read.boxed());
        }
        // Whole blocks come one per batch, because a group starts where a block does.
        let mut blocks = group.blocks.into_iter();
        let read = tasks.map(move |task| {
            let block = blocks.next();
            let (store, file, fields, missing) = (self.clone(), file.clone(), fields.clone(), missing.clone());
            let rows: BoxFuture<'static, Result<Rows>> = Box::pin(async move {
                let read = task.task.await?;
                let block = block.filter(|block| block.rows.len() == read.num_rows());
                let Some(block) = block else {
                    return Err(Error::corrupt("data file", "rows came back in unexpected batches"));
                };
                let mut arrays = Vec::with_capacity(missing.len());
                for (column, &at) in read.columns().iter().zip(&missing) {
                    let array = compact(column);
                    if let Some(field) = file.position(&fields[at]) {
                        let weight = array.get_array_memory_size();
                        store.inner.blocks.insert((file.key, field, block.number), array.clone(), weight);
                    }
                    arrays.push(array);
                }
                block.finish(&fields, arrays)
            });
            Ok(rows)
        });
        Ok(read.boxed())
    }
}

impl Block {
    /// Puts kept and freshly read columns together and cuts out what is wanted.
    fn finish(self, fields: &[String], read: Vec<ArrayRef>) -> Result<Rows> {
        let mut read = read.into_iter();
        let arrays: Option<Vec<ArrayRef>> = self.kept.into_iter().map(|kept| kept.or_else(|| read.next())).collect();
        let arrays = arrays.ok_or_else(|| Error::corrupt("data file", "a field was not returned"))?;
        let described: Vec<Field> =
            fields.iter().zip(&arrays).map(|(name, array)| Field::new(name, array.data_type().clone(), true)).collect();
        let whole = RecordBatch::try_new(Arc::new(Schema::new(described)), arrays)?;
        let start = self.rows.start;
        let read = match self.wanted.as_slice() {
            [range] => whole.slice((range.start - start) as usize, range.len()),
            // One batch, however many ranges: tiny batches would cost more than the copy.
            ranges => {
                let mut wanted = BooleanBufferBuilder::new(self.rows.len());
                let mut done = start;
                for range in ranges {
                    wanted.append_n((range.start - done) as usize, false);
                    wanted.append_n(range.len(), true);
                    done = range.end;
                }
                wanted.append_n((self.rows.end - done) as usize, false);
                filter_record_batch(&whole, &BooleanArray::new(wanted.finish(), None))?
            }
        };
        Ok(Rows { span: self.wanted, read })
    }
}

/// Cuts ranges into blocks, and joins blocks that are read alike.
struct Planner {
    store: ColumnStore,
    file: Arc<OpenFile>,
    fields: Arc<[String]>,
    ranges: VecDeque<Range<u32>>,
    /// Rows of the file.
    rows: u32,
    next: Option<Block>,
}

impl Planner {
    fn block(&mut self) -> Option<Block> {
        if let Some(block) = self.next.take() {
            return Some(block);
        }
        let size = self.store.inner.options.column_block_rows;
        let number = self.ranges.front()?.start / size;
        let start = number * size;
        let rows = start..start.saturating_add(size).min(self.rows);
        let mut wanted = Vec::new();
        while let Some(range) = self.ranges.front_mut() {
            if range.start >= rows.end {
                break;
            }
            let part = range.start..range.end.min(rows.end);
            range.start = part.end;
            wanted.push(part);
            if self.ranges.front().is_some_and(Range::is_empty) {
                self.ranges.pop_front();
            }
        }
        let kept: Vec<Option<ArrayRef>> = self.fields.iter().map(|field| self.kept(field, number)).collect();
        let wanted_rows: usize = wanted.iter().map(Range::len).sum();
        let whole = 2 * wanted_rows >= rows.len() || kept.iter().all(Option::is_some);
        let kept = if whole { kept } else { vec![None; kept.len()] };
        Some(Block { number, rows, wanted, kept, whole })
    }

    fn kept(&self, field: &str, block: u32) -> Option<ArrayRef> {
        let field = self.file.position(field)?;
        self.store.inner.blocks.get(&(self.file.key, field, block))
    }
}

impl Iterator for Planner {
    type Item = Group;

    fn next(&mut self) -> Option<Group> {
        let first = self.block()?;
        let mut blocks = vec![first];
        while blocks.len() < GROUP_BLOCKS {
            let Some(block) = self.block() else { break };
            let last = &blocks[blocks.len() - 1];
            let alike = block.whole == last.whole
                && block.kept.iter().zip(&last.kept).all(|(left, right)| left.is_some() == right.is_some());
            if !alike {
                self.next = Some(block);
                break;
            }
            blocks.push(block);
        }
        Some(Group { blocks })
    }
}

/// An array that holds no more memory than it needs: what is decoded without copying may hold on to a whole page.
fn compact(array: &ArrayRef) -> ArrayRef {
    let data = array.to_data();
    let needed = data.get_slice_memory_size().unwrap_or(usize::MAX);
    if array.get_buffer_memory_size() / 2 <= needed.saturating_add(1024) {
        return array.clone();
    }
    let mut copy = MutableArrayData::new(vec![&data], false, array.len());
    copy.extend(0, 0, array.len());
    make_array(copy.freeze())
}

/// Follows a stream of batches through the ranges it was read from.
pub(crate) struct Cursor {
    ranges: std::vec::IntoIter<Range<u32>>,
    current: Range<u32>,
}

impl Cursor {
    pub(crate) fn new(ranges: Vec<Range<u32>>) -> Self {
        Self { ranges: ranges.into_iter(), current: 0..0 }
    }

    /// The ranges that the next `rows` rows lie in.
    pub(crate) fn next(&mut self, rows: u32) -> Vec<Range<u32>> {
        let mut span = Vec::new();
        let mut wanted = rows;
        while wanted > 0 {
            if self.current.is_empty() {
                match self.ranges.next() {
                    Some(range) => self.current = range,
                    None => break,
                }
            }
            let taken = wanted.min(self.current.end - self.current.start);
            span.push(self.current.start..self.current.start + taken);
            self.current.start += taken;
            wanted -= taken;
        }
        span
    }
}
