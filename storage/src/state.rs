//! The state machine: what the log adds up to.
//!
//! [`State::apply`] folds one command into memory. It uses no clock, no random source, no I/O and no hash order. What the
//! leader knows beyond the log (row addresses, key lists of a flush) travels beside it in [`Aside`] and only spares work:
//! a replay without it marks the table for [`Table::needs_masks`], and opening the store looks the addresses up again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use base::{CommitTs, DatasetVersion, FileId, LogIndex, RequestId, RowAddress, RowKey, TableId, Term};
use bytes::Bytes;
use codec::StoredSchema;
use columns::{FileMeta, Role};
use parking_lot::{Mutex, RwLock};
use rows::{RowOp, RowTier, TableRows, Version};

use crate::command::{Command, Commit, Publish, TableEffects};
use crate::mask::{FileMask, Masks};
use crate::{Error, Result};

/// Rows that a walk over the row tier takes at a time.
const SCAN_CHUNK_ROWS: usize = 4096;
/// Requests remembered for exactly-once retries.
const REQUESTS_REMEMBERED: usize = 100_000;

/// A published columnar state of one table.
#[derive(Debug, Default, Clone)]
pub(crate) struct Published {
    /// Counts publications of the table in this process.
    pub(crate) epoch: u64,
    /// Everything up to here lies in the datasets.
    pub(crate) cut: CommitTs,
    pub(crate) current_version: DatasetVersion,
    pub(crate) history_version: DatasetVersion,
    pub(crate) current: Vec<Arc<FileMeta>>,
    pub(crate) history: Vec<Arc<FileMeta>>,
    /// Files of large transactions that no dataset has adopted yet.
    pub(crate) staged: Vec<Arc<FileMeta>>,
}

impl Published {
    /// The files that hold current rows: the dataset's, and those that wait to be adopted by it.
    pub(crate) fn live_files(&self) -> impl Iterator<Item = &Arc<FileMeta>> {
        self.current.iter().chain(&self.staged)
    }

    pub(crate) fn file(&self, id: FileId) -> Option<&Arc<FileMeta>> {
        self.live_files().find(|meta| meta.file == id)
    }

    /// The dataset version of a role.
    pub(crate) fn version_of(&self, role: Role) -> DatasetVersion {
        match role {
            Role::Current => self.current_version,
            Role::History => self.history_version,
        }
    }

    /// The dataset version of a role, and the files that hold its rows.
    pub(crate) fn files_of(&self, role: Role) -> (DatasetVersion, Vec<Arc<FileMeta>>) {
        let files = match role {
            Role::Current => self.live_files().cloned().collect(),
            Role::History => self.history.clone(),
        };
        (self.version_of(role), files)
    }
}

/// Where a rewrite put the rows of a file it removed.
#[derive(Debug, Default)]
pub(crate) struct Relocation {
    /// By old offset; `None` where the row was not carried over.
    pub(crate) rows: Vec<Option<RowAddress>>,
}

/// What a flush knows beyond its [`Publish`] entry.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    /// Keys of each new `current` file whose rows came from the row tier, in file order: offset = position.
    pub(crate) keys: Vec<(FileId, Vec<RowKey>)>,
    /// Keys and commit times of the row-tier versions that the flush took.
    pub(crate) flushed: Vec<(RowKey, CommitTs)>,
    /// Where the rows of removed files went.
    pub(crate) moved: HashMap<FileId, Relocation>,
    /// The memory that all of it takes, as [`Prepared::weigh`] found.
    pub(crate) bytes: usize,
}

impl Prepared {
    /// Finds out how much memory it takes.
    pub(crate) fn weigh(&mut self) {
        let flushed: usize = self.flushed.iter().map(|entry| size_of_val(entry) + entry.0.as_bytes().len()).sum();
        // The bytes of these keys are those of the ones above.
        let keys: usize = self.keys.iter().map(|(_, keys)| size_of_val(keys.as_slice())).sum();
        let moved: usize = self.moved.values().map(|relocation| size_of_val(relocation.rows.as_slice())).sum();
        self.bytes = flushed + keys + moved;
    }

