//! Crashes: a child process commits, flushes, merges and checkpoints until it dies at a named failpoint or is killed at a
//! random moment; then every acknowledged commit must be there, and nothing of an unfinished one but the whole.
//!
//! The child's transactions follow from a seed, so that the parent knows the table after any number of them.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::*;
use lattice_storage as storage;
use runtime::SimRng;

const TRANSACTIONS: usize = 60;

/// What one transaction does.
#[derive(Clone, Debug)]
enum Step {
    Small(Vec<(i64, Option<String>)>),
    Bulk(Vec<(i64, String)>),
}

/// The steps of a seed, and the table after each.
fn script(seed: u64) -> (Vec<Step>, Vec<BTreeMap<i64, String>>) {
    let mut rng = SimRng::new(seed);
    let mut table = BTreeMap::new();
    let (mut steps, mut states) = (Vec::new(), vec![BTreeMap::new()]);
    for number in 0..TRANSACTIONS {
        let step = if rng.below(8) == 0 {
            let fresh: Vec<(i64, String)> =
                (0..30).filter(|id| !table.contains_key(id)).map(|id| (id, format!("bulk {number}"))).collect();
            Step::Bulk(fresh)
        } else {
            let mut changes = BTreeMap::new();
            for _ in 0..=rng.below(5) {
                let id = i64::try_from(rng.below(30)).expect("small");
                let gone = table.contains_key(&id) && rng.below(3) == 0;
                changes.insert(id, (!gone).then(|| format!("small {number}")));
            }
            Step::Small(changes.into_iter().collect())
        };
        match &step {
            Step::Small(changes) => {
                for (id, value) in changes {
                    match value {
                        Some(value) => table.insert(*id, value.clone()),
                        None => table.remove(id),
                    };
                }
            }
            Step::Bulk(rows) => table.extend(rows.iter().cloned()),
        }
        steps.push(step);
        states.push(table.clone());
    }
    (steps, states)
}

async fn perform(
    store: &storage::Store,
    schema: &std::sync::Arc<storage::StoredSchema>,
    step: &Step,
    known: &BTreeMap<i64, String>,
) {
    let transaction = begin(store).await;
    match step {
        Step::Small(changes) => {
            for (id, value) in changes {
                match value {
                    Some(value) if known.contains_key(id) => {
                        update(&transaction, schema, &[(*id, value)]).await.expect("update");
                    }
                    Some(value) => transaction.insert(schema, &rows(schema, &[(*id, value)])).await.expect("insert"),
                    None => delete(&transaction, schema, &[*id]).await.expect("delete"),
                }
            }
        }
        Step::Bulk(fresh) => {
            let mut writer = transaction.bulk(schema).expect("bulk");
            let batch: Vec<(i64, &str)> = fresh.iter().map(|(id, value)| (*id, value.as_str())).collect();
            writer.write(rows(schema, &batch)).await.expect("write");
            writer.finish().await.expect("finish");
        }
    }
    transaction.commit().await.expect("commit");
}

/// Not a test of its own: the body of the child process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(folder) = std::env::var("LATTICE_CRASH_FOLDER") else { return };
    let seed: u64 = std::env::var("LATTICE_CRASH_SEED").expect("seed").parse().expect("number");
    let start: usize = std::env::var("LATTICE_CRASH_START").expect("start").parse().expect("number");
    let (steps, states) = script(seed);
    let schema = schema();
    let store = open(Path::new(&folder)).await;
    if start == 0 && store.table_info(schema.table).is_none() {
        create(&store, &schema).await;
    }
    let mut rng = SimRng::new(seed ^ start as u64);
    let mut out = std::io::stdout();
    for number in start..TRANSACTIONS {
        perform(&store, &schema, &steps[number], &states[number]).await;
        writeln!(out, "acked {}", number + 1).and_then(|()| out.flush()).expect("parent listens");
        match rng.below(6) {
            0 | 1 => store.flush(None).await.expect("flush"),
            2 => store.merge(schema.table).await.expect("merge"),
            3 => store.checkpoint().await.expect("checkpoint"),
            _ => {}
        }
    }
    store.shutdown().await.expect("shutdown");
}

