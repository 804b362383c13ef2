//! Writing data files.
//!
//! A file is written by Lance's file writer alone: no dataset and no manifest is touched. The first rows of a file are
//! held back until it is clear which string columns are worth a dictionary; when one of them runs out of codes later, the
//! file ends there, and the next one gives that column wider codes or none.
//!
//! # Invariants
//! - WRITE-1 a file that is returned is durable and complete, and so is its sidecar: the local store's LOCAL-1.
//! - WRITE-2 rows come back as they went in, whatever form they were stored in: `tests::every_type_survives`,
//!   `tests::dictionaries_overflow_into_new_files`.
//! - WRITE-3 a write that fails or is cancelled leaves no file: `tests::bad_rows_leave_nothing_behind`,
//!   `tests::a_cancelled_write_leaves_nothing_behind`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use base::{BoxError, CommitTs, FileId, RowKey};
use codec::{KeyCodec, ROW_TS_COLUMN, StoredSchema};
use futures::{Stream, StreamExt};
use lance_core::datatypes::Schema as LanceSchema;
use lance_file::version::LanceFileVersion;
use lance_file::versions::create_writer;
use lance_file::writer::{FileWriter, FileWriterOptions};
use object_store::ObjectStoreExt;
use tokio::task::JoinHandle;

use crate::lookup::ROW_TS_PLACEHOLDER;
use crate::physical::{Encoder, Form, choose_form, to_stored};
use crate::scan::column;
use crate::stats::{StatsBuilder, encode};
use crate::{
    BATCH_ROWS, ColumnStore, Error, FILE_ROWS, FileMeta, FileState, OP_COLUMN, Result, Role, TX_FROM_COLUMN,
    TX_TO_COLUMN, TxFrom,
};

/// The format of every data file. Pinned, so that a newer Lance does not change it behind our back.
pub(crate) const FORMAT: LanceFileVersion = LanceFileVersion::V2_2;

/// Rows of a file that are looked at before the forms of its columns are settled.
const SAMPLE_ROWS: u32 = 64 * 1024;

/// Whether the rows come in key order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyOrder {
    /// Keys must ascend strictly over the whole stream; anything else is an error. Files can be searched by key.
    Strict,
    /// No order is promised (`history`).
    Any,
}

/// How rows are written.
#[derive(Clone, Debug)]
pub struct WriteSpec {
    /// Where `_tx_from` comes from. Unless it is [`TxFrom::Stored`], batches leave `_tx_from` out, and may leave the
    /// hidden key column `_row_ts` out.
    pub tx_from: TxFrom,
    /// `Some`: batches leave `_op` out and every row has this one. `None`: batches carry `_op`.
    pub constant_op: Option<u8>,
    /// Rows per file at most.
    pub max_rows_per_file: u32,
    /// The order of rows.
    pub order: KeyOrder,
}

impl WriteSpec {
    /// Sorted rows that carry `_tx_from` and `_op`.
    pub fn stored() -> Self {
        Self { tx_from: TxFrom::Stored, constant_op: None, max_rows_per_file: FILE_ROWS, order: KeyOrder::Strict }
    }

    /// Sorted rows of one transaction that has no timestamp yet.
    pub fn at_commit(op: u8) -> Self {
        Self { tx_from: TxFrom::AtCommit, constant_op: Some(op), ..Self::stored() }
    }
}

impl ColumnStore {
    /// Writes rows to new, durable, uncommitted data files, each with its statistics beside it. Batches hold whole rows:
    /// all fields of [`StoredSchema::arrow`] in any order (only columns that were dropped may be missing), then the
    /// system columns `_tx_from` Int64, `_op` UInt8 and, in `history`, `_tx_to` Int64, as far as `spec` does not make
    /// them constant. `next_file` is asked for an id per file. Nothing is written for an empty stream.
    ///
    /// The files are spared by [`ColumnStore::sweep`] of this process until they are committed or discarded. After an
    /// error, the files written so far are removed; when the future is dropped, a little later.
    #[tracing::instrument(name = "columns.write", level = "debug", skip_all, fields(table = %schema.table, %role))]
    pub async fn write_files<S>(
        &self,
        schema: &Arc<StoredSchema>,
        role: Role,
        mut next_file: impl FnMut() -> FileId + Send,
        rows: S,
        spec: WriteSpec,
    ) -> Result<Vec<FileMeta>>
    where
        S: Stream<Item = Result<RecordBatch, BoxError>> + Send,
    {
        let mut writer = FilesWriter::new(self.clone(), schema.clone(), role, spec)?;
        let written = write_all(&mut writer, &mut next_file, Box::pin(rows)).await;
        if written.is_err()
            && let Some(cleaned) = writer.clean_up()
            && let Err(error) = cleaned.await
        {
            tracing::debug!(%error, "files of a failed write stay until they are swept");
        }
        written
    }
}

