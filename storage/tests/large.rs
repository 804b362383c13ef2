//! Large transactions beside small ones: conflicts on the very key and on no other, locks, and what becomes of staged
//! files.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::*;
use lattice_storage as storage;
use storage::{BeginOptions, Error, Store, StoredSchema, Transaction};

/// What moves rows between two commits.
#[derive(Clone, Copy, Debug)]
enum Moves {
    Nothing,
    Flush,
    FlushAndMerge,
}

const MOVES: [Moves; 3] = [Moves::Nothing, Moves::Flush, Moves::FlushAndMerge];

async fn move_rows(store: &Store, schema: &Arc<StoredSchema>, moves: Moves) {
    if !matches!(moves, Moves::Nothing) {
        store.flush(None).await.expect("flush");
    }
    if matches!(moves, Moves::FlushAndMerge) {
        store.merge(schema.table).await.expect("merge");
    }
}

/// Writes rows to staged files.
async fn load(transaction: &Transaction, schema: &Arc<StoredSchema>, ids: impl Iterator<Item = i64>, value: &str) {
    let all: Vec<(i64, &str)> = ids.map(|id| (id, value)).collect();
    let mut writer = transaction.bulk(schema).expect("bulk");
    writer.write(rows(schema, &all)).await.expect("write");
    writer.finish().await.expect("finish");
}

async fn insert(transaction: &Transaction, schema: &Arc<StoredSchema>, id: i64, value: &str) {
    transaction.insert(schema, &rows(schema, &[(id, value)])).await.expect("insert");
}

