//! Transactions: a snapshot, a buffer of writes, row locks.
//!
//! Writes stay in memory until [`Transaction::commit`] hands them to the sequencer. Above
//! `transaction_spill_bytes` a table's buffered rows are written to staged, key-sorted files and the commit names those by
//! reference, so that neither the row tier nor a log entry has to hold them (storage rule 10). What stays in memory per
//! written row is its lock, eight bytes, and a bit of a mask.
//!
//! # Hidden keys
//! Rows of a table without primary key get `_row_ts` and `_row_no` here. A caller whose indexes name the rows must know the
//! keys beforehand and gives them itself: `_row_ts` negative, unique for ever (the SQL layer negates a durable counter), and
//! in every row of the batch. Keys made here are positive, so the two kinds cannot meet. A batch in which only some rows have
//! such a key is refused, and so is a bulk write of rows that have one, because the files leave `_row_ts` out: either would
//! lose keys that indexes point to.
//!
//! # Invariants
//! - TX-1 staged files of a transaction that ends without committing them are removed
//!   (`staged_files_of_a_rollback_are_removed`, `a_commit_whose_caller_goes_before_it_is_ordered_is_a_rollback`,
//!   `a_statement_that_goes_while_it_spills_leaves_no_files`); when the outcome is unknown they stay, and the next
//!   start decides.
//! - TX-2 keys that a caller gives are kept or refused, never replaced (`given_hidden_keys_are_kept_or_refused`).
//! - TX-3 a transaction runs, commits and ends, in this order and each once. What ends a commit goes with the write set
//!   ([`Ending`]), so locks are kept until the outcome is known, whoever waits for it, and a commit whose caller goes
//!   before its write set is ordered is a rollback (`tests/cancelled.rs`:
//!   `a_commit_whose_caller_goes_keeps_its_locks_until_it_is_decided`,
//!   `a_commit_whose_caller_goes_before_it_is_ordered_is_a_rollback`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch};
use base::{CommitTs, FileId, RequestId, RowAddress, RowKey, TableId};
use codec::{KeyCodec, ROW_NO_COLUMN, ROW_TS_COLUMN, RowCodec, StoredSchema};
use columns::{FileMeta, Role, WriteSpec};
use futures::stream;
use parking_lot::{Mutex, RwLock};
use rows::RowOp;
use tokio::sync::oneshot;

use crate::bulk::BulkWriter;
use crate::locks::LockName;
use crate::sequencer::{CommitOrder, Order, Predecessor, Reply, TableCommit};
use crate::store::Core;
use crate::validate::validate;
use crate::view::{Locator, TableView};
use crate::writes::{OwnWrite, TableWrites, Writes};
use crate::{BeginOptions, Error, Result};

/// Rows decoded at a time while spilling.
const SPILL_BATCH_ROWS: usize = 64 * 1024;
/// Locks of a transaction that are packed together.
const PACK_LOCKS: usize = 32 * 1024;
/// How often a write set is checked again because large transactions committed meanwhile.
const VALIDATIONS: usize = 64;

/// Names a savepoint of one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SavepointId(pub u64);

/// A transaction under snapshot isolation. Clones share it; when the last one is dropped unfinished, it is rolled back.
///
/// Calls may come from several tasks, but writes of one transaction are made one after the other by its session.
#[derive(Clone, Debug)]
pub struct Transaction {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) core: Arc<Core>,
    number: u64,
    /// When the snapshot was taken, in [`State::order`](crate::state::State::order).
    began: AtomicU64,
    snapshot: RwLock<CommitTs>,
    read_only: bool,
    request: Option<RequestId>,
    header: crate::TransactionHeader,
    lock_timeout: Duration,
    pub(crate) writes: Mutex<Writes>,
    savepoints: Mutex<Vec<(SavepointId, Writes)>>,
    next_savepoint: AtomicU64,
    /// Locks that are not packed.
    locked: Mutex<Vec<LockName>>,
    /// Files that would be left behind if the transaction ended now.
    staged: Mutex<Vec<(TableId, Arc<FileMeta>)>>,
    phase: Mutex<Phase>,
}

/// How far a transaction is. It never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// Its write set is on its way.
    Committing,
    /// It has committed or rolled back.
    Ended,
}

