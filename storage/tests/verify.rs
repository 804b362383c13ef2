//! Verifying a database: what is sound passes, and each planted defect is found and named.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::*;
use lattice_storage as storage;
use runtime::{OverlayDisk, RealDisk, Runtime, SystemClock};
use storage::{Store, StoreOptions, StoredSchema, Verified};

/// A runtime that leaves the disk as it is.
fn looking() -> Runtime {
    Runtime { clock: Arc::new(SystemClock::new()), disk: Arc::new(OverlayDisk::new(Arc::new(RealDisk::new()))) }
}

async fn check(path: &Path) -> storage::Result<Verified> {
    let mut options: StoreOptions = quiet(path);
    options.inspect = true;
    let listing = storage::listing(&Runtime::real(), &options).await?;
    let store = Store::open(looking(), options).await?;
    let verified = store.verify(&listing, Arc::new(|_| {})).await;
    store.shutdown().await?;
    Ok(verified)
}

/// Every file of a folder with its bytes, but for locks, which are taken and never written.
fn bytes(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("listed") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            found.extend(bytes(&path));
            found.insert(path, Vec::new());
        } else {
            let content = std::fs::read(&path).expect("read");
            found.insert(path, content);
        }
    }
    found
}

/// A database with rows in both tiers, a history, staged files, masks and deletion vectors; stopped as by a crash.
async fn varied(path: &Path) -> Arc<StoredSchema> {
    let schema = schema();
    let store = open(path).await;
    work(&store, &schema).await;
    drop(store);
    // The log is let go in the background.
    let lock = path.join("journal/lock");
    for _ in 0..500 {
        if runtime::Disk::lock_exclusive(&RealDisk::new(), &lock).is_ok() {
            return schema;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("the log stays locked");
}

async fn work(store: &Store, schema: &Arc<StoredSchema>) {
    create(store, schema).await;
    let transaction = begin(store).await;
    transaction
        .insert(schema, &rows(schema, &(0..40).map(|id| (id, "first")).collect::<Vec<_>>()))
        .await
        .expect("insert");
    transaction.commit().await.expect("commit");
    store.flush(None).await.expect("flush");
    let transaction = begin(store).await;
    update(&transaction, schema, &[(1, "second"), (2, "second")]).await.expect("update");
    delete(&transaction, schema, &[5]).await.expect("delete");
    transaction.commit().await.expect("commit");
    store.flush(None).await.expect("flush");
    let transaction = begin(store).await;
    let mut writer = transaction.bulk(schema).expect("bulk");
    writer.write(rows(schema, &(100..140).map(|id| (id, "staged")).collect::<Vec<_>>())).await.expect("write");
    writer.finish().await.expect("finish");
    transaction.commit().await.expect("commit");
    store.checkpoint().await.expect("checkpoint");
    let transaction = begin(store).await;
    update(&transaction, schema, &[(3, "third"), (101, "third")]).await.expect("update");
    transaction.commit().await.expect("commit");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_changes_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    varied(folder.path()).await;
    let before = bytes(folder.path());
    let verified = check(folder.path()).await.expect("opens");
    assert_eq!(verified.problems, []);
    assert!(verified.files >= 4 && verified.bytes > 1000 && verified.tables >= 1, "{verified:?}");
    assert!(bytes(folder.path()) == before, "the folder has changed");
    // A server that runs keeps the check out, and the other way round.
    let store = open(folder.path()).await;
    let error = check(folder.path()).await.expect_err("in use").to_string();
    assert!(error.contains("in use"), "{error}");
    store.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_defects_are_found() {
    let folder = tempfile::tempdir().expect("folder");
    varied(folder.path()).await;
    let sound = bytes(folder.path());
    let columns = folder.path().join("columns");
    let mut kinds: BTreeMap<String, u32> = BTreeMap::new();
    // What versions that are gone left behind matters to nobody.
    let left: Vec<String> =
        check(folder.path()).await.expect("opens").orphans.into_iter().map(|(path, _)| path).collect();
    for (path, content) in sound.iter().filter(|(path, content)| path.starts_with(&columns) && !content.is_empty()) {
        let name = path.strip_prefix(&columns).expect("below").display().to_string();
        if left.contains(&name) {
            continue;
        }
        let kind = name.split('/').nth(2).unwrap_or("OWNER").to_owned();
        *kinds.entry(kind.clone()).or_default() += 1;
        // Missing, cut in half, and with a flipped bit; the last one only where a checksum tells.
        let mut flipped = content.clone();
        let middle = content.len() / 2;
        flipped[middle] ^= 1;
        let summed = ["data", "_stats", "OWNER"].contains(&kind.as_str());
        // Versions hold their transaction themselves too, so a damaged copy harms nobody.
        let cut = (kind != "_transactions").then(|| content[..middle].to_vec());
        for defect in [Some(None), cut.map(Some), summed.then_some(Some(flipped))].into_iter().flatten() {
            match &defect {
                None => std::fs::remove_file(path).expect("removed"),
                Some(bytes) => std::fs::write(path, bytes).expect("written"),
            }
            match check(folder.path()).await {
                Ok(verified) => {
                    let about = |problem: &storage::Problem| {
                        // A dataset's own objects are named by their version.
                        let text = format!("{} {}", problem.object, problem.what);
                        text.contains(&name) || (kind.starts_with('_') && text.contains("version"))
                    };
                    assert!(verified.problems.iter().any(about), "{name}, {defect:?}: {verified:?}");
                }
                Err(error) => {
                    assert!(error.to_string().contains("OWNER"), "{name}: {error}");
                }
            }
            std::fs::write(path, content).expect("restored");
        }
    }
    assert!(
        ["data", "_stats", "_versions", "_deletions", "OWNER"].iter().all(|kind| kinds.contains_key(*kind)),
        "{kinds:?}"
    );
    // The log and the checkpoint are read when the store opens, and name themselves.
    for name in ["checkpoint", "LATTICE"] {
        let path = folder.path().join(name);
        let content = &sound[&path];
        let mut flipped = content.clone();
        flipped[4] ^= 1;
        std::fs::write(&path, flipped).expect("written");
        let error = check(folder.path()).await.expect_err("damaged").to_string();
        assert!(error.contains(name), "{error}");
        std::fs::write(&path, content).expect("restored");
    }
    let (path, content) = sound
        .iter()
        .find(|(path, content)| path.starts_with(folder.path().join("journal")) && content.len() > 5000)
        .expect("a segment");
    let mut damaged = content.clone();
    let used = content.iter().rposition(|byte| *byte != 0).expect("used");
    // The first two pages are the header and marks; records follow.
    assert!(used > 9000, "{used}");
    damaged[(8192 + used) / 2] ^= 1;
    std::fs::write(path, damaged).expect("written");
    let error = check(folder.path()).await.expect_err("damaged").to_string();
    assert!(error.contains(path.file_name().expect("named").to_str().expect("text")), "{error}");
    std::fs::write(path, content).expect("restored");
    // A file that nothing names is listed, and is no fault.
    std::fs::write(columns.join("t1000/current/data/999-stray.lance"), b"stray").expect("written");
    let verified = check(folder.path()).await.expect("opens");
    assert_eq!(verified.problems, []);
    assert!(
        verified.orphans.iter().any(|(path, bytes)| path.contains("999-stray") && *bytes == 5),
        "{:?}",
        verified.orphans
    );
}
