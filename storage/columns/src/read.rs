//! Open data files, and what a reader makes of their columns.
//!
//! Files are read directly by path, whether or not a manifest names them, so that staged files and committed ones are
//! the same to every reader. A reader is opened once and kept with its decoded footer.

use std::fmt;
use std::io;
use std::num::NonZero;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, RecordBatchOptions, UInt8Array, UInt32Array,
};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use base::TableId;
use bytes::Bytes;
use codec::{ROW_TS_COLUMN, StoredSchema};
use futures::future::BoxFuture;
use futures::{FutureExt, Stream};
use lance_encoding::EncodingsIo;
use lance_encoding::decoder::{DecoderPlugins, FilterExpression, ReadBatchTask};
use lance_file::reader::{FileReader, FileReaderOptions};
use lance_file::versions::reader_projection_from_column_names;
use lance_io::ReadBatchParams;
use lance_io::scheduler::{ScanScheduler, SchedulerConfig};
use lance_io::utils::CachedFileSize;
use object_store::ObjectStore;
use object_store::path::Path;
use runtime::DiskFile;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;

use crate::blocks::file_key;
use crate::local::read_range;
use crate::physical::{Form, repeat, to_logical};
use crate::row_filter::{narrow, test, test_codes};
use crate::{
    ColumnStore, Error, FileMeta, OFFSET_COLUMN, OP_COLUMN, Result, Role, RowFilter, SystemColumns, TX_FROM_COLUMN,
    TX_TO_COLUMN, TxFrom, dictionary_type,
};

/// Bytes that the read of a footer may have in flight.
const FOOTER_BUFFER_BYTES: u64 = 64 << 20;
/// Reads of a local file that are at most so far apart become one.
const LOCAL_GAP_BYTES: u64 = 4 << 10;
/// The unit in which reading ahead is counted.
const AHEAD_UNIT_BYTES: u64 = 1 << 10;
/// Local reads up to this size are done where they are asked for: the page is nearly always in memory, and handing the
/// read to another thread costs more than it does.
const INLINE_BYTES: u64 = 64 << 10;

/// A data file with its decoded footer.
pub(crate) struct OpenFile {
    /// Names the file among kept blocks.
    pub(crate) key: u128,
    pub(crate) reader: FileReader,
    /// Reads of a remote file.
    remote: Option<RemoteIo>,
}

impl fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpenFile")
    }
}

impl OpenFile {
    pub(crate) fn has(&self, name: &str) -> bool {
        self.position(name).is_some()
    }

    /// Where a field is in the file.
    pub(crate) fn position(&self, name: &str) -> Option<u32> {
        self.reader.schema().fields.iter().position(|field| field.name == name).map(|at| at as u32)
    }
}

/// Batches as Lance decodes them, in order.
pub(crate) type TaskStream = Pin<Box<dyn Stream<Item = ReadBatchTask> + Send>>;

impl ColumnStore {
    /// Opens a data file, or finds it open.
    pub(crate) async fn open_file(&self, table: TableId, meta: &FileMeta) -> Result<Arc<OpenFile>> {
        let path = self.data_path(table, meta.role, &meta.path);
        if let Some(file) = self.inner.readers.get(&path) {
            return Ok(file);
        }
        let file = Arc::new(self.open_data(&path, meta).await?);
        self.inner.readers.insert(path, file.clone(), 1);
        Ok(file)
    }

    async fn open_data(&self, path: &Path, meta: &FileMeta) -> Result<OpenFile> {
        let scheduler = ScanScheduler::new(self.inner.lance.clone(), SchedulerConfig::new(FOOTER_BUFFER_BYTES));
        let size = CachedFileSize::from(NonZero::new(meta.bytes));
        let opened = async {
            let file = scheduler.open_file(path, &size).await?;
            let metadata = FileReader::read_all_metadata(&file).await?;
            Ok::<_, lance_core::Error>(metadata)
        };
        let metadata = opened.await.map_err(|error| match error {
            lance_core::Error::NotFound { .. } => Error::Missing(path.to_string()),
            error => error.into(),
        })?;
        if metadata.num_rows != u64::from(meta.rows) {
            return Err(Error::corrupt(
                path.to_string(),
                format!("{} rows where {} were written", metadata.num_rows, meta.rows),
            ));
        }
        let (io, remote): (Arc<dyn EncodingsIo>, _) = match &self.inner.local {
            Some(local) => (Arc::new(LocalIo { file: local.file(path).await? }), None),
            None => {
                let io = RemoteIo { objects: self.inner.objects.clone(), path: path.clone(), ahead: None };
                (Arc::new(io.clone()), Some(io))
            }
        };
        let options = FileReaderOptions::default();
        let plugins = Arc::<DecoderPlugins>::default();
        let cache = &self.inner.decoded;
        let reader = FileReader::try_open_with_file_metadata(
            io,
            path.clone(),
            None,
            plugins,
            Arc::new(metadata),
            cache,
            options,
        )
        .await?;
        Ok(OpenFile { key: file_key(path), reader, remote })
    }

