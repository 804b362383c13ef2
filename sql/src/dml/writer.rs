//! The write loop: rows in, and everything that follows from them.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BinaryArray, Int64Array, RecordBatch, UInt32Array, new_null_array};
use arrow::compute::take;
use base::RowKey;
use codec::{KeyCodec, ROW_TS_COLUMN};
use storage::{BulkWriter, Locator};

use super::constraints::{RowRules, duplicate_in_index, duplicate_key, violation};
use super::foreign_keys::{Referenced, Referencing};
use crate::catalog::{IndexEntry, TableEntry};
use crate::plan::Scope;
use crate::transaction::Txn;
use crate::{Error, Result};

/// How many rows with new keys wait for the end of a statement. Beyond, uniqueness is judged in between.
const MOVED_ROWS_MAX: usize = 1 << 20;
/// Inserted rows go to files, whatever their number, once they take this much memory.
const WAITING_BYTES_MAX: usize = 32 << 20;

/// Writes rows of one table on behalf of one statement.
pub(crate) struct TableWriter {
    pub(super) scope: Scope,
    pub(super) txn: Arc<Txn>,
    pub(super) table: Arc<TableEntry>,
    rules: RowRules,
    key: KeyCodec,
    /// Rows that refer to others, to be checked when the statement ends.
    referencing: Vec<Referencing>,
    /// Rows that others may refer to, and that are going.
    referenced: Vec<Referenced>,
    /// Inserts go to files once this many rows came.
    bulk_rows: usize,
    waiting: Vec<Vec<ArrayRef>>,
    waiting_rows: usize,
    waiting_bytes: usize,
    bulk: Option<BulkWriter>,
    /// Rows are handed to storage batch by batch, because the caller looks at them in between.
    immediate: bool,
    /// Updated rows with another primary key, and index entries of updated rows, for the end of the statement.
    moved: Vec<Vec<ArrayRef>>,
    moved_entries: Vec<(Arc<IndexEntry>, RecordBatch)>,
    moved_rows: usize,
}

