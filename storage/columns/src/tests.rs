//! The column tier as storage uses it: the same stories on a local folder, in memory, and on S3 when
//! `LATTICE_TEST_S3_URL` names a bucket (with the usual `AWS_*` variables).

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::*;
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, IntervalMonthDayNano, IntervalUnit, TimeUnit};
use base::{ColumnId, CommitTs, DatasetVersion, FileId, RowKey, SchemaVersion, TableId};
use codec::{KeyCodec, ROW_NO_COLUMN, ROW_TS_COLUMN, StoredColumn, StoredSchema};
use futures::TryStreamExt;
use proptest::prelude::*;
use roaring::RoaringBitmap;
use runtime::SimDisk;

use crate::store::encode_owner;
use crate::*;

const TABLE: TableId = TableId(1000);

fn options() -> ColumnOptions {
    ColumnOptions::new("cluster-a", 1)
}

async fn in_folder(dir: &tempfile::TempDir) -> ColumnStore {
    ColumnStore::open(dir.path().join("columns").to_str().unwrap(), options()).await.unwrap()
}

/// One story on every store there is.
macro_rules! stories {
    ($($name:ident)*) => {
        mod local {
            $(#[tokio::test]
            async fn $name() {
                let dir = tempfile::tempdir().unwrap();
                super::$name(super::in_folder(&dir).await).await;
            })*
        }
        mod memory {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::ColumnStore::open("memory://", super::options()).await.unwrap()).await;
            })*
        }
        mod s3 {
            $(#[tokio::test]
            async fn $name() {
                let Ok(url) = std::env::var("LATTICE_TEST_S3_URL") else { return };
                let url = format!("{}/{}-{}", url.trim_end_matches('/'), stringify!($name), uuid::Uuid::new_v4().simple());
                super::$name(crate::ColumnStore::open(&url, super::options()).await.unwrap()).await;
            })*
        }
    };
}

stories! {
    rounds_match_a_model
    staged_files_are_read_and_adopted
    a_stale_writer_is_refused
    one_of_many_committers_wins
    masks_hide_rows
    keys_are_found
    hidden_keys_are_found
    every_type_survives
    columns_added_later_read_their_default
    history_keeps_its_periods
    dictionaries_overflow_into_new_files
    sweeping_spares_what_is_needed
    a_missing_file_is_not_adopted
    rows_are_taken_in_any_order
    versions_are_found_again
    an_empty_dataset_can_be_committed
    bad_rows_leave_nothing_behind
}

fn stored(id: u32, data_type: DataType, nullable: bool) -> StoredColumn {
    StoredColumn { id: ColumnId(id), name: format!("column {id}"), data_type, nullable, dropped: false, missing: None }
}

/// `c1` Int64 is the key, then text, a decimal and a nullable number.
fn small_schema() -> Arc<StoredSchema> {
    let columns = vec![
        stored(1, DataType::Int64, false),
        stored(2, DataType::Utf8, true),
        stored(3, DataType::Decimal128(15, 2), true),
        stored(4, DataType::Int32, true),
    ];
    Arc::new(StoredSchema::new(TABLE, SchemaVersion(1), columns, vec![0]))
}

fn small_columns(keys: &[i64], salt: i64) -> Vec<(&'static str, ArrayRef)> {
    let number = |key: i64| key.wrapping_mul(7919).wrapping_add(salt);
    let texts: StringArray =
        keys.iter().map(|&key| (key % 11 != 0).then(|| format!("text {} of {salt}", key % 1000))).collect();
    let decimals: Decimal128Array = keys.iter().map(|&key| (key % 7 != 0).then(|| i128::from(number(key)))).collect();
    let numbers: Int32Array = keys.iter().map(|&key| (key % 5 != 0).then_some(number(key) as i32)).collect();
    vec![
        ("c1", Arc::new(Int64Array::from(keys.to_vec()))),
        ("c2", Arc::new(texts)),
        ("c3", Arc::new(decimals.with_precision_and_scale(15, 2).unwrap())),
        ("c4", Arc::new(numbers)),
    ]
}

fn small_rows(keys: &[i64], salt: i64) -> RecordBatch {
    let mut columns = small_columns(keys, salt);
    columns.push(("_tx_from", Arc::new(Int64Array::from(vec![salt; keys.len()]))));
    columns.push(("_op", Arc::new(UInt8Array::from(vec![(salt % 2) as u8; keys.len()]))));
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

/// Allocates file ids.
fn ids(start: u64) -> impl FnMut() -> FileId + Send {
    let mut next = start;
    move || {
        next += 1;
        FileId(next)
    }
}

fn rows_of(batches: Vec<RecordBatch>) -> impl futures::Stream<Item = Result<RecordBatch, base::BoxError>> + Send {
    futures::stream::iter(batches.into_iter().map(Ok))
}

async fn write(
    store: &ColumnStore,
    schema: &Arc<StoredSchema>,
    first: u64,
    batches: Vec<RecordBatch>,
    max_rows: u32,
) -> Vec<FileMeta> {
    let spec = WriteSpec { max_rows_per_file: max_rows, ..WriteSpec::stored() };
    store.write_files(schema, Role::Current, ids(first), rows_of(batches), spec).await.unwrap()
}

fn adding<'a>(add: Vec<FileMeta>, files: &'a [FileMeta]) -> Commit<'a> {
    Commit { add, files, ..Commit::default() }
}

async fn read(
    store: &ColumnStore,
    pin: Option<&Arc<DatasetPin>>,
    meta: &FileMeta,
    schema: &Arc<StoredSchema>,
    spec: ScanSpec,
) -> RecordBatch {
    let output = spec.output_schema(schema);
    let batches: Vec<RecordBatch> = store.scan_file(pin, meta, schema, spec).try_collect().await.unwrap();
    assert!(batches.iter().all(|batch| batch.num_rows() > 0 && batch.schema() == output));
    concat_batches(&output, &batches).unwrap()
}

fn everything(schema: &StoredSchema) -> ScanSpec {
    let mut spec = ScanSpec::columns((0..schema.columns.len()).collect());
    spec.system = SystemColumns { tx_from: true, tx_to: true, op: true };
    spec.offsets = true;
    spec
}

fn int64s(batch: &RecordBatch, name: &str) -> Vec<i64> {
    batch.column_by_name(name).unwrap().as_primitive::<arrow::datatypes::Int64Type>().values().to_vec()
}

/// What the table should hold: key to salt.
type Model = BTreeMap<i64, i64>;

async fn check_against(
    store: &ColumnStore,
    pin: &Arc<DatasetPin>,
    files: &[FileMeta],
    schema: &Arc<StoredSchema>,
    model: &Model,
) {
    let mut seen = Model::new();
    for meta in files {
        let found = read(store, Some(pin), meta, schema, everything(schema)).await;
        assert_eq!(found.num_rows() as u32, meta.live_rows());
        let (keys, salts) = (int64s(&found, "c1"), int64s(&found, "_tx_from"));
        for (row, (&key, &salt)) in keys.iter().zip(&salts).enumerate() {
            assert_eq!(seen.insert(key, salt), None, "key {key} twice");
            if row % 97 == 0 {
                let expected = small_rows(&[key], salt);
                for column in expected.schema().fields().iter().filter(|field| field.name() != "_op") {
                    let name = column.name();
                    assert_eq!(
                        found.column_by_name(name).unwrap().slice(row, 1).as_ref(),
                        expected.column_by_name(name).unwrap().as_ref()
                    );
                }
            }
        }
    }
    assert_eq!(&seen, model);
}

