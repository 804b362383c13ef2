//! Callers that go: a statement is cancelled, a connection breaks, a deadline passes, and the future of a storage
//! operation is dropped in the middle.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::CommitTs;
use common::*;
use lattice_storage as storage;
use runtime::{ManualClock, Runtime, SimDisk};
use storage::{BeginOptions, Error, Store, StoredSchema};

/// Objects of the column tier on their way to the disk.
const COLUMNS: &str = "/columns/.tmp";
const JOURNAL: &str = "/journal/";
/// A checkpoint before it takes its name.
const CHECKPOINT: &str = "/data/.checkpoint";

/// The disk of a test. A test that fails while syncs wait must not wait for them.
struct Disk(SimDisk);

impl Disk {
    fn new() -> Self {
        Self(SimDisk::new())
    }
}

impl std::ops::Deref for Disk {
    type Target = SimDisk;

    fn deref(&self) -> &SimDisk {
        &self.0
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.0.pause_syncs(false);
    }
}

async fn on(disk: &SimDisk) -> Store {
    let runtime = Runtime::simulated(ManualClock::new(CommitTs(1_800_000_000_000_000)), disk.clone());
    Store::open(runtime, quiet(&PathBuf::from("/data"))).await.expect("the store opens")
}

/// A table with the rows 0 to 2 in columns and the rows 10 to 13 in memory.
async fn table(store: &Store) -> Arc<StoredSchema> {
    let schema = schema();
    create(store, &schema).await;
    put(store, &schema, &[(0, "old"), (1, "old"), (2, "old")]).await;
    store.flush(None).await.expect("flush");
    put(store, &schema, &[(10, "new"), (11, "new"), (12, "new"), (13, "new")]).await;
    schema
}