impl TableWriter {
    /// A writer for one statement. With `immediate`, inserted rows are there when `insert` returns.
    pub(crate) async fn new(scope: &Scope, table: &Arc<TableEntry>, immediate: bool) -> Result<Self> {
        let txn = scope.writing()?.clone();
        crate::ddl::hold_definition(scope, &txn, table).await?;
        if table.def.on_commit.as_deref() == Some("delete") {
            txn.empty_at_commit(table.def.id);
        }
        let referencing = (0..table.def.foreign_keys.len())
            .map(|at| Referencing::new(scope, table, at))
            .collect::<Result<Vec<_>>>()?;
        let referenced = table
            .referenced_by
            .iter()
            .map(|&(child, at)| Referenced::new(scope, table, child, at))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            rules: RowRules::new(scope, table)?,
            key: KeyCodec::new(&table.stored).map_err(Error::classified)?,
            bulk_rows: scope.engine().options.bulk_rows,
            scope: scope.clone(),
            txn,
            table: table.clone(),
            referencing,
            referenced,
            waiting: Vec::new(),
            waiting_rows: 0,
            waiting_bytes: 0,
            bulk: None,
            immediate: immediate || !table.indexes.is_empty(),
            moved: Vec::new(),
            moved_entries: Vec::new(),
            moved_rows: 0,
        })
    }

    /// Visible columns to stored columns: dropped ones are NULL, generated ones computed, floats have one zero, hidden keys left to storage.
    pub(super) fn stored_columns(&self, visible: &[ArrayRef]) -> Result<Vec<ArrayRef>> {
        let rows = visible.first().map_or(0, |array| array.len());
        let mut given = vec![None; self.table.def.columns.len()];
        for (&at, array) in self.table.visible.iter().zip(visible) {
            given[at] = Some(array.clone());
        }
        let mut columns: Vec<ArrayRef> = given
            .into_iter()
            .enumerate()
            .map(|(at, array)| match array {
                Some(array) => array,
                None if self.table.def.columns[at].is_hidden() => Arc::new(Int64Array::from(vec![0; rows])) as ArrayRef,
                None => new_null_array(self.table.types[at].data_type(), rows),
            })
            .collect();
        self.rules.complete(&self.table, &mut columns)?;
        Ok(columns)
    }

    fn batch(&self, columns: &[ArrayRef]) -> Result<RecordBatch> {
        Ok(RecordBatch::try_new(self.table.stored.arrow().clone(), columns.to_vec())?)
    }

    /// The keys of rows given by stored columns.
    pub(super) fn keys(&self, columns: &[ArrayRef]) -> Result<Vec<RowKey>> {
        let key: Vec<ArrayRef> = self.table.stored.key.iter().map(|&at| columns[at].clone()).collect();
        self.key.keys_of_columns(&key).map_err(Error::classified)
    }

    /// Checks rows without writing them.
    pub(super) fn check(&self, columns: &[ArrayRef]) -> Result<()> {
        self.rules.check(&self.table, columns)
    }

    /// Inserts rows given by visible columns. Returns the stored columns.
    pub(crate) async fn insert(&mut self, visible: &[ArrayRef]) -> Result<Vec<ArrayRef>> {
        let columns = self.stored_columns(visible)?;
        self.insert_stored(columns).await
    }

    /// Inserts rows given by stored columns.
    pub(super) async fn insert_stored(&mut self, mut columns: Vec<ArrayRef>) -> Result<Vec<ArrayRef>> {
        let rows = columns.first().map_or(0, |array| array.len());
        if rows == 0 {
            return Ok(columns);
        }
        self.check(&columns)?;
        for referencing in &mut self.referencing {
            referencing.note(&columns)?;
        }
        if self.immediate {
            self.assign_hidden_key(&mut columns, rows).await?;
            self.put(&columns).await?;
            return Ok(columns);
        }
        if let Some(bulk) = &mut self.bulk {
            let batch = RecordBatch::try_new(self.table.stored.arrow().clone(), columns.clone())?;
            bulk.write(batch).await.map_err(|error| duplicate_anywhere(&self.table, error))?;
            return Ok(columns);
        }
        self.waiting_rows += rows;
        for array in &columns {
            self.waiting_bytes += array.to_data().get_slice_memory_size()?;
        }
        self.waiting.push(columns.clone());
        if self.waiting_rows >= self.bulk_rows || self.waiting_bytes >= WAITING_BYTES_MAX {
            let mut bulk = self.txn.storage.bulk(&self.table.stored).map_err(Error::classified)?;
            for columns in std::mem::take(&mut self.waiting) {
                let batch = self.batch(&columns)?;
                bulk.write(batch).await.map_err(|error| duplicate_anywhere(&self.table, error))?;
            }
            self.bulk = Some(bulk);
        }
        Ok(columns)
    }

    /// Rows of a table without primary key get their hidden key here when an index must know it. Such keys are negative:
    /// they cannot meet those that storage gives.
    async fn assign_hidden_key(&self, columns: &mut [ArrayRef], rows: usize) -> Result<()> {
        if self.table.indexes.is_empty() || !self.table.stored.has_hidden_key() {
            return Ok(());
        }
        let first = self.scope.engine().store.allocate("sql.row_ids", rows as u64).await.map_err(Error::classified)?;
        let first = i64::try_from(first).map_err(|_| Error::internal("row ids are used up"))?;
        if let Some(at) = self.table.stored.position(ROW_TS_COLUMN) {
            columns[at] = Arc::new(Int64Array::from_iter_values((first..).take(rows).map(|id| -id)));
        }
        Ok(())
    }

    /// Hands rows to storage, with their index entries.
    async fn put(&self, columns: &[ArrayRef]) -> Result<()> {
        let batch = self.batch(columns)?;
        self.txn.storage.insert(&self.table.stored, &batch).await.map_err(|error| match error {
            storage::Error::DuplicateKey { row, .. } => duplicate_key(&self.table, columns, row),
            other => Error::classified(other),
        })?;
        for index in &self.table.indexes {
            self.put_entries(index, columns).await?;
        }
        Ok(())
    }

    async fn put_entries(&self, index: &IndexEntry, columns: &[ArrayRef]) -> Result<()> {
        let entries = index_entries(&self.table, index, columns)?;
        self.txn.storage.insert(&index.stored, &entries).await.map_err(|error| match error {
            storage::Error::DuplicateKey { row, .. } => duplicate_in_index(&self.table, index, columns, row),
            other => Error::classified(other),
        })
    }

    async fn remove_entries(&self, index: &IndexEntry, columns: &[ArrayRef]) -> Result<()> {
        let entries = index_entries(&self.table, index, columns)?;
        let keys = KeyCodec::new(&index.stored).and_then(|codec| codec.keys(&entries)).map_err(Error::classified)?;
        let view = self.txn.storage.view(&index.stored).map_err(Error::classified)?;
        let found = view.find(&keys).await.map_err(Error::classified)?;
        let (keys, locators): (Vec<RowKey>, Vec<Locator>) =
            keys.into_iter().zip(found).filter_map(|(key, found)| found.map(|found| (key, found.locator))).unzip();
        self.txn.storage.delete(&index.stored, &keys, &locators).await.map_err(Error::classified)
    }

    /// Replaces rows. Both sides are stored columns in the same order; `changed` are the positions that may differ.
    pub(super) async fn update(
        &mut self,
        old: &[ArrayRef],
        new: Vec<ArrayRef>,
        locators: &[Locator],
        changed: &[usize],
    ) -> Result<Vec<ArrayRef>> {
        let mut new = new;
        self.rules.complete(&self.table, &mut new)?;
        self.check(&new)?;
        let touches = |positions: &[usize]| {
            positions.iter().any(|at| changed.contains(at) || self.table.def.columns[*at].generated.is_some())
        };
        let indexes: Vec<Arc<IndexEntry>> = self
            .table
            .indexes
            .iter()
            .filter(|index| touches(&index.positions) || touches(&index.key))
            .cloned()
            .collect();
        for referencing in &mut self.referencing {
            if referencing.positions.iter().any(|at| changed.contains(at)) {
                referencing.note(&new)?;
            }
        }
        for referenced in &mut self.referenced {
            if referenced.positions.iter().any(|at| changed.contains(at)) {
                referenced.note(old, Some(&new))?;
            }
        }
        for index in &indexes {
            self.remove_entries(index, old).await?;
        }
        if touches(&self.table.stored.key) {
            let (before, after) = (self.keys(old)?, self.keys(&new)?);
            let (same, moved): (Vec<usize>, Vec<usize>) = (0..before.len()).partition(|&row| before[row] == after[row]);
            if !moved.is_empty() {
                let keys: Vec<RowKey> = moved.iter().map(|&row| before[row].clone()).collect();
                let at: Vec<Locator> = moved.iter().map(|&row| locators[row]).collect();
                self.txn.storage.delete(&self.table.stored, &keys, &at).await.map_err(Error::classified)?;
                self.moved_rows += moved.len();
                self.moved.push(pick(&new, &moved)?);
            }
            if !same.is_empty() {
                let at: Vec<Locator> = same.iter().map(|&row| locators[row]).collect();
                let rows = self.batch(&pick(&new, &same)?)?;
                self.txn.storage.update(&self.table.stored, &rows, &at).await.map_err(Error::classified)?;
            }
        } else {
            let rows = self.batch(&new)?;
            self.txn.storage.update(&self.table.stored, &rows, locators).await.map_err(Error::classified)?;
        }
        for index in indexes {
            let entries = index_entries(&self.table, &index, &new)?;
            self.moved_rows += entries.num_rows();
            self.moved_entries.push((index, entries));
        }
        if self.moved_rows > MOVED_ROWS_MAX {
            self.put_moved().await?;
        }
        Ok(new)
    }

    /// Writes what updates have given new keys. Keys are judged when the statement ends, so that rows may swap them.
    pub(super) async fn put_moved(&mut self) -> Result<()> {
        self.moved_rows = 0;
        for rows in std::mem::take(&mut self.moved) {
            self.txn.storage.insert(&self.table.stored, &self.batch(&rows)?).await.map_err(|error| match error {
                storage::Error::DuplicateKey { row, .. } => duplicate_key(&self.table, &rows, row),
                other => Error::classified(other),
            })?;
        }
        for (index, entries) in std::mem::take(&mut self.moved_entries) {
            self.txn.storage.insert(&index.stored, &entries).await.map_err(|error| match error {
                storage::Error::DuplicateKey { row, .. } => duplicate_entry(&self.table, &index, &entries, row),
                other => Error::classified(other),
            })?;
        }
        Ok(())
    }

    /// Deletes rows. Only the columns at [`Self::needed_to_delete`] are looked at.
    pub(super) async fn delete(&mut self, old: &[ArrayRef], locators: &[Locator]) -> Result<()> {
        for referenced in &mut self.referenced {
            referenced.note(old, None)?;
        }
        let keys = self.keys(old)?;
        self.txn.storage.delete(&self.table.stored, &keys, locators).await.map_err(Error::classified)?;
        for index in &self.table.indexes {
            self.remove_entries(index, old).await?;
        }
        Ok(())
    }

    /// Storage positions that deleting needs values of.
    pub(super) fn needed_to_delete(&self) -> Vec<usize> {
        let mut needed = self.table.stored.key.clone();
        needed.extend(self.table.indexes.iter().flat_map(|index| index.positions.iter().copied()));
        needed.extend(self.referenced.iter().flat_map(|referenced| referenced.positions.iter().copied()));
        needed.sort_unstable();
        needed.dedup();
        needed
    }

    /// Ends the statement: writes what waits and settles foreign keys.
    pub(crate) async fn finish(mut self) -> Result<()> {
        self.put_moved().await?;
        if let Some(bulk) = self.bulk.take() {
            bulk.finish().await.map_err(|error| duplicate_anywhere(&self.table, error))?;
        } else if !self.waiting.is_empty() {
            let waiting = std::mem::take(&mut self.waiting);
            let columns = concat_columns(&waiting)?;
            self.put(&columns).await?;
        }
        let referenced = std::mem::take(&mut self.referenced);
        for removed in referenced {
            // What follows may come back here for other tables.
            Box::pin(removed.settle(&self.scope, &self.txn, &self.table)).await?;
        }
        for referencing in std::mem::take(&mut self.referencing) {
            referencing.settle(&self.scope, &self.txn, &self.table).await?;
        }
        Ok(())
    }
}