async fn rounds_match_a_model(store: ColumnStore) {
    let schema = small_schema();
    let (mut files, mut version, mut model): (Vec<FileMeta>, _, _) = (Vec::new(), DatasetVersion(0), Model::new());
    let mut before: Vec<(Arc<DatasetPin>, Vec<FileMeta>, Model)> = Vec::new();
    for round in 1..=7i64 {
        let base = round as u64 * 100;
        let mut commit = Commit { files: &files, ..Commit::default() };
        // New keys, in two files from the second round on.
        let keys: Vec<i64> = (0..1500).map(|n| n * 20 + round).collect();
        let limit = if round == 1 { FILE_ROWS } else { 1000 };
        commit.add =
            write(&store, &schema, base, vec![small_rows(&keys[..700], round), small_rows(&keys[700..], round)], limit)
                .await;
        assert_eq!(commit.add.len(), if round == 1 { 1 } else { 2 });
        model.extend(keys.iter().map(|&key| (key, round)));
        let pin = if round > 1 { Some(store.pin(TABLE, Role::Current, version).await.unwrap()) } else { None };
        for (at, meta) in files.iter().enumerate() {
            let live = read(&store, pin.as_ref(), meta, &schema, everything(&schema)).await;
            let keys = int64s(&live, "c1");
            let offsets =
                live.column_by_name("_offset").unwrap().as_primitive::<arrow::datatypes::UInt32Type>().clone();
            let chosen: Vec<usize> = match (at as i64 + round) % 5 {
                // Some rows, all of them, the whole file, or none.
                0 => (0..keys.len()).filter(|row| row % 3 == 0).collect(),
                1 if round == 5 => (0..keys.len()).collect(),
                2 if round > 3 => {
                    commit.remove.push(meta.file);
                    keys.iter().for_each(|key| assert!(model.remove(key).is_some()));
                    continue;
                }
                3 => vec![0, keys.len() - 1],
                _ => continue,
            };
            let rows: RoaringBitmap = chosen.iter().map(|&row| offsets.value(row)).collect();
            chosen.iter().for_each(|&row| assert!(model.remove(&keys[row]).is_some()));
            commit.delete.insert(meta.file, rows);
        }
        commit.properties.insert("cut".into(), round.to_string());
        let committed = store.commit(TABLE, Role::Current, version, commit).await.unwrap();
        version = committed.version;
        files = committed.files;
        let pin = store.pin(TABLE, Role::Current, version).await.unwrap();
        assert_eq!(pin.version(), version);
        check_against(&store, &pin, &files, &schema, &model).await;
        before.push((pin, files.clone(), model.clone()));
        let latest = store.latest(TABLE, Role::Current).await.unwrap().unwrap();
        assert_eq!((latest.version, latest.properties["cut"].as_str()), (version, round.to_string().as_str()));
        assert_eq!(store.files_at(TABLE, Role::Current, version, &[]).await.unwrap().files, files);
    }
    // Versions stay what they were.
    for (pin, files, model) in &before {
        check_against(&store, pin, files, &schema, model).await;
    }
    // Lance itself reads the dataset.
    let dataset = store.load(TABLE, Role::Current, None).await.unwrap().unwrap();
    assert_eq!(dataset.count_rows(None).await.unwrap(), model.len());
    let scanned: Vec<RecordBatch> =
        dataset.scan().project(&["c1", "c4"]).unwrap().try_into_stream().await.unwrap().try_collect().await.unwrap();
    let keys: Vec<i64> = scanned.iter().flat_map(|batch| int64s(batch, "c1")).collect();
    assert_eq!(keys.iter().copied().collect::<HashSet<_>>(), model.keys().copied().collect());
}

async fn staged_files_are_read_and_adopted(store: ColumnStore) {
    let schema = small_schema();
    let keys: Vec<i64> = (0..9000).collect();
    let batch = RecordBatch::try_from_iter(small_columns(&keys, 5)).unwrap();
    let mut staged =
        store.write_files(&schema, Role::Current, ids(0), rows_of(vec![batch]), WriteSpec::at_commit(1)).await.unwrap();
    assert_eq!(staged.len(), 1);
    assert!(store.latest(TABLE, Role::Current).await.unwrap().is_none());
    let unbound = store.commit(TABLE, Role::Current, DatasetVersion(0), adding(staged.clone(), &[])).await;
    assert!(matches!(unbound, Err(Error::InvalidInput(_))));
    // Before the commit only what does not depend on its timestamp can be read.
    let blind = store.scan_file(None, &staged[0], &schema, everything(&schema));
    assert!(matches!(blind.try_collect::<Vec<_>>().await, Err(Error::InvalidInput(_))));
    let mut spec = ScanSpec::columns(vec![0]);
    assert_eq!(int64s(&read(&store, None, &staged[0], &schema, spec.clone()).await, "c1"), keys);
    staged[0].bind(&schema, CommitTs(77)).unwrap();
    assert!(staged[0].bind(&schema, CommitTs(78)).is_err());
    let copy = FileMeta::decode(&staged[0].encode()).unwrap();
    assert_eq!(copy, staged[0]);
    spec = everything(&schema);
    let found = read(&store, None, &staged[0], &schema, spec.clone()).await;
    assert_eq!(int64s(&found, "_tx_from"), vec![77; 9000]);
    assert!(
        found
            .column_by_name("_op")
            .unwrap()
            .as_primitive::<arrow::datatypes::UInt8Type>()
            .values()
            .iter()
            .all(|op| *op == 1)
    );
    assert!(int64s(&found, "_tx_to").iter().all(|to| *to == i64::MAX));
    let committed = store.commit(TABLE, Role::Current, DatasetVersion(0), adding(staged.clone(), &[])).await.unwrap();
    assert_eq!(committed.files[0].state, FileState::Committed { fragment: 0, deleted: 0 });
    let delete = BTreeMap::from([(staged[0].file, RoaringBitmap::from_iter(0..100))]);
    let change = Commit { delete, files: &committed.files, ..Commit::default() };
    let after = store.commit(TABLE, Role::Current, committed.version, change).await.unwrap();
    let pin = store.pin(TABLE, Role::Current, after.version).await.unwrap();
    assert_eq!(after.files[0].live_rows(), 8900);
    assert_eq!(read(&store, Some(&pin), &after.files[0], &schema, spec.clone()).await.num_rows(), 8900);
    // A reader that still knows the file as staged sees all of it.
    assert_eq!(read(&store, Some(&pin), &staged[0], &schema, spec.clone()).await, found);
    // Counting needs no column at all.
    spec.columns.clear();
    spec.system = SystemColumns::default();
    spec.offsets = false;
    let batches: Vec<RecordBatch> =
        store.scan_file(Some(&pin), &after.files[0], &schema, spec).try_collect().await.unwrap();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 8900);
}

async fn a_stale_writer_is_refused(store: ColumnStore) {
    let schema = small_schema();
    let first = write(&store, &schema, 0, vec![small_rows(&[1, 2, 3], 1)], 10).await;
    let one = store.commit(TABLE, Role::Current, DatasetVersion(0), adding(first, &[])).await.unwrap();
    let second = write(&store, &schema, 10, vec![small_rows(&[4], 2)], 10).await;
    let two = store.commit(TABLE, Role::Current, one.version, adding(second, &one.files)).await.unwrap();
    let stale = write(&store, &schema, 20, vec![small_rows(&[5], 3)], 10).await;
    for expected in [DatasetVersion(0), one.version] {
        let known: &[FileMeta] = if expected.0 == 0 { &[] } else { &one.files };
        let refused = store.commit(TABLE, Role::Current, expected, adding(stale.clone(), known)).await;
        assert!(matches!(refused, Err(Error::Fenced { .. })), "{refused:?}");
    }
    let unknown = store.commit(TABLE, Role::Current, DatasetVersion(9), adding(stale.clone(), &[])).await;
    assert!(matches!(unknown, Err(Error::Missing(_))), "{unknown:?}");
    assert_eq!(store.latest(TABLE, Role::Current).await.unwrap().unwrap().version, two.version);
    assert_eq!(store.files_at(TABLE, Role::Current, two.version, &[]).await.unwrap().files, two.files);
    // The same file commits when built on the newest version.
    let three = store.commit(TABLE, Role::Current, two.version, adding(stale, &two.files)).await.unwrap();
    assert_eq!(three.files.len(), 3);
}

async fn one_of_many_committers_wins(store: ColumnStore) {
    let schema = small_schema();
    let first = write(&store, &schema, 0, vec![small_rows(&[1], 1)], 10).await;
    let mut latest = store.commit(TABLE, Role::Current, DatasetVersion(0), adding(first, &[])).await.unwrap();
    for round in 0..3u64 {
        let mut tasks = Vec::new();
        for writer in 0..4u64 {
            let staged =
                write(&store, &schema, 100 * (round + 1) + 10 * writer, vec![small_rows(&[writer as i64], 1)], 10)
                    .await;
            let (store, base) = (store.clone(), latest.clone());
            // Past the lock that this process has for itself, as another process would be.
            tasks.push(async move {
                store.commit_on(TABLE, Role::Current, base.version, &adding(staged, &base.files)).await
            });
        }
        let results = futures::future::join_all(tasks).await;
        let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        assert_eq!(won.len(), 1);
        assert!(lost.iter().all(|result| matches!(result, Err(Error::Fenced { .. }))), "{lost:?}");
        let next = won.into_iter().next().unwrap().unwrap();
        assert_eq!((next.version.0, next.files.len()), (latest.version.0 + 1, latest.files.len() + 1));
        latest = next;
    }
}

