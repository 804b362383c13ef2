//! Whether indexes agree with their tables, for `lattice check`.
//!
//! An index is a hidden table: one entry per row, keyed by the indexed columns and, unless it is unique, the row's key.
//! Both directions are looked up: every row has the entry that it would be given now, and every entry belongs to a row.
//! As each row has its own entry, equal numbers then mean that no entry is stale; in a unique index they mean that no
//! two rows share a value. Test: `tests::each_disagreement_is_found`.

use arrow::array::{Array, ArrayRef, RecordBatch, new_null_array};
use base::{RowKey, TableId};
use futures::StreamExt;
use storage::{KeyCodec, ScanSpec, TableView};

use crate::catalog::{Catalog, IndexEntry, TableEntry};
use crate::dml::index_entries;
use crate::engine::Engine;
use crate::{Error, Result};

/// An index that does not agree with its table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexFault {
    /// The table, with its schema.
    pub table: String,
    /// The index.
    pub index: String,
    /// What is wrong.
    pub what: String,
}

impl Engine {
    /// The names of stored tables, hidden ones of indexes included.
    pub async fn stored_names(&self) -> Result<Vec<(TableId, String)>> {
        let (catalog, _) = self.newest().await?;
        let mut names = Vec::new();
        for table in catalog.tables() {
            let name = qualified(&catalog, table);
            names.extend(
                table.indexes.iter().map(|index| (index.stored.table, format!("{name}, index {}", index.def.name))),
            );
            names.push((table.id(), name));
        }
        Ok(names)
    }

    /// Compares every index with its table. `progress` is told each one's name.
    pub async fn verify_indexes(&self, progress: impl Fn(&str)) -> Result<Vec<IndexFault>> {
        let (catalog, snapshot) = self.newest().await?;
        let mut faults = Vec::new();
        for table in catalog.tables() {
            for index in &table.indexes {
                let name = qualified(&catalog, table);
                progress(&format!("{name}, index {}", index.def.name));
                let rows = snapshot.table(&table.stored).map_err(Error::classified)?;
                let entries = snapshot.table(&index.stored).map_err(Error::classified)?;
                let found = match compare(table, index, &rows, &entries).await {
                    Ok(found) => found,
                    Err(error) => vec![format!("it cannot be compared: {error}")],
                };
                faults.extend(found.into_iter().map(|what| IndexFault {
                    table: name.clone(),
                    index: index.def.name.clone(),
                    what,
                }));
            }
        }
        Ok(faults)
    }

    async fn newest(&self) -> Result<(std::sync::Arc<Catalog>, storage::Snapshot)> {
        let snapshot = self.inner.store.snapshot();
        let catalog = self.inner.catalog.of(&self.inner.store, &snapshot).await?;
        Ok((catalog, snapshot))
    }
}

fn qualified(catalog: &Catalog, table: &TableEntry) -> String {
    format!("{}.{}", catalog.schema_name(table.def.schema), table.def.name)
}