/// Rows of some columns, by row number.
pub(super) fn pick(columns: &[ArrayRef], rows: &[usize]) -> Result<Vec<ArrayRef>> {
    let rows = UInt32Array::from_iter_values(rows.iter().map(|&row| u32::try_from(row).unwrap_or(u32::MAX)));
    columns.iter().map(|column| Ok(take(column, &rows, None)?)).collect()
}

fn concat_columns(parts: &[Vec<ArrayRef>]) -> Result<Vec<ArrayRef>> {
    let width = parts.first().map_or(0, Vec::len);
    (0..width)
        .map(|at| {
            let arrays: Vec<&dyn Array> = parts.iter().map(|part| part[at].as_ref()).collect();
            Ok(arrow::compute::concat(&arrays)?)
        })
        .collect()
}

/// A duplicate found by a bulk writer, which reports the key and not the batch.
fn duplicate_anywhere(table: &TableEntry, error: storage::Error) -> Error {
    match error {
        storage::Error::DuplicateKey { key, .. } => {
            let name = table.def.primary_key.as_ref().map_or("", |key| key.name.as_str());
            let names: Vec<&str> = table.stored.key.iter().map(|&at| table.def.columns[at].name.as_str()).collect();
            match key {
                Some(key) => {
                    violation(name, &super::constraints::show_key(&names, &key.columns().iter().collect::<Vec<_>>(), 0))
                }
                None => violation(name, &format!("({})", names.join(", "))),
            }
        }
        other => Error::classified(other),
    }
}