async fn masks_hide_rows(store: ColumnStore) {
    let schema = small_schema();
    let keys: Vec<i64> = (0..10_000).collect();
    let files = write(&store, &schema, 0, vec![small_rows(&keys, 1)], FILE_ROWS).await;
    let one = store.commit(TABLE, Role::Current, DatasetVersion(0), adding(files, &[])).await.unwrap();
    let deleted: RoaringBitmap = (0..10_000).filter(|row| row % 10 == 3).collect();
    let delete = BTreeMap::from([(one.files[0].file, deleted.clone())]);
    let two = store
        .commit(TABLE, Role::Current, one.version, Commit { delete, files: &one.files, ..Commit::default() })
        .await
        .unwrap();
    let pin = store.pin(TABLE, Role::Current, two.version).await.unwrap();
    assert_eq!(store.deleted_rows(&pin, &two.files[0]).await.unwrap().as_deref(), Some(&deleted));
    let masks = [
        RoaringBitmap::new(),
        RoaringBitmap::from_iter([0u32, 9_999]),
        RoaringBitmap::from_iter(2_000..5_000u32),
        RoaringBitmap::from_iter((0..10_000u32).filter(|row| row % 2 == 0)),
        RoaringBitmap::from_iter(0..10_000u32),
    ];
    for mask in masks {
        for batch_rows in [700, 65_536] {
            let spec = ScanSpec { mask: Some(Arc::new(mask.clone())), batch_rows, ..everything(&schema) };
            let found = read(&store, Some(&pin), &two.files[0], &schema, spec).await;
            let expected: Vec<i64> =
                (0..10_000u32).filter(|row| !mask.contains(*row) && !deleted.contains(*row)).map(i64::from).collect();
            assert_eq!(int64s(&found, "c1"), expected);
        }
    }
}

async fn keys_are_found(store: ColumnStore) {
    let schema = small_schema();
    let codec = KeyCodec::new(&schema).unwrap();
    // Even keys only, three zones and a bit.
    let keys: Vec<i64> = (0..26_000).map(|n| n * 2).collect();
    let files = write(&store, &schema, 0, vec![small_rows(&keys, 1)], FILE_ROWS).await;
    let wanted: Vec<i64> = vec![51_998, 0, 1, -1, 2, 16_382, 16_384, 16_383, 52_000, 30_001, 30_002, 0];
    let encoded = codec.keys_of_columns(&[Arc::new(Int64Array::from(wanted.clone()))]).unwrap();
    for _ in 0..2 {
        let found = store.lookup(&files[0], &schema, &encoded).await.unwrap();
        let expected: Vec<Option<u32>> =
            wanted.iter().map(|key| ((0..52_000).contains(key) && key % 2 == 0).then_some((key / 2) as u32)).collect();
        assert_eq!(found, expected);
    }
    assert!(store.lookup(&files[0], &schema, &[]).await.unwrap().is_empty());
    let spec = WriteSpec { order: KeyOrder::Any, ..WriteSpec::stored() };
    let unsorted = store
        .write_files(&schema, Role::Current, ids(50), rows_of(vec![small_rows(&[3, 1, 2], 1)]), spec)
        .await
        .unwrap();
    assert!(!unsorted[0].key_sorted);
    let bounds = codec.keys_of_columns(&[Arc::new(Int64Array::from(vec![1, 3]))]).unwrap();
    assert_eq!([unsorted[0].min_key.clone(), unsorted[0].max_key.clone()].as_slice(), bounds);
    assert!(matches!(store.lookup(&unsorted[0], &schema, &encoded).await, Err(Error::InvalidInput(_))));
}

async fn hidden_keys_are_found(store: ColumnStore) {
    let columns = vec![
        stored(1, DataType::Utf8, true),
        stored(ROW_TS_COLUMN.0, DataType::Int64, false),
        stored(ROW_NO_COLUMN.0, DataType::Int64, false),
    ];
    let schema = Arc::new(StoredSchema::new(TABLE, SchemaVersion(1), columns, vec![1, 2]));
    let numbers: Vec<i64> = (0..9000).collect();
    let batch = RecordBatch::try_from_iter([
        ("c1", Arc::new(StringArray::from_iter_values(numbers.iter().map(|n| n.to_string()))) as ArrayRef),
        (&format!("c{ROW_NO_COLUMN}"), Arc::new(Int64Array::from(numbers.clone()))),
    ])
    .unwrap();
    let mut files =
        store.write_files(&schema, Role::Current, ids(0), rows_of(vec![batch]), WriteSpec::at_commit(0)).await.unwrap();
    assert!(files[0].row_ts_left_out);
    files[0].bind(&schema, CommitTs(500)).unwrap();
    let codec = KeyCodec::new(&schema).unwrap();
    let key = |ts: i64, no: i64| -> RowKey {
        codec
            .keys_of_columns(&[Arc::new(Int64Array::from(vec![ts])), Arc::new(Int64Array::from(vec![no]))])
            .unwrap()
            .remove(0)
    };
    assert_eq!((files[0].min_key.clone(), files[0].max_key.clone()), (key(500, 0), key(500, 8999)));
    let wanted = [key(500, 0), key(500, 8999), key(499, 5), key(501, 5), key(500, 9000), key(500, 8192)];
    let found = store.lookup(&files[0], &schema, &wanted).await.unwrap();
    assert_eq!(found, [Some(0), Some(8999), None, None, None, Some(8192)]);
    let rows = read(&store, None, &files[0], &schema, everything(&schema)).await;
    assert_eq!(int64s(&rows, &format!("c{ROW_TS_COLUMN}")), vec![500; 9000]);
    // The sidecar does not know the timestamp; whoever recovers the file must.
    let committed = store.commit(TABLE, Role::Current, DatasetVersion(0), adding(files.clone(), &[])).await.unwrap();
    let recovered = store.files_at(TABLE, Role::Current, committed.version, &[]).await.unwrap();
    assert_eq!(recovered.files[0].tx_from, TxFrom::AtCommit);
    assert_eq!(store.files_at(TABLE, Role::Current, committed.version, &files).await.unwrap().files, committed.files);
    let zones = ZoneFilter::all().and_compare(ZoneColumn::TxFrom, CompareOp::Gt, Arc::new(Int64Array::from(vec![500])));
    let spec = ScanSpec { zones: Some(zones), ..everything(&schema) };
    assert_eq!(read(&store, None, &files[0], &schema, spec).await.num_rows(), 0);
}

/// A schema and rows of every storable type, with and without NULLs.
fn all_types(rows: usize) -> (Arc<StoredSchema>, RecordBatch) {
    let n = rows as i64;
    let some = |row: i64| row % 3 != 1;
    let list = |items: ArrayRef, item: DataType| -> ArrayRef {
        // Lists of 0, 1, 2 items; every fifth is NULL.
        let lengths: Vec<usize> = (0..rows).map(|row| if row % 5 == 4 { 0 } else { row % 3 }).collect();
        let total: usize = lengths.iter().sum();
        let nulls = arrow::buffer::NullBuffer::from_iter((0..rows).map(|row| row % 5 != 4));
        let field = Arc::new(Field::new("item", item, true));
        Arc::new(ListArray::new(
            field,
            arrow::buffer::OffsetBuffer::from_lengths(lengths),
            items.slice(0, total),
            Some(nulls),
        ))
    };
    let ints = |count: i64| -> Int64Array { (0..count).map(|row| some(row).then_some(row * 1_000_003 - 7)).collect() };
    let texts: StringArray = (0..n).map(|row| some(row).then(|| format!("ü{row}"))).collect();
    let binaries: BinaryArray = (0..n).map(|row| some(row).then(|| row.to_be_bytes())).collect();
    let uuids = FixedSizeBinaryArray::try_from_sparse_iter_with_size(
        (0..n).map(|row| some(row).then(|| (row as u128).to_be_bytes())),
        16,
    )
    .unwrap();
    let intervals: IntervalMonthDayNanoArray = (0..n)
        .map(|row| some(row).then(|| IntervalMonthDayNano::new(row as i32, -row as i32, row * 1_000_000_007)))
        .collect();
    let narrow: Decimal128Array = (0..n).map(|row| some(row).then_some(i128::from(row) - 500)).collect();
    let wide: Decimal128Array = (0..n).map(|row| some(row).then_some(i128::from(row) << 80)).collect();
    let mut arrays: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(0..n)),
        Arc::new((0..n).map(|row| some(row).then_some(row % 2 == 0)).collect::<BooleanArray>()),
        Arc::new((0..n).map(|row| some(row).then_some(row as i16 - 9)).collect::<Int16Array>()),
        Arc::new((0..n).map(|row| some(row).then_some(row as i32 - 9)).collect::<Int32Array>()),
        Arc::new(ints(n)),
        Arc::new((0..n).map(|row| some(row).then_some(row as f32 / 3.0)).collect::<Float32Array>()),
        Arc::new(
            (0..n)
                .map(|row| some(row).then_some(if row % 100 == 0 { f64::NAN } else { -row as f64 / 3.0 }))
                .collect::<Float64Array>(),
        ),
        Arc::new(narrow.with_precision_and_scale(18, 4).unwrap()),
        Arc::new(wide.with_precision_and_scale(38, 10).unwrap()),
        Arc::new(texts.clone()),
        Arc::new(binaries.clone()),
        Arc::new((0..n).map(|row| some(row).then_some(row as i32)).collect::<Date32Array>()),
        Arc::new((0..n).map(|row| some(row).then_some(row * 17)).collect::<Time64MicrosecondArray>()),
        Arc::new(TimestampMicrosecondArray::from_iter(ints(n).iter())),
        Arc::new(TimestampMicrosecondArray::from_iter(ints(n).iter()).with_timezone("UTC")),
        Arc::new(intervals.clone()),
        Arc::new(uuids.clone()),
    ];
    let items: Vec<ArrayRef> = arrays[1..].iter().map(|array| concat_twice(array)).collect();
    for item in items {
        arrays.push(list(item.clone(), item.data_type().clone()));
    }
    // And columns of nothing but NULLs.
    let nulls: Vec<ArrayRef> = arrays[1..].iter().map(|array| new_null_array(array.data_type(), rows)).collect();
    arrays.extend(nulls);
    let columns =
        arrays.iter().enumerate().map(|(at, array)| stored(at as u32 + 1, array.data_type().clone(), at > 0)).collect();
    let schema = Arc::new(StoredSchema::new(TABLE, SchemaVersion(1), columns, vec![0]));
    let batch = RecordBatch::try_new(schema.arrow().clone(), arrays).unwrap();
    (schema, batch)
}