/// The end of a transaction whose commit has begun. It goes with the write set, from the session to the sequencer and
/// on to where the log entry is applied; whoever knows the outcome, or is the last to hold it, ends the transaction.
#[derive(Debug)]
pub(crate) struct Ending {
    shared: Arc<Shared>,
    /// Room in the row tier, until the rows are there.
    room: Option<rows::Reservation>,
    /// The files that the write set names. They are the log's once an entry may name them.
    files: Vec<(TableId, Arc<FileMeta>)>,
    ordered: bool,
}

impl Ending {
    /// From here on an entry of the log may name the files.
    pub(crate) fn ordered(&mut self) {
        self.ordered = true;
    }

    /// The outcome is known.
    pub(crate) fn decided(mut self, outcome: &Result<CommitTs>) {
        if !matches!(outcome, Ok(_) | Err(Error::Indeterminate)) {
            self.ordered = false;
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if !self.ordered {
            self.shared.staged.lock().append(&mut self.files);
        }
        self.room = None;
        if self.shared.advance(Phase::Committing, Phase::Ended).is_ok() {
            self.shared.release();
        }
    }
}

impl Transaction {
    pub(crate) fn begin(core: Arc<Core>, options: BeginOptions) -> Self {
        let number = core.state.order.fetch_add(1, Ordering::AcqRel);
        let snapshot = {
            let mut running = core.running.lock();
            let snapshot = core.state.last();
            running.insert(number, snapshot);
            snapshot
        };
        let lock_timeout = Duration::from_millis(options.lock_timeout_ms.unwrap_or(core.options.lock_timeout_ms));
        Self {
            shared: Arc::new(Shared {
                core,
                number,
                began: AtomicU64::new(number),
                snapshot: RwLock::new(snapshot),
                read_only: options.read_only,
                request: options.request,
                header: options.header,
                lock_timeout,
                writes: Mutex::default(),
                savepoints: Mutex::default(),
                next_savepoint: AtomicU64::new(1),
                locked: Mutex::default(),
                staged: Mutex::default(),
                phase: Mutex::new(Phase::Running),
            }),
        }
    }

    /// The moment this transaction reads at.
    pub fn snapshot_ts(&self) -> CommitTs {
        *self.shared.snapshot.read()
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.shared.read_only
    }

    /// Whether the transaction has committed or rolled back.
    pub fn is_finished(&self) -> bool {
        *self.shared.phase.lock() == Phase::Ended
    }

    /// One table as this transaction sees it: the snapshot and its own writes so far. Later writes do not change the view.
    pub fn view(&self, schema: &Arc<StoredSchema>) -> Result<TableView> {
        self.check_running()?;
        self.shared.core.check_readable(schema.table, self.snapshot_ts())?;
        let own = self.own(schema.table);
        let replaces = own.as_ref().is_some_and(TableWrites::replaces);
        let view = TableView::new(&self.shared.core, schema, self.snapshot_ts(), own);
        if replaces && let Some(table) = self.shared.core.state.table(schema.table) {
            table.remembers(self.shared.began())?;
        }
        Ok(view)
    }

    /// What was written to a table so far. What has moved since is followed here once, for all later views.
    pub(crate) fn own(&self, table: TableId) -> Option<TableWrites> {
        let mut writes = self.shared.writes.lock();
        let own = writes.tables.get_mut(&table)?;
        self.catch_up(table, own);
        Some(own.clone())
    }

    fn catch_up(&self, table: TableId, own: &mut TableWrites) {
        let Some(table) = self.shared.core.state.table(table) else { return };
        let publications = own.to_follow(&table.inner.read());
        if let Some(publications) = publications {
            own.follow(&publications);
        }
    }

    fn check_running(&self) -> Result<()> {
        self.shared.phase.lock().must_be(Phase::Running)
    }

    fn check_writable(&self) -> Result<()> {
        self.check_running()?;
        if self.shared.read_only {
            return Err(Error::ReadOnly);
        }
        if self.shared.core.journal.free_space_low() {
            return Err(Error::DiskFull);
        }
        Ok(())
    }