    /// The address of a key among the new files.
    pub(crate) fn address(&self, key: &RowKey) -> Option<RowAddress> {
        self.keys.iter().find_map(|(file, keys)| {
            let offset = keys.binary_search(key).ok()?;
            Some(RowAddress { file: *file, offset: u32::try_from(offset).ok()? })
        })
    }
}

/// Knowledge of the leader that need not be in the log.
#[derive(Debug, Default)]
pub(crate) struct Aside {
    pub(crate) addresses: Mutex<HashMap<CommitTs, Vec<(TableId, RowKey, RowAddress)>>>,
    pub(crate) prepared: Mutex<HashMap<(TableId, CommitTs), Arc<Prepared>>>,
}

/// One table.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) id: TableId,
    pub(crate) rows: Arc<TableRows>,
    pub(crate) inner: RwLock<TableInner>,
    /// Publications that views may still read, oldest first.
    retired: Mutex<VecDeque<Arc<Published>>>,
    /// Masks must be looked up again from the row tier's keys.
    pub(crate) needs_masks: AtomicBool,
    /// The files of a forgotten table have been removed.
    pub(crate) files_removed: AtomicBool,
    newest: AtomicI64,
    /// As far as this process knows: transactions do not outlive it.
    newest_large: AtomicI64,
}

#[derive(Debug, Default)]
pub(crate) struct TableInner {
    pub(crate) schemas: Vec<(CommitTs, Arc<StoredSchema>)>,
    pub(crate) published: Arc<Published>,
    pub(crate) masks: Arc<Masks>,
    /// Keys written since the running flush took its cut. Until its publication is applied or refused, nobody else
    /// knows which rows of the new files have been superseded meanwhile.
    pub(crate) since_cut: Option<Vec<(RowKey, CommitTs)>>,
    pub(crate) dropped: Option<CommitTs>,
    /// Publications since the oldest running transaction began, oldest first.
    /// Each with its epoch and its place in [`State::order`].
    pub(crate) recent: VecDeque<(u64, u64, Arc<Prepared>)>,
    /// Up to this place in [`State::order`], publications are forgotten that running transactions might have needed.
    pub(crate) forgotten: u64,
}

impl Table {
    pub(crate) fn new(id: TableId, rows: Arc<TableRows>) -> Self {
        Self {
            id,
            rows,
            inner: RwLock::default(),
            retired: Mutex::default(),
            needs_masks: AtomicBool::new(false),
            files_removed: AtomicBool::new(false),
            newest: AtomicI64::new(0),
            newest_large: AtomicI64::new(0),
        }
    }

    /// The newest commit that brought files.
    pub(crate) fn newest_large(&self) -> CommitTs {
        CommitTs(self.newest_large.load(Ordering::Acquire))
    }

    /// The newest commit that touched the table.
    pub(crate) fn newest(&self) -> CommitTs {
        CommitTs(self.newest.load(Ordering::Acquire))
    }

    pub(crate) fn touch(&self, ts: CommitTs) {
        self.newest.fetch_max(ts.0, Ordering::AcqRel);
    }

    /// When the table was dropped, if its history cannot be read any more. It keeps its place, so that a reader of the
    /// past is told, and nothing else: no definition, no files.
    pub(crate) fn forgotten(&self) -> Option<CommitTs> {
        let inner = self.inner.read();
        inner.dropped.filter(|_| inner.schemas.is_empty())
    }

    fn forget(&self) {
        let mut inner = self.inner.write();
        if inner.dropped.is_none() {
            return;
        }
        let gone = Published { epoch: inner.published.epoch + 1, cut: self.newest(), ..Published::default() };
        let old = std::mem::replace(&mut inner.published, Arc::new(gone));
        inner.masks = Arc::default();
        inner.schemas.clear();
        inner.recent.clear();
        inner.since_cut = None;
        drop(inner);
        self.retire(old);
    }

    /// Fails when publications since a transaction began are forgotten. To be asked after whatever was found out about
    /// them, because they may be forgotten meanwhile.
    pub(crate) fn remembers(&self, began: u64) -> Result<()> {
        if self.inner.read().forgotten > began {
            return Err(Error::SnapshotTooOld { table: self.id });
        }
        Ok(())
    }

