//! Which catalog holds at which moment, without reading it every time.
//!
//! A catalog loaded at S holds from its newest commit until the next commit that changes definitions. The engine is the only
//! writer, so it knows the newest such commit: [`CatalogCache::commit`] marks "a change is coming" before it commits. A
//! reader that finds the mark loads from storage instead of trusting the cache.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{Int64Array, StringArray};
use base::CommitTs;
use futures::StreamExt;
use parking_lot::Mutex;
use storage::{ScanSpec, Snapshot, Store, Transaction};

use super::Catalog;
use super::bootstrap::objects_schema;
use super::objects::{OBJECT_FORMAT, Object};
use crate::{Error, Result};

/// How many old catalogs are kept.
const KEPT: usize = 16;

/// The newest catalog and some older ones.
#[derive(Debug, Default)]
pub(crate) struct CatalogCache {
    /// By the commit they begin with.
    known: Mutex<BTreeMap<CommitTs, Entry>>,
    /// Commits of definitions under way.
    changing: AtomicUsize,
    /// Commits of definitions finished.
    changed: AtomicUsize,
}

#[derive(Clone, Debug)]
struct Entry {
    catalog: Arc<Catalog>,
    /// It is known to hold up to here; `MAX` for the newest.
    until: CommitTs,
}

impl CatalogCache {
    /// The catalog at a moment.
    pub(crate) async fn at(&self, store: &Store, ts: CommitTs) -> Result<Arc<Catalog>> {
        if let Some(catalog) = self.cached(ts) {
            return Ok(catalog);
        }
        let snapshot = store.snapshot_at(ts).await.map_err(Error::classified)?;
        self.load(store, &snapshot).await
    }

    /// The catalog a snapshot sees.
    pub(crate) async fn of(&self, store: &Store, snapshot: &Snapshot) -> Result<Arc<Catalog>> {
        match self.cached(snapshot.ts()) {
            Some(catalog) => Ok(catalog),
            None => self.load(store, snapshot).await,
        }
    }

    fn cached(&self, ts: CommitTs) -> Option<Arc<Catalog>> {
        if self.changing.load(Ordering::Acquire) > 0 {
            return None;
        }
        let known = self.known.lock();
        let (_, entry) = known.range(..=ts).next_back()?;
        (ts <= entry.until).then(|| entry.catalog.clone())
    }

    async fn load(&self, store: &Store, snapshot: &Snapshot) -> Result<Arc<Catalog>> {
        let before = self.changed.load(Ordering::Acquire);
        let quiet = self.changing.load(Ordering::Acquire) == 0;
        // A snapshot at or after the last change of definitions sees the newest catalog; anything else is only known to
        // hold at the snapshot itself.
        let newest = store.now();
        let catalog = Arc::new(read(snapshot).await?);
        let mut known = self.known.lock();
        let undisturbed =
            quiet && self.changing.load(Ordering::Acquire) == 0 && self.changed.load(Ordering::Acquire) == before;
        let current = undisturbed && snapshot.ts() >= newest;
        let until = if current { CommitTs::MAX } else { snapshot.ts() };
        known.insert(catalog.since, Entry { catalog: catalog.clone(), until });
        while known.len() > KEPT {
            known.pop_first();
        }
        Ok(catalog)
    }

    /// Commits a transaction that changed definitions.
    pub(crate) async fn commit(&self, transaction: &Transaction) -> Result<CommitTs> {
        let _mark = Mark::new(&self.changing);
        let result = transaction.commit().await;
        // Whatever the outcome, what was newest may not be so any more; the next reader loads it.
        let mut known = self.known.lock();
        self.changed.fetch_add(1, Ordering::AcqRel);
        match &result {
            Ok(ts) => {
                for entry in known.values_mut() {
                    entry.until = entry.until.min(ts.prev());
                }
            }
            Err(_) => known.clear(),
        }
        drop(known);
        result.map_err(Error::classified)
    }
}

struct Mark<'a>(&'a AtomicUsize);

impl<'a> Mark<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Reads the whole catalog.
async fn read(snapshot: &Snapshot) -> Result<Catalog> {
    let damaged = |what: &str| Error::new(base::ErrorKind::Corrupt, format!("the catalog is damaged: {what}"));
    let view = snapshot.table(&objects_schema()).map_err(Error::classified)?;
    let spec = ScanSpec::new(vec![0, 4]);
    let mut objects = BTreeMap::new();
    for partition in view.partitions(1) {
        let mut stream = view.scan(&partition, &spec);
        while let Some(batch) = stream.next().await {
            let batch = batch.map_err(Error::classified)?;
            let ids = batch.column(0).as_any().downcast_ref::<Int64Array>().ok_or_else(|| damaged("ids"))?;
            let documents =
                batch.column(1).as_any().downcast_ref::<StringArray>().ok_or_else(|| damaged("documents"))?;
            for row in 0..batch.num_rows() {
                let document: Document = serde_json::from_str(documents.value(row))
                    .map_err(|error| damaged(&format!("object {}: {error}", ids.value(row))))?;
                if document.format > OBJECT_FORMAT {
                    return Err(Error::unsupported(format!("catalog format {}", document.format)));
                }
                objects.insert(document.object.id(), Arc::new(document.object));
            }
        }
    }
    Catalog::build(snapshot.ts(), objects)
}

/// The JSON form of a row of `objects`.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct Document {
    pub(super) format: u32,
    #[serde(flatten)]
    pub(super) object: Object,
}