async fn write_all<S>(
    writer: &mut FilesWriter,
    next_file: &mut (dyn FnMut() -> FileId + Send),
    mut rows: S,
) -> Result<Vec<FileMeta>>
where
    S: Stream<Item = Result<RecordBatch, BoxError>> + Send + Unpin,
{
    while let Some(batch) = rows.next().await {
        writer.push(batch.map_err(Error::Rows)?, next_file).await?;
    }
    writer.finish(next_file).await
}

/// Which columns the rows have.
struct Layout {
    /// The fields by their plain name, and their logical types.
    fields: Vec<(String, DataType)>,
    /// The column ids of those that are columns of the table.
    columns: Vec<Option<base::ColumnId>>,
    row_ts_left_out: bool,
}

/// Rows in their logical types, with their keys.
struct Piece {
    columns: Vec<ArrayRef>,
    keys: Vec<RowKey>,
}

impl Piece {
    fn rows(&self) -> usize {
        self.keys.len()
    }

    /// Takes the first rows away.
    fn split_to(&mut self, rows: usize) -> Piece {
        let left = self.rows() - rows;
        let rest = self.keys.split_off(rows);
        let keys = std::mem::replace(&mut self.keys, rest);
        let first = self.columns.iter().map(|column| column.slice(0, rows)).collect();
        for column in &mut self.columns {
            *column = column.slice(rows, left);
        }
        Piece { columns: first, keys }
    }
}

struct FilesWriter {
    store: ColumnStore,
    schema: Arc<StoredSchema>,
    keys: KeyCodec,
    role: Role,
    spec: WriteSpec,
    layout: Option<Layout>,
    /// Rows whose file is not begun yet.
    held: Vec<Piece>,
    held_rows: u32,
    open: Option<OneFile>,
    last_key: Option<RowKey>,
    /// The narrowest form a column may still have; absent means 8-bit codes.
    least_form: HashMap<usize, Form>,
    done: Vec<FileMeta>,
    /// Every data file that was begun.
    begun: Vec<String>,
}

/// The file being written.
struct OneFile {
    file: FileId,
    name: String,
    forms: Vec<Form>,
    encoders: Vec<Encoder>,
    arrow: Arc<Schema>,
    writer: FileWriter,
    stats: StatsBuilder,
}

impl FilesWriter {
    fn new(store: ColumnStore, schema: Arc<StoredSchema>, role: Role, spec: WriteSpec) -> Result<Self> {
        let keys = KeyCodec::new(&schema)?;
        let spec = WriteSpec { max_rows_per_file: spec.max_rows_per_file.max(1), ..spec };
        Ok(Self {
            store,
            schema,
            keys,
            role,
            spec,
            layout: None,
            held: Vec::new(),
            held_rows: 0,
            open: None,
            last_key: None,
            least_form: HashMap::new(),
            done: Vec::new(),
            begun: Vec::new(),
        })
    }

    /// Settles which columns there are, by the first batch.
    fn layout(&self, batch: &RecordBatch) -> Result<Layout> {
        let mut layout = Layout { fields: Vec::new(), columns: Vec::new(), row_ts_left_out: false };
        for (stored, field) in self.schema.columns.iter().zip(self.schema.arrow().fields()) {
            if batch.schema_ref().column_with_name(field.name()).is_some() {
                layout.fields.push((field.name().clone(), field.data_type().clone()));
                layout.columns.push(Some(stored.id));
            } else if stored.id == ROW_TS_COLUMN && self.spec.tx_from != TxFrom::Stored {
                layout.row_ts_left_out = true;
            } else if !stored.dropped {
                return Err(Error::InvalidInput(format!(
                    "rows for table {} lack column {}",
                    self.schema.table, stored.name
                )));
            }
        }
        let mut system = |wanted: bool, name: &str, data_type: DataType| {
            if wanted {
                layout.fields.push((name.to_owned(), data_type));
                layout.columns.push(None);
            }
        };
        system(self.spec.tx_from == TxFrom::Stored, TX_FROM_COLUMN, DataType::Int64);
        system(self.spec.constant_op.is_none(), OP_COLUMN, DataType::UInt8);
        system(self.role == Role::History, TX_TO_COLUMN, DataType::Int64);
        Ok(layout)
    }