    /// Reads some fields of a file. `scan` says that much will be read, in order.
    pub(crate) async fn read_fields(
        &self,
        file: &OpenFile,
        fields: &[String],
        rows: ReadBatchParams,
        batch_rows: u32,
        scan: bool,
    ) -> Result<TaskStream> {
        let names: Vec<&str> = fields.iter().map(String::as_str).collect();
        let reader = &file.reader;
        let projection = reader_projection_from_column_names(reader.version(), reader.schema(), &names)?;
        let scheduled = match &file.remote {
            Some(remote) if scan => {
                let budget = usize::try_from(self.inner.options.io_buffer_bytes / AHEAD_UNIT_BYTES)
                    .unwrap_or(Semaphore::MAX_PERMITS);
                let ahead = Some(Arc::new(Semaphore::new(budget.min(Semaphore::MAX_PERMITS))));
                Some(reader.with_scheduler(Arc::new(RemoteIo { ahead, ..remote.clone() })))
            }
            _ => None,
        };
        let reader = scheduled.as_ref().unwrap_or(reader);
        Ok(reader.read_tasks(rows, batch_rows, Some(projection), FilterExpression::no_filter()).await?)
    }
}

/// Reads of a local file. They happen when they are waited for, so that a scan holds no more than it is decoding.
#[derive(Debug)]
struct LocalIo {
    file: Arc<dyn DiskFile>,
}

fn read_failed(error: io::Error) -> lance_core::Error {
    object_store::Error::Generic { store: "local", source: error.into() }.into()
}

/// Reads ranges, joining those that nearly touch.
fn read_joined(file: &dyn DiskFile, ranges: &[Range<u64>]) -> io::Result<Vec<Bytes>> {
    let mut results = Vec::with_capacity(ranges.len());
    let mut first = 0;
    while first < ranges.len() {
        let mut joined = ranges[first].clone();
        let mut next = first + 1;
        while let Some(range) = ranges.get(next) {
            if range.start < joined.start || range.start > joined.end + LOCAL_GAP_BYTES {
                break;
            }
            joined.end = joined.end.max(range.end);
            next += 1;
        }
        let bytes = read_range(file, &joined)?;
        for range in &ranges[first..next] {
            results.push(bytes.slice((range.start - joined.start) as usize..(range.end - joined.start) as usize));
        }
        first = next;
    }
    Ok(results)
}

impl EncodingsIo for LocalIo {
    fn submit_request(
        &self,
        ranges: Vec<Range<u64>>,
        _priority: u64,
    ) -> BoxFuture<'static, lance_core::Result<Vec<Bytes>>> {
        let file = self.file.clone();
        async move {
            let total: u64 = ranges.iter().map(|range| range.end.saturating_sub(range.start)).sum();
            if total <= INLINE_BYTES {
                return read_joined(&*file, &ranges).map_err(read_failed);
            }
            match tokio::task::spawn_blocking(move || read_joined(&*file, &ranges)).await {
                Ok(read) => read.map_err(read_failed),
                Err(error) => Err(read_failed(io::Error::other(error))),
            }
        }
        .boxed()
    }
}

/// Reads of a remote file. A scan reads ahead as far as its budget goes, because each request takes long; what the
/// decoder waits for is read at once, budget or not, so that nothing can wait for ever.
#[derive(Clone, Debug)]
struct RemoteIo {
    objects: Arc<dyn ObjectStore>,
    path: Path,
    /// What may be read ahead, in units of [`AHEAD_UNIT_BYTES`].
    ahead: Option<Arc<Semaphore>>,
}

impl RemoteIo {
    fn read(&self, ranges: Vec<Range<u64>>) -> BoxFuture<'static, lance_core::Result<Vec<Bytes>>> {
        let (objects, path) = (self.objects.clone(), self.path.clone());
        async move {
            // Stores refuse to read nothing.
            let wanted: Vec<Range<u64>> = ranges.iter().filter(|range| range.start < range.end).cloned().collect();
            let mut read = objects.get_ranges(&path, &wanted).await?.into_iter();
            Ok(ranges
                .iter()
                .map(|range| if range.start < range.end { read.next().unwrap_or_default() } else { Bytes::new() })
                .collect())
        }
        .boxed()
    }
}

/// Stops a read that nobody waits for any more.
struct StopOnDrop<T>(JoinHandle<T>);