async fn compare(table: &TableEntry, index: &IndexEntry, rows: &TableView, entries: &TableView) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let names: Vec<&str> = index.positions.iter().map(|&at| table.def.columns[at].name.as_str()).collect();
    let mut needed: Vec<usize> = index.positions.iter().chain(&index.key).copied().collect();
    needed.sort_unstable();
    needed.dedup();
    let codec = KeyCodec::new(&index.stored).map_err(Error::classified)?;
    let (mut row_count, mut missing, mut example) = (0_u64, 0_u64, None);
    for partition in rows.partitions(1) {
        let mut batches = rows.scan(&partition, &ScanSpec::new(needed.clone()));
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(Error::classified)?;
            let columns = spread(table, &needed, &batch);
            let wanted = index_entries(table, index, &columns)?;
            let keys = codec.keys(&wanted).map_err(Error::classified)?;
            row_count += batch.num_rows() as u64;
            for row in absent(entries, &keys).await? {
                missing += 1;
                example.get_or_insert_with(|| shown(&names, wanted.columns(), row));
            }
        }
    }
    if let Some(example) = example {
        found.push(format!("{missing} of {row_count} rows have no entry, such as {example}"));
    }
    let own_key = KeyCodec::new(&table.stored).map_err(Error::classified)?;
    let all: Vec<usize> = (0..index.stored.columns.len()).collect();
    let (mut entry_count, mut strays, mut example) = (0_u64, 0_u64, None);
    for partition in entries.partitions(1) {
        let mut batches = entries.scan(&partition, &ScanSpec::new(all.clone()));
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(Error::classified)?;
            let key = batch.num_columns() - index.key.len();
            let keys = own_key.keys_of_columns(&batch.columns()[key..]).map_err(Error::classified)?;
            entry_count += batch.num_rows() as u64;
            for row in absent(rows, &keys).await? {
                strays += 1;
                example.get_or_insert_with(|| shown(&names, batch.columns(), row));
            }
        }
    }
    if let Some(example) = example {
        found.push(format!("{strays} of {entry_count} entries belong to no row, such as {example}"));
    }
    if missing == 0 && strays == 0 && entry_count > row_count {
        found.push(format!("{} entries hold values that their rows have no more", entry_count - row_count));
    }
    if missing == 0 && entry_count < row_count {
        let what = if index.def.unique { "rows share a value that must be unique" } else { "rows share an entry" };
        found.push(format!("{} {what}", row_count - entry_count));
    }
    Ok(found)
}

/// Columns by storage position; those that were not read are NULL.
fn spread(table: &TableEntry, read: &[usize], batch: &RecordBatch) -> Vec<ArrayRef> {
    (0..table.def.columns.len())
        .map(|at| match read.binary_search(&at) {
            Ok(place) => batch.column(place).clone(),
            Err(_) => new_null_array(table.types[at].data_type(), batch.num_rows()),
        })
        .collect()
}

/// Which of the keys are not there.
async fn absent(view: &TableView, keys: &[RowKey]) -> Result<Vec<usize>> {
    let found = view.find(keys).await.map_err(Error::classified)?;
    Ok(found.iter().enumerate().filter(|(_, found)| found.is_none()).map(|(row, _)| row).collect())
}

