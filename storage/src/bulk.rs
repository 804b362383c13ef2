//! Bulk writing: rows go to staged, key-sorted files as they come, and the commit names the files (storage rule 10).
//!
//! Tables with a primary key are sorted in runs of [`RUN_ROWS`] rows; uniqueness is checked inside a run while sorting, and
//! across runs and against the rows that exist by merging key columns of whatever overlaps. One file is written while the
//! next run is gathered.
//!
//! # Invariants
//! - BULK-1 a call that is dropped while it waits loses no rows of earlier calls, and the next one goes on from there
//!   (`tests::a_call_that_is_dropped_loses_no_rows`).

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::compute::{concat_batches, take_record_batch};
use base::{FileId, RowKey};
use codec::{KeyCodec, ROW_NO_COLUMN, ROW_TS_COLUMN, StoredSchema};
use columns::{FileMeta, Role, WriteSpec};
use futures::{StreamExt, stream};
use tokio::task::JoinHandle;

use crate::transaction::{Transaction, gives_hidden_keys, key_columns};
use crate::view::{ScanSpec, TableView};
use crate::{Error, Result};

/// Rows in one sorted run, and so in one file.
const RUN_ROWS: usize = 1 << 20;
/// Bytes in one run, if the rows are wide.
const RUN_BYTES: usize = 512 << 20;
/// Rows handed to the file writer at a time.
const WRITE_BATCH_ROWS: usize = 64 * 1024;

/// Writes many new rows of one table in a transaction.
///
/// Nothing is visible, not even to the transaction, before [`BulkWriter::finish`].
#[derive(Debug)]
pub struct BulkWriter {
    transaction: Transaction,
    schema: Arc<StoredSchema>,
    codec: KeyCodec,
    buffered: Vec<RecordBatch>,
    buffered_rows: usize,
    buffered_bytes: usize,
    writing: Option<JoinHandle<Result<Vec<FileMeta>>>>,
    files: Vec<FileMeta>,
    rows: u64,
}

impl BulkWriter {
    pub(crate) fn new(transaction: Transaction, schema: &Arc<StoredSchema>) -> Result<Self> {
        Ok(Self {
            transaction,
            codec: KeyCodec::new(schema)?,
            schema: Arc::clone(schema),
            buffered: Vec::new(),
            buffered_rows: 0,
            buffered_bytes: 0,
            writing: None,
            files: Vec::new(),
            rows: 0,
        })
    }