impl<T> Drop for StopOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl EncodingsIo for RemoteIo {
    fn submit_request(
        &self,
        ranges: Vec<Range<u64>>,
        _priority: u64,
    ) -> BoxFuture<'static, lance_core::Result<Vec<Bytes>>> {
        let Some(ahead) = self.ahead.clone() else { return self.read(ranges) };
        let bytes: u64 = ranges.iter().map(|range| range.end.saturating_sub(range.start)).sum();
        let units = u32::try_from(bytes.div_ceil(AHEAD_UNIT_BYTES)).unwrap_or(u32::MAX);
        let urgent = Arc::new(Notify::new());
        let called = urgent.clone();
        let read = self.read(ranges);
        let mut task = StopOnDrop(tokio::spawn(async move {
            let permit = tokio::select! {
                permit = ahead.acquire_many_owned(units) => permit.ok(),
                () = called.notified() => None,
            };
            (read.await, permit)
        }));
        async move {
            urgent.notify_one();
            match (&mut task.0).await {
                Ok((read, _permit)) => read,
                Err(error) => Err(read_failed(io::Error::other(error))),
            }
        }
        .boxed()
    }
}

/// Where the values of one output column come from.
#[derive(Clone, Debug)]
enum Source {
    /// A field of the file.
    Field(String),
    /// The same for every row: a one-row array, `None` for NULL.
    Constant(Option<ArrayRef>),
}

/// How the fields of one file become the columns that a caller asked for.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) output: SchemaRef,
    columns: Vec<(Source, bool)>,
    offsets: bool,
    /// The fields to read.
    pub(crate) fields: Vec<String>,
}

/// The schema of what [`Shape`] makes.
pub(crate) fn output_schema(
    schema: &StoredSchema,
    columns: &[usize],
    dictionary: &[usize],
    system: SystemColumns,
    offsets: bool,
) -> SchemaRef {
    let mut fields: Vec<Arc<Field>> = Vec::new();
    for position in columns {
        let field = schema.arrow().fields()[*position].clone();
        let is_text = field.data_type() == &DataType::Utf8;
        fields.push(if is_text && dictionary.contains(position) {
            Arc::new(field.as_ref().clone().with_data_type(dictionary_type()))
        } else {
            field
        });
    }
    let mut add = |wanted: bool, name: &str, data_type: DataType| {
        if wanted {
            fields.push(Arc::new(Field::new(name, data_type, false)));
        }
    };
    add(system.tx_from, TX_FROM_COLUMN, DataType::Int64);
    add(system.tx_to, TX_TO_COLUMN, DataType::Int64);
    add(system.op, OP_COLUMN, DataType::UInt8);
    add(offsets, OFFSET_COLUMN, DataType::UInt32);
    Arc::new(Schema::new(fields))
}

fn int64(value: i64) -> Option<ArrayRef> {
    Some(Arc::new(Int64Array::from(vec![value])))
}

impl Shape {
    pub(crate) fn new(
        file: &OpenFile,
        meta: &FileMeta,
        schema: &StoredSchema,
        columns: &[usize],
        dictionary: &[usize],
        system: SystemColumns,
        offsets: bool,
    ) -> Result<Self> {
        let constant_ts = || match meta.tx_from {
            TxFrom::Constant(ts) => Ok(Source::Constant(int64(ts.0))),
            TxFrom::AtCommit => Err(Error::InvalidInput(format!("file {} has no commit timestamp yet", meta.path))),
            TxFrom::Stored => Err(Error::corrupt(meta.path.clone(), "commit timestamps are missing")),
        };
        let mut sources = Vec::new();
        for &position in columns {
            let column = schema.columns.get(position).ok_or_else(|| {
                Error::InvalidInput(format!(
                    "table {} has no column at position {position} in version {}",
                    schema.table, schema.version
                ))
            })?;
            let stored = Form::ALL.iter().map(|form| form.field(column.id)).find(|name| file.has(name));
            let source = if let Some(name) = stored {
                Source::Field(name)
            } else if column.id == ROW_TS_COLUMN && meta.row_ts_left_out {
                constant_ts()?
            } else {
                Source::Constant(column.missing.clone())
            };
            sources.push(source);
        }
        if system.tx_from {
            sources.push(if file.has(TX_FROM_COLUMN) { Source::Field(TX_FROM_COLUMN.into()) } else { constant_ts()? });
        }
        if system.tx_to {
            sources.push(match meta.role {
                Role::History => Source::Field(TX_TO_COLUMN.into()),
                Role::Current => Source::Constant(int64(i64::MAX)),
            });
        }
        if system.op {
            sources.push(match meta.constant_op {
                Some(op) => Source::Constant(Some(Arc::new(UInt8Array::from(vec![op])))),
                None => Source::Field(OP_COLUMN.into()),
            });
        }
        let mut fields: Vec<String> = Vec::new();
        for source in &sources {
            if let Source::Field(name) = source
                && !fields.contains(name)
            {
                fields.push(name.clone());
            }
        }
        let output = output_schema(schema, columns, dictionary, system, offsets);
        let is_dictionary = |at: usize| matches!(output.field(at).data_type(), DataType::Dictionary(..));
        let columns = sources.into_iter().enumerate().map(|(at, source)| (source, is_dictionary(at))).collect();
        Ok(Self { columns, offsets, fields, output })
    }