/// A duplicate among index entries, whose first columns are the indexed ones.
fn duplicate_entry(table: &TableEntry, index: &IndexEntry, entries: &RecordBatch, row: usize) -> Error {
    let names: Vec<&str> = index.positions.iter().map(|&at| table.def.columns[at].name.as_str()).collect();
    let arrays: Vec<&ArrayRef> = entries.columns().iter().take(names.len()).collect();
    violation(&index.def.name, &super::constraints::show_key(&names, &arrays, row))
}

/// The rows of an index for rows of its table, given by stored columns.
pub(crate) fn index_entries(table: &TableEntry, index: &IndexEntry, columns: &[ArrayRef]) -> Result<RecordBatch> {
    let mut entries: Vec<ArrayRef> = index.positions.iter().map(|&at| columns[at].clone()).collect();
    let key: Vec<ArrayRef> = index.key.iter().map(|&at| columns[at].clone()).collect();
    if index.def.unique {
        let rows = key.first().map_or(0, |array| array.len());
        let has_null = |row: usize| index.def.nulls_distinct && entries.iter().any(|array| array.is_null(row));
        let discriminator: BinaryArray = if (0..rows).any(has_null) {
            let keys = KeyCodec::new(&table.stored)
                .and_then(|codec| codec.keys_of_columns(&key))
                .map_err(Error::classified)?;
            (0..rows).map(|row| Some(if has_null(row) { keys[row].as_bytes() } else { &[] })).collect()
        } else {
            (0..rows).map(|_| Some(&[] as &[u8])).collect()
        };
        entries.push(Arc::new(discriminator));
    }
    entries.extend(key);
    Ok(RecordBatch::try_new(index.stored.arrow().clone(), entries)?)
}

/// Keys already handled by a statement that may meet a row twice.
#[derive(Debug, Default)]
pub(super) struct Met(HashSet<RowKey>);

impl Met {
    /// The rows met for the first time.
    pub(super) fn fresh(&mut self, keys: &[RowKey]) -> Vec<usize> {
        keys.iter().enumerate().filter(|(_, key)| self.0.insert((*key).clone())).map(|(row, _)| row).collect()
    }

    pub(super) fn contains(&self, key: &RowKey) -> bool {
        self.0.contains(key)
    }

    pub(super) fn insert(&mut self, key: &RowKey) {
        self.0.insert(key.clone());
    }
}