    /// Takes the row locks, waiting for each at most the lock timeout, then fails with [`Error::WriteConflict`] if any of
    /// the rows was written after the snapshot.
    pub async fn lock(&self, table: TableId, keys: &[RowKey]) -> Result<()> {
        self.check_writable()?;
        self.take_locks(table, keys).await?;
        let Some(table) = self.shared.core.state.table(table) else { return Ok(()) };
        let snapshot = self.snapshot_ts();
        if keys.iter().any(|key| self.shared.core.sequencer.newest(&table, key).is_some_and(|ts| ts > snapshot)) {
            return Err(self.conflict(table.id));
        }
        table.remembers(self.shared.began())
    }

    /// A row of the table was committed by another transaction since the snapshot of this one.
    fn conflict(&self, table: TableId) -> Error {
        self.shared.core.counters.conflicts.fetch_add(1, Ordering::Relaxed);
        Error::WriteConflict { table }
    }

    async fn take_locks(&self, table: TableId, keys: &[RowKey]) -> Result<()> {
        // In key order, so that two statements over the same rows cannot wait for each other.
        let mut ordered: Vec<&RowKey> = keys.iter().collect();
        ordered.sort_unstable();
        for key in ordered {
            let shared = &self.shared;
            if shared.core.locks.lock(shared.number, table, key, shared.lock_timeout).await? {
                let many = {
                    let mut locked = shared.locked.lock();
                    locked.push((table, key.clone()));
                    (locked.len() >= PACK_LOCKS).then(|| std::mem::take(&mut *locked))
                };
                if let Some(many) = many {
                    let kept = shared.core.locks.pack(shared.number, many);
                    shared.locked.lock().extend(kept);
                }
            }
        }
        Ok(())
    }

    /// Moves the snapshot to now, keeping the locks, so that a single-statement transaction can run again after
    /// [`Error::WriteConflict`]. Fails once something is written.
    pub fn refresh_snapshot(&self) -> Result<()> {
        self.check_running()?;
        if self.has_writes() {
            return Err(Error::Invalid("the snapshot of a transaction with writes cannot move".into()));
        }
        let core = &self.shared.core;
        let mut running = core.running.lock();
        // Before the snapshot: what is applied in between is taken for later than it, and not the other way round.
        self.shared.began.store(core.state.order.fetch_add(1, Ordering::AcqRel), Ordering::Release);
        let now = core.state.last();
        running.insert(self.shared.number, now);
        *self.shared.snapshot.write() = now;
        Ok(())
    }

    fn edit<T>(&self, schema: &Arc<StoredSchema>, change: impl FnOnce(&mut TableWrites) -> T) -> T {
        let mut writes = self.shared.writes.lock();
        let entry = writes.tables.entry(schema.table).or_insert_with(|| TableWrites::new(Arc::clone(schema)));
        change(entry)
    }

    /// Inserts whole rows: all columns of the schema in its order; for tables with hidden keys the hidden columns are filled
    /// in, unless the caller gives keys of its own (see the module). Fails with [`Error::DuplicateKey`] when a key exists.
    pub async fn insert(&self, schema: &Arc<StoredSchema>, rows: &RecordBatch) -> Result<()> {
        self.check_writable()?;
        if rows.num_rows() == 0 {
            return Ok(());
        }
        if schema.has_hidden_key() {
            let first = self.shared.core.next_row_ids(rows.num_rows() as u64).await?;
            let rows = with_hidden_keys(schema, rows, first)?;
            let keys = KeyCodec::new(schema)?.keys(&rows)?;
            let encoded = RowCodec::new(Arc::clone(schema))?.encode(&rows)?;
            self.edit(schema, |writes| {
                for (key, row) in keys.into_iter().zip(encoded) {
                    let op = RowOp::Put { row, update: false };
                    writes.put(key, OwnWrite { op, predecessor: Predecessor::Nothing });
                }
            });
            return self.spill_if_large().await;
        }
        let keys = KeyCodec::new(schema)?.keys(rows)?;
        let duplicate = |row: usize| -> Error {
            let key = key_columns(schema, rows).map(|batch| batch.slice(row, 1)).ok();
            Error::DuplicateKey { table: schema.table, row, key }
        };
        let mut seen = HashSet::with_capacity(keys.len());
        for (row, key) in keys.iter().enumerate() {
            if !seen.insert(key) {
                return Err(duplicate(row));
            }
        }
        self.take_locks(schema.table, &keys).await?;
        // Uniqueness is judged by the newest state: a key that was committed after the snapshot is a duplicate all the
        // same, and one that was removed after it is a conflict.
        let own = self.own(schema.table);
        let newest = TableView::new(&self.shared.core, schema, self.shared.core.state.last(), own.clone());
        let found = newest.find(&keys).await?;
        if let Some(row) = found.iter().position(Option::is_some) {
            return Err(duplicate(row));
        }
        let snapshot = self.snapshot_ts();
        if let Some(table) = self.shared.core.state.table(schema.table) {
            let written = keys.iter().any(|key| {
                let mine = own.as_ref().is_some_and(|own| own.rows.contains_key(key));
                !mine && self.shared.core.sequencer.newest(&table, key).is_some_and(|ts| ts > snapshot)
            });
            if written {
                return Err(self.conflict(schema.table));
            }
            table.remembers(self.shared.began())?;
        }
        let encoded = RowCodec::new(Arc::clone(schema))?.encode(rows)?;
        self.edit(schema, |writes| {
            for (key, row) in keys.into_iter().zip(encoded) {
                // A row that this transaction deleted and inserts again replaces what the deletion replaced.
                let predecessor = writes.rows.get(&key).map_or(Predecessor::Nothing, |own| own.predecessor);
                let update = predecessor != Predecessor::Nothing;
                writes.put(key, OwnWrite { op: RowOp::Put { row, update }, predecessor });
            }
        });
        self.spill_if_large().await
    }