async fn put(store: &Store, schema: &Arc<StoredSchema>, all: &[(i64, &str)]) {
    let transaction = begin(store).await;
    transaction.insert(schema, &rows(schema, all)).await.expect("insert");
    transaction.commit().await.expect("commit");
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Drives a future until something is the case, before which it must not end.
async fn drive<T>(future: &mut (impl Future<Output = T> + Unpin), what: &str, done: impl Fn() -> bool) {
    tokio::select! {
        biased;
        _ = future => panic!("it ended before {what}"),
        () = until(what, done) => {}
    }
}

fn expected(all: &[(i64, &str)]) -> BTreeMap<i64, String> {
    all.iter().map(|(id, value)| (*id, (*value).to_owned())).collect()
}

/// The answer is the same now, after the next flush, and after a start on what the disk has.
async fn stays(disk: &Disk, store: &Store, schema: &Arc<StoredSchema>, expected: &BTreeMap<i64, String>) {
    assert_eq!(now(store, schema).await, *expected);
    let killed = on(&disk.fork()).await;
    assert_eq!(now(&killed, schema).await, *expected, "after a start");
    for opened in [store, &killed] {
        opened.flush(None).await.expect("the next flush");
        assert_eq!(now(opened, schema).await, *expected, "after the next flush");
        opened.merge(schema.table).await.expect("merge");
        assert_eq!(now(opened, schema).await, *expected, "after a merge");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_whose_caller_goes_is_finished() {
    let disk = Disk::new();
    let store = on(&disk).await;
    let schema = table(&store).await;
    let before = store.table_info(schema.table).expect("info").current_version;
    disk.pause_syncs_of(COLUMNS, true);
    let mut flush = Box::pin(store.flush(None));
    drive(&mut flush, "its first file", || disk.waiting_syncs_of(COLUMNS) > 0).await;
    // Rows that the flush has taken are superseded while it writes them.
    let writer = begin(&store).await;
    update(&writer, &schema, &[(10, "changed")]).await.expect("update");
    delete(&writer, &schema, &[11]).await.expect("delete");
    writer.commit().await.expect("commit");
    disk.pause_syncs_of(JOURNAL, true);
    disk.pause_syncs_of(COLUMNS, false);
    drive(&mut flush, "its publication", || disk.waiting_syncs_of(JOURNAL) > 0).await;
    drop(flush);
    // Whoever comes next waits for it.
    let mut next = Box::pin(store.flush(None));
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut next).await.is_err(), "the flush before is not over");
    disk.pause_syncs(false);
    until("the publication", || store.table_info(schema.table).expect("info").current_version > before).await;
    let all = expected(&[(0, "old"), (1, "old"), (2, "old"), (10, "changed"), (12, "new"), (13, "new")]);
    assert_eq!(now(&store, &schema).await, all);
    next.await.expect("the next flush");
    stays(&disk, &store, &schema, &all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_whose_caller_goes_is_finished() {
    let disk = Disk::new();
    let store = on(&disk).await;
    let schema = table(&store).await;
    store.flush(None).await.expect("flush");
    disk.pause_syncs_of(COLUMNS, true);
    let mut merge = Box::pin(store.merge(schema.table));
    drive(&mut merge, "its first file", || disk.waiting_syncs_of(COLUMNS) > 0).await;
    let writer = begin(&store).await;
    update(&writer, &schema, &[(1, "changed"), (10, "changed")]).await.expect("update");
    delete(&writer, &schema, &[11]).await.expect("delete");
    writer.commit().await.expect("commit");
    drop(merge);
    disk.pause_syncs_of(COLUMNS, false);
    until("the merge", || store.stats().merges == 1).await;
    assert_eq!(store.table_info(schema.table).expect("info").files, 1);
    let all = expected(&[(0, "old"), (1, "changed"), (2, "old"), (10, "changed"), (12, "new"), (13, "new")]);
    stays(&disk, &store, &schema, &all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_whose_caller_goes_is_finished_before_the_next() {
    let disk = Disk::new();
    let store = on(&disk).await;
    let schema = table(&store).await;
    disk.pause_syncs_of(CHECKPOINT, true);
    let mut first = Box::pin(store.checkpoint());
    drive(&mut first, "its file", || disk.waiting_syncs_of(CHECKPOINT) > 0).await;
    drop(first);
    put(&store, &schema, &[(20, "later")]).await;
    let mut second = Box::pin(store.checkpoint());
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut second).await.is_err());
    assert_eq!(disk.waiting_syncs_of(CHECKPOINT), 1, "two checkpoints write one file");
    disk.pause_syncs(false);
    second.await.expect("checkpoint");
    let all = now(&store, &schema).await;
    assert_eq!(all.len(), 8);
    stays(&disk, &store, &schema, &all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_caller_goes_keeps_its_locks_until_it_is_decided() {
    let disk = Disk::new();
    let store = on(&disk).await;
    let schema = table(&store).await;
    let gone = begin(&store).await;
    update(&gone, &schema, &[(10, "changed")]).await.expect("update");
    // Files too: they are the log's from the moment at which an entry may name them.
    let mut writer = gone.bulk(&schema).expect("bulk");
    writer.write(rows(&schema, &[(100, "loaded"), (101, "loaded")])).await.expect("write");
    writer.finish().await.expect("finish");
    disk.pause_syncs_of(JOURNAL, true);
    let mut commit = Box::pin(gone.commit());
    drive(&mut commit, "its entry", || disk.waiting_syncs_of(JOURNAL) > 0).await;
    drop(commit);
    gone.rollback();
    assert!(!gone.is_finished(), "its outcome is not known yet");
    for refused in [gone.commit().await.map(drop), gone.savepoint().map(drop), gone.lock(schema.table, &[]).await] {
        assert!(matches!(refused, Err(Error::TransactionCommitting)), "{refused:?}");
    }
    let options = BeginOptions { lock_timeout_ms: Some(50), ..BeginOptions::default() };
    let early = store.begin(options).await.expect("begins");
    let refused = early.lock(schema.table, &keys(&schema, &[10])).await;
    assert!(matches!(refused, Err(Error::LockTimeout { .. })), "{refused:?}");
    let late = begin(&store).await;
    let wanted = keys(&schema, &[10]);
    let mut waiting = Box::pin(late.lock(schema.table, &wanted));
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut waiting).await.is_err());
    disk.pause_syncs(false);
    let refused = waiting.await;
    assert!(matches!(refused, Err(Error::WriteConflict { .. })), "the lock comes with the outcome: {refused:?}");
    until("the end", || gone.is_finished()).await;
    let refused = gone.commit().await;
    assert!(matches!(refused, Err(Error::TransactionEnded)), "{refused:?}");
    let mut all =
        expected(&[(0, "old"), (1, "old"), (2, "old"), (10, "changed"), (11, "new"), (12, "new"), (13, "new")]);
    all.extend([(100, "loaded".to_owned()), (101, "loaded".to_owned())]);
    stays(&disk, &store, &schema, &all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_caller_goes_before_it_is_ordered_is_a_rollback() {
    let disk = Disk::new();
    let runtime = Runtime::simulated(ManualClock::new(CommitTs(1_800_000_000_000_000)), (*disk).clone());
    let mut options = quiet(&PathBuf::from("/data"));
    options.row_tier_bytes = 64 << 10;
    options.write_stall_timeout_ms = 60_000;
    let store = Store::open(runtime, options).await.expect("the store opens");
    let schema = table(&store).await;
    let wide = "w".repeat(1_000);
    let wide: Vec<(i64, &str)> = (200..212).map(|id| (id, wide.as_str())).collect();
    let gone = begin(&store).await;
    let mut writer = gone.bulk(&schema).expect("bulk");
    writer.write(rows(&schema, &[(100, "never")])).await.expect("write");
    writer.finish().await.expect("finish");
    update(&gone, &schema, &[(10, "never")]).await.expect("update");
    gone.insert(&schema, &rows(&schema, &wide)).await.expect("insert");
    // Others fill the row tier.
    for round in 0..4_i64 {
        let shifted: Vec<(i64, &str)> = wide.iter().map(|(id, value)| (id + 100 * (round + 1), *value)).collect();
        if store.stats().row_tier_bytes < 50 << 10 {
            put(&store, &schema, &shifted).await;
        }
    }
    let others = now(&store, &schema).await;
    let data = |disk: &SimDisk| {
        disk.files().iter().filter(|(path, _)| path.starts_with("/data/columns/t1000/current/data")).count()
    };
    assert_eq!(data(&disk), 2);
    let mut commit = Box::pin(gone.commit());
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut commit).await.is_err(), "it waits for room");
    assert!(!gone.is_finished());
    drop(commit);
    assert!(gone.is_finished());
    let refused = gone.commit().await;
    assert!(matches!(refused, Err(Error::TransactionEnded)), "{refused:?}");
    until("its file to go", || data(&disk) == 1).await;
    let next = begin(&store).await;
    next.lock(schema.table, &keys(&schema, &[10, 205])).await.expect("its locks are free");
    next.rollback();
    stays(&disk, &store, &schema, &others).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_goes_while_it_spills_leaves_no_files() {
    let disk = Disk::new();
    let runtime = Runtime::simulated(ManualClock::new(CommitTs(1_800_000_000_000_000)), (*disk).clone());
    let mut options = quiet(&PathBuf::from("/data"));
    options.transaction_spill_bytes = 4 << 10;
    let store = Store::open(runtime, options).await.expect("the store opens");
    let schema = table(&store).await;
    store.flush(None).await.expect("flush");
    let objects = |disk: &SimDisk| {
        let folders = ["/data/columns/t1000/current/data", "/data/columns/t1000/current/_stats", "/data/columns/.tmp"];
        disk.files().iter().filter(|(path, _)| folders.iter().any(|folder| path.starts_with(folder))).count()
    };
    let before = objects(&disk);
    let transaction = begin(&store).await;
    transaction.insert(&schema, &rows(&schema, &[(50, "kept")])).await.expect("insert");
    let point = transaction.savepoint().expect("savepoint");
    let many: Vec<(i64, &str)> = (100..200).map(|id| (id, "never")).collect();
    let many = rows(&schema, &many);
    disk.pause_syncs_of(COLUMNS, true);
    let mut insert = Box::pin(transaction.insert(&schema, &many));
    drive(&mut insert, "its file", || disk.waiting_syncs_of(COLUMNS) > 0).await;
    drop(insert);
    disk.pause_syncs(false);
    until("its files to go", || objects(&disk) == before).await;
    transaction.rollback_to(point).expect("rollback");
    transaction.commit().await.expect("commit");
    let all = now(&store, &schema).await;
    assert_eq!((all.len(), all[&50].as_str()), (8, "kept"));
    stays(&disk, &store, &schema, &all).await;
}
