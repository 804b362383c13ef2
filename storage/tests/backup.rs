//! Backups: under writers, damaged, interrupted, repeated, and what is made of them.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::*;
use lattice_storage as storage;
use runtime::Runtime;
use storage::{OnProgress, Store, StoreOptions, StoredSchema};

fn silent() -> OnProgress {
    Arc::new(|_| {})
}

fn url(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

async fn put(store: &Store, schema: &Arc<StoredSchema>, all: &[(i64, &str)]) {
    let transaction = begin(store).await;
    transaction.insert(schema, &rows(schema, all)).await.expect("insert");
    transaction.commit().await.expect("commit");
}

async fn change(store: &Store, schema: &Arc<StoredSchema>, all: &[(i64, &str)]) {
    let transaction = begin(store).await;
    update(&transaction, schema, all).await.expect("update");
    transaction.commit().await.expect("commit");
}

async fn restore(from: &Path, to: &Path) -> storage::Result<storage::BackupReport> {
    Store::restore(&Runtime::real(), &url(from), &quiet(to), silent()).await
}

async fn verify(from: &Path) -> storage::Result<storage::BackupReport> {
    Store::verify_backup(&Runtime::real(), &url(from), silent()).await
}

/// Every object of a backup, with its path.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(&folder).expect("listed") {
            let path = entry.expect("entry").path();
            let name = path.file_name().expect("named").to_string_lossy().into_owned();
            if path.is_dir() && name != ".tmp" {
                pending.push(path);
            } else if path.is_file() && name != ".lock" {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// A database with rows in both tiers, a history, staged files and deletion vectors.
async fn varied(path: &Path) -> (Store, Arc<StoredSchema>) {
    let schema = schema();
    let store = open(path).await;
    create(&store, &schema).await;
    put(&store, &schema, &(0..40).map(|id| (id, "first")).collect::<Vec<_>>()).await;
    store.flush(None).await.expect("flush");
    change(&store, &schema, &[(1, "second"), (2, "second"), (30, "second")]).await;
    let transaction = begin(&store).await;
    delete(&transaction, &schema, &[5, 6]).await.expect("delete");
    transaction.commit().await.expect("commit");
    store.flush(None).await.expect("flush");
    let transaction = begin(&store).await;
    let mut writer = transaction.bulk(&schema).expect("bulk");
    writer.write(rows(&schema, &(100..140).map(|id| (id, "staged")).collect::<Vec<_>>())).await.expect("write");
    writer.finish().await.expect("finish");
    transaction.commit().await.expect("commit");
    change(&store, &schema, &[(3, "third"), (101, "third")]).await;
    put(&store, &schema, &[(500, "only in memory")]).await;
    (store, schema)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_comes_back() {
    let folder = tempfile::tempdir().expect("folder");
    let (source, backup, copy) = (folder.path().join("a"), folder.path().join("backup"), folder.path().join("b"));
    let (store, schema) = varied(&source).await;
    let counter = store.allocate("numbers", 17).await.expect("numbers");
    let moments: Vec<base::CommitTs> = {
        let mut moments = vec![store.now()];
        for round in 0..3 {
            change(&store, &schema, &[(round, "later"), (100 + round, "later")]).await;
            moments.push(store.now());
        }
        moments
    };
    let report = store.backup(&url(&backup), silent()).await.expect("backup");
    assert_eq!(report.at, store.now());
    assert_eq!((report.objects, report.bytes), (report.copied_objects, report.copied_bytes));
    assert_eq!(verify(&backup).await.expect("sound").objects, report.objects);
    let restored = restore(&backup, &copy).await.expect("restore");
    assert_eq!((restored.at, restored.objects, restored.bytes), (report.at, report.objects, report.bytes));
    let twin = open(&copy).await;
    for at in moments {
        assert_eq!(contents_at(&twin, &schema, at).await, contents_at(&store, &schema, at).await, "as of {at}");
    }
    assert_eq!(now(&twin, &schema).await, now(&store, &schema).await);
    assert_eq!(twin.allocate("numbers", 1).await.expect("number"), counter + 17, "a sequence goes on");
    // The copy lives: it takes writes, moves them, and starts again.
    change(&twin, &schema, &[(7, "in the copy")]).await;
    twin.flush(None).await.expect("flush");
    twin.merge(schema.table).await.expect("merge");
    let expected = now(&twin, &schema).await;
    twin.shutdown().await.expect("shutdown");
    drop(twin);
    let twin = open(&copy).await;
    assert_eq!(now(&twin, &schema).await, expected);
    assert_eq!(now(&store, &schema).await.get(&7).map(String::as_str), Some("first"), "the original is as it was");
}

/// Every transaction moves one unit between two rows, so the sum over all rows tells a moment from a mixture.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_backup_under_writers_is_one_moment() {
    const ROWS: i64 = 60;
    let folder = tempfile::tempdir().expect("folder");
    let schema = schema();
    let mut options = quiet(&folder.path().join("a"));
    options.flush_interval_ms = 20;
    options.merge_files = 2;
    let store = Store::open(Runtime::real(), options).await.expect("opens");
    create(&store, &schema).await;
    put(&store, &schema, &(0..ROWS).map(|id| (id, "100")).collect::<Vec<_>>()).await;
    let (stop, moved) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..3_i64)
        .map(|writer| {
            let (store, schema, stop, moved) =
                (store.clone(), Arc::clone(&schema), Arc::clone(&stop), Arc::clone(&moved));
            tokio::spawn(async move {
                let mut rng = runtime::SimRng::new(writer.unsigned_abs() + 1);
                while !stop.load(Ordering::Relaxed) {
                    // Each writer has rows of its own: no conflicts, and no waiting.
                    let mut pick = || writer * (ROWS / 3) + i64::try_from(rng.below(20)).expect("small");
                    let (from, to) = (pick(), pick());
                    if from == to {
                        continue;
                    }
                    let transaction = begin(&store).await;
                    let seen = contents(&transaction.view(&schema).expect("view")).await;
                    let value = |id: i64| seen[&id].parse::<i64>().expect("a number");
                    let (less, more) = ((value(from) - 1).to_string(), (value(to) + 1).to_string());
                    let changed = update(
                        &transaction,
                        &schema,
                        &[
                            (from.min(to), if from < to { &less } else { &more }),
                            (from.max(to), if from < to { &more } else { &less }),
                        ],
                    )
                    .await;
                    if changed.is_ok() && transaction.commit().await.is_ok() {
                        moved.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();
    let mut copied = Vec::new();
    for round in 0..4 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let before = moved.load(Ordering::Relaxed);
        let backup = folder.path().join(format!("backup{}", round % 2));
        let copy = folder.path().join(format!("copy{round}"));
        let report = store.backup(&url(&backup), silent()).await.expect("backup");
        // The second backup at a place finds most files there.
        copied.push(report.copied_objects);
        restore(&backup, &copy).await.expect("restore");
        let twin = open(&copy).await;
        assert_eq!(twin.now(), report.at);
        let seen = now(&twin, &schema).await;
        assert_eq!(seen, contents_at(&store, &schema, report.at).await, "round {round}");
        let sum: i64 = seen.values().map(|value| value.parse::<i64>().expect("a number")).sum();
        assert_eq!(sum, ROWS * 100, "round {round}");
        assert!(moved.load(Ordering::Relaxed) > before, "the writers stood still");
        twin.shutdown().await.expect("shutdown");
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("writer");
    }
    store.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn files_stay_while_they_are_copied() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, schema) = varied(&folder.path().join("a")).await;
    store.flush(None).await.expect("flush");
    let (begun, wait) = std::sync::mpsc::channel::<()>();
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let gone = std::sync::Mutex::new(Some(gone));
    // The first object that is copied stops the backup until the files it began with are merged away.
    let progress: OnProgress = Arc::new(move |_| {
        let first = gone.lock().expect("lock").take();
        if let Some(gone) = first {
            let _ = begun.send(());
            let _ = gone.recv();
        }
    });
    let place = folder.path().join("backup");
    let running = tokio::spawn({
        let (store, place) = (store.clone(), url(&place));
        async move { store.backup(&place, progress).await }
    });
    tokio::task::spawn_blocking(move || wait.recv()).await.expect("waits").expect("the backup begins");
    let old = store.table_info(schema.table).expect("info").current_version;
    for round in 0..3 {
        change(&store, &schema, &[(round, "new"), (20 + round, "new"), (110, "new")]).await;
        store.flush(None).await.expect("flush");
        store.merge(schema.table).await.expect("merge");
    }
    assert!(store.table_info(schema.table).expect("info").current_version > old);
    // The background work has had time to clean up.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let held = files(&folder.path().join("a/columns")).len();
    go.send(()).expect("the backup waits");
    let report = running.await.expect("task").expect("no file vanished");
    let copy = folder.path().join("b");
    restore(&place, &copy).await.expect("restore");
    let twin = open(&copy).await;
    assert_eq!(now(&twin, &schema).await, contents_at(&store, &schema, report.at).await);
    // After it, the clean-up goes on: what the old versions consisted of goes.
    change(&store, &schema, &[(0, "newer")]).await;
    store.flush(None).await.expect("flush");
    store.merge(schema.table).await.expect("merge");
    for _ in 0..100 {
        if files(&folder.path().join("a/columns")).len() < held {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("old files stay for ever");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_damage_is_found() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, _) = varied(&folder.path().join("a")).await;
    let backup = folder.path().join("backup");
    store.backup(&url(&backup), silent()).await.expect("backup");
    let all = files(&backup);
    assert!(all.len() > 15, "{all:?}");
    for (number, path) in all.iter().enumerate() {
        let sound = std::fs::read(path).expect("read");
        let name = path.strip_prefix(&backup).expect("below").display().to_string();
        let step = (sound.len() / 25).max(1);
        let positions = (0..sound.len()).filter(|at| at % step == 0 || *at < 24 || *at + 24 >= sound.len());
        for at in positions {
            let mut damaged = sound.clone();
            damaged[at] ^= 1 << (at % 8);
            std::fs::write(path, &damaged).expect("write");
            let error = verify(&backup).await.expect_err(&format!("byte {at} of {name}")).to_string();
            let names_it =
                error.contains(path.file_name().expect("named").to_str().expect("text")) || error.contains("format");
            assert!(names_it || error.contains("different databases"), "byte {at} of {name}: {error}");
        }
        for wrong in [&sound[..sound.len() - 1], &[&sound[..], &[0]].concat()[..]] {
            std::fs::write(path, wrong).expect("write");
            verify(&backup).await.expect_err(&format!("{name} of another length"));
        }
        // Restoring goes the same way, and leaves nothing that could be taken for a database.
        let copy = folder.path().join(format!("copy{number}"));
        restore(&backup, &copy).await.expect_err(&format!("{name} of another length"));
        if copy.exists() {
            let refused = Store::open(Runtime::real(), quiet(&copy)).await.expect_err("half a database").to_string();
            assert!(refused.contains("was not finished"), "{refused}");
        }
        std::fs::remove_file(path).expect("removed");
        verify(&backup).await.expect_err(&format!("{name} is missing"));
        std::fs::write(path, &sound).expect("write");
    }
    verify(&backup).await.expect("sound again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_backup_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, schema) = varied(&folder.path().join("a")).await;
    let backup = folder.path().join("backup");
    let interrupted = |store: Store, place: String, after: u64| async move {
        let stop = Arc::new(tokio::sync::Notify::new());
        let progress: OnProgress = {
            let stop = Arc::clone(&stop);
            Arc::new(move |progress| {
                if progress.objects >= after {
                    stop.notify_one();
                }
            })
        };
        tokio::select! {
            biased;
            () = stop.notified() => true,
            done = store.backup(&place, progress) => { done.expect("backup"); false }
        }
    };
    assert!(interrupted(store.clone(), url(&backup), 3).await, "it was to be interrupted");
    let error = restore(&backup, &folder.path().join("b")).await.expect_err("half a backup").to_string();
    assert!(error.contains("never finished") && error.contains(&url(&backup)), "{error}");
    assert!(!folder.path().join("b").exists(), "a refused restore makes nothing");
    // The next attempt keeps what is there.
    let report = store.backup(&url(&backup), silent()).await.expect("backup");
    assert!(report.copied_objects < report.objects, "{report:?}");
    let first = now(&store, &schema).await;
    // A later one that is interrupted does not spoil it.
    change(&store, &schema, &[(9, "after the first backup")]).await;
    store.flush(None).await.expect("flush");
    store.merge(schema.table).await.expect("merge");
    assert!(interrupted(store.clone(), url(&backup), 2).await, "it was to be interrupted");
    restore(&backup, &folder.path().join("c")).await.expect("the first backup is whole");
    let twin = open(&folder.path().join("c")).await;
    assert_eq!(now(&twin, &schema).await, first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_backup_sends_what_is_new() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, schema) = varied(&folder.path().join("a")).await;
    store.flush(None).await.expect("flush");
    let backup = folder.path().join("backup");
    let place = url(&backup);
    let first = store.backup(&place, silent()).await.expect("backup");
    let again = store.backup(&place, silent()).await.expect("backup");
    assert_eq!(again.copied_objects, 1, "only the checkpoint is new: {again:?}");
    let another = schema_of(base::TableId(1001));
    create(&store, &another).await;
    put(&store, &another, &[(1, "x")]).await;
    store.flush(None).await.expect("flush");
    let grown = store.backup(&place, silent()).await.expect("backup");
    assert!(grown.copied_objects > 2 && grown.copied_objects < first.objects, "{grown:?} after {first:?}");
    // Files that are merged away leave the place with the next backup.
    change(&store, &schema, &[(8, "x")]).await;
    store.flush(None).await.expect("flush");
    store.merge(schema.table).await.expect("merge");
    let merged = store.backup(&place, silent()).await.expect("backup");
    assert_eq!(files(&backup).len() as u64, merged.objects + 2, "files, checkpoint, manifest and identity");
    verify(&backup).await.expect("sound");
    // A file that changed under our feet is not sent on as if it were sound.
    let file =
        files(&backup.join("columns")).into_iter().find(|path| path.extension().is_some_and(|name| name == "lance"));
    let file = folder.path().join("a").join(file.expect("a data file").strip_prefix(&backup).expect("below"));
    let mut bytes = std::fs::read(&file).expect("read");
    bytes[3] ^= 1;
    std::fs::write(&file, bytes).expect("write");
    let error = store.backup(&place, silent()).await.expect_err("a damaged source").to_string();
    assert!(error.contains("lattice check"), "{error}");
    verify(&backup).await.expect("the backup before is untouched");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_that_are_not_for_backups_are_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, schema) = varied(&folder.path().join("a")).await;
    let foreign = folder.path().join("letters");
    std::fs::create_dir(&foreign).expect("folder");
    std::fs::write(foreign.join("letter.txt"), "dear").expect("write");
    let inside = folder.path().join("a/backups");
    for (place, reason) in [(&foreign, "not empty"), (&inside, "inside the database")] {
        let error = store.backup(&url(place), silent()).await.expect_err("refused").to_string();
        assert!(error.contains(reason) && error.contains(&url(place)), "{error}");
    }
    assert_eq!(std::fs::read_dir(&foreign).expect("listed").count(), 1, "the folder is left alone");
    assert!(!inside.exists());
    let backup = folder.path().join("backup");
    store.backup(&url(&backup), silent()).await.expect("backup");
    let other = open(&folder.path().join("other")).await;
    let error = other.backup(&url(&backup), silent()).await.expect_err("another database").to_string();
    assert!(error.contains("another database"), "{error}");
    let error =
        restore(&folder.path().join("none"), &folder.path().join("b")).await.expect_err("nothing there").to_string();
    assert!(error.contains("no backup at"), "{error}");
    let error = restore(&backup, &foreign).await.expect_err("not empty").to_string();
    assert!(error.contains("is not empty"), "{error}");
    let error = restore(&backup, &folder.path().join("a")).await.expect_err("a database").to_string();
    assert!(error.contains("is a database already"), "{error}");
    assert_eq!(now(&store, &schema).await.len(), 79);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_database_is_another_one() {
    let folder = tempfile::tempdir().expect("folder");
    let (source, backup, copy) = (folder.path().join("a"), folder.path().join("backup"), folder.path().join("b"));
    let (store, _) = varied(&source).await;
    store.backup(&url(&backup), silent()).await.expect("backup");
    store.shutdown().await.expect("shutdown");
    drop(store);
    let at = |data: &Path, columns: &Path| {
        let mut options: StoreOptions = quiet(data);
        options.columns_url = Some(url(columns));
        options
    };
    // Onto the column tier of the original: refused before anything is made.
    let options = at(&copy, &source.join("columns"));
    let error =
        Store::restore(&Runtime::real(), &url(&backup), &options, silent()).await.expect_err("taken").to_string();
    assert!(error.contains("not empty") && !copy.exists(), "{error}");
    restore(&backup, &copy).await.expect("restore");
    // Neither opens the other's column tier afterwards.
    for (data, columns) in [(&copy, &source), (&source, &copy)] {
        let error =
            Store::open(Runtime::real(), at(data, &columns.join("columns"))).await.expect_err("foreign").to_string();
        assert!(error.contains("belongs to cluster"), "{error}");
    }
    open(&source).await.shutdown().await.expect("the original is as it was");
    // The copy backs up to a place of its own.
    let twin = open(&copy).await;
    let error = twin.backup(&url(&backup), silent()).await.expect_err("the original's place").to_string();
    assert!(error.contains("another database"), "{error}");
    twin.backup(&url(&folder.path().join("backup2")), silent()).await.expect("a place of its own");
}

/// Not a test of its own: the process that dies in the middle of a backup.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(folder) = std::env::var("LATTICE_BACKUP_FOLDER") else { return };
    let folder = PathBuf::from(folder);
    let store = open(&folder.join("a")).await;
    let before = store.now();
    store.flush(None).await.expect("flush");
    assert_eq!(store.now(), before, "nothing was committed");
    store.backup(&url(&folder.join("backup")), silent()).await.expect("backup");
    panic!("the failpoint was not reached");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_dies_leaves_the_one_before_it_whole() {
    for failpoint in ["backup.begun", "backup.copied_ahead", "backup.copied", "backup.checkpoint"] {
        let folder = tempfile::tempdir().expect("folder");
        let (source, backup) = (folder.path().join("a"), folder.path().join("backup"));
        let (store, schema) = varied(&source).await;
        let expected = now(&store, &schema).await;
        let first = store.backup(&url(&backup), silent()).await.expect("backup");
        store.shutdown().await.expect("shutdown");
        drop(store);
        // Rows move between the two backups, and nothing is committed.
        let output = std::process::Command::new(std::env::current_exe().expect("this test"))
            .args(["child", "--exact", "--nocapture", "--test-threads", "1"])
            .env("LATTICE_BACKUP_FOLDER", folder.path())
            .env("LATTICE_FAILPOINT", format!("{failpoint}:1"))
            .output()
            .expect("child");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && !said.contains("panicked"), "{failpoint}: {said}");
        assert_eq!(verify(&backup).await.expect(failpoint).at, first.at);
        let copy = folder.path().join("b");
        restore(&backup, &copy).await.expect(failpoint);
        assert_eq!(now(&open(&copy).await, &schema).await, expected, "{failpoint}");
        // The next one leaves nothing of it.
        let store = open(&source).await;
        store.flush(None).await.expect("flush");
        let next = store.backup(&url(&backup), silent()).await.expect("backup");
        assert_eq!(
            files(&backup).len() as u64,
            next.objects + 2,
            "{failpoint}: files, checkpoint, manifest and identity"
        );
        verify(&backup).await.expect("sound");
    }
}
