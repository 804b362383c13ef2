//! A transaction as the session sees it: the storage transaction, the catalog it changed, its savepoints, and whether an
//! error has doomed it.
//!
//! # Invariants
//! - TXN-1 a statement that did not end well, be it an error, a cancellation or a client that is gone, leaves its transaction
//!   failed: half of its writes can be undone, never committed. Tests: `tests/transactions.rs`,
//!   `a_dropped_statement_fails_its_transaction`, `an_error_among_the_rows_fails_the_transaction`.
//! - TXN-2 nothing idle holds locks and old versions for longer than the limit, and nothing busy is idle. Tests:
//!   `tests/transactions.rs`, `idle_transactions_let_go`, `a_long_statement_is_not_idle`.
//! - TXN-3 a transaction sees what was committed when its first statement began. Test: `tests/transactions.rs`,
//!   `the_first_statement_settles_the_snapshot`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use base::{CommitTs, SqlState};
use chrono::{DateTime, Utc};
use codec::StoredSchema;
use parking_lot::Mutex;
use storage::TableView;

use crate::catalog::{Catalog, ObjectId};
use crate::door::{SavepointHandle, TransactionId};
use crate::locks::RowLocks;
use crate::{Error, Result};

/// An open transaction.
pub(crate) struct Txn {
    pub(crate) id: TransactionId,
    pub(crate) storage: storage::Transaction,
    pub(crate) read_only: AtomicBool,
    /// Opened by BEGIN or a handle, not for one statement.
    pub(crate) interactive: bool,
    /// What `now()` says throughout.
    pub(crate) started: DateTime<Utc>,
    /// One writing statement at a time.
    pub(crate) gate: tokio::sync::Mutex<()>,
    /// Shared and exclusive row locks of foreign keys.
    pub(crate) locks: RowLocks,
    state: Mutex<State>,
    next_savepoint: AtomicU64,
}

struct State {
    status: Status,
    /// Present once the transaction changed definitions.
    catalog: Option<Arc<Catalog>>,
    savepoints: Vec<Savepoint>,
    used: Instant,
    /// No statement has worked in it yet, so its snapshot may still move.
    fresh: bool,
    /// Statements that run, or whose rows are being fetched.
    running: usize,
    /// Temporary tables to empty at commit.
    empty_at_commit: Vec<ObjectId>,
    /// What SET and SET LOCAL changed, in order: name and the value before. A rollback undoes them.
    changed: Vec<Changed>,
}

/// A setting as it was before the transaction changed it.
#[derive(Clone, Debug)]
pub(crate) struct Changed {
    pub(crate) name: String,
    pub(crate) before: String,
    /// By SET LOCAL, which a commit undoes too.
    pub(crate) local: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Active,
    Failed,
    /// Idle for too long: its work is gone, and the client has still to be told.
    Expired,
    Ended,
}

/// A statement that works in a transaction. Dropped before [`Work::done`], it fails the transaction.
#[derive(Debug)]
pub(crate) struct Work {
    txn: Arc<Txn>,
    done: bool,
}

impl Work {
    /// The statement has ended well. Its rows may still be fetched, for as long as this is kept.
    pub(crate) fn done(&mut self) {
        self.done = true;
    }

    /// An error came while its rows were fetched.
    pub(crate) fn failed(mut self) {
        self.done = false;
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if !self.done {
            self.txn.fail();
        }
        let mut state = self.txn.state.lock();
        state.running = state.running.saturating_sub(1);
        state.used = Instant::now();
    }
}

struct Savepoint {
    name: String,
    handle: SavepointHandle,
    storage: storage::SavepointId,
    catalog: Option<Arc<Catalog>>,
    /// How many settings had been changed.
    changed: usize,
}