fn concat_twice(array: &ArrayRef) -> ArrayRef {
    arrow::compute::concat(&[array.as_ref(), array.as_ref()]).unwrap()
}

async fn every_type_survives(store: ColumnStore) {
    for rows in [1usize, 2, 3000] {
        let (schema, batch) = all_types(rows);
        let halves = vec![batch.slice(0, rows / 2), batch.slice(rows / 2, rows - rows / 2)];
        let files =
            store.write_files(&schema, Role::Current, ids(0), rows_of(halves), WriteSpec::at_commit(0)).await.unwrap();
        let all = ScanSpec::columns((0..schema.columns.len()).collect());
        let found = read(&store, None, &files[0], &schema, all.clone()).await;
        assert_eq!(found, batch);
        let some = [0u32, rows as u32 / 2, rows as u32 - 1];
        let taken = store.take(&files[0], &schema, &some, &all.columns, SystemColumns::default()).await.unwrap();
        let expected: Vec<RecordBatch> = some.iter().map(|&row| batch.slice(row as usize, 1)).collect();
        assert_eq!(taken, concat_batches(schema.arrow(), &expected).unwrap());
        // Everything but rows in the middle, so that decoding starts and stops in odd places.
        if rows > 100 {
            let ranges = vec![1..50, 700..701, 1024..2000];
            let found = read(&store, None, &files[0], &schema, ScanSpec { ranges: Some(ranges.clone()), ..all }).await;
            let expected: Vec<RecordBatch> =
                ranges.iter().map(|range| batch.slice(range.start as usize, range.len())).collect();
            assert_eq!(found, concat_batches(schema.arrow(), &expected).unwrap());
        }
        let stats = store.stats(TABLE, &files[0]).await.unwrap();
        let text = stats.column(ColumnId(10)).unwrap();
        assert_eq!(text.nulls as usize, batch.column(9).null_count());
        store.discard(TABLE, &files).await.unwrap();
    }
    // The whole of it is a valid dataset, too.
    let (schema, batch) = all_types(500);
    let mut files = store
        .write_files(&schema, Role::Current, ids(9), rows_of(vec![batch.clone()]), WriteSpec::at_commit(0))
        .await
        .unwrap();
    files[0].bind(&schema, CommitTs(3)).unwrap();
    store.commit(TABLE, Role::Current, DatasetVersion(0), adding(files, &[])).await.unwrap();
    let dataset = store.load(TABLE, Role::Current, None).await.unwrap().unwrap();
    let scanned = dataset.scan().project(&["c1", "c4", "c10", "c21"]).unwrap().try_into_batch().await.unwrap();
    for name in ["c1", "c4", "c10", "c21"] {
        assert_eq!(
            scanned.column_by_name(name).unwrap().to_data(),
            batch.column_by_name(name).unwrap().to_data(),
            "{name}"
        );
    }
}

async fn columns_added_later_read_their_default(store: ColumnStore) {
    let old = small_schema();
    let files = write(&store, &old, 0, vec![small_rows(&[1, 2, 3], 1)], 10).await;
    let one = store.commit(TABLE, Role::Current, DatasetVersion(0), adding(files, &[])).await.unwrap();
    let mut columns = old.columns.clone();
    columns[3].dropped = true;
    columns.push(StoredColumn {
        missing: Some(Arc::new(StringArray::from(vec!["default"]))),
        ..stored(5, DataType::Utf8, false)
    });
    columns.push(stored(6, DataType::List(Arc::new(Field::new("item", DataType::Float64, true))), true));
    let new = Arc::new(StoredSchema::new(TABLE, SchemaVersion(2), columns, vec![0]));
    let mut fields: Vec<(&str, ArrayRef)> = small_columns(&[4, 5], 2).into_iter().take(3).collect();
    fields.push(("c5", Arc::new(StringArray::from(vec!["given", "too"]))));
    let lists =
        ListArray::from_iter_primitive::<arrow::datatypes::Float64Type, _, _>([Some(vec![Some(1.5), None]), None]);
    fields.push(("c6", Arc::new(lists)));
    fields.push(("_tx_from", Arc::new(Int64Array::from(vec![2, 2]))));
    fields.push(("_op", Arc::new(UInt8Array::from(vec![0, 0]))));
    let batch = RecordBatch::try_from_iter(fields).unwrap();
    let more = write(&store, &new, 10, vec![batch.clone()], 10).await;
    let commit =
        Commit { properties: BTreeMap::from([("cut".into(), "2".into())]), ..adding(more.clone(), &one.files) };
    let two = store.commit(TABLE, Role::Current, one.version, commit).await.unwrap();
    assert_eq!(two.version.0, one.version.0 + 2);
    let pin = store.pin(TABLE, Role::Current, two.version).await.unwrap();
    let first = read(&store, Some(&pin), &two.files[0], &new, everything(&new)).await;
    assert_eq!(first.column_by_name("c5").unwrap().as_string::<i32>().iter().collect::<Vec<_>>(), [Some("default"); 3]);
    assert_eq!(first.column_by_name("c6").unwrap().null_count(), 3);
    let second = read(&store, Some(&pin), &two.files[1], &new, everything(&new)).await;
    for name in ["c1", "c5", "c6"] {
        assert_eq!(
            second.column_by_name(name).unwrap().to_data(),
            batch.column_by_name(name).unwrap().to_data(),
            "{name}"
        );
    }
    assert_eq!(second.column_by_name("c4").unwrap().null_count(), 2);
    // Readers with the old definition still read both.
    assert_eq!(read(&store, Some(&pin), &two.files[1], &old, everything(&old)).await.num_rows(), 2);
    let spec = ScanSpec { dictionary: vec![4], ..ScanSpec::columns(vec![4]) };
    let coded = read(&store, Some(&pin), &two.files[0], &new, spec).await;
    assert_eq!(coded.column(0).data_type(), &dictionary_type());
    // A commit that got no further than the schema does not stand in the way, nor does it hide the properties.
    let mut columns = new.columns.clone();
    columns.push(stored(7, DataType::Boolean, true));
    let newest = Arc::new(StoredSchema::new(TABLE, SchemaVersion(3), columns, vec![0]));
    let mut fields: Vec<(&str, ArrayRef)> = batch
        .schema()
        .fields()
        .iter()
        .zip(batch.columns())
        .map(|(field, array)| (field_name(field), array.clone()))
        .collect();
    fields.push(("c7", Arc::new(BooleanArray::from(vec![true, false]))));
    let batch = RecordBatch::try_from_iter(fields).unwrap();
    let third = write(&store, &newest, 20, vec![batch], 10).await;
    let schemas: Vec<_> = vec![store.open_file(TABLE, &third[0]).await.unwrap().reader.schema().as_ref().clone()];
    let half = store.extend_schema_for_test(pin, &schemas).await;
    let latest = store.latest(TABLE, Role::Current).await.unwrap().unwrap();
    assert_eq!((latest.version, latest.properties["cut"].as_str()), (half, "2"));
    let three = store.commit(TABLE, Role::Current, two.version, adding(third, &two.files)).await.unwrap();
    assert_eq!((three.version.0, three.files.len()), (half.0 + 1, 3));
    // The version in between goes with the one it was for.
    let kept = write(&store, &newest, 30, vec![], 10).await;
    assert!(kept.is_empty());
    let four = store.commit(TABLE, Role::Current, three.version, adding(vec![], &three.files)).await.unwrap();
    store.drop_versions(TABLE, Role::Current, four.version, &HashSet::new()).await.unwrap();
    let left = store.list_objects("t1000/current/_versions").await.unwrap();
    assert_eq!(left.len(), 1);
    let pin = store.pin(TABLE, Role::Current, four.version).await.unwrap();
    assert_eq!(read(&store, Some(&pin), &four.files[2], &newest, everything(&newest)).await.num_rows(), 2);
}