    /// The newest definition.
    pub(crate) fn schema(&self) -> Option<Arc<StoredSchema>> {
        self.inner.read().schemas.last().map(|(_, schema)| Arc::clone(schema))
    }

    pub(crate) fn published(&self) -> Arc<Published> {
        Arc::clone(&self.inner.read().published)
    }

    /// What a view needs, taken together.
    pub(crate) fn pin(&self) -> (Arc<Published>, Arc<Masks>) {
        let inner = self.inner.read();
        (Arc::clone(&inner.published), Arc::clone(&inner.masks))
    }

    /// Frees row-tier versions that no view can need any more, and returns publications that nobody reads any more.
    pub(crate) fn reclaim(&self) -> VecDeque<Arc<Published>> {
        let mut retired = self.retired.lock();
        // Nobody takes a retired publication up again, so one that only this list holds stays unread.
        let (free, read) = retired.drain(..).partition(|publication| Arc::strong_count(publication) == 1);
        *retired = read;
        drop(retired);
        // Readers hold the versions that they need by pins of their own.
        self.rows.truncate(self.published().cut);
        free
    }

    fn mask(inner: &mut TableInner, file: FileId) -> Arc<FileMask> {
        if let Some(mask) = inner.masks.get(&file) {
            return Arc::clone(mask);
        }
        let mask = Arc::new(FileMask::default());
        Arc::make_mut(&mut inner.masks).insert(file, Arc::clone(&mask));
        mask
    }

    /// Ends the collection of `since_cut` because no publication will come.
    pub(crate) fn forget_cut(&self) {
        self.inner.write().since_cut = None;
    }

    /// Marks one columnar row as superseded.
    pub(crate) fn mask_row(&self, address: RowAddress, ts: CommitTs) {
        let mut inner = self.inner.write();
        Self::mask(&mut inner, address.file).add(address.offset, ts);
    }

    fn apply_effects(&self, ts: CommitTs, effects: &TableEffects, addresses: &[(TableId, RowKey, RowAddress)]) {
        let mut guard = self.inner.write();
        let inner = &mut *guard;
        if effects.truncate {
            let published = Arc::clone(&inner.published);
            for meta in published.live_files() {
                let mut all = roaring::RoaringBitmap::new();
                all.insert_range(0..meta.rows);
                Self::mask(inner, meta.file).add_layer(Arc::new(all), ts);
            }
            if let Ok(scan) = self.rows.scan(.., CommitTs::MAX, inner.published.cut) {
                let mut scan = scan.live_only();
                while let Some(chunk) = scan.next_chunk(SCAN_CHUNK_ROWS) {
                    for (key, _) in chunk {
                        if let Some(since) = inner.since_cut.as_mut() {
                            since.push((key.clone(), ts));
                        }
                        self.rows.apply(key, Version { ts, op: RowOp::Delete });
                    }
                }
            }
        }
        for (file, rows) in &effects.masks {
            Self::mask(inner, *file).add_layer(Arc::clone(rows), ts);
        }
        if !effects.staged.is_empty() {
            let mut published = Published::clone(&inner.published);
            published.staged.extend(effects.staged.iter().cloned().map(Arc::new));
            self.newest_large.fetch_max(ts.0, Ordering::AcqRel);
            self.retire(std::mem::replace(&mut inner.published, Arc::new(published)));
        }
        for (table, _, address) in addresses {
            if *table == self.id {
                Self::mask(inner, address.file).add(address.offset, ts);
            }
        }
        if let Some(since) = inner.since_cut.as_mut() {
            since.extend(effects.rows.iter().map(|(key, _)| (key.clone(), ts)));
        }
        self.rows.apply_all(effects.rows.iter().map(|(key, op)| (key.clone(), Version { ts, op: op.clone() })));
        // Inside the lock, so that a flush that chooses its cut here knows of this commit.
        self.touch(ts);
        drop(guard);
    }

    /// Publications that some view may still read.
    pub(crate) fn retired(&self) -> Vec<Arc<Published>> {
        self.retired.lock().iter().cloned().collect()
    }