impl std::fmt::Debug for Txn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Txn").field("id", &self.id).field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Txn {
    pub(crate) fn new(
        id: TransactionId,
        storage: storage::Transaction,
        read_only: bool,
        interactive: bool,
        locks: RowLocks,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            storage,
            read_only: AtomicBool::new(read_only),
            interactive,
            started: Utc::now(),
            gate: tokio::sync::Mutex::default(),
            locks,
            state: Mutex::new(State {
                status: Status::Active,
                catalog: None,
                savepoints: Vec::new(),
                used: Instant::now(),
                fresh: true,
                running: 0,
                empty_at_commit: Vec::new(),
                changed: Vec::new(),
            }),
            next_savepoint: AtomicU64::new(1),
        })
    }

    pub(crate) fn status(&self) -> Status {
        self.state.lock().status
    }

    /// Fails when an earlier statement failed.
    pub(crate) fn check(&self) -> Result<()> {
        usable(&mut self.state.lock())
    }

    /// Before the first statement, what the transaction sees is what there is now: a client that begins its next transaction as
    /// soon as it has ended one, as drivers do, does not see the past for it.
    pub(crate) fn see_newest(&self) -> Result<()> {
        self.renew(&self.state.lock())
    }

    fn renew(&self, state: &State) -> Result<()> {
        if state.fresh && state.status == Status::Active {
            self.storage.refresh_snapshot().map_err(Error::classified)?;
        }
        Ok(())
    }

    /// Begins a statement, unless an earlier one failed. The first one settles what the transaction sees.
    pub(crate) fn work(self: &Arc<Self>) -> Result<Work> {
        let mut state = self.state.lock();
        usable(&mut state)?;
        self.renew(&state)?;
        state.fresh = false;
        state.running += 1;
        Ok(Work { txn: self.clone(), done: false })
    }

    /// Begins fetching the rows of a statement that has ended well.
    pub(crate) fn fetch(self: &Arc<Self>) -> Work {
        self.state.lock().running += 1;
        Work { txn: self.clone(), done: true }
    }

    /// Ends the work of a transaction that nobody has used for too long. It stays, failed, so that its client hears of it.
    pub(crate) fn expire(&self, limit: std::time::Duration) -> bool {
        let mut state = self.state.lock();
        let idle = state.running == 0 && state.used.elapsed() > limit;
        if !idle || !matches!(state.status, Status::Active | Status::Failed) {
            return false;
        }
        if state.fresh && self.renew(&state).is_ok() {
            // It holds nothing but its snapshot, which has moved on.
            return false;
        }
        state.status = Status::Expired;
        state.savepoints.clear();
        drop(state);
        self.storage.rollback();
        self.locks.release();
        true
    }

    pub(crate) fn fail(&self) {
        let mut state = self.state.lock();
        if state.status == Status::Active {
            state.status = Status::Failed;
        }
    }

    pub(crate) fn end(&self) {
        self.state.lock().status = Status::Ended;
        self.locks.release();
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    /// The catalog with own changes, if there are any.
    pub(crate) fn own_catalog(&self) -> Option<Arc<Catalog>> {
        self.state.lock().catalog.clone()
    }

    pub(crate) fn set_catalog(&self, catalog: Arc<Catalog>) {
        self.state.lock().catalog = Some(catalog);
    }

    pub(crate) fn empty_at_commit(&self, table: ObjectId) {
        let mut state = self.state.lock();
        if !state.empty_at_commit.contains(&table) {
            state.empty_at_commit.push(table);
        }
    }

    pub(crate) fn tables_to_empty(&self) -> Vec<ObjectId> {
        self.state.lock().empty_at_commit.clone()
    }

    /// Remembers the value that a setting had before a SET.
    pub(crate) fn remember_setting(&self, changed: Changed) {
        self.state.lock().changed.push(changed);
    }

    /// The settings to put back at the end, in this order.
    pub(crate) fn settings_to_restore(&self, committed: bool) -> Vec<Changed> {
        let changed = std::mem::take(&mut self.state.lock().changed);
        if !committed {
            return changed.into_iter().rev().collect();
        }
        // Of one setting, the value that the last plain SET gave counts: what was before the first SET LOCAL after it.
        let mut kept: Vec<Changed> = Vec::new();
        for change in changed {
            if !change.local {
                kept.retain(|other| other.name != change.name);
            } else if !kept.iter().any(|other| other.name == change.name) {
                kept.push(change);
            }
        }
        kept
    }

    pub(crate) fn savepoint(&self, name: &str) -> Result<SavepointHandle> {
        self.check()?;
        let storage = self.storage.savepoint().map_err(Error::classified)?;
        let handle = SavepointHandle(self.next_savepoint.fetch_add(1, Ordering::Relaxed));
        let mut state = self.state.lock();
        let (catalog, changed) = (state.catalog.clone(), state.changed.len());
        state.savepoints.push(Savepoint { name: name.to_owned(), handle, storage, catalog, changed });
        Ok(handle)
    }

    /// Undoes everything after a savepoint; it stays. Also revives a failed transaction. Returns the settings to put back,
    /// in this order.
    pub(crate) fn rollback_to(&self, which: Which<'_>) -> Result<Vec<Changed>> {
        let mut state = self.state.lock();
        if !matches!(state.status, Status::Active | Status::Failed) {
            usable(&mut state)?;
        }
        let at = which.find(&state.savepoints)?;
        self.storage.rollback_to(state.savepoints[at].storage).map_err(Error::classified)?;
        state.catalog = state.savepoints[at].catalog.clone();
        state.savepoints.truncate(at + 1);
        state.status = Status::Active;
        let kept = state.savepoints[at].changed;
        Ok(state.changed.drain(kept..).rev().collect())
    }

    /// Forgets a savepoint, keeping the work.
    pub(crate) fn release(&self, which: Which<'_>) -> Result<()> {
        self.check()?;
        let mut state = self.state.lock();
        let at = which.find(&state.savepoints)?;
        self.storage.release(state.savepoints[at].storage).map_err(Error::classified)?;
        state.savepoints.truncate(at);
        Ok(())
    }
}