fn field_name(field: &Field) -> &'static str {
    ["c1", "c2", "c3", "c5", "c6", "_tx_from", "_op"].into_iter().find(|name| name == field.name()).unwrap()
}

async fn history_keeps_its_periods(store: ColumnStore) {
    let schema = small_schema();
    let mut columns = small_columns(&[9, 9, 3], 1);
    columns.push(("_tx_from", Arc::new(Int64Array::from(vec![10, 20, 15]))));
    columns.push(("_tx_to", Arc::new(Int64Array::from(vec![20, 30, 40]))));
    columns.push(("_op", Arc::new(UInt8Array::from(vec![0, 1, 0]))));
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let spec = WriteSpec { order: KeyOrder::Any, ..WriteSpec::stored() };
    let files = store.write_files(&schema, Role::History, ids(0), rows_of(vec![batch]), spec).await.unwrap();
    let meta = &files[0];
    assert_eq!([meta.min_ts, meta.max_ts, meta.min_closed, meta.max_closed], [10, 20, 20, 40].map(CommitTs));
    assert!(
        meta.may_be_visible(CommitTs(39)) && !meta.may_be_visible(CommitTs(40)) && !meta.may_be_visible(CommitTs(9))
    );
    let committed = store.commit(TABLE, Role::History, DatasetVersion(0), adding(files, &[])).await.unwrap();
    assert!(store.latest(TABLE, Role::Current).await.unwrap().is_none());
    let pin = store.pin(TABLE, Role::History, committed.version).await.unwrap();
    let found = read(&store, Some(&pin), &committed.files[0], &schema, everything(&schema)).await;
    assert_eq!((int64s(&found, "_tx_from"), int64s(&found, "_tx_to")), (vec![10, 20, 15], vec![20, 30, 40]));
    let at = |ts: i64| -> ArrayRef { Arc::new(Int64Array::from(vec![ts])) };
    for (ts, rows) in [(9, 0), (10, 3), (39, 3), (40, 0)] {
        let zones = ZoneFilter::all().and_compare(ZoneColumn::TxFrom, CompareOp::Le, at(ts)).and_compare(
            ZoneColumn::TxTo,
            CompareOp::Gt,
            at(ts),
        );
        let spec = ScanSpec { zones: Some(zones), ..everything(&schema) };
        assert_eq!(read(&store, Some(&pin), &committed.files[0], &schema, spec).await.num_rows(), rows, "{ts}");
    }
}

async fn dictionaries_overflow_into_new_files(store: ColumnStore) {
    let schema = small_schema();
    let total = 4 * 65_536i64;
    // Few values at first, then more than 255, then more than 65535.
    let text = |key: i64| match key {
        0..70_000 => (key % 200).to_string(),
        70_000..100_000 => (key % 300).to_string(),
        _ => key.to_string(),
    };
    let batches: Vec<RecordBatch> = (0..total / 16_384)
        .map(|batch| {
            let keys: Vec<i64> = (batch * 16_384..(batch + 1) * 16_384).collect();
            let texts: StringArray = keys.iter().map(|&key| (key % 13 != 0).then(|| text(key))).collect();
            let numbers: ArrayRef = Arc::new(Int32Array::from(vec![1; keys.len()]));
            let decimals = Decimal128Array::from(vec![5; keys.len()]).with_precision_and_scale(15, 2).unwrap();
            RecordBatch::try_from_iter([
                ("c1", Arc::new(Int64Array::from(keys)) as ArrayRef),
                ("c2", Arc::new(texts)),
                ("c3", Arc::new(decimals)),
                ("c4", numbers),
            ])
            .unwrap()
        })
        .collect();
    let mut files =
        store.write_files(&schema, Role::Current, ids(0), rows_of(batches), WriteSpec::at_commit(0)).await.unwrap();
    let mut forms = Vec::new();
    let mut next = 0;
    for meta in &mut files {
        meta.bind(&schema, CommitTs(1)).unwrap();
        let stats = store.stats(TABLE, meta).await.unwrap();
        forms.push(stats.is_dictionary(ColumnId(2)));
        for dictionary in [false, true] {
            let spec =
                ScanSpec { dictionary: if dictionary { vec![1] } else { vec![] }, ..ScanSpec::columns(vec![0, 1]) };
            let found = read(&store, None, meta, &schema, spec).await;
            let texts = arrow::compute::cast(found.column(1), &DataType::Utf8).unwrap();
            assert_eq!(texts.null_count(), found.column(1).null_count());
            let mut key = next;
            for value in texts.as_string::<i32>() {
                assert_eq!(value.map(str::to_owned), (key % 13 != 0).then(|| text(key)));
                key += 1;
            }
        }
        next += i64::from(meta.rows);
    }
    assert_eq!(next, total);
    assert_eq!(forms.first(), Some(&true));
    assert_eq!(forms.last(), Some(&false));
    assert!(files.len() < 6, "{} files", files.len());
    let one = store.commit(TABLE, Role::Current, DatasetVersion(0), adding(files, &[])).await.unwrap();
    let dataset = store.load(TABLE, Role::Current, Some(one.version)).await.unwrap().unwrap();
    assert_eq!(dataset.count_rows(None).await.unwrap() as i64, total);
}

async fn sweeping_spares_what_is_needed(store: ColumnStore) {
    let schema = small_schema();
    let first = write(&store, &schema, 0, vec![small_rows(&(0..50).collect::<Vec<_>>(), 1)], 25).await;
    let one = store.commit(TABLE, Role::Current, DatasetVersion(0), adding(first, &[])).await.unwrap();
    let delete = BTreeMap::from([(one.files[0].file, RoaringBitmap::from_iter([1u32]))]);
    let two = store
        .commit(TABLE, Role::Current, one.version, Commit { delete, files: &one.files, ..Commit::default() })
        .await
        .unwrap();
    let delete = BTreeMap::from([(one.files[0].file, RoaringBitmap::from_iter([2u32]))]);
    let change = Commit { delete, remove: vec![one.files[1].file], files: &two.files, ..Commit::default() };
    let three = store.commit(TABLE, Role::Current, two.version, change).await.unwrap();
    assert_eq!(three.files.len(), 1);
    let staged = write(&store, &schema, 20, vec![small_rows(&[100], 1)], 25).await;
    let keep: HashSet<String> = HashSet::new();
    // All versions are there, and the staged file is ours: nothing may go.
    assert_eq!(store.sweep(TABLE, Role::Current, &keep).await.unwrap(), Swept::default());
    // One that is still read stays, and so do those from the given one on.
    let versions = async || store.list_objects("t1000/current/_versions").await.unwrap().len();
    store.drop_versions(TABLE, Role::Current, two.version, &[one.version].into()).await.unwrap();
    assert_eq!(versions().await, 3);
    store.drop_versions(TABLE, Role::Current, three.version, &[one.version].into()).await.unwrap();
    assert_eq!(versions().await, 2);
    store.pin(TABLE, Role::Current, one.version).await.unwrap();
    store.drop_versions(TABLE, Role::Current, DatasetVersion(99), &HashSet::new()).await.unwrap();
    // The newest version is not dropped, whatever the caller says. The second file and an old vector go.
    let registered: HashSet<String> = [staged[0].path.clone()].into();
    let swept = store.sweep(TABLE, Role::Current, &registered).await.unwrap();
    assert!(swept.objects >= 3, "{swept:?}");
    let pin = store.pin(TABLE, Role::Current, three.version).await.unwrap();
    assert_eq!(read(&store, Some(&pin), &three.files[0], &schema, everything(&schema)).await.num_rows(), 23);
    assert_eq!(read(&store, None, &staged[0], &schema, ScanSpec::columns(vec![0])).await.num_rows(), 1);
    // After a discard nothing is left of a staged file.
    store.discard(TABLE, &staged).await.unwrap();
    let all = store.list_objects("").await.unwrap();
    assert!(all.iter().all(|object| !object.path.contains(&staged[0].path)));
    let next = store.commit(TABLE, Role::Current, three.version, adding(vec![], &three.files)).await.unwrap();
    assert_eq!(next.files, three.files);
    assert_eq!(store.tables().await.unwrap(), [TABLE]);
    store.delete_table(TABLE).await.unwrap();
    assert!(store.tables().await.unwrap().is_empty());
    assert!(store.latest(TABLE, Role::Current).await.unwrap().is_none());
}

async fn a_missing_file_is_not_adopted(store: ColumnStore) {
    let schema = small_schema();
    let files = write(&store, &schema, 0, vec![small_rows(&[1], 1)], 25).await;
    let mut cut = files.clone();
    cut[0].bytes += 1;
    let refused = store.commit(TABLE, Role::Current, DatasetVersion(0), adding(cut, &[])).await;
    assert!(matches!(refused, Err(Error::Corrupt { .. })), "{refused:?}");
    store.discard(TABLE, &files).await.unwrap();
    let refused = store.commit(TABLE, Role::Current, DatasetVersion(0), adding(files, &[])).await;
    assert!(matches!(refused, Err(Error::Missing(_))), "{refused:?}");
    assert!(store.latest(TABLE, Role::Current).await.unwrap().is_none());
}

