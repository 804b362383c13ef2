//! A small table and a store on a temporary folder.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Int64Type};
use base::{ColumnId, CommitTs, SchemaVersion, TableId};
use futures::TryStreamExt;
use lattice_storage as storage;
use runtime::Runtime;
use storage::{
    BeginOptions, KeyCodec, Locator, ScanSpec, Store, StoreOptions, StoredColumn, StoredSchema, SystemColumns,
    TableView, Transaction,
};

/// `id BIGINT PRIMARY KEY, value TEXT`.
pub fn schema() -> Arc<StoredSchema> {
    schema_of(TableId(1000))
}

pub fn schema_of(table: TableId) -> Arc<StoredSchema> {
    let column = |id: u32, name: &str, data_type: DataType, nullable: bool| StoredColumn {
        id: ColumnId(id),
        name: name.into(),
        data_type,
        nullable,
        dropped: false,
        missing: None,
    };
    let columns = vec![column(1, "id", DataType::Int64, false), column(2, "value", DataType::Utf8, true)];
    Arc::new(StoredSchema::new(table, SchemaVersion(1), columns, vec![0]))
}

pub fn rows(schema: &StoredSchema, rows: &[(i64, &str)]) -> RecordBatch {
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.iter().map(|(id, _)| *id)));
    let values: ArrayRef = Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, value)| *value)));
    RecordBatch::try_new(Arc::clone(schema.arrow()), vec![ids, values]).expect("the columns fit")
}

/// Options without background work, so that tests decide when rows move.
pub fn quiet(path: &Path) -> StoreOptions {
    let mut options = StoreOptions::new(path.to_path_buf());
    options.flush_interval_ms = 0;
    options.segment_bytes = 1 << 20;
    options.lock_timeout_ms = 2_000;
    options.write_stall_timeout_ms = 2_000;
    options
}

pub async fn open(path: &Path) -> Store {
    Store::open(Runtime::real(), quiet(path)).await.expect("the store opens")
}

pub async fn create(store: &Store, schema: &Arc<StoredSchema>) {
    let transaction = begin(store).await;
    transaction.define(Arc::clone(schema)).expect("definition");
    transaction.commit().await.expect("table created");
}

pub async fn begin(store: &Store) -> Transaction {
    store.begin(BeginOptions::default()).await.expect("begins")
}

pub async fn contents(view: &TableView) -> BTreeMap<i64, String> {
    let mut all = BTreeMap::new();
    for partition in view.partitions(3) {
        let batches: Vec<RecordBatch> =
            view.scan(&partition, &with_locators(vec![0, 1])).try_collect().await.expect("scan");
        for batch in batches {
            let places = Locator::read(&batch).expect("locators");
            let ids = batch.column(0).as_primitive::<Int64Type>();
            let values = batch.column(1).as_string::<i32>();
            for row in 0..batch.num_rows() {
                let before = all.insert(ids.value(row), values.value(row).to_owned());
                assert!(
                    before.is_none(),
                    "row {} appears twice: {before:?}, and {:?} at {:?}",
                    ids.value(row),
                    values.value(row),
                    places[row],
                );
            }
        }
    }
    all
}

pub async fn contents_at(store: &Store, schema: &Arc<StoredSchema>, at: CommitTs) -> BTreeMap<i64, String> {
    let snapshot = store.snapshot_at(at).await.expect("snapshot");
    contents(&snapshot.table(schema).expect("table")).await
}

pub async fn now(store: &Store, schema: &Arc<StoredSchema>) -> BTreeMap<i64, String> {
    contents(&store.snapshot().table(schema).expect("table")).await
}

pub fn keys(schema: &StoredSchema, ids: &[i64]) -> Vec<base::RowKey> {
    let ids: ArrayRef = Arc::new(Int64Array::from(ids.to_vec()));
    KeyCodec::new(schema).expect("codec").keys_of_columns(&[ids]).expect("keys")
}

/// Where rows lie, as a statement would have found them.
pub async fn locators(view: &TableView, ids: &[i64]) -> Vec<(i64, Locator)> {
    let found = view.find(&keys(view.schema(), ids)).await.expect("find");
    ids.iter().zip(found).filter_map(|(id, found)| Some((*id, found?.locator))).collect()
}

/// Updates the rows that exist.
pub async fn update(
    transaction: &Transaction,
    schema: &Arc<StoredSchema>,
    changes: &[(i64, &str)],
) -> storage::Result<()> {
    let view = transaction.view(schema)?;
    let ids: Vec<i64> = changes.iter().map(|(id, _)| *id).collect();
    let found = locators(&view, &ids).await;
    let present: Vec<(i64, &str)> =
        changes.iter().filter(|(id, _)| found.iter().any(|(known, _)| known == id)).copied().collect();
    if present.is_empty() {
        return Ok(());
    }
    let places: Vec<Locator> = found.into_iter().map(|(_, locator)| locator).collect();
    transaction.update(schema, &rows(schema, &present), &places).await
}

/// Deletes the rows that exist.
pub async fn delete(transaction: &Transaction, schema: &Arc<StoredSchema>, ids: &[i64]) -> storage::Result<()> {
    let found = locators(&transaction.view(schema)?, ids).await;
    let present: Vec<i64> = found.iter().map(|(id, _)| *id).collect();
    let places: Vec<Locator> = found.into_iter().map(|(_, locator)| locator).collect();
    transaction.delete(schema, &keys(schema, &present), &places).await
}

pub fn with_locators(columns: Vec<usize>) -> ScanSpec {
    let mut spec = ScanSpec::new(columns);
    spec.system = SystemColumns { locator: true, ..SystemColumns::default() };
    spec
}