/// A table with some small files in it, far away from the keys of the tests.
async fn table(path: &Path) -> (Store, Arc<StoredSchema>) {
    let schema = schema();
    let store = open(path).await;
    create(&store, &schema).await;
    for id in [5_000, 6_000] {
        let setup = begin(&store).await;
        insert(&setup, &schema, id, "setup").await;
        setup.commit().await.expect("commit");
        store.flush(None).await.expect("flush");
    }
    (store, schema)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_load_and_small_writers_on_other_keys_do_not_conflict() {
    for moves in MOVES {
        let folder = tempfile::tempdir().expect("folder");
        let (store, schema) = table(folder.path()).await;
        let mut expected = BTreeMap::from([(5_000, "setup".to_owned()), (6_000, "setup".to_owned())]);

        // The load commits while a small writer is under way, with keys in between.
        let small = begin(&store).await;
        insert(&small, &schema, 101, "small").await;
        let large = begin(&store).await;
        load(&large, &schema, (0..300).filter(|id| id % 2 == 0), "large").await;
        large.commit().await.expect("commit");
        move_rows(&store, &schema, moves).await;
        insert(&small, &schema, 103, "small").await;
        small.commit().await.unwrap_or_else(|error| panic!("{moves:?}: {error}"));
        expected.extend((0..300).filter(|id| id % 2 == 0).map(|id| (id, "large".to_owned())));
        expected.extend([(101, "small".to_owned()), (103, "small".to_owned())]);
        assert_eq!(now(&store, &schema).await, expected, "{moves:?}");

        // Small writers commit while a load is under way: new rows, changed ones and removed ones.
        let large = begin(&store).await;
        load(&large, &schema, (0..300).filter(|id| id % 2 == 1 && *id != 101 && *id != 103).take(100), "odd").await;
        let small = begin(&store).await;
        insert(&small, &schema, 299, "late").await;
        update(&small, &schema, &[(10, "changed")]).await.expect("update");
        delete(&small, &schema, &[12, 101]).await.expect("delete");
        small.commit().await.expect("commit");
        move_rows(&store, &schema, moves).await;
        let second = begin(&store).await;
        load(&second, &schema, (1000..1300).filter(|id| id % 2 == 1).chain([250_001]), "far").await;
        second.commit().await.expect("commit");
        large.commit().await.unwrap_or_else(|error| panic!("{moves:?}: {error}"));
        expected.extend(
            (0..300).filter(|id| id % 2 == 1 && *id != 101 && *id != 103).take(100).map(|id| (id, "odd".to_owned())),
        );
        expected.extend((1000..1300).filter(|id| id % 2 == 1).chain([250_001]).map(|id| (id, "far".to_owned())));
        expected.extend([(299, "late".to_owned()), (10, "changed".to_owned())]);
        expected.remove(&12);
        expected.remove(&101);
        assert_eq!(now(&store, &schema).await, expected, "{moves:?}");

        // Two loads with interleaved keys.
        let (first, second) = (begin(&store).await, begin(&store).await);
        load(&first, &schema, (2000..2400).filter(|id| id % 2 == 0), "first").await;
        load(&second, &schema, (2000..2400).filter(|id| id % 2 == 1), "second").await;
        first.commit().await.expect("commit");
        move_rows(&store, &schema, moves).await;
        second.commit().await.unwrap_or_else(|error| panic!("{moves:?}: {error}"));
        assert_eq!(now(&store, &schema).await.range(2000..2400).count(), 400, "{moves:?}");
        assert_eq!(store.stats().conflicts, 0, "{moves:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_and_small_writers_conflict_on_the_very_key() {
    for moves in MOVES {
        let folder = tempfile::tempdir().expect("folder");
        let (store, schema) = table(folder.path()).await;
        let refused = |outcome: Result<base::CommitTs, Error>, what: &str| {
            assert!(matches!(outcome, Err(Error::WriteConflict { .. })), "{moves:?}, {what}: {outcome:?}");
        };

        let small = begin(&store).await;
        insert(&small, &schema, 100, "small").await;
        let large = begin(&store).await;
        load(&large, &schema, (0..300).filter(|id| id % 2 == 0), "large").await;
        large.commit().await.expect("commit");
        move_rows(&store, &schema, moves).await;
        refused(small.commit().await, "an insert of a loaded key");

        let large = begin(&store).await;
        load(&large, &schema, (0..300).filter(|id| id % 2 == 1), "large").await;
        let small = begin(&store).await;
        insert(&small, &schema, 151, "small").await;
        small.commit().await.expect("commit");
        move_rows(&store, &schema, moves).await;
        refused(large.commit().await, "a load of an inserted key");

        let (first, second) = (begin(&store).await, begin(&store).await);
        load(&first, &schema, (2000..2400).filter(|id| id % 2 == 0), "first").await;
        load(&second, &schema, (2000..2400).filter(|id| id % 2 == 1).chain([2_500]), "second").await;
        let third = begin(&store).await;
        load(&third, &schema, (2001..2400).step_by(100).map(|id| id + 1), "third").await;
        first.commit().await.expect("commit");
        second.commit().await.expect("commit");
        move_rows(&store, &schema, moves).await;
        refused(third.commit().await, "a load of loaded keys");

        let all = now(&store, &schema).await;
        assert_eq!(
            (all[&100].as_str(), all[&151].as_str(), all[&2002].as_str()),
            ("large", "small", "first"),
            "{moves:?}"
        );
        assert!(!all.contains_key(&1), "{moves:?}: a refused load leaves nothing");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_writers_never_conflict_with_loads_that_never_stop() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, schema) = table(folder.path()).await;
    let loader = {
        let (store, schema) = (store.clone(), schema.clone());
        tokio::spawn(async move {
            for round in 0..12_i64 {
                let large = begin(&store).await;
                load(&large, &schema, (0..200).map(|n| n * 100 + 1 + round), "large").await;
                large.commit().await.expect("the load commits");
            }
        })
    };
    let writers: Vec<_> = (0..3_i64)
        .map(|writer| {
            let (store, schema) = (store.clone(), schema.clone());
            tokio::spawn(async move {
                for n in 0..60_i64 {
                    let small = begin(&store).await;
                    insert(&small, &schema, n * 100 + 50 + writer, "small").await;
                    small.commit().await.expect("the small writer commits");
                }
            })
        })
        .collect();
    loader.await.expect("loader");
    for writer in writers {
        writer.await.expect("writer");
    }
    assert_eq!(now(&store, &schema).await.len(), 2 + 12 * 200 + 3 * 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_does_not_abort_a_large_update() {
    let folder = tempfile::tempdir().expect("folder");
    let schema = schema();
    let mut options = quiet(folder.path());
    options.transaction_spill_bytes = 20_000;
    let store = Store::open(runtime::Runtime::real(), options).await.expect("open");
    create(&store, &schema).await;
    for part in 0..4_i64 {
        let setup = begin(&store).await;
        load(&setup, &schema, part * 200..part * 200 + 200, "old").await;
        setup.commit().await.expect("commit");
        store.flush(None).await.expect("flush");
    }
    let large = begin(&store).await;
    for chunk in (0..800_i64).collect::<Vec<_>>().chunks(100) {
        let changes: Vec<(i64, &str)> = chunk.iter().map(|id| (*id, "new")).collect();
        update(&large, &schema, &changes).await.expect("update");
    }
    // The rows that the update read lie elsewhere now.
    store.merge(schema.table).await.expect("merge");
    assert_eq!(store.table_info(schema.table).expect("info").files, 1, "the files were merged");
    let small = begin(&store).await;
    insert(&small, &schema, 1000, "small").await;
    small.commit().await.expect("commit");
    large.commit().await.expect("the update commits");
    for _ in 0..2 {
        let all = now(&store, &schema).await;
        assert_eq!(all.len(), 801);
        assert!(all.range(..1000).all(|(_, value)| value == "new"));
        store.flush(None).await.expect("flush");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_of_a_large_update_is_locked() {
    const ROWS: i64 = 40_000;
    let folder = tempfile::tempdir().expect("folder");
    let schema = schema();
    let mut options = quiet(folder.path());
    options.transaction_spill_bytes = 1 << 20;
    let store = Store::open(runtime::Runtime::real(), options).await.expect("open");
    create(&store, &schema).await;
    let setup = begin(&store).await;
    load(&setup, &schema, 0..ROWS, "old").await;
    setup.commit().await.expect("commit");
    let large = begin(&store).await;
    for chunk in (0..ROWS).collect::<Vec<_>>().chunks(8_000) {
        let changes: Vec<(i64, &str)> = chunk.iter().map(|id| (*id, "new")).collect();
        update(&large, &schema, &changes).await.expect("update");
    }
    for id in [0, 1, 17_000, 32_767, 32_768, ROWS - 1] {
        let options = BeginOptions { lock_timeout_ms: Some(20), ..BeginOptions::default() };
        let small = store.begin(options).await.expect("begin");
        let refused = update(&small, &schema, &[(id, "small")]).await;
        assert!(matches!(refused, Err(Error::LockTimeout { .. })), "row {id}: {refused:?}");
    }
    let waiting = {
        let (store, schema) = (store.clone(), schema.clone());
        tokio::spawn(async move {
            let small = begin(&store).await;
            update(&small, &schema, &[(17_000, "small")]).await?;
            small.commit().await
        })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    large.rollback();
    waiting.await.expect("ends").expect("the lock comes free");
    let all = now(&store, &schema).await;
    assert_eq!(all.values().filter(|value| *value == "old").count(), usize::try_from(ROWS).expect("small") - 1);
    assert_eq!(all[&17_000], "small");
}

/// Waits until so many data files of the table are there.
async fn data_files(folder: &Path, expected: usize, what: &str) {
    let data = folder.join("columns/t1000/current/data");
    let count = || std::fs::read_dir(&data).map_or(0, |entries| entries.count());
    for _ in 0..200 {
        if count() == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: {} data files, not {expected}", count());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn staged_files_of_a_rollback_are_removed() {
    let folder = tempfile::tempdir().expect("folder");
    let schema = schema();
    let mut options = quiet(folder.path());
    options.transaction_spill_bytes = 20_000;
    let store = Store::open(runtime::Runtime::real(), options).await.expect("open");
    create(&store, &schema).await;
    let setup = begin(&store).await;
    load(&setup, &schema, 0..500, "old").await;
    setup.commit().await.expect("commit");
    data_files(folder.path(), 1, "a committed load").await;

    let rolled_back = begin(&store).await;
    load(&rolled_back, &schema, 1000..1500, "never").await;
    let all: Vec<(i64, &str)> = (0..500).map(|id| (id, "never")).collect();
    update(&rolled_back, &schema, &all).await.expect("update");
    assert!(
        std::fs::read_dir(folder.path().join("columns/t1000/current/data")).expect("files").count() > 2,
        "it spilled"
    );
    rolled_back.rollback();
    data_files(folder.path(), 1, "rollback").await;

    let dropped = begin(&store).await;
    load(&dropped, &schema, 1000..1500, "never").await;
    drop(dropped);
    data_files(folder.path(), 1, "a transaction that is dropped").await;

    let partly = begin(&store).await;
    load(&partly, &schema, 2000..2100, "kept").await;
    let point = partly.savepoint().expect("savepoint");
    load(&partly, &schema, 3000..3100, "never").await;
    partly.rollback_to(point).expect("rollback to");
    partly.commit().await.expect("commit");
    data_files(folder.path(), 2, "rollback to a savepoint").await;

    let duplicate = begin(&store).await;
    let mut writer = duplicate.bulk(&schema).expect("bulk");
    writer.write(rows(&schema, &[(2050, "twice")])).await.expect("write");
    assert!(matches!(writer.finish().await, Err(Error::DuplicateKey { .. })));
    data_files(folder.path(), 2, "a load with a duplicate").await;

    let (first, second) = (begin(&store).await, begin(&store).await);
    load(&first, &schema, 4000..4010, "first").await;
    load(&second, &schema, 4000..4010, "second").await;
    first.commit().await.expect("commit");
    assert!(matches!(second.commit().await, Err(Error::WriteConflict { .. })));
    data_files(folder.path(), 3, "a load that lost").await;
    store.flush(None).await.expect("flush");
    let all = now(&store, &schema).await;
    assert_eq!(all.len(), 500 + 100 + 10);
    assert!(!all.values().any(|value| value == "never" || value == "second"));
}
