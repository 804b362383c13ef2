//! What a store does when the disk is full or fails, and when a transaction does not fit into the log.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base::{Classify, CommitTs, SqlState};
use common::*;
use lattice_storage as storage;
use runtime::{Clock as _, DiskOp, Fault, FaultError, ManualClock, Runtime, SimDisk};
use storage::{OnFatal, Store, StoreOptions};

fn small() -> StoreOptions {
    let mut options = quiet(Path::new("/data"));
    options.segment_bytes = 64 << 10;
    options.low_water_bytes = 256 << 10;
    options
}

async fn on(disk: &SimDisk, options: StoreOptions) -> Store {
    Store::open(Runtime::simulated(ManualClock::new(CommitTs(1_000_000)), disk.clone()), options).await.expect("opens")
}

fn used(disk: &SimDisk) -> u64 {
    disk.files().iter().map(|(_, bytes)| bytes).sum()
}

/// Waits until the store has found out that there is room, without asking it for anything.
async fn room(store: &Store) {
    for _ in 0..100 {
        if !store.stats().disk_low {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the store does not find out that there is room");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_and_keeps_what_was_acknowledged() {
    let disk = SimDisk::new();
    let store = on(&disk, small()).await;
    let schema = schema();
    create(&store, &schema).await;
    let value = "x".repeat(4000);
    let mut acked = 0;
    disk.set_capacity(Some(used(&disk) + (1 << 20)));
    let full = loop {
        assert!(acked < 10_000, "the disk never fills");
        let transaction = begin(&store).await;
        let written = match transaction.insert(&schema, &rows(&schema, &[(acked, &value)])).await {
            Ok(()) => transaction.commit().await.map(|_| ()),
            Err(error) => Err(error),
        };
        match written {
            Ok(()) => acked += 1,
            Err(error) => break error,
        }
    };
    assert!(acked > 10, "{acked}");
    assert_eq!(full.sqlstate(), SqlState::DISK_FULL, "{full}");
    assert!(full.to_string().contains("almost full"), "{full}");
    // Reads go on, and what is left of the disk is enough to go on refusing.
    assert_eq!(now(&store, &schema).await.len() as i64, acked);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(store.stats().disk_low);
    for _ in 0..20 {
        let transaction = begin(&store).await;
        let refused = transaction.insert(&schema, &rows(&schema, &[(-1, "x")])).await.expect_err("still full");
        assert_eq!(refused.sqlstate(), SqlState::DISK_FULL, "{refused}");
    }
    // A transaction that wrote while there was room does not commit into a full disk either.
    disk.set_capacity(None);
    room(&store).await;
    let open = begin(&store).await;
    open.insert(&schema, &rows(&schema, &[(-2, "x")])).await.expect("there is room again");
    disk.set_capacity(Some(used(&disk) + 1000));
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(open.commit().await.expect_err("full again").sqlstate(), SqlState::DISK_FULL);
    // It recovers by itself, and nothing acknowledged is lost.
    disk.set_capacity(None);
    room(&store).await;
    let transaction = begin(&store).await;
    transaction.insert(&schema, &rows(&schema, &[(-3, "after")])).await.expect("insert");
    transaction.commit().await.expect("commit");
    store.flush(None).await.expect("flush");
    drop(store);
    tokio::time::sleep(Duration::from_millis(200)).await;
    disk.crash(7);
    let store = on(&disk, small()).await;
    let seen = now(&store, &schema).await;
    assert_eq!(seen.len() as i64, acked + 1);
    assert!(seen.contains_key(&-3) && !seen.contains_key(&-1) && !seen.contains_key(&-2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_that_finds_the_disk_full_loses_nothing() {
    let disk = SimDisk::new();
    let mut options = small();
    options.low_water_bytes = 0;
    let store = on(&disk, options).await;
    let schema = schema();
    create(&store, &schema).await;
    let transaction = begin(&store).await;
    let value = "y".repeat(1000);
    transaction
        .insert(&schema, &rows(&schema, &(0..40).map(|id| (id, value.as_str())).collect::<Vec<_>>()))
        .await
        .expect("insert");
    transaction.commit().await.expect("commit");
    disk.set_capacity(Some(used(&disk) + 2000));
    let error = store.flush(None).await.expect_err("no room for a file");
    assert_eq!(error.sqlstate(), SqlState::DISK_FULL, "{error}");
    assert_eq!(now(&store, &schema).await.len(), 40);
    disk.set_capacity(None);
    store.flush(None).await.expect("there is room again");
    assert_eq!(now(&store, &schema).await.len(), 40);
    assert_eq!(store.table_info(schema.table).expect("info").rows_in_row_tier, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_too_large_for_the_log_is_refused_and_the_store_goes_on() {
    const ROWS: i64 = 8000;
    let disk = SimDisk::new();
    let store = on(&disk, small()).await;
    let schema = schema();
    create(&store, &schema).await;
    for first in (0..ROWS).step_by(200) {
        let transaction = begin(&store).await;
        let some: Vec<(i64, &str)> = (first..first + 200).map(|id| (id, "x")).collect();
        transaction.insert(&schema, &rows(&schema, &some)).await.expect("insert");
        transaction.commit().await.expect("commit");
    }
    // Spilled rows are in files, but each of the rows they replace in memory has to be named in the log.
    let transaction = begin(&store).await;
    for first in (0..ROWS).step_by(500) {
        let some: Vec<(i64, &str)> = (first..first + 500).map(|id| (id, "y")).collect();
        update(&transaction, &schema, &some).await.expect("update");
    }
    let error = transaction.commit().await.expect_err("too large");
    assert_eq!(error.sqlstate(), SqlState::PROGRAM_LIMIT, "{error}");
    assert!(error.to_string().contains("storage.journal_segment"), "{error}");
    assert_eq!(now(&store, &schema).await.values().filter(|value| *value == "y").count(), 0);
    // After a flush the rows lie in files, and the same transaction fits.
    store.flush(None).await.expect("flush");
    let transaction = begin(&store).await;
    for first in (0..ROWS).step_by(500) {
        let some: Vec<(i64, &str)> = (first..first + 500).map(|id| (id, "y")).collect();
        update(&transaction, &schema, &some).await.expect("update");
    }
    transaction.commit().await.expect("commit");
    assert_eq!(now(&store, &schema).await.values().filter(|value| *value == "y").count() as i64, ROWS);
}

/// Many commits at once never share an entry that the log cannot take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_share_an_entry_fit_into_it() {
    let disk = SimDisk::new();
    let store = on(&disk, small()).await;
    let schema = schema();
    create(&store, &schema).await;
    let value = "z".repeat(9_000);
    let commits = (0..120_i64).map(|id| {
        let (store, schema, value) = (store.clone(), Arc::clone(&schema), value.clone());
        tokio::spawn(async move {
            let transaction = begin(&store).await;
            let some: Vec<(i64, &str)> = (0..1 + id % 5).map(|at| (id * 10 + at, value.as_str())).collect();
            transaction.insert(&schema, &rows(&schema, &some)).await?;
            transaction.commit().await.map(|_| some.len())
        })
    });
    let commits: Vec<_> = commits.collect();
    let mut total = 0;
    for commit in commits {
        total += commit.await.expect("task").expect("commit");
    }
    assert_eq!(now(&store, &schema).await.len(), total);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_of_the_log_is_told_once() {
    let disk = SimDisk::new();
    let told = Arc::new(AtomicU64::new(0));
    let mut options = small();
    options.on_fatal = Some(OnFatal({
        let told = Arc::clone(&told);
        Arc::new(move |reason| {
            assert!(!reason.is_empty());
            told.fetch_add(1, Ordering::SeqCst);
        })
    }));
    let store = on(&disk, options).await;
    let schema = schema();
    create(&store, &schema).await;
    disk.inject(Fault {
        op: DiskOp::Sync,
        path_contains: "journal".into(),
        after: 0,
        error: FaultError::Io,
        sticky: true,
    });
    let transaction = begin(&store).await;
    transaction.insert(&schema, &rows(&schema, &[(1, "x")])).await.expect("insert");
    let error = transaction.commit().await.expect_err("the log is broken");
    assert!(matches!(error, storage::Error::Indeterminate), "{error}");
    for _ in 0..100 {
        if told.load(Ordering::SeqCst) > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let again = begin(&store).await;
    again.insert(&schema, &rows(&schema, &[(2, "x")])).await.expect("insert");
    again.commit().await.expect_err("nothing is accepted any more");
    assert_eq!(told.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_are_told_of_the_reader_that_stops_them() {
    let mut options = small();
    options.low_water_bytes = 0;
    options.row_tier_bytes = 64 << 10;
    options.write_stall_timeout_ms = 300;
    let store = on(&SimDisk::new(), options).await;
    let schema = schema();
    create(&store, &schema).await;
    let value = "v".repeat(1_000);
    let write = async |from: i64| {
        let transaction = begin(&store).await;
        let some: Vec<(i64, &str)> = (from..from + 10).map(|id| (id, value.as_str())).collect();
        transaction.insert(&schema, &rows(&schema, &some)).await.expect("insert");
        transaction.commit().await
    };
    // Nobody moves rows.
    let mut next = 0;
    let stalled = loop {
        match write(next).await {
            Ok(_) => next += 10,
            Err(error) => break error.to_string(),
        }
        assert!(next < 1_000, "the row tier never fills");
    };
    assert!(stalled.contains("as fast as they come") && !stalled.contains("lattice.queries"), "{stalled}");
    store.flush(None).await.expect("flush");
    let full = next + 50;
    while next < full {
        write(next).await.expect("there is room");
        next += 10;
    }
    // A reader of the past, and one of the rows in memory, which is in the way.
    let past = store.snapshot_at(CommitTs(1)).await.expect("snapshot").table(&schema).expect("table");
    let reader = store.snapshot().table(&schema).expect("table");
    store.flush(None).await.expect("flush");
    let stalled = write(next).await.expect_err("there is no room").to_string();
    assert!(stalled.contains("table 1000") && stalled.contains("lattice.queries"), "{stalled}");
    assert_eq!(contents(&reader).await.len() as i64, next);
    drop(reader);
    write(next).await.expect("there is room");
    assert!(contents(&past).await.is_empty());
}

/// Storage rule 9: what is known of recent commits is bounded, and beyond it transactions fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_older_than_what_is_remembered_is_refused() {
    let mut options = quiet(Path::new("/data"));
    options.recent_bytes = 8 << 10;
    let store = on(&SimDisk::new(), options).await;
    let schema = schema();
    create(&store, &schema).await;
    let other = schema_of(base::TableId(1001));
    create(&store, &other).await;
    for schema in [&schema, &other] {
        let setup = begin(&store).await;
        setup.insert(schema, &rows(schema, &[(1, "old"), (2, "old"), (3, "old"), (4, "old")])).await.expect("insert");
        setup.commit().await.expect("commit");
    }
    store.flush(None).await.expect("flush");
    let too_old = |outcome: storage::Result<()>, what: &str| {
        let error = outcome.expect_err(what);
        assert!(matches!(error, storage::Error::SnapshotTooOld { .. }), "{what}: {error}");
        assert_eq!(error.sqlstate().to_string(), "40001", "{what}");
    };
    let (reader, late, writer, inserter) =
        (begin(&store).await, begin(&store).await, begin(&store).await, begin(&store).await);
    let before = contents(&reader.view(&schema).expect("view")).await;
    update(&writer, &schema, &[(1, "writer")]).await.expect("update");
    update(&inserter, &other, &[(1, "other")]).await.expect("update");
    inserter.insert(&schema, &rows(&schema, &[(950, "inserted")])).await.expect("insert");
    // Enough to be forgotten of the one table, and less than that of the other.
    for round in 0..10_i64 {
        let filler = begin(&store).await;
        let many: Vec<(i64, &str)> = (0..100).map(|n| (1_000 * (round + 1) + n, "filler")).collect();
        filler.insert(&schema, &rows(&schema, &many)).await.expect("insert");
        update(&filler, &schema, &[(2, "filler")]).await.expect("update");
        filler.commit().await.expect("a young transaction is not concerned");
        store.flush(None).await.expect("flush");
        store.merge(schema.table).await.expect("merge");
    }
    // Background work forgets.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(contents(&reader.view(&schema).expect("view")).await, before, "who only reads is not concerned");
    too_old(writer.view(&schema).map(drop), "a view over own writes");
    too_old(writer.commit().await.map(drop), "a commit");
    let refused = update(&late, &schema, &[(2, "late")]).await.expect_err("a row that was written since");
    assert_eq!(refused.sqlstate().to_string(), "40001", "{refused}");
    too_old(update(&late, &schema, &[(3, "late")]).await, "a row that was not");
    too_old(late.insert(&schema, &rows(&schema, &[(900, "late")])).await, "a new row");
    // With a new snapshot it is as young as any.
    late.refresh_snapshot().expect("nothing is written");
    update(&late, &schema, &[(3, "late")]).await.expect("update");
    late.commit().await.expect("commit");
    assert_eq!(contents(&inserter.view(&schema).expect("view")).await.len(), 5, "it replaces no rows of this table");
    inserter.commit().await.expect("and the other one is remembered");
    let again = begin(&store).await;
    update(&again, &schema, &[(1, "again"), (2, "again")]).await.expect("update");
    again.commit().await.expect("commit");
    let all = now(&store, &schema).await;
    assert_eq!((all.len(), all[&1].as_str(), all[&3].as_str()), (1_005, "again", "late"));
    assert_eq!(now(&store, &other).await[&1], "other");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jump_of_the_clock_reaches_no_commit() {
    let (disk, clock) = (SimDisk::new(), ManualClock::new(CommitTs(1_700_000_000_000_000)));
    let open = || Store::open(Runtime::simulated(clock.clone(), disk.clone()), small());
    let store = open().await.expect("opens");
    let schema = schema();
    create(&store, &schema).await;
    let insert = async |store: &Store, id| {
        let transaction = begin(store).await;
        transaction.insert(&schema, &rows(&schema, &[(id, "x")])).await.expect("insert");
        transaction.commit().await
    };
    insert(&store, 1).await.expect("commit");
    let right = clock.now();
    let tomorrow = CommitTs(right.0 + 86_400_000_000);
    clock.set_wall(tomorrow);
    let error = insert(&store, 2).await.expect_err("a jump");
    assert!(error.to_string().contains("jumped 24 h ahead"), "{error}");
    // Reads go on, other work goes on, and commits when the clock is right again.
    assert_eq!(now(&store, &schema).await.len(), 1);
    store.flush(None).await.expect("flush");
    clock.set_wall(right);
    insert(&store, 3).await.expect("commit");
    // A restart takes the new time, and then the old one is refused.
    store.shutdown().await.expect("shutdown");
    drop(store);
    // The lock of the column tier goes with the last task that holds it.
    tokio::time::sleep(Duration::from_millis(200)).await;
    clock.set_wall(tomorrow);
    let store = open().await.expect("opens");
    assert!(insert(&store, 4).await.expect("commit") >= tomorrow);
    store.shutdown().await.expect("shutdown");
    drop(store);
    // The lock of the column tier goes with the last task that holds it.
    tokio::time::sleep(Duration::from_millis(200)).await;
    clock.set_wall(right);
    let error = open().await.expect_err("behind").to_string();
    assert!(error.contains("24 h later") && error.contains("storage.clock_jump"), "{error}");
}