    /// Replaces whole rows, which keep their keys. `locators` come from the scan that found the rows.
    pub async fn update(&self, schema: &Arc<StoredSchema>, rows: &RecordBatch, locators: &[Locator]) -> Result<()> {
        if rows.num_rows() != locators.len() {
            return Err(Error::Invalid(format!("{} rows with {} locators", rows.num_rows(), locators.len())));
        }
        let keys = KeyCodec::new(schema)?.keys(rows)?;
        let encoded = RowCodec::new(Arc::clone(schema))?.encode(rows)?;
        let ops = encoded.into_iter().map(|row| RowOp::Put { row, update: true }).collect();
        self.replace(schema, keys, locators, ops).await
    }

    /// Deletes rows by key. `locators` come from the scan that found the rows.
    pub async fn delete(&self, schema: &Arc<StoredSchema>, keys: &[RowKey], locators: &[Locator]) -> Result<()> {
        if keys.len() != locators.len() {
            return Err(Error::Invalid(format!("{} keys with {} locators", keys.len(), locators.len())));
        }
        self.replace(schema, keys.to_vec(), locators, vec![RowOp::Delete; keys.len()]).await
    }

    async fn replace(
        &self,
        schema: &Arc<StoredSchema>,
        keys: Vec<RowKey>,
        locators: &[Locator],
        ops: Vec<RowOp>,
    ) -> Result<()> {
        self.check_writable()?;
        let locked: Vec<RowKey> = {
            // Rows of this transaction's own files cannot be seen by others: no lock.
            let writes = self.shared.writes.lock();
            let own = writes.tables.get(&schema.table);
            let mine =
                |locator: &Locator| own.is_some_and(|own| own.staged.iter().any(|meta| meta.file == locator.file));
            keys.iter().zip(locators).filter(|(_, locator)| !mine(locator)).map(|(key, _)| key.clone()).collect()
        };
        self.lock(schema.table, &locked).await?;
        self.edit(schema, |writes| {
            for ((key, locator), op) in keys.into_iter().zip(locators).zip(ops) {
                let predecessor = match writes.rows.get(&key) {
                    Some(own) => own.predecessor,
                    None if locator.file == Locator::ROW_TIER => Predecessor::RowTier,
                    None => Predecessor::Columns(RowAddress { file: locator.file, offset: locator.offset }),
                };
                if predecessor == Predecessor::Nothing && op == RowOp::Delete {
                    // Inserted and deleted by this transaction: nobody ever sees it.
                    writes.remove(&key);
                } else {
                    let op = match op {
                        RowOp::Put { row, .. } => RowOp::Put { row, update: predecessor != Predecessor::Nothing },
                        RowOp::Delete => RowOp::Delete,
                    };
                    writes.put(key, OwnWrite { op, predecessor });
                }
            }
        });
        self.spill_if_large().await
    }