async fn rows_are_taken_in_any_order(store: ColumnStore) {
    let schema = small_schema();
    let keys: Vec<i64> = (0..9000).collect();
    let files = write(&store, &schema, 0, vec![small_rows(&keys, 3)], FILE_ROWS).await;
    let wanted = [8999u32, 0, 5, 5, 4000, 8192];
    let system = SystemColumns { tx_from: true, tx_to: false, op: true };
    let expected = small_rows(&wanted.map(i64::from), 3);
    // From the file, and then from what a scan has kept.
    for _ in 0..2 {
        let found = store.take(&files[0], &schema, &wanted, &[3, 0, 1], system).await.unwrap();
        assert_eq!(int64s(&found, "_tx_from"), [3; 6]);
        for name in ["c1", "c2", "c4"] {
            assert_eq!(found.column_by_name(name), expected.column_by_name(name), "{name}");
        }
        let one = store.take(&files[0], &schema, &[8999], &[0, 1], system).await.unwrap();
        assert_eq!(
            one.column_by_name("c2").unwrap().as_ref(),
            expected.column_by_name("c2").unwrap().slice(0, 1).as_ref()
        );
        read(&store, None, &files[0], &schema, everything(&schema)).await;
    }
    assert_eq!(store.take(&files[0], &schema, &[], &[0], system).await.unwrap().num_rows(), 0);
    assert!(matches!(store.take(&files[0], &schema, &[9000], &[0], system).await, Err(Error::InvalidInput(_))));
}

async fn versions_are_found_again(store: ColumnStore) {
    let schema = small_schema();
    let files = write(&store, &schema, 0, vec![small_rows(&[1, 2], 1)], 25).await;
    let commit = Commit { properties: BTreeMap::from([("x".into(), "1".into())]), ..adding(files, &[]) };
    let one = store.commit(TABLE, Role::Current, DatasetVersion(0), commit).await.unwrap();
    let latest = store.latest(TABLE, Role::Current).await.unwrap().unwrap();
    assert_eq!((latest.version, latest.properties), (one.version, BTreeMap::from([("x".to_owned(), "1".to_owned())])));
    assert!(matches!(store.pin(TABLE, Role::Current, DatasetVersion(7)).await, Err(Error::Missing(_))));
    store.check_owner().await.unwrap();
    let objects = store.list_objects("").await.unwrap();
    assert!(objects.iter().any(|object| object.path == "OWNER"));
    for object in &objects {
        assert_eq!(store.read_object(&object.path).await.unwrap().len() as u64, object.bytes);
    }
    store.write_object("backup/x", vec![1, 2].into()).await.unwrap();
    assert_eq!(store.read_object("backup/x").await.unwrap().as_ref(), [1, 2]);
}

async fn an_empty_dataset_can_be_committed(store: ColumnStore) {
    let schema = small_schema();
    for role in Role::ALL {
        let properties = BTreeMap::from([("cut".to_owned(), "1".to_owned())]);
        let one = store
            .commit(TABLE, role, DatasetVersion(0), Commit { properties: properties.clone(), ..Commit::default() })
            .await
            .unwrap();
        assert!(one.files.is_empty());
        assert_eq!(store.latest(TABLE, role).await.unwrap().unwrap().properties, properties);
        if role == Role::Current {
            let files = write(&store, &schema, 0, vec![small_rows(&[1, 2], 1)], 25).await;
            let two = store.commit(TABLE, role, one.version, adding(files, &[])).await.unwrap();
            let pin = store.pin(TABLE, role, two.version).await.unwrap();
            assert_eq!(read(&store, Some(&pin), &two.files[0], &schema, everything(&schema)).await.num_rows(), 2);
        }
    }
}

async fn bad_rows_leave_nothing_behind(store: ColumnStore) {
    let schema = small_schema();
    let good = small_rows(&(0..40).collect::<Vec<_>>(), 1);
    let bad: Vec<Vec<Result<RecordBatch, base::BoxError>>> = vec![
        vec![Ok(good.clone()), Err("the source broke".into())],
        vec![Ok(good.clone()), Ok(good.clone())],
        vec![Ok(good.project(&[0, 1]).unwrap())],
        vec![Ok(small_rows(&[2, 1], 1))],
    ];
    for rows in bad {
        let spec = WriteSpec { max_rows_per_file: 16, ..WriteSpec::stored() };
        let written = store.write_files(&schema, Role::Current, ids(0), futures::stream::iter(rows), spec).await;
        assert!(matches!(written, Err(Error::Rows(_) | Error::InvalidInput(_))), "{written:?}");
        assert_eq!(store.list_objects("t1000").await.unwrap(), []);
        assert!(store.inner.fresh.lock().is_empty());
    }
}

#[tokio::test]
async fn a_foreign_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("columns").to_str().unwrap().to_owned();
    let open = |cluster: &'static str, epoch| ColumnStore::open(&path, ColumnOptions::new(cluster, epoch));
    drop(open("a", 1).await.unwrap());
    let refused = ColumnStore::open(&format!("file://{path}"), ColumnOptions::new("b", 1)).await;
    assert!(matches!(&refused, Err(Error::Foreign { found_cluster, .. }) if found_cluster == "a"), "{refused:?}");
    let later = open("a", 3).await.unwrap();
    later.check_owner().await.unwrap();
    drop(later);
    assert!(matches!(open("a", 2).await, Err(Error::Foreign { found_epoch: 3, .. })));
    let owner = open("a", 3).await.unwrap();
    owner.write_object("OWNER", store_owner("thief", 9)).await.unwrap();
    for refused in [
        owner.check_owner().await,
        owner.delete_table(TABLE).await,
        owner.sweep(TABLE, Role::Current, &HashSet::new()).await.map(drop),
        owner.drop_versions(TABLE, Role::Current, DatasetVersion(9), &HashSet::new()).await,
    ] {
        assert!(matches!(refused, Err(Error::Foreign { .. })), "{refused:?}");
    }
    assert!(matches!(ColumnStore::open(&path, ColumnOptions::new("a", 3)).await, Err(Error::Locked { .. })));
    assert!(ColumnStore::open("ftp://somewhere", options()).await.is_err());
}

fn store_owner(cluster: &str, epoch: u64) -> bytes::Bytes {
    encode_owner(cluster, epoch)
}

/// An epoch is raised by a conditional update where the store has no lock.
#[tokio::test]
async fn a_later_epoch_takes_over_a_bucket() {
    let Ok(url) = std::env::var("LATTICE_TEST_S3_URL") else { return };
    let url = format!("{}/owner-{}", url.trim_end_matches('/'), uuid::Uuid::new_v4().simple());
    let old = ColumnStore::open(&url, ColumnOptions::new("a", 1)).await.unwrap();
    assert!(old.is_shared());
    let new = ColumnStore::open(&url, ColumnOptions::new("a", 2)).await.unwrap();
    new.check_owner().await.unwrap();
    assert!(matches!(old.check_owner().await, Err(Error::Foreign { found_epoch: 2, .. })));
    assert!(matches!(ColumnStore::open(&url, ColumnOptions::new("b", 9)).await, Err(Error::Foreign { .. })));
}

#[tokio::test]
async fn everything_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let schema = small_schema();
    let store = in_folder(&dir).await;
    let keys: Vec<i64> = (0..300).collect();
    let files = write(&store, &schema, 0, vec![small_rows(&keys, 1)], 100).await;
    let one = store.commit(TABLE, Role::Current, DatasetVersion(0), adding(files, &[])).await.unwrap();
    let delete = BTreeMap::from([(one.files[1].file, RoaringBitmap::from_iter([7u32]))]);
    let two = store
        .commit(TABLE, Role::Current, one.version, Commit { delete, files: &one.files, ..Commit::default() })
        .await
        .unwrap();
    let orphan = write(&store, &schema, 50, vec![small_rows(&[1], 1)], 100).await;
    drop(store);
    let store = in_folder(&dir).await;
    let latest = store.latest(TABLE, Role::Current).await.unwrap().unwrap();
    assert_eq!(latest.version, two.version);
    let found = store.files_at(TABLE, Role::Current, latest.version, &[]).await.unwrap();
    assert_eq!(found.files, two.files);
    let pin = store.pin(TABLE, Role::Current, latest.version).await.unwrap();
    let model: Model = keys.iter().filter(|key| **key != 107).map(|key| (*key, 1)).collect();
    check_against(&store, &pin, &found.files, &schema, &model).await;
    // A file that no version and nobody else knows is swept now.
    let keep: HashSet<String> = found.files.iter().map(|meta| meta.path.clone()).collect();
    assert_eq!(store.sweep(TABLE, Role::Current, &keep).await.unwrap().objects, 2);
    assert!(matches!(store.stats(TABLE, &orphan[0]).await, Err(Error::Missing(_))));
}

