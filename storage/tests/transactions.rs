//! Transactions over both tiers: conflicts, uniqueness, savepoints, own writes, spilling, restart.

mod common;

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Int64Type};
use base::{ColumnId, SchemaVersion, TableId};
use codec::{ROW_NO_COLUMN, ROW_TS_COLUMN};
use common::*;
use futures::TryStreamExt;
use lattice_storage as storage;
use storage::{Error, Store, StoredColumn, StoredSchema};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_is_there_after_a_restart() {
    let folder = tempfile::tempdir().expect("folder");
    let schema = schema();
    {
        let store = open(folder.path()).await;
        create(&store, &schema).await;
        let transaction = begin(&store).await;
        transaction.insert(&schema, &rows(&schema, &[(1, "one"), (2, "two")])).await.expect("insert");
        transaction.commit().await.expect("commit");
        store.shutdown().await.expect("shutdown");
    }
    let store = open(folder.path()).await;
    let all = now(&store, &schema).await;
    assert_eq!(all.into_iter().collect::<Vec<_>>(), vec![(1, "one".to_owned()), (2, "two".to_owned())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_committer_wins() {
    let folder = tempfile::tempdir().expect("folder");
    let schema = schema();
    let store = open(folder.path()).await;
    create(&store, &schema).await;
    let setup = begin(&store).await;
    setup.insert(&schema, &rows(&schema, &[(1, "start")])).await.expect("insert");
    setup.commit().await.expect("commit");

    let (first, second) = (begin(&store).await, begin(&store).await);
    update(&first, &schema, &[(1, "first")]).await.expect("update");
    first.commit().await.expect("commit");
    let refused = update(&second, &schema, &[(1, "second")]).await;
    assert!(matches!(refused, Err(Error::WriteConflict { .. })), "{refused:?}");
    assert_eq!(now(&store, &schema).await[&1], "first");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_between_read_and_commit_keeps_the_conflict() {
    let folder = tempfile::tempdir().expect("folder");
    let schema = schema();
    let store = open(folder.path()).await;
    create(&store, &schema).await;
    let setup = begin(&store).await;
    setup.insert(&schema, &rows(&schema, &[(1, "start"), (2, "start")])).await.expect("insert");
    setup.commit().await.expect("commit");

    // Reads, then somebody updates and the rows move to columns: the write must fail.
    let late = begin(&store).await;
    assert_eq!(contents(&late.view(&schema).expect("view")).await.len(), 2);
    let quick = begin(&store).await;
    update(&quick, &schema, &[(1, "quick")]).await.expect("update");
    quick.commit().await.expect("commit");
    store.flush(None).await.expect("flush");
    assert_eq!(store.table_info(schema.table).expect("info").rows_in_row_tier, 0, "the flush emptied the row tier");
    let refused = update(&late, &schema, &[(1, "late")]).await;
    assert!(matches!(refused, Err(Error::WriteConflict { .. })), "{refused:?}");

    // A row that only moved is no conflict, and is superseded where it lies now.
    let other = begin(&store).await;
    let view = other.view(&schema).expect("view");
    let found = locators(&view, &[2]).await;
    let places: Vec<_> = found.iter().map(|(_, locator)| *locator).collect();
    other.update(&schema, &rows(&schema, &[(2, "moved")]), &places).await.expect("update");
    other.commit().await.expect("commit");
    let all = now(&store, &schema).await;
    assert_eq!((all[&1].as_str(), all[&2].as_str()), ("quick", "moved"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_flushed_between_write_and_commit_is_superseded_once() {
    let folder = tempfile::tempdir().expect("folder");
    let schema = schema();
    let store = open(folder.path()).await;
    create(&store, &schema).await;
    let setup = begin(&store).await;
    setup.insert(&schema, &rows(&schema, &[(1, "start"), (2, "start")])).await.expect("insert");
    setup.commit().await.expect("commit");
    let writer = begin(&store).await;
    update(&writer, &schema, &[(1, "changed")]).await.expect("update");
    delete(&writer, &schema, &[2]).await.expect("delete");
    store.flush(None).await.expect("flush");
    writer.commit().await.expect("commit");
    let all = now(&store, &schema).await;
    assert_eq!(all.into_iter().collect::<Vec<_>>(), vec![(1, "changed".to_owned())]);
    store.flush(None).await.expect("flush");
    let all = now(&store, &schema).await;
    assert_eq!(all.into_iter().collect::<Vec<_>>(), vec![(1, "changed".to_owned())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_unique_over_both_tiers() {
    let folder = tempfile::tempdir().expect("folder");
    let schema = schema();
    let store = open(folder.path()).await;
    create(&store, &schema).await;
    for flushed in [false, true] {
        let id = i64::from(flushed);
        let first = begin(&store).await;
        first.insert(&schema, &rows(&schema, &[(id, "one")])).await.expect("insert");
        first.commit().await.expect("commit");
        if flushed {
            store.flush(None).await.expect("flush");
        }
        let second = begin(&store).await;
        let refused = second.insert(&schema, &rows(&schema, &[(7, "fine"), (id, "two")])).await;
        assert!(matches!(refused, Err(Error::DuplicateKey { row: 1, .. })), "{refused:?}");
    }
    let twice = begin(&store).await;
    let refused = twice.insert(&schema, &rows(&schema, &[(8, "a"), (8, "b")])).await;
    assert!(matches!(refused, Err(Error::DuplicateKey { row: 1, .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_sees_its_own_writes_and_savepoints_undo_them() {
    let folder = tempfile::tempdir().expect("folder");
    let schema = schema();
    let store = open(folder.path()).await;
    create(&store, &schema).await;
    let transaction = begin(&store).await;
    transaction.insert(&schema, &rows(&schema, &[(1, "a"), (2, "b")])).await.expect("insert");
    let savepoint = transaction.savepoint().expect("savepoint");
    update(&transaction, &schema, &[(1, "changed")]).await.expect("update");
    delete(&transaction, &schema, &[2]).await.expect("delete");
    let own = contents(&transaction.view(&schema).expect("view")).await;
    assert_eq!(own.into_iter().collect::<Vec<_>>(), vec![(1, "changed".to_owned())]);
    assert!(now(&store, &schema).await.is_empty(), "others see nothing");
    transaction.rollback_to(savepoint).expect("rollback to");
    let own = contents(&transaction.view(&schema).expect("view")).await;
    assert_eq!(own.len(), 2);
    transaction.commit().await.expect("commit");
    assert_eq!(now(&store, &schema).await[&1], "a");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncate_empties_all_tiers_and_history_remembers() {
    let folder = tempfile::tempdir().expect("folder");
    let schema = schema();
    let store = open(folder.path()).await;
    create(&store, &schema).await;
    let first = begin(&store).await;
    first.insert(&schema, &rows(&schema, &[(1, "flushed")])).await.expect("insert");
    first.commit().await.expect("commit");
    store.flush(None).await.expect("flush");
    let second = begin(&store).await;
    second.insert(&schema, &rows(&schema, &[(2, "in rows")])).await.expect("insert");
    let before = second.commit().await.expect("commit");
    let truncate = begin(&store).await;
    truncate.truncate(&schema).await.expect("truncate");
    truncate.insert(&schema, &rows(&schema, &[(3, "new")])).await.expect("insert");
    truncate.commit().await.expect("commit");
    for _ in 0..2 {
        let all = now(&store, &schema).await;
        assert_eq!(all.into_iter().collect::<Vec<_>>(), vec![(3, "new".to_owned())]);
        assert_eq!(contents_at(&store, &schema, before).await.len(), 2);
        store.flush(None).await.expect("flush");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_writers_on_different_keys_share_an_entry() {
    let folder = tempfile::tempdir().expect("folder");
    let schema = schema();
    let store = open(folder.path()).await;
    create(&store, &schema).await;
    let before = store.stats();
    let writers: Vec<_> = (0..32_i64)
        .map(|writer| {
            let (store, schema) = (store.clone(), schema.clone());
            tokio::spawn(async move {
                for round in 0..8 {
                    let transaction = begin(&store).await;
                    let id = writer * 100 + round;
                    transaction.insert(&schema, &rows(&schema, &[(id, "x")])).await.expect("insert");
                    transaction.commit().await.expect("commit");
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("writer");
    }
    let after = store.stats();
    let commits = after.commits - before.commits;
    let fsyncs = after.fsyncs - before.fsyncs;
    assert_eq!(commits, 256);
    assert!(fsyncs < commits, "{fsyncs} fsyncs for {commits} commits");
    assert_eq!(now(&store, &schema).await.len(), 256);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_update_spills_commits_and_rolls_back() {
    let folder = tempfile::tempdir().expect("folder");
    let schema = schema();
    let mut options = quiet(folder.path());
    options.transaction_spill_bytes = 20_000;
    let store = Store::open(runtime::Runtime::real(), options.clone()).await.expect("open");
    create(&store, &schema).await;
    let load = begin(&store).await;
    let mut writer = load.bulk(&schema).expect("bulk");
    let all: Vec<(i64, &str)> = (0..1000).map(|id| (id, "old")).collect();
    writer.write(rows(&schema, &all)).await.expect("write");
    assert_eq!(writer.finish().await.expect("finish"), 1000);
    let loaded = load.commit().await.expect("commit");
    // Some rows of each kind: in staged files, in columns, in the row tier.
    store.flush(None).await.expect("flush");
    let touch = begin(&store).await;
    update(&touch, &schema, &[(3, "touched"), (4, "touched")]).await.expect("update");
    touch.commit().await.expect("commit");

    for commit in [false, true] {
        let transaction = begin(&store).await;
        for chunk in (0..1000_i64).collect::<Vec<_>>().chunks(100) {
            let changes: Vec<(i64, &str)> = chunk.iter().map(|id| (*id, "new")).collect();
            update(&transaction, &schema, &changes).await.expect("update");
        }
        let own = contents(&transaction.view(&schema).expect("view")).await;
        assert_eq!(own.len(), 1000);
        assert!(own.values().all(|value| value == "new"));
        if commit {
            transaction.commit().await.expect("commit");
        } else {
            transaction.rollback();
            let seen = now(&store, &schema).await;
            assert_eq!(seen.values().filter(|value| *value == "old").count(), 998);
        }
    }
    for round in 0..3 {
        let seen = now(&store, &schema).await;
        assert_eq!(seen.len(), 1000, "round {round}");
        assert!(seen.values().all(|value| value == "new"), "round {round}");
        let past = contents_at(&store, &schema, loaded).await;
        assert!(past.len() == 1000 && past.values().all(|value| value == "old"), "round {round}");
        store.flush(None).await.expect("flush");
    }
    store.shutdown().await.expect("shutdown");
    drop((store, load, touch));
    let store = Store::open(runtime::Runtime::real(), options).await.expect("open");
    assert!(now(&store, &schema).await.values().all(|value| value == "new"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_writes_are_seen_once_while_rows_move() {
    for spill_bytes in [64 << 20, 1] {
        let folder = tempfile::tempdir().expect("folder");
        let schema = schema();
        let mut options = quiet(folder.path());
        options.transaction_spill_bytes = spill_bytes;
        let store = Store::open(runtime::Runtime::real(), options).await.expect("open");
        create(&store, &schema).await;
        // Two files and the row tier.
        for part in 0..3_i64 {
            let setup = begin(&store).await;
            let batch: Vec<(i64, &str)> = (part * 10..part * 10 + 10).map(|id| (id, "old")).collect();
            setup.insert(&schema, &rows(&schema, &batch)).await.expect("insert");
            setup.commit().await.expect("commit");
            if part < 2 {
                store.flush(None).await.expect("flush");
            }
        }
        let transaction = begin(&store).await;
        let mut expected: std::collections::BTreeMap<i64, String> = (0..30).map(|id| (id, "old".to_owned())).collect();
        for step in 0..5_i64 {
            // Some rows of each place, some of them again, and some gone.
            let value = format!("step {step}");
            let ids: Vec<i64> = [step, 9, 10 + step, 19, 20 + step, 29].to_vec();
            let changes: Vec<(i64, &str)> = ids.iter().map(|id| (*id, value.as_str())).collect();
            update(&transaction, &schema, &changes).await.expect("update");
            delete(&transaction, &schema, &[5 + step, 15 + step, 25 + step]).await.expect("delete");
            for id in &ids {
                if let Some(known) = expected.get_mut(id) {
                    known.clone_from(&value);
                }
            }
            for id in [5 + step, 15 + step, 25 + step] {
                expected.remove(&id);
            }
            // Others write, and everything moves.
            let other = begin(&store).await;
            other.insert(&schema, &rows(&schema, &[(100 + step, "other")])).await.expect("insert");
            other.commit().await.expect("commit");
            store.flush(None).await.expect("flush");
            if step % 2 == 1 {
                store.merge(schema.table).await.expect("merge");
            }
            let view = transaction.view(&schema).expect("view");
            assert_eq!(contents(&view).await, expected, "spill at {spill_bytes}, step {step}");
            let ids: Vec<i64> = (0..200).collect();
            let found: Vec<i64> = locators(&view, &ids).await.into_iter().map(|(id, _)| id).collect();
            assert_eq!(found, expected.keys().copied().collect::<Vec<_>>(), "spill at {spill_bytes}, step {step}");
        }
        transaction.commit().await.expect("commit");
        expected.extend((0..5).map(|step| (100 + step, "other".to_owned())));
        for _ in 0..2 {
            assert_eq!(now(&store, &schema).await, expected, "spill at {spill_bytes}");
            store.flush(None).await.expect("flush");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_deleted_and_loaded_again_is_a_row_like_any_other() {
    for flushed in [false, true] {
        let folder = tempfile::tempdir().expect("folder");
        let schema = schema();
        let store = open(folder.path()).await;
        create(&store, &schema).await;
        let setup = begin(&store).await;
        setup.insert(&schema, &rows(&schema, &[(1, "old"), (2, "old"), (3, "old")])).await.expect("insert");
        setup.commit().await.expect("commit");
        if flushed {
            store.flush(None).await.expect("flush");
        }
        let transaction = begin(&store).await;
        delete(&transaction, &schema, &[1, 2, 3]).await.expect("delete");
        let mut writer = transaction.bulk(&schema).expect("bulk");
        writer
            .write(rows(&schema, &[(1, "loaded"), (2, "loaded"), (3, "loaded"), (4, "loaded")]))
            .await
            .expect("write");
        writer.finish().await.expect("finish");
        assert_eq!(locators(&transaction.view(&schema).expect("view"), &[1, 2, 3, 4]).await.len(), 4);
        update(&transaction, &schema, &[(2, "changed"), (4, "changed")]).await.expect("update");
        delete(&transaction, &schema, &[3]).await.expect("delete");
        let expected: Vec<(i64, String)> =
            [(1, "loaded"), (2, "changed"), (4, "changed")].map(|(id, value)| (id, value.to_owned())).to_vec();
        let own = contents(&transaction.view(&schema).expect("view")).await;
        assert_eq!(own.into_iter().collect::<Vec<_>>(), expected, "flushed: {flushed}");
        transaction.commit().await.expect("commit");
        drop((setup, transaction));
        for _ in 0..2 {
            assert_eq!(now(&store, &schema).await.into_iter().collect::<Vec<_>>(), expected, "flushed: {flushed}");
            store.flush(None).await.expect("flush");
        }
        store.shutdown().await.expect("shutdown");
        drop(store);
        let store = open(folder.path()).await;
        assert_eq!(now(&store, &schema).await.into_iter().collect::<Vec<_>>(), expected, "flushed: {flushed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_loads_refuse_duplicate_keys() {
    let folder = tempfile::tempdir().expect("folder");
    let schema = schema();
    let store = open(folder.path()).await;
    create(&store, &schema).await;
    let setup = begin(&store).await;
    setup.insert(&schema, &rows(&schema, &[(5, "there")])).await.expect("insert");
    setup.commit().await.expect("commit");
    for batch in [vec![(1, "a"), (1, "b")], vec![(4, "a"), (5, "b"), (6, "c")]] {
        let transaction = begin(&store).await;
        let mut writer = transaction.bulk(&schema).expect("bulk");
        let written = writer.write(rows(&schema, &batch)).await;
        let outcome = match written {
            Ok(()) => writer.finish().await.map(|_| ()),
            Err(error) => Err(error),
        };
        assert!(matches!(outcome, Err(Error::DuplicateKey { .. })), "{outcome:?}");
    }
    assert_eq!(now(&store, &schema).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_is_waited_for_and_times_out() {
    let folder = tempfile::tempdir().expect("folder");
    let schema = schema();
    let store = open(folder.path()).await;
    create(&store, &schema).await;
    let setup = begin(&store).await;
    setup.insert(&schema, &rows(&schema, &[(1, "start")])).await.expect("insert");
    setup.commit().await.expect("commit");
    let holder = begin(&store).await;
    update(&holder, &schema, &[(1, "held")]).await.expect("update");
    let options = storage::BeginOptions { lock_timeout_ms: Some(30), ..Default::default() };
    let waiter = store.begin(options).await.expect("begin");
    let refused = update(&waiter, &schema, &[(1, "late")]).await;
    assert!(matches!(refused, Err(Error::LockTimeout { .. })), "{refused:?}");
    let waiting = {
        let (store, schema) = (store.clone(), schema.clone());
        tokio::spawn(async move {
            let transaction = begin(&store).await;
            let conflict = update(&transaction, &schema, &[(1, "second")]).await;
            assert!(matches!(conflict, Err(Error::WriteConflict { .. })), "{conflict:?}");
            // An autocommit statement runs again on a fresh snapshot and keeps its lock.
            transaction.refresh_snapshot().expect("nothing written");
            update(&transaction, &schema, &[(1, "second")]).await.expect("update");
            transaction.commit().await.expect("commit")
        })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    holder.commit().await.expect("commit");
    waiting.await.expect("waiter");
    assert_eq!(now(&store, &schema).await[&1], "second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_store_on_the_folder_is_refused_and_so_is_a_foreign_folder() {
    let folder = tempfile::tempdir().expect("folder");
    let _store = open(folder.path()).await;
    let second = Store::open(runtime::Runtime::real(), quiet(folder.path())).await;
    assert!(second.as_ref().is_err_and(|error| error.to_string().contains("in use")), "{second:?}");
    let foreign = tempfile::tempdir().expect("folder");
    std::fs::write(foreign.path().join("precious.txt"), "mine").expect("write");
    let refused = Store::open(runtime::Runtime::real(), quiet(foreign.path())).await;
    assert!(
        refused.as_ref().is_err_and(|error| error.to_string().contains("not a LatticeDB data folder")),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_that_wait_for_each_other_end_by_a_deadlock() {
    let folder = tempfile::tempdir().expect("folder");
    let schema = schema();
    let mut options = quiet(folder.path());
    // Nobody gets away by a timeout.
    options.lock_timeout_ms = 60_000;
    let store = Store::open(runtime::Runtime::real(), options).await.expect("open");
    create(&store, &schema).await;
    let setup = begin(&store).await;
    setup.insert(&schema, &rows(&schema, &[(1, "start"), (2, "start")])).await.expect("insert");
    setup.commit().await.expect("commit");
    let (older, younger) = (begin(&store).await, begin(&store).await);
    update(&older, &schema, &[(1, "older")]).await.expect("update");
    update(&younger, &schema, &[(2, "younger")]).await.expect("update");
    let waiting = {
        let schema = schema.clone();
        tokio::spawn(async move {
            update(&older, &schema, &[(2, "older")]).await?;
            older.commit().await
        })
    };
    let refused = update(&younger, &schema, &[(1, "younger")]).await;
    let Err(error) = refused else { panic!("no deadlock was seen") };
    assert!(matches!(error, Error::Deadlock { .. }), "{error:?}");
    assert_eq!((base::Classify::sqlstate(&error).as_str(), error.to_string().as_str()), ("40P01", "deadlock detected"));
    younger.rollback();
    waiting.await.expect("ends").expect("the older one commits");
    assert_eq!(now(&store, &schema).await.into_values().collect::<Vec<_>>(), vec!["older", "older"]);
    assert_eq!(store.stats().deadlocks, 1);
}

/// `value TEXT` without a primary key.
fn keyless() -> Arc<StoredSchema> {
    let column = |id: ColumnId, name: &str, data_type: DataType, nullable: bool| StoredColumn {
        id,
        name: name.into(),
        data_type,
        nullable,
        dropped: false,
        missing: None,
    };
    let columns = vec![
        column(ColumnId(1), "value", DataType::Utf8, true),
        column(ROW_TS_COLUMN, "_row_ts", DataType::Int64, false),
        column(ROW_NO_COLUMN, "_row_no", DataType::Int64, false),
    ];
    Arc::new(StoredSchema::new(TableId(1000), SchemaVersion(1), columns, vec![1, 2]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn given_hidden_keys_are_kept_or_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let schema = keyless();
    let store = open(folder.path()).await;
    create(&store, &schema).await;
    let batch = |stamps: &[i64]| -> RecordBatch {
        let values: ArrayRef =
            Arc::new(StringArray::from_iter_values(stamps.iter().map(|stamp| format!("row {stamp}"))));
        let stamps: ArrayRef = Arc::new(Int64Array::from(stamps.to_vec()));
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![0; stamps.len()]));
        RecordBatch::try_new(Arc::clone(schema.arrow()), vec![values, stamps, numbers]).expect("the columns fit")
    };
    let transaction = begin(&store).await;
    transaction.insert(&schema, &batch(&[-7, -9])).await.expect("given keys");
    transaction.insert(&schema, &batch(&[0, 0])).await.expect("keys are made");
    let mixed = transaction.insert(&schema, &batch(&[-3, 0])).await;
    assert!(matches!(mixed, Err(Error::Invalid(_))), "{mixed:?}");
    let mut writer = transaction.bulk(&schema).expect("bulk");
    let refused = writer.write(batch(&[-4, -5])).await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    transaction.commit().await.expect("commit");
    for flushed in [false, true] {
        let view = store.snapshot().table(&schema).expect("table");
        let spec = storage::ScanSpec::new(vec![0, 1]);
        let mut found = Vec::new();
        for partition in view.partitions(1) {
            let batches: Vec<RecordBatch> = view.scan(&partition, &spec).try_collect().await.expect("scan");
            for batch in batches {
                let stamps = batch.column(1).as_primitive::<Int64Type>();
                let values = batch.column(0).as_string::<i32>();
                found.extend((0..batch.num_rows()).map(|row| (stamps.value(row), values.value(row).to_owned())));
            }
        }
        found.sort();
        let given: Vec<_> = found.iter().filter(|(stamp, _)| *stamp < 0).cloned().collect();
        assert_eq!(given, vec![(-9, "row -9".to_owned()), (-7, "row -7".to_owned())], "flushed: {flushed}");
        assert_eq!(found.len(), 4, "the others are positive and distinct: {found:?}");
        store.flush(None).await.expect("flush");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_a_table_that_was_never_defined_are_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let schema = schema();
    let store = open(folder.path()).await;
    let transaction = begin(&store).await;
    transaction.insert(&schema, &rows(&schema, &[(1, "lost")])).await.expect("buffered");
    let refused = transaction.commit().await;
    assert!(matches!(refused, Err(Error::UnknownTable(_))), "{refused:?}");
}