    /// Removes every row of a table, by metadata.
    pub async fn truncate(&self, schema: &Arc<StoredSchema>) -> Result<()> {
        self.check_writable()?;
        let dropped = {
            let mut writes = self.shared.writes.lock();
            let mut fresh = TableWrites::new(Arc::clone(schema));
            fresh.truncated = true;
            let old = writes.tables.insert(schema.table, fresh);
            if let (Some(old), Some(new)) = (&old, writes.tables.get_mut(&schema.table)) {
                new.next_row_no = old.next_row_no;
            }
            old
        };
        // Files of earlier statements are kept while a savepoint may bring them back; the sweep removes them later.
        drop(dropped);
        Ok(())
    }

    /// A writer for many new rows, which go to staged files directly.
    pub fn bulk(&self, schema: &Arc<StoredSchema>) -> Result<BulkWriter> {
        self.check_writable()?;
        BulkWriter::new(self.clone(), schema)
    }

    /// Defines a table, or a newer version of it, when the transaction commits.
    pub fn define(&self, schema: Arc<StoredSchema>) -> Result<()> {
        self.check_writable()?;
        self.shared.writes.lock().defines.push(schema);
        Ok(())
    }

    /// Drops a table when the transaction commits. Its history stays readable for a while, as the options say.
    pub fn drop_table(&self, table: TableId) -> Result<()> {
        self.check_writable()?;
        let mut writes = self.shared.writes.lock();
        writes.tables.remove(&table);
        writes.drops.push(table);
        Ok(())
    }

    /// Marks a point to come back to.
    pub fn savepoint(&self) -> Result<SavepointId> {
        self.check_running()?;
        let id = SavepointId(self.shared.next_savepoint.fetch_add(1, Ordering::Relaxed));
        let writes = self.shared.writes.lock().clone();
        self.shared.savepoints.lock().push((id, writes));
        Ok(id)
    }

    /// Undoes everything since the savepoint, which stays. Locks are kept.
    pub fn rollback_to(&self, savepoint: SavepointId) -> Result<()> {
        self.check_running()?;
        let mut savepoints = self.shared.savepoints.lock();
        let at = savepoints.iter().position(|(id, _)| *id == savepoint).ok_or(Error::UnknownSavepoint)?;
        savepoints.truncate(at + 1);
        if let Some((_, writes)) = savepoints.last() {
            *self.shared.writes.lock() = writes.clone();
        }
        Ok(())
    }

    /// Forgets the savepoint and those after it; what was written stays.
    pub fn release(&self, savepoint: SavepointId) -> Result<()> {
        self.check_running()?;
        let mut savepoints = self.shared.savepoints.lock();
        let at = savepoints.iter().position(|(id, _)| *id == savepoint).ok_or(Error::UnknownSavepoint)?;
        savepoints.truncate(at);
        Ok(())
    }

    /// Whether there is something to commit.
    pub fn has_writes(&self) -> bool {
        !self.shared.writes.lock().is_empty()
    }

    /// Makes all writes durable and visible at once. Returns the commit timestamp, or the snapshot if there were no
    /// writes.
    ///
    /// Fails with [`Error::WriteConflict`] when another transaction committed one of the rows first, and with
    /// [`Error::Indeterminate`] when the outcome is unknown. Either way the transaction has ended. When the future is
    /// dropped, the transaction ends by itself: rolled back if it had not got to the sequencer, else with the outcome that
    /// it has there, and [`Transaction::is_finished`] tells when.
    pub async fn commit(&self) -> Result<CommitTs> {
        let shared = &self.shared;
        shared.advance(Phase::Running, Phase::Committing)?;
        let mut ending = Ending { shared: Arc::clone(shared), room: None, files: Vec::new(), ordered: false };
        let writes = std::mem::take(&mut *shared.writes.lock());
        shared.savepoints.lock().clear();
        if writes.is_empty() {
            return Ok(self.snapshot_ts());
        }
        let named: HashSet<FileId> =
            writes.tables.values().flat_map(|own| own.staged.iter().map(|meta| meta.file)).collect();
        ending.files = shared.staged.lock().extract_if(.., |(_, meta)| named.contains(&meta.file)).collect();
        self.commit_writes(writes, ending).await
    }

