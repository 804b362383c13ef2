//! Comparing everything stored with everything said of it, for `lattice check`.
//!
//! The store is opened to look ([`StoreOptions::inspect`](crate::StoreOptions::inspect)) on a disk that forgets what is
//! written, which verifies the checkpoint and the whole log. Then, per table: the versions that the state names hold
//! the files that it names; every file has its checksum, can be decoded, ascends by key where it should, and has the
//! statistics that its rows give; no key occurs twice over both tiers; masks name rows that exist. Objects that nothing
//! names are listed.
//!
//! # Invariants
//! - VERIFY-1 nothing is written: `tests/verify.rs::a_check_changes_nothing`.
//! - VERIFY-2 each defect is found, and named: `tests/verify.rs::planted_defects_are_found`,
//!   `tests::rows_that_clash_are_found`.
//!
//! # Not here
//! What only SQL knows: index entries against rows, constraints, references.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use base::{CommitTs, RowKey, TableId};
use codec::KeyCodec;
use columns::{Depot, Finding, Role};
use futures::StreamExt;
use runtime::Runtime;

use crate::backup::{OnProgress, Progress};
use crate::state::Table;
use crate::store::Store;
use crate::view::{ScanSpec, TableView};
use crate::{Error, Result, StoreOptions};

/// Keys whose hashes are held at once while duplicates are looked for; larger tables are read several times.
const KEYS_AT_ONCE: u64 = 32 << 20;
/// Duplicate keys that are reported by name.
const NAMED_MAX: usize = 3;

/// Something wrong, and what to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The table it belongs to.
    pub table: Option<TableId>,
    /// The object: a file, a version, a table.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
    /// What to try.
    pub advice: &'static str,
}

/// What a verification saw.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    /// Tables, hidden ones included.
    pub tables: u64,
    /// Files of both datasets.
    pub files: u64,
    /// Bytes read of them.
    pub bytes: u64,
    /// Everything wrong.
    pub problems: Vec<Problem>,
    /// Objects that nothing names, with their sizes. The next start removes those in the folders of tables; they are
    /// what a crash leaves.
    pub orphans: Vec<(String, u64)>,
}

const RESTORE: &str = "restore a backup";
const MISSING: &str = "it is missing";

/// The objects in the column tier of a database that is not open, with their sizes.
pub async fn listing(runtime: &Runtime, options: &StoreOptions) -> Result<Vec<(String, u64)>> {
    let depot =
        Depot::open_to_read(&options.columns_location(), Arc::clone(&runtime.disk)).await.map_err(Error::part)?;
    let found = depot.list().await.map_err(Error::part)?;
    Ok(found.into_iter().map(|object| (object.path, object.bytes)).collect())
}