/// The rows stop coming, and the caller goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_write_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let store = in_folder(&dir).await;
    let schema = small_schema();
    let keys: Vec<i64> = (0..45).collect();
    let rows = futures::StreamExt::chain(rows_of(vec![small_rows(&keys, 1)]), futures::stream::pending());
    let spec = WriteSpec { max_rows_per_file: 10, ..WriteSpec::stored() };
    let write = store.write_files(&schema, Role::Current, ids(0), rows, spec);
    let cancelled = tokio::time::timeout(std::time::Duration::from_millis(500), write).await;
    assert!(cancelled.is_err(), "it waits for rows");
    for _ in 0..1000 {
        if store.list_objects("t1000").await.unwrap().is_empty() && store.inner.fresh.lock().is_empty() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("{:?} stay", store.list_objects("t1000").await.unwrap());
}

/// A full disk is told apart from other failures, and the failed write leaves no file.
#[tokio::test]
async fn a_full_disk_is_reported() {
    use base::Classify;
    let disk = SimDisk::new();
    let options = ColumnOptions { disk: Arc::new(disk.clone()), ..options() };
    let store = ColumnStore::open("/columns", options).await.unwrap();
    let schema = small_schema();
    let kept = write(&store, &schema, 0, vec![small_rows(&[1], 1)], 10).await;
    let objects = store.list_objects("").await.unwrap();
    disk.set_capacity(Some(64 << 10));
    let keys: Vec<i64> = (0..60_000).collect();
    let spec = WriteSpec { max_rows_per_file: 10_000, ..WriteSpec::stored() };
    let full = store.write_files(&schema, Role::Current, ids(10), rows_of(vec![small_rows(&keys, 1)]), spec).await;
    let error = full.unwrap_err();
    assert_eq!((error.kind(), error.sqlstate()), (base::ErrorKind::Exhausted, base::SqlState::DISK_FULL), "{error:?}");
    assert_eq!(store.list_objects("").await.unwrap(), objects);
    disk.set_capacity(None);
    store.commit(TABLE, Role::Current, DatasetVersion(0), adding(kept, &[])).await.unwrap();
}

/// A power cut at any moment leaves the old version or the new one, each complete.
#[tokio::test]
async fn a_crash_leaves_whole_versions() {
    let schema = small_schema();
    let work = async |disk: &SimDisk, acknowledged: &mut u64| -> Result<()> {
        let options = ColumnOptions { disk: Arc::new(disk.clone()), ..options() };
        let store = ColumnStore::open("/columns", options).await?;
        let mut files: Vec<FileMeta> = Vec::new();
        let mut version = DatasetVersion(0);
        for round in 1..=3i64 {
            let rows = small_rows(&[round * 10, round * 10 + 1], round);
            let add = store
                .write_files(&schema, Role::Current, ids(round as u64 * 10), rows_of(vec![rows]), WriteSpec::stored())
                .await?;
            let delete =
                files.last().map(|meta: &FileMeta| (meta.file, RoaringBitmap::from_iter([0u32]))).into_iter().collect();
            let committed = store
                .commit(TABLE, Role::Current, version, Commit { add, delete, files: &files, ..Commit::default() })
                .await?;
            (version, files) = (committed.version, committed.files);
            *acknowledged = version.0;
        }
        Ok(())
    };
    let check = async |cut: u64| -> bool {
        let disk = SimDisk::new();
        disk.power_off_after(cut);
        let mut acknowledged = 0;
        let finished = work(&disk, &mut acknowledged).await.is_ok();
        disk.crash(cut);
        let options = ColumnOptions { disk: Arc::new(disk.clone()), ..options() };
        let store = ColumnStore::open("/columns", options).await.unwrap();
        let latest = store.latest(TABLE, Role::Current).await.unwrap();
        let found = latest.map_or(0, |latest| latest.version.0);
        assert!(found >= acknowledged, "cut {cut}: version {found} where {acknowledged} was acknowledged");
        if found > 0 {
            let version = DatasetVersion(found);
            let files = store.files_at(TABLE, Role::Current, version, &[]).await.unwrap().files;
            let pin = store.pin(TABLE, Role::Current, version).await.unwrap();
            let model: Model = (1..=found as i64)
                .flat_map(|round| [(round * 10, round), (round * 10 + 1, round)])
                .filter(|(key, round)| *round == found as i64 || key % 10 != 0)
                .collect();
            check_against(&store, &pin, &files, &schema, &model).await;
        }
        finished
    };
    // All at once, because each waits a while for a disk that does not come back.
    let finished = futures::future::join_all((0..240).step_by(3).map(check)).await;
    assert!(finished.first() == Some(&false) && finished.last() == Some(&true), "{finished:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Any ranges, masks, deletion vectors and filters: a scan returns what a naive reading returns.
    #[test]
    fn scans_match_a_model(
        cuts in proptest::collection::btree_set(0u32..20_000, 0..8),
        runs in proptest::collection::vec((0u32..20_000, 1u32..3_000), 0..4),
        scattered in proptest::collection::vec(0u32..20_000, 0..200),
        step in 1u32..60,
        bound in 0i64..45_000,
        batch_rows in 500u32..9_000,
        cached in any::<bool>(),
        conditions in proptest::collection::vec((0usize..3, 1i64..40), 0..4),
    ) {
        let context = &*SCANS;
        // Blocks are kept for batches of at least their size.
        let batch_rows = if cached { batch_rows.max(context.store.inner.options.column_block_rows) } else { batch_rows };
        let cuts: Vec<u32> = cuts.into_iter().collect();
        let ranges: Vec<std::ops::Range<u32>> = cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
        let mut mask: RoaringBitmap = scattered.into_iter().collect();
        for (start, rows) in runs {
            mask.insert_range(start..start + rows);
        }
        if step > 30 {
            mask |= (0..20_000u32).step_by(step as usize).collect::<RoaringBitmap>();
        }
        let literal: ArrayRef = Arc::new(Int64Array::from(vec![bound]));
        let zones = ZoneFilter::all().and_compare(ZoneColumn::Column(ColumnId(1)), CompareOp::Ge, literal);
        let hidden = Arc::new(mask.clone() | (0..20_000u32).filter(|row| row % 50 == 7).collect::<RoaringBitmap>());
        let filters = conditions.iter().map(|&(kind, by)| -> Arc<dyn RowFilter> {
            let columns = match kind { 0 => vec![0], 1 => vec![1], _ => vec![3, 0] };
            Arc::new(Condition { kind, by, columns, hidden: hidden.clone() })
        });
        let spec = ScanSpec {
            filters: filters.collect(),
            ranges: (!ranges.is_empty()).then(|| ranges.clone()),
            mask: Some(Arc::new(mask.clone())),
            zones: Some(zones),
            batch_rows,
            ..everything(&context.schema)
        };
        let found = context.runtime.block_on(read(&context.store, Some(&context.pin), &context.meta, &context.schema, spec));
        let offsets = found.column_by_name("_offset").unwrap().as_primitive::<arrow::datatypes::UInt32Type>().values().to_vec();
        let wanted: Vec<u32> = (0..20_000u32)
            .filter(|row| ranges.is_empty() || ranges.iter().any(|range| range.contains(row)))
            .filter(|row| !mask.contains(*row) && row % 50 != 7)
            .collect();
        // Whole zones are skipped, and no others: each holds 8192 keys, two apart.
        let at_least = (bound + 1) / 2;
        let first = if at_least < 20_000 { at_least / 8192 * 8192 } else { 20_000 } as u32;
        let pass = |row: &u32| {
            let key = i64::from(*row) * 2;
            let text = (key % 11 != 0).then(|| format!("text {} of 1", key % 1000));
            let number = (key % 5 != 0).then_some(key);
            conditions.iter().all(|&(kind, by)| Condition::passes(kind, by, key, text.as_deref(), number.is_none()))
        };
        let expected: Vec<u32> = wanted.into_iter().filter(|row| *row >= first).filter(pass).collect();
        prop_assert!(offsets == expected, "{} rows where {} were expected", offsets.len(), expected.len());
        let keys = int64s(&found, "c1");
        prop_assert!(offsets.iter().zip(&keys).all(|(row, key)| i64::from(*row) * 2 == *key));
    }
}

/// A condition on a key, on a text, or on a number and a key; it fails on rows that nobody should see.
#[derive(Debug)]
struct Condition {
    kind: usize,
    by: i64,
    columns: Vec<usize>,
    hidden: Arc<RoaringBitmap>,
}

impl Condition {
    fn passes(kind: usize, by: i64, key: i64, text: Option<&str>, number_is_null: bool) -> bool {
        match kind {
            0 => key % by == 0,
            // Of odd conditions NULL passes too.
            1 => text.map_or(by % 2 == 1, |text| text.len() as i64 % 5 != by % 5),
            _ => number_is_null || key % by != 0,
        }
    }
}

impl RowFilter for Condition {
    fn columns(&self) -> &[usize] {
        &self.columns
    }

    fn test(&self, columns: &[ArrayRef], rows: usize) -> Result<Option<BooleanArray>, base::BoxError> {
        if self.kind == 1 {
            let texts = columns[0].as_string::<i32>();
            return Ok(Some(
                (0..rows)
                    .map(|row| Some(Self::passes(1, self.by, 0, texts.is_valid(row).then(|| texts.value(row)), false)))
                    .collect(),
            ));
        }
        let keys = columns[columns.len() - 1].as_primitive::<arrow::datatypes::Int64Type>();
        if keys.values().iter().any(|key| self.hidden.contains((key / 2) as u32)) {
            return Err("a hidden row was tested".into());
        }
        let passed = |row: usize| Self::passes(self.kind, self.by, keys.value(row), None, columns[0].is_null(row));
        if (0..rows).all(passed) {
            return Ok(None);
        }
        // NULL is no.
        Ok(Some(
            (0..rows)
                .map(|row| {
                    if passed(row) {
                        Some(true)
                    } else if row % 2 == 0 {
                        Some(false)
                    } else {
                        None
                    }
                })
                .collect(),
        ))
    }
}

struct Scans {
    runtime: tokio::runtime::Runtime,
    store: ColumnStore,
    schema: Arc<StoredSchema>,
    pin: Arc<DatasetPin>,
    meta: FileMeta,
}

static SCANS: std::sync::LazyLock<Scans> = std::sync::LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let schema = small_schema();
    let (store, pin, meta) = runtime.block_on(async {
        // Few bytes, so that blocks come and go.
        let options = ColumnOptions { column_block_rows: 3000, column_cache_bytes: 400_000, ..options() };
        let store = ColumnStore::open("memory://", options).await.unwrap();
        let keys: Vec<i64> = (0..20_000).map(|n| n * 2).collect();
        let files = write(&store, &schema, 0, vec![small_rows(&keys, 1)], FILE_ROWS).await;
        let one = store.commit(TABLE, Role::Current, DatasetVersion(0), adding(files, &[])).await.unwrap();
        let delete = BTreeMap::from([(one.files[0].file, (0..20_000u32).filter(|row| row % 50 == 7).collect())]);
        let two = store
            .commit(TABLE, Role::Current, one.version, Commit { delete, files: &one.files, ..Commit::default() })
            .await
            .unwrap();
        let pin = store.pin(TABLE, Role::Current, two.version).await.unwrap();
        (store, pin, two.files[0].clone())
    });
    Scans { runtime, store, schema, pin, meta }
});