/// Runs the child until it dies; returns how many transactions it had acknowledged, and whether it finished.
fn run_child(
    folder: &Path,
    seed: u64,
    start: usize,
    failpoint: Option<&str>,
    kill_after: Option<Duration>,
) -> (usize, bool) {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command
        .args(["child", "--exact", "--nocapture", "--test-threads", "1"])
        .env("LATTICE_CRASH_FOLDER", folder)
        .env("LATTICE_CRASH_SEED", seed.to_string())
        .env("LATTICE_CRASH_START", start.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    if let Some(failpoint) = failpoint {
        command.env("LATTICE_FAILPOINT", failpoint);
    }
    let mut child = command.spawn().expect("child starts");
    let stdout = child.stdout.take().expect("piped");
    let reader = std::thread::spawn(move || {
        let mut acked = start;
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some(number) = line.rsplit("acked ").next().and_then(|number| number.trim().parse().ok()) {
                acked = number;
            }
        }
        acked
    });
    if let Some(after) = kill_after {
        std::thread::sleep(after);
        let _ = child.kill();
    }
    let status = child.wait().expect("child ends");
    (reader.join().expect("reader"), status.success())
}

/// Opens what the child left and compares. Returns how many transactions are in.
async fn check(folder: &Path, seed: u64, acked: usize, what: &str) -> usize {
    let (_, states) = script(seed);
    let schema = schema();
    let store = open(folder).await;
    let seen = now(&store, &schema).await;
    let whole = [acked, acked + 1].into_iter().find(|&count| states.get(count) == Some(&seen));
    let count =
        whole.unwrap_or_else(|| panic!("{what}: after {acked} acknowledged transactions the table is {seen:?}"));
    // Moving everything to columns must not change the answer either.
    store.flush(None).await.expect("flush");
    assert_eq!(now(&store, &schema).await, seen, "{what}: after a flush");
    store.shutdown().await.expect("shutdown");
    count
}

const FAILPOINTS: &[&str] = &[
    "flush.cut",
    "flush.adopted",
    "flush.history_written",
    "flush.history_committed",
    "flush.files_written",
    "flush.committed",
    "flush.published",
    "merge.files_written",
    "merge.committed",
    "merge.history_written",
    "merge.history_committed",
    "checkpoint.encoded",
    "checkpoint.written",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_failpoint_loses_nothing() {
    for (number, failpoint) in FAILPOINTS.iter().enumerate() {
        for hit in [1, 2] {
            let folder = tempfile::tempdir().expect("folder");
            let seed = number as u64 * 10 + hit;
            let name = format!("{failpoint}:{hit}");
            let (acked, finished) = run_child(folder.path(), seed, 0, Some(&name), None);
            let count = check(folder.path(), seed, acked, &name).await;
            if finished {
                assert_eq!(count, TRANSACTIONS, "{name} was never reached and the child finished");
                continue;
            }
            // Goes on from there as if nothing had happened.
            let (acked, finished) = run_child(folder.path(), seed, count, None, None);
            assert!(finished && acked == TRANSACTIONS, "{name}: the second run ended at {acked}");
            check(folder.path(), seed, acked, &name).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_random_moments_lose_nothing() {
    let rounds: u64 = std::env::var("LATTICE_CRASH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(12);
    for round in 0..rounds {
        let folder = tempfile::tempdir().expect("folder");
        let seed = 1000 + round;
        let mut rng = SimRng::new(seed);
        let mut count = 0;
        for life in 0..3 {
            let after = Duration::from_millis(30 + rng.below(600));
            let (acked, _) = run_child(folder.path(), seed, count, None, Some(after));
            count = check(folder.path(), seed, acked, &format!("round {round} life {life}")).await;
        }
    }
}