    fn retire(&self, published: Arc<Published>) {
        self.retired.lock().push_back(published);
    }

    fn apply_publish(&self, publish: &Publish, prepared: Option<&Arc<Prepared>>, order: u64) {
        let mut guard = self.inner.write();
        let inner = &mut *guard;
        let old = Arc::clone(&inner.published);
        let changed: HashMap<FileId, &FileMeta> = publish.current.iter().map(|meta| (meta.file, meta)).collect();
        let keeps = |meta: &&Arc<FileMeta>| !changed.contains_key(&meta.file) && !publish.removed.contains(&meta.file);
        let mut current: Vec<Arc<FileMeta>> = old.current.iter().filter(keeps).cloned().collect();
        current.extend(publish.current.iter().cloned().map(Arc::new));
        current.sort_by(|a, b| a.min_key.cmp(&b.min_key).then(a.file.cmp(&b.file)));
        let kept = |meta: &&Arc<FileMeta>| !publish.removed.contains(&meta.file);
        let mut history: Vec<Arc<FileMeta>> = old.history.iter().filter(kept).cloned().collect();
        history.extend(publish.history.iter().cloned().map(Arc::new));
        let staged: Vec<_> = old.staged.iter().filter(keeps).cloned().collect();

        let mut masks = Masks::new();
        for (file, mask) in inner.masks.iter() {
            if publish.removed.contains(file) {
                continue;
            }
            if let Some(rest) = mask.after(publish.cut) {
                masks.insert(*file, Arc::new(rest));
            }
        }
        if let Some(prepared) = prepared {
            for (file, relocation) in &prepared.moved {
                let Some(mask) = inner.masks.get(file) else { continue };
                for (offset, ts) in mask.entries(publish.cut.next()..=CommitTs::MAX) {
                    if let Some(Some(address)) = relocation.rows.get(offset as usize) {
                        masks.entry(address.file).or_default().add(address.offset, ts);
                    }
                }
            }
            for (key, ts) in inner.since_cut.iter().flatten() {
                if let Some(address) = prepared.address(key) {
                    // Several commits after the cut may have written the key; the first one superseded the flushed row,
                    // and `FileMask::add` keeps the earliest.
                    masks.entry(address.file).or_default().add(address.offset, *ts);
                }
            }
            inner.recent.push_back((old.epoch + 1, order, Arc::clone(prepared)));
        } else {
            self.needs_masks.store(true, Ordering::Release);
        }
        inner.masks = Arc::new(masks);
        inner.published = Arc::new(Published {
            epoch: old.epoch + 1,
            cut: publish.cut.max(old.cut),
            current_version: publish.current_version,
            history_version: publish.history_version,
            current,
            history,
            staged,
        });
        inner.since_cut = None;
        drop(guard);
        self.retire(old);
    }
}

/// All tables, counters and remembered requests.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) tables: RwLock<BTreeMap<TableId, Arc<Table>>>,
    pub(crate) row_tier: Arc<RowTier>,
    pub(crate) aside: Aside,
    pub(crate) counters: Mutex<BTreeMap<String, u64>>,
    pub(crate) requests: Mutex<Requests>,
    last: AtomicI64,
    pub(crate) applied: AtomicU64,
    pub(crate) commits: AtomicU64,
    /// Numbers transaction begins and publications, to tell which came first in this process.
    pub(crate) order: AtomicU64,
    /// Set when a command could not be read; nothing is applied afterwards.
    pub(crate) damage: Mutex<Option<String>>,
}

/// The outcomes of recent requests, oldest forgotten first.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    pub(crate) outcomes: BTreeMap<RequestId, CommitTs>,
    pub(crate) order: VecDeque<RequestId>,
}

impl Requests {
    pub(crate) fn remember(&mut self, request: RequestId, ts: CommitTs) {
        if self.outcomes.insert(request, ts).is_none() {
            self.order.push_back(request);
        }
        while self.order.len() > REQUESTS_REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.outcomes.remove(&oldest);
            }
        }
    }
}

