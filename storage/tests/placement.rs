//! Both tiers against a plain table: random histories with flushes, merges, checkpoints and restarts in between, compared
//! with a list of all states at every commit.

mod common;

use std::collections::BTreeMap;

use common::*;
use lattice_storage as storage;
use runtime::SimRng;

/// One run from a seed.
async fn run(seed: u64, steps: usize) {
    let folder = tempfile::tempdir().expect("folder");
    let schema = schema();
    let mut rng = SimRng::new(seed);
    let mut store = open(folder.path()).await;
    create(&store, &schema).await;
    let mut model: BTreeMap<i64, String> = BTreeMap::new();
    let mut past: Vec<(base::CommitTs, BTreeMap<i64, String>)> = Vec::new();
    for step in 0..steps {
        match rng.below(12) {
            0..=6 => {
                let transaction = begin(&store).await;
                let mut next = model.clone();
                for _ in 0..=rng.below(6) {
                    let id = i64::try_from(rng.below(40)).expect("small");
                    let value = format!("{step}-{}", rng.below(1000));
                    if !next.contains_key(&id) {
                        transaction.insert(&schema, &rows(&schema, &[(id, &value)])).await.expect("insert");
                        next.insert(id, value);
                    } else if rng.below(3) == 0 {
                        delete(&transaction, &schema, &[id]).await.expect("delete");
                        next.remove(&id);
                    } else {
                        update(&transaction, &schema, &[(id, &value)]).await.expect("update");
                        next.insert(id, value);
                    }
                }
                assert_eq!(
                    contents(&transaction.view(&schema).expect("view")).await,
                    next,
                    "own view, seed {seed} step {step}"
                );
                if rng.below(5) == 0 {
                    transaction.rollback();
                } else {
                    let ts = transaction.commit().await.expect("commit");
                    model = next;
                    past.push((ts, model.clone()));
                }
            }
            7 | 8 => store.flush(None).await.expect("flush"),
            9 => store.merge(schema.table).await.expect("merge"),
            10 => {
                // A bulk insert of rows that are not there.
                let transaction = begin(&store).await;
                let fresh: Vec<i64> = (0..40).filter(|id| !model.contains_key(id) && rng.below(3) == 0).collect();
                let value = format!("bulk {step}");
                let mut writer = transaction.bulk(&schema).expect("bulk");
                let batch: Vec<(i64, &str)> = fresh.iter().map(|id| (*id, value.as_str())).collect();
                writer.write(rows(&schema, &batch)).await.expect("write");
                writer.finish().await.expect("finish");
                let ts = transaction.commit().await.expect("commit");
                for id in fresh {
                    model.insert(id, value.clone());
                }
                past.push((ts, model.clone()));
            }
            _ => {
                if rng.below(2) == 0 {
                    store.checkpoint().await.expect("checkpoint");
                }
                if rng.below(2) == 0 {
                    store.shutdown().await.expect("shutdown");
                }
                drop(store);
                store = reopen(folder.path()).await;
            }
        }
        assert_eq!(now(&store, &schema).await, model, "seed {seed} step {step}");
        for _ in 0..2 {
            if let Some((ts, then)) = past.get(usize::try_from(rng.below(past.len().max(1) as u64)).expect("small")) {
                assert_eq!(contents_at(&store, &schema, *ts).await, *then, "as of {ts}, seed {seed} step {step}");
            }
        }
        let ids: Vec<i64> = (0..40).collect();
        let view = store.snapshot().table(&schema).expect("table");
        let found: Vec<i64> = locators(&view, &ids).await.into_iter().map(|(id, _)| id).collect();
        assert_eq!(found, model.keys().copied().collect::<Vec<_>>(), "look-ups, seed {seed} step {step}");
    }
}