    async fn push(&mut self, batch: RecordBatch, next_file: &mut (dyn FnMut() -> FileId + Send)) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let mut rest = VecDeque::from([self.piece(&batch)?]);
        let sample = SAMPLE_ROWS.min(self.spec.max_rows_per_file);
        while let Some(piece) = rest.pop_front() {
            let room = match &self.open {
                None => sample - self.held_rows,
                Some(open) => (self.spec.max_rows_per_file - open.stats.rows()).min(BATCH_ROWS),
            } as usize;
            if room == 0 {
                self.end().await?;
                rest.push_front(piece);
                continue;
            }
            let mut next = piece;
            if next.rows() > room {
                let first = next.split_to(room);
                rest.push_front(std::mem::replace(&mut next, first));
            }
            if self.open.is_none() {
                self.held_rows += next.rows() as u32;
                self.held.push(next);
                if self.held_rows == sample {
                    self.begin(next_file).await?;
                }
            } else if !self.write(&next).await? {
                // A dictionary is full: the file ends before these rows.
                self.end().await?;
                rest.push_front(next);
            }
        }
        Ok(())
    }

    fn piece(&mut self, batch: &RecordBatch) -> Result<Piece> {
        if self.layout.is_none() {
            self.layout = Some(self.layout(batch)?);
        }
        let Some(layout) = &self.layout else { return Err(Error::InvalidInput("rows without columns".into())) };
        let mut columns = Vec::with_capacity(layout.fields.len());
        for (name, data_type) in &layout.fields {
            let values = column(batch, name)?;
            if values.data_type() != data_type {
                let message = format!(
                    "rows for table {} have {} in {name}, not {data_type}",
                    self.schema.table,
                    values.data_type()
                );
                return Err(Error::InvalidInput(message));
            }
            columns.push(values.clone());
        }
        let mut key_columns = Vec::with_capacity(self.schema.key.len());
        for &position in &self.schema.key {
            let stored = &self.schema.columns[position];
            key_columns.push(if stored.id == ROW_TS_COLUMN && layout.row_ts_left_out {
                Arc::new(Int64Array::from(vec![ROW_TS_PLACEHOLDER.0; batch.num_rows()])) as ArrayRef
            } else {
                column(batch, &Form::Plain.field(stored.id))?.clone()
            });
        }
        let keys = self.keys.keys_of_columns(&key_columns)?;
        if self.spec.order == KeyOrder::Strict {
            let ascends = keys.is_sorted_by(|left, right| left < right);
            let follows = self.last_key.as_ref().zip(keys.first()).is_none_or(|(last, first)| last < first);
            if !ascends || !follows {
                return Err(Error::InvalidInput(format!("rows for table {} do not ascend by key", self.schema.table)));
            }
        }
        self.last_key = keys.last().cloned();
        Ok(Piece { columns, keys })
    }

    /// Begins a file with the rows held.
    async fn begin(&mut self, next_file: &mut (dyn FnMut() -> FileId + Send)) -> Result<()> {
        let held = std::mem::take(&mut self.held);
        self.held_rows = 0;
        let Some(layout) = &self.layout else { return Ok(()) };
        let mut forms = Vec::with_capacity(layout.fields.len());
        for (at, id) in layout.columns.iter().enumerate() {
            let sample: Vec<&ArrayRef> = held.iter().map(|piece| &piece.columns[at]).collect();
            let least = self.least_form.get(&at).copied().unwrap_or(Form::Dictionary8);
            forms.push(if id.is_some() { choose_form(&sample, least) } else { Form::Plain });
        }
        let mut described = Vec::new();
        let mut fields = Vec::new();
        for (at, (name, data_type)) in layout.fields.iter().enumerate() {
            let name = layout.columns[at].map_or_else(|| name.clone(), |id| forms[at].field(id));
            fields.push(Field::new(&name, forms[at].stored_type(data_type), true));
            described.push((name, forms[at], data_type.clone()));
        }
        let arrow = Arc::new(Schema::new(fields));
        let file = next_file();
        let name = format!("{file}-{}.lance", uuid::Uuid::new_v4().simple());
        let path = self.store.data_path(self.schema.table, self.role, &name);
        self.store.inner.fresh.lock().insert(path.clone());
        self.begun.push(name.clone());
        let object = self.store.inner.lance.create(&path).await?;
        let options = FileWriterOptions { keep_original_array: Some(true), ..FileWriterOptions::default() };
        let writer = create_writer(FORMAT.resolve(), object, LanceSchema::try_from(arrow.as_ref())?, options)?;
        let encoders = forms.iter().map(|_| Encoder::default()).collect();
        self.open = Some(OneFile {
            file,
            name,
            forms,
            encoders,
            arrow,
            writer,
            stats: StatsBuilder::new(described.into_iter()),
        });
        for piece in &held {
            if !self.write(piece).await? {
                // The sample promised that its own values fit.
                return Err(Error::InvalidInput("a dictionary is too small for its sample".into()));
            }
        }
        Ok(())
    }

    /// Writes rows to the open file; false when a dictionary is full, and then nothing is written.
    async fn write(&mut self, piece: &Piece) -> Result<bool> {
        let Some(open) = &mut self.open else { return Ok(false) };
        let mut stored = Vec::with_capacity(piece.columns.len());
        for (at, values) in piece.columns.iter().enumerate() {
            let form = open.forms[at];
            if form == Form::Plain {
                stored.push(to_stored(values)?);
                continue;
            }
            let Some(coded) = open.encoders[at].encode(values, form)? else {
                let wider = if form == Form::Dictionary8 { Form::Dictionary16 } else { Form::Plain };
                self.least_form.insert(at, wider);
                return Ok(false);
            };
            stored.push(coded);
        }
        open.stats.push(&piece.columns, &piece.keys);
        open.writer.write_batch(&RecordBatch::try_new(open.arrow.clone(), stored)?).await?;
        Ok(true)
    }

    /// Completes the open file and its sidecar.
    async fn end(&mut self) -> Result<()> {
        let (Some(mut open), Some(layout)) = (self.open.take(), &self.layout) else { return Ok(()) };
        let summary = open.writer.finish().await?;
        let (min_key, max_key) = open.stats.key_range();
        let stamps = |name: &str| open.stats.int_range(name).map(|(min, max)| (CommitTs(min), CommitTs(max)));
        let (min_ts, max_ts) = stamps(TX_FROM_COLUMN).unwrap_or((CommitTs::MAX, CommitTs::MAX));
        let (min_closed, max_closed) = stamps(TX_TO_COLUMN).unwrap_or((CommitTs::MAX, CommitTs::MAX));
        let mut meta = FileMeta {
            file: open.file,
            role: self.role,
            path: open.name,
            state: FileState::Staged,
            rows: open.stats.rows(),
            bytes: summary.size_bytes,
            tx_from: match self.spec.tx_from {
                TxFrom::Stored => TxFrom::Stored,
                TxFrom::Constant(_) | TxFrom::AtCommit => TxFrom::AtCommit,
            },
            constant_op: self.spec.constant_op,
            key_sorted: open.stats.is_sorted(),
            min_key,
            max_key,
            min_ts,
            max_ts,
            min_closed,
            max_closed,
            schema_version: self.schema.version,
            row_ts_left_out: layout.row_ts_left_out,
        };
        if let TxFrom::Constant(ts) = self.spec.tx_from {
            meta.bind(&self.schema, ts)?;
        }
        let data = self.store.data_path(self.schema.table, self.role, &meta.path);
        let checksum = self.store.inner.sums.lock().remove(&data);
        let stats = Arc::new(open.stats.finish(meta.clone()).with_checksum(checksum));
        let sidecar = self.store.sidecar_path(self.schema.table, self.role, &meta.path);
        self.store.inner.objects.put(&sidecar, encode(&stats).into()).await?;
        let weight = stats.weight();
        self.store.inner.stats.insert(sidecar, stats, weight);
        self.done.push(meta);
        Ok(())
    }

    async fn finish(&mut self, next_file: &mut (dyn FnMut() -> FileId + Send)) -> Result<Vec<FileMeta>> {
        if self.held_rows > 0 {
            self.begin(next_file).await?;
        }
        self.end().await?;
        self.begun.clear();
        Ok(std::mem::take(&mut self.done))
    }

    /// Removes what was written, in a task of its own, because whoever waits for it may go.
    fn clean_up(&mut self) -> Option<JoinHandle<()>> {
        let (mut open, begun) = (self.open.take(), std::mem::take(&mut self.begun));
        if begun.is_empty() {
            return None;
        }
        let (store, table, role) = (self.store.clone(), self.schema.table, self.role);
        let cleaned = self.store.inner.tasks.spawn(async move {
            if let Some(open) = &mut open {
                open.writer.abort().await;
            }
            for name in begun {
                store.inner.sums.lock().remove(&store.data_path(table, role, &name));
                store.remove_file(table, role, &name).await;
            }
        });
        Some(cleaned)
    }
}

impl Drop for FilesWriter {
    fn drop(&mut self) {
        // Empty after a write that has come to its end in one way or the other.
        self.clean_up();
    }
}
