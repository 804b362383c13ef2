//! A transaction as the session sees it: the storage transaction, the catalog it changed, its savepoints, and whether an
//! error has doomed it.

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
    /// Temporary tables to empty at commit.
    empty_at_commit: Vec<ObjectId>,
    /// Settings as they were before SET LOCAL.
    pub(crate) local: Vec<(String, Option<String>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Active,
    Failed,
    Ended,
}

struct Savepoint {
    name: String,
    handle: SavepointHandle,
    storage: storage::SavepointId,
    catalog: Option<Arc<Catalog>>,
}

impl std::fmt::Debug for Txn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Txn").field("id", &self.id).field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Txn {
    pub(crate) fn new(id: TransactionId, storage: storage::Transaction, read_only: bool, interactive: bool, locks: RowLocks) -> Arc<Self> {
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
                empty_at_commit: Vec::new(),
                local: Vec::new(),
            }),
            next_savepoint: AtomicU64::new(1),
        })
    }

    pub(crate) fn status(&self) -> Status {
        self.state.lock().status
    }

    /// Fails when an earlier statement failed.
    pub(crate) fn check(&self) -> Result<()> {
        let mut state = self.state.lock();
        state.used = Instant::now();
        match state.status {
            Status::Active => Ok(()),
            Status::Failed => Err(Error::state(
                SqlState::IN_FAILED_TRANSACTION,
                "current transaction is aborted, commands ignored until end of transaction block",
            )
            .with_hint("end it with ROLLBACK, or go back with ROLLBACK TO SAVEPOINT")),
            Status::Ended => Err(Error::state(SqlState::NO_ACTIVE_TRANSACTION, "the transaction has ended")),
        }
    }

    /// How long nobody used it.
    pub(crate) fn idle(&self) -> std::time::Duration {
        self.state.lock().used.elapsed()
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

    pub(crate) fn remember_setting(&self, name: &str, before: Option<String>) {
        let mut state = self.state.lock();
        if !state.local.iter().any(|(known, _)| known == name) {
            state.local.push((name.to_owned(), before));
        }
    }

    pub(crate) fn local_settings(&self) -> Vec<(String, Option<String>)> {
        std::mem::take(&mut self.state.lock().local)
    }

    pub(crate) fn savepoint(&self, name: &str) -> Result<SavepointHandle> {
        self.check()?;
        let storage = self.storage.savepoint().map_err(Error::classified)?;
        let handle = SavepointHandle(self.next_savepoint.fetch_add(1, Ordering::Relaxed));
        let mut state = self.state.lock();
        let catalog = state.catalog.clone();
        state.savepoints.push(Savepoint { name: name.to_owned(), handle, storage, catalog });
        Ok(handle)
    }

    /// Undoes everything after a savepoint; it stays. Also revives a failed transaction.
    pub(crate) fn rollback_to(&self, which: Which<'_>) -> Result<()> {
        let mut state = self.state.lock();
        if state.status == Status::Ended {
            return Err(Error::state(SqlState::NO_ACTIVE_TRANSACTION, "the transaction has ended"));
        }
        let at = which.find(&state.savepoints)?;
        self.storage.rollback_to(state.savepoints[at].storage).map_err(Error::classified)?;
        state.catalog = state.savepoints[at].catalog.clone();
        state.savepoints.truncate(at + 1);
        state.status = Status::Active;
        Ok(())
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