    /// Adds whole rows: all columns of the schema in its order; hidden key columns may be left out.
    pub async fn write(&mut self, rows: RecordBatch) -> Result<()> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        if self.schema.has_hidden_key() && gives_hidden_keys(&self.schema, &rows)? {
            let table = self.schema.table;
            return Err(Error::Invalid(format!(
                "rows with hidden keys of their own cannot be bulk-written to table {table}"
            )));
        }
        self.rows += rows.num_rows() as u64;
        self.buffered_rows += rows.num_rows();
        self.buffered_bytes += rows.get_array_memory_size();
        self.buffered.push(rows);
        if self.buffered_rows >= RUN_ROWS || self.buffered_bytes >= RUN_BYTES {
            self.write_run().await?;
        }
        Ok(())
    }

    /// Rows added so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    async fn settle(&mut self) -> Result<()> {
        if let Some(writing) = &mut self.writing {
            let written = writing.await;
            self.writing = None;
            let files = written.map_err(|error| Error::Unavailable(format!("a bulk write stopped: {error}")))??;
            self.files.extend(files);
        }
        Ok(())
    }

    async fn write_run(&mut self) -> Result<()> {
        if self.buffered.is_empty() {
            return Ok(());
        }
        self.settle().await?;
        let core = Arc::clone(&self.transaction.shared.core);
        let first_file = core.next_files(self.buffered_rows.div_ceil(1 << 18) as u64 + 2).await?;
        // From here on nothing is waited for: whoever drops this call loses no rows.
        let batches = std::mem::take(&mut self.buffered);
        let rows = std::mem::take(&mut self.buffered_rows);
        self.buffered_bytes = 0;
        let schema = Arc::clone(&self.schema);
        let codec = self.codec.clone();
        let first_row_no = if schema.has_hidden_key() { self.transaction.take_row_numbers(&schema, rows) } else { 0 };
        let transaction = self.transaction.clone();
        self.writing = Some(tokio::spawn(async move {
            let sorted = {
                let schema = Arc::clone(&schema);
                tokio::task::spawn_blocking(move || {
                    if schema.has_hidden_key() {
                        numbered(&schema, batches, first_row_no)
                    } else {
                        sorted_run(&schema, &codec, &batches)
                    }
                })
                .await
                .map_err(|error| Error::Unavailable(format!("sorting stopped: {error}")))??
            };
            let mut next = first_file.0;
            let files = core
                .columns
                .write_files(
                    &schema,
                    Role::Current,
                    move || {
                        let file = FileId(next);
                        next += 1;
                        file
                    },
                    stream::iter(sorted.into_iter().map(Ok)),
                    WriteSpec::at_commit(0),
                )
                .await
                .map_err(Error::part)?;
            // Here, because nobody may wait for this task any more.
            transaction.note_staged(schema.table, &files);
            Ok(files)
        }));
        Ok(())
    }

    /// Writes what is left, checks uniqueness and hands the files to the transaction. Returns the number of rows.
    pub async fn finish(mut self) -> Result<u64> {
        self.write_run().await?;
        self.settle().await?;
        if !self.schema.has_hidden_key()
            && let Err(error) = self.check_unique().await
        {
            self.abort().await;
            return Err(error);
        }
        self.transaction.settle_deletions(&self.schema).await?;
        let files = std::mem::take(&mut self.files);
        self.transaction.push_staged(&self.schema, files);
        Ok(self.rows)
    }

    /// Removes what was written.
    pub async fn abort(mut self) {
        let _ = self.settle().await;
        let columns = &self.transaction.shared.core.columns;
        if let Err(error) = columns.discard(self.schema.table, &self.files).await {
            tracing::warn!(%error, "files of a failed bulk write stay until the next sweep");
        }
    }

    /// Compares the new files with each other and with everything the transaction can see.
    async fn check_unique(&self) -> Result<()> {
        let mut files: Vec<&FileMeta> = self.files.iter().collect();
        files.sort_by(|a, b| a.min_key.cmp(&b.min_key));
        let core = &self.transaction.shared.core;
        let own = self.transaction.own(self.schema.table);
        let existing = TableView::new(core, &self.schema, core.state.last(), own);
        let overlaps_within = files.windows(2).any(|pair| pair[1].min_key <= pair[0].max_key);
        let (Some(least), Some(greatest)) =
            (files.first().map(|meta| &meta.min_key), files.iter().map(|meta| &meta.max_key).max())
        else {
            return Ok(());
        };
        let overlaps_existing = existing.may_hold_keys(least, greatest);
        if !overlaps_within && !overlaps_existing {
            return Ok(());
        }
        let mut keys: Vec<RowKey> = Vec::with_capacity(usize::try_from(self.rows).unwrap_or(0));
        for meta in &files {
            let spec = columns::ScanSpec::columns(self.schema.key.clone());
            let mut batches = core.columns.scan_file(None, meta, &self.schema, spec);
            while let Some(batch) = batches.next().await {
                keys.extend(self.codec.keys_of_columns(batch.map_err(Error::part)?.columns())?);
            }
        }
        if overlaps_within {
            keys.sort_unstable();
            if let Some(pair) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(self.duplicate(&pair[0]));
            }
        }
        if overlaps_existing {
            let spec = ScanSpec::new(self.schema.key.clone());
            for partition in existing.partitions(1) {
                let mut batches = existing.scan(&partition, &spec);
                while let Some(batch) = batches.next().await {
                    for key in self.codec.keys_of_columns(batch?.columns())? {
                        if keys.binary_search(&key).is_ok() {
                            return Err(self.duplicate(&key));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn duplicate(&self, key: &RowKey) -> Error {
        duplicate_of(&self.schema, &self.codec, key)
    }
}

fn duplicate_of(schema: &StoredSchema, codec: &KeyCodec, key: &RowKey) -> Error {
    let batch = codec.decode(std::slice::from_ref(key)).ok().and_then(|columns| {
        let fields: Vec<_> = schema.key.iter().map(|&at| Arc::clone(&schema.arrow().fields()[at])).collect();
        RecordBatch::try_new(Arc::new(arrow::datatypes::Schema::new(fields)), columns).ok()
    });
    Error::DuplicateKey { table: schema.table, row: 0, key: batch }
}

/// Sorts a run by key and refuses equal keys.
fn sorted_run(schema: &StoredSchema, codec: &KeyCodec, batches: &[RecordBatch]) -> Result<Vec<RecordBatch>> {
    let all = concat_batches(schema.arrow(), batches)?;
    let keys = codec.keys(&all)?;
    let ascending = keys.windows(2).all(|pair| pair[0] < pair[1]);
    let sorted = if ascending {
        all
    } else {
        let mut order: Vec<u32> = (0..u32::try_from(keys.len()).unwrap_or(u32::MAX)).collect();
        order.sort_unstable_by(|a, b| keys[*a as usize].cmp(&keys[*b as usize]));
        if let Some(pair) = order.windows(2).find(|pair| keys[pair[0] as usize] == keys[pair[1] as usize]) {
            let row = pair[1] as usize;
            let key = key_columns(schema, &all).map(|batch| batch.slice(row, 1)).ok();
            return Err(Error::DuplicateKey { table: schema.table, row, key });
        }
        take_record_batch(&all, &arrow::array::UInt32Array::from(order))?
    };
    Ok(sliced(&sorted))
}

fn sliced(batch: &RecordBatch) -> Vec<RecordBatch> {
    (0..batch.num_rows())
        .step_by(WRITE_BATCH_ROWS)
        .map(|start| batch.slice(start, WRITE_BATCH_ROWS.min(batch.num_rows() - start)))
        .collect()
}

/// Gives rows their hidden numbers and leaves `_row_ts` out: it will be the commit timestamp.
fn numbered(schema: &StoredSchema, batches: Vec<RecordBatch>, first: i64) -> Result<Vec<RecordBatch>> {
    let mut next = first;
    let positions: Vec<usize> =
        (0..schema.columns.len()).filter(|&at| schema.columns[at].id != ROW_TS_COLUMN).collect();
    let arrow = Arc::new(schema.arrow().project(&positions)?);
    batches
        .into_iter()
        .map(|batch| {
            let rows = i64::try_from(batch.num_rows()).unwrap_or(i64::MAX);
            let arrays: Vec<ArrayRef> = positions
                .iter()
                .map(|&at| {
                    if schema.columns[at].id == ROW_NO_COLUMN {
                        Arc::new(Int64Array::from_iter_values(next..next + rows)) as ArrayRef
                    } else {
                        Arc::clone(batch.column(at))
                    }
                })
                .collect();
            next += rows;
            Ok(RecordBatch::try_new(Arc::clone(&arrow), arrays)?)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use base::CommitTs;
    use runtime::{ManualClock, Runtime, SimDisk};

    use super::*;
    use crate::testing::{keys, table_of_keys};
    use crate::{BeginOptions, Store, StoreOptions};

    /// Lets syncs go on, whatever becomes of the test.
    struct Pause<'a>(&'a SimDisk);

    impl<'a> Pause<'a> {
        fn of(disk: &'a SimDisk, path: &str) -> Self {
            disk.pause_syncs_of(path, true);
            Self(disk)
        }
    }

    impl Drop for Pause<'_> {
        fn drop(&mut self) {
            self.0.pause_syncs(false);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_call_that_is_dropped_loses_no_rows() {
        let disk = SimDisk::new();
        let runtime = Runtime::simulated(ManualClock::new(CommitTs(1_000_000)), disk.clone());
        let mut options = StoreOptions::new("/data".into());
        options.flush_interval_ms = 0;
        let store = Store::open(runtime, options).await.expect("opens");
        let schema = table_of_keys();
        let rows = |ids| keys(&schema, ids);
        let transaction = store.begin(BeginOptions::default()).await.expect("begins");
        transaction.define(Arc::clone(&schema)).expect("definition");
        let mut writer = transaction.bulk(&schema).expect("bulk");
        let wait = Duration::from_millis(100);
        writer.write(rows(0..3)).await.expect("write");
        {
            // While it waits for the ids of files.
            let _paused = Pause::of(&disk, "/journal/");
            assert!(tokio::time::timeout(wait, writer.write_run()).await.is_err());
        }
        writer.write_run().await.expect("the run is on its way");
        writer.settle().await.expect("and written");
        writer.write(rows(3..5)).await.expect("write");
        {
            // While it waits for the file of the run before.
            let _paused = Pause::of(&disk, "/columns/.tmp");
            writer.write_run().await.expect("the run is on its way");
            writer.write(rows(5..9)).await.expect("write");
            assert!(tokio::time::timeout(wait, writer.write_run()).await.is_err());
        }
        assert_eq!(writer.finish().await.expect("finish"), 9);
        transaction.commit().await.expect("commit");
        let view = store.snapshot().table(&schema).expect("table");
        let mut count = 0;
        for partition in view.partitions(1) {
            let mut batches = view.scan(&partition, &ScanSpec::new(vec![0]));
            while let Some(batch) = batches.next().await {
                count += batch.expect("rows").num_rows();
            }
        }
        assert_eq!(count, 9);
    }
}