/// The folder's lock and journal are released in the background when a store is dropped without shutdown.
async fn reopen(path: &std::path::Path) -> storage::Store {
    for _ in 0..200 {
        match storage::Store::open(runtime::Runtime::real(), quiet(path)).await {
            Ok(store) => return store,
            Err(error) if error.to_string().contains("in use") => {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the folder stays locked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_read_the_same_from_both_tiers() {
    for seed in 0..6 {
        run(seed, 60).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_snapshot_gives_one_answer_across_fifty_flushes() {
    let folder = tempfile::tempdir().expect("folder");
    let schema = schema();
    let store = open(folder.path()).await;
    create(&store, &schema).await;
    let setup = begin(&store).await;
    let all: Vec<(i64, &str)> = (0..50).map(|id| (id, "start")).collect();
    setup.insert(&schema, &rows(&schema, &all)).await.expect("insert");
    setup.commit().await.expect("commit");
    let idle = begin(&store).await;
    let before = contents(&idle.view(&schema).expect("view")).await;
    for round in 0..50_i64 {
        let writer = begin(&store).await;
        let value = format!("round {round}");
        update(&writer, &schema, &[(round % 50, &value), ((round * 7) % 50, &value)]).await.expect("update");
        if round % 5 == 0 {
            delete(&writer, &schema, &[(round * 3) % 50]).await.expect("delete");
        }
        writer.commit().await.expect("commit");
        store.flush(None).await.expect("flush");
        if round % 10 == 9 {
            store.merge(schema.table).await.expect("merge");
        }
        assert_eq!(contents(&idle.view(&schema).expect("view")).await, before, "round {round}");
    }
    assert_eq!(store.table_info(schema.table).expect("info").rows_in_row_tier, 0, "the row tier stays bounded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_is_merged() {
    let folder = tempfile::tempdir().expect("folder");
    let schema = schema();
    let store = open(folder.path()).await;
    create(&store, &schema).await;
    let setup = begin(&store).await;
    let all: Vec<(i64, &str)> = (0..20).map(|id| (id, "start")).collect();
    setup.insert(&schema, &rows(&schema, &all)).await.expect("insert");
    let mut model: BTreeMap<i64, String> = (0..20).map(|id| (id, "start".to_owned())).collect();
    let mut past = vec![(setup.commit().await.expect("commit"), model.clone())];
    drop(setup);
    let history = |store: &storage::Store| store.table_info(schema.table).expect("info");
    for round in 0..24_i64 {
        let writer = begin(&store).await;
        let value = format!("round {round}");
        for id in [round % 20, (round * 7 + 3) % 20] {
            if model.contains_key(&id) {
                update(&writer, &schema, &[(id, &value)]).await.expect("update");
                model.insert(id, value.clone());
            }
        }
        if round % 6 == 0 && model.remove(&((round * 3) % 20)).is_some() {
            delete(&writer, &schema, &[(round * 3) % 20]).await.expect("delete");
        }
        past.push((writer.commit().await.expect("commit"), model.clone()));
        store.flush(None).await.expect("flush");
        if round == 11 {
            // A reader of the past, pinned before files are merged under it.
            let (ts, then) = &past[3];
            let reader = store.snapshot_at(*ts).await.expect("snapshot").table(&schema).expect("table");
            let rows = history(&store).history_rows;
            store.merge(schema.table).await.expect("merge");
            assert_eq!(history(&store).history_files, 1);
            assert_eq!(history(&store).history_rows, rows, "merging loses no version");
            assert_eq!(contents(&reader).await, *then);
        }
    }
    assert!(history(&store).history_files > 8, "there is something to merge");
    store.merge(schema.table).await.expect("merge");
    assert_eq!(history(&store).history_files, 1);
    for (ts, then) in &past {
        assert_eq!(contents_at(&store, &schema, *ts).await, *then, "as of {ts}");
    }
    // What was merged away is removed from the disk once nobody reads it.
    let data = folder.path().join("columns/t1000/history/data");
    let files = || std::fs::read_dir(&data).expect("files").count();
    for _ in 0..200 {
        if files() == 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(files(), 1);
    store.shutdown().await.expect("shutdown");
    drop(store);
    let store = reopen(folder.path()).await;
    for (ts, then) in &past {
        assert_eq!(contents_at(&store, &schema, *ts).await, *then, "as of {ts}, after a start");
    }
}