fn shown(names: &[&str], columns: &[ArrayRef], row: usize) -> String {
    let arrays: Vec<&ArrayRef> = columns.iter().take(names.len()).collect();
    if arrays.iter().all(|array| row < array.len()) {
        crate::dml::show_key(names, &arrays, row)
    } else {
        "?".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::Int32Array;
    use base::Principal;
    use storage::{BeginOptions, Store, StoreOptions};

    use super::*;
    use crate::{EngineOptions, SessionOptions};

    struct Fixture {
        store: Store,
        engine: Engine,
        _folder: tempfile::TempDir,
    }

    async fn fixture() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let mut options = StoreOptions::new(folder.path().to_owned());
        options.flush_interval_ms = 0;
        options.segment_bytes = 1 << 20;
        let store = Store::open(runtime::Runtime::real(), options).await.unwrap();
        let engine = Engine::open(store.clone(), EngineOptions::default()).await.unwrap();
        let session = engine.session(Principal::admin(), SessionOptions::default());
        for statement in [
            "create table t (id int primary key, v int, w int unique)",
            "create index t_v on t (v)",
            "insert into t values (1, 10, 100), (2, 10, 200), (3, null, null), (4, null, null)",
            "create table keyless (v int)",
            "create index keyless_v on keyless (v)",
            "insert into keyless values (1), (1), (null)",
        ] {
            session.run(statement).await.unwrap();
        }
        // Half of it in files, half in memory.
        store.flush(None).await.unwrap();
        session.run("insert into t values (5, 50, 500)").await.unwrap();
        session.run("update t set v = 11 where id = 2").await.unwrap();
        Fixture { store, engine, _folder: folder }
    }

    impl Fixture {
        async fn faults(&self) -> Vec<String> {
            let faults = self.engine.verify_indexes(|_| {}).await.unwrap();
            faults.into_iter().map(|fault| format!("{} {}: {}", fault.table, fault.index, fault.what)).collect()
        }

        async fn table(&self) -> Arc<TableEntry> {
            let (catalog, _) = self.engine.newest().await.unwrap();
            let table = catalog.tables().find(|table| table.def.name == "t").unwrap();
            Arc::clone(table)
        }

        /// Entries as the index would have them for rows of `t`.
        fn entries(table: &TableEntry, index: &str, rows: &[(i32, i32, i32)]) -> (Arc<IndexEntry>, RecordBatch) {
            let index = table.indexes.iter().find(|entry| entry.def.name.contains(index)).unwrap();
            let columns: Vec<ArrayRef> = vec![
                Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.0))),
                Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.1))),
                Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.2))),
            ];
            (Arc::clone(index), index_entries(table, index, &columns).unwrap())
        }

        async fn insert(&self, schema: &Arc<storage::StoredSchema>, rows: &RecordBatch) {
            let transaction = self.store.begin(BeginOptions::default()).await.unwrap();
            transaction.insert(schema, rows).await.unwrap();
            transaction.commit().await.unwrap();
        }

        async fn delete(&self, schema: &Arc<storage::StoredSchema>, rows: &RecordBatch) {
            let transaction = self.store.begin(BeginOptions::default()).await.unwrap();
            let keys = KeyCodec::new(schema).unwrap().keys(rows).unwrap();
            let found = transaction.view(schema).unwrap().find(&keys).await.unwrap();
            let at: Vec<_> = found.into_iter().map(|found| found.unwrap().locator).collect();
            transaction.delete(schema, &keys, &at).await.unwrap();
            transaction.commit().await.unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn each_disagreement_is_found() {
        let fixture = fixture().await;
        let table = fixture.table().await;
        assert_eq!(fixture.faults().await, Vec::<String>::new());
        // A row without its entry, in a file and in memory.
        for (row, value) in [((1, 10, 100), 10), ((5, 50, 500), 50)] {
            let (index, entry) = Fixture::entries(&table, "t_v", &[row]);
            fixture.delete(&index.stored, &entry).await;
            let faults = fixture.faults().await;
            assert_eq!(faults, [format!("public.t t_v: 1 of 5 rows have no entry, such as (v)=({value})")]);
            fixture.insert(&index.stored, &entry).await;
        }
        // An entry without its row.
        let (index, stray) = Fixture::entries(&table, "t_v", &[(77, 10, 0)]);
        fixture.insert(&index.stored, &stray).await;
        assert_eq!(fixture.faults().await, ["public.t t_v: 1 of 6 entries belong to no row, such as (v)=(10)"]);
        fixture.delete(&index.stored, &stray).await;
        // An entry for what the row was before.
        let (index, stale) = Fixture::entries(&table, "t_v", &[(2, 10, 200)]);
        fixture.insert(&index.stored, &stale).await;
        assert_eq!(fixture.faults().await, ["public.t t_v: 1 entries hold values that their rows have no more"]);
        fixture.delete(&index.stored, &stale).await;
        // Two rows with one value that must be unique.
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int32Array::from(vec![6])),
            Arc::new(Int32Array::from(vec![60])),
            Arc::new(Int32Array::from(vec![500])),
        ];
        let row = RecordBatch::try_new(table.stored.arrow().clone(), columns).unwrap();
        fixture.insert(&table.stored, &row).await;
        let (index, entry) = Fixture::entries(&table, "t_v", &[(6, 60, 500)]);
        fixture.insert(&index.stored, &entry).await;
        let faults = fixture.faults().await;
        assert!(faults.len() == 1 && faults[0].ends_with("1 rows share a value that must be unique"), "{faults:?}");
    }
}
