//! The log, the checkpoint and what background work does to them.

mod common;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::{CommitTs, TableId};
use common::*;
use lattice_storage as storage;
use runtime::{DiskOp, Fault, FaultError, ManualClock, Runtime, SimDisk};
use storage::{Error, Store, StoreOptions, StoredSchema};

/// A store on a disk in memory.
async fn simulated(disk: &SimDisk, clock: &ManualClock, options: StoreOptions) -> Store {
    Store::open(Runtime::simulated(clock.clone(), disk.clone()), options).await.expect("the store opens")
}

fn clock() -> ManualClock {
    ManualClock::new(CommitTs(1_800_000_000_000_000))
}

async fn put(store: &Store, schema: &Arc<StoredSchema>, id: i64, value: &str) {
    let transaction = begin(store).await;
    transaction.insert(schema, &rows(schema, &[(id, value)])).await.expect("insert");
    transaction.commit().await.expect("commit");
}

/// Storage rule 1: a table that is hardly written does not keep the log. The long form has 500 tables
/// (`tests/server/test_log.py`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_tables_do_not_keep_the_log() {
    const TABLES: u32 = 60;
    let folder = tempfile::tempdir().expect("folder");
    let mut options = quiet(folder.path());
    // Background work is on, but no table is old enough to be flushed for its age.
    options.flush_interval_ms = 3_600_000;
    options.flush_bytes = 1 << 20;
    options.segment_bytes = 256 << 10;
    options.log_max_bytes = 1 << 20;
    let store = Store::open(Runtime::real(), options.clone()).await.expect("open");
    let schemas: Vec<_> = (0..TABLES).map(|number| schema_of(TableId(1000 + number))).collect();
    for schema in &schemas {
        create(&store, schema).await;
    }
    for schema in &schemas {
        put(&store, schema, 1, "cold").await;
    }
    let hot = &schemas[0];
    let wide = "h".repeat(2_000);
    let mut longest = 0;
    for round in 0..120_i64 {
        let transaction = begin(&store).await;
        let batch: Vec<(i64, &str)> = (0..40).map(|n| (1_000 + round * 40 + n, wide.as_str())).collect();
        transaction.insert(hot, &rows(hot, &batch)).await.expect("insert");
        transaction.commit().await.expect("commit");
        longest = longest.max(store.stats().log_bytes);
        if store.stats().log_bytes > 2 * options.log_max_bytes {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while store.stats().log_bytes > options.log_max_bytes {
        assert!(Instant::now() < deadline, "the log stays at {} bytes", store.stats().log_bytes);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(longest > options.log_max_bytes, "the log was long enough to be cut: {longest}");
    let cold =
        schemas.iter().filter(|schema| store.table_info(schema.table).expect("info").rows_in_row_tier > 0).count();
    assert!(cold >= TABLES as usize - 1, "{cold} tables still have their rows in memory, and did not keep the log");
    store.shutdown().await.expect("shutdown");
    drop(store);
    let started = Instant::now();
    let store = Store::open(Runtime::real(), options).await.expect("open");
    assert!(started.elapsed() < Duration::from_secs(10), "a start took {:?}", started.elapsed());
    for schema in &schemas[1..] {
        assert_eq!(now(&store, schema).await.into_iter().collect::<Vec<_>>(), vec![(1, "cold".to_owned())]);
    }
    assert_eq!(now(&store, hot).await.len(), 1 + 120 * 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_in_flight_share_an_fsync() {
    let (disk, clock, schema) = (SimDisk::new(), clock(), schema());
    let store = simulated(&disk, &clock, quiet(&PathBuf::from("/data"))).await;
    create(&store, &schema).await;
    // Numbers that the writers need are taken beforehand; they would be entries of their own.
    put(&store, &schema, 0, "first").await;
    let before = store.stats();
    disk.pause_syncs(true);
    let writers: Vec<_> = (1..=3_i64)
        .map(|id| {
            let (store, schema) = (store.clone(), schema.clone());
            tokio::spawn(async move {
                // One after the other, so that each is an entry of its own.
                tokio::time::sleep(Duration::from_millis(40 * u64::try_from(id).expect("small"))).await;
                put(&store, &schema, id, "x").await;
            })
        })
        .collect();
    let deadline = Instant::now() + Duration::from_secs(10);
    while store.stats().groups < before.groups + 3 {
        assert!(Instant::now() < deadline, "{:?}", store.stats());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(disk.waiting_syncs(), 1, "one fsync is under way, for the first of them");
    assert_eq!(store.stats().commits, before.commits, "nothing is acknowledged before it is durable");
    assert!(writers.iter().all(|writer| !writer.is_finished()));
    disk.pause_syncs(false);
    for writer in writers {
        writer.await.expect("commits");
    }
    let after = store.stats();
    assert_eq!(after.commits - before.commits, 3);
    assert!(after.fsyncs - before.fsyncs <= 2, "three entries took {} fsyncs", after.fsyncs - before.fsyncs);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_that_fails_is_undone_before_the_next() {
    let (disk, clock, schema) = (SimDisk::new(), clock(), schema());
    let store = simulated(&disk, &clock, quiet(&PathBuf::from("/data"))).await;
    create(&store, &schema).await;
    put(&store, &schema, 1, "old").await;
    store.flush(None).await.expect("flush");
    for (round, failing) in
        ["t1000/current/data", "t1000/current/_versions", "t1000/history/_versions"].iter().enumerate()
    {
        // A file to adopt, a row to close and a row to write: three commits to two datasets.
        let round = i64::try_from(round).expect("small");
        let transaction = begin(&store).await;
        let mut writer = transaction.bulk(&schema).expect("bulk");
        let loaded: Vec<(i64, &str)> = (0..20).map(|n| (100 * (round + 1) + n, "loaded")).collect();
        writer.write(rows(&schema, &loaded)).await.expect("write");
        writer.finish().await.expect("finish");
        update(&transaction, &schema, &[(1, "new")]).await.expect("update");
        transaction.commit().await.expect("commit");
        put(&store, &schema, 10 + round, "fresh").await;
        let expected = now(&store, &schema).await;
        for after in 0..2 {
            disk.inject(Fault {
                op: DiskOp::SyncDir,
                path_contains: (*failing).to_owned(),
                after,
                error: FaultError::NoSpace,
                sticky: false,
            });
            let failed = store.flush(None).await;
            disk.clear_faults();
            assert_eq!(now(&store, &schema).await, expected, "{failing} after {after}: {failed:?}");
        }
        for _ in 0..2 {
            store.flush(None).await.expect("the next flush");
            assert_eq!(now(&store, &schema).await, expected, "{failing}");
        }
        store.merge(schema.table).await.expect("merge");
        assert_eq!(now(&store, &schema).await, expected, "{failing}, merged");
    }
    assert_eq!(now(&store, &schema).await.len(), 1 + 3 * 21);
}

/// Data files of a table, in both datasets.
fn files_of(disk: &SimDisk, table: TableId) -> usize {
    let folder = format!("/columns/t{table}/");
    disk.files().iter().filter(|(path, _)| path.to_string_lossy().contains(&folder)).count()
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_a_dropped_table_go_after_its_last_reader() {
    let (disk, clock) = (SimDisk::new(), clock());
    let mut options = quiet(&PathBuf::from("/data"));
    options.dropped_retention_ms = 60_000;
    let store = simulated(&disk, &clock, options.clone()).await;
    let (kept, gone) = (schema_of(TableId(1000)), schema_of(TableId(1001)));
    for schema in [&kept, &gone] {
        create(&store, schema).await;
        put(&store, schema, 1, "one").await;
        store.flush(None).await.expect("flush");
    }
    put(&store, &gone, 2, "in memory").await;
    let before = store.now();
    clock.advance(Duration::from_secs(1));
    let drop_it = begin(&store).await;
    drop_it.drop_table(gone.table).expect("drop");
    drop_it.commit().await.expect("commit");
    drop(drop_it);
    clock.advance(Duration::from_secs(30));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(contents_at(&store, &gone, before).await.len(), 2, "the past is readable for a while");

    // A reader from before the end of the retention keeps the files, but not the name.
    let reader = store.snapshot_at(before).await.expect("snapshot").table(&gone).expect("readable");
    clock.advance(Duration::from_secs(60));
    let forgotten = || async { store.snapshot_at(before).await.expect("snapshot").table(&gone).err() };
    let deadline = Instant::now() + Duration::from_secs(20);
    let refused = loop {
        match forgotten().await {
            Some(error) => break error,
            None => assert!(Instant::now() < deadline, "the table is never forgotten"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(matches!(refused, Error::ExpiredTime { .. }), "{refused:?}");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(contents(&reader).await.into_keys().collect::<Vec<_>>(), vec![1, 2], "the reader reads on");
    drop(reader);
    until("the files stay", || files_of(&disk, gone.table) == 0).await;
    assert!(store.table_info(gone.table).is_none());
    assert!(files_of(&disk, kept.table) > 0);
    assert_eq!(now(&store, &kept).await.len(), 1);

    // And so it is after a checkpoint and a start.
    store.checkpoint().await.expect("checkpoint");
    store.shutdown().await.expect("shutdown");
    drop(store);
    let store = simulated(&disk, &clock, options).await;
    let refused = store.snapshot_at(before).await.expect("snapshot").table(&gone);
    assert!(matches!(refused, Err(Error::ExpiredTime { .. })), "{refused:?}");
    assert_eq!(now(&store, &kept).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_a_crash_left_are_removed() {
    let (disk, clock, schema) = (SimDisk::new(), clock(), schema());
    let store = simulated(&disk, &clock, quiet(&PathBuf::from("/data"))).await;
    create(&store, &schema).await;
    put(&store, &schema, 1, "one").await;
    store.flush(None).await.expect("flush");
    let files = files_of(&disk, schema.table);
    // A load into a table that is there, and one into a table that the same transaction creates; neither commits.
    let fresh = schema_of(TableId(1001));
    let unfinished = begin(&store).await;
    unfinished.define(Arc::clone(&fresh)).expect("definition");
    for target in [&schema, &fresh] {
        let mut writer = unfinished.bulk(target).expect("bulk");
        writer.write(rows(target, &[(7, "never"), (8, "never")])).await.expect("write");
        writer.finish().await.expect("finish");
    }
    let killed = disk.fork();
    assert!(
        files_of(&killed, schema.table) > files && files_of(&killed, fresh.table) > 0,
        "there is something to remove"
    );
    let store = simulated(&killed, &clock, quiet(&PathBuf::from("/data"))).await;
    assert_eq!(files_of(&killed, fresh.table), 0, "a table that was never committed");
    until("the files stay", || files_of(&killed, schema.table) == files).await;
    assert_eq!(now(&store, &schema).await.len(), 1);
}

/// Objects of one kind of a dataset.
fn objects(disk: &SimDisk, role: &str, kind: &str) -> usize {
    let folder = format!("/data/columns/t1000/{role}/{kind}");
    disk.files().iter().filter(|(path, _)| path.starts_with(&folder)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_and_files_that_nobody_reads_go() {
    let (disk, clock, schema) = (SimDisk::new(), clock(), schema());
    let mut store = simulated(&disk, &clock, quiet(&PathBuf::from("/data"))).await;
    create(&store, &schema).await;
    let mut failed = 0;
    for life in 0..4_i64 {
        let mut reader = None;
        for round in 0..4_i64 {
            let number = life * 4 + round;
            // Files to adopt, rows to write and rows to close: a flush commits twice to one dataset and once to the
            // other.
            let loaded: Vec<(i64, &str)> = (0..20).map(|n| (1_000 * (number + 1) + n, "loaded")).collect();
            let transaction = begin(&store).await;
            let mut writer = transaction.bulk(&schema).expect("bulk");
            writer.write(rows(&schema, &loaded)).await.expect("write");
            writer.finish().await.expect("finish");
            transaction.commit().await.expect("commit");
            put(&store, &schema, number, "new").await;
            if number > 0 {
                let transaction = begin(&store).await;
                update(&transaction, &schema, &[(0, "changed")]).await.expect("update");
                transaction.commit().await.expect("commit");
            }
            if round == 2 {
                // Attempts that get further and further before they fail; the next one undoes them.
                for after in (1..16).skip(usize::try_from(life).expect("small")).step_by(4) {
                    disk.inject(Fault {
                        op: DiskOp::Sync,
                        path_contains: "/columns/.tmp".into(),
                        after,
                        error: FaultError::NoSpace,
                        sticky: false,
                    });
                    failed += u32::from(store.flush(None).await.is_err());
                    disk.clear_faults();
                }
            }
            store.flush(None).await.expect("flush");
            if round == 1 {
                reader = Some((now(&store, &schema).await, store.snapshot().table(&schema).expect("table")));
            }
            if round == 3 {
                store.merge(schema.table).await.expect("merge");
            }
        }
        let what = format!("life {life}");
        // One for the reader, one that is published, and one that is the newest.
        until(&format!("{what}: versions stay"), || {
            objects(&disk, "current", "_versions") <= 3 && objects(&disk, "history", "_versions") <= 3
        })
        .await;
        let (expected, reader) = reader.take().expect("it was made");
        assert_eq!(contents(&reader).await, expected, "{what}: the reader reads on");
        drop(reader);
        let all = now(&store, &schema).await;
        for start in [false, true] {
            if start {
                // Every start that finds something to undo makes a version of its own.
                store.shutdown().await.expect("shutdown");
                drop(store);
                store = simulated(&disk, &clock, quiet(&PathBuf::from("/data"))).await;
            }
            let info = store.table_info(schema.table).expect("info");
            until(&format!("{what}: files stay, {info:?}"), || {
                objects(&disk, "current", "_versions") <= 2
                    && objects(&disk, "history", "_versions") <= 2
                    && objects(&disk, "current", "data") == info.files + info.staged_files
                    && objects(&disk, "history", "data") == info.history_files
            })
            .await;
            assert_eq!(now(&store, &schema).await, all, "{what}");
        }
    }
    assert!(failed > 6, "only {failed} attempts failed");
}