/// Names the types a reader may ask about, so that a type that is added is not forgotten here.
#[test]
fn the_types_are_all_there() {
    let (schema, _) = all_types(3);
    let has = |data_type: &DataType| schema.columns.iter().any(|column| &column.data_type == data_type);
    assert!(has(&DataType::Interval(IntervalUnit::MonthDayNano)));
    assert!(has(&DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))));
    assert_eq!(schema.columns.len(), 1 + 16 * 2 + 32);
}

/// Everything of a dataset is compared with what is said of it, and each kind of damage is found where it is.
#[tokio::test]
async fn damage_is_found_by_verifying() {
    let dir = tempfile::tempdir().unwrap();
    let schema = small_schema();
    let keys: Vec<i64> = (0..20_000).collect();
    let (files, version) = {
        let store = in_folder(&dir).await;
        let written =
            write(&store, &schema, 0, vec![small_rows(&keys[..12_000], 7), small_rows(&keys[12_000..], 8)], 15_000)
                .await;
        assert_eq!(written.len(), 2);
        let first = store.commit(TABLE, Role::Current, DatasetVersion(0), adding(written, &[])).await.unwrap();
        let delete = BTreeMap::from([(first.files[0].file, RoaringBitmap::from_iter([3, 9]))]);
        let commit = Commit { delete, files: &first.files, ..Commit::default() };
        let second = store.commit(TABLE, Role::Current, first.version, commit).await.unwrap();
        (second.files, second.version)
    };
    let shared: Vec<Arc<FileMeta>> = files.iter().cloned().map(Arc::new).collect();
    let all = |changed: Option<(String, Vec<u8>)>| {
        let (dir, schema, shared, files) = (dir.path().to_owned(), schema.clone(), shared.clone(), files.clone());
        async move {
            // A new store has no caches.
            let store = ColumnStore::open(dir.join("columns").to_str().unwrap(), options()).await.unwrap();
            let mut before = None;
            if let Some((path, bytes)) = changed {
                before = Some((path.clone(), store.read_object(&path).await.unwrap()));
                store.write_object(&path, bytes.into()).await.unwrap();
            }
            let mut findings = store.verify_version(TABLE, Role::Current, version, &shared).await;
            for meta in &files {
                findings.extend(store.verify_file(&schema, meta).await.0);
            }
            if let Some((path, bytes)) = before {
                store.write_object(&path, bytes).await.unwrap();
            }
            findings
        }
    };
    assert_eq!(all(None).await, []);
    let store = in_folder(&dir).await;
    let listed = store.list_objects("").await.unwrap();
    let objects = store.objects_of(TABLE, Role::Current, version, &shared).await.unwrap();
    assert!(objects.iter().all(|path| listed.iter().any(|object| object.path == *path)), "{objects:?}");
    let read = |path: &str| std::fs::read(dir.path().join("columns").join(path)).unwrap();
    let sidecar = format!("t1000/current/_stats/{}.stats", files[0].path);
    let (honest, data) = (read(&sidecar), format!("t1000/current/data/{}", files[1].path));
    drop(store);
    // Any byte of a data file.
    let sound = read(&data);
    for at in (0..sound.len()).step_by(sound.len() / 7) {
        let mut bytes = sound.clone();
        bytes[at] ^= 4;
        let findings = all(Some((data.clone(), bytes))).await;
        assert!(findings.len() == 1 && findings[0].path == data, "byte {at}: {findings:?}");
    }
    let findings = all(Some((data.clone(), sound[..sound.len() - 1].to_vec()))).await;
    assert!(findings.iter().any(|found| found.path == data && found.what.contains("bytes where")), "{findings:?}");
    // A sidecar that is damaged, and one that lies: the statistics of other rows, with a right checksum.
    let mut bytes = honest.clone();
    bytes[40] ^= 1;
    let findings = all(Some((sidecar.clone(), bytes))).await;
    assert!(
        findings.len() == 1 && findings[0].path == sidecar && findings[0].what.contains("checksum"),
        "{findings:?}"
    );
    let lying = {
        let other = tempfile::tempdir().unwrap();
        let store = in_folder(&other).await;
        let written = write(&store, &schema, 0, vec![small_rows(&keys[..15_000], 9)], 15_000).await;
        let lies = store.stats_of(TABLE, Role::Current, &written[0].path).await.unwrap();
        let real = stats::decode("sidecar", honest.clone().into()).unwrap();
        stats::encode(&lies.clone_for_test(files[0].clone(), real.checksum()))
    };
    let findings = all(Some((sidecar.clone(), lying))).await;
    assert!(findings.iter().any(|found| found.path == sidecar && found.what.contains("differ")), "{findings:?}");
    // A version, its transaction and its deletion vectors.
    for folder in ["_versions", "_deletions"] {
        let name = objects.iter().find(|path| path.contains(folder)).unwrap();
        let half = read(name).len() / 2;
        let findings = all(Some((name.clone(), read(name)[..half].to_vec()))).await;
        assert!(findings.iter().any(|found| found.path.contains("version")), "{folder}: {findings:?}");
    }
    // The log says something else.
    let store = in_folder(&dir).await;
    let mut fewer = shared.clone();
    let gone = fewer.pop().unwrap();
    let findings = store.verify_version(TABLE, Role::Current, version, &fewer).await;
    assert!(findings.len() == 1 && findings[0].what.contains(&gone.path), "{findings:?}");
    let mut other = FileMeta::clone(&shared[0]);
    other.state = FileState::Committed { fragment: 0, deleted: 1 };
    let findings = store.verify_version(TABLE, Role::Current, version, &[Arc::new(other), shared[1].clone()]).await;
    assert!(findings.len() == 1 && findings[0].what.contains("are deleted"), "{findings:?}");
    let findings = store.verify_version(TABLE, Role::Current, DatasetVersion(77), &shared).await;
    assert!(findings.len() == 1 && findings[0].what.contains("cannot be opened"), "{findings:?}");
    let mut other = files[0].clone();
    other.max_ts = CommitTs(99);
    let (findings, _) = store.verify_file(&schema, &other).await;
    assert!(findings.len() == 1 && findings[0].what.contains("greatest commit"), "{findings:?}");
}