    async fn commit_writes(&self, writes: Writes, mut ending: Ending) -> Result<CommitTs> {
        let core = &self.shared.core;
        if core.journal.free_space_low() {
            return Err(Error::DiskFull);
        }
        let bytes = writes.bytes();
        ending.room = Some(core.row_tier_room(bytes).await?);
        let mut tables = Vec::with_capacity(writes.tables.len());
        for (id, own) in writes.tables {
            if own.is_empty() {
                continue;
            }
            let staged = own.staged.iter().map(|meta| FileMeta::clone(meta)).collect();
            let mut masks: HashMap<FileId, roaring::RoaringBitmap> = HashMap::clone(&own.masks);
            let mut rows: Vec<(RowKey, RowOp, Predecessor)> = Vec::with_capacity(own.rows.size() + own.hidden.len());
            for (key, write) in own.rows.iter() {
                let mut predecessor = write.predecessor;
                // A row of a file of this very commit is masked in the log: after a restart nothing else tells which of
                // two versions with one timestamp is the later one.
                if let Predecessor::Columns(address) = predecessor
                    && own.staged.iter().any(|meta| meta.file == address.file)
                {
                    masks.entry(address.file).or_default().insert(address.offset);
                    predecessor = Predecessor::Nothing;
                }
                // What the transaction spilled and then wrote again still replaces what lies in the row tier, or wherever
                // that has been flushed to since.
                if predecessor == Predecessor::Nothing && own.hidden.contains(key) {
                    predecessor = Predecessor::RowTier;
                }
                rows.push((key.clone(), write.op.clone(), predecessor));
            }
            for key in own.hidden.iter() {
                if own.rows.get(key).is_none() {
                    rows.push((key.clone(), RowOp::Delete, Predecessor::RowTier));
                }
            }
            rows.sort_by(|a, b| a.0.cmp(&b.0));
            let table = core.state.table_or_new(id);
            let mut masks: Vec<_> = masks.into_iter().collect();
            masks.sort_by_key(|(file, _)| *file);
            tables.push(TableCommit {
                table,
                schema: own.schema,
                truncate: own.truncated,
                rows,
                staged,
                staged_stats: Vec::new(),
                masks,
            });
        }
        let snapshot = self.snapshot_ts();
        let mut order = Box::new(CommitOrder {
            began: self.shared.began(),
            snapshot,
            validated: snapshot,
            request: self.shared.request,
            header: self.shared.header.clone(),
            defines: writes.defines,
            drops: writes.drops,
            tables,
            bytes,
            ending,
        });
        for _ in 0..VALIDATIONS {
            validate(core, &mut order).await.inspect_err(|error| {
                if matches!(error, Error::WriteConflict { .. }) {
                    core.counters.conflicts.fetch_add(1, Ordering::Relaxed);
                }
            })?;
            let (reply, outcome) = oneshot::channel();
            core.sequencer.send(Order::Commit { order, reply })?;
            match outcome.await.map_err(|_| Error::Indeterminate)? {
                Reply::Decided(outcome) => return outcome,
                // Large transactions came in between: nothing is ordered yet.
                Reply::Validate(back) => order = back,
            }
        }
        let table = order.tables.iter().map(|writes| writes.table.id).next().unwrap_or_default();
        Err(self.conflict(table))
    }

    /// Forgets all writes and releases the locks. A transaction whose commit has begun ends with that.
    pub fn rollback(&self) {
        if self.shared.advance(Phase::Running, Phase::Ended).is_ok() {
            self.shared.release();
        }
    }

    pub(crate) fn push_staged(&self, schema: &Arc<StoredSchema>, files: Vec<FileMeta>) {
        self.edit(schema, |writes| {
            Arc::make_mut(&mut writes.staged).extend(files.into_iter().map(Arc::new));
        });
    }

    /// Remembers files that were written for this transaction, so that they go with it.
    pub(crate) fn note_staged(&self, table: TableId, files: &[FileMeta]) {
        self.shared.staged.lock().extend(files.iter().map(|meta| (table, Arc::new(meta.clone()))));
        if self.is_finished() {
            // A write that went on after the end.
            self.shared.discard_staged();
        }
    }

    pub(crate) fn take_row_numbers(&self, schema: &Arc<StoredSchema>, count: usize) -> i64 {
        self.edit(schema, |writes| {
            let first = writes.next_row_no;
            writes.next_row_no += i64::try_from(count).unwrap_or(i64::MAX);
            first
        })
    }