impl State {
    pub(crate) fn new(row_tier: Arc<RowTier>) -> Self {
        Self {
            tables: RwLock::default(),
            row_tier,
            aside: Aside::default(),
            counters: Mutex::default(),
            requests: Mutex::default(),
            last: AtomicI64::new(0),
            applied: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            order: AtomicU64::new(0),
            damage: Mutex::default(),
        }
    }

    /// The newest applied commit: everything up to here is visible.
    pub(crate) fn last(&self) -> CommitTs {
        CommitTs(self.last.load(Ordering::Acquire))
    }

    pub(crate) fn set_last(&self, ts: CommitTs) {
        self.last.fetch_max(ts.0, Ordering::AcqRel);
    }

    pub(crate) fn table(&self, id: TableId) -> Option<Arc<Table>> {
        self.tables.read().get(&id).cloned()
    }

    pub(crate) fn table_or_new(&self, id: TableId) -> Arc<Table> {
        if let Some(table) = self.table(id) {
            return table;
        }
        let mut tables = self.tables.write();
        Arc::clone(tables.entry(id).or_insert_with(|| Arc::new(Table::new(id, self.row_tier.open(id, CommitTs::ZERO)))))
    }

    /// All tables, by id.
    pub(crate) fn all_tables(&self) -> Vec<Arc<Table>> {
        self.tables.read().values().cloned().collect()
    }

    /// Folds one command. Returns the reply for its proposer: 8 bytes, little endian.
    pub(crate) fn apply(&self, index: LogIndex, _term: Term, command: Bytes) -> Bytes {
        if self.damage.lock().is_some() {
            return Bytes::new();
        }
        let reply = match Command::decode(command) {
            Ok(Command::Group(commits)) => {
                for commit in commits {
                    self.apply_commit(commit);
                }
                Bytes::new()
            }
            Ok(Command::Publish(publish)) => {
                let prepared = self.aside.prepared.lock().remove(&(publish.table, publish.cut));
                let order = self.order.fetch_add(1, Ordering::AcqRel);
                self.table_or_new(publish.table).apply_publish(&publish, prepared.as_ref(), order);
                Bytes::new()
            }
            Ok(Command::Forget(table)) => {
                self.table_or_new(table).forget();
                Bytes::new()
            }
            Ok(Command::Tick(ts)) => {
                self.set_last(ts);
                Bytes::new()
            }
            Ok(Command::Allocate { counter, count }) => {
                let mut counters = self.counters.lock();
                let next = counters.entry(counter).or_insert(1);
                let first = *next;
                *next = next.saturating_add(count);
                Bytes::copy_from_slice(&first.to_le_bytes())
            }
            Err(error) => {
                tracing::error!(log_index = index.0, %error, "cannot read a log entry: nothing more is applied");
                *self.damage.lock() = Some(format!("log entry {index}: {error}"));
                Bytes::new()
            }
        };
        self.applied.store(index.0, Ordering::Release);
        reply
    }

    fn apply_commit(&self, commit: Commit) {
        let ts = commit.ts;
        let mut defined = Vec::new();
        for schema in commit.defines {
            let table = self.table_or_new(schema.table);
            table.inner.write().schemas.push((ts, schema));
            defined.push(table);
        }
        let addresses = self.aside.addresses.lock().remove(&ts).unwrap_or_default();
        for effects in &commit.tables {
            self.table_or_new(effects.table).apply_effects(ts, effects, &addresses);
        }
        // After the rows: a flush that chose its cut in between would take the table's rows for written.
        for table in defined {
            table.touch(ts);
        }
        for table in commit.drops {
            let table = self.table_or_new(table);
            table.inner.write().dropped = Some(ts);
            table.touch(ts);
        }
        if let Some(request) = commit.request {
            self.requests.lock().remember(request, ts);
        }
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.set_last(ts);
    }

    /// The outcome of a request that was seen before.
    pub(crate) fn outcome(&self, request: RequestId) -> Option<CommitTs> {
        self.requests.lock().outcomes.get(&request).copied()
    }

    /// Fails once a log entry could not be read.
    pub(crate) fn check(&self) -> Result<()> {
        match self.damage.lock().as_ref() {
            Some(damage) => Err(Error::Corrupt(damage.clone())),
            None => Ok(()),
        }
    }
}