impl Store {
    /// Reads and compares everything. `listing` is what lies in the column tier; when it is empty, nothing is compared
    /// with it.
    pub async fn verify(&self, listing: &[(String, u64)], progress: OnProgress) -> Verified {
        let core = &self.core;
        let mut seen = Verified::default();
        let mut named: HashSet<String> = HashSet::from(["OWNER".to_owned()]);
        let lying: HashSet<&str> = listing.iter().map(|(path, _)| path.as_str()).collect();
        let tables = core.state.all_tables();
        let total: usize = tables
            .iter()
            .map(|table| {
                let published = table.published();
                published.current.len() + published.staged.len() + published.history.len()
            })
            .sum();
        for table in tables {
            seen.tables += 1;
            let before = seen.problems.len();
            let published = table.published();
            for role in Role::ALL {
                let (version, files) = published.files_of(role);
                let findings = core.columns.verify_version(table.id, role, version, &files).await;
                seen.add(table.id, findings);
                match core.columns.objects_of(table.id, role, version, &files).await {
                    Ok(paths) => {
                        for path in &paths {
                            if !listing.is_empty() && !lying.contains(path.as_str()) {
                                seen.problem(table.id, path.clone(), MISSING.to_owned(), RESTORE);
                            }
                        }
                        named.extend(paths);
                    }
                    // The version cannot be opened, which was said above: nothing of this dataset counts as unknown.
                    Err(_) => {
                        let folder = format!("t{}/{role}/", table.id);
                        named.extend(
                            listing.iter().map(|(path, _)| path.clone()).filter(|path| path.starts_with(&folder)),
                        );
                    }
                }
                let Some(schema) = table.schema() else { continue };
                for meta in &files {
                    let (findings, bytes) = core.columns.verify_file(&schema, meta).await;
                    seen.add(table.id, findings);
                    seen.files += 1;
                    seen.bytes += bytes;
                    progress(Progress { objects: seen.files, objects_total: total as u64, bytes: seen.bytes });
                }
            }
            self.verify_masks(&table, &mut seen);
            // What is damaged cannot be compared any further.
            let sound = seen.problems.len() == before && !core.compactor.damaged.lock().contains(&table.id);
            if sound && let Err(error) = self.verify_keys(&table, &mut seen).await {
                seen.problem(table.id, "table".to_owned(), format!("its rows cannot be read: {error}"), RESTORE);
            }
        }
        seen.orphans = listing.iter().filter(|(path, _)| !named.contains(path)).cloned().collect();
        seen
    }

    /// Rows that are masked exist.
    fn verify_masks(&self, table: &Arc<Table>, seen: &mut Verified) {
        let (published, masks) = table.pin();
        for (file, mask) in masks.iter() {
            let rows = mask.rows_at(CommitTs::MAX);
            match published.file(*file) {
                Some(meta) if rows.max().is_none_or(|last| last < meta.rows) => {}
                Some(meta) => seen.problem(
                    table.id,
                    format!("file {}", meta.path),
                    "a row beyond its end is marked as superseded".to_owned(),
                    RESTORE,
                ),
                None => seen.problem(
                    table.id,
                    format!("file {file}"),
                    "its rows are marked as superseded, but it is no file of the table".to_owned(),
                    RESTORE,
                ),
            }
        }
    }

    /// No key occurs twice, wherever its rows lie.
    async fn verify_keys(&self, table: &Arc<Table>, seen: &mut Verified) -> Result<()> {
        if table.inner.read().dropped.is_some() {
            return Ok(());
        }
        let Some(schema) = table.schema() else { return Ok(()) };
        let view = self.snapshot().table(&schema)?;
        let info = self.table_info(table.id).unwrap_or_default();
        let passes = (info.column_rows + info.rows_in_row_tier as u64).div_ceil(KEYS_AT_ONCE).max(1);
        let codec = KeyCodec::new(&schema)?;
        let mut twice: Vec<RowKey> = Vec::new();
        for pass in 0..passes {
            twice.extend(duplicates(&view, &codec, &schema.key, passes, pass).await?);
        }
        if !twice.is_empty() {
            let shown: Vec<String> = twice.iter().take(NAMED_MAX).map(|key| show(&codec, key)).collect();
            seen.problem(
                table.id,
                "primary key".to_owned(),
                format!("{} keys occur more than once, such as {}", twice.len(), shown.join(", ")),
                "delete the surplus rows, or restore a backup",
            );
        }
        Ok(())
    }
}

impl Verified {
    fn problem(&mut self, table: TableId, object: String, what: String, advice: &'static str) {
        self.problems.push(Problem { table: Some(table), object, what, advice });
    }

    fn add(&mut self, table: TableId, findings: Vec<Finding>) {
        for Finding { path, what } in findings {
            if self.problems.iter().any(|known| known.object == path && known.what == MISSING) {
                continue;
            }
            self.problem(table, path, what, RESTORE);
        }
    }
}