    /// Which rows of `keep` pass all filters; `None` when every row of what was read does.
    pub(crate) fn select(
        &self,
        read: Option<&RecordBatch>,
        rows: usize,
        mut keep: Option<BooleanArray>,
        filters: &[Arc<dyn RowFilter>],
    ) -> Result<Option<BooleanArray>> {
        for filter in filters {
            let left = keep.as_ref().map_or(rows, BooleanArray::true_count);
            if left == 0 {
                break;
            }
            let stored = |at: usize| -> Result<Option<ArrayRef>> {
                let Some((Source::Field(name), _)) = self.columns.get(at) else { return Ok(None) };
                let column = Self::column(read, name)?;
                Ok(Some(match &keep {
                    Some(keep) => arrow::compute::filter(column, keep)?,
                    None => column.clone(),
                }))
            };
            let coded = match filter.columns() {
                [only] => match stored(*only)? {
                    Some(column) => test_codes(filter.as_ref(), &column)?,
                    None => None,
                },
                _ => None,
            };
            let passed = match coded {
                Some(passed) => passed,
                None => {
                    let mut columns = Vec::with_capacity(filter.columns().len());
                    for &at in filter.columns() {
                        let column = stored(at)?;
                        columns.push(self.logical(at, column.as_ref(), left)?);
                    }
                    test(filter.as_ref(), &columns, left)?
                }
            };
            if let Some(passed) = passed {
                keep = Some(narrow(keep, passed));
            }
        }
        Ok(keep)
    }

    fn column<'a>(read: Option<&'a RecordBatch>, name: &str) -> Result<&'a ArrayRef> {
        let column = read.and_then(|read| read.column_by_name(name));
        column.ok_or_else(|| Error::corrupt(name.to_owned(), "the field was not returned"))
    }

    /// Output column `at` of `rows` rows, from what the file stores of it.
    fn logical(&self, at: usize, stored: Option<&ArrayRef>, rows: usize) -> Result<ArrayRef> {
        let field = self.output.field(at);
        match (&self.columns[at], stored) {
            ((Source::Field(_), dictionary), Some(column)) => to_logical(column, field.data_type(), *dictionary),
            ((Source::Field(name), _), None) => Err(Error::corrupt(name.clone(), "the field was not returned")),
            ((Source::Constant(value), true), _) => {
                to_logical(&repeat(value.as_ref(), &DataType::Utf8, rows)?, &DataType::Utf8, true)
            }
            ((Source::Constant(value), false), _) => repeat(value.as_ref(), field.data_type(), rows),
        }
    }

    /// Turns what was read of some rows, or nothing when no field is needed, into the output. `keep` drops rows first,
    /// while values are still in their compact form; `offsets` are the row numbers before that.
    pub(crate) fn finish(
        &self,
        read: Option<RecordBatch>,
        offsets: impl FnOnce() -> Vec<u32>,
        rows: usize,
        keep: Option<&BooleanArray>,
    ) -> Result<RecordBatch> {
        let left = keep.map_or(rows, |keep| keep.true_count());
        if left == 0 {
            return Ok(RecordBatch::new_empty(self.output.clone()));
        }
        let read = match (read, keep) {
            (Some(read), Some(keep)) => Some(filter_record_batch(&read, keep)?),
            (read, _) => read,
        };
        let mut arrays = Vec::with_capacity(self.output.fields().len());
        for (at, (source, _)) in self.columns.iter().enumerate() {
            let stored = match source {
                Source::Field(name) => Some(Self::column(read.as_ref(), name)?),
                Source::Constant(_) => None,
            };
            arrays.push(self.logical(at, stored, left)?);
        }
        if self.offsets {
            let mut offsets: ArrayRef = Arc::new(UInt32Array::from(offsets()));
            if let Some(keep) = keep {
                offsets = arrow::compute::filter(&offsets, keep)?;
            }
            debug_assert_eq!(offsets.as_primitive::<arrow::datatypes::UInt32Type>().len(), left);
            arrays.push(offsets);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(left));
        Ok(RecordBatch::try_new_with_options(self.output.clone(), arrays, &options)?)
    }
}