    /// Turns buffered deletions into masks before files come that may hold the deleted keys again. A buffered deletion would
    /// hide the new row from this transaction, and an update of it would supersede the old row alone.
    pub(crate) async fn settle_deletions(&self, schema: &Arc<StoredSchema>) -> Result<()> {
        let own = self.shared.writes.lock().tables.get(&schema.table).cloned();
        match own {
            Some(own) if own.rows.values().any(|write| write.op == RowOp::Delete) => {
                self.spill(schema.table, own).await
            }
            _ => Ok(()),
        }
    }

    async fn spill_if_large(&self) -> Result<()> {
        let largest = {
            let writes = self.shared.writes.lock();
            if writes.bytes() <= self.shared.core.options.transaction_spill_bytes {
                return Ok(());
            }
            writes.tables.iter().max_by_key(|(_, own)| own.bytes).map(|(id, own)| (*id, own.clone()))
        };
        match largest {
            Some((id, own)) => self.spill(id, own).await,
            None => Ok(()),
        }
    }

    /// Moves the buffered rows of one table to staged files.
    async fn spill(&self, id: TableId, own: TableWrites) -> Result<()> {
        let core = &self.shared.core;
        let schema = Arc::clone(&own.schema);
        let codec = RowCodec::new(Arc::clone(&schema))?;
        let all: Vec<usize> = (0..schema.columns.len()).collect();
        let mut masks: HashMap<FileId, roaring::RoaringBitmap> = HashMap::clone(&own.masks);
        let mut hidden: HashSet<RowKey> = HashSet::clone(&own.hidden);
        let mut kept = 0_usize;
        let mut live: Vec<(bytes::Bytes, u8)> = Vec::new();
        for (key, write) in own.rows.iter() {
            match write.predecessor {
                Predecessor::Nothing => {}
                Predecessor::RowTier => {
                    hidden.insert(key.clone());
                }
                Predecessor::Columns(address) => {
                    masks.entry(address.file).or_default().insert(address.offset);
                }
            }
            match &write.op {
                RowOp::Put { row, update } => live.push((row.clone(), u8::from(*update))),
                RowOp::Delete => kept += 1,
            }
        }
        tracing::debug!(table_id = id.0, rows = live.len(), deletes = kept, "spilling a transaction's writes");
        let mut files = Vec::new();
        if !live.is_empty() {
            let first = core.next_files(live.len().div_ceil(1 << 18) as u64 + 2).await?;
            let mut next = first.0;
            let chunks: Vec<Vec<(bytes::Bytes, u8)>> = live.chunks(SPILL_BATCH_ROWS).map(<[_]>::to_vec).collect();
            let arrow_schema = schema.arrow().clone();
            let batches = stream::iter(chunks.into_iter().map(move |chunk| -> Result<RecordBatch, base::BoxError> {
                let rows: Vec<bytes::Bytes> = chunk.iter().map(|(row, _)| row.clone()).collect();
                let batch = codec.decode(&rows, &all)?;
                let mut fields: Vec<_> = arrow_schema.fields().iter().cloned().collect();
                fields.push(Arc::new(arrow::datatypes::Field::new(
                    columns::OP_COLUMN,
                    arrow::datatypes::DataType::UInt8,
                    false,
                )));
                let mut arrays = batch.columns().to_vec();
                arrays.push(Arc::new(arrow::array::UInt8Array::from_iter_values(chunk.iter().map(|(_, op)| *op))));
                Ok(RecordBatch::try_new(Arc::new(arrow::datatypes::Schema::new(fields)), arrays)?)
            }));
            let mut spec = WriteSpec::at_commit(0);
            spec.constant_op = None;
            files = core
                .columns
                .write_files(
                    &schema,
                    Role::Current,
                    move || {
                        let file = FileId(next);
                        next += 1;
                        file
                    },
                    batches,
                    spec,
                )
                .await
                .map_err(Error::part)?;
            self.note_staged(id, &files);
        }
        self.edit(&schema, |writes| {
            // Later views do not find these rows in the buffer.
            self.catch_up(id, writes);
            writes.rows = rpds::RedBlackTreeMapSync::new_sync();
            writes.bytes = 0;
            writes.masks = Arc::new(masks);
            writes.hidden = Arc::new(hidden);
            Arc::make_mut(&mut writes.staged).extend(files.into_iter().map(Arc::new));
        });
        Ok(())
    }
}

impl Phase {
    fn must_be(self, wanted: Phase) -> Result<()> {
        match self {
            phase if phase == wanted => Ok(()),
            Phase::Running | Phase::Committing => Err(Error::TransactionCommitting),
            Phase::Ended => Err(Error::TransactionEnded),
        }
    }
}

impl Shared {
    fn advance(&self, from: Phase, to: Phase) -> Result<()> {
        let mut phase = self.phase.lock();
        phase.must_be(from)?;
        *phase = to;
        Ok(())
    }