/// Fails when an earlier statement failed.
fn usable(state: &mut State) -> Result<()> {
    state.used = Instant::now();
    match state.status {
        Status::Active => Ok(()),
        Status::Failed => Err(Error::state(
            SqlState::IN_FAILED_TRANSACTION,
            "current transaction is aborted, commands ignored until end of transaction block",
        )
        .with_hint("end it with ROLLBACK, or go back with ROLLBACK TO SAVEPOINT")),
        Status::Expired => Err(expired()),
        Status::Ended => Err(Error::state(SqlState::NO_ACTIVE_TRANSACTION, "the transaction has ended")),
    }
}

/// The error of whoever comes back to a transaction that was idle for too long.
pub(crate) fn expired() -> Error {
    Error::state(SqlState(*b"25P03"), "the transaction was rolled back because it was idle for too long")
        .with_hint("end it with ROLLBACK and run it again; idle_in_transaction_session_timeout is the limit")
}

/// Names a savepoint.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Which<'a> {
    Name(&'a str),
    Handle(SavepointHandle),
}

impl Which<'_> {
    fn find(self, savepoints: &[Savepoint]) -> Result<usize> {
        let found = savepoints.iter().rposition(|savepoint| match self {
            Which::Name(name) => savepoint.name == name,
            Which::Handle(handle) => savepoint.handle == handle,
        });
        found.ok_or_else(|| {
            let name = match self {
                Which::Name(name) => name.to_owned(),
                Which::Handle(handle) => handle.to_string(),
            };
            Error::state(SqlState::INVALID_SAVEPOINT, format!("savepoint \"{name}\" does not exist"))
        })
    }
}

/// What a statement reads from.
#[derive(Clone)]
pub(crate) enum Reader {
    /// Committed rows at one moment.
    Snapshot(storage::Snapshot),
    /// A transaction's snapshot with its own writes.
    Transaction(Arc<Txn>),
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reader({})", self.ts())
    }
}

impl Reader {
    pub(crate) fn ts(&self) -> CommitTs {
        match self {
            Reader::Snapshot(snapshot) => snapshot.ts(),
            Reader::Transaction(txn) => txn.storage.snapshot_ts(),
        }
    }

    pub(crate) fn view(&self, schema: &Arc<StoredSchema>) -> Result<TableView> {
        match self {
            Reader::Snapshot(snapshot) => snapshot.table(schema),
            Reader::Transaction(txn) => txn.storage.view(schema),
        }
        .map_err(Error::classified)
    }
}