/// The keys that occur more than once, among those that belong to this pass.
async fn duplicates(
    view: &TableView,
    codec: &KeyCodec,
    key: &[usize],
    passes: u64,
    pass: u64,
) -> Result<HashSet<RowKey>> {
    use std::hash::{BuildHasher, RandomState};
    let hasher = RandomState::new();
    let mine = |hash: u64| (hash >> 32) % passes == pass;
    let mut once: HashSet<u64> = HashSet::new();
    let mut suspects: HashSet<u64> = HashSet::new();
    let mut counted: HashMap<RowKey, u64> = HashMap::new();
    // Equal hashes first; then, for those alone, the keys.
    for second in [false, true] {
        if second && suspects.is_empty() {
            break;
        }
        for partition in view.partitions(1) {
            let mut batches = view.scan(&partition, &ScanSpec::new(key.to_vec()));
            while let Some(batch) = batches.next().await {
                for key in codec.keys_of_columns(batch?.columns())? {
                    let hash = hasher.hash_one(key.as_bytes());
                    if second && suspects.contains(&hash) {
                        *counted.entry(key).or_default() += 1;
                    } else if !second && mine(hash) && !once.insert(hash) {
                        suspects.insert(hash);
                    }
                }
            }
        }
    }
    Ok(counted.into_iter().filter(|(_, count)| *count > 1).map(|(key, _)| key).collect())
}

/// A key as people read it.
fn show(codec: &KeyCodec, key: &RowKey) -> String {
    use arrow::util::display::{ArrayFormatter, FormatOptions};
    let columns = codec.decode(std::slice::from_ref(key)).unwrap_or_default();
    let values: Vec<String> = columns
        .iter()
        .map(|column| {
            ArrayFormatter::try_new(column, &FormatOptions::default())
                .map_or_else(|_| "?".to_owned(), |formatter| formatter.value(0).to_string())
        })
        .collect();
    format!("({})", values.join(", "))
}

#[cfg(test)]
mod tests {
    use base::RowAddress;
    use codec::RowCodec;
    use rows::{RowOp, Version};

    use super::*;
    use crate::BeginOptions;
    use crate::testing::{keys, table_of_keys};

    /// What a defect of a flush would do: a row comes into memory again without a mask over the file.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn rows_that_clash_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let schema = table_of_keys();
        let rows = |ids| keys(&schema, ids);
        let mut options = StoreOptions::new(folder.path().to_owned());
        options.flush_interval_ms = 0;
        options.segment_bytes = 1 << 20;
        let store = Store::open(Runtime::real(), options).await.unwrap();
        let transaction = store.begin(BeginOptions::default()).await.unwrap();
        transaction.define(Arc::clone(&schema)).unwrap();
        transaction.insert(&schema, &rows(0..100)).await.unwrap();
        transaction.commit().await.unwrap();
        store.flush(None).await.unwrap();
        assert_eq!(store.verify(&[], Arc::new(|_| {})).await.problems, []);
        let table = store.core.state.table(schema.table).unwrap();
        let ts = store.now().next();
        let codec = KeyCodec::new(&schema).unwrap();
        for id in [7, 8] {
            let row = RowCodec::new(Arc::clone(&schema)).unwrap().encode(&rows(id..id + 1)).unwrap().remove(0);
            let key = codec.keys(&rows(id..id + 1)).unwrap().remove(0);
            table.rows.apply(key, Version { ts, op: RowOp::Put { row, update: false } });
        }
        store.core.state.set_last(ts);
        let problems = store.verify(&[], Arc::new(|_| {})).await.problems;
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].what.contains("2 keys") && problems[0].what.contains("(7)"), "{problems:?}");
        let file = table.published().current[0].file;
        table.mask_row(RowAddress { file, offset: 100 }, ts);
        let problems = store.verify(&[], Arc::new(|_| {})).await.problems;
        assert!(problems.iter().any(|problem| problem.what.contains("beyond its end")), "{problems:?}");
        table.mask_row(RowAddress { file: base::FileId(77), offset: 0 }, ts);
        let problems = store.verify(&[], Arc::new(|_| {})).await.problems;
        assert!(problems.iter().any(|problem| problem.what.contains("no file of the table")), "{problems:?}");
    }
}