    fn began(&self) -> u64 {
        self.began.load(Ordering::Acquire)
    }

    /// Lets go of everything that a transaction holds while it runs.
    fn release(&self) {
        self.writes.lock().tables.clear();
        for (table, key) in self.locked.lock().drain(..) {
            self.core.locks.unlock(self.number, table, &key);
        }
        self.core.locks.unpack(self.number);
        self.core.running.lock().remove(&self.number);
        self.savepoints.lock().clear();
        self.discard_staged();
    }

    /// Removes the files that nothing will ever name.
    fn discard_staged(&self) {
        let staged = std::mem::take(&mut *self.staged.lock());
        if staged.is_empty() {
            return;
        }
        let mut by_table: BTreeMap<TableId, Vec<FileMeta>> = BTreeMap::new();
        for (table, meta) in staged {
            by_table.entry(table).or_default().push(FileMeta::clone(&meta));
        }
        let columns = self.core.columns.clone();
        self.core.tasks.spawn(async move {
            for (table, files) in by_table {
                if let Err(error) = columns.discard(table, &files).await {
                    tracing::warn!(table_id = table.0, %error, "files of a rolled back transaction stay until the next start");
                }
            }
        });
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.advance(Phase::Running, Phase::Ended).is_ok() {
            self.release();
        }
    }
}

/// The key columns of whole rows, in key order.
pub(crate) fn key_columns(schema: &StoredSchema, rows: &RecordBatch) -> Result<RecordBatch> {
    Ok(rows.project(&schema.key)?)
}

/// Whether the caller gives the hidden keys itself: `_row_ts` is negative in every row. Fails when it is in some.
pub(crate) fn gives_hidden_keys(schema: &StoredSchema, rows: &RecordBatch) -> Result<bool> {
    let Some(at) = schema.columns.iter().position(|column| column.id == ROW_TS_COLUMN) else { return Ok(false) };
    let Some(given) = rows.columns().get(at).and_then(|array| array.as_any().downcast_ref::<Int64Array>()) else {
        return Ok(false);
    };
    let negative = (0..given.len()).filter(|&row| given.is_valid(row) && given.value(row) < 0).count();
    if negative > 0 && negative < given.len() {
        let table = schema.table;
        let all = given.len();
        return Err(Error::Invalid(format!(
            "{negative} of {all} rows for table {table} have a hidden key: give all or none"
        )));
    }
    Ok(negative > 0)
}

/// Fills the hidden key columns of rows that go through the row tier.
fn with_hidden_keys(schema: &StoredSchema, rows: &RecordBatch, first: u64) -> Result<RecordBatch> {
    let count = rows.num_rows();
    let first = i64::try_from(first).map_err(|_| Error::Invalid("row numbers are used up".into()))?;
    let given = gives_hidden_keys(schema, rows)?;
    let mut arrays: Vec<ArrayRef> = rows.columns().to_vec();
    for (position, column) in schema.columns.iter().enumerate() {
        let filled: ArrayRef = if column.id == ROW_TS_COLUMN && given {
            continue;
        } else if column.id == ROW_TS_COLUMN {
            Arc::new(Int64Array::from_iter_values(first..first + i64::try_from(count).unwrap_or(i64::MAX)))
        } else if column.id == ROW_NO_COLUMN {
            Arc::new(Int64Array::from_iter_values(std::iter::repeat_n(0, count)))
        } else {
            continue;
        };
        match arrays.get_mut(position) {
            Some(slot) => *slot = filled,
            None => arrays.push(filled),
        }
    }
    debug_assert!(arrays.iter().all(|array| array.len() == count));
    Ok(RecordBatch::try_new(Arc::clone(schema.arrow()), arrays)?)
}
